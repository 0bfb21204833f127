"""Which run a callback has seen, known by the weights that this run had."""

from __future__ import annotations

import math
from typing import Any

import torch

__all__ = ["KnownWeights"]


class KnownWeights:
    """Sums of the weights of one run by step.

    A callback may be used in one run, and then given to a Trainer that resumes a checkpoint without its state. If the
    checkpoint is of the same run, the rows go on. If it is of another run, the callback has no rows of it.
    """

    def __init__(self) -> None:
        self._sums: dict[int, set[float]] = {}

    def look(self, trainer: Any, pl_module: Any) -> None:
        """Remember the weights at this step."""
        self._sums.setdefault(trainer.global_step, set()).add(_sum_of_weights(pl_module))

    def knows(self, trainer: Any, pl_module: Any) -> bool:
        """Whether the run had these weights at this step."""
        return _sum_of_weights(pl_module) in self._sums.get(trainer.global_step, ())

    def forget_after(self, step: int) -> None:
        """Forget later steps, which the run is going to take again."""
        self._sums = {at: sums for at, sums in self._sums.items() if at <= step}


def _sum_of_weights(pl_module: Any) -> float:
    """A number that tells the weights of one run from those of another; of sharded ones, the part that is here."""
    try:
        with torch.no_grad():
            own = (getattr(parameter, "_local_tensor", parameter) for parameter in pl_module.parameters())
            return float(sum(float(tensor.double().sum()) for tensor in own if tensor.is_floating_point()))
    except Exception:  # weights that are not there yet, or elsewhere
        return math.nan
