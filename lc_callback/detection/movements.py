"""How a curve runs, in words: what rose, what fell, from what to what, or between which values it stayed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.outliers import lone_rows
from lc_callback.detection.phases import PHASE_SETTINGS, first_steep, movements, significant
from lc_callback.detection.piecewise import Fit, fit

__all__ = ["FEWEST", "Course", "Leg", "course_of", "number"]

Floats = NDArray[np.float64]

FEWEST = 8  # rows, below which a curve has no course
_MOST_LEGS = 4  # that a sentence lists
_FLAT = 0.25  # of its greatest absolute value: a curve without a movement that wavers by more is not called flat
_SHOWN = 1 / 3  # of a movement of the fit, that the values which a sentence gives have to show
_ROUNDING = 1e-9  # of the range: a fitted value below it is 0
_FOLDS = 2.0, 100.0  # factors between which a rise is given as a multiple


@dataclass(frozen=True)
class Leg:
    """One rise or fall.

    Attributes:
        start, end: values of the curve where it begins and ends.
        begins: step from which on it is steep.
        ends: step of its end.
        is_steep_at_once: whether it is steep where it begins.
    """

    start: float
    end: float
    begins: int
    ends: int
    is_steep_at_once: bool

    @property
    def rises(self) -> bool:
        """Else it falls."""
        return self.end > self.start

    @property
    def verb(self) -> str:
        """``"rose"`` or ``"fell"``."""
        return "rose" if self.rises else "fell"


@dataclass(frozen=True)
class Course:
    """What a curve did.

    Attributes:
        legs: its significant rises and falls in their order, alternating.
        rows: how many it has.
        low, high: its extremes without lone rows.
        first, last: its values at both ends, each the median of three rows.
        end: the value of the last row.
        lone: step and value of the lone row farthest outside the extremes, if there is one.
        least: what a change must be to count.
        has_folds: whether a rise of it is given as a multiple, too; else as two values only.
    """

    legs: tuple[Leg, ...]
    rows: int
    low: float
    high: float
    first: float
    last: float
    end: float
    lone: tuple[int, float] | None = None
    least: float = 0.0
    has_folds: bool = True

    @property
    def is_short(self) -> bool:
        """Whether there are too few rows to tell a movement from noise."""
        return self.rows < FEWEST

    @property
    def between(self) -> str:
        """Its extremes, such as ``"between 5.1 and 5.4"``; ``"at 0"`` if they are the same."""
        low, high = number(self.low), number(self.high)
        return f"at {low}" if low == high else f"between {low} and {high}"

    def text(self) -> str:
        """As the second half of a sentence: ``"rose 8-fold, from 0.7 to 5.6 at step 10,000, ..."``."""
        if self.is_short:
            return f"{self.brief()}, too few to tell a movement from noise"
        if not self.legs:
            lone = f", but for {number(self.lone[1])} at step {self.lone[0]:,}" if self.lone is not None else ""
            return f"{'is flat:' if self.high - self.low <= self.least else 'wavers'} {self.between}{lone}"
        if len(self.legs) > _MOST_LEGS:
            return f"rises and falls {len(self.legs)} times in turn, {self.between}"
        first, *others = self.legs
        times = self._times(first) if not others else ""
        begins = f" at step {first.begins:,}" if first.is_steep_at_once else ""
        steeply = "" if first.is_steep_at_once else f", steeply from step {first.begins:,} on"
        said = [
            f"{first.verb}{times} from {number(first.start)}{begins} to {number(first.end)} at step {first.ends:,}"
            f"{steeply}"
        ]
        said += [f"{leg.verb} to {number(leg.end)} at step {leg.ends:,}" for leg in others]
        return f"{', '.join(said[:-1])}, then {said[-1]}" if others else said[0]

    def brief(self) -> str:
        """The same without steps, for a sentence that others give the numbers for."""
        if self.is_short:
            return (
                f"has one row only, {number(self.last)}"
                if self.rows == 1
                else f"goes from {number(self.first)} to {number(self.last)} in {self.rows} rows"
            )
        if len(self.legs) != 1:
            return self.text()
        leg = self.legs[0]
        return f"{leg.verb}{self._times(leg).rstrip(',')} to {number(leg.end)}"

    def _times(self, leg: Leg) -> str:
        fold = leg.end / leg.start if leg.start > 0 else np.inf
        return f" {fold:.2g}-fold," if self.has_folds and _FOLDS[0] <= fold < _FOLDS[1] else ""


def course_of(steps: Floats, values: Floats, settings: Mapping[str, float]) -> Course:
    """The course of a curve.

    Args:
        steps: ``(N,)``, increasing; at least one.
        values: ``(N,)``, finite.
        settings: of the detector that follows the curve, by which a change is significant: those of
            :func:`lc_callback.detect_phases`, or for an accuracy ``min_rise``.
    """
    is_accuracy = "min_rise" in settings
    if len(values) < FEWEST:
        ends = values[0], values[-1], values[-1]
        return Course((), len(values), values.min(), values.max(), *ends, has_folds=not is_accuracy)
    middle = _medians_of_three(values)
    low, high = float(middle.min()), float(middle.max())
    least = settings["min_rise"] if is_accuracy else _FLAT * max(abs(low), abs(high))
    outside = np.maximum(values - high, low - values)
    far = int(outside.argmax())
    lone = (int(steps[far]), float(values[far])) if outside[far] > max(least, high - low) else None
    ends = float(np.median(values[:3])), float(np.median(values[-3:])), float(values[-1])
    legs = _legs(steps, values, settings)
    return Course(legs, len(values), low, high, *ends, lone=lone, least=least, has_folds=not is_accuracy)


def _medians_of_three(values: Floats) -> Floats:
    """The median of each value and those beside it; at the ends of the three that are there."""
    inner = np.median(np.lib.stride_tricks.sliding_window_view(values, 3), axis=1)
    return np.concatenate([inner[:1], inner, inner[-1:]])


def _legs(steps: Floats, values: Floats, settings: Mapping[str, float]) -> tuple[Leg, ...]:
    found = fit(steps, values)
    if found is None:
        return ()
    if "min_rise" in settings:
        tolerance = max(settings["min_rise"], PHASE_SETTINGS["noise_factor"] * found.sigma)
    else:
        tolerance = significant(found, {**PHASE_SETTINGS, **settings})
    flatness = settings.get("flatness", PHASE_SETTINGS["flatness"])
    moves = movements(found.values, tolerance)
    told = _told(found, steps, values, moves)
    if told is None:
        return ()
    rows, shown = told
    at = steps[rows].astype(int)
    legs = []
    for i, j in moves:
        begin = i + first_steep(found.slopes[i:j], flatness)
        legs.append(Leg(float(shown[i]), float(shown[j]), int(at[begin]), int(at[j]), begin == i))
    return tuple(legs)


def _told(
    found: Fit, steps: Floats, values: Floats, moves: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.int64], Floats] | None:
    """For each node of the fit the row and the value that sentences show, such that all movements can be read off them.

    Values of rows without the lone ones, else of all rows, else their medians with the rows beside them: the first that
    show a third of each movement. If none do, the first that show any of it, or the fit; ``None`` if that will not do.
    """
    every = np.arange(len(values))
    calm = np.delete(every, lone_rows(values.tolist()))
    at, at_any = (_nearest_rows(found.nodes, steps, among) for among in (calm, every))
    measured = [(at, values[at]), (at_any, values[at_any]), (at_any, _medians_of_three(values)[at_any])]
    fitted = np.where(np.abs(found.values) > _ROUNDING * np.ptp(found.values), found.values, 0.0)

    def share(shown: Floats) -> float:
        """Of the movements of the fit that a reader of these values sees, the least."""
        return min((_share_read(shown[i], shown[j], found.values[j] - found.values[i]) for i, j in moves), default=1.0)

    well = [candidate for candidate in measured if share(candidate[1]) >= _SHOWN]
    barely = [candidate for candidate in [*measured, (at, fitted)] if share(candidate[1]) > 0]
    return next(iter([*well, *barely]), None)


def _share_read(start: float, end: float, movement: float) -> float:
    """The share of a movement that a reader of both numbers sees; negative if they go the other way."""
    return (end - start) / movement if number(start) != number(end) else 0.0


def _nearest_rows(nodes: Floats, steps: Floats, among: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows among these that are nearest to where the slope of the fit changes, for sentences give values of rows.

    One for each change as far as there are so many: else a fall would end at the step it begins at.
    """
    # A node halfway between two rows is at the later one, however this processor rounds.
    away = np.round(np.abs(np.log10(steps[among] + 1)[None, :] - nodes[:, None]), 9)
    at = len(among) - 1 - away[:, ::-1].argmin(1)
    for i in range(1, len(at)):
        if at[i] > at[i - 1]:
            continue
        before, behind = at[i - 1] - 1, at[i - 1] + 1
        is_free = before >= 0 and (i == 1 or before > at[i - 2])
        if is_free and (behind == len(among) or away[i - 1, before] <= away[i, behind]):
            at[i - 1 : i + 1] = before, before + 1
        else:
            at[i] = min(behind, len(among) - 1)
    return np.asarray(among[at])


def number(value: float) -> str:
    """Three digits, such as ``0.0321``, ``5.6`` and ``12,300``."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
