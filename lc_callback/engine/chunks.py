"""How many samples one forward pass takes: a memory budget, and half as many when memory does not suffice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from lc_callback.checks import is_out_of_memory

__all__ = ["ATTACKS", "BOUNDS", "COUNTING", "FEATURES", "SLICES", "Budget", "default_chunk", "fitting"]

T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """Bytes that the largest tensor of one forward pass may take; a few such tensors exist at a time.

    Attributes:
        cpu: on a CPU, where small is fast, and on devices of other types.
        cuda: on a GPU.
    """

    cpu: int
    cuda: int

    def of(self, device: torch.device) -> int:
        """The bytes on this device."""
        return self.cuda if device.type == "cuda" else self.cpu

    def samples(self, device: torch.device, bytes_per_sample: int) -> int:
        """How many samples fit, at least 1."""
        return max(1, self.of(device) // max(1, bytes_per_sample))


COUNTING = Budget(cpu=8 * 2**20, cuda=512 * 2**20)
FEATURES = Budget(cpu=32 * 2**20, cuda=512 * 2**20)
SLICES = Budget(cpu=2**20, cuda=2**28)  # in the cache a CPU is faster
ATTACKS = Budget(cpu=2**30, cuda=8 * 2**30)  # of all tensors that are kept for one backward pass
BOUNDS = Budget(cpu=2**28, cuda=2**28)  # of one point, with all its symbols

# A pass of less than a few samples is slow: for these the largest tensor may take more than the budget.
_FEW, _AT_MOST = 32, 96 * 2**20


def default_chunk(device: torch.device, bytes_per_sample: int) -> int:
    """As many samples in one forward pass as fit the memory budget of counting, at least 1."""
    each = max(1, bytes_per_sample)
    return max(1, COUNTING.of(device) // each, min(_FEW, _AT_MOST // each))


def fitting(compute: Callable[[int], T], chunk: int, in_use: Callable[[int], int]) -> tuple[T, int]:
    """Compute in chunks, in halved ones as long as memory does not suffice.

    Args:
        compute: called with the largest number of samples of one forward pass.
        chunk: the number to begin with.
        in_use: returns how many samples the largest pass really has with such a limit: the halving begins there.

    Returns:
        What ``compute`` returned, and the number with which it did.
    """
    while True:
        try:
            return compute(chunk), chunk
        except Exception as error:
            if chunk == 1 or not is_out_of_memory(error):
                raise
        # Here the exception, and the tensors that its frames held, are gone.
        chunk = max(1, min(chunk, in_use(chunk)) // 2)
        torch.cuda.empty_cache()  # does nothing where there is no GPU
