"""The page of the Dynamics tab in a browser: what is drawn where; cursor, zoom and axes; exports and settings."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import ACCURACY, LC, SEEDS
from logs import STEPS, curves

# The first seed alone


def test_decades_are_equal_and_step_0_has_a_place(seed0):
    seed0.show(LC)
    places = [seed0.tick(LC, value) for value in (1, 10, 100, 1000, 10_000)]
    widths = np.diff(places)
    assert np.allclose(widths, widths[0], atol=0.2)
    assert places[0] - seed0.tick(LC, 0) > 15
    assert seed0.card(LC).locator(".axis .break").count() == 1


def test_phases_are_those_of_the_transitions_in_their_order(seed0):
    assert seed0.all(LC, "rect.phase", "data-phase") == ["first descent", "ascent", "region migration"]
    lefts, widths = ([float(x) for x in seed0.all(LC, "rect.phase", name)] for name in ("x", "width"))
    assert lefts[0] + widths[0] <= lefts[1] + 0.2
    assert abs(lefts[1] + widths[1] - lefts[2]) < 0.2
    assert abs(lefts[2] - float(seed0.all(LC, '.marker[data-kind="migration_start"] line', "x1")[0])) < 0.2


def test_markers_are_numbered_and_at_their_steps(seed0):
    seed0.show(ACCURACY)
    steps, places = (seed0.all(ACCURACY, *asked) for asked in ((".marker", "data-step"), (".marker line", "x1")))
    assert steps == ["16", "316", "501"]
    lefts = [float(x) for x in places]
    assert lefts == sorted(lefts)
    expected = seed0.tick(ACCURACY, 100) + np.log10(3.16) * (seed0.tick(ACCURACY, 1000) - seed0.tick(ACCURACY, 100))
    assert abs(lefts[1] - expected) < 0.5
    texts = seed0.card(ACCURACY).locator(".marker text").all_text_contents()
    assert texts == sorted(texts, key=int)
    assert "delayed generalization" in seed0.card(ACCURACY).locator(".marker-keys").inner_text()


def test_a_tentative_marker_is_hollow_and_has_no_interval(seed0):
    (rank,) = seed0.all("rank::", ".marker:not(.other)", "class")
    assert "tentative" in rank
    assert seed0.card("rank::").locator(".marker.tentative:not(.other) circle").get_attribute("fill") == "none"
    assert seed0.card("rank::").locator(".interval").count() == 0
    assert "?" in seed0.card("rank::").locator(".marker-keys").inner_text()
    assert seed0.show(LC).locator(".interval").count() == 2


def test_bands_are_round_the_curves_that_have_one(seed0):
    assert seed0.all(LC, "path.band", "data-tag") == seed0.all(LC, "path.line", "data-tag") == ["lc/train", "lc/test"]
    assert seed0.show(ACCURACY).locator("path.band").count() == 0


def test_the_band_of_a_single_run_is_named_and_no_band_is_not(seed0):
    reading = seed0.show(LC).locator(".reading")
    assert reading.inner_text() == "band: 99 % interval over the points; at the cursor: value ± half the band"
    assert seed0.show(ACCURACY).locator(".reading").text_content() == ""


def test_charts_have_words_for_those_who_do_not_see_them(seed0):
    label = seed0.show(LC).locator("svg.chart").get_attribute("aria-label")
    assert label.startswith("local complexity: 2 curves (train, test) over steps. Phases: first descent, ascent,")


def test_a_heat_map_has_a_row_for_each_layer(seed0):
    card = seed0.show("heat:local complexity by layer")
    assert card.locator("text.layer").all_text_contents() == ["net.1", "net.3", "net.10"]
    assert card.locator("image.heat").get_attribute("href").startswith("data:image/png")
    assert card.locator(".moves tr").first.inner_text().startswith("net.10")
    pixels = seed0.page.evaluate(
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


# All runs


def test_own_measures_and_other_scalars_have_panels(tab):
    assert tab.all("own:own/", "path.line", "data-tag") == ["own/measure"] * 3
    assert tab.all("tag:loss", "path.line", "data-run") == [*SEEDS, "plain"]


def test_at_a_glance_says_in_how_many_runs_and_when(tab):
    text = tab.page.locator(".glances").inner_text()
    assert "3 of 3" in text
    row = tab.page.locator(".group-glance tr", has_text="delayed generalization").inner_text().split("\t")
    steps = [round(10 ** (2.5 * (1 + 0.1 * seed))) for seed in range(3)]
    assert row[1:] == ["3 of 3", f"{steps[1]:,}", f"{steps[0]:,} to {steps[2]:,}", "450 to 731", "3 firm"]


def test_the_strip_has_phases_and_transitions_of_every_run(tab):
    rows = tab.show("strip").locator(".strip-row")
    assert rows.evaluate_all("(rows) => rows.map((row) => row.dataset.run)") == [*SEEDS, "plain"]
    assert [rows.nth(i).locator("rect.phase").count() for i in range(4)] == [3, 3, 3, 0]
    assert [rows.nth(i).locator(".event").count() for i in range(4)] == [4, 4, 4, 0]


# Cursor, zoom and axes


def test_one_cursor_is_in_all_panels_with_the_values_there(seed0):
    seed0.page.set_viewport_size({"width": 1300, "height": 3000})
    seed0.hover(LC, 0.5)
    places = [seed0.cursor(panel) for panel in (LC, ACCURACY, "rank::", "strip")]
    assert None not in places
    assert np.ptp(places) < 0.2
    caption = seed0.card(ACCURACY).locator("caption").inner_text()
    step = int(caption.removeprefix("step ").replace(",", ""))
    assert step in STEPS
    value = seed0.card(ACCURACY).locator("tr", has_text="train").locator(".value").inner_text()
    assert abs(float(value) - curves()["clean_acc/train"][STEPS.index(step)]) < 1e-3
    band = seed0.card(LC).locator("tr", has_text="train").locator(".value").inner_text()
    assert band.endswith("± 0.5")


def test_a_click_holds_the_cursor_and_another_lets_it_go(seed0):
    seed0.hover(LC, 0.5)
    seed0.page.mouse.down()
    seed0.page.mouse.up()
    held = seed0.cursor(LC)
    seed0.hover(LC, 0.8)
    assert seed0.cursor(LC) == held
    seed0.page.mouse.down()
    seed0.page.mouse.up()
    seed0.hover(LC, 0.3)
    assert seed0.cursor(LC) != held


def test_a_drag_zooms_all_panels_and_a_double_click_shows_all(seed0):
    seed0.hover(LC, 0.3)
    seed0.page.mouse.down()
    seed0.hover(LC, 0.7)
    seed0.page.mouse.up()
    seed0.settle()
    ticks = [float(x) for x in seed0.all(ACCURACY, ".axis.x .tick", "data-value")]
    assert 5 < min(ticks) < max(ticks) < 1000
    assert seed0.page.locator(".reset").is_visible()
    seed0.hover(LC, 0.5)
    box = seed0.card(LC).locator("svg.chart .target").bounding_box()
    seed0.page.mouse.dblclick(box["x"] + 0.5 * box["width"], box["y"] + 50)
    seed0.settle()
    assert not seed0.page.locator(".reset").is_visible()
    assert {0.0, 10_000.0} <= {float(x) for x in seed0.all(LC, ".axis.x .tick", "data-value")}


def test_keys_move_the_cursor_and_say_the_values(seed0):
    card = seed0.show(LC)
    card.focus()
    for key in ("Home", "ArrowRight", "ArrowRight"):
        seed0.page.keyboard.press(key)
    seed0.settle()
    assert card.locator("caption").inner_text() == f"step {STEPS[2]}"
    assert re.fullmatch(rf"step {STEPS[2]}: train \S+ ± 0.5, test .*", seed0.page.locator("[aria-live]").inner_text())
    seed0.page.keyboard.press("End")
    seed0.settle()
    assert card.locator("caption").inner_text() == "step 10,000"
    seed0.page.keyboard.press("+")
    seed0.settle()
    assert seed0.page.locator(".reset").is_visible()
    seed0.page.keyboard.press("0")
    seed0.page.keyboard.press("Escape")
    seed0.settle()
    assert seed0.cursor(LC) is None
    assert not seed0.page.locator(".reset").is_visible()


def test_other_axes_are_linear_in_their_unit(seed0):
    for axis, name, last in (("linear", "steps", 10_000), ("epoch", "epoch", 1000), ("wall", "h", 10_000 / 3600)):
        seed0.choose("axis", axis)
        ticks = [float(x) for x in seed0.all(LC, ".axis.x .tick", "data-value")]
        places = [float(x) for x in seed0.all(LC, ".axis.x .tick", "x1")]
        each = (places[1] - places[0]) / (ticks[1] - ticks[0])
        assert np.allclose(np.diff(places) / np.diff(ticks), each, rtol=1e-3), axis
        assert 0.7 * last < max(ticks) <= last * 1.001
        assert seed0.card(LC).locator(".axis-name").text_content() == name
        marker = float(seed0.all(LC, '.marker[data-kind="migration_start"] line', "x1")[0])
        assert abs((marker - places[0]) / (places[1] - places[0]) * ticks[1] - last * 501 / 10_000) < 0.004 * last


def test_pictures_follow_the_cursor_and_the_slider(seed0):
    card = seed0.show("pictures")
    assert card.locator("output").inner_text() == f"step {STEPS[3]}"
    slider = card.locator("input[type=range]")
    slider.fill("1")
    seed0.settle()
    assert card.locator("output").inner_text() == f"step {STEPS[1]}"
    assert f"slice_{STEPS[1]:09d}.png" in card.locator("img").get_attribute("src").replace("%2F", "/")
    assert card.locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)") == 4
    with seed0.page.expect_download() as film:
        card.locator("a", has_text="film of grok_seed0").click()
    assert Path(film.value.path()).read_bytes().startswith(b"GIF89a")
    seed0.show(LC).focus()
    seed0.page.keyboard.press("Home")
    seed0.settle()
    assert seed0.show("pictures").locator("output").inner_text() == "step 0"


def test_the_table_has_every_transition_and_moves_the_cursor(seed0):
    rows = seed0.page.locator("table.transitions tbody tr")
    steps = rows.evaluate_all("(rows) => rows.map((row) => Number(row.dataset.step))")
    assert steps == [16, 250, 316, 501]
    assert "rose by 9 to 14" in rows.first.inner_text()
    rows.nth(3).click()
    seed0.settle()
    assert seed0.show(LC).locator("caption").inner_text() == "step 501"
    assert abs(seed0.cursor(LC) - float(seed0.all(LC, '.marker[data-kind="migration_start"] line', "x1")[0])) < 0.1


def test_phases_as_known_at_the_cursor_are_those_of_the_rows(seed0):
    seed0.choose("phases", "then")
    widths = [float(x) for x in seed0.all(LC, "rect.phase", "width")]
    assert len(widths) == 3
    card = seed0.show(LC)
    card.focus()
    for key in ["Home"] + ["ArrowRight"] * STEPS.index(25):
        seed0.page.keyboard.press(key)
    seed0.settle()
    assert seed0.all(LC, ".marker", "data-step") == ["3"]
    seed0.page.keyboard.press("ArrowRight")
    seed0.settle()
    assert seed0.all(LC, ".marker", "data-step") == []  # withdrawn at step 40, and the next is known at step 60
    seed0.choose("phases", "off")
    assert seed0.show(LC).locator("rect.phase").count() == 0


BOXES = """() => [...document.querySelectorAll("section.card, .legend tr, .legend li")].map((node) => {
    const { top, height } = node.getBoundingClientRect();
    return [node.dataset.panel ?? "", Math.round(top + window.scrollY), Math.round(height)];
})"""


@pytest.mark.parametrize(("mode", "widths"), [("runs", (1300, 400)), ("mean", (1300, 1000))])
def test_nothing_moves_when_the_cursor_comes(visit, logs, mode, widths):
    tab = visit(logs, json.dumps({"mode": mode}))
    cut = "(nodes) => nodes.filter((node) => node.scrollWidth > node.clientWidth + 1).length"
    for width in widths:
        tab.page.set_viewport_size({"width": width, "height": 4500})
        tab.page.mouse.move(1, 1)
        tab.settle()
        before = tab.page.evaluate(BOXES)
        for panel, share in ((LC, 0), (LC, 0.5), ("heat:rank by layer", 0.9)):
            tab.hover(panel, share)
            assert tab.cursor(panel) is not None
            assert tab.page.evaluate(BOXES) == before, (width, panel, share)
            assert tab.page.locator(".legend").evaluate_all(cut) == 0


def test_a_step_is_at_one_place_in_all_panels(seed0):
    seed0.page.set_viewport_size({"width": 1300, "height": 3500})
    seed0.settle()
    panels = [LC, ACCURACY, "rank::", "own:own/", "strip", "heat:local complexity by layer", "heat:rank by layer"]
    for value in (0, 1, 100, 10_000):
        ticks = [seed0.show(one).locator(f'.axis.x .tick[data-value="{value}"]').bounding_box()["x"] for one in panels]
        assert np.ptp(ticks) < 0.2, value


# Exports


def test_a_panel_as_svg_stands_alone(seed0):
    root = ElementTree.fromstring(seed0.export(LC, "svg"))
    text = " ".join(filter(None, (node.text for node in root.iter())))
    for part in ("local complexity", "steps", "grok_seed0", "train", "migration start", "units that switch"):
        assert part in text
    source = ElementTree.tostring(root, "unicode")
    assert "var(" not in source
    paths = [node for node in root.iter() if node.get("class") == "line"]
    assert len(paths) == 2
    assert all(re.match(r"rgb\(|#", node.get("stroke")) for node in paths)
    assert not [node for node in root.iter() if node.get("class") in ("cursor", "target", "brush")]


def test_a_panel_as_png_is_a_picture(seed0):
    data = seed0.export(LC, "png")
    assert data.startswith(b"\x89PNG")
    assert len(data) > 5000


def test_a_panel_as_csv_has_its_points(seed0):
    rows = list(csv.DictReader(io.StringIO(seed0.export(LC, "csv").decode())))
    train = [row for row in rows if row["curve"] == "lc/train"]
    assert [float(row["step"]) for row in train] == STEPS
    assert np.allclose([float(row["value"]) for row in train], curves()["lc/train"], rtol=1e-5)
    assert {row["half_width"] for row in train} == {"0.5"}


def test_the_other_panels_can_be_exported_too(seed0):
    for panel in ("strip", "heat:rank by layer"):
        assert len(list(csv.DictReader(io.StringIO(seed0.export(panel, "csv").decode())))) > 3
        ElementTree.fromstring(seed0.export(panel, "svg"))
        assert seed0.export(panel, "png").startswith(b"\x89PNG")


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
def test_damaged_settings_are_left(visit, logs, kept):
    assert visit(logs, kept).show(LC).locator("path.line").count() > 0


def test_colours_follow_the_system_without_a_frame(tab, visit, logs):
    tab.page.emulate_media(color_scheme="dark")
    tab.settle()
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    visit(logs, "{}")
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.page.emulate_media(color_scheme="light")
    tab.settle()
    assert tab.page.evaluate("document.documentElement.dataset.theme") == "light"


def test_a_small_window_has_its_legend_below(tab):
    tab.page.set_viewport_size({"width": 500, "height": 900})
    card = tab.show(LC)
    chart, legend = card.locator(".frame").bounding_box(), card.locator(".legend").bounding_box()
    assert legend["y"] >= chart["y"] + chart["height"] - 1
    assert tab.page.evaluate("document.documentElement.scrollWidth") <= 500
