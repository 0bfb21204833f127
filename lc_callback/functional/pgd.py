"""Projected gradient descent that lets go of a point as soon as the point is misclassified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Descent", "pgd_step", "pgd_until_fallen"]


@dataclass(frozen=True, eq=False)
class Descent:
    """What PGD with one budget did to ``n`` points.

    Attributes:
        found: ``(n, ...)``, the first iterate at which a point is misclassified; the last one if there is none.
        fallen: ``(n,)``, whether there is one.
        broken: ``(n,)``, whether an iterate has logits that are not finite; the point stays there.
    """

    found: Tensor
    fallen: Tensor
    broken: Tensor


def pgd_step(origin: Tensor, at: Tensor, gradient: Tensor, alpha: float, eps: float) -> Tensor:
    """One step of PGD in the maximum norm (Madry et al., 2018) in the unit box, as torchattacks computes it."""
    moved = at + alpha * gradient.sign()
    return (origin + (moved - origin).clamp(-eps, eps)).clamp(0, 1)


def pgd_until_fallen(
    logits: Callable[[Tensor, Tensor], Tensor],
    seen: Callable[[Tensor], Tensor],
    enter: Callable[[Tensor], Tensor],
    leave: Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    noise: Tensor | None,
    *,
    eps: float,
    alpha: float,
    steps: int,
    size: int,
    to_the_end: Tensor | None = None,
) -> Descent:
    """Attack points, each until its first iterate that is misclassified: the start, or any of ``steps`` steps.

    What a point gets does not depend on the others, but for rounding: its noise is its own, and so is its loss. A
    point that has fallen leaves its batch, so that a step costs what the standing points cost.

    Args:
        logits: ``(rows, points) -> (k, C)``; ``rows (k,)`` on the CPU say which of the ``n`` points these belong to.
        seen: logits as the attack sees them, with the same decisions.
        enter: from points to the unit box.
        leave: from the unit box to points within their bounds.
        x: ``(n, ...)`` points.
        y: ``(n,)`` classes.
        noise: ``(n, ...)`` that is added to the points at the start, in the unit box; ``None`` to start at them.
        eps: budget in the unit box.
        alpha: step size in the unit box.
        steps: number of steps.
        size: points in one pass.
        to_the_end: ``(n,)``, points that are attacked further though they are misclassified.
    """
    origin = enter(x)
    at = origin.clone() if noise is None else (origin + noise).clamp(0, 1)
    fallen, broken = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
    active = torch.arange(len(x))
    for step in range(steps + 1):
        moves = step < steps
        going = [active[:0]]
        # Parts of even size: none is a rest of one point.
        for rows in active.tensor_split(-(-len(active) // size)) if len(active) else ():
            here = leave(at[rows]).detach().requires_grad_(moves)
            with torch.set_grad_enabled(moves):
                z = logits(rows, here)
            finite = z.detach().isfinite().all(1)
            wrong = finite & (z.detach().argmax(1) != y[rows])
            fallen[rows], broken[rows] = fallen[rows] | wrong, broken[rows] | ~finite
            on = finite & ~wrong if to_the_end is None else finite & (~wrong | to_the_end[rows])
            if not moves or not bool(on.any()):
                continue
            loss = nn.functional.cross_entropy(seen(z), y[rows], reduction="sum")
            # The box has one positive scale for all directions: the sign is that of the gradient inside it.
            (gradient,) = torch.autograd.grad(loss, here)
            rows, gradient = rows[on.cpu()], gradient[on]
            at[rows] = pgd_step(origin[rows], at[rows], gradient, alpha, eps)
            going.append(rows)
        active = torch.cat(going)
    return Descent(leave(at), fallen, broken)
