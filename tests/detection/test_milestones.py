"""Milestones of accuracies and ranks on generated curves with known truth."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from lc_callback.detection.milestones import (
    ACCURACY_KINDS,
    ACCURACY_SETTINGS,
    RANK_SETTINGS,
    check_accuracy_settings,
    find_accuracy_milestones,
    find_rank_turns,
    unconfirmed_generalization,
)
from lc_callback.detection.transitions import Turn

STEPS = np.unique(np.append(0, np.round(10 ** np.arange(0, 5.01, 0.1))))
TRAIN, TEST, ROBUST = "clean_acc/train", "clean_acc/test", "robust_acc/test_eps0.1"


def at(*nodes: tuple[float, float], steps: np.ndarray = STEPS) -> np.ndarray:
    """Straight between points ``(decade, value)``, flat outside."""
    return np.interp(np.log10(steps + 1), *zip(*nodes, strict=True))


def ramp(start: float, end: float, low: float = 0.1, high: float = 1.0, steps: np.ndarray = STEPS) -> np.ndarray:
    return at((start, low), (end, high), steps=steps)


def jump(step: int, steps: np.ndarray, low: float = 0.1, high: float = 1.0) -> np.ndarray:
    return np.where(steps >= step, high, low)


def noisy(values: np.ndarray, rng: np.random.Generator, n: int = 256) -> np.ndarray:
    """Measured at ``n`` points, as many as the callback takes by default."""
    return rng.binomial(n, values.clip(0, 1)) / n


def found(curves: dict[str, np.ndarray], steps: np.ndarray = STEPS, **settings: float) -> dict[str, Turn]:
    """By kind and eps."""
    turns = find_accuracy_milestones(
        {key: (steps, values) for key, values in curves.items()}, {**ACCURACY_SETTINGS, **settings}
    )
    named = {turn.kind + turn.curve.partition("_eps")[2]: turn for turn in turns}
    assert len(named) == len(turns)
    return named


def decades(turns: dict[str, Turn]) -> dict[str, float]:
    return {name: turn.x for name, turn in turns.items()}


# A whole run: memorises, generalises late, becomes robust later

GROKKED = {
    TRAIN: ramp(0.5, 1.5),
    TEST: ramp(2.5, 3.0),
    ROBUST: ramp(3.0, 4.0, high=0.9),
    "robust_acc/test_eps0.3": ramp(3.5, 4.5, high=0.5),
    "robust_acc/seconds": ramp(1, 3, low=0, high=40),
    "robust_acc_raw/test_eps0.1": ramp(3.0, 4.0),
}
TRUTH = {
    "interpolation": 0.5 + 0.89 / 0.9,
    "generalization": 2.95,
    "delayed_generalization": 2.95,
    "robustness_onset0.1": 3.5,
    "robustness_onset0.3": 4.0,
    "delayed_robustness0.1": 3.5,
    "delayed_robustness0.3": 4.0,
}


def test_a_grokking_run_has_all_its_milestones() -> None:
    turns = found(GROKKED, delay=4.0)
    assert decades(turns) == pytest.approx(TRUTH, abs=0.1)
    others = {"multi_stage_generalization", "robustness_loss"}
    assert {turn.kind for turn in turns.values()} == {*ACCURACY_KINDS} - others


def test_the_numbers_of_a_milestone() -> None:
    turn = found(GROKKED)["generalization"]
    assert turn.curve == TEST
    assert turn.value == pytest.approx(0.91, abs=0.1)
    assert turn.prominence == pytest.approx(0.9)
    assert turn.reason == "rose from 0.1 to 1, and has made 90% of that for good"
    assert "38.5 times later" in found(GROKKED)["delayed_generalization"].reason
    assert TEST in found(GROKKED)["delayed_robustness0.3"].reason


def test_noise_and_lone_outliers_move_nothing_far() -> None:
    rng = np.random.default_rng(0)
    curves = {key: noisy(GROKKED[key], rng) for key in (TRAIN, TEST, ROBUST, "robust_acc/test_eps0.3")}
    for key, row, value in ((TRAIN, 30, 0.2), (TEST, 42, 0.0), (TEST, 10, 0.9), (ROBUST, 46, 0.1)):
        curves[key][row] = value
    assert decades(found(curves, delay=4.0)) == pytest.approx(TRUTH, abs=0.15)


def test_rows_that_are_not_evenly_spaced() -> None:
    steps = np.unique(np.concatenate([[0], 10 ** np.random.default_rng(3).uniform(0, 5, 90)]).round())
    curves = {
        TRAIN: ramp(0.5, 1.5, steps=steps),
        TEST: ramp(2.5, 3.0, steps=steps),
        ROBUST: ramp(3.0, 4.0, high=0.9, steps=steps),
    }
    turns = found(curves, steps, delay=4.0)
    assert decades(turns) == pytest.approx({k: v for k, v in TRUTH.items() if not k.endswith("0.3")}, abs=0.15)


@pytest.mark.parametrize("missing", [TRAIN, TEST, ROBUST])
def test_a_curve_that_is_missing_costs_its_own_milestones(missing: str) -> None:
    gone = {
        TRAIN: {"interpolation", "delayed_generalization"},
        TEST: {"generalization", "delayed_generalization", "delayed_robustness0.1", "delayed_robustness0.3"},
        ROBUST: {"robustness_onset0.1", "delayed_robustness0.1"},
    }[missing]
    turns = found({key: values for key, values in GROKKED.items() if key != missing}, delay=4.0)
    assert {*turns} == {*TRUTH} - gone


def test_no_curves_no_milestones() -> None:
    assert found({}) == {}
    assert found({"robust_acc/seconds": ramp(1, 2), "clean_acc/random": ramp(1, 2)}) == {}


# Interpolation


def test_interpolation_is_the_first_of_two_rows() -> None:
    values = np.full(len(STEPS), 0.5)
    values[[10, 20, 21, 30]] = 0.99
    assert found({TRAIN: values})["interpolation"].step == STEPS[20]
    values[[21, 30]] = 0.98
    assert found({TRAIN: values}) == {}


def test_the_level_of_interpolation_is_a_setting() -> None:
    values = ramp(1, 2, high=0.97)
    assert "interpolation" not in found({TRAIN: values})
    assert found({TRAIN: values}, interpolation=0.95)["interpolation"].x == pytest.approx(2, abs=0.1)


def test_interpolated_from_the_start() -> None:
    assert found({TRAIN: np.ones(len(STEPS))})["interpolation"].step == 0


# Generalization

CHANCE = {"ten classes": 0.1, "two classes": 0.5}


@pytest.mark.parametrize("chance", CHANCE.values(), ids=CHANCE)
def test_generalization_whatever_the_level_of_chance(chance: float) -> None:
    curves = {TRAIN: ramp(1, 1.5, low=chance), TEST: ramp(2.5, 3, low=chance, high=0.95)}
    turns = found(curves)
    assert {*turns} == {"interpolation", "generalization", "delayed_generalization"}
    assert turns["generalization"].x == pytest.approx(2.95, abs=0.1)
    assert turns["generalization"].prominence == pytest.approx(0.95 - chance)


def test_generalization_with_the_training_is_not_delayed() -> None:
    assert {*found({TRAIN: ramp(1, 2), TEST: ramp(1.2, 2.2)})} == {"interpolation", "generalization"}


@pytest.mark.parametrize(("test_step", "delayed"), [(498, False), (500, True)])
def test_delayed_from_the_factor_on(test_step: int, delayed: bool) -> None:
    steps = np.arange(0, 5001.0)  # (499 + 1) / (99 + 1) is the factor of 5
    turns = found({TRAIN: jump(99, steps), TEST: jump(test_step, steps)}, steps)
    assert turns["generalization"].step == test_step
    assert ("delayed_generalization" in turns) == delayed


@pytest.mark.parametrize(("robust_step", "delayed"), [(498, False), (500, True)])
def test_delayed_robustness_from_the_factor_on(robust_step: int, delayed: bool) -> None:
    steps = np.arange(0, 5001.0)
    turns = found({TEST: jump(99, steps), ROBUST: jump(robust_step, steps)}, steps)
    assert turns["robustness_onset0.1"].step == robust_step
    assert ("delayed_robustness0.1" in turns) == delayed


def test_the_factor_of_a_delay_is_a_setting() -> None:
    steps = np.arange(0, 5001.0)
    curves = {TRAIN: jump(99, steps), TEST: jump(250, steps)}
    assert "delayed_generalization" not in found(curves, steps)
    assert "delayed_generalization" in found(curves, steps, delay=2.0)


@pytest.mark.parametrize("high", [0.1, 0.15, 0.4, 0.5])
def test_a_network_that_memorises_does_not_generalise(high: float) -> None:
    assert {*found({TRAIN: ramp(1, 2), TEST: ramp(1, 2, high=high)})} == {"interpolation"}


# The test accuracy is at its top for 0.2 decades only.
LATE = {"caught up": (0.95, True), "not caught up": (0.8, False)}


@pytest.mark.parametrize(("top", "known"), LATE.values(), ids=LATE)
def test_a_test_accuracy_that_has_caught_up_need_not_last(top: float, known: bool) -> None:
    end = float(np.log10(STEPS[-1] + 1))
    turns = found({TRAIN: ramp(1, 2), TEST: ramp(end - 0.8, end - 0.2, high=top)})
    assert ("generalization" in turns) == ("delayed_generalization" in turns) == known


def test_a_test_accuracy_that_rises_with_the_training_has_to_last() -> None:
    end = float(np.log10(STEPS[-1] + 1))
    assert "generalization" not in found({TRAIN: ramp(end - 0.8, end - 0.2), TEST: ramp(end - 0.8, end - 0.2)})


def test_half_of_the_rise_of_training_is_generalization() -> None:
    assert "generalization" in found({TRAIN: ramp(1, 2), TEST: ramp(1, 2, high=0.56)})


def test_a_plateau_must_last() -> None:
    values = ramp(4.0, 4.8)
    assert found({TEST: values}) == {}
    longer = np.append(STEPS, np.round(10 ** np.arange(5.1, 5.41, 0.1)))
    assert found({TEST: ramp(4.0, 4.8, steps=longer)}, longer)["generalization"].x == pytest.approx(4.72, abs=0.1)


def test_what_still_rises_has_no_plateau() -> None:
    assert found({TEST: ramp(2.5, 5.0)}) == {}


def test_a_plateau_that_collapses_was_not_for_good() -> None:
    collapsed = at((1, 0.1), (2, 1.0), (4, 1.0), (4.4, 0.1))
    turns = found({TRAIN: ramp(0.5, 1), TEST: collapsed, ROBUST: collapsed})
    assert {*turns} == {"interpolation", "robustness_loss0.1"}


def test_for_good_is_after_a_collapse_that_was_made_up_for() -> None:
    curves = {TEST: at((1, 0.1), (1.5, 0.9), (2, 0.9), (2.3, 0.3), (2.6, 0.3), (3, 0.9))}
    assert found(curves)["generalization"].x == pytest.approx(2.92, abs=0.1)


@pytest.mark.parametrize("high", [0.1, 0.19])
def test_a_rise_that_is_too_small_is_none(high: float) -> None:
    assert found({TEST: ramp(1, 2, high=high), ROBUST: ramp(1, 2, high=high)}) == {}


def test_the_smallest_rise_is_a_setting() -> None:
    assert {*found({TEST: ramp(1, 2, high=0.19)}, min_rise=0.05)} == {"generalization"}
    assert found({TEST: ramp(1, 2, high=0.5)}, min_rise=0.45) == {}


def test_the_share_of_a_plateau_is_a_setting() -> None:
    assert found({TEST: ramp(1, 3)}, plateau=0.5)["generalization"].x == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("values", [np.ones(len(STEPS)), np.zeros(len(STEPS))])
def test_what_does_not_rise_shows_nothing(values: np.ndarray) -> None:
    assert found({TEST: values, ROBUST: values}) == {}


def test_what_falls_from_the_start_shows_no_rise() -> None:
    falling = ramp(1, 2, low=1.0, high=0.1)
    assert {*found({TEST: falling, ROBUST: falling})} == {"robustness_loss0.1"}


@pytest.mark.parametrize("n", range(8))
def test_fewer_than_eight_rows_show_no_rise(n: int) -> None:
    steps = 10.0 ** np.arange(n)
    assert found({TEST: np.arange(n) / 8, ROBUST: np.arange(n) / 8}, steps) == {}


# Robustness


def test_robust_accuracy_at_train_points_is_compared_with_clean_accuracy_there() -> None:
    curves = {TRAIN: ramp(0.5, 1), TEST: ramp(3.4, 3.6), "robust_acc/train_eps0.1": ramp(3, 4)}
    turns = found(curves)
    assert turns["robustness_onset0.1"].curve == "robust_acc/train_eps0.1"
    assert TRAIN in turns["delayed_robustness0.1"].reason


def test_each_eps_has_an_onset_of_its_own() -> None:
    curves = {f"robust_acc/test_eps{eps:g}": ramp(eps, eps + 1, high=1 - eps / 5) for eps in (0.5, 1, 2.5, 4.9)}
    turns = found(curves)
    assert decades(turns) == pytest.approx({f"robustness_onset{eps:g}": eps + 0.5 for eps in (0.5, 1, 2.5)}, abs=0.1)


TRAINED = {TRAIN: ramp(0.3, 1.0), TEST: ramp(0.3, 1.0)}
LOSSES = {  # what accuracy under attack does, and where it loses a third of its peak for good
    "an early peak that loses a third": ([(0, 0.1), (0.9, 0.65), (1.2, 0.65), (2, 0.44)], 1.9),
    "all is lost": ([(1, 0.0), (2, 0.6), (3, 0.6), (3.5, 0.0)], 3.15),
    "slowly": ([(1, 0.0), (2, 0.6), (5, 0.3)], 3.9),
    "less than a third": ([(1, 0.0), (2, 0.6), (3, 0.6), (3.5, 0.46)], None),
    "won back": ([(1, 0.0), (2, 0.6), (3, 0.1), (4, 0.7)], None),
    "won back in part": ([(1, 0.0), (2, 0.6), (3, 0.1), (4, 0.5)], None),
    "too small a loss": ([(1, 0.0), (2, 0.14), (3, 0.14), (3.5, 0.05)], None),
    "high from the start": ([(0, 0.6), (2, 0.6), (3, 0.1)], 2.35),
    "chance from the start": ([(0, 0.5), (0.5, 0.5), (0.8, 0.0)], None),
    "none": ([(0, 0.0)], None),
    "rises only": ([(1, 0.0), (2, 0.6)], None),
}


@pytest.mark.parametrize("noise", [0.0, 0.01])
@pytest.mark.parametrize("name", LOSSES)
def test_a_third_of_the_peak_lost_for_good_is_a_loss_and_no_onset(name: str, noise: float) -> None:
    nodes, truth = LOSSES[name]
    rng = np.random.default_rng(0)
    clean = {key: np.ones(len(STEPS)) for key in (TRAIN, TEST)} if name == "high from the start" else TRAINED
    turns = found({**clean, ROBUST: at(*nodes) + rng.normal(0, noise, len(STEPS))})
    assert ("robustness_loss0.1" in turns) == (truth is not None)
    if truth is not None:
        assert turns["robustness_loss0.1"].x == pytest.approx(truth, abs=0.2)
        assert turns["robustness_loss0.1"].curve == ROBUST
        assert "robustness_onset0.1" not in turns


def test_each_eps_has_a_loss_of_its_own() -> None:
    held, lost = ramp(1, 2, low=0, high=0.6), at((1, 0.0), (2, 0.5), (3, 0.5), (4, 0.1))
    turns = found({**TRAINED, ROBUST: held, "robust_acc/test_eps0.3": lost})
    assert {name for name in turns if name.startswith("robust")} == {"robustness_onset0.1", "robustness_loss0.3"}
    assert re.fullmatch(r"fell from 0.5 at step \S+ to 0.1, 80% of it", turns["robustness_loss0.3"].reason)


@pytest.mark.parametrize("n", range(8))
def test_fewer_than_eight_rows_show_no_loss(n: int) -> None:
    assert found({TEST: np.ones(n), ROBUST: 1 - np.arange(n) / 8}, 10.0 ** np.arange(n)) == {}


# A second surge


def test_a_second_surge_is_multi_stage_generalization() -> None:
    turns = found({TEST: at((1, 0.1), (1.5, 0.5), (3, 0.5), (3.5, 0.95))})
    assert turns["multi_stage_generalization"].x == pytest.approx(3, abs=0.1)
    assert turns["multi_stage_generalization"].prominence == pytest.approx(0.45, abs=0.05)


ONE_STAGE = {
    "one surge": [(1, 0.1), (1.5, 0.95)],
    "hardly apart": [(1, 0.1), (1.5, 0.5), (1.7, 0.5), (2.2, 0.95)],
    "a small step": [(1, 0.1), (1.5, 0.88), (3, 0.88), (3.5, 0.95)],
    "a collapse made up for": [(1, 0.1), (1.5, 0.95), (3, 0.95), (3.2, 0.4), (3.6, 0.4), (4, 0.95)],
    "a slow rise": [(1, 0.1), (5, 0.95)],
}


@pytest.mark.parametrize("nodes", ONE_STAGE.values(), ids=ONE_STAGE)
def test_this_is_one_stage(nodes: list[tuple[float, float]]) -> None:
    assert "multi_stage_generalization" not in found({TEST: at(*nodes)})


# A batch of runs


@pytest.mark.slow
def test_generated_runs_are_dated_within_015_decades() -> None:
    rng = np.random.default_rng(0)
    scores: Counter[str] = Counter()
    for _ in range(200):
        chance = rng.choice([0.1, 0.25, 0.5])
        grid = np.arange(0, 5.01, 0.1) if rng.random() < 0.5 else np.sort(rng.uniform(0, 5, 70))
        steps = np.unique(np.append(0, np.round(10**grid)))
        start, robust = rng.uniform(1, 3), rng.uniform(1.5, 3.8)
        end, top, robust_top = start + rng.uniform(0.1, 1), rng.uniform(0.85, 1), rng.uniform(0.5, 0.8)
        curves = {
            TRAIN: ramp(0.5, 1, low=chance, steps=steps),
            TEST: ramp(start, end, low=chance, high=top, steps=steps),
            ROBUST: ramp(robust, robust + 0.6, low=0, high=robust_top, steps=steps),
        }
        measured = {key: noisy(values, rng) for key, values in curves.items()}
        measured[TEST][rng.integers(2, len(steps) - 2)] = chance  # a lone outlier
        turns = decades(found(measured, steps))
        truth = {"generalization": start + 0.9 * (end - start), "robustness_onset0.1": robust + 0.3}
        for kind, x in truth.items():
            row = np.log10(steps[np.searchsorted(np.log10(steps + 1), x)] + 1)  # the first that could show it
            scores[kind] += abs(turns.get(kind, np.inf) - row) <= 0.15
        scores["false"] += "multi_stage_generalization" in turns
    assert scores["generalization"] >= 190
    assert scores["robustness_onset0.1"] >= 190
    assert scores["false"] <= 2


@pytest.mark.slow
@pytest.mark.parametrize("chance", [0.1, 0.5, 0.9])
def test_flat_noisy_accuracies_show_nothing(chance: float) -> None:
    rng = np.random.default_rng(1)
    flat = np.full(len(STEPS), chance)
    spoke = sum(bool(found({key: noisy(flat, rng) for key in (TRAIN, TEST, ROBUST)})) for _ in range(200))
    assert spoke <= 2


# Ranks

DOUBLE_DESCENT = [(1.0, 60), (1.8, 20), (2.6, 45), (3.5, 45), (4.2, 8)]
DESCENTS = {"rank_descent": 1.0, "rank_rise": 1.8, "second_rank_descent": 3.5}


def ranks(*nodes: tuple[float, float], steps: np.ndarray = STEPS, **settings: float) -> dict[str, Turn]:
    turns = find_rank_turns("rank/3", steps, at(*nodes, steps=steps).round(), {**RANK_SETTINGS, **settings})
    assert {turn.curve for turn in turns} <= {"rank/3"}
    return {turn.kind: turn for turn in turns}


def test_rank_double_descent() -> None:
    turns = ranks(*DOUBLE_DESCENT)
    assert decades(turns) == pytest.approx(DESCENTS, abs=0.1)
    assert {kind: turn.prominence for kind, turn in turns.items()} == pytest.approx(
        {"rank_descent": 40, "rank_rise": 25, "second_rank_descent": 37}, abs=3
    )
    assert "rises by" in turns["rank_rise"].reason
    assert "falls by" in turns["second_rank_descent"].reason


def test_the_reason_says_from_where_to_where_a_rank_falls_also_if_it_begins_slowly() -> None:
    turn = ranks((0.3, 120), (2.0, 104), (2.6, 20), (4.2, 20))["rank_descent"]
    assert turn.value == pytest.approx(104, abs=3)
    by, start, end = map(
        float, re.match(r"falls by (\S+), from (\S+) to (\S+) on the fitted curve", turn.reason).groups()
    )
    assert (by, start, end) == pytest.approx((100, 120, 20), abs=3)
    assert start - end == pytest.approx(by, abs=1)


def test_a_rise_at_the_beginning_is_none_after_a_descent() -> None:
    turns = ranks((0.5, 10), (1.5, 60), (2.5, 60), (3.5, 10))
    assert decades(turns) == pytest.approx({"rank_descent": 2.5}, abs=0.1)


SHAPES = {
    "falling": ([(1, 60), (3, 10)], {"rank_descent": 1}),
    "falls twice with a rest": ([(1, 60), (2, 40), (3, 40), (4, 10)], {"rank_descent": 1}),
    "falls and rises": ([(1, 60), (2, 20), (3, 50)], {"rank_descent": 1, "rank_rise": 2}),
    "rising": ([(1, 10), (3, 60)], {}),
    "flat": ([(1, 60), (3, 60)], {}),
    "hardly moves": ([(1, 60), (3, 58)], {}),
    "moves by 8 of 177": ([(1, 177), (2, 169), (3, 177)], {"rank_descent": 1, "rank_rise": 2}),
}


@pytest.mark.parametrize("name", SHAPES)
def test_ranks_of_other_shapes(name: str) -> None:
    nodes, truth = SHAPES[name]
    assert decades(ranks(*nodes)) == pytest.approx(truth, abs=0.1)


@pytest.mark.parametrize("seed", range(5))
def test_ranks_that_waver(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = at(*DOUBLE_DESCENT).round() + rng.integers(-2, 3, len(STEPS))
    values[rng.integers(3, 48)] = 1  # a lone outlier
    turns = find_rank_turns("rank/3", STEPS, values, RANK_SETTINGS)
    assert {t.kind: t.x for t in turns} == pytest.approx(DESCENTS, abs=0.2)


def test_flat_ranks_that_waver_show_nothing() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        assert find_rank_turns("rank/3", STEPS, 40.0 + rng.integers(-2, 3, len(STEPS)), RANK_SETTINGS) == []


def test_the_settings_of_ranks_apply() -> None:
    nodes = [(1, 60), (2, 50), (3, 60)]
    assert {*ranks(*nodes)} == {"rank_descent", "rank_rise"}
    assert ranks(*nodes, min_change=0.5) == {}


def test_too_few_ranks_say_nothing() -> None:
    assert find_rank_turns("rank/3", STEPS[:7], STEPS[:7], RANK_SETTINGS) == []
    assert find_rank_turns("rank/3", np.empty(0), np.empty(0), RANK_SETTINGS) == []


# Settings


@pytest.mark.parametrize(
    ("name", "bad", "good"),
    [
        ("interpolation", (0, 1.01, -1), (0.5, 1)),
        ("min_rise", (0, 1.01, -1), (0.01, 1)),
        ("plateau", (0, 1, -1), (0.01, 0.99)),
        ("delay", (1, 0, -5), (1.01, 100)),
    ],
)
def test_settings_out_of_range_are_named(name: str, bad: tuple[float, ...], good: tuple[float, ...]) -> None:
    for value in (*bad, float("nan")):
        with pytest.raises(ValueError, match=f"`{name}`.*{value!r}"):
            check_accuracy_settings({**ACCURACY_SETTINGS, name: value})
    for value in good:
        assert check_accuracy_settings({**ACCURACY_SETTINGS, name: value})[name] == value


def test_an_unknown_setting_is_named_with_those_that_are_possible() -> None:
    with pytest.raises(ValueError, match=r"\['plateaus'\].*'plateau'"):
        check_accuracy_settings({**ACCURACY_SETTINGS, "plateaus": 0.5})


# What is not told


def unconfirmed(test: np.ndarray, train: np.ndarray | None = None) -> str:
    curves = {"clean_acc/test": test} if train is None else {"clean_acc/train": train, "clean_acc/test": test}
    placed = {key: (STEPS, values) for key, values in curves.items()}
    told = find_accuracy_milestones(placed, ACCURACY_SETTINGS)
    said = unconfirmed_generalization(placed, ACCURACY_SETTINGS)
    assert not said or "generalization" not in {turn.kind for turn in told}
    return said


MEMORISES = ramp(0.5, 1.5)


def test_a_rise_that_has_not_lasted_is_said_and_why() -> None:
    said = unconfirmed(ramp(4.2, 4.9, high=0.85), MEMORISES)
    assert said.startswith("test accuracy rose from 0.1 to 0.8")
    assert "that has to last for a factor of 2 in steps, and has for 1." in said


def test_a_rise_that_did_not_stay_is_said() -> None:
    said = unconfirmed(at((3.0, 0.1), (4.0, 0.9), (4.4, 0.9), (4.6, 0.12), (5.0, 0.12)), MEMORISES)
    assert said == "test accuracy was 0.9 once, but has not risen for good: 0.12 at the last row"


@pytest.mark.parametrize("early", [0.2, 0.3])
def test_a_rise_within_the_first_rows_has_lasted(early: float) -> None:
    assert unconfirmed(at((0, 0.68), (early, 0.9), (1, 0.97)), at((0, 0.67), (1, 0.94), (2, 1.0))) == ""


@pytest.mark.parametrize("seed", range(20))
def test_a_network_that_memorises_is_not_said_to_have_risen(seed: int) -> None:
    flat = noisy(np.full(len(STEPS), 0.1), np.random.default_rng(seed))
    assert unconfirmed(flat, MEMORISES) == ""
    assert unconfirmed(ramp(2.0, 4.9, high=0.4), MEMORISES) == ""  # less than half of the rise at train points


def test_nothing_is_said_where_generalization_is_told_or_nothing_measured() -> None:
    assert unconfirmed(ramp(3.0, 4.0), MEMORISES) == ""
    assert unconfirmed_generalization({}, ACCURACY_SETTINGS) == ""
    assert unconfirmed(MEMORISES) == ""
