"""The page with several runs: each of them, or mean and spread of groups, and what is said of their transitions."""

from __future__ import annotations

import csv
import io
import json
import re

import numpy as np
from browser import ACCURACY, LC, SEEDS
from logs import Log, curves, event, write_csv, write_run

OF_A_GROUP = "median step (lowest to highest of the runs), as a band too"

# Groups


def test_markers_of_a_group_keep_their_certainty(groups):
    for panel, kind, step, is_firm in (
        ("rank::", "rank_descent", "~250?, 3 of 3", False),
        (LC, "migration_start", "501, 3 of 3", True),
        (ACCURACY, "delayed_generalization", "562 (316 to 1,000), 3 of 3", True),
    ):
        (marker,) = groups.all(panel, f'.marker[data-kind="{kind}"]', "class")
        assert ("firm" in marker.split(), "tentative" in marker.split()) == (is_firm, not is_firm)
        key = groups.card(panel).locator(".marker-keys li", has_text=kind.replace("_", " "))
        assert key.locator(".told").inner_text() == step
        assert key.locator(".badge.firm").count() == is_firm
        told = groups.card(panel).locator(".of-story").inner_text()
        assert told == f"shaded phases and markers: grok, 3 runs; {OF_A_GROUP}"
    band = groups.card(ACCURACY).locator(".interval")
    ends = float(band.get_attribute("x")) + np.array([0, float(band.get_attribute("width"))])
    decade = groups.tick(ACCURACY, 1000) - groups.tick(ACCURACY, 100)
    steps = np.array([10 ** (2.5 * (1 + 0.1 * seed)) for seed in (0, 2)])
    assert np.allclose((ends - groups.tick(ACCURACY, 100)) / decade, np.log10(steps / 100), atol=0.01)
    assert groups.card("rank::").locator(".interval").count() == 0


def half_widths(values):
    """Of one standard deviation, and of the 99 % interval of the mean of three (Student's t)."""
    sd = values.std(0, ddof=1)
    return {"sd": sd, "ci": 0.99 * np.sqrt(2 / (4 * 0.995 * 0.005)) * sd / np.sqrt(3)}


SPREADS = {
    None: "± one standard deviation over the runs",  # before the viewer has chosen
    "ci": "99 % interval of the mean over the runs",
    "range": "lowest to highest of the runs",
    "sd": "± one standard deviation over the runs",
}


def test_seeds_become_a_mean_and_the_band_that_its_legend_names(groups):
    assert groups.all(LC, "path.line", "data-run") == ["grok", "grok"]
    card = groups.card(LC)
    for spread, words in SPREADS.items():
        if spread:
            groups.choose("spread", spread)
        rows = list(csv.DictReader(io.StringIO(groups.export(LC, "csv").decode())))
        values = np.array([curves(seed, 1 + 0.1 * seed)["lc/train"] for seed in range(3)])
        mean, half = values.mean(0), half_widths(values).get(spread or "sd")
        low, high = (values.min(0), values.max(0)) if spread == "range" else (mean - half, mean + half)
        train = [row for row in rows if row["curve"] == "lc/train"]
        for name, expected in (("mean", mean), ("low", low), ("high", high)):
            assert np.allclose([float(row[name]) for row in train], expected, rtol=1e-4), name
        assert {row["n"] for row in rows} == {"3"}
        assert groups.all(LC, "path.band", "data-tag") == ["lc/train", "lc/test"]
        assert card.locator(".reading").inner_text() == f"band: {words}; at the cursor: mean (ends of the band)"
        assert words in card.locator(".unit").inner_text()
        assert words in groups.export(LC, "svg").decode()
        card.focus()
        groups.page.keyboard.press("Home")
        groups.settle()
        told = [
            float(x) for x in re.findall(r"[\d.]+", card.locator("tr", has_text="train").locator(".value").inner_text())
        ]
        assert np.allclose(told, [mean[0], low[0], high[0]], atol=0.006)


def test_groups_follow_the_pattern(groups):
    pattern = groups.page.locator(".toolbar input[type=text]")
    pattern.fill("version_*")
    pattern.press("Enter")
    groups.settle()
    assert {*groups.all(LC, "path.line", "data-run")} == {f"grok_seed{i}" for i in range(3)}


REMARKS = {
    "seed*, version_*": "",
    "*": "all 4 runs are in one group",
    "trial*": "each run is a group of its own: no name fits",
    "version_*": "each run is a group of its own",
}


def test_a_pattern_that_tells_nothing_apart_is_told(tab):
    field = tab.page.locator(".toolbar .fields")
    assert not field.is_visible()
    tab.choose("curves", "mean")
    box = field.locator("input[type=text]")
    for pattern, remark in REMARKS.items():
        box.fill(pattern)
        box.press("Enter")
        tab.settle()
        assert field.locator(".note").inner_text() == remark


def test_runs_with_other_steps_are_taken_as_straight_between_their_rows(visit, tmp_path):
    for name, steps, values in (("a_seed0", [1, 100], [0, 2]), ("a_seed1", [1, 10, 100, 1000], [0, 3, 4, 5])):
        write_csv(tmp_path / name / "lc" / "history.csv", {"lc/train": values}, steps)
        with Log(tmp_path / name) as log:
            log.scalars("loss", [0], [1.0])
    tab = visit(tmp_path)
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


# Runs


def test_a_run_that_is_unticked_is_not_drawn(tab):
    tab.show(ACCURACY)
    tab.page.locator(f'.run[data-run="{SEEDS[1]}"] input').uncheck()
    tab.settle()
    assert {*tab.all(ACCURACY, "path.line", "data-run")} == {SEEDS[0], SEEDS[2]}


def test_a_run_without_the_callbacks_has_no_phases_and_no_markers(tab):
    tab.only("plain")
    assert tab.show("tag:loss").locator("path.line").count() == 1
    assert tab.page.locator("rect.phase, .marker").count() == 0


def test_another_run_in_focus_has_its_own_markers(tab):
    tab.page.locator(f'.run[data-run="{SEEDS[2]}"] .run-name').click()
    tab.settle()
    assert "1000" in tab.all(ACCURACY, ".marker", "data-step")


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


# Transitions


def test_withdrawn_transitions_are_shown_on_request(seed0):
    seed0.page.locator(".check input").check()
    seed0.settle()
    row = seed0.page.locator("tr.withdrawn")
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


def test_the_sentence_is_about_firm_transitions_only(visit, tmp_path):
    for i, (step, certainty) in enumerate([(100, "firm"), (300, "firm"), (9000, "tentative")]):
        folder = write_run(tmp_path / f"a_seed{i}", events=False)
        told = event(kind="generalization", curve="clean_acc/test", step=step, certainty=certainty)
        (folder / "events.jsonl").write_text(json.dumps(told) + "\n")
    tab = visit(tmp_path)
    text = tab.page.locator(".headline").inner_text()
    assert text == (
        "Generalization in 2 of 3 runs (1 tentative): median step 200, lowest to highest of 2 runs 100 to 300."
    )


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
    tab = visit(tmp_path)
    tab.only("a_seed0")
    assert tab.all(ACCURACY, ".marker", "data-step") == ["900", "900", "2000"]
    keys = [key.split("\n") for key in tab.card(ACCURACY).locator(".marker-keys button").all_inner_texts()]
    assert keys[1] == ["2", "robustness onset, delayed robustness? (eps 0.03)", "~900 (398 to 631)"]
    assert "firm" in tab.all(ACCURACY, ".marker", "class")[1]
    assert tab.page.locator("table.transitions .badge").all_inner_texts() == ["1", "2", "2", "3"]
    assert "robustness onset, delayed robustness?" in tab.export(ACCURACY, "svg").decode()
    tab.page.locator(".run-tools button", has_text="all").click()
    tab.choose("curves", "mean")
    names = tab.card(ACCURACY).locator(".marker-keys .kind").all_inner_texts()
    assert names[1] == "robustness onset, delayed robustness? (eps 0.03)"  # firm in one run of two


def write_generalization(folder, last, *events):
    """A run with rows until a step, of which TensorBoard has the first only."""
    write_csv(folder / "lc" / "history.csv", {"lc/train": [1.0, 2.0]}, [0, last])
    with Log(folder) as log:
        log.scalars("loss", [0], [1.0])
    told = [event(**{"kind": "generalization", "curve": "clean_acc/test", **one}) for one in events]
    (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))


def glance_of(tab, group):
    """The row of the only transition of a group, and its sentence."""
    card = tab.page.locator(".group-glance").filter(has=tab.page.locator("h4", has_text=group))
    return card.locator("tbody tr").inner_text().split("\t"), card.locator(".headline").inner_text()


# Two runs generalize at steps 100 and 300; others do not until their last rows.
OTHERS = {
    "none": ([], "2 of 2", ""),
    "short": ([150], "2 of 3; 1 not that far yet", " (1 not that far yet)"),
    "long": ([10_000], "2 of 3; 1 without it", " (1 without it)"),
    "both": ([150, 199, 200], "2 of 5; 2 not that far yet; 1 without it", " (2 not that far yet, 1 without it)"),
}


def test_of_runs_without_a_transition_it_is_said_which_are_not_that_far_yet(visit, tmp_path):
    for name, (lasts, *_) in OTHERS.items():
        for i, last in enumerate([10_000, 10_000, *lasts]):
            write_generalization(tmp_path / f"{name}_seed{i}", last, *([{"step": 100 + 200 * i}] if i < 2 else []))
    tab = visit(tmp_path, json.dumps({"mode": "mean"}))
    for name, (lasts, runs, others) in OTHERS.items():
        row, sentence = glance_of(tab, name)
        assert row[1:4] == [runs, "200", "100 to 300"]
        found = f"Generalization in 2 of {2 + len(lasts)} runs{others}"
        assert sentence == f"{found}: median step 200, lowest to highest of 2 runs 100 to 300."


CERTAINTIES = {
    "firm": ["firm"],
    "1 firm, 1 tentative": ["firm", "tentative"],
    "1 firm (1 provisional), 1 tentative": ["firm~", "tentative"],
    "3 firm (2 provisional), 2 tentative (1 provisional)": ["firm", "firm~", "firm~", "tentative~", "tentative"],
    "1 firm, 1 not graded": ["firm", "as version 0.1"],
}


def test_counts_of_certainty_add_up_to_the_runs(visit, tmp_path):
    for k, certainties in enumerate(CERTAINTIES.values()):
        for i, certainty in enumerate(certainties):
            fields = {"certainty": certainty.rstrip("~"), "provisional": certainty.endswith("~"), "step": 100}
            write_generalization(tmp_path / f"group{k}_seed{i}", 1000, fields)
    tab = visit(tmp_path, json.dumps({"mode": "mean"}))
    for k, (expected, certainties) in enumerate(CERTAINTIES.items()):
        row, _ = glance_of(tab, f"group{k}")
        assert expected in row
        counts = [int(n) for n in re.findall(r"(\d+) ", re.sub(r"\(.*?\)", "", expected))]
        assert sum(counts) == len(certainties) or len(certainties) == 1


def test_a_glance_leads_to_the_layers_that_carry_the_change(seed0):
    line = seed0.page.locator('[data-section="glance"] p', has_text="layers carry the change")
    assert line.inner_text().startswith("Which layers carry the change of local complexity and rank: ")
    seed0.page.locator('[data-section="layers"] > summary').click()  # folded
    line.locator("button").click()
    seed0.settle()
    title, toolbar = (seed0.page.locator(at).bounding_box() for at in ('[data-section="layers"] > summary', ".toolbar"))
    assert toolbar["y"] + toolbar["height"] <= title["y"] < 400  # in sight
    card = seed0.show("heat:local complexity by layer")
    assert "layers that carry the change" in card.locator(".moves caption").inner_text()


def test_a_sentence_on_one_run_has_the_interval_and_says_of_what(seed0):
    assert seed0.page.locator(".headline").inner_text() == (
        "Delayed generalization at step 316 (95 % interval 253 to 411); "
        "migration start (local complexity) at step 501 (95 % interval 398 to 631)."
    )


def test_it_is_said_whose_phases_are_shaded(tab):
    def said(panel):
        return tab.show(panel).locator(".of-story").all_inner_texts()

    of_markers = "; step (95 % interval)"
    assert said(LC) == [f"shaded phases and markers: {SEEDS[0]}{of_markers}"]
    assert said("tag:loss") == [f"shaded phases: {SEEDS[0]}"]
    tab.page.locator(f'.run[data-run="{SEEDS[2]}"] .run-name').click()
    tab.settle()
    assert said(LC) == [f"shaded phases and markers: {SEEDS[2]}{of_markers}"]
    assert f"shaded phases and markers: {SEEDS[2]}" in tab.export(LC, "svg").decode()
    tab.choose("phases", "off")
    assert said(LC) == [f"markers: {SEEDS[2]}{of_markers}"]
    tab.only(SEEDS[0])
    assert said(LC) == ["markers: step (95 % interval)"]
    tab.choose("curves", "mean")
    tab.choose("phases", "final")
    tab.page.locator(".run-tools button", has_text="all").click()
    tab.settle()
    assert said(LC) == [f"shaded phases and markers: grok, 3 runs; {OF_A_GROUP}"]
