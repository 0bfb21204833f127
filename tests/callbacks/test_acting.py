"""Checkpoints at transitions, and a training that stops at one; two processes agree on both."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Classifier, our_warnings, points, tiny
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from made_up import (
    HESITATES,
    MADE_UP,
    STEPS,
    WITH_FLOOR,
    all_three,
    events_file,
    fit,
    found,
    leave_out_pictures,
    made_up,
    three_phases,
)
from torch.utils.data import DataLoader

import lc_callback
from lc_callback.callbacks import ProbeCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def load(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def saved(folder: Path) -> dict[str, int]:
    """Names, without the ending, and steps."""
    return {path.stem: load(path)["global_step"] for path in folder.glob("*.ckpt")}


def named(*callbacks: Any) -> dict[str, int]:
    """What should be saved."""
    names = {}
    for event in (event for callback in callbacks for event in found(callback)):
        eps = event.transition.curve.partition("_eps")[2]
        names[f"{event.transition.kind}{f'_eps{eps}' if eps else ''}-step={event.at}"] = event.at
    return names


# Checkpoints


@pytest.mark.slow
def test_a_checkpoint_is_saved_at_each_transition(tmp_path: Path) -> None:
    callbacks = all_three(on_transition=["checkpoint"], every_n_train_steps=1)
    fit(tmp_path, *callbacks)
    expected = named(*callbacks)
    assert {name.partition("-")[0] for name in expected} >= {"migration_start", "robustness_onset_eps0.1", "rank_rise"}
    assert saved(tmp_path / "checkpoints") == expected


def test_a_checkpoint_holds_the_row_the_event_and_the_weights_of_its_step(tmp_path: Path) -> None:
    callback, module = made_up(on_transition=["checkpoint"], every_n_train_steps=1), Classifier()
    fit(tmp_path, callback, module=module)
    for event in found(callback):
        path = tmp_path / "checkpoints" / f"{event.transition.kind}-step={event.at}.ckpt"
        state = load(path)["callbacks"][callback.state_key]
        rows = callback.history.rows
        assert state["rows"] == rows[: rows.index(next(row for row in rows if row["step"] == event.at)) + 1]
        assert (state["events"][-1]["what"], state["events"][-1]["at"]) == ("found", event.at)
        assert state["events"][-1]["transition"]["kind"] == event.transition.kind
        again = Classifier()
        again.load_state_dict(load(path)["state_dict"])
        assert not torch.equal(again.net[0].weight, module.net[0].weight)  # the training went on


def test_a_run_goes_on_from_such_a_checkpoint_and_does_not_save_it_again(tmp_path: Path) -> None:
    options = {"on_transition": ["checkpoint"], "every_n_train_steps": 1, "stop_after": "migration_start"}
    whole, resumed = made_up(**{**options, "stop_after": None}), made_up(**options)
    fit(tmp_path / "whole", whole)
    start = next(event.at for event in found(whole) if event.transition.kind == "migration_start")
    path = tmp_path / "whole" / "checkpoints" / f"migration_start-step={start}.ckpt"
    trainer = fit(tmp_path / "resumed", resumed, resume=path)
    assert trainer.global_step == STEPS  # nor does it stop again
    assert saved(tmp_path / "resumed" / "checkpoints") == {k: at for k, at in named(whole).items() if at > start}
    assert resumed.events == whole.events
    assert len(saved(tmp_path / "resumed" / "checkpoints")) == 1


def test_it_goes_where_the_trainer_saves_its_own(tmp_path: Path) -> None:
    callback = made_up(on_transition=["checkpoint"])
    own = ModelCheckpoint(tmp_path / "mine", every_n_train_steps=STEPS)
    fit(tmp_path, callback, own, enable_checkpointing=True)
    assert saved(tmp_path / "mine").items() > named(callback).items()
    assert not (tmp_path / "checkpoints").exists()


def test_it_goes_beside_the_logs_otherwise(tmp_path: Path) -> None:
    callback = made_up(on_transition=["checkpoint"])
    trainer = fit(tmp_path, callback, logger=TensorBoardLogger(tmp_path), enable_checkpointing=True)
    assert saved(Path(trainer.log_dir) / "checkpoints").items() > named(callback).items()


def test_a_transition_that_the_last_row_shows_is_saved_too(tmp_path: Path) -> None:
    closing = made_up(on_transition=["checkpoint"])
    fit(tmp_path / "closing", closing, max_steps=23)  # no log step: its row is taken at the end
    assert [event.at for event in found(closing)] == [10, 23]
    assert saved(tmp_path / "closing" / "checkpoints") == named(closing)


def test_nothing_is_saved_where_a_transition_moves_or_is_withdrawn(tmp_path: Path) -> None:
    both = {"on_transition": ["checkpoint"], "every_n_train_steps": 1}
    callbacks = [made_up(curves={"lc/train": HESITATES}, **both), made_up("robustness", **both)]
    fit(tmp_path, *callbacks)
    assert {event.what for callback in callbacks for event in callback.events} >= {"withdrawn", "confirmed"}
    assert [event.transition.kind for event in found(callbacks[0])].count("migration_start") == 2
    assert saved(tmp_path / "checkpoints") == named(*callbacks)


def test_prefixes_are_in_the_names(tmp_path: Path) -> None:
    near, far = (made_up(on_transition=["checkpoint"], log_key_prefix=prefix) for prefix in ("near/", "far_"))
    fit(tmp_path, near, far)
    expected = {
        f"{prefix}{name}": at for prefix, c in (("near_", near), ("far_", far)) for name, at in named(c).items()
    }
    assert saved(tmp_path / "checkpoints") == expected


def test_without_the_option_nothing_is_saved(tmp_path: Path) -> None:
    callback = made_up(on_transition=None)
    fit(tmp_path, callback, made_up("rank"))
    assert found(callback)
    assert [*tmp_path.rglob("*.ckpt")] == []


# Stopping

STOPS = [("lc", kind) for kind in MADE_UP["lc"].kinds]
STOPS += [("robustness", "interpolation"), ("robustness", "robustness_onset"), ("rank", "second_rank_descent")]


@pytest.mark.parametrize(("kind", "after"), STOPS)
def test_the_training_stops_where_the_transition_is_found(kind: str, after: str, tmp_path: Path) -> None:
    curves = {"lc/train": WITH_FLOOR} if after == "ascent_start" else {}
    callback = made_up(kind, stop_after=after, every_n_train_steps=1, curves=curves)
    others = [made_up(other) for other in MADE_UP if other != kind]
    trainer = fit(tmp_path, others[0], callback, others[1])
    at = next(event.at for event in found(callback) if event.transition.kind == after)
    assert trainer.global_step == at < STEPS
    assert callback.history.steps == [*range(at + 1)]
    assert trainer.state.finished


@pytest.mark.parametrize(("kind", "after"), STOPS)
def test_what_acts_waits_until_a_transition_is_firm_and_confirmed(kind: str, after: str, tmp_path: Path) -> None:
    curves = {"lc/train": WITH_FLOOR} if after == "ascent_start" else {}
    options = {"stop_after": after, "on_transition": ["checkpoint"], "every_n_train_steps": 1, "curves": curves}
    callback = made_up(kind, certainty="firm", **options)
    trainer = fit(tmp_path, callback)
    first, settled = (
        next(event.at for event in callback.events if event.transition.kind == after and event.what == what)
        for what in ("found", "confirmed")
    )
    assert first < settled == trainer.global_step < STEPS
    expected = {event.at for event in callback.events if event.what == "confirmed"}
    assert {*saved(tmp_path / "checkpoints").values()} == expected


@pytest.mark.parametrize("certainty", ["sure", "", None, True, ["firm"]])
def test_a_certainty_is_firm_or_tentative(certainty: Any) -> None:
    with pytest.raises(ValueError, match="`certainty` must be 'firm' or 'tentative', but got "):
        made_up(certainty=certainty)


@pytest.mark.parametrize(("kind", "after"), [("lc", "migration_start"), ("robustness", "robustness_onset")])
def test_a_withdrawal_or_a_move_stops_nothing(kind: str, after: str, tmp_path: Path) -> None:
    options = {"every_n_train_steps": 1, "on_transition": ["checkpoint"]}
    options |= {"curves": {"lc/train": HESITATES}} if kind == "lc" else {}
    whole, resumed = made_up(kind, **options), made_up(kind, stop_after=after, **options)
    fit(tmp_path, whole)
    (_, first), *later = [(e.what, e.at) for e in whole.events if e.transition.kind == after and e.what != "updated"]
    (path,) = (tmp_path / "checkpoints").glob(f"{after}*-step={first}.ckpt")
    trainer = fit(tmp_path / "on", resumed, resume=path)
    assert (
        {what for what, _ in later} & {"moved", "confirmed"} if kind == "robustness" else ("withdrawn" in dict(later))
    )
    assert trainer.global_step == next((at for what, at in later if what == "found"), STEPS)


def test_min_steps_are_trained(tmp_path: Path) -> None:
    free, bound = (made_up(stop_after="first_descent_end", every_n_train_steps=1) for _ in range(2))
    at = fit(tmp_path / "free", free).global_step
    assert fit(tmp_path / "bound", bound, min_steps=at + 5, min_epochs=0).global_step == at + 5


def test_the_checkpoint_of_the_last_step_is_saved_before_the_stop(tmp_path: Path) -> None:
    callback = made_up(on_transition=["checkpoint"], stop_after="migration_start", every_n_train_steps=1)
    trainer = fit(tmp_path, callback)
    assert saved(tmp_path / "checkpoints")[f"migration_start-step={trainer.global_step}"] == trainer.global_step
    resumed = made_up(on_transition=["checkpoint"], every_n_train_steps=1)
    path = tmp_path / "checkpoints" / f"migration_start-step={trainer.global_step}.ckpt"
    assert fit(tmp_path, resumed, resume=path).global_step == STEPS


# Bad arguments


class Silent(ProbeCallback):
    """Finds nothing."""


@pytest.mark.parametrize(
    ("kind", "arguments", "says"),
    [
        ("lc", {"stop_after": "rank_descent"}, ["`stop_after`", "'rank_descent'", "'migration_end'"]),
        ("robustness", {"stop_after": "migration_end"}, ["`stop_after`", "'migration_end'", "'robustness_onset'"]),
        ("rank", {"stop_after": True}, ["`stop_after`", "True", "'second_rank_descent'"]),
        ("lc", {"stop_after": ["migration_end"]}, ["`stop_after`", "['migration_end']", "'migration_start'"]),
        ("lc", {"on_transition": []}, ["`on_transition`", "[]", "['checkpoint']"]),
        ("lc", {"on_transition": "checkpoint"}, ["`on_transition`", "'checkpoint'", "['checkpoint']"]),
        ("rank", {"on_transition": ["checkpoint", "stop"]}, ["`on_transition`", "'stop'", "['checkpoint']"]),
        (
            "rank",
            {"on_transition": [["checkpoint"]]},
            ["`on_transition`", "[['checkpoint']]", "None or ['checkpoint']"],
        ),
        ("robustness", {"on_transition": True}, ["`on_transition`", "True", "['checkpoint']"]),
        ("lc", {"custom_scalars": "yes"}, ["`custom_scalars`", "'yes'", "True or False"]),
        ("lc", {"detection": {"plateau": 0.5}}, ["`detection`", "'plateau'", "'min_prominence'", "'flatness'"]),
        ("robustness", {"detection": {"min_prominence": 0.5}}, ["`detection`", "'min_prominence'", "'interpolation'"]),
        ("rank", {"detection": {"flatness": 2}}, ["`detection`", "`flatness`", "2", "above 0 and below 1"]),
        ("lc", {"detection": {"min_change": -0.1}}, ["`detection`", "`min_change`", "-0.1", "from 0 to below 1"]),
        ("lc", {"detection": {"flatness": float("nan")}}, ["`detection`", "`flatness`", "nan"]),
        ("lc", {"detection": {"noise_factor": float("nan")}}, ["`detection`", "`noise_factor`", "nan", "positive"]),
        ("robustness", {"detection": {"delay": 1}}, ["`detection`", "`delay`", "1", "above 1"]),
        ("robustness", {"detection": {"plateau": "high"}}, ["`detection`", "plateau='high'", "no number"]),
        ("robustness", {"detection": {"plateau": True}}, ["`detection`", "plateau=True", "no number"]),
        ("rank", {"detection": ["flatness"]}, ["`detection`", "['flatness']", "dict"]),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_possible(kind: str, arguments: Any, says: list[str]) -> None:
    with pytest.raises(ValueError, match=re.escape(says[0])) as caught:
        tiny(kind, **arguments)
    assert [part for part in says if part not in str(caught.value)] == []


def test_a_measure_without_transitions_says_so() -> None:
    with pytest.raises(ValueError, match="`stop_after` of Silent must be None, for it finds no transitions"):
        Silent(stop_after="migration_end")
    with pytest.raises(ValueError, match="no setting 'flatness'; it has none"):
        Silent(detection={"flatness": 0.5})


def test_settings_reach_the_detector(tmp_path: Path) -> None:
    usual, coarse = made_up(), made_up(detection={"min_prominence": 0.95})
    fit(tmp_path / "a", usual)
    fit(tmp_path / "b", coarse)
    assert usual.transitions
    assert coarse.transitions == []
    assert {row["lc/phase"] for row in coarse.history} == {0}


# LightningCLI


class Data(LightningDataModule):
    def train_dataloader(self) -> DataLoader:
        return DataLoader(points(4 * STEPS), batch_size=4)


class Lit(Classifier):
    def __init__(self) -> None:
        super().__init__()


CONFIG = """
seed_everything: 0
trainer:
  accelerator: cpu
  max_steps: {steps}
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
  logger: {{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {{save_dir: {folder}}}}}
  callbacks:
    - class_path: {name}
      init_args: {arguments}
"""
ARGUMENTS = """{every_n_train_steps: 1, n_probes: 4, detection: {min_prominence: 0.2, flatness: 0.3},
        on_transition: [checkpoint], stop_after: migration_start, certainty: tentative, custom_scalars: true}"""


def test_a_yaml_file_names_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "config.yaml"
    text = CONFIG.format(steps=STEPS, folder=tmp_path, name="made_up.MadeUpComplexity", arguments=ARGUMENTS)
    config.write_text(text)
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(config)])
    trainer = LightningCLI(Lit, Data).trainer
    (callback,) = [callback for callback in trainer.callbacks if isinstance(callback, ProbeCallback)]
    assert callback.detection == {"min_prominence": 0.2, "noise_factor": 3.0, "min_change": 0.05, "flatness": 0.3}
    assert callback.custom_scalars is True
    assert [event.transition.kind for event in found(callback)] == ["first_descent_end", "migration_start"]
    assert trainer.global_step == callback.events[-1].at < STEPS
    assert saved(Path(trainer.log_dir) / "checkpoints").items() >= named(callback).items()


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        (
            "LocalComplexityCallback",
            "{stop_after: rank_rise}",
            "`stop_after` of LocalComplexityCallback must be one of",
        ),
        ("FeatureRankCallback", "{detection: {flat: 0.3}}", "`detection` of FeatureRankCallback has no setting 'flat'"),
    ],
)
def test_a_wrong_value_in_a_yaml_file_is_named(
    name: str, arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.format(steps=1, folder=tmp_path, name=f"lc_callback.{name}", arguments=arguments))
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "--config", str(config)])
    with pytest.raises(ValueError, match=says):
        LightningCLI(Lit, Data)


# Two processes

DDP = """
import sys

sys.path[:0] = {tests!r}
import torch

torch.set_num_threads(1)
from test_acting import three_runs

three_runs({folder!r})
"""


def three_runs(folder: str) -> None:
    """What each rank does; the curves of the second come later in the first run, and earlier in the second."""
    own = {"strategy": "ddp", "devices": 2, "num_nodes": 1}
    ended = {}
    for name, later in (("later", 6), ("earlier", -6)):
        curves = [three_phases(6), three_phases(6 + later)]
        stopping = made_up(stop_after="migration_start", on_transition=["checkpoint"])
        measure = stopping.measure

        def differing(network: Any, probes: Any, measure: Any = measure, curves: Any = curves) -> dict[str, float]:
            rank, step = torch.distributed.get_rank(), network.module.global_step
            return {**measure(network, probes), "lc/train": curves[rank](step)}

        stopping.measure = differing
        trainer = fit(f"{folder}/{name}", stopping, made_up("robustness", on_transition=["checkpoint"]), **own)
        starts = [event for event in stopping.events if event.transition.kind == "migration_start"]
        seen = [(event.at, event.transition.step) for event in starts]
        ended[name] = trainer.global_step, seen
    Path(folder, "full").mkdir(exist_ok=True)
    Path(folder, "full", "checkpoints").write_text("a file where a folder should be")
    with our_warnings("MadeUp") as warned:
        trainer = fit(f"{folder}/full", made_up(on_transition=["checkpoint"]), max_steps=30, **own)
    ended["full"] = trainer.global_step, sum("Training goes on." in text for text in warned)
    Path(folder, f"rank{trainer.global_rank}.json").write_text(json.dumps(ended))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Of each rank the last step and what was seen, by run."""
    folder = tmp_path_factory.mktemp("ddp")
    script = folder / "ddp.py"
    script.write_text(DDP.format(tests=[str(path) for path in Path(__file__).parents[:2]], folder=str(folder)))
    root = Path(lc_callback.__file__).parents[1]
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=root, timeout=1800)
    assert done.returncode == 0, done.stderr
    return folder, [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["later", "earlier"])
def test_two_processes_stop_at_the_step_of_the_first(name: str, ranks: Any) -> None:
    folder, (first, second) = ranks
    step, seen = first[name]
    assert second[name][0] == step < STEPS
    assert [at for at, _ in seen] == [step]
    assert second[name][1] != seen  # or nothing would be shown
    (file,) = (folder / name).rglob("lc/history.csv")
    assert int(file.read_text().splitlines()[-1].split(",")[0]) == step


@pytest.mark.slow
@pytest.mark.parametrize("name", ["later", "earlier"])
def test_two_processes_write_one_timeline(name: str, ranks: Any) -> None:
    folder, (first, _) = ranks
    (file,), (_,) = (folder / name).rglob("*.jsonl"), (folder / name).rglob("*.png")
    events = events_file(file.parent)
    assert len({str(event) for event in events}) == len(events)
    starts = [event.at for event in events if event.transition.kind == "migration_start"]
    assert starts == [first[name][0]]
    assert {event.transition.kind for event in events} >= {"first_descent_end", "interpolation"}
    expected = {
        f"{event.transition.kind}{'_eps0.1' * ('_eps' in event.transition.curve)}-step={event.at}": event.at
        for event in events
        if event.what == "found"
    }
    assert saved(file.parent / "checkpoints") == expected


@pytest.mark.slow
def test_a_checkpoint_that_cannot_be_saved_does_not_part_the_processes(ranks: Any) -> None:
    folder, (first, second) = ranks
    assert (first["full"], second["full"]) == ([30, 2], [30, 0])
    assert (folder / "full" / "events.jsonl").exists()
