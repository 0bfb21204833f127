"""In ``trainer.validate()`` and ``trainer.test()`` each callback logs one row, and changes nothing."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from helpers import (
    KINDS,
    NAMES,
    Classifier,
    RowLogger,
    is_ours,
    kinds_of,
    loader,
    make_trainer,
    our_warnings,
    points,
    timeless,
    tiny,
)
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

STEPS = 5
LAYERS = ("net.1", "net.3")
RANKS = [f"{key}/{layer}" for layer in LAYERS for key in ("rank", "effective_rank", "stable_rank")]
NORMS = [f"weight_norm/{name}" for name in ("total", "net.0", "net.2", "net.4")]
# With test points only, for the trainer has no train loader then; and with train points that are given.
KEYS = {
    "lc": ["lc/test", "lc_ci99/test", "lc_radius", "lc/seconds"],
    "robustness": ["clean_acc/test", "robust_acc/test_eps0.1", "robust_acc/seconds"],
    "rank": [*(key.replace("/", "_test/") for key in RANKS), "tunnel_length_test", *NORMS, "rank/seconds"],
}
KEYS_WITH_TRAIN = {
    "lc": [
        *("lc/train", "lc_ci99/train"),
        *KEYS["lc"][:-1],
        *("lc_layer/train/net.1", "lc_layer/train/net.3", "lc/seconds"),
    ],
    "robustness": ["clean_acc/train", *KEYS["robustness"]],
    "rank": [*RANKS, "tunnel_length", *NORMS, "alignment/train", "rank/seconds"],
}
STAGES = ["validate", "test"]


def enough(kind: str, **arguments: Any) -> Any:
    return tiny(
        kind, **{"n_probes": 20, "every_n_train_steps": 1, **({"radius": 1.0} if kind == "lc" else {}), **arguments}
    )


def several(kind: str) -> dict[str, Any]:
    return {one: enough(one) for one in kinds_of(kind)}


def fit(folder: Any, *callbacks: Any, **arguments: Any) -> tuple[Any, Classifier]:
    torch.manual_seed(0)
    module = Classifier()
    trainer = make_trainer(folder, *callbacks, **{"logger": RowLogger(), "max_steps": STEPS, **arguments})
    trainer.fit(module, loader(), loader(points(seed=1)))
    return trainer, module


def rows_of(trainer: Any) -> list[tuple[int, list[str]]]:
    """Steps and keys of the rows that hold ours, in the order in which they were logged."""
    ours = ((step, [key for key in metrics if is_ours(key)]) for step, metrics in trainer.logger.calls)
    return [(step, keys) for step, keys in ours if keys]


def row_of(trainer: Any, kind: str) -> dict[str, float]:
    (row,) = [metrics for _, metrics in trainer.logger.calls if KEYS[kind][-1] in metrics]
    return row


@pytest.mark.parametrize("kind", [*KINDS, "together"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_fresh_trainer_logs_one_row(stage: str, kind: str, tmp_path: Any) -> None:
    callbacks = several(kind)
    trainer = make_trainer(tmp_path, *callbacks.values(), logger=RowLogger())
    getattr(trainer, stage)(Classifier(), loader(points(seed=1)))
    assert rows_of(trainer) == [(0, KEYS[one]) for one in callbacks]
    for metrics in (metrics for _, metrics in trainer.logger.calls):
        for key in filter(is_ours, metrics):
            assert float(trainer.callback_metrics[key]) == pytest.approx(metrics[key])
    for callback in callbacks.values():
        assert len(callback.history) == 0
        assert callback.state_dict()["extra"] == type(callback)().state_dict()["extra"]
    assert list(tmp_path.rglob("*.csv")) == []


@pytest.mark.parametrize("kind", [*KINDS, "together"])
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fresh", [False, True])
def test_after_a_fit_the_row_is_that_of_its_end(fresh: bool, stage: str, kind: str, tmp_path: Any) -> None:
    callbacks = several(kind)
    trainer, module = fit(tmp_path, *callbacks.values())
    before = {one: str(callback.state_dict()) for one, callback in callbacks.items()}
    lines = {path: path.read_text() for path in tmp_path.rglob("*.csv")}
    if fresh:
        trainer = make_trainer(tmp_path, *callbacks.values())
    trainer.loggers = [RowLogger()]
    getattr(trainer, stage)(module, loader(points(seed=1)))
    assert rows_of(trainer) == [(trainer.global_step, KEYS[one]) for one in callbacks]
    assert trainer.global_step == (0 if fresh else STEPS)
    for one, callback in callbacks.items():
        assert str(callback.state_dict()) == before[one]
        assert callback.history.steps == list(range(STEPS + 1))
        # The ranks are those of the test points, where the fit had the train points.
        same = NORMS if one == "rank" else KEYS[one][:-1]
        row = row_of(trainer, one)
        assert {key: row[key] for key in same} == {key: callback.history.rows[-1][key] for key in same}
    assert {path: path.read_text() for path in tmp_path.rglob("*.csv")} == lines != {}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_train_points_that_are_given_are_measured_too(stage: str, kind: str, tmp_path: Any) -> None:
    callback = enough(kind, train_probes=points()[:])
    _, module = fit(tmp_path, callback)
    trainer = make_trainer(tmp_path, callback, logger=RowLogger())
    getattr(trainer, stage)(module, loader(points(seed=1)))
    assert rows_of(trainer) == [(0, KEYS_WITH_TRAIN[kind])]
    last = {key: callback.history.rows[-1][key] for key in KEYS_WITH_TRAIN[kind]}
    assert timeless([row_of(trainer, kind)]) == timeless([last])


@pytest.mark.parametrize("kind", KINDS)
def test_other_points_give_another_row(kind: str, tmp_path: Any) -> None:
    callback = enough(kind, **({"split": "test"} if kind == "rank" else {}))
    _, module = fit(tmp_path, callback)
    found = []
    for seed in (1, 7):
        trainer = make_trainer(tmp_path, callback, logger=RowLogger())
        trainer.test(module, loader(points(seed=seed)))
        found += timeless([row_of(trainer, kind)])
    last = {key: callback.history.rows[-1][key] for key in found[0]}
    assert found[0] == last != found[1]


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_brings_unit_and_domain_of_its_run(stage: str, tmp_path: Any) -> None:
    settings = {"eps_unit": "std", "eps": [0.3, 0.6], "steps": 3}
    first, again, without = (enough("robustness", **settings) for _ in range(3))
    trainer, module = fit(tmp_path, first)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    found = {}
    for callback, path in ((again, tmp_path / "end.ckpt"), (without, None)):
        if path:  # as newer Lightning does for `ckpt_path=` also where it does not fit
            callback.load_state_dict(torch.load(path, weights_only=True)["callbacks"][callback.state_key])
        trainer = make_trainer(tmp_path, callback, logger=RowLogger())
        getattr(trainer, stage)(module, loader(points(seed=1)), ckpt_path=path)
        found[callback] = row_of(trainer, "robustness")
    last = {key: value for key, value in first.history.rows[-1].items() if key in found[again]}
    assert timeless([found[again]]) == timeless([last])
    assert again._unit == first._unit != without._unit
    domains = {name: torch.stack(c._domain) for name, c in {"first": first, "again": again, "not": without}.items()}
    assert torch.equal(domains["again"], domains["first"])
    assert not torch.equal(domains["not"], domains["first"])  # the range of fewer points
    assert again.history.rows == first.history.rows


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("stage", STAGES)
def test_nothing_is_changed_by_it(stage: str, inference_mode: bool, tmp_path: Any) -> None:
    def evaluated(*callbacks: Any) -> tuple[Any, ...]:
        random.seed(0)
        np.random.seed(0)
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 3))
        net[1].eval()
        net[0].weight.requires_grad_(False)
        module = Classifier(net)
        trainer = make_trainer(tmp_path, *callbacks, inference_mode=inference_mode)
        getattr(trainer, stage)(module, loader(points(seed=1)))
        tensors = [*module.parameters(), *module.buffers()]
        return (
            [tensor.detach().numpy().tobytes() for tensor in tensors],
            [(tensor.requires_grad, tensor.grad, tensor.is_inference()) for tensor in tensors],
            [m.training for m in module.modules()],
            [sorted(vars(m)) for m in module.modules()],
            (random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist(), torch.is_grad_enabled()),
            {key: float(value) for key, value in trainer.callback_metrics.items() if not is_ours(key)},
        )

    callbacks = several("together")
    alone, measured = evaluated(), evaluated(*callbacks.values())
    assert measured == alone
    assert all(callback.peer.writer.is_described for callback in callbacks.values())  # and so has measured


@pytest.mark.parametrize("kind", KINDS)
def test_validation_within_a_fit_measures_nothing(kind: str, tmp_path: Any, monkeypatch: Any) -> None:
    calls = []
    measure = KINDS[kind].measure
    monkeypatch.setattr(KINDS[kind], "measure", lambda *args: calls.append(1) or measure(*args))
    callback = enough(kind, schedule=[2], every_n_train_steps=None)
    trainer, _ = fit(tmp_path, callback, val_check_interval=1, num_sanity_val_steps=2)
    assert [step for step, metrics in trainer.logger.calls if "val_loss" in metrics]  # it was validated
    assert len(calls) == 2  # the trial and the row
    assert [step for step, _ in rows_of(trainer)] == callback.history.steps == [2]


@pytest.mark.parametrize("kind", [*KINDS, "together"])
def test_predictions_are_not_measured(kind: str, tmp_path: Any) -> None:
    callbacks = several(kind)
    trainer = make_trainer(tmp_path, *callbacks.values(), logger=RowLogger())
    trainer.predict(Classifier(), DataLoader(points()[:][0], batch_size=8))
    assert trainer.state.finished
    assert trainer.logger.calls == []
    assert all(len(callback.history) == 0 for callback in callbacks.values())


class Counting(Classifier):
    evaluated = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.evaluated += 1

    test_step = validation_step


WRONG = {
    "robustness": ({"target_fn": lambda batch: batch[1] / 2}, "test probes: the targets are torch.float32"),
    "rank": ({"layers": ["fc*"]}, "`layers` entry 'fc*' matches no module"),
    "lc": ({"at": "stem"}, "`at='stem'`"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_wrong_in_the_set_up_is_found_before_the_first_batch(stage: str, kind: str, tmp_path: Any) -> None:
    arguments, says = WRONG[kind]
    module = Counting()
    trainer = make_trainer(tmp_path, enough(kind, **arguments), logger=RowLogger())
    with pytest.raises((ValueError, MisconfigurationException)) as caught:
        getattr(trainer, stage)(module, loader())
    assert says in str(caught.value)
    assert KINDS[kind].__name__ in str(caught.value)
    assert module.evaluated == 0


class FailsLater(Counting):
    """Raises when it is measured after the batches."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.evaluated:
            raise RuntimeError("lost")
        return super().forward(x)


@pytest.mark.parametrize("stage", STAGES)
def test_a_measurement_that_fails_costs_its_row_and_one_warning(stage: str, tmp_path: Any) -> None:
    trainer = make_trainer(tmp_path, *several("together").values(), logger=RowLogger())
    with our_warnings() as warned:
        getattr(trainer, stage)(FailsLater(), loader())
    assert trainer.state.finished
    assert rows_of(trainer) == []
    assert sorted(text.split(":")[0] for text in warned) == sorted(NAMES)
    assert all("RuntimeError: lost" in text for text in warned)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stage", STAGES)
def test_raise_on_error_stops_it(stage: str, kind: str, tmp_path: Any) -> None:
    trainer = make_trainer(tmp_path, enough(kind, raise_on_error=True), logger=RowLogger())
    with pytest.raises(RuntimeError, match=rf"{KINDS[kind].__name__}: .*lost"):
        getattr(trainer, stage)(FailsLater(), loader())


@pytest.mark.parametrize("stage", STAGES)
def test_barebones_does_nothing(stage: str, tmp_path: Any) -> None:
    module = Counting()
    trainer = make_trainer(tmp_path, *several("together").values(), barebones=True)
    getattr(trainer, stage)(module, loader())
    assert module.evaluated == 3
    assert not any(map(is_ours, trainer.callback_metrics))


def test_a_fit_after_a_validation_starts_anew(tmp_path: Any) -> None:
    used, unused = several("together"), several("together")
    torch.manual_seed(0)
    make_trainer(tmp_path, *used.values()).validate(Classifier(), loader(points(seed=9)))
    fit(tmp_path / "used", *used.values())
    fit(tmp_path / "unused", *unused.values())
    for one, other in zip(used.values(), unused.values(), strict=True):
        assert timeless(one.history.rows) == timeless(other.history.rows)
