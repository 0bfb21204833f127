"""Directional derivatives of a network, from the operations that it was seen to execute."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.max_pools import WINNERS
from lc_callback.engine.network.operations import OPERATIONS, Kind, Knot, has_slope, is_a, knots_of, named, slope_of
from lc_callback.engine.network.recorder import (
    memory_of,
    memory_order,
    reduced,
    relative,
    restored,
    surely_finite,
)
from lc_callback.engine.replay.affine_piece import is_hidden, past_kink, relu_slope
from lc_callback.engine.replay.program import HAND_OVER, MOVE, Tape

__all__ = ["Dual", "NoRule", "differentiate"]

Room = Callable[[Tensor, int], Tensor]
Receive = Callable[[int, list[Knot], "Dual"], None]


class NoRule(Exception):  # noqa: N818 (no error: there is another method)
    """An operation of which the derivative is not known here."""


@dataclass
class Dual:
    """A tensor at some points, and what it changes by along each direction.

    Attributes:
        value: ``(n, ...)``.
        tangent: ``(k, n, ...)``, or ``(k, 1, ...)`` if it is the same at all points.
        factor: what ``tangent`` still has to be multiplied by, of a shape that fits ``value``; ``None`` is 1.
        whole: ``(1 + k, n, ...)``: memory of its own, of which all but the first is ``tangent``.
        hidden: ``(n, ...)``: which units of a pre-activation are 0 because of others; ``None`` for none.
    """

    value: Tensor
    tangent: Tensor
    factor: Tensor | None = None
    whole: Tensor | None = None
    hidden: Tensor | None = None
    _steepest: Tensor | None = None

    def __post_init__(self) -> None:
        if self.tangent.shape[1] not in (1, len(self.value)) or self.tangent.shape[2:] != self.value.shape[1:]:
            raise NoRule  # the points are not where they were

    @staticmethod
    def of(whole: Tensor) -> Dual:
        """Of ``(1 + k, n, ...)``."""
        return Dual(whole[0], whole[1:], whole=whole)

    def scaled(self, result: Tensor, slope: Tensor) -> Dual:
        """Behind an operation that acts on each unit by itself."""
        return Dual(result, self.tangent, slope if self.factor is None else self.factor * slope, self.whole)

    def shares(self, other: Dual) -> bool:
        """Whether the directions of both are in one memory."""
        return memory_of(self.tangent) == memory_of(other.tangent)

    def slopes(self) -> Tensor:
        """``tangent`` times ``factor``."""
        return self.tangent if self.factor is None else self.tangent * self.factor

    def together(self, room: Room | None = None, *, overwrite: bool = False) -> Tensor:
        """``(1 + k, n, ...)``: both, ``factor`` done.

        Args:
            room: memory to be used, by default new.
            overwrite: whether ``whole`` may be used.
        """
        if self.whole is not None and self.factor is None and _is_same(self.value, self.whole[0]):
            return self.whole
        if overwrite and self.whole is not None:
            whole = self.whole
            if self.factor is not None:
                self.tangent.mul_(self.factor)
        else:
            order = memory_order(self.tangent, 2)
            shape = [1 + self.tangent.shape[0], self.value.shape[0], *(self.tangent.shape[axis] for axis in order[2:])]
            memory = self.value.new_empty(shape) if room is None else room(self.value, math.prod(shape)).view(shape)
            whole = restored(memory, order)
            if self.factor is None:
                whole[1:] = self.tangent
            else:
                torch.mul(self.tangent.expand_as(whole[1:]), self.factor, out=whole[1:])
        whole[0] = self.value
        return whole

    def steepest(self) -> Tensor:
        """``(n, ...)``: the largest absolute value of the ``k`` derivatives; NaN if one is."""
        if self._steepest is None:
            # In half the time of their absolute values.
            size = reduced(self.tangent, lambda slopes: torch.maximum(slopes.amax(0), -slopes.amin(0)))
            scaled = size if self.factor is None else size * self.factor.abs()
            self._steepest = scaled.expand_as(self.value)
        return self._steepest


def _is_same(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.stride() == other.stride()


def differentiate(
    tape: Tape, inputs: Any, samples: int, move: Callable[[Any], Dual], receive: Receive, room: Room
) -> None:
    """Execute what leads to a pre-activation, at points ``(n,)``, with the derivatives along ``k`` directions.

    Args:
        tape: what is executed.
        inputs: what the model would be called with; what moves is a :class:`Dual`.
        samples: ``n``.
        move: called with the output of the module where the samples are moved.
        receive: called with the number of each pre-activation, its knots at the points, and what they are of. It has to
            copy what it keeps, for this may be overwritten.
        room: memory for what is not needed for long.

    Raises:
        NoRule: if there is an operation of which the derivative is not known here.
    """
    values = tape.start([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, (Tensor, Dual))])
    known = _Values(values, room)
    for step in tape.steps:
        args, kwargs = tape.arguments(step, values, samples)
        for number in step.spent:  # now, so that it is known what nothing else needs
            values[number] = None
        if step.op == MOVE:
            values[step.outputs[0]] = move(*args)
            continue
        duals = [place for place, argument in enumerate(args) if _moves(argument)]
        at_points = args.copy()
        for place in duals:
            at_points[place] = _at_point(args[place])
        if step.op == HAND_OVER or (step.position >= 0 and duals != [0]) or any(map(_moves, kwargs.values())):
            raise NoRule(step.op)
        if step.position >= 0 and step.op not in WINNERS:
            knots = knots_of(step.op, at_points, kwargs)
            if step.position > 0:  # the first has none before it
                args[0].hidden = is_hidden(relative(*knots[0]), args[0].steepest())
            receive(step.position, knots, args[0])
        if step.idle:
            continue
        if not duals:
            result = step.func(*args, **kwargs)
        elif step.op in _RULES:
            result = _RULES[step.op](step, args, at_points, kwargs, known)
        else:
            raise NoRule(step.op)
        results = result if isinstance(result, (tuple, list)) else (result,)
        for number, tensor in zip(step.outputs, results, strict=False):
            if number >= 0:
                values[number] = tensor
        del args, at_points, result, results  # here the last of what is not needed any more goes


@dataclass
class _Values:
    """What is known by now, and memory for what is not needed for long."""

    known: list[Any]
    room: Room

    def alone(self, dual: Dual) -> bool:
        """Whether a tensor, which is not needed after this step, may be overwritten."""
        return dual.whole is not None and not any(type(other) is Dual and dual.shares(other) for other in self.known)

    def together(self, dual: Dual, room: Room | None = None) -> Tensor:
        """Of a tensor that is the only one its step reads: in its own memory, if nothing else needs that."""
        return dual.together(room, overwrite=self.alone(dual))


def _at_point(value: Any) -> Any:
    return [*map(_at_point, value)] if isinstance(value, list) else value.value if isinstance(value, Dual) else value


def _moves(value: Any) -> bool:
    return isinstance(value, Dual) or (isinstance(value, (list, tuple)) and any(map(_moves, value)))


# The rules: (step, arguments, the same at the points, keywords, values) to what the operation returns


def _mapped(dual: Dual, values: _Values, function: Callable[[Tensor], Tensor], bias: Tensor | None = None) -> Dual:
    """By a linear map, the point itself and all directions at once; ``bias`` is added to the point."""
    whole = values.together(dual, values.room)
    result = Dual.of(function(whole.flatten(0, 1)).unflatten(0, whole.shape[:2]))
    if bias is not None:
        result.value += bias
    return result


def _linear(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    """An operation that is linear in its first operand, and may return a view of it."""
    _only_first(step, args)
    if step.func._schema.is_mutable:
        raise NoRule(step.op)
    whole = values.together(args[0])
    return Dual.of(step.func(whole.flatten(0, 1), *args[1:], **kwargs).unflatten(0, whole.shape[:2]))


def _convolution(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    _only_first(step, args)
    x, weight, bias, *rest = args
    bias = None if bias is None else bias.view(-1, *[1] * (x.value.ndim - 2))
    return _mapped(x, values, lambda z: step.func(z, weight, None, *rest, **kwargs), bias)


def _addmm(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    if kwargs or isinstance(args[0], Dual) or isinstance(args[2], Dual):
        raise NoRule(step.op)
    return _mapped(args[1], values, lambda z: torch.mm(z, args[2]), args[0])


def _product(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    _only_first(step, args)
    return _mapped(args[0], values, lambda z: torch.mm(z, args[1]))


def _batch_norm(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Any:
    """With the statistics that it has: one factor for each channel."""
    x, weight, _bias, _mean, variance, training, _momentum, eps = args
    if training or any(isinstance(arg, Dual) for arg in args[1:]):
        raise NoRule(step.op)
    results = step.func(*at_points, **kwargs)
    slope = (variance + eps).rsqrt()
    slope = (slope if weight is None else slope * weight).view(-1, *[1] * (x.value.ndim - 2))
    return (x.scaled(results[0], slope), *results[1:])


def _diagonal(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    """A non-linearity with a kink."""
    _only_first(step, args)
    z = at_points[0]
    if step.op == "relu":
        slope = relu_slope(z, args[0].hidden)
        lost = None if surely_finite(z) else z == -math.inf
        result = torch.mul(z, slope, out=z if step.func._schema.is_mutable else torch.empty_like(z))
        if lost is not None:  # whose ReLU is finite
            result.masked_fill_(lost, 0.0)
        return args[0].scaled(result, slope)
    slope = slope_of(step.op, at_points, kwargs).to(z.dtype)  # before it is overwritten
    before = [z.clone() if step.func._schema.is_mutable else z, *at_points[1:]]
    result = step.func(*at_points, **kwargs)
    passed, slope = past_kink(step.op, before, kwargs, result, slope)
    return args[0].scaled(result if passed is result else result.copy_(passed), slope)


def _sum(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    if len(args) > 2 or set(kwargs) - {"alpha"}:
        raise NoRule(step.op)
    one, other = args
    if isinstance(one, Dual) and isinstance(other, Dual):
        if one.value.shape != other.value.shape:
            raise NoRule(step.op)
        alpha = kwargs.get("alpha", 1) * (-1 if step.op == "sub" else 1)
        if alpha == 1 and values.alone(other):
            one, other = other, one
        if one.shares(other) or not values.alone(one):
            return Dual.of(torch.add(one.together(), other.together(), alpha=alpha))
        result = Dual.of(one.together(overwrite=True))
        result.value.add_(other.value, alpha=alpha)
        result.tangent.add_(other.slopes(), alpha=alpha)
        return result
    dual = one if isinstance(one, Dual) else other
    result = step.func(*at_points, **kwargs)
    if result.shape != dual.value.shape or (dual is other and (step.op == "sub" or kwargs)):
        raise NoRule(step.op)
    return Dual(result, dual.tangent, dual.factor)


def _taken_from(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    """What does not move, less what does."""
    _only_first(step, args)
    result = step.func(*at_points, **kwargs)
    if len(args) > 2 or kwargs or result.shape != args[0].value.shape:
        raise NoRule(step.op)
    return args[0].scaled(result, result.new_full((), -1.0))


def _multiple(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    """A product with what does not move, or a quotient by it."""
    one, other = args[:2]
    if step.op == "mul" and isinstance(other, Dual):
        one, other = other, one
    if len(args) > 2 or kwargs or not isinstance(one, Dual) or isinstance(other, Dual):
        raise NoRule(step.op)
    shape = one.value.shape
    own = isinstance(other, Tensor)  # which may be overwritten next
    slope = other.to(one.value, copy=True) if own else one.value.new_full((), other)
    result = step.func(*at_points)
    if result.shape != shape:
        raise NoRule(step.op)
    return one.scaled(result, slope.reciprocal() if step.op == "div" else slope)


def _view(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    _only_first(step, args)
    shape = step.func(*at_points, **kwargs).shape
    whole = values.together(args[0])
    return Dual.of(whole.reshape(len(whole), *shape))


def _pad(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    """With zeros."""
    if kwargs or any(args[2:]):
        raise NoRule(step.op)
    return _linear(step, args, at_points, kwargs, values)


def _cat(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Dual:
    """Side by side, also with what does not move."""
    parts, dim = args[0], args[1] if len(args) > 1 else 0
    first = next(part for part in parts if isinstance(part, Dual))
    if len(args) > 2 or kwargs or dim % first.value.ndim == 0:
        raise NoRule(step.op)
    shape = 1 + len(first.tangent), len(first.value)
    together = []
    for part in parts:
        if not isinstance(part, Dual):
            part = Dual(part, part.new_zeros(shape[0] - 1, 1, *part.shape[1:]))
        together.append(part.together().flatten(0, 1))
    return Dual.of(torch.cat(together, dim).unflatten(0, shape))


def _winners(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: _Values) -> Any:
    """What wins at the points."""
    _only_first(step, args)
    whole = values.together(args[0], values.room)
    if whole.ndim != (6 if "3d" in step.op else 5):
        raise NoRule(step.op)
    result, winners = step.func(*at_points, **kwargs)
    flat = whole.flatten(3)
    chosen = flat.gather(-1, winners.flatten(2).expand(len(flat), -1, -1, -1))
    return Dual.of(chosen.view(len(flat), *result.shape)), winners


def _only_first(step: Any, args: list[Any]) -> None:
    if not isinstance(args[0], Dual) or any(isinstance(argument, Dual) for argument in args[1:]):
        raise NoRule(step.op)


_RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((op for op in OPERATIONS if has_slope(op) and not is_a(op, Kind.EXTREME)), _diagonal),
    **dict.fromkeys(named(Kind.MAX_POOLING), _winners),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("mul", "div"), _multiple),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("mean", "sum", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d"), _linear),
    **dict.fromkeys(("select", "slice", "transpose", "permute", "unsqueeze", "squeeze", "neg", "clone"), _linear),
    **dict.fromkeys(
        ("upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle", "reflection_pad2d", "flip"), _linear
    ),
    "constant_pad_nd": _pad,
    "cat": _cat,
    "native_batch_norm": _batch_norm,
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _product,
    "rsub": _taken_from,
}
