"""What a measuring callback says of its run: rows, transitions, settings, and a figure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from lc_callback.callbacks.guard import in_words
from lc_callback.callbacks.loop import Loop
from lc_callback.callbacks.measure_hooks import MeasureHooks
from lc_callback.callbacks.overhead import halved_by
from lc_callback.callbacks.peers import Peer
from lc_callback.detection.outliers import shares_in_columns
from lc_callback.detection.transitions import PhaseEvent, Transition
from lc_callback.reporting.figure import WIDTH, draw
from lc_callback.run.history import History
from lc_callback.run.schedule import Schedule
from lc_callback.run.seams import outliers_by_radius
from lc_callback.run.timeline import RunCurves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Reported"]


class Reported(MeasureHooks):
    """The part of a measuring callback that others read."""

    peer: Peer
    _loop: Loop
    schedule: Schedule
    seed: int
    train_probes: Any
    test_probes: Any
    log_key_prefix: str
    max_overhead: float | None
    detection: dict[str, float]

    @property
    def history(self) -> History:
        """The rows so far."""
        return self.peer.record.history

    @property
    def events(self) -> list[PhaseEvent]:
        """What was found, moved and withdrawn so far."""
        return self.peer.record.events

    @property
    def transitions(self) -> list[Transition]:
        """What is known of the run now, in the order of the steps."""
        return self.peer.record.transitions

    def logs(self, key: str) -> bool:
        """Whether the rows of this run have a value under this key, or are going to. Known after the trial."""
        keys = self.peer.keys
        late = {keys.full(name) for name in self.late_keys}
        return key in {*self.peer.rows.trial_keys, *late, keys.in_group("seconds")} or key in self.history.keys

    def layer_shares(self, key: str, row: Mapping[str, float]) -> Mapping[str, float]:
        """The share of each layer in the value of a curve (without prefix) at a row, for the name of a lone row.

        By default the numbers ``lc_layer/train/<layer>`` of the row, for the curve ``lc/train``; empty if it has none.
        """
        return shares_in_columns(key, self.peer.keys.own_row(row))

    def part(self) -> RunCurves:
        """The rows so far, how to draw them, and what was found in them."""
        rows, own, prefix = self.history.rows, self.peer.keys.own, self.log_key_prefix
        names = [own(key) for key in self.history.keys]
        panels = [replace(panel, caption=self.caption(panel)).prefixed(prefix) for panel in self.panels(names)]
        curves = [key for panel in panels for key in panel.keys]
        made_by = outliers_by_radius(rows, curves, lambda key, row: self.layer_shares(own(key), row), prefix)
        followed = [self.peer.keys.full(key) for key in self.followed(names)]
        find = partial(self.find, settings=self.detection)
        settled = (followed, prefix, self.detection, find)
        title = self._loop.network.title
        return RunCurves(rows, panels, self.transitions, *settled, model=title, made_by=made_by, group=self.group)

    def plot(self) -> tuple[Figure, Any]:
        """Draw the rows so far, with a line at each transition.

        Returns:
            The figure and its axes: one, or a list if there are several panels.
        """
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(WIDTH, 4))
        axes = draw(figure, [self.part()])
        return figure, axes[0] if len(axes) == 1 else axes

    def points_text(self) -> str:
        """The points of a run, such as ``"64 train and 64 test points"``; ``"the points"`` before it."""
        return self._loop.source.in_words()

    def points_of(self, split: str) -> int | None:
        """How many points of a split a training has; ``None`` before it, or if it has none."""
        return self._loop.source.sizes.get(split)

    def half_the_cost(self) -> str:
        """Which argument halves the time of a row, and the value that does."""
        given = {"train_probes": self.train_probes, "test_probes": self.test_probes}
        return halved_by(given if self.cost_grows_with_probes else {}, self._loop.source.largest, self.schedule)

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        schedule, _, value = self.schedule.text.partition("=")
        limit = {} if self.max_overhead is None else {"max_overhead": self.max_overhead}
        return {schedule: _Verbatim(value), "n_probes": self.n_probes, "seed": self.seed, **limit}

    def settings_used(self) -> dict[str, Any]:
        """:meth:`settings` as they are in use: numbers in place of ``"auto"``, and no more points than there are."""
        return {**self.settings(), "n_probes": self._loop.n_used}

    def setup_line(self) -> str:
        """The callback and its settings, as they are in use."""
        return self._call(self.settings_used)

    def __repr__(self) -> str:
        try:
            text = self.describe()
            return f"{self.setup_line()}\n{text}" if text else self._call(self.settings)
        except Exception as error:  # a subclass may not know yet
            return f"<{type(self).__name__}, whose settings failed with {in_words(error)}>"

    def _call(self, settings: Callable[[], Mapping[str, Any]]) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings().items())
        return f"{type(self).__name__}({arguments})"


class _Verbatim(str):
    def __repr__(self) -> str:
        return str(self)
