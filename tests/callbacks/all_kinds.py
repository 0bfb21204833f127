"""The kinds of callbacks that the shared tables go through, one row each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import helpers
import numpy as np
import torch

from lc_callback import NeuralCollapseCallback, SplinePartitionCallback


@dataclass(frozen=True)
class Row:
    """What the tables need to know of a kind.

    Attributes:
        kind: its class.
        key: one that is in each of its rows.
        tiny: settings that cost little.
        groups: what its keys begin with.
        full: settings with which it has the most to keep in a checkpoint.
        keeps_tensors: whether it keeps tensors there, too.
        between_rows: steps from a row to the next, where rows at every step would take too long.
    """

    kind: Any
    key: str
    tiny: dict[str, Any] = field(default_factory=dict)
    groups: tuple[str, ...] = ()
    full: dict[str, Any] = field(default_factory=dict)
    keeps_tensors: bool = False
    between_rows: int = 1


_POINTS = torch.randn(50, helpers.DIM, generator=torch.Generator().manual_seed(0))


def _of_helpers(name: str, key: str, **options: Any) -> Row:
    return Row(helpers.KINDS[name], key, helpers.TINY[name], **options)


ROWS = {
    "lc": _of_helpers("lc", "lc/train", full={"radius": "auto", "per_layer": True, "train_probes": _POINTS}),
    "robustness": _of_helpers(
        "robustness", "clean_acc/train", full={"eps": [0.1, 0.2], "raw": True, "eps_unit": "std"}, keeps_tensors=True
    ),
    "rank": _of_helpers("rank", "rank/net.1", full={"linear_probe": True}, keeps_tensors=True),
    "partition": Row(
        SplinePartitionCallback,
        "partition/n_regions",
        {"n_probes": 8},
        ("partition/",),
        full={"schedule": "log"},
        between_rows=2,
    ),
    "collapse": Row(NeuralCollapseCallback, "nc/nc1_train", {"n_probes": 16}, ("nc/",)),
}
KINDS = {name: row.kind for name, row in ROWS.items()}


def tiny(kind: str, **arguments: Any) -> Any:
    """The callback of that kind with settings that cost little."""
    return KINDS[kind](**{**ROWS[kind].tiny, **arguments})


def is_ours(key: str) -> bool:
    return helpers.is_ours(key) or any(key.startswith(row.groups) for row in ROWS.values())


def blank(slices: Any) -> Any:
    """In place of a drawing, which takes half a second; as wide as the step that is written above it."""
    return np.zeros((8, 80, 3), np.uint8)
