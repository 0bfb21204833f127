"""A report of files that something has happened to names file and line, or leaves out what is torn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.__main__ import main
from lc_callback.callbacks import ProbeCallback
from lc_callback.reporting.figure import image
from lc_callback.reporting.run_dir import _measure_of, read_run
from lc_callback.run.timeline import Panel, RunCurves, read_events, read_rows

ROWS = "step,lc/train,lc/test,lc/seconds\n0,12.0,11.0,0.1\n10,9.5,9.0,0.1\n100,7.0,,0.1\n"
EVENT = {"at": 100, "what": "found", "kind": "first_descent_end", "step": 10, "detected_at": 100, "value": 9.5}
EVENT |= {"prominence": 3.0, "reason": "fell", "curve": "lc/train"}


def event(**changes: Any) -> str:
    return json.dumps({**EVENT, **changes}) + "\n"


def run_dir(folder: Path, rows: str | bytes = ROWS, events: str | bytes | None = None) -> Path:
    (folder / "lc").mkdir(parents=True)
    for path, text in ((folder / "lc" / "history.csv", rows), (folder / "events.jsonl", events)):
        if text is not None:
            path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    return folder


def refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exited:
        main(["report", str(folder)])
    assert exited.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert not (folder / "report.png").exists()
    return printed


BAD_ROWS: dict[str, tuple[str | bytes, str]] = {
    "a_word": (ROWS.replace("9.5", "high"), "line 3: 'high' in column 'lc/train' is no number"),
    "a_word_as_step": (ROWS.replace("100,", "last,"), "line 4: 'last' in column 'step' is no number"),
    "half_a_number": (ROWS.replace("9.5", "9.5e"), "line 3: '9.5e' in column 'lc/train'"),
    "a_cell_too_many": (ROWS.replace("9.5", "9,5"), "line 3: 5 cells for 4 columns"),
    "a_cell_too_few": (ROWS.replace("10,9.5,9.0,0.1", "10,9.5"), "line 3: 2 cells for 4 columns"),
    "bad_byte": (ROWS.encode().replace(b"9.0", b"9.\xff"), "line 3: byte 0xff is no UTF-8"),
    "bad_byte_in_the_header": (b"\xfe" + ROWS.encode(), "line 1: byte 0xfe"),
    "utf_16": (ROWS.encode("utf-16"), "line 1: byte 0xff"),
    "no_step": (ROWS.replace("step", "epoch"), "line 1: the columns must differ and have 'step'"),
    "two_columns_of_one_name": (ROWS.replace("lc/test", "lc/train"), "line 1: the columns must differ"),
    "another_separator": (ROWS.replace(",", ";"), "line 1: the columns must differ and have 'step'"),
    "steps_that_fall": (ROWS.replace("\n10,", "\n0,"), "line 3: step 0 after 0"),
    "no_step_in_a_row": (ROWS.replace("\n10,", "\n,"), "line 3: step nan after 0"),
    "steps_between": (ROWS.replace("\n10,", "\n10.5,"), "line 3: step 10.5"),
    "infinite_step": (ROWS.replace("\n10,", "\ninf,"), "line 3: step inf"),
    "negative_step": (ROWS.replace("\n0,", "\n-5,"), "line 2: step -5"),
    "an_open_quote": (ROWS.replace("9.5", '"9.5'), "line 4: "),
    "merged_by_a_tool": (ROWS.replace("\n10", "\n<<<<<<< HEAD\n10"), "line 3: 1 cells"),
    "something_else": ("<html>\n<body>\n", "line 1: the columns"),
    "zeros": (ROWS.encode()[:40] + bytes(20) + b"\n", "line 2: "),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_rows_that_are_damaged_are_an_error_with_file_and_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, says = BAD_ROWS[name]
    printed = refused(run_dir(tmp_path / "run", rows), capsys)
    assert f"{tmp_path / 'run' / 'lc' / 'history.csv'}, {says}" in printed


BAD_EVENTS: dict[str, tuple[str | bytes, str]] = {
    "no_json": (event() + "{'at': 3}\n", "line 2, is no event"),
    "half_a_line": (event()[:50] + "\n" + event(), "line 1, is no event"),
    "no_certainty": (json.dumps({**EVENT, "certainty": "sure"}) + "\n", "line 1, is no event"),
    "no_interval": (json.dumps({**EVENT, "earliest": "soon"}) + "\n", "line 1, is no event"),
    "no_flag": (json.dumps({**EVENT, "provisional": 3}) + "\n", "line 1, is no event"),
    "a_list": ("[1]\n", "line 1, is no event"),
    "a_number": (event() * 2 + "3\n", "line 3, is no event"),
    "no_kind": (json.dumps({k: v for k, v in EVENT.items() if k != "kind"}) + "\n", "line 1, is no event"),
    "another_field": (event(colour="red"), "line 1, is no event"),
    "a_word_as_step": (event(step="ten"), "line 1, is no event ('step' is 'ten')"),
    "a_broken_step": (event(step=1.5), "line 1, is no event ('step' is 1.5)"),
    "no_value": (event() + event(value=None), "line 2, is no event ('value' is None)"),
    "a_list_as_curve": (event(curve=["lc/train"]), "line 1, is no event ('curve' is ['lc/train'])"),
    "a_negative_step": (event(step=-3), "line 1, is no event"),
    "another_kind_of_event": (event(what="lost"), "line 1, is no event ('lost' at step 10)"),
    "true": (event(at=True), "line 1, is no event ('at' is True)"),
    "bad_byte": (event().encode() + b"\xff\n", "line 2: byte 0xff is no UTF-8"),
    "deep": ("[" * 100_000 + "\n", "line 1, is no event"),
    "blank": (event() + "\n" + event(), "line 2, is no event"),
}


@pytest.mark.parametrize("name", BAD_EVENTS)
def test_events_that_are_damaged_are_an_error_with_file_and_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events, says = BAD_EVENTS[name]
    printed = refused(run_dir(tmp_path / "run", events=events), capsys)
    assert f"{tmp_path / 'run' / 'events.jsonl'}, {says}" in printed


def test_folders_in_place_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lc/history.csv", "events.jsonl"):
        run = run_dir(tmp_path / name.replace("/", "_"), events=event())
        (run / name).unlink()
        (run / name).mkdir()
        assert str(run / name) in refused(run, capsys)


@pytest.mark.parametrize("number", ["inf", "-inf", "nan", "1e308", "-1e308", "1e-320"])
def test_any_number_can_be_reported(number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_dir(tmp_path / "run", ROWS.replace("9.5", number), event())
    main(["report", str(run)])
    assert "figure: " in capsys.readouterr().out
    assert (run / "report.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("rows", "steps"),
    [
        (ROWS[:-1], [0, 10]),
        (ROWS[:-4], [0, 10]),
        (ROWS + "1000,6.", [0, 10, 100]),
        (ROWS.replace("\n", "\r\n"), [0, 10, 100]),
        ("\ufeff" + ROWS, [0, 10, 100]),
        (ROWS + "\n\n", [0, 10, 100]),
        (ROWS[: ROWS.index("\n") + 1], []),
        ("step,lc/tr", []),
        ("", []),
    ],
)
def test_a_torn_end_is_left_out(rows: str, steps: list[int], tmp_path: Path) -> None:
    path = run_dir(tmp_path / "run", rows) / "lc" / "history.csv"
    assert [row["step"] for row in read_rows(path)] == steps


def test_a_torn_event_is_left_out(tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", events=event() + event()[:40])
    assert [found.at for found in read_events(run / "events.jsonl")] == [100]


@pytest.mark.parametrize("data", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n" + 99 * b"\0", None])
def test_a_timeline_that_is_damaged_is_drawn_anew(data: bytes | None, tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", events=event())
    part = RunCurves([{"step": 0, "lc/train": 1.0}], [Panel("lc", {"train": "lc/train"})], [])
    (run / "timeline.png").write_bytes(image([part])[1][:2000] if data is None else data)
    main(["report", str(run)])
    assert (run / "report.png").stat().st_size > 1000


@pytest.mark.parametrize("where", ["report.png", "own.pdf"])
def test_a_report_leaves_alone_what_a_link_leads_to(where: str, tmp_path: Path) -> None:
    run = run_dir(tmp_path / "run", events=event())
    (tmp_path / "precious").write_text("precious")
    (run / where).symlink_to(tmp_path / "precious")
    main(["report", str(run), "--output", str(run / where)])
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (run / where).is_symlink()


# Which measure wrote the rows


class StableRank(ProbeCallback):
    group = "stable_rank"


class Complexity(ProbeCallback):
    group = "c"


KNOWN = [FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback]
WRITERS = [
    ("stable_rank/seconds", [*KNOWN, StableRank], StableRank, ""),
    ("stable_rank/seconds", [StableRank, *KNOWN], StableRank, ""),
    ("a/stable_rank/seconds", [*KNOWN, StableRank], StableRank, "a/"),
    ("stable_stable_rank/seconds", [*KNOWN, StableRank], StableRank, "stable_"),
    ("rank/seconds", [StableRank, *KNOWN], FeatureRankCallback, ""),
    ("stable_rank/seconds", KNOWN, FeatureRankCallback, "stable_"),
    ("wide_lc/seconds", [Complexity, *KNOWN], LocalComplexityCallback, "wide_"),
    ("robust_acc/seconds", [Complexity, *KNOWN], PGDRobustnessCallback, ""),
    ("mine/seconds", KNOWN, None, ""),
]


@pytest.mark.parametrize(("key", "measures", "writer", "prefix"), WRITERS, ids=range(len(WRITERS)))
def test_the_longest_group_that_fits_wrote_the_rows(key: str, measures: list[Any], writer: Any, prefix: str) -> None:
    assert _measure_of([{"step": 0, f"{prefix}x": 1.0, key: 0.1}], measures) == (writer, prefix)


@pytest.mark.parametrize("group", ["stable_rank", "rank"])
def test_the_timeline_knows_the_groups_of_its_run(group: str, tmp_path: Path) -> None:
    key = "stable_rank/net.1"
    (tmp_path / "stable_rank").mkdir()
    (tmp_path / "stable_rank" / "history.csv").write_text(f"step,{key},stable_rank/seconds\n0,1.0,0.1\n1,2.0,0.1\n")
    prefix = "stable_rank/".removesuffix(f"{group}/")
    part = RunCurves([{"step": 0, key: 1.0}], [Panel("own", {"x": key})], [], prefix=prefix, group=group)
    (tmp_path / "timeline.png").write_bytes(image([part])[1])
    (found,) = read_run(tmp_path, KNOWN)
    assert (found.group, found.prefix) == (group, prefix)
    assert [panel.label for panel in found.panels] == (["own"] if group == "stable_rank" else ["feature rank (stable)"])
