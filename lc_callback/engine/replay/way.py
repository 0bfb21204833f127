"""One way to follow points along a frame: by running the model, or faster with the same result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lc_callback.engine.network.layers import Consumer, Execution, Samples, TracedLayers
from lc_callback.engine.network.layout import viewed
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.replay.prefix import Prefix
from lc_callback.engine.replay.program import ReplayProgram

__all__ = ["Way", "pre_activations", "same", "some_moves"]

_AT_ONCE = 3  # points that are compared in one forward pass: as many as in a trace, so memory suffices
_ROUNDING = 2**12  # units in the last place of a layer's largest value: equal within these


@dataclass(frozen=True)
class Way:
    """How points are followed along a frame.

    Attributes:
        layers: the layers whose pre-activations are followed.
        frame: ``(B, D)`` directions.
        execution: how the operations are executed.
        program: recorded operations that run in place of the model; ``None`` runs the model.
        prefix: the module behind which the points enter; ``None``: they enter at the inputs.
        uses_derivative_rules: whether derivatives come from a rule for each operation, not from steps.
        channels_last: how batches of images are laid out in memory.
        with_output: whether the consumer also gets the output, as the place :data:`OUTPUT_PLACE`.
    """

    layers: TracedLayers
    frame: Tensor
    execution: Execution
    program: ReplayProgram | None = None
    prefix: Prefix | None = None
    uses_derivative_rules: bool = False
    channels_last: bool = False
    with_output: bool = False

    def follow(self, points: Tensor, coefficients: Tensor, consumer: Consumer) -> Any:
        """Call ``consumer`` at the points ``(n,)``, moved by ``coefficients (k, B)`` of the directions of the frame.

        As :meth:`TracedLayers.follow`. Returns the output of the model, or ``None`` if operations are replayed.
        """
        if len(points) * len(coefficients) == 1:  # twice: the layout of one is ambiguous, as that behind `squeeze`
            output = self.follow(points, coefficients.expand(2, -1), _first_of(consumer))
            return tree_map(lambda leaf: leaf[:1] if isinstance(leaf, Tensor) and leaf.ndim else leaf, output)
        samples = self._samples(points, coefficients)
        if self.program is None:
            return self.layers.run(samples, consumer, self.execution, self.with_output)
        emit = self.layers.emitter(samples.n, consumer, self.execution)
        move, max_pool = samples.options["move"], self.layers.max_pool
        execute = self.execution.execute
        self.program.run(samples.inputs, samples.n, move, emit, execute, max_pool, with_output=self.with_output)
        return None

    def _samples(self, points: Tensor, coefficients: Tensor) -> Samples:
        if self.prefix is None:
            return self.layers.moved(points, coefficients @ self.frame)
        values = self.prefix.values(points, coefficients)
        options = self.layers.options(lambda output: values) | {"at": self.prefix.module}
        inputs = None if self.program is not None else self.layers.space.points.batch(points[:1], None)
        return Samples(inputs, len(values), options)


def _first_of(consumer: Consumer) -> Consumer:
    """A consumer that passes on the first sample only."""
    return lambda position, kinks: consumer(position, viewed(kinks, lambda z: z[:1]))


def some_moves(layers: TracedLayers, frame: Tensor) -> Tensor:
    """``(2, B)`` coefficients of moves as large as the points."""
    scale = (layers.space.largest or 1.0) * (layers.space.dim / len(frame)) ** 0.5
    return torch.randn(2, len(frame), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(frame) * scale


def pre_activations(way: Way, points: Tensor, moves: Tensor, most: int, *, with_output: bool) -> list[Tensor]:
    """All pre-activations at these points, and the output if needed; at most ``most`` samples in a forward pass."""
    seen: list[Tensor] = []

    def keep(position: int, kinks: list[Kink]) -> None:
        seen.append(kinks[0][0].clone())

    # Two samples at least, if there are several: a model may ask its input for their number.
    moves = moves[: min(most, max(1, 3 - len(points)))]
    for some in points.tensor_split(-(-len(points) // min(most, _AT_ONCE))):
        returned = way.follow(some, moves, keep)
        if with_output:
            seen += [leaf.clone() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    return seen


def same(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether both lists of tensors are equal, but for rounding."""
    return len(expected) == len(found) and all(map(_same, expected, found))


def _same(one: Tensor, other: Tensor) -> bool:
    tolerance = _ROUNDING * torch.finfo(one.dtype).eps if one.is_floating_point() else 0
    if one.shape == other.shape and float((one - other).abs().max()) <= tolerance * float(one.abs().max()) < torch.inf:
        return True
    finite = one.abs() < torch.inf  # beyond the border of max-pooling there is -inf
    size = one.abs().where(finite, 0).max()
    near = (one - other).where(finite, 0).abs() <= tolerance * size
    return bool(torch.equal(one.isnan(), other.isnan()) and near.all())
