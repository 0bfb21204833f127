"""What was counted: plain numbers, of which the measures make their results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["SwitchCounts"]


@dataclass(frozen=True, eq=False)
class SwitchCounts:
    """How many units of each layer switch at ``N`` points; see :class:`lc_callback.functional.LocalComplexity`.

    Attributes:
        counts: ``(N, L)`` int64, or ``(R, N, L)`` for several radii. -1 where a pre-activation was not finite.
        layer_names: the ``L`` layers in execution order.
        layer_sizes: units of each layer.
        radius: the radius, or the list of radii.
        at: name of the module whose output was perturbed, ``None`` for the input.
        dtype: floating-point type of the computation.
        histogram: of critical radii, where these are known.
        jacobian_norm: ``(M,)`` float64: the Frobenius norm of the output's Jacobian at the first points, where it is
            known.
        dim: of the space that was perturbed.
        n_directions: of the frame.
        uncounted: operations that choose a winner, which ``max_pool=True`` would count.
        route: how the points were followed, and why no faster way was taken.
    """

    counts: Tensor
    layer_names: list[str]
    layer_sizes: list[int]
    radius: float | list[float]
    at: str | None
    dtype: torch.dtype
    histogram: Tensor | None = None
    jacobian_norm: Tensor | None = None
    dim: int = 0
    n_directions: int = 0
    uncounted: Sequence[str] = ()
    route: str = ""
