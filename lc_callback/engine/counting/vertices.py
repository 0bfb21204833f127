"""Counting by vertices: which units have vertices of the frame on both sides of a kink."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from lc_callback.engine.counting.strategy import Strategy, Sweep, steps_along
from lc_callback.engine.network.layers import Consumer, Execution, TracedLayers
from lc_callback.engine.network.layout import memory_order, permuted, viewed
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.replay.route import Route
from lc_callback.engine.replay.way import Way, pre_activations

__all__ = ["Tally", "Vertices", "number_of_ones"]


class Vertices(Strategy):
    """Runs the model at the vertices of the frame of each point; of all radii one after another.

    Args:
        layers: of which the units are counted.
    """

    only_extremes = True  # whether a tally looks at nothing but the largest and smallest value at the vertices

    def __init__(self, layers: TracedLayers) -> None:
        super().__init__(layers, Execution())

    def observe(self, way: Way, points: Tensor, moves: Tensor, most: int) -> tuple[list[Tensor], list[Tensor]]:
        """All pre-activations."""
        return pre_activations(way, points, moves, most, with_output=False), []

    def sweeps(self, route: Route, radii: list[float], n_directions: int) -> list[Sweep]:
        """One for each radius; the output is not followed."""
        collector = functools.partial(_Tallies, self, route)
        return [
            Sweep(self.vertices(steps_along(n_directions, radius, route.frame)), slice(row, row + 1), collector)
            for row, radius in enumerate(radii)
        ]

    def vertices(self, steps: Tensor) -> Tensor:
        """``(2P, P)`` coefficients of the frame."""
        return torch.cat([steps, -steps])

    def follow(self, route: Route, points: Tensor, vertices: Tensor, consumer: Consumer) -> None:
        """Follow vertices ``(k, P)`` of the frames of the points ``(n,)``, in units of the directions."""
        route.follow(points, vertices, consumer)

    def tally(self, n: int) -> Tally:
        """What keeps count of one place at ``n`` points."""
        return Tally(n)


class _Tallies:
    """A tally for each place, at ``n`` points."""

    def __init__(self, strategy: Vertices, route: Route, n: int) -> None:
        self._strategy, self._route, self._n = strategy, route, n
        self._tallies = [strategy.tally(n) for _ in strategy.layers.axes]

    def add(self, points: Tensor, rows: slice, part: Tensor, first: bool) -> None:
        """As of :class:`Collector`."""
        shape = len(part), len(points)
        prefix = self._route.prefix if self._strategy.only_extremes else None

        def by_vertex(z: Tensor) -> Tensor:
            outermost = None if prefix is None else prefix.outermost(z, shape)
            return z.unflatten(0, shape) if outermost is None else outermost

        def note(position: int, kinks: list[Kink]) -> None:
            self._tallies[position].add(viewed(kinks, by_vertex), rows, first)

        self._strategy.follow(self._route, points, part, note)

    def counts(self) -> Tensor:
        """As of :class:`Collector`."""
        layers = self._strategy.layers
        counts = torch.zeros(len(layers.names), self._n, dtype=torch.int64, device=layers.space.device)
        broken = torch.zeros_like(counts, dtype=torch.bool)
        for layer, tally in zip(layers.layer_of, self._tallies, strict=True):
            if layer >= 0:
                counts[layer] += tally.crossed()
                broken[layer] |= tally.broken()
        return counts.masked_fill(broken, -1).T.unsqueeze(1)


class Tally:
    """Over the vertices of ``n`` points, which units of one place are on both sides of a kink.

    Only the largest and smallest value of each unit are kept: NaN if one is.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._extremes: list[tuple[Tensor, Tensor, float | None]] = []
        self.order: list[int] = []  # of the axes, as they are in the memory

    def add(self, kinks: list[Kink], rows: slice, first: bool) -> None:
        """Add vertices of the points in these rows: tensors of shape ``(k, rows, ...)``. ``first``: none was before."""
        self.order = self.order or memory_order(kinks[0][0], 2)
        for position, (z, kink) in enumerate(kinks):
            ordered, repeated = permuted(z, self.order), position and z is kinks[position - 1][0]
            if len(self._extremes) == position:
                shape = self.n, *ordered.shape[2:]
                new = self._extremes[-1][:2] if repeated else (z.new_empty(shape), z.new_empty(shape))
                self._extremes.append((*new, kink))
            if repeated:  # several kinks of the same values
                continue
            high, low = (extreme[rows] for extreme in self._extremes[position][:2])
            if first:
                torch.amax(ordered, 0, out=high)
                torch.amin(ordered, 0, out=low)
            else:
                torch.maximum(high, ordered.amax(0), out=high)
                torch.minimum(low, ordered.amin(0), out=low)

    def crossed(self) -> Tensor:
        """``(n,)``: the number of units with vertices above a kink and vertices not above it."""
        high, low, kink = self._extremes[0]
        if len(self._extremes) == 1 and kink is not None:  # as numbers of 0 and 1, for booleans take four times as long
            room = torch.empty_like(high)
            most, least = (number_of_ones(torch.gt(end, kink, out=room).flatten(1)) for end in (high, low))
            return most - least
        return self.switching().count_nonzero(1)

    def switching(self) -> Tensor:
        """``(n, units)``: whether a unit has vertices above a kink and vertices not above it."""
        either = [high != low if kink is None else (high > kink) & (low <= kink) for high, low, kink in self._extremes]
        return functools.reduce(torch.bitwise_or, either).flatten(1)

    def broken(self) -> Tensor:
        """``(n,)``: whether a value was not finite."""
        ends = [(high.flatten(1).amax(1), low.flatten(1).amin(1)) for high, low, _ in self._extremes]
        return ~functools.reduce(torch.bitwise_and, [high.isfinite() & low.isfinite() for high, low in ends])


def number_of_ones(ones: Tensor) -> Tensor:
    """``(n,)``: how many of ``(n, m)`` are 1, where the others are 0."""
    exact = torch.finfo(ones.dtype).eps * ones.shape[1] <= 2
    return ones.sum(1, dtype=ones.dtype if exact else torch.float64).long()
