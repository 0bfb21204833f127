"""Projected gradient descent that stops at a point as soon as the point is misclassified."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Descent", "pgd_step", "pgd_until_fallen"]


@dataclass(frozen=True, eq=False)
class Descent:
    """What PGD with one budget did to ``n`` points.

    A decision falls when it is wrong for the first time; until then it stands.

    Attributes:
        found: ``(n, ...)``, the iterate at which the last decision of a point fell; the last iterate if some stand.
        fallen: ``(n, *E)``, whether a decision was wrong at any iterate.
        broken: ``(n,)``, whether an iterate had logits that are not finite; the point stays there.
        logits: ``(n, C, *E)``, those at the first iterate at which a decision was wrong, else those of the last
            iterate; ``None`` if they are not kept.
    """

    found: Tensor
    fallen: Tensor
    broken: Tensor
    logits: Tensor | None = None


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
    standing: Tensor,
    to_the_end: Tensor | None = None,
    keeps_logits: bool = False,
) -> Descent:
    """Attack each point until all its decisions were wrong: at the start, or at one of ``steps`` steps.

    But for rounding, a point does not depend on the others: it has its own noise and its own loss, the cross entropy
    summed over its decisions that stand. When all its decisions have fallen, it leaves the batch. So a step costs only
    as much as the points that stand.

    Args:
        logits: ``(rows, points) -> (k, C, *E)``; ``rows (k,)`` on the CPU says which of the ``n`` points these are.
        seen: makes of logits those that the attack sees, with the same decisions.
        enter: from points to the unit box.
        leave: from the unit box to points within their bounds.
        x: ``(n, ...)`` points.
        y: ``(n, *E)`` classes.
        noise: ``(n, ...)``, added to the points at the start, in the unit box; ``None`` starts at the points.
        eps: budget in the unit box.
        alpha: step size in the unit box.
        steps: number of steps.
        size: points in one pass.
        standing: ``(n, *E)``, the decisions that may fall.
        to_the_end: ``(n,)``, points whose decisions stay in the loss even if they are wrong. They end at the last
            iterate, and their ``fallen`` has no meaning.
        keeps_logits: whether to return logits.
    """
    origin = enter(x)
    at = origin if noise is None else (origin + noise).clamp(0, 1)
    found = at.clone()
    fallen, broken = torch.zeros_like(standing), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    kept: Tensor | None = None
    active: tuple[Tensor, ...] = torch.arange(len(x)), at, origin, y, standing
    for step in range(steps + 1):
        moves = step < steps
        going = []
        for rows, at, origin, y, stands in _in_parts(active, size):
            here = leave(at).detach().requires_grad_(moves)
            with torch.set_grad_enabled(moves):
                z = logits(rows, here)
            decided = z.detach()
            finite = _each(decided.isfinite()).all(1)
            wrong = (decided.argmax(1) != y) & _of(finite, y)
            if keeps_logits:
                kept = z.new_zeros(len(x), *z.shape[1:]) if kept is None else kept
                kept[rows] = torch.where(fallen[rows][:, None], kept[rows], decided)
            left = stands & ~wrong if to_the_end is None else stands & (~wrong | _of(to_the_end[rows], wrong))
            on = finite & _each(left).any(1)
            n_on = int(on.sum())
            if n_on < len(rows) or y.ndim > 1:
                fallen[rows], broken[rows] = fallen[rows] | wrong, broken[rows] | ~finite
            if not moves or n_on < len(rows):
                found[rows] = at
            if not moves or not n_on:
                continue
            loss = _loss(seen(z), y, left)
            # The box has one positive scale for all directions, so the gradient has the same signs inside it.
            (gradient,) = torch.autograd.grad(loss, here)
            if n_on < len(rows):
                going_on = on.nonzero()[:, 0]  # once: a mask is searched by each tensor that it indexes
                rows = rows[going_on.cpu()]
                at, origin, y, left, gradient = (each[going_on] for each in (at, origin, y, left, gradient))
            going.append((rows, pgd_step(origin, at, gradient, alpha, eps), origin, y, left))
        if not going:
            break
        active = going[0] if len(going) == 1 else tuple(map(torch.cat, zip(*going, strict=True)))
    return Descent(leave(found), fallen, broken, kept)


def _loss(logits: Tensor, y: Tensor, stands: Tensor) -> Tensor:
    """Cross entropy, summed over the decisions that stand."""
    if y.ndim == 1:  # a point whose only decision has fallen leaves, so its loss does not matter
        return nn.functional.cross_entropy(logits, y, reduction="sum")
    return (nn.functional.cross_entropy(logits, y, reduction="none") * stands).sum()


def _each(values: Tensor) -> Tensor:
    """``(n, k)``: all ``k`` values of each of ``n`` points in a row."""
    return values.reshape(len(values), -1)


def _of(mask: Tensor, like: Tensor) -> Tensor:
    """``mask (n,)`` in the shape of ``like (n, ...)``."""
    return mask.view(-1, *[1] * (like.ndim - 1))


def _in_parts(tensors: Sequence[Tensor], size: int) -> Iterator[tuple[Tensor, ...]]:
    """Tensors ``(n, ...)`` in parts of nearly equal size, at most ``size``, so that no point is left alone."""
    n = len(tensors[0])
    if n:
        yield from zip(*(tensor.tensor_split(-(-n // size)) for tensor in tensors), strict=True)
