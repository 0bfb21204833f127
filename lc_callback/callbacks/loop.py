"""The measurements of one run, from the first row to the last: draw, try, measure, record, report."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lc_callback.callbacks.clock import read_clock
from lc_callback.callbacks.closing import ClosingRows
from lc_callback.callbacks.conditions import Conditions
from lc_callback.callbacks.network import Network, NetworkSource
from lc_callback.callbacks.overhead import SECONDS_TO_SAY, SHARE_TO_SAY
from lc_callback.callbacks.peers import Measuring, Peer
from lc_callback.callbacks.places import refuse_one_key
from lc_callback.callbacks.probe_source import ProbeSource, fingerprints
from lc_callback.callbacks.ranks import RankGroup, Ranks, check_weights_are_whole, communicates
from lc_callback.callbacks.row_taker import Row
from lc_callback.callbacks.run_cost import RunCost
from lc_callback.callbacks.run_report import RunReport
from lc_callback.callbacks.stale_values import warn_of_stale_values
from lc_callback.callbacks.unseen_values import stand_in
from lc_callback.detection.transitions import Curves
from lc_callback.engine.network.signature import Signature
from lc_callback.run.probes import Probes

__all__ = ["Loop", "Measures"]

_FEW = 8  # probes under fast_dev_run


class Measures(Measuring, Protocol):
    """A measuring callback, as its loop sees it."""

    n_probes: int | str
    shares_points: ClassVar[bool]
    without: ClassVar[tuple[str, ...]]
    cost_grows_with_probes: ClassVar[bool]

    def choose_n_probes(self, network: Network, few: Callable[[], Mapping[str, Probes]]) -> int:
        """How many points to draw for each split."""

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Called before the first measurement of a run."""

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> Mapping[str, Any]:
        """Measure one row."""

    def trial(self, network: Network, probes: Mapping[str, Probes]) -> Mapping[str, Any]:
        """As ``measure``, on two points of each split."""

    def recorded(self, step: int) -> None:
        """Called when the row is in the history."""

    def marks(self, curves: Curves) -> dict[str, float]:
        """What to log with a row that depends on all rows so far."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back the state of the measure."""


class Loop:
    """Measures for one callback, when its hooks say that it may be time to.

    Args:
        callback: the callback.
        peer: its parts.
        network: finds what is measured.
        source: draws the points.
        ranks: the processes of the run.
        conditions: under which it measures.

    Attributes:
        is_active: whether there is a run or an evaluation to measure.
        n_used: points of each split: fewer than asked for where there are fewer to draw.
    """

    def __init__(
        self,
        callback: Measures,
        peer: Peer,
        network: NetworkSource,
        source: ProbeSource,
        ranks: Ranks,
        conditions: Conditions,
    ) -> None:
        self._callback, self._peer = callback, peer
        self.network, self.source, self.ranks, self.conditions = network, source, ranks, conditions
        self._report: RunReport | None = None  # in the last measuring callback of the Trainer
        self._began = 0.0
        self.is_active = False
        self.n_used: int | str = callback.n_probes

    # A training

    def begin(self, trainer: Any, pl_module: Any, callbacks: list[Any], settings: Mapping[str, str]) -> None:
        """Draw the points, try a measurement on two of them, and measure the first step."""
        self.is_active = not trainer.barebones
        if not self.is_active:
            return
        callback, peer = self._callback, self._peer
        peer.rows.begin()
        peer.record.begin(trainer, pl_module, lambda: callback.load_extra_state({}))
        network = self._draw(trainer, pl_module)
        self.source.count()
        self.warn_of_changes(settings)
        peer.due.begin(trainer, callback.schedule)
        self.network.entitle(pl_module, network)
        self._try_out(pl_module, network)
        root = Path(trainer.log_dir or trainer.default_root_dir)  # in all processes: the Trainer broadcasts it
        peer.writer.begin()
        if trainer.is_global_zero and not trainer.fast_dev_run:
            peer.writer.open(trainer, root, peer.record.history)
        self._report = None
        if callbacks[-1] is callback:
            refuse_one_key(callbacks)
            self._report = RunReport(callbacks, trainer)
        self._first_row(trainer, pl_module)
        if self._report is not None:  # all others have had their trial
            self._begin_last(trainer, pl_module, callbacks)

    def warn_of_changes(self, settings: Mapping[str, str]) -> None:
        """Warn if points, labels or arguments differ from those of the checkpoint."""
        marks = self.source.marks(labels="target_fn" not in self._callback.without)
        changes = self._peer.record.changes(marks, settings)
        if changes:
            rank_zero_warn(f"{self._peer.name}: {changes}")

    def _first_row(self, trainer: Any, pl_module: Any) -> None:
        self._began, self._callback.is_closed = read_clock(), False
        history = self._peer.record.history
        if len(history):  # resumed: `monitor=` must find its key before the next row is due
            self._peer.writer.publish(trainer, history.rows[-1])
        if trainer.global_step not in history and self._peer.due.at_start(trainer, self._callback.schedule):
            self._row(trainer, pl_module)
        self._close_step(trainer)

    def _begin_last(self, trainer: Any, pl_module: Any, callbacks: list[Any]) -> None:
        ClosingRows.stand_first(trainer, callbacks)
        self._peer.guard.attempt("looking for monitors", lambda: warn_of_stale_values(trainer, pl_module, callbacks))
        cost = RunCost(callbacks, trainer.global_step, read_clock())
        for callback in callbacks:
            callback.peer.due.cost = cost

    def after_batch(self, trainer: Any, pl_module: Any) -> None:
        """Measure if a row is due after this batch's optimizer steps."""
        if not self._runs(trainer):
            return
        if self._peer.due.after_batch(trainer, self._callback.schedule) and self._lacks(trainer):
            self._row(trainer, pl_module)
        self._close_step(trainer)
        cost = self._peer.due.cost
        if self._report is not None and cost is not None:  # the last of its peers
            self._peer.guard.attempt("looking at the time", lambda: cost.end_batch(trainer, read_clock()))

    def after_epoch(self, trainer: Any, pl_module: Any) -> None:
        """Measure a row that is due after the epoch, if the epoch ended before its last batch."""
        due = self._runs(trainer) and self._peer.due.after_epoch(trainer, self._callback.schedule)
        if due and trainer.global_step != self._peer.rows.tried and self._lacks(trainer):
            self._row(trainer, pl_module)
        self._close_step(trainer)

    def end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, and say so if the measurements took much of the run."""
        if not self.is_active:
            return
        self._callback.take_closing_row(trainer, pl_module)
        self._peer.record.finish()
        self._close_step(trainer, last=True)
        self._peer.writer.finish(trainer)
        seconds, elapsed = self._peer.rows.seconds, read_clock() - self._began
        if seconds > max(SECONDS_TO_SAY, SHARE_TO_SAY * elapsed):
            n_points = self.source.largest or self._callback.n_probes
            fewer = f"lower `n_probes` (now {n_points}), or " if self._callback.cost_grows_with_probes else ""
            rank_zero_warn(
                f"{self._peer.name} took {seconds:.0f} s, {seconds / elapsed:.0%} of the training: {fewer}"
                f"measure less often with `every_n_train_steps` or `schedule` (now {self._callback.schedule.text})."
            )

    def take_closing_row(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step of a training, unless that has been done."""
        step, history, tried = trainer.global_step, self._peer.record.history, self._peer.rows.tried
        owes = self._peer.due.owes_last(history, tried)  # the last row is never left out
        missing = self._runs(trainer) and step not in history and step != tried
        if (self._callback.schedule.closes or owes) and missing:
            self._row(trainer, pl_module)

    def leave(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the points."""
        if self.is_active and stage == "fit":
            self._peer.record.look_at_weights(trainer, pl_module)  # as averaging may have left them
        self.is_active, self._report, self._peer.due.cost = False, None, None
        self.source.let_go()
        self._peer.writer.close()
        self.ranks.end()

    # An evaluation

    def begin_evaluation(self, trainer: Any, pl_module: Any) -> None:
        """Draw the points and try a measurement."""
        self.is_active = not trainer.barebones
        if not self.is_active:
            return
        network = self._draw(trainer, pl_module)
        self.is_active = bool(self.source.probes)
        if self.is_active:
            self._try_out(pl_module, network)

    def end_evaluation(self, trainer: Any, pl_module: Any) -> None:
        """Measure once. The row is logged, and belongs to no history."""
        rows, measure = self._peer.rows, partial(self._measure, pl_module)
        row = rows.evaluate(pl_module, trainer.global_step, measure) if self.is_active else None
        if row is None:
            return
        self._peer.writer.publish(trainer, row.values)
        if trainer.is_global_zero:
            self._peer.writer.report(trainer, row)

    # Parts of both

    def _runs(self, trainer: Any) -> bool:
        return self.is_active and not self._callback.is_closed and not trainer.fast_dev_run

    def _lacks(self, trainer: Any) -> bool:
        """Whether the row of this step, which is due, is to be taken."""
        history = self._peer.record.history
        if trainer.global_step in history:
            return False
        return not self._peer.due.leaves_out(trainer, self._callback.schedule, self._peer.rows, history)

    def _measure(self, pl_module: Any) -> Mapping[str, Any]:
        return self._callback.measure(self.network.of(pl_module), self.source.probes)

    def _try_out(self, pl_module: Any, network: Network) -> None:
        prepare = partial(self._callback.prepare, network, self.source.probes)
        self._peer.rows.try_out(pl_module, network, self.source.few(), prepare, self._callback.trial)

    def _draw(self, trainer: Any, pl_module: Any) -> Network:
        """Draw the same points in all processes. Returns the network that takes them."""
        self.ranks.begin(trainer)
        everyone, callback = self.ranks.everyone, self._callback
        self._peer.record.use()

        def draw() -> tuple[Network, dict[str, Probes]]:
            network = self.network.of(pl_module)
            check_weights_are_whole(trainer, network.module, self._peer.name)
            conditions = partial(self.conditions.of, pl_module)
            signature = Signature.of(network.module, network.forward_fn, conditions)
            drawn = partial(self.source.draw, trainer, signature)
            n = callback.choose_n_probes(network, partial(drawn, 2))
            return network, drawn(min(n, _FEW) if trainer.fast_dev_run else n)

        network, probes = everyone.agree(draw)
        probes = everyone.alike(probes, fingerprints)  # each may have its own part of the data
        self.n_used = max((len(points) for points in probes.values()), default=callback.n_probes)
        if trainer.fast_dev_run:
            probes = {split: points.head(_FEW) for split, points in probes.items()}
        self.source.probes = probes
        self.ranks.measuring = RankGroup.that_share(trainer) if callback.shares_points else RankGroup()
        if everyone.n > 1 and any(everyone.gather(partial(self._communicates, network, pl_module))):
            self.ranks.measuring = everyone
        return network

    def _communicates(self, network: Network, pl_module: Any) -> bool:
        """Whether the forward needs the other processes: then all have to run it equally often."""
        few = [probes.inputs for probes in self.source.few().values()]
        if not few:
            return False
        with self.conditions.of(pl_module):
            return max(communicates(partial(network, inputs)) for inputs in few)  # and not any(), for all have to run

    def _row(self, trainer: Any, pl_module: Any) -> None:
        """Measure, record and report the row of the current step; whatever fails costs no more than that."""
        peer, step = self._peer, trainer.global_step
        row = peer.rows.take(pl_module, step, partial(self._measure, pl_module))
        if row is None:
            if not len(peer.record.history):
                callback = self._callback
                peer.guard.attempt("looking for monitors", lambda: stand_in(trainer, pl_module, callback))
            return
        start = read_clock()
        peer.record.look(row, self._callback.marks)
        peer.rows.seconds += read_clock() - start
        peer.guard.attempt(f"recording step {step}", lambda: self._record(row))
        peer.record.look_at_weights(trainer, pl_module)
        peer.writer.publish(trainer, row.values)
        if trainer.is_global_zero:
            peer.writer.append(peer.record.history, step)  # before anything else that may need room on the disk
            peer.writer.report(trainer, row)

    def _record(self, row: Row) -> None:
        self._peer.record.keep(row)
        self._callback.recorded(row.step)

    def _close_step(self, trainer: Any, last: bool = False) -> None:
        report = self._report
        if self.is_active and report is not None:
            start = read_clock()
            self._peer.guard.attempt("closing the step", lambda: report.close_step(trainer, last))
            self._peer.rows.seconds += read_clock() - start
