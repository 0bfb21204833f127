"""How sure a transition is: noise of several kinds, intervals, bursts of spikes, and what cannot be read at all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lc_callback import detect_phases
from lc_callback.detection.hinges import HingeSearch
from lc_callback.detection.milestones import ACCURACY_SETTINGS, find_accuracy_milestones
from lc_callback.detection.monotone import rising
from lc_callback.detection.noisy_fit import Noise, fit_in_noise
from lc_callback.detection.phases import PHASE_SETTINGS, find_phases

STEPS = np.unique(np.append(0, np.round(10 ** np.arange(0, 5.01, 0.1))))
X = np.log10(STEPS + 1)
NODES = ([0, 1.2, 3, 5], [8.0, 4.0, 10.0, 3.0])
PHASES = np.interp(X, *NODES)
TRUTH = {"first_descent_end": 1.2, "migration_start": 3.0}


def autocorrelated(rng: np.random.Generator, rho: float) -> np.ndarray:
    noise = rng.normal(size=len(STEPS))
    for i in range(1, len(noise)):
        noise[i] = rho * noise[i - 1] + math.sqrt(1 - rho**2) * noise[i]
    return noise


def heavy(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_t(2, size=len(STEPS)).clip(-8, 8) / 2


NOISES = {
    "white": lambda rng: autocorrelated(rng, 0.0),
    "AR(1) 0.5": lambda rng: autocorrelated(rng, 0.5),
    "AR(1) 0.8": lambda rng: autocorrelated(rng, 0.8),
    "AR(1) 0.9": lambda rng: autocorrelated(rng, 0.9),
    "heavy tails": heavy,
    "grows late": lambda rng: rng.normal(size=len(STEPS)) * np.linspace(0.3, 1.7, len(STEPS)),
}
QUICK = "AR(1) 0.8"  # many curves are fitted with each
each_noise = pytest.mark.parametrize(
    "noise",
    [pytest.param(noise, id=name, marks=() if name == QUICK else pytest.mark.slow) for name, noise in NOISES.items()],
)


def firm(values: np.ndarray) -> dict[str, Any]:
    turns = find_phases(STEPS, values, PHASE_SETTINGS)
    return {turn.kind: turn for turn in turns if turn.certainty == "firm" and turn.kind != "ascent_start"}


@each_noise
def test_noise_alone_has_next_to_no_firm_transition(noise: Any) -> None:
    n = sum(bool(firm(8 + 0.8 * noise(np.random.default_rng(seed)))) for seed in range(40))
    assert n <= 2


@each_noise
def test_intervals_of_firm_transitions_hold_the_truth(noise: Any) -> None:
    inside, widths, found = 0, [], 0
    for seed in range(25):
        for kind, turn in firm(PHASES + 0.5 * noise(np.random.default_rng(seed))).items():
            assert turn.low <= turn.x <= turn.high
            if kind in TRUTH:
                found += 1
                inside += turn.low <= TRUTH[kind] <= turn.high
                widths.append(turn.high - turn.low)
    assert found >= 15
    assert inside >= 0.93 * found
    assert np.median(widths) < 1.0  # or an interval says nothing


def test_a_curve_without_noise_is_firm_and_sharp() -> None:
    for kind, turn in firm(PHASES).items():
        assert abs(turn.x - TRUTH.get(kind, turn.x)) <= 0.05
        assert turn.high - turn.low <= 0.4
    assert {*firm(PHASES)} >= {*TRUTH}


def test_more_noise_makes_a_transition_tentative_before_it_goes() -> None:
    grades = []
    for scale in (0.2, 1.6):
        turns = [
            turn.certainty
            for seed in range(20)
            for turn in find_phases(
                STEPS, PHASES + scale * autocorrelated(np.random.default_rng(seed), 0.6), PHASE_SETTINGS
            )
            if turn.kind in TRUTH
        ]
        grades.append(turns.count("firm") / len(turns))
    assert grades[0] > 0.95
    assert grades[1] < 0.6


def test_on_a_top_the_interval_is_the_top() -> None:
    values = np.interp(X, [0, 1, 2.2, 3.4, 5], [8.0, 4.0, 10.0, 10.0, 3.0])
    turn = firm(values + 0.1 * autocorrelated(np.random.default_rng(0), 0.3))["migration_start"]
    assert turn.low <= 2.4
    assert turn.high >= 3.2


BURSTS = {
    "one row": ([30], [6.0]),
    "two rows": ([30, 31], [6.0, 5.0]),
    "three rows, one of them calm": ([30, 32], [6.0, 5.0]),
    "rows that come and go": ([28, 30, 32, 34], [4.0, 6.0, 5.0, 4.0]),
    "downwards": ([28, 30, 32], [-4.0, -6.0, -5.0]),
}


@pytest.mark.parametrize(("rows", "heights"), BURSTS.values(), ids=BURSTS)
def test_a_burst_of_spikes_is_no_firm_transition(rows: list[int], heights: list[float]) -> None:
    for seed in range(6):
        values = 8 + 0.2 * autocorrelated(np.random.default_rng(seed), 0.3)
        values[rows] += heights
        assert firm(values) == {}


@pytest.mark.parametrize("height", [3.0, 8.0, 20.0])
def test_a_peak_is_no_spike_because_it_is_high(height: float) -> None:
    values = 2 + np.interp(X, [0, 2.7, 3.1, 3.5, 5], [0, 0, height, 0, 0])
    for seed in range(4):
        noisy = values + 0.1 * autocorrelated(np.random.default_rng(seed), 0.3)
        assert abs(firm(noisy)["migration_start"].x - 3.1) <= 0.1


@pytest.mark.parametrize("rows", [1, 2])
def test_a_rise_of_the_last_rows_alone_is_not_firm(rows: int) -> None:
    values = np.interp(X, [0, 5], [8.0, 3.0]) + 0.05 * autocorrelated(np.random.default_rng(1), 0.3)
    values[-rows:] += 3.0
    assert "first_descent_end" not in firm(values)


# A migration that goes on has not ended


@pytest.mark.parametrize(("end", "has_ended"), [(4.0, True), (3.9, True), (2.0, False), (1.0, False), (0.0, False)])
def test_a_migration_has_ended_where_the_curve_falls_no_more(end: float, has_ended: bool) -> None:
    values = np.interp(X, [0, 2, 3, 3.3, 5], [1.0, 1.0, 12.0, 4.0, end])
    kinds = {turn.kind for turn in find_phases(STEPS, values, PHASE_SETTINGS)}
    assert "migration_start" in kinds
    assert ("migration_end" in kinds) == has_ended


# Accuracies


def risen(dips: list[tuple[float, float]], depth: float = 0.5, points: int = 0, seed: int = 0) -> np.ndarray:
    """Generalises at 2.45 decades, but for dips between these."""
    values = np.interp(X, [2.0, 2.5], [0.1, 0.9])
    for start, end in dips:
        values[(start <= X) & (end >= X)] -= depth
    return np.random.default_rng(seed).binomial(points, values.clip(0, 1)) / points if points else values


@pytest.mark.parametrize(
    "dips",
    [
        [],
        [(3.0, 3.1)],
        [(2.8, 2.95), (3.4, 3.6)],
        [(2.7, 2.8), (3.0, 3.1), (3.3, 3.4), (3.7, 3.8), (4.1, 4.2)],
        [(4.4, 4.6)],
    ],
)
@pytest.mark.parametrize("points", [0, 64])
def test_generalization_is_where_the_rise_is_and_not_behind_the_last_dip(dips: Any, points: int) -> None:
    curves = {"clean_acc/test": (STEPS, risen(dips, points=points))}
    (turn,) = [t for t in find_accuracy_milestones(curves, ACCURACY_SETTINGS) if t.kind == "generalization"]
    assert abs(turn.x - 2.45) <= 0.2
    assert turn.low <= 2.46
    assert turn.high >= 2.44


def test_a_long_loss_is_no_dip() -> None:
    curves = {"clean_acc/test": (STEPS, risen([(2.8, 4.3)]))}
    (turn,) = [t for t in find_accuracy_milestones(curves, ACCURACY_SETTINGS) if t.kind == "generalization"]
    assert turn.x >= 4.3


def test_a_delay_near_the_factor_is_tentative() -> None:
    def certainty(delay: float) -> list[str]:
        curves = {
            "clean_acc/train": (STEPS, np.where(X >= 1.5, 1.0, 0.1)),
            "clean_acc/test": (STEPS, np.where(1.5 + delay <= X, 0.9, 0.1)),
        }
        turns = find_accuracy_milestones(curves, ACCURACY_SETTINGS)
        return [turn.certainty for turn in turns if turn.kind == "delayed_generalization"]

    assert certainty(0.5) == []
    assert certainty(0.71) == ["tentative"]  # a factor of 5
    assert certainty(1.0) == ["firm"]


@pytest.mark.parametrize("seed", range(5))
def test_the_rising_curve_is_the_nearest_one(seed: int) -> None:
    y = np.random.default_rng(seed).normal(size=9).round(1)
    got = rising(y)
    assert (np.diff(got) >= 0).all()
    levels = np.unique(y)
    best = dict.fromkeys(levels, 0.0)  # least sum of distances with the last value at most this, row by row
    for value in y:
        sums, least = {}, math.inf
        for level in levels:
            least = min(least, best[level])
            sums[level] = least + abs(value - level)
        best = sums
    assert np.abs(got - y).sum() == pytest.approx(min(best.values()))


# The search, against least squares with all breakpoints


@pytest.mark.parametrize("rho", [0.0, 0.4, 0.8])
def test_squares_of_the_search_are_those_of_least_squares(rho: float) -> None:
    rng = np.random.default_rng(3)
    x, scales = np.sort(rng.uniform(0, 4, 30)), rng.uniform(0.5, 2.0, 30)
    y = rng.normal(size=30)
    search = HingeSearch.in_noise(x, y, [0.0, rho], scales)
    for squares, breakpoints in search.fits():
        columns = np.column_stack([np.ones(30), x, *(np.maximum(x - at, 0) for at in search.grid[breakpoints[1]])])
        white, new = columns / scales[:, None], y / scales
        for z in (white, new):
            before = z[:-1].copy()
            z[0] *= math.sqrt(1 - rho**2)
            z[1:] -= rho * before
        residuals = new - white @ np.linalg.lstsq(white, new, rcond=None)[0]
        assert squares[1] == pytest.approx(float(residuals @ residuals), rel=1e-6)


def test_known_noise_is_used_as_it_is() -> None:
    values = PHASES + 0.3 * autocorrelated(np.random.default_rng(0), 0.5)
    little = fit_in_noise(STEPS, values, Noise(np.full(len(STEPS), 0.3), 0.5))
    much = fit_in_noise(STEPS, values, Noise(np.full(len(STEPS), 3.0), 0.5))
    assert little is not None
    assert much is not None
    assert (little.sigma, little.rho, much.sigma) == pytest.approx((0.3, 0.5, 3.0))
    assert len(little.nodes) >= 4 > len(much.nodes)


# What cannot be read


@pytest.mark.parametrize(
    ("steps", "values"),
    [
        ([], []),
        ([0], [1.0]),
        ([0, 1], [1.0, 2.0]),
        ([0, 1, 2], [math.nan] * 3),
        (range(40), [math.nan] * 40),
        (range(40), [5.0] * 40),
        (range(40), [0.0] * 40),
        (range(40), [5.0] * 39 + [6.0]),
        (range(40), [math.inf] * 20 + [1.0] * 20),
        ([10**6 + i for i in range(40)], list(range(40))),  # all in one bin
    ],
)
def test_too_little_to_see_is_an_empty_list(steps: Any, values: Any) -> None:
    assert detect_phases(list(steps), list(values)) == []


def test_values_that_are_not_finite_are_left_out() -> None:
    values = PHASES.copy()
    values[[5, 17, 40]] = [math.nan, math.inf, -math.inf]
    assert {found.kind for found in detect_phases(STEPS, values)} >= {*TRUTH}


@pytest.mark.parametrize(
    ("steps", "values", "says"),
    [
        ([0, 1, 1, 2], [1.0] * 4, "must increase"),
        ([0, 2, 1, 3], [1.0] * 4, "must increase"),
        ([-1, 0, 1], [1.0] * 3, "from 0"),
        ([0, 1, 2], [1.0] * 4, "same length"),
        ([[0, 1], [2, 3]], [[1.0, 2.0], [3.0, 4.0]], "same length"),
    ],
)
def test_what_is_no_curve_is_an_error(steps: Any, values: Any, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        detect_phases(steps, values)
