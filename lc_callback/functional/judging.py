"""Accuracy, or any other metric of torchmetrics for classifiers, of decisions as they are and under attack."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lc_callback.engine.adversarial.attacked import Verdict
from lc_callback.engine.adversarial.labels import Labels

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["check_metric", "fresh", "ignored_by", "number", "take", "task_of", "value_of"]

_TASKS = {"Binary": "binary", "Multiclass": "multiclass", "Multilabel": "multilabel"}  # how torchmetrics names them


def check_metric(metric: Any, task: str) -> None:
    """Raise a ValueError unless this is ``None``, or a metric of torchmetrics for classifiers with this task."""
    if metric is None:
        return
    from torchmetrics import Metric

    example = "torchmetrics.classification.MulticlassF1Score(num_classes=10)"
    if not isinstance(metric, Metric):
        got = f"the class {metric.__name__}" if isinstance(metric, type) else f"{type(metric).__name__} {metric!r}"
        raise ValueError(f"`metric` must be None or a metric of torchmetrics such as {example}, but got {got}.")
    own = task_of(metric)
    if own is None:
        raise ValueError(
            f"`metric` must be a metric for classifiers, whose name begins with one of {[*_TASKS]}, such as {example}; "
            f"but got {type(metric).__name__}."
        )
    if task not in ("auto", own):
        raise ValueError(f"`task={task!r}` is not that of `metric`, {type(metric).__name__}: pass task={own!r}.")


def task_of(metric: Metric) -> str | None:
    """The task that a metric is for, by its name or that of a class that it inherits from."""
    names = [kind.__name__ for kind in type(metric).__mro__]
    return next((task for name in names for prefix, task in _TASKS.items() if name.startswith(prefix)), None)


def ignored_by(metric: Metric | None) -> int | None:
    """The target that does not count."""
    return getattr(metric, "ignore_index", None)


def value_of(verdict: Verdict, labels: Labels, metric: Metric | None) -> float:
    """Share of the decisions that are right, or what a metric makes of them; NaN if that is not known."""
    if not verdict.is_known:
        return math.nan
    if metric is None:
        right = verdict.right if labels.counted is None else verdict.right[labels.counted]
        return float(right.double().mean())
    own = fresh(metric)
    take(own, verdict, labels)
    return float(number(own.compute(), own))


def fresh(metric: Metric) -> Metric:
    """A copy that has seen nothing, and that does not talk to other processes."""
    own = copy.deepcopy(metric)
    own.reset()
    own.distributed_available_fn = _never
    return own


def take(metric: Metric, verdict: Verdict, labels: Labels) -> None:
    """Let a metric see the decisions.

    Raises:
        ValueError: if it refuses them.
    """
    assert verdict.logits is not None
    scores, targets = labels.scores(verdict.logits), labels.targets()
    try:
        metric.to(scores.device).update(scores, targets)
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"`metric` {type(metric).__name__} refuses outputs of shape {tuple(scores.shape)} and targets of shape "
            f"{tuple(targets.shape)}: {error}"
        ) from error


def number(value: Any, metric: Metric) -> Tensor:
    """The one number that a metric gives.

    Raises:
        ValueError: if it gives more.
    """
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.reshape(())
    got = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ValueError(
        f"`metric` must give one number, but {type(metric).__name__} gives {got}: pass one with average='macro' or "
        "'micro', and without multidim_average='samplewise'."
    )


def _never() -> bool:
    return False
