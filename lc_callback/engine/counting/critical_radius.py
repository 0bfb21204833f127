"""Counting by critical radii: at each point the network is replaced by its own affine piece."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.counting.counter import FEWEST_ULP, SwitchCounter, tell
from lc_callback.engine.counting.histogram import BINS, INFINITE, bin_of, binned
from lc_callback.engine.counting.vertices import number_of_ones
from lc_callback.engine.network.layout import memory_order, permuted, reduced, surely_finite, viewed
from lc_callback.engine.network.operations import Knot, relative
from lc_callback.engine.network.recorder import Recorder
from lc_callback.engine.replay.affine_piece import AffineRecorder, execute_affine, is_hidden
from lc_callback.engine.replay.differentiate import differentiate
from lc_callback.engine.replay.dual import Dual, NoRule

__all__ = ["HasJumps", "LinearCounter", "critical_radii"]

_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


class HasJumps(Exception):  # noqa: N818 (no error: there is another method)
    """The model jumps, so its affine pieces do not tell where its units switch."""


# For each unit of ``(n, ...)`` points, its value, a knot, and how far it gets along the directions.
Reach = tuple[Tensor, float | None, Tensor]


class LinearCounter(SwitchCounter):
    """Counts by critical radii, for all radii at once: the samples of a point are itself and one for each direction."""

    block = (0, 0)
    besides = 1
    has_rules = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._scratch = torch.empty(0)
        self._samples = torch.empty(0), torch.empty(0)  # directions, and what they are together with the point itself

    def ready(self, *arguments: Any, **named: Any) -> AbstractContextManager[SwitchCounter]:
        """As for vertices, and by these if the model has no affine pieces that tell what it does nearby."""
        try:
            return super().ready(*arguments, **named)
        except HasJumps as jumps:
            warnings.warn(
                f"the model jumps ({jumps}), and its affine pieces do not tell where: counting by vertices instead "
                "of `method='linear'`.",
                stacklevel=3,
            )
        by_vertices = SwitchCounter(
            self.model, self.inputs, others=self._others, at=self.at, forward_fn=self.forward_fn
        )
        return by_vertices.ready(*arguments, **named)

    def trace(self, dtype: torch.dtype) -> None:
        """As for vertices."""
        super().trace(dtype)
        if self.jumps:
            raise HasJumps(", ".join(self.jumps))
        if torch.finfo(self.coarsest).bits < 32:
            raise HasJumps(f"rounding to {self.coarsest}")

    def _recorder(self, receive: Callable[..., None], recording: dict[str, Any]) -> Recorder:
        return AffineRecorder(self, self.model, receive, **recording)

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        return execute_affine(self, op, func, args, kwargs)

    def observed(self, moves: Tensor, most: int) -> list[Tensor]:
        """Where a few points are, and how far they get along one direction."""
        found: list[Tensor] = []

        def keep(position: int, reaches: list[Reach]) -> None:
            for z, knot, reach in reaches:
                found.extend((z - (knot or 0.0), reach))

        for points in self.verified.split(max(1, min(most // 2, 2))):
            self._follow_directions(points, moves[:1], keep)
        return found

    def follow_frame(self, points: Tensor, coefficients: Tensor, sink: Callable[[int, list[Knot]], None]) -> Any:
        """As for vertices; the first of the ``coefficients`` is 0."""
        self.block = len(coefficients), len(points)
        return super().follow_frame(points, coefficients, sink)

    def count(
        self,
        radii: list[float],
        points: Tensor,
        chunk: int,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """As for vertices."""
        self._radii, self._step = radii, 1.0 if self.by_rules else self._small()
        self.histogram = torch.zeros(BINS, dtype=torch.int64, device=self.device)
        # What moves by as good as nothing has a critical radius too large for any other unit.
        self._never = min(INFINITE, bin_of((self.largest or 1.0) / (2 * torch.finfo(self.dtype).eps)))
        counts = torch.zeros(self.n, len(radii), len(self.names), dtype=torch.int64, device=self.device)
        told = functools.partial(tell, progress, 0, len(points))
        self._sweep(counts, points, self._steps(self._step), chunk, told)
        self.histogram = self.histogram.cpu()
        return counts.transpose(0, 1).cpu()[:, points]

    def _small(self) -> float:
        """A step that is small at most points: one that lies far out must not make it large for all."""
        eps = torch.finfo(self.coarsest).eps
        size = self.points.typical() if self.at_module is None else 0.0
        return (size or self.largest or 1.0) * max(3 * eps**0.5, 2 * FEWEST_ULP * eps * self.dim**0.5)

    def _count_points(
        self, points: Tensor, parts: Sequence[Tensor], at_once: int, told: Callable[[int], None]
    ) -> Tensor:
        """``(n, R, L)`` counts of points."""
        reached = [_Reaches(len(points)) for _ in self.axes]
        for start in range(0, len(points), at_once):
            rows = slice(start, min(start + at_once, len(points)))
            for part in parts:
                sink = functools.partial(self._note, reached, rows, part is parts[0])
                self._follow_directions(points[rows], part, sink)
            told(rows.stop)
        counts = torch.zeros(len(points), len(self._radii), len(self.names), dtype=torch.int64, device=self.device)
        broken = torch.zeros_like(counts[:, 0], dtype=torch.bool)
        histogram = torch.zeros_like(self.histogram)
        for layer, place in zip(self.layer_of, reached, strict=True):
            if layer >= 0:
                broken[:, layer] |= place.broken()
                histogram += self._add(counts[:, :, layer], place.by_unit())
        histogram[INFINITE] += histogram[self._never : INFINITE].sum()
        histogram[self._never : INFINITE] = 0
        self.histogram += histogram
        return counts.masked_fill_(broken[:, None], -1)

    def _note(self, reached: list[_Reaches], rows: slice, first: bool, position: int, reaches: list[Reach]) -> None:
        if position in self.never_above:  # beyond the kink before it the affine piece would rise
            reaches = [(z, knot, 0 * reach) for z, knot, reach in reaches]
        reached[position].add(reaches, rows, first)

    def _follow_directions(self, points: Tensor, directions: Tensor, sink: Callable[[int, list[Reach]], None]) -> None:
        """Call ``sink`` with what is reached along ``(k, B)`` directions from the points ``(n,)``."""
        if not self.by_rules:

            def differ(position: int, knots: list[Knot]) -> None:
                reaches: list[Reach] = []
                for i, (z, knot) in enumerate(viewed(knots, lambda z: z.unflatten(0, self.block))):
                    repeated = i > 0 and knots[i - 1][0] is knots[i][0]
                    reach = reaches[-1][2] if repeated else self._largest_step(z)
                    if i == 0 and position > 0:
                        hidden = is_hidden(relative(z[0], knot), reach)
                        reach = _settled(z[0], knot, reach, hidden)
                    reaches.append((z[0], knot, reach))
                sink(position, reaches)

            if self._samples[0] is not directions:
                self._samples = directions, torch.cat([torch.zeros_like(directions[:1]), directions])
            self.follow_frame(points, self._samples[1], differ)
            return

        def receive(position: int, knots: list[Knot], dual: Dual) -> None:
            axis = self.axes[position]
            if axis is not None:
                at = viewed(knots, lambda z: axis.to_front(z, len(points)))
                reach = axis.to_front(dual.steepest(), len(points))
                if dual.hidden is not None:
                    reach = _settled(*at[0], reach, axis.to_front(dual.hidden, len(points)))
                sink(position, [(z, knot, reach) for z, knot in at])

        if self.tape is None or self.tape.writes_to_views:
            raise NoRule
        differentiate(self.tape, *self._duals(points, directions), receive, self._room)

    def _duals(self, points: Tensor, directions: Tensor) -> tuple[Any, int, Callable[[Any], Dual]]:
        """What moves: the inputs, how many points these are, and what takes the place of a module's output."""
        if self.prefix is not None:
            base = self.prefix.at(self, points)
            dual = Dual(base.clone(), self.prefix.moved(base, directions))  # what comes next may work in place
            return None, len(points), lambda output: dual
        offsets = directions @ self.frame
        leaves = tree_leaves(self.points.batch(points, None))
        if self.at_module is None:
            parts = iter(self.points.parts(offsets))
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    leaves[place] = Dual(leaf, next(parts).unsqueeze(1))

        def move(output: Tensor) -> Dual:
            return Dual(output, offsets.view(-1, 1, *output.shape[1:]))

        return leaves, len(points), move

    def _largest_step(self, z: Tensor) -> Tensor:
        """How far ``(k, n, ...)`` are from the first of ``k`` at most; NaN where one is."""

        def largest(z: Tensor) -> Tensor:
            return torch.sub(z, z[:1], out=self._room(z, z.numel()).view(z.shape)).abs_().amax(0)

        return reduced(z, largest)

    def _room(self, like: Tensor, size: int) -> Tensor:
        """Memory for so many values, which is kept, for new memory is slow."""
        if self._scratch.numel() < size or self._scratch.dtype != like.dtype:
            self._scratch = like.new_empty(size)
        return self._scratch[:size]

    def _add(self, counts: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Add the units of one place to ``counts (n, R)``. Returns their histogram. ``found`` is overwritten."""
        keys = _critical_keys(found, self._step)
        radii, within = keys.view(self.dtype), torch.empty_like(keys, dtype=self.dtype)
        for row, radius in enumerate(self._radii):  # as numbers of 0 and 1, for booleans take five times as long
            counts[:, row] += number_of_ones(torch.le(radii, radius, out=within))
        return binned(keys)


def critical_radii(found: list[tuple[Tensor, Tensor]], step: float) -> Tensor:
    """``(n, units)`` critical radii, from values relative to each kink, which are overwritten, and the reach of a step.

    NaN where a value is not finite.
    """
    return _critical_keys(found, step).view(found[0][0].dtype)


def _critical_keys(found: list[tuple[Tensor, Tensor]], step: float) -> Tensor:
    if step != 1.0:
        found = [(at, reach / step) for at, reach in found]
    return functools.reduce(torch.minimum, [_critical(at, slope) for at, slope in found])


def _settled(z: Tensor, knot: float | None, reach: Tensor, hidden: Tensor | None) -> Tensor:
    """How far units get: nowhere, if they are 0 because of others and above by rounding; see ``relu_slope``."""
    return reach if hidden is None else reach.masked_fill(hidden & (z > (knot or 0.0)), 0.0)


def _critical(at: Tensor, slope: Tensor) -> Tensor:
    """The bits of critical radii as integers, which are in the same order. ``at`` is overwritten.

    One more for negative units, which at that radius itself are still on their side: zero is not above zero. NaN comes
    last, but for one of which all bits are set, as torch's maximum returns it: that is the least integer.
    """
    bits = at.div_(slope).view(_INTEGERS[at.dtype])
    sign = bits >> (8 * bits.itemsize - 1)
    return bits.bitwise_and_(torch.iinfo(bits.dtype).max).sub_(sign)


class _Reaches:
    """Of ``n`` points, where each unit of one place is relative to its knots, and how far it gets."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._found: list[tuple[Tensor, Tensor]] = []
        self._order: list[int] = []  # of the axes

    def add(self, reaches: list[Reach], rows: slice, first: bool) -> None:
        """Add directions from the points in these rows. ``first``: none was before."""
        self._order = self._order or memory_order(reaches[0][0], 1)
        for i, (z, knot, reach) in enumerate(reaches):
            ordered, reach = permuted(z, self._order), permuted(reach, self._order)
            if len(self._found) == i:
                shape = self._n, *ordered.shape[1:]
                self._found.append((z.new_empty(shape), z.new_empty(shape)))
            at, farthest = (each[rows] for each in self._found[i])
            if first:
                torch.sub(ordered, knot or 0.0, out=at)
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
        """For each knot ``(n, units)`` of both."""
        return [(at.flatten(1), farthest.flatten(1)) for at, farthest in self._found]
