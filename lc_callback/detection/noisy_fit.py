"""A piecewise linear fit that knows of autocorrelated noise: how large a change must be to be one, and where it is."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.hinges import SAME, HingeSearch, design
from lc_callback.detection.piecewise import binned

__all__ = ["Noise", "NoisyFit", "fit_in_noise"]

Floats = NDArray[np.float64]

_RHOS = (0.0, 0.3, 0.55, 0.7, 0.82)  # with which breakpoints are searched
_FINER = np.linspace(0.0, 0.95, 39)  # over which the errors are averaged, once the breakpoints are known
_PRIOR = np.exp(-0.5 * ((_FINER - 0.5) / 0.25) ** 2)  # of 178 real runs: from 0.24 to 0.90, half of them above 0.46
_FEWEST = 8  # points, below which nothing is said
_PENALTY = 1.5  # factor on the penalty of the Bayesian information criterion
_FLOOR = 1e-4  # of the range squared: residuals below are perfect
_FAR, _FAR_FLOOR = 7.0, 0.3  # typical distances from the median of five, and part of the range, of an outlier
_AROUND = 3  # points on either side that tell how much a curve wavers
_LOCAL = 8  # a part of so many of the points has a variance of its own


@dataclass(frozen=True)
class Noise:
    """Noise that is known, such as that of the mean of several runs.

    Attributes:
        sigmas: ``(N,)``, standard deviation at each step.
        rho: autocorrelation of neighbouring rows.
    """

    sigmas: Floats
    rho: float


@dataclass(frozen=True)
class NoisyFit:
    """A continuous piecewise linear function of ``log10(step + 1)``, and what is known of the noise on it.

    Attributes:
        nodes: ``(K,)``, where the pieces meet, the ends included.
        values: ``(K,)``, there.
        sigma: standard deviation of the noise.
        rho: autocorrelation of neighbouring points, the most likely one.
        covariances: ``(2, K, K)``, of the values: for noise that is the same everywhere, and for noise that grows or
            shrinks along the curve.
        x: ``(N,)``, the points.
        y: ``(N,)``, as they are.
        inlying: ``(N,)``, without outliers.
        scales: ``(N,)``, standard deviations of the points in parts of ``sigma``; ``None`` if they are alike.
    """

    nodes: Floats
    values: Floats
    sigma: float
    rho: float
    covariances: Floats
    x: Floats
    y: Floats
    inlying: Floats
    scales: Floats | None = None

    @property
    def slopes(self) -> Floats:
        """``(K - 1,)``, of the pieces, per decade."""
        return np.diff(self.values) / np.diff(self.nodes)

    def error(self, i: int, j: int) -> float:
        """Standard error of the difference of two values, the larger of both kinds of noise."""
        c = self.covariances
        return math.sqrt(max(float((c[:, i, i] + c[:, j, j] - 2 * c[:, i, j]).max()), 0.0))

    def wandering(self, nodes: Floats, values: Floats, i: int, j: int) -> float:
        """How far noise of any autocorrelation would lead from one node of a fit to another, as a standard deviation.

        The most that neighbouring points allow: a random walk, whose steps differ from one another as much as those of
        the curve's distances from the fit do.
        """
        start, end = (int(k) for k in np.searchsorted(self.x, [nodes[i], nodes[j]]))
        around = slice(max(0, start - _AROUND), end + _AROUND)
        curvature = np.diff(self.inlying[around] - np.interp(self.x[around], nodes, values), n=2)
        if not len(curvature):
            return math.inf
        return math.sqrt(float((curvature**2).mean()) / 2 * max(1, end - start))

    @cached_property
    def _search(self) -> HingeSearch:
        return HingeSearch.in_noise(self.x, self.inlying, [self.rho], self.scales)

    def region(self, nodes: Floats, at: int, cut: float) -> tuple[float, float]:
        """From where to where a breakpoint may lie: there the squares are at most ``cut`` variances above the least.

        Args:
            nodes: of a fit of the same curve, the ends included.
            at: which of them.
            cut: in variances of what is new at each point.
        """
        others = np.delete(nodes, at)[1:-1] if 0 < at < len(nodes) - 1 else nodes[1:-1]
        squares, grid = self._search.profile(others)[0], self._search.grid
        low, high = (nodes[max(at - 1, 0)], nodes[min(at + 1, len(nodes) - 1)])
        squares = np.where((grid >= low) & (grid <= high), squares, np.inf)
        if not np.isfinite(squares).any():
            return float(nodes[at]), float(nodes[at])
        limit = squares.min() + cut * self.sigma**2 * (1 - self.rho**2)
        inside = grid[squares <= limit]
        return float(min(inside[0], nodes[at])), float(max(inside[-1], nodes[at]))


def fit_in_noise(steps: Floats, values: Floats, noise: Noise | None = None) -> NoisyFit | None:
    """Fit a curve; breakpoints and the autocorrelation of its noise are chosen together by an information criterion.

    Args:
        steps: ``(N,)``, increasing.
        values: ``(N,)``, finite.
        noise: if it is known; else it is taken from the residuals.

    Returns:
        ``None`` for fewer than eight points (bins), or points that are all equal.

    Example::

        >>> import numpy as np
        >>> from lc_callback.detection.noisy_fit import fit_in_noise
        >>> steps = 10 ** np.arange(1, 3.05, 0.1) - 1
        >>> fit_in_noise(steps, np.abs(np.log10(steps + 1) - 2)).nodes.round(2).tolist()
        [1.0, 2.0, 3.0]
    """
    x, y = binned(steps, values)
    if len(x) < _FEWEST or y.max() == y.min():
        return None
    base, scale = float(y.min()), float(np.ptp(y))
    if noise is not None:
        return _fit_in_known_noise(x, y, binned(steps, noise.sigmas)[1], noise.rho)
    unit = _without_outliers((y - base) / scale)
    breakpoints = _cheapest(x, unit)
    nodes = np.array([x[0], *breakpoints, x[-1]])
    at = design(nodes, breakpoints)
    rho, sigma, covariances, coefficients = _noise(design(x, breakpoints), unit)
    spread = scale**2 * (at @ covariances @ at.T)
    return NoisyFit(nodes, base + scale * (at @ coefficients), scale * sigma, rho, spread, x, y, base + scale * unit)


def _fit_in_known_noise(x: Floats, y: Floats, sigmas: Floats, rho: float) -> NoisyFit:
    """Breakpoints by the information criterion for noise that is known; the mean of several runs has no outliers."""
    n, search = len(x), HingeSearch.in_noise(x, y, [rho], sigmas)
    best, breakpoints = np.inf, np.empty(0)
    for squares, places in search.fits():
        cost = squares[0] / (1 - rho**2) + _PENALTY * (2 * places.shape[1] + 2) * math.log(n)
        if cost < best - SAME:
            best, breakpoints = float(cost), search.grid[places[0]]
    nodes, columns = np.array([x[0], *breakpoints, x[-1]]), design(x, breakpoints)
    w, new = (_whitened(some, rho) for some in (columns / sigmas[:, None], y / sigmas))
    inverse = np.linalg.inv(w.T @ w)
    coefficients = inverse @ (w.T @ new)
    # Where the pieces fit worse than the noise would have it, they are the noise.
    misfit = float(((new - w @ coefficients) ** 2).sum()) / max(1, n - 2 * len(breakpoints) - 2)
    at, sigma = design(nodes, breakpoints), float(np.sqrt((sigmas**2).mean()))
    covariance = max(1 - rho**2, misfit) * (at @ inverse @ at.T)
    scales = sigmas / sigma
    return NoisyFit(nodes, at @ coefficients, sigma, rho, covariance[None], x, y, y, scales)


def _whitened(z: Floats, rho: float) -> Floats:
    """What is new at each row, if its noise has this autocorrelation with that of the row before."""
    new = z.copy()
    new[1:] -= rho * z[:-1]
    new[0] *= math.sqrt(1 - rho**2)
    return new


def _without_outliers(y: Floats) -> Floats:
    """Outliers of one point or two replaced by the median of five."""
    median = np.median(np.lib.stride_tricks.sliding_window_view(np.pad(y, 2, mode="reflect"), 5), axis=1)
    distance = np.abs(y - median)
    typical = 1.48 * float(np.median(distance))
    return np.where(distance > (1 + SAME) * max(_FAR * typical, _FAR_FLOOR * float(np.ptp(median))), median, y)


def _cheapest(x: Floats, y: Floats) -> Floats:
    """The breakpoints that the information criterion prefers."""
    n, rhos = len(x), np.array(_RHOS)
    search = HingeSearch.in_noise(x, y, _RHOS)
    floor = _FLOOR * (float(np.ptp(y)) ** 2 or 1.0) * (1 - rhos) ** 2  # all alike but for the outliers
    best, chosen = np.inf, np.empty(0)
    for squares, breakpoints in search.fits():
        parameters = 2 * breakpoints.shape[1] + 2
        costs = n * np.log(squares / n + floor) - np.log(1 - rhos**2) + _PENALTY * parameters * math.log(n)
        lane = int((costs <= costs.min() + SAME).argmax())
        if costs[lane] < best - SAME:
            best, chosen = float(costs[lane]), search.grid[breakpoints[lane]]
    return chosen


def _noise(design: Floats, y: Floats) -> tuple[float, float, Floats, Floats]:
    """Autocorrelation, standard deviation, two covariances of the coefficients, and the coefficients.

    The autocorrelation is the most likely one by restricted maximum likelihood. The first covariance is the mean over
    all autocorrelations, by how likely they are in real runs and for these points: of few points a high one is seldom
    ruled out. The second has the local variance of the residuals in place of that of all.
    """
    columns = np.concatenate([design, y[:, None]], axis=1)
    own, inner, shifted = columns.T @ columns, columns[1:-1].T @ columns[1:-1], columns[1:].T @ columns[:-1]
    r = _FINER[:, None, None]
    products = own + r**2 * inner - r * (shifted + shifted.T)
    gram, moments = products[:, :-1, :-1], products[:, :-1, -1]
    coefficients = np.linalg.solve(gram, moments[..., None])[..., 0]
    free = max(1, len(y) - 2 * design.shape[1] + 2)
    variances = np.maximum(products[:, -1, -1] - (moments * coefficients).sum(1), 1e-12) / free
    likelihoods = -0.5 * (free * np.log(variances) - np.log(1 - _FINER**2) + np.linalg.slogdet(gram)[1])
    best = int(likelihoods.argmax())
    rho, inverses = float(_FINER[best]), np.linalg.inv(gram)
    weights = _PRIOR * np.exp(likelihoods - likelihoods.max())
    alike = ((weights / weights.sum() * variances)[:, None, None] * inverses).sum(0)

    wide = 2 * max(3, len(y) // _LOCAL) + 1
    squares = _whitened(y - design @ coefficients[best], rho) ** 2
    ones = np.ones(wide)
    local = (
        np.convolve(squares, ones)[wide // 2 :][: len(y)] / np.convolve(np.ones_like(y), ones)[wide // 2 :][: len(y)]
    )
    w = _whitened(design, rho)
    changing = inverses[best] @ (w.T * local) @ w @ inverses[best]
    changing *= alike.trace() / (variances[best] * inverses[best].trace())
    return rho, math.sqrt(variances[best] / (1 - rho**2)), np.stack([alike, changing]), coefficients[best]
