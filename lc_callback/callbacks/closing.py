"""The closing row is of the trained weights: it is taken before another callback puts an average in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lc_callback.callbacks._compat import WEIGHT_AVERAGING_EPOCH, Callback
from lc_callback.callbacks.peers import Measuring

__all__ = ["ClosingRows"]


class ClosingRows(Callback):
    """Stands before all callbacks of a Trainer from the beginning of a training to its end.

    ``EMAWeightAveraging`` and its like swap their weights in when a training ends, and the hooks of callbacks are
    called in the order of the list. It has no state.

    Args:
        callbacks: those that owe a row when the training ends.
    """

    def __init__(self, callbacks: Sequence[Measuring]) -> None:
        super().__init__()
        self._callbacks = callbacks

    @classmethod
    def stand_first(cls, trainer: Any, callbacks: Sequence[Measuring]) -> None:
        """Put one in front. The list is a new one, for the Trainer may be walking through the old."""
        trainer.callbacks = [cls(callbacks), *_others(trainer)]

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        """Take the rows before ``StochasticWeightAveraging`` passes over the data with its average, and none then.

        That epoch renews the statistics of BatchNorm, and Lightning counts a step although nothing is updated.
        """
        averages = (one for one in trainer.callbacks if isinstance(one, WEIGHT_AVERAGING_EPOCH))
        if any(getattr(one, "_max_epochs", -1) != -1 and trainer.current_epoch == one.swa_end + 1 for one in averages):
            self._take(trainer, pl_module)
            for callback in self._callbacks:
                callback.is_closed = True

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Take the rows, and leave."""
        self._take(trainer, pl_module)
        trainer.callbacks = _others(trainer)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Leave."""
        trainer.callbacks = _others(trainer)

    def _take(self, trainer: Any, pl_module: Any) -> None:
        for callback in self._callbacks:
            callback.take_closing_row(trainer, pl_module)


def _others(trainer: Any) -> list[Any]:
    return [callback for callback in trainer.callbacks if not isinstance(callback, ClosingRows)]
