"""Counting at the cells of a grid of a plane."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_callback.engine.counting.counter import SwitchCounter
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.slices.plane import Plane
from lc_callback.engine.slices.window import Extent

__all__ = ["GridCounter", "middles"]

Floats = NDArray[np.float64]


class GridCounter(SwitchCounter):
    """Counts at the cells of a grid of the plane through the points, instead of at the points."""

    def __init__(
        self, *args: Any, extent: Sequence[float] | float | None, sides: tuple[int, int], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._extent, self._sides = extent, sides
        self._first = torch.zeros(1, dtype=torch.long)

    @property
    def n(self) -> int:
        """Number of cells."""
        return self._sides[0] * self._sides[1]

    def trace(self, dtype: torch.dtype) -> None:
        """Learn the layers, and where the cells are."""
        super().trace(dtype)
        self.plane = Plane.through(self.all_values())
        u0, u1, v0, v1 = self.window = self.plane.window(self._extent)
        corners = self.plane.to_input([[u, v] for u in (u0, u1) for v in (v0, v1)])
        self.largest = max(self.largest, float(corners.abs().max()))
        self._uv = torch.from_numpy(middles(self.window, *self._sides)).flatten(0, 1)

    def set_frame(self, frame: Tensor, most: int) -> None:
        """Take the directions of the frame; those of the plane lead from the first point to the cells."""
        super().set_frame(torch.cat([self.plane.directions.flatten(1).to(frame), frame]), most)
        self.n_directions = len(frame)

    def starts(self, points: Tensor) -> Tensor:
        """The first point, from which all cells are reached."""
        return self._first

    def follow_vertices(self, points: Tensor, vertices: Tensor, sink: Callable[[int, list[Knot]], None]) -> None:
        """Run the model at the vertices of the frames of these cells."""
        cells = self._uv[points].to(vertices).repeat(len(vertices), 1)
        coefficients = torch.cat([cells, vertices.repeat_interleave(len(points), dim=0)], dim=1)
        self.follow_frame(self._first, coefficients, sink)


def middles(extent: Extent, height: int, width: int) -> Floats:
    """``(H, W, 2)``: plane coordinates of the middles of the cells."""
    u0, u1, v0, v1 = extent
    u = u0 + (np.arange(width) + 0.5) * (u1 - u0) / width
    v = v0 + (np.arange(height) + 0.5) * (v1 - v0) / height
    return np.stack(np.meshgrid(u, v), axis=-1)
