"""`measure` loads no object that it was not allowed to, says which there are, and fits compiled weights."""

from __future__ import annotations

import argparse
import csv
import enum
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import CLASSES, DIM, loader, mlp, points
from torch import nn
from torch.utils.data import DataLoader

from lc_callback.__main__ import main
from lc_callback.callbacks.checkpoints import load_module, steps_of

pytestmark = pytest.mark.filterwarnings("ignore")


class Config:
    def __init__(self, width: int = 16) -> None:
        self.width = width


@dataclass
class Nested:
    config: Config = field(default_factory=Config)

    @property
    def width(self) -> int:
        return self.config.width


class Size(enum.Enum):
    SMALL = 16

    @property
    def width(self) -> int:
        return int(self.value)


class Runs:
    """Its loading runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


class Model(pl.LightningModule):
    def __init__(self, config: Any = None) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = mlp(16 if config is None else config.width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class Data(pl.LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return loader(points())


def saved(folder: Path, module: nn.Module, **extra: Any) -> Path:
    """A checkpoint of step 3."""
    folder.mkdir(parents=True, exist_ok=True)
    known = {"state_dict": module.state_dict(), "global_step": 3, "epoch": 0}
    torch.save({**known, "pytorch-lightning_version": pl.__version__, **extra}, folder / "a.ckpt")
    return folder / "a.ckpt"


def measure(folder: Path, *arguments: str, model: str = "Model") -> list[str]:
    """The steps of its rows."""
    known = ["--checkpoints", folder, "--output", folder / "out", "--data", f"{__name__}.Data"]
    options = ["--model", f"{__name__}.{model}", "--lc", "radius=1.0", "n_probes=4", "n_directions=3"]
    main(["measure", *map(str, known), *options, *arguments])
    with (folder / "out" / "lc" / "history.csv").open() as file:
        return [row["step"] for row in csv.DictReader(file)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any, **options: Any) -> str:
    with pytest.raises(SystemExit) as exited:
        measure(*arguments, **options)
    assert exited.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert "\x1b" not in printed
    assert not (arguments[0] / "out").exists()
    return printed


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])


HERE = f"{__name__}."
OBJECTS: dict[str, tuple[Callable[[], Any], list[str]]] = {
    "object": (Config, [f"{HERE}Config"]),
    "nested": (Nested, [f"{HERE}Config", f"{HERE}Nested"]),
    "enum": (lambda: Size.SMALL, [f"{HERE}Size"]),
    "namespace": (lambda: argparse.Namespace(width=16), ["argparse.Namespace"]),
}


@pytest.mark.parametrize("name", OBJECTS)
def test_the_classes_in_a_checkpoint_are_named_and_can_be_allowed(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make, names = OBJECTS[name]
    path = saved(tmp_path, Model(make()), hyper_parameters={"config": make()})
    printed = refused(capsys, tmp_path)
    assert f"{path} holds objects of {', '.join(names)}, " in printed
    assert f"`--allow {' '.join(names)}`" in printed
    assert measure(tmp_path, "--allow", *names) == ["3"]
    assert [one for one in torch.serialization.get_safe_globals() if HERE in str(one)] == []


@pytest.mark.parametrize("where", ["hyper_parameters", "callbacks", "datamodule_hyper_parameters", "own"])
def test_objects_anywhere_in_a_checkpoint(where: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, Model(), **{where: {"config": Config()}})
    assert f"`--allow {HERE}Config`" in refused(capsys, tmp_path)
    assert measure(tmp_path, "--allow", f"{HERE}Config") == ["3"]


def test_what_is_not_allowed_is_still_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, Model(Nested()), hyper_parameters={"config": Nested()})
    printed = refused(capsys, tmp_path, "--allow", f"{HERE}Nested")
    assert f"`--allow {HERE}Config`" in printed


@pytest.mark.parametrize("allowed", [[], [f"{HERE}Config"], [f"{HERE}Runs"]])
def test_code_in_a_checkpoint_does_not_run(
    allowed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, Model(), hyper_parameters={"config": Runs(f"touch {tmp_path / 'ran'}")})
    assert "system" in refused(capsys, tmp_path, *(["--allow", *allowed] if allowed else []))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("path", ["Config", "nowhere.Config", f"{HERE}Nothing", ""])
def test_what_is_allowed_has_to_be_there(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, Model(), hyper_parameters={"config": Config()})
    assert f"--allow {path!r} cannot be imported" in refused(capsys, tmp_path, "--allow", path)


def test_a_class_of_the_script_that_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Config, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "Config", Config, raising=False)
    saved(tmp_path, Model(), hyper_parameters={"config": Config()})
    monkeypatch.delattr(sys.modules["__main__"], "Config")
    monkeypatch.setattr(Config, "__module__", __name__)
    if "weights_only" in signature(Model.load_from_checkpoint).parameters:  # from Lightning 2.6 on
        assert measure(tmp_path, "--allow", f"{HERE}Config") == ["3"]
    else:
        assert "has no attribute 'Config'" in refused(capsys, tmp_path, "--allow", f"{HERE}Config")


# Compiled


def compiled(module: nn.Module) -> Any:
    return torch.compile(module, backend="eager")


class Compiled(Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = compiled(self.net)


class PartCompiled(Model):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = compiled(self.net[2])


class TwiceCompiled(Model):
    def __init__(self) -> None:
        super().__init__()
        self.net[2] = compiled(self.net[2])
        self.net = compiled(self.net)


class WithoutConfig(Model):
    def __init__(self) -> None:
        super().__init__()


KINDS: list[Any] = [WithoutConfig, Compiled, PartCompiled, TwiceCompiled]


@pytest.mark.parametrize("trained", KINDS)
@pytest.mark.parametrize("measured", KINDS)
def test_weights_of_compiled_modules_fit(trained: Any, measured: Any, tmp_path: Path) -> None:
    module = trained()
    path = saved(tmp_path, module)
    loaded = load_module(measured, path, {}, "cpu")
    assert type(loaded) is measured
    for one, other in zip(module.parameters(), loaded.parameters(), strict=True):
        assert torch.equal(one, other)
    x = torch.randn(4, DIM)
    assert torch.equal(module(x), loaded(x))


@pytest.mark.parametrize(("trained", "measured"), [(Compiled, "WithoutConfig"), (WithoutConfig, "Compiled")])
def test_a_compiled_checkpoint_is_measured(trained: Any, measured: str, tmp_path: Path) -> None:
    saved(tmp_path, trained())
    assert measure(tmp_path, model=measured) == ["3"]


class Wider(WithoutConfig):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(17)


class Deeper(WithoutConfig):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(CLASSES, CLASSES)


class Needs(WithoutConfig):
    def __init__(self, width: int) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("measured", "says"), [("Wider", "size mismatch"), ("Deeper", "last.weight"), ("Needs", "width")]
)
@pytest.mark.parametrize("trained", [WithoutConfig, Compiled])
def test_weights_that_do_not_fit_are_an_error(
    trained: Any, measured: str, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, trained())
    with pytest.raises(ValueError, match=f"does not fit {measured}, or needs other model arguments: .*{says}"):
        load_module(globals()[measured], path, {}, "cpu")


def test_steps_of_a_folder(tmp_path: Path) -> None:
    first = saved(tmp_path, Model())
    (tmp_path / "b.ckpt").write_bytes(first.read_bytes())
    assert steps_of(tmp_path) == {3: first}
