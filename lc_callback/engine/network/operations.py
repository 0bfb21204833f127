"""The operations with kinks, one row each: what kind of function it is, where its kinks are, and its slope.

Rows are keyed by the name of the aten operation, without the trailing underscore of its in-place form; an operation of
another library has its namespace before it, ``"mylib::softclip"``. An activation that is one operation of its own needs
one row here; one that is composed of these operations needs none. Whoever brings an operation adds its row before the
model is measured::

    OPERATIONS["mylib::softclip"] = Operation(Kind.PIECEWISE_AFFINE, lambda x: [(x, -1.0), (x, 1.0)], slope)

Without a slope it is counted, too, but not continued beyond its kinks by the linear method.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "OPERATIONS",
    "Kind",
    "Kink",
    "Operation",
    "has_slope",
    "is_a",
    "is_zero_below",
    "kinks_of",
    "named",
    "relative",
    "slope_of",
]

#: A pre-activation and the value at which its non-linearity has a kink. ``None``: the tensor holds the index of the
#: winning input of a maximum, and the kink is where the winner changes.
Kink = tuple[Tensor, float | None]


class Kind(Enum):
    """What kind of function an operation is."""

    PIECEWISE_AFFINE = "piecewise affine"
    SMOOTH = "smooth"  # counted at zero, by the convention of the papers
    SQUASHING = "squashing"  # smooth; turns logits into probabilities where it comes last, and nothing switches there
    BROKEN = "broken"  # piecewise affine, and jumps at its kinks
    JUMP = "jump"  # constant but for jumps
    BINARY_MIN_MAX = "binary minimum or maximum"  # piecewise affine, of two tensors the larger or the smaller
    MAX_POOLING = "max-pooling"  # the largest of a window, with its index
    SELECTION = "selection"  # the largest, the smallest or some by rank, along axes


@dataclass(frozen=True)
class Operation:
    """One row.

    Attributes:
        kind: of the function.
        kinks: called as the operation is; returns what meets the kinks. ``None`` where there are none, or the winners
            say where they are.
        slope: called as the operation is; returns the derivative, where there is one and it is constant in pieces.
        is_zero_below: whether its slope is 0 on one side of its first kink: what is there may hide what comes behind.
    """

    kind: Kind
    kinks: Callable[..., list[Kink]] | None = None
    slope: Callable[..., Tensor] | None = None
    is_zero_below: bool = False


def _at_zero(x: Tensor, *args: Any, **kwargs: Any) -> list[Kink]:
    return [(x, 0.0)]


def _at_three(x: Tensor) -> list[Kink]:
    return [(x, -3.0), (x, 3.0)]


def _at_both(x: Tensor, bound: float = 0.5) -> list[Kink]:
    return [(x, -bound), (x, bound)]


def _at_bounds(x: Tensor, min: Any = None, max: Any = None) -> list[Kink]:  # noqa: A002 (the argument names of aten)
    bounds = (bound for bound in (min, max) if bound is not None)
    return [(x - bound, 0.0) if isinstance(bound, Tensor) else (x, float(bound)) for bound in bounds]


def _where_equal(x: Tensor, y: Tensor) -> list[Kink]:
    return [(x - y, 0.0)]


def _above(x: Tensor, bound: Any) -> Tensor:
    """1 where it is, else 0: as booleans it takes ten times as long."""
    return torch.gt(x, bound, out=torch.empty_like(x))


def _between(x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool) if low is None else x > low
    return inside if high is None else inside & (x < high)


def _outside(x: Tensor, bound: float = 0.5) -> Tensor:
    return x.abs() > bound


def _leaky(x: Tensor, slope: Any = 0.01) -> Tensor:
    return torch.where(x > 0, 1.0, slope)


_AFFINE, _SMOOTH, _MIN_MAX = Kind.PIECEWISE_AFFINE, Kind.SMOOTH, Kind.BINARY_MIN_MAX

OPERATIONS: dict[str, Operation] = {
    "relu": Operation(_AFFINE, _at_zero, lambda x: _above(x, 0)),  # 0 below, by rules of its own: it is everywhere
    "leaky_relu": Operation(_AFFINE, _at_zero, _leaky),
    "prelu": Operation(_AFFINE, _at_zero, _leaky),
    "_prelu_kernel": Operation(_AFFINE, _at_zero, _leaky),
    "rrelu_with_noise": Operation(
        _AFFINE, _at_zero, lambda x, noise, low=1 / 8, high=1 / 3, *_: _leaky(x, (low + high) / 2)
    ),
    "abs": Operation(_AFFINE, _at_zero, torch.sign),
    "relu6": Operation(_AFFINE, lambda x: [(x, 0.0), (x, 6.0)], lambda x: _between(x, 0, 6), is_zero_below=True),
    "hardtanh": Operation(
        _AFFINE,
        lambda x, min_val=-1.0, max_val=1.0: _at_bounds(x, min_val, max_val),
        lambda x, low=-1.0, high=1.0: _between(x, low, high),
        is_zero_below=True,
    ),
    "hardsigmoid": Operation(_AFFINE, _at_three, lambda x: _between(x, -3, 3) / 6, is_zero_below=True),
    "softshrink": Operation(_AFFINE, _at_both, _outside),
    "clamp": Operation(
        _AFFINE,
        _at_bounds,
        lambda x, min=None, max=None: _between(x, min, max),  # noqa: A006 (the argument names of aten)
        is_zero_below=True,
    ),
    "clamp_min": Operation(_AFFINE, _at_bounds, lambda x, low, *_: _between(x, low), is_zero_below=True),
    "clamp_max": Operation(
        _AFFINE,
        lambda x, bound: _at_bounds(x, max=bound),
        lambda x, high: _between(x, None, high),
        is_zero_below=True,
    ),
    "maximum": Operation(_MIN_MAX, _where_equal, torch.gt),
    "fmax": Operation(_MIN_MAX, _where_equal, torch.gt),
    "minimum": Operation(_MIN_MAX, _where_equal, torch.lt),
    "fmin": Operation(_MIN_MAX, _where_equal, torch.lt),
    "threshold": Operation(
        Kind.BROKEN,
        lambda x, threshold, value: [(x, threshold)],
        lambda x, threshold, value: _above(x, threshold),
        is_zero_below=True,
    ),
    "hardshrink": Operation(Kind.BROKEN, _at_both, _outside),
    **dict.fromkeys(("elu", "celu", "selu", "gelu", "silu", "mish", "softplus", "erf"), Operation(_SMOOTH, _at_zero)),
    "hardswish": Operation(_SMOOTH, _at_three),
    "glu": Operation(_SMOOTH, lambda x, dim=-1: [(x.chunk(2, dim)[1], 0.0)]),
    **dict.fromkeys(("tanh", "sigmoid", "log_sigmoid_forward"), Operation(Kind.SQUASHING, _at_zero)),
    **dict.fromkeys(("sign", "sgn", "round", "floor", "ceil", "trunc", "frac", "heaviside"), Operation(Kind.JUMP)),
    # Quantisers: as one of the above, of (values, mask), or in place of what they quantise.
    "fake_quantize_per_tensor_affine_cachemask": Operation(Kind.JUMP),
    "_fake_quantize_per_tensor_affine_cachemask_tensor_qparams": Operation(Kind.JUMP),
    "fake_quantize_per_channel_affine_cachemask": Operation(Kind.JUMP),
    "_fake_quantize_learnable_per_tensor_affine": Operation(Kind.JUMP),
    "_fake_quantize_learnable_per_channel_affine": Operation(Kind.JUMP),
    "_fused_moving_avg_obs_fq_helper": Operation(Kind.JUMP),
    "_fused_moving_avg_obs_fq_helper_functional": Operation(Kind.JUMP),
    "fused_moving_avg_obs_fake_quant": Operation(Kind.JUMP),
    "max_pool2d_with_indices": Operation(Kind.MAX_POOLING),
    "max_pool3d_with_indices": Operation(Kind.MAX_POOLING),
    "adaptive_max_pool2d": Operation(Kind.MAX_POOLING),
    "adaptive_max_pool3d": Operation(Kind.MAX_POOLING),
    **dict.fromkeys(("amax", "max", "amin", "min", "topk", "sort", "kthvalue"), Operation(Kind.SELECTION)),
    **dict.fromkeys(("median", "nanmedian", "cummax", "cummin"), Operation(Kind.SELECTION)),
}


def is_a(op: str, *kinds: Kind) -> bool:
    """Whether an operation is of one of these kinds."""
    return op in OPERATIONS and OPERATIONS[op].kind in kinds


def named(*kinds: Kind) -> frozenset[str]:
    """The operations of these kinds."""
    return frozenset(op for op, row in OPERATIONS.items() if row.kind in kinds)


def kinks_of(op: str, args: Any, kwargs: Any) -> list[Kink]:
    """What meets the kinks of an operation that is about to be executed."""
    kinks = OPERATIONS[op].kinks
    assert kinks is not None
    return kinks(*args, **kwargs)


def slope_of(op: str, args: Any, kwargs: Any) -> Tensor:
    """The derivative of an operation that has a slope, of the shape of its operands."""
    slope = OPERATIONS[op].slope
    assert slope is not None
    return slope(*args, **kwargs)


def has_slope(op: str) -> bool:
    """Whether the derivative is known, and constant in pieces."""
    return op in OPERATIONS and OPERATIONS[op].slope is not None


def is_zero_below(op: str) -> bool:
    """Whether an operation returns 0 on one side of its first kink."""
    return op in OPERATIONS and OPERATIONS[op].is_zero_below


def relative(z: Tensor, kink: float | None) -> Tensor:
    """A pre-activation relative to a kink."""
    return z - kink if kink else z
