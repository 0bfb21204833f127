"""One row, as it goes to the loggers: numbers, histograms and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lc_callback.reporting.figure import write_png
from lc_callback.reporting.loggers import log_histogram, log_image, log_row
from lc_callback.run.files import ROOM_FOR_PICTURES, free_bytes, safe_name

if TYPE_CHECKING:
    from lc_callback.callbacks.base import ProbeCallback

__all__ = ["RowReport"]


class RowReport:
    """Reports the rows of a callback. What fails costs a warning, and nothing of what comes behind it.

    Args:
        callback: the callback.
        folder: where pictures go as PNG files, too; ``None``: nowhere.
    """

    def __init__(self, callback: ProbeCallback, folder: Path | None = None) -> None:
        self._callback, self._folder, self._is_short = callback, folder, False

    def report(self, trainer: Any, values: Mapping[str, float], arrays: Mapping[str, Tensor], step: int) -> None:
        """Report the row of a step."""
        callback, guarded = self._callback, self._callback._guarded

        def failed(what: str, error: Exception) -> None:
            callback._warn_or_raise(f"{what} did not take the row of step {step}", error)

        log_row(trainer, values, step, failed)
        for key, array in arrays.items():
            histogram = guarded(f"the histogram of {key}", partial(callback.histogram, key, array))
            if histogram is not None:
                log_histogram(trainer, key, histogram, step, failed)
        drawn = guarded(f"drawing step {step}", self._drawn) if self._has_room() else None
        for key, pixels in (drawn or {}).items():
            if self._folder is not None:
                path = self._folder / f"{safe_name(key.rpartition('/')[2])}_{step:09d}.png"
                guarded(f"writing {path}", partial(write_png, path, pixels))
            log_image(trainer, f"{callback.log_key_prefix}{key}", pixels, step, failed)

    def _has_room(self) -> bool:
        """Whether pictures may be drawn. A nearly full disk is no error of a measurement, and is reported once."""
        free = math.inf if self._folder is None else free_bytes(self._folder)
        if free < ROOM_FOR_PICTURES and not self._is_short and self._callback.draws:
            rank_zero_warn(
                f"{self._callback.name}: no pictures, for only {free / 1024:,.0f} kB are free in {self._folder}."
            )
            self._is_short = True
        return free >= ROOM_FOR_PICTURES

    def _drawn(self) -> dict[str, Any]:
        return {f"{key}": pixels for key, pixels in dict(self._callback.pictures()).items()}
