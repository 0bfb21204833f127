"""The timeline of a finished run, from the files in its log directory."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from lc_callback.detection.transitions import Curves, Detector, Transition, in_order, only_supported
from lc_callback.reporting.notes import Notes
from lc_callback.run.files import safe_name
from lc_callback.run.key_panels import panels_of_keys
from lc_callback.run.timeline import MeasureSpec, RunCurves, final_transitions, panel_order, read_events, read_rows
from lc_callback.suggestions import did_you_mean

__all__ = ["read_run"]


def read_run(
    folder: Path, measures: Sequence[type[MeasureSpec]], detection: Mapping[str, float] | None = None
) -> list[RunCurves]:
    """Read what the callbacks of a run left in its log directory.

    A measure that is not among ``measures`` is one of the user's own. It has the panels that the timeline of the run
    drew, without that picture those of its keys; and the transitions that the run found.

    Args:
        folder: log directory of the run, with ``lc/history.csv`` and so on, and ``events.jsonl``.
        measures: the callbacks that may have written there.
        detection: settings of the detectors, each for those that have it: then all transitions are found anew. ``None``
            takes those that were found in the run, if there is an ``events.jsonl`` and it is not of version 0.1.

    Raises:
        ValueError: if there are no rows, or no measure of the run has such a setting.
    """
    files = [latest for sub in sorted(folder.glob("*/")) if (latest := _latest(sub, "history", "csv")) is not None]
    if not files:
        below = sorted({str(found.parent.parent) for found in folder.glob("**/history*.csv")})
        hint = f" There are some in {', '.join(below[:5])}." if below else ""
        raise ValueError(f"{folder} has no history.csv in a folder of a callback, such as lc/history.csv.{hint}")
    events = _latest(folder, "events", "jsonl")
    found_in_run = None if events is None else final_transitions(read_events(events))
    found_then = None if detection is not None else found_in_run
    notes = Notes.of_picture(folder / "timeline.png")
    parts, used, possible = [], set(), set()
    for path in files:
        rows = read_rows(path)
        measure, prefix = _measure_of(rows, measures)
        if measure is None or notes.groups.get(f"{prefix}{measure.group}/seconds", measure.group) != measure.group:
            own_part = _own_part(rows, path.parent.name, notes, found_in_run or [])
            if own_part is not None:
                parts.append((panel_order(own_part.group, own_part.prefix), notes.added_to(own_part)))
            continue
        own = {name: value for name, value in (detection or {}).items() if name in measure.detection_settings}
        used |= {*own}
        possible |= {*measure.detection_settings}
        settings = measure.checked_detection(own)
        panels = [panel.prefixed(prefix) for panel in measure.panels([key.removeprefix(prefix) for key in _keys(rows)])]
        if found_then is None:
            transitions = _detected(measure, prefix, rows, settings)
        else:
            curves = _curves(rows)
            transitions = [t for t in found_then if t.kind in measure.kinds and t.curve in curves]
            if any(t.earliest is None for t in transitions):  # of version 0.1, which graded none
                beyond = [t for t in transitions if (curves[t.curve][0] < t.step).all()]  # the rows say nothing of them
                transitions = sorted([*_detected(measure, prefix, rows, settings), *beyond], key=in_order)
        followed = [prefix + key for key in measure.followed([key.removeprefix(prefix) for key in _keys(rows)])]
        find = partial(measure.find, settings=settings)
        part = RunCurves(rows, panels, transitions, followed, prefix, settings, find, group=measure.group)
        parts.append((panel_order(measure.group, prefix), notes.added_to(part)))
    unknown = sorted({*(detection or {})} - used)
    if unknown:
        near = did_you_mean(unknown[0], possible)
        raise ValueError(f"no measure in {folder} has the settings {unknown}; possible are {sorted(possible)}{near}")
    return [part for _, part in sorted(parts, key=lambda both: both[0])]


def _own_part(rows: list[dict[str, float]], folder: str, notes: Notes, found: Sequence[Transition]) -> RunCurves | None:
    """What a measure of the user's own saw; ``None`` if no callback wrote the rows: each logs its seconds."""
    keys = _keys(rows)
    bases = [key.removesuffix("/seconds") for key in keys if key.endswith("/seconds")]
    if not bases:
        return None
    base = min(bases, key=lambda base: (safe_name(base) != folder, len(base)))  # a layer may be called `seconds`
    group = notes.groups.get(f"{base}/seconds", base)
    prefix = base.removesuffix(group)
    panels = notes.panels.get(f"{base}/seconds") or [
        panel.prefixed(prefix) for panel in panels_of_keys(group, [key.removeprefix(prefix) for key in keys])
    ]
    return RunCurves(rows, panels, [t for t in found if t.curve in keys], prefix=prefix, group=group)


def _detected(
    measure: type[MeasureSpec], prefix: str, rows: list[dict[str, float]], settings: dict[str, float]
) -> list[Transition]:
    detector = Detector(only_supported(partial(measure.find, settings=settings)), prefix)
    for row in rows:
        detector.update(int(row["step"]), {key.removeprefix(prefix): v for key, v in row.items() if key != "step"})
    detector.finish()
    return detector.transitions


def _measure_of(
    rows: list[dict[str, float]], measures: Sequence[type[MeasureSpec]]
) -> tuple[type[MeasureSpec] | None, str]:
    """The measure that wrote the rows, and its prefix, both taken from the key of its seconds."""
    for key in _keys(rows):
        own = [measure for measure in measures if key.endswith(f"{measure.group}/seconds")]
        if own:
            measure = max(own, key=lambda measure: len(measure.group))
            return measure, key.removesuffix(f"{measure.group}/seconds")
    return None, ""


def _curves(rows: list[dict[str, float]]) -> Curves:
    curves = {}
    for key in _keys(rows):
        seen = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
        steps, values = np.array(seen, np.float64).reshape(-1, 2).T
        curves[key] = steps, values
    return curves


def _keys(rows: list[dict[str, float]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row if key != "step"))


def _latest(folder: Path, stem: str, suffix: str) -> Path | None:
    """Of ``stem.suffix``, ``stem_1.suffix``, ... the last."""
    numbered = {}
    for path in folder.glob(f"{stem}*.{suffix}"):
        match = re.fullmatch(rf"{stem}(?:_(\d+))?", path.stem)
        if match:
            numbered[int(match[1] or 0)] = path
    return numbered[max(numbered)] if numbered else None
