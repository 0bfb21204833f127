"""A run that was interrupted and resumed tells the timeline of one that was not."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Classifier, loader, make_trainer, our_warnings, points
from lightning.pytorch.callbacks import ModelCheckpoint
from made_up import HESITATES, STEPS, adam, curve, events_file, fit, found, kinds, leave_out_pictures, made_up, told

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
EVERY = 4  # steps from one checkpoint to the next


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def several() -> list[Any]:
    """With withdrawals and moves, and rows between two looks of the detector."""
    return [
        made_up("lc", curves={"lc/train": HESITATES}, schedule=lambda step: True),
        made_up("robustness", schedule=lambda step: True),
        made_up("rank"),
    ]


class Broken(Classifier):
    """Its training step ``at`` fails."""

    def __init__(self, at: int, fail: Any) -> None:
        super().__init__(optimizer=adam)
        self.at, self.fail = at, fail

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.global_step == self.at:
            self.fail()
        return super().training_step(batch, batch_idx)


def interrupt() -> None:
    raise InterruptedError("unplugged")


def saving(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=EVERY, save_top_k=-1)


def checkpoint(folder: Path, step: int | None = None) -> Path | None:
    saved = {int(path.stem.removeprefix("step=")): path for path in (folder / "checkpoints").glob("*.ckpt")}
    return saved.get(max(saved, default=0) if step is None else step)


def train(folder: Path, callbacks: list[Any], **arguments: Any) -> Any:
    return fit(folder, *callbacks, saving(folder), enable_checkpointing=True, **arguments)


@dataclass
class Told:
    """What a run left behind."""

    transitions: list[Any]
    events: list[Any]
    phases: list[float]
    file: str
    phases_on_disk: list[str]

    @classmethod
    def by(cls, callbacks: list[Any], folder: Path) -> Told:
        *_, events = sorted(folder.glob("events*.jsonl"))
        *_, rows = sorted((folder / "lc").glob("history*.csv"))
        header, *lines = (line.split(",") for line in rows.read_text().splitlines())
        return cls(
            [callback.transitions for callback in callbacks],
            [callback.events for callback in callbacks],
            callbacks[0].history["lc/phase"],
            events.read_text(),
            [line[header.index("lc/phase")] for line in lines],
        )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Told, Path]:
    """Of a run that was not interrupted, and where it is."""
    folder, callbacks = tmp_path_factory.mktemp("whole"), several()
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        train(folder, callbacks)
    told = Told.by(callbacks, folder)
    whats = {event.what for events in told.events for event in events}
    assert whats == {"found", "confirmed", "withdrawn", "updated"}  # or too little would be shown
    return told, folder


# Before any checkpoint, before any event, behind a discovery, a withdrawal and a move.
@pytest.mark.slow
@pytest.mark.parametrize("at", [3, 7, 12, 29, 80])
def test_an_interrupted_run_tells_what_a_whole_one_does(at: int, whole: Any, tmp_path: Path) -> None:
    with pytest.raises(InterruptedError):
        train(tmp_path, several(), module=Broken(at, interrupt))
    last = checkpoint(tmp_path)
    elsewhere, here = several(), several()
    if last is not None:
        train(tmp_path / "new", elsewhere, resume=last)
        assert Told.by(elsewhere, tmp_path / "new") == whole[0]
    train(tmp_path, here, resume=last)
    assert Told.by(here, tmp_path) == whole[0]
    assert len([*tmp_path.glob("*.jsonl")]) == 1


@pytest.mark.parametrize("step", [40, pytest.param(8, marks=pytest.mark.slow)])
def test_a_finished_run_can_be_repeated_from_any_checkpoint(step: int, whole: Any, tmp_path: Path) -> None:
    callbacks = several()
    train(tmp_path, callbacks, resume=checkpoint(whole[1], step))
    assert Told.by(callbacks, tmp_path) == whole[0]


def killed(folder: Path, at: int) -> None:
    """Run in a process of its own."""
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    with pytest.MonkeyPatch.context() as patch:
        leave_out_pictures(patch)
        train(folder, several(), module=Broken(at, lambda: os.kill(os.getpid(), signal.SIGKILL)))


@pytest.mark.slow
def test_a_killed_run_tells_what_a_whole_one_does(whole: Any, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["lightning.pytorch", "lc_callback.callbacks", "pytest"])
    process = context.Process(target=killed, args=(tmp_path, 41))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    events = events_file(tmp_path)
    assert events
    assert max(event.at for event in events) <= 41
    callbacks = several()
    train(tmp_path, callbacks, resume=checkpoint(tmp_path))
    assert Told.by(callbacks, tmp_path) == whole[0]
    assert len([*tmp_path.glob("*.jsonl")]) == 1


@pytest.mark.slow
def test_lines_behind_the_checkpoint_are_told_once(whole: Any, tmp_path: Path) -> None:
    first, second = several(), several()
    train(tmp_path, first, max_steps=60)
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"at": 60, "wh')  # torn by a crash
    train(tmp_path, second, resume=checkpoint(tmp_path, 28))
    assert Told.by(second, tmp_path) == whole[0]
    assert len([*tmp_path.glob("*.jsonl")]) == 1


# The state


def test_the_state_is_plain_and_small(whole: Any) -> None:
    states = torch.load(checkpoint(whole[1], STEPS), weights_only=True)["callbacks"]

    def types(value: Any) -> set[type]:
        if type(value) is dict:
            return {dict}.union(*map(types, value), *map(types, value.values()))
        return {list}.union(*map(types, value)) if type(value) is list else {type(value)}

    for callback in several():
        state = states[callback.state_key]
        assert state["events"]
        assert state["detector"]["seen"]
        known = {name: part for name, part in state.items() if name not in ("arrays", "extra")}
        assert types(known) <= {dict, list, str, int, float, bool, type(None)}
        assert len(str(state["detector"])) < 40_000


def test_the_state_is_a_copy(tmp_path: Path) -> None:
    callback = made_up()
    fit(tmp_path, callback, max_steps=20)
    state = callback.state_dict()
    text = str(state)
    fit(tmp_path / "on", callback)
    assert str(state) == text


@pytest.mark.parametrize("step", [40, pytest.param(8, marks=pytest.mark.slow)])
def test_a_checkpoint_of_an_earlier_version_has_its_transitions_found_anew(
    step: int, whole: Any, tmp_path: Path
) -> None:
    saved = torch.load(checkpoint(whole[1], step), weights_only=True)
    callbacks = several()
    for callback in callbacks:
        state = saved["callbacks"][callback.state_key]
        for name in ("detector", "events", "marks"):
            state.pop(name, None)
        state["rows"] = [{key: value for key, value in row.items() if key != "lc/phase"} for row in state["rows"]]
    torch.save(saved, tmp_path / "old.ckpt")
    with our_warnings("MadeUp") as warned:
        train(tmp_path, callbacks, resume=tmp_path / "old.ckpt")
    assert [text for text in warned if "no logger" not in text] == []
    assert [callback.transitions for callback in callbacks] == whole[0].transitions
    assert [callback.events for callback in callbacks] == whole[0].events
    assert (tmp_path / "events.jsonl").read_text() == whole[0].file
    assert callbacks[0].history["lc/phase"][step + 1 :] == whole[0].phases[step + 1 :]


@pytest.mark.parametrize("name", ["detector", "events"])
def test_a_state_that_cannot_be_read_warns_and_trains_on(name: str, whole: Any, tmp_path: Path) -> None:
    saved = torch.load(checkpoint(whole[1], 40), weights_only=True)
    callback = several()[0]
    saved["callbacks"][callback.state_key][name] = {"seen": 3} if name == "detector" else [3]
    torch.save(saved, tmp_path / "spoiled.ckpt")
    with our_warnings("MadeUp") as warned:
        trainer = fit(tmp_path, callback, resume=tmp_path / "spoiled.ckpt")
    assert trainer.global_step == STEPS
    assert len([text for text in warned if "Training goes on." in text]) == 1
    assert callback.history.steps[-1] == STEPS


# Callbacks and folders that are used again


@pytest.mark.slow
def test_an_earlier_checkpoint_takes_back_what_came_after(whole: Any, tmp_path: Path) -> None:
    callbacks = several()
    train(tmp_path, callbacks)
    train(tmp_path, callbacks, resume=checkpoint(tmp_path, 28))
    assert Told.by(callbacks, tmp_path) == whole[0]
    assert len([*tmp_path.glob("*.jsonl")]) == 1


@pytest.mark.slow
def test_an_earlier_checkpoint_without_the_callback_takes_back_what_came_after(whole: Any, tmp_path: Path) -> None:
    callbacks = several()
    train(tmp_path, callbacks)
    saved = torch.load(checkpoint(tmp_path, 28), weights_only=True)
    for callback in callbacks:
        del saved["callbacks"][callback.state_key]
    torch.save(saved, tmp_path / "bare.ckpt")
    train(tmp_path, callbacks, resume=tmp_path / "bare.ckpt")
    assert Told.by(callbacks, tmp_path) == whole[0]


def test_fitting_on_with_the_same_trainer_finds_nothing_twice(tmp_path: Path) -> None:
    callbacks = [several()[0], made_up("rank", schedule=lambda step: True)]
    trainer = make_trainer(tmp_path, *callbacks, max_steps=23)
    module, batches = Classifier(), loader(points(4), batch_size=4)
    trainer.fit(module, batches)
    at_the_end = [event for callback in callbacks for event in callback.events if event.at == 23]
    assert at_the_end  # of the last look, which is no look of a longer run
    trainer.fit_loop.epoch_loop.max_steps = STEPS
    trainer.fit(module, batches)
    check_that_nothing_is_told_twice(callbacks, tmp_path)


@pytest.mark.parametrize("end", [23, pytest.param(35, marks=pytest.mark.slow)])
def test_a_run_that_is_made_longer_finds_nothing_twice(end: int, tmp_path: Path) -> None:
    first, second = several(), several()
    trainer = fit(tmp_path, *first, max_steps=end)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert any(event.at == end for callback in first for event in callback.events)
    fit(tmp_path, *second, resume=tmp_path / "end.ckpt")
    check_that_nothing_is_told_twice(second, tmp_path)
    for one, two in zip(first, second, strict=True):
        assert two.events[: len(one.events)] == one.events


def check_that_nothing_is_told_twice(callbacks: list[Any], folder: Path) -> None:
    assert [path.name for path in folder.glob("*.jsonl")] == ["events.jsonl"]
    assert sorted(map(str, events_file(folder))) == told(*callbacks)
    known = set()
    for event in events_file(folder):
        name = event.transition.kind, event.transition.curve
        assert (name in known) == (event.what != "found"), event
        (known.discard if event.what == "withdrawn" else known.add)(name)
    assert known == {(one.kind, one.curve) for callback in callbacks for one in callback.transitions}


def test_a_resume_without_events_keeps_the_file_of_another_run(tmp_path: Path) -> None:
    other, first, second = made_up(), *(made_up(curves={"lc/train": curve((0, 9), (1000, 1))}) for _ in range(2))
    fit(tmp_path, other)
    text = (tmp_path / "events.jsonl").read_text()
    assert text
    train(tmp_path, [first], max_steps=60)
    assert first.events == []
    train(tmp_path, [second], resume=checkpoint(tmp_path, 52))
    assert second.history.steps[0] == 0
    assert (tmp_path / "events.jsonl").read_text() == text


def test_settings_of_the_detector_may_change_at_a_resume(whole: Any, tmp_path: Path) -> None:
    coarse = made_up(curves={"lc/train": HESITATES}, schedule=lambda step: True, detection={"min_prominence": 0.95})
    assert found(coarse) == []
    fit(tmp_path, coarse, resume=checkpoint(whole[1], 40))
    assert kinds(coarse) == []
    assert coarse.events[-1].what == "withdrawn"
