"""Events of a run, from a file or a summary: what is damaged is left out and counted, never raised."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from lc_callback.tensorboard.names import WHATS

__all__ = ["events_of_lines", "events_of_summary"]

_LONGEST = {"kind": 100, "curve": 500, "reason": 1000, "noise": 200}
_MOST = 2000
_MAX_STEP, _MAX_NUMBER = 2**53, 1e300  # NaN is below nothing


def events_of_lines(text: str) -> tuple[list[dict[str, Any]], int]:
    r"""The events of ``events.jsonl``, and how many of its lines could not be read.

    A last line without an end is torn, and not counted.

    Example::

        >>> from lc_callback.tensorboard.events import events_of_lines
        >>> events, unread = events_of_lines('{"at": 9, "what": "found", "kind": "ascent_start", "step": 5}\n{"at": 1')
        >>> events[0]["step"], unread
        (5, 0)
    """
    return _checked(_parsed(line) for line in text.split("\n")[:-1] if line.strip())


def events_of_summary(text: str | bytes) -> tuple[list[dict[str, Any]], int]:
    """The events of a summary of :func:`lc_callback.tensorboard.summary.events_summary`, and how many were damaged."""
    content = _parsed(text)
    events = content.get("events") if isinstance(content, dict) else None
    return _checked(events) if isinstance(events, list) else ([], 1)


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _checked(found: Iterable[Any]) -> tuple[list[dict[str, Any]], int]:
    events, unread = [], 0
    for one in found:
        event = _event(one)
        if event is None:
            unread += 1
        else:
            events.append(event)
    return events[-_MOST:], unread


def _event(fields: Any) -> dict[str, Any] | None:
    """The fields that are used, each of its kind; ``None`` if one that is needed is missing or wrong."""
    if not isinstance(fields, dict) or fields.get("what") not in WHATS:
        return None
    kind, step, at = fields.get("kind"), _step(fields.get("step")), _step(fields.get("at"))
    if not isinstance(kind, str) or not kind or step is None or at is None:
        return None
    event: dict[str, Any] = {"what": fields["what"], "at": at, "step": step}
    event |= {name: _text(fields.get(name), longest) for name, longest in _LONGEST.items()}
    event |= {name: _step(fields.get(name)) for name in ("detected_at", "earliest", "latest")}
    event |= {name: _number(fields.get(name)) for name in ("value", "prominence")}
    # Version 0.1 did not say how sure a transition is.
    event["certainty"] = fields.get("certainty") if fields.get("certainty") in ("firm", "tentative") else "not graded"
    event["provisional"] = fields.get("provisional") is True
    return event


def _text(value: Any, longest: int) -> str:
    text = value if isinstance(value, str) else ""
    return text.encode(errors="replace").decode()[:longest]


def _step(value: Any) -> int | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return int(value) if 0 <= value < _MAX_STEP else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(f"{float(value):.6g}") if abs(value) < _MAX_NUMBER else None
