"""Several runs beside each other: groups, transitions of the mean, tables, pictures."""

from __future__ import annotations

import csv
import io
import itertools
import math
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lc_callback import compare_runs
from lc_callback.__main__ import main
from lc_callback.detection.phases import PHASE_SETTINGS, find_phases
from lc_callback.detection.seeds import Pooled, pool
from lc_callback.reporting.comparison import Comparison, Found
from lc_callback.run.timeline import Panel

STEPS = np.unique(np.append(0, np.round(10 ** np.arange(0, 5.01, 0.1))))
X = np.log10(STEPS + 1)
PHASES = np.interp(X, [0, 1.2, 3, 5], [8, 4, 10, 3])


def autocorrelated(rng: np.random.Generator, rho: float = 0.8) -> np.ndarray:
    noise = rng.normal(size=len(STEPS))
    for i in range(1, len(noise)):
        noise[i] = rho * noise[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return noise


def write(folder: Path, values: np.ndarray, radius: float = 0.05, **more: np.ndarray) -> Path:
    """A run of which ``lc/train`` has these values."""
    columns = {"lc/train": values, "lc/seconds": np.full_like(values, 0.1), "lc_radius": np.full_like(values, radius)}
    columns |= {key.replace("__", "/"): column for key, column in more.items()}
    (folder / "lc").mkdir(parents=True)
    with (folder / "lc" / "history.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *columns])
        writer.writerows(zip(STEPS.astype(int), *columns.values(), strict=True))
    return folder


def runs(folder: Path, n: int = 5, base: np.ndarray = PHASES, noise: float = 0.6, name: str = "seed_{}") -> list[Path]:
    made = []
    for seed in range(n):
        rng = np.random.default_rng(seed)
        made.append(write(folder / name.format(seed), base + noise * autocorrelated(rng)))
    return made


# The mean curve


def test_the_mean_of_seeds_shows_what_noise_hides_in_one() -> None:
    found = {1: 0, 5: 0}
    for trial in range(12):
        rng = np.random.default_rng(trial)
        curves = [(STEPS, PHASES + 0.6 * autocorrelated(rng)) for _ in range(5)]
        for n in found:
            pooled = pool(curves[:n])
            turns = find_phases(pooled.steps, pooled.mean, PHASE_SETTINGS, "", pooled.noise)
            firm = {turn.kind: turn.x for turn in turns if turn.certainty == "firm"}
            truth = {"first_descent_end": 1.2, "migration_start": 3}
            found[n] += all(abs(firm.get(kind, 9.0) - x) <= 0.2 for kind, x in truth.items())
    assert found[5] == 12
    assert found[1] <= 9


@pytest.mark.parametrize("n", [3, 5])
def test_the_mean_of_flat_curves_has_no_firm_transition(n: int) -> None:
    for trial in range(12):
        rng = np.random.default_rng(100 + trial)
        pooled = pool([(STEPS, 8 + 0.6 * autocorrelated(rng)) for _ in range(n)])
        turns = find_phases(pooled.steps, pooled.mean, PHASE_SETTINGS, "", pooled.noise)
        assert [turn.kind for turn in turns if turn.certainty == "firm"] == []


def test_mean_spread_and_counts() -> None:
    rows = np.arange(10.0)
    pooled = pool([(rows, np.full(10, 1.0)), (rows, np.full(10, 3.0)), (rows[:4], np.full(4, 5.0))])
    assert pooled.counts.tolist() == [3] * 4 + [2] * 6
    assert pooled.mean.tolist() == [3.0] * 4 + [2.0] * 6
    assert pooled.spread[0] == pytest.approx(2.0)
    assert pooled.spread[-1] == pytest.approx(math.sqrt(2))


def test_between_its_rows_a_run_is_interpolated_and_beyond_them_it_has_no_value() -> None:
    pooled = pool(
        [(np.array([0.0, 9.0, 99.0]), np.array([0.0, 1.0, 2.0])), (np.array([0.0, 99.0]), np.array([0.0, 2.0]))]
    )
    assert pooled.mean.tolist() == pytest.approx([0, 1, 2])
    alone = pool([(np.array([0.0, 9.0]), np.array([1.0, 1.0]))] * 3 + [(np.array([0.0, 9.0, 99.0]), np.ones(3))])
    assert alone.steps.tolist() == [0, 9]  # one of four runs goes on


@pytest.mark.parametrize(
    ("curves", "noise"),
    [
        ([(STEPS, PHASES)], None),
        ([(STEPS, PHASES)] * 2, None),
        ([(STEPS, PHASES)] * 5, None),  # all alike: nothing tells the noise
    ],
)
def test_too_few_runs_tell_no_noise(curves: Any, noise: None) -> None:
    assert pool(curves).noise is noise


def test_no_curve_is_an_error() -> None:
    with pytest.raises(ValueError, match="no curve with a finite value"):
        pool([(np.empty(0), np.empty(0))])


# Groups


@pytest.mark.slow
def test_runs_that_differ_in_the_seed_are_one_group(tmp_path: Path) -> None:
    (group,) = compare_runs(runs(tmp_path, 3)).groups
    assert len(group.runs) == 3
    (start,) = [found for found in group.found if found.kind == "migration_start"]
    assert start.share == f"{len(start.steps)} of 3 runs"
    assert start.of_mean is not None
    assert start.of_mean.is_firm
    assert 700 < start.of_mean.step < 1500
    assert min(start.steps) <= start.median <= max(start.steps)


@pytest.mark.parametrize(
    ("names", "pattern", "groups"),
    [
        (["wd0/seed_0", "wd0/seed_1", "wd1/seed_0"], None, {"wd0": 2, "wd1": 1}),
        (["wd0_seed0", "wd0_seed1", "wd1_seed0"], None, {"wd0": 2, "wd1": 1}),
        (["a/version_0", "a/version_1", "b/version_0"], None, {"a": 2, "b": 1}),
        (["a/trial-1", "a/trial-2", "b/trial-1"], "trial-*", {"a": 2, "b": 1}),
        (["a-trial-1", "a-trial-2", "b-trial-1"], "trial-*", {"a": 2, "b": 1}),
        (["seed_0/wide", "seed_1/wide", "seed_0/deep"], None, {"wide": 2, "deep": 1}),
        (["one", "two"], None, {"one": 1, "two": 1}),
    ],
)
def test_groups_are_told_by_the_names(names: list[str], pattern: str, groups: dict[str, int], tmp_path: Path) -> None:
    paths = [write(tmp_path / name, np.ones_like(X)) for name in names]
    compared = compare_runs(paths, pattern=pattern)
    assert {group.name: len(group.runs) for group in compared.groups} == groups


@pytest.mark.slow
def test_groups_may_be_named(tmp_path: Path) -> None:
    falls, rises = runs(tmp_path / "a", 2), runs(tmp_path / "b", 2, base=np.linspace(3, 9, len(X)), noise=0.1)
    compared = compare_runs({"with a migration": falls, "without": rises})
    assert [group.name for group in compared.groups] == ["with a migration", "without"]
    assert "migration_start" in {found.kind for found in compared.groups[0].found}
    assert "migration_start" not in {found.kind for found in compared.groups[1].found}


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("nothing", "at least one log directory"),
        ("an empty group", "at least one log directory"),
        ("twice", "twice"),
        ("a text", "list of log directories"),
        ("no rows", "no history.csv"),
        ("a pattern that fits none", "fits no name"),
    ],
)
def test_what_cannot_be_compared_is_named(what: str, says: str, tmp_path: Path) -> None:
    run = write(tmp_path / "run", PHASES)
    (tmp_path / "empty").mkdir()
    given: dict[str, Any] = {
        "nothing": [],
        "an empty group": {"a": []},
        "twice": [run, run],
        "a text": str(run),
        "no rows": [tmp_path / "empty"],
        "a pattern that fits none": [run],
    }
    with pytest.raises(ValueError, match=says):
        compare_runs(given[what], pattern="trial*" if "pattern" in what else None)


@pytest.mark.slow
def test_radii_that_differ_are_warned_of(tmp_path: Path) -> None:
    near, far = write(tmp_path / "seed_0", PHASES), write(tmp_path / "seed_1", PHASES, radius=0.1)
    with pytest.warns(UserWarning, match=r"`lc_radius` differs .*0\.05 in .*0\.1 in .*comparable at one radius only"):
        compare_runs([near, far])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare_runs([near, write(tmp_path / "seed_2", PHASES)])


# Tables and pictures


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("runs")
    return compare_runs({"plain & simple": runs(folder / "a", 3), "50% off_x": runs(folder / "b", 3)})


def test_a_table_has_a_line_for_each_transition(compared: Any) -> None:
    lines = compared.table().splitlines()
    n = sum(len(group.found) for group in compared.groups)
    assert len(lines) == n + 2
    assert n >= 4
    assert {line.count("|") for line in lines} == {8}
    assert any("| plain & simple | migration_start | lc/train |" in line and " of 3 runs " in line for line in lines)


def test_the_table_as_csv_is_read_back(compared: Any) -> None:
    rows = [*csv.DictReader(io.StringIO(compared.table("csv")))]
    assert {row["group"] for row in rows} == {"plain & simple", "50% off_x"}
    for row in rows:
        assert not row["median"] or float(row["median"]) > 0


def test_the_table_for_latex_is_of_booktabs_and_escaped(compared: Any) -> None:
    text = compared.table("latex")
    assert [text.count(rule) for rule in (r"\toprule", r"\midrule", r"\bottomrule")] == [1, 1, 1]
    assert r"plain \& simple & migration\_start & lc/train &" in text
    assert r"50\% off\_x" in text
    assert all(line.endswith(r"\\") for line in text.splitlines()[2:3])


def test_another_form_or_suffix_is_an_error(compared: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="`form` must be one of"):
        compared.table("html")
    with pytest.raises(ValueError, match=r"must end with \.png"):
        compared.save(tmp_path / "table.doc")


def test_groups_stand_beside_each_other(compared: Any) -> None:
    figure, axes = compared.plot()
    assert axes.shape == (1, 2)
    assert [ax.get_title(loc="left") for ax in axes[0]] == ["plain & simple (3 runs)", "50% off_x (3 runs)"]
    assert axes[0, 0].get_ylim() == axes[0, 1].get_ylim()
    assert figure.get_figwidth() == 10
    texts = [text.get_text() for text in axes[0, 0].texts]
    assert any(text.startswith("migration start (") and text.endswith(" of 3 runs)") for text in texts)


@pytest.mark.parametrize("steps", [(100, 100, 100), (100, 110, 120), (1, 1, 100_000), (10, 90_000, 100_000)])
def test_names_of_markers_keep_clear_of_each_other(steps: tuple[int, ...], compared: Any) -> None:
    keys = [f"robust_acc/test_eps{eps}" for eps in (0.06, 0.1, 0.2)]
    kinds = ("robustness_onset", "delayed_robustness")
    found = [Found(kind, key, (step,) * 3, 3) for key, step in zip(keys, steps, strict=True) for kind in kinds]
    curve = Pooled(STEPS, X / 5, X / 50, np.full(len(STEPS), 3), None)
    pooled, single = dict.fromkeys(keys, curve), {key: [] for key in keys}
    group = replace(compared.groups[0], found=tuple(found), pooled=pooled, curves=single)
    figure, axes = Comparison((group,), (Panel("accuracy", {key: key for key in keys}),)).plot()
    figure.canvas.draw()
    places = sorted((text.get_window_extent() for text in axes[0, 0].texts), key=lambda box: box.x0)
    assert len(places) == 3  # both kinds of a curve stand in one
    assert all(left.x1 <= right.x0 + 1 for left, right in itertools.pairwise(places))
    assert all(text.get_text().count("3 of 3 runs, eps 0.") == 2 for text in axes[0, 0].texts)


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg", "csv", "md", "tex"])
def test_it_is_written_as_asked(suffix: str, compared: Any, tmp_path: Path) -> None:
    compared.save(tmp_path / f"out.{suffix}")
    starts = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml", "csv": b"group", "md": b"| group", "tex": b"\\begin"}
    assert (tmp_path / f"out.{suffix}").read_bytes().startswith(starts[suffix])


@pytest.mark.slow
def test_the_command_writes_all_outputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = runs(tmp_path, 2)
    outputs = [tmp_path / "c.png", tmp_path / "c.tex"]
    main(["compare", *map(str, paths), "--output", *map(str, outputs)])
    said = capsys.readouterr().out
    assert all(path.exists() for path in outputs)
    assert "migration_start" in said
    assert "written: " in said
    with pytest.raises(SystemExit):
        main(["compare", str(tmp_path / "nowhere")])
    assert "has no history.csv" in capsys.readouterr().err
