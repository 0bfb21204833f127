"""The axis of the channels in an intermediate tensor, followed from operation to operation."""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

__all__ = ["Channels"]

# Operations that make channels, and the axis of their result that holds them.
_AXIS = {
    **dict.fromkeys(("convolution", "native_batch_norm", "_native_batch_norm_legit_no_training"), 1),
    **dict.fromkeys(("cudnn_batch_norm", "miopen_batch_norm", "native_group_norm"), 1),
    **dict.fromkeys(("mm", "addmm", "bmm", "baddbmm", "linear", "embedding"), -1),
}


class Channels:
    """The axis of the channels in each tensor that a model computes.

    It is kept by the storage of a tensor as ``(size, stride)``, which views and permutations do not change. An
    unknown tensor gets the axis that the last operation with channels left.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, int]] = {}
        self._latest = -1

    def executed(self, op: str, args: Any, result: Any) -> None:
        """Note the axis of the result of the operation ``op``."""
        out = result[0] if isinstance(result, (tuple, list)) and result else result
        if not _has_strides(out) or out.ndim < 2:
            return
        sources = [leaf for leaf in tree_leaves(args) if _has_strides(leaf)]
        storage = _storage(out)
        axis = _AXIS.get(op)
        if axis is not None:
            self._latest = axis
        elif any(_storage(source) == storage for source in sources):  # a view, or in place
            return
        else:
            alike = sorted((s for s in sources if s.ndim == out.ndim), key=lambda s: s.shape != out.shape)
            axis = next((a for a in map(self._find, alike) if a is not None), None)
        if axis is None:
            self._known.pop(storage, None)
        else:
            self._known[storage] = (out.shape[axis], out.stride(axis))

    def axis(self, tensor: Tensor) -> int:
        """The axis of the channels."""
        axis = self._find(tensor)
        return self._latest % tensor.ndim if axis is None else axis

    def _find(self, tensor: Tensor) -> int | None:
        if not _has_strides(tensor) or _storage(tensor) not in self._known:
            return None
        size, stride = self._known[_storage(tensor)]
        axes = [axis for axis in range(tensor.ndim) if tensor.stride(axis) == stride]
        exact = [axis for axis in axes if tensor.shape[axis] == size]
        return next(iter(exact or axes), None)


def _has_strides(value: Any) -> TypeGuard[Tensor]:
    """Whether it is a tensor that lies in one storage: a sparse one does not."""
    return isinstance(value, Tensor) and value.layout is torch.strided


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
