"""The domain in which attacked points stay, and the unit of the budget."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lc_callback.engine.adversarial.attacks import Box

__all__ = ["bounds_in_words", "box_of", "find_bounds", "not_below", "spread_of", "usable_spread"]

# The domain may be so many times as wide as all that can be reached. In its units rounding grows with its width.
_WIDE = 16


def box_of(x: Tensor, bounds: tuple[Any, Any], eps: float) -> tuple[Box, tuple[Tensor, Tensor]]:
    """The domain of points ``x (N, ...)`` for budgets up to ``eps``: as a box, and ``(low, high)`` on the CPU.

    Raises:
        ValueError: if the bounds have another shape, are exchanged, or do not hold the points.
    """
    low, high = (_bound(x, bound, bounds) for bound in bounds)
    if not bool((low <= high).all()):  # the bounds of a constant feature may be equal
        raise ValueError(not_below(bounds))
    below, above = x.amin(0), x.amax(0)
    slack = 1e-5 * float((above - below).max())
    if bool((below < low - slack).any()) or bool((above > high + slack).any()):
        raise ValueError(
            f"`bounds={bounds_in_words(bounds)}` must hold all points, which range from {float(below.min()):.4g} to "
            f"{float(above.max()):.4g}: pass the domain of the inputs as the model gets them."
        )
    domain = low.cpu(), high.cpu()
    least, most = below - 2 * eps, above + 2 * eps
    low, high = torch.where(low.isinf(), least, low), torch.where(high.isinf(), most, high)
    if float((high - low).max()) > _WIDE * float((most - least).max()):
        low, high = torch.maximum(low, least), torch.minimum(high, most)
    return Box(low, high), domain


def _bound(x: Tensor, bound: Any, bounds: Any) -> Tensor:
    values = torch.as_tensor(bound, dtype=x.dtype, device=x.device)
    if values.ndim == 1 and x.ndim == 4 and len(values) == x.shape[1]:
        values = values.view(-1, 1, 1)
    try:
        return values.expand(x.shape[1:])
    except RuntimeError:
        raise ValueError(
            f"`bounds={bounds_in_words(bounds)}` must be scalars or have the shape {tuple(x.shape[1:])} of one point, "
            f"but one has shape {tuple(values.shape)}."
        ) from None


def find_bounds(x: Tensor) -> tuple[Tensor, Tensor, str]:
    """The domain of points ``(N, ...)``, found from the points, and in words.

    It is (0, 1) if the points range exactly from 0 to 1, else the range of each feature.
    """
    low, high = x.amin(0), x.amax(0)
    if float(low.min()) == 0 and float(high.max()) == 1:
        return torch.zeros_like(low), torch.ones_like(high), "(0, 1), which the points fill"
    spans = f"from {float(low.min()):.4g} to {float(high.max()):.4g} overall"
    return low, high, f"the observed range of each feature, {spans}; pass `bounds=` if the domain is known"


def usable_spread(spread: float) -> float:
    """The spread as a unit of eps.

    Raises:
        ValueError: if it is 0.
    """
    if spread == 0:
        raise ValueError(
            "`eps_unit='std'` and, behind a module, 'auto' need points that differ; these are all equal. Use "
            "eps_unit='input'."
        )
    return spread


def spread_of(x: Tensor) -> float:
    """Root-mean-square spread of points ``(N, ...)`` over coordinates."""
    return float(x.double().var(0, unbiased=False).mean().sqrt())


def not_below(bounds: Any) -> str:
    """The error text for bounds that are exchanged."""
    return f"`bounds={bounds_in_words(bounds)}` must be a pair (low, high) with low below high."


def bounds_in_words(bounds: Any) -> str:
    """The bounds as text, with the shapes of tensors in place of their values."""
    return repr(tuple(f"tensor {tuple(b.shape)}" if isinstance(b, Tensor) else b for b in bounds))
