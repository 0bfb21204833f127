"""Transitions on a generated suite of curves with known truth; one half was tuned on, the other is reported."""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from lc_callback.detection.phases import PHASE_SETTINGS, PhaseDetector, Transition, detect_phases, find_phases, phase_of
from lc_callback.detection.piecewise import bins_of
from lc_callback.detection.transitions import PhaseEvent, Turn, dated, supported

SHAPES = ("three", "no_end", "no_descent", "no_migration", "two_ascents", "falling", "rising", "flat")
SILENT = ("falling", "rising", "flat")


@dataclass
class Curve:
    shape: str
    noise: float
    steps: np.ndarray
    values: np.ndarray
    truth: dict[str, float]  # decades


def make(rng: np.random.Generator, shape: str) -> Curve:
    """Pieces that are straight in the logarithm of the step, with noise of up to 10 % of the range, and spikes."""
    decades = rng.uniform(3.5, 5.5)
    if rng.random() < 0.6:  # the default schedule
        exponents = np.arange(0, decades, 0.1)
    else:
        exponents = np.sort(rng.uniform(0, decades, rng.integers(45, 120)))
    steps = np.unique(np.append(0, np.round(10**exponents)))
    x = np.log10(steps + 1)

    def turns(n: int, apart: float = 0.45) -> list[float]:
        while True:
            at = np.sort(rng.uniform(0.5, x[-1] - apart, n))
            if (np.diff(at, prepend=0.1, append=x[-1]) >= apart).all():
                return at.tolist()

    u = rng.uniform
    truth: dict[str, float] = {}
    if shape == "three":
        a, b, c = turns(3)
        low = u(-0.1, 0.1)
        nodes, heights = [a, b, c], [u(0.5, 0.9), u(0, 0.3), u(0.8, 1), low, low + u(-0.02, 0.02)]
        truth = {"first_descent_end": a, "migration_start": b, "migration_end": c}
    elif shape == "no_end":
        a, b = turns(2)
        nodes, heights = [a, b], [u(0.5, 0.9), u(0, 0.3), u(0.8, 1), u(0, 0.3)]
        truth = {"first_descent_end": a, "migration_start": b}
    elif shape == "no_descent":
        b, c = turns(2)
        low = u(0, 0.2)
        nodes, heights = [b, c], [u(0.3, 0.6), 1, low, low]
        truth = {"migration_start": b, "migration_end": c}
    elif shape == "no_migration":
        (a,) = turns(1)
        nodes, heights = [a], [u(0.5, 1), u(0, 0.2), u(0.6, 1)]
        truth = {"first_descent_end": a}
    elif shape == "two_ascents":
        a, b, c, d = turns(4)
        low = u(-0.1, 0.1)
        nodes, heights = [a, b, c, d], [u(0.2, 0.4), u(0.6, 0.75), u(0.25, 0.4), 1, low, low]
        truth = {"migration_start": c, "migration_end": d}
    elif shape == "flat":
        nodes, heights = [], [0.5, 0.5]
    else:
        nodes, heights = turns(1), [1, u(0.2, 0.8), 0] if shape == "falling" else [0, u(0.2, 0.8), 1]
    y = np.interp(x, [0, *nodes, x[-1]], heights)
    noise = float(rng.choice([0.02, 0.05, 0.1] if shape == "flat" else [0, 0.02, 0.05, 0.1]))
    y = y + rng.uniform(-noise, noise, len(y))
    for spike in rng.choice(np.arange(2, len(y) - 2, 6), rng.integers(0, 3), replace=False):  # isolated
        y[spike] += rng.choice([-1, 1]) * rng.uniform(0.5, 1.2)
    return Curve(shape, noise, steps, u(5, 50) * (1 + 0.6 * y), truth)


def suite(half: str, n: int = 504) -> Iterator[Curve]:
    rng = np.random.default_rng({"tuned": 0, "reported": 1}[half])
    return (make(rng, SHAPES[i % len(SHAPES)]) for i in range(n))


def last_two_looks(curve: Curve) -> dict[str, float]:
    """What `detect_phases` gives, without looking at all earlier rows for the date. The ascent is tested below."""
    opens_a_bin = np.flatnonzero(np.diff(bins_of(curve.steps), prepend=-1))
    looks = [*opens_a_bin, len(curve.steps) - 1][-2:] if opens_a_bin[-1] < len(curve.steps) - 1 else opens_a_bin[-2:]
    seen = []
    for i in looks:
        rows = curve.steps[: i + 1], curve.values[: i + 1]
        turns = supported(find_phases(*rows, PHASE_SETTINGS), {"": rows})
        seen.append((i, [turn for turn in turns if turn.kind != "ascent_start"]))
    known = {found.kind for found in dated(seen)}
    return {turn.kind: turn.x for turn in seen[-1][1] if turn.kind in known}


def too_early(curve: Curve, kind: str) -> bool:
    """Whether fewer than four rows may be before it, within the tenth of a decade that a hit may be off."""
    return bool((np.log10(curve.steps + 1) < curve.truth[kind] - 0.1).sum() < 4)


@pytest.mark.slow
@pytest.mark.parametrize("half", ["tuned", "reported"])
def test_transitions_are_found_within_a_tenth_of_a_decade(half: str) -> None:
    scores: Counter[str] = Counter()
    for curve in suite(half):
        found = last_two_looks(curve)
        for kind in {*found, *curve.truth}:
            hit = kind in found and kind in curve.truth and abs(found[kind] - curve.truth[kind]) <= 0.1
            scores["hit"] += hit
            scores["false"] += kind in found and not hit
            scores["missed"] += kind in curve.truth and not hit and not too_early(curve, kind)
        scores["silent"] += curve.shape in SILENT
        scores["spoke"] += curve.shape in SILENT and bool(found)
    precision = scores["hit"] / (scores["hit"] + scores["false"])
    recall = scores["hit"] / (scores["hit"] + scores["missed"])
    print(f"{half}: precision {precision:.3f}, recall {recall:.3f}, {scores}")
    assert precision >= 0.95
    assert recall >= 0.95
    assert scores["spoke"] <= 0.01 * scores["silent"] > 0


def test_the_suite_has_every_shape_and_noise() -> None:
    curves = [*suite("reported", 200)]
    assert {curve.shape for curve in curves} == {*SHAPES}
    assert {curve.noise for curve in curves} == {0, 0.02, 0.05, 0.1}


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
def test_a_transition_is_dated_by_the_row_that_showed_it(shape: str) -> None:
    curve = make(np.random.default_rng(3), shape)
    found = detect_phases(curve.steps, curve.values)
    assert {turn.kind for turn in found} - {"ascent_start"} == {*curve.truth}
    for turn in found:
        assert turn.step < turn.detected_at
        n = int(np.flatnonzero(curve.steps == turn.detected_at)[0]) + 1
        then = {t.kind: t.step for t in detect_phases(curve.steps[:n], curve.values[:n])}
        assert abs(math.log10(then[turn.kind] + 1) - math.log10(turn.step + 1)) <= 0.1
        before = {t.kind: t.step for t in detect_phases(curve.steps[: n - 2], curve.values[: n - 2])}
        known = turn.kind in before and abs(math.log10((before[turn.kind] + 1) / (turn.step + 1))) <= 0.1
        assert not known


def test_numbers_and_reason_of_a_transition() -> None:
    steps = [round(10 ** (k / 10)) for k in range(10, 51)]
    values = [float(abs(k - 20)) if k < 35 else 15 - 1.5 * (k - 35) for k in range(10, 51)]
    first, second = detect_phases(steps, values)
    assert first.value == pytest.approx(0, abs=0.2)
    assert first.prominence == pytest.approx(10, abs=0.3)
    assert "fell by" in first.reason
    assert second.prominence == pytest.approx(22.5, abs=0.3)
    assert "stayed below" in second.reason


def found_in(curve: Curve, factor: float = 1.0, offset: float = 0.0, **settings: float) -> list[tuple[str, int, int]]:
    found = detect_phases(curve.steps, factor * curve.values + offset, **settings)
    return [(t.kind, t.step, t.detected_at) for t in found]


@pytest.mark.slow
def test_the_scale_of_the_values_does_not_matter() -> None:
    curve = make(np.random.default_rng(5), "three")
    assert found_in(curve) == found_in(curve, 1e6) != []


@pytest.mark.slow
def test_the_offset_of_the_values_does_not_matter_without_a_least_change() -> None:
    curve = make(np.random.default_rng(5), "three")
    assert found_in(curve, min_change=0.0) == found_in(curve, 1.0, 1e3, min_change=0.0) != []


def test_wiggles_far_below_the_level_are_no_phases() -> None:
    curve = make(np.random.default_rng(5), "three")
    assert found_in(curve, 1.0, 1e3) == []


def test_the_phase_follows_what_is_known() -> None:
    steps = [round(10 ** (k / 10)) for k in range(10, 51)]
    values = [float(abs(k - 20)) if k < 35 else 15 - 1.5 * (k - 35) for k in range(10, 51)]
    detector, phases = PhaseDetector(), []
    for n, row in enumerate(zip(steps, values, strict=True), start=1):
        detector.update(*row)
        curve = np.array(steps[:n], float), np.array(values[:n])
        phases.append(phase_of(*curve, PHASE_SETTINGS, detector.transitions))
    assert phases == sorted(phases)
    turns = [steps[phases.index(phase)] for phase in (1, 2)]
    assert turns[0] <= detector.transitions[0].detected_at
    assert turns[1] == detector.transitions[1].detected_at


def test_without_a_first_descent_the_ascent_begins_with_a_significant_rise() -> None:
    steps = np.array([round(10 ** (k / 10)) for k in range(40)][8:], float)
    values = 10 + np.maximum(0, np.log10(steps + 1) - 2)
    phases = [phase_of(steps[:n], values[:n], PHASE_SETTINGS, []) for n in range(1, len(steps))]
    assert phases[:14] == [0] * 14
    assert phases[-1] == 1


@pytest.mark.slow
def test_values_that_are_not_finite_are_left_out() -> None:
    curve = make(np.random.default_rng(5), "three")
    steps, values = np.append(curve.steps, curve.steps[-1] + 1), np.append(curve.values, math.nan)
    assert detect_phases(steps, values) == detect_phases(curve.steps, curve.values) != []


@pytest.mark.parametrize(
    ("steps", "values"), [([], []), ([0], [1.0]), (range(7), [1, 2, 3, 4, 3, 2, 1]), (range(50), [3.0] * 50)]
)
def test_too_little_says_nothing(steps: list[int], values: list[float]) -> None:
    assert detect_phases(steps, values) == []


def test_a_dense_curve_is_seen_through_bins() -> None:
    steps = np.arange(30_000.0)
    x, truth = np.log10(steps + 1), {"first_descent_end": 1.5, "migration_start": 3.0, "migration_end": 4.0}
    values = np.interp(x, [0, *truth.values(), x[-1]], [5, 1, 8, 0, 0])
    values += np.random.default_rng(0).uniform(-0.5, 0.5, len(x))
    found = {turn.kind: turn.x for turn in find_phases(steps, values, PHASE_SETTINGS)}
    assert found == pytest.approx(truth, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"steps": [0, 1], "values": [1.0]}, "same length"),
        ({"steps": [0, 2, 1], "values": [1.0, 2.0, 3.0]}, "must increase"),
        ({"steps": [-1, 2], "values": [1.0, 2.0]}, "must increase"),
        ({"steps": [0, 1], "values": [1.0, 2.0], "min_prominence": 0}, "min_prominence"),
        ({"steps": [0, 1], "values": [1.0, 2.0], "flatness": 1.5}, "flatness"),
        ({"steps": [0, 1], "values": [1.0, 2.0], "noise_factor": -1}, "noise_factor"),
        ({"steps": [0, 1], "values": [1.0, 2.0], "min_change": -0.1}, "min_change"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        detect_phases(**arguments)


@pytest.mark.parametrize(
    ("shape", "seed"),
    [
        pytest.param(shape, seed, marks=() if (shape, seed) == ("three", 0) else pytest.mark.slow)
        for shape in SHAPES
        for seed in range(2)
    ],
)
def test_row_by_row_gives_what_all_at_once_gives(shape: str, seed: int) -> None:
    curve = make(np.random.default_rng(seed), shape)
    detector = PhaseDetector()
    events: list[PhaseEvent] = []
    for n, (step, value) in enumerate(zip(curve.steps, curve.values, strict=True), start=1):
        events += detector.update(int(step), float(value))
        if n % 15 == 0 or n == len(curve.steps):
            finished = copy.deepcopy(detector)
            finished.finish()
            assert finished.transitions == detect_phases(curve.steps[:n], curve.values[:n])
    events += detector.finish()
    assert {turn.kind: turn.step for turn in detector.transitions if turn.kind != "ascent_start"} == {
        kind: round(10**x - 1) for kind, x in last_two_looks(curve).items()
    }
    # The events tell all that is known.
    known: dict[str, Transition] = {}
    for event in events:
        if event.what == "withdrawn":
            del known[event.transition.kind]
        else:
            assert (event.transition.kind in known) == (event.what != "found")
            known[event.transition.kind] = event.transition
    assert [*sorted(known.values(), key=lambda found: found.step)] == detector.transitions
    assert [event.at for event in events] == sorted(event.at for event in events)


def test_a_marker_that_is_not_borne_out_is_withdrawn_in_an_event() -> None:
    detector = PhaseDetector()
    rising = [(round(10 ** (k / 10)), 20.0 - k if k < 20 else (k - 20) if k < 30 else 40.0 - k) for k in range(5, 35)]
    events = [event for row in rising for event in detector.update(*row)]
    assert [event.transition.kind for event in events if event.what == "found"] == [
        "first_descent_end",
        "migration_start",
    ]
    again = [(round(10 ** (k / 10)), 5.0 + 2 * (k - 34)) for k in range(35, 46)]
    later = [event for row in again for event in detector.update(*row)]
    assert ("withdrawn", "migration_start") in [(event.what, event.transition.kind) for event in later]
    assert [turn.kind for turn in detector.transitions] == ["first_descent_end"]


@pytest.mark.slow
def test_a_detector_goes_on_from_its_state() -> None:
    curve = make(np.random.default_rng(5), "three")
    rows = [(int(step), float(value)) for step, value in zip(curve.steps, curve.values, strict=True)]
    whole, half, resumed = PhaseDetector(), PhaseDetector(), PhaseDetector()
    for row in rows[:25]:
        whole.update(*row)
        half.update(*row)
    state = half.state()
    resumed.restore(json.loads(json.dumps(state)))
    for row in rows[25:]:
        assert whole.update(*row) == resumed.update(*row)
    assert whole.transitions == resumed.transitions != []


def test_a_detector_refuses_what_it_cannot_take() -> None:
    detector = PhaseDetector()
    detector.update(3, 1.0)
    assert detector.update(4, math.nan) == []
    with pytest.raises(ValueError, match="must increase"):
        detector.update(3, 1.0)
    with pytest.raises(ValueError, match="flatness"):
        PhaseDetector(flatness=2.0)
    with pytest.raises(ValueError, match=r"\['steepness'\]"):
        PhaseDetector(steepness=2.0)


def test_a_lone_spike_takes_no_transition_away() -> None:
    steps = [0, *dict.fromkeys(round(10 ** (k / 10)) for k in range(46))]
    values = np.interp(np.log10(np.array(steps) + 1), [0, 1.5, 3.5, 4.5], [20, 8, 16, 4])
    expected = [(found.kind, found.step) for found in detect_phases(steps, values)]
    assert [kind for kind, _ in expected] == ["first_descent_end", "migration_start"]
    values[30] = 200.0
    assert [(found.kind, found.step) for found in detect_phases(steps, values)] == expected


# The ascent, and what rests on too few rows

LOG_STEPS = [0, *dict.fromkeys(round(10 ** (k / 10)) for k in range(46))]
ASCENTS = {
    "after a floor": ([(0, 10), (1, 3), (2, 3), (3.5, 16)], {"first_descent_end": 1.0, "ascent_start": 2.0}),
    "after a slow descent": ([(0, 25), (3.6, 22), (4.2, 34)], {"first_descent_end": 3.6, "ascent_start": 3.6}),
    "after a descent, then slower": ([(0, 25), (1, 14), (2.5, 11), (4, 16)], {"first_descent_end": 2.5}),
    "no first descent": ([(0, 0.7), (2, 0.7), (4, 5.6)], {"ascent_start": 2.0}),
    "no first descent, and a migration": (
        [(0, 5), (1.5, 5), (3, 12), (4, 2)],
        {"ascent_start": 1.5, "migration_start": 3.0},
    ),
    "slow, then steep": ([(0, 5), (2, 5.2), (3.5, 16)], {"ascent_start": 2.0}),
    "slowly by a fifth, then steep": ([(0, 5), (1, 5), (3, 7), (4, 13)], {"ascent_start": 3.0}),
    "slowly by a half, then steep": ([(0, 5), (1, 5), (3, 9), (3.6, 13)], {"ascent_start": 1.0}),
    "a descent, slowly by a fifth, then steep": (
        [(0, 9), (1, 5), (3, 6.6), (4, 13)],
        {"first_descent_end": 1.0, "ascent_start": 3.0},
    ),
    "straight from the minimum": ([(0, 10), (1.5, 3), (3, 16)], {"first_descent_end": 1.5}),
    "from the start": ([(0, 3), (3, 16)], {}),
    "within the first four rows": ([(0, 3), (0.4, 3), (2, 16)], {}),
    "falling": ([(0, 16), (3, 3)], {}),
    "flat": ([(0, 5), (3, 5)], {}),
    "a rise that is too small": ([(0, 5), (2, 5), (4, 5.1)], {}),
}


@pytest.mark.parametrize("name", ASCENTS)
def test_where_the_ascent_begins(name: str) -> None:
    nodes, truth = ASCENTS[name]
    values = np.interp(np.log10(np.array(LOG_STEPS) + 1), *zip(*nodes, strict=True))
    values *= 1 + 0.005 * np.random.default_rng(0).normal(size=len(values))
    found = {turn.kind: math.log10(turn.step + 1) for turn in detect_phases(LOG_STEPS, values)}
    assert {kind: x for kind, x in found.items() if kind != "migration_end"} == pytest.approx(truth, abs=0.12)


@pytest.mark.slow
def test_few_flat_or_falling_curves_have_an_ascent() -> None:
    curves = [make(np.random.default_rng(seed), shape) for shape in ("flat", "falling") for seed in range(40)]
    spoke = [curve for curve in curves if any(t.kind == "ascent_start" for t in found_turns(curve))]
    assert len(spoke) <= 2


def found_turns(curve: Curve) -> list[Turn]:
    return find_phases(curve.steps, curve.values, PHASE_SETTINGS)


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_no_transition_rests_on_fewer_than_four_rows(step: int) -> None:
    steps = np.arange(60.0)
    values = np.interp(np.log10(steps + 1), np.log10([1, step + 1, 61]), [10, 1, 20])
    shown = {turn.kind: turn.step for turn in find_phases(steps, values, PHASE_SETTINGS)}
    assert shown == {"first_descent_end": step}
    assert [turn.step for turn in detect_phases([*map(int, steps)], [*values])] == ([step] if step >= 4 else [])


def test_the_phase_is_the_ascent_where_only_its_beginning_is_known() -> None:
    steps = np.array(LOG_STEPS, float)
    ascent = Transition("ascent_start", 100, 200, 1.0, 1.0, "")
    assert phase_of(steps, np.full(len(steps), 5.0), PHASE_SETTINGS, [ascent]) == 1


@pytest.mark.parametrize(("slow", "fast"), [(2.0, 2.0), (1.6, 20.0), (4.0, 20.0), (1.0, 30.0), (4.0, 60.0)])
def test_the_ascent_starts_where_the_curve_leaves_its_floor(slow: float, fast: float) -> None:
    """A slow rise before a steep one belongs to the ascent where it makes a quarter of it."""
    x = np.linspace(1, 4.3, 34)
    noise = 0.02 * np.random.default_rng(0).standard_normal(len(x))
    values = 4 + slow * (x - 2.5).clip(0, 1.2) + fast * (x - 3.9).clip(0) + noise
    steps = [int(step) for step in np.round(10**x - 1)]
    (found,) = [turn for turn in detect_phases(steps, values) if turn.kind == "ascent_start"]
    belongs = 1.2 * slow >= 0.25 * (values.max() - values.min())
    assert abs(np.log10(found.step + 1) - (2.5 if belongs else 3.9)) < 0.15


@pytest.mark.parametrize("slant", [-0.6, 0.6, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("begin", [1.5, pytest.param(0.5, marks=pytest.mark.slow)])
def test_a_migration_starts_where_a_plateau_ends(slant: float, begin: float) -> None:
    """Which end of it is the higher one by a little does not matter."""
    x = np.linspace(0.3, 4.4, 83)
    values = np.interp(x, [0.3, begin, 3.0, 4.2], [60.0, 100.0, 100.0 + slant, 20.0])
    values = values + 0.3 * np.random.default_rng(0).standard_normal(len(x))
    steps = np.unique(np.round(10**x - 1)).astype(int)
    at = [int(np.argmin(np.abs(np.round(10**x - 1) - step))) for step in steps]
    found = {turn.kind: turn.step for turn in detect_phases(steps.tolist(), values[at].tolist())}
    assert abs(np.log10(found["migration_start"] + 1) - 3.0) < 0.15
