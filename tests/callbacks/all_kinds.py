"""The kinds of callbacks that the shared tables go through: those of `helpers`, and the partition."""

from __future__ import annotations

from typing import Any

import helpers
import numpy as np

from lc_callback import SplinePartitionCallback

KINDS = {**helpers.KINDS, "partition": SplinePartitionCallback}


def tiny(kind: str, **arguments: Any) -> Any:
    """The callback of that kind with settings that cost little."""
    if kind == "partition":
        return SplinePartitionCallback(**{"n_probes": 8, **arguments})
    return helpers.tiny(kind, **arguments)


def is_ours(key: str) -> bool:
    return helpers.is_ours(key) or key.startswith("partition/")


def blank(slices: Any) -> Any:
    """In place of a drawing, which takes half a second; as wide as the step that is written above it."""
    return np.zeros((8, 80, 3), np.uint8)
