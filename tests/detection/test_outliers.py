"""Lone rows of a curve, and the layers that made them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from lc_callback.detection.outliers import (
    layer_key,
    layers_of_lone_rows,
    layers_of_outliers,
    layers_of_spikes,
    lone_rows,
    responsible_layer,
    shares_in_columns,
)

NAN, INF = math.nan, math.inf
STEEP = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
NOISE = (5 + np.random.default_rng(0).standard_normal(60)).tolist()

CURVES: dict[str, tuple[list[float], list[int]]] = {
    "one row": ([6.4, 6.1, 6.19, 149.8, 8.36, 8.1, 7.7], [3]),
    "one row, downwards": ([50.0, 51, 52, 3, 52, 53, 50], [3]),
    "two in succession": ([6.0, 6.2, 150, 140, 6.3, 6.1, 6.4], [2, 3]),
    "two in succession, one much farther": ([6.0, 6.2, 150, 1400, 6.3, 6.1, 6.4], [2, 3]),
    "three in succession are a movement": ([6.0, 6.2, 150, 140, 150, 6.3, 6.1, 6.4], []),
    "two, with a row between": ([5.0, 5.1, 5, 150, 6, 140, 5.2, 5, 5.1, 5.3, 5.2], [3, 5]),
    "one up and one down": ([9.0, 9.1, 9, 90, 9, 9.2, 9.1, 0, 9, 9.1, 9.2], [3, 7]),
    "between floor and plateau": ([1.0, 1, 1, 100, 10, 10, 10], [3]),
    "on a steep rise": ([1.0, 2, 4, 1000, 8, 16, 32, 64], [3]),
    "on a steep fall": ([64.0, 32, 16, 1000, 8, 4, 2, 1], [3]),
    "beside a gap": ([6.0, 6.1, NAN, 150, NAN, 6.2, 6.1, 6], [3]),
    "infinite rows are passed over": ([6.0, 6.1, 6, INF, 6, 6.1, 6], []),
    "all NaN": ([NAN] * 8, []),
    "first row": ([150.0, 6.1, 6.2, 6, 6.1, 6.2, 6], [0]),
    "last row": ([6.1, 6.2, 6, 6.1, 6.2, 6, 150], [6]),
    "last two rows": ([6.1, 6.2, 6, 6.1, 6.2, 6, 150, 140], [6, 7]),
    "of five rows none": ([6.0, 6.1, 150, 6.2, 6.1], []),
    "of six rows one": ([6.0, 6.1, 150, 6.2, 6.1, 6], [2]),
    "steep": (STEEP, []),
    "steep fall, tenfold a row": ([1e4, 1e3, 1e2, 1e1, 1, 0.1, 0.01], []),
    "peak": (STEEP + STEEP[-2::-1], []),
    "sharp peak": ([1.0, 5, 20, 60, 20, 5, 1], []),
    "step": ([1.0, 1, 1, 1, 100, 100, 100, 100], []),
    "step at the second row": ([1.0, 100, 100, 101, 100, 100, 99], [0]),
    "two plateaus": ([1.0, 1, 1, 50, 50, 50, 2, 2, 2], []),
    "noise": (NOISE, []),
    "flat": ([3.0] * 9, []),
    "flat but one": ([3.0] * 4 + [3.5] + [3.0] * 4, [4]),
    "every other row": ([1.0, 100] * 8, []),
    "empty": ([], []),
}


@pytest.mark.parametrize("name", CURVES)
def test_lone_rows(name: str) -> None:
    values, lone = CURVES[name]
    assert lone_rows(values) == lone


@pytest.mark.parametrize("name", CURVES)
def test_scale_and_offset_change_nothing(name: str) -> None:
    values, lone = CURVES[name]
    assert lone_rows([8 * value + 1024 for value in values]) == lone


def test_few_of_many_rows() -> None:
    rng = np.random.default_rng(1)
    values = 5 + 0.2 * rng.standard_normal(400)
    at = [31, 200, 201, 377]
    values[at] = [90, 80, 70, 300]
    assert lone_rows(values.tolist()) == at


# Layers


@pytest.mark.parametrize(
    ("shares", "layer"),
    [
        ({"a": 1.0, "b": 145.0}, "b"),
        ({"a": 100.0, "b": 101.0, "c": 102.0}, "several layers"),
        ({"a": 1.0, "b": 0.0}, "b"),  # it fell
        ({"a": 1.0, "b": 2.0, "c": 1.0}, ""),  # as usual
        ({"a": NAN, "b": 90.0}, "b"),
        ({}, ""),
    ],
)
def test_the_layer_that_differs_most(shares: Mapping[str, float], layer: str) -> None:
    usual = {"a": 1.0, "b": 2.0, "c": 1.0}
    assert responsible_layer(shares, [usual, {**usual, "b": 2.1}, {**usual, "b": 1.9}]) == layer


def test_without_neighbours_the_largest_counts() -> None:
    assert responsible_layer({"a": 1.0, "b": 2.5}, []) == "b"


def test_layers_in_columns() -> None:
    row = {"step": 3.0, "deep/lc/train": 9.0, "deep/lc_layer/train/net.0": 4.0, "deep/lc_layer/test/net.0": 1.0}
    assert layer_key("deep/lc/train_r0.05") == "deep/lc_layer/train_r0.05"
    assert shares_in_columns("deep/lc/train", row) == {"net.0": 4.0}
    assert shares_in_columns("lc/train", row) == {}


def test_layers_of_lone_rows() -> None:
    lc = [6.0, 6.2, 6.1, 150.0, 6.3, 6.0, 6.1]
    rows = [{"step": float(i), "lc/train": v, "lc/test": 5.0, "lc_layer/train/a": v - 1} for i, v in enumerate(lc)]
    del rows[1]["lc/test"]
    assert layers_of_lone_rows(rows, ["lc/train", "lc/test"], shares_in_columns) == {("lc/train", 3): "a"}
    assert layers_of_lone_rows(rows, ["lc/train"], lambda key, row: {}) == {}


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([5.0, 6, 7, 500, 8, 600, 7, 400, 9, 8], [4.0] * 10, {3: "conv", 5: "conv", 7: "conv"}),
        ([5.0, 6, 500, 600, 8, 7, 9, 400, 500, 8], [4.0] * 10, {2: "conv", 3: "conv", 7: "conv", 8: "conv"}),
        ([500.0, 6, 7, 8, 9, 8, 7, 8, 9, 500], [4.0] * 10, {}),  # at the ends, where it is a movement or begins one
        ([5.0, 6, 500, 600, 550, 590, 8, *[6.0] * 5], [4.0] * 12, dict.fromkeys(range(2, 6), "conv")),
        ([5.0, 6, *[600.0] * 5, 8, *[6.0] * 6], [4.0] * 14, dict.fromkeys(range(2, 7), "conv")),
        ([5.0, 6, *[600.0] * 6, 8, *[6.0] * 9], [4.0] * 18, {}),  # six rows are a movement of the curve
        ([5.0, 12, 30, 70, 150, 70, 30, 12, 5, 5], [4.0] * 10, {}),  # and so is a peak with slopes
        ([60.0, 70, 50, 550, 50, 480, 550, 80, 70, 60], [4.0] * 10, {3: "conv", 5: "conv", 6: "conv"}),
        ([5.0, 6, 7, 500, 8, 600, 7, 8, 8], [4.0, 4, 4, 4, 4, 4, 4, 900, 4], {3: "conv", 5: "conv", 7: "linear"}),
        ([5.0, 6, 7, 8, 9, 10, 11, 12, 13, 14], [4.0] * 10, {}),  # it rises
        ([5.0] * 5 + [600.0] * 5, [4.0] * 10, {}),  # a step
        ([5.0, 500] * 5 + [5.0], [4.0] * 11, {}),  # nearly half of the rows: the spikes are the curve
        ([5.0, 6, 7, 50, 8, 60, 7, 40, 9, 8], [400.0] * 10, {}),  # a small part of the row
        ([5.0] * 10, [4.0] * 10, {}),
        ([0.0] * 10, [0.0] * 10, {}),
        ([5.0, 600.0], [4.0, 4.0], {}),  # too few rows
        ([5.0, 6, 7, 500, 8, 600, 7, 400, 9, math.nan], [4.0] * 10, {3: "conv", 5: "conv", 7: "conv"}),
    ],
)
def test_the_layers_of_spikes(first: list[float], second: list[float], expected: dict[int, str]) -> None:
    rows = [{"step": step, "lc/train": a + b} for step, (a, b) in enumerate(zip(first, second, strict=True))]

    def shares(key: str, row: Any) -> dict[str, float]:
        return {"conv": first[row["step"]], "linear": second[row["step"]]}

    assert layers_of_spikes(rows, ["lc/train"], shares) == {("lc/train", step): name for step, name in expected.items()}
    assert layers_of_spikes(rows, ["lc/train"], lambda key, row: {}) == {}


def test_outliers_are_lone_rows_and_spikes() -> None:
    lc = [6.0, 6.2, 6.1, 150.0, 6.3, 6.0, 90.0, 6.1, 80.0, 6.3, 6.0, 6.2]
    rows = [{"step": i, "lc/train": v + 1, "lc_layer/train/a": v, "lc_layer/train/b": 1.0} for i, v in enumerate(lc)]
    found = layers_of_outliers(rows, ["lc/train"], shares_in_columns)
    assert found == {("lc/train", step): "a" for step in (3, 6, 8)}
