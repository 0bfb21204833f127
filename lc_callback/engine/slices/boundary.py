"""The decision boundary: its segments in a slice, and a point on it that is near to a given point."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space
from lc_callback.engine.slices.subdivision import Subdivision, Table
from lc_callback.isolation import untouched

__all__ = ["boundary_segments", "toward_boundary"]

Floats = NDArray[np.float64]

_STEPS, _BEYOND, _HALVINGS = 50, 1.02, 60  # on the way to the decision boundary


def boundary_segments(cells: Subdivision, outputs: Floats, new_layer: int) -> Floats:
    """``(S, 2, 2)``: segments on which the largest output changes. For a single output: on which its sign changes.

    Args:
        cells: the regions, on which the output is affine.
        outputs: ``(V, C)``, the output at their vertices.
        new_layer: a number that no layer has; it marks the edges of the boundary.
    """
    cells, table = cells.copy(), Table(outputs)
    if outputs.shape[1] == 1:
        cells.cut(outputs[:, 0], table, 0, (new_layer, 0))
    else:
        cells.cut_maximum(table, range(outputs.shape[1]), new_layer, 0)
    offsets, loop = cells.loops()
    mean = np.add.reduceat(table.values[loop], offsets[:-1]) / np.diff(offsets)[:, None]
    mean = mean if mean.shape[1] > 1 else np.concatenate([np.zeros_like(mean), mean, -mean], axis=1)
    top = (mean >= mean.max(1, keepdims=True) - 1e-12 * np.abs(outputs).max()).argmax(1)
    left, right = cells.edges[2:]
    kinks = (right >= 0) & (top[left] != top[right])  # the class may change on an older edge
    start, end = cells.edges[:2, (cells.made_by[0] == new_layer) | kinks]
    return np.stack([cells.vertices[start], cells.vertices[end]], axis=1)


def toward_boundary(model: nn.Module, inputs: Any, forward_fn: Callable[..., Any] | None = None) -> Tensor | None:
    """A point of the decision boundary that is near to a given point.

    Each step goes a little beyond the place where the affine map of the region changes its class. When the class of the
    network has changed, the last step is halved until both ends meet.

    Args:
        model: a classifier with logits ``(N, C)``, or ``(N, 1)`` for two classes.
        inputs: one point, ``(1, *shape)``, or a tuple or dict of such tensors, of which one is floating-point.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.

    Returns:
        ``(*shape)``; ``None`` if 50 steps do not lead there, or the output is no vector of logits.
    """
    space = Space(model, inputs, forward_fn=forward_fn)
    first = torch.zeros(1, dtype=torch.long)
    with untouched(model, forward_fn, dtype=torch.float64, grad=True):
        space.locate(torch.float64)
        x = inside = space.all_values()[:1].clone()
        own = None
        for _ in range(_STEPS):
            x = x.detach().requires_grad_(True)
            logits = _logits(space.output(first, x))
            if logits is None:
                return None
            own = int(logits.argmax()) if own is None else own
            margin = _margin(logits, own)
            if not margin > 0:
                break
            inside = x.detach()
            (gradient,) = torch.autograd.grad(margin, x)
            squared = gradient.square().sum()
            if not (squared > 0 and bool(squared.isfinite())):
                return None
            x = inside - _BEYOND * margin.detach() * gradient / squared
        else:
            return None
        outside = x.detach()
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            with torch.no_grad():
                logits = _logits(space.output(first, middle))
                if logits is None:
                    return None
                inside, outside = (middle, outside) if _margin(logits, own) > 0 else (inside, middle)
    return inside[0]


def _logits(output: Any) -> Tensor | None:
    """``(C,)`` logits of one point. A single logit becomes two, of which the second is 0. ``None`` if it has none."""
    logits = main_output(output)
    if logits.ndim > 2:
        return None
    return logits.flatten() if logits.numel() > 1 else torch.cat([logits.flatten(), logits.new_zeros(1)])


def _margin(logits: Tensor, own: int) -> Tensor:
    """By how much the logit of a class exceeds the largest of the others."""
    return logits[own] - torch.cat([logits[:own], logits[own + 1 :]]).max()
