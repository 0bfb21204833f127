"""One row, one step: which rows are taken, and where they go."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Classifier, RowLogger, TwoOptimizers, loader, make_trainer, our_warnings, points
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, IterableDataset

from lc_callback import LocalComplexityCallback
from lc_callback.callbacks import ProbeCallback
from lc_callback.functional import local_complexity

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

CURVES = ("lc", "lc_ci99", "lc_density", "lc_boundary")
KEYS = [f"{key}/{split}" for split in ("train", "test", "random") for key in CURVES]
KEYS.insert(len(CURVES), "lc_tv/train")
KEYS += ["lc_radius", "lc_layer/train/net.1", "lc_layer/train/net.3", "lc/seconds", "lc/phase"]
LOG_TO_TEN = [0, 1, 2, 3, 4, 5, 6, 8, 10]


def small(**arguments: Any) -> LocalComplexityCallback:
    return LocalComplexityCallback(**{"n_probes": 4, "n_directions": 3, **arguments})


def fit(folder: Any, *callbacks: Any, module: Any = None, train: Any = None, **trainer_arguments: Any) -> RowLogger:
    """Three batches an epoch, validated after each; returns the logger."""
    rows = RowLogger()
    trainer = make_trainer(folder, *callbacks, **{"logger": rows, "max_steps": 10, **trainer_arguments})
    trainer.fit(module or Classifier(), loader() if train is None else train, loader(points(seed=1)))
    return rows


SCHEDULES = {
    "default": ({}, LOG_TO_TEN),
    "log": ({"schedule": "log"}, LOG_TO_TEN),
    "log_closes": ({"schedule": "log", "max_steps": 7}, [0, 1, 2, 3, 4, 5, 6, 7]),
    "every_4": ({"every_n_train_steps": 4}, [0, 4, 8]),
    "every_1": ({"every_n_train_steps": 1}, list(range(11))),
    "list": ({"schedule": [9, 2, 50]}, [2, 9]),
    "function": ({"schedule": lambda step: step % 5 == 1}, [1, 6]),
    "epochs": ({"every_n_epochs": 1}, [0, 3, 6, 9, 10]),  # Lightning ends the fourth epoch where the run ends
    "two_epochs": ({"every_n_epochs": 2, "max_steps": 15}, [0, 6, 12]),
    "never": ({"schedule": lambda step: False}, []),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_rows_are_at_the_scheduled_steps(name: str, tmp_path: Any) -> None:
    arguments, expected = SCHEDULES[name]
    max_steps = arguments.get("max_steps", 10)
    callback = small(**{key: value for key, value in arguments.items() if key != "max_steps"})
    rows = fit(tmp_path, callback, max_steps=max_steps, num_sanity_val_steps=2)
    ours = [(step, list(metrics)) for step, metrics in rows.calls if "lc/train" in metrics]
    assert ours == [(step, KEYS) for step in expected]
    assert callback.history.steps == expected


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [({}, [0, 1, 2, 3, 4]), ({"every_n_train_steps": 2}, [0, 2, 4]), ({"every_n_epochs": 1}, [0, 2, 4])],
)
def test_accumulated_batches_are_one_step(arguments: Any, expected: list[int], tmp_path: Any) -> None:
    batches = loader(batch_size=4)  # six a epoch, so two steps
    rows = fit(tmp_path, small(**arguments), train=batches, accumulate_grad_batches=3, max_steps=4)
    assert rows.steps() == expected


def test_an_incomplete_window_at_the_end_of_an_epoch_is_a_step(tmp_path: Any) -> None:
    rows = fit(tmp_path, small(every_n_epochs=1), accumulate_grad_batches=2, max_epochs=3, max_steps=-1)
    assert rows.steps() == [0, 2, 4, 6]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 2, 4, 6, 8, 10, 14, 16, 20]),  # of the log steps 3, 5, 13 the next that a batch ends at
        ({"schedule": [3, 9, 15]}, [4, 10, 16]),
        ({"every_n_train_steps": 5}, [0, 6, 10, 16, 20]),
        ({"every_n_epochs": 1}, [0, 6, 12, 18, 20]),
    ],
)
def test_no_scheduled_step_is_lost_between_two_optimizers(arguments: Any, expected: list[int], tmp_path: Any) -> None:
    rows = fit(tmp_path, small(**arguments), module=TwoOptimizers(), max_steps=20)
    assert rows.steps() == expected


def test_an_epoch_without_a_step_adds_no_row(tmp_path: Any) -> None:
    class Pausing(TwoOptimizers):
        def training_step(self, batch: Any, batch_idx: int) -> None:
            if self.current_epoch != 1:
                super().training_step(batch, batch_idx)

    rows = fit(tmp_path, small(every_n_epochs=1), module=Pausing(), max_epochs=3, max_steps=-1)
    assert rows.steps() == [0, 6, 12]


def test_an_epoch_that_the_user_cuts_short_has_its_row(tmp_path: Any) -> None:
    class CutShort(Classifier):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 2 else None

    callback = small(every_n_epochs=1)
    fit(tmp_path, callback, module=CutShort(), max_epochs=3, max_steps=-1)
    assert callback.history.steps == [0, 2, 4, 6]


def test_epoch_rows_of_a_stream_of_unknown_length(tmp_path: Any) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(points())

    rows = fit(tmp_path, small(every_n_epochs=1), train=DataLoader(Stream(), batch_size=8), max_epochs=2, max_steps=-1)
    assert rows.steps() == [0, 3, 6]


def test_validation_within_an_epoch_adds_no_rows(tmp_path: Any) -> None:
    rows = fit(tmp_path, small(every_n_train_steps=1), val_check_interval=1, num_sanity_val_steps=2, max_steps=5)
    assert rows.steps() == [0, 1, 2, 3, 4, 5]


def test_rows_reach_every_logger_with_the_same_values(tmp_path: Any) -> None:
    first, second, callback = RowLogger(), RowLogger(), small()
    fit(tmp_path, callback, logger=[first, second])
    ours = [{"step": step, **metrics} for step, metrics in first.calls if "lc/train" in metrics]
    assert ours == callback.history.rows
    assert second.calls == first.calls


def test_fast_dev_run_is_one_row_of_few_probes_and_no_file(tmp_path: Any) -> None:
    callback = small(n_probes=20, train_probes=torch.randn(30, 6), schedule=[4], per_layer=True)
    fit(tmp_path, callback, fast_dev_run=3)
    assert callback.history.steps == [0]
    assert "train: 8 points" in callback.describe()
    assert "test: 8 points" in callback.describe()
    assert list(tmp_path.rglob("*")) == []
    assert callback.n_probes == 20  # the next run is a real one


def test_barebones_does_nothing(tmp_path: Any) -> None:
    callback, module = small(every_n_train_steps=1), Classifier()
    trainer = make_trainer(tmp_path, callback, barebones=True, max_steps=3)
    trainer.fit(module, loader())
    assert module.steps_taken == 3
    assert len(callback.history) == 0
    assert list(tmp_path.rglob("*")) == []


def test_without_a_logger_rows_are_in_a_file_and_one_warning_says_so(tmp_path: Any) -> None:
    callback = small()
    with our_warnings() as warned:
        fit(tmp_path, callback, logger=False)
    assert len(warned) == 1
    assert "no logger" in warned[0]
    assert str(tmp_path / "lc" / "history.csv") in warned[0]
    assert read(tmp_path / "lc" / "history.csv") == callback.history.rows


def test_the_file_is_in_the_log_directory(tmp_path: Any) -> None:
    callback = small()
    logger = TensorBoardLogger(tmp_path, "runs")
    fit(tmp_path, callback, logger=logger)
    assert read(Path(logger.log_dir) / "lc" / "history.csv") == callback.history.rows


def test_the_file_of_another_run_is_kept(tmp_path: Any) -> None:
    first, second = small(), small(seed=1)
    fit(tmp_path, first, logger=False)
    fit(tmp_path, second, logger=False)
    assert read(tmp_path / "lc" / "history.csv") == first.history.rows
    assert read(tmp_path / "lc" / "history_1.csv") == second.history.rows


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_two_instances_are_told_apart_by_their_prefix(tmp_path: Any) -> None:
    near, far = small(log_key_prefix="near/"), small(log_key_prefix="far/", radius=5.0, schedule=[3])
    rows = fit(tmp_path, near, far)
    assert near.state_key != far.state_key
    assert rows.steps("near/lc/train") == LOG_TO_TEN
    assert rows.steps("far/lc/train") == [3]
    assert rows.steps("lc/train") == []
    assert read(tmp_path / "near_lc" / "history.csv") == near.history.rows
    assert read(tmp_path / "far_lc" / "history.csv") == far.history.rows


def test_layers_have_keys_of_their_own(tmp_path: Any) -> None:
    callback = small(per_layer=True, radius=[1.0, 2.0])
    rows = fit(tmp_path, callback)
    splits = [f"{split}_r{radius}" for split in ("train", "test", "random") for radius in (1, 2)]
    layers = {f"lc_layer/{split}/net.{i}" for split in splits for i in (1, 3)}
    assert {key for _, metrics in rows.calls for key in metrics if key.startswith("lc_layer")} == layers


@pytest.mark.parametrize("method", ["linear", "vertices"])
@pytest.mark.parametrize(("radius", "split"), [(1.0, "train"), ([1.0, 2.0], "train_r1")])
def test_layers_at_train_points_have_keys_of_their_own(tmp_path: Any, radius: Any, split: str, method: str) -> None:
    callback = small(radius=radius, method=method)
    rows = fit(tmp_path, callback)
    layers = {f"lc_layer/{split}/net.{i}" for i in (1, 3)}
    assert {key for _, metrics in rows.calls for key in metrics if key.startswith("lc_layer")} == layers
    for row in callback.history:
        assert row[f"lc/{split}"] == pytest.approx(sum(row[layer] for layer in layers))


def test_several_radii_have_keys_of_their_own(tmp_path: Any) -> None:
    callback = small(radius=[0.05, 2.0], random_probes=False, schedule=[0])
    fit(tmp_path, callback)
    expected = [
        f"{key}/{split}_r{r}" for split in ("train", "test") for r in ("0.05", "2") for key in ("lc", "lc_ci99")
    ]
    layers = [f"lc_layer/train_r0.05/net.{i}" for i in (1, 3)]
    assert callback.history.keys == [*expected, *layers, "lc/seconds", "lc/phase"]
    assert callback.history["lc/train_r2"] > callback.history["lc/train_r0.05"]


@pytest.mark.parametrize("method", ["vertices", "linear"])
def test_rows_are_counted_by_the_method_that_is_asked_for(method: str, tmp_path: Any) -> None:
    module, inputs = Classifier(), 3 * torch.randn(30, 6, generator=torch.Generator().manual_seed(0))
    callback = small(method=method, radius=2.0, train_probes=inputs, schedule=[4])
    fit(tmp_path, callback, module=module, max_steps=4)
    by = {m: local_complexity(module.net, inputs, radius=2.0, n_directions=3, method=m) for m in ("vertices", "linear")}
    assert by["vertices"].mean != by["linear"].mean
    assert callback.history["lc/train"] == [by[method].mean]
    assert callback.history["lc_ci99/train"] == pytest.approx([by[method].ci99])
    assert ("lc_density/train" in callback.history.keys) is (method == "linear")
    if method == "linear":
        assert callback.history["lc_density/train"] == [by["linear"].density]
    assert f"by the {'affine piece' if method == 'linear' else 'vertices'}" in callback.describe()


@pytest.mark.parametrize(
    ("arguments", "linear"),
    [
        ({}, True),
        ({"radius": 0.005}, False),
        ({"layers": ["Linear"]}, False),
        ({"max_pool": True}, False),
        ({"method": "vertices"}, False),
        ({"radius": [0.1, 0.2], "method": "linear"}, True),
    ],
)
def test_the_linear_method_is_the_default_where_the_radius_is(arguments: Any, linear: bool, tmp_path: Any) -> None:
    callback = small(schedule=[0], **arguments)
    fit(tmp_path, callback)
    assert ("lc_density/train" in callback.history.keys) is linear


def test_tensorboard_reads_the_rows_and_the_text_back(tmp_path: Any) -> None:
    callback, logger = small(), TensorBoardLogger(tmp_path, "runs")
    fit(tmp_path, callback, logger=logger)
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    for key in ("lc/train", "lc/test", "lc/random", "lc/seconds"):
        written = [(event.step, event.value) for event in events.Scalars(key)]
        assert written == [(row["step"], pytest.approx(row[key])) for row in callback.history]
    (text,) = events.Tensors("lc/setup/text_summary")
    assert text.step == 0
    assert "| net.1 | 16 |" in text.tensor_proto.string_val[0].decode()
    assert [entry.name for entry in Path(logger.log_dir).iterdir() if entry.is_dir()] == ["lc"]  # no extra runs


def test_more_directions_than_dimensions_are_reduced_and_it_is_said(tmp_path: Any) -> None:
    callback = small(n_directions=100)
    fit(tmp_path, callback)
    assert "6 directions" in callback.describe()


class OutputNorm(ProbeCallback):
    """A second measure is this short."""

    group = "norm"

    def __init__(self, scale: float = 1.0, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.scale, self.measured = scale, 0

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        self.measured += 1
        if self.measured == 4:  # after the trial and two rows
            raise RuntimeError("fourth")
        return {f"norm/{s}": self.scale * network.module(p.inputs).norm().item() for s, p in probes.items()}

    def extra_state(self) -> dict[str, Any]:
        return {"measured": self.measured}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.measured = state.get("measured", 0)


def test_a_second_measure_inherits_everything(tmp_path: Any) -> None:
    callback = OutputNorm(n_probes=4, every_n_train_steps=1, scale=2.0)
    rows = RowLogger()
    trainer = make_trainer(tmp_path, callback, logger=rows, max_steps=5)
    with our_warnings("OutputNorm") as warned:
        trainer.fit(Classifier(), loader(), loader())
    assert rows.steps("norm/train") == callback.history.steps == [0, 1, 3, 4, 5]
    assert [text for text in warned if "step 2" in text and "fourth" in text] == warned
    assert len(warned) == 1
    assert list(callback.history.rows[0]) == ["step", "norm/train", "norm/test", "norm/random", "norm/seconds"]
    assert read(tmp_path / "norm" / "history.csv") == callback.history.rows
    assert float(trainer.callback_metrics["norm/test"]) == pytest.approx(callback.history["norm/test"][-1])

    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = OutputNorm(n_probes=4, every_n_train_steps=1, scale=2.0)
    make_trainer(tmp_path, resumed, max_steps=7).fit(Classifier(), loader(), loader(), ckpt_path=tmp_path / "half.ckpt")
    assert resumed.history.steps == [0, 1, 3, 4, 5, 6, 7]
    assert resumed.history.rows[:5] == callback.history.rows
    assert resumed.measured == callback.measured + 3  # the trial and two rows


def test_a_radius_too_small_to_see_anything_is_said(tmp_path: Any) -> None:
    coarse, fine = small(radius=1e-3), small(radius=10.0)
    fit(tmp_path, coarse, max_steps=1)
    fit(tmp_path, fine, max_steps=1)
    assert "Fewer than one unit switches in the mean at radius 0.001" in coarse.describe()
    assert "such as 0.01" in coarse.describe()
    assert "Fewer than one unit" not in fine.describe()
