"""The clock of the callbacks, in one place."""

from __future__ import annotations

import time

__all__ = ["read_clock"]


def read_clock() -> float:
    """Seconds since some moment."""
    return time.perf_counter()
