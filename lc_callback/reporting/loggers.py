"""Rows, texts and pictures to the trainer's loggers, whatever these can do."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["log_histogram", "log_image", "log_layout", "log_row", "log_text"]


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
    _add(trainer, "add_text", on_failure, tag, markdown, step)


def log_histogram(
    trainer: Any, tag: str, values: Tensor, step: int, on_failure: Callable[[str, Exception], None]
) -> None:
    """Write values to every logger whose experiment takes histograms (TensorBoard's does)."""
    _add(trainer, "add_histogram", on_failure, tag, values, step)


def log_image(trainer: Any, tag: str, pixels: Any, step: int, on_failure: Callable[[str, Exception], None]) -> None:
    """Write pixels ``(H, W, 3)`` to every logger whose experiment takes images (TensorBoard's does)."""
    _add(trainer, "add_image", on_failure, tag, pixels, step, dataformats="HWC")


def log_layout(trainer: Any, layout: dict[str, Any], on_failure: Callable[[str, Exception], None]) -> None:
    """Write a layout to every logger whose experiment takes one (TensorBoard's custom scalars)."""
    _add(trainer, "add_custom_scalars", on_failure, layout)


def _add(trainer: Any, name: str, on_failure: Callable[[str, Exception], None], *args: Any, **kwargs: Any) -> None:
    for logger in trainer.loggers:
        try:
            add = getattr(getattr(logger, "experiment", None), name, None)
            if add is not None:
                add(*args, **kwargs)
        except Exception as error:
            on_failure(type(logger).__name__, error)
