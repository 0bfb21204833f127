"""From what a curve shows at each row to transitions with a date: found, moved, withdrawn."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.piecewise import bins_of

__all__ = [
    "FIRM",
    "TENTATIVE",
    "WHATS",
    "Curves",
    "Detector",
    "Find",
    "PhaseEvent",
    "Transition",
    "Turn",
    "dated",
    "in_order",
    "only_supported",
    "supported",
]

Floats = NDArray[np.float64]

#: What a transition can be: see :attr:`Transition.certainty`.
FIRM, TENTATIVE = "firm", "tentative"
#: What an event can be: see :attr:`PhaseEvent.what`.
WHATS = ("found", "confirmed", "doubted", "moved", "updated", "withdrawn")
#: Steps and values of each curve by key, without what is not finite.
Curves = Mapping[str, tuple[Floats, Floats]]

# Within so many decades or steps a transition is the same as before.
_SAME_DECADES, _SAME_STEPS = 0.15, 2
_CONFIRMING_LOOKS = 3  # in succession, after which a transition is no longer provisional
_DOUBTING_LOOKS = 5  # in succession, after which a settled one is tentative again
_FEWEST_BEFORE = 4  # rows of its curve that a transition needs before it: what fewer show may be chance


@dataclass(frozen=True)
class Transition:
    """A moment at which a curve changes.

    Attributes:
        kind: one of :data:`lc_callback.detection.phases.PHASE_KINDS`; or an event of another curve, such as
            ``"generalization"`` or ``"rank_descent"``.
        step: where it happened.
        detected_at: the step from which on it was known, and known to be there: two rows in succession showed it, and
            all later ones.
        value: of the curve there, fitted or without outliers.
        prominence: how far the curve moved there: the fall before, the rise before, or the fall after.
        reason: the numbers, in one line.
        curve: key of the curve, where a callback found it.
        certainty: ``"firm"`` if it stands out of noise that is autocorrelated and heavy-tailed, as that of real runs
            is; ``"tentative"`` if such noise alone might look like this.
        earliest, latest: steps between which it lies in 95 of 100 cases, if it is firm; ``None`` in files of version
            0.1.
        noise: that was assumed, such as ``"noise of 0.31, autocorrelation 0.55"``.
        provisional: whether later rows may still move it or take it back: fewer than three looks in succession showed
            it as it is.
    """

    kind: str
    step: int
    detected_at: int
    value: float
    prominence: float
    reason: str
    curve: str = ""
    certainty: str = FIRM
    earliest: int | None = None
    latest: int | None = None
    noise: str = ""
    provisional: bool = False

    @property
    def interval(self) -> tuple[int, int]:
        """The steps between which it lies."""
        return (
            self.step if self.earliest is None else self.earliest,
            self.step if self.latest is None else self.latest,
        )

    @property
    def is_firm(self) -> bool:
        """Whether it is firm, provisional or not."""
        return self.certainty == FIRM

    @property
    def is_settled(self) -> bool:
        """Whether it is firm and not provisional: what acts, waits for this."""
        return self.is_firm and not self.provisional

    @property
    def doubts(self) -> str:
        """What keeps it from being settled: ``"tentative, provisional"``, one of these, or nothing."""
        return ", ".join(
            word for word, holds in ((TENTATIVE, not self.is_firm), ("provisional", self.provisional)) if holds
        )

    def __repr__(self) -> str:
        of = f", curve={self.curve!r}" if self.curve else ""
        doubts = f", {self.doubts}" if self.doubts else ""
        return f"Transition({self.kind!r}, step={self.step}{of}, value={self.value:.4g}{doubts})"


@dataclass(frozen=True)
class PhaseEvent:
    """What a new row changed in the transitions that are known.

    Attributes:
        what: ``"found"``; ``"confirmed"``, when it is firm and no longer provisional; ``"doubted"``, when five looks in
            succession have not seen it firm; ``"withdrawn"``; ``"moved"``, by more than 0.15 decades since it was last
            reported; or, at the end of a run, ``"updated"``, if its numbers have changed otherwise.
        at: step of the row.
        transition: as it is now; or the one that was withdrawn, as it was.
    """

    what: str
    at: int
    transition: Transition


@dataclass(frozen=True)
class Turn:
    """A transition that has no date yet.

    Attributes:
        kind: see :class:`Transition`, as are all that are not named here.
        x: ``log10(step + 1)``.
        low, high: the same of the steps between which it lies.
    """

    kind: str
    x: float
    value: float
    prominence: float
    reason: str
    curve: str = ""
    certainty: str = FIRM
    low: float | None = None
    high: float | None = None
    noise: str = ""

    @property
    def step(self) -> int:
        """The step, of which ``x`` is the logarithm."""
        return _step(self.x)

    def known_since(self, detected_at: int, certainty: str, provisional: bool) -> Transition:
        """The transition that it is."""
        return Transition(
            self.kind,
            self.step,
            detected_at,
            self.value,
            self.prominence,
            self.reason,
            self.curve,
            certainty=certainty,
            earliest=self.step if self.low is None else _step(self.low),
            latest=self.step if self.high is None else _step(self.high),
            noise=self.noise,
            provisional=provisional,
        )

    def same(self, other: Turn) -> bool:
        """Whether ``other`` is this one, as seen from another row."""
        return self.name == other.name and _close(self.step, other.step)

    @property
    def name(self) -> tuple[str, str]:
        """What there is one of: kind and curve."""
        return self.kind, self.curve


def _step(x: float) -> int:
    return round(10**x - 1)


def _close(one: int, other: int) -> bool:
    return abs(one - other) <= _SAME_STEPS or abs(math.log10((one + 1) / (other + 1))) <= _SAME_DECADES


#: What all rows so far show.
Find = Callable[[Curves], list[Turn]]


Moment = TypeVar("Moment", Turn, Transition)


def supported(found: Iterable[Moment], curves: Curves) -> list[Moment]:
    """Those before which their curve has at least four rows; of a curve that is not in ``curves``, all."""
    rows_before = ((curves[one.curve][0] < one.step).sum() if one.curve in curves else np.inf for one in found)
    return [one for one, rows in zip(found, rows_before, strict=True) if rows >= _FEWEST_BEFORE]


def only_supported(find: Find) -> Find:
    """``find`` without what rests on too few rows."""
    return partial(_find_supported, find)  # no lambda, for callbacks are copied and pickled


def _find_supported(find: Find, curves: Curves) -> list[Turn]:
    return supported(find(curves), curves)


def dated(
    seen: Sequence[tuple[int, list[Turn]]], known: Collection[tuple[str, str]] = (), is_over: bool = False
) -> list[Transition]:
    """The turns that the last two looks show, each with the step of the look that confirmed where it is.

    Args:
        seen: what was seen at each look, with the step of the look, in order.
        known: names of those that one look is enough for.
        is_over: whether no other look is to come, so that what the last one alone shows is said if it is firm.
    """
    transitions = []
    before = {turn.name for turn in seen[-2][1]} if len(seen) >= 2 else set()
    for turn in seen[-1][1] if seen else []:
        here: list[tuple[int, Turn]] = []  # the looks that saw it where it is, to the first that did not
        for step, turns in reversed(seen):
            same = next((other for other in turns if other.same(turn)), None)
            if same is None:
                break
            here.append((step, same))
        if (is_over and turn.certainty == FIRM) or turn.name in before or turn.name in known:
            sure = _sure_after([look.certainty == FIRM for _, look in reversed(here)])
            is_firm = sure or turn.certainty == FIRM
            provisional = not sure if is_firm else len(here) < _CONFIRMING_LOOKS
            transitions.append(turn.known_since(here[-2:][0][0], FIRM if is_firm else TENTATIVE, provisional))
    return sorted(transitions, key=in_order)


def _sure_after(looks: Sequence[bool]) -> bool:
    """Whether a transition is settled after looks that saw it firm or not: some confirm it, more have to doubt it."""
    is_sure, firm, doubtful = False, 0, 0
    for is_firm in looks:
        firm, doubtful = (firm + 1, 0) if is_firm else (0, doubtful + 1)
        is_sure = firm >= _CONFIRMING_LOOKS or (is_sure and doubtful < _DOUBTING_LOOKS)
    return is_sure


def in_order(found: Transition) -> tuple[int, bool, str, str]:
    """Key of the order in which transitions are listed: what is delayed stands behind what it is a delay of."""
    return found.step, found.kind.startswith("delayed"), found.kind, found.curve


class Detector:
    """Looks at the rows of a run while they come, and tells what each changed.

    It looks when a row opens a new bin of :func:`lc_callback.detection.piecewise.bins_of`, of which there are twenty to
    the decade of steps, and when the run is over (:meth:`finish`). What two looks in succession show is known, and
    provisional until a third one confirms it. When the run is over, what the last row shows firmly is known, too.

    Args:
        find: what a set of rows shows, whatever came before.
        prefix: put before the keys of the curves.
    """

    def __init__(self, find: Find, prefix: str = "") -> None:
        self._find, self._prefix = find, prefix
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self._steps: list[float] = []
        self._columns: dict[str, tuple[list[float], list[float]]] = {}
        self._seen: list[tuple[int, list[Turn]]] = []
        self._reported: dict[tuple[str, str], Transition] = {}
        #: What is known now, in the order of the steps.
        self.transitions: list[Transition] = []

    def update(self, step: int, row: Mapping[str, float]) -> list[PhaseEvent]:
        """Add a row. Returns what it changed.

        Raises:
            ValueError: if the steps do not increase.
        """
        if step < 0 or (self._steps and step <= self._steps[-1]):
            raise ValueError(f"steps must increase, from 0 or more, but {step} came after {self._steps[-1:]}.")
        self._add(step, row)
        new = np.diff(bins_of(np.array(self._steps[-2:])))
        if len(new) and not new[0]:
            return []
        self._seen.append((int(step), self._look()))
        return self._changes(self._seen, int(step))

    def finish(self) -> list[PhaseEvent]:
        """Look at the last row. Returns what that changed, or was too small a change to tell till now."""
        if not self._steps:
            return []
        step = int(self._steps[-1])
        seen = self._seen if self._seen[-1][0] == step else [*self._seen, (step, self._look())]
        return self._changes(seen, step, last=True)

    def _add(self, step: int, row: Mapping[str, float]) -> None:
        self._steps.append(float(step))
        for key, value in row.items():
            if math.isfinite(value):
                steps, values = self._columns.setdefault(key, ([], []))
                steps.append(float(step))
                values.append(float(value))

    def __len__(self) -> int:
        return len(self._steps)

    @property
    def looked_at(self) -> int:
        """The step of the last look; -1 before the first."""
        return self._seen[-1][0] if self._seen else -1

    @property
    def curves(self) -> Curves:
        """All rows so far, by key without the prefix."""
        return {key: (np.array(steps), np.array(values)) for key, (steps, values) in self._columns.items()}

    def _look(self) -> list[Turn]:
        return self._find(self.curves)

    def _changes(self, seen: list[tuple[int, list[Turn]]], at: int, last: bool = False) -> list[PhaseEvent]:
        provisional = {
            (t.kind, t.curve.removeprefix(self._prefix)) for t in self._reported.values() if t.provisional
        }  # reported at the last row of a training that goes on now
        now = dated(seen, provisional, is_over=last)
        self.transitions = [replace(t, curve=self._prefix + t.curve if t.curve else "") for t in now]
        by_name = {(t.kind, t.curve): t for t in self.transitions}
        events = [PhaseEvent("withdrawn", at, old) for name, old in self._reported.items() if name not in by_name]
        for name, new in by_name.items():
            old = self._reported.get(name)
            if old is None:
                whats = ["found"]
            else:
                whats = [
                    *(["moved"] if not _close(new.step, old.step) else []),
                    *(["confirmed"] if new.is_settled and not old.is_settled else []),
                    *(["doubted"] if old.is_settled and not new.is_firm else []),
                ] or (["updated"] if last and new != old else [])
            events += [PhaseEvent(what, at, new) for what in whats]
        for event in events:
            name = event.transition.kind, event.transition.curve
            if event.what == "withdrawn":
                del self._reported[name]
            else:
                self._reported[name] = event.transition
        return events

    # State

    def state(self) -> dict[str, Any]:
        """What was seen and reported, in plain Python, for a checkpoint. The rows are not in it."""

        def plain(t: Turn | Transition) -> dict[str, Any]:
            return {key: getattr(t, key) for key in t.__dataclass_fields__}

        return {
            "seen": [[step, [plain(turn) for turn in turns]] for step, turns in self._seen],
            "told": [plain(transition) for transition in self._reported.values()],
            "transitions": [plain(transition) for transition in self.transitions],
        }

    def restore(self, state: Mapping[str, Any], rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Go on from :meth:`state`, taken behind the last of these rows."""
        self.clear()
        for step, row in rows:
            self._add(step, row)
        self._seen = [(int(step), [Turn(**turn) for turn in turns]) for step, turns in state["seen"]]
        reported = [Transition(**transition) for transition in state["told"]]
        self._reported = {(t.kind, t.curve): t for t in reported}
        self.transitions = [Transition(**transition) for transition in state["transitions"]]
