"""Projected gradient descent that lets go of a point as soon as the point is misclassified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
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
        to_the_end: ``(n,)``, points that are attacked further though they are misclassified: they end with the last
            iterate, and whether they fell says nothing.
    """
    origin = enter(x)
    at = origin if noise is None else (origin + noise).clamp(0, 1)
    found = at.clone()
    fallen, broken = torch.zeros_like(y, dtype=torch.bool), torch.zeros_like(y, dtype=torch.bool)
    active: tuple[Tensor, ...] = torch.arange(len(x)), at, origin, y
    for step in range(steps + 1):
        moves = step < steps
        going = []
        for rows, at, origin, y in _in_parts(active, size):
            here = leave(at).detach().requires_grad_(moves)
            with torch.set_grad_enabled(moves):
                z = logits(rows, here)
            decided = z.detach()
            finite = decided.isfinite().all(1)
            wrong = finite & (decided.argmax(1) != y)
            on = finite & (~wrong | to_the_end[rows]) if to_the_end is not None else finite & ~wrong
            n_on = int(on.sum())
            if n_on < len(rows):
                fallen[rows], broken[rows] = fallen[rows] | wrong, broken[rows] | ~finite
            if not moves or n_on < len(rows):
                found[rows] = at
            if not moves or not n_on:
                continue
            loss = nn.functional.cross_entropy(seen(z), y, reduction="sum")
            # The box has one positive scale for all directions: the sign is that of the gradient inside it.
            (gradient,) = torch.autograd.grad(loss, here)
            if n_on < len(rows):
                rows, at, origin, y, gradient = rows[on.cpu()], at[on], origin[on], y[on], gradient[on]
            going.append((rows, pgd_step(origin, at, gradient, alpha, eps), origin, y))
        if not going:
            break
        active = going[0] if len(going) == 1 else tuple(map(torch.cat, zip(*going, strict=True)))
    return Descent(leave(found), fallen, broken)


def _in_parts(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors ``(n, ...)`` in parts of even size, no more than ``size``: none is a rest of one point."""
    n = len(tensors[0])
    if n:
        yield from zip(*(tensor.tensor_split(-(-n // size)) for tensor in tensors), strict=True)
