"""Every row and event is on disk, and no file of another run, of another callback or of the user is touched."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from all_kinds import KINDS, tiny
from helpers import Classifier, loader, make_trainer, our_warnings, points
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from made_up import THREE_PHASES, events_file, kinds, made_up
from made_up import fit as fit_made_up

from lc_callback.callbacks import ProbeCallback
from lc_callback.run.timeline import read_events

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn", "no_timeline")]


def fit(folder: Path, *callbacks: Any, steps: int = 4, resume: Any = None, init: int = 0, **arguments: Any) -> Any:
    """Checkpoints after each step, in the folder; the same weights at the start."""
    saving = ModelCheckpoint(folder / "checkpoints", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    trainer = make_trainer(folder, *callbacks, saving, max_steps=steps, enable_checkpointing=True, **arguments)
    torch.manual_seed(init)
    trainer.fit(Classifier(), loader(), loader(points(seed=1)), ckpt_path=resume)
    return trainer


def small(kind: str = "lc", **arguments: Any) -> Any:
    return tiny(kind, **{"every_n_train_steps": 1, **({"radius": 1.0} if kind == "lc" else {}), **arguments})


def saved(folder: Path, step: int) -> Path:
    return folder / "checkpoints" / f"step={step}.ckpt"


def steps_on_disk(folder: Path) -> dict[str, list[int]]:
    """By the path of each history."""
    found = {}
    for path in folder.rglob("history*.csv"):
        if path.is_file() and not path.is_symlink():
            text = path.read_bytes().decode(errors="replace")
            steps = [row.get("step", "") for row in csv.DictReader(text.splitlines())]
            found[str(path.relative_to(folder))] = [int(step) for step in steps if step.isdigit()]
    return found


class Own(ProbeCallback):
    group = "own"

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        return {f"{self.group}/one": 1.0}


class Other(Own):
    """Of the same group."""


class EndsAlike(Own):
    """Its files would go where those of a FeatureRankCallback with the prefix `stable_` go."""

    group = "stable_rank"


class SameKeys(Own):
    group = "elsewhere"

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        return {"own/one": 2.0}


# Two callbacks

CLASHES: dict[str, tuple[Callable[[], list[Any]], str]] = {
    "slash_and_line": (lambda: [small(log_key_prefix="a/"), small(log_key_prefix="a_")], "'a_lc'"),
    "line_and_slash": (lambda: [small("rank", log_key_prefix="a_"), small("rank", log_key_prefix="a/")], "'a_rank'"),
    "deeper": (lambda: [small(log_key_prefix="a/b/"), small(log_key_prefix="a_b/")], "'a_b_lc'"),
    "backslash": (lambda: [small(log_key_prefix="a\\"), small(log_key_prefix="a_")], "'a_lc'"),
    "partition": (
        lambda: [small("partition", log_key_prefix="a/"), small("partition", log_key_prefix="a_")],
        "'a_partition'",
    ),
    "two_own_of_one_group": (lambda: [Own(), Other()], "'own'"),
    "group_and_prefix": (lambda: [small("rank", log_key_prefix="stable_"), EndsAlike()], "'stable_rank'"),
    "among_others": (lambda: [small("robustness"), Own(), small(), Other()], "'own'"),
    "one_key": (lambda: [Own(), SameKeys()], "both log 'own/one'"),
}


@pytest.mark.parametrize("name", CLASHES)
def test_two_callbacks_in_one_place_are_an_error_before_the_first_step(name: str, tmp_path: Path) -> None:
    make, says = CLASHES[name]
    module = Classifier()
    with pytest.raises(MisconfigurationException) as caught:
        make_trainer(tmp_path, *make(), max_steps=2).fit(module, loader(), loader(points(seed=1)))
    assert says in str(caught.value)
    assert "`log_key_prefix`" in str(caught.value)
    assert module.steps_taken == 0


APART = {
    "prefixes": lambda: [small(log_key_prefix="a/"), small(log_key_prefix="b/"), small()],
    "kinds": lambda: [small("rank"), small("robustness"), small(), small("partition")],
    "own": lambda: [Own(every_n_train_steps=1), Other(every_n_train_steps=1, log_key_prefix="other/")],
    "long": lambda: [small(log_key_prefix="a" * 300), small(log_key_prefix="a" * 300 + "b")],
    "odd": lambda: [small(log_key_prefix="a\0$b/"), small(log_key_prefix="../c/")],
}


@pytest.mark.parametrize("name", APART)
def test_callbacks_apart_have_a_file_each(name: str, tmp_path: Path) -> None:
    callbacks, folder = APART[name](), tmp_path / "run"
    folder.mkdir()
    fit(folder, *callbacks, steps=3)
    assert [*steps_on_disk(folder).values()] == [[0, 1, 2, 3]] * len(callbacks)
    assert [*tmp_path.iterdir()] == [folder]  # nothing beside the folder


def test_two_runs_that_go_on_together_in_one_folder_have_a_file_each(tmp_path: Path) -> None:
    inner = small(schedule=[1, 2], every_n_train_steps=None)

    class Between(Classifier):
        """Another run begins and ends before the first row of this one."""

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 1:
                fit(tmp_path, inner, steps=2)
            return super().training_step(batch, batch_idx)

    outer = small(schedule=[2, 3], every_n_train_steps=None)
    make_trainer(tmp_path, outer, max_steps=3).fit(Between(), loader(), loader(points(seed=1)))
    assert inner.history.steps == [1, 2]
    assert steps_on_disk(tmp_path) == {"lc/history.csv": [1, 2], "lc/history_1.csv": [2, 3]}


@pytest.mark.parametrize("kind", KINDS)
def test_runs_one_after_the_other_in_one_folder_have_a_file_each(kind: str, tmp_path: Path) -> None:
    for steps in (2, 3, 2):
        fit(tmp_path, small(kind), steps=steps)
    assert sorted(steps_on_disk(tmp_path).values()) == [[0, 1, 2], [0, 1, 2], [0, 1, 2, 3]]


# Files that something has happened to


def bad_byte(at: int) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        data = path.read_bytes()
        path.write_bytes(data[:at] + b"\xff" + data[at:])

    return spoil


def last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\xfe")


def other_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"1", b"2", 1))


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def gone(path: Path) -> None:
    path.unlink()


def folder_of_that_name(path: Path) -> None:
    path.unlink()
    path.mkdir()


def wide_characters(path: Path) -> None:
    path.write_text(path.read_text(), encoding="utf-16")


def zeros(path: Path) -> None:
    path.write_bytes(bytes(len(path.read_bytes())))  # as after a power cut


def dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


SPOILED = [
    *(bad_byte(at) for at in (0, 3, 60)),
    *(last_byte, other_byte, emptied, gone, folder_of_that_name, wide_characters, zeros, dangling_link),
]
NAMES = [f"bad_byte_{at}" for at in (0, 3, 60)] + [spoil.__name__ for spoil in SPOILED[3:]]


# The file is the same for all kinds.
OF_ROWS = [("lc", spoil) for spoil in SPOILED] + [(kind, SPOILED[2]) for kind in ("robustness", "rank", "partition")]


@pytest.mark.parametrize(("kind", "spoil"), OF_ROWS, ids=[*NAMES, "robustness", "rank", "partition"])
def test_all_rows_of_a_resumed_run_are_on_disk(kind: str, spoil: Callable[[Path], None], tmp_path: Path) -> None:
    fit(tmp_path, small(kind), steps=3)
    path = tmp_path / small(kind).group / "history.csv"
    spoil(path)
    before = path.read_bytes() if path.is_file() else b""
    callback = small(kind)
    with our_warnings(type(callback).__name__) as warned:
        fit(tmp_path, callback, steps=4, resume=saved(tmp_path, 2))
    assert callback.history.steps == [0, 1, 2, 3, 4]
    assert [0, 1, 2, 3, 4] in steps_on_disk(tmp_path).values()
    told = [text for text in warned if "no logger" not in text]
    if spoil is gone:
        assert told == []
    else:
        assert ["history_1.csv" in text and f"{path} is not the file of this run" in text for text in told] == [True]
        assert not path.is_file() or path.read_bytes() == before


@pytest.mark.parametrize("spoil", SPOILED, ids=NAMES)
def test_all_events_of_a_resumed_run_are_on_disk(spoil: Callable[[Path], None], tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "checkpoints", filename="{step}", every_n_train_steps=20, save_top_k=-1)
    fit_made_up(tmp_path, made_up(), saving, enable_checkpointing=True)
    assert [event.transition.kind for event in events_file(tmp_path)][:1] == THREE_PHASES[:1]
    spoil(tmp_path / "events.jsonl")
    callback = made_up()
    fit_made_up(tmp_path, callback, resume=saved(tmp_path, 20))
    assert kinds(callback) == THREE_PHASES
    (whole,) = [
        path
        for path in tmp_path.glob("events*.jsonl")
        if path.is_file() and path.read_bytes() and path.name == ("events_1.jsonl" if spoil != gone else "events.jsonl")
    ] or [tmp_path / "events.jsonl"]
    assert read_events(whole) == callback.events


def folder_while_it_runs(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir(parents=True, exist_ok=True)


def link_while_it_runs(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


@pytest.mark.parametrize("happens", [gone, folder_while_it_runs, link_while_it_runs])
def test_all_rows_are_on_disk_whatever_happens_to_the_file_of_a_run(
    happens: Callable[[Path], None], tmp_path: Path
) -> None:
    class Between(Classifier):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if self.global_step == 2:
                happens(tmp_path / "lc" / "history.csv")
            return super().training_step(batch, batch_idx)

    callback = small()
    make_trainer(tmp_path, callback, max_steps=4).fit(Between(), loader(), loader(points(seed=1)))
    assert [0, 1, 2, 3, 4] in steps_on_disk(tmp_path).values()
    if happens is link_while_it_runs:
        assert len((tmp_path / "lc" / "elsewhere").read_text().splitlines()) == 4


class LateKey(ProbeCallback):
    """Has another key from a step on."""

    group = "late"
    first = 3

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        late = {"late/two": 2.0, "late/three": 3.0} if network.module.global_step >= self.first else {}
        return {"late/one": 1.0, **late}


@pytest.mark.parametrize("first", [1, 2, 3, 4, 6])
def test_a_key_that_first_appears_behind_the_checkpoint_leaves_one_file(first: int, tmp_path: Path) -> None:
    arguments = {"every_n_train_steps": 1, "test_probes": points(seed=1)}
    for steps, resume in ((5, None), (6, 2)):
        callback = LateKey(**arguments)
        callback.first = first
        fit(tmp_path, callback, steps=steps, resume=resume and saved(tmp_path, resume))
    assert steps_on_disk(tmp_path) == {"late/history.csv": [*range(7)]}


# Links


@pytest.mark.parametrize(
    "name",
    [
        "timeline.png",
        "timeline.png.part",
        "events.jsonl",
        "events.jsonl.part",
        "lc/history.csv",
        "lc/history.csv.part",
        "partition/slice_000000000.png",
        "partition/film.gif",
        "partition/film.png",
    ],
)
@pytest.mark.parametrize("dangling", [False, True])
def test_what_a_link_leads_to_is_left_alone(dangling: bool, name: str, tmp_path: Path) -> None:
    target, link = tmp_path / "precious", tmp_path / "run" / name
    if not dangling:
        target.write_text("precious")
    link.parent.mkdir(parents=True)
    link.symlink_to(target)
    kind = "partition" if "partition" in name else "lc"
    callback = small(kind)
    fit(tmp_path / "run", callback, steps=2)
    assert target.exists() != dangling
    assert dangling or target.read_text() == "precious"
    assert [0, 1, 2] in steps_on_disk(tmp_path).values()
    if name.endswith((".png", ".gif")):
        assert not link.is_symlink()
        assert link.stat().st_size > 0


def test_a_folder_that_is_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lc").symlink_to(tmp_path / "elsewhere")
    fit(tmp_path / "run", small(), steps=2)
    assert steps_on_disk(tmp_path / "elsewhere") == {"history.csv": [0, 1, 2]}


# A callback of another run


FOREIGN = [(kind, 3, place) for kind in KINDS for place in ("another", "the same")]
FOREIGN += [("lc", before, place) for before in (2, 6) for place in ("another", "the same")]


@pytest.mark.parametrize(("kind", "before", "place"), FOREIGN)
def test_a_callback_of_another_run_starts_anew(kind: str, before: int, place: str, tmp_path: Path) -> None:
    fit(tmp_path, init=1, steps=3)
    callback = small(kind)
    fit(tmp_path / ("other" if place == "another" else ""), callback, steps=before)
    rows = callback.history.rows
    path = tmp_path / ("other" if place == "another" else "") / callback.group / "history.csv"
    text = path.read_text()
    fit(tmp_path, callback, steps=5, resume=saved(tmp_path, 3) if place == "another" else foreign(tmp_path))
    assert callback.history.steps == [3, 4, 5]
    assert not {id(row) for row in rows} & {id(row) for row in callback.history.rows}
    assert path.read_text() == text
    assert [3, 4, 5] in steps_on_disk(tmp_path).values()


def foreign(folder: Path) -> Path:
    """A checkpoint of a run with other weights, which had no callback."""
    fit(folder / "foreign", init=2, steps=3)
    return saved(folder / "foreign", 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_callback_that_was_evaluated_starts_anew(kind: str, tmp_path: Path) -> None:
    given = {"train_probes": points(seed=3)} if kind == "partition" else {}
    callback, fresh = small(kind, **given), small(kind, **given)
    make_trainer(tmp_path, callback).validate(Classifier(), loader(points(seed=5)), verbose=False)
    fit(tmp_path / "one", callback, steps=1)
    fit(tmp_path / "two", fresh, steps=1)
    assert callback.history.steps == [0, 1]
    states = [{k: v for k, v in one.extra_state().items() if k != "reason"} for one in (callback, fresh)]
    assert states[0] == states[1] if kind == "lc" else repr(states[0]) == repr(states[1])


class Unwilling(Own):
    """Cannot go back to nothing."""

    def load_extra_state(self, state: dict[str, Any]) -> None:
        self.n = state["n"]


def test_a_state_that_cannot_be_emptied_costs_a_warning(tmp_path: Path) -> None:
    callback = Unwilling(every_n_train_steps=1)
    with our_warnings("Unwilling") as warned:
        fit(tmp_path / "one", callback, steps=1)
        fit(tmp_path / "two", callback, steps=2)
    assert callback.history.steps == [0, 1, 2]
    assert ["beginning anew failed (KeyError: 'n')" in text for text in warned if "logger" not in text] == [True]
