"""Piecewise linear fits of noisy curves with lone spikes, on a logarithmic axis of steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Fit", "bins_of", "fit"]

Floats = NDArray[np.float64]
Knots = tuple[float, ...]

_BINS = 20  # a decade of steps is seen in so many points at most
_MOST_KNOTS = 5
_SHORTEST = 0.15  # decades between two knots
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
        >>> from lc_callback.piecewise import fit
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
    cost, knots = _cheapest(x, unit, weights)
    while True:
        trials = []
        for i in _candidates(x, unit, weights):
            without = weights.copy()
            without[i] = 0
            trials.append((*_cheapest(x, unit, without), i))
        if not trials or min(trials)[0] >= cost:
            break
        cost, knots, spike = min(trials)
        weights[spike] = 0
    coefficients, residuals = _solve(x, unit, weights, knots)
    nodes = np.array([x[0], *knots, x[-1]])
    kept = residuals[weights > 0]
    sigma = math.sqrt(float(kept @ kept) / max(1, len(kept) - 2 * len(knots) - 2))
    return Fit(nodes, base + scale * (_design(nodes, knots) @ coefficients), scale * sigma)


def binned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """``log10(step + 1)`` and values, one point for each bin: means of the axis, medians of the values."""
    x = np.log10(steps + 1)
    starts = np.flatnonzero(np.diff(bins_of(steps), prepend=-1))
    groups = np.split(np.arange(len(x)), starts[1:]) if len(x) else []
    return np.array([x[g].mean() for g in groups]), np.array([np.median(values[g]) for g in groups])


def _cheapest(x: Floats, y: Floats, weights: Floats) -> tuple[float, Knots]:
    """Cost and knots of the fit that the information criterion prefers; points of weight 0 cost as parameters."""
    n, spikes, spread = len(x), float((weights == 0).sum()), float(np.ptp(y[weights > 0])) or 1.0
    costs = []
    for k, (squares, knots) in _fits(x, y, weights).items():
        parameters = 2 * k + 2 + 2 * spikes
        misfit = n * math.log(squares / n + _FLOOR * spread**2)
        costs.append((misfit + parameters * math.log(n) * _PENALTY, knots))
    return min(costs)


def _candidates(x: Floats, y: Floats, weights: Floats) -> list[int]:
    """Points far from the line between their neighbours: the four farthest that are far among all."""
    kept = np.flatnonzero(weights)
    left, middle, right = kept[:-2], kept[1:-1], kept[2:]
    share = (x[middle] - x[left]) / (x[right] - x[left])
    distance = np.abs(y[middle] - y[left] - share * (y[right] - y[left]))
    far = distance > max(_SPIKE * float(np.median(distance)), _SPIKE_FLOOR)
    order = np.argsort(-distance)
    return [int(middle[i]) for i in order[:4] if far[i]]


def _design(x: Floats, knots: Sequence[float]) -> Floats:
    hinges = np.maximum(x[:, None] - np.asarray(knots, np.float64), 0)
    return np.concatenate([np.ones((len(x), 1)), x[:, None], hinges], axis=1)


def _solve(x: Floats, y: Floats, weights: Floats, knots: Sequence[float]) -> tuple[Floats, Floats]:
    """Coefficients and residuals of the fit with these knots."""
    design = _design(x, knots)
    coefficients = np.linalg.lstsq(design * weights[:, None], y * weights, rcond=None)[0].astype(np.float64)
    return coefficients, y - design @ coefficients


def _fits(x: Floats, y: Floats, weights: Floats) -> dict[int, tuple[float, Knots]]:
    """By number of knots, the least squares found and the knots: added one by one, then removed one by one."""
    grid = np.unique(np.concatenate([x, (x[1:] + x[:-1]) / 2]))
    grid = grid[(grid >= x[1]) & (grid <= x[-2])]
    hinges = np.maximum(x[:, None] - grid, 0) * weights[:, None]
    best: dict[int, tuple[float, Knots]] = {}

    @cache
    def squares(knots: Knots) -> float:
        residuals = _solve(x, y, weights, knots)[1] * weights
        return float(residuals @ residuals)

    def note(knots: Knots) -> None:
        found = squares(knots), knots
        best[len(knots)] = min(found, best.get(len(knots), found))

    @cache
    def place(fixed: Knots) -> Knots:
        """The best place for one more knot."""
        free = (np.abs(grid[:, None] - np.array(fixed)) >= _SHORTEST).all(1)
        if not free.any():
            return fixed
        q = np.linalg.qr(_design(x, fixed) * weights[:, None])[0]
        gains = _gains(y * weights, q, hinges)
        return tuple(sorted([*fixed, float(grid[np.argmax(np.where(free, gains, -1.0))])]))

    def settle(knots: Knots) -> Knots:
        """Each knot moved to its best place, until none moves."""
        for _ in range(8):
            before = knots
            for i in range(len(knots)):
                moved = place(knots[:i] + knots[i + 1 :])
                knots = moved if len(moved) == len(knots) else knots
            if knots == before:
                break
        return knots

    knots: Knots = ()
    note(knots)
    for _ in range(_MOST_KNOTS):
        more = place(knots)
        if len(more) == len(knots):
            break
        knots = settle(more)
        note(knots)
    while len(knots) > 1:
        fewer = [knots[:i] + knots[i + 1 :] for i in range(len(knots))]
        knots = settle(min(fewer, key=squares))
        note(knots)
    return best


def _gains(y: Floats, q: Floats, hinges: Floats) -> Floats:
    """By how much one more column, each of ``hinges``, lowers the squares that the basis ``q`` leaves of ``y``."""
    rest = y - q @ (q.T @ y)
    shares = q.T @ hinges
    norms = (hinges * hinges).sum(0) - (shares * shares).sum(0)
    return np.where(norms > 1e-9, (rest @ hinges) ** 2 / np.maximum(norms, 1e-12), 0.0)
