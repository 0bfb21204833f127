"""The rows of a run: in memory, in the checkpoint, and as CSV beside the run's logs."""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from lc_callback.run.files import LineFile
from lc_callback.suggestions import did_you_mean

__all__ = ["CsvFile", "History"]

Row = dict[str, float]
Arrays = dict[str, Tensor]


_ROWS_SHOWN, _KEYS_SHOWN = 5, 6  # of a repr: the first and the last rows


class History:
    """Measured rows in the order of their steps.

    Example::

        >>> from lc_callback.run.history import History
        >>> history = History()
        >>> history.append(0, {"lc/train": 12.0})
        >>> history.append(10, {"lc/train": 8.5})
        >>> history.steps, history["lc/train"], len(history)
        ([0, 10], [12.0, 8.5], 2)
    """

    def __init__(self) -> None:
        self.rows: list[Row] = []
        #: Of each step, what is more than one number: float32 tensors on the CPU by key.
        self.arrays: dict[int, Arrays] = {}

    def append(self, step: int, values: Mapping[str, float], arrays: Mapping[str, Tensor] | None = None) -> None:
        """Add the row of ``step``. Steps must increase."""
        if self.rows and step <= self.rows[-1]["step"]:
            raise ValueError(f"row {step} after row {self.rows[-1]['step']}: steps must increase")
        self.rows.append({"step": int(step), **{key: float(value) for key, value in values.items()}})
        if arrays:
            self.arrays[int(step)] = {key: array.detach().float().cpu() for key, array in arrays.items()}

    @property
    def steps(self) -> list[int]:
        """Steps of the rows."""
        return [int(row["step"]) for row in self.rows]

    @property
    def keys(self) -> list[str]:
        """All keys that occur, without ``step``, in the order of their first row."""
        return list(dict.fromkeys(key for row in self.rows for key in row if key != "step"))

    def __getitem__(self, key: str) -> list[float]:
        """Values of ``key``, one for each row, NaN where a row lacks it."""
        if key not in self.keys:
            raise KeyError(f"{key!r} is not among {self.keys}{did_you_mean(key, self.keys)}")
        return [row.get(key, math.nan) for row in self.rows]

    def __contains__(self, step: object) -> bool:
        return step in self.steps

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self.rows)

    def __repr__(self) -> str:
        """The first and the last rows, and as many keys as fit, as a table."""
        title = f"History({len(self)} rows, {len(self.keys)} keys)"
        if not self.rows:
            return title
        keys = self.keys[:_KEYS_SHOWN]
        rows = (
            self.rows if len(self) <= 2 * _ROWS_SHOWN else [*self.rows[:_ROWS_SHOWN], None, *self.rows[-_ROWS_SHOWN:]]
        )
        cells = [["step", *keys]]
        for row in rows:
            numbers = [] if row is None else [f"{row[key]:.4g}" if key in row else "" for key in keys]
            cells.append(["..."] * (1 + len(keys)) if row is None else [f"{int(row['step'])}", *numbers])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
        left_out = self.keys[_KEYS_SHOWN:]
        more = [f"and {', '.join(left_out[:_KEYS_SHOWN])}{', ...' if len(left_out) > _KEYS_SHOWN else ''}"]
        return "\n".join([title, *lines, *(more if left_out else [])])

    def to_pandas(self) -> Any:
        """The rows as a ``pandas.DataFrame``: one column for each key, ``step`` as its index, NaN where a row lacks it.

        Raises:
            ImportError: without pandas, which this library does not need otherwise.
        """
        try:
            import pandas
        except ImportError as error:
            raise ImportError("`History.to_pandas` needs pandas: `pip install pandas`.") from error
        return pandas.DataFrame({key: self[key] for key in self.keys}, index=pandas.Index(self.steps, name="step"))

    def drop_after(self, step: int) -> None:
        """Forget the rows of steps that a resumed run is going to take again."""
        self.rows = [row for row in self.rows if row["step"] <= step]
        self.arrays = {at: arrays for at, arrays in self.arrays.items() if at <= step}

    def state(self) -> list[Row]:
        """Plain copies of the rows, for a checkpoint."""
        return [dict(row) for row in self.rows]

    def state_of_arrays(self) -> dict[int, Arrays]:
        """Copies of the arrays, for a checkpoint."""
        return {step: dict(arrays) for step, arrays in self.arrays.items()}

    def restore(self, rows: Any, arrays: Any = None) -> None:
        """Take the rows of :meth:`state` and the arrays of :meth:`state_of_arrays`.

        Raises:
            ValueError: if they are not a list of dicts with increasing steps.
        """
        restored = History()
        for row in rows if isinstance(rows, list) else [rows]:
            if not isinstance(row, dict) or "step" not in row:
                raise ValueError(f"not a row: {row!r}")
            restored.append(row["step"], {key: value for key, value in row.items() if key != "step"})
        self.rows = restored.rows
        self.arrays = {int(step): dict(of_step) for step, of_step in dict(arrays or {}).items()}


class CsvFile:
    """``history.csv``: one line for each row, complete on disk when :meth:`append` returns.

    A file of another run is never overwritten: the next free name (``history_1.csv``, ...) is taken. A file is of the
    same run if it begins with the rows of ``history``, so a resumed run goes on in its own file, without the lines
    after its checkpoint.
    """

    def __init__(self, folder: Path, history: History) -> None:
        self._columns = ["step", *history.keys]
        self._file = LineFile(folder, "history.csv", partial(_begins_with, history.rows) if len(history) else None)
        if len(history):
            self._file.write(self._whole(history))

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._file.path

    @property
    def passed_over(self) -> tuple[Path, str] | None:
        """Of a resumed run, the first file that is there and not its own, and why."""
        return self._file.passed_over

    def append(self, history: History) -> None:
        """Write the last row of ``history``."""
        columns = ["step", *history.keys]
        anew, self._columns = columns != self._columns, columns
        self._file.append(partial(self._text, history.rows[-1:]), partial(self._whole, history), anew=anew)

    def _whole(self, history: History) -> str:
        return self._lines([self._columns]) + self._text(history.rows)

    def _text(self, rows: list[Row]) -> str:
        return self._lines([[repr(row[c]) if c in row else "" for c in self._columns] for row in rows])

    @staticmethod
    def _lines(cells: list[list[str]]) -> str:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(cells)
        return text.getvalue()


def _begins_with(rows: list[Row], text: str) -> bool:
    """Whether a CSV file begins with these rows. It may have columns of later rows, too."""
    try:
        found = [*itertools.islice(csv.DictReader(io.StringIO(text, newline="")), len(rows))]
    except csv.Error:
        return False
    written = [{key: cell for key, cell in row.items() if cell} for row in found]
    return written == [{key: repr(value) for key, value in row.items()} for row in rows]
