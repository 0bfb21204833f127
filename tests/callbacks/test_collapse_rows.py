"""Rows of neural collapse: keys, values, the kinds of classifiers, and what a run says of them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from all_kinds import tiny
from helpers import CLASSES, DIM, Classifier, RowLogger, loader, make_trainer, mlp, points
from torch import nn
from torch.utils.data import TensorDataset

from lc_callback import NeuralCollapseCallback
from lc_callback.callbacks import MEASURES
from lc_callback.functional import neural_collapse

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

NAMES = ["nc1", "nc2_norms", "nc2_angles", "nc2_simplex", "nc3", "nc4"]
N = 24


def small(**arguments: Any) -> NeuralCollapseCallback:
    return tiny("collapse", **{"n_probes": N, "every_n_train_steps": 1, **arguments})


def fit(folder: Any, *callbacks: Any, module: Any = None, data: Any = None, **arguments: Any) -> Any:
    """Train for two steps, validated on other points."""
    torch.manual_seed(0)
    module = Classifier() if module is None else module
    trainer = make_trainer(folder, *callbacks, **{"logger": RowLogger(), "max_steps": 2, **arguments})
    trainer.fit(module, loader(data), loader(points(N, seed=1) if data is None else data))
    return trainer


class Judged(Classifier):
    def __init__(self, net: nn.Module, loss: Any) -> None:
        super().__init__(net)
        self._loss = loss

    def loss(self, batch: Any) -> torch.Tensor:
        return self._loss(self(batch[0]), batch[1])


def test_no_arguments_are_needed(tmp_path: Any) -> None:
    callback = NeuralCollapseCallback()
    trainer = fit(tmp_path, callback)
    keys = [f"nc/{name}_{split}" for split in ("train", "test") for name in NAMES]
    assert callback.history.keys == [*keys, "nc/seconds"]
    logged = [list(metrics) for _, metrics in trainer.logger.calls if "nc/seconds" in metrics]
    assert logged == 3 * [[*keys, "nc/seconds"]]
    assert {*keys} < {*trainer.callback_metrics}
    assert (tmp_path / "nc" / "history.csv").exists()


def test_a_row_is_what_the_function_says(tmp_path: Any) -> None:
    callback = small(chunk_size=7)
    module = fit(tmp_path, callback).lightning_module
    row = callback.history.rows[-1]
    for split, (inputs, targets) in zip(("train", "test"), (points(N)[:], points(N, seed=1)[:]), strict=True):
        expected = neural_collapse(module, inputs, targets)
        assert {name: row[f"nc/{name}_{split}"] for name in NAMES} == {
            name: pytest.approx(getattr(expected, name), rel=1e-4) for name in NAMES
        }
    assert row["nc/nc1_train"] != callback.history.rows[0]["nc/nc1_train"]


def test_a_layer_by_name_may_have_no_head(tmp_path: Any) -> None:
    callback = small(layer="net.1")
    module = fit(tmp_path, callback).lightning_module
    inputs, targets = points(N)[:]
    row = callback.history.rows[-1]
    assert "nc/nc3_train" in row  # it is as wide as what enters the head
    assert row["nc/nc1_train"] == pytest.approx(neural_collapse(module, inputs, targets, layer="net.1").nc1, rel=1e-4)
    callback = small(layer="net.0")
    narrow = nn.Sequential(nn.Linear(DIM, 5), nn.ReLU(), nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, CLASSES))
    fit(tmp_path / "narrow", callback, module=Classifier(narrow))
    assert [key for key in callback.history.keys if "nc3" in key] == []
    assert "the output of `net.0`, 5 features" in callback.describe()


@pytest.mark.parametrize("end", ["column", "flat", "sigmoid"])
def test_one_logit(end: str, tmp_path: Any) -> None:
    """Is two logits of opposite sign."""
    inputs = points(N)[:][0]
    targets = (inputs[:, :1] > 0).float()
    last: dict[str, Any] = {"column": nn.Identity(), "flat": nn.Flatten(0), "sigmoid": nn.Sigmoid()}
    loss = nn.functional.binary_cross_entropy if end == "sigmoid" else nn.functional.binary_cross_entropy_with_logits
    targets = targets[:, 0] if end == "flat" else targets
    torch.manual_seed(1)
    net = nn.Sequential(*mlp()[:4], nn.Linear(16, 1), last[end])
    callback = small()
    fit(tmp_path, callback, module=Judged(net, loss), data=TensorDataset(inputs, targets))
    row = callback.history.rows[-1]
    head = nn.Linear(16, 2)
    head.weight.data = torch.cat([-net[4].weight, net[4].weight])
    head.bias.data = torch.cat([-net[4].bias, net[4].bias])
    expected = neural_collapse(nn.Sequential(*net[:4], head), inputs, targets.reshape(-1).long())
    assert {name: row[f"nc/{name}_train"] for name in NAMES} == {
        name: pytest.approx(getattr(expected, name), rel=1e-4, abs=1e-6) for name in NAMES
    }
    assert 0 < row["nc/nc4_train"] <= 1


def test_a_classifier_that_collapses(tmp_path: Any) -> None:
    """Points far apart: the train points collapse, NC1 falls and NC4 rises."""
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(48) % CLASSES
    centres = 4 * torch.randn(CLASSES, DIM, generator=generator)
    data = TensorDataset(centres[targets] + torch.randn(48, DIM, generator=generator), targets)
    module = Classifier(optimizer=lambda parameters: torch.optim.Adam(parameters, 0.01))
    callback = small(schedule=[0, 300], every_n_train_steps=None, n_probes=48)
    fit(tmp_path, callback, module=module, data=data, max_steps=300)
    first, last = callback.history.rows
    assert last["nc/nc1_train"] < 0.2 * first["nc/nc1_train"]
    assert last["nc/nc3_train"] < first["nc/nc3_train"]
    assert last["nc/nc4_train"] == 1.0


def test_what_is_said_of_a_run(tmp_path: Any) -> None:
    callback = small()
    fit(tmp_path, callback)
    assert "Neural collapse of what enters `net.4`, 16 features." in callback.describe()
    assert f"train: {N} points of 3 classes" in callback.describe()
    assert "fewer than 10 of a class" in callback.describe()
    first, second = callback.panels(callback.history.keys)
    assert first.lines == {"train": "nc/nc1_train", "test": "nc/nc1_test"}
    assert [*second.lines.values()] == [f"nc/{name}_train" for name in NAMES[1:]]
    figure, axes = callback.plot()
    assert len(axes) == 2
    figure.clear()


def test_the_command_line_knows_it() -> None:
    assert NeuralCollapseCallback in MEASURES


def test_an_evaluation_has_a_row(tmp_path: Any) -> None:
    callback = small()
    trainer = make_trainer(tmp_path, callback)
    trainer.validate(Classifier(), loader(), verbose=False)
    assert {key for key in trainer.callback_metrics if key.startswith("nc/")} == {
        *(f"nc/{name}_test" for name in NAMES),
        "nc/seconds",
    }


@pytest.mark.parametrize("kind", MEASURES)
def test_an_unknown_argument_is_named(kind: Any) -> None:
    """And not one that its constructor passes on."""
    with pytest.raises(TypeError, match=f"{kind.__name__} has no argument 'n_probs'; did you mean 'n_probes'"):
        kind(n_probs=3)
