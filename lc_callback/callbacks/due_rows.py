"""Which steps have a row: those that the schedule asks for, without those that ``max_overhead`` leaves out."""

from __future__ import annotations

import math
from typing import Any, Protocol

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lc_callback.callbacks.clock import read_clock
from lc_callback.callbacks.guard import Guard
from lc_callback.callbacks.overhead import ends_with, is_kept
from lc_callback.callbacks.ranks import Ranks
from lc_callback.callbacks.row_taker import RowTaker
from lc_callback.run.history import History
from lc_callback.run.schedule import Schedule

__all__ = ["DueRows"]


class TrainingTime(Protocol):
    """The time of a run."""

    def trained(self, now: float) -> float:
        """Seconds of the training so far, without those of the measuring callbacks."""

    def end_batch(self, trainer: Any, now: float) -> None:
        """All measuring callbacks are done with a batch."""


class DueRows:
    """Asks the schedule at each step, for all processes alike.

    Args:
        name: of the callback.
        guard: what a failure of the schedule costs.
        ranks: the processes of the run.
        max_overhead: argument of the callback.

    Attributes:
        left_out: the last step whose row was left out; -1 before the first.
        cost: of the run, shared by the measuring callbacks of the Trainer.
    """

    def __init__(self, name: str, guard: Guard, ranks: Ranks, max_overhead: float | None) -> None:
        self._name, self._guard, self._ranks, self._max_overhead = name, guard, ranks, max_overhead
        self._epochs_differ = False  # each process has its own number of batches
        self._looked_at = -1  # the last step for which the schedule was asked
        self.left_out = -1
        self.cost: TrainingTime | None = None

    def begin(self, trainer: Any, schedule: Schedule) -> None:
        """A run begins. Find out whether an epoch ends at the same step in all processes, if rows depend on that."""
        self.left_out, self._looked_at, self._epochs_differ = -1, trainer.global_step, False
        if schedule.every_n_epochs is not None and self._ranks.everyone.n > 1:
            n = self._ranks.everyone.gather(lambda: trainer.num_training_batches)
            self._epochs_differ = len({*n}) > 1 or math.isinf(n[0])

    def at_start(self, trainer: Any, schedule: Schedule) -> bool:
        """Whether the step at which a run begins has a row."""
        step = trainer.global_step
        return trainer.fast_dev_run or self._due(schedule, step - 1, step)

    def after_batch(self, trainer: Any, schedule: Schedule) -> bool:
        """Whether a row is due after this batch's optimizer steps, or after the epoch that it ends."""
        step = trainer.global_step
        due = self._due(schedule, self._looked_at, step)
        due = self._due_after_epoch(trainer, schedule) or due  # every time: the others ask, too
        self._looked_at = step
        return due

    def after_epoch(self, trainer: Any, schedule: Schedule) -> bool:
        """Whether a row is due after an epoch that may have ended before its last batch."""
        return not self._epochs_differ and schedule.due_after_epoch(trainer.current_epoch + 1)

    def _due(self, schedule: Schedule, after: int, step: int) -> bool:
        def ask() -> bool:
            return schedule.due(after, step)

        if schedule.given is not None:  # it may say something else in each process
            decided = self._guard.attempt("asking its schedule", lambda: self._ranks.measuring.decide(ask))
            return bool(decided)
        return ask()

    def _due_after_epoch(self, trainer: Any, schedule: Schedule) -> bool:
        """Whether this batch ends an epoch after which a row is due. The first process decides if epochs differ."""

        def ask() -> bool:
            return bool(trainer.is_last_batch) and schedule.due_after_epoch(trainer.current_epoch + 1)

        if self._epochs_differ:
            decided = self._guard.attempt("looking for the end of the epoch", lambda: self._ranks.everyone.decide(ask))
            return bool(decided)
        return ask()

    def leaves_out(self, trainer: Any, schedule: Schedule, rows: RowTaker, history: History) -> bool:
        """Whether the row of this step is left out for ``max_overhead``. The first process decides for all."""
        limit, cost, step = self._max_overhead, self.cost, trainer.global_step
        if limit is None or cost is None:
            return False
        if self.left_out == step:
            return True
        trained = cost.trained(read_clock())
        last = history.steps[-1] if len(history) else None
        kept = is_kept(step, last, rows.seconds, trained, limit)
        kept = kept or bool(self._guard.attempt("looking for the end", lambda: ends_with(trainer, schedule, step)))
        if trainer.world_size > 1:
            kept = trainer.strategy.broadcast(kept, 0)
        if kept:
            return False
        if self.left_out < 0:
            rank_zero_info(
                f"{self._name} leaves out rows from step {step} on: it has taken {rows.seconds:.0f} s, and the "
                f"training {trained:.0f} s (max_overhead={limit:g}). Three rows a decade remain."
            )
        self.left_out = step
        return True

    def owes_last(self, history: History, tried: int) -> bool:
        """Whether the last row that was due has been left out. The end of a run takes it after all."""
        return self.left_out > max([*history.steps[-1:], tried])
