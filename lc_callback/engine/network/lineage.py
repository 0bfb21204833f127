"""Which tensors come of those that move."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import memories_of

__all__ = ["Lineage"]


class Lineage:
    """Follows what is computed of some tensors. Until they are named, all tensors belong to it."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] | None = None  # by memory, and so kept alive

    def start(self, moving: Any) -> None:
        """Follow these tensors."""
        self._known = {memory: tensor for tensor in moving for memory in memories_of(tensor)}

    def add(self, tensor: Tensor) -> None:
        """Follow this tensor too."""
        if self._known is not None:
            self._known.update(dict.fromkeys(memories_of(tensor), tensor))

    def executed(self, op: str, args: Any, result: Any) -> bool:
        """Whether an operation reads what is followed; so is then what it returns."""
        if self._known is None:
            return True
        shaped = op.endswith("_like") or op.startswith("new_")  # only the shape is read
        if shaped or not memories_of(args) & self._known.keys():
            return False
        for leaf in tree_leaves(result):
            self._known.update(dict.fromkeys(memories_of(leaf), leaf))
        return True

    def has(self, tensors: Any) -> bool:
        """Whether one of these is followed."""
        return self._known is None or bool(memories_of(tensors) & self._known.keys())
