"""Timing of two functions in alternation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

__all__ = ["alternating", "seconds"]


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternating(base: Callable[[], object], ours: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios of neighbours."""
    pairs = [(seconds(base), seconds(ours)) for _ in range(repeats)]
    return (
        statistics.median(b for b, _ in pairs),
        statistics.median(o for _, o in pairs),
        statistics.median(o / b for b, o in pairs),
    )
