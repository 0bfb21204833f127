"""The timeline figure: panels, lines at transitions, shades of phases."""

from __future__ import annotations

import io
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lc_callback.detection.transitions import Transition
from lc_callback.reporting.annotations import phase_spans
from lc_callback.reporting.figure import draw, image, save
from lc_callback.run.timeline import Panel, RunCurves

STEPS = [0, 1, 10, 100, 1000, 10_000]
SHADES = {"first descent": "#e8f0fa", "ascent": "#fdf3dc", "region migration": "#e6f4e6"}
LC = Panel("local complexity", {"train": "lc/train", "test": "lc/test"}, bands={"lc/train": "lc_ci99/train"})
ACCURACY = Panel("accuracy", {"test": "clean_acc/test", "test, eps 0.1": "robust_acc/test_eps0.1"}, limits=(0, 1))


def transition(kind: str, step: int, curve: str = "lc/train") -> Transition:
    return Transition(kind, step, 2 * step, 1.0, 0.5, "why", curve)


def lc_part(*found: tuple[str, int], rows: list[dict[str, float]] | None = None) -> RunCurves:
    if rows is None:
        rows = [{"step": s, "lc/train": 5.0 + i, "lc/test": 4.0 + i, "lc_ci99/train": 1.0} for i, s in enumerate(STEPS)]
    return RunCurves(rows, [LC], [transition(kind, step) for kind, step in found])


def accuracy_part(*found: Transition) -> RunCurves:
    rows = [{"step": s, "clean_acc/test": 0.1 * i, "robust_acc/test_eps0.1": 0.05 * i} for i, s in enumerate(STEPS)]
    return RunCurves(rows, [ACCURACY], found)


def drawn(*parts: RunCurves, title: str = "") -> list[Axes]:
    axes = draw(Figure(), parts, title)
    axes[0].figure.draw_without_rendering()
    return axes


def verticals(ax: Axes) -> list[tuple[float, str]]:
    """Position and style of each vertical line."""
    found = []
    for line in ax.lines:
        x = np.asarray(line.get_xdata())
        if len(x) == 2 and x[0] == x[1] and list(line.get_ydata()) == [0, 1]:
            found.append((float(x[0]), line.get_linestyle() if line.get_alpha() is None else "thin"))
    return sorted(found)


def shades(ax: Axes) -> dict[str, tuple[float, float]]:
    names = {colour: name for name, colour in SHADES.items()}
    found = {}
    for patch in ax.patches:
        x = patch.get_path().vertices[:, 0] if not hasattr(patch, "get_width") else None
        left, right = (patch.get_x(), patch.get_x() + patch.get_width()) if x is None else (x.min(), x.max())
        name = names[to_hex(patch.get_facecolor())]
        assert name not in found
        found[name] = (left, right)
    return found


def legend(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


# Panels and curves


def test_one_axes_for_each_panel() -> None:
    both = RunCurves(lc_part().rows, [LC, Panel("again", {"train": "lc/train"})], [])
    axes = drawn(both, accuracy_part())
    assert [ax.get_ylabel() for ax in axes] == ["local complexity", "again", "accuracy"]
    assert axes[0].figure.axes == axes
    assert {ax.get_xlim() for ax in axes} == {(0, 10_000)}
    assert axes[-1].get_xlabel() == "optimizer steps"


def test_the_axis_of_steps_is_logarithmic_and_begins_at_0() -> None:
    (ax,) = drawn(lc_part())
    at = ax.transData.transform([(step, 0) for step in STEPS])[:, 0]
    assert at[0] == ax.bbox.x0
    assert at[-1] == ax.bbox.x1
    assert np.diff(at[1:]) == pytest.approx(np.full(4, at[2] - at[1]), rel=1e-6)
    assert 0 < at[1] - at[0] < at[2] - at[1]


def test_curves_are_the_rows() -> None:
    (ax,) = drawn(lc_part())
    curves = {line.get_label(): line.get_xydata().tolist() for line in ax.lines}
    assert curves == {
        "train": [[step, 5.0 + i] for i, step in enumerate(STEPS)],
        "test": [[step, 4.0 + i] for i, step in enumerate(STEPS)],
    }
    (band,) = ax.collections
    edges = band.get_paths()[0].vertices
    assert {(step, 5.0 + i + side) for i, step in enumerate(STEPS) for side in (-1, 1)} <= {*map(tuple, edges)}


def test_a_row_that_lacks_a_key_is_left_out_of_that_curve() -> None:
    rows: list[dict[str, float]] = [{"step": 0, "lc/train": 1.0}, {"step": 9, "lc/test": 2.0, "lc/train": 3.0}]
    (ax,) = drawn(lc_part(rows=rows))
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 9], [9]]


def test_limits_hold_with_room_for_the_numbers() -> None:
    low, high = drawn(accuracy_part())[0].get_ylim()
    assert -0.05 < low < 0
    assert 1 < high < 1.2


@pytest.mark.parametrize("limits", [(0, 1), (0, None), (None, None)])
def test_a_line_at_the_lower_limit_is_above_the_spine(limits: tuple[float | None, float | None]) -> None:
    rows: list[dict[str, float]] = [{"step": s, "a": 0.0, "b": s / 1e4} for s in STEPS]
    (ax,) = drawn(RunCurves(rows, [Panel("x", {"a": "a", "b": "b"}, limits=limits)], []))
    line = ax.lines[0]
    bottom = ax.transData.transform((0, 0))[1]
    assert bottom - ax.bbox.y0 > line.get_linewidth() / 72 * ax.figure.dpi
    assert line.get_zorder() > ax.spines["bottom"].get_zorder()


def test_curves_that_coincide_are_all_seen() -> None:
    rows: list[dict[str, float]] = [{"step": s, "a": 0.0, "b": 0.0, "c": 0.0} for s in STEPS]
    (ax,) = drawn(RunCurves(rows, [Panel("x", {"a": "a", "b": "b", "c": "c"}, limits=(0, 1))], []))
    widths = [line.get_linewidth() for line in ax.lines]
    assert widths == sorted(widths, reverse=True)
    assert len({*widths}) == 3


def test_the_title_is_there() -> None:
    assert drawn(lc_part(), title="seed 3")[0].get_title(loc="left") == "seed 3"


# Transitions


def test_a_line_at_every_transition_of_the_panel() -> None:
    found = [transition("interpolation", 8, "clean_acc/test"), transition("generalization", 1234, "clean_acc/test")]
    (ax,) = drawn(accuracy_part(*found))
    assert verticals(ax) == [(8, "--"), (1234, "--")]
    assert legend(ax) == ["test", "test, eps 0.1", "1  interpolation: 8", "2  generalization: 1,234"]
    assert [text.get_text() for text in ax.texts] == ["1", "2"]


def test_lines_have_the_colour_of_their_curve_and_name_the_eps() -> None:
    found = transition("robustness_onset", 700, "robust_acc/test_eps0.1")
    (ax,) = drawn(accuracy_part(found))
    (line,) = [line for line in ax.lines if line.get_label().startswith("1 ")]
    assert line.get_color() == ACCURACY.colours[1]
    assert legend(ax)[-1] == "1  robustness onset (eps 0.1): 700"


def test_transitions_of_one_curve_at_one_step_share_a_line() -> None:
    kinds = ("generalization", "delayed_generalization")
    (ax,) = drawn(accuracy_part(*[transition(kind, 50, "clean_acc/test") for kind in kinds]))
    assert verticals(ax) == [(50, "--")]
    assert sorted(legend(ax)[-1].replace(",", "").replace(":", "").split()) == sorted(
        ["1", "generalization", "delayed", "generalization", "50"]
    )
    assert [text.get_text() for text in ax.texts] == ["1"]


def test_numbers_of_close_lines_do_not_cover_each_other() -> None:
    found = [transition(kind, 500 + i, "clean_acc/test") for i, kind in enumerate(("a", "b", "c", "d"))]
    (ax,) = drawn(accuracy_part(*found))
    at = [text.get_position()[0] for text in ax.texts]
    assert min(np.diff(at)) > 0.02


def test_a_transition_stands_in_the_panel_of_its_curve_only() -> None:
    other = Panel("other", {"x": "lc/x"})
    part = RunCurves(
        lc_part().rows, [LC, other], [transition("rank_rise", 30, "lc/train"), transition("gone", 40, "lc/?")]
    )
    axes = drawn(part)
    assert [verticals(ax) for ax in axes] == [[(30, "--")], []]


def test_phases_stand_in_all_panels_thin_in_those_of_others() -> None:
    top, bottom = drawn(lc_part(("first_descent_end", 20), ("migration_start", 400)), accuracy_part())
    assert verticals(top) == [(20, "-"), (400, "-")]
    assert verticals(bottom) == [(20, "thin"), (400, "thin")]
    assert legend(top)[2:] == ["1  first descent end: 20", "2  migration start: 400"]


# Phases

PHASES = {
    "all": (
        [("first_descent_end", 20), ("migration_start", 400), ("migration_end", 3000)],
        {"first descent": (0, 20), "ascent": (20, 400), "region migration": (400, 3000)},
    ),
    "not ended": (
        [("first_descent_end", 20), ("migration_start", 400)],
        {"first descent": (0, 20), "ascent": (20, 400), "region migration": (400, 10_000)},
    ),
    "no migration": ([("first_descent_end", 20)], {"first descent": (0, 20), "ascent": (20, 10_000)}),
    "no descent": ([("migration_start", 400)], {"ascent": (0, 400), "region migration": (400, 10_000)}),
    "no descent, ended": (
        [("migration_start", 400), ("migration_end", 3000)],
        {"ascent": (0, 400), "region migration": (400, 3000)},
    ),
    "none": ([], {}),
}


@pytest.mark.parametrize("name", PHASES)
def test_phases_are_shaded_in_all_panels_and_named_above_the_first(name: str) -> None:
    found, spans = PHASES[name]
    axes = drawn(lc_part(*found), accuracy_part())
    assert [shades(ax) for ax in axes] == [spans, spans]
    named = [text.get_text() for text in axes[0].texts if text.get_position()[1] > 1]
    assert named == [*spans]
    assert not any(text.get_position()[1] > 1 for text in axes[1].texts)


def test_a_part_has_its_own_phases_and_one_without_has_the_first() -> None:
    first = lc_part(("first_descent_end", 1000))
    second = lc_part(("first_descent_end", 20), ("migration_start", 400))
    axes = drawn(first, second, accuracy_part())
    of_first = {"first descent": (0, 1000), "ascent": (1000, 10_000)}
    of_second = {"first descent": (0, 20), "ascent": (20, 400), "region migration": (400, 10_000)}
    assert [shades(ax) for ax in axes] == [of_first, of_second, of_first]
    assert verticals(axes[1]) == [(20, "-"), (400, "-")]
    assert verticals(axes[2]) == [(1000, "thin")]
    named = [[text.get_text() for text in ax.texts if text.get_position()[1] > 1] for ax in axes]
    assert named == [[*of_first], [*of_second], [*of_first]]


X = np.array([0, 1, 3, 10, 30, 100, 300, 1000, 3000, 10_000])
MOVES: dict[str, tuple[list[float], list[tuple[str, int]], dict[str, tuple[float, float]]]] = {
    "flat, then a rise": (
        [1, 1, 1, 1, 1, 1, 2, 6, 10, 4],
        [("migration_start", 3000)],
        {"ascent": (100, 3000), "region migration": (3000, 10_000)},
    ),
    "flat behind the descent": (
        [9, 8, 5, 2, 2, 2, 2, 2, 2, 2],
        [("first_descent_end", 10)],
        {"first descent": (0, 10)},
    ),
    "flat before the descent": (
        [9, 9, 9, 9, 9, 8, 5, 2, 2, 2],
        [("first_descent_end", 1000)],
        {"first descent": (30, 1000)},
    ),
    "a rise that ends": (
        [9, 5, 2, 2, 2, 5, 8, 8, 8, 8],
        [("first_descent_end", 3)],
        {"first descent": (0, 3), "ascent": (30, 300)},
    ),
    "a migration that ends": (
        [1, 2, 4, 8, 4, 2, 1, 1, 1, 1],
        [("migration_start", 10)],
        {"ascent": (0, 10), "region migration": (10, 300)},
    ),
    "a start of the ascent that was found": (
        [9, 5, 2, 2, 2, 3, 5, 7, 8, 9],
        [("first_descent_end", 3), ("ascent_start", 90)],
        {"first descent": (0, 3), "ascent": (90, 10_000)},
    ),
    "one lone row is no rise": (
        [9, 5, 2, 2, 2, 2, 90, 2, 2, 2],
        [("first_descent_end", 3)],
        {"first descent": (0, 3)},
    ),
    "nothing but NaN": ([math.nan] * 10, [("first_descent_end", 3)], {"first descent": (0, 3)}),
}


@pytest.mark.parametrize("name", MOVES)
def test_phases_are_shaded_only_where_the_curve_moves(name: str) -> None:
    values, found, spans = MOVES[name]
    rows = [{"step": float(step), "lc/train": float(value)} for step, value in zip(X, values, strict=True)]
    (ax,) = drawn(lc_part(*found, rows=rows))
    assert shades(ax) == spans


def test_other_transitions_shade_nothing() -> None:
    assert shades(drawn(accuracy_part(transition("generalization", 50, "clean_acc/test")))[0]) == {}


# Lone rows


def lone_part(
    values: list[float], made_by: dict[tuple[str, int], str] | None = None, limits: Any = (0, None)
) -> RunCurves:
    rows = [{"step": float(3**i), "lc/train": v, "lc/test": 5.0, "lc_ci99/train": v / 10} for i, v in enumerate(values)]
    panel = Panel("local complexity", LC.lines, bands=LC.bands, limits=limits)
    return RunCurves(rows, [panel], [], made_by=made_by or {})


def arrows(ax: Axes) -> list[tuple[float, str]]:
    return sorted((line.get_xdata()[0], line.get_marker()) for line in ax.lines if line.get_gid() == "cut")


def told(ax: Axes) -> list[str]:
    return sorted(text.get_text() for text in ax.texts if text.get_gid() == "cut")


LONE = [6.4, 6.1, 6.19, 149.8, 8.36, 8.1, 7.7]


def test_a_lone_row_is_cut_off_with_its_value_and_its_layer() -> None:
    (ax,) = drawn(lone_part(LONE, {("lc/train", 27): "net.2"}))
    assert ax.get_ylim()[1] < 20
    assert arrows(ax) == [(27, "^")]
    assert told(ax) == ["149.8 at step 27 (net.2)"]
    assert ax.lines[0].get_ydata()[3] == 149.8  # the curve still goes there
    assert caption_of(ax) == "Arrow: a row beyond the axis."


def test_without_a_layer_the_value_stands_alone() -> None:
    assert told(drawn(lone_part(LONE))[0]) == ["149.8 at step 27"]


def test_curves_of_one_row_share_what_is_told() -> None:
    part = lone_part(LONE)
    for i, value in enumerate(LONE):
        part.rows[i]["lc/test"] = 2 * value if value > 100 else value
    (ax,) = drawn(part)
    assert arrows(ax) == [(27, "^"), (27, "^")]
    assert told(ax) == ["149.8, 299.6 at step 27"]
    part.rows[3]["lc/test"] = 150.0
    assert told(drawn(part)[0]) == ["149.8 at step 27"]


CUTS: dict[str, tuple[list[float], tuple[float | None, float | None], list[tuple[float, str]]]] = {
    "two in a row": ([6.0, 6.2, 150, 140, 6.3, 6.1, 6.4], (0, None), [(9, "^"), (27, "^")]),
    "downwards": ([60.0, 61, 62, -900, 60, 62, 61], (None, None), [(27, "v")]),
    "not below a limit": ([60.0, 61, 62, 0, 60, 62, 61], (0, None), []),
    "no need to cut": ([5.0, 5.1, 5, 8, 5, 5.1, 5], (0, None), []),
    "accuracy is never cut": ([0.0, 0, 0, 1, 0, 0, 0], (0, 1), []),
    "a curve that moves much": ([1.0, 3, 9, 27, 81, 243, 729], (0, None), []),
    "short": ([5.0, 150, 5], (0, None), []),
    "beside NaN": ([6.0, 6.1, math.nan, 150, math.nan, 6.1, 6, 6.2, 6], (0, None), [(27, "^")]),
    "first and last": ([150.0, 6.1, 6.2, 6, 6.1, 6.2, 6, 140], (0, None), [(1, "^"), (3**7, "^")]),
    "infinite": ([6.0, 6.1, 6, math.inf, 6, 6.1, 6], (0, None), []),
}


@pytest.mark.parametrize("name", CUTS)
def test_rows_that_are_cut_off(name: str) -> None:
    values, limits, cut = CUTS[name]
    part = lone_part(values, limits=limits)
    if limits == (None, None):
        for row in part.rows:
            row["lc/test"] = 60.5
    (ax,) = drawn(part)
    assert arrows(ax) == cut
    assert np.isfinite(ax.get_ylim()).all()
    finite = [v for i, v in enumerate(values) if math.isfinite(v) and 3**i not in [step for step, _ in cut]]
    assert ax.get_ylim()[0] < min(finite)
    assert ax.get_ylim()[1] > max(finite)


FLAT = [6.0, 6.2, 6.1, 6.3, 6.2, 6.1, 6.2, 6.1, 6.3]
LEAVES: dict[str, tuple[dict[str, list[float]], list[tuple[float, str]], list[str]]] = {
    # A value that is cut, until the axis is made higher for the band and for a lone row nearer by.
    "one leaves, one does not": (
        {"test": [*FLAT, 444, 530], "random": [9.0, 9, 9, 9, 9, 9, 9, 9, 9, 9, 19.5], "wide": [*FLAT, 6, 16.0]},
        [(3**9, "^"), (3**10, "^")],
        ["444 at step 19,683", "530 at step 59,049"],
    ),
    "both leave": (
        {"test": [*FLAT, 444, 530], "random": [*FLAT, 6.2, 93.83]},
        [(3**9, "^"), (3**10, "^"), (3**10, "^")],
        ["444 at step 19,683", "530, 93.83 at step 59,049"],
    ),
    "at both edges": (
        {"test": [*FLAT, 6.2, 530], "random": [*FLAT, 6.2, -600]},
        [(3**10, "^"), (3**10, "v")],
        ["-600 at step 59,049", "530 at step 59,049"],
    ),
}


@pytest.mark.parametrize("name", LEAVES)
def test_each_curve_that_leaves_the_axis_has_an_arrow_and_no_other(name: str) -> None:
    curves, found, values = LEAVES[name]
    rows = [{"step": float(3**i), **{key: v[i] for key, v in curves.items()}} for i in range(11)]
    limits = (None, None) if name == "at both edges" else (0, None)
    (ax,) = drawn(RunCurves(rows, [Panel("x", {key: key for key in curves}, limits=limits)], []))
    bottom, top = ax.get_ylim()
    assert [(row["step"], key) for row in rows for key in curves if not bottom <= row[key] <= top] != []
    assert arrows(ax) == found
    assert told(ax) == values


def test_of_many_rows_the_farthest_has_its_value() -> None:
    values = [5.0 + 0.1 * (i % 3) for i in range(80)]
    for i in range(6):
        values[8 + 12 * i] = 100.0 + i
    rows = [{"step": float(i), "lc/train": v} for i, v in enumerate(values)]
    (ax,) = drawn(RunCurves(rows, [Panel("x", {"train": "lc/train"}, limits=(0, None))], []))
    assert len(arrows(ax)) == 6
    assert [text.partition(" ")[0] for text in told(ax)] == ["105"]
    assert caption_of(ax) == "Arrow: a row beyond the axis, the farthest with its value."


def test_if_one_spike_of_a_layer_is_cut_off_all_are() -> None:
    values = [5.0, 6, 300, 5, 6, 14, 5, 250, 7, 6]
    spikes = {("lc/train", 3**i): "net.2" for i in (2, 5, 7)}
    (ax,) = drawn(lone_part(values, spikes))
    assert [step for step, _ in arrows(ax)] == [3**2, 3**5, 3**7]
    assert ax.get_ylim()[1] < 10
    assert "300 at step 9 (net.2)" in told(ax)
    lines = {line.get_label(): [*line.get_ydata()] for line in ax.lines}
    name = next(iter(lines)).lstrip("_")
    assert lines[f"_{name}"] == values
    assert lines[name] == [5, 6, 5, 6, 5, 7, 6]  # what lies between the spikes
    assert arrows(drawn(lone_part([5.0, 6, 8, 5, 6, 9, 5, 8, 7, 6], spikes))[0]) == []


def test_a_band_that_is_wide_at_one_row_does_not_flatten_the_curve() -> None:
    rows = [{"step": float(i), "lc/train": 5.0 + i, "lc_ci99/train": 1000.0 if i == 4 else 1.0} for i in range(9)]
    (ax,) = drawn(lc_part(rows=rows))
    assert ax.get_ylim()[1] < 30


# Faint curves, captions, numbers, widths


def caption_of(ax: Axes) -> str:
    (text,) = [text.get_text() for text in ax.texts if text.get_gid() == "caption"]
    return text.replace("\n", " ")


def test_faint_curves_have_the_colour_of_theirs() -> None:
    rows: list[dict[str, float]] = [{"step": s, "e/a": 3.0, "r/a": 9.0, "e/b": 2.0, "r/b": 8.0} for s in STEPS]
    panel = Panel(
        "rank",
        {"a": "e/a", "b": "e/b"},
        faint={"e/a": "r/a", "e/b": "r/b"},
        faint_name="numerical",
        strong="e/b",
    )
    (ax,) = drawn(RunCurves(rows, [panel], [transition("rank_descent", 50, "r/b")]))
    by_value = {float(np.mean(line.get_ydata())): line for line in ax.lines if len(line.get_xdata()) == len(STEPS)}
    for strong, faint in ((3.0, 9.0), (2.0, 8.0)):
        assert by_value[strong].get_color() == by_value[faint].get_color()
        assert by_value[faint].get_linewidth() < by_value[strong].get_linewidth()
        assert by_value[faint].get_alpha() < 1
    assert by_value[2.0].get_linewidth() > by_value[3.0].get_linewidth()
    assert legend(ax) == ["a", "b", "numerical", "1  rank descent: 50"]


def numbers(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_gid() == "number"]


def test_markers_are_numbered_across_panels_in_the_order_of_their_steps() -> None:
    found = [transition("interpolation", 8, "clean_acc/test"), transition("made_up", 700, "robust_acc/test_eps0.1")]
    top, bottom = drawn(lc_part(("first_descent_end", 20), ("migration_start", 4000)), accuracy_part(*found))
    assert legend(top)[2:] == ["2  first descent end: 20", "4  migration start: 4,000"]
    assert legend(bottom)[2:] == ["1  interpolation: 8", "3  made up (eps 0.1): 700"]
    assert numbers(top) == ["2", "4"]
    assert numbers(bottom) == ["1", "2", "3", "4"]  # those of phases too, without an entry


@pytest.mark.parametrize("last", [9000, 10_000])
def test_numbers_stay_inside(last: int) -> None:
    found = [transition(f"kind{i}", last - i, "clean_acc/test") for i in range(6)]
    (ax,) = drawn(accuracy_part(*found))
    boxes = [text.get_window_extent() for text in ax.texts if text.get_gid() == "number"]
    assert max(box.x1 for box in boxes) <= ax.bbox.x1 + 1
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize("width", [2.5, 400 / 110, 5.4, 5.6, 10, 16])
@pytest.mark.parametrize("title", ["", "A title long enough for two lines where the picture is narrow, or more"])
def test_nothing_overlaps_at_any_width(width: float, title: str) -> None:
    caption = "What it is: the mean of something over many points, with a band that is no interval over seeds. " * 2
    names = {"train": "lc/train", "a name.that.is_much.longer.than.the.others.and.has.no.end.at.all": "lc/test"}
    top = RunCurves(
        lc_part().rows,
        [Panel("local complexity of the generator", names, caption=caption)],
        lc_part(*FOUND).transitions,
    )
    onsets = [transition(f"robustness_{i}", 10**i, "robust_acc/test_eps0.1") for i in range(4)]
    bottom = RunCurves(
        accuracy_part().rows, [Panel("accuracy", ACCURACY.lines, limits=(0, 1), caption=caption)], onsets
    )
    figure = Figure((width, 3))
    axes = draw(figure, [top, bottom], title)
    figure.draw_without_rendering()
    assert figure.get_figwidth() == width
    boxes = []
    for ax in axes:
        renderer = figure._get_renderer()
        boxes += [ax.bbox, ax.yaxis.get_tightbbox(renderer)]
        legends = [ax.get_legend(), *[one for one in ax.artists if one is not ax.get_legend()]]
        boxes += [one.get_window_extent() for one in legends if one is not None]
        boxes += [text.get_window_extent() for text in ax.texts if text.get_gid() == "caption"]
        boxes += [text.get_window_extent() for text in ax.texts if text.get_position()[1] > 1]
        boxes += [ax._left_title.get_window_extent()] if ax._left_title.get_text() else []
    boxes.append(axes[-1].xaxis.get_tightbbox(renderer))
    for i, box in enumerate(boxes):
        assert box.x0 >= -2
        assert box.x1 <= figure.bbox.x1 + 2, (i, box, figure.bbox)
        assert box.y0 >= -2
        assert box.y1 <= figure.bbox.y1 + 2
        for other in boxes[:i]:
            inside = min(box.x1, other.x1) - max(box.x0, other.x0), min(box.y1, other.y1) - max(box.y0, other.y0)
            assert min(inside) < 3 * figure.dpi / 100, (box, other)


FOUND = [("first_descent_end", 20), ("migration_start", 400), ("migration_end", 3000)]


def test_a_narrow_figure_has_its_legend_below() -> None:
    for width, below in ((10.0, False), (3.6, True)):
        figure = Figure((width, 3))
        (ax,) = draw(figure, [lc_part()])
        figure.draw_without_rendering()
        assert (ax.get_legend().get_window_extent().y1 < ax.bbox.y0) == below
        assert (ax.get_legend().get_window_extent().x0 > ax.bbox.x1) != below


def test_names_are_no_formulas() -> None:
    rows: list[dict[str, float]] = [{"step": s, "a": 1.0} for s in STEPS]
    (ax,) = drawn(RunCurves(rows, [Panel("$\\frac{", {"$x_{": "a"}, caption="$y^{")], []), title="$\\sqrt{")
    image([RunCurves(rows, [Panel("$\\frac{", {"$x_{": "a"}, caption="$y^{")], [])], "$\\sqrt{")
    assert legend(ax) == ["$x_{"]


@pytest.mark.parametrize(
    ("models", "title"),
    [
        (["LitCNN", "LitCNN"], "LitCNN"),
        (["GAN: g (MLP)", "GAN: d (CNN)", ""], "GAN: g (MLP), GAN: d (CNN)"),
        ([""], ""),
    ],
)
def test_the_title_is_that_of_the_models(models: list[str], title: str) -> None:
    parts = [RunCurves(lc_part().rows, [LC], [], model=model) for model in models]
    assert drawn(*parts)[0].get_title(loc="left") == title
    assert drawn(*parts, title="mine")[0].get_title(loc="left") == "mine"


# Rows that are hard to draw


def test_rows_of_nan_leave_a_gap() -> None:
    rows = [{"step": s, "lc/train": math.nan if s == 100 else 2.0, "lc/test": math.nan} for s in STEPS]
    (ax,) = drawn(lc_part(("first_descent_end", 10), rows=rows))
    assert np.isnan(ax.lines[0].get_ydata()).sum() == 1
    assert np.isfinite(ax.get_ylim()).all()
    assert verticals(ax) == [(10, "-")]


@pytest.mark.parametrize(
    "rows",
    [
        [{"step": 0, "lc/train": 3.0}],
        [{"step": 70, "lc/train": 3.0, "lc_ci99/train": 1.0}],
        [{"step": 0, "lc/train": math.nan}],
        [],
    ],
)
@pytest.mark.filterwarnings("error")
def test_little_to_draw_is_drawn(rows: list[dict[str, float]]) -> None:
    (ax,) = drawn(lc_part(rows=rows))
    assert [len(line.get_xdata()) for line in ax.lines] == [len(rows), 0]
    assert ax.get_xlim()[1] == max(2, *[row["step"] for row in rows], 0)
    pixels, _ = image([lc_part(rows=rows)])
    assert pixels.std() > 0


@pytest.mark.parametrize("parts", [[], [RunCurves([], [], [])], [RunCurves([{"step": 5}], [], [])]])
def test_without_panels_there_is_one_empty_axes(parts: list[RunCurves]) -> None:
    (ax,) = drawn(*parts)
    assert not ax.lines


# Files and pixels


def full() -> list[RunCurves]:
    onset = transition("robustness_onset", 700, "robust_acc/test_eps0.1")
    return [lc_part(*PHASES["all"][0]), accuracy_part(onset)]


def test_an_image_is_deterministic() -> None:
    (one, one_file), (other, other_file) = image(full()), image(full())
    assert one.dtype == np.uint8
    assert one.ndim == 3
    assert one.shape[2] == 3
    assert one.std() > 0
    assert (one == other).all()
    assert one_file == other_file


def test_pixels_and_file_are_the_same_picture(tmp_path: Path) -> None:
    save(full(), tmp_path / "timeline.png", "seed 3")
    pixels, file = image(full(), "seed 3")
    assert (tmp_path / "timeline.png").read_bytes() == file
    assert (np.round(pyplot.imread(io.BytesIO(file))[..., :3] * 255) == pixels).all()


@pytest.mark.parametrize("suffix", [".svg", ".pdf"])
def test_text_in_a_file_stays_text_and_the_file_the_same(tmp_path: Path, suffix: str) -> None:
    one, other = tmp_path / f"one{suffix}", tmp_path / f"other{suffix}"
    for path in (one, other):
        save(full(), path, "seed 3", 3.4)
    content = one.read_bytes()
    assert content == other.read_bytes()
    assert {".svg": b">local complexity<", ".pdf": b"/Subtype /TrueType"}[suffix] in content or b"/Type0" in content
    assert b"/Subtype /Type3" not in content


@pytest.mark.parametrize("width", [0.0, -3.0, 1.9, 51.0, math.nan, math.inf])
def test_a_width_out_of_range_is_refused(tmp_path: Path, width: float) -> None:
    with pytest.raises(ValueError, match="`width` must be from 2 to 50 inches, but got"):
        save(full(), tmp_path / "x.png", width=width)
    assert not [*tmp_path.iterdir()]


def test_a_picture_has_its_width() -> None:
    assert image(full(), width=400 / 110)[0].shape[1] == 400


def test_nothing_of_pyplot_is_touched(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = pyplot.figure()
    settings, backend = dict(mpl.rcParams), pyplot.get_backend()

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("pyplot was used")

    for name in ("figure", "subplots", "switch_backend", "show"):
        monkeypatch.setattr(pyplot, name, refuse)
    image(full())
    assert pyplot.get_fignums() == [mine.number]
    assert pyplot.gcf() is mine
    assert not mine.axes
    assert dict(mpl.rcParams) == settings
    assert pyplot.get_backend() == backend
    pyplot.close(mine)
    image(full())
    assert pyplot.get_fignums() == []


# How sure a marker is

SURE = {
    "firm": ({"earliest": 60, "latest": 90}, "1  first descent end: 70", True, False),
    "provisional": ({"earliest": 60, "latest": 90, "provisional": True}, "1  first descent end: ~70", True, False),
    "tentative": ({"earliest": 30, "latest": 90, "certainty": "tentative"}, "1  first descent end?: 70", False, True),
    "neither": (
        {"earliest": 30, "latest": 90, "certainty": "tentative", "provisional": True},
        "1  first descent end?: ~70",
        False,
        True,
    ),
    "without an interval": ({}, "1  first descent end: 70", False, False),
}


@pytest.mark.parametrize(("grade", "entry", "has_band", "is_hollow"), SURE.values(), ids=SURE)
def test_a_firm_marker_has_its_interval_and_a_tentative_one_is_hollow(
    grade: dict[str, Any], entry: str, has_band: bool, is_hollow: bool
) -> None:
    values = {0: 5, 10: 4, 70: 1, 200: 3, 900: 4}
    rows = [{"step": float(step), "lc/train": float(value)} for step, value in values.items()]
    found = replace(transition("first_descent_end", 70, "lc/train"), **grade)
    figure = Figure((10, 4))
    (ax,) = draw(figure, [RunCurves(rows, [Panel("LC", {"train": "lc/train"})], [found])])
    bands = [patch.get_x() for patch in ax.patches if patch.get_gid() == "interval"]
    assert bands == ([60] if has_band else [])
    assert len([line for line in ax.lines if line.get_gid() == "hollow"]) == is_hollow
    assert entry in [text.get_text() for text in ax.get_legend().get_texts()]


def test_phases_are_shaded_between_firm_transitions_only() -> None:
    values = {0: 5, 10: 4, 70: 1, 200: 3, 900: 4}
    rows = [{"step": float(step), "lc/train": float(value)} for step, value in values.items()]
    found = transition("first_descent_end", 70, "lc/train")
    assert phase_spans([found], rows) != []
    assert phase_spans([replace(found, certainty="tentative")], rows) == []


@pytest.mark.parametrize(
    ("values", "kinds", "spans"),
    [
        # The descent is not firm: what falls is no ascent.
        (
            {0: 5, 3: 4, 10: 3, 20: 2, 30: 2, 100: 3, 300: 4, 1000: 5, 3000: 2, 9000: 1},
            {"migration_start": 1000},
            (30, 1000),
        ),
        ({0: 2, 3: 2, 10: 2, 30: 2, 100: 3, 300: 4, 1000: 5, 3000: 2, 9000: 1}, {"migration_start": 1000}, (30, 1000)),
        (
            {0: 2, 3: 2.5, 10: 3, 30: 3.5, 100: 4, 300: 4.5, 1000: 5, 3000: 2, 9000: 1},
            {"migration_start": 1000},
            (0, 1000),
        ),
        (
            {0: 5, 3: 4, 10: 3, 20: 2, 30: 2, 100: 3, 300: 4, 1000: 5, 3000: 2, 9000: 1},
            {"first_descent_end": 30, "migration_start": 1000},
            (30, 1000),
        ),
        # It rises before it falls: what rises is no descent.
        (
            {0: 2, 3: 3, 10: 5, 20: 5, 30: 4, 100: 2, 200: 1, 300: 1, 1000: 3, 3000: 5, 9000: 6},
            {"first_descent_end": 300},
            (300, 9000),
        ),
    ],
)
def test_an_ascent_is_shaded_from_where_the_curve_rises(
    values: dict[int, float], kinds: dict[str, int], spans: tuple[float, float]
) -> None:
    rows = [{"step": float(step), "lc/train": float(value)} for step, value in values.items()]
    found = phase_spans([transition(kind, step, "lc/train") for kind, step in kinds.items()], rows)
    (ascent,) = [span for span in found if span.name == "ascent"]
    assert (ascent.left, ascent.right) == spans
    if 300 in kinds.values():
        assert [span.left for span in found if span.name == "first descent"] == [20]
