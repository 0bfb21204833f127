"""What a measure of a user's own, a filter of warnings, weights or a disk do wrong costs a row at most."""

from __future__ import annotations

import errno
import math
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from all_kinds import KINDS, ROWS, tiny
from helpers import Classifier, RowLogger, loader, make_trainer, mlp, our_warnings, points, timeless
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from made_up import leave_out_pictures
from torch import nn

from lc_callback.callbacks import ProbeCallback
from lc_callback.callbacks.guard import in_words, no_warning_is_an_error, plain_state
from lc_callback.run import files
from lc_callback.run.timeline import read_rows

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn")]


@pytest.fixture(autouse=True)
def _no_timeline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Most of the time of a short run goes into it."""
    leave_out_pictures(monkeypatch)


class Own(ProbeCallback):
    group = "own"
    kinds = ("turn",)

    def measure(self, network: Any, probes: Any) -> dict[str, Any]:
        step = network.module.global_step
        return {"own/step": float(step), "own/array": torch.arange(3.0)}

    def describe(self) -> str:
        return "text"


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Stops:
    """Cannot be looked at."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("hands off")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


RAISED = [
    RuntimeError("no"),
    StopIteration("no"),
    KeyError("no"),
    RecursionError("no"),
    MemoryError(),
    UnspeakableError(),
]
NONSENSE = [None, 3, "text", [1], (), {1: 2}, {"own/m": "high"}, {"own/m": None}, {"own/m": [1, 2]}, {"step": 7.0}, 1j]
NONSENSE += [object(), Stops(), math.nan, b"bytes", np.ones(3), torch.ones(2, 2), {"own/step": torch.ones(2)}, iter([])]
OUTCOMES = [*RAISED, *NONSENSE]
STEPS = len(OUTCOMES)

INSTANCE = ["marks", "pictures", "settings", "settings_used", "extra_state", "describe", "remark", "caption"]
INSTANCE += ["histogram", "recorded"]
STATIC = ["find", "followed", "panels"]


def naughty(method: str, outcomes: list[Any] = OUTCOMES, **arguments: Any) -> Any:
    """A measure one method of which does something else at each call."""
    calls: list[int] = []

    def outcome(*args: Any, **kwargs: Any) -> Any:
        calls.append(0)
        what = outcomes[(len(calls) - 1) % len(outcomes)]
        if isinstance(what, Exception):
            raise what
        return what

    kind = type("Naughty", (Own,), {method: staticmethod(outcome) if method in STATIC else outcome})
    callback = kind(**{"every_n_train_steps": 1, "test_probes": points(seed=1), **arguments})
    callback.calls = calls
    return callback


def fit(folder: Path, *callbacks: Any, module: Any = None, steps: int = 4, resume: Any = None, **arguments: Any) -> Any:
    trainer = make_trainer(folder, *callbacks, max_steps=steps, **{"limit_val_batches": 0, **arguments})
    torch.manual_seed(0)
    trainer.fit(Classifier() if module is None else module, loader(), loader(points(seed=1)), ckpt_path=resume)
    return trainer


@pytest.mark.parametrize("method", [*INSTANCE, *STATIC])
def test_a_method_that_fails_in_every_way_costs_no_row(method: str, tmp_path: Path) -> None:
    callback = naughty(method)
    saving = ModelCheckpoint(tmp_path / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    with our_warnings("Naughty") as warned:
        trainer = fit(tmp_path, callback, saving, steps=STEPS, enable_checkpointing=True, logger=RowLogger())
    assert trainer.state.finished
    assert trainer.global_step == STEPS
    assert callback.calls
    assert callback.history["own/step"] == [*range(STEPS + 1)]
    assert [row["own/step"] for row in read_rows(tmp_path / "own" / "history.csv")] == [*range(STEPS + 1)]
    assert all("Training goes on." in text or "Naughty" in text for text in warned)
    for path in (tmp_path / "checkpoints").glob("*.ckpt"):
        torch.load(path, weights_only=True)
    fit(tmp_path / "on", Own(every_n_train_steps=1), steps=STEPS + 1, resume=tmp_path / "checkpoints" / "step=9.ckpt")
    repr(callback)


SAID = {
    "marks": ("marking the row", {"own/m": "high"}),
    "pictures": ("drawing step", [1]),
    "settings": ("naming its settings", [1]),
    "extra_state": ("its extra state", {"n": object()}),
    "describe": ("describing itself", RuntimeError("no")),
    "recorded": ("recording step", RuntimeError("no")),
}


@pytest.mark.parametrize("method", SAID)
def test_the_warning_says_what_failed(method: str, tmp_path: Path) -> None:
    what, outcome = SAID[method]
    callback = naughty(method, [outcome])
    with our_warnings("Naughty") as warned:
        trainer = fit(tmp_path, callback, logger=RowLogger(), steps=2)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    with our_warnings("Naughty") as at_checkpoint:
        trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert [text for text in [*warned, *at_checkpoint] if what in text and "Training goes on." in text]


@pytest.mark.parametrize("method", ["marks", "pictures", "extra_state"])
def test_raise_on_error_stops_the_run(method: str, tmp_path: Path) -> None:
    callback = naughty(method, [KeyError("no")], raise_on_error=True)
    with pytest.raises(RuntimeError, match=r"Naughty: .*'no'"):
        fit(tmp_path, callback).save_checkpoint(tmp_path / "end.ckpt")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("method", ["measure", "marks", "pictures"])
def test_what_asks_the_process_to_end_passes(method: str, error: type[BaseException], tmp_path: Path) -> None:
    class Ending(Own):
        pass

    def end(self: Any, *args: Any) -> Any:
        if len(self.history) > 1:
            raise error
        return {}

    setattr(Ending, method, end)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tmp_path, Ending(every_n_train_steps=1))


@pytest.mark.parametrize(
    "outcome",
    [*RAISED, None, 3, [1], {1: 2.0}, {"own/x": "high"}, {"own/x": None}, {"own/x": Stops()}, {"own/x": 1j}, Stops()],
    ids=range(len(RAISED) + 9),
)
def test_a_measure_that_fails_costs_its_row(outcome: Any, tmp_path: Path) -> None:
    class Failing(Own):
        def measure(self, network: Any, probes: Any) -> Any:
            if network.module.global_step != 2:
                return super().measure(network, probes)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

    callback = Failing(every_n_train_steps=1)
    with our_warnings("Failing") as warned:
        trainer = fit(tmp_path, callback, logger=RowLogger())
    assert trainer.state.finished
    assert callback.history.steps == [0, 1, 3, 4]
    assert ["the measurement at step 2 failed" in text for text in warned] == [True]


TAKEN = [
    ({"step": 3.0}, {"step_1": 3.0}),
    ({"own/seconds": -1.0}, {"own/seconds_1": -1.0}),
    ({"step": 3.0, "step_1": 4.0}, {"step_2": 3.0, "step_1": 4.0}),
    ({"own/a\nb": 1.0, "own/a\0b": 2.0}, {"own/a_b": 1.0, "own/a_b_1": 2.0}),
    ({"own/\ud800": 1.0}, {"own/_": 1.0}),
    ({"own/" + 300 * "a": 1.0, "own/$x\\$,\"'": 2.0}, {"own/" + 300 * "a": 1.0, "own/$x\\$,\"'": 2.0}),
    ({"": 1.0}, {"": 1.0}),
]


@pytest.mark.parametrize(("found", "kept"), TAKEN, ids=range(len(TAKEN)))
@pytest.mark.parametrize("prefix", ["", "a/"])
def test_no_key_overwrites_another(
    prefix: str, found: dict[str, float], kept: dict[str, float], tmp_path: Path
) -> None:
    if prefix:
        kept = found if {*found} == {"step"} or "step_1" in found else kept

    class Keys(Own):
        def measure(self, network: Any, probes: Any) -> dict[str, float]:
            return found

    callback, logger = Keys(every_n_train_steps=1, log_key_prefix=prefix), RowLogger()
    with our_warnings("Keys") as warned:
        fit(tmp_path, callback, logger=logger)
    expected = {prefix + key: value for key, value in kept.items()}
    assert callback.history.steps == [0, 1, 2, 3, 4]
    assert timeless(callback.history) == [{"step": step, **expected} for step in range(5)]
    assert [row["step"] for row in read_rows(*tmp_path.glob("*own/history.csv"))] == [0, 1, 2, 3, 4]
    assert timeless(metrics for _, metrics in logger.calls) == [expected] * 5
    assert len([text for text in warned if "get another name" in text]) == (found != kept)


def test_marks_overwrite_nothing(tmp_path: Path) -> None:
    class Marking(Own):
        def marks(self, curves: Any) -> dict[str, float]:
            return {"own/step": -1.0, "step": -2.0, "own/mark": torch.tensor(3), "own/seconds": -4.0}

    callback = Marking(every_n_train_steps=1)
    fit(tmp_path, callback)
    assert callback.history["own/step"] == [0, 1, 2, 3, 4] == callback.history.steps
    assert callback.history["own/mark"] == [3] * 5
    assert min(callback.history["own/seconds"]) > 0


# States

GOOD = [{}, {"a": [1, (2.0, None)], "b": {"c": torch.ones(2)}}, {"n": np.float64(2)}, {0: True, "x": b"y"}]
BAD = [{"a": object()}, {"a": threading.Lock()}, {"a": [lambda: 0]}, {"a": {1, 2}}, {"a": np.ones(2)}, {object(): 1}, 3]


@pytest.mark.parametrize("state", GOOD, ids=range(len(GOOD)))
def test_a_plain_state_goes_through_a_checkpoint(state: dict[Any, Any], tmp_path: Path) -> None:
    callback = naughty("extra_state", [state])
    loaded: list[Any] = []
    with our_warnings("Naughty") as warned:
        fit(tmp_path, callback).save_checkpoint(tmp_path / "end.ckpt")
    assert [text for text in warned if "no logger" not in text] == []
    other = naughty("load_extra_state", [None])
    type(other).load_extra_state = lambda self, state: loaded.append(state)
    fit(tmp_path, other, steps=5, resume=tmp_path / "end.ckpt")
    assert str(loaded) == str([plain_state(state)])
    assert other.history.steps == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("state", BAD, ids=range(len(BAD)))
def test_any_other_state_costs_itself(state: Any, tmp_path: Path) -> None:
    with our_warnings("Naughty") as warned:
        fit(tmp_path, naughty("extra_state", [state])).save_checkpoint(tmp_path / "end.ckpt")
    assert ["its extra state failed (TypeError" in text for text in warned if "logger" not in text] == [True]
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)["callbacks"]
    assert [(len(one["rows"]), one["extra"]) for one in saved.values()] == [(5, {})]


# Warnings that are errors


class Warns(Classifier):
    """Warns when it is measured, not when it is trained."""

    def __init__(self, category: type[Warning]) -> None:
        super().__init__()
        self.category = category

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            warnings.warn("measured", self.category, stacklevel=1)
        return super().forward(x)


@pytest.mark.parametrize(
    ("kind", "category"),
    [*((kind, category) for kind in KINDS for category in (UserWarning, RuntimeWarning)), ("lc", DeprecationWarning)],
)
def test_warnings_that_are_errors_cost_nothing(kind: str, category: type[Warning], tmp_path: Path) -> None:
    callback = tiny(kind, every_n_train_steps=1, **({"test_probes": points(seed=1)} if kind != "partition" else {}))
    with warnings.catch_warnings():
        warnings.simplefilter("error", category)
        warnings.filterwarnings("ignore", ".*(num_workers|log_every_n|GPU|Checkpoint directory|does not have many).*")
        filters = [*warnings.filters]
        trainer = fit(tmp_path, callback, module=Warns(category), steps=2)
        assert warnings.filters == filters
    assert trainer.state.finished
    assert callback.history.steps == [0, 1, 2]


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_warnings_as_errors_cost_nothing(kind: str, tmp_path: Path) -> None:
    name = KINDS[kind].__name__
    callback = tiny(kind, every_n_train_steps=1)

    class Breaks(Classifier):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and self.global_step == 1:
                raise RuntimeError("lost")
            return super().forward(x)

    with warnings.catch_warnings():
        warnings.filterwarnings("error", f"{name}.*")
        trainer = fit(tmp_path, callback, module=Breaks(), steps=2)
    assert trainer.state.finished
    assert callback.history.steps == [0, 2]


def test_filters_are_left_alone_where_nothing_is_an_error() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        warnings.simplefilter("once")
        inside = warnings.filters
        with no_warning_is_an_error():
            assert warnings.filters is inside


# Weights


def set_all(value: float, buffers: bool = False) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        for tensor in module.buffers() if buffers else module.parameters():
            if tensor.is_floating_point():
                nn.init.constant_(tensor, value)

    return change


def set_one(value: float) -> Callable[[Any], None]:
    def change(module: Any) -> None:
        with torch.no_grad():
            next(module.net.parameters()).flatten()[0] = value

    return change


WEIGHTS = {
    "inf": set_all(math.inf),
    "nan": set_all(math.nan),
    "one_inf": set_one(-math.inf),
    "one_nan": set_one(math.nan),
    "huge": set_all(1e30),
    "buffers": set_all(math.inf, buffers=True),
}


def with_norm() -> nn.Sequential:
    net = mlp()
    return nn.Sequential(*net[:2], nn.BatchNorm1d(16), *net[2:])


NOT_FINITE = [(kind, weights) for kind in KINDS for weights in ("inf", "one_nan")]
NOT_FINITE += [("partition", weights) for weights in ("nan", "one_inf", "huge", "buffers")]


@pytest.mark.parametrize(("kind", "weights"), NOT_FINITE)
def test_weights_that_are_not_finite_end_no_run(kind: str, weights: str, tmp_path: Path) -> None:
    module = Classifier(with_norm())
    WEIGHTS[weights](module)
    trainer = fit(tmp_path, tiny(kind, schedule=[0, 1]), module=module, steps=1)
    assert trainer.state.finished
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    saved = torch.load(tmp_path / "end.ckpt", weights_only=True)
    WEIGHTS[weights](module)
    saved["state_dict"] = module.state_dict()
    torch.save(saved, tmp_path / "end.ckpt")
    again = fit(
        tmp_path, tiny(kind, schedule=[0, 2]), module=Classifier(with_norm()), steps=2, resume=tmp_path / "end.ckpt"
    )
    assert again.global_step == 2


# Monitors


class FirstRowsFail(Own):
    """The trial goes well, and the first rows do not."""

    n_lost = 2

    def trial(self, network: Any, probes: Any) -> dict[str, float]:
        return {"own/step": 0.0}

    def measure(self, network: Any, probes: Any) -> dict[str, Any]:
        if network.module.global_step < self.n_lost:
            raise RuntimeError("lost")
        return super().measure(network, probes)


class Plateau(Classifier):
    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, self.mode, patience=0)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": "own/step", "interval": "step"},
        }


def stopping(**arguments: Any) -> EarlyStopping:
    return EarlyStopping("own/step", check_on_train_epoch_end=True, patience=1, **arguments)


MONITORS: dict[str, tuple[Callable[[], list[Any]], Callable[[], Any]]] = {
    "stopping_min": (lambda: [stopping()], Classifier),
    "stopping_max": (lambda: [stopping(mode="max")], Classifier),
    "stopping_thresholds": (
        lambda: [stopping(mode="max", stopping_threshold=1e6, divergence_threshold=-5.0)],
        Classifier,
    ),
    "stopping_divergence": (lambda: [stopping(divergence_threshold=50.0)], Classifier),
    "checkpoint": (lambda: [ModelCheckpoint(monitor="own/step", every_n_train_steps=1)], Classifier),
    "checkpoint_max": (lambda: [ModelCheckpoint(monitor="own/step", mode="max", every_n_train_steps=1)], Classifier),
    "plateau_min": (lambda: [], lambda: Plateau("min")),
    "plateau_max": (lambda: [], lambda: Plateau("max")),
}


@pytest.mark.parametrize("n_lost", [1, 3])
@pytest.mark.parametrize("name", MONITORS)
def test_monitors_live_without_the_first_rows(name: str, n_lost: int, tmp_path: Path) -> None:
    monitors, module = MONITORS[name]
    callback = FirstRowsFail(every_n_train_steps=1)
    callback.n_lost = n_lost
    module = module()
    trainer = make_trainer(tmp_path, callback, *monitors(), max_steps=n_lost + 1, enable_checkpointing=True)
    trainer.fit(module, loader(batch_size=24))
    assert trainer.state.finished
    assert trainer.global_step == n_lost + 1
    assert callback.history.steps == [n_lost, n_lost + 1]
    assert float(trainer.callback_metrics["own/step"]) == n_lost + 1
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(0.1 if name != "plateau_min" else 0.01)  # the values rise from the first row on


@pytest.mark.parametrize("kind", KINDS)
def test_early_stopping_beside_a_first_row_that_fails(kind: str, tmp_path: Path) -> None:
    class Breaks(KINDS[kind]):
        """At the first row, not in the trial."""

        def measure(self, network: Any, probes: Any) -> Any:
            if len(next(iter(probes.values()))) > 2:
                raise RuntimeError("lost")
            return super().measure(network, probes)

    module = Classifier()
    if kind == "partition":  # which fails in the trial, too
        set_all(math.inf)(module)
    given = {} if kind == "partition" else {"test_probes": points(seed=1)}
    callback = tiny(kind, schedule=[0], **given)
    callback.__class__ = Breaks
    stop = EarlyStopping(ROWS[kind].key, check_on_train_epoch_end=True, patience=3)
    trainer = make_trainer(tmp_path, callback, stop, max_steps=2)
    trainer.fit(module, loader(batch_size=24))
    assert trainer.global_step == 2
    assert callback.history.steps == []


# Disks


class Disk:
    """Has so much room, and less with all that is written; a run ends where there is none."""

    def __init__(self, room: float, patch: pytest.MonkeyPatch) -> None:
        self.room = room
        patch.setattr(files, "free_bytes", lambda folder: self.room)
        patch.setattr("lc_callback.callbacks.row_writer.free_bytes", lambda folder: self.room)

    def take(self, n: int) -> None:
        self.room -= n
        if self.room < 0:
            raise OSError(errno.ENOSPC, "No space left on device")


class DiskLogger(RowLogger):
    """Its thread dies of the first byte that finds no room, and takes the run with it."""

    def __init__(self, disk: Disk, folder: Path) -> None:
        super().__init__()
        self.disk, self.folder, self.pictures = disk, folder, 0

    @property
    def save_dir(self) -> str:
        return str(self.folder)

    @property
    def experiment(self) -> Any:
        return self

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.disk.take(60 * len(metrics))
        super().log_metrics(metrics, step)

    def add_text(self, tag: str, text: str, *args: Any) -> None:
        self.disk.take(len(text))

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        self.pictures += 1
        self.disk.take(100_000)

    def add_histogram(self, *args: Any) -> None:
        self.disk.take(2_000)


class Logs(Classifier):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("loss", loss)
        return loss


ROOMS = [("partition", room) for room in (40_000, 66_000, 200_000, 1_000_000, 16 * 2**20 + 50_000, 10**9)]
ROOMS += [(kind, room) for kind in ("lc", "robustness", "rank") for room in (66_000, 1_000_000)]


@pytest.mark.parametrize(("kind", "room"), ROOMS)
def test_the_end_of_a_disk_is_left_to_the_training(
    kind: str, room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(room, monkeypatch)
    logger = DiskLogger(disk, tmp_path)
    given = {"histogram": True} if kind == "rank" else {}
    callback = tiny(kind, every_n_train_steps=1, **given)
    with our_warnings(KINDS[kind].__name__) as warned:
        trainer = fit(tmp_path, callback, module=Logs(), logger=logger, steps=6, log_every_n_steps=1)
    assert trainer.state.finished
    assert callback.history.steps == [0, 1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in read_rows(tmp_path / callback.group / "history.csv")] == callback.history.steps
    assert bool(logger.pictures) == (room > 16 * 2**20)
    if kind == "partition" and room < 16 * 2**20:
        assert len([text for text in warned if "no pictures" in text]) == 1
        assert not [*tmp_path.rglob("*.png")]
    if room == 10**9:
        assert [text for text in warned if "kB are free" in text] == []


def test_the_room_of_a_disk_is_that_of_the_nearest_folder(tmp_path: Path) -> None:
    assert 0 < files.free_bytes(tmp_path / "not" / "yet" / "there") < math.inf
    assert files.free_bytes(tmp_path) == pytest.approx(files.free_bytes(tmp_path / "deeper"), rel=0.1)
    files.check_room(tmp_path, 1)
    with pytest.raises(OSError, match="are left to the training"):
        files.check_room(tmp_path, 10**18)


def test_errors_in_words() -> None:
    assert in_words(KeyError("a")) == "KeyError: 'a'"
    assert in_words(UnspeakableError()) == "UnspeakableError, which has no text"


def test_the_order_of_callbacks_in_which_the_hooks_are_guarded(tmp_path: Path) -> None:
    class Broken(Own):
        """What no part of it expects to fail."""

        def take_measured(self) -> bool:
            raise LookupError("lost")

    callback = Broken(every_n_train_steps=1)
    with our_warnings("Broken") as warned:
        trainer = fit(tmp_path, callback, logger=RowLogger())
    assert trainer.state.finished
    assert callback.history.steps == [0, 1, 2, 3, 4]
    assert all("LookupError: lost" in text and "Training goes on." in text for text in warned)


def test_a_callback_is_a_lightning_callback() -> None:
    assert isinstance(Own(), pl.Callback)
