"""What loggers other than TensorBoard's hold after a run: read back where they are installed, else noted by fakes."""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import Classifier, RowLogger, loader, make_trainer, our_warnings, points
from PIL import Image

from lc_callback import LocalComplexityCallback, SplinePartitionCallback
from lc_callback.callbacks import ProbeCallback
from lc_callback.detection.transitions import Turn
from lc_callback.reporting.adapters import adapter_of
from lc_callback.reporting.loggers import log_histogram, log_image, log_row, log_text
from lc_callback.run.timeline import Panel

pytestmark = pytest.mark.filterwarnings("ignore")
SLICES, EVERY = [0, 3, 6], [*range(7)]


class Loud(ProbeCallback):
    """Finds an event, and has a histogram and hundreds of numbers."""

    group, kinds = "loud", ("bang",)
    many = 1100

    def measure(self, network: Any, probes: Any) -> dict[str, Any]:
        rows = {f"loud/{i}": float(i) for i in range(self.many)}
        return {**rows, "loud/infinite": math.inf, "loud/spread": torch.linspace(0, 1, 50)}

    def histogram(self, key: str, array: torch.Tensor) -> torch.Tensor:
        return array

    @classmethod
    def panels(cls, keys: Any) -> list[Panel]:
        return [Panel("loud", {"loud": "loud/0"})]

    @staticmethod
    def find(curves: Any, settings: Any) -> list[Turn]:
        steps, _ = curves["loud/0"]
        return [Turn("bang", math.log10(6), 0.0, 1.0, "it was heard", "loud/0")] if steps[-1] >= 5 else []


def callbacks() -> list[ProbeCallback]:
    return [LocalComplexityCallback(n_probes=8), SplinePartitionCallback(schedule=SLICES), Loud(schedule=EVERY)]


def fit(folder: Path, logger: Any, measuring: list[ProbeCallback]) -> Classifier:
    pl.seed_everything(0)
    module = Classifier()
    with our_warnings("LocalComplexity", "SplinePartition", "Loud") as warned:
        make_trainer(folder, *measuring, logger=logger, max_epochs=2, log_every_n_steps=1).fit(module, loader(points()))
    assert [text for text in warned if "did not take" in text] == []
    return module


def random_streams() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


def state_of(module: Classifier) -> tuple[Any, Any]:
    return {name: value.tolist() for name, value in module.state_dict().items()}, random_streams()


def expected_rows(measuring: list[ProbeCallback]) -> dict[int, dict[str, float]]:
    rows: dict[int, dict[str, float]] = {}
    for callback in measuring:
        for row in callback.history.rows:
            rows.setdefault(int(row["step"]), {}).update({key: value for key, value in row.items() if key != "step"})
    return rows


def wandb_logger(folder: Path, patch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("wandb")
    from lightning.pytorch.loggers import WandbLogger

    for name, value in {"MODE": "offline", "SILENT": "true", "DISABLE_GIT": "true", "DISABLE_CODE": "true"}.items():
        patch.setenv(f"WANDB_{name}", value)
    for name in ("CONFIG", "CACHE", "DATA"):
        patch.setenv(f"WANDB_{name}_DIR", str(folder / "home" / name))
    return WandbLogger(offline=True, save_dir=folder)


def mlflow_logger(folder: Path, patch: pytest.MonkeyPatch) -> Any:
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    patch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    return MLFlowLogger(tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_location=f"file:{folder}/artifacts")


LOGGERS = {"wandb": wandb_logger, "mlflow": mlflow_logger}


@pytest.fixture(scope="module", params=["wandb", pytest.param("mlflow", marks=pytest.mark.slow)])
def done(request: Any, tmp_path_factory: Any) -> Iterator[SimpleNamespace]:
    """A run with a logger, and what that holds."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "cwd").mkdir()
    (folder / "alone").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder / "cwd")
        logger, measuring = LOGGERS[request.param](folder, patch), callbacks()
        module = fit(folder / "run", logger, measuring)
        state = state_of(module)
        held = (read_wandb if request.param == "wandb" else read_mlflow)(logger)
        clutter = [*Path.cwd().iterdir()]
        alone = state_of(fit(folder / "alone", LOGGERS[request.param](folder / "alone", patch), []))
        yield SimpleNamespace(measuring=measuring, clutter=clutter, states=(state, alone), **held)


# Reading back


def read_wandb(logger: Any) -> dict[str, Any]:
    import wandb

    folder = Path(logger.experiment.settings.sync_dir)
    logger.experiment.finish()
    wandb.teardown()  # waits for the process that writes
    rows: dict[int, dict[str, Any]] = {}
    histograms, texts, images = {}, {}, {}
    for entry in wandb_history(next(folder.glob("*.wandb"))):
        step = entry.pop("trainer/global_step", None)
        for key, value in entry.items():
            kind = value.get("_type", "") if isinstance(value, dict) else ""
            if kind == "table-file":
                [(at, text)] = json.loads((folder / "files" / value["path"]).read_text())["data"]
                assert at == step
                texts.setdefault(key, {})[step] = text
            elif kind.startswith("images"):
                images.setdefault(key, {})[step] = folder / "files" / value["filenames"][0]
            elif kind == "histogram":
                histograms.setdefault(key, {})[step] = sum(value["values"])
            elif not key.startswith("_"):
                rows.setdefault(step, {})[key] = value
    return {"rows": rows, "texts": texts, "images": images, "histograms": histograms}


def wandb_history(path: Path) -> Iterator[dict[str, Any]]:
    """The history of an offline run: records in blocks of 32 KiB, each part with a check sum, a length and a type."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, whole = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the record is whole, or its last part
            record = Record.FromString(whole)
            whole = b""
            if record.HasField("history"):
                entry: dict[str, Any] = {}
                for item in record.history.item:
                    key, *inner = item.nested_key or [item.key]
                    value = json.loads(item.value_json)
                    if inner:
                        entry.setdefault(key, {})[inner[0]] = value
                    else:
                        entry[key] = value
                yield entry


def read_mlflow(logger: Any) -> dict[str, Any]:
    client, run = logger.experiment, logger.run_id
    rows: dict[int, dict[str, Any]] = {}
    for key in client.get_run(run).data.metrics:
        for metric in client.get_metric_history(run, key):
            rows.setdefault(metric.step, {})[key] = metric.value
    root = Path(client.get_run(run).info.artifact_uri.removeprefix("file:"))
    texts: dict[str, dict[int, str]] = {}
    for path in root.glob("**/*.md"):
        tag, _, step = str(path.relative_to(root).with_suffix("")).rpartition("_")
        texts.setdefault(tag, {})[int(step)] = path.read_text()
    images: dict[str, dict[int, Path]] = {}
    for path in root.glob("images/*.png"):
        tag, _, step, *_ = path.name.split("+" if "+" in path.name else "%")
        images.setdefault(tag.replace("~", "/").replace("#", "/"), {})[int(step)] = path
    histograms = {key: images.pop(key) for key in [*images] if key == "loud/spread"}
    return {"rows": rows, "texts": texts, "images": images, "histograms": histograms}


def test_every_number_is_there_at_its_step(done: SimpleNamespace) -> None:
    for step, row in expected_rows(done.measuring).items():
        assert {key: done.rows[step][key] for key in row if math.isfinite(row[key])} == pytest.approx(
            {key: value for key, value in row.items() if math.isfinite(value)}
        )


def test_the_timeline_and_the_slices_are_there(done: SimpleNamespace) -> None:
    assert {*done.images} == {"timeline", "partition/slice", "partition/film"}
    assert sorted(done.images["partition/slice"]) == SLICES
    assert max(done.images["timeline"]) == 6
    for path in (path for at_steps in done.images.values() for path in at_steps.values()):
        with Image.open(path) as picture:
            assert min(picture.size) > 250
            assert len({*picture.convert("L").resize((50, 50)).getdata()}) > 10


def test_the_texts_are_there(done: SimpleNamespace) -> None:
    assert {"lc/setup", "partition/setup", "loud/events", "timeline/summary"} <= {*done.texts}
    assert any("it was heard" in text for text in done.texts["loud/events"].values())
    assert "bang" in done.texts["timeline/summary"][6]
    assert "counted layer" in done.texts["lc/setup"][0]


def test_the_histograms_are_there(done: SimpleNamespace) -> None:
    assert sorted(done.histograms["loud/spread"]) == EVERY
    assert [n for n in done.histograms["loud/spread"].values() if isinstance(n, int)] in ([], [50] * 7)


def test_nothing_is_left_in_the_working_directory(done: SimpleNamespace) -> None:
    assert done.clutter == []


def test_the_training_is_untouched(done: SimpleNamespace) -> None:
    (weights, streams), (weights_alone, streams_alone) = done.states
    assert streams == streams_alone
    assert weights == weights_alone


# Fakes with the documented methods of what cannot be tried without an account


class CometExperiment:
    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def log_text(self, text: str, step: int | None = None, metadata: Any = None) -> None:
        self.calls.append(("text", metadata["tag"], text.endswith("words"), step))

    def log_image(
        self, image_data: Any, name: str | None = None, overwrite: bool = False, step: int | None = None
    ) -> None:
        self.calls.append(("image", name, image_data.shape, step))

    def log_histogram_3d(self, values: Any, name: str | None = None, step: int | None = None) -> None:
        self.calls.append(("histogram", name, len(values), step))


class NeptuneRun(dict):
    def __missing__(self, key: str) -> Any:
        self[key] = Series()
        return self[key]


class Series(list):
    def append(self, value: Any, *, step: float | None = None, timestamp: float | None = None) -> None:
        super().append((value, step))


class Fake(RowLogger):
    def __init__(self, experiment: Any) -> None:
        super().__init__()
        self._experiment = experiment

    @property
    def experiment(self) -> Any:
        return self._experiment


class CometLogger(Fake):
    """Named as Lightning's."""


class NeptuneLogger(Fake):
    _prefix = "training"


class OwnComet(CometLogger):
    """Somebody's subclass."""


PIXELS = np.zeros((4, 5, 3), np.uint8)


def write_all(*loggers: Any) -> list[str]:
    failed: list[str] = []
    trainer = SimpleNamespace(loggers=[*loggers])

    def note(what: str, error: Exception) -> None:
        failed.append(f"{what}: {error}")

    log_row(trainer, {"a/b": 1.0}, 3, note)
    log_text(trainer, "a/text", "some words", 3, note)
    log_image(trainer, "a/image", PIXELS, 3, note)
    log_histogram(trainer, "a/histogram", torch.tensor([0.0, 1.0, math.inf]), 3, note)
    return failed


@pytest.mark.parametrize("kind", [CometLogger, OwnComet])
def test_comet_gets_all(kind: Any) -> None:
    logger = kind(CometExperiment())
    assert write_all(logger) == []
    assert logger.calls == [(3, {"a/b": 1.0})]
    assert logger.experiment.calls == [
        ("text", "a/text", True, 3),
        ("image", "a/image", (4, 5, 3), 3),
        ("histogram", "a/histogram", 2, 3),
    ]


def test_neptune_gets_all_in_the_folder_of_its_numbers() -> None:
    logger = NeptuneLogger(NeptuneRun())
    assert write_all(logger) == []
    series = logger.experiment
    assert [*series] == ["training/a/text", "training/a/image", "training/a/histogram"]
    assert series["training/a/text"] == [("some words", 3)]
    assert series["training/a/image"][0][0].size == (5, 4)
    assert isinstance(series["training/a/histogram"][0][0], Image.Image)  # it draws none itself


class Broken(RowLogger):
    @property
    def experiment(self) -> Any:
        raise OSError("no network")


class Half(Fake):
    """An experiment with texts and nothing else."""


def test_a_logger_that_fails_costs_its_own_entry_and_no_other() -> None:
    texts: list[Any] = []
    half = Half(SimpleNamespace(add_text=lambda *entry: texts.append(entry)))
    broken, plain = Broken(), RowLogger()
    failed = write_all(broken, half, plain)
    assert failed == ["Broken: no network"] * 3  # its numbers need no experiment
    assert texts == [("a/text", "some words", 3)]
    assert broken.calls == half.calls == plain.calls == [(3, {"a/b": 1.0})]


def test_logging_draws_nothing_from_the_random_streams_of_the_run() -> None:
    class Random(RowLogger):
        def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
            random.random(), np.random.rand(), torch.rand(1)

    before = random_streams()
    write_all(Random())
    assert before == random_streams()


def test_loggers_are_told_apart_by_what_they_inherit() -> None:
    kinds = [type(adapter_of(logger)).__name__ for logger in (OwnComet(None), NeptuneLogger(None), RowLogger())]
    assert kinds == ["Comet", "Neptune", "SummaryWriter"]
