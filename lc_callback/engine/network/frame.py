"""Frames: random orthonormal directions of an input space."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

__all__ = ["cross_polytope_frame", "frame_directions", "steepest_share"]

_N_DIRECTIONS = 25  # of the paper; a space of fewer dimensions has not so many

_KEPT = 2**17  # entries of the largest frame that is not drawn again: 1 MB


def cross_polytope_frame(
    shape: int | Sequence[int],
    n_directions: int = 25,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Tensor:
    """Draw ``n_directions`` random orthonormal directions of the space of inputs of ``shape``.

    Around a point ``x`` they span the frame of local complexity, the ``2P`` vertices ``x ± r v_p`` of a
    cross-polytope of radius ``r`` (*Deep Networks Always Grok and Here is Why*, figure 4; the centre is not a vertex).

    The directions are drawn on the CPU in float64 from a private generator and then moved, so they are the same on
    every device and in every process, and no random stream of the program is touched. They are nested: the first ``P``
    directions of a larger frame with the same seed are, up to rounding, the frame of ``P`` directions.

    Args:
        shape: shape of one input, without the batch axis, such as ``(3, 32, 32)``.
        n_directions: ``P``, from 1 to ``D``, the number of elements of ``shape``.
        seed: seed of the private generator.
        dtype: floating-point type of the result.
        device: device of the result (default: the CPU).

    Returns:
        Tensor of shape ``(P, *shape)``, orthonormal rows when flattened to ``(P, D)``.

    Raises:
        ValueError: if ``shape`` has no elements, or ``n_directions`` is not in ``1 .. D``.

    Example::

        >>> from lc_callback.functional import cross_polytope_frame
        >>> frame = cross_polytope_frame((1, 8, 8), 5)
        >>> frame.shape
        torch.Size([5, 1, 8, 8])
        >>> flat = frame.flatten(1)
        >>> torch.allclose(flat @ flat.T, torch.eye(5), atol=1e-6)
        True
    """
    shape = (shape,) if isinstance(shape, int) else tuple(shape)
    dim = math.prod(shape)
    if dim < 1:
        raise ValueError(f"`shape` must have at least one element, but {shape} has {dim}.")
    if isinstance(n_directions, bool) or not isinstance(n_directions, Integral) or not 1 <= n_directions <= dim:
        raise ValueError(
            f"`n_directions` must be an integer from 1 to {dim}, the number of elements of an input of shape {shape}, "
            f"but got {n_directions!r}: there are no more orthonormal directions than dimensions."
        )
    directions = _kept(dim, int(n_directions), seed) if dim * n_directions <= _KEPT else _drawn(dim, n_directions, seed)
    return directions.reshape(n_directions, *shape).to(device=device, dtype=dtype, copy=True)


def _drawn(dim: int, n_directions: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    # One draw per direction, for torch fills a whole matrix in blocks and P would change the early rows.
    gaussian = torch.stack([torch.randn(dim, generator=generator, dtype=torch.float64) for _ in range(n_directions)])
    q, r = torch.linalg.qr(gaussian.T)
    return (q * r.diagonal().sign()).T  # the sign makes the factorisation unique, so frames are nested


# The same frame is asked for in each row.
_kept = functools.lru_cache(maxsize=8)(_drawn)


def frame_directions(
    shape: tuple[int, ...],
    n_directions: int | None,
    directions: Tensor | None,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``(P, D)`` directions, drawn or given."""
    dim = math.prod(shape)
    if directions is None:
        n_directions = min(_N_DIRECTIONS, dim) if n_directions is None else n_directions
        return cross_polytope_frame(shape, n_directions, seed=seed, dtype=dtype, device=device).flatten(1)
    if not isinstance(directions, Tensor) or directions.ndim < 2 or not len(directions) or directions[0].numel() != dim:
        raise ValueError(
            f"`directions` must be a tensor (P, {', '.join(map(str, shape))}) or (P, {dim}), but got "
            f"{tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__}."
        )
    if not directions.isfinite().all():
        raise ValueError("`directions` must be finite, but holds NaN or infinity.")
    return directions.detach().flatten(1).to(dtype=dtype, device=device)


@functools.lru_cache(maxsize=64)
def steepest_share(dim: int, n_directions: int) -> float:
    r"""The part of a gradient's norm that the steepest of ``P`` random orthonormal directions shows, in the mean.

    This is :math:`c(D, P) = \mathbb{E} \max_p |u_p|` over ``P`` coordinates of a uniform unit vector :math:`u` of
    :math:`R^D`. Times the norm of a Gaussian vector, which is independent of its direction, it is the mean of the
    largest of ``P`` absolute Gaussians, :math:`\int_0^\infty 1 - \mathrm{erf}(t/\sqrt 2)^P dt`.

    Example::

        >>> from lc_callback.engine.network.frame import steepest_share
        >>> steepest_share(1, 1), round(steepest_share(2, 1), 6)  # 2 / pi
        (1.0, 0.63662)
    """
    if dim == 1:
        return 1.0
    t = torch.linspace(0, 40, 400_001, dtype=torch.float64)
    largest = torch.trapezoid(-torch.expm1(n_directions * torch.erf(t / 2**0.5).log()), t)
    norm = 2**0.5 * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    return float(largest) / norm
