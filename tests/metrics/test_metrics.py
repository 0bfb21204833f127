"""Metrics over batches equal the functions on all points; two processes equal one; they behave as torchmetrics' own."""

from __future__ import annotations

import copy
import inspect
import math
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from torch import Tensor, distributed, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score

from lc_callback.functional import (
    centroid_alignment,
    feature_ranks,
    local_complexity,
    neural_collapse,
    robust_accuracy,
)
from lc_callback.metrics import CentroidAlignment, FeatureRank, LocalComplexity, NeuralCollapse, RobustAccuracy

mpl.use("Agg")
N, DIM, N_CLASSES = 37, 6, 3


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, N_CLASSES)).double()


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.arange(N) % N_CLASSES


def metrics() -> dict[str, Metric]:
    return {
        "lc": LocalComplexity(0.5, n_directions=4),
        "lc of two radii": LocalComplexity([0.1, 0.5], method="linear"),
        "robust": RobustAccuracy([0.1, 0.3], bounds=(-9, 9), attack="FGSM"),
        "robust, a metric": RobustAccuracy(
            [0.1, 0.3], bounds=(-9, 9), attack="FGSM", metric=MulticlassF1Score(N_CLASSES)
        ),
        "robust, scores": RobustAccuracy([0.1], bounds=(-9, 9), attack="FGSM", metric=MulticlassAUROC(N_CLASSES)),
        "rank": FeatureRank(),
        "rank, not centred": FeatureRank(center=False, matrix="features", layers=["0", "3"]),
        "alignment": CentroidAlignment(),
        "collapse": NeuralCollapse(),
    }


def flat(value: Any) -> dict[str, Tensor]:
    return value if isinstance(value, dict) else {"": value}


def assert_close(found: Any, expected: Any, **tolerance: float) -> None:
    found, expected = flat(found), flat(expected)
    assert [*found] == [*expected]
    for name, value in found.items():
        other = torch.as_tensor(expected[name], dtype=torch.float64)
        torch.testing.assert_close(value, other, equal_nan=True, **(tolerance or {"rtol": 1e-9, "atol": 1e-9}))


def accuracies(robust: Any) -> dict[str, float]:
    return {"clean_acc": robust.clean_acc, **{f"robust_acc_eps{e:g}": a for e, a in robust.robust_acc.items()}}


def expected() -> dict[str, Any]:
    """What the functions say of all points."""
    model, (x, y) = net(), data()
    robust = robust_accuracy(model, x, y, eps=[0.1, 0.3], bounds=(-9, 9), attack="FGSM")
    found: dict[str, Any] = {
        "lc": local_complexity(model, x, radius=0.5, n_directions=4).mean,
        "lc of two radii": local_complexity(model, x, radius=[0.1, 0.5], method="linear").mean,
        "robust": accuracies(robust),
        "robust, a metric": accuracies(
            robust_accuracy(
                model, x, y, eps=[0.1, 0.3], bounds=(-9, 9), attack="FGSM", metric=MulticlassF1Score(N_CLASSES)
            )
        ),
        "robust, scores": accuracies(
            robust_accuracy(model, x, y, eps=0.1, bounds=(-9, 9), attack="FGSM", metric=MulticlassAUROC(N_CLASSES))
        ),
        "alignment": centroid_alignment(model, x).mean,
    }
    for name, options in (
        ("rank", {}),
        ("rank, not centred", {"center": False, "matrix": "features", "layers": ["0", "3"]}),
    ):
        ranks = feature_ranks(model, x, **options)
        kinds = ("rank", "effective_rank", "stable_rank")
        found[name] = {f"{kind}/{layer}": float(getattr(of, kind)) for layer, of in ranks.items() for kind in kinds}
    collapse = neural_collapse(model, x, y)
    found["collapse"] = {name: getattr(collapse, name) for name in collapse.__dataclass_fields__ if name != "n_classes"}
    return found


@pytest.mark.parametrize("batch", [1, 5, 12, N])
@pytest.mark.parametrize("name", metrics())
def test_batches_equal_the_function_on_all_points(name: str, batch: int) -> None:
    metric, model, (x, y) = metrics()[name], net(), data()
    for some, targets in zip(x.split(batch), y.split(batch), strict=True):
        metric.update(model, some, targets)
    assert_close(metric.compute(), expected()[name])


def test_the_half_width_is_that_of_the_function() -> None:
    metric, model, (x, _) = metrics()["lc of two radii"], net(), data()
    for some in x.split(10):
        metric.update(model, some)
    found = local_complexity(model, x, radius=[0.1, 0.5], method="linear")
    torch.testing.assert_close(metric.half_width(), torch.as_tensor(found.ci99, dtype=torch.float64))


@pytest.mark.parametrize("name", metrics())
def test_reset_begins_anew(name: str) -> None:
    metric, model, (x, y) = metrics()[name], net(), data()
    metric.update(model, 0.5 * x + 1, y)
    metric.reset()
    metric.update(model, x, y)
    assert_close(metric.compute(), expected()[name])


@pytest.mark.parametrize("name", metrics())
def test_forward_gives_the_value_of_the_batch_and_keeps_all(name: str) -> None:
    metric, model, (x, y) = metrics()[name], net(), data()
    first = metric(model, x[:20], y[:20])
    alone = metrics()[name]
    alone.update(model, x[:20], y[:20])
    assert_close(first, alone.compute())
    metric(model, x[20:], y[20:])
    assert_close(metric.compute(), expected()[name])


class InPlaceF1(MulticlassF1Score):
    """Adds to its states in place, as metrics of torchmetrics 1.4 and of its manual do."""

    def _update_state(self, *counts: Tensor) -> None:
        for name, count in zip(("tp", "fp", "tn", "fn"), counts, strict=True):
            getattr(self, name).add_(count)


def test_a_metric_may_add_to_its_states_in_place() -> None:
    metric, model, (x, y) = (
        RobustAccuracy([0.1, 0.3], bounds=(-9, 9), attack="FGSM", metric=InPlaceF1(N_CLASSES)),
        net(),
        data(),
    )
    metric.update(model, x[:20], y[:20])
    metric.update(model, x[20:], y[20:])
    assert_close(metric.compute(), expected()["robust, a metric"])


@pytest.mark.parametrize("name", metrics())
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda metric: pickle.loads(pickle.dumps(metric)), Metric.clone])
def test_copies_go_on(name: str, copied: Any) -> None:
    metric, model, (x, y) = metrics()[name], net(), data()
    metric.update(model, x[:20], y[:20])
    other = copied(metric)
    other.update(model, x[20:], y[20:])
    assert_close(other.compute(), expected()[name])


def test_a_collection() -> None:
    """As of other metrics, what is not a dict has the name of its metric, and a dict its own keys."""
    names = ["lc", "robust", "rank", "alignment", "collapse"]
    collection, model, (x, y) = MetricCollection({name: metrics()[name] for name in names}), net(), data()
    for some, targets in zip(x.split(9), y.split(9), strict=True):
        collection.update(model, some, targets)
    values = expected()
    one_by_one = {key or name: value for name in names for key, value in flat(values[name]).items()}
    found = collection.compute()
    assert {*found} == {*one_by_one}
    assert_close({key: found[key] for key in one_by_one}, one_by_one)


@pytest.mark.parametrize("name", metrics())
def test_plot(name: str) -> None:
    metric, model, (x, y) = metrics()[name], net(), data()
    values = [metric(model, some, targets) for some, targets in zip(x.split(13), y.split(13), strict=True)]
    figure, axes = metric.plot(values)
    assert figure is not None
    assert axes.lines
    mpl.pyplot.close(figure)


@pytest.mark.parametrize("name", metrics())
def test_the_model_is_left_as_it_was(name: str) -> None:
    metric, model, (x, y) = metrics()[name], net().train(), data()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    metric.update(model, x, y)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_infinite_logit_makes_accuracies_nan() -> None:
    metric, model, (x, y) = metrics()["robust"], net(), data()
    with torch.no_grad():
        model[4].bias[0] = math.inf
    metric.update(model, x, y)
    assert math.isnan(metric.compute()["clean_acc"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LocalComplexity(-1.0), "radius"),
        (lambda: LocalComplexity("auto"), "radius"),
        (lambda: LocalComplexity(0.1, method="linea"), "method"),
        (lambda: RobustAccuracy(-1.0), "eps"),
        (lambda: RobustAccuracy(0.1, attack="PDG"), "did you mean 'PGD'"),
        (lambda: RobustAccuracy(0.1, bounds=(1, 0)), "bounds"),
        (lambda: RobustAccuracy(0.1, task="classes"), "task"),
        (lambda: RobustAccuracy(0.1, metric="f1"), "metric"),
        (lambda: RobustAccuracy(0.1, return_adversarial=True), "return_adversarial"),
        (lambda: FeatureRank(matrix="other"), "matrix"),
        (lambda: NeuralCollapse(layer="x").update(net(), *data()), "layer"),
        (lambda: NeuralCollapse().update(net(), data()[0], torch.arange(3)), "3 targets for 37 points"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("name", metrics())
def test_arguments_and_defaults_are_those_of_the_function(name: str) -> None:
    kind = type(metrics()[name])
    parameters = inspect.signature(kind).parameters
    own = {*parameters} - {"eps", "radius", "kwargs"}
    of_function = inspect.signature(kind.function).parameters
    assert own <= {*of_function}
    assert {key: parameters[key].default for key in own} == {key: of_function[key].default for key in own}
    assert len(own) >= 3


@pytest.mark.parametrize("name", metrics())
def test_parts_are_put_together(name: str) -> None:
    """As the callbacks do it."""
    model, (x, y) = net(), data()
    parts = []
    for rows in (slice(None, None, 3), slice(1, None, 3), slice(2, None, 3)):
        part = metrics()[name]
        part.update(model, x[rows], y[rows])
        parts.append(pickle.loads(pickle.dumps(part.seen())))
    whole = metrics()[name]
    whole.update(model, x + 1, y)  # which is forgotten
    whole.join(parts)
    assert_close(whole.compute(), expected()[name])


@pytest.mark.parametrize("attack", ["PGD", "FGSM"])
@pytest.mark.parametrize("metric", [None, MulticlassF1Score(N_CLASSES)])
def test_shares_of_all_points_are_decided_by_all(metric: Any, attack: str) -> None:
    """The typical margin and the noise of a point do not depend on the share."""
    torch.manual_seed(0)
    model, (x, _) = nn.Linear(DIM, N_CLASSES).double(), data()
    y = model(x).argmax(1)
    eps = [0.05 * k for k in range(1, 15)]  # and one short step, so that its start decides
    options = {"eps": eps, "bounds": (-9, 9), "attack": attack, "metric": metric, "steps": 1, "alpha": 1e-3}
    parts = []
    for index in range(3):
        part = RobustAccuracy(**options)
        part.update(model, x, y, share=(index, 3))
        parts.append(part.seen())
    whole, joined = RobustAccuracy(**options), RobustAccuracy(**options)
    whole.update(model, x, y)
    joined.join(parts)
    assert_close(joined.compute(), whole.compute(), rtol=1e-6, atol=1e-9)
    assert 0 < float(whole.compute()["robust_acc_eps0.7"]) < 0.99


def test_batches_of_two_tasks_are_refused() -> None:
    model, (x, _) = net(), data()
    metric = RobustAccuracy(0.1)
    metric.update(model, x[:3], torch.eye(3).long())
    with pytest.raises(ValueError, match=r"some batches are multiclass, those of others multilabel: pass `task=`"):
        metric.update(model, x[:3], torch.ones(3, 3).long())


def worker(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    model, (x, y) = net(), data()
    found = {}
    for name, metric in metrics().items():
        for some, targets in zip(x[rank::2].split(7), y[rank::2].split(7), strict=True):
            metric.update(model, some, targets)
        found[name] = metric.compute()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.destroy_process_group()


def test_two_processes_equal_one(tmp_path: Path) -> None:
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    runs = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [run.communicate()[1].decode() for run in runs]
    assert all(run.returncode == 0 for run in runs), errors
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt")
        for name, value in expected().items():
            assert_close(found[name], value)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
