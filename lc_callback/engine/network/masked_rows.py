"""Rows that a model picks by values, as ``h[mask]`` does: their number differs from sample to sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["MaskedRows", "choosers", "picks"]

# These write to places of their first operand, whose shape is known.
_PUT_BACK = {"index_put", "_index_put_impl", "_unsafe_index_put", "scatter", "scatter_add", "scatter_reduce"}
_PUT_BACK |= {"index_add", "index_copy", "index_reduce", "index_fill", "masked_scatter", "put", "copy", "fill"}


class MaskedRows:
    """Follows rows that were picked by values, and all that is computed of them, until they are put back.

    Attributes:
        layers: names of the pre-activations of such rows, with the number of values by which they were picked.
    """

    def __init__(self) -> None:
        self.layers: set[tuple[str, int]] = set()
        self._picked: dict[int, tuple[int, Any]] = {}  # the number of values by memory, and what keeps that alive

    def __bool__(self) -> bool:
        return bool(self._picked)

    def executed(self, args: Sequence[Any], results: set[int], result: Any) -> None:
        """An operation picked rows, the number of which depends on values."""
        size = max((mask.numel() for mask in choosers(args)), default=0)
        self._picked.update(dict.fromkeys(results, (size, result)))

    def passed(self, op: str, first: set[int], read: set[int], results: set[int], result: Any) -> None:
        """An operation read tensors in these memories, its first operand in the ``first``."""
        found = (first if op in _PUT_BACK else read) & self._picked.keys()
        if found:
            size = max(self._picked[memory][0] for memory in found)
            self._picked.update(dict.fromkeys(results - self._picked.keys(), (size, result)))

    def met(self, name: str, memories: set[int]) -> None:
        """A pre-activation is in these memories."""
        self.layers |= {(name, self._picked[memory][0]) for memory in memories & self._picked.keys()}


def picks(op: str, func: Any, args: Sequence[Any]) -> bool:
    """Whether how many rows an operation returns depends on values."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return False
    return op != "index" or any(_is_mask(index) for index in args[1])


def choosers(args: Sequence[Any]) -> list[Tensor]:
    """The arguments that decide which rows are picked."""
    indices = args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else args
    found = [index for index in indices if isinstance(index, Tensor)]
    return [index for index in found if _is_mask(index)] or found


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)
