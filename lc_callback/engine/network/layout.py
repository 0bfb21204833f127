"""How tensors lie in memory: which memory it is, and the order of their axes there."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.operations import Knot

__all__ = [
    "memories_of",
    "memory_of",
    "memory_or_none",
    "memory_order",
    "permuted",
    "reduced",
    "restored",
    "surely_finite",
    "viewed",
]

_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor is in, as long as that is alive; of a sparse one, that of its values."""
    return _dense(tensor).untyped_storage()._cdata


def _dense(tensor: Tensor) -> Tensor:
    """What holds the values of a tensor: of a sparse one its values."""
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in _COMPRESSED else tensor


def memories_of(tree: Any) -> set[int]:
    """Of all tensors in it."""
    return {memory for leaf in tree_leaves(tree) if (memory := memory_or_none(leaf)) is not None}


def memory_or_none(value: Any) -> int | None:
    """Which memory a value is in; ``None`` if it is no tensor, or has none."""
    if isinstance(value, Tensor):
        with suppress(RuntimeError):  # it has none
            return memory_of(value)
    return None


def surely_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, if that is quickly known: a sum takes a third of the time of a maximum."""
    return tensor.device.type == "cpu" and math.isfinite(float(tensor.sum()))  # a GPU would wait


def memory_order(tensor: Tensor, first: int) -> list[int]:
    """The axes, those from the ``first`` on as they are in the memory."""
    return [*range(first), *sorted(range(first, tensor.ndim), key=tensor.stride, reverse=True)]


def permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """The tensor with its axes in this order: itself, if they are, for a view takes time."""
    return tensor if order == [*range(tensor.ndim)] else tensor.permute(order)


def restored(tensor: Tensor, order: list[int]) -> Tensor:
    """What :func:`permuted` took, from what it returned."""
    return permuted(tensor, [order.index(axis) for axis in range(len(order))])


def reduced(z: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``reduce`` makes of ``(k, n, ...)``, ``(n, ...)``, read in the order of the memory."""
    order = memory_order(z, 2)
    return restored(reduce(permuted(z, order)), [axis - 1 for axis in order[1:]])


def viewed(knots: list[Knot], view: Callable[[Tensor], Tensor]) -> list[Knot]:
    """The knots with views of their tensors: one, where several are of the same tensor."""
    views: list[Knot] = []
    for i, (z, knot) in enumerate(knots):
        views.append((views[-1][0] if i and z is knots[i - 1][0] else view(z), knot))
    return views
