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
NEAR = 0.2  # decades
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
    """For each mark: whether it is sure, its kind and step, and the turns of this kind that are near."""
    found = []
    for row in csv.DictReader((DOCS / "phases" / "by_eye.csv").open(encoding="utf-8")):
        if row["kind"]:
            turns = turns_of(row["experiment"], row["variant"], row["seed"], row["curve"])
            place = math.log10(int(row["step"]) + 1)
            near = [turn for turn in turns if turn[0] == row["kind"] and abs(math.log10(turn[1] + 1) - place) <= NEAR]
            found.append((row["sure"] == "yes", row["curve"], near))
    return found


def test_the_page_says_how_many_agree(marks):
    sure = [(curve, near) for is_sure, curve, near in marks if is_sure]
    agree = sum(bool(near) for _, near in sure)
    firm = sum(any(turn[2] == "firm" for turn in near) for _, near in sure)
    unsure = [near for is_sure, _, near in marks if not is_sure]
    said = (
        f"Of {len(sure)} sure marks {agree} ({agree / len(sure):.0%}) have a marker of their kind there, {firm} a firm "
        f"one; of {len(unsure)} unsure ones {sum(map(bool, unsure))}."
    ).replace("%", " %")
    assert said in " ".join((DOCS / "phases.md").read_text(encoding="utf-8").split())


def test_most_sure_marks_agree(marks):
    sure = [bool(near) for is_sure, _, near in marks if is_sure]
    assert len(sure) >= 20
    assert np.mean(sure) >= 0.8


def test_ranks_and_accuracies_agree(marks):
    assert all(near for is_sure, curve, near in marks if is_sure and not curve.startswith("lc/"))
