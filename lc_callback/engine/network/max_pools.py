"""Maxima of several values: which operations choose a winner, and the numbers that change when it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.engine.network.operations import Kind, named

__all__ = ["MAX_POOLS", "MINIMA", "winners_of"]

# Operations that return (values, index of the winner) of windows.
_OF_WINDOWS = named(Kind.MAX_POOLING)
#: Of these the smallest wins.
MINIMA = {"amin", "min"}
# Along axes; ``max``, ``min`` and those with ranks return (values, index), unless of all values there are.
_ALONG = {"amax", "max"} | MINIMA
#: Operations that choose winners: of windows, along axes, or by rank.
MAX_POOLS = named(Kind.MAX_POOLING, Kind.SELECTION)


def winners_of(op: str, result: Any, args: Any, kwargs: Any, max_pool: bool | str) -> list[Tensor]:
    """Integers that change when a winner does, one for each unit of an executed operation; empty without winners.

    A unit is an output; of ``topk`` a candidate, which is among the winners or not; of ``sort`` a cut between two
    neighbours in the order, on each side of which there is a set. With ``max_pool="candidates"`` it is what competes,
    ``(*units, K)``, as far as one of ``K`` wins.
    """
    x = args[0]
    whole = isinstance(result, Tensor) and op not in ("amax", "amin")
    if whole or not (x.is_floating_point() and x.ndim):
        return []
    if max_pool == "candidates":
        if op in _OF_WINDOWS:
            return [_candidates(op, result[0], *args, **kwargs)]
        return [_in_a_row(op, *args, **kwargs).unsqueeze(-2)] if op in _ALONG else []
    if op in ("amax", "amin"):
        return [_in_a_row(op, *args, **kwargs).argmax(-1)]
    if op == "topk":
        dim = args[2] if len(args) > 2 else kwargs.get("dim", -1)
        return [torch.zeros_like(x, dtype=torch.long).scatter_(dim, result[1], 1)]
    if op == "sort":
        return [_cuts(result[1], kwargs.get("dim", args[1] if len(args) > 1 else -1))]
    return [result[1]]


def _in_a_row(op: str, x: Tensor, dim: Any = (), *_: Any, **__: Any) -> Tensor:
    """``(*units, K)``: what competes along some axes, of which the largest wins."""
    dims = [dim] if isinstance(dim, int) else list(dim) or [*range(x.ndim)]
    competing = x.movedim(dims, [*range(-len(dims), 0)]).flatten(-len(dims))
    return -competing if op in MINIMA else competing


def _cuts(order: Tensor, dim: int) -> Tensor:
    """A number for each set of the first k of n, by the indices of what was sorted."""
    n = order.shape[dim]
    number = torch.randint(2**62, (n,), generator=torch.Generator().manual_seed(0)).to(order.device)
    return number[order].cumsum(dim).narrow(dim, 0, n - 1)


def _candidates(
    op: str, result: Tensor, x: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
) -> Tensor:
    """What competes in max-pooling, ``(*result.shape, K)``."""
    axes = 3 if "3d" in op else 2
    kernel, stride, padding, dilation = (_each(v, axes) for v in (kernel, stride or kernel, padding, dilation))
    places = []
    for axis, (n, size) in enumerate(zip(x.shape[-axes:], result.shape[-axes:], strict=True)):
        at = torch.arange(size, device=x.device)[:, None]
        if op.startswith("adaptive"):
            first, last = at * n // size, (at * n + n - 1) // size
            place = first + torch.arange(int((last - first).max()) + 1, device=x.device)
            outside = place > last
        else:
            place = at * stride[axis] - padding[axis] + dilation[axis] * torch.arange(kernel[axis], device=x.device)
            outside = (place < 0) | (place >= n)
        shape = [1] * (2 * axes)
        shape[axis], shape[axes + axis] = place.shape
        places.append(place.where(~outside, n).view(shape))
    padded = nn.functional.pad(x, (0, 1) * axes, value=-float("inf"))
    index: Any = (Ellipsis, *places)
    return padded[index].flatten(-axes)


def _each(value: Any, axes: int) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * axes if len(values) == 1 else values
