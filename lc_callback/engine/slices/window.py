"""Which part of a plane is sliced: the window that the user asks for, or a smaller one with few enough regions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHARES", "Extent", "TooManyRegions", "affordable_regions", "expected_regions", "fitting_share", "shrunk"]

Extent = tuple[float, float, float, float]

#: Sides of the windows that are tried, relative to the one that the user asks for.
SHARES = (1.0, *(float(f"{digit}e-{power}") for power in range(1, 7) for digit in (5, 2, 1)))

_SMALL = 200  # regions: enough to see how their number grows with the window
_OFF = 2.0  # a window is tried if no more than so many times the allowed regions are expected
_WORK = 10**9  # values of units that are computed, in one forward pass and a backward pass for each output
_FEWEST, _MOST = 200, 200_000


class TooManyRegions(ValueError):  # noqa: N818 (no failure: a smaller window is tried)
    """A window holds more regions than allowed."""


def shrunk(whole: Extent, share: float, centre: NDArray[np.float64] | None, side: float | None = None) -> Extent:
    """A window around a centre, whose sides are a share of the sides of the whole.

    Args:
        whole: ``(u0, u1, v0, v1)``.
        share: of its sides; 1 returns the whole itself.
        centre: ``(2,)``; ``None`` is the middle of the whole.
        side: replaces the sides of the whole if the share is below 1.
    """
    if share == 1:
        return whole
    u0, u1, v0, v1 = whole
    u, v = ((u0 + u1) / 2, (v0 + v1) / 2) if centre is None else map(float, centre)
    half_u, half_v = (share * (u1 - u0) / 2, share * (v1 - v0) / 2) if side is None else (share * side / 2,) * 2
    return u - half_u, u + half_u, v - half_v, v + half_v


def affordable_regions(n_units: int, n_outputs: int) -> int:
    """How many regions ``max_regions="auto"`` allows: the same on every machine.

    A region costs about one forward pass, and one backward pass for each output.
    """
    return min(_MOST, max(_FEWEST, _WORK // (max(1, n_units) * (1 + n_outputs))))


def expected_regions(n_regions: int, n_lines: int, times: float) -> float:
    """Regions in a window ``times`` as wide: lines grow with its side, their crossings with the square of it."""
    return 1 + n_lines * times + max(0, n_regions - 1 - n_lines) * times**2


def fitting_share(
    cut: Callable[[float, int], tuple[int, int]], shares: Sequence[float], most: Callable[[float], int]
) -> float:
    """Cut the largest window that holds few enough regions. The result does not depend on time.

    Args:
        cut: called with a share and a limit, cuts that window, and returns the numbers of its regions and of the lines
            that cut it. Raises :class:`TooManyRegions` as soon as there are more regions than the limit.
        shares: the windows that are tried, the largest first.
        most: how many regions the window of a share may have.

    Returns:
        The share of the window that was cut last.

    Raises:
        TooManyRegions: if no window holds few enough regions.
    """

    def fits(share: float, n: int) -> tuple[int, int] | None:
        try:
            return cut(share, n)
        except TooManyRegions:
            return None

    first, *smaller = shares
    if fits(first, most(first)) is not None:
        return first
    looked = ((share, fits(share, min(_SMALL, most(share)))) for share in smaller)
    small, found = next(((share, found) for share, found in looked if found is not None), (0.0, None))
    for share in smaller:
        if found is not None and share > small and expected_regions(*found, share / small) > _OFF * most(share):
            continue
        if fits(share, most(share)) is not None:
            return share
    raise TooManyRegions(
        f"even a window {shares[-1]:g} times as wide holds more than {most(shares[-1]):,} regions: many of them meet "
        "in one point. Allow more with `max_regions=`, or choose other points."
    )
