"""Counting at the cells of a grid of a plane."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_callback.engine.counting.vertices import Vertices
from lc_callback.engine.network.layers import Consumer, TracedLayers
from lc_callback.engine.replay.route import Route
from lc_callback.engine.slices.plane import Plane
from lc_callback.engine.slices.window import Extent

__all__ = ["GridVertices", "middles"]

Floats = NDArray[np.float64]


class GridVertices(Vertices):
    """Counts at the cells of a grid of the plane through the points, instead of at the points.

    Args:
        layers: of which the units are counted.
        extent: of the grid, as of :meth:`Plane.window`.
        sides: ``(H, W)``, its cells.

    Attributes:
        plane: through the points.
        window: of the grid, in plane coordinates.
    """

    def __init__(self, layers: TracedLayers, *, extent: Sequence[float] | float | None, sides: tuple[int, int]) -> None:
        super().__init__(layers)
        self.plane = Plane.through(layers.space.all_values())
        u0, u1, v0, v1 = self.window = self.plane.window(extent)
        corners = self.plane.to_input([[u, v] for u in (u0, u1) for v in (v0, v1)])
        layers.space.reaches(float(corners.abs().max()))
        self._uv = torch.from_numpy(middles(self.window, *sides)).flatten(0, 1)
        self._first = torch.zeros(1, dtype=torch.long)

    @property
    def n(self) -> int:
        """Number of cells."""
        return len(self._uv)

    def frame(self, directions: Tensor) -> Tensor:
        """The directions of the plane, which lead from the first point to the cells, and those of the neighbourhood."""
        return torch.cat([self.plane.directions.flatten(1).to(directions), directions])

    def starts(self, points: Tensor) -> Tensor:
        """The first point, from which all cells are reached."""
        return self._first

    def follow(self, route: Route, points: Tensor, vertices: Tensor, consumer: Consumer) -> None:
        """Follow the vertices of the frames of these cells."""
        cells = self._uv[points].to(vertices).repeat(len(vertices), 1)
        coefficients = torch.cat([cells, vertices.repeat_interleave(len(points), dim=0)], dim=1)
        route.follow(self._first, coefficients, consumer)


def middles(extent: Extent, height: int, width: int) -> Floats:
    """``(H, W, 2)``: plane coordinates of the middles of the cells."""
    u0, u1, v0, v1 = extent
    u = u0 + (np.arange(width) + 0.5) * (u1 - u0) / width
    v = v0 + (np.arange(height) + 0.5) * (v1 - v0) / height
    return np.stack(np.meshgrid(u, v), axis=-1)
