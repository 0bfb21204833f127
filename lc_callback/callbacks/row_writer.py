"""Where a row goes: its CSV file first, then the metrics of the Trainer, the loggers and the pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lc_callback.callbacks.guard import Guard
from lc_callback.callbacks.keys import Keys
from lc_callback.callbacks.row_taker import Row
from lc_callback.reporting.figure import write_png
from lc_callback.reporting.loggers import log_histogram, log_image, log_row, log_text, say
from lc_callback.run.files import ROOM_FOR_PICTURES, free_bytes, safe_name
from lc_callback.run.history import CsvFile, History

__all__ = ["RowWriter", "Shows"]


class Shows(Protocol):
    """What a measure shows of a row, besides its numbers."""

    def histogram(self, key: str, array: torch.Tensor) -> torch.Tensor | None:
        """What of an array goes to the loggers as a histogram."""

    def pictures(self) -> Mapping[str, Any]:
        """Pictures of the last row, by key."""

    def film(self, folder: Path) -> Mapping[str, Any]:
        """Pictures of the whole run, by key."""

    @property
    def draws(self) -> bool:
        """Whether there are pictures at all."""

    def describe(self) -> str:
        """What is measured, as Markdown."""

    def setup_line(self) -> str:
        """The callback and its settings, as they are in use."""


class RowWriter:
    """Writes the rows of one callback. What fails costs a warning, and nothing of what comes behind it.

    Args:
        name: of the callback.
        keys: of the callback.
        guard: what a failure costs.
        shows: the callback itself.

    Attributes:
        folder: where files go; ``None`` outside a run, and where there are to be none.
        is_described: whether the set-up of this run has been described.
    """

    def __init__(self, name: str, keys: Keys, guard: Guard, shows: Shows) -> None:
        self._name, self._keys, self._guard, self._shows = name, keys, guard, shows
        self._csv: CsvFile | None = None
        self._is_short = False  # of room on the disk
        self._setup = ""  # that nobody has taken
        self.folder: Path | None = None
        self.is_described = False

    def begin(self) -> None:
        """A run begins."""
        self.is_described = False

    def open(self, trainer: Any, root: Path, history: History) -> None:
        """Make the files of this run, or go on with them, in a folder of ``root``."""
        folder = self.folder = root / self._keys.folder
        self._is_short = False
        csv = self._csv = self._guard.attempt("opening its CSV file", lambda: CsvFile(folder, history))
        if csv is None:
            return
        if csv.passed_over is not None:
            path, why = csv.passed_over
            rank_zero_warn(f"{self._name}: rows go to {csv.path}, for {path} is not the file of this run ({why}).")
        if not trainer.loggers:
            rank_zero_warn(f"{self._name}: the Trainer has no logger; rows go to {csv.path} only.")

    def close(self) -> None:
        """The run is over."""
        self.folder = self._csv = None

    def publish(self, trainer: Any, values: Mapping[str, float]) -> None:
        """Give the values to what monitors a metric of the Trainer."""

        def fill() -> None:
            trainer.callback_metrics.update(
                {key: torch.tensor(value) for key, value in values.items() if key != "step"}
            )

        self._guard.attempt("filling `trainer.callback_metrics`", fill)

    def append(self, history: History, step: int) -> None:
        """Write the last row of the history to its file."""
        csv = self._csv
        if csv is not None:
            self._guard.attempt(f"writing {csv.path} at step {step}", lambda: csv.append(history))

    def report(self, trainer: Any, row: Row) -> None:
        """Give the row to the loggers: numbers, histograms and pictures; behind the first one, what is measured."""
        step, attempt = row.step, self._guard.attempt

        def failed(what: str, error: Exception) -> None:
            self._guard.failed(f"{what} did not take the row of step {step}", error)

        log_row(trainer, row.values, step, failed)
        for key, array in row.arrays.items():
            histogram = attempt(f"the histogram of {key}", partial(self._shows.histogram, key, array))
            if histogram is not None:
                log_histogram(trainer, key, histogram, step, failed)
        drawn = attempt(f"drawing step {step}", self._drawn) if self._has_room() else None
        for key, pixels in (drawn or {}).items():
            if self.folder is not None:
                path = self.folder / f"{safe_name(key.rpartition('/')[2])}_{step:09d}.png"
                attempt(f"writing {path}", partial(write_png, path, pixels))
            log_image(trainer, self._keys.full(key), pixels, step, failed)
        if not self.is_described:
            self.is_described = True
            self._describe(trainer, step, failed)

    def _describe(self, trainer: Any, step: int, failed: Callable[[str, Exception], None]) -> None:
        text = self._guard.attempt("describing itself", self._shows.describe)
        if not text:
            return
        used = self._guard.attempt("naming its settings", self._shows.setup_line)
        self._setup = f"{used or self._name}\n{text}"
        if trainer.state.fn != "fit":  # a fit has one text of all callbacks
            say(self.take_setup())
        log_text(trainer, self._keys.in_group("setup"), text, step, failed)

    def take_setup(self) -> str:
        """What is measured and how, once it is known and until it is taken; else nothing."""
        text, self._setup = self._setup, ""
        return text

    def refused(self, what: str, error: Exception) -> None:
        """Say that a logger did not take an entry of the timeline."""
        self._guard.failed(f"{what} did not take an entry of the timeline", error)

    def finish(self, trainer: Any) -> None:
        """Log the pictures of the whole run."""
        folder = self.folder
        if folder is None or not trainer.is_global_zero:
            return
        drawn = self._guard.attempt("making the film", lambda: dict(self._shows.film(folder)))
        for key, pixels in (drawn or {}).items():
            log_image(trainer, self._keys.full(key), pixels, trainer.global_step, self.refused)

    def _has_room(self) -> bool:
        """Whether pictures may be drawn. A nearly full disk is no error of a measurement, and is reported once."""
        free = math.inf if self.folder is None else free_bytes(self.folder)
        if free < ROOM_FOR_PICTURES and not self._is_short and self._shows.draws:
            rank_zero_warn(f"{self._name}: no pictures, for only {free / 1024:,.0f} kB are free in {self.folder}.")
            self._is_short = True
        return free >= ROOM_FOR_PICTURES

    def _drawn(self) -> dict[str, Any]:
        return {f"{key}": pixels for key, pixels in dict(self._shows.pictures()).items()}
