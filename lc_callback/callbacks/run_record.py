"""What a callback knows of one run: rows, transitions, and what a checkpoint keeps of both."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lc_callback.callbacks.guard import Guard, numbers_in, plain_state
from lc_callback.callbacks.keys import Keys
from lc_callback.callbacks.known_weights import KnownWeights
from lc_callback.callbacks.row_taker import Row
from lc_callback.callbacks.settings import changed_settings, changes_in_words
from lc_callback.detection.transitions import Curves, Detector, PhaseEvent, Transition, Turn, only_supported
from lc_callback.run.history import History

__all__ = ["RunRecord"]

_STATE_VERSION = 1


class RunRecord:
    """The rows of one run and what was found in them.

    Args:
        keys: of the callback.
        guard: what a failure costs.
        find: the transitions that all rows so far show, from curves without the prefix.

    Attributes:
        history: the rows so far.
        events: what was found, moved and withdrawn so far.
    """

    def __init__(self, keys: Keys, guard: Guard, find: Callable[[Curves], list[Turn]]) -> None:
        self._keys, self._guard = keys, guard
        self.history = History()
        self.events: list[PhaseEvent] = []
        self._detector = Detector(only_supported(find), keys.prefix)
        self._detector_state: dict[str, Any] | None = None  # of the checkpoint that is resumed
        self._marks: dict[str, float] | None = None  # of the last look
        self._new_events: list[PhaseEvent] = []
        self._fingerprints: dict[str, str] = {}
        self._old_settings: dict[str, str] = {}  # of the checkpoint that is resumed
        self._weights = KnownWeights()  # by which this run is known again
        self._is_restored = self._is_used = False

    @property
    def transitions(self) -> list[Transition]:
        """What is known now, in the order of the steps."""
        return self._detector.transitions

    # A run begins

    def use(self) -> None:
        """The callback takes part in a run or an evaluation."""
        self._is_used = True

    def begin(self, trainer: Any, pl_module: Any, forget: Callable[[], None]) -> None:
        """Keep the rows of the checkpoint, or of this run as far as it is known; those of another run go.

        ``forget`` is called if they go.
        """
        step = trainer.global_step
        is_other = step == 0 or not self._weights.knows(trainer, pl_module)
        if self._is_used and is_other and not self._is_restored:
            self._clear()
            self._marks = None
            self._guard.attempt("beginning anew", forget)
        if is_other or self._is_restored:
            self._weights = KnownWeights()
        self._weights.forget_after(step)
        self._weights.look(trainer, pl_module)
        n_rows = len(self.history)
        self.history.drop_after(step)
        self.events = [event for event in self.events if event.at <= step]
        self._new_events = []
        rows_dropped = len(self.history) < n_rows
        self._guard.attempt("going on with its transitions", lambda: self._restore_detector(rows_dropped))
        self._is_restored = False

    def _clear(self) -> None:
        self.history, self.events, self._detector_state, self._fingerprints = History(), [], None, {}

    def _restore_detector(self, rows_dropped: bool) -> None:
        """Bring the detector to the last row of the history: from the checkpoint if that fits, else row by row."""
        rows = [(int(row["step"]), self._keys.own_row(row)) for row in self.history.rows]
        state, self._detector_state = self._detector_state, None
        if state is not None and not rows_dropped:
            self._detector.restore(state, rows)
        elif rows_dropped or len(self._detector) != len(rows):
            self._marks = None
            self._detector.clear()
            self.events = [event for step, row in rows for event in self._detector.update(step, row)]

    def changes(self, fingerprints: Mapping[str, str], settings: Mapping[str, str]) -> str:
        """Say which points, labels and arguments differ from the checkpoint. From now on the present ones count."""
        before = self._fingerprints
        other = [name for name, value in fingerprints.items() if before.get(name, value) != value]
        text = changes_in_words(other, changed_settings(self._old_settings, settings))
        self._old_settings, self._fingerprints = {}, {**fingerprints}
        return text

    # Rows

    def look_at_weights(self, trainer: Any, pl_module: Any) -> None:
        """Remember the weights, by which a later resume knows whether this is the run that the rows are of."""
        self._weights.look(trainer, pl_module)

    def look(self, row: Row, marks: Callable[[Curves], Mapping[str, float]]) -> None:
        """Look for transitions with this row, and add ``marks`` of all rows so far to it."""
        values, detector = row.values, self._detector
        found = self._guard.attempt(
            "looking for transitions", lambda: detector.update(row.step, self._keys.own_row(values))
        )
        self._add(found)
        if detector.looked_at == row.step or self._marks is None:
            self._marks = self._guard.attempt("marking the row", lambda: numbers_in(marks(detector.curves))) or {}
        marked = {self._keys.full(key): value for key, value in self._marks.items()}
        values.update({key: value for key, value in marked.items() if key not in values and key != "step"})

    def keep(self, row: Row) -> None:
        """Put the row into the history."""
        self.history.append(row.step, row.values, row.arrays)

    def finish(self) -> None:
        """The run is over. Look for transitions once more, so that what its last row shows is known, too."""
        self._add(self._guard.attempt("looking for transitions", self._detector.finish))

    def _add(self, events: list[PhaseEvent] | None) -> None:
        self.events += events or []
        self._new_events += events or []

    def take_events(self) -> list[PhaseEvent]:
        """What was found since the last call."""
        events, self._new_events = self._new_events, []
        return events

    # Checkpoints

    def state(self, settings: Mapping[str, str], extra: Callable[[], Any]) -> dict[str, Any]:
        """What a checkpoint keeps, of plain Python types and tensors only; ``extra()`` is what the measure adds."""
        return {
            "version": _STATE_VERSION,
            "rows": self.history.state(),
            "arrays": self.history.state_of_arrays(),
            "fingerprints": dict(self._fingerprints),
            "settings": dict(settings),
            "detector": self._detector.state(),
            "marks": self._marks,
            "events": [{**asdict(event)} for event in self.events],
            "extra": self._guard.attempt("its extra state", lambda: _plain(extra())) or {},
        }

    def restore(self, state: Mapping[str, Any], load_extra: Callable[[dict[str, Any]], None]) -> None:
        """Go on from :meth:`state`. One that cannot be read costs the earlier rows and a warning."""
        try:
            if state["version"] != _STATE_VERSION:
                raise ValueError(f"version {state['version']}, this is version {_STATE_VERSION}")
            self.history.restore(state["rows"], state.get("arrays"))
            self._fingerprints = {str(key): str(value) for key, value in state["fingerprints"].items()}
            self._old_settings = {str(key): str(value) for key, value in state.get("settings", {}).items()}
            events = [(event, event["transition"]) for event in state.get("events", [])]
            self.events = [PhaseEvent(e["what"], e["at"], Transition(**transition)) for e, transition in events]
            self._detector_state, self._marks = state.get("detector"), state.get("marks")
            load_extra(dict(state["extra"]))
            self._is_restored = True
        except Exception as error:
            self._clear()
            self._old_settings = {}
            self._guard.failed("its state in the checkpoint cannot be read, so the history starts anew", error)


def _plain(extra: Any) -> dict[str, Any]:
    if not isinstance(extra, Mapping):
        raise TypeError(f"expected a dict, but got {type(extra).__name__}")
    return dict(plain_state(extra))
