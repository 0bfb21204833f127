"""Rows, texts and pictures to the trainer's loggers, whatever these can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from lc_callback.isolation import fixed_rng
from lc_callback.reporting.adapters import Adapter, adapter_of
from lc_callback.run.files import ROOM_FOR_LINES, ROOM_FOR_PICTURES, check_room

__all__ = ["log_events", "log_histogram", "log_image", "log_layout", "log_row", "log_text", "say"]

Failed = Callable[[str, Exception], None]


def log_row(trainer: Any, row: Mapping[str, float], step: int, on_failure: Failed) -> None:
    """Write ``row`` at ``step`` to every logger and flush it. One that raises does not keep the others from it.

    ``on_failure`` is called with what failed and the exception.
    """

    def write(adapter: Adapter) -> None:
        adapter.row(row, step)
        adapter.logger.save()

    _to_each(trainer, write, on_failure, ROOM_FOR_LINES)


def log_text(trainer: Any, tag: str, markdown: str, step: int, on_failure: Failed) -> None:
    """Write a text to every logger that takes texts."""
    text = _whole(markdown)
    _to_each(trainer, lambda adapter: adapter.text(tag, text, step), on_failure, ROOM_FOR_LINES)


def say(text: str) -> None:
    """Print a text on the console of the first process, as Lightning does."""
    rank_zero_info(_whole(text))


def _whole(text: str) -> str:
    """Without halves of characters, which no file and no console can hold."""
    return text.encode(errors="replace").decode()


def log_histogram(trainer: Any, tag: str, values: Tensor, step: int, on_failure: Failed) -> None:
    """Write the distribution of values to every logger that takes histograms or pictures."""
    _to_each(trainer, lambda adapter: adapter.histogram(tag, values, step), on_failure, ROOM_FOR_PICTURES)


def log_image(trainer: Any, tag: str, pixels: Any, step: int, on_failure: Failed) -> None:
    """Write pixels ``(H, W, 3)`` to every logger that takes pictures."""
    _to_each(trainer, lambda adapter: adapter.image(tag, pixels, step), on_failure, ROOM_FOR_PICTURES)


def log_events(trainer: Any, events: Sequence[Mapping[str, Any]], step: int, on_failure: Failed) -> None:
    """Write all events of the run so far to every logger of TensorBoard, for the Dynamics tab."""
    _to_each(trainer, lambda adapter: adapter.events(events, step), on_failure, ROOM_FOR_LINES)


def log_layout(trainer: Any, layout: dict[str, Any], on_failure: Failed) -> None:
    """Write a layout to every logger that takes one (TensorBoard's custom scalars)."""
    _to_each(trainer, lambda adapter: adapter.layout(layout), on_failure, ROOM_FOR_LINES)


def _to_each(trainer: Any, write: Callable[[Adapter], None], on_failure: Failed, room: int) -> None:
    for logger in trainer.loggers:
        try:
            with fixed_rng(None):  # a name that it makes up is not drawn from the training's numbers
                _check_room(logger, room)
                write(adapter_of(logger))
        except Exception as error:
            on_failure(type(logger).__name__, error)


def _check_room(logger: Any, needed: int) -> None:
    """Raise an OSError if the disk that a logger writes to is nearly full."""
    place = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
    if isinstance(place, (str, Path)) and "://" not in str(place):
        check_room(Path(place), needed)
