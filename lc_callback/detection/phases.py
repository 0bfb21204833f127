"""Phases of local complexity: where it stops falling, begins to rise, starts to fall for good, and flattens out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.certainty import Moved, graded
from lc_callback.detection.noisy_fit import Noise
from lc_callback.detection.piecewise import Fit, fit
from lc_callback.detection.transitions import Detector, PhaseEvent, Transition, Turn, only_supported
from lc_callback.suggestions import did_you_mean

__all__ = [
    "PHASE_KINDS",
    "PHASE_SETTINGS",
    "PhaseDetector",
    "changes",
    "check_phase_settings",
    "detect_phases",
    "find_phases",
    "first_steep",
    "movements",
    "phase_of",
    "significant",
]

Floats = NDArray[np.float64]

PHASE_KINDS = ("first_descent_end", "ascent_start", "migration_start", "migration_end")

#: The keyword arguments of :func:`detect_phases`.
PHASE_SETTINGS = {"min_prominence": 0.15, "noise_factor": 3.0, "min_change": 0.05, "flatness": 0.25}

_LONG_ENOUGH = 0.2  # decades that a curve must stay flat
_LEVEL = 0.01  # of the fall from the highest maximum: what is no lower is its plateau


def detect_phases(
    steps: Sequence[int],
    values: Sequence[float],
    *,
    min_prominence: float = 0.15,
    noise_factor: float = 3.0,
    min_change: float = 0.05,
    flatness: float = 0.25,
) -> list[Transition]:
    """Find the transitions of a curve, such as ``lc/train``, on a logarithmic axis of steps.

    The papers describe the phases (*Deep Networks Always Grok and Here is Why*, ICML 2024, section 3.1) and give no
    criterion. Here the curve is fitted by a continuous piecewise linear function of ``log10(step + 1)``, with as many
    pieces as the Bayesian information criterion pays for and without lone spikes, and the transitions are read off the
    fit, in order:

    - ``first_descent_end``: the first minimum that a significant fall leads to and a significant rise leaves. A run
      may have none, as with large initialisation.
    - ``ascent_start``: where the piece begins that makes the first rise significant, or an earlier one that is steeper
      than ``flatness`` times the steepest of this rise, if that is a moment of its own: there was no first descent, or
      before it rises the curve moves for at least 0.2 decades no faster than ``flatness`` times that.
    - ``migration_start``: the highest maximum after it (else of all), if a significant rise leads to it and the curve
      ends significantly below it.
    - ``migration_end``: where, after that and at least as far below, no piece falls at more than ``flatness`` times the
      steepest slope of the migration, for at least 0.2 decades up to the end, and the curve does not fall significantly
      any more.

    The first minimum and the highest maximum are dated by the rows where these are round and the pieces miss them.

    None of them is at a step before which the curve has fewer than four rows. Each says whether it is *firm*: whether
    a second fit, which knows of autocorrelated and heavy-tailed noise, has it as well; between which steps it lies
    (``interval``); and whether it is *provisional*, because fewer than three looks in succession showed it firm.

    Args:
        steps: increasing, from 0. More than twenty in a decade are seen as twenty.
        values: one for each step; those that are not finite are left out.
        min_prominence: a change is significant from this part of the curve's range,
        noise_factor: and from this many standard deviations of the residuals,
        min_change: and from this part of the fit's largest absolute value: without it, the small wiggles of a curve
            that has hardly moved yet would be phases. 0 for curves without a natural zero.
        flatness: see ``ascent_start`` and ``migration_end``, from 0 to 1.

    Returns:
        In the order of their steps.

    Raises:
        ValueError: if the lengths differ, steps do not increase, or an argument is out of range.

    Example::

        >>> from lc_callback.detection.phases import detect_phases
        >>> steps = [round(10 ** (k / 10)) for k in range(10, 51)]
        >>> falls_rises_falls = [abs(k - 20) if k < 35 else 15 - 1.5 * (k - 35) for k in range(10, 51)]
        >>> [(found.kind, found.step) for found in detect_phases(steps, falls_rises_falls)]
        [('first_descent_end', 100), ('migration_start', 3162)]
    """
    at, curve = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    if at.shape != curve.shape or at.ndim != 1:
        raise ValueError(f"`steps` and `values` must have the same length, but have {at.shape} and {curve.shape}.")
    if len(at) and (at[0] < 0 or (np.diff(at) <= 0).any()):
        raise ValueError("`steps` must increase, from 0 or more.")
    detector = PhaseDetector(
        min_prominence=min_prominence, noise_factor=noise_factor, min_change=min_change, flatness=flatness
    )
    for step, value in zip(at, curve, strict=True):
        detector.update(int(step), float(value))
    detector.finish()
    return detector.transitions


class PhaseDetector:
    """The same, row by row while a run goes on.

    A transition that later rows do not confirm is withdrawn, and that is an event like its discovery. The curve is
    looked at twenty times in a decade of steps at most, and when :meth:`finish` is called: then :attr:`transitions` is
    what :func:`detect_phases` gives for all rows so far.

    Args:
        settings: as the keyword arguments of :func:`detect_phases`.

    Example::

        >>> from lc_callback.detection.phases import PhaseDetector
        >>> detector = PhaseDetector()
        >>> events = []
        >>> for k in range(10, 36):
        ...     events += detector.update(round(10 ** (k / 10)), abs(k - 20))
        >>> [(event.what, event.transition.kind, event.transition.step) for event in events]
        [('found', 'first_descent_end', 100), ('confirmed', 'first_descent_end', 100)]
    """

    def __init__(self, **settings: float) -> None:
        checked = check_phase_settings({**PHASE_SETTINGS, **settings})
        self._rows: list[tuple[int, float]] = []
        self._detector = Detector(only_supported(lambda curves: find_phases(*curves[""], checked) if curves else []))

    @property
    def transitions(self) -> list[Transition]:
        """The transitions that are known."""
        return self._detector.transitions

    def update(self, step: int, value: float) -> list[PhaseEvent]:
        """Add a row. Returns what it changed.

        Raises:
            ValueError: if the steps do not increase.
        """
        events = self._detector.update(step, {"": value})
        self._rows.append((int(step), float(value)))
        return events

    def finish(self) -> list[PhaseEvent]:
        """Look at the last row, if that was not looked at yet. Returns what that changed."""
        return self._detector.finish()

    def state(self) -> dict[str, Any]:
        """Plain Python, for a checkpoint."""
        return {"rows": list(self._rows), **self._detector.state()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state`."""
        self._rows = [(int(step), float(value)) for step, value in state["rows"]]
        self._detector.restore(state, [(step, {"": value}) for step, value in self._rows])


def check_phase_settings(settings: Mapping[str, float]) -> dict[str, float]:
    """The settings of :func:`detect_phases`, if they are in range.

    Raises:
        ValueError: if one is not, or is unknown.
    """
    unknown = sorted({*settings} - {*PHASE_SETTINGS})
    if unknown:
        near = did_you_mean(unknown[0], PHASE_SETTINGS)
        raise ValueError(f"unknown settings {unknown}; possible are {sorted(PHASE_SETTINGS)}{near}")
    for name in ("min_prominence", "flatness"):
        if not 0 < settings[name] < 1:
            raise ValueError(f"`{name}` must be above 0 and below 1, but got {settings[name]!r}.")
    if not 0 <= settings["min_change"] < 1:
        raise ValueError(f"`min_change` must be from 0 to below 1, but got {settings['min_change']!r}.")
    if not settings["noise_factor"] > 0:
        raise ValueError(f"`noise_factor` must be positive, but got {settings['noise_factor']!r}.")
    return dict(settings)


def find_phases(
    steps: Floats, values: Floats, settings: Mapping[str, float], curve: str = "", noise: Noise | None = None
) -> list[Turn]:
    """The turns of :func:`detect_phases` that all values so far show; ``noise`` if it is known."""
    found = fit(steps, values)
    if found is None:
        return []
    nodes, v = found.nodes, found.values
    tolerance = significant(found, settings)
    limit = f"on the fitted curve; significant is {tolerance:.3g}"
    read = partial(_read, flatness=settings["flatness"])
    turns = []
    for kind, at in read(nodes, v, lambda i, j: abs(v[i] - v[j]) >= tolerance).items():
        if kind == "first_descent_end":
            prominence = v[:at].max() - v[at]
            reason = f"fell by {prominence:.3g} to {v[at]:.3g}, then rose, {limit}"
        elif kind == "ascent_start":
            prominence = v[at:].max() - v[at]
            reason = f"rises by {prominence:.3g}, from {v[at]:.3g} to {v[at:].max():.3g}, {limit}"
        elif kind == "migration_start":
            top, prominence = at, v[at] - v[at:].min()
            rise = v[at] - v[:at].min()
            reason = f"rose by {rise:.3g} to {v[at]:.3g}, then fell by {prominence:.3g} and stayed below, {limit}"
        else:
            prominence = v[top] - v[at]
            slowly = f"{settings['flatness']:g} of its steepest, on the fitted curve"
            reason = f"fell by {prominence:.3g} to {v[at]:.3g}, then no faster than {slowly}"
        turns.append(Turn(kind, float(nodes[at]), float(v[at]), float(prominence), reason, curve))
    return graded(turns, found, steps, values, read, least_change(found, settings), noise)


def _read(nodes: Floats, v: Floats, moved: Moved, flatness: float) -> dict[str, int]:
    """The node at which each kind of transition is, in their order."""
    found: dict[str, int] = {}
    slopes = np.diff(v) / np.diff(nodes)
    first = _first_minimum(v, moved)
    if first is not None:
        found["first_descent_end"] = first
    ascent = _ascent(nodes, v, moved, flatness, first)
    if ascent is not None:
        found["ascent_start"] = ascent
    start = first or 0
    top = start + int(np.argmax(v[start:]))
    level = v[top] - _LEVEL * (v[top] - v[top:].min())
    while top + 1 < len(v) and v[top + 1] >= level:  # it is left for good where the plateau ends
        top += 1
    before = start + int(np.argmin(v[start : top + 1]))
    if v[-1] >= v[top] or v[before] >= v[top] or not (moved(top, len(v) - 1) and moved(before, top)):
        return found
    found["migration_start"] = top
    steepest = slopes[top:].min()
    for i in range(top + 1, len(nodes) - 1):
        flat = (slopes[i:] > flatness * steepest).all() and nodes[-1] - nodes[i] >= _LONG_ENOUGH
        lowest = i + int(np.argmin(v[i:]))
        goes_on = v[lowest] < v[i] and moved(i, lowest)
        if flat and v[i] < v[top] and moved(top, i) and not goes_on:
            found["migration_end"] = i
            break
    return found


def significant(found: Fit, settings: Mapping[str, float]) -> float:
    """What a change of the curve must reach. Lone spikes, which the fit leaves out, have no say in it."""
    return max(least_change(found, settings), settings["noise_factor"] * found.sigma)


def least_change(found: Fit, settings: Mapping[str, float]) -> float:
    """What a change of the curve must reach, however little noise there is."""
    return max(
        settings["min_prominence"] * float(np.ptp(found.values)),
        settings["min_change"] * float(np.abs(found.values).max()),
    )


def _first_minimum(v: Floats, moved: Moved) -> int | None:
    """The first minimum that a significant fall leads to, before any significant rise."""
    low = 0
    for i in range(1, len(v)):
        low = i if v[i] < v[low] else low
        if v[i] > v[low] and moved(low, i):
            return low if low and moved(int(np.argmax(v[:low])), low) else None
    return None


def _ascent(nodes: Floats, v: Floats, moved: Moved, flatness: float, first: int | None) -> int | None:
    """The node where the first significant rise begins, if that is an event beside ``first``, its minimum."""
    start, top = next(((i, j) for i, j in changes(v, moved) if v[j] > v[i]), (0, 0))
    if start == top:
        return None
    slopes = np.diff(v) / np.diff(nodes)
    steep = start + first_steep(slopes[start:top], flatness)
    # Or where the piece begins that makes a significant part of the rise, though slowly.
    part = flatness * (v[top] - v[start])
    begin = next((i for i in range(start, steep) if v[i + 1] - v[start] >= part and moved(start, i + 1)), steep)
    if not moved(begin, top):
        return None
    if first is None:
        return begin
    floor, slow = begin, flatness * slopes[begin:top].max()  # where the curve moves little, compared to the rise
    while floor and abs(slopes[floor - 1]) <= slow:
        floor -= 1
    return begin if nodes[begin] - nodes[floor] >= _LONG_ENOUGH else None


def movements(v: Floats, tolerance: float) -> list[tuple[int, int]]:
    """Alternating rises and falls of at least ``tolerance``, from one extreme to the next."""
    return changes(v, lambda i, j: abs(v[i] - v[j]) >= tolerance)


def changes(v: Floats, moved: Moved) -> list[tuple[int, int]]:
    """Alternating rises and falls that are significant, from one extreme to the next."""
    low = high = direction = 0
    turning: list[int] = []
    for i in range(1, len(v)):
        low, high = (i if v[i] < v[low] else low), (i if v[i] > v[high] else high)
        if direction >= 0 and high < i and moved(high, i):
            turning, direction, low = [*turning, high], -1, i
        elif direction <= 0 and low < i and moved(low, i):
            turning, direction, high = [*turning, low], 1, i
    turning.append(high if direction > 0 else low)
    return list(pairwise(turning))


def first_steep(slopes: Floats, flatness: float) -> int:
    """The first piece of a movement that is steeper than ``flatness`` times its steepest."""
    steepest = slopes[np.argmax(np.abs(slopes))]
    return int(np.argmax(slopes / steepest > flatness))


def phase_of(steps: Floats, values: Floats, settings: Mapping[str, float], known: Sequence[Transition]) -> int:
    """0 first descent, 1 ascent, 2 region migration.

    Without a first descent the ascent begins where the curve has risen significantly.
    """
    kinds = {transition.kind for transition in known}
    if "migration_start" in kinds:
        return 2
    if kinds & {"first_descent_end", "ascent_start"}:
        return 1
    found = fit(steps, values)
    if found is None:
        return 0
    v, tolerance = found.values, significant(found, settings)
    if _first_minimum(v, lambda i, j: abs(v[i] - v[j]) >= tolerance) is not None:  # seen, and not known yet
        return 0
    return int(v[-1] - v.min() >= tolerance)
