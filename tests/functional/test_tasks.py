"""Robust accuracy of other tasks than one class of several: yes or no, several labels, pixels; and of other metrics."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Calls
from torch import Tensor, nn
from torchmetrics import MeanSquaredError
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassJaccardIndex,
    MultilabelAccuracy,
    MultilabelF1Score,
)

from lc_callback.functional import robust_accuracy
from lc_callback.functional.targets import check_classes, check_labels

N, DIM, EPS = 60, 6, [0.3, 0.05]
WIDE = (-9.0, 9.0)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Affine(nn.Module):
    """``n`` affine decisions, of which the exact robust accuracy is known."""

    def __init__(self, n: int, scale: float = 1.0) -> None:
        super().__init__()
        self.weight, self.scale = nn.Parameter(draw(n, DIM, seed=1)), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x @ self.weight.T


def with_errors(right: Tensor) -> Tensor:
    """Zeros and ones of which every fifth is wrong."""
    flat = right.flatten().clone()
    flat[::5] = ~flat[::5]
    return flat.reshape(right.shape)


def one_logit() -> tuple[nn.Module, Tensor, Tensor]:
    net, x = Affine(1), draw(N, DIM)
    return net, x, with_errors(net(x)[:, 0] > 0)


def labels() -> tuple[nn.Module, Tensor, Tensor]:
    net, x = Affine(4), draw(N, DIM)
    return net, x, with_errors(net(x) > 0)


class Pixels(nn.Module):
    """Each pixel is judged by itself."""

    def __init__(self, n: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Conv2d(2, n, 1).double()

    def forward(self, x: Tensor) -> Tensor:
        return 3 * self.net(x)


def pixels() -> tuple[nn.Module, Tensor, Tensor]:
    net, x = Pixels(3), draw(8, 2, 5, 4)
    classes = net(x).argmax(1)
    classes[:, ::2, 0] = (classes[:, ::2, 0] + 1) % 3
    return net, x, classes


def exact(z: Tensor, right: Tensor, reach: Tensor) -> float:
    """The share of the decisions by the signs of ``z`` that are right, and farther than ``reach`` from being wrong."""
    return float((((z > 0) == right) & (z.abs() > reach)).double().mean())


# One logit


@pytest.mark.parametrize("shape", ["column", "flat"])
@pytest.mark.parametrize("kind", [torch.int64, torch.bool, torch.float32, torch.uint8])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_one_logit_has_the_robust_accuracy_of_the_closed_form(scale: float, kind: Any, shape: str) -> None:
    net, x, right = one_logit()
    net.scale = scale
    z = net(x)[:, 0]
    forward_fn = None if shape == "column" else lambda m, x: m(x)[:, 0]
    targets = right.to(kind)[:, None] if kind is torch.float32 else right.to(kind)
    found = robust_accuracy(net, x, targets, eps=EPS, bounds=WIDE, forward_fn=forward_fn)
    assert found.task == "binary"
    assert found.clean_acc == exact(z, right, torch.tensor(0.0)) == 0.8
    for eps in EPS:
        assert found.robust_acc[eps] == exact(z, right, eps * scale * net.weight.abs().sum())
    assert 0 < found.robust_acc[0.3] < found.robust_acc[0.05] < 0.8


def test_one_logit_is_two_of_opposite_sign() -> None:
    net, x, right = one_logit()
    two = robust_accuracy(
        net, x, right.long(), eps=EPS, bounds=WIDE, forward_fn=lambda m, x: torch.cat([-m(x), m(x)], 1) / 2
    )
    one = robust_accuracy(net, x, right.long(), eps=EPS, bounds=WIDE)
    assert (one.clean_acc, one.robust_acc) == (two.clean_acc, two.robust_acc)


@pytest.mark.parametrize(
    "name", ["PGDL2", "APGD", pytest.param("AutoAttack", marks=pytest.mark.slow), "FAB", "CW", "Square"]
)
def test_one_logit_can_be_attacked_by_any_name(name: str) -> None:
    net, x, right = one_logit()
    arguments = {"n_queries": 20} if name == "Square" else {}
    found = robust_accuracy(net, x[:12], right[:12], eps=0.3, bounds=WIDE, attack=name, attack_args=arguments)
    assert found.robust_acc[0.3] <= found.clean_acc


@pytest.mark.parametrize("scale", [1, 1000])
def test_a_sigmoid_is_taken_off(scale: float) -> None:
    net, x, right = one_logit()
    net.scale = scale
    with pytest.warns(UserWarning, match="probabilities"):
        found = robust_accuracy(net, x, right, eps=EPS, bounds=WIDE, forward_fn=lambda m, x: m(x).sigmoid())
    assert found.robust_acc == robust_accuracy(net, x, right, eps=EPS, bounds=WIDE).robust_acc


def test_a_sigmoid_by_hand_is_seen_by_its_numbers() -> None:
    net, x, right = one_logit()
    net.scale = 20
    with pytest.warns(UserWarning, match="probabilities"):
        found = robust_accuracy(net, x, right, eps=0.05, bounds=WIDE, forward_fn=lambda m, x: 1 / (1 + (-m(x)).exp()))
    assert found.robust_acc[0.05] == robust_accuracy(net, x, right, eps=0.05, bounds=WIDE).robust_acc[0.05]


# Several labels


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_each_label_counts_by_itself(scale: float) -> None:
    net, x, right = labels()
    net.scale = scale
    found = robust_accuracy(net, x, right.float(), eps=EPS, bounds=WIDE, steps=40)
    assert found.task == "multilabel"
    assert found.clean_acc == exact(net(x), right, torch.tensor(0.0)) == 0.8
    # No attack reaches more of the labels than what each could lose if the budget were for it alone.
    bound = {eps: exact(net(x), right, eps * scale * net.weight.abs().sum(1)) for eps in EPS}
    assert all(bound[eps] <= found.robust_acc[eps] < 0.8 for eps in EPS)
    assert found.robust_acc[0.3] < bound[0.3] + 0.1


def test_the_scale_of_the_logits_of_labels_does_not_matter() -> None:
    net, x, right = labels()
    found = []
    for scale in (2.0**-10, 1.0, 2.0**12):
        net.scale = scale
        found.append(robust_accuracy(net, x, right, eps=EPS, bounds=WIDE).robust_acc)
    assert found[0] == found[1] == found[2]


def test_one_label_is_attacked_as_one_logit() -> None:
    net, x, right = one_logit()
    both = [
        robust_accuracy(net, x, right[:, None], eps=EPS, bounds=WIDE, task=task) for task in ("binary", "multilabel")
    ]
    assert both[0].robust_acc == both[1].robust_acc


def test_rows_with_one_label_each_are_classes_unless_the_task_is_named() -> None:
    net, x, _ = labels()
    one_hot = nn.functional.one_hot(net(x).argmax(1), 4)
    assert robust_accuracy(net, x, one_hot, eps=0.1).task == "multiclass"
    assert robust_accuracy(net, x, one_hot, eps=0.1).clean_acc == 1
    found = robust_accuracy(net, x, one_hot, eps=0.1, task="multilabel")
    assert found.task == "multilabel"
    assert found.clean_acc == float(((net(x) > 0) == one_hot.bool()).double().mean()) < 1
    metric = MultilabelAccuracy(num_labels=4)
    assert robust_accuracy(net, x, one_hot, eps=0.1, metric=metric).task == "multilabel"


# Pixels


def test_each_pixel_counts_by_itself() -> None:
    """One-by-one convolutions: the attack of an image is that of its pixels as points."""
    net, x, classes = pixels()
    arguments = {"eps": EPS, "bounds": WIDE, "attack_args": {"random_start": False}}
    found = robust_accuracy(net, x, classes, **arguments)
    each = robust_accuracy(net, x.permute(0, 2, 3, 1).reshape(-1, 2, 1, 1), classes.reshape(-1, 1, 1), **arguments)
    assert found.clean_acc == each.clean_acc == float((net(x).argmax(1) == classes).double().mean()) < 1
    assert found.robust_acc == each.robust_acc
    assert 0 < found.robust_acc[0.3] < found.robust_acc[0.05] < found.clean_acc


@pytest.mark.parametrize("name", ["PGD", "FGSM", "PGDL2", "MIFGSM"])
def test_pixels_and_labels_are_attacked_by_the_names_whose_loss_is_a_mean(name: str) -> None:
    for net, x, targets in (pixels(), labels()):
        found = robust_accuracy(net, x, targets, eps=EPS, bounds=WIDE, attack=name)
        assert found.robust_acc[0.3] < found.robust_acc[0.05] < found.clean_acc


@pytest.mark.parametrize("name", ["AutoAttack", "APGD", "DeepFool", "Square", "PGDRS"])
def test_other_names_are_refused_where_there_are_several_decisions(name: str) -> None:
    net, x, targets = labels()
    with pytest.raises(ValueError, match=rf"attack='{name}'.*one decision at each point.*PGDL2.*or a function"):
        robust_accuracy(net, x, targets, eps=0.1, attack=name)


def test_pixels_of_class_minus_100_do_not_count() -> None:
    net, x, classes = pixels()
    wrong = net(x).argmax(1) != classes
    found = robust_accuracy(net, x, classes.where(~wrong, -100), eps=EPS, bounds=WIDE)
    assert found.clean_acc == 1
    stood = round(found.robust_acc[0.3] * int((~wrong).sum()))
    assert robust_accuracy(net, x, classes, eps=EPS, bounds=WIDE).robust_acc[0.3] == pytest.approx(
        stood / wrong.numel()
    )
    for name in ("FGSM", "PGD"):
        left_out = robust_accuracy(net, x, classes.where(~wrong, -100), eps=0.3, bounds=WIDE, attack=name)
        assert 0 < left_out.robust_acc[0.3] < 1


def test_one_hot_pixels_and_a_channel_axis_are_classes_too() -> None:
    net, x, classes = pixels()
    expected = robust_accuracy(net, x, classes, eps=0.3, bounds=WIDE).robust_acc
    one_hot = nn.functional.one_hot(classes, 3).permute(0, 3, 1, 2)
    assert robust_accuracy(net, x, one_hot, eps=0.3, bounds=WIDE).robust_acc == expected
    assert robust_accuracy(net, x, classes[:, None], eps=0.3, bounds=WIDE).robust_acc == expected


def test_pixels_of_no_and_yes() -> None:
    net, x = Pixels(1), draw(8, 2, 5, 4)
    right = with_errors(net(x)[:, 0] > 0)
    found = robust_accuracy(net, x, right.long(), eps=EPS, bounds=WIDE)
    assert found.task == "binary"
    reach = torch.stack([eps * 3 * net.net.weight.abs().sum() for eps in EPS])
    z = net(x)[:, 0]
    assert found.clean_acc == 0.8
    assert list(found.robust_acc.values()) == [exact(z, right, one) for one in reach]


# How the attack goes on


@pytest.mark.parametrize("make", [one_logit, labels, pixels])
def test_robust_accuracy_never_rises_with_eps(make: Any) -> None:
    net, x, targets = make()
    eps = [0.02 * k for k in range(8)]
    for name in ("PGD", "FGSM"):
        shares = [*robust_accuracy(net, x, targets, eps=eps, bounds=WIDE, attack=name).robust_acc.values()]
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[-1]


def test_a_point_is_attacked_until_its_last_decision_has_fallen() -> None:
    net, x, right = labels()
    right = net(x) > 0
    right[:, 2:] = ~right[:, 2:]  # two of four decisions are right
    asked = Calls()
    net.register_forward_pre_hook(lambda module, args: asked.append(len(args[0])))
    found = robust_accuracy(net, x, right, eps=2.0, bounds=WIDE, steps=10, return_adversarial=True)
    steps = asked[2:]  # behind a look at two points, and one at all
    assert steps[0] == N
    assert sum(steps) < 11 * N
    z = net(found.adversarial[2.0])
    fell = ((z > 0) != right)[:, :2]
    assert found.robust_acc[2.0] <= float((~fell).double().mean()) / 2 + 1e-12


def test_the_same_decisions_with_and_without_the_points_that_fell() -> None:
    net, x, targets = labels()
    one = robust_accuracy(net, x, targets, eps=EPS, bounds=WIDE)
    every = robust_accuracy(net, x, targets, eps=EPS, bounds=WIDE, return_adversarial=True, chunk_size=7)
    assert one.robust_acc == every.robust_acc
    assert every.adversarial[0.3].shape == x.shape


def test_raw_logits_are_judged_at_what_the_attack_returns() -> None:
    net, x, targets = labels()
    found = robust_accuracy(net, x, targets, eps=0.3, bounds=WIDE, normalize_logits=False, return_adversarial=True)
    both = ((net(x) > 0) == targets) & ((net(found.adversarial[0.3]) > 0) == targets)
    assert found.robust_acc[0.3] == float(both.double().mean())


@pytest.mark.parametrize("make", [one_logit, labels, pixels])
def test_a_function_gets_outputs_and_targets_as_its_loss_takes_them(make: Any) -> None:
    net, x, targets = make()

    def attack(model: nn.Module, points: Tensor, y: Tensor, *, eps: float) -> Tensor:
        points = points.requires_grad_()
        loss = nn.functional.cross_entropy if make is pixels else nn.functional.binary_cross_entropy_with_logits
        outputs = model(points)
        assert torch.equal(outputs.argmax(1), net(x).argmax(1)) if make is pixels else outputs.shape == y.shape
        return points + eps * torch.autograd.grad(loss(outputs, y), points)[0].sign()

    found = robust_accuracy(net, x, targets, eps=0.3, bounds=WIDE, attack=attack)
    assert found.robust_acc == robust_accuracy(net, x, targets, eps=0.3, bounds=WIDE, attack="FGSM").robust_acc
    assert found.robust_acc[0.3] < found.clean_acc


def test_a_logit_that_is_not_finite_is_no_accuracy() -> None:
    net, x, targets = labels()

    def broken(model: nn.Module, points: Tensor) -> Tensor:
        return torch.cat([model(points)[:, :3], torch.full_like(points[:, :1], math.nan)], 1)

    found = robust_accuracy(net, x, targets, eps=0.3, forward_fn=broken)
    assert math.isnan(found.clean_acc)
    assert math.isnan(found.robust_acc[0.3])


# Other metrics

METRICS = {
    "binary": (one_logit, [BinaryAccuracy(), BinaryF1Score(), BinaryAUROC()]),
    "multilabel": (labels, [MultilabelAccuracy(num_labels=4), MultilabelF1Score(num_labels=4, average="micro")]),
    "pixels": (
        pixels,
        [MulticlassAccuracy(num_classes=3, average="micro"), MulticlassJaccardIndex(num_classes=3)],
    ),
}


@pytest.mark.parametrize("kind", METRICS)
def test_without_attack_metrics_say_what_torchmetrics_says(kind: str) -> None:
    make, metrics = METRICS[kind]
    net, x, targets = make()
    outputs = net(x).detach()[:, 0] if kind == "binary" else net(x).detach()
    for metric in metrics:
        found = robust_accuracy(net, x, targets, eps=[0.0, *EPS], bounds=WIDE, metric=metric)
        metric.reset()
        assert found.clean_acc == found.robust_acc[0.0] == pytest.approx(float(metric(outputs, targets.long())))
        metric.reset()
        assert found.robust_acc[0.3] < found.robust_acc[0.05] < found.clean_acc


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("attack", ["PGD", "FGSM"])
@pytest.mark.parametrize("kind", METRICS)
def test_the_accuracy_of_torchmetrics_is_the_default(kind: str, attack: str, normalize: bool) -> None:
    make, metrics = METRICS[kind]
    net, x, targets = make()
    arguments = {"eps": EPS, "bounds": WIDE, "attack": attack, "normalize_logits": normalize}
    own = robust_accuracy(net, x, targets, **arguments)
    theirs = robust_accuracy(net, x, targets, metric=metrics[0], **arguments)
    assert theirs.clean_acc == pytest.approx(own.clean_acc)
    assert theirs.robust_acc == pytest.approx(own.robust_acc)
    assert metrics[0].update_count == 0  # what was given is left alone


def test_the_metric_names_what_does_not_count() -> None:
    net, x = Affine(3), draw(N, DIM)
    classes = net(x).argmax(1)
    classes[::3] = 7
    metric = MulticlassF1Score(num_classes=3, ignore_index=7)
    assert robust_accuracy(net, x, classes, eps=0.1, metric=metric).clean_acc == 1
    with pytest.raises(ValueError, match=r"range from 0 to 7.*metric=.*ignore_index"):
        robust_accuracy(net, x, classes, eps=0.1)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"task": "multilable"}, "`task` must be one of .*did you mean 'multilabel'"),
        ({"metric": "f1"}, "`metric` must be None or a metric of torchmetrics such as .*got str 'f1'"),
        ({"metric": BinaryF1Score}, "got the class BinaryF1Score"),
        ({"metric": MeanSquaredError()}, r"`metric` must be a metric for classifiers.*MeanSquaredError"),
        (
            {"metric": BinaryF1Score(), "task": "multilabel"},
            "`task='multilabel'` is not that of `metric`.*task='binary'",
        ),
        ({"metric": MultilabelF1Score(num_labels=4, average=None)}, "must give one number.*average='macro'"),
        ({"metric": MultilabelF1Score(num_labels=3)}, r"`metric` MultilabelF1Score refuses outputs of shape \(60, 4\)"),
        ({"metric": BinaryF1Score()}, "task='binary' needs one logit.*task='multilabel'"),
        ({"task": "multiclass"}, r"shape \(60, 4\), where accuracy needs 60 integer classes.*task='multilabel'"),
    ],
)
def test_arguments_are_checked_in_words(arguments: dict[str, Any], text: str) -> None:
    net, x, targets = labels()
    with pytest.raises(ValueError, match=f"(?s){text}"):
        robust_accuracy(net, x, targets, eps=0.1, **arguments)


SHAPES: list[tuple[Any, Any, str]] = [
    (
        (8, 1),
        torch.tensor([0.2, 0.7] * 4),
        "torch.float32 .*range from 0.2.* where task='binary' needs 0 and 1.*target_fn=",
    ),
    ((8, 1), torch.full((8,), math.nan), "are not finite"),
    ((8,), torch.arange(8), "range from 0 to 7, where task='binary'"),
    (
        (8, 1),
        torch.zeros(7),
        r"shape \(7,\) and the model returns shape \(8, 1\), where task='binary' needs",
    ),
    (
        (8, 4),
        torch.zeros(8, 3),
        r"shape \(8, 3\), where accuracy needs 8 integer classes for outputs of .*\(8, 4\)",
    ),
    ((8, 5, 4), torch.zeros(8, 5).long(), r"integer classes \(8, 4\) for outputs of shape \(8, 5, 4\).*logits \(N, C"),
    ((8, 3, 2, 2), torch.full((8, 2, 2), 3), "range from 3 to 3, but the model returns 3 logits"),
    ((8, 3, 2, 2), torch.full((8, 2, 2), -100), "are all -100, which does not count"),
]


@pytest.mark.parametrize(("shape", "targets", "text"), SHAPES)
def test_targets_that_fit_no_task_are_refused_in_words(shape: tuple[int, ...], targets: Tensor, text: str) -> None:
    with pytest.raises(ValueError, match=f"(?s){text}"):
        check_labels(targets, torch.zeros(shape))


def test_a_class_of_the_value_that_is_ignored_in_fewer_bits_counts() -> None:
    classes = torch.full((2, 3, 3), 156, dtype=torch.uint8)  # -100 in eight bits
    found = check_labels(classes, torch.zeros(2, 200, 3, 3))
    assert found.n_counted == 18
    assert (found.classes == 156).all()


def test_one_target_for_each_point() -> None:
    assert check_classes(torch.tensor([[0], [2]]), 2).tolist() == [0, 2]
    assert check_classes(torch.tensor([[0, 1], [1, 0]]), 2).tolist() == [1, 0]
    with pytest.raises(ValueError, match="got 3 targets for 2 points"):
        check_classes(torch.zeros(3).long(), 2)
    with pytest.raises(ValueError, match=r"shape \(2, 2\), where accuracy needs 2 integer classes"):
        check_classes(torch.zeros(2, 2).long(), 2)


@pytest.mark.parametrize("shape", [(7,), (7, 1), (7, 4), (7, 1, 3, 2)])
def test_logits_of_two_classes_have_the_outputs_as_their_lead(shape: tuple[int, ...]) -> None:
    z = draw(*shape)
    found = check_labels(z > 0, z)
    logits = found.logits(z)
    assert logits.shape[:2] == (7, 2)
    assert torch.equal(logits.argmax(1), found.classes)
    assert torch.equal(found.outputs(logits), z)
    assert torch.equal(found.targets(), (z > 0).long())
