"""The closing row is of the trained weights, in whatever order averaging and our callbacks stand."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from all_kinds import KINDS, tiny
from helpers import CLASSES, DIM, Classifier, loader, make_trainer, mlp, points, timeless
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, StochasticWeightAveraging
from torch import nn

from lc_callback.callbacks.closing import ClosingRows

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn", "no_timeline")]


class Norms(pl.Callback):
    """Of the trained weights, by step."""

    def __init__(self) -> None:
        self.of: dict[int, float] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *args: Any) -> None:
        if trainer.global_step not in self.of:
            self.of[trainer.global_step] = norm(pl_module)


def norm(module: nn.Module) -> float:
    return float(torch.cat([p.detach().flatten().double() for p in module.parameters()]).norm())


class Halves(pl.Callback):
    """What somebody else may write: other weights at the end of a training."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(0.5)


class SwapsInValidation(Halves):
    """Validates with others, too."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.on_train_end(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with torch.no_grad():
            for parameter in pl_module.parameters():
                parameter.mul_(2)


def with_norm() -> nn.Module:
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))


def averaging(name: str = "EMAWeightAveraging", **arguments: Any) -> Any:
    if not hasattr(pl.callbacks, name):
        pytest.skip(f"Lightning has {name} from 2.6 on")
    return getattr(pl.callbacks, name)(**arguments)


def stochastic() -> Any:
    return StochasticWeightAveraging(swa_lrs=0.5, swa_epoch_start=1)


# What averages, the network, and how the run ends.
AVERAGING: dict[str, tuple[Callable[[], Any], Callable[[], nn.Module], dict[str, Any]]] = {
    "ema": (lambda: averaging(decay=0.9), mlp, {"max_steps": 5}),
    "ema_with_batch_norm": (lambda: averaging(decay=0.9), with_norm, {"max_steps": 5}),
    "ema_by_epochs": (lambda: averaging(decay=0.9), mlp, {"max_epochs": 2}),
    "averaging": (lambda: averaging("WeightAveraging"), mlp, {"max_steps": 5}),
    "stochastic": (stochastic, mlp, {"max_epochs": 3}),
    "stochastic_with_batch_norm": (stochastic, with_norm, {"max_epochs": 3}),
    "own": (Halves, mlp, {"max_steps": 5}),
    "own_in_validation": (SwapsInValidation, mlp, {"max_epochs": 2}),
}


def train(folder: Path, callbacks: list[Any], net: Callable[[], nn.Module] = mlp, **ends: Any) -> Any:
    trainer = make_trainer(folder, *callbacks, **ends)
    torch.manual_seed(0)
    module = Classifier(net(), lambda parameters: torch.optim.SGD(parameters, lr=0.5))
    trainer.fit(module, loader(), loader(points(seed=1)))
    return trainer


@pytest.mark.parametrize("order", ["before", "behind"])
@pytest.mark.parametrize("name", AVERAGING)
def test_the_closing_row_is_of_the_trained_weights(name: str, order: str, tmp_path: Path) -> None:
    make, net, ends = AVERAGING[name]
    norms, callback = Norms(), tiny("rank", alignment=False, schedule=None)
    pair = [make(), callback] if order == "before" else [callback, make()]
    trainer = train(tmp_path, [norms, *pair], net, **ends)
    last = 9 if name == "stochastic_with_batch_norm" else trainer.global_step  # of its epoch without updates
    assert callback.history.steps[-1] == last
    steps = [step for step in callback.history.steps if step]
    measured = dict(zip(callback.history.steps, callback.history["weight_norm/total"], strict=True))
    assert [measured[step] for step in steps] == pytest.approx([norms.of[step] for step in steps], rel=1e-6)
    assert norm(trainer.lightning_module) != pytest.approx(norms.of[last], rel=1e-6)  # others were swapped in


@pytest.mark.parametrize("kind", KINDS)
def test_the_closing_rows_of_all_callbacks_are_the_same_in_every_order(kind: str, tmp_path: Path) -> None:
    rows = []
    for order in itertools.permutations(range(2)):
        callback = tiny(kind, schedule=[0, 5] if kind == "partition" else None)
        if kind == "partition":
            callback.schedule = type(callback)().schedule
        pair = [averaging(decay=0.5), callback]
        train(tmp_path / str(order), [pair[i] for i in order], max_steps=7)
        rows.append(timeless(callback.history))
    assert rows[0] == rows[1]
    assert rows[0][-1]["step"] == 7


def test_between_several_of_ours(tmp_path: Path) -> None:
    norms, ours = Norms(), [tiny("rank", alignment=False, log_key_prefix=prefix) for prefix in ("a/", "b/", "c/")]
    callbacks = [norms, ours[0], Halves(), ours[1], averaging(decay=0.5), ours[2]]
    train(tmp_path, callbacks, max_steps=3)
    for callback in ours:
        key = f"{callback.log_key_prefix}weight_norm/total"
        assert callback.history[key][-1] == pytest.approx(norms.of[3], rel=1e-6)


def test_where_an_epoch_is_left_early(tmp_path: Path) -> None:
    norms, callback = Norms(), tiny("rank", alignment=False)
    stop = EarlyStopping("rank/net.1", stopping_threshold=-1.0, mode="max", check_on_train_epoch_end=True)
    trainer = train(tmp_path, [norms, Halves(), callback, stop], max_epochs=5)
    assert trainer.global_step == 3
    assert callback.history["weight_norm/total"][-1] == pytest.approx(norms.of[3], rel=1e-6)


def test_the_list_of_callbacks_is_what_it_was(tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "checkpoints", every_n_train_steps=1)
    callbacks = [Norms(), tiny("lc"), averaging(decay=0.5), tiny("rank"), saving]
    trainer = train(tmp_path, callbacks, max_steps=2, enable_checkpointing=True)
    assert trainer.callbacks == callbacks
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(trainer.lightning_module, loader(), loader(points(seed=1)))
    assert trainer.callbacks == callbacks
    assert trainer.global_step == 4
    states = torch.load(saving.best_model_path, weights_only=True)["callbacks"]
    assert [name for name in states if "Closing" in name] == []


def test_a_run_that_fails_leaves_the_list_as_it_was(tmp_path: Path) -> None:
    class Fails(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            assert isinstance(self.trainer.callbacks[0], ClosingRows)
            raise LookupError("lost")

    callbacks = [Norms(), tiny("lc")]
    trainer = make_trainer(tmp_path, *callbacks, max_steps=2)
    with pytest.raises(LookupError):
        trainer.fit(Fails(), loader(), loader(points(seed=1)))
    assert [callback for callback in trainer.callbacks if isinstance(callback, ClosingRows)] == []


@pytest.mark.parametrize("name", ["ema", "stochastic", "stochastic_with_batch_norm"])
def test_averaged_weights_are_those_of_a_training_without_us(name: str, tmp_path: Path) -> None:
    make, net, ends = AVERAGING[name]
    found = []
    for ours in ([], [tiny("rank", alignment=False), tiny("lc", radius=1.0)]):
        trainer = train(tmp_path / str(len(ours)), [make(), *ours], net, **ends)
        found.append({key: value.clone() for key, value in trainer.lightning_module.state_dict().items()})
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


def test_no_closing_row_where_the_schedule_has_none(tmp_path: Path) -> None:
    callback = tiny("rank", alignment=False, schedule=[0, 1])
    train(tmp_path, [Halves(), callback], max_steps=3)
    assert callback.history.steps == [0, 1]
