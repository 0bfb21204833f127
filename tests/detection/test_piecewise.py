"""Piecewise linear fits: known curves, lone spikes, too few points, bins of dense curves."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from lc_callback.detection.piecewise import bins_of, fit

X = np.arange(0.5, 4.01, 0.05)
STEPS = 10**X - 1

CURVES = {
    "line": ([], [1, 3]),
    "valley": ([2.0], [5, 1, 4]),
    "three phases": ([1.5, 2.5, 3.25], [5, 1, 8, 0, 0]),
    "five breakpoints": ([1.0, 1.5, 2.0, 2.75, 3.5], [5, 1, 4, 0, 6, 6, 2]),
}


def curve(breakpoints: list[float], heights: list[float]) -> np.ndarray:
    return np.interp(X, [X[0], *breakpoints, X[-1]], heights)


@pytest.mark.parametrize("name", CURVES)
def test_a_known_curve_is_found(name: str) -> None:
    breakpoints, heights = CURVES[name]
    values = curve(breakpoints, heights)
    found = fit(STEPS, values)
    assert found is not None
    assert found.nodes == pytest.approx([X[0], *breakpoints, X[-1]], abs=1e-9)
    assert found.values == pytest.approx([values[np.abs(X - node).argmin()] for node in found.nodes], abs=1e-6)
    assert found.sigma == pytest.approx(0, abs=1e-6)


def test_slopes_are_per_decade() -> None:
    found = fit(STEPS, curve([2.5], [4, 0, 3]))
    assert found is not None
    assert found.slopes == pytest.approx([-2, 2])


@pytest.mark.parametrize("seed", range(5))
def test_noise_is_measured_and_not_followed(seed: int) -> None:
    noise = np.random.default_rng(seed).normal(0, 0.2, len(X))
    found = fit(STEPS, curve(*CURVES["valley"]) + noise)
    assert found is not None
    assert len(found.nodes) == 3
    assert found.nodes[1] == pytest.approx(2, abs=0.1)
    assert found.sigma == pytest.approx(0.2, rel=0.25)


@pytest.mark.parametrize("seed", range(5))
def test_noise_alone_is_flat(seed: int) -> None:
    found = fit(STEPS, np.random.default_rng(seed).normal(3, 1, len(X)))
    assert found is not None
    assert len(found.nodes) == 2
    assert np.ptp(found.values) < 1


@pytest.mark.parametrize("spikes", [{20: 6.0}, {40: -9.0}, {10: 5.0, 30: -5.0, 60: 40.0}], ids=str)
def test_lone_spikes_are_left_out(spikes: dict[int, float]) -> None:
    values = curve(*CURVES["valley"])
    clean = fit(STEPS, values)
    for at, height in spikes.items():
        values[at] += height
    found = fit(STEPS, values)
    assert clean is not None
    assert found is not None
    assert found.nodes == pytest.approx(clean.nodes)
    assert found.values == pytest.approx(clean.values, abs=0.05)
    assert found.sigma < 0.05


def test_a_peak_of_many_points_is_no_spike() -> None:
    found = fit(STEPS, curve([2.0, 2.5, 3.0], [0, 0, 8, 0, 0]))
    assert found is not None
    assert found.values.max() == pytest.approx(8, abs=0.1)


@pytest.mark.parametrize("n", range(8))
def test_fewer_than_eight_points_say_nothing(n: int) -> None:
    assert fit(STEPS[:n], X[:n]) is None


def test_eight_points_are_enough() -> None:
    found = fit(STEPS[:8], X[:8])
    assert found is not None
    assert found.slopes == pytest.approx([1])


def test_many_rows_in_few_bins_are_few_points() -> None:
    steps = np.arange(1000.0, 1500.0)
    assert len(np.unique(bins_of(steps))) < 8
    assert fit(steps, steps) is None


@pytest.mark.parametrize("value", [0.0, -3.5])
def test_equal_values_say_nothing(value: float) -> None:
    assert fit(STEPS, np.full(len(STEPS), value)) is None


def test_twenty_bins_a_decade() -> None:
    assert bins_of(np.array([0.0, 9, 99, 999])).tolist() == [0, 20, 40, 60]
    assert len(np.unique(bins_of(np.arange(999.0, 9999)))) == 20


def test_a_dense_curve_is_seen_as_medians_of_bins() -> None:
    steps = np.arange(20_000.0)
    x = np.log10(steps + 1)
    values = np.interp(x, [0, 2, x[-1]], [5, 1, 4])
    values[::4] += 50  # fewer than half of each bin that has several rows
    single = np.append(np.diff(bins_of(steps)) > 0, True) & (np.diff(bins_of(steps), prepend=-1) > 0)
    values[single & (values > 10)] -= 50
    found = fit(steps, values)
    assert found is not None
    assert found.nodes == pytest.approx([0, 2, x[-1]], abs=0.05)
    assert found.values == pytest.approx([5, 1, 4], abs=0.2)


def test_scale_and_offset_go_through() -> None:
    values = curve(*CURVES["three phases"]) + np.random.default_rng(0).normal(0, 0.1, len(X))
    one, other = fit(STEPS, values), fit(STEPS, 1e5 * values - 3)
    assert one is not None
    assert other is not None
    assert other.nodes == pytest.approx(one.nodes)
    assert other.values == pytest.approx(1e5 * one.values - 3)
    assert other.sigma == pytest.approx(1e5 * one.sigma)


@pytest.mark.parametrize("name", ["modular", "deep_grokking", "init", "causal"])
def test_rounding_decides_nothing(name):
    """A processor that rounds otherwise must find the same: searches go on from places that are equally good."""
    for rows in curves_of_results(name):
        steps, values = np.array(list(rows)), np.array(list(rows.values()))
        expected = fit(steps, values)
        rng = np.random.default_rng(0)
        moved = (steps + 1) * (1 + 1e-14 * rng.standard_normal(len(steps))) - 1
        found = fit(moved, values)
        assert found.nodes == pytest.approx(expected.nodes, abs=1e-9)


def curves_of_results(name):
    """Local complexity and the rank of the last layer, by step, of each run of an experiment."""
    runs = {}
    with (Path(__file__).parents[2] / "docs" / "results" / f"{name}.csv").open() as file:
        for row in csv.DictReader(file):
            for key in ("lc/train", "rank/last"):
                if row.get(key):
                    of_run = runs.setdefault((row["variant"], row["seed"], key), {})
                    of_run[float(row["step"])] = float(row[key])
    return [rows for rows in runs.values() if len(rows) >= 8 and len(set(rows.values())) > 1]
