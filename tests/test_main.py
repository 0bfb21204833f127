"""The commands: the timeline of a finished run, and the rows of a run that never had the callbacks."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import CLASSES, DIM, KINDS, loader, make_trainer, mlp
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, TensorDataset

import lc_callback
from lc_callback import LocalComplexityCallback
from lc_callback.__main__ import main
from lc_callback.callbacks import ProbeCallback
from lc_callback.run.timeline import final_transitions, read_events, summary

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EVERY, STEPS = 4, 24
ARGUMENTS: dict[str, dict[str, Any]] = {
    "lc": {"n_probes": 12, "n_directions": 3, "radius": 0.5},
    "robustness": {"n_probes": 12, "eps": [0.1, 0.3], "steps": 2},
    "rank": {"n_probes": 12, "layers": ["net.1", "net.3"]},
}
# The same for the command line.
OPTIONS = [
    text
    for kind, given in ARGUMENTS.items()
    for text in (f"--{KINDS[kind].group}", *(f"{name}={value!r}" for name, value in given.items()))
]


def blobs(n: int = 32, seed: int = 0) -> TensorDataset:
    """Classes that are learned in some steps."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.arange(n) % CLASSES
    centres = torch.eye(CLASSES, DIM)
    return TensorDataset(centres[targets] + 0.3 * torch.randn(n, DIM, generator=generator), targets)


class Model(pl.LightningModule):
    """Its width is not in its checkpoints."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.net = mlp(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.02)


class Shifted(Model):
    """Its first layer is switched on, off and on again as the steps go by: local complexity has all phases."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[1:](self.net[0](x) + self.shift)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.shift.fill_(float(np.interp(np.log10(self.global_step + 1), [0, 0.9, 1.5, 2], [0, 4, 0, 5])))
        return super().training_step(batch, batch_idx)


class NeedsWidth(Model):
    def __init__(self, width: int) -> None:
        super().__init__(width)


class Saved(Model):
    """Its width is in its checkpoints; its forward needs what its setup has done."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.save_hyperparameters()
        self.scale: float | None = None

    def setup(self, stage: str) -> None:
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.scale * x)


class OwnData(Model):
    """Has dataloaders of its own, set up late."""

    prepared = False

    def prepare_data(self) -> None:
        type(self).prepared = True

    def setup(self, stage: str) -> None:
        assert self.prepared
        assert stage == "fit"
        self.sets = blobs(), blobs(seed=1)

    def train_dataloader(self) -> DataLoader:
        return loader(self.sets[0], batch_size=32)

    def val_dataloader(self) -> DataLoader:
        return loader(self.sets[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Nothing to say."""


class Data(pl.LightningDataModule):
    def __init__(self, n: int = 32) -> None:
        super().__init__()
        self.n = n

    def setup(self, stage: str) -> None:
        self.train, self.val = blobs(self.n), blobs(self.n, seed=1)

    def train_dataloader(self) -> DataLoader:
        return loader(self.train, batch_size=32)

    def val_dataloader(self) -> DataLoader:
        return loader(self.val)


class Transferred(Data):
    """Draws other data for each seed, and scales its batches on their way, those of the training otherwise."""

    def setup(self, stage: str) -> None:
        noise = torch.randn(self.n, DIM)
        self.train, self.val = (TensorDataset(s.tensors[0] + noise, s.tensors[1]) for s in (blobs(), blobs(seed=1)))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        trainer = self.trainer
        assert trainer is not None
        assert trainer.training != trainer.validating
        assert not trainer.testing
        assert not trainer.predicting
        assert not trainer.sanity_checking
        return batch[0] * (1.5 if trainer.training else 0.5), batch[1]


class First(pl.Callback):
    """Saves the network before its first step."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "checkpoints" / "start.ckpt")


def callbacks(**arguments: Any) -> list[ProbeCallback]:
    return [KINDS[kind](**given, **arguments) for kind, given in ARGUMENTS.items()]


def train(folder: Path, model: pl.LightningModule, data: Any, steps: int = STEPS) -> None:
    """A run with the callbacks, and a checkpoint at each of their rows."""
    saving = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)
    saving.CHECKPOINT_NAME_LAST, saving.save_last = "a_last", True  # before the others, and of the same step as one
    made = [*callbacks(every_n_train_steps=EVERY), First(), saving]
    make_trainer(folder, *made, max_steps=steps, enable_checkpointing=True).fit(model, datamodule=data)


def measure(folder: Path, *arguments: str) -> Path:
    """Measure the checkpoints of :func:`train`."""
    output = folder / "measured"
    main(["measure", "--checkpoints", str(folder / "checkpoints"), "--output", str(output), *arguments])
    return output


def rows(path: Path) -> list[dict[str, str]]:
    """Of a ``history.csv``, without what the clock said."""
    with path.open(newline="") as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    """The one line of an error."""
    with pytest.raises(SystemExit) as exited:
        main([*map(str, arguments)])
    assert exited.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    return printed


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """`measure` adds the working directory to the path."""
    monkeypatch.setattr(sys, "path", [*sys.path])


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that had the callbacks, one of them twice."""
    folder = tmp_path_factory.mktemp("finished")
    torch.manual_seed(0)
    first, *others = callbacks()
    wide = KINDS["lc"](**{**ARGUMENTS["lc"], "radius": 2.0}, log_key_prefix="wide_")
    make_trainer(folder, first, wide, *others, max_steps=160).fit(Shifted(), datamodule=Data())
    return folder


@pytest.fixture
def run_dir(finished: Path, tmp_path: Path) -> Path:
    """A copy of it, to write to."""
    return Path(shutil.copytree(finished, tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt")))


# report


def test_the_run_left_what_the_tests_need(finished: Path) -> None:
    assert {path.parent.name for path in finished.glob("*/history.csv")} == {"lc", "wide_lc", "robust_acc", "rank"}
    events = read_events(finished / "events.jsonl")
    assert {event.what for event in events} >= {"found", "updated"}
    kinds = {(event.transition.kind, event.transition.curve) for event in events}
    assert {("migration_start", "lc/train"), ("migration_start", "wide_lc/train")} <= kinds
    assert ("generalization", "clean_acc/test") in kinds


def test_a_report_is_the_timeline_of_the_run(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run_dir)])
    assert (run_dir / "report.png").read_bytes() == (run_dir / "timeline.png").read_bytes()
    printed = capsys.readouterr().out
    known = summary(final_transitions(read_events(run_dir / "events.jsonl")))
    assert {*known.splitlines()} <= {*printed.splitlines()}
    assert "- region migration began " in printed
    assert printed.endswith(f"figure: {run_dir / 'report.png'}\n")


@pytest.mark.parametrize(("name", "begins"), [("own.pdf", b"%PDF"), ("own.svg", b"<?xml"), ("own", b"\x89PNG")])
def test_the_suffix_says_what_kind_of_picture_a_report_is(
    name: str, begins: bytes, run_dir: Path, tmp_path: Path
) -> None:
    main(["report", str(run_dir), "--output", str(tmp_path / name)])
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_a_picture_that_cannot_be_written_is_an_error(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "'xyz' is not supported" in refused(capsys, "report", run_dir, "--output", tmp_path / "own.xyz")
    assert not (tmp_path / "own.xyz").exists()


def test_output_and_title_of_a_report(run_dir: Path, tmp_path: Path) -> None:
    main(["report", str(run_dir), "--output", str(tmp_path / "own.png"), "--title", "seed 0"])
    assert (tmp_path / "own.png").read_bytes() != (run_dir / "timeline.png").read_bytes()
    assert not (run_dir / "report.png").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["interpolation=0.99", "min_prominence=0.15"])
def test_detection_anew_with_the_same_settings_finds_the_same(run_dir: Path, name: str) -> None:
    (run_dir / "events.jsonl").write_text("")
    main(["report", str(run_dir), "--detection", name])
    assert (run_dir / "report.png").read_bytes() == (run_dir / "timeline.png").read_bytes()


@pytest.mark.slow
def test_detection_anew_with_other_settings(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(run_dir)])
    before = capsys.readouterr().out
    main(["report", str(run_dir), "--detection", "interpolation=0.95", "noise_factor=1e9"])
    after = capsys.readouterr().out
    assert "at least 0.99" in before
    assert "at least 0.95" in after
    assert "| migration_start |" in before
    assert "| migration_start |" not in after  # settings of all that have them
    assert "| rank_descent |" not in after


@pytest.mark.slow
def test_without_events_the_transitions_are_found_anew(run_dir: Path) -> None:
    (run_dir / "events.jsonl").unlink()
    main(["report", str(run_dir)])
    assert (run_dir / "report.png").read_bytes() == (run_dir / "timeline.png").read_bytes()


def test_a_report_takes_the_latest_files(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run_dir / "events_10.jsonl").write_text((run_dir / "events.jsonl").read_text())
    for name in ("events.jsonl", "events_2.jsonl"):
        (run_dir / name).write_text("")
    rows_of = (run_dir / "lc" / "history.csv").read_text().splitlines(keepends=True)
    (run_dir / "lc" / "history_1.csv").write_text("".join(rows_of[:2]))
    main(["report", str(run_dir)])
    assert "| migration_start | lc/train |" in capsys.readouterr().out
    assert (run_dir / "report.png").read_bytes() != (run_dir / "timeline.png").read_bytes()


@pytest.mark.slow
def test_report_errors(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert "no history.csv" in refused(capsys, "report", tmp_path / "nowhere")
    assert "no history.csv" in refused(capsys, "report", tmp_path / "empty")
    assert f"There are some in {run_dir}." in refused(capsys, "report", tmp_path)
    unknown = refused(capsys, "report", run_dir, "--detection", "plateaus=0.5")
    assert "['plateaus']" in unknown
    assert "'plateau'" in unknown
    assert "NAME=VALUE" in refused(capsys, "report", run_dir, "--detection", "plateau")
    assert "NAME=VALUE" in refused(capsys, "report", run_dir, "--detection", "=0.5")
    assert "no number" in refused(capsys, "report", run_dir, "--detection", "plateau=high")
    assert "`plateau`" in refused(capsys, "report", run_dir, "--detection", "plateau=2")
    assert not (run_dir / "report.png").exists()


# measure

RUNS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any], list[str]]] = {
    "phases": ("Shifted", {}, "Data", {}, []),
    "dataloaders of its own": ("OwnData", {}, "", {}, []),
    "arguments that no checkpoint holds": (
        "NeedsWidth",
        {"width": 10},
        "Data",
        {"n": 18},
        ["--model-args", "width=10", "--data-args", "n=18"],
    ),
    "arguments in the checkpoints": ("Saved", {"width": 10}, "Data", {}, []),
    "data drawn with a seed, and a transfer that asks the trainer": ("Model", {}, "Transferred", {}, ["--seed", "3"]),
}


LONG = {"dataloaders of its own", "arguments in the checkpoints", "phases"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONG else name for name in RUNS]
)
def test_measured_rows_are_those_of_the_run(tmp_path: Path, name: str) -> None:
    model, model_args, data, data_args, arguments = RUNS[name]
    steps = 44 if name == "phases" else STEPS
    pl.seed_everything(3)
    module = globals()[data](**data_args) if data else None
    train(tmp_path, globals()[model](**model_args), module, steps)
    pl.seed_everything(4)
    paths = ["--model", f"{__name__}.{model}", *(["--data", f"{__name__}.{data}"] if data else [])]
    output = measure(tmp_path, *paths, *arguments, *OPTIONS)
    for kind in KINDS.values():
        path = Path(kind.group) / "history.csv"
        assert rows(output / path) == rows(tmp_path / path)
        assert [int(row["step"]) for row in rows(output / path)] == [*range(0, steps + 1, EVERY)]
    files = [file for file in ("events.jsonl", "timeline.png") if (tmp_path / file).exists()]
    assert files == (["events.jsonl", "timeline.png"] if name == "phases" else files) != []
    for file in files:
        assert (output / file).read_bytes() == (tmp_path / file).read_bytes()


def test_a_radius_and_points_that_are_found_are_those_of_the_run(tmp_path: Path) -> None:
    pl.seed_everything(3)
    saving = ModelCheckpoint(tmp_path / "checkpoints", filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)
    callback = LocalComplexityCallback(every_n_train_steps=EVERY)
    trainer = make_trainer(tmp_path, callback, First(), saving, max_steps=STEPS, enable_checkpointing=True)
    trainer.fit(Model(), datamodule=Data())
    output = measure(tmp_path, "--model", f"{__name__}.Model", "--data", f"{__name__}.Data", "--lc")
    assert rows(output / "lc" / "history.csv") == rows(tmp_path / "lc" / "history.csv")
    assert callback.history["lc_radius"][0] in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5)


@pytest.mark.slow
def test_measure_as_a_command_with_a_model_in_the_working_directory(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train(tmp_path, Model(), Data())
    (tmp_path / "my_project.py").write_text(f"from {__name__} import Data, Model\n")
    search = os.pathsep.join([str(Path(__file__).parent), str(Path(lc_callback.__file__).parents[1])])
    options = ["--model", "my_project.Model", "--data", "my_project.Data", "--rank", "n_probes=12", "layers=['net.3']"]
    command = [sys.executable, "-m", "lc_callback", "measure", "--checkpoints", "checkpoints", *options]
    done = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": search}, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    assert "curves: tensorboard --logdir lc_measured" in done.stdout
    measured = rows(tmp_path / "lc_measured" / "rank" / "history.csv")
    assert [row["rank/net.3"] for row in measured] == [row["rank/net.3"] for row in rows(tmp_path / "rank/history.csv")]
    assert not (tmp_path / "lc_measured" / "lc").exists()  # what was not asked for


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    train(folder, NeedsWidth(16), Data())
    return folder


def test_all_is_measured_by_default(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    shutil.copy(trained / "checkpoints" / "start.ckpt", tmp_path / "checkpoints")
    output = measure(tmp_path, "--model", f"{__name__}.Model", "--data", f"{__name__}.Data")
    assert {path.parent.name for path in output.glob("*/history.csv")} == {"lc", "robust_acc", "rank"}


@pytest.mark.slow
def test_a_measured_run_can_be_reported(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained / "checkpoints", tmp_path / "checkpoints")
    output = measure(tmp_path, "--model", f"{__name__}.Model", "--data", f"{__name__}.Data", *OPTIONS)
    main(["report", str(output)])
    assert (output / "report.png").read_bytes() == (output / "timeline.png").read_bytes()


def test_measure_errors(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*arguments: str, model: str = f"{__name__}.Model", folder: Path = trained / "checkpoints") -> str:
        known = ["--checkpoints", folder, "--output", tmp_path / "out", "--data", f"{__name__}.Data", "--model", model]
        return refused(capsys, "measure", *known, *arguments)

    assert "no *.ckpt" in said(folder=tmp_path)
    assert "no *.ckpt" in said(folder=tmp_path / "nowhere")
    assert "'nowhere.Model' cannot be imported" in said(model="nowhere.Model")
    assert f"'{__name__}.Nothing' cannot be imported" in said(model=f"{__name__}.Nothing")
    assert "'Model' cannot be imported" in said(model="Model")
    assert "width" in said(model=f"{__name__}.NeedsWidth")
    assert "NAME=VALUE" in said("--model-args", "width")
    assert "NAME=VALUE" in said("--lc", "radius")
    assert "radiuses" in said("--lc", "radiuses=3")
    assert "`radius`" in said("--lc", "radius=-1")
    for refused_one in ("schedule=[1,2]", "every_n_train_steps=3", "stop_after=migration_end", "on_transition=[]"):
        assert refused_one.partition("=")[0] in said("--lc", refused_one)
    assert not (tmp_path / "out").exists()


NO_CHECKPOINTS = {
    "weights": lambda: Model().state_dict(),
    "a tensor": lambda: torch.zeros(3),
    "a list": lambda: [1, 2],
}


@pytest.mark.parametrize("name", [*NO_CHECKPOINTS, "text", "nothing", "half of one"])
def test_a_file_that_is_no_checkpoint_of_lightning(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path = tmp_path / "step=3.ckpt"
    if name in NO_CHECKPOINTS:
        torch.save(NO_CHECKPOINTS[name](), path)
    else:
        whole = (trained / "checkpoints" / "start.ckpt").read_bytes()
        path.write_bytes({"text": b"some text", "nothing": b"", "half of one": whole[: len(whole) // 2]}[name])
    known = ["--checkpoints", tmp_path, "--output", tmp_path / "out", "--data", f"{__name__}.Data"]
    assert str(path) in refused(capsys, "measure", *known, "--model", f"{__name__}.Model")
