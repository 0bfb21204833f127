"""At which values a network is flat: ``hardtanh`` at -1 and at 1, twice its result at -2 and at 2."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from lc_callback.engine.network.by_memory import ByMemory
from lc_callback.engine.network.layout import memory_or_none
from lc_callback.engine.network.operations import Kind, has_slope, is_a, is_zero_below, kinks_of, slope_of

__all__ = ["Plateaus"]

# A value, and whether the linear method sees where a unit leaves it: where one operation returned 0 below its kink.
Plateau = tuple[float, bool]

_NONE: frozenset[Plateau] = frozenset()
_PLAIN = (int, float, str, type(None))
_MOST = 16  # values that are followed; sums of many have no more plateaus than others
# These return values of their first operand ...
_KEEP = {"clone", "_to_copy", "detach", "flip", "repeat", "index", "index_select", "gather", "reshape", "pixel_shuffle"}
# ... or one value of several units, which leaves a plateau with the first of them: affine pieces do not tell where.
_MERGE = {"mean", "sum", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "amax", "amin", "adaptive_max_pool2d"}
_MERGE |= {"max_pool2d_with_indices", "max_pool3d_with_indices"}
_SUMS = {"add", "sub", "rsub"}
_ARITHMETIC: dict[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "rsub": lambda a, b: b - a,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
}


class Plateaus(ByMemory[frozenset[Plateau]]):
    """Follows at which values tensors are flat."""

    def __init__(self) -> None:
        super().__init__(_NONE)

    def meets(self, memory: int | None, kink: float | None) -> bool:
        """Whether what is in this memory is flat right at a kink, and the linear method does not see it."""
        if kink is None:
            return False
        return any(not seen and math.isclose(value, kink, rel_tol=1e-6) for value, seen in self(memory))

    def _either(self, one: frozenset[Plateau], other: frozenset[Plateau]) -> frozenset[Plateau]:
        return _few(one | other)

    def _found(
        self, op: str, func: Any, args: Sequence[Any], kwargs: Any, read: Sequence[int | None]
    ) -> frozenset[Plateau]:
        return _few(self._all(op, func, args, kwargs, read))

    def _all(
        self, op: str, func: Any, args: Sequence[Any], kwargs: Any, read: Sequence[int | None]
    ) -> frozenset[Plateau]:
        before = self(read[0]) if read else _NONE
        if op in _KEEP:
            return before
        if op in _MERGE:
            return _unseen(before)
        if op in ("cat", "stack"):
            return _NONE.union(*(self(memory_or_none(part)) for part in args[0]))
        if op == "neg":
            return frozenset((-value, seen) for value, seen in before)
        if op in _ARITHMETIC and len(args) == 2 and not kwargs:
            one, other = (self._operand(arg, memory) for arg, memory in zip(args, read, strict=True))
            fixed = any(not isinstance(arg, Tensor) or arg.numel() == 1 for arg in args)
            if fixed:
                return _combined(op, one, other)
            return _unseen(_combined(op, one, other)) if op in _SUMS else _NONE
        if op == "glu" or "::" in op or not _is_of_one(args, kwargs):
            return _NONE
        call = _Call(op, func, tuple(args[1:]), tuple(kwargs.items()))
        if is_a(op, Kind.PIECEWISE_AFFINE) and has_slope(op):
            passed = _passed(call, before)
            return _own(call) | (_unseen(passed) if op == "abs" else passed)
        return _passed(call, before) if is_a(op, Kind.SMOOTH, Kind.SQUASHING) else _NONE

    def _operand(self, value: Any, memory: int | None) -> frozenset[Plateau]:
        """The plateaus of an operand; a number is one."""
        if isinstance(value, (int, float)):
            return frozenset([(float(value), True)])
        if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex() and not self(memory):
            with _disable_current_modes():
                return frozenset([(float(value), True)])
        return self(memory)


def _few(plateaus: frozenset[Plateau]) -> frozenset[Plateau]:
    return plateaus if len(plateaus) <= _MOST else _NONE


def _is_of_one(args: Sequence[Any], kwargs: Any) -> bool:
    """Whether an operation is called with one dense tensor of real numbers, and else plain values."""
    if not args or not isinstance(args[0], Tensor):
        return False
    if args[0].layout is not torch.strided or not args[0].is_floating_point():
        return False
    return all(isinstance(each, _PLAIN) for each in (*args[1:], *kwargs.values()))


def _unseen(plateaus: frozenset[Plateau]) -> frozenset[Plateau]:
    return frozenset((value, False) for value, _ in plateaus)


def _combined(op: str, one: frozenset[Plateau], other: frozenset[Plateau]) -> frozenset[Plateau]:
    """Where both are flat, a sum, a product, ... is."""
    pairs = ((a, b, seen and also) for a, seen in one for b, also in other if op != "div" or b)
    results = ((_ARITHMETIC[op](a, b), seen) for a, b, seen in pairs)
    return frozenset((value, seen and value == 0) for value, seen in results)


class _Call(NamedTuple):
    """An operation that acts on each value by itself, and what it is called with besides the values."""

    op: str
    func: Any
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]

    def at(self, values: Sequence[float]) -> list[float]:
        """The results."""
        with _disable_current_modes():
            result = self.func(torch.tensor(values, dtype=torch.float64), *self.args, **dict(self.kwargs))
            found: list[float] = (result[0] if isinstance(result, tuple) else result).tolist()
        return found


@functools.cache
def _own(call: _Call) -> frozenset[Plateau]:
    """Of an operation with kinks."""
    kwargs = dict(call.kwargs)
    with _disable_current_modes():
        found = [kink for _, kink in kinks_of(call.op, (torch.zeros(1), *call.args), kwargs)]
        kinks = sorted(kink for kink in found if kink is not None)
        if not kinks:
            return _NONE
        between = [(low + high) / 2 for low, high in pairwise(kinks)]
        at = torch.tensor([kinks[0] - 1, *between, kinks[-1] + 1], dtype=torch.float64)
        slopes = slope_of(call.op, (at, *call.args), kwargs).expand(at.shape).tolist()
    seen = call.op == "relu" or is_zero_below(call.op)
    values = call.at(at.tolist())
    return frozenset((value, seen and value == 0) for value, slope in zip(values, slopes, strict=True) if slope == 0)


@functools.cache
def _passed(call: _Call, before: frozenset[Plateau]) -> frozenset[Plateau]:
    """What an operation makes of the plateaus of its operand."""
    values = call.at([value for value, _ in before]) if before else []
    return frozenset((new, seen and new == 0) for new, (_, seen) in zip(values, before, strict=True))
