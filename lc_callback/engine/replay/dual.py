"""Dual numbers: a tensor at some points, and its change along each direction."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lc_callback.engine.network.layout import memory_of, memory_order, reduced, restored

__all__ = ["Dual", "DualValues", "NoRule", "Room", "at_point", "moves"]

#: Called with a tensor and a number: returns memory for so many values of the tensor's type.
Room = Callable[[Tensor, int], Tensor]


class NoRule(Exception):  # noqa: N818 (no error: there is another method)
    """An operation has no known derivative."""


@dataclass
class Dual:
    """A tensor at some points, and its change along each direction.

    Attributes:
        value: ``(n, ...)``. Behind a transposition the ``n`` points may be on another axis, or be parts of one.
        tangent: ``(k, n, ...)``, or ``(k, 1, ...)`` if it is the same along the first axis.
        factor: ``tangent`` still has to be multiplied by it; its shape fits ``value``; ``None`` is 1.
        whole: ``(1 + k, n, ...)``: memory of its own; ``tangent`` is all of it but the first.
        hidden: ``(n, ...)``: which units of a pre-activation are 0 because of other units; ``None`` if none is.
    """

    value: Tensor
    tangent: Tensor
    factor: Tensor | None = None
    whole: Tensor | None = None
    hidden: Tensor | None = None
    _steepest: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.value.ndim:
            raise NoRule("a single number is computed from all points together")
        if self.tangent.shape[1] not in (1, len(self.value)) or self.tangent.shape[2:] != self.value.shape[1:]:
            raise NoRule("the points are not on the first axis everywhere")

    @staticmethod
    def of(whole: Tensor) -> Dual:
        """Of ``(1 + k, n, ...)``."""
        return Dual(whole[0], whole[1:], whole=whole)

    def scaled(self, result: Tensor, slope: Tensor) -> Dual:
        """The result of an operation that acts on each unit by itself."""
        return Dual(result, self.tangent, slope if self.factor is None else self.factor * slope, self.whole)

    def shares(self, other: Dual) -> bool:
        """Whether the directions of both are in one memory."""
        return memory_of(self.tangent) == memory_of(other.tangent)

    def slopes(self) -> Tensor:
        """``tangent`` times ``factor``."""
        return self.tangent if self.factor is None else self.tangent * self.factor

    def together(self, room: Room | None = None, *, overwrite: bool = False) -> Tensor:
        """``(1 + k, n, ...)``: the value, and behind it the tangent times ``factor``.

        Args:
            room: the memory to use, by default new memory.
            overwrite: whether ``whole`` may be overwritten.
        """
        if self.whole is not None and self.factor is None and _is_same(self.value, self.whole[0]):
            return self.whole
        if overwrite and self.whole is not None:
            whole = self.whole
            if self.factor is not None:
                self.tangent.mul_(self.factor)
        else:
            order = memory_order(self.tangent, 2)
            shape = [1 + self.tangent.shape[0], self.value.shape[0], *(self.tangent.shape[axis] for axis in order[2:])]
            memory = self.value.new_empty(shape) if room is None else room(self.value, math.prod(shape)).view(shape)
            whole = restored(memory, order)
            if self.factor is None:
                whole[1:] = self.tangent
            else:
                torch.mul(self.tangent.expand_as(whole[1:]), self.factor, out=whole[1:])
        whole[0] = self.value
        return whole

    def steepest(self) -> Tensor:
        """``(n, ...)``: the largest absolute value of the ``k`` derivatives; NaN if one is."""
        if self._steepest is None:
            # It takes half the time of absolute values.
            size = reduced(self.tangent, lambda slopes: torch.maximum(slopes.amax(0), -slopes.amin(0)))
            scaled = size if self.factor is None else size * self.factor.abs()
            self._steepest = scaled.expand_as(self.value)
        return self._steepest


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


@dataclass
class DualValues:
    """The values known so far, and memory for what is needed only for a short time."""

    known: list[Any]
    room: Room

    def alone(self, dual: Dual) -> bool:
        """Whether a tensor may be overwritten that is not needed after this step."""
        return dual.whole is not None and not any(type(other) is Dual and dual.shares(other) for other in self.known)

    def together(self, dual: Dual, room: Room | None = None) -> Tensor:
        """:meth:`Dual.together` for the only tensor that a step reads: in its own memory if nothing else needs that."""
        return dual.together(room, overwrite=self.alone(dual))


def at_point(value: Any) -> Any:
    """An argument of an operation, with the value at the points in place of each :class:`Dual`."""
    return [*map(at_point, value)] if isinstance(value, list) else value.value if isinstance(value, Dual) else value


def moves(value: Any) -> bool:
    """Whether an argument of an operation is a :class:`Dual`, or holds one."""
    return isinstance(value, Dual) or (isinstance(value, (list, tuple)) and any(map(moves, value)))
