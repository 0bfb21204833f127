"""Where a run went on with another radius: its counts before and after are two curves, which are not comparable."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.outliers import layers_of_outliers
from lc_callback.detection.transitions import Curves, Turn

__all__ = [
    "curve_at_one_radius",
    "is_at_radius",
    "outliers_by_radius",
    "pieces",
    "rows_at_one_radius",
    "said_of",
    "scaled_from",
    "seams",
]

Floats = NDArray[np.float64]
Row = Mapping[str, float]

_RADIUS, _SPREAD = "lc_radius", "lc_spread/train"
_SAME = 1e-6  # relative
_ROWS = 5  # on each side of a seam, which are laid onto one line


def is_at_radius(key: str) -> bool:
    """Whether a curve, by its key without the prefix, is of counts within the radius."""
    return key.startswith("lc/")


def seams(rows: Sequence[Row], prefix: str = "") -> list[int]:
    """The steps of the rows that are the first with another radius than the row before.

    A radius that follows the spread of the points behind a module stays the same.

    Args:
        rows: of one run, in the order of their steps. Those without a radius are passed over.
        prefix: of their keys.

    Example::

        >>> from lc_callback.run.seams import seams
        >>> seams([{"step": 0, "lc_radius": 0.1}, {"step": 5, "lc_radius": 0.1}, {"step": 9, "lc_radius": 0.2}])
        [9]
    """
    radius_key, spread_key = prefix + _RADIUS, prefix + _SPREAD
    known = [(row["step"], row[radius_key], row.get(spread_key, math.nan)) for row in rows if radius_key in row]
    return [
        int(step)
        for (_, before, spread_before), (step, radius, spread) in itertools.pairwise(known)
        if not _same(before, radius) and not _same(before * spread, radius * spread_before)
    ]


def _same(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=_SAME)


def _seams_in(curves: Curves) -> list[int]:
    """The same of curves, by keys without a prefix."""
    spreads = dict(zip(*curves.get(_SPREAD, ((), ())), strict=True))
    radii = zip(*curves.get(_RADIUS, ((), ())), strict=True)
    return seams([{"step": at, _RADIUS: radius, _SPREAD: spreads.get(at, math.nan)} for at, radius in radii])


def pieces(rows: Sequence[Row], prefix: str = "") -> list[list[Row]]:
    """The rows of each radius."""
    starts = [-1, *seams(rows, prefix), math.inf]
    return [[row for row in rows if start <= row["step"] < end] for start, end in itertools.pairwise(starts)]


def outliers_by_radius(
    rows: Sequence[Row], keys: Sequence[str], shares: Callable[[str, Row], Mapping[str, float]], prefix: str = ""
) -> dict[tuple[str, int], str]:
    """As :func:`layers_of_outliers`, which looks at the rows of each radius by themselves."""
    found = [layers_of_outliers(piece, keys, shares) for piece in pieces(rows, prefix)]
    return {place: layer for each in found for place, layer in each.items()}


# As if all were counted within one radius


def _joined(steps: Floats, values: Floats, at: Sequence[float]) -> Floats:
    """The values ``(N,)`` of a curve without a jump at the seams.

    A count within a small radius is proportional to it. So what comes after a seam is scaled to go on as the curve was
    going: in logarithms, the five rows on each side lie on one line. If one of these counts is 0, it is shifted.
    """
    values, x = values.copy(), np.log10(steps + 1)
    for seam in at:
        later = steps >= seam
        sides = [np.flatnonzero(~later)[-_ROWS:], np.flatnonzero(later)[:_ROWS]]
        if all(map(len, sides)):
            is_scaled = all((values[side] > 0).all() for side in sides)
            gap = _gap([(x[side], np.log(values[side]) if is_scaled else values[side]) for side in sides])
            values[later] = values[later] * np.exp(-gap) if is_scaled else values[later] - gap
    return values


def _gap(sides: Sequence[tuple[Floats, Floats]]) -> float:
    """How far the second of two pieces is above the line of the first; medians, so that a lone row does not count."""
    pairs = [(x[[i, j]], y[[i, j]]) for x, y in sides for i, j in itertools.combinations(range(len(x)), 2)]
    slope = float(np.median([np.diff(y)[0] / np.diff(x)[0] for x, y in pairs])) if pairs else 0.0
    before, after = (float(np.median(y - slope * x)) for x, y in sides)
    return after - before


def curve_at_one_radius(curves: Curves, key: str) -> tuple[Floats, Floats]:
    """Steps and values of a curve as if all were counted within its first radius, for what looks for transitions.

    Example::

        >>> import numpy as np
        >>> from lc_callback.run.seams import curve_at_one_radius
        >>> steps = np.arange(4.0)
        >>> columns = {"lc/train": [8.0, 8.0, 2.0, 2.0], "lc_radius": [0.4, 0.4, 0.1, 0.1]}
        >>> curves = {key: (steps, np.array(column)) for key, column in columns.items()}
        >>> curve_at_one_radius(curves, "lc/train")[1].round(2).tolist()
        [8.0, 8.0, 8.0, 8.0]
    """
    steps, values = curves[key]
    return steps, _joined(steps, values, _seams_in(curves))


def rows_at_one_radius(rows: Sequence[Row], prefix: str = "") -> Sequence[Row]:
    """The same of the rows of a run, for sentences and for the shading of phases."""
    at = seams(rows, prefix)
    if not at:
        return rows
    made = [dict(row) for row in rows]
    for key in {key for row in rows for key in row if is_at_radius(key.removeprefix(prefix))}:
        own = [row for row in made if math.isfinite(row.get(key, math.nan))]
        steps, values = (np.array([row[name] for row in own], np.float64) for name in ("step", key))
        for row, value in zip(own, _joined(steps, values, at), strict=True):
            row[key] = float(value)
    return made


def said_of(turns: Sequence[Turn], curves: Curves) -> list[Turn]:
    """The turns, of which those behind a seam say that they are of scaled counts."""
    at = _seams_in(curves)
    return [
        replace(turn, reason=f"{turn.reason}; {scaled_from(at[0])}") if at and turn.step >= at[0] else turn
        for turn in turns
    ]


def scaled_from(step: int) -> str:
    """What is said of the counts behind a seam."""
    return f"counts from step {step:,} on, of another radius, are scaled to those before"
