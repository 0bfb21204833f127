"""Targets of classifiers: which task they belong to, what is a class, and what to do about the rest."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lc_callback.engine.adversarial.labels import Labels
from lc_callback.suggestions import did_you_mean

__all__ = ["TASKS", "check_classes", "check_labels", "check_task"]

TASKS = ("auto", "multiclass", "binary", "multilabel")

_HINT = "pass `target_fn=` (here: `targets`), which gives integer classes (N,) for a batch"
_HINT_OF_YES_AND_NO = (
    "pass `target_fn=` (here: `targets`), which gives 0 or 1 for each output, or `forward_fn=` that returns logits "
    "(N, C) of C >= 2 classes"
)
_CALLBACK = "this callback (or function)"
_ROUNDING = 0.01  # of the sum of shares in half precision
_IGNORED = -100  # by the cross entropy of torch, if nothing else is said


def check_task(task: Any) -> None:
    """Raise a ValueError if ``task`` is none of :data:`TASKS`."""
    if task not in TASKS:
        raise ValueError(f"`task` must be one of {TASKS}, but got {task!r}{did_you_mean(task, TASKS)}")


def check_classes(
    targets: Any,
    n: int,
    n_logits: int | None = None,
    *,
    measure: str = "neural collapse",
    left_out: str = _CALLBACK,
) -> Tensor:
    """``(n,)`` int64 classes of ``n`` points, for measures that compare whole points.

    Args:
        targets: integer classes ``(n,)`` or ``(n, 1)``, or one-hot rows ``(n, C)``.
        n: number of points.
        n_logits: how many logits there are for a point, if that is known. With one, 0 and 1 of any type are classes.
        measure: what needs the classes, for errors.
        left_out: what a regression leaves out, for errors.

    Raises:
        ValueError: if the targets are numbers, as of a regression, or other than classes from 0 up, or not one for each
            point; it says what was found.
    """
    _check_is_tensor(targets)
    if targets.ndim and len(targets) != n:
        raise ValueError(f"there must be one target for each point, but got {len(targets)} targets for {n} points.")
    classes, what = _from_one_hot(targets, (n, targets.shape[-1]) if targets.ndim else ()), _in_words(targets)
    if n_logits == 1 and classes.ndim == 1 and _is_binary(classes):
        return classes.long()
    _refuse_numbers(targets, n_logits, measure, left_out)
    if classes.is_floating_point() or classes.is_complex() or classes.ndim != 1:
        raise ValueError(f"{what}, where accuracy needs {n} integer classes: {_HINT}.")
    if bool((classes < 0).any()):
        raise ValueError(f"{what} and go down to {int(classes.min())}, where classes count from 0: {_HINT}.")
    if n_logits is not None and int(classes.max()) >= max(2, n_logits):
        raise ValueError(_too_many(classes, n_logits))
    return classes.long()


def check_labels(targets: Any, outputs: Tensor, task: str = "auto", ignored: int | None = None) -> Labels:
    """What a classifier has to decide.

    ``"auto"`` is ``"binary"`` for one output for each point, ``(N,)`` or ``(N, 1)``, or for each pixel,
    ``(N, 1, H, W)``. It is ``"multilabel"`` for targets of 0 and 1 in the shape of the outputs, unless exactly one of
    each decision is 1: those are one-hot. All else is ``"multiclass"``.

    Args:
        targets: multi-class: integers ``(N, *E)`` or ``(N, 1, *E)``, or one-hot ``(N, C, *E)``. Binary and multi-label:
            0 and 1 of any type, in the shape of the outputs; an axis of length 1 behind the first may be left out.
        outputs: multi-class: logits ``(N, C, *E)`` of ``C >= 2`` classes. Else one logit for each decision.
        task: one of :data:`TASKS`.
        ignored: the target of a decision that does not count; ``None`` is -100 for the pixels of a multi-class task,
            as for the cross entropy of torch.

    Raises:
        ValueError: if targets and outputs do not fit, or the targets are numbers, as of a regression; it says what was
            found and what to pass.
    """
    _check_is_tensor(targets)
    if task == "auto":
        if outputs.ndim <= 2:
            _refuse_numbers(targets, outputs[:1].numel(), "accuracy under attack", _CALLBACK)
        task = _task_of(targets, outputs)
    if task == "multiclass":
        return _multiclass(targets, outputs, ignored)
    return _yes_and_no(targets, outputs, task, ignored)


def _task_of(targets: Tensor, outputs: Tensor) -> str:
    if outputs.ndim == 1 or outputs.shape[1] == 1:
        return "binary"
    is_each = targets.shape == outputs.shape and _is_binary(targets)
    return "multilabel" if is_each and not bool((targets.sum(1) == 1).all()) else "multiclass"


def _multiclass(targets: Tensor, logits: Tensor, ignored: int | None) -> Labels:
    n = len(logits)
    if logits.ndim < 2 or logits.shape[1] < 2:
        raise ValueError(
            f"the model returns shape {tuple(logits.shape)} for {n} points, where accuracy needs logits (N, C) of "
            "C >= 2 classes: pass `forward_fn=` that returns these, or task='binary' for one logit."
        )
    expected = (n, *logits.shape[2:])
    classes, what = _from_one_hot(targets, tuple(logits.shape)), _in_words(targets)
    if classes.is_floating_point() or classes.is_complex() or classes.shape != expected:
        need = f"{n} integer classes" if len(expected) == 1 else f"integer classes {expected}"
        raise ValueError(
            f"{what}, where accuracy needs {need} for outputs of shape {tuple(logits.shape)}: {_HINT}; or "
            "`forward_fn=`, if the outputs are no logits (N, C) or (N, C, ...); or task='multilabel' for 0 or 1 for "
            "each output."
        )
    if ignored is None and len(expected) > 1:
        ignored = _IGNORED
    counted = _counted(classes, ignored, what)
    classes = classes.long() if counted is None else classes.long().where(counted, 0)
    if bool(((classes < 0) | (classes >= logits.shape[1])).any()):
        text = _too_many(classes, logits.shape[1])
        raise ValueError(f"{text[:-1]}, or `metric=` with the `ignore_index` of targets that do not count.")
    return Labels("multiclass", classes, counted, tuple(logits.shape[1:]), ignored)


def _yes_and_no(targets: Tensor, outputs: Tensor, task: str, ignored: int | None) -> Labels:
    what = f"{_in_words(targets)} and the model returns shape {tuple(outputs.shape)}"
    shape = tuple(outputs.shape[1:])
    if task == "binary" and outputs.ndim == 2 and shape[0] > 1:
        raise ValueError(
            f"{what}, where task='binary' needs one logit for each point: two logits are task='multiclass', and one "
            "for each of several labels task='multilabel'."
        )
    if task == "multilabel" and not shape:
        raise ValueError(f"{what}, where task='multilabel' needs logits (N, L): one for each point is task='binary'.")
    squeezed = shape[1:] if shape[:1] == (1,) else shape
    if tuple(targets.shape) not in {(len(outputs), *own) for own in (shape, squeezed, (1, *squeezed))}:
        raise ValueError(f"{what}, where task={task!r} needs targets of that shape: {_HINT_OF_YES_AND_NO}.")
    decisions = targets.reshape(len(outputs), *(squeezed if task == "binary" else shape))
    counted = _counted(decisions, ignored, what)
    kept = decisions if counted is None else decisions.where(counted, 0)
    if not _is_binary(kept):
        spans = "are not finite" if not bool((kept == kept).all()) else f"range from {kept.min()} to {kept.max()}"
        raise ValueError(f"{what}; they {spans}, where task={task!r} needs 0 and 1: {_HINT_OF_YES_AND_NO}.")
    return Labels(task, kept.long(), counted, shape, ignored)


def _counted(targets: Tensor, ignored: int | None, what: str) -> Tensor | None:
    """``None`` if all count."""
    # As int64: in the few bits of another type the value that is ignored may be that of a class.
    counted = None if ignored is None else (targets if targets.is_floating_point() else targets.long()) != ignored
    if counted is None or bool(counted.all()):
        return None
    if not bool(counted.any()):
        raise ValueError(f"{what} and are all {ignored}, which does not count: {_HINT}.")
    return counted


def _too_many(classes: Tensor, n_logits: int) -> str:
    return (
        f"the targets range from {int(classes.min())} to {int(classes.max())}, but the model returns {n_logits} "
        f"logits, for classes 0 to {max(2, n_logits) - 1}: {_HINT}."
    )


def _refuse_numbers(targets: Tensor, n_outputs: int | None, measure: str, left_out: str) -> None:
    """Raise a ValueError for the targets ``(N,)`` or ``(N, k)`` of a regression."""
    if _are_numbers(targets, n_outputs):
        raise ValueError(
            f"{_in_words(targets)}, from {targets.min():.3g} to {targets.max():.3g}: these are numbers, not classes. "
            f"{measure.capitalize()} is of classifiers: for a regression leave {left_out} out. If there are classes "
            f"after all, {_HINT}."
        )


def _are_numbers(targets: Tensor, n_outputs: int | None) -> bool:
    """Whether no classes can be meant: neither indices as floats, nor shares of classes, nor two values as -1 and 1."""
    if not targets.is_floating_point() or targets.ndim not in (1, 2) or not bool(targets.isfinite().all()):
        return False
    values = targets.unique()
    if len(values) <= 2:
        return False
    if targets.ndim == 2 and targets.shape[1] > 1:
        return bool((values < 0).any()) or bool(((targets.sum(1) - 1).abs() > _ROUNDING).any())
    return n_outputs == 1 or not bool((values == values.round()).all())


def _check_is_tensor(targets: Any) -> None:
    if not isinstance(targets, Tensor):
        found = "no targets were found" if targets is None else f"the targets are a {type(targets).__name__}"
        raise ValueError(f"{found}, where accuracy needs integer classes: {_HINT}.")


def _from_one_hot(targets: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Targets ``(N, *E)`` for ``(N, 1, *E)``, and for one-hot ones of the shape ``(N, C, *E)``."""
    if targets.ndim != len(shape) or targets.ndim < 2:
        return targets
    if targets.shape[1] == 1:
        return targets[:, 0]
    is_binary = tuple(targets.shape) == shape and _is_binary(targets)
    return targets.argmax(1) if is_binary and bool((targets.sum(1) == 1).all()) else targets


def _is_binary(targets: Tensor) -> bool:
    return bool(((targets == 0) | (targets == 1)).all())


def _in_words(targets: Tensor) -> str:
    return f"the targets are {targets.dtype} of shape {tuple(targets.shape)}"
