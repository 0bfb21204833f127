"""How sure a turn of a curve is: whether a fit that knows of autocorrelated noise has it, and where it may lie."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.noisy_fit import Noise, NoisyFit, fit_in_noise
from lc_callback.detection.piecewise import Fit
from lc_callback.detection.transitions import FIRM, TENTATIVE, Turn

__all__ = ["Moved", "Read", "graded"]

Floats = NDArray[np.float64]

#: Whether two nodes of a fit differ by a significant change.
Moved = Callable[[int, int], bool]
#: Of the nodes and values of a fit: where each kind of transition is, as an index of the nodes.
Read = Callable[[Floats, Floats, Moved], Mapping[str, int]]

_EXTREMES = ("first_descent_end", "migration_start")  # which may be on a floor or on a top
_SURE = 4.3  # standard errors of a change
_NEAR = 0.2  # decades, within which both fits have a firm turn
_MANY, _FEWEST = 5, 3  # points on a peak or in a valley, beyond half of its height; fewer if all of them are
_SHARP = 0.8  # decades in which a firm turn lies, but for a floor or a top that it is on
_AFTER = 3  # points after a firm turn: fewer are no movement
_CUT = 9.0  # variances: a textbook has 3.8 for 95 %, and covers far less (docs/phases.md)
_LEAST = 0.1  # decades to each side: the distance of two rows, and the curves are no pieces
_CORNER = 4.0  # standard errors, by which a round top stays below the corner of the fit
_FLAT = 0.25  # of the slope on the other side: a piece that is a floor or a top


def graded(
    turns: Sequence[Turn],
    found: Fit,
    steps: Floats,
    values: Floats,
    read: Read,
    least: float,
    noise: Noise | None = None,
) -> list[Turn]:
    """The turns with their certainty and the interval that each may lie in.

    Args:
        turns: that ``found`` shows.
        found: the fit that they were read off.
        steps: ``(N,)``, increasing.
        values: ``(N,)``, finite.
        read: how turns are read off a fit.
        least: what a change must be, however little noise there is.
        noise: if it is known, as that of the mean of several runs.
    """
    if not turns:
        return []
    fit = fit_in_noise(steps, values, noise)
    if fit is None:
        return [replace(turn, certainty=TENTATIVE, low=turn.x, high=turn.x) for turn in turns]
    v, first = fit.values, found.values

    def stands_out(i: int, j: int) -> bool:
        return abs(v[i] - v[j]) >= max(least, _SURE * fit.error(i, j))

    def outruns(i: int, j: int) -> bool:
        return abs(first[i] - first[j]) >= max(least, _SURE * fit.wandering(found.nodes, first, min(i, j), max(i, j)))

    # Beside the noise that fits best, a curve may be so smooth that no noise would do.
    sure, smooth = read(fit.nodes, v, stands_out), read(found.nodes, first, outruns)
    assumed = f"noise of {fit.sigma:.2g}, autocorrelation {fit.rho:.2f}"
    ends = float(fit.x[0]), float(fit.x[-1])
    result = []
    for turn in turns:
        nodes, values, at, certainty = found.nodes, first, int(np.abs(found.nodes - turn.x).argmin()), TENTATIVE
        for others, heights, read_off in ((fit.nodes, v, sure), (found.nodes, first, smooth)):
            there = read_off.get(turn.kind)
            if there is not None and _is_at(turn, fit, others, heights, there):
                nodes, values, at, certainty = others, heights, there, FIRM
                break
        if turn.kind in _EXTREMES:
            low, high = _interval(fit, nodes, values, at)
            turn = replace(turn, x=_round(turn.x, fit, nodes, values, at))
        else:
            low, high = fit.region(nodes, at, _CUT)
        low, high = max(min(low, turn.x) - _LEAST, ends[0]), min(max(high, turn.x) + _LEAST, ends[1])
        result.append(replace(turn, certainty=certainty, low=low, high=high, noise=assumed))
    return result


def _round(x: float, fit: NoisyFit, nodes: Floats, values: Floats, at: int) -> float:
    """The highest row of a top, or the lowest of a valley, that is round, so that the curve cuts the corner of the fit.

    It cuts the corner if its mean over three rows is farther inside than four standard errors, by how far rows are from
    their neighbours. Next to a plateau the node says where that ends.
    """
    if not 0 < at < len(nodes) - 1:
        return x
    before, behind = (np.diff(values) / np.diff(nodes))[at - 1 : at + 1]
    if min(abs(before), abs(behind)) < _FLAT * max(abs(before), abs(behind)):
        return x
    sign = np.sign(before)
    smooth = np.convolve(np.pad(fit.y, 1, mode="edge"), np.full(3, 1 / 3), mode="valid")
    error = float(np.median(np.abs(np.diff(fit.y, 2)))) / (0.6745 * 6**0.5) / 3**0.5
    if sign * (values[at] - np.interp(x, fit.x, smooth)) <= _CORNER * error:
        return x
    low, high = fit.region(nodes, at, _CUT)
    low, high = max(min(low, x), nodes[at - 1]), min(max(high, x), nodes[at + 1])
    there = np.flatnonzero((fit.x >= low) & (fit.x <= high))
    return float(fit.x[there[(sign * fit.y[there]).argmax()]]) if len(there) else x


def _is_at(turn: Turn, fit: NoisyFit, nodes: Floats, values: Floats, at: int) -> bool:
    """Whether a fit has a turn sharply there, too, that goes on and that no burst of spikes has made."""
    if abs(float(nodes[at]) - turn.x) > _NEAR or (fit.x > max(nodes[at], turn.x)).sum() < _AFTER:
        return False
    low, high = fit.region(nodes, at, _CUT)
    return high - low <= _SHARP and _is_wide(fit, nodes, values, at)


def _interval(fit: NoisyFit, nodes: Floats, values: Floats, at: int) -> tuple[float, float]:
    """Where an extreme may lie; all of a floor or of a top, if it is on one."""
    low, high = fit.region(nodes, at, _CUT)
    slopes = np.abs(np.diff(values) / np.diff(nodes))
    if at > 1 and at < len(slopes) and slopes[at - 1] < _FLAT * slopes[at]:
        low = min(low, fit.region(nodes, at - 1, _CUT)[0])
    if 0 < at < len(slopes) - 1 and slopes[at] < _FLAT * slopes[at - 1]:
        high = max(high, fit.region(nodes, at + 1, _CUT)[1])
    return low, high


def _is_wide(fit: NoisyFit, nodes: Floats, values: Floats, at: int) -> bool:
    """Whether enough points lie on the peak or in the valley, if the node is one; a burst of spikes comes and goes."""
    if not 0 < at < len(nodes) - 1:
        return True
    sign = 1.0 if values[at] >= max(values[at - 1], values[at + 1]) else -1.0
    up = sign * values
    if up[at] < max(up[at - 1], up[at + 1]):
        return True
    half = up[at] - 0.5 * (up[at] - max(up[:at].min(), up[at + 1 :].min()))
    outside = np.flatnonzero(sign * np.interp(fit.x, nodes, values) < half)
    there = int(np.abs(fit.x - nodes[at]).argmin())
    left, right = outside[outside < there], outside[outside > there]
    own = sign * fit.y[left[-1] + 1 if len(left) else 0 : right[0] if len(right) else len(fit.x)]
    n = int((own >= half).sum())
    return n >= _MANY or (n >= _FEWEST and n == len(own))
