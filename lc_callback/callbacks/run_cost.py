"""How the time of a run is shared between training and measuring. A large share of measuring is reported early."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lc_callback.callbacks.overhead import Forecast, forecast_text, last_step, third_of_decade
from lc_callback.callbacks.peers import Measuring

__all__ = ["RunCost"]

_STEPS = 20  # batches that are timed before anything is reported
_WARM_UP = 3  # the first of these, which are slow and do not count


class RunCost:
    """How the time of a run is shared between its measuring callbacks and the training.

    Args:
        callbacks: all measuring callbacks of the Trainer.
        step: where the training begins.
        now: when.
    """

    def __init__(self, callbacks: Sequence[Measuring], step: int, now: float) -> None:
        self._callbacks, self._first_step, self._begin = callbacks, step, now
        self._trained = [0.0]  # by the end of each batch
        self._taken = [callback.peer.rows for callback in callbacks]
        self._before = self._measured()
        self._rows = [[rows.seconds] if rows.tried >= 0 else [] for rows in self._taken]
        self._noted = [(rows.tried, rows.seconds) for rows in self._taken]
        self._is_said = False

    def trained(self, now: float) -> float:
        """Seconds of the training so far, without those of the measuring callbacks."""
        return now - self._begin - (self._measured() - self._before)

    def end_batch(self, trainer: Any, now: float) -> None:
        """All measuring callbacks are done with a batch. Once enough are timed, say what they will take of the run."""
        if self._is_said:
            return
        self._trained.append(self.trained(now))
        for i, rows in enumerate(self._taken):
            step, seconds = self._noted[i]
            if rows.tried != step:
                self._rows[i].append(rows.seconds - seconds)
            self._noted[i] = rows.tried, rows.seconds
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
        for callback, rows in zip(self._callbacks, self._rows, strict=True):
            to_come = callback.schedule.rows_between(step, last, trainer.num_training_batches * a_batch)
            if to_come is None or not rows:
                continue
            seconds = sum(rows) + median(rows) * to_come
            if callback.max_overhead is not None:
                fewest = sum(rows) + median(rows) * max(0, third_of_decade(last) - third_of_decade(step))
                seconds = min(seconds, max(fewest, callback.max_overhead * training))
            made.append(Forecast(callback.peer.name, seconds, callback.half_the_cost()))
        return forecast_text(made, training)

    def _measured(self) -> float:
        return sum(rows.seconds for rows in self._taken)
