"""How the layers of a network deform the frame: up to which radius local complexity is local."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.engine.chunks import default_chunk
from lc_callback.engine.network.frame import frame_directions
from lc_callback.engine.network.layers import TracedLayers
from lc_callback.engine.network.modules import select_modules
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.space import Space
from lc_callback.functional.local_complexity import check_arguments
from lc_callback.isolation import untouched

__all__ = ["FrameDeformation", "frame_deformation"]


@dataclass(frozen=True, eq=False)
class FrameDeformation:
    """Size of the embedded frame of ``N`` points, by layer.

    With several radii ``eccentricity`` and ``diameter`` have a leading axis ``R``. In the input, both are
    ``2 sqrt(2) r``.

    Attributes:
        eccentricity: ``(N, L)`` float64: mean over the vertices of the largest shortest-path distance to another.
            NaN where a pre-activation was not finite.
        diameter: ``(N, L)`` float64: the largest shortest-path distance. NaN likewise.
        layer_names: the ``L`` layers in execution order.
        layer_sizes: units of each layer.
        radius: the radius, or the list of radii.
        at: name of the module whose output was perturbed, ``None`` for the input.
    """

    eccentricity: Tensor
    diameter: Tensor
    layer_names: list[str]
    layer_sizes: list[int]
    radius: float | list[float]
    at: str | None

    def __repr__(self) -> str:
        last = self.diameter[..., -1].mean(-1).tolist()
        text = f"{last:.4g}" if isinstance(last, float) else f"[{', '.join(f'{one:.4g}' for one in last)}]"
        points, layers = self.diameter.shape[-2:]
        return f"FrameDeformation(radius={self.radius}, {points} points, {layers} layers, mean last diameter={text})"


def frame_deformation(
    model: nn.Module,
    inputs: Any,
    *,
    radius: float | Sequence[float] = 0.005,
    n_directions: int | None = None,
    directions: Tensor | None = None,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
) -> FrameDeformation:
    r"""Measure how large the frame of local complexity is when it arrives at each layer.

    :func:`local_complexity` looks at the vertices of the frame only. That says something about the neighbourhood of a
    point as long as the layers before have not torn it apart. *Deep Networks Always Grok and Here is Why* (ICML 2024,
    section 2.2 and figure 5) looks at the graph of the frame's :math:`2P` vertices, each joined to all others but its
    antipode: at its **eccentricity**, the largest distance from a vertex to another, averaged over the vertices, and
    its **diameter**, the largest distance of all. A distance is the length of the shortest path, and an edge is as long
    as the pre-activations of its two vertices are apart (Euclidean). On CIFAR10 the paper finds both small and steady
    over depth up to a radius of 0.014; beyond, they grow about exponentially with depth in a CNN. As long as the
    network is affine on the frame, both are proportional to :math:`r`.

    Computed in float64 with the model in eval mode, which is left exactly as it was.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor, a tuple or a dict of tensors, as for :func:`local_complexity`.
        radius: ``r`` > 0 in input units, or several radii.
        n_directions: ``P``, from 2 to the dimension of the perturbed space; ``None`` is 25, or all there are if fewer.
        directions: ``(P, *shape)`` or ``(P, D)``, used as given instead of a random frame.
        seed: seed of the frame.
        layers: ``None`` measures the pre-activation of every non-linearity that is executed, in execution order; a
            list of module names, ``fnmatch`` patterns, class names or types the *outputs* of these modules instead.
        at: name of the module whose output is perturbed, see :func:`local_complexity`.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: vertices in one forward pass, at least the :math:`2P` of one point; by default as many as fit a
            memory budget.

    Returns:
        :class:`FrameDeformation` with ``eccentricity`` and ``diameter`` ``(N, L)``, or ``(R, N, L)`` for several radii.

    Raises:
        ValueError: for an argument out of range, if no non-linearity was seen, or if a pre-activation cannot be
            assigned to the samples.

    Example::

        >>> import torch
        >>> from lc_callback.functional import frame_deformation
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2), torch.nn.ReLU())
        >>> with torch.no_grad():  # three times as large, and then as it is
        ...     for layer, weight in ((net[0], 3 * torch.eye(2)), (net[2], torch.eye(2))):
        ...         _ = layer.weight.copy_(weight)
        ...         _ = layer.bias.fill_(1.0)
        >>> found = frame_deformation(net, torch.ones(1, 2), radius=[0.1, 10.0], directions=torch.eye(2))
        >>> found.diameter[:, 0] / (8**0.5 * torch.tensor([[0.1], [10.0]]))  # the larger frame is cut at 0
        tensor([[3.0000, 3.0000],
                [3.0000, 1.5000]], dtype=torch.float64)
    """
    radii = check_arguments(radius, n_directions, layers, at, chunk_size)
    space = Space(model, inputs, at=at, forward_fn=forward_fn)
    outputs_of = None if layers is None else select_modules(model, layers)
    with untouched(model, forward_fn, dtype=torch.float64):
        space.locate(torch.float64)
        network = TracedLayers(space, outputs_of=outputs_of)
        frame = frame_directions(space.shape, n_directions, directions, seed, torch.float64, space.device)
        if len(frame) < 2:
            raise ValueError("`n_directions` must be at least 2: the two vertices of one direction are not joined.")
        k = 2 * len(frame)
        chunk = chunk_size or default_chunk(space.device, max(network.bytes_per_sample, 8 * k * len(network.names)))
        some = torch.arange(space.points.n).split(max(1, chunk // k))
        found = torch.stack(
            [
                torch.cat([_sizes(_distances(network, points, torch.cat([r * frame, -r * frame]))) for points in some])
                for r in radii
            ]
        ).cpu()
    eccentricity, diameter = (found[0] if isinstance(radius, Real) else found).unbind(-1)
    return FrameDeformation(
        eccentricity=eccentricity,
        diameter=diameter,
        layer_names=network.names,
        layer_sizes=network.sizes,
        radius=radii[0] if isinstance(radius, Real) else radii,
        at=space.at,
    )


def _distances(network: TracedLayers, points: Tensor, offsets: Tensor) -> Tensor:
    """``(n, L, K, K)`` Euclidean distances between the pre-activations of the ``K`` vertices of each point."""
    n, k = len(points), len(offsets)
    squares = torch.zeros(n, len(network.names), k, k, dtype=torch.float64, device=network.space.device)

    def add(position: int, knots: list[Knot]) -> None:
        z = knots[0][0].reshape(k, n, -1).double()  # several knots are of the same pre-activation
        z = (z - z.mean(0)).transpose(0, 1)  # so that little cancels below: 17 times as fast as differences
        products = z @ z.mT
        lengths = products.diagonal(dim1=-2, dim2=-1)
        squares[:, network.layer_of[position]] += lengths.unsqueeze(-1) + lengths.unsqueeze(-2) - 2 * products

    network.follow(points, offsets, add)
    return squares.clamp(min=0).sqrt()


def _sizes(edges: Tensor) -> Tensor:
    """``(..., 2)``: mean eccentricity and diameter, from distances ``(..., 2P, 2P)``, the antipodes P apart.

    By the triangle inequality the edge itself is the shortest path where there is one, and between antipodes, which are
    not joined, it is a path through one other vertex.
    """
    p = edges.shape[-1] // 2
    plus = torch.arange(p, device=edges.device)
    minus = plus + p
    through = edges[..., :p, :] + edges[..., p:, :]
    through[..., plus, plus] = through[..., plus, minus] = math.inf
    lengths = edges.clone()
    lengths[..., plus, minus] = lengths[..., minus, plus] = through.amin(-1)
    eccentricities = lengths.amax(-1)
    return torch.stack([eccentricities.mean(-1), eccentricities.amax(-1)], dim=-1)
