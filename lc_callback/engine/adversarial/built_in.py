"""The attacks that need no other package. They compute the same as torchattacks, bit for bit.

All work in the unit box, on cross-entropy. FGSM: Goodfellow et al., 2015. PGD, and PGDL2 in the Euclidean norm: Madry
et al., 2018.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lc_callback.engine.adversarial.pgd import pgd_step

__all__ = ["ARGUMENTS", "attack_built_in"]

#: The attacks, and what ``attack_args`` may hold for each.
ARGUMENTS: dict[str, tuple[str, ...]] = {"PGD": ("random_start",), "PGDL2": ("random_start",), "FGSM": ()}
_LEAST = 1e-10  # added to the length of a gradient, which may be zero


def attack_built_in(
    attack: str,
    model: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    alpha: float,
    steps: int,
    random_start: bool = True,
) -> Tensor:
    """Adversarial points ``(N, ...)`` in the unit box.

    Args:
        attack: one of ``ARGUMENTS``.
        model: from points to logits ``(N, C, *E)``.
        x: ``(N, ...)`` points in the unit box.
        y: ``(N, *E)`` classes.
        eps: budget.
        alpha: step size; FGSM makes one step of ``eps``.
        steps: number of steps.
        random_start: whether PGD begins at a random point within the budget.
    """
    if attack == "FGSM":
        return (x + eps * _gradient(model, x, y).sign()).clamp(0, 1)
    euclidean = attack == "PGDL2"
    at = x.clone()
    if random_start:
        noise = _in_ball(x, eps) if euclidean else torch.empty_like(x).uniform_(-eps, eps)
        at = (at + noise).clamp(0, 1)
    for _ in range(steps):
        gradient = _gradient(model, at, y)
        at = _step_l2(x, at, gradient, alpha, eps) if euclidean else pgd_step(x, at, gradient, alpha, eps)
    return at


def _gradient(model: Callable[[Tensor], Tensor], at: Tensor, y: Tensor) -> Tensor:
    at = at.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(at), y), at)
    return gradient


def _in_ball(x: Tensor, eps: float) -> Tensor:
    """For each point a random vector: any direction, a length that is uniform up to ``eps``."""
    directions = torch.empty_like(x).normal_()
    lengths = _lengths(directions)
    return directions * (torch.zeros_like(lengths).uniform_(0, 1) / lengths * eps)


def _step_l2(origin: Tensor, at: Tensor, gradient: Tensor, alpha: float, eps: float) -> Tensor:
    moved = at + alpha * (gradient / (_lengths(gradient) + _LEAST)) - origin
    return (origin + moved * (eps / _lengths(moved)).clamp(max=1)).clamp(0, 1)


def _lengths(x: Tensor) -> Tensor:
    """``(N, 1, ...)``: the Euclidean length of each point."""
    return x.flatten(1).norm(dim=1).view(-1, *[1] * (x.ndim - 1))
