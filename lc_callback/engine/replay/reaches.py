"""How far units move along directions: by derivative rules, or by steps on the affine piece of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layers import OUTPUT_PLACE
from lc_callback.engine.network.layout import reduced, viewed
from lc_callback.engine.network.operations import Kink, relative
from lc_callback.engine.replay.affine_piece import AffinePieces, is_hidden
from lc_callback.engine.replay.differentiate import differentiate
from lc_callback.engine.replay.dual import Dual, NoRule
from lc_callback.engine.replay.way import Way

__all__ = ["Reach", "ReachConsumer", "Reaches"]

#: For each unit of ``(n, ...)`` points: its value, a kink, and how far it moves at most along the directions.
Reach = tuple[Tensor, float | None, Tensor]
ReachConsumer = Callable[[int, list[Reach]], None]


class Reaches:
    """Follows points along directions.

    Args:
        pools_rows: as of :class:`AffinePieces`.

    Attributes:
        pieces: how operations are executed if steps are taken.
    """

    def __init__(self, pools_rows: bool) -> None:
        self.pieces = AffinePieces(pools_rows)
        self._scratch = torch.empty(0)
        self._samples = torch.empty(0), torch.empty(0)  # directions; the same behind a row of zeros, the point itself

    def follow(self, way: Way, points: Tensor, directions: Tensor, consumer: ReachConsumer) -> None:
        """Call ``consumer`` with how far units move along ``(k, B)`` directions from the points ``(n,)``.

        For the output, at :data:`OUTPUT_PLACE`, it gets one number for each point: the norm of all changes.
        """
        (self._from_rules if way.uses_derivative_rules else self._from_steps)(way, points, directions, consumer)

    def _from_steps(self, way: Way, points: Tensor, directions: Tensor, consumer: ReachConsumer) -> None:
        def differ(position: int, kinks: list[Kink]) -> None:
            reaches: list[Reach] = []
            if position == OUTPUT_PLACE:
                z = kinks[0][0].unflatten(0, self.pieces.block)
                consumer(position, [(z[0], None, _norm(z[1:] - z[:1]))])
                return
            for i, (z, kink) in enumerate(viewed(kinks, lambda z: z.unflatten(0, self.pieces.block))):
                repeated = i > 0 and kinks[i - 1][0] is kinks[i][0]
                reach = reaches[-1][2] if repeated else self._largest_step(z)
                if i == 0 and position > 0:
                    hidden = is_hidden(relative(z[0], kink), reach)
                    reach = _settled(z[0], kink, reach, hidden)
                reaches.append((z[0], kink, reach))
            consumer(position, reaches)

        if self._samples[0] is not directions:
            self._samples = directions, torch.cat([torch.zeros_like(directions[:1]), directions])
        moves = self._samples[1]
        self.pieces.block = len(moves), len(points)
        way.follow(points, moves, differ)

    def _from_rules(self, way: Way, points: Tensor, directions: Tensor, consumer: ReachConsumer) -> None:
        def receive(position: int, kinks: list[Kink], dual: Dual) -> None:
            axis = way.layers.axis_of(position)
            if position == OUTPUT_PLACE and axis is not None:
                slopes = dual.slopes().expand(-1, *dual.value.shape).movedim(0, -1)
                norm = _norm(axis.to_front(slopes, len(points)).movedim(-1, 0))
                consumer(position, [(axis.to_front(dual.value, len(points)), None, norm)])
            elif axis is not None:
                at = viewed(kinks, lambda z: axis.to_front(z, len(points)))
                reach = axis.to_front(dual.steepest(), len(points))
                if dual.hidden is not None:
                    reach = _settled(*at[0], reach, axis.to_front(dual.hidden, len(points)))
                consumer(position, [(z, kink, reach) for z, kink in at])

        if way.program is None:
            raise NoRule("no operations are replayed")
        if way.program.writes_to_views:
            raise NoRule("it writes in place to a tensor of which other views are read")
        duals, axis_of = _duals(way, points, directions), way.layers.axis_of
        differentiate(way.program, *duals, receive, axis_of, self._room, with_output=way.with_output)

    def _largest_step(self, z: Tensor) -> Tensor:
        """The largest distance of ``(k, n, ...)`` from the first of ``k``; NaN if one value is NaN."""

        def largest(z: Tensor) -> Tensor:
            return torch.sub(z, z[:1], out=self._room(z, z.numel()).view(z.shape)).abs_().amax(0)

        return reduced(z, largest)

    def _room(self, like: Tensor, size: int) -> Tensor:
        """Memory for ``size`` values. It is kept, because new memory is slow."""
        if self._scratch.numel() < size or self._scratch.dtype != like.dtype:
            self._scratch = like.new_empty(size)
        return self._scratch[:size]


def _duals(way: Way, points: Tensor, directions: Tensor) -> tuple[Any, int, Callable[[Any], Dual]]:
    """The inputs that move, the number of points, and a function that replaces the output of a module."""
    if way.prefix is not None:
        base = way.prefix.at(points)
        dual = Dual(base.clone(), way.prefix.moved(base, directions))  # the next operation may work in place
        return None, len(points), lambda output: dual
    offsets, space = directions @ way.frame, way.layers.space
    inputs = tree_leaves(space.points.batch(points, None))
    if space.at_module is None:
        parts = iter(space.points.parts(offsets))
        for place, leaf in enumerate(inputs):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                inputs[place] = Dual(leaf, next(parts).unsqueeze(1))

    def move(output: Tensor) -> Dual:
        return Dual(output, offsets.view(-1, 1, *output.shape[1:]))

    return inputs, len(points), move


def _norm(changes: Tensor) -> Tensor:
    """``(n,)``: the norm of changes ``(k, n, ...)`` over all axes but that of the points."""
    return torch.linalg.vector_norm(changes, dim=[axis for axis in range(changes.ndim) if axis != 1])


def _settled(z: Tensor, kink: float | None, reach: Tensor, hidden: Tensor | None) -> Tensor:
    """How far units move: not at all if they are 0 because of others, and above 0 by rounding. See ``relu_slope``."""
    return reach if hidden is None else reach.masked_fill(hidden & (z > (kink or 0.0)), 0.0)
