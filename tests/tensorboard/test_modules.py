"""Modules of the Dynamics tab by themselves: the phases of `lc_callback.reporting`, places and names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from serving import PLUGIN, serving

from lc_callback.detection.transitions import Transition
from lc_callback.reporting.annotations import phase_spans
from lc_callback.run.seams import seams

KINDS = ("first_descent_end", "ascent_start", "migration_start", "migration_end")


@pytest.fixture(scope="module")
def modules(chromium: Any, tmp_path_factory: Any) -> Iterator[Any]:
    """Calls a function of a module with each of several lists of arguments."""
    with serving() as server:
        url = server.show(tmp_path_factory.mktemp("empty"))
        page = chromium.new_page()
        page.goto(url.replace("plugin_entry.html?name=", "plugin/") + "/static/style.css")

        def call(module: str, name: str, calls: list[Any]) -> list[Any]:
            code = """async ([path, name, calls]) => {
                const module = await import(path);
                return JSON.stringify(calls.map((values) => module[name](...values)));
            }"""
            return json.loads(page.evaluate(code, [f"{PLUGIN}/static/{module}.js", name, calls]))

        yield call
        page.close()


def a_run(seed: int) -> tuple[list[Transition], list[int], list[float]]:
    """Transitions, some without others, tentative or of another kind, and a curve that may have gaps and no ascent."""
    noise = np.random.default_rng(seed)
    steps = np.unique(np.round(10 ** np.linspace(0, noise.uniform(1, 5), noise.integers(1, 60)))) - 1
    x = np.log10(steps + 1)
    heights = noise.normal(0, 5, 3)
    values = 20 + sum(h / (1 + np.exp(-8 * (x - at))) for h, at in zip(heights, noise.uniform(0, 4, 3), strict=True))
    values = np.round(values + noise.normal(0, noise.choice([0, 0.3]), len(x)), noise.integers(0, 4))
    values[noise.random(len(x)) < noise.choice([0, 0.2])] = np.nan
    kinds = [kind for kind in KINDS if noise.random() < 0.7] + ["rank_descent"]
    places = np.sort(noise.choice(steps, len(kinds)))
    found = [
        Transition(kind, int(step), 9, 1.0, 1.0, "", "lc/train", "firm" if noise.random() < 0.8 else "tentative")
        for kind, step in zip(kinds, places, strict=True)
    ]
    return [found[i] for i in noise.permutation(len(found))], steps.astype(int).tolist(), values.tolist()


def test_phases_of_the_tab_are_those_of_the_figure(modules):
    runs = [a_run(seed) for seed in range(60)]
    expected, calls = [], []
    for transitions, steps, values in runs:
        rows = [{"step": step, "lc/train": value} for step, value in zip(steps, values, strict=True)]
        spans = [[s.name, s.left, s.right] for s in phase_spans(transitions, rows) if s.left < s.right]
        expected.append(spans)
        told = [{"kind": t.kind, "step": t.step, "certainty": t.certainty} for t in transitions]
        calls.append([told, steps, values])
    found = [[[s["name"], s["left"], s["right"]] for s in spans] for spans in modules("phases", "phaseSpans", calls)]
    assert found == expected
    assert {name for spans in expected for name, *_ in spans} == {"first descent", "ascent", "region migration"}
    assert sum(len(spans) > 1 for spans in expected) > 15
    assert sum(not spans for spans in expected) > 3


def test_seams_of_the_tab_are_those_of_the_figure(modules):
    """Of radii that change, of ones that follow the spread of the points, and of rows that lack one of them."""
    noise = np.random.default_rng(0)
    expected, calls = [], []
    for _ in range(200):
        steps = np.cumsum(noise.integers(1, 9, noise.integers(0, 12))).tolist()
        spreads = noise.choice([1.0, 2.0], len(steps))
        radii = noise.choice([0.1, 0.1 + 1e-9, 0.4], len(steps)) * (spreads if noise.random() < 0.5 else 1)
        known = {key: noise.random(len(steps)) < noise.choice([0, 0.8, 1]) for key in ("lc_radius", "lc_spread/train")}
        columns = dict(zip(known, (radii, spreads), strict=True))
        rows = [
            {"step": step} | {key: float(columns[key][i]) for key in known if known[key][i]}
            for i, step in enumerate(steps)
        ]
        expected.append(seams(rows))
        of = [[(row["step"], row[key]) for row in rows if key in row] for key in known]
        calls.append([{"steps": [at for at, _ in one], "values": [value for _, value in one]} for one in of])
    assert modules("stats", "seams", calls) == expected
    assert sum(len(one) > 1 for one in expected) > 20
    assert sum(not one for one in expected) > 20


@pytest.mark.parametrize(
    ("steps", "at", "parts"),
    [
        ([0, 5, 9], [], [0, 1, 2]),
        ([0, 5, 9], [5], [0, -1, 1, 2]),
        ([0, 5, 9], [7, 9], [0, 1, -1, 2]),  # two seams between two points are one gap
        ([0, 5, 9], [10], [0, 1, 2]),  # behind the last point
        ([], [3], []),
    ],
)
def test_no_line_leads_over_a_seam(modules, steps, at, parts):
    assert modules("stats", "parted", [[[*range(len(steps))], steps, at]]) == [parts]


@pytest.mark.parametrize(
    ("wanted", "room", "ends", "places"),
    [
        ([], 10, (0, 100), []),
        ([5], 10, (0, 100), [5]),
        ([10, 50, 90], 10, (0, 100), [10, 50, 90]),
        ([50, 51, 52], 10, (0, 100), [41, 51, 61]),
        ([52, 50, 51], 10, (0, 100), [61, 41, 51]),  # in any order
        ([50, 50], 10, (0, 100), [45, 55]),
        ([20, 22, 30, 70], 10, (0, 100), [14, 24, 34, 70]),  # a row that pushes its neighbour
        ([1, 2], 10, (0, 100), [0, 10]),
        ([99, 98], 10, (0, 100), [100, 90]),
        ([0, 1, 2, 3, 4], 30, (0, 100), [0, 25, 50, 75, 100]),  # closer than wanted, as there is no room
    ],
)
def test_numbers_are_apart_and_as_near_to_their_lines_as_goes(modules, wanted, room, ends, places):
    assert np.allclose(modules("chart", "apart", [[wanted, room, *ends]])[0], places)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["net.1", "net.10"], ["net.1", "net.10"]),
        (["a_long_model.net.1", "a_long_model.net.22"], ["…1", "…22"]),
        (["a_long_model.1.attention", "a_long_model.2.attention", "head"], ["…1…", "…2…", "head"]),
        (["a_long_model/1.a", "a_long_model/1.b"], ["…a", "…b"]),
        (["one_name_without_any_dot"], ["one_na…ny_dot"]),
        (["the_same.for.both", "the_same.for.both"], ["the_sa…r.both"] * 2),
        (["the.begin.of.another", "the.begin.of.another.one"], ["…another", "…another.one"]),
        ([], []),
    ],
)
def test_long_names_without_what_they_share(modules, names, told):
    assert modules("format", "tellingApart", [[names, 13]]) == [told]


def test_the_interval_of_a_mean_is_as_wide_as_students_t(modules):
    """For two runs a tangent, for very many nearly the quantile of a Gaussian."""
    half = []
    for n in (2, 3, 31, 32, 1000):
        values = np.linspace(-1, 1, n)
        series = [{"xs": [1], "ys": [value]} for value in values]
        (found,) = modules("stats", "pooled", [[series, "ci"]])
        half.append(found["high"]["0"] / (values.std(ddof=1) / np.sqrt(n)))
    expected = [np.tan(np.pi * 0.495), 0.99 * np.sqrt(2 / (4 * 0.995 * 0.005)), 2.750, 2.576, 2.576]
    assert np.allclose(half, expected, rtol=1e-3)
