"""Points of a model's input space: nested batches of tensors, and their neighbours on a frame."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

__all__ = ["Points", "call_model", "ends_of", "is_names", "main_output"]


def call_model(model: nn.Module, inputs: Any, forward_fn: Callable[..., Any] | None = None) -> Any:
    """Run ``model`` on a tensor, on a tuple or list (positional arguments) or on a mapping (keywords).

    With ``forward_fn`` the call is ``forward_fn(model, ...)`` instead of ``model(...)``.
    """
    args: tuple[Any, ...] = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        args, kwargs = (), {str(key): value for key, value in inputs.items()}
    return model(*args, **kwargs) if forward_fn is None else forward_fn(model, *args, **kwargs)


def main_output(output: Any) -> Tensor:
    """The tensor in what a model returns: itself, ``logits`` in it, or the first entry of a tuple.

    Raises:
        ValueError: if there is none.
    """
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    elif isinstance(getattr(output, "logits", None), Tensor):
        output = output.logits
    elif isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not isinstance(output, Tensor) or not output.is_floating_point():
        kind = type(output).__name__
        found = f"{kind} with keys {list(output)}" if isinstance(output, Mapping) else kind
        raise ValueError(
            f"the model returns a {found}, where a floating-point tensor is needed, such as logits (N, C): pass "
            "`forward_fn=` that returns it."
        )
    return output


class Points:
    """``N`` points of the input space of a model, and batches of vertices around them.

    The floating-point tensors of ``inputs`` span the space (several of them: their product); integer and boolean
    ones, such as tokens and masks, stay as they are, and so do lists of ``N`` strings, such as names. What else is no
    tensor belongs to all points.

    Args:
        inputs: a tensor ``(N, ...)``, or tuples, lists and dicts of such tensors.
        dtype: floating-point type of the batches.
        device: where the batches go.

    Raises:
        ValueError: if there is no tensor, the number of points differs between tensors, or it is 0.
    """

    def __init__(self, inputs: Any, dtype: torch.dtype, device: torch.device, argument: str = "inputs") -> None:
        inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
        self._leaves, self._spec = tree_flatten(inputs, is_leaf=is_names)
        tensors = [leaf for leaf in self._leaves if isinstance(leaf, Tensor)]
        sizes = {len(tensor) if tensor.ndim else None for tensor in tensors}
        if len(sizes) != 1 or None in sizes or 0 in sizes:
            shapes = [tuple(tensor.shape) for tensor in tensors]
            raise ValueError(
                f"`{argument}` must be one or more tensors with the same number (at least 1) of points along the first "
                f"axis, but got {shapes if shapes else type(inputs).__name__}."
            )
        self.channels_last = False  # how batches of images are laid out in memory
        self.n = len(tensors[0])
        self._dtype, self._device = dtype, device
        self._cuda = device.type == "cuda"  # copies to a GPU are asynchronous
        self.moving = [leaf for leaf in tensors if leaf.is_floating_point()]
        #: Whether each point has a string. No operation takes strings, so what the model does with them is not seen.
        self.named = any(map(self._are_names, self._leaves))
        #: Whether the one tensor that moves is all that the points consist of.
        self.alone = len(tensors) == len(self.moving) == 1 and not self.named
        #: Shape of one point: of the one moving tensor, or ``(D,)`` for a product of several.
        self.shape = tuple(self.moving[0].shape[1:]) if len(self.moving) == 1 else (sum(map(_row, self.moving)),)

    def largest(self) -> float:
        """The largest absolute value among the finite coordinates."""
        return max((_largest(leaf) for leaf in self.moving if leaf.numel()), default=0.0)

    def typical(self) -> float:
        """The median over the points of their largest absolute coordinate."""
        rows = [leaf.detach().reshape(self.n, -1).float() for leaf in self.moving if leaf.numel()]
        largest = [row.abs().nan_to_num(0.0, 0.0, 0.0).amax(1).cpu() for row in rows]
        return float(torch.stack(largest).amax(0).median()) if largest else 0.0

    @property
    def structure(self) -> list[Any]:
        """All but the points themselves: two sets with equal structure can share one trace of a model."""
        each = [
            (leaf.shape[1:], leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else leaf for leaf in self._leaves
        ]
        return [self._spec, *each]

    def batch(self, points: Tensor, offsets: Tensor | None, copies: int = 1) -> Any:
        """The inputs for points ``(n,)`` of this set, each ``K`` times.

        Args:
            points: indices of the points.
            offsets: ``(K, D)``, what is added to the ``K`` copies of each point; ``None`` adds nothing.
            copies: ``K`` when nothing is added.

        Returns:
            ``inputs`` with ``K * n`` samples: all points, moved by the first offset, then by the next one.
        """
        copies = copies if offsets is None else len(offsets)
        leaves, parts = [], iter(() if offsets is None else self.parts(offsets))
        for leaf in self._leaves:
            if isinstance(leaf, Tensor):
                rows = leaf.index_select(0, points.to(leaf.device, non_blocking=self._cuda))
                rows = rows.to(self._device, non_blocking=self._cuda)
                if leaf.is_floating_point():
                    rows = rows.to(self._dtype)
                if leaf.is_floating_point() and offsets is not None:
                    leaves.append(self._laid_out((rows + next(parts).unsqueeze(1)).flatten(0, 1)))
                else:
                    leaves.append(self._laid_out(torch.cat([rows] * copies) if copies > 1 else rows))
            else:
                leaves.append(self._names_of(leaf, points, copies))
        return tree_unflatten(leaves, self._spec)

    def parts(self, values: Tensor) -> list[Tensor]:
        """The parts ``(K, ...)`` of ``(K, D)`` that belong to each of the tensors that move."""
        found, column = [], 0
        for leaf in self.moving:  # no split(): its parts cannot be written to in place
            found.append(values[:, column : column + _row(leaf)].view(len(values), *leaf.shape[1:]))
            column += _row(leaf)
        return found

    def _laid_out(self, tensor: Tensor) -> Tensor:
        images = self.channels_last and tensor.ndim == 4
        return tensor.contiguous(memory_format=torch.channels_last) if images else tensor

    def moved(self, points: Tensor, values: Tensor) -> Any:
        """The inputs for points ``(n,)`` of this set, with ``values (n, ...)`` in place of what moves."""
        leaves, parts = [], iter(self.parts(values.reshape(len(values), -1)))
        for leaf in self._leaves:
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                leaves.append(next(parts))
            elif isinstance(leaf, Tensor):
                leaves.append(leaf[points.to(leaf.device)].to(self._device))
            else:
                leaves.append(self._names_of(leaf, points))
        return tree_unflatten(leaves, self._spec)

    def _names_of(self, leaf: Any, points: Tensor, copies: int = 1) -> Any:
        """The part of a leaf, which is no tensor, that belongs to these points."""
        return [leaf[i] for i in points.tolist()] * copies if self._are_names(leaf) else leaf

    def _are_names(self, leaf: Any) -> bool:
        return isinstance(leaf, list) and len(leaf) == self.n  # other lists have been taken apart


def ends_of(sets: Sequence[Points]) -> Any:
    """The first and the last point of each set, as one batch of inputs; those that are finite come first."""
    parts = [tree_flatten(points.batch(torch.tensor([0, points.n - 1]).unique(), None)) for points in sets]
    leaves = [
        torch.cat(each) if isinstance(each[0], Tensor) else each[0]
        for each in zip(*(leaves for leaves, _ in parts), strict=True)
    ]
    moving = [leaf.reshape(len(leaf), -1) for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if moving:
        broken = ~torch.cat([leaf.isfinite() for leaf in moving], 1).all(1)
        order = broken.byte().argsort(stable=True)
        leaves = [leaf[order] if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return tree_unflatten(leaves, parts[0][1])


def is_names(value: Any) -> bool:
    """Whether this is a list of strings, as a ``DataLoader`` makes of one for each sample."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, str) for item in value)


def _row(tensor: Tensor) -> int:
    return tensor[0].numel()


def _largest(tensor: Tensor) -> float:
    low, high = torch.aminmax(tensor.detach())
    largest = max(-float(low), float(high))
    if math.isfinite(largest):
        return largest
    return float(torch.nan_to_num(tensor.detach().float(), nan=0.0, posinf=0.0, neginf=0.0).abs().max())
