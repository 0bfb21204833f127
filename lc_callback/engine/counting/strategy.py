"""How units that switch are found: what both ways of counting have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lc_callback.engine.network.layers import Execution, TracedLayers
from lc_callback.engine.replay.route import Route
from lc_callback.engine.replay.way import Way

__all__ = [
    "FEWEST_ULP",
    "Collector",
    "MakeStrategy",
    "NeedsVertices",
    "Strategy",
    "Sweep",
    "output_points",
    "steps_along",
]

#: A coordinate's step r/sqrt(D) is lost in rounding where it is fewer units in the last place than this.
FEWEST_ULP = 16

_MOST_OUTPUTS = 64  # points at which the output is followed, which is enough for a mean
_OUTPUTS = 4  # of so many points it is followed at one, as behind the last counted layer there may be much to compute


class NeedsVertices(Exception):  # noqa: N818 (no error: there is another method)
    """The affine pieces of the model do not show where its units switch; the message says what it does."""


class Collector(Protocol):
    """Collects what is seen around ``n`` points."""

    def add(self, points: Tensor, rows: slice, part: Tensor, first: bool) -> None:
        """Follow these points, which are the ``rows`` of the ``n``, along a part of the coefficients.

        Args:
            points: indices of the points.
            rows: their places.
            part: ``(k, B)`` of the coefficients of the sweep.
            first: whether no part was before.
        """
        ...

    def counts(self) -> Tensor:
        """``(n, R, L)``: how many units switch, -1 where a value was not finite; of the radii of the sweep."""
        ...


@dataclass
class Sweep:
    """One way through all points.

    Attributes:
        coefficients: ``(K, B)``, of the directions of the frame: where each point is moved.
        radii: which of the radii are counted.
        collector: makes what collects, for a number of points.
        histogram: of critical radii, where these are known; complete after the sweep.
        squares: ``(N,)`` float64, of the derivatives of the output along the directions, summed, at the first points,
            so many as :func:`output_points` says; likewise. The output is not followed if this is set to ``None``.
    """

    coefficients: Tensor
    radii: slice
    collector: Callable[[int], Collector]
    histogram: Tensor | None = None
    squares: Tensor | None = None


class Strategy(ABC):
    """How units that switch are found.

    Args:
        layers: of which the units are counted.
        execution: how the operations of the model are executed.

    Attributes:
        has_rules: whether derivatives may be taken operation by operation.
        follows_output: whether the output is followed too, where it can be.
        besides: samples of a point besides those of the coefficients.
    """

    has_rules = False
    follows_output = False
    besides = 0

    def __init__(self, layers: TracedLayers, execution: Execution) -> None:
        self.layers, self.execution = layers, execution

    @property
    def n(self) -> int:
        """Number of points."""
        return self.layers.space.points.n

    def frame(self, directions: Tensor) -> Tensor:
        """``(B, D)``: the frame for :class:`Route`, given the ``(P, D)`` directions of the neighbourhood."""
        return directions

    def starts(self, points: Tensor) -> Tensor:
        """From where the moves lead to the neighbourhood of these points."""
        return points

    @abstractmethod
    def observe(self, way: Way, points: Tensor, moves: Tensor, most: int) -> tuple[list[Tensor], list[Tensor]]:
        """What is compared before a faster way is taken; as of :class:`Observer`."""

    @abstractmethod
    def sweeps(self, route: Route, radii: list[float], n_directions: int) -> list[Sweep]:
        """The ways through all points by which units that switch within these radii are counted."""


#: Makes a strategy for traced layers.
MakeStrategy = Callable[[TracedLayers], Strategy]


def output_points(n: int) -> int:
    """At how many of ``n`` points, the first, the output is followed."""
    return min(_MOST_OUTPUTS, -(-n // _OUTPUTS))


def steps_along(n_directions: int, length: float, like: Tensor) -> Tensor:
    """``(P, P)`` coefficients of a step of this length along each direction."""
    return length * torch.eye(n_directions, dtype=like.dtype, device=like.device)
