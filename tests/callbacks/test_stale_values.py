"""Whatever monitors a key of ours more often than rows are taken is named before the first step."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from helpers import Classifier, TwoOptimizers, loader, make_trainer, our_warnings, points, tiny
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

KEYS = {"lc": "lc/train", "robustness": "robust_acc/test_eps0.1", "rank": "weight_norm/total"}


AFTER_TRAINING, AFTER_VALIDATION = {"check_on_train_epoch_end": True}, {"check_on_train_epoch_end": False}
EVERY_4_BATCHES = {"check_val_every_n_epoch": None, "val_check_interval": 4}


class Plateau(Classifier):
    """Its learning rate follows a key."""

    def __init__(self, **config: Any) -> None:
        super().__init__()
        self.config = config

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=10**6)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, **self.config}}


class Endless(IterableDataset):
    """Of unknown length."""

    def __iter__(self) -> Any:
        yield from (points()[i] for i in range(24))


class EnoughError(Exception):
    """All that is warned of before the first step is known."""


class UpToTheFirstStep(pl.Callback):
    def on_train_batch_start(self, *args: Any) -> None:
        raise EnoughError


def stale(folder: Any, ours: Any, *watchers: Any, module: Any = None, data: Any = None, **arguments: Any) -> list[str]:
    """Our warnings about monitors, before the first step of a run of 30 epochs of three batches each."""
    ours = ours if isinstance(ours, list) else [ours]
    trainer = make_trainer(folder, *ours, *watchers, UpToTheFirstStep(), **{"max_epochs": 30, **arguments})
    with our_warnings() as texts, pytest.raises(EnoughError):
        trainer.fit(module or Classifier(), loader() if data is None else data, loader(points(seed=1)))
    return [text for text in texts if "looks" in text]


def stopping(key: str = "lc/train", **arguments: Any) -> EarlyStopping:
    return EarlyStopping(key, patience=10**6, **arguments)


def saving(folder: Any, key: str = "lc/train", **arguments: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "best", monitor=key, **arguments)


@pytest.mark.parametrize(
    ("schedule", "monitor", "trainer", "hint"),
    [
        # the log schedule gets rarer and rarer; three steps an epoch
        ({}, {}, {}, "every_n_epochs=1"),
        ({}, {}, {"max_epochs": 3}, None),
        ({}, {}, {"max_epochs": -1, "max_steps": 90}, "every_n_epochs=1"),
        ({}, {}, {"max_epochs": -1, "max_steps": 10}, None),
        ({}, {}, {"accumulate_grad_batches": 3}, "every_n_epochs=1"),
        ({}, {}, {"limit_train_batches": 1}, "every_n_epochs=1"),
        ({"every_n_epochs": 1}, {}, {}, None),
        ({"every_n_epochs": 2}, {}, {}, "every_n_epochs=1"),
        ({"every_n_epochs": 2}, {}, {"check_val_every_n_epoch": 2}, None),
        ({"every_n_epochs": 4}, {}, {"check_val_every_n_epoch": 2}, "every_n_epochs=2"),
        ({"every_n_epochs": 2}, AFTER_TRAINING, {"check_val_every_n_epoch": 2}, "every_n_epochs=1"),
        ({"every_n_epochs": 1}, AFTER_VALIDATION, {"val_check_interval": 1}, "every_n_train_steps=1"),
        ({"every_n_epochs": 1}, {}, {"val_check_interval": 1}, None),  # which Lightning takes for 1.0
        ({"every_n_epochs": 1}, {}, {"val_check_interval": 0.34}, "every_n_train_steps=1"),
        ({"every_n_train_steps": 1}, {}, {"val_check_interval": 0.34}, None),
        ({"every_n_epochs": 2}, {}, {"limit_val_batches": 0, "check_val_every_n_epoch": 2}, None),  # never looks
        ({"every_n_train_steps": 3}, {}, {}, None),
        ({"every_n_train_steps": 1}, {}, {}, None),
        ({"every_n_train_steps": 4}, {}, {}, "every_n_epochs=1"),
        ({"every_n_train_steps": 4}, {}, EVERY_4_BATCHES, None),
        ({"every_n_train_steps": 8}, {}, EVERY_4_BATCHES, "every_n_train_steps=4"),
        ({"every_n_train_steps": 6}, {}, {}, "every_n_epochs=1"),
        ({"every_n_train_steps": 1}, {}, {"accumulate_grad_batches": 2}, None),
        ({"schedule": list(range(0, 91, 3))}, {}, {}, None),
        ({"schedule": list(range(0, 31, 3))}, {}, {}, "every_n_epochs=1"),
        ({"schedule": [0, 10**6]}, {}, {}, "every_n_epochs=1"),
        ({"schedule": [0, 10**6]}, {}, {"max_epochs": 1}, None),
        ({}, {}, {"fast_dev_run": True}, None),
    ],
    ids=str,
)  # fmt: skip
def test_early_stopping(schedule: Any, monitor: Any, trainer: Any, hint: str | None, tmp_path: Any) -> None:
    found = stale(tmp_path, tiny("lc", **schedule), stopping(**monitor), **trainer)
    assert len(found) == (hint is not None)
    if hint is not None:
        assert found[0].startswith("LocalComplexityCallback: `EarlyStopping(monitor='lc/train')` looks after every ")
        assert f"Set `{hint}` in LocalComplexityCallback" in found[0]
        name, _, n = hint.partition("=")
        assert not stale(tmp_path, tiny("lc", **{name: int(n)}), stopping(**monitor), **trainer)


@pytest.mark.parametrize(
    ("schedule", "monitor", "trainer", "hint"),
    [
        ({}, {}, {}, "every_n_epochs=1"),
        ({}, {"every_n_epochs": 2}, {}, "every_n_epochs=2"),
        ({"every_n_epochs": 2}, {"every_n_epochs": 2}, {}, None),
        ({"every_n_epochs": 2}, {"every_n_epochs": 3}, {}, None),
        ({"every_n_epochs": 4}, {"every_n_epochs": 3}, {}, "every_n_epochs=3"),
        ({"every_n_epochs": 1}, {"every_n_train_steps": 2}, {}, "every_n_train_steps=2"),
        ({"every_n_epochs": 1}, {"every_n_train_steps": 3}, {}, None),
        ({}, {"every_n_train_steps": 5}, {}, "every_n_train_steps=5"),
        ({}, {"every_n_train_steps": 80}, {}, None),
        ({}, {"save_top_k": 0}, {}, None),
        ({}, {"save_top_k": 3}, {}, "every_n_epochs=1"),
        ({"every_n_epochs": 1}, {}, {"val_check_interval": 0.34}, "every_n_train_steps=1"),
        ({"every_n_epochs": 1}, {"save_on_train_epoch_end": True}, {"val_check_interval": 0.34}, None),
        ({"every_n_epochs": 1}, {}, {"val_check_interval": 0.34, "limit_val_batches": 0}, None),
    ],
    ids=str,
)  # fmt: skip
def test_checkpoints(schedule: Any, monitor: Any, trainer: Any, hint: str | None, tmp_path: Any) -> None:
    best = saving(tmp_path, **monitor)
    found = stale(tmp_path, tiny("lc", **schedule), best, enable_checkpointing=True, **trainer)
    assert len(found) == (hint is not None)
    assert hint is None or "`ModelCheckpoint(monitor='lc/train')` looks after every " in found[0]
    assert hint is None or f"Set `{hint}` in" in found[0]


@pytest.mark.parametrize(
    ("schedule", "config", "hint"),
    [
        ({}, {}, "every_n_epochs=1"),
        ({}, {"frequency": 3}, "every_n_epochs=3"),
        ({"every_n_epochs": 1}, {}, None),
        ({"every_n_epochs": 3}, {"frequency": 3}, None),
        ({"every_n_epochs": 3}, {"frequency": 2}, "every_n_epochs=2"),
        ({"every_n_epochs": 1}, {"interval": "step"}, "every_n_train_steps=1"),
        ({"every_n_train_steps": 1}, {"interval": "step"}, None),
        ({"every_n_epochs": 1}, {"interval": "step", "frequency": 3}, None),
        ({"every_n_epochs": 2}, {"interval": "step", "frequency": 3}, "every_n_epochs=1"),
    ],
    ids=str,
)
def test_learning_rates(schedule: Any, config: Any, hint: str | None, tmp_path: Any) -> None:
    found = stale(tmp_path, tiny("lc", **schedule), module=Plateau(monitor="lc/train", **config))
    assert len(found) == (hint is not None)
    assert hint is None or "`ReduceLROnPlateau` with `monitor='lc/train'` looks after every " in found[0]
    assert hint is None or f"Set `{hint}` in" in found[0]


@pytest.mark.parametrize("prefix", ["", "deep/"])
@pytest.mark.parametrize(
    ("kind", "key"),
    [*KEYS.items(), ("rank", "rank/net.1"), ("rank", "tunnel_length"), ("lc", "lc/phase"), ("lc", "lc/seconds")],
)
@pytest.mark.parametrize("schedule", [{}, {"schedule": [2, 40]}], ids=str)
def test_every_key_of_ours(kind: str, key: str, prefix: str, schedule: Any, tmp_path: Any) -> None:
    watcher = stopping(prefix + key, strict=False)
    found = stale(tmp_path, tiny(kind, log_key_prefix=prefix, n_probes=24, **schedule), watcher, max_epochs=12)
    assert len(found) == 1
    assert f"monitor='{prefix}{key}'" in found[0]


@pytest.mark.parametrize("key", ["val_loss", "lc/nothing", "other/lc/train", "c/train"])
def test_keys_that_are_not_ours(key: str, tmp_path: Any) -> None:
    ours = tiny("lc", log_key_prefix="l" if key == "c/train" else "")
    assert not stale(tmp_path, ours, stopping(key, strict=False))


def test_one_warning_names_all(tmp_path: Any) -> None:
    ours = [tiny("lc"), tiny("rank", every_n_epochs=2), tiny("robustness", every_n_epochs=1)]
    watchers = [stopping(), stopping(KEYS["rank"]), stopping(KEYS["robustness"]), saving(tmp_path, KEYS["rank"])]
    [text] = stale(tmp_path, ours, *watchers, enable_checkpointing=True)
    lines = text.split("\n")
    assert [line.split(":")[0] for line in lines] == ["LocalComplexityCallback", *2 * ["FeatureRankCallback"]]
    assert ["EarlyStopping" in line for line in lines] == [True, True, False]


def test_the_other_name_of_lightning(tmp_path: Any) -> None:
    trainer = pytorch_lightning.Trainer(
        default_root_dir=tmp_path, callbacks=[tiny("lc"), pytorch_lightning.callbacks.EarlyStopping("lc/train")],
        max_epochs=30, logger=False, enable_checkpointing=False, enable_progress_bar=False, accelerator="cpu",
    )  # fmt: skip

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Classifier().net

        def forward(self, x: Any) -> Any:
            return self.net(x)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise EnoughError

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    with our_warnings() as texts, pytest.raises(EnoughError):
        trainer.fit(Module(), loader())
    assert len([text for text in texts if "looks" in text]) == 1


def test_two_optimizer_steps_a_batch(tmp_path: Any) -> None:
    assert not stale(tmp_path, tiny("lc", every_n_train_steps=6), stopping(), module=TwoOptimizers())
    assert stale(tmp_path, tiny("lc", every_n_train_steps=12), stopping(), module=TwoOptimizers())


@pytest.mark.parametrize(("n", "warned"), [(1, False), (2, True)])
def test_epochs_of_unknown_length(n: int, warned: bool, tmp_path: Any) -> None:
    data = DataLoader(Endless(), batch_size=8)
    ours = tiny("lc", every_n_epochs=n, train_probes=points())
    assert len(stale(tmp_path, ours, stopping(), data=data, max_epochs=4)) == warned


def stateful() -> Callable[[int], bool]:
    asked: list[int] = []

    def due(step: int) -> bool:
        asked.append(step)
        return len(asked) < 5

    due.asked = asked  # type: ignore[attr-defined]
    return due


class Doubling:
    """Measures at each power of two, as it goes."""

    def __init__(self) -> None:
        self.next, self.asked = 1, []

    def __call__(self, step: int) -> bool:
        self.asked.append(step)
        self.next *= 2 if step == self.next else 1
        return step in (0, self.next // 2)


@pytest.mark.parametrize(
    "schedule", [stateful(), Doubling(), functools.partial(pow, 0)], ids=["function", "object", "partial"]
)
@pytest.mark.parametrize("monitor", ["lc/train", "val_loss"])
def test_a_function_of_the_user_is_not_asked_ahead(schedule: Any, monitor: str, tmp_path: Any) -> None:
    found = stale(tmp_path, tiny("lc", schedule=schedule), stopping(monitor))
    assert ["every_n_epochs=1" in text for text in found] == ([True] if monitor == "lc/train" else [])
    assert getattr(schedule, "asked", [0]) == [0]
    getattr(schedule, "asked", []).clear()
