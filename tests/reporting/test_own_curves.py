"""A measure of the user's own, of which only the files are there: in the report of a run, and in a comparison."""

from __future__ import annotations

import csv
import json
import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from matplotlib.colors import to_hex

from lc_callback import compare_runs
from lc_callback.__main__ import main
from lc_callback.callbacks import MEASURES, LocalComplexityCallback, ProbeCallback
from lc_callback.detection.transitions import Turn
from lc_callback.reporting.figure import image
from lc_callback.reporting.run_dir import read_run
from lc_callback.run.key_panels import panels_of_keys
from lc_callback.run.timeline import Panel, RunCurves
from tests.helpers import Classifier, loader, make_trainer, points

STEPS = np.unique(np.append(0, np.round(10 ** np.arange(0, 3.01, 0.1)))).astype(int)

#: Keys of a row by the folder of its file.
Keys = dict[str, list[str]]
#: Names of the curves by the label of their panel.
Panels = dict[str, list[str]]

OURS: Keys = {"lc": ["lc/train", "lc_radius", "lc/seconds"]}
CASES: dict[str, tuple[Keys, Panels]] = {
    "one_key": ({"norm": ["norm/output", "norm/seconds"]}, {"norm": ["output"]}),
    "splits": (
        {"norm": ["norm/train", "norm/test", "norm/random", "norm/seconds"]},
        {"norm": ["train", "test", "random"]},
    ),
    "layers": (
        {"dead": ["dead/train/net.1", "dead/train/net.3", "dead/seconds"]},
        {"dead": ["train/net.1", "train/net.3"]},
    ),
    "several": (
        {"norm": ["norm/train", "norm/seconds"], "dead": ["dead/train", "dead/seconds"]},
        {"dead": ["train"], "norm": ["train"]},
    ),
    "beside_ours": (
        {"a_norm": ["a_norm/train", "a_norm/seconds"], **OURS},
        {"local complexity": ["train"], "a_norm": ["train"]},
    ),
    "with_a_prefix": ({"wide_norm": ["wide/norm/train", "wide/norm/seconds"]}, {"wide/norm": ["train"]}),
    "two_prefixes": (
        {
            "a_norm": ["a/norm/train", "a/norm/seconds"],
            "b_norm": ["b/norm/train", "b/norm/seconds"],
            "norm": ["norm/train", "norm/seconds"],
        },
        {"a/norm": ["train"], "b/norm": ["train"], "norm": ["train"]},
    ),
    "keys_outside_of_the_group": (
        {"sharp": ["trace/train", "trace/test", "step_size", "sharp/train", "sharp/seconds"]},
        {"trace": ["train", "test"], "step_size": ["step_size"], "sharp": ["train"]},
    ),
    "no_key_of_the_group": ({"sharp": ["trace/train", "sharp/seconds"]}, {"trace": ["train"]}),
    "a_layer_called_seconds": (
        {"norm": ["norm/train/seconds", "norm/train/net.1", "norm/seconds"]},
        {"norm": ["train/seconds", "train/net.1"]},
    ),
    "signs": ({"a norm": ["a norm/$x$", "a norm/\\alpha", "a norm/seconds"]}, {"a norm": ["$x$", "\\alpha"]}),
}


def value(key: str, seed: int = 0) -> np.ndarray:
    """Something that moves, and differs between the seeds."""
    return len(key) + np.log10(STEPS + 1.0) + 0.1 * seed


def write(folder: Path, keys: Keys, seed: int = 0) -> Path:
    for name, of in keys.items():
        (folder / name).mkdir(parents=True)
        with (folder / name / "history.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", *of])
            columns = [np.full(len(STEPS), 0.05) if key == "lc_radius" else value(key, seed) for key in of]
            writer.writerows(zip(STEPS.tolist(), *(column.tolist() for column in columns), strict=True))
    return folder


def event(folder: Path, kind: str, curve: str, step: int) -> None:
    told: dict[str, Any] = {"at": 1000, "what": "found", "kind": kind, "step": step, "detected_at": 1000, "value": 1.0}
    told |= {"prominence": 1.0, "reason": "fell", "curve": curve, "earliest": step, "latest": step}
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")


def drawn(parts: list[RunCurves]) -> Panels:
    return {panel.label: [*panel.lines] for part in parts for panel in part.panels}


@pytest.mark.parametrize("name", CASES)
def test_a_report_draws_its_curves(name: str, tmp_path: Path) -> None:
    keys, panels = CASES[name]
    run = write(tmp_path / "run", keys)
    parts = read_run(run, MEASURES)
    assert drawn(parts) == panels
    assert [*drawn(parts)] == [*panels]
    for part in parts:
        for key in (key for panel in part.panels for key in panel.keys):
            assert [row[key] for row in part.rows] == value(key).tolist()
    main(["report", str(run), "--output", str(run / "report.svg")])
    text = (run / "report.svg").read_text()
    assert all(f">{label}<" in text for label in panels)


@pytest.mark.parametrize("name", CASES)
def test_a_comparison_has_the_mean_of_the_seeds_and_its_band(name: str, tmp_path: Path) -> None:
    keys, panels = CASES[name]
    comparison = compare_runs([write(tmp_path / f"seed_{seed}", keys, seed) for seed in range(3)])
    assert {panel.label: [*panel.lines] for panel in comparison.panels} == panels
    (group,) = comparison.groups
    _, axes = comparison.plot()
    for panel, ax in zip(comparison.panels, axes[:, 0], strict=True):
        assert ax.get_ylabel() == panel.label
        lines = {line.get_label(): line for line in ax.get_lines()}
        assert len(ax.collections) == len(panel.lines)  # bands
        for curve, key in panel.lines.items():
            assert lines[curve].get_ydata() == pytest.approx(value(key, 1))
            assert to_hex(lines[curve].get_color()) == panel.colour_of(key).lower()  # type: ignore[union-attr]
            assert group.pooled[key].spread == pytest.approx(np.full(len(STEPS), 0.1))


@pytest.mark.parametrize("lacks", [0, 1, 2])
def test_a_run_without_it_is_no_run_of_its_mean(lacks: int, tmp_path: Path) -> None:
    own: Keys = {"norm": ["norm/train", "norm/seconds"]}
    paths = [write(tmp_path / f"seed_{seed}", OURS if seed == lacks else OURS | own, seed) for seed in range(3)]
    for path in paths:
        if (path / "norm").exists():
            event(path, "norm_fell", "norm/train", 100)
    comparison = compare_runs(paths)
    assert [panel.label for panel in comparison.panels] == ["local complexity", "norm"]
    (group,) = comparison.groups
    seeds = [seed for seed in range(3) if seed != lacks]
    assert group.pooled["norm/train"].mean == pytest.approx(np.mean([value("norm/train", s) for s in seeds], 0))
    (found,) = group.found
    assert (found.kind, found.curve, found.share, found.median) == ("norm_fell", "norm/train", "2 of 2 runs", 100)
    assert found.of_mean is None
    assert "| norm_fell | norm/train | 2 of 2 runs | 100 |" in comparison.table()
    _, axes = comparison.plot()
    assert [[text.get_text() for text in ax.get_legend().get_texts()] for ax in axes[:, 0]] == [
        ["train"],
        ["train (2 of 3 runs)"],
    ]


def test_its_markers_are_those_that_the_run_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write(tmp_path / "run", OURS | {"wide_dead": ["wide/dead/train", "wide/dead/seconds"]})
    event(run, "units_began_to_die", "wide/dead/train", 100)
    event(run, "of_another_run", "other/train", 10)
    for more in ([], ["--detection", "min_prominence=0.2"]):  # which is none of its own settings, nor can it find anew
        parts = read_run(run, MEASURES, {"min_prominence": 0.2} if more else None)
        assert [(t.kind, t.curve) for t in parts[-1].transitions] == [("units_began_to_die", "wide/dead/train")]
        main(["report", str(run), "--output", str(run / "report.svg"), *more])
        assert "| units_began_to_die | wide/dead/train | 100 |" in capsys.readouterr().out
        assert "units began to die: 100<" in (run / "report.svg").read_text()


# What the timeline of the run tells


def timeline(run: Path, panels: list[Panel], prefix: str, group: str) -> None:
    (run / "timeline.png").write_bytes(image([RunCurves([], panels, [], prefix=prefix, group=group)])[1])


@pytest.mark.parametrize(
    ("prefix", "group", "label"),
    [
        ("", "norm", "norm"),
        ("wide/", "norm", "norm (wide)"),
        ("a_", "norm", "norm (a)"),
        ("", "stable_rank", "stable_rank"),
    ],
)
def test_the_prefix_and_the_panels_are_those_of_its_timeline(
    prefix: str, group: str, label: str, tmp_path: Path
) -> None:
    base = f"{prefix}{group}"
    run = write(tmp_path / "run", {base.replace("/", "_"): [f"{base}/train", f"{base}/seconds"]})
    timeline(run, [panel.prefixed(prefix) for panel in panels_of_keys(group, [f"{group}/train"])], prefix, group)
    (part,) = read_run(run, MEASURES)
    assert (part.prefix, part.group, drawn([part])) == (prefix, group, {label: ["train"]})
    assert [panel.label for panel in compare_runs([run]).panels] == [label]


def test_panels_of_its_own_are_drawn_as_in_its_timeline(tmp_path: Path) -> None:
    keys = ["norm/train", "norm/half", "norm/thin", "norm/never", "norm/seconds"]
    run = write(tmp_path / "run", {"norm": keys})
    own = Panel(
        "size of the output",
        {"at the points": "norm/train"},
        ("#123456",),
        {"norm/train": "norm/half"},
        (0, None),
        {"norm/train": "norm/thin"},
        "thin",
        "norm/train",
        "What it is.",
    )
    timeline(run, [own], "", "norm")
    (part,) = read_run(run, MEASURES)
    assert part.panels == [own]
    assert compare_runs([run]).panels[0].lines == own.lines


def test_one_of_two_panels_of_one_label_does_not_hide_the_other(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        run = write(
            tmp_path / f"seed_{seed}", {name: [f"{name}/train", f"{name}/seconds"] for name in ("a", "b")}, seed
        )
        parts = [RunCurves([], [Panel("share", {"train": f"{name}/train"})], [], group=name) for name in ("a", "b")]
        (run / "timeline.png").write_bytes(image(parts)[1])
        paths.append(run)
    assert [panel.lines for panel in compare_runs(paths).panels] == [{"train": "a/train"}, {"train": "b/train"}]


def test_a_run_that_lost_its_timeline_is_drawn_with_the_others(tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        run = write(tmp_path / f"seed_{seed}", {"wide_norm": ["wide/norm/train", "wide/norm/seconds"]}, seed)
        if seed != 1:
            timeline(run, [Panel("norm (wide)", {"train": "wide/norm/train"})], "wide/", "norm")
        paths.append(run)
    (panel,) = compare_runs(paths).panels
    assert (panel.label, panel.lines) == ("norm (wide)", {"train": "wide/norm/train"})


# Real runs


class Norm(ProbeCallback):
    group = "norm"
    kinds = ("norm_fell",)

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        return {f"norm/{split}": network(points.inputs).norm().item() for split, points in probes.items()}

    @staticmethod
    def find(curves: Any, settings: Mapping[str, float]) -> list[Turn]:
        return [Turn("norm_fell", math.log10(6), 1.0, 1.0, "it fell", "norm/train")]


class Share(Norm):
    group = "share"

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        share = (network(probes["train"].inputs) > 0).float().mean().item()
        return {"positive/train": share, "positive/half_width": 0.1}

    @staticmethod
    def find(curves: Any, settings: Mapping[str, float]) -> list[Turn]:
        return []

    @classmethod
    def panels(cls, keys: Any) -> list[Panel]:
        return [Panel("positive outputs", {"train": "positive/train"}, bands={"positive/train": "positive/half_width"})]


@pytest.mark.slow
def test_what_a_run_has_drawn_is_drawn_again_from_its_files(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        limits: dict[str, Any] = {"every_n_train_steps": 1, "n_probes": 8, "random_probes": False, "seed": seed}
        own = [Norm(**limits), Norm(log_key_prefix="wide/", **limits), Share(log_key_prefix="b_", **limits)]
        lc = LocalComplexityCallback(radius=1.0, **limits)
        logger = CSVLogger(tmp_path, name="", version=f"seed_{seed}")
        trainer = make_trainer(tmp_path, *own, lc, max_steps=12, logger=logger)
        trainer.fit(Classifier(), loader(points(32)), loader(points(32)))
        paths.append(Path(logger.log_dir))
        parts = read_run(paths[-1], MEASURES)
        for part, callback in zip(parts, [lc, own[0], own[1], own[2]], strict=True):
            of_run = callback.part()
            assert part.panels == of_run.panels
            assert (part.rows, part.prefix, part.group) == (of_run.rows, of_run.prefix, of_run.group)
            assert part.transitions == of_run.transitions
        assert [t.curve for t in parts[2].transitions] == ["wide/norm/train"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        comparison = compare_runs(paths)
    labels = ["local complexity", "norm", "norm (wide)", "positive outputs (b)"]
    assert [panel.label for panel in comparison.panels] == labels
    assert [panel.keys for panel in comparison.panels[1:3]] == [
        ["norm/train", "norm/test"],
        ["wide/norm/train", "wide/norm/test"],
    ]
    assert ("norm_fell", "wide/norm/train") in {(found.kind, found.curve) for found in comparison.groups[0].found}


def test_of_ours_too_a_measure_that_follows_no_curve_is_compared_whole_and_a_faint_one_with_its_bold_one(
    tmp_path: Path,
) -> None:
    keys = {
        "nc": ["nc/nc1_train", "nc/nc1_test", "nc/seconds"],
        "wide_rank": [
            *(f"wide/{kind}/{of}" for of in "ab" for kind in ("rank", "effective_rank")),
            "wide/rank/seconds",
        ],
        "rank": [*(f"{kind}/{of}" for of in "ab" for kind in ("rank", "effective_rank")), "rank/seconds"],
    }
    comparison = compare_runs([write(tmp_path / f"seed_{seed}", keys, seed) for seed in range(3)])
    assert [(panel.label, panel.lines) for panel in comparison.panels] == [
        ("feature rank", {"b": "effective_rank/b"}),
        ("feature rank (wide)", {"b": "wide/effective_rank/b"}),
        ("NC1", {"train": "nc/nc1_train", "test": "nc/nc1_test"}),
    ]
