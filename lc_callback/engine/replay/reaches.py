"""How far units get along directions: by the rules of derivatives, or by steps on the affine piece of a network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import reduced, viewed
from lc_callback.engine.network.operations import Knot, relative
from lc_callback.engine.replay.affine_piece import AffinePieces, is_hidden
from lc_callback.engine.replay.differentiate import differentiate
from lc_callback.engine.replay.dual import Dual, NoRule
from lc_callback.engine.replay.way import Way

__all__ = ["Reach", "ReachConsumer", "Reaches"]

#: For each unit of ``(n, ...)`` points, its value, a knot, and how far it gets along the directions.
Reach = tuple[Tensor, float | None, Tensor]
ReachConsumer = Callable[[int, list[Reach]], None]


class Reaches:
    """Follows points along directions.

    Attributes:
        pieces: how operations are executed where steps are taken.
    """

    def __init__(self) -> None:
        self.pieces = AffinePieces()
        self._scratch = torch.empty(0)
        self._samples = torch.empty(0), torch.empty(0)  # directions, and what they are together with the point itself

    def follow(self, way: Way, points: Tensor, directions: Tensor, consumer: ReachConsumer) -> None:
        """Call ``consumer`` with what is reached along ``(k, B)`` directions from the points ``(n,)``."""
        (self._by_rules if way.uses_derivative_rules else self._by_steps)(way, points, directions, consumer)

    def _by_steps(self, way: Way, points: Tensor, directions: Tensor, consumer: ReachConsumer) -> None:
        def differ(position: int, knots: list[Knot]) -> None:
            reaches: list[Reach] = []
            for i, (z, knot) in enumerate(viewed(knots, lambda z: z.unflatten(0, self.pieces.block))):
                repeated = i > 0 and knots[i - 1][0] is knots[i][0]
                reach = reaches[-1][2] if repeated else self._largest_step(z)
                if i == 0 and position > 0:
                    hidden = is_hidden(relative(z[0], knot), reach)
                    reach = _settled(z[0], knot, reach, hidden)
                reaches.append((z[0], knot, reach))
            consumer(position, reaches)

        if self._samples[0] is not directions:
            self._samples = directions, torch.cat([torch.zeros_like(directions[:1]), directions])
        moves = self._samples[1]
        self.pieces.block = len(moves), len(points)
        way.follow(points, moves, differ)

    def _by_rules(self, way: Way, points: Tensor, directions: Tensor, consumer: ReachConsumer) -> None:
        axes = way.layers.axes

        def receive(position: int, knots: list[Knot], dual: Dual) -> None:
            axis = axes[position]
            if axis is not None:
                at = viewed(knots, lambda z: axis.to_front(z, len(points)))
                reach = axis.to_front(dual.steepest(), len(points))
                if dual.hidden is not None:
                    reach = _settled(*at[0], reach, axis.to_front(dual.hidden, len(points)))
                consumer(position, [(z, knot, reach) for z, knot in at])

        if way.program is None:
            raise NoRule("no operations are replayed")
        if way.program.writes_to_views:
            raise NoRule("it writes in place to a tensor of which other views are read")
        differentiate(way.program, *_duals(way, points, directions), receive, self._room)

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


def _duals(way: Way, points: Tensor, directions: Tensor) -> tuple[Any, int, Callable[[Any], Dual]]:
    """What moves: the inputs, how many points these are, and what takes the place of a module's output."""
    if way.prefix is not None:
        base = way.prefix.at(points)
        dual = Dual(base.clone(), way.prefix.moved(base, directions))  # what comes next may work in place
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


def _settled(z: Tensor, knot: float | None, reach: Tensor, hidden: Tensor | None) -> Tensor:
    """How far units get: nowhere, if they are 0 because of others and above by rounding; see ``relu_slope``."""
    return reach if hidden is None else reach.masked_fill(hidden & (z > (knot or 0.0)), 0.0)
