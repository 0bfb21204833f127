"""What is reported of a run: the file of its events, leads, texts, panels."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lc_callback.detection.transitions import PhaseEvent, Transition, Turn, dated
from lc_callback.run.timeline import (
    EventsFile,
    Panel,
    describe,
    final_transitions,
    leads,
    read_events,
    read_rows,
    summary,
)


def transition(kind: str, step: int, curve: str = "lc/train", **changes: Any) -> Transition:
    return replace(Transition(kind, step, 2 * step, 1.5, 0.1 + 0.2, 'fell by 3.5, to "1.5"', curve), **changes)


def event(what: str, at: int, kind: str = "migration_start", step: int = 10, **changes: Any) -> PhaseEvent:
    return PhaseEvent(what, at, transition(kind, step, **changes))


EVENTS = [
    event("found", 20, "first_descent_end", 5),
    event("found", 100, "migration_start", 40),
    event("moved", 200, "migration_start", 90),
    event("found", 300, "robustness_onset", 150, curve="robust_acc/test_eps0.1"),
    event("found", 300, "robustness_onset", 160, curve="robust_acc/test_eps0.3"),
    event("withdrawn", 400, "robustness_onset", 160, curve="robust_acc/test_eps0.3"),
    event("updated", 500, "first_descent_end", 6),
]


# events.jsonl


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_events_go_through_the_file(tmp_path: Path) -> None:
    file = EventsFile(tmp_path, [], resumed=False)
    for one in EVENTS:
        file.append([one])
    assert read_events(file.path) == EVENTS
    assert names(tmp_path) == ["events.jsonl"]


def test_a_line_for_each_event_on_disk_at_once(tmp_path: Path) -> None:
    file = EventsFile(tmp_path, [], resumed=False)
    file.append(EVENTS[:2])
    file.append(EVENTS[2:3])
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [(line["at"], line["what"], line["kind"]) for line in lines] == [
        (20, "found", "first_descent_end"),
        (100, "found", "migration_start"),
        (200, "moved", "migration_start"),
    ]
    assert {*lines[0]} == {"at", "what", *Transition.__dataclass_fields__}


def test_no_file_without_events(tmp_path: Path) -> None:
    EventsFile(tmp_path / "logs", [], resumed=False)
    assert names(tmp_path) == []


def test_the_folder_is_made(tmp_path: Path) -> None:
    EventsFile(tmp_path / "a" / "b", [], resumed=False).append(EVENTS[:1])
    assert read_events(tmp_path / "a" / "b" / "events.jsonl") == EVENTS[:1]


@pytest.mark.parametrize("n", [1, 3, len(EVENTS)])
def test_a_resumed_run_goes_on_in_its_own_file_from_its_checkpoint(tmp_path: Path, n: int) -> None:
    EventsFile(tmp_path, [], resumed=False).append(EVENTS)
    file = EventsFile(tmp_path, EVENTS[:n], resumed=True)
    assert read_events(file.path) == EVENTS[:n]
    again = event("found", 250, "migration_end", 70)
    file.append([again])
    assert read_events(file.path) == [*EVENTS[:n], again]
    assert names(tmp_path) == ["events.jsonl"]


def test_a_resumed_run_takes_its_events_to_another_folder(tmp_path: Path) -> None:
    EventsFile(tmp_path / "new", EVENTS[:2], resumed=True)
    assert read_events(tmp_path / "new" / "events.jsonl") == EVENTS[:2]


def test_a_file_of_another_run_is_never_overwritten(tmp_path: Path) -> None:
    EventsFile(tmp_path, [], resumed=False).append(EVENTS)
    before = (tmp_path / "events.jsonl").read_bytes()
    EventsFile(tmp_path, [], resumed=False).append(EVENTS[:2])
    EventsFile(tmp_path, [event("found", 7)], resumed=True).append(EVENTS[:1])
    assert (tmp_path / "events.jsonl").read_bytes() == before
    assert read_events(tmp_path / "events_1.jsonl") == EVENTS[:2]
    assert read_events(tmp_path / "events_2.jsonl") == [event("found", 7), EVENTS[0]]


def test_a_resumed_run_without_events_takes_no_file_that_had_some_by_then(tmp_path: Path) -> None:
    EventsFile(tmp_path, [], resumed=False).append(EVENTS)
    EventsFile(tmp_path, [], resumed=True, step=50).append([event("found", 80)])
    assert read_events(tmp_path / "events.jsonl") == EVENTS
    assert read_events(tmp_path / "events_1.jsonl") == [event("found", 80)]


def test_a_resumed_run_without_events_goes_on_in_a_file_that_had_none_by_then(tmp_path: Path) -> None:
    EventsFile(tmp_path, [], resumed=False).append(EVENTS)
    assert EventsFile(tmp_path, [], resumed=True, step=10).path.name == "events.jsonl"
    assert read_events(tmp_path / "events.jsonl") == []


def test_a_resumed_run_finds_its_own_file_among_others(tmp_path: Path) -> None:
    EventsFile(tmp_path, [], resumed=False).append([event("found", 7)])
    EventsFile(tmp_path, [], resumed=False).append(EVENTS)
    file = EventsFile(tmp_path, EVENTS[:3], resumed=True)
    assert file.path.name == "events_1.jsonl"
    assert read_events(tmp_path / "events.jsonl") == [event("found", 7)]


def test_a_write_that_failed_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = EventsFile(tmp_path, [], resumed=False)
    file.append(EVENTS[:1])
    with monkeypatch.context() as patch:

        def full(path: Path, mode: str = "r", **kwargs: Any) -> Any:
            with open(path, mode, **kwargs) as torn:
                torn.write('{"at": 1')
            raise OSError("disk full")

        patch.setattr(Path, "open", full)
        with pytest.raises(OSError, match="full"):
            file.append(EVENTS[1:2])
    assert file.path.read_text().endswith('{"at": 1')
    file.append(EVENTS[2:3])
    assert read_events(file.path) == EVENTS[:3]


def test_a_line_torn_by_a_kill_is_cut_on_resume(tmp_path: Path) -> None:
    EventsFile(tmp_path, [], resumed=False).append(EVENTS)
    path = tmp_path / "events.jsonl"
    path.write_text(path.read_text()[:-20])
    EventsFile(tmp_path, EVENTS[:4], resumed=True)
    assert read_events(path) == EVENTS[:4]


def test_a_file_that_was_removed_comes_back_whole(tmp_path: Path) -> None:
    file = EventsFile(tmp_path, [], resumed=False)
    file.append(EVENTS[:2])
    file.path.unlink()
    file.append(EVENTS[2:])
    assert read_events(file.path) == EVENTS


def test_events_of_the_caller_are_not_touched(tmp_path: Path) -> None:
    own = EVENTS[:1]
    EventsFile(tmp_path, own, resumed=True).append(EVENTS[1:])
    assert own == EVENTS[:1]


# What is known at the end


def test_what_is_known_after_all_events() -> None:
    known = [(t.kind, t.step, t.curve) for t in final_transitions(EVENTS)]
    assert known == [
        ("first_descent_end", 6, "lc/train"),
        ("migration_start", 90, "lc/train"),
        ("robustness_onset", 150, "robust_acc/test_eps0.1"),
    ]
    assert final_transitions([]) == []


def test_what_happened_at_one_step_is_listed_in_one_order() -> None:
    kinds = ("robustness_onset", "generalization", "delayed_generalization")
    events = [event("found", 20, kind, 10) for kind in kinds]
    turns = [Turn(kind, math.log10(11), 1.0, 1.0, "", "lc/train") for kind in kinds]
    orders = [[t.kind for t in final_transitions(told)] for told in (events, events[::-1])]
    assert orders[0] == orders[1] == [t.kind for t in dated([(1, turns), (2, turns)])]


def test_rows_of_a_csv_lack_what_is_empty_and_keep_nan(tmp_path: Path) -> None:
    path = tmp_path / "history.csv"
    path.write_text("step,a,b\n0,1.5,\n10,,nan\n")
    first, second = read_rows(path)
    assert first == {"step": 0, "a": 1.5}
    assert [*second] == ["step", "b"]
    assert math.isnan(second["b"])


# Leads


def test_a_lead_before() -> None:
    (said,) = leads([transition("migration_start", 900), transition("generalization", 4000, "clean_acc/test")])
    assert said == (
        "region migration began 3,100 steps before test accuracy had made most of its rise (step 900 and step 4,000)"
    )


def test_a_lead_after() -> None:
    (said,) = leads([transition("generalization", 400, "clean_acc/test"), transition("migration_start", 1900)])
    assert said.startswith(
        "region migration began 1,500 steps after test accuracy had made most of its rise (step 1,900 "
    )


def test_a_lead_at_the_same_step() -> None:
    (said,) = leads([transition("migration_start", 30), transition("generalization", 30, "clean_acc/test")])
    assert said.startswith("region migration began at the same step as test accuracy had made")


def test_a_lead_over_each_eps() -> None:
    onsets = [transition("robustness_onset", 100 * k, f"robust_acc/test_eps0.{k}") for k in (2, 3)]
    assert leads([transition("migration_start", 50), *onsets]) == [
        "region migration began 150 steps before accuracy under attack (eps 0.2) had made half of its rise "
        "(step 50 and step 200)",
        "region migration began 250 steps before accuracy under attack (eps 0.3) had made half of its rise "
        "(step 50 and step 300)",
    ]


def test_leads_of_ranks_name_the_layer() -> None:
    curve = {"curve": "clean_acc/test"}
    said = leads(
        [
            transition("rank_descent", 10, "rank/net.3"),
            transition("generalization", 20, **curve),
            transition("second_rank_descent", 50, "rank/net.3"),
            transition("multi_stage_generalization", 40, **curve),
        ]
    )
    assert said == [
        "the feature rank began to fall (`rank/net.3`) 10 steps before test accuracy had made most of its rise "
        "(step 10 and step 20)",
        "the feature rank began to fall again (`rank/net.3`) 10 steps after a second surge of test accuracy began "
        "(step 50 and step 40)",
    ]


def test_what_predicts_nothing_leads_nothing() -> None:
    kinds = ("first_descent_end", "migration_end", "interpolation", "generalization", "rank_rise")
    assert leads([transition(kind, step) for step, kind in enumerate(kinds)]) == []
    assert leads([]) == []


# Texts


@pytest.mark.parametrize(
    ("what", "said"),
    [("found", "migration_start"), ("moved", "moved"), ("updated", "at the end"), ("withdrawn", "withdrawn")],
)
def test_an_event_is_described_in_a_line(what: str, said: str) -> None:
    line = describe(event(what, 25_000, "migration_start", 12_000))
    assert "\n" not in line
    for part in ("**migration_start**", said, "`lc/train`", "step 12,000", "step 25,000"):
        assert part in line
    assert ('fell by 3.5, to "1.5"' in line) == (what != "withdrawn")


def test_the_summary_is_a_table_by_step_and_the_leads() -> None:
    text = summary([transition("generalization", 4000, "clean_acc/test"), transition("migration_start", 900)])
    lines = text.splitlines()
    assert lines[0].count("|") == lines[1].count("|") == 7
    assert lines[2] == '| migration_start | lc/train | 900 | 1,800 | firm | fell by 3.5, to "1.5" |'
    assert lines[3].startswith("| generalization | clean_acc/test | 4,000 | 8,000 |")
    assert lines[4] == ""
    assert lines[5].startswith("- region migration began 3,100 steps before")
    assert len(lines) == 6


def test_a_summary_without_leads_ends_with_the_table() -> None:
    assert summary([transition("rank_rise", 5)]).splitlines()[-1].startswith("| rank_rise |")


def test_a_summary_of_nothing_says_so() -> None:
    assert summary([]) == "No transition was found."


# Panels


def test_a_panel_with_a_prefix() -> None:
    panel = Panel("complexity", {"train": "lc/train"}, ("red",), {"lc/train": "lc_ci99/train"}, (0, None))
    assert panel.prefixed("deep/") == Panel(
        "complexity (deep)", {"train": "deep/lc/train"}, ("red",), {"deep/lc/train": "deep/lc_ci99/train"}, (0, None)
    )


def test_a_panel_without_a_prefix_is_the_same() -> None:
    panel = Panel("complexity", {"train": "lc/train"}, bands={"lc/train": "lc_ci99/train"})
    assert panel.prefixed("") == panel
