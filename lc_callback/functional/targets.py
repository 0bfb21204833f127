"""Targets of classifiers: what is a class, and what to do about the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor

__all__ = ["check_targets"]


def check_targets(targets: Any, logits: Tensor | None) -> Tensor:
    """``(N,)`` int64 classes.

    Args:
        targets: integer classes ``(N,)`` or ``(N, 1)``, or one-hot rows ``(N, C)``.
        logits: ``(N, C)``, or ``None`` if there are none to compare with.

    Raises:
        ValueError: if the targets are no classes, or the logits not ``(N, C)``; it says what was found.
    """
    n = None if logits is None else len(logits)
    if logits is not None and (logits.ndim != 2 or logits.shape[1] < 2):
        raise ValueError(
            f"the model returns shape {tuple(logits.shape)} for {n} points, where accuracy needs logits (N, C) of "
            "C >= 2 classes: pass `forward_fn=` that returns these (for one logit z of a binary problem: [-z, z])."
        )
    remedy = "pass `target_fn=` (here: `targets`), which gives integer classes (N,) for a batch"
    if not isinstance(targets, Tensor):
        found = "no targets were found" if targets is None else f"the targets are a {type(targets).__name__}"
        raise ValueError(f"{found}, where accuracy needs integer classes: {remedy}.")
    if targets.ndim == 2 and targets.shape[1] == 1:
        targets = targets[:, 0]
    n_columns = logits.shape[1] if logits is not None else targets.shape[-1] if targets.ndim else 0
    is_binary = (
        targets.ndim == 2 and targets.shape[1] == n_columns > 1 and bool(((targets == 0) | (targets == 1)).all())
    )
    if is_binary and bool((targets.sum(1) == 1).all()):
        targets = targets.argmax(1)  # one-hot
    what = f"the targets are {targets.dtype} of shape {tuple(targets.shape)}"
    if targets.is_floating_point() or targets.is_complex() or targets.ndim != 1 or n not in (None, len(targets)):
        raise ValueError(f"{what}, where accuracy needs {'N' if n is None else n} integer classes: {remedy}.")
    targets = targets.long()
    if logits is None and bool((targets < 0).any()):
        raise ValueError(f"{what} and go down to {int(targets.min())}, where classes count from 0: {remedy}.")
    if logits is not None and bool(((targets < 0) | (targets >= logits.shape[1])).any()):
        raise ValueError(
            f"the targets range from {int(targets.min())} to {int(targets.max())}, but the model returns "
            f"{logits.shape[1]} logits, for classes 0 to {logits.shape[1] - 1}: {remedy}."
        )
    return targets
