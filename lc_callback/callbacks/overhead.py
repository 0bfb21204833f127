"""What measuring costs a run: said early, and kept low by leaving out rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

if TYPE_CHECKING:
    from lc_callback.callbacks.base import ProbeCallback
    from lc_callback.run.schedule import Schedule

__all__ = ["Forecast", "RunCost", "check_max_overhead", "ends_with", "forecast_text", "is_kept", "wait_for_device"]

SHARE_TO_SAY = 0.2
SECONDS_TO_SAY = 5.0  # of a short run any share is small change
_STEPS = 20  # that are timed before anything is said
_WARM_UP = 3  # of these, the first, which are slow
_WORTH_NAMING = 0.02  # share of one callback


def check_max_overhead(value: Any) -> None:
    """Raise a ValueError if it is neither ``None`` nor a positive number."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
    if value is not None and not good:
        raise ValueError(f"`max_overhead` must be None or a positive number, such as 0.1 for 10 %, but got {value!r}.")


def third_of_decade(step: int) -> int:
    """Which third of which decade a step is in: 0 for step 1 and 2, 1 for 3 and 4, 2 for 5 to 9, 3 from 10 on, ..."""
    return -1 if step < 1 else math.floor(3 * math.log10(step))


def is_kept(step: int, last_kept: int | None, measured: float, trained: float, max_overhead: float) -> bool:
    """Whether a row that is due at ``step`` is taken: the first in its third of a decade, and where time allows.

    Args:
        step: the step.
        last_kept: that of the last row that was taken; ``None`` before the first.
        measured: seconds that the callback has taken so far.
        trained: seconds of the training without any callback of this library.
        max_overhead: largest ratio of the two.

    Example::

        >>> from lc_callback.callbacks.overhead import is_kept
        >>> [is_kept(step, last, measured=3.0, trained=10.0, max_overhead=0.1) for step, last in ((50, 40), (40, 32))]
        [True, False]
    """
    if last_kept is None or third_of_decade(step) > third_of_decade(last_kept):
        return True
    return measured <= max_overhead * trained


def wait_for_device() -> None:
    """Let a GPU finish the training steps that are queued, which are no part of a measurement's time."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass(frozen=True)
class Forecast:
    """What one callback will take of a run.

    Attributes:
        name: of the callback.
        seconds: of all its rows.
        remedy: the argument that halves this.
    """

    name: str
    seconds: float
    remedy: str


def forecast_text(forecasts: Sequence[Forecast], training: float) -> str | None:
    """One line about all callbacks of a run whose training takes so many seconds; ``None`` if they take little."""
    seconds = sum(one.seconds for one in forecasts)
    whole = seconds + training
    if not (seconds > SECONDS_TO_SAY and seconds > SHARE_TO_SAY * whole):
        return None
    costly = sorted((one for one in forecasts if one.seconds > _WORTH_NAMING * whole), key=lambda one: -one.seconds)
    parts = "; ".join(f"{one.name} {one.seconds / whole:.0%}, {one.remedy}" for one in costly)
    return (
        f"lc_callback: measuring will take about {seconds / whole:.0%} of this run, {_duration(seconds)} beside "
        f"{_duration(training)} of training: {parts}. `max_overhead=0.1` leaves out rows beyond 10 % for each."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class RunCost:
    """The time of a run, by what its measuring callbacks take and what is left for the training.

    Args:
        peers: all measuring callbacks of the Trainer.
        step: where the training begins.
        now: when.
    """

    def __init__(self, peers: Sequence[ProbeCallback], step: int, now: float) -> None:
        self._peers, self._first_step, self._begin = peers, step, now
        self._before = self._measured()
        self._trained = [0.0]  # by the end of each batch
        self._rows = [[peer.seconds_taken] if peer.last_tried >= 0 else [] for peer in peers]
        self._noted = [(peer.last_tried, peer.seconds_taken) for peer in peers]
        self._is_said = False

    def trained(self, now: float) -> float:
        """Seconds of the training so far, without those of the measuring callbacks."""
        return now - self._begin - (self._measured() - self._before)

    def end_batch(self, trainer: Any, now: float) -> None:
        """All measuring callbacks are done with a batch. Once enough are timed, say what they will take of the run."""
        if self._is_said:
            return
        self._trained.append(self.trained(now))
        for i, peer in enumerate(self._peers):
            step, seconds = self._noted[i]
            if peer.last_tried != step:
                self._rows[i].append(peer.seconds_taken - seconds)
            self._noted[i] = peer.last_tried, peer.seconds_taken
        if len(self._trained) > _STEPS and trainer.global_step > self._first_step:
            self._is_said = True
            text = self._forecast(trainer)
            if text is not None:
                rank_zero_info(text)

    def _forecast(self, trainer: Any) -> str | None:
        """What to say now; ``None`` if that is nothing, or if the length of the run is not known."""
        step, batches = trainer.global_step, len(self._trained) - 1
        a_batch = (step - self._first_step) / batches  # steps: fewer with accumulation, more with several optimizers
        seconds_a_step = (self._trained[-1] - self._trained[_WARM_UP]) / (batches - _WARM_UP) / a_batch
        last = last_step(trainer, a_batch, seconds_a_step)
        if last is None:
            return None
        training = self._trained[-1] + seconds_a_step * max(0, last - step)
        made = []
        for peer, rows in zip(self._peers, self._rows, strict=True):
            to_come = peer.schedule.rows_between(step, last, trainer.num_training_batches * a_batch)
            if to_come is None or not rows:
                continue
            seconds = sum(rows) + median(rows) * to_come
            if peer.max_overhead is not None:
                fewest = sum(rows) + median(rows) * max(0, third_of_decade(last) - third_of_decade(step))
                seconds = min(seconds, max(fewest, peer.max_overhead * training))
            made.append(Forecast(peer.name, seconds, remedy(peer)))
        return forecast_text(made, training)

    def _measured(self) -> float:
        return sum(peer.seconds_taken for peer in self._peers)


def last_step(trainer: Any, steps_a_batch: float, seconds_a_step: float) -> int | None:
    """The step at which a run will end; ``None`` if it has no end, as far as one can know."""
    ends: list[float] = []
    if trainer.max_steps is not None and trainer.max_steps >= 0:
        ends.append(trainer.max_steps)
    if trainer.max_epochs is not None and trainer.max_epochs >= 0:
        ends.append(trainer.max_epochs * trainer.num_training_batches * steps_a_batch)
    for callback in trainer.callbacks:  # `max_time`
        left = callback.time_remaining() if isinstance(callback, Timer) else None
        if left is not None and seconds_a_step > 0:
            ends.append(trainer.global_step + left / seconds_a_step)
    end = min(ends, default=math.inf)
    return round(end) if math.isfinite(end) else None


def ends_with(trainer: Any, schedule: Schedule, step: int) -> bool:
    """Whether the row at ``step`` is known to be the last that is due in the run."""
    done = trainer.fit_loop.epoch_loop.total_batch_idx + 1
    last = last_step(trainer, step / done, 0.0)
    return last is not None and schedule.rows_between(step, last, trainer.num_training_batches * step / done) == 0


def remedy(peer: ProbeCallback) -> str:
    """Which argument of a callback halves its time, and what it is to be."""
    if peer.cost_grows_with_probes:
        given = {name: getattr(peer, f"{name}_probes") for name in ("train", "test")}
        whole = [
            f"`{name}_probes`" for name, points in given.items() if isinstance(points, (torch.Tensor, tuple, list))
        ]
        if whole:
            return f"halved by half as many {' and '.join(whole)}"
        if peer.n_points > 1:
            return f"halved by `n_probes={peer.n_points // 2}`"
    doubled = peer.schedule.half_as_often
    return f"halved by `{doubled}`" if doubled else "halved by a `schedule` of half as many steps"
