"""Curves of real runs that were marked by eye before the detector was asked: docs/phases.md says how many agree."""

import csv
import functools
import math
from pathlib import Path

import numpy as np
import pytest
from sweep import read_results
from sweeps.columns import curve

from lc_callback.detection.milestones import (
    ACCURACY_SETTINGS,
    RANK_SETTINGS,
    find_accuracy_milestones,
    find_rank_turns,
)
from lc_callback.detection.phases import PHASE_SETTINGS, find_phases
from lc_callback.detection.transitions import supported

DOCS = Path(__file__).parents[2] / "docs"
NEAR = 0.2005  # decades: two rows, whose steps are rounded
#: A milestone that is late as well has a name of its own.
PLAIN = {"delayed_generalization": "generalization", "delayed_robustness": "robustness_onset"}


def curves_of(experiment, variant, seed):
    rows = read_results(DOCS / "results" / f"{experiment}.csv")[variant][int(seed)]
    return {key: curve(rows, key) for key in {key for row in rows for key in row} - {"step"}}


@functools.cache
def turns_of(experiment, variant, seed, key):
    """The turns of one curve of a run, each with the name that a reader of this curve alone gives it."""
    curves = curves_of(experiment, variant, seed)
    if "acc" in key:
        curves = {name: curve for name, curve in curves.items() if "acc" in name}
        turns = find_accuracy_milestones(curves, ACCURACY_SETTINGS)
    elif "rank" in key:
        turns = find_rank_turns(key, *curves[key], RANK_SETTINGS)
    else:
        turns = find_phases(*curves[key], PHASE_SETTINGS, key)
    return [
        (PLAIN.get(turn.kind, turn.kind), turn.step, turn.certainty)
        for turn in supported(turns, curves)
        if turn.curve == key
    ]


@pytest.fixture(scope="module")
def marks():
    """For each mark: its reader, whether it is sure, its curve, and the turns of this kind that are near."""
    found = []
    for row in csv.DictReader((DOCS / "phases" / "by_eye.csv").open(encoding="utf-8")):
        if row["kind"]:
            turns = turns_of(row["experiment"], row["variant"], row["seed"], row["curve"])
            place = math.log10(int(row["step"]) + 1)
            near = [turn for turn in turns if turn[0] == row["kind"] and abs(math.log10(turn[1] + 1) - place) <= NEAR]
            found.append((row["reader"], row["sure"] == "yes", row["curve"], near))
    return found


def test_the_page_says_how_many_agree(marks):
    page = (DOCS / "phases.md").read_text(encoding="utf-8")
    for reader in sorted({mark[0] for mark in marks}):
        sure, unsure = (
            [near for by, is_sure, _, near in marks if by == reader and is_sure == wanted] for wanted in (True, False)
        )
        agree, firm = sum(map(bool, sure)), sum(any(turn[2] == "firm" for turn in near) for near in sure)
        assert (
            f"| {reader} | {agree} of {len(sure)}, {agree / len(sure):.0%} | {firm} | "
            f"{sum(map(bool, unsure))} of {len(unsure)} |"
        ).replace("%", " %") in page


def test_nine_of_ten_sure_marks_agree(marks):
    sure = [bool(near) for _, is_sure, _, near in marks if is_sure]
    assert len(sure) >= 80
    assert np.mean(sure) >= 0.9


def test_ranks_and_accuracies_agree(marks):
    assert all(near for _, is_sure, curve, near in marks if is_sure and not curve.startswith("lc/"))


ROUND = {  # of smooth tops and valleys the row that is highest or lowest, which a fit of straight pieces misses
    ("weight_decay", "decay 0", 3, "migration_start"): 2512,
    ("weight_decay", "decay 1e-4", 1, "migration_start"): 1995,
    ("weight_decay", "decay 0", 1, "migration_start"): 1995,
    ("data_size", "1000 images", 1, "first_descent_end"): 25,
}


@pytest.mark.parametrize("place", ROUND, ids=lambda place: " ".join(map(str, place)))
def test_round_tops_and_valleys_are_dated_where_they_are(place):
    *run, kind = place
    (turn,) = [turn for turn in turns_of(*run, "lc/train") if turn[0] == kind]
    assert abs(math.log10((turn[1] + 1) / (ROUND[place] + 1))) <= 0.11
