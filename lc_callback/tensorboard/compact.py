"""Numbers as short JSON: six digits, and what is not finite as text."""

from __future__ import annotations

import json
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

__all__ = ["Grids", "json_numbers", "json_object", "json_steps"]

Floats = NDArray[np.float64]


def json_numbers(values: Floats) -> str:
    """A JSON list. NaN and infinite values become ``"nan"``, ``"inf"`` and ``"-inf"``, which JSON has no numbers for.

    Example::

        >>> import numpy as np
        >>> from lc_callback.tensorboard.compact import json_numbers
        >>> json_numbers(np.array([1 / 3, np.nan, 2e9]))
        '[0.333333,"nan",2e+09]'
    """
    texts: Iterable[str] = map("%.6g".__mod__, values.tolist())
    if not np.isfinite(values).all():
        texts = (text if text[-1].isdigit() else f'"{text}"' for text in texts)
    return f"[{','.join(texts)}]"


def json_steps(steps: Floats) -> str:
    """A JSON list of integers."""
    return f"[{','.join(map('%d'.__mod__, steps.tolist()))}]"


def json_object(**parts: str) -> str:
    """A JSON object of values that are JSON already.

    Example::

        >>> from lc_callback.tensorboard.compact import json_object
        >>> json_object(steps="[0,1]", tag='"lc/train"')
        '{"steps":[0,1],"tag":"lc/train"}'
    """
    return "{" + ",".join(f"{json.dumps(name)}:{value}" for name, value in parts.items()) + "}"


class Grids:
    """The grids of steps that several series share, each once."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[bytes, bytes], int] = {}
        self._texts: list[str] = []

    def number_of(self, steps: Floats, wall: Floats | None = None) -> int:
        """The number of a grid, and of the seconds at its steps if they are known."""
        key = steps.tobytes(), b"" if wall is None else wall.tobytes()
        if key not in self._numbers:
            self._numbers[key] = len(self._texts)
            times = {} if wall is None else {"wall": f"[{','.join(map('%.2f'.__mod__, wall.tolist()))}]"}
            self._texts.append(json_object(steps=json_steps(steps), **times))
        return self._numbers[key]

    def json(self) -> str:
        """All grids, in the order of their numbers."""
        return f"[{','.join(self._texts)}]"
