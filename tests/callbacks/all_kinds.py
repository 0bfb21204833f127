"""The kinds of callbacks that the shared tables go through: those of `helpers`, the partition and neural collapse."""

from __future__ import annotations

from typing import Any

import helpers
import numpy as np

from lc_callback import NeuralCollapseCallback, SplinePartitionCallback

KINDS = {**helpers.KINDS, "partition": SplinePartitionCallback, "collapse": NeuralCollapseCallback}
_TINY = {"partition": {"n_probes": 8}, "collapse": {"n_probes": 16}}


def tiny(kind: str, **arguments: Any) -> Any:
    """The callback of that kind with settings that cost little."""
    return KINDS[kind](**{**_TINY[kind], **arguments}) if kind in _TINY else helpers.tiny(kind, **arguments)


def is_ours(key: str) -> bool:
    return helpers.is_ours(key) or key.startswith(("partition/", "nc/"))


def blank(slices: Any) -> Any:
    """In place of a drawing, which takes half a second; as wide as the step that is written above it."""
    return np.zeros((8, 80, 3), np.uint8)
