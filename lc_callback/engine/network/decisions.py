"""What is noted of each operation while it is traced: whether it compares, rounds, casts, chooses, or is unknown."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_callback.engine.network.max_pools import MAX_POOLS
from lc_callback.engine.network.operations import OPERATIONS, Kind, is_a

__all__ = ["Decisions"]

# Operations of these namespaces round what they get.
_ROUNDING_NAMESPACES = {"quantized", "quantized_decomposed", "torchao"}
# Operations of these have no kinks, or they are in the table; all others are of a library that we do not know.
_KNOWN_NAMESPACES = _ROUNDING_NAMESPACES | {"aten", "prims", "c10d", "c10d_functional", "_c10d_functional", "fsdp"}
# These decide by values, but not between two numbers next to each other: whether one is missing, say.
_BUT_FOR_POINTS = {"eq", "ne", "isnan", "isinf", "logical_not", "logical_and", "logical_or", "logical_xor"}


class Decisions:
    """The operations that decide by values, each with the number of values that it returned.

    Attributes:
        jumps: operations before the last pre-activation that are constant but for jumps.
        choices: operations before the first one that decide by values.
        casts: floating-point types to which values were rounded.
        maxima: operations that choose a winner which is not followed.
        pooled: of each max-pooling among these, the length of the first axis.
        unknown: operations of other libraries that have no row in the table.
    """

    def __init__(self) -> None:
        self.jumps: list[tuple[str, int]] = []
        self.choices: list[tuple[str, int]] = []
        self.casts: list[tuple[torch.dtype, int]] = []
        self.maxima: list[tuple[str, int]] = []
        self.pooled: list[int] = []
        self.unknown: list[tuple[str, int]] = []
        self._jumps_since: list[tuple[str, int]] = []  # the last pre-activation

    def executed(self, op: str, func: Any, args: Any, result: Any, *, is_first: bool) -> None:
        """An operation ran; ``is_first``: before the first pre-activation."""
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if func.namespace not in _KNOWN_NAMESPACES and op not in OPERATIONS and isinstance(first, Tensor):
            self.unknown.append((op, first.numel()))
        if not (isinstance(first, Tensor) and args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
            return
        if op == "_to_copy" and _is_coarser(first.dtype, args[0].dtype):
            self.casts.append((first.dtype, first.numel()))
        decides = first.dtype is torch.bool or not (first.is_floating_point() or first.is_complex())
        if (decides or op == "nan_to_num") and is_first:
            self.choices.append((op, first.numel()))
        to_bool = op == "_to_copy" and first.dtype is torch.bool
        rounds = is_a(op, Kind.JUMP, Kind.BROKEN) or func.namespace in _ROUNDING_NAMESPACES
        if rounds or (decides and not to_bool and op not in _BUT_FOR_POINTS):
            self._jumps_since.append((op, first.numel()))

    def chosen(self, op: str, result: Any) -> None:
        """An operation ran of which the winners, if it chooses any, are not followed."""
        if op in MAX_POOLS:
            values = result if isinstance(result, Tensor) else result[0]
            if values.is_floating_point() and values.ndim:
                self.maxima.append((op, values.numel()))
                if is_a(op, Kind.MAX_POOLING):
                    self.pooled.append(len(values))

    def emitted(self) -> None:
        """A pre-activation was met."""
        self.jumps += self._jumps_since
        self._jumps_since.clear()


def _is_coarser(one: torch.dtype, other: torch.dtype) -> bool:
    return one.is_floating_point and torch.finfo(one).eps > torch.finfo(other).eps
