"""What `measure` takes its points from: a datamodule, a pair of loaders, the model; and what is said of all else."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import pytorch_lightning
import torch
from helpers import Classifier, loader, make_trainer, points
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lc_callback.__main__ import main
from lc_callback.callbacks.offline import measure_checkpoints

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

POSSIBLE = "a LightningDataModule, or a function that returns one or a pair of DataLoaders (train, test)"
OPTIONS = ["--rank", "n_probes=12", "--robust_acc", "n_probes=12", "eps=0.3", "steps=2"]


class Doubled(Classifier):
    """Has a setup, and doubles its batches on their way."""

    scale = 0.0

    def setup(self, stage: str) -> None:
        self.scale = 2.0

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0] * self.scale, batch[1]


class NoTrainLoader(pl.LightningDataModule):
    def val_dataloader(self) -> DataLoader:
        return loader()


class OldName(pytorch_lightning.LightningDataModule):
    """Has no loader either."""


class WithLoaders(pl.LightningDataModule):
    def __init__(self, n: int = 24) -> None:
        super().__init__()
        self.pair = loaders(n)

    def train_dataloader(self) -> DataLoader:
        return self.pair[0]

    def val_dataloader(self) -> DataLoader:
        return self.pair[1]


def loaders(n: int = 24) -> tuple[DataLoader, DataLoader]:
    return loader(points(n)), loader(points(n, seed=1))


def in_a_list() -> list[DataLoader]:
    return [*loaders()]


def from_datasets() -> pl.LightningDataModule:
    return pl.LightningDataModule.from_datasets(points(), points(seed=1), batch_size=8)


def in_a_dict() -> dict[str, DataLoader]:
    return dict(zip(("train", "test"), loaders(), strict=True))


def three() -> tuple[DataLoader, ...]:
    return (*loaders(), loader())


def one() -> DataLoader:
    return loader()


def of_data_sets() -> tuple[Any, Any]:
    return points(), points(seed=1)


def without_a_test() -> tuple[Any, None]:
    return loader(), None


def empty() -> tuple[()]:
    return ()


def nothing() -> None:
    """Has forgotten its `return`."""


def many() -> list[int]:
    return [*range(1000)]


READY = loaders()
MODULE = WithLoaders()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With two checkpoints."""
    path = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    for steps in (1, 3):
        trainer = make_trainer(path, max_steps=steps)
        trainer.fit(Doubled(), loader())
        trainer.save_checkpoint(path / f"{steps}.ckpt")
    return path


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` adds the working directory to the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


def measured(folder: Path, output: Path, *data: str) -> list[dict[str, str]]:
    """The rows, without what the clock said."""
    known = ["--checkpoints", str(folder), "--output", str(output), "--model", f"{__name__}.Doubled", *OPTIONS]
    main(["measure", *known, *(["--data", f"{__name__}.{data[0]}", *data[1:]] if data else [])])
    found = []
    for name in ("rank", "robust_acc"):
        with (output / name / "history.csv").open(newline="") as file:
            found += [*csv.DictReader(file)]
    return [{key: value for key, value in row.items() if not key.endswith("seconds")} for row in found]


def refused(folder: Path, output: Path, capsys: pytest.CaptureFixture[str], *data: str) -> str:
    """The one line of an error, before anything is measured."""
    with pytest.raises(SystemExit) as exited:
        measured(folder, output, *data)
    assert exited.value.code == 2
    assert not output.exists()
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


@pytest.mark.slow
@pytest.mark.parametrize("data", [["loaders"], ["in_a_list"], ["from_datasets"], ["loaders", "--data-args", "n=24"]])
def test_a_pair_of_loaders_is_as_good_as_a_datamodule(folder: Path, tmp_path: Path, data: list[str]) -> None:
    found = measured(folder, tmp_path / "found", *data)
    assert found == measured(folder, tmp_path / "expected", "WithLoaders")
    assert found != measured(folder, tmp_path / "others", "WithLoaders", "--data-args", "n=30")
    assert [row["step"] for row in found] == ["1", "3"] * 2
    assert "clean_acc/test" in found[-1]


GIVEN = {
    "in_a_dict": "returns a dict of DataLoader, DataLoader: ",
    "three": "returns a tuple of DataLoader, DataLoader, DataLoader: ",
    "one": "returns a DataLoader: ",
    "of_data_sets": "returns a tuple of TensorDataset, TensorDataset: ",
    "without_a_test": "returns a tuple of DataLoader, NoneType: ",
    "empty": "returns a tuple of nothing: ",
    "nothing": "returns None: ",
    "many": "returns a list of int, int, int, int, ...: ",
    "READY": "is a tuple of DataLoader, DataLoader: ",
    "MODULE": "is a WithLoaders: ",
    "OPTIONS": "is a list of str, str, str, str, ...: ",
}


@pytest.mark.parametrize("name", GIVEN)
def test_other_data_are_refused_with_what_is_possible(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    said = refused(folder, tmp_path / "out", capsys, name)
    assert said.startswith(f"error: --data '{__name__}.{name}' {GIVEN[name]}")
    assert said.endswith(f": give the import path of {POSSIBLE}.\n")


@pytest.mark.parametrize("data", [[], ["NoTrainLoader"], ["OldName"]])
def test_no_train_loader_is_an_error_that_names_the_option(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], data: list[str]
) -> None:
    said = refused(folder, tmp_path / "out", capsys, *data)
    name = data[0] if data else "Doubled"
    assert said == f"error: {name} has no `train_dataloader`: give with `--data` the import path of {POSSIBLE}.\n"


def test_the_same_without_the_command_line(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="Doubled has no `train_dataloader`"):
        measure_checkpoints(folder, Doubled, None, {}, tmp_path)
