"""The spread of the points where a module's output is perturbed, which is trained as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import Classifier, Tokens, loader, make_trainer, our_warnings
from torch.utils.data import TensorDataset

from lc_callback import LocalComplexityCallback, PGDRobustnessCallback

pytestmark = pytest.mark.usefixtures("no_timeline")

STEPS = 6


class Scaled(pl.Callback):
    """Multiplies the embedding by ``factor`` after each step, which stands for weight decay."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.spreads: list[float] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Note the spread, as the row of this step has it."""
        with torch.no_grad():
            found = pl_module.net[0](data().tensors[0]).flatten(1).double()
            self.spreads.append(float(found.var(0, correction=0).mean().sqrt()))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        """Change it."""
        with torch.no_grad():
            pl_module.net[0].weight *= self.factor


def data() -> TensorDataset:
    return TensorDataset(torch.arange(24).view(8, 3) % 9, torch.arange(8) % 3)


def train(folder: Path, callback: Any, factor: float, *, steps: int = STEPS, resume: Any = None) -> tuple[Any, Scaled]:
    torch.manual_seed(0)
    scaled = Scaled(factor)
    trainer = make_trainer(folder, scaled, callback, max_steps=steps)  # scaled first: before the row is measured
    trainer.fit(Tokens(), loader(data()), loader(data()), ckpt_path=resume)
    return trainer, scaled


def kinds() -> list[Any]:
    every = {"every_n_train_steps": 1, "train_probes": data(), "test_probes": data()}
    return [
        LocalComplexityCallback(0.1, 4, **every),
        PGDRobustnessCallback(eps=0.1, eps_unit="input", steps=2, **every),
    ]


@pytest.mark.parametrize("kind", [0, 1])
def test_a_shrunken_embedding_is_told_once(kind: int, tmp_path: Path) -> None:
    callback = kinds()[kind]
    with our_warnings() as warned:
        train(tmp_path, callback, 0.6)
    (told,) = [text for text in warned if "is trained" in text]
    assert "the output of 'net.0' is trained" in told
    assert ["radius stays", "eps stays"][kind] in told
    assert ["local complexity rises", "accuracy under attack falls"][kind] in told


def test_a_grown_embedding_is_told_the_other_way_round(tmp_path: Path) -> None:
    with our_warnings() as warned:
        train(tmp_path, kinds()[0], 1.7)
    (told,) = [text for text in warned if "is trained" in text]
    assert "local complexity falls" in told


def test_an_embedding_that_hardly_moves_is_not_told(tmp_path: Path) -> None:
    with our_warnings() as warned:
        train(tmp_path, kinds()[0], 0.97)
    assert not [text for text in warned if "is trained" in text]


def test_the_spread_is_logged_at_each_row(tmp_path: Path) -> None:
    callback = kinds()[0]
    _, scaled = train(tmp_path, callback, 0.6)
    assert callback.history["lc_spread/train"][:STEPS] == pytest.approx(scaled.spreads)


def test_inputs_that_are_perturbed_have_no_spread(tmp_path: Path) -> None:
    callback = LocalComplexityCallback(0.1, 4)
    make_trainer(tmp_path, callback, max_steps=1).fit(Classifier(), loader(), loader())
    assert "lc_spread/train" not in callback.history.keys


def test_a_resumed_run_compares_with_the_first_row_of_all(tmp_path: Path) -> None:
    with our_warnings() as warned:
        trainer, _ = train(tmp_path, kinds()[0], 0.8, steps=3)  # to 0.51
        trainer.save_checkpoint(tmp_path / "three.ckpt")
    assert not [text for text in warned if "is trained" in text]
    with our_warnings() as warned:
        train(tmp_path, kinds()[0], 0.8, steps=5, resume=tmp_path / "three.ckpt")
    assert len([text for text in warned if "is trained" in text]) == 1


def test_a_second_run_starts_anew(tmp_path: Path) -> None:
    callback = kinds()[0]
    with our_warnings() as warned:
        train(tmp_path, callback, 0.6)
        train(tmp_path, callback, 1.0)
    assert len([text for text in warned if "is trained" in text]) == 1


@pytest.mark.parametrize("unit", ["auto", "std"])
def test_eps_follows_the_spread_at_each_row(unit: str, tmp_path: Path) -> None:
    every = {"every_n_train_steps": 1, "train_probes": data(), "test_probes": data()}
    callback = PGDRobustnessCallback(eps=[0.1, 0.5], steps=2, eps_unit=unit, **every)
    with our_warnings() as warned:
        _, scaled = train(tmp_path, callback, 0.6)
    assert not [text for text in warned if "is trained" in text]
    assert callback.history["robust_acc/spread"][:STEPS] == pytest.approx(scaled.spreads)
    assert "times the spread of the points there at each row" in callback.describe()


class SameFunction(pl.Callback):
    """Shrinks the embedding by halves and makes the next layer grow as much, without training."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        with torch.no_grad():
            pl_module.net[0].weight *= 0.5
            pl_module.net[2].weight *= 2


@pytest.mark.parametrize(
    ("arguments", "is_same"), [({}, True), ({"eps_unit": "std"}, True), ({"eps_unit": "input"}, False)]
)
def test_the_same_function_is_as_robust_at_every_row(arguments: Any, is_same: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Tokens()
    module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.0)
    callback = PGDRobustnessCallback(eps=[0.1, 0.5], every_n_train_steps=1, **arguments)
    make_trainer(tmp_path, SameFunction(), callback, max_steps=STEPS).fit(module, loader(data()), loader(data()))
    (first, *others) = zip(
        callback.history["robust_acc/test_eps0.1"], callback.history["robust_acc/test_eps0.5"], strict=True
    )
    assert all(other == first for other in others) is is_same


@pytest.mark.parametrize("unit", ["auto", "input"])
def test_a_spread_of_nan_costs_no_row(unit: str, tmp_path: Path) -> None:
    class Breaks(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            with torch.no_grad():
                pl_module.net[0].weight.fill_(float("nan"))

    torch.manual_seed(0)
    callback = PGDRobustnessCallback(eps=[0.1, 0.5], every_n_train_steps=1, eps_unit=unit)
    make_trainer(tmp_path, Breaks(), callback, max_steps=2).fit(Tokens(), loader(data()), loader(data()))
    assert callback.history.steps == [0, 1, 2]
    last = {key: value for key, value in callback.history.rows[-1].items() if "acc/t" in key}
    assert len(last) == 4
    assert all(value != value for value in last.values())


def test_without_train_points_the_unit_is_the_spread_of_the_test_points(tmp_path: Path) -> None:
    module = Tokens()
    callback = PGDRobustnessCallback(eps=0.1, steps=2)
    make_trainer(tmp_path, callback).test(module, loader(data()))
    tokens = data()[:][0]
    there = module.net[0](tokens).detach().double()
    assert callback._unit == pytest.approx(there.var(0, unbiased=False).mean().sqrt().item())
