"""What measuring costs a run: reported early, and kept low by leaving out rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch.callbacks import Timer

from lc_callback.run.schedule import Schedule

__all__ = [
    "SECONDS_TO_SAY",
    "SHARE_TO_SAY",
    "Forecast",
    "check_max_overhead",
    "ends_with",
    "forecast_text",
    "halved_by",
    "is_kept",
    "last_step",
    "third_of_decade",
    "wait_for_device",
]

SHARE_TO_SAY = 0.2
SECONDS_TO_SAY = 5.0  # less is not worth a line, whatever its share
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
        hint: the argument that halves this.
    """

    name: str
    seconds: float
    hint: str


def forecast_text(forecasts: Sequence[Forecast], training: float) -> str | None:
    """One line about all callbacks of a run whose training takes so many seconds; ``None`` if they take little."""
    seconds = sum(one.seconds for one in forecasts)
    whole = seconds + training
    if not (seconds > SECONDS_TO_SAY and seconds > SHARE_TO_SAY * whole):
        return None
    costly = sorted((one for one in forecasts if one.seconds > _WORTH_NAMING * whole), key=lambda one: -one.seconds)
    parts = "; ".join(f"{one.name} {one.seconds / whole:.0%}, {one.hint}" for one in costly)
    return (
        f"lc_callback: measuring will take about {seconds / whole:.0%} of this run, {_duration(seconds)} beside "
        f"{_duration(training)} of training: {parts}. `max_overhead=0.1` leaves out rows beyond 10 % for each."
    )


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


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


def halved_by(given: Mapping[str, Any], n_points: int, schedule: Schedule) -> str:
    """Which argument of a callback halves its time, and the value that does.

    Args:
        given: its ``train_probes`` and ``test_probes``; empty if fewer points make no row cheaper.
        n_points: points of its largest split.
        schedule: its schedule.
    """
    whole = [f"`{name}`" for name, points in given.items() if isinstance(points, (torch.Tensor, tuple, list))]
    if whole:
        return f"halved by half as many {' and '.join(whole)}"
    if given and n_points > 1:
        return f"halved by `n_probes={n_points // 2}`"
    doubled = schedule.half_as_often
    return f"halved by `{doubled}`" if doubled else "halved by a `schedule` of half as many steps"
