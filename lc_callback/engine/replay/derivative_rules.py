"""The rules by which operations act on dual numbers.

A rule is called with the step, its arguments, the same arguments at the points, its keywords, and all values known so
far. It returns the result of the operation. If an operation has no rule, the whole model is followed by small steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lc_callback.engine.network.layout import surely_finite
from lc_callback.engine.network.operations import OPERATIONS, Kind, has_slope, is_a, named, slope_of
from lc_callback.engine.replay.affine_piece import past_kink, relu_slope
from lc_callback.engine.replay.dual import Dual, DualValues, NoRule
from lc_callback.engine.replay.recording import in_words

__all__ = ["RULES", "rule_of"]


def _mapped(dual: Dual, values: DualValues, function: Callable[[Tensor], Tensor], bias: Tensor | None = None) -> Dual:
    """Applies a linear map to the point and all directions at once. ``bias`` is added to the point only."""
    whole = values.together(dual, values.room)
    result = Dual.of(function(whole.flatten(0, 1)).unflatten(0, whole.shape[:2]))
    if bias is not None:
        result.value += bias
    return result


def _linear(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """An operation that is linear in its first operand, and acts on each row of it alone. It may return a view."""
    _only_first(step, args)
    if step.func._schema.is_mutable:
        raise _no_rule(step)
    whole = values.together(args[0])
    rows = whole.flatten(0, 1)
    result = step.func(rows, *args[1:], **kwargs)
    if len(result) != len(rows):
        raise _no_rule(step)
    return Dual.of(result.unflatten(0, whole.shape[:2]))


def _along_axes(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """A linear operation on given axes. The first may be among them, and the points need not be on it."""
    if not isinstance(args[0], Dual) or not _reads_first_axis(step, args, kwargs):
        return _linear(step, args, at_points, kwargs, values)
    _only_first(step, args)
    if step.func._schema.is_mutable:
        raise _no_rule(step)
    return Dual.of(torch.vmap(lambda z: step.func(z, *args[1:], **kwargs))(values.together(args[0])))


def _reads_first_axis(step: Any, args: list[Any], kwargs: Any) -> bool:
    """Whether an operation moves, reduces or takes part of the first axis of its operand."""
    ndim = args[0].value.ndim + (step.op == "unsqueeze")
    axes: list[int] = []
    for place, argument in enumerate(step.func._schema.arguments):
        if argument.name in ("dim", "dims", "dim0", "dim1"):
            given = args[place] if place < len(args) else kwargs.get(argument.name, argument.default_value)
            axes += given if isinstance(given, (list, tuple)) else [] if given is None else [given]
    if step.op == "constant_pad_nd":
        return len(args[1]) >= 2 * ndim
    if step.op == "permute":
        return axes[0] % ndim != 0
    return any(axis % ndim == 0 for axis in axes) or (not axes and step.op in ("mean", "sum"))  # these act on all


def _convolution(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    _only_first(step, args)
    x, weight, bias, *rest = args
    bias = None if bias is None else bias.view(-1, *[1] * (x.value.ndim - 2))
    return _mapped(x, values, lambda z: step.func(z, weight, None, *rest, **kwargs), bias)


def _addmm(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    if kwargs or isinstance(args[0], Dual) or isinstance(args[2], Dual):
        raise _no_rule(step)
    product = _thin_product if step.for_output else torch.mm
    return _mapped(args[1], values, lambda z: product(z, args[2]), args[0])


def _thin_product(z: Tensor, weight: Tensor) -> Tensor:
    """A product of many rows that has few columns: the transposed product takes half the time."""
    return torch.mm(weight.T, z.T).T


def _product(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    _only_first(step, args)
    return _mapped(args[0], values, lambda z: torch.mm(z, args[1]))


def _batch_norm(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Any:
    """With fixed statistics it is one factor for each channel."""
    x, weight, _bias, _mean, variance, training, _momentum, eps = args
    if training or any(isinstance(arg, Dual) for arg in args[1:]):
        raise _no_rule(step)
    results = step.func(*at_points, **kwargs)
    slope = (variance + eps).rsqrt()
    slope = (slope if weight is None else slope * weight).view(-1, *[1] * (x.value.ndim - 2))
    return (x.scaled(results[0], slope), *results[1:])


def _diagonal(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """A non-linearity with a kink."""
    _only_first(step, args)
    z = at_points[0]
    if step.op == "relu":
        slope = relu_slope(z, args[0].hidden)
        lost = None if surely_finite(z) else z == -math.inf
        result = torch.mul(z, slope, out=z if step.func._schema.is_mutable else torch.empty_like(z))
        if lost is not None:  # the ReLU of -inf is 0
            result.masked_fill_(lost, 0.0)
        return args[0].scaled(result, slope)
    slope = slope_of(step.op, at_points, kwargs).to(z.dtype)  # before it is overwritten
    before = [z.clone() if step.func._schema.is_mutable else z, *at_points[1:]]
    result = step.func(*at_points, **kwargs)
    passed, slope = past_kink(step.op, before, kwargs, result, slope)
    return args[0].scaled(result if passed is result else result.copy_(passed), slope)


def _sum(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    if len(args) > 2 or set(kwargs) - {"alpha"}:
        raise _no_rule(step)
    one, other = args
    if isinstance(one, Dual) and isinstance(other, Dual):
        if one.value.shape != other.value.shape:
            raise _no_rule(step)
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
        raise _no_rule(step)
    return Dual(result, dual.tangent, dual.factor)


def _taken_from(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """A fixed tensor minus one that moves."""
    _only_first(step, args)
    result = step.func(*at_points, **kwargs)
    if len(args) > 2 or kwargs or result.shape != args[0].value.shape:
        raise _no_rule(step)
    return args[0].scaled(result, result.new_full((), -1.0))


def _multiple(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """A product with a fixed tensor, or a quotient by it."""
    one, other = args[:2]
    if step.op == "mul" and isinstance(other, Dual):
        one, other = other, one
    if len(args) > 2 or kwargs or not isinstance(one, Dual) or isinstance(other, Dual):
        raise _no_rule(step)
    shape = one.value.shape
    own = isinstance(other, Tensor)  # the next step may overwrite it
    slope = other.to(one.value, copy=True) if own else one.value.new_full((), other)
    result = step.func(*at_points)
    if result.shape != shape:
        raise _no_rule(step)
    return one.scaled(result, slope.reciprocal() if step.op == "div" else slope)


def _view(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    _only_first(step, args)
    shape = step.func(*at_points, **kwargs).shape
    whole = values.together(args[0])
    return Dual.of(whole.reshape(len(whole), *shape))


def _pad(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """Padding with zeros."""
    if kwargs or any(args[2:]):
        raise _no_rule(step)
    return _along_axes(step, args, at_points, kwargs, values)


def _cat(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Dual:
    """Puts tensors side by side, also with fixed ones."""
    parts, dim = args[0], args[1] if len(args) > 1 else 0
    if len(args) > 2 or kwargs:
        raise _no_rule(step)
    first = next(part for part in parts if isinstance(part, Dual))
    k, axis = len(first.tangent), dim % first.value.ndim
    together = []
    for part in parts:
        if not isinstance(part, Dual):
            part = Dual(part, part.new_zeros(k, 1, *part.shape[1:]))
        together.append(part.together())
    return Dual.of(torch.cat(together, axis + 1))


def _winners(step: Any, args: list[Any], at_points: list[Any], kwargs: Any, values: DualValues) -> Any:
    """Max-pooling: takes the values of those that win at the points."""
    _only_first(step, args)
    whole = values.together(args[0], values.room)
    if whole.ndim != (6 if "3d" in step.op else 5):
        raise _no_rule(step)
    result, winners = step.func(*at_points, **kwargs)
    flat = whole.flatten(3)
    chosen = flat.gather(-1, winners.flatten(2).expand(len(flat), -1, -1, -1))
    return Dual.of(chosen.view(len(flat), *result.shape)), winners


def _no_rule(step: Any) -> NoRule:
    return NoRule(f"{in_words(step)} has no derivative rule for what it gets here")


def _only_first(step: Any, args: list[Any]) -> None:
    if not isinstance(args[0], Dual) or any(isinstance(argument, Dual) for argument in args[1:]):
        raise _no_rule(step)


RULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys((op for op in OPERATIONS if has_slope(op) and not is_a(op, Kind.BINARY_MIN_MAX)), _diagonal),
    **dict.fromkeys(named(Kind.MAX_POOLING), _winners),
    **dict.fromkeys(("add", "sub"), _sum),
    **dict.fromkeys(("mul", "div"), _multiple),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "_reshape_alias"), _view),
    **dict.fromkeys(("select", "slice", "transpose", "permute", "unsqueeze", "squeeze", "flip"), _along_axes),
    **dict.fromkeys(("mean", "sum"), _along_axes),
    **dict.fromkeys(("neg", "clone", "avg_pool2d", "avg_pool3d", "_adaptive_avg_pool2d"), _linear),
    **dict.fromkeys(("upsample_nearest2d", "upsample_bilinear2d", "pixel_shuffle", "reflection_pad2d"), _linear),
    "constant_pad_nd": _pad,
    "cat": _cat,
    "native_batch_norm": _batch_norm,
    "convolution": _convolution,
    "addmm": _addmm,
    "mm": _product,
    "rsub": _taken_from,
}


def rule_of(op: str) -> Callable[..., Any] | None:
    """The rule of an operation, if there is one; also of one whose row was added later."""
    is_later = "::" in op and has_slope(op) and not is_a(op, Kind.BINARY_MIN_MAX)
    return RULES.get(op, _diagonal if is_later else None)
