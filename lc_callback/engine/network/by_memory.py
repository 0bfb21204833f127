"""What is known of tensors, from one operation to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

__all__ = ["ByMemory"]

T = TypeVar("T")


class ByMemory(ABC, Generic[T]):
    """Follows something that is known of values. Tensors are known by their memory, which is kept alive.

    Args:
        usual: what is known of all others.
    """

    def __init__(self, usual: T) -> None:
        self._usual = usual
        self._known: dict[int, tuple[T, Tensor]] = {}

    def __call__(self, memory: int | None) -> T:
        """Of what is in this memory."""
        return self._known[memory][0] if memory in self._known else self._usual

    def executed(
        self, op: str, func: Any, args: Sequence[Any], kwargs: Any, memories: Sequence[int | None], out: Any
    ) -> None:
        """An operation returned ``out``; ``memories`` are of its arguments and of this."""
        *read, written = memories
        if written is None or not out.is_floating_point():
            return
        if written in read and not func._schema.is_mutable:  # a view
            return
        found = self._found(op, func, args, kwargs, read)
        if written in read and _may_be_a_part(out):
            found = self._either(found, self(written))
        if found == self._usual:
            self._known.pop(written, None)
        else:
            self._known[written] = found, out

    @abstractmethod
    def _found(self, op: str, func: Any, args: Sequence[Any], kwargs: Any, read: Sequence[int | None]) -> T:
        """What is known of a result, given the memories of the arguments."""

    @abstractmethod
    def _either(self, one: T, other: T) -> T:
        """What is known of a tensor of which parts are known."""


def _may_be_a_part(tensor: Tensor) -> bool:
    """Whether more than this may be in its memory; of a sparse tensor that is not known."""
    if tensor.layout is not torch.strided:
        return True
    return tensor.numel() * tensor.element_size() < tensor.untyped_storage().nbytes()
