"""The page of logs that grow, that are damaged, that somebody made to do harm, or that are just unlike others."""

from __future__ import annotations

import json
import re
from xml.etree import ElementTree

import numpy as np
from browser import LC
from logs import STEPS, Log, curves, event, write_csv, write_run


def test_new_rows_and_new_runs_appear_and_a_deleted_run_leaves(visit, tmp_path):
    write_run(tmp_path / "one")
    gone = write_run(tmp_path / "two")
    tab = visit(tmp_path)
    tab.only("one")
    columns = {key: np.append(values, 1.0) for key, values in curves().items() if key.startswith("lc")}
    write_csv(tmp_path / "one" / "lc" / "history.csv", columns, [*STEPS, 100_000])
    for path in sorted(gone.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    tab.page.locator('.run[data-run="two"] input').check()
    tab.page.evaluate("window.lookForNew()")
    tab.page.wait_for_selector(f'section[data-panel="{LC}"] .tick[data-value="100000"]', state="attached")
    assert tab.show(LC).locator("path.line").count() >= 2


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
    tab = visit(tmp_path)
    tab.page.set_viewport_size({"width": 1300, "height": 6000})
    tab.settle()
    tab.choose("curves", "mean")
    tab.choose("curves", "runs")
    assert tab.page.evaluate("window.hacked === undefined")
    assert tab.page.locator("img[src=x], .app script").count() == 0
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
    tab = visit(tmp_path)
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


def test_a_run_that_went_on_at_another_radius_has_a_gap_there(visit, tmp_path):
    columns = {"lc/train": [4.0, 5.0, 6.0, 1.0, 2.0], "lc_ci99/train": [0.1] * 5, "lc/test": [4.0, 4.0, 4.0, 4.0, 1.0]}
    radii = {"lc_radius": [0.1, 0.1, 0.1, 0.02, 0.02]}
    write_csv(tmp_path / "run" / "lc" / "history.csv", {**columns, **radii}, [0, 1, 2, 3, 1_000])
    write_csv(tmp_path / "same" / "lc" / "history.csv", {**columns, "lc_radius": [0.1] * 5}, [0, 1, 2, 3, 1_000])
    for name in ("run", "same"):
        with Log(tmp_path / name) as log:
            log.scalars("loss", [0], [1.0])
    tab = visit(tmp_path)
    tab.only("run")
    assert [d.count("M") for d in tab.all(LC, "path.line", "d")] == [2, 2]
    assert [d.count("M") for d in tab.all(LC, "path.band", "d")] == [2]
    said = "gap: another radius from step 3 on; counts are comparable at one radius only"
    assert said in tab.show(LC).inner_text()
    tab.only("same")
    assert [d.count("M") for d in tab.all(LC, "path.line", "d")] == [1, 1]
    assert "gap:" not in tab.show(LC).inner_text()


def test_ten_thousand_layers_do_not_stop_the_page(visit, tmp_path):
    columns = {"lc/train": [1.0, 2.0, 3.0], **{f"lc_layer/train/net.{i}": [i, 1.0, 2.0] for i in range(10_000)}}
    write_csv(tmp_path / "run" / "lc" / "history.csv", columns, [0, 1, 10])
    ranks = {f"rank/net.{i}": [i, 1.0, 2.0] for i in range(10_000)}
    write_csv(tmp_path / "run" / "rank" / "history.csv", ranks, [0, 1, 10])
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0], [1.0])
    tab = visit(tmp_path)
    card = tab.show("heat:local complexity by layer")
    assert card.locator("svg").get_attribute("data-layers") == "400"
    assert "10000 layers" in card.locator(".note").inner_text()
    assert tab.show("rank::").locator("path.line").count() == 6
    assert "6 of 10000 are drawn" in tab.card("rank::").locator(".note").inner_text()


def test_what_is_not_in_the_runs_is_said(visit, tmp_path):
    """Local complexity without its layers, a measure of splits and not of layers, and one epoch only."""
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": [1.0, 2.0, 3.0]}, [0, 1, 10])
    ranks = {"local_rank/train": [9.0, 8.0, 7.0], "local_rank/effective_test": [5.0, 4.0, 3.0]}
    write_csv(tmp_path / "run" / "local_rank" / "history.csv", ranks, [0, 1, 10])
    with Log(tmp_path / "run") as log:
        log.scalars("epoch", [0, 1, 10], [0.0, 0.0, 0.0])
    tab = visit(tmp_path)
    tab.show(LC)
    assert tab.page.locator('section.card[data-panel^="heat:"]').count() == 0
    said = " ".join(tab.page.locator("p.note").all_inner_texts())
    for text in ("per_layer=True", "PGDRobustnessCallback()", "SplinePartitionCallback()"):
        assert said.count(text) == 1, text
    assert "Local complexity is not" not in said
    tab.choose("axis", "epoch")
    assert "epoch: all in the first" in tab.show(LC).locator("svg.chart").text_content()
    assert tab.page.locator("svg.chart").first.evaluate("(node) => getComputedStyle(node).userSelect") == "none"


def test_a_lone_spike_does_not_flatten_the_curve(visit, tmp_path):
    values = np.linspace(1, 2, 100)
    values[50] = 1e9
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": values}, range(100))
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0], [1.0])
    tab = visit(tmp_path)
    card = tab.show(LC)
    assert card.locator(".arrow").count() == 1
    assert "1 value beyond the axis" in card.locator(".note").inner_text()
    card.locator(".whole").click()
    tab.settle()
    assert tab.show(LC).locator(".arrow").count() == 0
    assert "G" in " ".join(tab.card(LC).locator(".axis.y text").all_text_contents())


def test_a_number_is_tied_to_its_line(visit, tmp_path):
    folder = write_run(tmp_path / "run", events=False)
    told = [event(kind=f"rank_{i}", curve="rank/net.5", step=500 + 3 * i) for i in range(9)]
    (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
    tab = visit(tmp_path)
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
    tab = visit(tmp_path)
    tab.page.set_viewport_size({"width": 1000, "height": 900})
    for mode in ("runs", "mean"):
        tab.choose("curves", mode)
        names = tab.show("rank::").locator(".legend td.name")
        assert {*names.all_inner_texts()} >= {*layers}
        cut = "(nodes) => nodes.filter((node) => node.scrollWidth > node.clientWidth + 1).length"
        assert tab.card("rank::").locator(".legend td, .legend th, .legend p").evaluate_all(cut) == 0
    rows = tab.show("heat:rank by layer").locator("text.layer").all_text_contents()
    assert [row for row in rows if row.startswith("…")] == [f"…{i}…" for i in range(3)]
    heat = tab.card("heat:rank by layer")
    assert {*heat.locator(".moves td.name").all_inner_texts()} == {*rows}
    tab.hover("heat:rank by layer", 0.5)
    assert heat.locator(".moves + .place").inner_text().split(", ")[-1].split(":")[0] in rows
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


def test_what_cannot_be_loaded_stays_in_its_panel(one_page, visit, logs):
    one_page.page.route("**/heat?*", lambda route: route.fulfill(status=500, body="<b>broken</b>"))
    tab = visit(logs)
    card = tab.show("heat:rank by layer")
    assert "Could not be loaded: heat: 500 <b>broken</b>" in card.locator(".note").inner_text()
    assert tab.show(LC).locator("path.line").count() > 0
    one_page.page.unroute("**/heat?*")
    assert all("500" in error for error in tab.errors)
    tab.errors.clear()


def test_it_says_so_where_there_are_no_runs(visit, one_page, server, tmp_path):
    one_page.page.goto(server.show(tmp_path))
    one_page.page.wait_for_function("document.querySelector('.message')?.textContent.includes('no runs')")


def test_it_works_under_a_prefix(visit, logs):
    tab = visit(logs, path_prefix="/some/where")
    assert "/some/where/data/" in tab.page.url
    assert tab.show(LC).locator("path.line").count() > 0
