"""Run folders that are on this machine: their rows, events and pictures, read with care.

Every path is checked to lie below the log directory, links resolved. Only plain files are opened, and only so much of
them as the limits allow.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
import os
import re
import stat
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Column", "LocalFolders", "Overview", "Rows", "parsed_rows"]

Floats = NDArray[np.float64]
Column = tuple[Floats, Floats]

_MOST_BYTES = {"csv": 64 * 2**20, "jsonl": 8 * 2**20, "png": 32 * 2**20, "gif": 128 * 2**20}
_MAX_STEP = 2.0**53
_MOST_FOLDERS = 200  # of callbacks in one run
_MOST_CACHED = 192 * 2**20  # bytes of rows that are kept
_MOST_WALKED = 20_000  # folders that are looked into for runs
_HISTORY = re.compile(r"history(?:_\d{1,9})?\.csv")
_SLICE = re.compile(r"([A-Za-z0-9_.-]*?)_?(\d{1,12})\.png")


class Rows:
    """The columns of one ``history.csv``.

    Attributes:
        steps: of the rows, increasing.
        columns: values by key, and at which rows there is one, be it NaN.
        unread: lines that are no row.
    """

    def __init__(self, steps: Floats, columns: dict[str, tuple[Floats, NDArray[np.bool_]]], unread: int) -> None:
        self.steps, self.columns, self.unread = steps, columns, unread

    @property
    def n_bytes(self) -> int:
        """What they take in memory."""
        return self.steps.nbytes * (2 + len(self.columns))

    def column(self, key: str) -> Column:
        """Steps and values of a key, where rows have it."""
        values, present = self.columns[key]
        return self.steps[present], values[present]


@dataclass(frozen=True)
class Overview:
    """What the files of a run have.

    Attributes:
        keys: of its rows, in their order.
        last: step of the last row of all.
        notes: what could not be read.
        stamp: changes whenever a file does.
    """

    keys: list[str]
    last: int
    notes: list[str]
    stamp: tuple[int, ...]


class LocalFolders:
    """The run folders below the log directories of TensorBoard.

    Args:
        roots: log directory by the prefix that its runs have, ``""`` for none.
    """

    def __init__(self, roots: dict[str, Path]) -> None:
        self._roots = roots
        self._rows: OrderedDict[Path, tuple[tuple[int, int], Rows | None]] = OrderedDict()
        self._lock = Lock()

    @classmethod
    def of_flags(cls, logdir: str | None, spec: str | None = None) -> LocalFolders:
        """Of the flags ``--logdir`` and ``--logdir_spec``. Addresses of other places have no local folders."""
        roots = {}
        if logdir and "://" not in logdir:
            roots[""] = Path(os.path.expanduser(logdir))
        for part in (spec or "").split(",") if not logdir else ():
            name, colon, path = part.partition(":")
            is_drive = os.name == "nt" and len(name) == 1
            if colon and "://" not in part and not is_drive:
                roots[name.strip()] = Path(os.path.expanduser(path.strip()))
            elif part.strip() and "://" not in part:
                roots[""] = Path(os.path.expanduser(part.strip()))
        return cls(roots)

    def runs(self) -> list[str]:
        """The runs with a ``history.csv``, wherever they are below the log directories. It looks into every folder."""
        found = set()
        for prefix, root in self._roots.items():
            for folder, _, files in itertools.islice(os.walk(root), _MOST_WALKED):
                if any(_HISTORY.fullmatch(name) for name in files):
                    run = Path(prefix, os.path.relpath(Path(folder).parent, root)).as_posix()
                    if self.keys(run):
                        found.add(run)
        return sorted(found)

    def overview(self, run: str) -> Overview:
        """What there is of a run: every file is looked at once."""
        folder = self._folder(run)
        if folder is None:
            return Overview([], 0, [], ())
        keys: dict[str, None] = {}
        last = 0
        notes: list[str] = []
        histories = self._histories(folder)
        for path in histories:
            rows = self._cached(path)
            keys |= dict.fromkeys(rows.columns if rows else ())
            last = max(last, int(rows.steps[-1]) if rows and len(rows.steps) else 0)
            notes += _notes(path, rows)
        files = [*histories, *filter(None, [_latest(folder, "events", "jsonl")])]
        return Overview([*keys], last, notes, tuple(number for path in files for number in (_stamp(path) or ())))

    def keys(self, run: str) -> list[str]:
        """The keys that the run's rows have, in their order."""
        return self.overview(run).keys

    def columns(self, run: str, keys: Sequence[str]) -> dict[str, Column]:
        """Steps and values of those of the keys that the run's rows have."""
        found: dict[str, Column] = {}
        for rows in self._all_rows(run):
            for key in keys:
                if key in rows.columns and key not in found:
                    found[key] = rows.column(key)
        return found

    def events(self, run: str) -> str | None:
        """The text of ``events.jsonl``; ``None`` if there is none that can be read."""
        folder = self._folder(run)
        path = _latest(folder, "events", "jsonl") if folder else None
        data = self._read(path, "jsonl") if path else None
        return None if data is None else data.decode("utf-8", "replace")

    def pictures(self, run: str) -> list[dict[str, Any]]:
        """The pictures of partition slices, each with series, step and file."""
        folder = self._folder(run)
        found = []
        for sub in self._folders(folder) if folder else []:
            for name in _names(sub):
                match = _SLICE.fullmatch(name)
                if match and self._inside(sub / name):
                    found.append({"series": sub.name, "step": int(match[2]), "file": f"{sub.name}/{name}"})
        return sorted(found, key=lambda one: (one["series"], one["step"]))

    def films(self, run: str) -> list[str]:
        """The films of partition slices."""
        folder = self._folder(run)
        subs = self._folders(folder) if folder else []
        return [f"{sub.name}/film.gif" for sub in subs if self._inside(sub / "film.gif")]

    def picture(self, run: str, file: str) -> tuple[bytes, str] | None:
        """Content and MIME type of a picture or a film of the run."""
        folder, parts = self._folder(run), file.split("/")
        suffix = file.rpartition(".")[2]
        is_ours = len(parts) == 2 and (_SLICE.fullmatch(parts[1]) or parts[1] == "film.gif")
        if folder is None or not is_ours or parts[0] in ("", ".", "..") or "\0" in file or "\\" in file:
            return None
        data = self._read(folder / parts[0] / parts[1], suffix)
        magic = {"png": b"\x89PNG\r\n\x1a\n", "gif": b"GIF8"}[suffix]
        return (data, f"image/{suffix}") if data is not None and data.startswith(magic) else None

    # Paths

    def _folder(self, run: str) -> Path | None:
        """The folder of a run, if it is one below a log directory."""
        if "\0" in run or "\\" in run or run.startswith("/") or ".." in run.split("/"):
            return None
        for prefix, root in self._roots.items():
            if prefix and run != prefix and not run.startswith(f"{prefix}/"):
                continue
            path = self._inside(root / (run.removeprefix(prefix).lstrip("/") if prefix else run))
            if path is not None and path.is_dir():
                return path
        return None

    def _inside(self, path: Path) -> Path | None:
        """The path without links, if there is something and it lies below a log directory."""
        try:
            real = path.resolve(strict=True)
            roots = [root.resolve() for root in self._roots.values()]
        except (OSError, RuntimeError, ValueError):  # a circle of links, a name that no system takes
            return None
        return real if any(real.is_relative_to(root) for root in roots) else None

    def _folders(self, folder: Path) -> list[Path]:
        subs = (folder / name for name in _names(folder))
        inside = (sub for sub in subs if sub.is_dir() and self._inside(sub))
        return sorted(sub for sub, _ in zip(inside, range(_MOST_FOLDERS), strict=False))

    def _histories(self, folder: Path) -> list[Path]:
        found = (_latest(sub, "history", "csv") for sub in self._folders(folder))
        return [path for path in found if path is not None and self._inside(path)]

    # Files

    def _all_rows(self, run: str) -> Iterator[Rows]:
        folder = self._folder(run)
        for path in self._histories(folder) if folder else []:
            rows = self._cached(path)
            if rows is not None:
                yield rows

    def _cached(self, path: Path) -> Rows | None:
        """The rows of a file, read again if it has changed; ``None`` if it cannot be read or is too long."""
        stamp = _stamp(path)
        if stamp is None:
            return None
        with self._lock:
            if path in self._rows and self._rows[path][0] == stamp:
                self._rows.move_to_end(path)
                return self._rows[path][1]
        data = self._read(path, "csv")
        rows = None if data is None else parsed_rows(data.decode("utf-8-sig", "replace"))
        with self._lock:
            self._rows[path] = stamp, rows
            self._rows.move_to_end(path)
            while len(self._rows) > 1 and sum(r.n_bytes for _, r in self._rows.values() if r) > _MOST_CACHED:
                self._rows.popitem(last=False)
        return rows

    def _read(self, path: Path, suffix: str) -> bytes | None:
        """The bytes of a plain file inside a log directory, if they are not too many."""
        if suffix not in _MOST_BYTES or self._inside(path) is None:
            return None
        try:
            handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        except (OSError, ValueError):
            return None
        with os.fdopen(handle, "rb") as file:
            try:
                state = os.fstat(file.fileno())
                if not stat.S_ISREG(state.st_mode) or state.st_size > _MOST_BYTES[suffix]:
                    return None
                return file.read(_MOST_BYTES[suffix])
            except OSError:
                return None


def parsed_rows(text: str) -> Rows:
    r"""The rows of a CSV file with a column ``step``. Lines that are none, and a torn last one, are left out.

    Example::

        >>> from lc_callback.tensorboard.folders import parsed_rows
        >>> rows = parsed_rows("step,lc/train\n0,4.5\n10,nan\nwhat\n20,\n30")
        >>> rows.column("lc/train"), rows.unread
        ((array([ 0., 10.]), array([4.5, nan])), 1)
    """
    lines = _lines(text[: text.rfind("\n") + 1])
    head = next(lines, [])
    if "step" not in head:
        return Rows(np.empty(0), {}, int(bool(text)))
    unread, last, at_step = 0, -1.0, head.index("step")
    columns, present = [array("d") for _ in head], [bytearray() for _ in head]
    for cells in lines:
        row = _numbers(cells, len(head))
        if row is None or not last < row[at_step] <= _MAX_STEP:
            unread += 1
            continue
        last = row[at_step]
        for cell, value, column, has in zip(cells, row, columns, present, strict=True):
            column.append(value)
            has.append(cell != "")
    found = {
        name: (np.array(column), np.frombuffer(bytes(has), np.bool_))
        for name, column, has in zip(head, columns, present, strict=True)
        if name
    }
    steps = found.pop("step")[0]
    return Rows(steps, found, unread)


def _lines(text: str) -> Iterator[list[str]]:
    """The cells of each line that is not empty; none for a line that is no CSV."""
    lines = csv.reader(io.StringIO(text, newline=""))
    while True:
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error:
            cells = ["?"]
        if cells:
            yield cells


def _numbers(cells: list[str], n: int) -> list[float] | None:
    if len(cells) != n:
        return None
    try:
        return [float(cell) if cell else math.nan for cell in cells]
    except ValueError:
        return None


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _notes(path: Path, rows: Rows | None) -> list[str]:
    """What of a file could not be read."""
    name = f"{path.parent.name}/{path.name}"
    if rows is not None:
        return [f"{name}: {rows.unread} damaged lines are left out"] if rows.unread else []
    stamp = _stamp(path)
    size = f"{stamp[1] / 2**20:,.0f} MB" if stamp else "gone"
    return [f"{name} is not read ({size}): the curves are TensorBoard's"]


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size


def _latest(folder: Path, stem: str, suffix: str) -> Path | None:
    """Of ``stem.suffix``, ``stem_1.suffix``, ... the last."""
    numbered = {}
    for name in _names(folder):
        match = re.fullmatch(rf"{stem}(?:_(\d{{1,9}}))?\.{suffix}", name)
        if match:
            numbered[int(match[1] or 0)] = folder / name
    return numbered[max(numbered)] if numbered else None
