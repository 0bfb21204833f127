"""A classifier under attack: which of its right decisions an attack turns, from the smallest budget up."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lc_callback.engine.adversarial.attacks import Attack, Box, lowered_confidence
from lc_callback.engine.adversarial.logits import PointLogits, gradients_explained
from lc_callback.engine.adversarial.pgd import Descent, pgd_until_fallen

__all__ = ["Attacked", "Verdict"]

# An attack may exceed its budget by this share of it, and by so many roundings of the domain.
_OVERSHOOT, _ROUNDINGS = 1e-4, 16


@dataclass(frozen=True, eq=False)
class Verdict:
    """What became of the decisions at ``n`` points.

    Attributes:
        right: ``(n, *E)``, whether each decision is right.
        is_known: whether all logits that matter are finite.
        logits: ``(n, C, *E)`` by which each decision is judged; ``None`` if they were not asked for. They are those at
            the point if the decision is wrong there. Else they are those at the first attacked point where it is wrong,
            or where the attack ended if there is none.
    """

    right: Tensor
    is_known: bool
    logits: Tensor | None = None


class Attacked:
    """A classifier at labelled points, attacked with one budget after the other.

    Args:
        logits: the classifier at its points.
        own: ``(N,)`` bool on the CPU, the points that are judged. Settings such as the margin come from all points.
        every: attack every point, not only those that may stay right.
        keeps_logits: whether verdicts hold logits.

    Attributes:
        clean: the verdict without attack.
    """

    def __init__(self, logits: PointLogits, own: Tensor, *, every: bool, keeps_logits: bool) -> None:
        self._logits, self._own, self._every, self._keeps = logits, own, every, keeps_logits
        self.x, self.labels = logits.x, logits.labels
        z, self.y = logits.clean, logits.labels.classes
        self._finite = bool(z.isfinite().all())
        self._correct = self._are_right(z)
        best = z.topk(2, 1).values
        margins = best[:, 0] - best[:, 1]
        margin = float((margins if self.labels.counted is None else margins[self.labels.counted]).median())
        self._margin = margin if margin > 0 else 1.0
        # Right decisions that an attack has turned; points with logits that are not finite; where attacks have led.
        self._fallen, self._broken = torch.zeros_like(self._correct), torch.zeros(len(logits), dtype=torch.bool)
        self._broken = self._broken.to(z.device)
        self._found = self.x
        self._worst = z if keeps_logits else None
        self.clean = self._verdict(self._correct, self._finite, self._worst)

    def forget(self) -> None:
        """Nothing can be attacked: no number under attack is known from now on."""
        self._finite = False

    def under(self, attack: Attack, box: Box, normalize: bool) -> tuple[Verdict, Tensor]:
        """The verdict, and the attacked points ``(N, ...)`` on the CPU.

        With ``normalize``, call it with budgets from the smallest up: a decision that has fallen stays fallen.
        """
        if not self._finite:
            return replace(self.clean, is_known=False), torch.full_like(self.x, math.nan).cpu()
        if attack.eps == 0:
            return self.clean, self.x.cpu()
        attack.check_decisions(self.labels.is_single)
        if not normalize:
            return self._once(attack, box)
        standing = self._correct & ~self._fallen
        if bool(self._fallen.any()) and not self._every and not bool(standing[self._own].any()):
            return self._verdict(standing, True, self._worst), self._found.cpu()
        attacked = self._until_fallen if attack.stops else self._to_the_end
        part = attacked(attack, box)
        # An adversarial point of a smaller budget is an adversarial point of this budget too.
        gone = _each(self._fallen).any(1) & ~_each(standing).any(1)
        self._found = torch.where(_of_points(gone, part.found), self._found, part.found)
        if part.logits is not None and self._worst is not None:
            self._worst = torch.where(standing[:, None], part.logits, self._worst)
        self._fallen, self._broken = self._fallen | (self._correct & part.fallen), self._broken | part.broken
        standing = self._correct & ~self._fallen
        unknown = bool((standing & _of_points(self._broken, standing))[self._own].any())
        return self._verdict(standing, not unknown, self._worst), self._found.cpu()

    def _once(self, attack: Attack, box: Box) -> tuple[Verdict, Tensor]:
        """One attack on the raw logits, judged at the points that it returns."""
        found = self._within(attack, box, self._run(attack, box, self._logits.in_chunks))
        z = self._logits.at(found)
        worst = None if self._worst is None else torch.where(self._correct[:, None], z, self._logits.clean)
        return self._verdict(self._correct & self._are_right(z), bool(z.isfinite().all()), worst), found.cpu()

    def _verdict(self, right: Tensor, is_known: bool, logits: Tensor | None) -> Verdict:
        return Verdict(right[self._own], is_known, None if logits is None else logits[self._own])

    def _are_right(self, logits: Tensor) -> Tensor:
        right = logits.argmax(1) == self.y
        return right if self.labels.counted is None else right & self.labels.counted

    def _until_fallen(self, attack: Attack, box: Box) -> Descent:
        """PGD, which attacks each point until its last decision has fallen."""
        standing = self._correct & ~self._fallen
        mine = _each(standing).any(1)
        wrong = ~_each(self._correct).any(1)
        rows = torch.arange(len(self.x))[(mine | wrong if self._every else mine).cpu() & self._own]
        if self._every:  # for points that are wrong, all their decisions are part of the loss
            counted = torch.ones_like(standing) if self.labels.counted is None else self.labels.counted
            standing = standing | (_of_points(wrong, standing) & counted)
        eps, alpha = attack.in_unit_box(box)

        def descend() -> Descent:
            with attack.seeded(self.x.device), gradients_explained():
                noise = attack.noise(self.x[torch.arange(len(self.x))], box)
                return pgd_until_fallen(
                    lambda some, x: self._logits.of_two(rows[some], x),
                    lambda logits: lowered_confidence(logits, self._margin),
                    box.enter,
                    box.inside,
                    self.x[rows],
                    self.y[rows],
                    None if noise is None else noise[rows],
                    eps=eps,
                    alpha=alpha,
                    steps=attack.steps,
                    size=min(self._logits.chunk, self._logits.fast),
                    standing=standing[rows],
                    to_the_end=wrong[rows] if self._every else None,
                    keeps_logits=self._keeps,
                )

        part: Descent = self._logits.with_memory(descend)
        found, fallen, broken = self._found.clone(), torch.zeros_like(self._fallen), torch.zeros_like(self._broken)
        found[rows], fallen[rows], broken[rows] = part.found, part.fallen, part.broken
        worst = None if self._worst is None else self._worst.clone()
        if worst is not None and part.logits is not None:
            worst[rows] = part.logits
        return Descent(found, fallen, broken, worst)

    def _to_the_end(self, attack: Attack, box: Box) -> Descent:
        """The same for an attack that shows nothing before its end."""

        def seen(points: Tensor, x: Tensor) -> Tensor:
            z = self._logits.in_chunks(points, x)
            return z / self._margin if attack.is_scale_free else lowered_confidence(z, self._margin)

        found = self._within(attack, box, self._run(attack, box, seen))
        z = self._logits.at(found)
        finite = _each(z.isfinite()).all(1)
        wrong = z.argmax(1) != self.y
        return Descent(found, wrong & _of_points(finite, wrong), ~finite, z if self._keeps else None)

    def _run(self, attack: Attack, box: Box, seen: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return self._logits.with_memory(functools.partial(self._attacked, attack, box, seen))

    def _attacked(self, attack: Attack, box: Box, seen: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def of_these(rows: Tensor, origin: Tensor, x: Tensor) -> Tensor:
            if self._logits.holds and not self._are_these(origin, x, attack, box):
                raise _OtherPointsError
            return seen(rows if len(x) == len(rows) else torch.zeros(len(x), dtype=torch.long), x)

        def of_one(rows: Tensor, origin: Tensor, x: Tensor) -> Tensor:
            return seen(rows.expand(len(x)), x)

        def run(logits: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
            x, n_classes = self.x[rows], self._logits.clean.shape[1]
            return attack.run(functools.partial(logits, rows, x), x, self.labels[rows], box, n_classes)

        found, drawn = self.x.clone(), 0
        with gradients_explained():
            try:
                with attack.seeded(self.x.device):
                    for rows in self._at_once(attack):
                        with attack.noise_of(rows - drawn):
                            found[rows] = run(of_these, rows)
                        drawn = int(rows[-1]) + 1
            except _OtherPointsError:  # the attack drops points: which inputs belong to the others is not known
                for row in torch.arange(len(self.x)).split(1):
                    with attack.seeded(self.x.device):
                        found[row] = run(of_one, row)
        return found

    def _at_once(self, attack: Attack) -> Sequence[Tensor]:
        """The points that are attacked, in parts that fit one pass: in chunks, each gradient computes logits twice."""
        rows = torch.arange(len(self.x))
        if not attack.is_by_point:
            return [rows]
        rows = rows[self._own if self._every else self._own & _each(self._correct).any(1).cpu()]
        return rows.split(min(self._logits.chunk, self._logits.fast)) if len(rows) else []

    def _are_these(self, origin: Tensor, x: Tensor, attack: Attack, box: Box) -> bool:
        """Whether these are the same points, each near its place, and not copies of some of them."""
        if len(x) != len(origin) or not attack.has_budget:
            return False
        return float((x.detach() - origin).abs().max()) <= attack.eps * (1 + _OVERSHOOT) + self._rounding(box)

    def _rounding(self, box: Box) -> float:
        return _ROUNDINGS * torch.finfo(self.x.dtype).eps * max(self._logits.largest, box.scale)

    def _within(self, attack: Attack, box: Box, found: Tensor) -> Tensor:
        """The attacked points, checked against budget and bounds."""
        rounding = self._rounding(box)
        inside = torch.clamp(found, box.low, box.high)
        outside = attack.has_budget and not torch.equal(found, inside)
        if outside and float((found - inside).abs().max()) > rounding:
            raise ValueError(f"`attack={attack.attack!r}` left the bounds of the inputs.")
        found = inside
        delta = (found - self.x).flatten(1)
        length = _lengths(delta, attack.norm)
        beyond = length > attack.eps * (1 + _OVERSHOOT) + rounding
        if attack.has_budget and bool(beyond.any()):
            raise ValueError(
                f"`attack={attack.attack!r}` moved points by {float(length.max()):.4g} in norm {attack.norm:g}, more "
                f"than eps = {attack.eps:.4g}: a function must stay within it (it gets it as its parameter `eps`)."
            )
        if attack.has_budget:
            return found
        # An attack that needs more than eps has not succeeded within eps.
        return torch.where(_of_points(beyond, found), self.x, found)


class _OtherPointsError(Exception):
    """An attack asked for logits at other points than all."""


def _each(values: Tensor) -> Tensor:
    """``(N, k)``: all ``k`` values of each of ``N`` points in a row."""
    return values.reshape(len(values), -1)


def _of_points(mask: Tensor, like: Tensor) -> Tensor:
    """``mask (N,)`` in the shape of ``like (N, ...)``."""
    return mask.view(-1, *[1] * (like.ndim - 1))


def _lengths(delta: Tensor, norm: float) -> Tensor:
    """``(N,)`` norms of rows."""
    if norm == 0:
        return (delta != 0).sum(1).to(delta)
    if norm == math.inf:
        low, high = torch.aminmax(delta, dim=1)  # one pass, and no copy
        return torch.maximum(-low, high)
    return torch.linalg.vector_norm(delta, norm, 1)
