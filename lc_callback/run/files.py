"""The files of a run: never those of another run, and complete at any moment."""

from __future__ import annotations

import errno
import math
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["ROOM_FOR_LINES", "ROOM_FOR_PICTURES", "LineFile", "beside", "check_room", "free_bytes", "safe_name"]

# What has to be free for pictures, and for lines of text. The rest of a disk is left to the training: where it is full,
# the thread that writes TensorBoard's files dies, and the next `self.log` ends the run.
ROOM_FOR_PICTURES, ROOM_FOR_LINES = 16 * 2**20, 64 * 2**10

_LONGEST = 120  # bytes of a name: most file systems take 255, and more is put before and behind it


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to. At the end the file there is renamed to ``path``.

    A link of that name is replaced, and what it leads to stays as it is. After an error the old file is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    if part.is_symlink():
        part.unlink()
    try:
        yield part
        part.replace(path)
    except OSError:
        with suppress(OSError):
            part.unlink(missing_ok=True)  # half a file takes room on a disk that may be full
        raise


def safe_name(text: str) -> str:
    """``text`` as part of the name of a file: no separator or control character, and not too long.

    Example::

        >>> from lc_callback.run.files import safe_name
        >>> safe_name("wide/lc")
        'wide_lc'
    """
    name = re.sub(r"[/\\\x00-\x1f\x7f\ud800-\udfff]", "_", text)
    encoded = name.encode()
    if len(encoded) <= _LONGEST:
        return name
    return f"{encoded[: _LONGEST - 9].decode(errors='ignore')}_{zlib.crc32(encoded):08x}"


def free_bytes(folder: Path) -> float:
    """Bytes that are free on the disk of a folder, which need not exist yet; infinite if nobody can say."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except FileNotFoundError:
            continue
        except OSError:
            break
    return math.inf


def check_room(folder: Path, needed: int) -> None:
    """Raise an OSError if so many bytes are not free on the disk of a folder."""
    free = free_bytes(folder)
    if free < needed:
        text = f"{free / 1024:,.0f} kB are free, and the last {needed // 1024:,} kB are left to the training"
        raise OSError(errno.ENOSPC, text, str(folder))


class LineFile:
    """A file of lines, complete on disk when :meth:`write` or :meth:`append` returns.

    A file that is there already is left alone, and the next free name (``history_1.csv``, ...) is taken. Of two runs
    that begin in one folder, each gets its own.

    Args:
        folder: where.
        name: such as ``history.csv``.
        is_ours: whether the text of a file is that of this run, which is resumed and goes on in it; ``None`` if it is
            a new run.

    Attributes:
        path: the file.
        passed_over: of a resumed run, the first file that is there and not its own, and why.
    """

    def __init__(self, folder: Path, name: str, is_ours: Callable[[str], bool] | None) -> None:
        self._folder, (self._stem, self._suffix), self._number = folder, os.path.splitext(name), -1
        self.passed_over: tuple[Path, str] | None = None
        self.path = self._next()
        #: Whether the file is this run's, and not only its name.
        self.is_owned = False
        self._torn = False
        while is_ours is not None and os.path.lexists(self.path):
            why = _why_not(self.path, is_ours)
            if not why:
                self.is_owned, self.passed_over = True, None
                return
            self.passed_over = self.passed_over or (self.path, why)
            self.path = self._next()
        while os.path.lexists(self.path):
            self.path = self._next()

    def write(self, text: str) -> None:
        """Write all of the file."""
        if self.path.is_dir():
            self.is_owned = False
        self._own()
        with beside(self.path) as part, part.open("w", newline="", encoding="utf-8") as file:
            file.write(text)

    def append(self, lines: Callable[[], str], whole: Callable[[], str], *, anew: bool = False) -> None:
        """Write ``lines()`` to its end; or ``whole()``, with these, if its end is not known to be good, or ``anew``."""
        anew, self._torn = anew or self._torn or not self._is_whole(), True  # unless this succeeds, the next is whole
        if anew:
            self.write(whole())
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                file.write(lines())
        self._torn = False

    def _is_whole(self) -> bool:
        """Whether the file is still there, under its own name."""
        return self.is_owned and self.path.is_file() and not self.path.is_symlink()

    def _own(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        while not self.is_owned:
            try:
                self.path.open("x").close()
                self.is_owned = True
            except FileExistsError:  # by now: of another run, in another process
                self.path = self._next()

    def _next(self) -> Path:
        self._number += 1
        number = f"_{self._number}" if self._number else ""
        return self._folder / f"{self._stem}{number}{self._suffix}"


def _why_not(path: Path, is_ours: Callable[[str], bool]) -> str:
    """Why a file is not that of this run; empty if it is."""
    try:
        return "" if is_ours(path.read_bytes().decode()) else "it does not begin with what the checkpoint has"
    except (OSError, ValueError) as error:  # a folder, no permission, or bytes that are no UTF-8
        return f"{type(error).__name__}: {error}"
