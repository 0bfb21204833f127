"""A term of the loss that pushes the linear regions of a network away from the training points, or holds them there."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class RegionPenalty:
    r"""Distance of a smooth local complexity at training points from a target: ``weight * (complexity - target)^2``.

    A unit with pre-activation ``z`` switches between ``x - r v`` and ``x + r v`` if the two values ``z-`` and ``z+``
    differ in sign. Where ``z`` is affine between them, ``|z- + z+| / |z+ - z-|`` is its distance to the point, in units
    of ``r``, ``|z| / (r |dz/dv|)``, and ``max(0, 1 - distance)`` is 1 at the point and 0 from ``r`` on. The complexity
    is the sum of that over all units, of each the largest over the directions, and the mean over the points. It can be
    differentiated, and is at most the number of units that :func:`lc_callback.functional.local_complexity` counts with
    these directions. Units are those in front of the ``nn.ReLU`` modules of the network. A network with BatchNorm sees
    the shifted points as a batch of their own.

    Args:
        target: of the complexity. 0 pushes regions away; the value that a network has while it memorises holds it.
        weight: of the term; 0 leaves training as it is.
        radius: ``r``, in units of the input.
        n_points: of a batch, from its beginning.
        n_directions: orthonormal, drawn anew for each step.
        hold: only a complexity below the target costs.
        seed: of the directions.
    """

    def __init__(
        self,
        target: float = 0.0,
        weight: float = 1e-4,
        radius: float = 0.1,
        n_points: int = 50,
        n_directions: int = 2,
        hold: bool = False,
        seed: int = 0,
    ) -> None:
        self.target, self.weight, self.radius, self.hold = target, weight, radius, hold
        self.n_points, self.n_directions = n_points, n_directions
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, network: nn.Module, x: Tensor) -> Tensor:
        """The term of the loss for a batch ``(N, ...)``, a scalar."""
        complexity = self.complexity(network, x[: self.n_points])
        missed = complexity - self.target
        return self.weight * (missed.clamp(max=0) if self.hold else missed).square()

    def complexity(self, network: nn.Module, x: Tensor) -> Tensor:
        """The smooth local complexity at points ``(N, ...)``, a scalar."""
        tiny = torch.finfo(x.dtype).tiny

        def near(below: Tensor, above: Tensor) -> Tensor:
            return (1 - (below + above).abs() / (above - below).abs().clamp(min=tiny)).clamp(min=0)

        return self._sum_over_units(network, x, near)

    def _sum_over_units(self, network: nn.Module, x: Tensor, of: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Of what is said of the pre-activations at both ends of each direction ``(P, N, ...)``, per point."""
        gaussian = torch.randn(x[0].numel(), self.n_directions, generator=self.generator)
        frame = self.radius * torch.linalg.qr(gaussian).Q.T.reshape(self.n_directions, 1, *x.shape[1:]).to(x)
        vertices = torch.stack([x - frame, x + frame])  # (2, P, N, ...)
        sums: list[Tensor] = []

        def add(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            below, above = inputs[0].unflatten(0, vertices.shape[:3])
            sums.append(of(below, above).amax(0).flatten(1).sum(1).mean())

        if not any(isinstance(module, nn.ReLU) for module in network.modules()):
            raise ValueError("`penalty` counts units in front of nn.ReLU modules, but the network has none.")
        hooks = [m.register_forward_pre_hook(add) for m in network.modules() if isinstance(m, nn.ReLU)]
        try:
            network(vertices.flatten(0, 2))
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack(sums).sum()


class SlopePenalty(RegionPenalty):
    r"""The control of :class:`RegionPenalty`: distance of the units' slopes from a target, wherever the units switch.

    The complexity that is penalised is the sum of ``|z+ - z-| / (2 r)`` over the units, of each the largest over the
    directions, mean over the points. All weights and biases of a layer times a factor change it and move no region.
    """

    def complexity(self, network: nn.Module, x: Tensor) -> Tensor:
        """The sum of the slopes at points ``(N, ...)``, a scalar."""
        return self._sum_over_units(network, x, lambda below, above: (above - below).abs() / (2 * self.radius))
