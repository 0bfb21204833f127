"""A plane in input space, and the window on it that the user asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_callback.engine.slices.window import Extent

__all__ = ["Plane", "extent_text"]

Floats = NDArray[np.float64]

_MARGIN = 0.2  # of the bounding square of the points, on each side
_FLAT = 1e-6  # points that are as near to one line as this are on it: the rounding of float32


@dataclass(frozen=True)
class Plane:
    """A plane in input space, with coordinates in input units.

    Attributes:
        origin: ``(*shape)``, the first point.
        directions: ``(2, *shape)``, orthonormal.
        points: ``(3, 2)``, coordinates of the points that span it.
    """

    origin: Tensor
    directions: Tensor
    points: Floats

    def __repr__(self) -> str:
        points = ", ".join(f"({u:.4g}, {v:.4g})" for u, v in self.points.tolist())
        return f"Plane(inputs of shape {tuple(self.origin.shape)}, points at {points})"

    def to_input(self, uv: Any) -> Tensor:
        """The inputs ``(K, *shape)`` at coordinates ``(K, 2)``."""
        coordinates = torch.as_tensor(np.asarray(uv, np.float64)).reshape(-1, 2)
        flat = coordinates.to(self.directions) @ self.directions.flatten(1)
        return self.origin + flat.view(-1, *self.origin.shape)

    @classmethod
    def through(cls, points: Tensor) -> Plane:
        """The plane through three points ``(3, *shape)``.

        Raises:
            ValueError: if there are not three, or they are on one line.
        """
        if len(points) != 3:
            raise ValueError(f"`points` must be three points, but got {len(points)}.")
        if points.ndim < 2:
            raise ValueError(f"`points` must be (3, *input_shape), but got shape {tuple(points.shape)}.")
        if not points.isfinite().all():
            raise ValueError("`points` must be finite, but holds NaN or infinity.")
        flat = points.double().flatten(1)
        sides = flat[1:] - flat[0]
        first = sides[0].norm()
        along = sides[0] / first
        rest = sides[1] - (sides[1] @ along) * along
        rest = rest - (rest @ along) * along
        second = rest.norm()
        if not first > 0 or not second > _FLAT * sides[1].norm():
            raise ValueError("`points` must be three points that are not on one line: they span the plane.")
        directions = torch.stack([along, rest / second])
        coordinates = (sides @ directions.T).cpu().numpy()
        shape = points.shape[1:]
        return cls(points[0].double(), directions.view(2, *shape), np.concatenate([np.zeros((1, 2)), coordinates]))

    def window(self, extent: Sequence[float] | float | None) -> Extent:
        """The window that the user asks for.

        ``None`` is the bounding square of the points, with a margin. A number is the factor by which that square is
        enlarged. ``(u0, u1, v0, v1)`` is the window itself.

        Raises:
            ValueError: if ``extent`` is neither a positive number nor ``(u0, u1, v0, v1)``.
        """
        parts = 1.0 if extent is None else extent
        if isinstance(parts, (int, float)) and not isinstance(parts, bool) and 0 < parts < math.inf:
            low, high = self.points.min(0), self.points.max(0)
            middle, half = (low + high) / 2, parts * (0.5 + _MARGIN) * float((high - low).max())
            u, v = map(float, middle)
            return u - half, u + half, v - half, v + half
        sides: tuple[float, ...]
        try:
            sides = tuple(map(float, extent))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            sides = ()
        if len(sides) != 4 or not (-math.inf < sides[0] < sides[1] < math.inf > sides[3] > sides[2] > -math.inf):
            raise ValueError(
                f"`extent` must be (u0, u1, v0, v1) with u0 < u1 and v0 < v1, or a positive number, but got {extent!r}."
            )
        return sides


def extent_text(extent: Extent) -> str:
    """The window in plane coordinates, as a text."""
    return f"extent=({', '.join(f'{side:.4g}' for side in extent)})"
