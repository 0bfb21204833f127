"""How loose the bound of total variation by local complexity is (Patel and Montúfar, ICML 2025), for an MLP.

Let the last layer be ``y = W a + b`` with ``a = relu(z)``. Where unit ``i`` is active it adds ``w_i (dz_i/dx)`` to the
Jacobian, so ``|J|_F <= max_i |w_i| * sum_{i active} |dz_i/dx|``. Let noise of standard deviation ``s`` on the biases
smooth the boundaries: ``LC_s = E sum_i |dz_i/dx| phi_s(z_i)`` with the density ``phi_s`` of a Gaussian. If no active
unit is above ``B``, then ``phi_s(z_i) >= phi_s(B)`` for all of these, hence

    TV = E |J|_F  <=  max_i |w_i| / phi_s(B) * LC_s,   and 1 / phi_s(B) = sqrt(2 pi e) B  at its least, for s = B.

Sums over more layers only add to ``LC_s``. This derivation is ours, for the abstract of the paper states the bound
without its constant. ``lc_boundary`` is ``LC_s`` as ``s`` goes to 0: with it in place of ``LC_s`` nothing is proved,
for the density of ``z_i`` at 0 may be lower than in the mean up to ``B``. :func:`looseness` then says by how much the
inequality holds, or that it does not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lc_callback.isolation import untouched


@dataclass(frozen=True)
class Bound:
    """Of one network at some points.

    Attributes:
        constant: ``sqrt(2 pi e) B max_i |w_i|``.
        noise: ``s = B``, the largest activation of the last hidden layer.
        complexity: ``LC_s``, of the last hidden layer.
        total_variation: ``E |J|_F``.
    """

    constant: float
    noise: float
    complexity: float
    total_variation: float

    @property
    def looseness(self) -> float:
        """By what factor the bound is above the total variation: at least 1."""
        return looseness(self.total_variation, self.complexity, self.constant)


def looseness(total_variation: float, complexity: float, constant: float = 1.0) -> float:
    """``constant * complexity / total_variation``: below 1 where the inequality does not hold.

    With ``constant=1`` this is the inverse of a length, by which rows of one run compare: how much of the boundaries'
    density shows in the slopes of the function.
    """
    return constant * complexity / total_variation if total_variation else math.inf


def of_row(row: Mapping[str, float], constant: float = 1.0, split: str = "train") -> float:
    """:func:`looseness` of a row of :class:`lc_callback.LocalComplexityCallback`, with ``lc_boundary``."""
    return looseness(row[f"lc_tv/{split}"], row[f"lc_boundary/{split}"], constant)


def bound(model: nn.Sequential, points: Tensor) -> Bound:
    """Both sides at points ``(N, *shape)``, exactly, by autograd in float64.

    Args:
        model: ends with ``nn.ReLU`` and ``nn.Linear``.
        points: where the means are taken.
    """
    *before, relu, last = model
    if not isinstance(relu, nn.ReLU) or not isinstance(last, nn.Linear):
        raise ValueError("the bound is for a network that ends with nn.ReLU and nn.Linear.")
    hidden = nn.Sequential(*before)
    with untouched(model, dtype=torch.float64, grad=True), torch.enable_grad():
        z, slopes = _slopes(hidden, points.double())
        outputs = (slopes * (z > 0)[..., None]).transpose(1, 2) @ last.weight.T.detach()
        variation = float(outputs.flatten(1).norm(dim=1).mean())
        noise, weight = float(z.clamp(min=0).max()), float(last.weight.norm(dim=0).max())
        density = torch.exp(-0.5 * (z / noise).square()) / (noise * math.sqrt(2 * math.pi))
        complexity = float((slopes.norm(dim=2) * density).sum(1).mean())
    return Bound(math.sqrt(2 * math.pi * math.e) * noise * weight, noise, complexity, variation)


def _slopes(model: nn.Module, points: Tensor, chunk_size: int = 16) -> tuple[Tensor, Tensor]:
    """What the model returns ``(N, F)``, and its Jacobian ``(N, F, D)``."""
    parts = []
    for some in points.split(chunk_size):
        x = some.detach().requires_grad_()
        z = model(x)
        each = torch.eye(z.shape[1], dtype=x.dtype)[:, None].expand(-1, len(x), -1)
        slopes = torch.autograd.grad(z, x, each, is_grads_batched=True)[0].flatten(2).transpose(0, 1)
        parts.append((z.detach(), slopes))
    z, slopes = (torch.cat(part) for part in zip(*parts, strict=True))
    return z, slopes
