"""Rows, pictures and films of the exact partition inside real runs."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import CLASSES, DIM, Classifier, RowLogger, loader, make_trainer, our_warnings, points, timeless
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import TensorDataset

from lc_callback import SplinePartitionCallback
from lc_callback.callbacks.partition import _different, _nearest, _within
from lc_callback.functional import slice_partition
from lc_callback.run.probes import Probes

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]
KEYS = ["partition/n_regions", "partition/n_regions_near_probes", "partition/n_regions_near_boundary"]


def fit(folder: Path, *callbacks: Any, net: Any = None, **arguments: Any) -> Classifier:
    pl.seed_everything(0)
    module = Classifier(net and net())
    trainer = make_trainer(folder, *callbacks, **{"max_epochs": 2, **arguments})
    trainer.fit(module, loader(points()))
    return module


def small(**arguments: Any) -> SplinePartitionCallback:
    return SplinePartitionCallback(**{"schedule": [0, 3, 6], **arguments})


def test_rows_are_those_of_the_slices(tmp_path: Path) -> None:
    callback = small()
    module = fit(tmp_path, callback)
    assert callback.history.steps == [0, 3, 6]
    assert {*callback.history.keys} <= {*KEYS, "partition/seconds"}
    chosen = slice_partition(module, callback._three)
    row = callback.history.rows[-1]
    assert row["partition/n_regions"] == chosen.n_regions
    radius = 0.1 * (chosen.extent[1] - chosen.extent[0])
    distances = np.linalg.norm(chosen.centres[:, None] - chosen.plane.points, axis=-1).min(1)
    assert row["partition/n_regions_near_probes"] == (distances <= radius).sum() > 0


def test_the_points_are_of_different_classes() -> None:
    probes = Probes(torch.randn(6, 2), torch.tensor([1, 1, 0, 1, 2, 0]), "here")
    assert _different(probes) == [0, 2, 4]
    assert _different(Probes(torch.randn(6, 2), None, "here")) == [0, 1, 2]
    assert _different(Probes(torch.randn(6, 2), torch.tensor([1, 1, 0, 1, 0, 0]), "here")) == [0, 1, 2]


def test_the_points_differ() -> None:
    tokens = torch.tensor([[1, 2], [1, 2], [1, 3], [1, 3], [1, 2], [4, 2]])
    assert _different(Probes(tokens, None, "here")) == [0, 2, 5]
    both = {"tokens": tokens, "mask": torch.tensor([0, 1, 1, 1, 1, 1]), "dim": 3}
    assert _different(Probes(both, None, "here")) == [0, 1, 2]


@pytest.mark.slow
def test_a_smaller_window_is_cheaper_and_may_leave_the_points_out(tmp_path: Path) -> None:
    whole, half, tiny = small(), small(window=0.5), small(window=0.01)
    for number, callback in enumerate((whole, half, tiny)):
        fit(tmp_path / str(number), callback)
    regions = [callback.history["partition/n_regions"][0] for callback in (whole, half, tiny)]
    assert regions[0] > regions[1] > regions[2] > 0
    assert "partition/n_regions_near_probes" in whole.history.keys
    assert "partition/n_regions_near_probes" not in tiny.history.keys
    assert "window=0.01" in repr(tiny)


def test_an_expensive_row_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lc_callback.callbacks.partition._SECONDS_TO_WARN", 0.0)
    with pytest.warns(UserWarning, match="without their drawing") as caught:
        fit(tmp_path, small())
    texts = [str(w.message) for w in caught if "without their drawing" in str(w.message)]
    assert len(texts) == 1
    assert "`window=` (now 1)" in texts[0]


def test_the_nearest_point_of_the_boundary() -> None:
    segments = np.array([[[0.0, 0.0], [1.0, 0.0]], [[0.0, 2.0], [1.0, 2.0]]])
    assert _nearest(np.array([0.3, 0.9]), segments).tolist() == [0.3, 0.0]
    assert _nearest(np.array([3.0, 1.9]), segments).tolist() == [1.0, 2.0]
    assert _within(np.array([[0.0, 0.0], [0.0, 2.0]]), np.array([[0.0, 0.5], [9.0, 9.0]]), 0.6) == 1


@pytest.mark.slow
def test_pictures_and_films_are_written_and_logged(tmp_path: Path) -> None:
    callback = small()
    fit(tmp_path, callback, logger=TensorBoardLogger(tmp_path, name="run", version=0))
    folder = tmp_path / "run" / "version_0" / "partition"
    assert sorted(path.name for path in folder.glob("slice*")) == [f"slice_{step:09d}.png" for step in (0, 3, 6)]
    with Image.open(folder / "film.gif") as gif:
        assert gif.n_frames == 3
    read = EventAccumulator(str(folder.parent), {"images": 0})
    read.Reload()
    assert [event.step for event in read.Images("partition/slice")] == [0, 3, 6]
    assert [event.step for event in read.Images("partition/film")] == [6]
    assert {*KEYS} <= {*read.Tags()["scalars"]} | {KEYS[-1]}


def test_a_logger_without_pictures_gets_the_numbers(tmp_path: Path) -> None:
    rows = RowLogger()
    fit(tmp_path, small(), logger=rows)
    assert rows.steps("partition/n_regions") == [0, 3, 6]


def state(module: nn.Module) -> list[Any]:
    streams = [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
    return [{name: value.tolist() for name, value in module.state_dict().items()}, streams]


def batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, CLASSES))


@pytest.mark.parametrize("net", [None, batch_norm], ids=["mlp", "batch_norm"])
def test_the_training_is_untouched(net: Any, tmp_path: Path) -> None:
    with_it = state(fit(tmp_path / "with", small(), net=net))
    assert with_it == state(fit(tmp_path / "without", net=net))


def test_a_smooth_network_is_an_error_before_the_first_step(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(DIM, 8), nn.GELU(), nn.Linear(8, CLASSES))
    module = Classifier(net)
    trainer = make_trainer(tmp_path, small(), max_epochs=1)
    with pytest.raises(ValueError, match=r"'gelu'.*not piecewise affine"):
        trainer.fit(module, loader(points()))
    assert module.steps_taken == 0


class Positive(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + 1


def test_only_train_points_are_drawn(tmp_path: Path) -> None:
    inputs, targets = points()[:]
    unusable = loader(TensorDataset(inputs * float("nan"), targets))
    for validation in (None, unusable):
        callback = small(schedule=[0])
        trainer = make_trainer(tmp_path, callback, max_epochs=1, logger=RowLogger())
        with our_warnings("SplinePartitionCallback") as warned:
            trainer.fit(Classifier(), loader(points()), validation)
        assert warned == []
        assert callback.history.steps == [0]


def test_a_window_of_one_class_has_no_boundary(tmp_path: Path) -> None:
    class Regressor(Classifier):
        def loss(self, batch: Any) -> torch.Tensor:
            return self(batch[0]).square().mean()

    callback = small()
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    net = nn.Sequential(nn.Linear(DIM, 8), nn.ReLU(), nn.Linear(8, 1), Positive())
    trainer.fit(Regressor(net), loader(points()))
    assert callback.history.steps == [0, 3, 6]
    assert "partition/n_regions_near_boundary" not in callback.history.keys


@pytest.mark.slow
def test_a_resumed_run_has_the_rows_of_the_whole(tmp_path: Path) -> None:
    whole, first, second = small(), small(), small()
    fit(tmp_path / "whole", whole)
    pl.seed_everything(0)
    trainer = make_trainer(tmp_path / "part", first, max_epochs=1)
    trainer.fit(Classifier(), loader(points()))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer = make_trainer(tmp_path / "part", second, max_epochs=2)
    trainer.fit(Classifier(), loader(points()), ckpt_path=tmp_path / "half.ckpt")
    assert timeless(second.history) == timeless(whole.history)


@pytest.mark.parametrize(
    ("arguments", "named"), [({"near": 0}, "`near`"), ({"near": 0.7}, "`near`"), ({"at": 3}, "`at`")]
)
def test_bad_arguments_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        SplinePartitionCallback(**arguments)


def test_the_schedule_is_sparse_unless_one_is_given() -> None:
    sparse = SplinePartitionCallback().schedule
    assert [step for step in range(101) if sparse.due(step - 1, step)] == [0, 1, 2, 5, 10, 22, 46, 100]
    assert sparse.closes
    assert not SplinePartitionCallback(every_n_epochs=2).schedule.closes


def test_two_points_are_no_slice(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, small(train_probes=torch.randn(2, DIM)), max_epochs=1)
    with pytest.raises(ValueError, match=r"three points.*gives 2"):
        trainer.fit(Classifier(), loader(points()))
