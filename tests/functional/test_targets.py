"""Targets that are numbers, as those of a regression, differ from classes of any other form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lc_callback.functional import linear_probe, neural_collapse, robust_accuracy
from lc_callback.functional.targets import check_classes, check_labels

N = 12
NOT_CLASSES = "these are numbers, not classes"


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Shapes of the outputs, and targets.
NUMBERS: dict[str, tuple[tuple[int, ...], Tensor]] = {
    "one output": ((N,), normal(N)),
    "a column": ((N, 1), normal(N, 1)),
    "a column for a row": ((N, 1), normal(N)),
    "a row for a column": ((N,), normal(N, 1)),
    "between 0 and 1": ((N, 1), normal(N).sigmoid()),
    "whole numbers such as ages": ((N, 1), torch.arange(20.0, 20.0 + N)),
    "whole numbers for a row": ((N,), torch.arange(0.0, N)[:, None]),
    "counts from 0": ((N, 1), torch.arange(N).float() % 3),
    "several": ((N, 3), normal(N, 3)),
    "several between 0 and 1": ((N, 3), normal(N, 3).sigmoid()),
    "several whole numbers": ((N, 2), torch.arange(2.0 * N).reshape(N, 2)),
    "sums of 1 with negative ones": ((N, 2), torch.stack([normal(N), 1 - normal(N)], 1)),
    "mean and variance of one": ((N, 2), normal(N)),
    "double": ((N, 1), normal(N).double()),
    "half": ((N, 1), normal(N).half()),
    "bfloat16": ((N, 3), normal(N, 3).bfloat16()),
}
SHARES = normal(N, 3).softmax(1)
CLASSES: dict[str, tuple[tuple[int, ...], Tensor]] = {
    "one logit, by a margin loss": ((N, 1), 2.0 * (torch.arange(N) % 2) - 1),
    "one logit, smoothed": ((N,), 0.05 + 0.9 * (torch.arange(N) % 2)),
    "one logit, integers": ((N, 1), torch.arange(N)),
    "one logit, not known": ((N, 1), normal(N).where(torch.arange(N) > 0, torch.nan)),
    "indices as floats": ((N, 3), (torch.arange(N) % 3).float()),
    "a column of indices as floats": ((N, 3), (torch.arange(N) % 3).float()[:, None]),
    "shares of classes": ((N, 3), SHARES),
    "shares of classes in half precision": ((N, 3), SHARES.bfloat16()),
    "smoothed classes": ((N, 3), 0.9 * nn.functional.one_hot(torch.arange(N) % 3, 3) + 0.1 / 3),
    "several labels, smoothed": ((N, 3), 0.05 + 0.9 * (normal(N, 3) > 0)),
    "several labels, integers": ((N, 3), torch.arange(3 * N).reshape(N, 3)),
    "a label too few": ((N, 4), (normal(N, 3) > 0).float()),
    "pixels": ((N, 1, 3, 2), normal(N, 1, 3, 2)),
    "pixels of several classes": ((N, 3, 3, 2), normal(N, 3, 2)),
    "positions": ((N, 3, 5), normal(N, 5)),
}


def what_is_said(targets: Any, outputs: Tensor, **arguments: Any) -> str:
    with pytest.raises(ValueError, match="`target_fn=`") as caught:
        check_labels(targets, outputs, **arguments)
    return str(caught.value)


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_refused_as_numbers(name: str) -> None:
    shape, targets = NUMBERS[name]
    text = what_is_said(targets, torch.zeros(shape))
    kind = f"the targets are {targets.dtype} of shape {tuple(targets.shape)}, from {targets.min():.3g} to "
    assert text.startswith(kind)
    assert f"{NOT_CLASSES}. Accuracy under attack is of classifiers: for a regression leave this callback" in text
    assert text.endswith("If there are classes after all, pass `target_fn=` (here: `targets`), which gives integer "
                         "classes (N,) for a batch.")  # fmt: skip
    with pytest.raises(ValueError, match=f"{NOT_CLASSES}. Neural collapse is of classifiers: .* this callback .* out"):
        check_classes(targets, N, torch.zeros(shape)[:1].numel())


@pytest.mark.parametrize("name", CLASSES)
def test_classes_of_another_form_are_refused_with_what_gives_integers(name: str) -> None:
    shape, targets = CLASSES[name]
    assert "regression" not in what_is_said(targets, torch.zeros(shape))
    if len(shape) <= 2:
        with pytest.raises(ValueError, match="`target_fn=`") as caught:
            check_classes(targets, N, torch.zeros(shape)[:1].numel())
        assert "regression" not in str(caught.value)


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_a_task_that_is_named_is_one_of_classes(task: str) -> None:
    assert "regression" not in what_is_said(normal(N, 3), torch.zeros(N, 1 if task == "binary" else 3), task=task)


def test_each_measure_of_classes_says_that_a_regression_leaves_it_out() -> None:
    torch.manual_seed(0)
    net, x, y = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), normal(N, 4), normal(N)
    for measure, text in (
        (lambda: robust_accuracy(net, x, y, eps=0.1), "Accuracy under attack is .* leave this callback"),
        (lambda: neural_collapse(net, x, y), "Neural collapse is .* leave this callback"),
        (lambda: linear_probe(net, (x, y), (x, y)), "A linear probe is .* leave `linear_probe` out"),
    ):
        with pytest.raises(ValueError, match=f"{NOT_CLASSES}. {text}"):
            measure()
