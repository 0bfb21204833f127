"""How a curve runs, in words: what is said of a rise or a fall can be read off its two numbers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lc_callback.detection.milestones import RANK_SETTINGS
from lc_callback.detection.movements import _nearest_rows, course_of, number
from lc_callback.detection.phases import PHASE_SETTINGS

STEPS = np.unique(np.round(10 ** np.linspace(0, 2, 14))) - 1


def drawn(kind: str, rng: np.random.Generator) -> np.ndarray:
    n = len(STEPS)
    curves = {
        "ranks": lambda: np.round(16 - rng.integers(0, 4, n) + rng.normal(size=n)),
        "a drop": lambda: np.where(np.arange(n) < rng.integers(1, n), 16.0, 13.0) + 0.01 * rng.normal(size=n),
        "an exact drop": lambda: np.where(np.arange(n) < rng.integers(1, n), 16.0, 13.0),
        "a walk": lambda: np.abs(np.cumsum(rng.normal(size=n))) + 0.1,
        "a fall at once": lambda: (
            5 + 6 * np.exp(-STEPS / rng.choice([0.2, 0.5])) + np.log10(STEPS) + 0.1 * rng.normal(size=n)
        ),
        "a spike": lambda: np.where(np.arange(n) == rng.integers(n), 40.0, 5.0 + 0.1 * rng.normal(size=n)),
    }
    return curves[kind]()


@pytest.mark.parametrize("settings", [RANK_SETTINGS, PHASE_SETTINGS], ids=["rank", "phases"])
@pytest.mark.parametrize("kind", ["ranks", "a drop", "an exact drop", "a walk", "a fall at once", "a spike"])
def test_the_numbers_of_a_leg_say_what_its_verb_says(kind, settings):
    for seed in range(60):
        course = course_of(STEPS, drawn(kind, np.random.default_rng(seed)), settings)
        for leg in course.legs:
            assert number(leg.start) != number(leg.end), course.text()
            assert leg.begins < leg.ends, course.text()
        for leg, following in itertools.pairwise(course.legs):
            assert leg.end == following.start, course.text()
            assert leg.rises != following.rises, course.text()


@pytest.mark.parametrize("drop", range(1, 12))
def test_a_drop_is_told_with_the_values_that_were_seen(drop):
    text = course_of(STEPS, np.where(np.arange(len(STEPS)) < drop, 16.0, 13.0), RANK_SETTINGS).text()
    assert text.startswith("fell from 16")
    assert " to 13 at step " in text


@pytest.mark.parametrize("rounding", [-1e-15, 0.0, 1e-15])
def test_halfway_between_two_rows_is_the_later_one_however_a_processor_rounds(rounding):
    x = np.log10(STEPS + 1)
    for i in range(len(x) - 1):
        node = (x[i] + x[i + 1]) / 2 + rounding
        assert _nearest_rows(np.array([node]), STEPS, np.arange(len(x))) == i + 1


def test_a_rise_of_the_last_row_is_told_with_the_row_it_ends_at():
    late = np.zeros(len(STEPS))
    late[-2:] = 0.0234, 0.15625
    text = course_of(STEPS, late, {"min_rise": 0.1}).text()
    assert text.startswith("rose from 0 to 0.156 at step 99")


def test_a_movement_is_not_told_with_two_rows_that_hide_it():
    # From about 15 to about 80: the first row is far above, the last one below what is around them.
    values = [50, 13, 23, 26, 16, 17, 17, 18, 30, 24, 29, 36, 33, 64, 135, 91, 89, 154, 67, 58, 98, 65]
    steps = [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 25, 32, 100, 126, 158, 316, 398, 794, 1000, 1259, 1500]
    text = course_of(np.array(steps, float), np.array(values, float), PHASE_SETTINGS).text()
    assert text == "rose 2.8-fold, from 23 at step 0 to 65 at step 1,500"
