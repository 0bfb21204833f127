"""One run as several measures saw it: their curves and transitions, and which came before which."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np

from lc_callback.detection.outliers import layers_at
from lc_callback.detection.transitions import (
    FIRM,
    TENTATIVE,
    WHATS,
    Curves,
    Find,
    PhaseEvent,
    Transition,
    Turn,
    in_order,
)
from lc_callback.run.conclusions import Followed, curve_sentences, headline, phrase_of
from lc_callback.run.files import LineFile
from lc_callback.run.seams import is_at_radius, rows_at_one_radius, seams

__all__ = [
    "EventsFile",
    "MeasureSpec",
    "Panel",
    "RunCurves",
    "describe",
    "event_fields",
    "final_transitions",
    "leads",
    "marked",
    "panel_order",
    "place",
    "read_events",
    "read_rows",
    "run_sentences",
    "run_summary",
    "spaced",
    "summary",
]

# Panels of the timeline from above; those of other measures are below.
_ORDER = ("lc", "robust_acc", "rank")

# What the papers say comes after what.
_PREDICTS = {
    "migration_start": ("generalization", "robustness_onset"),
    "rank_descent": ("generalization",),
    "second_rank_descent": ("multi_stage_generalization",),
}


@dataclass(frozen=True)
class Panel:
    """Curves that are drawn over each other.

    Attributes:
        label: of the vertical axis.
        lines: key of each curve by its name in the legend.
        colours: of the curves, in their order.
        bands: key of the half width of a band round a curve, by the curve's key.
        limits: of the vertical axis.
        faint: key of a thin, pale curve in the same colour, by the curve's key.
        faint_name: what the pale curves are, for the legend.
        strong: key of the curve that is drawn thicker than the others.
        caption: what stands under the panel: what the curves and bands are.
    """

    label: str
    lines: dict[str, str]
    colours: Sequence[str] = ("#009E73", "#E69F00", "#0072B2", "#CC79A7", "#D55E00", "#56B4E9")  # of Okabe and Ito
    bands: dict[str, str] = field(default_factory=dict)
    limits: tuple[float | None, float | None] = (None, None)
    faint: dict[str, str] = field(default_factory=dict)
    faint_name: str = ""
    strong: str = ""
    caption: str = ""

    @property
    def keys(self) -> list[str]:
        """Of all curves, the faint ones too."""
        return [*self.lines.values(), *self.faint.values()]

    def colour_of(self, key: str) -> str | None:
        """The colour of a curve; ``None`` if it is not in the panel."""
        for i, line in enumerate(self.lines.values()):
            if key in (line, self.faint.get(line)):
                return self.colours[i % len(self.colours)]
        return None

    def prefixed(self, prefix: str) -> Panel:
        """The same for keys with a prefix."""
        return replace(
            self,
            label=f"{self.label} ({prefix.strip('/_-. ')})" if prefix else self.label,
            lines={name: prefix + key for name, key in self.lines.items()},
            bands={prefix + key: prefix + band for key, band in self.bands.items()},
            faint={prefix + key: prefix + pale for key, pale in self.faint.items()},
            strong=prefix + self.strong if self.strong else "",
        )


def spaced(scale: Sequence[str], n: int) -> list[str]:
    """``n`` colours of a scale of hexadecimal ones, from its first to its last; the last if it is one.

    Example::

        >>> from lc_callback.run.timeline import spaced
        >>> spaced(["#000000", "#ff0000"], 3)
        ['#000000', '#800000', '#ff0000']
    """
    stops = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in scale]
    colours = []
    for k in range(n):
        at = (len(stops) - 1) * (k / (n - 1) if n > 1 else 1)
        i = min(int(at), len(stops) - 2)
        mixed = [round(a + (at - i) * (b - a)) for a, b in zip(stops[i], stops[i + 1], strict=True)]
        colours.append("#" + "".join(f"{value:02x}" for value in mixed))
    return colours


@dataclass(frozen=True)
class RunCurves:
    """What one measure saw.

    Attributes:
        rows: in the order of their steps; each has a ``"step"``.
        panels: how to draw them.
        transitions: what was found in them.
        followed: the keys that its markers are about; each gets a sentence if it has no marker.
        prefix: of its keys.
        settings: of its detector.
        find: what rows show, by keys without the prefix.
        model: what was measured, such as ``"LitCNN"``.
        made_by: the layer that made a row which stands out, by curve and step, as far as it is known.
        group: of the measure.
    """

    rows: Sequence[dict[str, float]]
    panels: Sequence[Panel]
    transitions: Sequence[Transition]
    followed: Sequence[str] = ()
    prefix: str = ""
    settings: Mapping[str, float] = field(default_factory=dict)
    find: Find | None = None

    def seen(self) -> Followed:
        """What sentences are made of."""
        bold = {pale: line for panel in self.panels for line, pale in panel.faint.items() if pale in self.followed}
        curves, missing, comparable = {}, [], rows_at_one_radius(self.rows, self.prefix)
        for key in [*self.followed, *bold.values()]:
            rows = [(row["step"], row[key]) for row in comparable if math.isfinite(row.get(key, math.nan))]
            if rows:
                steps, values = np.array(rows, np.float64).T
                curves[key.removeprefix(self.prefix)] = steps, values
            elif any(key in row for row in self.rows):
                missing.append(key.removeprefix(self.prefix))
        beside = {
            pale.removeprefix(self.prefix): (own, curves.pop(own))
            for pale, line in bold.items()
            if (own := line.removeprefix(self.prefix)) in curves and own not in self.followed
        }
        known = [replace(found, curve=found.curve.removeprefix(self.prefix)) for found in self.transitions]
        made_by = {(key.removeprefix(self.prefix), step): layer for (key, step), layer in self.made_by.items()}
        scaled = {key: at[0] for key in curves if (at := self.seams(self.prefix + key))}
        name, layers = self.prefix.strip("/_-. "), {key: layers_at(self.rows, self.prefix + key) for key in curves}
        return Followed(curves, known, self.settings, missing, self.find, name, made_by, beside, scaled, layers)

    def seams(self, key: str) -> list[int]:
        """The steps at which a curve goes on at another radius."""
        return seams(self.rows, self.prefix) if is_at_radius(key.removeprefix(self.prefix)) else []

    model: str = ""
    made_by: Mapping[tuple[str, int], str] = field(default_factory=dict)
    group: str = ""


class MeasureSpec(Protocol):
    """What a kind of callback says of the rows that it writes."""

    group: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    detection_settings: ClassVar[dict[str, float]]

    @staticmethod
    def find(curves: Curves, settings: Mapping[str, float]) -> list[Turn]:
        """The transitions that all rows so far show."""
        ...

    @staticmethod
    def followed(keys: Sequence[str]) -> list[str]:
        """Of the keys of a row, those that :meth:`find` is about."""
        ...

    @classmethod
    def checked_detection(cls, given: Mapping[str, float] | None) -> dict[str, float]:
        """All settings of :meth:`find`."""
        ...

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """How to draw the keys of a row."""
        ...


def panel_order(group: str, prefix: str) -> tuple[int, str, str]:
    """Key of the order in which measures stand in the timeline."""
    return (_ORDER.index(group) if group in _ORDER else len(_ORDER)), group, prefix


def phrase(found: Transition) -> str:
    """What happened, such as ``"region migration began"``; with the budget, if it was under attack."""
    return phrase_of(found.kind, found.curve)


def leads(transitions: Sequence[Transition]) -> list[str]:
    """How many steps each marker came before, or after, what it predicts according to the papers; of settled ones."""
    sentences = []
    settled = [found for found in transitions if found.is_settled]
    for marker in settled:
        for later in settled:
            if later.kind not in _PREDICTS.get(marker.kind, ()):
                continue
            steps = later.step - marker.step
            apart = "at the same step as" if not steps else f"{abs(steps):,} steps {'before' if steps > 0 else 'after'}"
            where = f" (`{marker.curve}`)" if marker.kind.endswith("rank_descent") else ""
            sentences.append(
                f"{phrase(marker)}{where} {apart} {phrase(later)} (step {marker.step:,} and step {later.step:,})"
            )
    return sentences


def place(found: Transition) -> str:
    """Its step, with ``~`` if it is provisional, and the interval: ``"~3,162 (2,512 to 3,981)"``."""
    earliest, latest = found.interval
    between = f" ({earliest:,} to {latest:,})" if earliest < latest else ""
    return f"{'~' if found.provisional else ''}{found.step:,}{between}"


def marked(found: Transition) -> str:
    """Its kind, and what keeps it from being settled: ``"migration_start (tentative)"``."""
    return f"{found.kind} ({found.doubts})" if found.doubts else found.kind


def describe(event: PhaseEvent) -> str:
    """One line of Markdown."""
    found = event.transition
    where = f"`{found.curve}`, step {place(found)}"
    if event.what == "withdrawn":
        return f"**{found.kind}** withdrawn at step {event.at:,}: later rows do not confirm it. It was: {where}"
    what = {"found": "", "updated": " at the end"}.get(event.what, f" {event.what}")
    doubts = f" ({found.doubts})" if found.doubts else ""
    noise = f"; {found.noise}" if found.noise else ""
    return f"**{found.kind}**{what}{doubts}: {where}, seen at step {event.at:,}: {found.reason}{noise}"


def summary(transitions: Sequence[Transition]) -> str:
    """All that is known, and the leads, as Markdown."""
    if not transitions:
        return "No transition was found."
    lines = ["| what | curve | step | known at | certainty | why |", "|---|---|---:|---:|---|---|"]
    for t in sorted(transitions, key=in_order):
        sure = t.doubts or t.certainty
        lines.append(f"| {t.kind} | {t.curve} | {place(t)} | {t.detected_at:,} | {sure} | {t.reason} |")
    said = [f"- {sentence}" for sentence in leads(transitions)]
    return "\n".join([*lines, *(["", *said] if said else [])])


def run_sentences(parts: Sequence[RunCurves]) -> list[str]:
    """What the run showed: first what it comes to, then each curve without a transition."""
    seen = [part.seen() for part in parts]
    if len({one.name for one in seen}) == 1:  # nothing to tell apart
        seen = [replace(one, name="") for one in seen]
    first = headline(seen)
    return [*([first] if first else []), *curve_sentences(seen)]


def run_summary(parts: Sequence[RunCurves], remarks: Sequence[str] = (), sentences: Sequence[str] | None = None) -> str:
    """All that is known of a run, as Markdown: what it comes to, each transition, and the leads.

    Args:
        parts: what each measure saw.
        remarks: what else is to be said, at the end.
        sentences: those of :func:`run_sentences`, if they are there already.
    """
    first, *others = (run_sentences(parts) if sentences is None else sentences) or [""]
    known = [found for part in parts for found in part.transitions]
    paragraphs = [first, "\n".join(f"- {sentence}" for sentence in others), summary(known), *remarks]
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


# Files


class EventsFile:
    """``events.jsonl``: one line for each event of a run, complete on disk when :meth:`append` returns.

    A file of another run is never overwritten: the next free name (``events_1.jsonl``, ...) is taken.

    Args:
        folder: where.
        events: those of the run so far.
        resumed: whether the run has rows already, so that the file that has these events is its own. It goes on in
            that, without the lines behind its checkpoint.
        step: of the checkpoint. A file with other events from before is that of another run.
    """

    def __init__(self, folder: Path, events: Sequence[PhaseEvent], resumed: bool, step: int = 0) -> None:
        self._events = list(events)
        self._file = LineFile(folder, "events.jsonl", partial(_is_of_run, self._events, step) if resumed else None)
        if self._events or self._file.is_owned:
            self._file.write(_lines(self._events))

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._file.path

    @property
    def passed_over(self) -> tuple[Path, str] | None:
        """Of a resumed run, the first file that is there and not its own, and why."""
        return self._file.passed_over

    def append(self, events: Sequence[PhaseEvent]) -> None:
        """Write these events."""
        self._events += events
        self._file.append(partial(_lines, events), lambda: _lines(self._events))


def _is_of_run(events: Sequence[PhaseEvent], step: int, text: str) -> bool:
    """Whether a file has these events, and no other one from before the step of the checkpoint."""
    lines = text.splitlines(keepends=True)
    own = _lines(events).splitlines(keepends=True)
    earlier = [line for line in lines if (at := re.match(r'{"at": (\d+),', line)) and int(at[1]) < step]
    return {*own} <= {*lines} and {*earlier} <= {*own}


def _lines(events: Sequence[PhaseEvent]) -> str:
    return "".join(json.dumps(event_fields(event)) + "\n" for event in events)


def event_fields(event: PhaseEvent) -> dict[str, Any]:
    """What is written of an event: to ``events.jsonl``, and to TensorBoard for the Dynamics tab."""
    return {"at": event.at, "what": event.what, **asdict(event.transition)}


def read_events(path: Path) -> list[PhaseEvent]:
    """The events of ``events.jsonl``.

    Raises:
        ValueError: if a line is no event; it names file and line.
    """
    events = []
    for number, line in enumerate(_text_of(path).split("\n")[:-1], start=1):  # the last may be torn by a kill
        try:
            fields = json.loads(line)
            at, what = fields.pop("at"), fields.pop("what")
            event = PhaseEvent(what, at, Transition(**fields))
            _check_event(event)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path}, line {number}, is no event ({error}).") from error
        events.append(event)
    return events


def _check_event(event: PhaseEvent) -> None:
    """Raise a ValueError if what a file has is not what it should be."""
    found = event.transition
    kinds: dict[str, tuple[object, type | tuple[type, ...]]] = {
        **{name: (getattr(found, name), str) for name in ("kind", "curve", "reason", "noise")},
        **{name: (getattr(found, name), int) for name in ("step", "detected_at")},
        **{name: (getattr(found, name), (int, float)) for name in ("value", "prominence")},
        "at": (event.at, int),
    }
    for name, (value, kind) in kinds.items():
        if not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{name!r} is {value!r}")
    if found.step < 0 or event.what not in WHATS:
        raise ValueError(f"{event.what!r} at step {found.step}")
    if found.certainty not in (FIRM, TENTATIVE) or not isinstance(found.provisional, bool):
        raise ValueError(f"certainty {found.certainty!r}, provisional {found.provisional!r}")
    if any(end is not None and (isinstance(end, bool) or not isinstance(end, int)) for end in found.interval):
        raise ValueError(f"interval {found.interval!r}")


def final_transitions(events: Sequence[PhaseEvent]) -> list[Transition]:
    """What is known after all events."""
    known: dict[tuple[str, str], Transition] = {}
    for event in events:
        name = event.transition.kind, event.transition.curve
        if event.what == "withdrawn":
            known.pop(name, None)
        else:
            known[name] = event.transition
    return sorted(known.values(), key=in_order)


def read_rows(path: Path) -> list[dict[str, float]]:
    """The rows of ``history.csv``; what a row lacks is not in it. A last line without an end is torn, and left out.

    Raises:
        ValueError: if a line is no row; it names file and line.
    """
    text = _text_of(path)
    lines = csv.reader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
    rows: list[dict[str, float]] = []
    try:
        columns = next(lines, [])
        if columns and ("step" not in columns or len({*columns}) < len(columns)):
            raise ValueError(f"the columns must differ and have 'step', but are {', '.join(columns)[:200]}")
        for cells in filter(None, lines):
            if len(cells) != len(columns):
                raise ValueError(f"{len(cells)} cells for {len(columns)} columns")
            row = {column: _number(column, cell) for column, cell in zip(columns, cells, strict=True) if cell}
            step, last = row.get("step", math.nan), rows[-1]["step"] if rows else -1
            if not (step > last and step.is_integer()):
                raise ValueError(f"step {step:g} after {last:g}: steps are integers that increase")
            rows.append(row)
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path}, line {max(1, lines.line_num)}: {error}.") from error
    return rows


def _number(column: str, cell: str) -> float:
    try:
        return float(cell)
    except ValueError:
        raise ValueError(f"{cell[:50]!r} in column {column!r} is no number") from None


def _text_of(path: Path) -> str:
    """The text of a file. A ValueError names the line of a byte that is no UTF-8."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}, line {line}: byte {data[error.start]:#x} is no UTF-8.") from error
