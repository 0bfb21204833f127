"""Guards against division by zero: lower bounds that change nothing but a divisor near zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

__all__ = ["Guards", "is_guard"]

_LARGEST = 1e-3  # above this a bound is more than a guard
_MAXIMA = {"maximum", "fmax"}
# What a divisor may go through before it divides: the result is still only a divisor.
_THROUGH = {"sqrt", "expand", "view", "_unsafe_view", "unsqueeze", "squeeze", "clone", "_to_copy", "detach", "alias"}
_THROUGH |= {"expand_as", "view_as", "reshape", "_reshape_alias", "permute", "transpose", "t", "select", "slice", "mT"}


class Guards:
    """Follows the results of small lower bounds, and finds those that are read only as divisors.

    Tensors are known by their memory, which has to stay alive.
    """

    def __init__(self) -> None:
        self._held: dict[int, int] = {}  # position of the bound, by memory
        self._divisors: set[int] = set()  # positions
        self._others: set[int] = set()
        self._alive: list[Any] = []

    def __bool__(self) -> bool:
        return bool(self._held)

    def add(self, position: int, memories: set[int], result: Any) -> None:
        """What was emitted at this position has a tiny lower bound."""
        self._held.update(dict.fromkeys(memories, position))
        self._alive.append(result)

    def read(self, op: str, args: Sequence[Any], memories: Sequence[set[int]], results: set[int], result: Any) -> None:
        """An operation ran: ``memories`` are those of each of its arguments."""
        read = [self._held.keys() & found for found in memories]
        positions = {self._held[memory] for found in read for memory in found}
        if not positions:
            return
        if op in _THROUGH:
            self.add(min(positions), results, result)
        elif _divides(op, args, read):
            self._divisors |= positions
        else:
            self._others |= positions

    def found(self, returned: set[int]) -> set[int]:
        """Positions of those that are only divisors, given the memories of what the model returned."""
        return self._divisors - self._others - {self._held[memory] for memory in self._held.keys() & returned}


def is_guard(op: str, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether an operation is a tiny lower bound, and nothing else."""
    if op in _MAXIMA:
        return any(map(_is_tiny, args[:2]))
    if op not in ("clamp", "clamp_min"):
        return False
    bounds = [*args[1:], *kwargs.values()]
    low = args[1] if len(args) > 1 else kwargs.get("min")
    return _is_tiny(low) and all(bound is None or bound is low for bound in bounds)


def _is_tiny(bound: Any) -> bool:
    if isinstance(bound, Tensor) and bound.numel() != 1:
        return False
    return isinstance(bound, (int, float, Tensor)) and 0 < float(bound) <= _LARGEST


def _divides(op: str, args: Sequence[Any], read: Sequence[set[int]]) -> bool:
    if op in ("reciprocal", "rsqrt"):
        return True
    if op == "pow":
        return isinstance(args[1], (int, float)) and args[1] < 0
    divisor = {"div": 1, "addcdiv": 2}.get(op)
    return divisor is not None and not any(found for place, found in enumerate(read) if place != divisor)
