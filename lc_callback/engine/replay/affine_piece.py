"""The affine piece of a network at some points, which is followed instead of the network itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.engine.network.layers import Execution
from lc_callback.engine.network.operations import Kind, has_slope, is_a, is_zero_below, kinks_of, slope_of
from lc_callback.engine.network.recorder import Recorder

__all__ = [
    "AffinePieces",
    "AffineRecorder",
    "execute_affine",
    "is_hidden",
    "negligible",
    "past_kink",
    "relu_slope",
]


class AffinePieces(Execution):
    """Continues each non-linearity with a kink as the affine function that it is at the first sample of a point.

    So all samples of a point see one affine map, that of the network at the point. A smooth non-linearity stays as it
    is: for small steps it is near to its derivative.

    Attributes:
        here: where the samples are in the operand of the next non-linearity; ``None`` leaves that one as it is.
        block: how many samples a point has, of which the first is the point itself; and how many points there are.
        pools_rows: whether all max-pooling has one sample in each row of its first axis. Else its winners may change.
    """

    def __init__(self, pools_rows: bool) -> None:
        super().__init__()
        self.pools_rows = pools_rows
        self.block = 0, 0

    def recorder(self, model: nn.Module, receive: Callable[..., None], options: dict[str, Any]) -> Recorder:
        """What observes the model."""
        return AffineRecorder(self, model, receive, **options)

    def execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute a recorded operation that may have a kink."""
        return execute_affine(self, op, func, args, kwargs)


class AffineRecorder(Recorder):
    """A recorder that executes operations as :class:`AffinePieces` does."""

    def __init__(self, pieces: AffinePieces, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._pieces, pieces.here = pieces, None

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        return execute_affine(self._pieces, op, func, args, kwargs)

    def _executed(self, op: str, result: Any, followed: bool) -> None:
        self._pieces.here = None  # no non-linearity comes next, until something is emitted


def execute_affine(pieces: AffinePieces, op: str, func: Any, args: Any, kwargs: Any) -> Any:
    """Execute an operation. If it has a kink, it is continued as :class:`AffinePieces` says."""
    here, block = pieces.here, pieces.block
    pools_rows = pieces.pools_rows and is_a(op, Kind.MAX_POOLING) and args[0].ndim == (5 if "3d" in op else 4)
    if pools_rows and len(args[0]) == math.prod(block):  # else it is a constant
        values, winners = func(*args, **kwargs)
        flat, chosen = (t.flatten(2).unflatten(0, block) for t in (args[0], winners))
        chosen = chosen[:1].expand(chosen.shape)
        return flat.gather(-1, chosen).view(values.shape), chosen.reshape(winners.shape)
    if here is None or not has_slope(op):
        return func(*args, **kwargs)
    if is_a(op, Kind.BINARY_MIN_MAX):
        args = torch.broadcast_tensors(*args)
    x = args[0]
    in_place = func._schema.is_mutable

    def by_point(tensor: Tensor) -> Tensor:
        return here.to_front(tensor, math.prod(block)).unflatten(0, block)

    z = by_point(x)
    if op == "relu":
        slope = relu_slope(z[:1], is_hidden(z[:1], lambda: (z - z[:1]).abs_().amax(0, keepdim=True), 2))
        if in_place:
            z.mul_(slope)
            return x
        result = torch.empty_like(x)
        torch.mul(z, slope, out=by_point(result))
        return result
    slope = by_point(slope_of(op, args, kwargs).to(x.dtype).expand(x.shape))[:1]
    at_point = by_point(func(x.clone() if in_place else x, *args[1:], **kwargs))[:1]
    if is_a(op, Kind.BINARY_MIN_MAX):
        y = by_point(args[1])
        new = slope * z + (1 - slope) * y
        beyond = torch.where(slope == 1, y - z, z - y)  # how far the operand that did not win is beyond the kink
        new += beyond * faint(beyond[:1], 2).where(at_point == 0, 0)
    else:
        at_point, slope = past_kink(op, args, kwargs, at_point, slope, by_point)
        new = at_point + slope * (z - z[:1])
    result = x if in_place else torch.empty_like(x)
    by_point(result).copy_(new)
    return result


def relu_slope(z: Tensor, hidden: Tensor | None) -> Tensor:
    """The slope of ReLU at ``z``. ``hidden`` says which units are 0 because of other units, see :func:`is_hidden`.

    An inactive unit gets a tiny slope instead of 0, see :func:`faint`. So a later unit that is 0 only because this one
    is inactive switches where this one does. A hidden unit that is above 0 by rounding gets slope 0: it is 0, and it
    does not switch.
    """
    slope = torch.ge(z, 0, out=torch.empty_like(z)).clamp_(min=_faint(z.dtype))
    return slope if hidden is None else torch.where(hidden, (z <= 0).to(z.dtype), slope)


def is_hidden(z: Tensor, reach: Callable[[], Tensor] | Tensor, axes: int = 1) -> Tensor | None:
    """Which units are 0, and stay 0, because units before them are inactive; ``None`` if none is.

    Args:
        z: the values.
        reach: how far each unit moves along the directions, or a function that returns this.
        axes: how many of the first axes belong to the points.
    """
    if not callable(reach):  # if every unit moves by more than rounding, none is hidden
        if z.device.type == "cpu" and reach.numel():  # a GPU would wait
            least, most = map(float, torch.aminmax(reach))
            if least > 8 * torch.finfo(z.dtype).eps * most and most < math.inf:
                return None
        return (z.abs() <= negligible(z, axes)) & (reach <= negligible(reach, axes))
    near = z.abs() <= negligible(z, axes)
    if z.device.type == "cpu" and not near.any():
        return None
    found = reach()
    return near & (found <= negligible(found, axes))


def past_kink(
    op: str, args: Any, kwargs: Any, at_point: Tensor, slope: Tensor, view: Callable[[Tensor], Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """Result and slope of an operation at the points. Where both are 0, the slope is tiny, see :func:`relu_slope`."""
    if not is_zero_below(op):
        return at_point, slope
    z, kink = kinks_of(op, args, kwargs)[0]
    axes, z = (1, z) if view is None else (2, view(z)[:1])
    beyond = z - (kink or 0.0)
    some = faint(beyond, axes).where((slope == 0) & (at_point == 0), 0).to(slope.dtype)
    return at_point + (beyond * some).nan_to_num(0.0, 0.0, 0.0), slope + some


def faint(beyond: Tensor, axes: int) -> Tensor:
    """The slope beyond a kink where the network is flat: tiny, but 1 for values that are negligible themselves."""
    return torch.where(beyond.abs() <= negligible(beyond, axes), 1.0, _faint(beyond.dtype)).to(beyond.dtype)


def negligible(z: Tensor, axes: int) -> Tensor:
    """``(*points, 1, ...)``: smaller values are only rounding, compared with the largest value of their point."""
    size = z.abs().flatten(axes).amax(-1) if z.ndim > axes else z.abs()
    size = (8 * torch.finfo(z.dtype).eps * size).nan_to_num(0.0, 0.0, 0.0)
    return size.view(*size.shape, *[1] * (z.ndim - axes))


def _faint(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 128
