"""The detector: what rows change in the transitions that are known."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from lc_callback.callbacks import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.detection.piecewise import bins_of
from lc_callback.detection.transitions import TENTATIVE, Curves, Detector, PhaseEvent, Transition, Turn, dated

STEPS = [round(10 ** (k / 10)) for k in range(10, 31)]  # each in a bin of its own


def turn(step: int, kind: str = "bend", curve: str = "loss", value: float = 1.0) -> Turn:
    return Turn(kind, math.log10(step + 1), value, 0.5, "seen", curve)


class Scripted:
    """Shows what it is given; counts how often it is asked."""

    def __init__(self, *looks: list[Turn]) -> None:
        self.looks, self.asked = list(looks), 0
        self.curves: list[Curves] = []

    def __call__(self, curves: Curves) -> list[Turn]:
        self.asked += 1
        self.curves.append(curves)
        return self.looks[min(self.asked, len(self.looks)) - 1]


def run(*looks: list[Turn], finish: bool = False) -> tuple[Detector, list[PhaseEvent]]:
    detector = Detector(Scripted(*looks))
    events = [event for step in STEPS[: len(looks)] for event in detector.update(step, {"loss": 1.0})]
    return detector, events + (detector.finish() if finish else [])


def told(events: list[PhaseEvent]) -> list[tuple[str, int, int]]:
    return [(event.what, event.at, event.transition.step) for event in events]


# Events


def test_one_look_is_not_enough() -> None:
    detector, events = run([], [turn(10)], [], [turn(10)])
    assert events == []
    assert detector.transitions == []


def test_two_looks_find_it() -> None:
    detector, events = run([], [turn(10)], [turn(10)])
    assert told(events) == [("found", STEPS[2], 10)]
    assert events[0].transition == Transition(
        "bend", 10, STEPS[2], 1.0, 0.5, "seen", "loss", earliest=10, latest=10, provisional=True
    )
    assert detector.transitions == [events[0].transition]


def test_what_is_told_is_not_told_again() -> None:
    assert told(run(*[[turn(10)]] * 8)[1]) == [("found", STEPS[1], 10), ("confirmed", STEPS[2], 10)]


def test_a_small_move_is_no_event_and_a_large_one_is() -> None:
    _, events = run([turn(100)], [turn(100)], [turn(130)], [turn(130)], [turn(190)], [turn(190)])
    assert told(events) == [("found", STEPS[1], 100), ("confirmed", STEPS[2], 130), ("moved", STEPS[4], 190)]


def test_many_small_moves_are_told_when_they_add_up() -> None:
    _, events = run(*[[turn(step)] for step in (100, 110, 121, 133, 146, 161, 177)])
    assert told(events) == [("found", STEPS[1], 110), ("confirmed", STEPS[2], 121), ("moved", STEPS[6], 177)]


@pytest.mark.parametrize(("step", "what"), [(4, "confirmed"), (5, "moved")])
def test_two_steps_are_no_move_however_early(step: int, what: str) -> None:
    assert [event.what for event in run([turn(2)], [turn(2)], [turn(step)], [turn(step)])[1]] == ["found", what]


def test_withdrawn_as_it_was() -> None:
    detector, events = run([turn(10)], [turn(10)], [])
    assert told(events) == [("found", STEPS[1], 10), ("withdrawn", STEPS[2], 10)]
    assert events[1].transition == events[0].transition
    assert detector.transitions == []


def test_found_again_after_it_was_withdrawn() -> None:
    _, events = run([turn(10)], [turn(10)], [], [turn(10)], [turn(10)])
    assert told(events) == [("found", STEPS[1], 10), ("withdrawn", STEPS[2], 10), ("found", STEPS[4], 10)]
    assert events[-1].transition.detected_at == STEPS[4]


def test_updated_only_at_the_end() -> None:
    looks = [turn(100)], [turn(100)], [turn(100)], [turn(110, value=2.0)]
    assert len(run(*looks)[1]) == 2
    detector, events = run(*looks, finish=True)
    assert told(events) == [("found", STEPS[1], 100), ("confirmed", STEPS[2], 100), ("updated", STEPS[3], 110)]
    assert events[-1].transition == detector.transitions[0]
    assert events[-1].transition.value == 2.0


def test_kinds_and_curves_are_told_apart() -> None:
    one, other, another = turn(10), turn(20, kind="twist"), turn(30, curve="gain")
    detector, events = run([one, other, another], [another, other, one], [one, another])
    assert sorted(told(events)) == sorted(
        [("found", STEPS[1], s) for s in (10, 20, 30)]
        + [("confirmed", STEPS[2], s) for s in (10, 30)]
        + [("withdrawn", STEPS[2], 20)]
    )
    assert [t.step for t in detector.transitions] == [10, 30]


# Looks


def test_at_most_one_look_a_bin() -> None:
    script = Scripted([])
    detector = Detector(script)
    for step in range(3000):
        detector.update(step, {"loss": 0.0})
    assert script.asked == len(np.unique(bins_of(np.arange(3000.0)))) < 70


def test_rows_of_a_bin_are_seen_at_the_next_look() -> None:
    script = Scripted([])
    detector = Detector(script)
    for step in (1000, 1001, 1002, 2000):
        detector.update(step, {"loss": float(step)})
    assert [curves["loss"][0].tolist() for curves in script.curves] == [[1000], [1000, 1001, 1002, 2000]]


def test_finish_looks_at_a_last_row_that_was_not_looked_at() -> None:
    script = Scripted([turn(10)])
    detector = Detector(script)
    detector.update(1000, {"loss": 0.0})
    assert detector.update(1001, {"loss": 0.0}) == []
    assert script.asked == 1
    assert told(detector.finish()) == [("found", 1001, 10)]
    assert script.asked == 2


def test_finish_does_not_look_twice() -> None:
    script = Scripted([turn(10)])
    detector = Detector(script)
    detector.update(1000, {"loss": 0.0})
    assert told(detector.finish()) == [("found", 1000, 10)]
    assert detector.transitions[0].provisional  # a second look at the same row confirms nothing
    assert script.asked == 1


def test_finish_without_rows() -> None:
    assert Detector(Scripted([turn(10)])).finish() == []


def test_what_the_last_row_shows_is_told_and_provisional() -> None:
    for n in range(1, 5):
        detector, events = run(*[[]] * (5 - n), *[[turn(10)]] * n, finish=True)
        assert [event.what for event in events] == (["found"] if n < 3 else ["found", "confirmed"])
        assert [t.provisional for t in detector.transitions] == [n < 3]
        assert events[0].at == STEPS[4 if n == 1 else 6 - n]


def test_finishing_is_no_look_of_a_run_that_goes_on() -> None:
    detector = Detector(lambda curves: [turn(10)] if curves["loss"][0][-1] > 1000 else [])
    for step in (1000, 1001):
        detector.update(step, {"loss": 0.0})
    assert told(detector.finish()) == [("found", 1001, 10)]
    for step in (2000, 3000):  # neither taken back nor told again
        assert detector.update(step, {"loss": 0.0}) == []
        assert detector.transitions[0].provisional
    assert told(detector.update(4000, {"loss": 0.0})) == [("confirmed", 4000, 10)]


# How sure


def unsure(step: int) -> Turn:
    return replace(turn(step), certainty=TENTATIVE)


@pytest.mark.parametrize(
    ("looks", "whats"),
    [
        ([10, 10, 10], ["found", "confirmed"]),
        ([-10, -10, -10, -10], ["found"]),  # tentative throughout
        ([-10, -10, 10, 10], ["found"]),  # firm, in two looks
        ([-10, -10, 10, 10, 10], ["found", "confirmed"]),
        ([10, 10, 10, *[-10] * 3], ["found", "confirmed"]),
        ([10, 10, 10, *[-10] * 3, 10, *[-10] * 3], ["found", "confirmed"]),
        ([10, 10, 10, *[-10] * 5], ["found", "confirmed", "doubted"]),
        ([10, 10, 10, *[-10] * 5, 10, 10], ["found", "confirmed", "doubted"]),
        ([10, 10, 10, *[-10] * 5, 10, 10, 10], ["found", "confirmed", "doubted", "confirmed"]),
        ([10, 10, -10, -10], ["found"]),  # it was never told to be sure
        ([10, 10, 10, 100, 100, 100], ["found", "confirmed", "moved", "confirmed"]),
        ([10, 10, 10, 0], ["found", "confirmed", "withdrawn"]),
        ([110, 110, -120, -130, 140, 141, 156], ["found", "moved", "confirmed"]),  # at the same look
    ],
)
def test_three_firm_looks_confirm_a_transition_and_five_others_doubt_it(looks: list[int], whats: list[str]) -> None:
    seen = [[] if step == 0 else [turn(step)] if step > 0 else [unsure(-step)] for step in looks]
    assert [event.what for event in run(*seen)[1]] == whats


def test_what_keeps_a_transition_from_being_settled_is_said() -> None:
    for looks, doubts in (
        ([turn(10)] * 3, ""),
        ([turn(10)] * 2, "provisional"),
        ([unsure(10)] * 3, "tentative"),
        ([unsure(10)] * 2, "tentative, provisional"),
    ):
        (found,) = run(*[[look] for look in looks])[0].transitions
        assert (found.doubts, found.is_settled) == (doubts, not doubts)
        assert repr(found).endswith(f", {doubts})" if doubts else "value=1)")


def test_the_interval_is_in_steps_and_holds_the_step() -> None:
    wide = replace(turn(100), low=math.log10(81), high=math.log10(151), noise="noise of 1")
    (found,) = run([wide], [wide])[0].transitions
    assert (found.interval, found.noise) == ((80, 150), "noise of 1")
    assert Transition("bend", 10, 20, 1.0, 1.0, "").interval == (10, 10)


# Rows


def test_values_that_are_not_finite_are_left_out_of_their_curve_only() -> None:
    script = Scripted([])
    detector = Detector(script)
    detector.update(10, {"loss": 1.0, "gain": math.nan})
    detector.update(20, {"loss": math.inf, "gain": 2.0})
    detector.update(40, {"gain": 3.0})
    detector.update(80, {"loss": 4.0, "late": 5.0})
    curves = {key: (steps.tolist(), values.tolist()) for key, (steps, values) in script.curves[-1].items()}
    assert curves == {"loss": ([10, 80], [1, 4]), "gain": ([20, 40], [2, 3]), "late": ([80], [5])}


@pytest.mark.parametrize("steps", [(3, 3), (3, 2), (-1,)])
def test_steps_must_increase(steps: tuple[int, ...]) -> None:
    detector = Detector(Scripted([]))
    for step in steps[:-1]:
        detector.update(step, {})
    with pytest.raises(ValueError, match="must increase"):
        detector.update(steps[-1], {})


def test_the_prefix_stands_before_the_curve_and_is_not_shown_to_find() -> None:
    script = Scripted([turn(10), turn(20, kind="twist", curve="")])
    detector = Detector(script, "wide_")
    for step in STEPS[:2]:
        detector.update(step, {"loss": 1.0})
    assert {*script.curves[-1]} == {"loss"}
    assert [(t.kind, t.curve) for t in detector.transitions] == [("bend", "wide_loss"), ("twist", "")]


def test_clear_forgets_all() -> None:
    detector, _ = run([turn(10)], [turn(10)])
    detector.clear()
    assert detector.transitions == []
    assert detector.curves == {}
    assert told(detector.update(0, {"loss": 1.0})) == []
    assert told(detector.update(5, {"loss": 1.0})) == [("found", 5, 10)]


# Dates


@pytest.mark.parametrize(
    ("seen", "step", "detected_at"),
    [
        ([100, 100], 100, 2),
        ([100, 100, 100], 100, 2),  # known from the second on
        ([100, 120, 100], 100, 2),
        ([None, 100, 100, 100], 100, 3),
        ([100, 100, None, 100, 100], 100, 5),  # not borne out in between
        ([100, 100, 200], 200, 3),  # known before, but not where
        ([100, 100, 200, 200], 200, 4),
        ([200, 100, 200, 200, 200], 200, 4),
    ],
)
def test_known_from_the_second_look_that_saw_it_there(seen: list[int | None], step: int, detected_at: int) -> None:
    looks = [(k, [] if at is None else [turn(at)]) for k, at in enumerate(seen, start=1)]
    assert [(t.step, t.detected_at) for t in dated(looks)] == [(step, detected_at)]


@pytest.mark.parametrize("seen", [[100], [100, None], [None, 100], [100, None, 100]])
def test_unknown_with_less_than_two_looks_in_succession(seen: list[int | None]) -> None:
    assert dated([(k, [] if at is None else [turn(at)]) for k, at in enumerate(seen, start=1)]) == []


def test_transitions_are_in_the_order_of_their_steps() -> None:
    turns = [turn(300), turn(20, kind="twist"), turn(100, curve="gain")]
    assert [t.step for t in dated([(1, turns), (2, turns)])] == [20, 100, 300]


def test_the_step_of_a_turn_is_a_whole_number() -> None:
    for step in (0, 1, 7, 999, 123_456):
        assert turn(step).step == step


# State


def rows(kind: str) -> list[tuple[int, dict[str, float]]]:
    """What the callback of that kind would see in a run with all phases, some rows broken."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for k in range(46):
        x, noise = k / 10, 0.02 * torch.rand(3, generator=generator)
        falls_rises_falls = 4 - x if x < 1.5 else 2.5 + 2 * (x - 1.5) if x < 2.5 else max(0.5, 4.5 - 3 * (x - 2.5))
        accuracy = [min(max(0.1 + 0.9 * (x - start) / 0.4, 0.1), 1.0) for start in (0.8, 2.2, 3.0)]
        values = {
            "lc": {"lc/train": falls_rises_falls + float(noise[0])},
            "robust_acc": {
                "clean_acc/train": accuracy[0],
                "clean_acc/test": accuracy[1] - float(noise[1]),
                "robust_acc/test_eps0.1": 0.7 * accuracy[2] + float(noise[2]),
            },
            "rank": {"rank/1": 20.0, "rank/3": round(10 * falls_rises_falls)},
        }[kind]
        if k in (7, 21):
            values = dict.fromkeys(values, math.nan)
        if k == 30:
            values.popitem()
        found.append((round(10**x) + k, values))
    return found


MEASURES = {kind.group: kind for kind in (LocalComplexityCallback, PGDRobustnessCallback, FeatureRankCallback)}


def detector_of(group: str, known: dict[str, list[Turn]]) -> Detector:
    """The same curves are looked at once."""
    kind = MEASURES[group]

    def find(curves: Curves) -> list[Turn]:
        key = repr([(name, at.tolist(), values.tolist()) for name, (at, values) in curves.items()])
        if key not in known:
            known[key] = kind.find(curves, kind.detection_settings)
        return known[key]

    return Detector(find, "b/")


def plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    return all(map(plain, value)) if type(value) is list else type(value) in (str, int, float, bool)


@pytest.mark.parametrize("group", MEASURES)
def test_a_detector_restored_after_any_row_goes_on_as_if_never_interrupted(group: str) -> None:
    every = rows(group)
    known: dict[str, list[Turn]] = {}
    whole, states, after = detector_of(group, known), [], []
    for step, row in every:
        after.append(whole.update(step, row))
        states.append(whole.state())
    after.append(whole.finish())
    assert sum(map(len, after)) >= 2
    for n, state in enumerate(states, start=1):
        assert plain(state)
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        loaded = torch.load(file, weights_only=True)
        assert loaded == json.loads(json.dumps(state)) == state
        resumed = detector_of(group, known)
        resumed.restore(loaded, every[:n])
        assert resumed.state() == state
        assert [*(resumed.update(*row) for row in every[n:]), resumed.finish()] == after[n:]
        assert resumed.transitions == whole.transitions != []


def test_a_state_is_a_copy() -> None:
    detector, _ = run([turn(10)], [turn(10)])
    state = detector.state()
    before = json.dumps(state)
    detector.update(5000, {"loss": 1.0})
    detector.finish()
    assert json.dumps(state) == before


def test_restoring_forgets_what_was_before() -> None:
    detector, _ = run([turn(10)], [turn(10)], [turn(10)])
    detector.restore(Detector(Scripted([])).state(), [])
    assert detector.transitions == []
    assert detector.update(0, {"loss": 1.0}) == []
