"""Which non-linearities only shape what the model returns, or of which only an index is read."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from torch import Tensor

from lc_callback.engine.network.layout import memories_of
from lc_callback.engine.network.max_pools import WINNERS
from lc_callback.engine.network.operations import Kind, is_a
from lc_callback.engine.network.points import main_output

__all__ = ["Outlets"]


class Outlets:
    """Follows what squashing functions and maxima return, by the position of what they emitted."""

    def __init__(self) -> None:
        self._squashed: dict[int, tuple[int, Tensor]] = {}  # by memory, and so kept alive
        self._read: set[int] = set()  # of these memories, by something that is no view
        self._largest: dict[int, tuple[int, Tensor]] = {}  # values of maxima that nothing has read, likewise

    def read(self, args: Any, result: Any) -> None:
        """An operation read its arguments and returned a result."""
        if self._largest:
            for memory in memories_of(args) & self._largest.keys():
                del self._largest[memory]
        if self._squashed:
            self._read |= (memories_of(args) - memories_of(result)) & self._squashed.keys()

    def emitted(self, op: str, position: int, result: Any) -> None:
        """An operation, which emitted something at this position, returned a result."""
        if op in WINNERS and not isinstance(result, Tensor):
            self._largest.update(dict.fromkeys(memories_of(result[0]), (position, result[0])))
        if is_a(op, Kind.SQUASHING):
            squashed = result[0] if isinstance(result, tuple) else result
            self._squashed.update(dict.fromkeys(memories_of(squashed), (position, squashed)))

    def found(self, output: Any) -> set[int]:
        """Positions of maxima of which the model takes the index only, and of squashing functions that made its output.

        What is returned beside the main output, and read on the way to it, is a layer.
        """
        returned = memories_of(output)
        decisions = {position for memory, (position, _) in self._largest.items() if memory not in returned}
        with suppress(ValueError):  # it has none
            returned -= self._read - memories_of(main_output(output))
        links = {position for memory, (position, _) in self._squashed.items() if memory in returned}
        self._largest.clear()
        self._squashed.clear()
        return decisions | links
