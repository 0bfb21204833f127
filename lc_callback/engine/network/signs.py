"""On which sides of zero the values of a network can be: ``-relu(x)`` is never above zero."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from lc_callback.engine.network.layout import may_be_a_part

__all__ = ["Signs"]

# Whether values may be above zero, and whether they may be below.
Sides = tuple[bool, bool]
_ANY: Sides = (True, True)

_ABOVE = {"abs", "exp", "sigmoid", "softplus", "sqrt", "hardsigmoid", "_softmax"}
# These return some values of their first operand, or means or sums of them.
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


class Signs:
    """Follows on which sides of zero values can be. Tensors are known by their memory, which is kept alive."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Sides, Tensor]] = {}

    def __call__(self, memory: int | None) -> Sides:
        """Of what is in this memory."""
        return self._known[memory][0] if memory in self._known else _ANY

    def executed(
        self, op: str, writes: bool, args: Sequence[Any], kwargs: Any, memories: Sequence[int | None], out: Any
    ) -> None:
        """An operation, which ``writes`` in place, returned ``out``; ``memories`` are of its arguments and of this."""
        *read, written = memories
        if written is None or not out.is_floating_point():
            return
        sides = self._sides(op, args, kwargs, read)
        if written in read and not writes:  # a view
            sides = self(written)
        elif written in read and may_be_a_part(out):
            sides = _sum(sides, self(written))
        if sides == _ANY:
            self._known.pop(written, None)
        else:
            self._known[written] = sides, out

    def _sides(self, op: str, args: Sequence[Any], kwargs: Any, read: Sequence[int | None]) -> Sides:
        if op in _ABOVE:
            return True, False
        if op in _KEEP and read:
            return self(read[0])
        if op in _BOUNDED:
            return self._bounded(op, args, kwargs, self(read[0]))
        if op == "neg":
            return self(read[0])[::-1]
        if op in _ARITHMETIC and len(args) == 2 and not kwargs:
            one, other = (self._operand(arg, memory) for arg, memory in zip(args, read, strict=True))
            return _ARITHMETIC[op](one, other)
        return _ANY

    @staticmethod
    def _bounded(op: str, args: Sequence[Any], kwargs: Any, sides: Sides) -> Sides:
        bounds = dict(zip(_BOUNDED[op], args[1:], strict=False)) | kwargs
        low = 0.0 if op in ("relu", "relu6") else bounds.get("min")
        high = bounds.get("max")
        above, below = sides
        if isinstance(low, (int, float)) and low >= 0:
            above, below = above or low > 0, False
        if isinstance(high, (int, float)) and high <= 0:
            above, below = False, below or high < 0
        return (above, below) if not (isinstance(low, Tensor) or isinstance(high, Tensor)) else _ANY

    def _operand(self, value: Any, memory: int | None) -> Sides:
        if isinstance(value, (int, float)):
            return value > 0, value < 0
        return self(memory)


def _product(one: Sides, other: Sides) -> Sides:
    (up, down), (rises, falls) = one, other
    return (up and rises) or (down and falls), (up and falls) or (down and rises)


def _sum(one: Sides, other: Sides) -> Sides:
    return one[0] or other[0], one[1] or other[1]


_BOUNDED: dict[str, Sequence[str]] = {"relu": (), "relu6": (), "hardtanh": ("min", "max"), "clamp": ("min", "max")}
_BOUNDED |= {"clamp_min": ("min",), "clamp_max": ("max",)}
_ARITHMETIC = {
    "add": _sum,
    "sub": lambda one, other: _sum(one, other[::-1]),
    "rsub": lambda one, other: _sum(other, one[::-1]),
    "mul": _product,
    "div": _product,
    "maximum": lambda one, other: (one[0] or other[0], one[1] and other[1]),
    "minimum": lambda one, other: (one[0] and other[0], one[1] or other[1]),
}
