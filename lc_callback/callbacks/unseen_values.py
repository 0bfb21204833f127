"""What monitors a key of ours finds a value, also where the first row has failed."""

from __future__ import annotations

from typing import Any

import torch

from lc_callback.callbacks.peers import Measuring
from lc_callback.callbacks.stale_values import monitors_of

__all__ = ["stand_in"]

_WORST = torch.finfo(torch.float32).max  # finite, for a monitor may stop the training at what is not
_MOST_HALVINGS = 60
_SHARE = 1e-3  # of the value beyond which a monitor stops the training


def stand_in(trainer: Any, pl_module: Any, callback: Measuring) -> None:
    """Give each monitor of a key that no row has had yet the worst value there is.

    ``EarlyStopping`` ends the run if it finds no value, and counts one that does not improve. So the value gets better
    with each row that has failed so far, and stays worse than any real one.
    """
    start, n_failed = callback.peer.keys.in_group(""), callback.peer.rows.n_failed
    for monitor in monitors_of(trainer, pl_module):
        if not (callback.logs(monitor.key) or monitor.key.startswith(start)):
            continue
        if n_failed > 1 or monitor.key not in trainer.callback_metrics:
            better = 1 if monitor.mode == "max" else -1
            value = -better * _WORST / 2.0 ** min(n_failed - 1, _MOST_HALVINGS)
            if monitor.limit is not None:
                value = monitor.limit + better * n_failed * _SHARE * (1 + abs(monitor.limit))
            trainer.callback_metrics[monitor.key] = torch.tensor(value)
