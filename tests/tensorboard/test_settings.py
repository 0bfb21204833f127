"""The page: exports of its panels, and what is kept of what the viewer has chosen."""

from __future__ import annotations

import csv
import io
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from browser import ACCURACY, LC, opened
from logs import STEPS, curves
from serving import serving

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


def test_it_works_under_a_prefix(chromium, logs):
    with serving() as server, opened(chromium, server.show(logs, path_prefix="/some/where")) as tab:
        assert tab.show(LC).locator("path.line").count() > 0
        assert tab.errors == []
