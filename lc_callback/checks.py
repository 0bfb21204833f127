"""Small checks that several measures share."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import torch

__all__ = ["is_out_of_memory", "positive_integer"]


def positive_integer(name: str, value: Any, otherwise: str = "") -> None:
    """Raise ``ValueError``, naming the argument and what it can be ``otherwise``, unless ``value`` is one."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        possible = f"{otherwise} or a positive integer" if otherwise else "a positive integer"
        raise ValueError(f"`{name}` must be {possible}, but got {value!r}.")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of the host or the device, did not suffice."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)
