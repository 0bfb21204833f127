"""The page of the Dynamics tab in a browser: what is drawn where, and what the viewer can do."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import ACCURACY, LC, SEEDS, Tab, opened
from logs import STEPS, Log, curves, event, write_csv, write_run
from serving import served


@pytest.fixture(scope="module")
def logs(tmp_path_factory: Any) -> Path:
    """Three seeds, and a run of somebody who does not have this library."""
    folder = tmp_path_factory.mktemp("logs")
    for seed, run in enumerate(SEEDS):
        write_run(folder / run, seed=seed, late=1 + 0.1 * seed, pictures=4 if seed == 0 else 0)
    (folder / SEEDS[0] / "partition" / "film.gif").write_bytes(b"GIF89a, as far as anybody asks")
    with Log(folder / "plain") as log:
        log.scalars("loss", range(1, 300), [1 / step for step in range(1, 300)])
    return folder


@pytest.fixture(scope="module")
def url(logs: Path) -> Iterator[str]:
    with served(logs) as address:
        yield address


@pytest.fixture
def tab(visit: Callable[[str], Tab], url: str) -> Iterator[Tab]:
    """As new. After each test: nothing was said on the console, and nothing was asked of another host."""
    found = visit(url)
    yield found
    origin = re.match(r"https?://[^/]+", found.url)[0]
    assert found.errors == []
    assert [one for one in found.requests if not one.startswith((origin, "blob:", "data:"))] == []


# What is drawn


def test_decades_are_equal_and_step_0_has_a_place(tab):
    tab.only(SEEDS[0])
    tab.show(LC)
    places = [tab.tick(LC, value) for value in (1, 10, 100, 1000, 10_000)]
    widths = np.diff(places)
    assert np.allclose(widths, widths[0], atol=0.2)
    assert places[0] - tab.tick(LC, 0) > 15
    assert tab.card(LC).locator(".axis .break").count() == 1


def test_phases_are_those_of_the_transitions_in_their_order(tab):
    tab.only(SEEDS[0])
    assert tab.all(LC, "rect.phase", "data-phase") == ["first descent", "ascent", "region migration"]
    lefts, widths = ([float(x) for x in tab.all(LC, "rect.phase", name)] for name in ("x", "width"))
    assert lefts[0] + widths[0] <= lefts[1] + 0.2
    assert abs(lefts[1] + widths[1] - lefts[2]) < 0.2
    assert abs(lefts[2] - float(tab.all(LC, '.marker[data-kind="migration_start"] line', "x1")[0])) < 0.2


def test_markers_are_numbered_and_at_their_steps(tab):
    tab.only(SEEDS[0])
    tab.show(ACCURACY)
    markers = {
        tab.all(ACCURACY, ".marker", "data-step")[i]: x for i, x in enumerate(tab.all(ACCURACY, ".marker line", "x1"))
    }
    assert list(markers) == ["16", "316", "501"]
    lefts = [float(x) for x in markers.values()]
    assert lefts == sorted(lefts)
    expected = tab.tick(ACCURACY, 100) + np.log10(3.16) * (tab.tick(ACCURACY, 1000) - tab.tick(ACCURACY, 100))
    assert abs(lefts[1] - expected) < 0.5
    texts = tab.card(ACCURACY).locator(".marker text").all_text_contents()
    assert texts == sorted(texts, key=int)
    assert "delayed generalization" in tab.card(ACCURACY).locator(".marker-keys").inner_text()


def test_a_tentative_marker_is_hollow_and_has_no_interval(tab):
    tab.only(SEEDS[0])
    (rank,) = tab.all("rank::", ".marker:not(.other)", "class")
    assert "tentative" in rank
    assert tab.card("rank::").locator(".marker.tentative:not(.other) circle").get_attribute("fill") == "none"
    assert tab.card("rank::").locator(".interval").count() == 0
    assert "?" in tab.card("rank::").locator(".marker-keys").inner_text()
    assert tab.show(LC).locator(".interval").count() == 2


def test_kinds_of_one_curve_at_one_step_are_one_marker(visit, tmp_path):
    for i, delayed in enumerate(["tentative", "firm"]):
        folder = write_run(tmp_path / f"a_seed{i}", events=False)
        place = {"curve": "robust_acc/test_eps0.03", "step": 900 + 100 * i, "provisional": True}
        told = [
            event(kind="robustness_onset", **place),
            event(kind="delayed_robustness", **place, certainty=delayed),
            event(kind="delayed_generalization", **{**place, "curve": "clean_acc/test"}),
            event(kind="robustness_loss", **{**place, "step": 2000}),
        ]
        (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    with served(tmp_path) as url:
        tab = visit(url)
        tab.only("a_seed0")
        assert tab.all(ACCURACY, ".marker", "data-step") == ["900", "900", "2000"]
        keys = [key.split("\n") for key in tab.card(ACCURACY).locator(".marker-keys button").all_inner_texts()]
        assert keys[1] == ["2", "robustness onset, delayed robustness? (eps 0.03)", "~900"]
        assert "firm" in tab.all(ACCURACY, ".marker", "class")[1]
        assert tab.page.locator("table.transitions .badge").all_inner_texts() == ["1", "2", "2", "3"]
        assert "robustness onset, delayed robustness?" in tab.export(ACCURACY, "svg").decode()
        tab.page.locator(".run-tools button", has_text="all").click()
        tab.choose("curves", "mean")
        names = tab.card(ACCURACY).locator(".marker-keys .kind").all_inner_texts()
        assert names[1] == "robustness onset, delayed robustness? (eps 0.03)"  # firm in one run of two


def test_a_number_is_tied_to_its_line(visit, tmp_path):
    folder = write_run(tmp_path / "run", events=False)
    told = [event(kind=f"rank_{i}", curve="rank/net.5", step=500 + 3 * i) for i in range(9)]
    (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    with served(tmp_path) as url:
        tab = visit(url)
        lines = [float(x) for x in tab.all("rank::", ".marker line", "x1")]
        circles = [float(x) for x in tab.all("rank::", ".marker circle", "cx")]
        assert np.diff(circles).min() > 15
        assert abs(np.mean(lines) - np.mean(circles)) < 0.1  # to both sides alike
        leads = [re.findall(r"[\d.]+", d) for d in tab.all("rank::", ".marker .lead", "d")]
        assert np.allclose([[float(d[0]), float(d[2])] for d in leads], np.transpose([lines, circles]))
        assert tab.all("rank::", ".marker .lead", "stroke") == tab.all("rank::", ".marker line", "stroke")


def test_long_names_are_whole_and_told_apart(visit, tmp_path):
    layers = [f"model.backbone.encoder.layers.{i}.feed_forward_network.activation" for i in range(3)]
    for seed in range(2):
        folder = tmp_path / f"an_experiment_with_{'a_long_name_' * 5}seed{seed}"
        write_run(folder, seed=seed)
        ranks = {f"rank/{name}": np.full(len(STEPS), 9.0 + i + seed) for i, name in enumerate(layers)}
        write_csv(folder / "rank" / "history.csv", ranks)
    with served(tmp_path) as url:
        tab = visit(url)
        tab.page.set_viewport_size({"width": 1000, "height": 900})
        for mode in ("runs", "mean"):
            tab.choose("curves", mode)
            names = tab.show("rank::").locator(".legend td.name")
            assert {*names.all_inner_texts()} >= {*layers}
            cut = "(nodes) => nodes.filter((node) => node.scrollWidth > node.clientWidth + 1).length"
            assert tab.card("rank::").locator(".legend td, .legend th, .legend p").evaluate_all(cut) == 0
        rows = tab.show("heat:rank by layer").locator("text.layer").all_text_contents()
        assert [row for row in rows if row.startswith("…")] == [f"…{i}…" for i in range(3)]
        beyond = tab.page.evaluate(
            """(text) => {
                const parsed = new DOMParser().parseFromString(text, "image/svg+xml");
                const root = document.importNode(parsed.documentElement, true);
                document.body.append(root);
                const texts = [...root.querySelectorAll(":scope > text, :scope > g > text")];
                const boxes = texts.map((node) => node.getBBox());
                root.remove();
                const isOver = (a, b) => a.x < b.x + b.width && a.y < b.y + b.height;
                const isHit = (a, b) => a !== b && isOver(a, b) && isOver(b, a);
                const width = Number(root.getAttribute("width"));
                return boxes.filter((a) => a.x + a.width > width || boxes.some((b) => isHit(a, b))).length;
            }""",
            tab.export("rank::", "svg").decode(),
        )
        assert beyond == 0


def test_bands_are_round_the_curves_that_have_one(tab):
    tab.only(SEEDS[0])
    assert tab.all(LC, "path.band", "data-tag") == tab.all(LC, "path.line", "data-tag") == ["lc/train", "lc/test"]
    assert tab.show(ACCURACY).locator("path.band").count() == 0


def test_own_measures_and_other_scalars_have_panels(tab):
    assert tab.all("own:own/", "path.line", "data-tag") == ["own/measure"] * 3
    assert tab.all("tag:loss", "path.line", "data-run") == [*SEEDS, "plain"]


def test_a_run_without_the_callbacks_has_no_phases_and_no_markers(tab):
    tab.only("plain")
    assert tab.show("tag:loss").locator("path.line").count() == 1
    assert tab.page.locator("rect.phase, .marker").count() == 0


def test_at_a_glance_says_in_how_many_runs_and_when(tab):
    text = tab.page.locator(".glances").inner_text()
    assert "3 of 3" in text
    row = tab.page.locator(".group-glance tr", has_text="delayed generalization").inner_text().split("\t")
    steps = [round(10 ** (2.5 * (1 + 0.1 * seed))) for seed in range(3)]
    assert row[1:] == ["3 of 3", f"{steps[1]:,}", f"{steps[0]:,} to {steps[2]:,}", "3 firm"]


def test_the_sentence_is_about_firm_transitions_only(visit, tmp_path):
    for i, (step, certainty) in enumerate([(100, "firm"), (300, "firm"), (9000, "tentative")]):
        folder = write_run(tmp_path / f"a_seed{i}", events=False)
        told = event(kind="generalization", curve="clean_acc/test", step=step, certainty=certainty)
        (folder / "events.jsonl").write_text(json.dumps(told) + "\n")
    with served(tmp_path) as url:
        tab = visit(url)
        text = tab.page.locator(".headline").inner_text()
        assert text == "Generalization at step 200 (100 to 300) in 2 of 3 runs."


def test_the_strip_has_phases_and_transitions_of_every_run(tab):
    rows = tab.show("strip").locator(".strip-row")
    assert rows.evaluate_all("(rows) => rows.map((row) => row.dataset.run)") == [*SEEDS, "plain"]
    assert [rows.nth(i).locator("rect.phase").count() for i in range(4)] == [3, 3, 3, 0]
    assert [rows.nth(i).locator(".event").count() for i in range(4)] == [4, 4, 4, 0]


# Cursor and zoom


def test_one_cursor_is_in_all_panels_with_the_values_there(tab):
    tab.only(SEEDS[0])
    tab.page.set_viewport_size({"width": 1300, "height": 3000})
    tab.hover(LC, 0.5)
    places = [tab.cursor(panel) for panel in (LC, ACCURACY, "rank::", "strip")]
    assert None not in places
    assert np.ptp(places) < 0.2
    caption = tab.card(ACCURACY).locator("caption").inner_text()
    step = int(caption.removeprefix("step ").replace(",", ""))
    assert step in STEPS
    value = tab.card(ACCURACY).locator("tr", has_text="train").locator(".value").inner_text()
    assert abs(float(value) - curves()["clean_acc/train"][STEPS.index(step)]) < 1e-3
    band = tab.card(LC).locator("tr", has_text="train").locator(".value").inner_text()
    assert band.endswith("± 0.5")


def test_a_click_holds_the_cursor_and_another_lets_it_go(tab):
    tab.only(SEEDS[0])
    tab.hover(LC, 0.5)
    tab.page.mouse.down()
    tab.page.mouse.up()
    held = tab.cursor(LC)
    tab.hover(LC, 0.8)
    assert tab.cursor(LC) == held
    tab.page.mouse.down()
    tab.page.mouse.up()
    tab.hover(LC, 0.3)
    assert tab.cursor(LC) != held


def test_a_drag_zooms_all_panels_and_a_double_click_shows_all(tab):
    tab.only(SEEDS[0])
    tab.hover(LC, 0.3)
    tab.page.mouse.down()
    tab.hover(LC, 0.7)
    tab.page.mouse.up()
    tab.settle()
    ticks = [float(x) for x in tab.all(ACCURACY, ".axis.x .tick", "data-value")]
    assert 5 < min(ticks) < max(ticks) < 1000
    assert tab.page.locator(".reset").is_visible()
    tab.hover(LC, 0.5)
    box = tab.card(LC).locator("svg.chart .target").bounding_box()
    tab.page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 50)
    tab.settle()
    assert not tab.page.locator(".reset").is_visible()
    assert {0.0, 10_000.0} <= {float(x) for x in tab.all(LC, ".axis.x .tick", "data-value")}


def test_keys_move_the_cursor_and_say_the_values(tab):
    tab.only(SEEDS[0])
    card = tab.show(LC)
    card.focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        tab.page.keyboard.press(key)
    tab.settle()
    assert card.locator("caption").inner_text() == f"step {STEPS[2]}"
    assert re.fullmatch(rf"step {STEPS[2]}: train \S+ ± 0.5, test .*", tab.page.locator("[aria-live]").inner_text())
    tab.page.keyboard.press("End")
    tab.settle()
    assert card.locator("caption").inner_text() == "step 10,000"
    tab.page.keyboard.press("+")
    tab.settle()
    assert tab.page.locator(".reset").is_visible()
    tab.page.keyboard.press("0")
    tab.page.keyboard.press("Escape")
    tab.settle()
    assert tab.cursor(LC) is None
    assert not tab.page.locator(".reset").is_visible()


def test_charts_have_words_for_those_who_do_not_see_them(tab):
    tab.only(SEEDS[0])
    label = tab.show(LC).locator("svg.chart").get_attribute("aria-label")
    assert label.startswith("local complexity: 2 curves (train, test) over steps. Phases: first descent, ascent,")


# Axes


@pytest.mark.parametrize(("axis", "last"), [("linear", 10_000), ("epoch", 1000), ("wall", 10_000 / 3600)])
def test_other_axes_are_linear_in_their_unit(tab, axis, last):
    tab.only(SEEDS[0])
    tab.choose("axis", axis)
    ticks = [float(x) for x in tab.all(LC, ".axis.x .tick", "data-value")]
    places = [float(x) for x in tab.all(LC, ".axis.x .tick", "x1")]
    assert np.allclose(np.diff(places) / np.diff(ticks), (places[1] - places[0]) / (ticks[1] - ticks[0]), rtol=1e-3)
    assert 0.7 * last < max(ticks) <= last * 1.001
    name = {"linear": "steps", "epoch": "epoch", "wall": "h"}[axis]
    assert tab.card(LC).locator(".axis-name").text_content() == name
    marker = float(tab.all(LC, '.marker[data-kind="migration_start"] line', "x1")[0])
    assert abs((marker - places[0]) / (places[1] - places[0]) * ticks[1] - last * 501 / 10_000) < 0.004 * last


# Runs


def test_a_run_that_is_unticked_is_not_drawn(tab):
    tab.show(ACCURACY)
    tab.page.locator(f'.run[data-run="{SEEDS[1]}"] input').uncheck()
    tab.settle()
    assert {*tab.all(ACCURACY, "path.line", "data-run")} == {SEEDS[0], SEEDS[2]}


def half_widths(values):
    """Of one standard deviation, and of the 99 % interval of the mean of three (Student's t)."""
    sd = values.std(0, ddof=1)
    return {"sd": sd, "ci": 0.99 * np.sqrt(2 / (4 * 0.995 * 0.005)) * sd / np.sqrt(3)}


@pytest.mark.parametrize(
    ("spread", "words"),
    [
        (None, "± one standard deviation over the runs"),
        ("sd", "± one standard deviation over the runs"),
        ("ci", "99 % interval of the mean over the runs"),
        ("range", "from the least to the greatest run"),
    ],
)
def test_seeds_become_a_mean_and_the_band_that_its_legend_names(tab, spread, words):
    tab.choose("curves", "mean")
    if spread:
        tab.choose("spread", spread)
    assert tab.all(LC, "path.line", "data-run") == ["grok", "grok"]
    rows = list(csv.DictReader(io.StringIO(tab.export(LC, "csv").decode())))
    values = np.array([curves(seed, 1 + 0.1 * seed)["lc/train"] for seed in range(3)])
    mean, half = values.mean(0), half_widths(values).get(spread or "sd")
    low, high = (values.min(0), values.max(0)) if spread == "range" else (mean - half, mean + half)
    train = [row for row in rows if row["curve"] == "lc/train"]
    for name, expected in (("mean", mean), ("low", low), ("high", high)):
        assert np.allclose([float(row[name]) for row in train], expected, rtol=1e-4), name
    assert {row["n"] for row in rows} == {"3"}
    assert tab.all(LC, "path.band", "data-tag") == ["lc/train", "lc/test"]
    card = tab.card(LC)
    assert card.locator(".reading").inner_text() == f"band: {words}; at the cursor: mean (ends of the band)"
    assert words in card.locator(".unit").inner_text()
    assert words in tab.export(LC, "svg").decode()
    card.focus()
    tab.page.keyboard.press("Home")
    tab.settle()
    told = [
        float(x) for x in re.findall(r"[\d.]+", card.locator("tr", has_text="train").locator(".value").inner_text())
    ]
    assert np.allclose(told, [mean[0], low[0], high[0]], atol=0.006)


def test_the_band_of_a_single_run_is_named_and_no_band_is_not(tab):
    tab.only(SEEDS[0])
    reading = tab.show(LC).locator(".reading")
    assert reading.inner_text() == "band: 99 % interval over the points; at the cursor: value ± half the band"
    assert tab.show(ACCURACY).locator(".reading").text_content() == ""


def test_markers_of_a_group_keep_their_certainty(tab):
    tab.choose("curves", "mean")
    for panel, kind, step, is_firm in (
        ("rank::", "rank_descent", "~250?, 3 of 3", False),
        (LC, "migration_start", "501, 3 of 3", True),
        (ACCURACY, "delayed_generalization", "562, 3 of 3", True),
    ):
        (marker,) = tab.all(panel, f'.marker[data-kind="{kind}"]', "class")
        assert ("firm" in marker.split(), "tentative" in marker.split()) == (is_firm, not is_firm)
        key = tab.card(panel).locator(".marker-keys li", has_text=kind.replace("_", " "))
        assert key.locator(".told").inner_text() == step
        assert key.locator(".badge.firm").count() == is_firm
        told = tab.card(panel).locator(".of-story").inner_text()
        assert told == "markers: grok, 3 runs; median step, band from the first to the last run"
    band = tab.card(ACCURACY).locator(".interval")
    ends = float(band.get_attribute("x")) + np.array([0, float(band.get_attribute("width"))])
    decade = tab.tick(ACCURACY, 1000) - tab.tick(ACCURACY, 100)
    steps = np.array([10 ** (2.5 * (1 + 0.1 * seed)) for seed in (0, 2)])
    assert np.allclose((ends - tab.tick(ACCURACY, 100)) / decade, np.log10(steps / 100), atol=0.01)
    assert tab.card("rank::").locator(".interval").count() == 0


def test_runs_with_other_steps_are_taken_as_straight_between_their_rows(visit, tmp_path):
    for name, steps, values in (("a_seed0", [1, 100], [0, 2]), ("a_seed1", [1, 10, 100, 1000], [0, 3, 4, 5])):
        write_csv(tmp_path / name / "lc" / "history.csv", {"lc/train": values}, steps)
        with Log(tmp_path / name) as log:
            log.scalars("loss", [0], [1.0])
    with served(tmp_path) as url:
        tab = visit(url)
        tab.choose("curves", "mean")
        rows = list(csv.DictReader(io.StringIO(tab.export(LC, "csv").decode())))
        card = tab.show(LC)
        values = []
        card.focus()
        for key in ("ArrowLeft", "End"):
            tab.page.keyboard.press(key)
            tab.settle()
            values.append(card.locator(".value").inner_text())
    share = np.log10(11 / 2) / np.log10(101 / 2)  # of the way from step 1 to step 100 on the axis
    assert np.allclose([float(row["mean"]) for row in rows], [0, (2 * share + 3) / 2, 3, 5])
    assert [row["n"] for row in rows] == ["2", "2", "2", "1"]
    assert values == ["0 (0 to 0)", "5, 1 of 2 runs"]


def test_groups_follow_the_pattern(tab):
    tab.choose("curves", "mean")
    pattern = tab.page.locator(".toolbar input[type=text]")
    pattern.fill("version_*")
    pattern.press("Enter")
    tab.settle()
    assert {*tab.all(LC, "path.line", "data-run")} == {f"grok_seed{i}" for i in range(3)}


@pytest.mark.parametrize(
    ("pattern", "remark"),
    [
        ("seed*, version_*", ""),
        ("*", "all 4 runs are in one group"),
        ("trial*", "each run is a group of its own: no name fits"),
        ("version_*", "each run is a group of its own"),
    ],
)
def test_a_pattern_that_tells_nothing_apart_is_told(tab, pattern, remark):
    field = tab.page.locator(".toolbar .fields")
    assert not field.is_visible()
    tab.choose("curves", "mean")
    box = field.locator("input[type=text]")
    box.fill(pattern)
    box.press("Enter")
    tab.settle()
    assert field.locator(".note").inner_text() == remark


def test_another_run_in_focus_has_its_own_markers(tab):
    tab.page.locator(f'.run[data-run="{SEEDS[2]}"] .run-name').click()
    tab.settle()
    assert "1000" in tab.all(ACCURACY, ".marker", "data-step")


# Heat maps, pictures, tables


def test_a_heat_map_has_a_row_for_each_layer(tab):
    tab.only(SEEDS[0])
    card = tab.show("heat:local complexity by layer")
    assert card.locator("text.layer").all_text_contents() == ["net.1", "net.3", "net.10"]
    assert card.locator("image.heat").get_attribute("href").startswith("data:image/png")
    assert card.locator(".moves tr").first.inner_text().startswith("net.10")
    pixels = tab.page.evaluate(
        """async (href) => {
            const picture = new Image(); picture.src = href; await picture.decode();
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [picture.width, picture.height];
            const context = canvas.getContext("2d"); context.drawImage(picture, 0, 0);
            const at = (x, y) => [...context.getImageData(x, y, 1, 1).data];
            return [at(2, 0), at(2, 1), at(picture.width - 2, 0), at(picture.width - 2, 2)];
        }""",
        card.locator("image.heat").get_attribute("href"),
    )
    assert pixels[0] == pixels[1]  # alike at the first step
    assert pixels[2] != pixels[3]  # apart at the last
    assert all(pixel[3] == 255 for pixel in pixels)


def test_pictures_follow_the_cursor_and_the_slider(tab):
    tab.only(SEEDS[0])
    card = tab.show("pictures")
    assert card.locator("output").inner_text() == f"step {STEPS[3]}"
    slider = card.locator("input[type=range]")
    slider.fill("1")
    tab.settle()
    assert card.locator("output").inner_text() == f"step {STEPS[1]}"
    assert f"slice_{STEPS[1]:09d}.png" in card.locator("img").get_attribute("src").replace("%2F", "/")
    assert card.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 4
    with tab.page.expect_download() as film:
        card.locator("a", has_text="film of grok_seed0").click()
    assert Path(film.value.path()).read_bytes().startswith(b"GIF89a")
    tab.show(LC).focus()
    tab.page.keyboard.press("Home")
    tab.settle()
    assert tab.show("pictures").locator("output").inner_text() == "step 0"


def test_the_table_has_every_transition_and_moves_the_cursor(tab):
    tab.only(SEEDS[0])
    rows = tab.page.locator("table.transitions tbody tr")
    steps = rows.evaluate_all("(rows) => rows.map((row) => Number(row.dataset.step))")
    assert steps == [16, 250, 316, 501]
    assert "rose by 9 to 14" in rows.first.inner_text()
    rows.nth(3).click()
    tab.settle()
    assert tab.show(LC).locator("caption").inner_text() == "step 501"
    assert abs(tab.cursor(LC) - float(tab.all(LC, '.marker[data-kind="migration_start"] line', "x1")[0])) < 0.1


def test_withdrawn_transitions_are_shown_on_request(tab):
    tab.only(SEEDS[0])
    tab.page.locator(".check input").check()
    tab.settle()
    row = tab.page.locator("tr.withdrawn")
    assert row.count() == 1
    assert "withdrawn at 40" in row.inner_text()


def test_a_glance_says_how_many_were_withdrawn_and_shows_them(tab):
    assert "3 transitions were found and withdrawn later" in tab.page.locator(".lost").inner_text()
    tab.only(SEEDS[0])
    lost = tab.page.locator(".lost")
    assert "1 transition was found and withdrawn later" in lost.inner_text()
    assert tab.page.locator("tr.withdrawn").count() == 0
    tab.page.locator('[data-section="transitions"] > summary').click()  # folded
    lost.locator("button").click()
    tab.settle()
    assert tab.page.locator(".check input").is_checked()
    assert tab.page.locator("tr.withdrawn").is_visible()
    tab.only("plain")
    assert lost.count() == 0


def test_phases_as_known_at_the_cursor_are_those_of_the_rows(tab):
    tab.only(SEEDS[0])
    tab.choose("phases", "then")
    widths = [float(x) for x in tab.all(LC, "rect.phase", "width")]
    assert len(widths) == 3
    card = tab.show(LC)
    card.focus()
    for key in ["Home"] + ["ArrowRight"] * STEPS.index(25):
        tab.page.keyboard.press(key)
    tab.settle()
    assert tab.all(LC, ".marker", "data-step") == ["3"]
    tab.page.keyboard.press("ArrowRight")
    tab.settle()
    assert tab.all(LC, ".marker", "data-step") == []  # withdrawn at step 40, and the next is known at step 60
    tab.choose("phases", "off")
    assert tab.show(LC).locator("rect.phase").count() == 0


# Exports


def test_a_panel_as_svg_stands_alone(tab):
    tab.only(SEEDS[0])
    root = ElementTree.fromstring(tab.export(LC, "svg"))
    text = " ".join(filter(None, (node.text for node in root.iter())))
    for part in ("local complexity", "steps", "grok_seed0", "train", "migration start", "units that switch"):
        assert part in text
    source = ElementTree.tostring(root, "unicode")
    assert "var(" not in source
    paths = [node for node in root.iter() if node.get("class") == "line"]
    assert len(paths) == 2
    assert all(re.match(r"rgb\(|#", node.get("stroke")) for node in paths)
    assert not [node for node in root.iter() if node.get("class") in ("cursor", "target", "brush")]


def test_a_panel_as_png_is_a_picture(tab):
    tab.only(SEEDS[0])
    data = tab.export(LC, "png")
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000


def test_a_panel_as_csv_has_its_points(tab):
    tab.only(SEEDS[0])
    rows = list(csv.DictReader(io.StringIO(tab.export(LC, "csv").decode())))
    train = [row for row in rows if row["curve"] == "lc/train"]
    assert [float(row["step"]) for row in train] == STEPS
    assert np.allclose([float(row["value"]) for row in train], curves()["lc/train"], rtol=1e-5)
    assert {row["half_width"] for row in train} == {"0.5"}


@pytest.mark.parametrize("panel", ["strip", "heat:rank by layer"])
def test_the_other_panels_can_be_exported_too(tab, panel):
    tab.only(SEEDS[0])
    assert len(list(csv.DictReader(io.StringIO(tab.export(panel, "csv").decode())))) > 3
    ElementTree.fromstring(tab.export(panel, "svg"))
    assert tab.export(panel, "png").startswith(b"\x89PNG")


# Settings


def test_settings_and_pins_are_kept(tab):
    tab.choose("axis", "linear")
    tab.choose("theme", "dark")
    tab.show(ACCURACY).locator(".pin").click()
    tab.settle()
    tab.open()
    assert tab.page.locator('[data-section="pinned"] .card').get_attribute("data-panel") == ACCURACY
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.page.locator(".toolbar select").first.input_value() == "linear"


@pytest.mark.parametrize(
    "kept", ["{", "[]", '{"axis": 5, "pins": "x", "shown": null, "mode": "mean"}', '"text"', "null"]
)
def test_damaged_settings_are_left(tab, kept):
    tab.page.evaluate("(text) => localStorage.setItem('lc_dynamics', text)", kept)
    tab.open()
    assert tab.show(LC).locator("path.line").count() > 0


def test_colours_follow_the_system_without_a_frame(tab):
    for scheme in ("dark", "light"):
        tab.page.emulate_media(color_scheme=scheme)
        tab.settle()
        assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme
        tab.visit(tab.url)
        assert tab.page.evaluate("document.documentElement.dataset.theme") == scheme


def test_a_small_window_has_its_legend_below(tab):
    tab.page.set_viewport_size({"width": 500, "height": 900})
    card = tab.show(LC)
    chart, legend = card.locator(".frame").bounding_box(), card.locator(".legend").bounding_box()
    assert legend["y"] >= chart["y"] + chart["height"] - 1
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 500


# While a run goes on


def test_new_rows_and_new_runs_appear_and_a_deleted_run_leaves(visit, tmp_path):
    write_run(tmp_path / "one")
    gone = write_run(tmp_path / "two")
    with served(tmp_path) as url:
        tab = visit(url)
        tab.only("one")
        columns = {key: np.append(values, 1.0) for key, values in curves().items() if key.startswith("lc")}
        write_csv(tmp_path / "one" / "lc" / "history.csv", columns, [*STEPS, 100_000])
        for path in sorted(gone.rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        tab.page.locator('.run[data-run="two"] input').check()
        tab.page.evaluate("window.lookForNew()")
        tab.page.wait_for_selector(f'section[data-panel="{LC}"] .tick[data-value="100000"]', state="attached")
        assert tab.errors == []
        assert tab.show(LC).locator("path.line").count() >= 2


# Malice and damage


def test_names_and_texts_are_only_ever_text(visit, tmp_path):
    evil = '<img src=x onerror="window.hacked=1">'
    folder = tmp_path / "a'b\"c" / f"{evil}{{{{7*7}}}}".replace("/", "")
    write_run(folder)
    write_run(tmp_path / "good")
    texts = [event(reason=evil, curve="lc/train"), event(kind=evil, step=9), event(curve=evil, kind="rank_rise")]
    (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    with Log(folder) as log:
        log.scalars(evil, [0, 1], [1.0, 2.0])
        log.scalars(f"rank/{evil}", [0, 1], [1.0, 2.0])
        log.scalars("__proto__", [0, 1], [1.0, 2.0])
        log.scalars("constructor/toString", [0, 1], [1.0, 2.0])
        log.scalars("x" * 3000, [0, 1], [1.0, 2.0])
    with served(tmp_path) as url:
        tab = visit(url)
        tab.page.set_viewport_size({"width": 1300, "height": 6000})
        tab.settle()
        tab.choose("curves", "mean")
        tab.choose("curves", "runs")
        assert tab.page.evaluate("window.hacked === undefined")
        assert tab.page.locator("img[src=x], .app script").count() == 0
        assert tab.errors == []
        assert "good" in tab.all(LC, "path.line", "data-run")
        ElementTree.fromstring(tab.export(f"tag:{evil}", "svg"))
        assert tab.show("tag:__proto__").locator("path.line").count() == 1


def test_what_is_not_finite_is_a_gap_and_is_told(visit, tmp_path):
    values = [1.0, 2.0, float("nan"), 4.0, float("inf"), 5.0]
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": values}, [0, 1, 2, 3, 4, 5])
    write_csv(tmp_path / "none" / "lc" / "history.csv", {"lc/train": [float("nan")] * 3}, [0, 1, 2])
    for name in ("run", "none"):
        with Log(tmp_path / name) as log:
            log.scalars("loss", [0], [float("nan")])
    with served(tmp_path) as url:
        tab = visit(url)
        tab.only("run")
        (d,) = tab.all(LC, "path.line", "d")
        assert d.count("M") == 3
        card = tab.show(LC)
        card.focus()
        for key in ("Home", "ArrowRight", "ArrowRight"):
            tab.page.keyboard.press(key)
        tab.settle()
        assert card.locator(".value").first.inner_text() == "NaN"
        tab.only("none")
        assert tab.show(LC).locator("path.line").count() == 1
        assert tab.errors == []


def test_ten_thousand_layers_do_not_stop_the_page(visit, tmp_path):
    columns = {"lc/train": [1.0, 2.0, 3.0], **{f"lc_layer/train/net.{i}": [i, 1.0, 2.0] for i in range(10_000)}}
    write_csv(tmp_path / "run" / "lc" / "history.csv", columns, [0, 1, 10])
    ranks = {f"rank/net.{i}": [i, 1.0, 2.0] for i in range(10_000)}
    write_csv(tmp_path / "run" / "rank" / "history.csv", ranks, [0, 1, 10])
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0], [1.0])
    with served(tmp_path) as url:
        tab = visit(url)
        card = tab.show("heat:local complexity by layer")
        assert card.locator("svg").get_attribute("data-layers") == "400"
        assert "10000 layers" in card.locator(".note").inner_text()
        assert tab.show("rank::").locator("path.line").count() == 6
        assert "6 of 10000 are drawn" in tab.card("rank::").locator(".note").inner_text()
        assert tab.errors == []


def test_what_is_not_in_the_runs_is_said(visit, tmp_path):
    """Local complexity without its layers, a measure of splits and not of layers, and one epoch only."""
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": [1.0, 2.0, 3.0]}, [0, 1, 10])
    ranks = {"local_rank/train": [9.0, 8.0, 7.0], "local_rank/effective_test": [5.0, 4.0, 3.0]}
    write_csv(tmp_path / "run" / "local_rank" / "history.csv", ranks, [0, 1, 10])
    with Log(tmp_path / "run") as log:
        log.scalars("epoch", [0, 1, 10], [0.0, 0.0, 0.0])
    with served(tmp_path) as url:
        tab = visit(url)
        tab.show(LC)
        assert tab.page.locator('section.card[data-panel^="heat:"]').count() == 0
        said = " ".join(tab.page.locator("p.note").all_inner_texts())
        for text in ("per_layer=True", "PGDRobustnessCallback()", "SplinePartitionCallback()"):
            assert said.count(text) == 1, text
        assert "Local complexity is not" not in said
        tab.choose("axis", "epoch")
        assert "epoch: all in the first" in tab.show(LC).locator("svg.chart").text_content()
        assert tab.page.locator("svg.chart").first.evaluate("(node) => getComputedStyle(node).userSelect") == "none"
        assert tab.errors == []


def test_whoever_logs_nothing_of_ours_is_told_what_logs_it(tab):
    tab.only("plain")

    def said(section):
        return " ".join(tab.page.locator(f'[data-section="{section}"] .absent').all_inner_texts())

    for name in ("LocalComplexityCallback()", "PGDRobustnessCallback()", "FeatureRankCallback()"):
        assert said("overview").count(name) == 1
    assert "LocalComplexityCallback(per_layer=True)" in said("layers")
    tab.show("pictures")
    assert "SplinePartitionCallback()" in said("pictures")
    tab.only(SEEDS[0])
    assert said("overview") == ""
    assert said("layers") == "The norm of the weights by layer is not in these runs: FeatureRankCallback() logs it."
    tab.show("pictures")
    assert said("pictures") == ""
    tab.page.locator(".run-tools button", has_text="none").click()
    tab.settle()
    assert said("overview") == said("layers") == ""


def test_a_lone_spike_does_not_flatten_the_curve(visit, tmp_path):
    values = np.linspace(1, 2, 100)
    values[50] = 1e9
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": values}, range(100))
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0], [1.0])
    with served(tmp_path) as url:
        tab = visit(url)
        card = tab.show(LC)
        assert card.locator(".arrow").count() == 1
        assert "1 value beyond the axis" in card.locator(".note").inner_text()
        card.locator(".whole").click()
        tab.settle()
        assert tab.show(LC).locator(".arrow").count() == 0
        assert "G" in " ".join(tab.card(LC).locator(".axis.y text").all_text_contents())


def test_what_cannot_be_loaded_stays_in_its_panel(chromium, url):
    with opened(chromium, url) as tab:
        tab.page.route("**/heat?*", lambda route: route.fulfill(status=500, body="<b>broken</b>"))
        tab.open()
        card = tab.show("heat:rank by layer")
        assert "Could not be loaded: heat: 500 <b>broken</b>" in card.locator(".note").inner_text()
        assert tab.show(LC).locator("path.line").count() > 0


def test_it_says_so_where_there_are_no_runs(one_page, tmp_path):
    with served(tmp_path) as url:
        one_page.page.goto(url)
        one_page.page.wait_for_function("document.querySelector('.message')?.textContent.includes('no runs')")


def test_it_works_under_a_prefix(visit, logs):
    with served(logs, path_prefix="/some/where") as url:
        tab = visit(url)
        assert tab.show(LC).locator("path.line").count() > 0
        assert tab.errors == []
