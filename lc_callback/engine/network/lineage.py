"""Which tensors come of some others."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import memories_of

__all__ = ["Lineage"]


class Lineage:
    """What is computed of some tensors. They are known by their memory, which is kept alive.

    Args:
        tensors: with which it begins.
    """

    def __init__(self, tensors: Any) -> None:
        self._known: dict[int, Tensor] = {}
        self.add(tensors)

    def has(self, tensors: Any) -> bool:
        """Whether one of these belongs to it."""
        return bool(memories_of(tensors) & self._known.keys())

    def add(self, tensors: Any) -> None:
        """Let these belong to it."""
        for leaf in tree_leaves(tensors):
            self._known.update(dict.fromkeys(memories_of(leaf), leaf))

    def executed(self, op: str, func: Any, args: Any, result: Any, always: bool = False) -> bool:
        """Whether the result of an operation belongs to it; ``always``: whatever the operation gets."""
        shaped = op.endswith("_like") or op.startswith("new_")  # only the shape is read
        if not always and (shaped or not self.has(args)):
            return False
        self.add(args if result is None and func._schema.is_mutable else result)
        return True
