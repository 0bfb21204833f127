"""A measure of one's own: the local rank of the features, as in Patel and Montufar (arXiv 2412.18283)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.callbacks import ProbeCallback


class LocalRank(ProbeCallback):
    r"""Rank of the Jacobian of the last hidden layer with respect to the input, mean over the points.

    It is the dimension in which the features can move when the input does. With the singular values ``s`` of the
    Jacobian at a point: ``local_rank/<split>`` is how many are above ``tolerance`` times the largest, and
    ``local_rank_effective/<split>`` the exponential of the entropy of ``s / sum(s)``, from 1 to the width.

    Args:
        tolerance: above 0, relative to the largest singular value.
        n_probes: points of each split.
        arguments: of every callback.
    """

    group = "local_rank"

    def __init__(self, tolerance: float = 1e-2, n_probes: int = 16, **arguments: Any) -> None:
        super().__init__(n_probes=n_probes, **arguments)
        if tolerance <= 0:
            raise ValueError(f"`tolerance` must be positive, but got {tolerance!r}.")
        self.tolerance = tolerance

    def measure(self, network: Any, probes: Mapping[str, Any]) -> dict[str, float]:
        """Of each split."""
        *_, head = (module for module in network.module.modules() if isinstance(module, nn.Linear))
        values = {}
        for split, points in probes.items():
            jacobians = feature_jacobians(network, head, points.inputs).double()
            s = torch.linalg.eigvalsh(jacobians @ jacobians.mT).clamp(min=0).sqrt()
            shares = s / s.sum(-1, keepdim=True)
            values[f"local_rank/{split}"] = (s > self.tolerance * s[:, -1:]).sum(-1).double().mean().item()
            entropy = -torch.special.xlogy(shares, shares).sum(-1)
            values[f"local_rank_effective/{split}"] = entropy.exp().mean().item()
        return values


def feature_jacobians(network: Any, head: nn.Linear, inputs: Tensor) -> Tensor:
    """``(N, F, D)``: derivatives of the ``F`` features that enter the head, at ``N`` points of ``D`` numbers."""
    found: list[Tensor] = []
    hook = head.register_forward_pre_hook(lambda module, entering: found.append(entering[0]))
    try:
        with torch.enable_grad():
            inputs = inputs.detach().requires_grad_()
            network(inputs)
    finally:
        hook.remove()
    (features,) = found
    each = torch.eye(features.shape[1]).to(features)[:, None].expand(-1, len(inputs), -1)
    (slopes,) = torch.autograd.grad(features, inputs, each, is_grads_batched=True)  # a sample knows no other
    return slopes.flatten(2).transpose(0, 1)
