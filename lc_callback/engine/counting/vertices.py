"""Counting by vertices: which units have vertices of the frame on both sides of a kink."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lc_callback.engine.network.layout import memory_order, permuted
from lc_callback.engine.network.operations import Knot

__all__ = ["Tally", "number_of_ones"]


class Tally:
    """Over the vertices of ``n`` points, which units of one place are on both sides of a knot.

    Only the largest and smallest value of each unit are kept: NaN if one is.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._extremes: list[tuple[Tensor, Tensor, float | None]] = []
        self.order: list[int] = []  # of the axes, as they are in the memory

    def add(self, knots: list[Knot], rows: slice, first: bool) -> None:
        """Add vertices of the points in these rows: tensors of shape ``(k, rows, ...)``. ``first``: none was before."""
        self.order = self.order or memory_order(knots[0][0], 2)
        for position, (z, knot) in enumerate(knots):
            ordered, repeated = permuted(z, self.order), position and z is knots[position - 1][0]
            if len(self._extremes) == position:
                shape = self.n, *ordered.shape[2:]
                new = self._extremes[-1][:2] if repeated else (z.new_empty(shape), z.new_empty(shape))
                self._extremes.append((*new, knot))
            if repeated:  # several knots of the same values
                continue
            high, low = (extreme[rows] for extreme in self._extremes[position][:2])
            if first:
                torch.amax(ordered, 0, out=high)
                torch.amin(ordered, 0, out=low)
            else:
                torch.maximum(high, ordered.amax(0), out=high)
                torch.minimum(low, ordered.amin(0), out=low)

    def crossed(self) -> Tensor:
        """``(n,)``: the number of units with vertices above a knot and vertices not above it."""
        high, low, knot = self._extremes[0]
        if len(self._extremes) == 1 and knot is not None:  # as numbers of 0 and 1, for booleans take four times as long
            room = torch.empty_like(high)
            most, least = (number_of_ones(torch.gt(end, knot, out=room).flatten(1)) for end in (high, low))
            return most - least
        return self.switching().count_nonzero(1)

    def switching(self) -> Tensor:
        """``(n, units)``: whether a unit has vertices above a knot and vertices not above it."""
        either = [high != low if knot is None else (high > knot) & (low <= knot) for high, low, knot in self._extremes]
        return functools.reduce(torch.bitwise_or, either).flatten(1)

    def broken(self) -> Tensor:
        """``(n,)``: whether a value was not finite."""
        ends = [(high.flatten(1).amax(1), low.flatten(1).amin(1)) for high, low, _ in self._extremes]
        return ~functools.reduce(torch.bitwise_and, [high.isfinite() & low.isfinite() for high, low in ends])


def number_of_ones(ones: Tensor) -> Tensor:
    """``(n,)``: how many of ``(n, m)`` are 1, where the others are 0."""
    exact = torch.finfo(ones.dtype).eps * ones.shape[1] <= 2
    return ones.sum(1, dtype=ones.dtype if exact else torch.float64).long()
