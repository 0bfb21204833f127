"""What the callbacks of a run found, where people look: loggers, files beside the logs, and a picture."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import matplotlib
import numpy as np
import pytest
from helpers import Classifier, RowLogger, loader, make_trainer, our_warnings, points, timeless
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from made_up import (
    HESITATES,
    MADE_UP,
    STEPS,
    THREE_PHASES,
    all_three,
    curve,
    events_file,
    fit,
    kinds,
    leave_out_pictures,
    made_up,
    three_phases,
    told,
)
from matplotlib.image import imread
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

from lc_callback import LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.callbacks import run_report
from lc_callback.run.schedule import is_log_step
from lc_callback.run.timeline import describe, final_transitions
from lc_callback.tensorboard.names import EVENTS_TAG

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

EVENT_TAGS = {"lc": "lc/events", "robustness": "robust_acc/events", "rank": "rank/events"}


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    leave_out_pictures(monkeypatch)


def read(folder: Any) -> EventAccumulator:
    everything = dict.fromkeys(("scalars", "tensors", "images", "histograms"), 0)
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def rows_of(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]


def texts(run: EventAccumulator, tag: str) -> dict[int, str]:
    entries = run.Tensors(f"{tag}/text_summary")
    assert len({entry.step for entry in entries}) == len(entries)  # once a step
    return {entry.step: entry.tensor_proto.string_val[0].decode() for entry in entries}


def phases_by(events: list[Any], steps: list[int]) -> list[int]:
    """The phase at each row, according to the events alone."""
    phases, known = [], set()
    for step in steps:
        for event in (event for event in events if event.at == step and event.what != "updated"):
            (known.discard if event.what == "withdrawn" else known.add)(event.transition.kind)
        phases.append(2 if "migration_start" in known else int("first_descent_end" in known))
    return phases


# TensorBoard


class Run:
    """All three callbacks with all that they can write."""

    def __init__(self, folder: Any, **of_complexity: Any) -> None:
        shared = {"really": True, "custom_scalars": True}
        options = {"lc": {"per_layer": True, "n_directions": 3, "radius": 1.0, **of_complexity}}
        options |= {"robustness": {"raw": True, "steps": 2}, "rank": {"histogram": True, "n_probes": 16}}
        self.callbacks = {kind: made_up(kind, **shared, **options[kind]) for kind in MADE_UP}
        self.trainer = fit(folder, *self.callbacks.values(), logger=TensorBoardLogger(folder))
        self.folder = Path(self.trainer.log_dir)
        self.files = read(self.folder)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_report, "_REST", 0.0)
        return Run(tmp_path_factory.mktemp("run"))


SPLITS, LAYERS = ("train", "test", "random"), ("net.1", "net.3")
SCALARS = {
    "lc": {f"{group}/{split}" for group in ("lc", "lc_ci99") for split in SPLITS}
    | {f"lc_layer/{split}/{layer}" for split in SPLITS for layer in LAYERS}
    | {"lc_radius", "lc/phase", "lc/seconds"},
    "robustness": {"clean_acc/train", "clean_acc/test", "robust_acc/test_eps0.1", "robust_acc_raw/test_eps0.1"}
    | {"robust_acc/seconds"},
    "rank": {f"{group}/{layer}" for group in ("rank", "effective_rank", "stable_rank") for layer in LAYERS}
    | {"weight_norm/total", *(f"weight_norm/net.{i}" for i in (0, 2, 4)), "tunnel_length", "alignment/train"}
    | {"rank/seconds"},
}


def test_the_event_files_hold_every_tag(run: Run) -> None:
    tags = run.files.Tags()
    assert {*tags["scalars"]} - {"epoch", "hp_metric"} == set().union(*SCALARS.values())
    assert {*tags["images"]} == {"timeline"}
    assert {*tags["histograms"]} == {f"spectrum/{layer}" for layer in LAYERS}
    shown = {*EVENT_TAGS.values(), "lc/setup", "robust_acc/setup", "rank/setup", "timeline/summary"}
    others = {"custom_scalars__config__", EVENTS_TAG}
    assert {*tags["tensors"]} == {f"{tag}/text_summary" for tag in shown} | others


@pytest.mark.parametrize("kind", MADE_UP)
def test_scalars_are_those_of_the_file_and_of_the_history(kind: str, run: Run) -> None:
    callback = run.callbacks[kind]
    assert {*callback.history.keys} == SCALARS[kind]
    assert rows_of(run.folder / callback.group / "history.csv") == callback.history.rows
    for key in callback.history.keys:
        logged = [(event.step, np.float32(event.value)) for event in run.files.Scalars(key)]
        expected = [(row["step"], np.float32(row[key])) for row in callback.history]
        np.testing.assert_array_equal(logged, expected, err_msg=key)


@pytest.mark.parametrize("kind", MADE_UP)
def test_the_events_of_the_file_are_those_of_the_callback(kind: str, run: Run) -> None:
    callback = run.callbacks[kind]
    own = [event for event in events_file(run.folder) if event.transition.kind in callback.kinds]
    assert own == callback.events
    assert final_transitions(own) == callback.transitions
    not_there = {"ascent_start", "delayed_robustness", "robustness_loss"}  # the curves have none of these
    assert {*kinds(callback)} == {*callback.kinds} - not_there
    assert {event.transition.curve for event in own} <= {*callback.history.keys}


def test_a_line_of_the_file_names_when_what_and_why(run: Run) -> None:
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text().splitlines()]
    assert {tuple(line) for line in lines} == {
        (
            *("at", "what", "kind", "step", "detected_at", "value", "prominence", "reason", "curve"),
            *("certainty", "earliest", "latest", "noise", "provisional"),
        )
    }
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    descent = next(line for line in lines if line["kind"] == "first_descent_end")
    assert (descent["what"], descent["curve"], descent["step"]) == ("found", "lc/train", 4)
    assert (descent["certainty"], descent["provisional"]) == ("firm", True)
    assert descent["earliest"] <= 4 <= descent["latest"]


@pytest.mark.parametrize("kind", MADE_UP)
def test_every_event_has_a_text(kind: str, run: Run) -> None:
    callback = run.callbacks[kind]
    told = [event for event in callback.events if event.what != "updated"]
    shown = texts(run.files, EVENT_TAGS[kind])
    assert [*shown] == sorted({event.at for event in told})
    for event in told:
        assert describe(event) in shown[event.at]
    assert sum(len(text.split("\n\n")) for text in shown.values()) == len(told)


def test_the_summary_has_all_transitions_and_leads(run: Run) -> None:
    (summary,) = texts(run.files, "timeline/summary").values()
    for callback in run.callbacks.values():
        for found in callback.transitions:
            place = f"{'~' if found.provisional else ''}{found.step:,} ({found.earliest:,} to {found.latest:,})"
            sure = found.doubts or "firm"
            assert f"| {found.kind} | {found.curve} | {place} | {found.detected_at:,} | {sure} | " in summary
            assert found.reason in summary
    assert "region migration began" in summary.split("\n\n")[-1]
    assert "before accuracy under attack (eps 0.1)" in summary


def test_the_picture_is_redrawn_at_every_event_and_at_the_end(run: Run) -> None:
    told = {e.at for callback in run.callbacks.values() for e in callback.events if e.what != "updated"}
    images = run.files.Images("timeline")
    assert sorted({image.step for image in images}) == sorted(told | {STEPS})
    last, on_disk = imread(io.BytesIO(images[-1].encoded_image_string)), imread(run.folder / "timeline.png")
    assert last.shape[0] > last.shape[1] * 0.5 > 300
    np.testing.assert_array_equal(last[..., :3], on_disk[..., :3])
    first = imread(io.BytesIO(images[0].encoded_image_string))
    assert not np.array_equal(first[..., :3], last[..., :3])


@pytest.mark.slow
def test_a_picture_that_takes_long_is_not_drawn_again_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_report, "_REST", math.inf)
    run = Run(tmp_path)
    steps = [e.at for callback in run.callbacks.values() for e in callback.events if e.what != "updated"]
    images = run.files.Images("timeline")
    assert sorted({image.step for image in images}) == [min(steps), STEPS]
    last, on_disk = imread(io.BytesIO(images[-1].encoded_image_string)), imread(run.folder / "timeline.png")
    np.testing.assert_array_equal(last[..., :3], on_disk[..., :3])


def test_the_layout_has_a_chart_for_each_kind_of_curve(run: Run) -> None:
    (written,) = run.files.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(written.tensor_proto.string_val[0]).category
    assert category.title == "lc_callback"
    charts = {chart.title: [*chart.multiline.tag] for chart in category.chart}
    assert charts == {
        "local complexity": [r"^lc/train$", r"^lc/test$", r"^lc/random$"],
        "accuracy": [r"^clean_acc/train$", r"^clean_acc/test$", r"^robust_acc/test_eps0\.1$"],
        "feature rank": [r"^rank/net\.1$", r"^rank/net\.3$"],
    }


def test_a_layout_is_written_only_if_asked_for(tmp_path: Path) -> None:
    trainer = fit(tmp_path, *all_three(), logger=TensorBoardLogger(tmp_path), max_steps=3)
    assert "custom_scalars__config__" not in read(trainer.log_dir).Tags()["tensors"]


@pytest.mark.usefixtures("undrawn")
def test_several_radii_have_one_phase_and_the_transitions_of_the_first(tmp_path: Path) -> None:
    near_far = {"lc/train_r0.05": three_phases(), "lc/train_r0.5": curve((0, 1), (1000, 2))}
    callback = made_up(curves=near_far, really=True, radius=[0.05, 0.5], n_directions=3, custom_scalars=True)
    trainer = fit(tmp_path, callback, logger=TensorBoardLogger(tmp_path))
    files = read(trainer.log_dir)
    expected = {f"{g}/{s}_r{r}" for g in ("lc", "lc_ci99") for s in SPLITS for r in (0.05, 0.5)}
    expected |= {f"lc_layer/train_r0.05/net.{i}" for i in (1, 3)} | {"lc/phase", "lc/seconds"}
    assert {*files.Tags()["scalars"]} - {"epoch", "hp_metric"} == expected
    assert {found.curve for found in callback.transitions} == {"lc/train_r0.05"}
    assert kinds(callback) == THREE_PHASES
    (written,) = files.Tensors("custom_scalars__config__")
    (category,) = Layout.FromString(written.tensor_proto.string_val[0]).category
    assert [chart.title for chart in category.chart] == ["local complexity, r = 0.05", "local complexity, r = 0.5"]


# The phase


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", ["three_phases", "hesitates"])
def test_the_phase_jumps_at_the_events(name: str, tmp_path: Path) -> None:
    shape = HESITATES if name == "hesitates" else three_phases()
    callback = made_up(curves={"lc/train": shape}, every_n_train_steps=1)
    fit(tmp_path, callback)
    rows, events = rows_of(tmp_path / "lc" / "history.csv"), events_file(tmp_path)
    phases = [row["lc/phase"] for row in rows]
    assert phases == phases_by(events, [int(row["step"]) for row in rows])
    taken_back = [event for event in events if event.what == "withdrawn"]
    assert [phase for phase, _ in itertools.groupby(phases)] == ([0, 1, 2, 1, 2] if taken_back else [0, 1, 2])
    assert bool(taken_back) == (name == "hesitates")


@pytest.mark.usefixtures("undrawn")
def test_the_phase_of_a_row_is_not_changed_later(tmp_path: Path) -> None:
    logger, callback = RowLogger(), made_up(curves={"lc/train": HESITATES})
    fit(tmp_path, callback, logger=logger)
    assert [metrics["lc/phase"] for _, metrics in logger.calls if "lc/phase" in metrics] == callback.history["lc/phase"]


# Other loggers, or none


@pytest.mark.usefixtures("undrawn")
def test_a_logger_that_takes_only_metrics_gets_all_scalars(tmp_path: Path) -> None:
    logger, callbacks = RowLogger(), all_three()
    with our_warnings("MadeUp") as warned:
        fit(tmp_path, *callbacks, logger=logger)
    assert warned == []
    logged = [{"step": step, **metrics} for step, metrics in logger.calls]
    for callback in callbacks:
        assert [row for row in logged if f"{callback.group}/seconds" in row] == callback.history.rows
        assert kinds(callback)
    assert {row["lc/phase"] for row in callbacks[0].history} == {0, 1, 2}
    assert told(*callbacks) == sorted(map(str, events_file(tmp_path)))
    assert (tmp_path / "timeline.png").exists()


@pytest.mark.usefixtures("undrawn")
def test_the_csv_logger_gets_all_scalars(tmp_path: Path) -> None:
    callbacks = all_three()
    with our_warnings("MadeUp") as warned:
        trainer = fit(tmp_path, *callbacks, logger=CSVLogger(tmp_path))
    assert warned == []
    folder = Path(trainer.log_dir)
    logged = rows_of(folder / "metrics.csv")
    for callback in callbacks:
        for key in callback.history.keys:
            assert [(row["step"], row[key]) for row in logged if key in row] == [
                (row["step"], row[key]) for row in callback.history
            ]
    names = {path.name for path in folder.iterdir()}
    assert names >= {"events.jsonl", "timeline.png", "lc", "robust_acc", "rank"}
    assert told(*callbacks) == sorted(map(str, events_file(folder)))


def test_without_a_logger_the_files_are_in_the_root(tmp_path: Path) -> None:
    callback = made_up()
    fit(tmp_path, callback)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == {
        "events.jsonl",
        "timeline.png",
        "lc/history.csv",
    }
    assert events_file(tmp_path) == callback.events
    assert callback.transitions


@pytest.mark.parametrize("option", [{"fast_dev_run": True}, {"fast_dev_run": 3}, {"barebones": True}])
def test_a_trial_run_writes_nothing(option: dict[str, Any], tmp_path: Path) -> None:
    arguments = {"on_transition": ["checkpoint"], "custom_scalars": True}
    callbacks = all_three(**arguments)
    logger = {} if "barebones" in option else {"logger": TensorBoardLogger(tmp_path)}
    trainer = fit(tmp_path, *callbacks, **option, **logger)
    assert trainer.state.finished
    assert list(tmp_path.rglob("*")) == []
    assert [callback.events for callback in callbacks] == [[], [], []]


@pytest.mark.usefixtures("undrawn")
def test_a_second_run_in_the_same_place_keeps_the_events_of_the_first(tmp_path: Path) -> None:
    first, second = made_up(), made_up(curves={"lc/train": three_phases(4)})
    fit(tmp_path, first)
    fit(tmp_path, second)
    assert events_file(tmp_path) == first.events
    lines = (tmp_path / "events_1.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [event.transition.step for event in second.events]
    assert first.events != second.events


@pytest.mark.usefixtures("undrawn")
def test_a_second_run_with_the_same_callback_starts_anew(tmp_path: Path) -> None:
    callback = made_up()
    fit(tmp_path / "a", callback)
    first = callback.events
    fit(tmp_path / "b", callback)
    assert callback.events == first == events_file(tmp_path / "b")
    assert events_file(tmp_path / "a") == first


# Several callbacks


@pytest.mark.usefixtures("undrawn")
def test_two_instances_are_told_apart_by_their_prefix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = made_up(log_key_prefix="near/"), made_up(log_key_prefix="far/", curves={"lc/train": three_phases(4)})
    drawn = []
    image = run_report.image
    monkeypatch.setattr(run_report, "image", lambda parts: (drawn.append(parts), image(parts))[1])
    trainer = fit(tmp_path, near, far, logger=TensorBoardLogger(tmp_path))
    folder = Path(trainer.log_dir)
    assert [path.name for path in folder.glob("*.jsonl")] == ["events.jsonl"]
    events = events_file(folder)
    for callback, prefix in ((near, "near/"), (far, "far/")):
        own = [event for event in events if event.transition.curve == f"{prefix}lc/train"]
        assert own == callback.events
        assert kinds(callback) == THREE_PHASES
        assert [*texts(read(folder), f"{prefix}lc/events")] == sorted({e.at for e in own if e.what != "updated"})
        assert {row["step"]: row[f"{prefix}lc/phase"] for row in callback.history} == dict(
            zip(callback.history.steps, phases_by(own, callback.history.steps), strict=True)
        )
    assert len(near.events) + len(far.events) == len(events)
    assert [step.step for step in near.transitions] != [step.step for step in far.transitions]
    first, second = drawn[-1]  # in the order of the prefixes, as a report has them
    assert ([panel.label for panel in first.panels], [panel.label for panel in second.panels]) == (
        ["local complexity (far)"],
        ["local complexity (near)"],
    )
    assert [found.curve for found in first.transitions] == 3 * ["far/lc/train"]
    assert [*first.panels[0].lines.values()] == [f"far/lc/{split}" for split in SPLITS]


class Recorder(RowLogger):
    """What was logged, in order: rows, texts and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.told: list[tuple[int, str]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.told.append((step, "row"))

    @property
    def experiment(self) -> Any:
        return self

    def add_text(self, tag: str, text: str, step: int) -> None:
        if not tag.endswith("/setup"):
            self.told.append((step, tag))

    def add_image(self, tag: str, pixels: Any, step: int, dataformats: str) -> None:
        self.told.append((step, tag))


class Bystander(pl.Callback):
    """Stands between the measuring callbacks."""


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1), (1, 2, 0)])
def test_the_timeline_is_told_once_a_step_when_all_rows_are_taken(
    order: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_report, "_REST", 0.0)
    schedules = [None, lambda step: True, lambda step: is_log_step(step) and step != 40]
    callbacks = [made_up(kind, schedule=schedule) for kind, schedule in zip(MADE_UP, schedules, strict=True)]
    logger = Recorder()
    one, two, three = (callbacks[i] for i in order)
    fit(tmp_path, one, Bystander(), two, three, logger=logger, log_every_n_steps=1000)
    steps = [step for step, _ in logger.told]
    assert steps == sorted(steps)
    for step, entries in itertools.groupby(logger.told, key=lambda entry: entry[0]):
        names = [name for _, name in entries]
        n_rows = sum(step in callback.history for callback in callbacks)
        assert names[:n_rows] == n_rows * ["row"], step
        expected = Counter(
            f"{callback.group}/events"
            for callback in callbacks
            if any(event.at == step and event.what != "updated" for event in callback.events)
        )
        expected += Counter({"timeline": int(bool(expected) or step == STEPS)})
        if step < STEPS:  # at the end there may be one more look
            assert Counter(names[n_rows:]) == expected, step
    assert [name for step, name in logger.told if step == STEPS][-2:] == ["timeline", "timeline/summary"]
    both = {event.at for event in callbacks[0].events} & {event.at for event in callbacks[2].events} - {STEPS}
    assert both  # or nothing would be shown
    file = events_file(tmp_path)
    assert sorted(map(str, file)) == told(*callbacks)
    assert [event.at for event in file] == sorted(event.at for event in file)


@pytest.mark.usefixtures("undrawn")
def test_the_order_of_the_callbacks_changes_no_event(tmp_path: Path) -> None:
    forward, backward = all_three(), all_three()[::-1]
    fit(tmp_path / "a", *forward)
    fit(tmp_path / "b", *backward)
    assert told(*forward) == told(*backward)
    assert timeless(forward[0].history) == timeless(backward[-1].history)


@pytest.mark.usefixtures("undrawn")
def test_rows_at_the_ends_of_epochs_are_told(tmp_path: Path) -> None:
    callback = made_up(every_n_epochs=1)
    trainer = make_trainer(tmp_path, callback, max_epochs=STEPS)
    trainer.fit(Classifier(), loader(points(4), batch_size=4))
    assert callback.history.steps == [*range(STEPS + 1)]
    assert events_file(tmp_path) == callback.events
    assert kinds(callback) == THREE_PHASES


# Drawn by hand


@pytest.fixture
def no_window(monkeypatch: pytest.MonkeyPatch) -> Any:
    from matplotlib import pyplot

    before = matplotlib.get_backend()
    pyplot.switch_backend("agg")
    yield pyplot
    pyplot.close("all")
    pyplot.switch_backend(before)


def test_plot_returns_the_figure_and_its_axes(run: Run, no_window: Any) -> None:
    for callback, label in zip(run.callbacks.values(), ("local complexity", "accuracy", "feature rank"), strict=True):
        figure, ax = callback.plot()
        assert figure.axes == [ax]
        assert ax.get_ylabel() == label
        (panel,) = callback.part().panels
        drawn = {line.get_label(): line for line in ax.get_lines()}
        for name, key in panel.lines.items():
            np.testing.assert_array_equal(drawn[name].get_xdata(), callback.history.steps)
            np.testing.assert_array_equal(drawn[name].get_ydata(), callback.history[key])
        entries = "\n".join(text.get_text() for text in ax.get_legend().get_texts())
        for found in callback.transitions:
            assert found.kind.replace("_", " ") in entries
            assert f"{found.step:,}" in entries
        assert no_window.fignum_exists(figure.number)


def test_plot_of_several_panels_returns_a_list(no_window: Any, tmp_path: Path) -> None:
    callback = LocalComplexityCallback([0.05, 0.5], n_probes=4, n_directions=3)
    figure, ax = callback.plot()  # before a run: empty axes
    assert figure.axes == [ax]
    fit(tmp_path, callback, max_steps=3)
    figure, axes = callback.plot()
    assert figure.axes == axes
    assert [ax.get_ylabel() for ax in axes] == ["local complexity, r = 0.05", "local complexity, r = 0.5"]


def test_a_last_remark_is_on_the_console_and_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lc_callback.callbacks.run_report.say", said.append)
    monkeypatch.setattr(PGDRobustnessCallback, "remark", lambda self: "it rose, but late")
    trainer = fit(tmp_path, *all_three(), logger=TensorBoardLogger(tmp_path), max_steps=3)
    assert said[-1:] == ["it rose, but late"]
    (summary,) = texts(read(trainer.log_dir), "timeline/summary").values()
    assert summary.endswith("it rose, but late")
