"""Timing of two functions in alternation."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping

__all__ = ["alternating", "in_turn", "ratio", "seconds"]


def seconds(function: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turn(runs: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each run, one after the other, so many times."""
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, function in runs.items():
            taken[name].append(seconds(function))
    return taken


def ratio(ours: Iterable[float], base: Iterable[float]) -> float:
    """The median of the ratios of neighbours."""
    return statistics.median(our / their for our, their in zip(ours, base, strict=True))


def alternating(base: Callable[[], object], ours: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median seconds of each, and the median of the ratios of neighbours."""
    base_taken, our_taken = in_turn({"base": base, "ours": ours}, repeats).values()
    return statistics.median(base_taken), statistics.median(our_taken), ratio(our_taken, base_taken)
