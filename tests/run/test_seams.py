"""A run that went on with another radius has two curves: where the seam is, and what is found across it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from lc_callback import LocalComplexityCallback
from lc_callback.detection.phases import PHASE_SETTINGS
from lc_callback.detection.transitions import Detector, Transition, Turn, only_supported
from lc_callback.reporting.figure import draw
from lc_callback.run.seams import pieces, rows_at_one_radius, seams
from lc_callback.run.timeline import RunCurves, run_sentences

STEPS = np.unique(np.append(0, np.round(10 ** np.arange(0, 5.01, 0.1)))).astype(int)
X = np.log10(STEPS + 1)
FLAT = np.full(len(X), 8.0)
PHASES = np.interp(X, [0, 1.2, 3, 5], [8, 4, 10, 3])
FALLS = np.interp(X, [0, 5], [12, 3])
RISES = np.interp(X, [0, 5], [3, 12])


def noise(seed: int = 0, size: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(scale=size, size=len(STEPS))


def rows_of(values: np.ndarray, radii: Any, prefix: str = "", **columns: np.ndarray) -> list[dict[str, float]]:
    keyed = {"lc/train": values, "lc_ci99/train": 0.1 * values, "lc_radius": np.broadcast_to(radii, len(STEPS))}
    keyed |= {key.replace("__", "/"): column for key, column in columns.items()}
    every = {prefix + key: column for key, column in keyed.items()}
    return [
        {"step": int(step), **{key: float(column[i]) for key, column in every.items() if not np.isnan(column[i])}}
        for i, step in enumerate(STEPS)
    ]


def radii(*parts: tuple[float, float]) -> np.ndarray:
    """Radii, each up to a step."""
    return np.array([next(radius for radius, end in parts if step < end) for step in STEPS], np.float64)


END = math.inf
SPREAD = 1 + X
SEAMS: dict[str, tuple[list[dict[str, float]], list[int]]] = {
    "one_radius": (rows_of(FLAT, 0.1), []),
    "no_radius": (rows_of(FLAT, np.nan), []),
    "no_rows": ([], []),
    "larger": (rows_of(FLAT, radii((0.1, 1000), (0.2, END))), [1000]),
    "smaller": (rows_of(FLAT, radii((0.1, 1000), (0.05, END))), [1000]),
    "there_and_back": (rows_of(FLAT, radii((0.1, 100), (0.2, 1000), (0.1, END))), [100, 1000]),
    "twice": (rows_of(FLAT, radii((0.1, 100), (0.2, 1000), (0.4, END))), [100, 1000]),
    "at_the_second_row": (rows_of(FLAT, radii((0.1, 1), (0.2, END))), [1]),
    "at_the_last_row": (rows_of(FLAT, radii((0.1, 100_000), (0.2, END))), [100_000]),
    "as_good_as_the_same": (rows_of(FLAT, radii((0.1, 1000), (0.1 + 1e-12, END))), []),
    "rows_without_it_between": (rows_of(FLAT, np.where(X < 2, 0.1, np.where(X < 3, np.nan, 0.2))), [1000]),
    "rows_without_it_before": (rows_of(FLAT, np.where(X < 2, np.nan, 0.1)), []),
    "it_follows_the_spread": (rows_of(FLAT, 0.1 * SPREAD, lc_spread__train=SPREAD), []),
    "a_number_where_the_spread_grows": (rows_of(FLAT, 0.1, lc_spread__train=SPREAD), []),
    "it_followed_the_spread_and_is_a_number": (
        rows_of(FLAT, np.where(STEPS < 1000, 0.1 * SPREAD, 0.1), lc_spread__train=SPREAD),
        [1000],
    ),
    "it_follows_the_spread_by_another_factor": (
        rows_of(FLAT, np.where(STEPS < 1000, 0.1, 0.2) * SPREAD, lc_spread__train=SPREAD),
        [1000],
    ),
}


@pytest.mark.parametrize("prefix", ["", "wide/"])
@pytest.mark.parametrize("name", SEAMS)
def test_where_the_radius_changes(name: str, prefix: str) -> None:
    rows, at = SEAMS[name]
    rows = [{"step" if key == "step" else prefix + key: value for key, value in row.items()} for row in rows]
    assert seams(rows, prefix) == at
    assert [row for piece in pieces(rows, prefix) for row in piece] == rows
    assert [piece[0]["step"] for piece in pieces(rows, prefix)[1:]] == at
    if prefix:
        assert seams(rows) == []


# Transitions


def find(curves: Any) -> list[Turn]:
    return LocalComplexityCallback.find(curves, PHASE_SETTINGS)


def shown(rows: list[dict[str, float]]) -> dict[str, int]:
    """What all rows show firmly."""
    curves = {}
    for key in {key for row in rows for key in row}:
        own = [(row["step"], row[key]) for row in rows if key in row]
        curves[key] = np.array([step for step, _ in own]), np.array([value for _, value in own])
    return {turn.kind: turn.step for turn in only_supported(find)(curves) if turn.certainty == "firm"}


def found(rows: list[dict[str, float]], prefix: str = "") -> list[Transition]:
    """Of a run whose rows come one by one."""
    detector = Detector(only_supported(find), prefix)
    for row in rows:
        detector.update(int(row["step"]), {key.removeprefix(prefix): v for key, v in row.items() if key != "step"})
    detector.finish()
    return detector.transitions


def at_radius(values: np.ndarray, radius: np.ndarray, power: float = 1.0) -> np.ndarray:
    """Counts that grow with the radius, by this power of it."""
    return values * (radius / radius[0]) ** power


CHANGES = {
    "ten_times": radii((0.02, 2000), (0.2, END)),
    "a_tenth": radii((0.2, 2000), (0.02, END)),
    "twice": radii((0.1, 300), (0.2, END)),
    "there_and_back": radii((0.1, 100), (0.3, 5000), (0.1, END)),
    "late": radii((0.1, 60_000), (0.3, END)),
    "early": radii((0.1, 8), (0.3, END)),
}
COURSES = {"flat": FLAT, "falls": FALLS, "rises": RISES, "phases": PHASES}


@pytest.mark.parametrize("power", [1.0, 0.7])
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("course", COURSES)
def test_the_seam_is_no_transition_and_hides_none(course: str, change: str, power: float) -> None:
    values = COURSES[course] * np.exp(noise(size=0.02))
    changed = shown(rows_of(at_radius(values, CHANGES[change], power), CHANGES[change]))
    expected = shown(rows_of(values, 0.1))
    assert changed.keys() == expected.keys()
    for kind, step in expected.items():
        assert abs(math.log10(changed[kind] / step)) < 0.2


def test_without_the_radius_the_seam_would_be_one() -> None:
    radius = CHANGES["ten_times"]
    rows = rows_of(at_radius(FALLS * np.exp(noise(size=0.02)), radius), radius)
    assert shown([{k: v for k, v in row.items() if k != "lc_radius"} for row in rows])
    assert not shown(rows)


@pytest.mark.parametrize(("before", "after"), [(0.0, 3.0), (3.0, 0.0), (0.0, 0.0)])
def test_counts_of_0_on_one_side_of_the_seam(before: float, after: float) -> None:
    radius = CHANGES["ten_times"]
    assert found(rows_of(np.where(radius == 0.02, before, after), radius)) == []


def test_a_spike_at_the_seam_does_not_scale_what_follows() -> None:
    radius = CHANGES["ten_times"]
    values = at_radius(FLAT, radius)
    values[np.flatnonzero(radius == 0.2)[0] - 1] = 150.0
    scaled = rows_at_one_radius(rows_of(values, radius))
    assert [row["lc/train"] for row in scaled if row["step"] >= 2000] == pytest.approx([8.0] * sum(radius == 0.2))


def test_a_transition_behind_the_seam_says_that_counts_are_scaled() -> None:
    radius = radii((0.1, 300), (0.2, END))
    by_kind = {t.kind: t for t in found(rows_of(at_radius(PHASES, radius), radius, "a/"), "a/")}
    note = "counts from step 316 on, of another radius, are scaled to those before"
    assert note not in by_kind["first_descent_end"].reason
    assert note in by_kind["migration_start"].reason


def test_of_several_radii_at_once_each_has_a_curve_and_no_seam() -> None:
    values = PHASES * np.exp(noise(size=0.01))
    rows = rows_of(np.where(STEPS < 300, values, np.nan), np.where(STEPS < 300, 0.1, np.nan))
    for row, value in zip(rows, values, strict=True):
        if row["step"] >= 300:
            row |= {"lc/train_r0.2": 2 * value, "lc/train_r0.4": 4 * value}
    assert seams(rows) == []
    assert rows_at_one_radius(rows) is rows


# What is drawn and said


def part_of(rows: list[dict[str, float]], prefix: str = "", transitions: Any = ()) -> RunCurves:
    keys = [key.removeprefix(prefix) for key in dict.fromkeys(key for row in rows for key in row if key != "step")]
    panels = [panel.prefixed(prefix) for panel in LocalComplexityCallback.panels(keys)]
    return RunCurves(rows, panels, transitions, [f"{prefix}lc/train"], prefix, PHASE_SETTINGS)


def pieces_of(line: Any) -> list[tuple[float, float]]:
    """First and last step of each part that is drawn through."""
    steps, values = (np.asarray(each, np.float64) for each in (line.get_xdata(), line.get_ydata()))
    runs = itertools.groupby(range(len(steps)), key=lambda i: bool(np.isfinite(values[i])))
    each = [[steps[i] for i in of] for drawn, of in runs if drawn]
    return [(piece[0], piece[-1]) for piece in each]


GAPS = {
    "none": (radii((0.1, END)), [(0, 100_000)], ""),
    "one": (radii((0.1, 1000), (0.2, END)), [(0, 794), (1000, 100_000)], "0.2 from step 1,000 on"),
    "two": (
        radii((0.1, 100), (0.2, 1000), (0.1, END)),
        [(0, 79), (100, 794), (1000, 100_000)],
        "0.2 from step 100 on, 0.1 from step 1,000 on",
    ),
    "at_the_last_row": (radii((0.1, 100_000), (0.2, END)), [(0, 79_433), (100_000, 100_000)], "0.2 from step 100,000"),
}


@pytest.mark.parametrize("prefix", ["", "wide/"])
@pytest.mark.parametrize("name", GAPS)
def test_the_curves_of_two_radii_are_not_joined_and_the_caption_says_so(name: str, prefix: str) -> None:
    radius, expected, says = GAPS[name]
    rows = rows_of(at_radius(FALLS, radius), radius, prefix, lc_density__train=FALLS)
    complexity, density = draw(Figure(), [part_of(rows, prefix)])
    assert pieces_of(complexity.lines[0]) == expected
    band = complexity.collections[0].get_paths()
    ends = [np.asarray(path.vertices)[:, 0] for path in band]
    assert [(steps.min(), steps.max()) for steps in ends] == expected
    line = complexity.lines[0]
    points = np.asarray(line.get_xdata())[line.get_markevery() or []] if line.get_marker() == "." else []
    assert [*points] == [first for first, last in expected if first == last]
    assert pieces_of(density.lines[0]) == [(0, 100_000)]  # which has no radius
    (caption,) = [" ".join(text.get_text().split()) for text in complexity.texts if text.get_gid() == "caption"]
    assert (f"Gap: another radius, {says}" in caption) == bool(says)
    assert ("comparable at one radius only" in caption) == bool(says)
    others = [" ".join(text.get_text().split()) for text in density.texts if text.get_gid() == "caption"]
    assert not any("Gap" in text for text in others)


def test_the_first_rows_of_another_radius_are_not_cut_off() -> None:
    for end in (1, 2):
        radius = np.where(np.arange(len(STEPS)) < len(STEPS) - end, 0.02, 0.2)
        (ax,) = draw(Figure(), [part_of(rows_of(at_radius(FLAT + noise(), radius), radius))])
        assert ax.get_ylim()[1] > 80
        assert not [line for line in ax.lines if line.get_gid() == "cut"]


@pytest.mark.parametrize("prefix", ["", "wide/"])
def test_sentences_say_that_counts_are_scaled(prefix: str) -> None:
    radius = CHANGES["ten_times"]
    note = "(counts from step 2,512 on, of another radius, are scaled to those before)"
    first, *others = run_sentences([part_of(rows_of(at_radius(FLAT, radius), radius, prefix), prefix)])
    assert "flat" in first
    assert note in first
    assert all(note in sentence for sentence in others)
    assert not any("another radius" in text for text in run_sentences([part_of(rows_of(FLAT, 0.1, prefix), prefix)]))
