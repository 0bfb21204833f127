"""Phases of a curve: where local complexity stops falling, starts to fall for good, and flattens out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["PhaseDetector", "PhaseEvent", "Transition", "detect_phases"]

Floats = NDArray[np.float64]

_BINS = 20  # a decade of steps is seen in so many points at most
_FEWEST = 8  # points, below which nothing is said
_MOST_KNOTS = 5
_SHORTEST = 0.15  # decades between two knots
_PENALTY = 2.0  # factor on the penalty of the Bayesian information criterion
_FLOOR = 1e-4  # of the range squared: residuals below are perfect
_SPIKE = 4.0  # medians of the distance from the neighbours that make a point a candidate for a spike,
_SPIKE_FLOOR = 0.1  # and at least this part of the range
_SAME = 0.1  # decades within which a transition is the same as before
_LONG_ENOUGH = 0.2  # decades that a curve must stay flat


@dataclass(frozen=True)
class Transition:
    """A moment at which a curve changes its phase.

    Attributes:
        kind: ``"first_descent_end"``, ``"migration_start"`` or ``"migration_end"``.
        step: where it happened.
        detected_at: the step of the row from which on it was known.
        value: of the fitted curve there.
        prominence: how far the curve moved there: the fall before, or the fall after.
        reason: the numbers, in one line.
    """

    kind: str
    step: int
    detected_at: int
    value: float
    prominence: float
    reason: str


def detect_phases(
    steps: Sequence[int],
    values: Sequence[float],
    *,
    min_prominence: float = 0.15,
    noise_factor: float = 3.0,
    flatness: float = 0.25,
) -> list[Transition]:
    """Find the transitions of a curve, such as ``lc/train``, on a logarithmic axis of steps.

    The papers describe the phases (*Deep Networks Always Grok and Here is Why*, ICML 2024, section 3.1) and give no
    criterion. Here the curve is fitted by a continuous piecewise linear function of ``log10(step + 1)``, with as many
    pieces as the Bayesian information criterion pays for and without lone spikes, and the transitions are read off the
    fit, in order:

    - ``first_descent_end``: the first minimum that a significant fall leads to and a significant rise leaves. A run
      may have none, as with large initialisation.
    - ``migration_start``: the highest maximum after it (else of all), if a significant rise leads to it and the curve
      ends significantly below it.
    - ``migration_end``: where, after that and at least as far below, no piece falls at more than ``flatness`` times the
      steepest slope of the migration, for at least 0.2 decades up to the end.

    Args:
        steps: increasing, from 0.
        values: one for each step; those that are not finite are left out.
        min_prominence: a change is significant from this part of the curve's range,
        noise_factor: and from this many standard deviations of the residuals.
        flatness: see ``migration_end``, from 0 to 1.

    Raises:
        ValueError: if the lengths differ, steps do not increase, or an argument is out of range.

    Example::

        >>> from lc_callback.phases import detect_phases
        >>> steps = [round(10 ** (k / 10)) for k in range(10, 51)]
        >>> falls_rises_falls = [abs(k - 20) if k < 35 else 15 - 1.5 * (k - 35) for k in range(10, 51)]
        >>> [(found.kind, found.step) for found in detect_phases(steps, falls_rises_falls)]
        [('first_descent_end', 100), ('migration_start', 3162)]
    """
    settings = _checked(min_prominence, noise_factor, flatness)
    at, curve = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if at.shape != curve.shape or at.ndim != 1:
        raise ValueError(f"`steps` and `values` must have the same length, but have {at.shape} and {curve.shape}.")
    if len(at) and (at[0] < 0 or (np.diff(at) <= 0).any()):
        raise ValueError("`steps` must increase, from 0 or more.")
    finite = np.isfinite(curve)
    at, curve = at[finite], curve[finite]
    found = _transitions(at, curve, settings)
    return _dated(found, at, lambda row: _transitions(at[: row + 1], curve[: row + 1], settings))


@dataclass(frozen=True)
class PhaseEvent:
    """What a new row changed in the transitions that are known.

    Attributes:
        what: ``"found"``, ``"withdrawn"``, or ``"moved"``: by more than a tenth of a decade.
        at: step of the row.
        transition: the one that was found or moved, as it is now; or the one that was withdrawn, as it was.
    """

    what: str
    at: int
    transition: Transition


class PhaseDetector:
    """The same, row by row while a run goes on.

    After each row :attr:`transitions` is what :func:`detect_phases` gives for all rows so far. A transition that later
    rows do not bear out is withdrawn, and that is an event like its discovery.

    Args:
        settings: as the keyword arguments of :func:`detect_phases`.

    Example::

        >>> from lc_callback.phases import PhaseDetector
        >>> detector = PhaseDetector()
        >>> events = []
        >>> for k in range(10, 36):
        ...     events += detector.update(round(10 ** (k / 10)), abs(k - 20))
        >>> [(event.what, event.transition.kind, event.transition.step) for event in events]
        [('found', 'first_descent_end', 100)]
    """

    def __init__(self, **settings: float) -> None:
        defaults = {"min_prominence": 0.15, "noise_factor": 3.0, "flatness": 0.25}
        unknown = sorted({*settings} - {*defaults})
        if unknown:
            raise ValueError(f"unknown settings {unknown}; possible are {sorted(defaults)}.")
        self._settings = _checked(**{**defaults, **settings})
        self._steps: list[float] = []
        self._values: list[float] = []
        self._found: list[list[_Turn]] = []
        #: The transitions that are known.
        self.transitions: list[Transition] = []

    def update(self, step: int, value: float) -> list[PhaseEvent]:
        """Add a row. Returns what it changed.

        Raises:
            ValueError: if the steps do not increase.
        """
        if step < 0 or (self._steps and step <= self._steps[-1]):
            raise ValueError(f"steps must increase, from 0 or more, but {step} came after {self._steps[-1:]}.")
        if not math.isfinite(value):
            return []
        self._steps.append(float(step))
        self._values.append(float(value))
        at = np.array(self._steps)
        self._found.append(_transitions(at, np.array(self._values), self._settings))
        before = {known.kind: known for known in self.transitions}
        self.transitions = _dated(self._found[-1], at, self._found.__getitem__)
        now = {known.kind: known for known in self.transitions}
        events = [PhaseEvent("withdrawn", int(step), old) for kind, old in before.items() if kind not in now]
        for kind, new in now.items():
            if kind not in before:
                events.append(PhaseEvent("found", int(step), new))
            elif abs(math.log10((new.step + 1) / (before[kind].step + 1))) > _SAME:
                events.append(PhaseEvent("moved", int(step), new))
        return events

    def state(self) -> dict[str, list[float]]:
        """Plain Python, for a checkpoint."""
        return {"steps": list(self._steps), "values": list(self._values)}

    def restore(self, state: dict[str, list[float]]) -> None:
        """Take back :meth:`state`: all rows are looked at anew, and nothing of that is an event."""
        self._steps, self._values, self._found, self.transitions = [], [], [], []
        for step, value in zip(state["steps"], state["values"], strict=True):
            self.update(int(step), value)


def _checked(min_prominence: float, noise_factor: float, flatness: float) -> tuple[float, float, float]:
    for name, value in (("min_prominence", min_prominence), ("flatness", flatness)):
        if not 0 < value < 1:
            raise ValueError(f"`{name}` must be above 0 and below 1, but got {value!r}.")
    if not noise_factor > 0:
        raise ValueError(f"`noise_factor` must be positive, but got {noise_factor!r}.")
    return min_prominence, noise_factor, flatness


def _dated(found: list[_Turn], steps: Floats, found_at: Callable[[int], list[_Turn]]) -> list[Transition]:
    """The transitions of the last row, each with the row from which on it was there without a break."""
    known = {turn.kind: len(steps) - 1 for turn in found}
    waiting = {turn.kind: turn for turn in found}
    for row in range(len(steps) - 2, _FEWEST - 2, -1):
        before = {turn.kind: turn for turn in found_at(row)} if waiting else {}
        waiting = {
            kind: turn for kind, turn in waiting.items() if kind in before and abs(before[kind].x - turn.x) <= _SAME
        }
        if not waiting:
            break
        known.update(dict.fromkeys(waiting, row))
    return [
        Transition(t.kind, round(10**t.x - 1), int(steps[known[t.kind]]), t.value, t.prominence, t.reason)
        for t in found
    ]


@dataclass(frozen=True)
class _Turn:
    kind: str
    x: float
    value: float
    prominence: float
    reason: str


def _transitions(steps: Floats, values: Floats, settings: tuple[float, float, float]) -> list[_Turn]:
    min_prominence, noise_factor, flatness = settings
    x, y = _binned(steps, values)
    if len(x) < _FEWEST or y.max() == y.min():
        return []
    nodes, v, sigma = _fitted(x, y)
    tolerance = max(min_prominence * float(np.ptp(v)), noise_factor * sigma)
    if np.ptp(v) < tolerance:
        return []
    limit = f"significant is {tolerance:.3g}"
    turns = []
    first = _first_minimum(v, tolerance)
    if first is not None:
        fall = float(v[:first].max() - v[first])
        reason = f"fell by {fall:.3g} to {v[first]:.3g}, then rose; {limit}"
        turns.append(_Turn("first_descent_end", float(nodes[first]), float(v[first]), fall, reason))
    start = first or 0
    top = start + int(np.argmax(v[start:]))
    rise, fall = float(v[top] - v[start : top + 1].min()), float(v[top] - v[top:].min())
    if v[top] - v[-1] < tolerance or rise < tolerance:
        return turns
    reason = f"rose by {rise:.3g} to {v[top]:.3g}, then fell by {fall:.3g} and stayed below; {limit}"
    turns.append(_Turn("migration_start", float(nodes[top]), float(v[top]), fall, reason))
    slopes = np.diff(v) / np.diff(nodes)
    steepest = float(slopes[top:].min())
    for i in range(top + 1, len(nodes) - 1):
        flat = bool((slopes[i:] > flatness * steepest).all()) and nodes[-1] - nodes[i] >= _LONG_ENOUGH
        if flat and v[top] - v[i] >= tolerance:
            reason = f"fell by {v[top] - v[i]:.3g} to {v[i]:.3g}, then no faster than {flatness:g} of its steepest"
            turns.append(_Turn("migration_end", float(nodes[i]), float(v[i]), float(v[top] - v[i]), reason))
            break
    return turns


def _first_minimum(v: Floats, tolerance: float) -> int | None:
    """The first minimum that a significant fall leads to, before any significant rise."""
    low = 0
    for i in range(1, len(v)):
        low = i if v[i] < v[low] else low
        if v[i] - v[low] >= tolerance:
            return low if low and v[:low].max() - v[low] >= tolerance else None
    return None


def _binned(steps: Floats, values: Floats) -> tuple[Floats, Floats]:
    """``log10(step + 1)`` and values, at most ``_BINS`` to the decade: means of the axis, medians of the values."""
    x = np.log10(steps + 1)
    bins = np.floor(x * _BINS + 1e-9)
    starts = np.flatnonzero(np.diff(bins, prepend=-1))
    groups = np.split(np.arange(len(x)), starts[1:]) if len(x) else []
    return np.array([x[g].mean() for g in groups]), np.array([np.median(values[g]) for g in groups])


# Piecewise linear fit


def _fitted(x: Floats, y: Floats) -> tuple[Floats, Floats, float]:
    """Nodes of the piecewise linear fit, its values there, and the standard deviation of the residuals.

    A spike is a point that costs less as a parameter of its own than as a part of the curve.
    """
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
    return nodes, base + scale * (_design(nodes, knots) @ coefficients), scale * sigma


def _cheapest(x: Floats, y: Floats, weights: Floats) -> tuple[float, list[float]]:
    """Cost and knots of the fit that the information criterion prefers; points of weight 0 cost as parameters."""
    n, spikes, spread = len(x), float((weights == 0).sum()), float(np.ptp(y[weights > 0])) or 1.0
    costs = []
    for k, (squares, knots) in _fits(x, y, weights).items():
        parameters = 2 * k + 2 + 2 * spikes
        fit = n * math.log(squares / n + _FLOOR * spread**2)
        costs.append((fit + parameters * math.log(n) * _PENALTY, knots))
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


def _design(x: Floats, knots: list[float]) -> Floats:
    return np.column_stack([np.ones_like(x), x, *(np.maximum(x - knot, 0) for knot in knots)])


def _solve(x: Floats, y: Floats, weights: Floats, knots: list[float]) -> tuple[Floats, Floats]:
    """Coefficients and residuals of the fit with these knots."""
    design = _design(x, knots)
    coefficients = np.linalg.lstsq(design * weights[:, None], y * weights, rcond=None)[0].astype(np.float64)
    return coefficients, y - design @ coefficients


def _fits(x: Floats, y: Floats, weights: Floats) -> dict[int, tuple[float, list[float]]]:
    """By number of knots, the least squares found and the knots: added one by one, then removed one by one."""
    grid = np.unique(np.concatenate([x, (x[1:] + x[:-1]) / 2]))
    grid = grid[(grid >= x[1]) & (grid <= x[-2])]
    best: dict[int, tuple[float, list[float]]] = {}

    def squares(knots: list[float]) -> float:
        residuals = _solve(x, y, weights, knots)[1] * weights
        return float(residuals @ residuals)

    def note(knots: list[float]) -> None:
        found = squares(knots), knots
        best[len(knots)] = min(found, best.get(len(knots), found))

    def place(fixed: list[float]) -> list[float]:
        """The best place for one more knot."""
        free = grid[np.all([np.abs(grid - knot) >= _SHORTEST for knot in fixed], axis=0)] if fixed else grid
        if not len(free):
            return fixed
        return sorted([*fixed, float(free[np.argmax(_gains(x, y, weights, fixed, free))])])

    def settle(knots: list[float]) -> list[float]:
        """Each knot moved to its best place, until none moves."""
        for _ in range(8):
            before = knots
            for i in range(len(knots)):
                moved = place(knots[:i] + knots[i + 1 :])
                knots = moved if len(moved) == len(knots) else knots
            if knots == before:
                break
        return knots

    knots: list[float] = []
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


def _gains(x: Floats, y: Floats, weights: Floats, fixed: list[float], candidates: Floats) -> Floats:
    """By how much one more knot at each candidate lowers the sum of squares."""
    q = np.linalg.qr(_design(x, fixed) * weights[:, None])[0]
    rest = y * weights
    rest = rest - q @ (q.T @ rest)
    hinges = np.maximum(x[:, None] - candidates, 0) * weights[:, None]
    hinges = hinges - q @ (q.T @ hinges)
    norms = np.einsum("ij,ij->j", hinges, hinges)
    return np.where(norms > 1e-9, (hinges.T @ rest) ** 2 / np.maximum(norms, 1e-12), 0.0)
