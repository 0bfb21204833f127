"""Sentences about runs on made-up curves: each must be true of the numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from lc_callback.callbacks import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.detection.transitions import Detector, only_supported
from lc_callback.run.conclusions import PHRASES
from lc_callback.run.timeline import Panel, RunCurves, leads, run_sentences, run_summary

STEPS = np.unique(np.append(0, np.round(10 ** np.arange(0, 4.31, 0.1))))
Curves = Mapping[str, Any]
MEASURES = {
    LocalComplexityCallback: ("lc", "lc_layer"),
    PGDRobustnessCallback: ("clean_acc", "robust_acc"),
    FeatureRankCallback: ("rank",),
}


def at(*nodes: tuple[float, float]) -> np.ndarray:
    """Straight between points ``(decade, value)``, flat outside."""
    return np.interp(np.log10(STEPS + 1), *zip(*nodes, strict=True))


def parts(curves: Curves, n: int = len(STEPS), prefix: str = "") -> list[RunCurves]:
    """What the callbacks would have found in the first ``n`` rows."""
    made = []
    for measure, groups in MEASURES.items():
        own = {
            key: np.broadcast_to(values, STEPS.shape) for key, values in curves.items() if key.split("/")[0] in groups
        }
        if not own:
            continue
        rows = [{"step": STEPS[i], **{prefix + key: float(own[key][i]) for key in own}} for i in range(n)]
        settings = measure.checked_detection(None)
        find = partial(measure.find, settings=settings)
        detector = Detector(only_supported(find), prefix)
        for i, row in enumerate(rows):
            detector.update(int(row["step"]), {key: float(own[key][i]) for key in own})
        detector.finish()
        followed = [prefix + key for key in measure.followed([*own])]
        made.append(RunCurves(rows, [], detector.transitions, followed, prefix, settings, find))
    return made


def said(curves: Curves, n: int = len(STEPS)) -> list[str]:
    return run_sentences(parts(curves, n))


TRAIN, TEST, LC, RANK, ROBUST = "clean_acc/train", "clean_acc/test", "lc/train", "rank/net.3", "robust_acc/test_eps0.1"
FITTED = {TRAIN: at((0.5, 0.1), (1.5, 1.0))}
LATE = at((3.0, 0.1), (3.5, 0.95))
GROKS = {**FITTED, TEST: LATE}
PHASES = at((0, 10), (1, 3), (2.5, 16), (4, 2))

HEADLINES = {
    "groks": (
        GROKS | {LC: PHASES, ROBUST: at((3.3, 0.0), (4, 0.6)), RANK: at((0, 64), (3, 64), (4, 20)).round()},
        [
            "It grokked: the training points were interpolated at step 32, test accuracy had made 90% of its "
            "rise to 0.95 by step 3,162, 96 times later in steps; it became more robust: accuracy under "
            "attack rose to 0.6 (eps 0.1",
            "Local complexity at the train points fell from 10 at step 0 to 3",
            "region migration began at step 316; the rank of `net.3` fell from 64 at step 1,000 to 20",
        ],
    ),
    "becomes robust after it was": (
        GROKS | {ROBUST: at((0.5, 0.0), (1.3, 0.25), (1.6, 0.25), (2.6, 0.05), (3.3, 0.05), (4, 0.6))},
        ["rose to 0.6 (eps 0.1, half of the rise by step 5,012, after a fall from 0.25 to 0.0501)"],
    ),
    "becomes robust at many eps after it was at one": (
        GROKS
        | {ROBUST.replace("0.1", "0.05"): at((0.5, 0.0), (1.3, 0.5), (1.6, 0.5), (2.6, 0.1), (3.3, 0.1), (4, 0.8))}
        | {ROBUST: at((0.5, 0.0), (1.3, 0.25), (1.6, 0.25), (2.6, 0.05), (3.3, 0.05), (4, 0.6))}
        | {ROBUST.replace("0.1", "0.2"): at((3.3, 0.0), (4, 0.4))},
        ["step 3,981 to 5,012, after a fall from 0.5 to 0.1 (eps 0.05)"],
    ),
    "becomes robust in two steps": (
        GROKS | {ROBUST: at((0.5, 0.0), (1.3, 0.3), (1.9, 0.25), (3.3, 0.25), (4, 0.7))},
        ["rose to 0.7 (eps 0.1, half of the rise by step 3,162)"],
    ),
    "without delay": (
        FITTED | {TEST: at((0.4, 0.1), (1.3, 0.9))},
        ["It generalised without delay: test accuracy had made 90% of its rise to 0.9 by step 16, before the tr"],
    ),
    "a delay that is no grokking": (
        FITTED | {TEST: at((1.3, 0.1), (1.8, 0.9))},
        ["It generalised without grokking: ", " times later in steps, less than the 5 times that count as grokking"],
    ),
    "memorises": (
        FITTED | {TEST: 0.1},
        [
            "It memorised, and has not generalised so far: the training points were interpolated at step 32, test "
            "accuracy stays at 0.1."
        ],
    ),
    "memorises in part": (
        FITTED | {TEST: at((0.5, 0.1), (1.5, 0.45))},
        ["It memorised, and has not generalised so far: ", "test accuracy rose to 0.45"],
    ),
    "rises and falls": (
        FITTED | {TEST: at((1, 0.1), (2, 0.9), (3, 0.9), (3.6, 0.12))},
        ["It generalised, and lost it: test accuracy fell from 0.9 at step", "to 0.12, the training points"],
    ),
    "falls from a height": (
        {TRAIN: 1.0, TEST: at((2, 0.95), (3, 0.4))},
        ["It generalised, and lost it: test accuracy fell from 0.95 at step 0 to 0.4, the training points were inter"],
    ),
    "all accuracies fall again": (
        {
            TRAIN: at((0.5, 0.1), (1.5, 1.0), (3, 1.0), (3.5, 0.5)),
            TEST: at((0.5, 0.1), (1.5, 0.9), (3, 0.9), (3.5, 0.4)),
        },
        ["It generalised, and lost it: ", "interpolated at step 32, but are no longer (0.5 at the last row)"],
    ),
    "high from the start": (
        {TRAIN: 1.0, TEST: 0.95},
        ["It generalised from the start: test accuracy stays at 0.95, the training points were interpolated from the"],
    ),
    "rises within the first rows": (
        {TRAIN: at((0, 0.67), (1, 0.94), (2, 1.0)), TEST: at((0, 0.68), (0.3, 0.88), (0.5, 0.93), (1, 0.97))},
        ["It generalised, too early or too noisily for a marker: test accuracy rose to 0.97, the training points were"],
    ),
    "high from the start, not interpolated": (
        {TRAIN: 0.95, TEST: 0.93},
        ["Accuracy does not move: train accuracy stays at 0.95, test accuracy at 0.93."],
    ),
    "rises from a height": (
        {TRAIN: at((1, 0.8), (3, 0.97)), TEST: at((1, 0.85), (3, 0.92))},
        ["Test accuracy keeps up with train accuracy (0.92 and 0.97), the training points are not interpolated (0.97"],
    ),
    "learns nothing": ({TRAIN: 0.1, TEST: 0.11}, ["Accuracy does not move: train accuracy stays at 0.1, test"]),
    "interpolated from the start": (
        {TRAIN: 1.0, TEST: at((2.5, 0.3), (3, 0.95))},
        ["It generalised after it interpolated: the training points were interpolated from the start, test accuracy"],
    ),
    "interpolated within four rows": (
        {TRAIN: at((0, 0.1), (0.3, 1.0)), TEST: 0.1},
        ["It memorised, and has not generalised so far: the training points were interpolated by step 1, test"],
    ),
    "no test points": (
        {**FITTED, "robust_acc/train_eps0.1": 0.0},
        ["Test accuracy was not measured, so whether it generalised is not known: the training points were interpola"],
    ),
    "no train points": (
        {TEST: LATE},
        ["It generalised: test", "without accuracy at train points it is not known whether this was late."],
    ),
    "no accuracy": ({LC: 5.0}, ["Accuracy was not measured, so whether it grokked is not known. Local complexity at"]),
    "test accuracy is NaN": ({**FITTED, TEST: math.nan}, ["Test accuracy has no finite value, so whether it gen"]),
    "all is NaN": (
        {TRAIN: math.nan, LC: math.nan, RANK: math.nan},
        [
            "Accuracy has no finite value, so whether it grokked is not known. Local complexity has no finite value; "
            "the feature rank has no finite value."
        ],
    ),
    "several radii": (
        {"lc/train_r0.05": PHASES, "lc/train_r0.5": 3 * PHASES, "lc/test_r0.05": PHASES},
        ["Local complexity at the train points (r = 0.05) fell"],
    ),
    "robustness that is lost": (
        GROKS | {ROBUST: at((0, 0.1), (0.9, 0.65), (1.2, 0.65), (2, 0.44)), "robust_acc/test_eps0.3": 0.0},
        [
            "; it lost robustness: accuracy under attack fell from 0.6",
            "to 0.44 (eps 0.1); accuracy under attack stays at 0",
        ],
    ),
    "six eps": (
        GROKS | {f"robust_acc/test_eps0.{i}": at((2 + i / 4, 0), (2.5 + i / 4, 0.8 - i / 10)) for i in range(1, 7)},
        ["accuracy under attack rose to between 0.2 (eps 0.6) and 0.7 (eps 0.1), half of the rise by step 316 to 6,3"],
    ),
    "robustness that came down a little": (
        GROKS | {ROBUST: at((0.5, 0.1), (1.5, 0.935), (3, 0.935), (4.3, 0.811))},
        ["accuracy under attack rose to 0.935 (eps 0.1, half of the rise by step 8, 0.811 at the last row)"],
    ),
    "robustness without a marker that came down a little": (
        GROKS | {ROBUST: at((0, 0.36), (0.3, 0.76), (0.6, 0.94), (3, 0.94), (4.3, 0.86))},
        ["accuracy under attack rose to 0.94, 0.86 at the last row (eps 0.1)."],
    ),
    "robustness without a marker that came down less than 0.05": (
        GROKS | {ROBUST: at((0, 0.36), (0.3, 0.76), (0.6, 0.94), (3, 0.94), (4.3, 0.9))},
        ["accuracy under attack rose to 0.94 (eps 0.1)."],
    ),
    "robustness that came down less than 0.05": (
        GROKS | {ROBUST: at((0.5, 0.1), (1.5, 0.935), (3, 0.935), (4.3, 0.9))},
        ["accuracy under attack rose to 0.90", "half of the rise by step 10)."],
    ),
    "six eps that came down": (
        GROKS
        | {
            f"robust_acc/test_eps0.{i}": at((0.5, 0.1), (1.5, 1 - i / 20), (3, 1 - i / 20), (4.3, 0.9 - i / 20))
            for i in range(1, 7)
        },
        [
            "rose to between 0.7 (eps 0.6) and 0.95 (eps 0.1), half of the rise by step ",
            ", and is between 0.6 (eps 0.6) and 0.85 (eps 0.1) at the last row.",
        ],
    ),
    "six eps, none robust": (
        GROKS | {f"robust_acc/test_eps0.{i}": 0.0 for i in range(1, 7)},
        ["accuracy under attack is 0 (eps 0.1, 0.2, 0.3, 0.4, 0.5, 0.6) at the last row."],
    ),
}


@pytest.mark.parametrize("name", HEADLINES)
def test_the_first_line_answers(name: str) -> None:
    curves, fragments = HEADLINES[name]
    first = said(curves)[0]
    for fragment in fragments:
        assert fragment in first
    assert first.endswith(".")
    assert "\n" not in first


FOLLOWED = {
    "rises": ({LC: at((0, 0.7), (0.3, 0.7), (3, 5.6))}, "LC at the train points rose 8-fold, from 0.7"),
    "falls": ({LC: at((0, 5.0), (2, 1.0))}, "LC at the train points fell from 5 at step 0 to 1 at step 10"),
    "is flat": ({LC: 5.2 + 0.1 * np.sin(STEPS)}, "LC at the train points is flat: between 5.1"),
    "is flat but for a row": (
        {LC: np.where(STEPS == 63, 149.8, 6.2 + 0.1 * np.sin(STEPS))},
        ", but for 150 at step 63.",
    ),
    "wavers": ({LC: 5 + 3 * np.sin(9 * np.log10(STEPS + 1))}, "LC at the train points wavers between 2."),
    "is zero": ({LC: 0.0}, "LC at the train points is flat: at 0."),
    "a rank": ({RANK: 64.0}, "The rank of `net.3` is flat: at 64."),
    "a rank that falls at once": (
        {RANK: at((0, 64), (2, 20)).round()},
        "The rank of `net.3` fell from 64 at step 0 to 20",
    ),
    "train accuracy": (
        {TRAIN: at((1, 0.1), (2, 0.9))},
        "Train accuracy rose from 0.133 at step 10 to 0.9 at step 100: not ",
    ),
    "test accuracy": (
        FITTED | {TEST: at((0.5, 0.1), (1.5, 0.45))},
        "less than half of the rise at the train points, 0.1 to 1",
    ),
    "under attack": ({TEST: 0.5, ROBUST: 0.0}, "Accuracy under attack (eps 0.1) is flat: at 0."),
    "interpolated at once": (
        {TRAIN: 1.0},
        "(too early for a marker: the training points were interpolated from the start)",
    ),
    "NaN": ({LC: math.nan}, "LC at the train points has no finite value."),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_a_followed_curve_without_a_transition_has_a_sentence(name: str) -> None:
    curves, fragment = FOLLOWED[name]
    assert [sentence for sentence in said(curves)[1:] if fragment in sentence] != []


def test_each_followed_curve_has_a_transition_or_one_sentence() -> None:
    flat = {LC: 5.0, "lc/test": 7.0, "rank/net.1": 3.0, RANK: 64.0, ROBUST: 0.0, "robust_acc/test_eps0.3": 0.0}
    _, *others = said(GROKS | flat)
    assert [sentence.partition(" is flat")[0] for sentence in others] == [
        "LC at the train points",
        "Accuracy under attack (eps 0.1)",
        "Accuracy under attack (eps 0.3)",
        "The rank of `net.3`",
    ]


def test_lc_that_rises_and_stays_says_so_beside_its_marker() -> None:
    (first,) = said({LC: at((0, 0.7), (2, 0.7), (4, 5.6))})
    assert "rose 8-fold, from 0.7 to 5.6 at step" in first
    assert "steeply from step 100 on, and has not fallen: no migration yet." in first


@pytest.mark.parametrize("n", range(1, 8))
def test_a_run_of_few_rows_says_that_it_is_too_short(n: int) -> None:
    first, *others = said(
        {TRAIN: at((0, 0.1), (0.6, 0.8)), TEST: at((0, 0.1), (0.6, 0.6)), LC: at((0, 5), (0.6, 2))}, n
    )
    assert "too few to say whether it grokked: at the last row, train accuracy 0." in first
    assert len(others) == 3
    assert all("too few to tell a movement from noise" in sentence for sentence in others)


@pytest.mark.parametrize("n", range(8, len(STEPS) + 1))
def test_what_a_run_says_fits_what_it_found_wherever_it_ends(n: int) -> None:
    found = parts(GROKS | {LC: PHASES}, n)
    known = {t.kind for part in found for t in part.transitions if t.is_settled}
    first = run_sentences(found)[0]
    assert ("It grokked" in first) == ("delayed_generalization" in known)
    assert ("region migration began" in first) == ("migration_start" in known)
    assert ("were interpolated at step" in first) == ("interpolation" in known)


def test_what_only_the_last_row_shows_is_said() -> None:
    for n in range(8, len(STEPS) + 1):
        found = parts(GROKS, n)
        if any(t.kind == "generalization" and t.doubts == "provisional" for t in found[0].transitions):
            first, *others = run_sentences(found)
            assert first.startswith(
                "It seems to have grokked, but only the last rows show it: the training points were"
            )
            assert any(
                s.startswith("Only the last rows show that test accuracy had made most of its rise") for s in others
            )
            return
    raise AssertionError("no such row")


def test_a_prefix_is_said_only_where_there_are_two() -> None:
    near, far = parts({LC: PHASES}, prefix="near/"), parts({LC: 5.0}, prefix="far_")
    assert run_sentences(near) == said({LC: PHASES})
    first, *others = run_sentences([*near, *far])
    assert "`near`: local complexity" in first
    assert "`far`: local complexity at the train points is flat: at 5." in first
    assert others[-1] == "`far`: LC at the train points is flat: at 5."


def test_nothing_rests_on_fewer_than_four_rows() -> None:
    curves = {TRAIN: 1.0, TEST: at((0.3, 0.1), (0.5, 0.95)), RANK: at((0, 64), (2, 20)).round(), LC: at((0, 3), (3, 9))}
    found = parts(curves | {ROBUST: at((0, 0.0), (0.4, 0.6))})
    assert [t for part in found for t in part.transitions] == []
    assert leads([t for part in found for t in part.transitions]) == []


def test_the_summary_is_the_answer_then_the_curves_then_the_table() -> None:
    text = run_summary(parts(GROKS | {LC: 5.0}), ["A remark."])
    first, curves, table, remark = text.split("\n\n")
    assert first.startswith("It grokked")
    assert curves == "- LC at the train points is flat: at 5."
    assert table.startswith("| what |")
    assert remark == "A remark."


def test_parts_that_nothing_is_known_of_say_nothing() -> None:
    assert run_sentences([]) == run_sentences([RunCurves([{"step": 0, "x": 1.0}], [], [])]) == []
    assert run_summary([]) == "No transition was found."


@pytest.mark.parametrize("measure", MEASURES)
def test_every_kind_has_a_phrase(measure: Any) -> None:
    kinds: Sequence[str] = measure.kinds
    assert {*kinds} <= {*PHRASES}


def noted(curve: np.ndarray, made_by: dict[int, str], bold: np.ndarray | None = None, key: str = LC) -> list[str]:
    """The sentences of a curve with rows that layers made, and with one that is drawn boldly beside it."""
    rows = [{"step": STEPS[i], key: float(curve[i])} for i in range(len(STEPS))]
    panel = Panel("", {"net.3": key})
    if bold is not None:
        rows = [row | {"effective_rank/net.3": float(value)} for row, value in zip(rows, bold, strict=True)]
        panel = Panel("", {"net.3": "effective_rank/net.3"}, faint={"effective_rank/net.3": key})
    layers = {(key, int(STEPS[i])): layer for i, layer in made_by.items()}
    (part,) = parts({key: curve})
    return run_sentences([replace(part, rows=rows, panels=[panel], made_by=layers, transitions=[])])


@pytest.mark.parametrize(
    ("spikes", "expected"),
    [
        ({20: 90.0}, f", but for 90 at step {int(STEPS[20]):,} (`conv`), and has not fallen"),
        ({20: 90.0, 23: 80.0}, f", but for spikes at 2 of {len(STEPS)} rows (`conv`; the farthest is 90 at step "),
        ({14: 50.0, 20: 90.0, 21: 95.0}, f"spikes at 3 of {len(STEPS)} rows (`conv`; the farthest is 95 at step "),
    ],
)
def test_rows_at_which_a_layer_spikes_do_not_hide_the_course(spikes: dict[int, float], expected: str) -> None:
    curve = at((2, 4.0), (3.5, 12.0))
    for i, value in spikes.items():
        curve[i] = value
    for sentence in noted(curve, dict.fromkeys(spikes, "conv")):
        assert "rose 3-fold" in sentence
        assert expected in sentence


def test_spikes_that_are_not_far_belong_to_the_course() -> None:
    curve = at((2, 4.0), (3.5, 12.0))
    curve[20] = 14.0
    for sentence in noted(curve, {20: "conv"}):
        assert "but for" not in sentence


def test_the_effective_rank_is_said_beside_the_numerical_rank() -> None:
    said = noted(at((0, 64)), {}, at((1, 50), (3, 20)), RANK)
    expected = "the rank of `net.3` is flat: at 64 (its effective rank fell from 49.4 at step 10 to 20"
    assert all(expected in sentence.lower() for sentence in said)
    assert len(said) == 2


@pytest.mark.parametrize("seed", range(8))
def test_values_and_steps_in_sentences_are_those_of_rows(seed: int) -> None:
    rng = np.random.default_rng(seed)
    curve = at((0, 12.0), (1, 4.0), (2.5, 16.0), (4, 3.0)) * np.exp(0.08 * rng.standard_normal(len(STEPS)))
    rows = {int(step): f"{value:.3g}" for step, value in zip(STEPS, curve, strict=True)}
    (sentence,) = [text for text in said({LC: curve}) if "ocal complexity at the train points" in text]
    named = re.findall(r"([\d.]+) at step ([\d,]+\d)", sentence)
    assert len(named) >= 2
    for value, step in named:
        assert rows.get(int(step.replace(",", ""))) == value, sentence


def test_the_last_row_is_the_last_row() -> None:
    train = at((0.5, 0.1), (2, 0.9))
    train[-1] = 0.8
    assert "are not interpolated (0.8 at the last row)" in said({TRAIN: train})[0]


RISE, FLAT = at((0.5, 2.0), (1.5, 6.0)), at((0.0, 3.0))


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ({"net.1": RISE, "net.3": FLAT}, " (100% of the rise in `net.1`)"),
        ({"net.1": FLAT, "conv#1": RISE + at((0.5, 0.0), (1.5, 2.0)), "c": at((0.5, 2.0), (1.5, 0.0))}, "`conv#1`)"),
        ({"net.1": 0.85 * RISE, "net.3": FLAT + 0.15 * RISE}, " (85% of the rise in `net.1`)"),
        ({"net.1": 0.7 * RISE, "net.3": FLAT + 0.3 * RISE}, ""),
        ({"net.1": RISE + FLAT}, ""),
        ({}, ""),
    ],
)
@pytest.mark.parametrize("prefix", ["", "mine/"])
def test_a_layer_that_makes_the_rise_is_named(layers: Curves, expected: str, prefix: str) -> None:
    total = sum(layers.values()) if layers else RISE + FLAT
    made = parts({LC: total, **{f"lc_layer/train/{name}": values for name, values in layers.items()}}, prefix=prefix)
    sentence = " ".join(run_sentences(made))
    assert expected in sentence
    assert ("of the rise in" in sentence) == bool(expected)


def test_of_several_rises_it_is_the_largest() -> None:
    first, second = at((0.3, 0.0), (1.0, 3.0), (1.5, 0.0)), at((2.0, 0.0), (3.5, 8.0))
    layers = {"lc_layer/train/a": 4.0 + first, "lc_layer/train/b": second}
    text = " ".join(run_sentences(parts({LC: 4.0 + first + second, **layers})))
    assert "of the rise in `b`" in text
    assert "`a`" not in text
