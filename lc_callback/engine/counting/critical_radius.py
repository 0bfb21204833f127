"""Counting by critical radii: at each point the network is replaced by its own affine piece."""

from __future__ import annotations

import functools
from dataclasses import replace

import torch
from torch import Tensor

from lc_callback.engine.counting.histogram import BINS, INFINITE, bin_of, binned
from lc_callback.engine.counting.strategy import FEWEST_ULP, NeedsVertices, Strategy, Sweep, output_points, steps_along
from lc_callback.engine.counting.vertices import number_of_ones
from lc_callback.engine.network.layers import OUTPUT_PLACE, TracedLayers
from lc_callback.engine.network.layout import memory_order, permuted, surely_finite
from lc_callback.engine.replay.reaches import Reach, Reaches
from lc_callback.engine.replay.route import Route
from lc_callback.engine.replay.way import Way

__all__ = ["CriticalRadii", "CriticalRadiiSweep", "NeedsVertices", "critical_radii"]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class CriticalRadii(Strategy):
    """Counts for all radii at once: the samples of a point are itself and one for each direction.

    Args:
        layers: of which the units are counted.

    Attributes:
        reaches: how far units get along the directions.

    Raises:
        NeedsVertices: if the model jumps, or is flat where it has kinks.
    """

    has_rules = follows_output = True
    besides = 1

    def __init__(self, layers: TracedLayers) -> None:
        if layers.jumps:
            raise NeedsVertices(f"jumps ({', '.join(layers.jumps)})")
        if torch.finfo(layers.coarsest).bits < 32:
            raise NeedsVertices(f"jumps (rounding to {layers.coarsest})")
        if layers.flat_at_kinks:
            raise NeedsVertices(f"is flat right at kinks of {', '.join(layers.flat_at_kinks)}")
        self.reaches = Reaches(layers.pools_rows)
        super().__init__(layers, self.reaches.pieces)

    def observe(self, way: Way, points: Tensor, moves: Tensor, most: int) -> tuple[list[Tensor], list[Tensor]]:
        """Where a few points are, and how far they get along one direction."""
        found: list[Tensor] = []
        output: list[Tensor] = []

        def keep(position: int, reaches: list[Reach]) -> None:
            if position == OUTPUT_PLACE:
                output.append(reaches[0][2])
                return
            for z, kink, reach in reaches:
                found.extend((z - (kink or 0.0), reach))

        for some in points.split(max(1, min(most // 2, 2))):
            self.reaches.follow(way, some, moves[:1], keep)
        return found, output

    def sweeps(self, route: Route, radii: list[float], n_directions: int) -> list[Sweep]:
        """One for all radii, which follows the output where the route can."""
        return [CriticalRadiiSweep(self, route, radii, n_directions)]

    def add(self, counts: Tensor, found: list[tuple[Tensor, Tensor]], radii: list[float], step: float) -> Tensor:
        """Add the units of one place to ``counts (n, R)``. Returns their histogram.

        Args:
            counts: for each point and radius.
            found: for each kink ``(n, units)`` values relative to it, which are overwritten, and how far they get.
            radii: within which units are counted.
            step: the length of the steps by which they got there.
        """
        keys, dtype = _critical_keys(found, step), self.layers.space.dtype
        critical, within = keys.view(dtype), torch.empty_like(keys, dtype=dtype)
        for row, radius in enumerate(radii):  # as numbers of 0 and 1, for booleans take five times as long
            counts[:, row] += number_of_ones(torch.le(critical, radius, out=within))
        return binned(keys)


class CriticalRadiiSweep(Sweep):
    """The one way through all points by which critical radii are found."""

    def __init__(self, strategy: CriticalRadii, route: Route, radii: list[float], n_directions: int) -> None:
        space = strategy.layers.space
        self.strategy, self.route, self.within = strategy, route, radii
        self.step = 1.0 if route.uses_derivative_rules else _small_step(strategy.layers)
        # What moves by as good as nothing has a critical radius too large for any other unit.
        self.never = min(INFINITE, bin_of((space.largest or 1.0) / (2 * torch.finfo(space.dtype).eps)))
        self._histogram = torch.zeros(BINS, dtype=torch.int64, device=space.device)
        steps = steps_along(n_directions, self.step, route.frame)
        self._ways = replace(route.way, with_output=False), route.way
        squares = torch.full((space.points.n,), torch.nan, dtype=torch.float64, device=space.device)
        super().__init__(
            steps,
            slice(None),
            functools.partial(_PlaceReaches, self),
            self._histogram,
            squares if route.with_output else None,
        )

    def way_of(self, points: Tensor) -> Way:
        """How these points are followed."""
        n = self.strategy.layers.space.points.n
        return self._ways[self.squares is not None and int(points[0]) < output_points(n)]

    def add_squares(self, points: Tensor, norms: Tensor, first: bool) -> None:
        """Add those of the derivatives at these points along some directions; ``first``: none was before."""
        assert self.squares is not None
        at = points.to(norms.device, non_blocking=True)
        squares = (norms.double() / self.step).square()
        self.squares[at] = squares if first else self.squares[at] + squares

    def add_to_histogram(self, histogram: Tensor) -> None:
        """Add that of some points, which is overwritten."""
        histogram[INFINITE] += histogram[self.never : INFINITE].sum()
        histogram[self.never : INFINITE] = 0
        self._histogram += histogram


class _PlaceReaches:
    """What is reached at each place, at ``n`` points."""

    def __init__(self, sweep: CriticalRadiiSweep, n: int) -> None:
        self._sweep, self._layers, self._n = sweep, sweep.strategy.layers, n
        self._reached = [_UnitReaches(n) for _ in self._layers.axes]

    def add(self, points: Tensor, rows: slice, part: Tensor, first: bool) -> None:
        """As of :class:`Collector`."""

        def note(position: int, reaches: list[Reach]) -> None:
            if position == OUTPUT_PLACE:
                self._sweep.add_squares(points, reaches[0][2], first)
                return
            if position in self._layers.never_crossing:  # beyond the kink before it the affine piece would
                reaches = [(z, kink, 0 * reach) for z, kink, reach in reaches]
            self._reached[position].add(reaches, rows, first)

        self._sweep.strategy.reaches.follow(self._sweep.way_of(points), points, part, note)

    def counts(self) -> Tensor:
        """As of :class:`Collector`."""
        layers, sweep = self._layers, self._sweep
        shape = self._n, len(sweep.within), len(layers.names)
        counts = torch.zeros(shape, dtype=torch.int64, device=layers.space.device)
        broken = torch.zeros_like(counts[:, 0], dtype=torch.bool)
        histogram = torch.zeros(BINS, dtype=torch.int64, device=layers.space.device)
        for layer, place in zip(layers.layer_of, self._reached, strict=True):
            if layer >= 0:
                broken[:, layer] |= place.broken()
                histogram += sweep.strategy.add(counts[:, :, layer], place.by_unit(), sweep.within, sweep.step)
        sweep.add_to_histogram(histogram)
        return counts.masked_fill_(broken[:, None], -1)


class _UnitReaches:
    """Of ``n`` points, where each unit of one place is relative to its kinks, and how far it gets."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._found: list[tuple[Tensor, Tensor]] = []
        self._order: list[int] = []  # of the axes

    def add(self, reaches: list[Reach], rows: slice, first: bool) -> None:
        """Add directions from the points in these rows. ``first``: none was before."""
        self._order = self._order or memory_order(reaches[0][0], 1)
        for i, (z, kink, reach) in enumerate(reaches):
            ordered, reach = permuted(z, self._order), permuted(reach, self._order)
            if len(self._found) == i:
                shape = self._n, *ordered.shape[1:]
                self._found.append((z.new_empty(shape), z.new_empty(shape)))
            at, farthest = (each[rows] for each in self._found[i])
            if first:
                torch.sub(ordered, kink or 0.0, out=at)
                farthest.copy_(reach)
            else:
                torch.maximum(farthest, reach, out=farthest)

    def broken(self) -> Tensor:
        """``(n,)``: whether a value was not finite."""
        if all(surely_finite(each) for pair in self._found for each in pair):
            return torch.zeros(self._n, dtype=torch.bool, device=self._found[0][0].device)
        ends = [(at.amax(1), at.amin(1), farthest.amax(1)) for at, farthest in self.by_unit()]
        return ~functools.reduce(torch.bitwise_and, [end.isfinite() for each in ends for end in each])

    def by_unit(self) -> list[tuple[Tensor, Tensor]]:
        """For each kink ``(n, units)`` of both."""
        return [(at.flatten(1), farthest.flatten(1)) for at, farthest in self._found]


def _small_step(layers: TracedLayers) -> float:
    """A step that is small at most points: one that lies far out must not make it large for all."""
    space, eps = layers.space, torch.finfo(layers.coarsest).eps
    size = space.points.typical() if space.at_module is None else 0.0
    return (size or space.largest or 1.0) * max(3 * eps**0.5, 2 * FEWEST_ULP * eps * space.dim**0.5)


def critical_radii(found: list[tuple[Tensor, Tensor]], step: float) -> Tensor:
    """``(n, units)`` critical radii, from values relative to each kink, which are overwritten, and the reach of a step.

    NaN where a value is not finite.
    """
    return _critical_keys(found, step).view(found[0][0].dtype)


def _critical_keys(found: list[tuple[Tensor, Tensor]], step: float) -> Tensor:
    if step != 1.0:
        found = [(at, reach / step) for at, reach in found]
    return functools.reduce(torch.minimum, [_critical(at, slope) for at, slope in found])


def _critical(at: Tensor, slope: Tensor) -> Tensor:
    """The bits of critical radii as integers, which are in the same order. ``at`` is overwritten.

    One more for negative units, which at that radius itself are still on their side: zero is not above zero. NaN comes
    last, but for one of which all bits are set, as torch's maximum returns it: that is the least integer.
    """
    bits = at.div_(slope).view(_INTEGERS[at.dtype])
    sign = bits >> (8 * bits.itemsize - 1)
    return bits.bitwise_and_(torch.iinfo(bits.dtype).max).sub_(sign)
