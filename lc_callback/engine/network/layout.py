"""How tensors lie in memory: which memory it is, and the order of their axes there."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.operations import Kink

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

_PLAIN = {int, float, bool, str, type(None), torch.dtype, torch.device}
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor is in, as long as that is alive; of a sparse one, that of its values."""
    return (tensor if tensor.layout is torch.strided else _dense(tensor)).untyped_storage()._cdata


def _dense(tensor: Tensor) -> Tensor:
    """What holds the values of a tensor: of a sparse one its values."""
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in _COMPRESSED else tensor


def memories_of(tree: Any) -> set[int]:
    """Of all tensors in it."""
    if isinstance(tree, Tensor):
        memory = memory_or_none(tree)
        return set() if memory is None else {memory}
    found: set[int] = set()
    rest = [tree]
    while rest:  # arguments of operations are lists and tuples, of which pytree is slow to find the leaves
        item = rest.pop()
        kind = type(item)
        if kind is list or kind is tuple:
            rest += item
        elif kind is dict:
            rest += item.values()
        elif kind is Tensor or isinstance(item, Tensor):
            memory = memory_or_none(item)
            if memory is not None:
                found.add(memory)
        elif kind not in _PLAIN:
            leaves = tree_leaves(item)
            rest += leaves if len(leaves) != 1 or leaves[0] is not item else ()
    return found


def memory_or_none(value: Any) -> int | None:
    """Which memory a value is in; ``None`` if it is no tensor, or has none."""
    if isinstance(value, Tensor):
        try:
            return memory_of(value)
        except RuntimeError:  # it has none
            return None
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


def viewed(kinks: list[Kink], view: Callable[[Tensor], Tensor]) -> list[Kink]:
    """The kinks with views of their tensors: one, where several are of the same tensor."""
    views: list[Kink] = []
    for i, (z, kink) in enumerate(kinks):
        views.append((views[-1][0] if i and z is kinks[i - 1][0] else view(z), kink))
    return views
