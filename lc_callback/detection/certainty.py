"""How sure a turn of a curve is: whether a fit that knows of autocorrelated noise has it, and where it may lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.noisy_fit import NoisyFit, fit_in_noise
from lc_callback.piecewise import Fit
from lc_callback.transitions import Turn

__all__ = ["FIRM", "TENTATIVE", "Moved", "Read", "graded"]

Floats = NDArray[np.float64]

FIRM, TENTATIVE = "firm", "tentative"

#: Whether two nodes of a fit differ by a significant change.
Moved = Callable[[int, int], bool]
#: Of the nodes and values of a fit: where each kind of transition is, as an index of the nodes.
Read = Callable[[Floats, Floats, Moved], Mapping[str, int]]

_SURE = 4.5  # standard errors of a change
_NEAR = 0.2  # decades, within which both fits have a firm turn
_FEWEST = 5  # points on a peak or in a valley, beyond half of its height
_CUT = 9.0  # variances: a textbook has 3.8 for 95 %, and covers far less (docs/phases.md)
_LEAST = 0.1  # decades to each side: the distance of two rows, and the curves are no pieces
_FLAT = 0.25  # of the steeper slope beside it: a piece that is a part of a floor or of a top


def graded(turns: Sequence[Turn], found: Fit, steps: Floats, values: Floats, read: Read, least: float) -> list[Turn]:
    """The turns with their certainty and the interval that each may lie in.

    Args:
        turns: that ``found`` shows.
        found: the fit that they were read off.
        steps: ``(N,)``, increasing.
        values: ``(N,)``, finite.
        read: how turns are read off a fit.
        least: what a change must be, however little noise there is.
    """
    if not turns:
        return []
    fit = fit_in_noise(steps, values)
    if fit is None:
        return [replace(turn, certainty=TENTATIVE) for turn in turns]
    v = fit.values

    def moved(i: int, j: int) -> bool:
        return abs(v[i] - v[j]) >= max(least, _SURE * fit.error(i, j))

    sure = read(fit.nodes, v, moved)
    noise = f"noise of {fit.sigma:.2g}, autocorrelation {fit.rho:.2f}"
    result = []
    for turn in turns:
        at = sure.get(turn.kind)
        is_firm = at is not None and abs(fit.nodes[at] - turn.x) <= _NEAR and _is_wide(fit, at)
        if is_firm and at is not None:
            low, high = _interval(fit, fit.nodes, v, at)
        else:
            low, high = _interval(fit, found.nodes, found.values, int(np.abs(found.nodes - turn.x).argmin()))
        low, high = min(low, turn.x) - _LEAST, max(high, turn.x) + _LEAST
        certainty = FIRM if is_firm else TENTATIVE
        result.append(replace(turn, certainty=certainty, low=max(low, float(fit.x[0])), high=min(high, float(fit.x[-1])), noise=noise))
    return result


def _interval(fit: NoisyFit, nodes: Floats, values: Floats, at: int) -> tuple[float, float]:
    """Where a node may lie; all of a floor or of a top, if it is on one."""
    low, high = fit.region(nodes, at, _CUT)
    if not 0 < at < len(nodes) - 1:
        return low, high
    slopes = np.diff(values) / np.diff(nodes)
    before, after = slopes[at - 1], slopes[at]
    if before * after < 0 or min(abs(before), abs(after)) < _FLAT * max(abs(before), abs(after)):
        if abs(before) < _FLAT * abs(after) and at > 1:
            low = min(low, fit.region(nodes, at - 1, _CUT)[0])
        if abs(after) < _FLAT * abs(before) and at < len(nodes) - 2:
            high = max(high, fit.region(nodes, at + 1, _CUT)[1])
    return low, high


def _is_wide(fit: NoisyFit, at: int) -> bool:
    """Whether enough points lie on the peak or in the valley, if the node is one; a burst of spikes has few."""
    v = fit.values
    sign = 1.0 if v[at] >= max(v[max(0, at - 1)], v[min(len(v) - 1, at + 1)]) else -1.0
    up = sign * v
    if up[at] < max(up[max(0, at - 1)], up[min(len(v) - 1, at + 1)]) or not 0 < at < len(v) - 1:
        return True
    half = up[at] - 0.5 * (up[at] - max(up[:at].min(), up[at + 1 :].min()))
    beyond = sign * np.interp(fit.x, fit.nodes, v) >= half
    there = int(np.abs(fit.x - fit.nodes[at]).argmin())
    outside = np.flatnonzero(~beyond)
    left, right = outside[outside < there], outside[outside > there]
    own = slice(left[-1] + 1 if len(left) else 0, right[0] if len(right) else len(fit.x))
    return int((sign * fit.y[own] >= half).sum()) >= _FEWEST
