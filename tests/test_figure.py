"""The timeline figure: panels, lines at transitions, shades of phases."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from lc_callback.reporting.figure import draw, image, save
from lc_callback.timeline import Panel, Part
from lc_callback.transitions import Transition

STEPS = [0, 1, 10, 100, 1000, 10_000]
SHADES = {"first descent": "#e8f0fa", "ascent": "#fdf3dc", "region migration": "#e6f4e6"}
LC = Panel("local complexity", {"train": "lc/train", "test": "lc/test"}, bands={"lc/train": "lc_ci99/train"})
ACCURACY = Panel("accuracy", {"test": "clean_acc/test", "test, eps 0.1": "robust_acc/test_eps0.1"}, limits=(0, 1))


def transition(kind: str, step: int, curve: str = "lc/train") -> Transition:
    return Transition(kind, step, 2 * step, 1.0, 0.5, "why", curve)


def lc_part(*found: tuple[str, int], rows: list[dict[str, float]] | None = None) -> Part:
    if rows is None:
        rows = [{"step": s, "lc/train": 5.0 + i, "lc/test": 4.0 + i, "lc_ci99/train": 1.0} for i, s in enumerate(STEPS)]
    return Part(rows, [LC], [transition(kind, step) for kind, step in found])


def accuracy_part(*found: Transition) -> Part:
    rows = [{"step": s, "clean_acc/test": 0.1 * i, "robust_acc/test_eps0.1": 0.05 * i} for i, s in enumerate(STEPS)]
    return Part(rows, [ACCURACY], found)


def drawn(*parts: Part, title: str = "") -> list[Axes]:
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
    both = Part(lc_part().rows, [LC, Panel("again", {"train": "lc/train"})], [])
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
    assert low == 0
    assert 1 < high < 1.2


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
    part = Part(lc_part().rows, [LC, other], [transition("rank_rise", 30, "lc/train"), transition("gone", 40, "lc/?")])
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


def test_phases_are_those_of_one_part() -> None:
    first = lc_part(("first_descent_end", 1000))
    second = lc_part(("first_descent_end", 20), ("migration_start", 400))
    axes = drawn(first, second)
    assert shades(axes[0]) == shades(axes[1]) == {"first descent": (0, 1000), "ascent": (1000, 10_000)}
    assert verticals(axes[1]) == [(20, "-"), (400, "-"), (1000, "thin")]


def test_other_transitions_shade_nothing() -> None:
    assert shades(drawn(accuracy_part(transition("generalization", 50, "clean_acc/test")))[0]) == {}


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


@pytest.mark.parametrize("parts", [[], [Part([], [], [])], [Part([{"step": 5}], [], [])]])
def test_without_panels_there_is_one_empty_axes(parts: list[Part]) -> None:
    (ax,) = drawn(*parts)
    assert not ax.lines


# Files and pixels


def full() -> list[Part]:
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
