"""The smallest radius at which local complexity can be read with the points there are."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from lc_callback.engine.counting.counter import share_of
from lc_callback.engine.counting.critical_radius import CriticalRadii, NeedsVertices, critical_radii
from lc_callback.engine.counting.histogram import BINS
from lc_callback.engine.counting.task import CountingTask
from lc_callback.engine.counting.vertices import Tally, Vertices
from lc_callback.engine.network.layers import TracedLayers
from lc_callback.engine.network.layout import permuted
from lc_callback.engine.network.modules import select_modules
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.network.space import Space, compute_dtype
from lc_callback.engine.replay.affine_piece import is_hidden, negligible
from lc_callback.functional.local_complexity import counting_task, wrapped
from lc_callback.isolation import untouched

__all__ = ["FoundRadius", "count_units", "find_radius", "nearest_distance", "rounded"]

#: Units that switch at all points together. With so many the 99 % half-width of their mean is about 5 %.
ENOUGH = 2_500
#: Points beyond which the radius gets no smaller: further ones make the band narrower.
MANY = 500
_LEAST = 0.9  # of these, that have to switch at a radius that was rounded down
#: A radius is at most this part of the median distance between nearest points: beyond that it is not local.
LOCAL = 1 / 20
_SAME = 1e-12  # of the squared lengths of two points, below which their squared distance is rounding
_BISECTIONS = 8
_POINTS = 64  # that the bisection looks at, and the comparison of the methods
_AGREE = 0.01  # of the switching units by which the linear method may be off
_DECADES = 6.0  # below the largest radius, in which the bisection looks


@dataclass(frozen=True)
class FoundRadius:
    """A radius that can be read.

    Attributes:
        radius: 1, 2 or 5 times a power of ten, in the units of the points.
        reason: why this one, for people.
        difference: how the linear method differs from the vertices at this radius, for people: by more than 1 % of the
            switching units, and more than chance explains. Empty if it does not, or if it does not count here anyway.
    """

    radius: float
    reason: str
    difference: str = ""


def find_radius(
    model: nn.Module,
    inputs: Any,
    *,
    n_directions: int | None = None,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
) -> FoundRadius:
    """The smallest radius at which local complexity can be read with these points.

    At this radius 2,500 units switch at all points together, so that the 99 % half-width of the mean is about 5 % of
    it. Units of a layer with one and the same pre-activation at a point count once, and those exactly on their kink not
    at all: the blank border of an image makes hundreds of such copies, which switch together or not at all. The radius
    is rounded to the nearest of 1, 2 and 5 times a power of ten, or to the next if less than nine tenths of the units
    switch there, and is at most a twentieth of the median distance from a point to its nearest distinct other.

    More than 500 points make the half-width smaller, not the radius: 5 units switch at each of them, and 500 of them
    tell the distance.

    It is read off the critical radii of the linear method, or found by bisection with the vertices of at most 64 points
    where ``layers`` is given, or the model jumps or is flat at kinks. Winners of max-pooling do not count here: ties in
    a blank patch switch at any radius. At the radius that was found, both methods count at most 64 points once. They
    differ for networks that are smooth and far from affine within the radius. They also differ if units see very few
    others, such as those of a depthwise convolution behind ReLU. Arguments as of
    :func:`lc_callback.functional.local_complexity`.

    Raises:
        ValueError: if the points do not differ.

    Example::

        >>> import torch
        >>> from lc_callback.functional.radius import find_radius
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Linear(20, 200), torch.nn.ReLU(), torch.nn.Linear(200, 2))
        >>> find_radius(net, torch.randn(500, 20), n_directions=20).radius
        0.1
    """
    where: dict[str, Any] = {"at": at, "forward_fn": forward_fn}
    points = _points_of(model, inputs, **where)
    n = len(points)
    most = LOCAL * nearest_distance(points[spread_over(n, MANY)])
    some = share_of(n, 0, -(-n // _POINTS))
    with warnings.catch_warnings():  # what there is to warn of, the rows will
        warnings.simplefilter("ignore")
        if layers is None:
            with suppress(NeedsVertices):
                linear = _smallest_radii(model, inputs, most, enough(n), n_directions, seed, chunk_size, **where)
                chosen = _chosen(linear.found(), most, n, linear.switching)
                totals = []
                for method in ("linear", "vertices"):
                    task = counting_task(method, model, inputs, layers=None, max_pool=False, **where)
                    found = task.measure(chosen.radius, n_directions, None, seed, chunk_size, points=some)
                    totals.append(wrapped(found).total)
                return replace(chosen, difference=_difference(*totals))
        vertices = CountingTask(_DistinctVertices, model, inputs, layers=layers, **where)

        def switching(radius: float) -> float:
            found = vertices.measure(radius, n_directions, None, seed, chunk_size, None, points=some)
            return float(found.counts.clamp(min=0).sum()) * n / len(some)

        return _chosen(_bisected(switching, most, enough(n)), most, n, switching)


def enough(n: int) -> int:
    """How many units have to switch at ``n`` points together."""
    return max(ENOUGH, ENOUGH * n // MANY)


def spread_over(n: int, most: int) -> Tensor:
    """The indices of at most so many of ``n`` points, at equal distances."""
    return torch.arange(n) if n <= most else torch.linspace(0, n - 1, most).round().long()


def _chosen(found: float, most: float, n: int, switching: Callable[[float], float]) -> FoundRadius:
    """Round the radius that was found, given how many units switch at all points within a radius."""
    if found <= most:
        radius = rounded(found)
        if radius < found and switching(radius) < _LEAST * enough(n):
            radius = rounded(2.3 * radius)  # the next one: 2 or 2.5 times as large
        if radius <= most:
            return FoundRadius(
                radius,
                f"the smallest of 1, 2, 5 times a power of ten that can be read: about {enough(n):,} units or more "
                f"switch at the {n:,} train points together (units of a layer with one value at a point count once "
                "here)",
            )
    return FoundRadius(
        rounded(most, down=True),
        "a twentieth of the median distance between nearest train points, beyond which it is not local; fewer than "
        f"{enough(n):,} units switch at the {n:,} train points",
    )


def _difference(linear: Tensor, vertices: Tensor) -> str:
    """How counts ``(n,)`` by both methods differ, for people; empty if they do not."""
    difference = (linear - vertices).double()
    # If it is by chance which of them counts a unit that the other does not: two standard deviations of the sum.
    by_chance = 2 * float(difference.abs().sum()) ** 0.5
    if not abs(float(difference.sum())) > max(_AGREE * float(vertices.sum()), by_chance):  # also NaN
        return ""
    return (
        f"the linear method counts {int(linear.sum()):,} switching units at {len(linear)} of the train points, "
        f"the vertices {int(vertices.sum()):,}"
    )


def rounded(radius: float, down: bool = False) -> float:
    """The nearest of 1, 2 and 5 times a power of ten, by ratio; ``down``: the largest of these that is not above."""
    exponent = math.floor(math.log10(radius))
    grid = [float(f"{digit}e{exponent + shift}") for shift in (-1, 0, 1) for digit in (1, 2, 5)]
    if down:
        return max(value for value in grid if value <= radius)
    return min(grid, key=lambda value: abs(math.log(value / radius)))


def _points_of(model: nn.Module, inputs: Any, **where: Any) -> Tensor:
    """The points ``(N, D)`` in the space that is perturbed."""
    space, dtype = Space(model, inputs, **where), compute_dtype(model, inputs)
    with untouched(model, space.forward_fn, dtype=dtype):
        space.locate(dtype)
        return space.all_values().flatten(1)


def nearest_distance(points: Tensor) -> float:
    """The median distance from one of the points ``(N, D)`` to its nearest distinct other.

    Raises:
        ValueError: if no two points differ.
    """
    x = points.double()
    length = x.square().sum(1)
    scale = length[:, None] + length
    squared = scale - 2 * x @ x.T
    squared = squared.masked_fill(~(squared > _SAME * scale), math.inf)  # copies of the point, and itself
    nearest = squared.amin(1)
    nearest = nearest[nearest.isfinite()]
    if not len(nearest):
        raise ValueError("`radius='auto'` needs train probes that differ; these are all equal. Pass a number.")
    return float(nearest.median().sqrt())


def count_units(
    model: nn.Module,
    inputs: Any,
    *,
    layers: Sequence[str | type] | None = None,
    max_pool: bool = False,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
) -> int:
    """How many units are counted at each point. Arguments as of :func:`lc_callback.functional.local_complexity`."""
    space = Space(model, inputs, at=at, forward_fn=forward_fn)
    outputs_of = None if layers is None else select_modules(model, layers)
    dtype = compute_dtype(model, inputs)
    with warnings.catch_warnings(), untouched(model, forward_fn, dtype=dtype):
        warnings.simplefilter("ignore")
        space.locate(dtype)
        return sum(TracedLayers(space, outputs_of=outputs_of, max_pool=max_pool).sizes)


def _bisected(switching: Callable[[float], float], most: float, wanted: int) -> float:
    """The radius from which on so many units switch; infinite if that is above ``most``."""
    if switching(most) < wanted:
        return math.inf
    low, high = math.log10(most) - _DECADES, math.log10(most)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (low, middle) if switching(10**middle) >= wanted else (middle, high)
    return 10 ** ((low + high) / 2)


def _smallest_radii(
    model: nn.Module,
    inputs: Any,
    most: float,
    wanted: int,
    n_directions: int | None,
    seed: int,
    chunk_size: int | None,
    **where: Any,
) -> _SmallestRadii:
    """What knows the smallest critical radii, in a precision for radii that are not below ``most``.

    Raises:
        NeedsVertices: if the model jumps, or is flat at kinks.
    """
    task = CountingTask(partial(_SmallestRadii, wanted=wanted), model, inputs, **where)
    with task.ready(most, n_directions, None, seed, chunk_size) as counter:
        counter.count_set(0, most)
        return cast("_SmallestRadii", counter.strategy)


class _SmallestRadii(CriticalRadii):
    """Keeps the smallest critical radii of all points, as many as are wanted."""

    def __init__(self, layers: TracedLayers, wanted: int) -> None:
        super().__init__(layers)
        self._wanted = wanted
        self._smallest = torch.empty(0, dtype=torch.float64)

    def found(self) -> float:
        """The radius at which so many units have switched; infinite if there are fewer."""
        return float(self._smallest.max()) if len(self._smallest) == self._wanted else math.inf

    def switching(self, radius: float) -> float:
        """How many units switch at all points together within a radius, up to those that are wanted."""
        return float((self._smallest <= radius).sum())

    def add(self, counts: Tensor, found: list[tuple[Tensor, Tensor]], radii: list[float], step: float) -> Tensor:
        """Keep those of one place that are among the smallest."""
        value, reach = found[0][0].clone(), found[0][1]  # the next line overwrites the value
        critical = critical_radii(found, step)
        limit = self._smallest.max().item() if len(self._smallest) == self._wanted else math.inf
        point, unit = torch.nonzero((critical > 0) & (critical < limit) & ~_on_kink(value, reach), as_tuple=True)
        kept = _distinct(point, value[point, unit], critical[point, unit]).double().cpu()
        together = torch.cat([self._smallest, kept])
        self._smallest = together.topk(min(self._wanted, len(together)), largest=False).values
        return counts.new_zeros(BINS)


def _on_kink(value: Tensor, reach: Tensor) -> Tensor:
    """Which units ``(n, units)`` are 0 but for what units that are inactive pass on as good as nothing, and move."""
    zero = value.abs() <= negligible(value, 1)
    hidden = is_hidden(value, reach)
    return zero if hidden is None else zero & ~hidden


def _distinct(point: Tensor, value: Tensor, radius: Tensor) -> Tensor:
    """The least radius of each group with one point and one value."""
    order = radius.argsort()
    order = order[value[order].argsort(stable=True)]
    order = order[point[order].argsort(stable=True)]
    point, value = point[order], value[order]
    first = torch.ones_like(point, dtype=torch.bool)
    first[1:] = (point[1:] != point[:-1]) | (value[1:] != value[:-1])
    return radius[order][first]


class _DistinctVertices(Vertices):
    """Counts by the vertices and the points themselves, and units with one and the same value at a point once."""

    only_extremes = False

    def vertices(self, steps: Tensor) -> Tensor:
        """With the point itself as the first."""
        return torch.cat([torch.zeros_like(steps[:1]), super().vertices(steps)])

    def tally(self, n: int) -> Tally:
        """One that knows the value at the point itself."""
        return _DistinctTally(n)


class _DistinctTally(Tally):
    """As its base, with the value at the points: that is the first vertex."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self._values: Tensor | None = None

    def add(self, kinks: list[Kink], rows: slice, first: bool) -> None:
        """As its base does."""
        super().add(kinks, rows, first)
        z, kink = kinks[0]
        if first and kink is not None:
            values = (permuted(z, self.order)[0] - kink).flatten(1)
            if self._values is None:
                self._values = values.new_empty(self.n, values.shape[1])
            self._values[rows] = values

    def crossed(self) -> Tensor:
        """``(n,)``: the number of different values of units that switch."""
        if self._values is None:  # winners
            return super().crossed().zero_()
        point, unit = torch.nonzero(self.switching() & (self._values != 0), as_tuple=True)
        value = self._values[point, unit]
        kept = torch.stack([point.double(), value.double()]).unique(dim=1)
        return kept[0].long().bincount(minlength=self.n)
