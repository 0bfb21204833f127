"""A network on the plane that is sliced: its pre-activations and its output there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_callback.checks import positive_integer
from lc_callback.engine.chunks import SLICES
from lc_callback.engine.network.layers import Consumer, Execution, TracedLayers
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space
from lc_callback.engine.replay.recording import NotRepeatable
from lc_callback.engine.replay.route import Route
from lc_callback.engine.replay.way import Way, pre_activations
from lc_callback.engine.slices.plane import Plane

__all__ = ["SlicedNetwork"]

Floats = NDArray[np.float64]


class _Vertices:
    """What a faster way must not change: the values of all pre-activations, and the output."""

    has_rules = follows_output = False

    def __init__(self) -> None:
        self.execution = Execution()

    def observe(self, way: Way, points: Tensor, moves: Tensor, most: int) -> tuple[list[Tensor], list[Tensor]]:
        """As of :class:`Observer`."""
        return pre_activations(way, points, moves, most, with_output=True), []


class SlicedNetwork:
    """A piecewise affine network as a function of plane coordinates.

    Make it and use it in measuring conditions, in float64.

    Args:
        space: of the points that span the plane.
        chunk_size: points in one forward pass; ``None`` is as many as fit a memory budget.

    Attributes:
        space: of the points that span the plane.
        layers: those along which a window is cut.
        plane: the plane through the points.

    Raises:
        ValueError: for points that span no plane, or a network that is not piecewise affine.
    """

    def __init__(self, space: Space, chunk_size: int | None) -> None:
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        space.locate(torch.float64)
        # An affine network is one region.
        layers = TracedLayers(space, max_pool="candidates", hint="", required=False)
        self.space, self.layers = space, layers
        self.plane = Plane.through(space.all_values())
        self._chunk = chunk_size or SLICES.samples(space.device, layers.bytes_per_sample)
        layers.check_piecewise_affine(
            "so there are no regions to find. See `local_complexity_map` for a picture of any model."
        )
        frame = self.plane.directions.flatten(1).to(space.device)
        verified = torch.tensor([0, space.points.n - 1]).unique()
        not_repeatable = NotRepeatable("the output is needed")
        self._route = Route(layers, frame, self._chunk, _Vertices(), verified, not_repeatable)

    def n_outputs(self) -> int:
        """How many numbers the output has for one point."""
        return self.follow(np.zeros((1, 2)), _ignore).shape[1]

    def n_passes(self, n: int) -> int:
        """How many forward passes ``n`` points take."""
        return -(-n // self._chunk)

    def chunks(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        """The rows in parts; each part is one forward pass."""
        return np.array_split(rows, self.n_passes(len(rows)))

    def follow(self, coordinates: Floats, consumer: Consumer) -> Tensor:
        """The output ``(k, C)`` at coordinates; ``consumer`` gets the pre-activations there."""
        coefficients = torch.as_tensor(coordinates).to(self._route.frame)
        return _rows(self._route.follow(torch.zeros(1, dtype=torch.long), coefficients, consumer)).detach()

    def outputs(self, coordinates: Floats) -> Floats:
        """The output ``(K, C)`` at coordinates."""
        return torch.cat([self.follow(part, _ignore).cpu() for part in self.chunks(coordinates)]).numpy()

    def run_whole(self, coordinates: Floats) -> Tensor:
        """The output ``(k, C)`` at coordinates, from the model itself, with nothing recorded."""
        return self._run(self.plane.to_input(coordinates).to(self.space.device))

    def slope_norms(self, centres: Floats, progress: Callable[[int, int], None]) -> Floats:
        """Frobenius norm of the Jacobian of the output at these coordinates."""
        norms = []
        parts = self.chunks(centres)
        for i, part in enumerate(parts):
            progress(i, len(parts))
            values = self.plane.to_input(part).to(self.space.device).requires_grad_()
            output = self._run(values)
            squares = torch.zeros(len(part), dtype=torch.float64, device=self.space.device)
            for c in range(output.shape[1]):
                (gradient,) = torch.autograd.grad(output[:, c].sum(), values, retain_graph=True)
                squares += gradient.flatten(1).square().sum(1)
            norms.append(squares.sqrt().cpu())
        return torch.cat(norms).numpy()

    def _run(self, values: Tensor) -> Tensor:
        return _rows(self.space.output(torch.zeros(len(values), dtype=torch.long), values))


def _rows(output: Any) -> Tensor:
    output = main_output(output)
    if not output.ndim:
        raise ValueError("the model returns one number for a whole batch: pass `forward_fn=` that returns a row each.")
    return output.flatten(1) if output.ndim > 1 else output[:, None]


def _ignore(position: int, kinks: list[Kink]) -> None:
    """Consumes nothing: only the output counts."""
