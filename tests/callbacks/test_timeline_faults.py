"""What goes wrong with a timeline costs a warning, and the training is bit for bit that without callbacks."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib
import numpy as np
import pytest
import torch
from helpers import CLASSES, DIM, Classifier, RowLogger, our_warnings
from lightning.pytorch.loggers import TensorBoardLogger
from made_up import (
    MADE_UP,
    THREE_PHASES,
    MadeUpComplexity,
    adam,
    all_three,
    events_file,
    fit,
    kinds,
    leave_out_pictures,
    made_up,
    told,
)
from torch import nn

from lc_callback.callbacks import run_report

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
DRAW = run_report.image


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def module() -> Classifier:
    net = nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 16), nn.ReLU())
    return Classifier(net.append(nn.Linear(16, CLASSES)), adam)


class Drawing(Classifier):
    """Draws from every random stream in each step."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * (random.random() + np.random.rand())


def plain(value: Any) -> Any:
    """Tensors as bytes, so that values can be compared bit by bit."""
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.detach().numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, Mapping):
        return {key: plain(part) for key, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, (list, tuple)) else value


def outcome(folder: Path, *callbacks: Any, **arguments: Any) -> dict[str, Any]:
    """All that a training leaves behind in memory."""
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(0)
    trained = Drawing(module().net, adam)
    trainer = fit(folder, *callbacks, module=trained, **arguments)
    assert trainer.state.finished
    streams = random.getstate(), np.random.get_state(), torch.get_rng_state()
    optimizer = trainer.optimizers[0].state_dict()
    return plain({"weights": trained.state_dict(), "optimizer": optimizer, "streams": streams})


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a training without callbacks leaves behind."""
    return outcome(tmp_path_factory.mktemp("without"))


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """What is found when nothing fails."""
    callbacks = all_three()
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        fit(tmp_path_factory.mktemp("fine"), *callbacks)
    assert len(told(*callbacks)) > 10
    return told(*callbacks)


# Nothing fails


def rc_params() -> dict[str, Any]:
    """As they are: asking for the backend in the usual way would choose one."""
    return dict(dict.items(matplotlib.rcParams))


@pytest.mark.slow
def test_a_training_with_all_that_can_be_told_is_the_training_without(
    without: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report, "image", DRAW)
    arguments = {"on_transition": ["checkpoint"], "custom_scalars": True, "really": True}
    callbacks = all_three(**arguments)
    before = rc_params()
    with our_warnings("MadeUp") as warned:
        assert outcome(tmp_path, *callbacks, logger=TensorBoardLogger(tmp_path)) == without
    assert rc_params() == before
    assert [text for text in warned if "Training goes on" in text] == []
    assert len([*tmp_path.rglob("*.ckpt")]) > 5
    assert len([*tmp_path.rglob("timeline.png")]) == 1


def test_pictures_leave_no_figure_open_and_no_setting_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib import pyplot

    monkeypatch.setattr(run_report, "image", DRAW)
    with matplotlib.rc_context({"figure.dpi": 31, "axes.grid": True, "figure.constrained_layout.use": False}):
        own = pyplot.Figure()
        before, figures = rc_params(), pyplot.get_fignums()
        fit(tmp_path, made_up())
        assert rc_params() == before
        assert pyplot.get_fignums() == figures
    assert own.axes == []
    assert (tmp_path / "timeline.png").stat().st_size > 1000


# Something fails


class Failing(MadeUpComplexity):
    """Its detector fails at some looks."""

    at: tuple[int, ...] = ()
    what = "find"

    @staticmethod
    def find(curves: Any, settings: Any) -> Any:
        if curves["lc/train"][0][-1] in Failing.at and Failing.what == "find":
            raise ArithmeticError("cannot find")
        return MadeUpComplexity.find(curves, settings)

    def marks(self, curves: Any) -> dict[str, float]:
        if curves["lc/train"][0][-1] in Failing.at and Failing.what == "marks":
            raise ArithmeticError("cannot mark")
        return super().marks(curves)


class BrokenLogger(RowLogger):
    """Cannot take what it is asked to ``add``; takes what else there is."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what, self.taken = what, []

    @property
    def experiment(self) -> Any:
        return self

    def _add(self, what: str, tag: Any) -> None:
        if isinstance(tag, str) and tag.endswith("/setup"):
            return
        if what == self.what:
            raise ConnectionError(f"{what} is down")
        self.taken.append(what)

    def add_text(self, tag: str, *args: Any) -> None:
        self._add("add_text", tag)

    def add_image(self, tag: str, *args: Any, **kwargs: Any) -> None:
        self._add("add_image", tag)

    def add_custom_scalars(self, layout: Any) -> None:
        self._add("add_custom_scalars", layout)


def cannot_draw(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(run_report, "image", lambda parts: 1 / 0)


def cannot_replace_the_picture(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "timeline.png").mkdir(parents=True)


def cannot_say_how_to_draw(folder: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(MadeUpComplexity, "panels", classmethod(lambda cls, keys: 1 / 0))


def cannot_save(folder: Path, patch: pytest.MonkeyPatch) -> None:
    folder.mkdir(exist_ok=True)
    (folder / "checkpoints").write_text("a file where a folder should be")


def cannot_write_events(folder: Path, patch: pytest.MonkeyPatch) -> None:
    (folder / "events.jsonl.part").mkdir(parents=True)


@dataclass
class Fault:
    says: str
    breaks: Callable[[Path, pytest.MonkeyPatch], None] = lambda folder, patch: None
    logger: str = ""
    costs: tuple[str, ...] = ()


FAULTS = {
    "drawing": Fault("ZeroDivisionError", cannot_draw, costs=("add_image",)),
    "the_picture_file": Fault("timeline.png", cannot_replace_the_picture),
    "panels": Fault("ZeroDivisionError", cannot_say_how_to_draw, costs=("add_image", "add_custom_scalars")),
    "a_checkpoint": Fault("checkpoints", cannot_save),
    "the_events_file": Fault("events.jsonl", cannot_write_events),
    "add_text": Fault("add_text is down", logger="add_text", costs=("add_text",)),
    "add_image": Fault("add_image is down", logger="add_image", costs=("add_image",)),
    "add_custom_scalars": Fault(
        "add_custom_scalars is down", logger="add_custom_scalars", costs=("add_custom_scalars",)
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_costs_a_warning(
    name: str, without: Any, events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    fault.breaks(tmp_path, monkeypatch)
    logger, callbacks = BrokenLogger(fault.logger), all_three(on_transition=["checkpoint"], custom_scalars=True)
    with our_warnings("MadeUp") as warned:
        assert outcome(tmp_path, *callbacks, logger=logger) == without
    assert warned
    assert [text for text in warned if fault.says not in text or "Training goes on." not in text] == []
    assert told(*callbacks) == events
    assert [callback.history.steps[-1] for callback in callbacks] == [100, 100, 100]
    if name != "the_events_file":
        assert sorted(map(str, events_file(tmp_path))) == events
    if name != "a_checkpoint":
        assert [*tmp_path.glob("checkpoints/*.ckpt")]
    assert {"add_text", "add_image", "add_custom_scalars"} - {*logger.taken} == {*fault.costs}


@pytest.mark.parametrize("name", FAULTS)
def test_raise_on_error_stops_the_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = FAULTS[name]
    fault.breaks(tmp_path, monkeypatch)
    callbacks = all_three(on_transition=["checkpoint"], custom_scalars=True, raise_on_error=True)
    with pytest.raises(RuntimeError, match="MadeUp") as caught:
        fit(tmp_path, *callbacks, logger=BrokenLogger(fault.logger))
    assert fault.says in str(caught.value) + repr(caught.value.__cause__)


@pytest.mark.parametrize("what", ["find", "marks"])
def test_a_detector_that_fails_costs_a_look(
    what: str, without: Any, events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "at", (2, 25, 32))
    monkeypatch.setattr(Failing, "what", what)
    few = {"n_probes": 4, "test_probes": torch.randn(4, DIM, generator=torch.Generator().manual_seed(0))}
    callback, other = Failing(**few), made_up("rank")
    with our_warnings("Failing", "MadeUp") as warned:
        assert outcome(tmp_path, callback, other) == without
    warned = [text for text in warned if "no logger" not in text]
    assert len(warned) == 3
    assert all(f"cannot {what.removesuffix('s')}" in text and "Training goes on." in text for text in warned)
    assert kinds(callback) == THREE_PHASES
    assert len(callback.history) == len(other.history)
    unmarked = [row["step"] for row in callback.history if "lc/phase" not in row]
    assert unmarked == ([2, 25, 32] if what == "marks" else [])
    assert {str(event) for event in other.events} < {*events}


@pytest.mark.parametrize("what", ["find", "marks"])
def test_a_detector_that_fails_stops_the_run_if_asked(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Failing, "at", (25,))
    monkeypatch.setattr(Failing, "what", what)
    with pytest.raises(RuntimeError, match=r"Failing: .* cannot"):
        fit(tmp_path, Failing(n_probes=4, raise_on_error=True))


class Disk(pl.Callback):
    """Full in some steps: half of what is written arrives. Put before the measuring callbacks."""

    def __init__(self, full: tuple[int, ...], patch: pytest.MonkeyPatch) -> None:
        self.full, self.is_full, self.refused = full, False, 0
        whole = Path.open

        def open_(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if self.is_full and mode[0] in "wa" and path.name.startswith("events"):
                self.refused += 1
                with whole(path, mode, *args, **kwargs) as file:
                    file.write('{"at": 1, "wh')
                raise OSError(errno.ENOSPC, "No space left on device")
            return whole(path, mode, *args, **kwargs)

        patch.setattr(Path, "open", open_)

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.is_full = trainer.global_step in self.full


@pytest.mark.parametrize("full", [range(5, 15), range(18, 70), range(38, 42)])
def test_a_full_disk_costs_no_event_once_there_is_room(
    full: range, without: Any, events: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk, callbacks = Disk(tuple(full), monkeypatch), all_three()
    with our_warnings("MadeUp") as warned:
        assert outcome(tmp_path, disk, *callbacks, logger=RowLogger()) == without
    assert len(warned) == disk.refused > 0
    assert all("No space left" in text and "events.jsonl" in text for text in warned)
    assert told(*callbacks) == events == sorted(map(str, events_file(tmp_path)))
    assert [event.at for event in events_file(tmp_path)] == sorted(event.at for event in events_file(tmp_path))


def test_a_logger_that_fails_keeps_nothing_from_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, fine = BrokenLogger("add_text"), BrokenLogger("")
    fit(tmp_path, made_up(), logger=[broken, fine])
    assert fine.taken.count("add_text") > broken.taken.count("add_text")
    assert broken.taken.count("add_image") == fine.taken.count("add_image") > 0


def test_keyboard_interrupt_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(parts: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(run_report, "image", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, made_up())


@pytest.mark.parametrize("kind", MADE_UP)
def test_a_run_whose_values_are_all_nan_has_a_timeline_all_the_same(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report, "image", DRAW)
    nothing = dict.fromkeys(MADE_UP[kind].curves, lambda step: float("nan"))
    callback = made_up(kind, curves=nothing)
    with our_warnings("MadeUp") as warned:
        fit(tmp_path, callback, logger=RowLogger())
    assert [text for text in warned if "NaN at step" not in text] == []
    assert callback.transitions == []
    assert (tmp_path / "timeline.png").stat().st_size > 1000
