"""Piecewise linear fits of noisy curves with lone spikes, on a logarithmic axis of steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.hinges import SAME, HingeSearch, design

__all__ = ["Fit", "bins_of", "fit"]

Floats = NDArray[np.float64]
Breakpoints = tuple[float, ...]

_BINS = 20  # a decade of steps is seen in so many points at most
_PENALTY = 2.0  # factor on the penalty of the Bayesian information criterion
_FEWEST = 8  # points, below which nothing is said
_FLOOR = 1e-4  # of the range squared: residuals below are perfect
_SPIKE = 4.0  # medians of the distance from the neighbours that make a point a candidate for a spike,
_SPIKE_FLOOR = 0.1  # and at least this part of the range


@dataclass(frozen=True)
class Fit:
    """A continuous piecewise linear function of ``log10(step + 1)``.

    Attributes:
        nodes: ``(K,)``, where the pieces meet, the ends included.
        values: ``(K,)``, there.
        sigma: standard deviation of the residuals.
    """

    nodes: Floats
    values: Floats
    sigma: float

    @property
    def slopes(self) -> Floats:
        """``(K - 1,)``, of the pieces, per decade."""
        return np.diff(self.values) / np.diff(self.nodes)


def bins_of(steps: Floats) -> NDArray[np.int64]:
    """The bin of each step: rows in the same bin are seen as one."""
    return np.floor(np.log10(steps + 1) * _BINS + 1e-9).astype(np.int64)


def fit(steps: Floats, values: Floats) -> Fit | None:
    """Fit a curve, with as many pieces as the Bayesian information criterion pays for, and without lone spikes.

    A spike is a point that costs less as a parameter of its own than as a part of the curve.

    Args:
        steps: ``(N,)``, increasing.
        values: ``(N,)``, finite.

    Returns:
        ``None`` for fewer than eight points (bins), or points that are all equal.

    Example::

        >>> import numpy as np
        >>> from lc_callback.detection.piecewise import fit
        >>> steps = 10 ** np.arange(1, 3.05, 0.1) - 1
        >>> found = fit(steps, np.abs(np.log10(steps + 1) - 2))
        >>> found.nodes.round(3).tolist(), found.slopes.round(3).tolist()
        ([1.0, 2.0, 3.0], [-1.0, 1.0])
    """
    x, y = binned(steps, values)
    if len(x) < _FEWEST or y.max() == y.min():
        return None
    scale, base = float(np.ptp(y)), float(y.min())
    unit, weights = (y - base) / scale, np.ones_like(y)
    ((cost, breakpoints),) = _cheapest(x, unit, weights[None])
    while spikes := _candidates(x, unit, weights):
        without = np.repeat(weights[None], len(spikes), axis=0)
        without[np.arange(len(spikes)), spikes] = 0
        found = _cheapest(x, unit, without)
        least = min(best for best, _ in found)
        (best, more_breakpoints), spike = next(
            (fitted, i) for fitted, i in zip(found, spikes, strict=True) if fitted[0] <= least + SAME
        )
        if best >= cost - SAME:
            break
        cost, breakpoints = best, more_breakpoints
        weights[spike] = 0
    coefficients, residuals = _solve(x, unit, weights, breakpoints)
    nodes = np.array([x[0], *breakpoints, x[-1]])
    kept = residuals[weights > 0]
    sigma = math.sqrt(float(kept @ kept) / max(1, len(kept) - 2 * len(breakpoints) - 2))
    return Fit(nodes, base + scale * (design(nodes, breakpoints) @ coefficients), scale * sigma)


def binned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """``log10(step + 1)`` and values, one point for each bin: means of the axis, medians of the values."""
    x = np.log10(steps + 1)
    starts = np.flatnonzero(np.diff(bins_of(steps), prepend=-1))
    if len(starts) == len(x):  # each row in a bin of its own
        return x, np.asarray(values, np.float64)
    ends = np.append(starts[1:], len(x))
    each = np.asarray(values, np.float64).tolist()  # of numbers, for arrays of a few are slow
    medians = [median(each[start:end]) for start, end in zip(starts, ends, strict=True)]
    return np.add.reduceat(x, starts) / (ends - starts), np.array(medians)


def _cheapest(x: Floats, y: Floats, weights: Floats) -> list[tuple[float, Breakpoints]]:
    """For each row of weights ``(R, N)``, cost and breakpoints of the fit that the information criterion prefers.

    Points of weight 0 cost as parameters.
    """
    n, search = len(x), HingeSearch.without(x, y, weights == 0)
    spikes = (weights == 0).sum(1)
    spreads = np.array([float(np.ptp(y[kept > 0])) or 1.0 for kept in weights])
    best: list[tuple[float, Breakpoints]] = [(math.inf, ())] * len(weights)
    for squares, places in search.fits():
        parameters = 2 * places.shape[1] + 2 + 2 * spikes
        costs = n * np.log(squares / n + _FLOOR * spreads**2) + parameters * math.log(n) * _PENALTY
        found = [(float(cost), tuple(search.grid[own].tolist())) for cost, own in zip(costs, places, strict=True)]
        best = [now if now[0] < so_far[0] - SAME else so_far for so_far, now in zip(best, found, strict=True)]
    return best


def _candidates(x: Floats, y: Floats, weights: Floats) -> list[int]:
    """Points far from the line between their neighbours: the four farthest that are far among all."""
    kept = np.flatnonzero(weights)
    left, middle, right = kept[:-2], kept[1:-1], kept[2:]
    share = (x[middle] - x[left]) / (x[right] - x[left])
    distance = np.abs(y[middle] - y[left] - share * (y[right] - y[left]))
    far = distance > (1 + SAME) * max(_SPIKE * float(np.median(distance)), _SPIKE_FLOOR)
    order = np.argsort(-np.round(distance, 9), kind="stable")  # rounding is another one on another processor
    return [int(middle[i]) for i in order[:4] if far[i]]


def _solve(x: Floats, y: Floats, weights: Floats, breakpoints: Breakpoints) -> tuple[Floats, Floats]:
    """Coefficients and residuals of the fit with these breakpoints."""
    columns = design(x, breakpoints)
    coefficients = np.linalg.lstsq(columns * weights[:, None], y * weights, rcond=None)[0].astype(np.float64)
    return coefficients, y - columns @ coefficients
