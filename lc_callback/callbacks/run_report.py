"""The timeline of a run: what all measuring callbacks of a Trainer found, reported together once a step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lc_callback.callbacks.clock import read_clock
from lc_callback.callbacks.peers import Measuring
from lc_callback.detection.transitions import TENTATIVE, PhaseEvent, Transition
from lc_callback.reporting.figure import image, write_bytes
from lc_callback.reporting.loggers import log_events, log_image, log_layout, log_text, say
from lc_callback.run.files import ROOM_FOR_PICTURES, check_room, safe_name
from lc_callback.run.timeline import (
    EventsFile,
    RunCurves,
    describe,
    event_fields,
    marked,
    panel_order,
    place,
    run_sentences,
    run_summary,
)

__all__ = ["RunReport"]

_REST = 20.0  # times what a drawing took, before the next: in a run of a minute they would be a fifth of it


class RunReport:
    """Owned by the last measuring callback of a Trainer, which is called when all others have taken their rows.

    Args:
        callbacks: all measuring callbacks of the Trainer.
        trainer: the Trainer.
    """

    def __init__(self, callbacks: Sequence[Measuring], trainer: Any) -> None:
        self._callbacks, self._peers, last = callbacks, [callback.peer for callback in callbacks], callbacks[-1].peer
        self._attempt, self._refused = last.guard.attempt, last.writer.refused
        self._folder = Path(trainer.log_dir or trainer.default_root_dir)
        self._file: EventsFile | None = None
        self._events: list[PhaseEvent] = []
        self._has_layout = False
        self._is_stale, self._rest_until = False, 0.0
        if trainer.is_global_zero and not trainer.fast_dev_run:
            known = (event for peer in self._peers for event in peer.record.events)
            order = sorted(known, key=lambda event: event.at)
            self._events = list(order)
            resumed = any(len(peer.record.history) for peer in self._peers)
            step = trainer.global_step
            file = self._attempt("opening events.jsonl", lambda: EventsFile(self._folder, order, resumed, step))
            self._file = file
            if file is not None and file.passed_over is not None:
                path, why = file.passed_over
                rank_zero_warn(
                    f"{last.name}: events go to {file.path}, for {path} is not the file of this run ({why})."
                )

    def close_step(self, trainer: Any, last: bool = False) -> None:
        """Write, show and act on what the callbacks found since the last call."""
        measured = [peer.rows.take_tried() for peer in self._peers]
        new = [(callback, callback.peer.record.take_events()) for callback in self._callbacks]
        events = [event for _, some in new for event in some]
        if not (events or any(measured) or last):
            return
        if trainer.is_global_zero:
            self._report(trainer, new, events, last)
        self._act(trainer, new, last)

    def _report(
        self, trainer: Any, new: list[tuple[Measuring, list[PhaseEvent]]], events: list[PhaseEvent], last: bool
    ) -> None:
        step, file = trainer.global_step, self._file
        setups = [text for text in (peer.writer.take_setup() for peer in self._peers) if text]
        if setups:
            say("\n\n".join(["Measured in this run:", *setups]))
        if not self._has_layout and any(len(peer.record.history) for peer in self._peers):
            self._has_layout = True
            self._attempt("the layout of the custom scalars", lambda: self._log_layout(trainer))
        if events and file is not None:
            self._attempt(f"writing {file.path}", lambda: file.append(events))
        self._events += events
        if events:
            log_events(trainer, [event_fields(event) for event in self._events], step, self._refused)
        for callback, some in new:
            lines = [describe(event) for event in some if event.what != "updated"]
            if lines:
                peer = callback.peer
                log_text(trainer, peer.keys.in_group("events"), "\n\n".join(lines), step, peer.writer.refused)
        self._is_stale |= any(event.what != "updated" for event in events)
        if last or (self._is_stale and read_clock() >= self._rest_until):
            self._is_stale = False
            self._attempt("drawing the timeline", lambda: self._draw(trainer, step))
        if last and any(callback.kinds for callback in self._callbacks):
            self._attempt("its summary", lambda: self._conclude(trainer, step))

    def _conclude(self, trainer: Any, step: int) -> None:
        """Say what the run showed: in the text tab, and on the console."""
        parts = self._parts()
        found_to_say = (self._attempt("its last remark", callback.remark) for callback in self._callbacks)
        remarks = [remark for remark in found_to_say if remark]
        sentences = run_sentences(parts)
        text = run_summary(parts, remarks, sentences)
        log_text(trainer, "timeline/summary", text, step, self._refused)
        first, *others = sentences or [""]
        known = [found for part in parts for found in part.transitions]
        marks = [f"{marked(found)} at step {place(found)} ({found.curve}): {found.reason}" for found in known]
        for line in filter(None, [first, *marks, *others, *remarks]):
            say(line)

    def _parts(self) -> list[RunCurves]:
        ordered = sorted(self._callbacks, key=lambda callback: panel_order(callback.group, callback.log_key_prefix))
        return [callback.part() for callback in ordered]

    def _draw(self, trainer: Any, step: int) -> None:
        parts = self._parts()
        if not any(part.panels for part in parts) or trainer.fast_dev_run:
            return
        check_room(self._folder, ROOM_FOR_PICTURES)
        start = read_clock()
        pixels, png = image(parts)
        self._attempt("writing timeline.png", partial(write_bytes, self._folder / "timeline.png", png))
        log_image(trainer, "timeline", pixels, step, self._refused)
        now = read_clock()
        self._rest_until = now + _REST * (now - start)

    def _log_layout(self, trainer: Any) -> None:
        asked = [callback for callback in self._callbacks if callback.custom_scalars]
        charts = {
            panel.label: ["Multiline", [f"^{re.escape(panel.faint.get(key, key))}$" for key in panel.lines.values()]]
            for callback in asked
            for panel in callback.part().panels
        }
        if charts:
            log_layout(trainer, {"lc_callback": charts}, self._refused)

    def _act(self, trainer: Any, new: list[tuple[Measuring, list[PhaseEvent]]], last: bool) -> None:
        """Save and stop as asked. The first rank decides for all, which come here after the same rows."""
        if not any(callback.on_transition or callback.stop_after for callback in self._callbacks):
            return
        names, reasons = [], []
        for callback, events in new:
            for found in _to_act_on(events, callback.certainty):
                if callback.on_transition:
                    eps = found.curve.partition("_eps")[2]
                    prefix = safe_name(callback.log_key_prefix)
                    names.append(f"{prefix}{found.kind}{f'_eps{eps}' if eps else ''}-step={trainer.global_step}.ckpt")
                if callback.stop_after == found.kind:
                    reasons.append(f"{found.kind} at step {found.step:,} ({found.curve})")
        if trainer.world_size > 1:
            names, reasons = trainer.strategy.broadcast((names, reasons), src=0)
        own = getattr(trainer.checkpoint_callback, "dirpath", None)
        folder = str(own) if own else str(self._folder / "checkpoints")  # it may be an address
        for path in (f"{folder.rstrip('/')}/{name}" for name in names):
            self._attempt(f"saving {path}", partial(_save, trainer, path))
        if reasons and not last:
            say(f"Stopping at step {trainer.global_step:,}, after {', '.join(reasons)}.")
            trainer.should_stop = True


def _to_act_on(events: Sequence[PhaseEvent], certainty: str) -> list[Transition]:
    """The transitions of these events on which the callbacks may act now."""
    if certainty == TENTATIVE:
        return [event.transition for event in events if event.what == "found"]
    telling = [event for event in events if event.what in ("found", "confirmed")]
    return [event.transition for event in telling if event.transition.is_settled]


def _save(trainer: Any, path: str) -> None:
    """Save a checkpoint. A rank that fails to do so goes to the barrier all the same: the others wait there."""
    try:
        trainer.save_checkpoint(path)
    except Exception:
        trainer.strategy.barrier("Trainer.save_checkpoint")
        raise
