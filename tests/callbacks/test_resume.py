"""A run that was killed and resumed ends as one that never was."""

from __future__ import annotations

import csv
import json
import logging
import math
import multiprocessing
import os
import random
import signal
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from all_kinds import KINDS, ROWS, blank, tiny
from helpers import (
    DIM,
    Classifier,
    Tokens,
    kinds_of,
    loader,
    make_trainer,
    our_warnings,
    points,
    timeless,
)
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.utils.data import TensorDataset

from lc_callback.callbacks import partition

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn")]

STEPS, KILLS_IN_A_RUN = 12, 3
KILLS = {"together": 20, **dict.fromkeys(KINDS, 3)}
# Where a run is killed: at a random call or return of a Python or C function in files whose names end so.
ZONES = {
    "slices": ("/partition.py", "subdivision.py", "vertex_values.py", "film.py"),
    "anywhere": (".py",),
    "measurement": ("local_complexity.py", "recorder.py", "layers.py", "context.py", "points.py", "batch_axis.py"),
    "attack": ("robustness.py", "attacks.py", "pgd.py", "space.py"),
    "features": ("feature_rank.py", "features.py", "alignment.py", "linear_probe.py", "weight_norm.py"),
    "row": ("history.py", "files.py", "loop.py", "row_taker.py", "run_record.py", "row_writer.py", "loggers.py"),
    "checkpoint": ("model_checkpoint.py", "checkpoint_connector.py", "cloud_io.py"),
}


def fit(folder: Path, *callbacks: Any, resume: Any = None, batch: int = 24, **arguments: Any) -> pl.Trainer:
    """Full batches by default, so that the resumed training is itself exact."""
    saving = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=3, save_top_k=-1)
    options = {"max_steps": STEPS, "enable_checkpointing": True, **arguments}
    trainer = make_trainer(folder, *callbacks, saving, **options)
    torch.manual_seed(0)
    module = Classifier(optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.05))
    trainer.fit(module, loader(batch_size=batch), loader(points(seed=1)), ckpt_path=resume)
    return trainer


class EpochEnds(pl.Callback):
    """Which epoch ended at which step."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.seen.append((trainer.current_epoch + 1, trainer.global_step))


ENOUGH = 16  # points for a tunnel length


def small(kind: str = "lc", **arguments: Any) -> Any:
    own = {"lc": {"radius": 1.0}, "robustness": {"n_probes": 24}, "rank": {"n_probes": ENOUGH, "linear_probe": True}}
    return tiny(kind, **{**own.get(kind, {}), **arguments})


def several(kind: str, **arguments: Any) -> dict[str, Any]:
    return {one: small(one, **arguments) for one in kinds_of(kind)}


def checkpoint(folder: Path, step: int | None = None) -> Path | None:
    """The checkpoint of ``step``, or the last."""
    saved = {int(path.stem.removeprefix("step=")): path for path in (folder / "checkpoints").glob("*.ckpt")}
    return saved.get(max(saved, default=0) if step is None else step)


def same(arrays: dict[int, Any], others: dict[int, Any]) -> bool:
    """Bit for bit."""
    assert [*arrays] == [*others]
    return all(
        [*arrays[step]] == [*others[step]] and all(map(torch.equal, arrays[step].values(), others[step].values()))
        for step in arrays
    )


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


# Killed by SIGKILL, again and again


def attempt(kind: str, folder: Path, resume: Path | None, zone: str = "", kill_at: int = 0) -> None:
    """Run in a process of its own: train, and be killed at the ``kill_at``-th event of ``zone``, if it is reached."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    counts = dict.fromkeys(ZONES, 0)
    zones_of: dict[Any, list[str]] = {}

    def count(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if code not in zones_of:
            zones_of[code] = [name for name, files in ZONES.items() if code.co_filename.endswith(files)]
        for name in zones_of[code]:
            counts[name] += 1
            if name == zone and counts[name] == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    partition.draw_slices = blank
    callbacks = several(kind, every_n_train_steps=2)
    sys.setprofile(count if zone else None)
    fit(folder, *callbacks.values(), resume=resume)
    sys.setprofile(None)
    histories = {one: callback.history for one, callback in callbacks.items()}
    torch.save(
        {"histories": {one: (h.state(), h.state_of_arrays()) for one, h in histories.items()}}, folder / "end.pt"
    )
    (folder / "events.json").write_text(json.dumps(counts))


def in_a_process(*arguments: Any) -> int:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "lc_callback.callbacks", "pytest"])
    process = context.Process(target=attempt, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def ended(folder: Path) -> dict[str, Any]:
    """Rows and arrays of each kind at the end of a run."""
    return torch.load(folder / "end.pt", weights_only=True)["histories"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(kind: str, tmp_path: Path) -> None:
    never_killed = tmp_path / "whole"
    never_killed.mkdir()
    assert in_a_process(kind, never_killed, None, "anywhere") == 0  # and nothing happens 0 times
    whole, events = ended(never_killed), json.loads((never_killed / "events.json").read_text())
    assert [*whole] == kinds_of(kind)
    for rows, arrays in whole.values():
        assert [row["step"] for row in rows] == list(range(0, STEPS + 1, 2))
        assert len({str([*row.values()][1:]) for row in timeless(rows)}) > 3  # they differ, or nothing would be shown
        assert [*arrays] == ([row["step"] for row in rows] if rows[0].get("tunnel_length") is not None else [])
    zones = [zone for zone in ZONES if events[zone]]

    draw = random.Random(0)
    killed, resumed_at = Counter(), Counter()
    runs = 0
    while killed.total() < KILLS[kind]:
        folder = tmp_path / f"run{runs}"
        folder.mkdir()
        runs += 1
        for _ in range(KILLS_IN_A_RUN):
            last = checkpoint(folder)
            done = int(last.stem.removeprefix("step=")) if last else 0
            zone = min(zones, key=lambda name: killed[name])
            left = max(100, math.ceil(events[zone] * (1 - done / STEPS)))
            if in_a_process(kind, folder, last, zone, draw.randint(1, left)) != -signal.SIGKILL:
                break
            killed[zone] += 1
            resumed_at[checkpoint(folder)] += 1
        if not (folder / "end.pt").exists():
            assert in_a_process(kind, folder, checkpoint(folder)) == 0
        for (one, (rows, arrays)), (expected, spectra) in zip(ended(folder).items(), whole.values(), strict=True):
            assert timeless(rows) == timeless(expected)
            assert same(arrays, spectra)
            *_, file = sorted((folder / KINDS[one].group).glob("*.csv"))  # one more for each start without a checkpoint
            assert read(file) == rows
    assert killed.total() >= KILLS[kind]
    if kind == "together":
        assert set(killed) == set(zones) == {*ZONES} - {"slices"}
        assert len({path.name for path in resumed_at if path}) >= 3
        assert {key.split("/")[0] for key in whole["rank"][1][0]} == {"spectrum"}


# Resumed in this process


SCHEDULES = {
    "log": {},
    "steps": {"every_n_train_steps": 2},
    "epochs": {"every_n_epochs": 2},
    "list": {"schedule": [0, 3, 4, 11]},
    "function": {"schedule": lambda step: step % 3},
}


SEVERAL = ("log", "epochs")  # whose epochs of several batches are quick, and of the others those of one


@pytest.mark.usefixtures("no_timeline")
@pytest.mark.parametrize(
    ("arguments", "batch"),
    [
        pytest.param(arguments, batch, id=f"{name}-{batch}", marks=pytest.mark.slow if slow else ())
        for name, arguments in SCHEDULES.items()
        for batch, slow in ((24, name in SEVERAL), (8, name not in SEVERAL))
    ],
)
def test_no_row_is_lost_or_doubled_by_a_resume(arguments: dict[str, Any], batch: int, tmp_path: Path) -> None:
    wholes = several("together", **arguments)
    fit(tmp_path, *wholes.values(), batch=batch)
    for step in (3, 6, 9):
        again = several("together", **arguments)
        ends = EpochEnds()
        fit(tmp_path / str(step), *again.values(), ends, resume=checkpoint(tmp_path, step), batch=batch)
        for whole, resumed in zip(wholes.values(), again.values(), strict=True):
            before = [row for row in whole.history.rows if row["step"] <= step]
            expected = whole.history.steps
            if "every_n_epochs" in arguments:  # where a resumed epoch ends differs between versions of Lightning
                expected = [row["step"] for row in before] + [s for n, s in ends.seen if n % 2 == 0 and s > step]
                assert expected[-1] == whole.history.steps[-1]
            assert resumed.history.steps == expected
            assert resumed.history.rows[: len(before)] == before
            if batch == 24:  # Lightning begins an epoch of several batches with other samples
                assert timeless(resumed.history.rows) == timeless(whole.history.rows)
                assert same(resumed.history.arrays, whole.history.arrays)


@pytest.mark.usefixtures("no_timeline")
def test_a_resumed_run_goes_on_in_its_own_file(tmp_path: Path) -> None:
    fit(tmp_path, small())
    resumed = small()
    fit(tmp_path, resumed, resume=checkpoint(tmp_path, 6))  # the file holds rows after step 6
    assert [path.name for path in (tmp_path / "lc").iterdir()] == ["history.csv"]
    assert read(tmp_path / "lc" / "history.csv") == resumed.history.rows


@pytest.mark.usefixtures("no_timeline")
def test_an_earlier_checkpoint_takes_back_the_rows_after_it(tmp_path: Path) -> None:
    callback = small(every_n_train_steps=2)
    fit(tmp_path, callback)
    fit(tmp_path, callback, resume=checkpoint(tmp_path, 3), max_steps=4)
    assert callback.history.steps == [0, 2, 4]


@pytest.mark.usefixtures("no_timeline")
def test_a_second_run_with_the_same_callback_starts_anew(tmp_path: Path) -> None:
    callback = small(radius="auto")
    fit(tmp_path / "a", callback)
    first, radius = callback.history, callback._auto_radius
    inputs, targets = points()[:]
    trainer = make_trainer(tmp_path / "b", callback, max_steps=3)
    with our_warnings() as warned:
        trainer.fit(Classifier(), loader(TensorDataset(10 * inputs, targets)), loader())
    assert callback.history.steps == [0, 1, 2, 3]
    assert first.steps == [0, 1, 2, 3, 4, 5, 6, 8, 10, 12]
    assert callback._auto_radius == pytest.approx(10 * radius)
    assert not any("not those of the checkpoint" in text for text in warned)


@pytest.mark.usefixtures("no_timeline")
def test_fitting_on_with_the_same_trainer_goes_on(tmp_path: Path) -> None:
    callback = small(every_n_train_steps=2)
    trainer = make_trainer(tmp_path, callback, max_steps=4)
    module = Classifier()
    trainer.fit(module, loader(), loader())
    trainer.fit_loop.epoch_loop.max_steps = 8
    trainer.fit(module, loader(), loader())
    assert callback.history.steps == [0, 2, 4, 6, 8]


@pytest.mark.usefixtures("no_timeline")
@pytest.mark.parametrize("change", [{"seed": 1}, {"n_probes": 5}, {"train_probes": torch.randn(4, DIM)}])
def test_other_probes_than_those_of_the_checkpoint_warn(change: dict[str, Any], tmp_path: Path) -> None:
    fit(tmp_path, small())
    resumed = small(**change)
    with our_warnings() as warned:
        fit(tmp_path, resumed, resume=checkpoint(tmp_path, 6))
    assert sum("train" in text and "probes are not those of the checkpoint" in text for text in warned) == 1
    assert resumed.history.steps == [0, 1, 2, 3, 4, 5, 6, 8, 10, 12]


def test_the_same_probes_do_not_warn(tmp_path: Path) -> None:
    fit(tmp_path, small())
    with our_warnings() as warned:
        fit(tmp_path, small(), resume=checkpoint(tmp_path, 6))
    assert [text for text in warned if "no logger" not in text] == []


def other_version(state: dict[str, Any]) -> None:
    state["version"] = 99


def no_version(state: dict[str, Any]) -> None:
    del state["version"]


def rows_of_text(state: dict[str, Any]) -> None:
    state["rows"] = "many"


def rows_in_disorder(state: dict[str, Any]) -> None:
    state["rows"] = state["rows"][::-1]


def no_fingerprints(state: dict[str, Any]) -> None:
    state["fingerprints"] = None


def no_extra(state: dict[str, Any]) -> None:
    state["extra"] = 3


def arrays_of_text(state: dict[str, Any]) -> None:
    state["arrays"] = {"first": "many"}


SPOILED = [other_version, no_version, rows_of_text, rows_in_disorder, no_fingerprints, no_extra, arrays_of_text]


@pytest.mark.usefixtures("no_timeline")
@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        pytest.param(kind, spoil, marks=() if kind == "lc" or spoil is SPOILED[0] else pytest.mark.slow)
        for kind in KINDS
        for spoil in SPOILED
    ],
)
def test_a_state_that_cannot_be_read_warns_and_starts_anew(spoil: Any, kind: str, tmp_path: Path) -> None:
    fit(tmp_path, small(kind, schedule="log"), max_steps=6)
    path = checkpoint(tmp_path, 6)
    saved = torch.load(path, weights_only=True)
    spoil(saved["callbacks"][small(kind).state_key])
    torch.save(saved, path)
    resumed = small(kind, schedule="log")
    with our_warnings(KINDS[kind].__name__) as warned:
        trainer = fit(tmp_path, resumed, resume=path)
    assert trainer.global_step == STEPS
    assert resumed.history.steps == [6, 8, 10, 12]
    assert set(resumed.history.arrays) == (set(resumed.history.steps) if kind == "rank" else set())
    assert sum("history starts anew" in text for text in warned) == 1
    assert len(warned) == 2  # and that there is no logger


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.usefixtures("no_timeline")
def test_a_checkpoint_of_a_run_without_the_callback(used: bool, tmp_path: Path) -> None:
    callback = small()
    fit(tmp_path, callback)
    path = checkpoint(tmp_path, 6)
    saved = torch.load(path, weights_only=True)
    del saved["callbacks"][callback.state_key]
    torch.save(saved, path)
    old = callback.history.rows
    callback = callback if used else small()
    trainer = fit(tmp_path / "again", callback, resume=path)
    assert trainer.global_step == STEPS
    assert [step for step in callback.history.steps if step > 5] == [6, 8, 10, 12]
    assert callback.history.rows[-1] is not old[-1]  # measured again


PLAIN = {dict, list, str, int, float, type(None)}


@pytest.mark.usefixtures("no_timeline")
@pytest.mark.parametrize("kind", KINDS)
def test_the_state_is_plain_and_small(kind: str, tmp_path: Path) -> None:
    row = ROWS[kind]
    fit(tmp_path, small(kind, **row.full))
    saved = torch.load(checkpoint(tmp_path, 6), weights_only=True)
    state = saved["callbacks"][small(kind).state_key]

    def types(value: Any) -> set[type]:
        if type(value) is dict:
            return {dict}.union(*map(types, value), *map(types, value.values()))
        if type(value) is list:
            return {list}.union(*map(types, value))
        return {type(value)}

    assert types(state) <= (PLAIN | {torch.Tensor} if row.keeps_tensors else PLAIN)
    assert [row["step"] for row in state["rows"]] == [0, 1, 2, 3, 4, 5, 6]
    assert len(json.dumps({**state, "arrays": len(state["arrays"]), "extra": str(state["extra"])})) < 10_000
    assert [*state["arrays"]] == ([0, 1, 2, 3, 4, 5, 6] if kind == "rank" else [])


@pytest.mark.usefixtures("no_timeline")
def test_the_spectra_of_a_checkpoint_are_those_of_the_history(tmp_path: Path) -> None:
    callback = small("rank")
    fit(tmp_path, callback)
    saved = torch.load(checkpoint(tmp_path, 6), weights_only=True)["callbacks"][callback.state_key]["arrays"]
    assert {key: array.shape for key, array in saved[6].items()} == dict.fromkeys(
        ("spectrum/net.1", "spectrum/net.3"), (ENOUGH,)
    )
    assert same(saved, {step: arrays for step, arrays in callback.history.arrays.items() if step <= 6})
    fit(tmp_path / "again", callback, resume=checkpoint(tmp_path, 6), max_steps=7)
    assert [*callback.history.arrays] == callback.history.steps == [*range(8)]  # what came after is taken back


@pytest.mark.usefixtures("no_timeline")
def test_the_automatic_radius_is_that_of_the_first_run(tmp_path: Path) -> None:
    data = TensorDataset(torch.arange(24).view(8, 3) % 9, torch.arange(8) % 3)
    first, second, fresh = (small(radius="auto") for _ in range(3))
    module = Tokens()
    trainer = make_trainer(tmp_path, first, max_steps=4)
    trainer.fit(module, loader(data), loader(data))
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    resumed = make_trainer(tmp_path, second, max_steps=6)
    resumed.fit(Tokens(), loader(data), loader(data), ckpt_path=tmp_path / "four.ckpt")
    make_trainer(tmp_path, fresh, max_steps=1).fit(module, loader(data), loader(data))
    assert second._auto_radius == first._auto_radius
    first_spread, second_spread = first.history["lc_spread/train"][0], second.history["lc_spread/train"][-1]
    assert second.history["lc_radius"][-1] == pytest.approx(first._auto_radius * second_spread / first_spread)
    assert fresh.history["lc_spread/train"][0] != first_spread  # the embedding did move


@pytest.mark.usefixtures("no_timeline")
def test_the_unit_of_an_attack_behind_an_embedding_is_that_of_the_row_also_after_a_resume(tmp_path: Path) -> None:
    data = TensorDataset(torch.arange(24).view(8, 3) % 9, torch.arange(8) % 3)
    first, second = (small("robustness", eps_unit="std") for _ in range(2))
    trainer = make_trainer(tmp_path, first, max_steps=4)
    trainer.fit(Tokens(), loader(data), loader(data))
    trainer.save_checkpoint(tmp_path / "four.ckpt")
    module = Tokens()
    make_trainer(tmp_path, second, max_steps=6).fit(
        module, loader(data), loader(data), ckpt_path=tmp_path / "four.ckpt"
    )
    spreads = second.history["robust_acc/spread"]
    assert spreads[: len(first.history)] == first.history["robust_acc/spread"]
    assert len({*spreads}) == len(second.history)  # the embedding did move
    there = module.net[0](data.tensors[0]).detach().flatten(1).double()
    assert second._unit == spreads[-1] == pytest.approx(float(there.var(0, correction=0).mean().sqrt()))


# Callbacks that monitor a row


@pytest.mark.usefixtures("no_timeline")
def test_early_stopping_sees_the_rows(tmp_path: Path) -> None:
    stopping = EarlyStopping("lc/train", stopping_threshold=1e9, check_on_train_epoch_end=True)
    trainer = fit(tmp_path, small(), stopping, batch=8)
    assert trainer.global_step == 3  # the end of the first epoch


@pytest.mark.usefixtures("no_timeline")
def test_model_checkpoint_keeps_the_best_row(tmp_path: Path) -> None:
    callback = small(every_n_train_steps=1)
    best = ModelCheckpoint(tmp_path / "best", monitor="lc/train", mode="max", every_n_train_steps=1)
    fit(tmp_path, callback, best)
    values = callback.history["lc/train"][1:]
    assert len(set(values)) > 3
    assert float(best.best_model_score) == pytest.approx(max(values))
    saved = torch.load(best.best_model_path, weights_only=True)
    assert saved["global_step"] in [step for step, v in enumerate(values, start=1) if v == max(values)]


@pytest.mark.usefixtures("no_timeline")
def test_a_checkpoint_holds_the_row_of_its_own_step(tmp_path: Path) -> None:
    fit(tmp_path, small(every_n_train_steps=1))
    for step in (3, 6, 9, 12):
        rows = torch.load(checkpoint(tmp_path, step), weights_only=True)["callbacks"][small().state_key]["rows"]
        assert rows[-1]["step"] == step


@pytest.mark.parametrize("kind", ["stopping", "checkpoint"])
@pytest.mark.usefixtures("no_timeline")
def test_monitors_find_their_key_first_thing_after_a_resume(kind: str, tmp_path: Path) -> None:
    first = small(schedule=[2])  # no other row is due before the end
    fit(tmp_path, first)
    stopping = EarlyStopping("lc/train", patience=2, check_on_train_epoch_end=True, strict=True)
    best = ModelCheckpoint(tmp_path / "best", monitor="lc/train", every_n_train_steps=1)
    trainer = fit(
        tmp_path, small(schedule=[2]), stopping if kind == "stopping" else best, resume=checkpoint(tmp_path, 3)
    )
    value = first.history["lc/train"][0]
    assert float(stopping.best_score if kind == "stopping" else best.best_model_score) == pytest.approx(value)
    assert (trainer.global_step < STEPS) == (kind == "stopping")
