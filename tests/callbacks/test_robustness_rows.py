"""What the robustness callback logs, and that its arguments reach the attack."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, DIM, Classifier, RowLogger, loader, make_trainer, our_warnings, points, timeless, tiny
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassF1Score

from lc_callback import PGDRobustnessCallback
from lc_callback.engine.adversarial.domain import find_bounds
from lc_callback.functional import robust_accuracy

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

CLEAN = ["clean_acc/train", "clean_acc/test"]
N = 24


def small(**arguments: Any) -> PGDRobustnessCallback:
    return tiny("robustness", **{"n_probes": N, "eps": 0.5, "every_n_train_steps": 1, **arguments})


def fit(folder: Any, *callbacks: Any, module: Any = None, data: Any = None, **arguments: Any) -> RowLogger:
    """Train for two steps, validated on other points; returns the logger."""
    rows = RowLogger()
    module = first_module() if module is None else module
    trainer = make_trainer(folder, *callbacks, **{"logger": rows, "max_steps": 2, **arguments})
    trainer.fit(module, loader(data), loader(points(N, seed=1) if data is None else data))
    return rows


def both() -> tuple[Any, Any]:
    return points(N)[:], points(N, seed=1)[:]


def observed() -> tuple[torch.Tensor, torch.Tensor]:
    """The range of each feature over all points."""
    everything = torch.cat([inputs for inputs, _ in both()])
    return everything.amin(0), everything.amax(0)


def first_module() -> Classifier:
    """With large weights, so that it decides by the inputs from the start."""
    torch.manual_seed(0)
    module = Classifier()
    for name, parameter in module.named_parameters():
        parameter.data.mul_(3 if "weight" in name else 0)
    return module


def by_function(eps: Any = 0.5, **arguments: Any) -> Any:
    """Of the test points at step 0."""
    return robust_accuracy(
        first_module(), *both()[1], **{"eps": eps, "steps": 2, "bounds": observed(), **arguments}
    ).robust_acc


# Keys


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"eps": 0.5}, ["robust_acc/test_eps0.5"]),
        ({"eps": (0.03, 0.1)}, ["robust_acc/test_eps0.03", "robust_acc/test_eps0.1"]),
        ({"eps": [0.0, 2.0, 1 / 3]}, ["robust_acc/test_eps0", "robust_acc/test_eps2", "robust_acc/test_eps0.333333"]),
        ({"eps": 0.5, "eps_unit": "std"}, ["robust_acc/test_eps0.5"]),
        (
            {"eps": [0.1, 0.5], "raw": True},
            [f"{group}/test_eps{eps}" for group in ("robust_acc", "robust_acc_raw") for eps in (0.1, 0.5)],
        ),
    ],
)
def test_keys_are_those_of_the_docstring(arguments: Any, expected: list[str], tmp_path: Any) -> None:
    callback = small(**arguments)
    rows = fit(tmp_path, callback)
    ours = [metrics for _, metrics in rows.calls if "clean_acc/train" in metrics]
    assert [list(metrics) for metrics in ours] == 3 * [[*CLEAN, *expected, "robust_acc/seconds"]]
    assert ours == [{key: value for key, value in row.items() if key != "step"} for row in callback.history]
    assert all(0 <= metrics[key] <= metrics["clean_acc/test"] for metrics in ours for key in expected)
    assert (tmp_path / "robust_acc" / "history.csv").exists()


def test_the_default_has_two_radii_of_the_input(tmp_path: Any) -> None:
    callback = PGDRobustnessCallback()
    fit(tmp_path, callback)
    expected = ["robust_acc/test_eps0.03", "robust_acc/test_eps0.1"]
    assert callback.history.keys == [*CLEAN, *expected, "robust_acc/seconds"]


def test_without_test_points_the_train_points_are_attacked(tmp_path: Any) -> None:
    callback = small(raw=True)
    trainer = make_trainer(tmp_path, callback, logger=RowLogger(), max_steps=1)
    with our_warnings() as warned:
        trainer.fit(first_module(), loader())
    keys = ["clean_acc/train", "robust_acc/train_eps0.5", "robust_acc_raw/train_eps0.5", "robust_acc/seconds"]
    assert callback.history.keys == keys
    assert len(warned) == 1
    assert "no test curve" in warned[0]


def test_two_instances_are_told_apart_by_their_prefix(tmp_path: Any) -> None:
    first, second = small(log_key_prefix="a/"), small(log_key_prefix="b/", attack="PGDL2")
    rows = fit(tmp_path, first, second)
    assert rows.steps("a/robust_acc/test_eps0.5") == rows.steps("b/clean_acc/test") == [0, 1, 2]
    assert first.state_key != second.state_key


# Values


def test_a_row_is_what_the_functions_say(tmp_path: Any) -> None:
    callback = small(eps=[0.1, 0.5, 1.5])
    fit(tmp_path, callback)
    module, row = first_module(), callback.history.rows[0]
    for split, (inputs, targets) in zip(("train", "test"), both(), strict=True):
        right = module(inputs).argmax(1) == targets
        assert row[f"clean_acc/{split}"] == pytest.approx(right.double().mean().item())
    expected = by_function([0.1, 0.5, 1.5])
    assert {eps: row[f"robust_acc/test_eps{eps}"] for eps in expected} == expected
    assert expected[1.5] < expected[0.1] <= row["clean_acc/test"]


def test_rows_differ_by_the_model_only(tmp_path: Any) -> None:
    """The same points and the same start at every row."""
    callback = small(eps=[0.2, 0.4])
    fit(tmp_path, callback, module=Classifier(optimizer=lambda p: torch.optim.SGD(p, lr=0.0)))
    first, *others = [[*row.values()][1:] for row in timeless(callback.history)]
    assert others == [first, first]


@pytest.mark.parametrize(
    "arguments",
    [
        {"attack": "PGDL2"},
        {"attack": "PGD", "attack_args": {"random_start": False}},
        {"alpha": 0.01},
        {"steps": 7},
        {"seed": 3},
        {"bounds": (-9.0, 9.0)},
        {"bounds": [-3.0 - torch.arange(DIM), [3.0, 3.5, 4.0, 4.5, 5.0, 5.5]]},
        {"bounds": (-math.inf, math.inf)},
        {"at": "net.0", "eps_unit": "input"},
        {"at": "net.1", "bounds": (0.0, math.inf), "eps_unit": "input"},
        {"chunk_size": 5},
    ],
    ids=lambda arguments: ",".join(f"{key}={value}" for key, value in arguments.items()),
)
def test_each_argument_reaches_the_attack(arguments: dict[str, Any], tmp_path: Any) -> None:
    callback = small(eps=[0.2, 1.0], **arguments)
    fit(tmp_path, callback, max_steps=1)
    bounds = None if "at" in arguments else observed()
    expected = by_function([0.2, 1.0], **{"bounds": bounds, **arguments})
    found = {eps: callback.history.rows[0][f"robust_acc/test_eps{eps:g}"] for eps in expected}
    assert found == expected
    assert expected[1.0] < callback.history.rows[0]["clean_acc/test"]


def test_raw_is_the_attack_on_the_logits_as_they_are(tmp_path: Any) -> None:
    class Saturated(Classifier):
        def forward(self, x: Any) -> Any:
            return 1e4 * self.net(x)

    callback = small(raw=True, eps=1.0)
    torch.manual_seed(0)
    module = Saturated(optimizer=lambda p: torch.optim.SGD(p, lr=0.0))
    fit(tmp_path, callback, module=module, max_steps=1)
    row = callback.history.rows[0]
    arguments = {"eps": 1.0, "steps": 2, "bounds": observed()}
    raw = robust_accuracy(module, *both()[1], normalize_logits=False, **arguments).robust_acc[1.0]
    assert row["robust_acc_raw/test_eps1"] == raw > row["robust_acc/test_eps1"]


def test_the_unit_is_the_spread_of_the_train_points(tmp_path: Any) -> None:
    inputs, targets = points(N)[:]
    wide = TensorDataset(inputs * torch.linspace(1, 9, DIM), targets)
    spread = wide[:][0].double().var(0, unbiased=False).mean().sqrt().item()
    callback = small(eps=[0.1, 0.3], alpha=0.05, eps_unit="std")
    other = small(eps=[0.1 * spread, 0.3 * spread], alpha=0.05 * spread, log_key_prefix="other/")
    fit(tmp_path, callback, other, data=wide)
    of_units, of_inputs = ([[*row.values()][1:] for row in timeless(c.history)] for c in (callback, other))
    assert of_units == of_inputs
    assert f"0.1, 0.3 times the spread of the points, {spread:.4g}" in callback.describe()


def test_points_outside_the_bounds_are_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match=r"train probes: `bounds=\(0, 1\)` must hold all points"):
        fit(tmp_path, small(bounds=(0, 1)))


@pytest.mark.parametrize("fill", [True, False])
def test_data_that_fill_the_unit_box_are_kept_in_it(fill: bool, tmp_path: Any) -> None:
    inputs, targets = points(N)[:]
    inputs = (inputs - inputs.min()) / (inputs.max() - inputs.min())
    data = TensorDataset(inputs if fill else inputs * 0.9, targets)
    callback = small()
    fit(tmp_path, callback, data=data)
    low, high = callback._domain
    if fill:
        assert (low.tolist(), high.tolist()) == ([0.0] * DIM, [1.0] * DIM)
        assert "Bounds: (0, 1), which the points fill" in callback.describe()
    else:
        assert torch.equal(high, data[:][0].amax(0))
        assert "Bounds: the observed range of each feature" in callback.describe()


def test_an_attack_of_ones_own_gets_each_radius(tmp_path: Any) -> None:
    seen = []

    def zero(model: nn.Module, x: torch.Tensor, y: torch.Tensor, eps: float) -> torch.Tensor:
        seen.append((eps, tuple(x.shape), tuple(model(x).shape), y.dtype))
        return x + (eps if eps > 0.3 else 0) * torch.sign(torch.autograd.grad(loss(model, x, y), x)[0])

    def loss(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(model(x.requires_grad_()), y)

    callback = small(attack=zero, eps=[0.1, 1.0], bounds=(-9, 9))
    fit(tmp_path, callback, max_steps=1)
    row = callback.history.rows[0]
    assert row["robust_acc/test_eps0.1"] == row["clean_acc/test"] > row["robust_acc/test_eps1"]
    assert seen[-2:] == [(eps, (N, DIM), (N, CLASSES), torch.int64) for eps in (0.1, 1.0)]
    assert "Attack zero on the inputs" in callback.describe()


# Targets


def largest(batch: Any) -> torch.Tensor:
    return batch[0][:, :CLASSES].argmax(1)


class Targetless(Classifier):
    """Learns to reconstruct, with targets that are no classes."""

    def loss(self, batch: Any) -> torch.Tensor:
        return (self(batch[0]) - batch[1]).square().mean()


@pytest.mark.parametrize("target_fn", [largest, f"{__name__}.largest"], ids=["function", "path"])
def test_target_fn_gives_the_classes(target_fn: Any, tmp_path: Any) -> None:
    inputs = points(N)[:][0]
    data = TensorDataset(inputs, inputs[:, :CLASSES] / 2)
    callback = small(target_fn=target_fn)
    module = Targetless()
    fit(tmp_path, callback, module=module, data=data)
    right = module(inputs).argmax(1) == largest((inputs,))
    assert callback.history["clean_acc/train"][-1] == pytest.approx(right.double().mean().item())


def test_target_fn_draws_nothing_from_the_streams(tmp_path: Any) -> None:
    def noisy(batch: Any) -> torch.Tensor:
        return torch.randint(0, CLASSES, (len(batch[0]),))

    first, second = small(target_fn=noisy), small(target_fn=noisy)
    states = []
    for callback in (first, second):
        fit(tmp_path, callback)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)
    assert timeless(first.history) == timeless(second.history)


# Tasks


class Judged(Classifier):
    """Trained with the loss of its task."""

    def __init__(self, net: nn.Module, loss: Any) -> None:
        super().__init__(net)
        self._loss = loss

    def loss(self, batch: Any) -> torch.Tensor:
        return self._loss(self(batch[0]), batch[1])


def of_task(task: str) -> tuple[Any, TensorDataset]:
    """A module of that task without any argument for us, and its data."""
    torch.manual_seed(0)
    inputs = points(N)[:][0]
    yes_or_no = nn.functional.binary_cross_entropy_with_logits
    if task == "binary":
        return Judged(nn.Linear(DIM, 1), yes_or_no), TensorDataset(inputs, (inputs[:, :1] > 0).float())
    if task == "multilabel":
        return Judged(nn.Linear(DIM, 3), yes_or_no), TensorDataset(inputs, (inputs[:, :3] > 0).float())
    images = inputs.reshape(N, 1, 2, 3)
    net = nn.Sequential(nn.Conv2d(1, CLASSES, 3, padding=1))
    return Judged(net, nn.functional.cross_entropy), TensorDataset(images, (images[:, 0] > 0).long())


@pytest.mark.parametrize("task", ["binary", "multilabel", "pixels"])
def test_tasks_need_no_arguments(task: str, tmp_path: Any) -> None:
    module, data = of_task(task)
    callback = small(eps=[0.1, 0.5])
    fit(tmp_path, callback, module=module, data=data)
    inputs, targets = data.tensors
    z = module(inputs)
    right = z.argmax(1) == targets if task == "pixels" else (z > 0) == targets
    assert callback.history["clean_acc/train"][-1] == right.double().mean().item()
    found = robust_accuracy(module, inputs, targets, eps=[0.1, 0.5], steps=2, bounds=find_bounds(inputs)[:2])
    row = callback.history.rows[-1]
    assert {eps: row[f"robust_acc/test_eps{eps}"] for eps in (0.1, 0.5)} == found.robust_acc
    assert found.robust_acc[0.5] < found.robust_acc[0.1] < found.clean_acc
    name = "multiclass" if task == "pixels" else task
    assert f"Judged by accuracy, {name} task" in callback.describe()


def test_the_task_is_that_of_all_points(tmp_path: Any) -> None:
    """In one split each point happens to have one label."""
    module, data = of_task("multilabel")
    inputs, targets = data.tensors
    single = nn.functional.one_hot(targets.argmax(1), 3).float()
    callback = small(train_probes=(inputs, single))
    fit(tmp_path, callback, module=module, data=data)
    right = (module(inputs) > 0) == single
    assert callback.history["clean_acc/train"][-1] == right.double().mean().item()


def test_a_metric_takes_the_place_of_accuracy(tmp_path: Any) -> None:
    metric = MulticlassF1Score(num_classes=CLASSES)
    callback = small(metric=metric)
    fit(tmp_path, callback)
    for split, (inputs, targets) in zip(("train", "test"), both(), strict=True):
        expected = MulticlassF1Score(num_classes=CLASSES)(first_module()(inputs), targets)
        assert callback.history[f"clean_acc/{split}"][0] == pytest.approx(float(expected))
    assert callback.history["robust_acc/test_eps0.5"][0] == pytest.approx(by_function([0.5], metric=metric)[0.5])
    assert metric.update_count == 0
    assert "MulticlassF1Score of" in callback.caption(callback.panels(callback.history.keys)[0])
    assert "Judged by MulticlassF1Score" in callback.describe()


# Where rows go


def test_tensorboard_reads_the_rows_and_the_text_back(tmp_path: Any) -> None:
    callback, logger = small(eps=[0.1, 0.5]), TensorBoardLogger(tmp_path, "runs")
    fit(tmp_path, callback, logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    for key in (*CLEAN, "robust_acc/test_eps0.1", "robust_acc/test_eps0.5"):
        written = [(event.step, event.value) for event in events.Scalars(key)]
        assert written == [(row["step"], pytest.approx(row[key])) for row in callback.history]
    (text,) = events.Tensors("robust_acc/setup/text_summary")
    shown = text.tensor_proto.string_val[0].decode()
    for part in (
        "Attack PGD",
        "eps 0.1, 0.5",
        "2 steps of 2.5 eps / steps",
        "Bounds: the observed",
        f"test: {N} points",
    ):
        assert part in shown


def test_a_checkpoint_monitors_robust_accuracy(tmp_path: Any) -> None:
    key = "robust_acc/test_eps0.5"
    best = ModelCheckpoint(Path(tmp_path), monitor=key, mode="max", every_n_train_steps=1)
    callback = small()
    fit(tmp_path, callback, best, max_steps=8, enable_checkpointing=True)
    assert float(best.best_model_score) == pytest.approx(max(callback.history[key][1:]))


def test_the_paper_is_a_setting() -> None:
    callback = PGDRobustnessCallback.paper(steps=100)
    assert (callback.eps, callback.alpha, callback.steps) == ([0.03, 0.06, 0.1, 0.13, 0.16, 0.2], 1 / 64, 100)
    assert callback.n_probes == 1024
    assert "eps=[0.03, 0.06, 0.1, 0.13, 0.16, 0.2], attack='PGD', alpha=0.015625, steps=100" in repr(callback)
