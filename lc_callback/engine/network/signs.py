"""On which sides of zero the values of a network can be: ``-relu(x)`` is never above zero, ``abs(x)`` never below."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lc_callback.engine.network.by_memory import ByMemory
from lc_callback.engine.network.operations import has_slope

__all__ = ["Sides", "Signs"]


class Sides(NamedTuple):
    """Where values can be.

    Attributes:
        above: whether they may be above zero.
        below: whether they may be below.
        rest: whether they may stay at zero while the input moves, as those of ReLU do.
    """

    above: bool
    below: bool
    rest: bool

    def crosses(self, kink: float) -> bool:
        """Whether they may be both above a kink and not above it, as far as zero tells."""
        if kink >= 0 and not self.above:
            return False
        return not (kink <= 0 and not self.below and (kink < 0 or not self.rest))


_ANY = Sides(True, True, False)  # of an affine map of many units: it rests nowhere
_UNKNOWN = Sides(True, True, True)
_POSITIVE = Sides(True, False, False)

_ABOVE = {"exp", "sigmoid", "softplus", "_softmax"}
# These return some values of their first operand, or means or sums of them, or values of the same sign.
_KEEP = {"mean", "sum", "clone", "_to_copy", "detach", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d", "amax"}
_KEEP |= {"amin", "flip", "repeat", "index", "index_select", "gather", "pixel_shuffle", "leaky_relu", "reshape"}
_KEEP |= {"max_pool2d_with_indices", "max_pool3d_with_indices", "upsample_nearest2d", "upsample_bilinear2d"}
_KEEP |= {
    "reflection_pad2d",
    "replication_pad2d",
    "upsample_nearest1d",
    "sort",
    "topk",
    "adaptive_max_pool2d",
    "max",
    "min",
}
_KEEP |= {"tanh", "silu", "gelu", "mish", "elu", "celu", "selu", "erf"}


class Signs(ByMemory[Sides]):
    """Follows on which sides of zero values can be."""

    def __init__(self) -> None:
        super().__init__(_ANY)

    def _either(self, one: Sides, other: Sides) -> Sides:
        return Sides(*map(max, one, other))

    def _found(self, op: str, func: Any, args: Sequence[Any], kwargs: Any, read: Sequence[int | None]) -> Sides:
        if op in _ABOVE:
            return _POSITIVE
        if not read:
            return _ANY
        first = self(read[0])
        if op in ("abs", "sqrt"):
            return Sides(True, False, first.rest)
        if op == "pow" and isinstance(args[1], (int, float)) and args[1] > 0 and args[1] % 2 == 0:
            return Sides(True, False, first.rest)
        if op in _KEEP:
            return first
        if op in _BOUNDED:
            return self._bounded(op, args, kwargs, first)
        if op == "neg":
            return Sides(first.below, first.above, first.rest)
        if op == "mul" and args[0] is args[1]:
            return Sides(True, False, first.rest)
        if op in _ARITHMETIC and len(args) == 2 and not kwargs:
            one, other = (self._operand(arg, memory) for arg, memory in zip(args, read, strict=True))
            return _ARITHMETIC[op](one, other)
        if op == "hardsigmoid":
            return Sides(True, False, True)
        return _UNKNOWN if has_slope(op) or op == "hardswish" else _ANY

    @staticmethod
    def _bounded(op: str, args: Sequence[Any], kwargs: Any, sides: Sides) -> Sides:
        bounds = dict(zip(_BOUNDED[op], args[1:], strict=False)) | kwargs
        low = 0.0 if op in ("relu", "relu6") else bounds.get("min")
        high = bounds.get("max")
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return _UNKNOWN
        above, below, rest = sides
        if low is not None and low >= 0:
            above, below, rest = above or low > 0, False, low == 0 and (rest or below)
        if high is not None and high <= 0:
            above, below, rest = False, below or high < 0, high == 0 and (rest or above)
        return Sides(above, below, rest)

    def _operand(self, value: Any, memory: int | None) -> Sides:
        if isinstance(value, (int, float)):
            return Sides(value > 0, value < 0, value == 0)
        return self(memory)


def _negative(sides: Sides) -> Sides:
    return Sides(sides.below, sides.above, sides.rest)


def _product(one: Sides, other: Sides) -> Sides:
    above = (one.above and other.above) or (one.below and other.below)
    below = (one.above and other.below) or (one.below and other.above)
    return Sides(above, below, one.rest or other.rest)


def _sum(one: Sides, other: Sides) -> Sides:
    above, below = one.above or other.above, one.below or other.below
    return Sides(above, below, (above and below) or (one.rest and other.rest))  # values of both sides may cancel


def _larger(one: Sides, other: Sides) -> Sides:
    positive = any(not (sides.below or sides.rest) for sides in (one, other))
    return Sides(one.above or other.above, one.below and other.below, not positive)


_BOUNDED: dict[str, Sequence[str]] = {"relu": (), "relu6": (), "hardtanh": ("min", "max"), "clamp": ("min", "max")}
_BOUNDED |= {"clamp_min": ("min",), "clamp_max": ("max",)}
_ARITHMETIC: dict[str, Callable[[Sides, Sides], Sides]] = {
    "add": _sum,
    "sub": lambda one, other: _sum(one, _negative(other)),
    "rsub": lambda one, other: _sum(other, _negative(one)),
    "mul": _product,
    "div": _product,
    "maximum": _larger,
    "minimum": lambda one, other: _negative(_larger(_negative(one), _negative(other))),
}
