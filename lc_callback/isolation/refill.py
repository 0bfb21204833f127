"""Putting back what objects held: the same objects, with what was in them."""

from __future__ import annotations

import array
import collections
import types
from contextlib import suppress
from operator import is_
from typing import Any

import torch
from torch import Tensor

from lc_callback.isolation.kept_objects import (
    class_variables,
)

__all__ = [
    "address",
    "delete_slot",
    "has_given_back",
    "refill_array",
    "refill_deque",
    "refill_dict",
    "refill_list",
    "refill_set",
    "rewrite",
    "set_cell",
    "set_class_variables",
    "set_global",
    "set_slot",
]


def address(tensor: Tensor) -> int:
    """Where its memory begins, without counting as a write as ``data_ptr()`` does."""
    return torch._C._data_address(tensor)  # type: ignore[attr-defined, no-any-return]


def refill_dict(value: dict[Any, Any], kept: dict[Any, Any]) -> None:
    """Make a dict hold the items of ``kept``, in that order."""
    same = len(value) == len(kept) and all(map(is_, value, kept)) and all(map(is_, value.values(), kept.values()))
    if same:
        return
    own: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
    own.clear(value)
    for key, item in kept.items():
        own.__setitem__(value, key, item)


def refill_list(value: Any, kept: Any) -> None:
    """Make a list, a bytearray or an array hold the items of ``kept``."""
    own: Any = next(kind for kind in (list, bytearray, array.array) if isinstance(value, kind))
    own.__setitem__(value, slice(None), kept)


def refill_set(value: set[Any], kept: set[Any]) -> None:
    """Make a set hold the items of ``kept``."""
    if len(value) != len(kept) or value != kept:
        set.clear(value)
        set.update(value, kept)


def refill_deque(value: collections.deque[Any], kept: list[Any]) -> None:
    """Make a deque hold the items of ``kept``."""
    if len(value) != len(kept) or not all(map(is_, value, kept)):
        collections.deque.clear(value)
        collections.deque.extend(value, kept)


def refill_array(values: Any, kept: Any) -> None:
    """Make an array of NumPy hold the values of ``kept``."""
    if values.shape != kept.shape:
        values.resize(kept.shape, refcheck=False)
    values[...] = kept


def rewrite(tensor: Tensor, before: Tensor, memory: Tensor, kept: Tensor, requires_grad: bool) -> None:
    """Make ``tensor`` the view that it was ``before``, and put into its ``memory`` what is ``kept`` of that."""
    with torch.inference_mode(False), torch.no_grad():
        if before.layout is torch.sparse_coo:
            tensor.data = kept
        elif before.layout is not torch.strided:  # these do not take it
            tensor.data.copy_(kept)
        else:
            if not _is_the_same_view(tensor.data, before):
                tensor.data = before
            if address(memory) != address(kept) and not has_given_back(memory):  # one of them was written
                memory.copy_(kept)
        if tensor.is_leaf and tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)


def has_given_back(tensor: Tensor) -> bool:
    """Whether its memory went back to the system, as that of weights which other processes keep."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def _is_the_same_view(one: Tensor, other: Tensor) -> bool:
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    same_memory = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    same_memory = same_memory and one.dtype == other.dtype and one.shape == other.shape
    return same_memory and one.stride() == other.stride() and one.storage_offset() == other.storage_offset()


def set_slot(member: Any, owner: Any, value: Any) -> None:
    """Set a slot of an object."""
    member.__set__(owner, value)


def delete_slot(member: Any, owner: Any) -> None:
    """Empty a slot of an object."""
    with suppress(AttributeError):
        member.__delete__(owner)


def set_class_variables(kind: type, kept: dict[str, Any]) -> None:
    """Make a class hold the variables of ``kept``, and no others."""
    now = class_variables(kind)
    for name in now.keys() - kept.keys():
        type.__delattr__(kind, name)
    for name, value in kept.items():
        if name not in now or now[name] is not value:
            type.__setattr__(kind, name, value)


def set_global(variables: dict[str, Any], name: str, value: Any) -> None:
    """Set a global variable, if it is another one now."""
    if name not in variables or variables[name] is not value:
        variables[name] = value


def set_cell(cell: types.CellType, value: Any) -> None:
    """Set a variable that a closure holds."""
    cell.cell_contents = value
