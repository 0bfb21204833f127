"""Rows and texts to the trainer's loggers, whatever these can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["log_histogram", "log_row", "log_text"]


def log_row(trainer: Any, row: Mapping[str, float], step: int, on_failure: Callable[[str, Exception], None]) -> None:
    """Write ``row`` at ``step`` to every logger and flush it. One that raises does not keep the others from it.

    ``on_failure`` is called with what failed and the exception.
    """
    for logger in trainer.loggers:
        try:
            logger.log_metrics(dict(row), step=step)
            logger.save()
        except Exception as error:
            on_failure(type(logger).__name__, error)


def log_text(trainer: Any, tag: str, markdown: str, step: int, on_failure: Callable[[str, Exception], None]) -> None:
    """Write a text to every logger whose experiment takes texts (TensorBoard's does)."""
    for logger in trainer.loggers:
        try:
            add_text = getattr(getattr(logger, "experiment", None), "add_text", None)
            if add_text is not None:
                add_text(tag, markdown, step)
        except Exception as error:
            on_failure(type(logger).__name__, error)


def log_histogram(
    trainer: Any, tag: str, values: Tensor, step: int, on_failure: Callable[[str, Exception], None]
) -> None:
    """Write values to every logger whose experiment takes histograms (TensorBoard's does)."""
    for logger in trainer.loggers:
        try:
            add_histogram = getattr(getattr(logger, "experiment", None), "add_histogram", None)
            if add_histogram is not None:
                add_histogram(tag, values, step)
        except Exception as error:
            on_failure(type(logger).__name__, error)
