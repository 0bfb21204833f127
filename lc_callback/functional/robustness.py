"""Robust accuracy: the share of points that stay correct under attack."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.checks import is_out_of_memory, positive_integer
from lc_callback.engine.adversarial.attacks import Attack, Box, check_attack, lowered_confidence
from lc_callback.engine.adversarial.pgd import Descent, pgd_until_fallen
from lc_callback.engine.adversarial.probabilities import (
    BeforeSquashing,
    kind_of_probabilities,
    logits_from,
    same_probabilities,
    share_rounded,
)
from lc_callback.engine.network.layout import memory_of
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space, compute_dtype
from lc_callback.functional.targets import check_targets
from lc_callback.isolation import untouched
from lc_callback.suggestions import did_you_mean

__all__ = ["RobustAccuracy", "check_arguments", "find_bounds", "robust_accuracy", "usable_spread"]

# Bytes that the tensors kept for one backward pass may take.
_BUDGET = {"cpu": 2**30, "cuda": 8 * 2**30}
# Of these with which PGD is fastest on a CPU, and points that are worth a pass in any case.
_FAST, _WORTHWHILE = 64 * 2**20, 32
# By what share of the budget, and by how many roundings of the domain, an attack may overshoot.
_OVERSHOOT, _ROUNDINGS = 1e-4, 16
# How many times as wide as all that can be reached the domain may be: in its units a point is rounded by as much more.
_WIDE = 16
# What torch says where no gradient gets through: at a `no_grad`, at a `detach`, in a reentrant checkpoint, at NumPy.
_WITHOUT_GRADIENT = ("does not require grad", "have been used in the graph", "use_reentrant", "Can't call numpy()")
_NOT_BELOW = "`bounds={}` must be a pair (low, high) with low below high."


@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    """Accuracy with and without attack.

    Attributes:
        clean_acc: share of points that are classified correctly, from 0 to 1; NaN if a logit is not finite.
        robust_acc: by eps, the share of points that are classified correctly both at the point and at the attacked
            point, from 0 to ``clean_acc``; NaN if a point that has not fallen has a logit that is not finite.
        adversarial: by eps, the attacked points ``(N, ...)`` on the CPU in input units (with ``at=``: outputs of that
            module), if they were asked for; of a point that has fallen, the first that is misclassified. Some attacks
            return the point itself where they fail.
        bounds: the domain, ``(low, high)`` with tensors of the shape of one point.
        note: what was done about a model that returns probabilities; empty for logits.
    """

    clean_acc: float
    robust_acc: dict[float, float]
    adversarial: dict[float, Tensor] | None
    bounds: tuple[Tensor, Tensor]
    note: str = ""

    def __repr__(self) -> str:
        robust = ", ".join(f"{eps:g}: {share:.4g}" for eps, share in self.robust_acc.items())
        kept = "" if self.adversarial is None else f", adversarial of {len(self.adversarial)} eps"
        return f"RobustAccuracy(clean_acc={self.clean_acc:.4g}, robust_acc={{{robust}}}{kept})"


def robust_accuracy(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    eps: float | Sequence[float],
    attack: str | Callable[..., Tensor] = "PGD",
    alpha: float | None = None,
    steps: int = 10,
    bounds: tuple[Any, Any] | None = None,
    seed: int = 0,
    eps_unit: str = "auto",
    attack_args: Mapping[str, Any] | None = None,
    normalize_logits: bool = True,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    return_adversarial: bool = False,
) -> RobustAccuracy:
    r"""Accuracy of a classifier at points, and at the worst points that an attack finds within ``eps`` of them.

    The default is PGD (Madry et al., 2018) in the maximum norm, as in *Deep Networks Always Grok and Here is Why* (ICML
    2024, section 1): ``steps`` steps of ``alpha`` along the sign of the gradient from a uniform random start.

    Several eps are tried from the smallest up. A point that has fallen (it is right as it is, and misclassified at an
    attacked point) at one eps has fallen at every larger one, whose budget holds that attacked point. So robust
    accuracy never rises with eps. PGD looks at each of its iterates, the start included, and does not attack a point
    further once it has fallen. Other attacks, and functions, are judged by the points that they return; they get all
    points at each eps, for what they draw may depend on how many there are. With ``normalize_logits=False`` each eps is
    an attack by itself, judged by what it returns.

    The attack sees logits that do not saturate. Where they grow, as in long training, the gradient of cross-entropy
    vanishes in rounding and a raw attack reports robustness that is not there. Here the logits are taken in units of
    the median margin of the points, and the lead :math:`m` of the top logit (over the smooth maximum of the others) is
    shortened to :math:`\log(1 + m)`: the same decisions, the same directions of ascent, and no dependence on the scale
    of the logits.

    The model is attacked in eval mode, in float32 or better, and left exactly as it was: modes, buffers, gradients,
    ``requires_grad`` and random states.

    A model that returns probabilities is attacked at the logits that its last softmax or sigmoid gets, or, if that is
    not at hand, at the logarithms of the probabilities. A warning says so.

    Args:
        model: any torch module whose output is logits ``(N, C)``, ``C >= 2``, or has them as ``logits``.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords). The
            floating-point ones are attacked (several as one product space); integer and boolean ones are held.
        targets: ``(N,)`` integer classes.
        eps: radius of the attack, or several. 0 is no attack.
        attack: name of an attack of torchattacks (``"PGD"``, ``"PGDL2"``, ``"APGD"``, ``"AutoAttack"``, ``"Square"``,
            ...; all but ``"PGD"`` need the extra ``attacks``), or a function ``attack(model, x, y) -> x_adv`` with
            ``x (N, ...)`` in input units; one that has a parameter ``eps`` gets it. Attacks that look for the smallest
            change (``"DeepFool"``, ``"CW"``, ...) count where they need no more than ``eps``, in their own norm.
        alpha: step size, in units of ``eps``'s; ``None`` is ``2.5 * eps / steps``. The paper has 1/64.
        steps: iterations, for attacks that have a budget.
        bounds: domain ``(low, high)`` of the inputs, scalars or per feature (for images also per channel); infinite
            ones are allowed. ``None`` is (0, 1) for points that fill exactly that, else the range of each feature over
            the points; with ``at`` no bounds.
        seed: seed of all that the attack draws.
        eps_unit: ``"input"``: ``eps`` and ``alpha`` are in units of what is attacked. ``"std"``: they are multiples of
            the root-mean-square spread of the points there, over coordinates. ``"auto"`` is ``"input"`` for inputs and
            ``"std"`` behind a module (``at``, tokens): an embedding that shrinks while the next layer grows is the same
            function.
        attack_args: further arguments of the attack, such as ``{"norm": "L2"}``.
        normalize_logits: ``False`` gives the raw logits to the attack.
        at: name of the module whose output (batch first) is attacked instead of the input, at its first call. If no
            input is floating-point, this is the first ``nn.Embedding`` that is executed.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one forward and backward pass; by default as many as fit a memory budget, for PGD on a
            CPU fewer. Halved when out of memory. The result does not depend on it, but for rounding.
        return_adversarial: keep the attacked points: of a point that has fallen, the first at which it is
            misclassified, at this or a smaller eps; else what the attack ends with. Without, PGD leaves out those that
            are wrong as they are.

    Returns:
        :class:`RobustAccuracy`.

    Raises:
        ValueError: for an argument out of range, targets that are no classes, points outside the bounds, an attack that
            leaves its budget, or a model through which no gradient flows. The message says what to pass instead.

    Example::

        >>> import torch
        >>> from lc_callback.functional import robust_accuracy
        >>> net = torch.nn.Linear(2, 2, bias=False)
        >>> with torch.no_grad():  # decides by the sign of the first coordinate
        ...     _ = net.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> x = torch.tensor([[0.05, 0.0], [0.3, 0.0], [-0.3, 0.0], [0.3, 0.0]])
        >>> result = robust_accuracy(net, x, torch.tensor([0, 0, 1, 1]), eps=[0.1, 0.5], bounds=(-1, 1))
        >>> result.clean_acc, result.robust_acc
        (0.75, {0.1: 0.5, 0.5: 0.0})
    """
    found = attacked_accuracy(
        model,
        inputs,
        targets,
        eps=eps,
        attack=attack,
        alpha=alpha,
        steps=steps,
        bounds=bounds,
        seed=seed,
        eps_unit=eps_unit,
        attack_args=attack_args,
        normalize_logits=normalize_logits,
        at=at,
        forward_fn=forward_fn,
        chunk_size=chunk_size,
        return_adversarial=return_adversarial,
    )
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    return found


def attacked_accuracy(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    eps: float | Sequence[float],
    attack: str | Callable[..., Tensor],
    alpha: float | None,
    steps: int,
    bounds: tuple[Any, Any] | None,
    seed: int,
    eps_unit: str,
    attack_args: Mapping[str, Any] | None,
    normalize_logits: bool,
    at: str | None,
    forward_fn: Callable[..., Any] | None,
    chunk_size: int | None,
    return_adversarial: bool = False,
) -> RobustAccuracy:
    """:func:`robust_accuracy` without its warning, which is the ``note`` of the result."""
    radii = check_arguments(eps, attack, alpha, steps, bounds, eps_unit, attack_args, at, chunk_size)
    measurement = _Measurement(model, inputs, targets, at, forward_fn, return_adversarial)
    with untouched(model, forward_fn, dtype=compute_dtype(model, inputs), seed=seed, grad=True):
        # Any other attack sees all points, and so finds out by itself.
        measurement.look(chunk_size, needs_gradient=attack == "PGD" and max(radii) > 0)
        unit = measurement.spread() if measurement.in_spreads(eps_unit) else 1.0
        box, domain = measurement.box(bounds, unit * max(radii))
        robust, adversarial = dict.fromkeys(radii, 0.0), dict.fromkeys(radii, measurement.x)
        for radius in sorted(radii):
            step = None if alpha is None else alpha * unit
            one = Attack(attack, radius * unit, step, steps, attack_args or {}, seed)
            robust[radius], adversarial[radius] = measurement.under(one, box, normalize_logits)
    kept = adversarial if return_adversarial else None
    return RobustAccuracy(measurement.clean_acc, robust, kept, domain, measurement.note)


class _Measurement(Space):
    """A classifier at labelled points; ``every`` one is attacked, or only those that may stay correct."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        targets: Any,
        at: str | None,
        forward_fn: Callable[..., Any] | None,
        every: bool,
    ) -> None:
        super().__init__(model, inputs, at=at, forward_fn=forward_fn)
        self._targets, self._every = targets, every
        self._squashed: str | None = None  # the model returns probabilities of this kind
        self._is_behind = False  # and what they are computed from is at hand
        self.note = ""

    def look(self, chunk_size: int | None, needs_gradient: bool) -> None:
        """Find points, logits, and how much memory an attack takes."""
        self.locate(compute_dtype(self.model, self.inputs))
        with torch.no_grad():
            self.x = _normal(self.all_values())
        self.n = len(self.x)
        if self.at_module is not None:
            self.largest = float(self.x.abs().max())
        tensors = [leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor)]
        self._held = self.at_module is not None or len(tensors) > len(self.points.moving)
        each = self._bytes_per_point(needs_gradient)
        self.chunk = chunk_size or max(1, _BUDGET.get(self.device.type, _BUDGET["cpu"]) // each)
        by_default = chunk_size is None and self.device.type == "cpu"
        self._fast = max(_WORTHWHILE, _FAST // each) if by_default else self.chunk
        logits = self._with_memory(self._all_logits, self.x)
        self.y = _normal(check_targets(self._targets, logits).to(self.device))
        logits = self._without_squashing(logits)
        self.finite = bool(logits.isfinite().all())
        self.correct = logits.argmax(1) == self.y
        # Of the points that are right as they are: those that an attack has turned, and where; logits not finite.
        self.fallen, self.broken, self.found = torch.zeros_like(self.correct), torch.zeros_like(self.correct), self.x
        self.clean_acc = float(self.correct.double().mean()) if self.finite else math.nan
        self.n_classes = logits.shape[1]
        best = logits.topk(2, 1).values
        self.margin = float((best[:, 0] - best[:, 1]).median())

    def in_spreads(self, eps_unit: str) -> bool:
        """Whether lengths are multiples of the spread of the points."""
        return eps_unit == "std" or (eps_unit == "auto" and self.at_module is not None)

    def spread(self) -> float:
        """Root-mean-square spread of the points over coordinates."""
        spread = float(self.x.double().var(0, unbiased=False).mean().sqrt())
        if not math.isfinite(spread):  # there is nothing to attack
            self.finite = False
            return 1.0
        return usable_spread(spread)

    def box(self, bounds: tuple[Any, Any] | None, eps: float) -> tuple[Box, tuple[Tensor, Tensor]]:
        """The domain."""
        if bounds is None:
            bounds = (-math.inf, math.inf) if self.at_module is not None else find_bounds(self.x)[:2]
        low, high = (self._bound(bound, bounds) for bound in bounds)
        if not bool((low <= high).all()):  # those of a feature that is constant may be equal
            raise ValueError(_NOT_BELOW.format(_short(bounds)))
        below, above = self.x.amin(0), self.x.amax(0)
        slack = 1e-5 * float((above - below).max())
        if bool((below < low - slack).any()) or bool((above > high + slack).any()):
            raise ValueError(
                f"`bounds={_short(bounds)}` must hold all points, which range from {float(below.min()):.4g} to "
                f"{float(above.max()):.4g}: pass the domain of the inputs as the model gets them."
            )
        domain = low.cpu(), high.cpu()
        least, most = below - 2 * eps, above + 2 * eps
        low, high = torch.where(low.isinf(), least, low), torch.where(high.isinf(), most, high)
        if float((high - low).max()) > _WIDE * float((most - least).max()):
            low, high = torch.maximum(low, least), torch.minimum(high, most)
        return Box(low, high), domain

    def _bound(self, bound: Any, bounds: Any) -> Tensor:
        values = torch.as_tensor(bound, dtype=self.x.dtype, device=self.x.device)
        if values.ndim == 1 and len(self.shape) == 3 and len(values) == self.shape[0]:
            values = values.view(-1, 1, 1)
        try:
            return values.expand(self.x.shape[1:])
        except RuntimeError:
            raise ValueError(
                f"`bounds={_short(bounds)}` must be scalars or have the shape {tuple(self.x.shape[1:])} of one point, "
                f"but one has shape {tuple(values.shape)}."
            ) from None

    def under(self, attack: Attack, box: Box, normalize: bool) -> tuple[float, Tensor]:
        """Robust accuracy and attacked points.

        With ``normalize``, call it with budgets from the smallest up: what has fallen stays fallen.
        """
        if not self.finite:
            return math.nan, torch.full_like(self.x, math.nan).cpu()
        if attack.eps == 0:
            return self.clean_acc, self.x.cpu()
        if not normalize:
            found = self._within(attack, box, self._with_memory(self._attacked, attack, box, self._in_chunks))
            logits = self._with_memory(self._all_logits, found)
            robust = self.correct & (logits.argmax(1) == self.y)
            return float(robust.double().mean()) if bool(logits.isfinite().all()) else math.nan, found.cpu()
        if bool(self.fallen.any()) and not self._every and not bool((self.correct & ~self.fallen).any()):
            return 0.0, self.found.cpu()
        attacked = self._until_fallen if attack.stops else self._to_the_end
        found, fallen, broken = attacked(attack, box)
        # An adversarial point of a smaller budget is one of this budget, too.
        self.found = torch.where(_of_points(self.fallen, found), self.found, found)
        self.fallen, self.broken = self.fallen | (self.correct & fallen), self.broken | broken
        standing = self.correct & ~self.fallen
        unknown = bool((standing & self.broken).any())
        return math.nan if unknown else float(standing.double().mean()), self.found.cpu()

    def _until_fallen(self, attack: Attack, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """Attacked points, and which have fallen and which have logits that are not finite: PGD, point by point."""
        standing = self.correct & ~self.fallen
        rows = torch.arange(self.n)[(standing | ~self.correct if self._every else standing).cpu()]
        eps, alpha = attack.in_unit_box(box)
        margin = self._typical_margin

        def descend() -> Descent:
            with attack.seeded(self.device), _gradients_explained():
                noise = attack.noise(self.x[torch.arange(self.n)], box)
                return pgd_until_fallen(
                    lambda some, x: self._of_two(rows[some], x),
                    lambda logits: lowered_confidence(logits, margin),
                    box.enter,
                    box.inside,
                    self.x[rows],
                    self.y[rows],
                    None if noise is None else noise[rows],
                    eps=eps,
                    alpha=alpha,
                    steps=attack.steps,
                    size=min(self.chunk, self._fast),
                    to_the_end=~self.correct[rows] if self._every else None,
                )

        part: Descent = self._with_memory(descend)
        found, fallen, broken = self.found.clone(), torch.zeros_like(self.fallen), torch.zeros_like(self.fallen)
        found[rows], fallen[rows], broken[rows] = part.found, part.fallen, part.broken
        return found, fallen, broken

    def _to_the_end(self, attack: Attack, box: Box) -> tuple[Tensor, Tensor, Tensor]:
        """The same for an attack that knows only when it ends."""
        margin = self._typical_margin

        def seen(points: Tensor, x: Tensor) -> Tensor:
            logits = self._in_chunks(points, x)
            return logits / margin if attack.is_scale_free else lowered_confidence(logits, margin)

        found = self._within(attack, box, self._with_memory(self._attacked, attack, box, seen))
        logits = self._with_memory(self._all_logits, found)
        finite = logits.isfinite().all(1)
        return found, finite & (logits.argmax(1) != self.y), ~finite

    @property
    def _typical_margin(self) -> float:
        return self.margin if self.margin > 0 else 1.0

    def _of_two(self, points: Tensor, x: Tensor) -> Tensor:
        """Logits. A point alone is computed twice, for some models take the batch axis of one for none."""
        if len(x) > 1 or self.n == 1 or self.chunk == 1:
            return self._logits(points, x)
        return self._logits(points.expand(2), torch.cat([x, x]))[:1]

    def _attacked(self, attack: Attack, box: Box, seen: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        def of_these(rows: Tensor, origin: Tensor, x: Tensor) -> Tensor:
            if self._held and not self._are_these(origin, x, attack, box):
                raise _OtherPointsError
            return seen(rows if len(x) == len(rows) else torch.zeros(len(x), dtype=torch.long), x)

        def of_one(rows: Tensor, origin: Tensor, x: Tensor) -> Tensor:
            return seen(rows.expand(len(x)), x)

        def run(logits: Callable[[Tensor, Tensor, Tensor], Tensor], rows: Tensor) -> Tensor:
            x = self.x[rows]
            return attack.run(functools.partial(logits, rows, x), x, self.y[rows], box, self.n_classes)

        found, drawn = self.x.clone(), 0
        with _gradients_explained():
            try:
                with attack.seeded(self.device):
                    for rows in self._at_once(attack):
                        with attack.noise_of(rows - drawn):
                            found[rows] = run(of_these, rows)
                        drawn = int(rows[-1]) + 1
            except _OtherPointsError:  # the attack drops points, and which inputs belong to the rest is not known
                for row in torch.arange(self.n).split(1):
                    with attack.seeded(self.device):
                        found[row] = run(of_one, row)
        return found

    def _at_once(self, attack: Attack) -> Sequence[Tensor]:
        """The points that are attacked, in parts: logits in chunks are computed twice for each gradient."""
        rows = torch.arange(self.n)
        if not attack.is_by_point:
            return [rows]
        rows = rows if self._every else rows[self.correct.cpu()]
        return rows.split(min(self.chunk, self._fast)) if len(rows) else []

    def _are_these(self, origin: Tensor, x: Tensor, attack: Attack, box: Box) -> bool:
        """Whether these are the points that were there, each near its place, and not copies of a few."""
        if len(x) != len(origin) or not attack.has_budget:
            return False
        return float((x.detach() - origin).abs().max()) <= attack.eps * (1 + _OVERSHOOT) + self._rounding(box)

    def _rounding(self, box: Box) -> float:
        return _ROUNDINGS * torch.finfo(self.x.dtype).eps * max(self.largest, box.scale)

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
                f"than eps = {attack.eps:.4g}: a function must keep to it (a parameter `eps` tells it)."
            )
        if attack.has_budget:
            return found
        # What needs more than eps is no success within eps.
        return torch.where(_of_points(beyond, found), self.x, found)

    # Logits

    def _logits(self, points: Tensor, x: Tensor) -> Tensor:
        if not self._is_behind:
            output = main_output(self.output(points, x))
            return output if self._squashed is None else logits_from(output, self._squashed)
        with BeforeSquashing() as before:
            output = main_output(self.output(points, x))
        logits = before.logits_of(output)
        return logits_from(output, "softmax") if logits is None else logits

    def _without_squashing(self, outputs: Tensor) -> Tensor:
        """Logits for what the model returns, and a note if these are others."""
        hint = "Pass `forward_fn=`, a function (module, inputs) -> logits (N, C)."
        if self._is_behind:
            self.note = f"the model returns probabilities: the logits that they are computed from are attacked. {hint}"
            return outputs
        self._squashed = kind_of_probabilities(outputs)
        if self._squashed is None:
            return outputs
        seen = "sum to 1" if self._squashed == "softmax" else "are between 0 and 1 and come near both"
        lost = share_rounded(outputs)
        rounded = f" {lost:.0%} of them are rounded to 0 and 1, where no attack can see a way." if lost else ""
        self.note = (
            f"the model returns probabilities, for its outputs {seen}: their logarithms are attacked.{rounded} {hint}"
        )
        return logits_from(outputs, self._squashed)

    def _all_logits(self, x: Tensor) -> Tensor:
        size = min(self.chunk, 256)
        parts = zip(torch.arange(self.n).split(size), x.split(size), strict=True)
        with torch.no_grad():
            return torch.cat([self._logits(points, part) for points, part in parts])

    def _with_memory(self, compute: Callable[..., Any], *args: Any) -> Any:
        """``compute(*args)``, in halved chunks as long as memory does not suffice."""
        while True:
            try:
                return compute(*args)
            except Exception as error:
                if not is_out_of_memory(error) or self.chunk == 1:
                    raise
            self.chunk = max(1, min(self.chunk, self.n) // 2)

    def _in_chunks(self, points: Tensor, x: Tensor) -> Tensor:
        if len(x) <= self.chunk:
            return self._logits(points, x)
        return _InChunks.apply(x, points, self._logits, self.chunk)

    def _bytes_per_point(self, needs_gradient: bool) -> int:
        """Bytes that one point keeps for the backward pass, which is tried.

        Raises:
            ValueError: if no gradient reaches the points though one is needed.
        """
        weights = {memory_of(t) for t in [*self.model.parameters(), *self.model.buffers()]}
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            if memory_of(tensor) not in weights:
                kept += tensor.numel() * tensor.element_size()
            return tensor

        few = torch.arange(min(2, self.n))
        x = self.x[: len(few)].clone().requires_grad_()
        try:
            with _gradients_explained():
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), BeforeSquashing() as before:
                    output = main_output(self.output(few, x))
                behind = before.logits_of(output)
                self._is_behind = behind is not None and same_probabilities(behind, output)
                if needs_gradient:
                    torch.autograd.grad(output, x, torch.ones_like(output))
        except ValueError:
            if needs_gradient:
                raise
        return max(1, kept // len(few))


class _OtherPointsError(Exception):
    """An attack asked for logits of other points than all."""


class _InChunks(torch.autograd.Function):
    """Logits in parts, whose intermediate values are computed once more for the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, points: Tensor, logits: Callable[[Tensor, Tensor], Tensor], chunk: int) -> Tensor:
        ctx.save_for_backward(x)
        ctx.rest = points, logits, chunk
        parts = zip(points.split(chunk), x.split(chunk), strict=True)
        return torch.cat([logits(some, part) for some, part in parts])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        points, logits, chunk = ctx.rest
        (x,) = ctx.saved_tensors
        gradients = []
        for some, part, grad in zip(points.split(chunk), x.split(chunk), grads[0].split(chunk), strict=True):
            leaf = part.detach().requires_grad_()
            with torch.enable_grad():
                output = logits(some, leaf)
            gradients.append(torch.autograd.grad(output, leaf, grad)[0])
        return torch.cat(gradients), None, None, None


@contextmanager
def _gradients_explained() -> Iterator[None]:
    """Say what to do where there is no gradient."""
    try:
        yield
    except RuntimeError as error:
        if any(text in str(error) for text in _WITHOUT_GRADIENT):
            raise ValueError(
                "no gradient reaches the inputs: no gradient flows from the logits to the inputs (is there a "
                "`no_grad`, `detach`, `checkpoint(use_reentrant=True)` or an integer operation in the forward?): "
                "attack behind it with `at=`, pass another `forward_fn=`, or use an attack without gradients, "
                "attack='Square'."
            ) from error
        raise


def _normal(tensor: Tensor) -> Tensor:
    """The tensor, which a backward pass can keep, also if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


def _of_points(mask: Tensor, x: Tensor) -> Tensor:
    """``mask (N,)`` in the shape of points ``x (N, ...)``."""
    return mask.view(-1, *[1] * (x.ndim - 1))


def _lengths(delta: Tensor, norm: float) -> Tensor:
    """``(N,)`` norms of rows."""
    if norm == 0:
        return (delta != 0).sum(1).to(delta)
    if norm == math.inf:
        low, high = torch.aminmax(delta, dim=1)  # one pass, and no copy
        return torch.maximum(-low, high)
    return torch.linalg.vector_norm(delta, norm, 1)


def usable_spread(spread: float) -> float:
    """A spread that is the unit of eps.

    Raises:
        ValueError: if it is 0.
    """
    if spread == 0:
        raise ValueError(
            "`eps_unit='std'` and, behind a module, 'auto' need points that differ; these are all equal. Use "
            "eps_unit='input'."
        )
    return spread


def find_bounds(x: Tensor) -> tuple[Tensor, Tensor, str]:
    """The domain of points ``(N, ...)`` as they show it, and in words.

    (0, 1) for points that fill exactly that, else the range of each feature.
    """
    low, high = x.amin(0), x.amax(0)
    if float(low.min()) == 0 and float(high.max()) == 1:
        return torch.zeros_like(low), torch.ones_like(high), "(0, 1), which the points fill"
    spans = f"from {float(low.min()):.4g} to {float(high.max()):.4g} overall"
    return low, high, f"the observed range of each feature, {spans}; pass `bounds=` if the domain is known"


def _short(bounds: Any) -> str:
    return repr(tuple(f"tensor {tuple(b.shape)}" if isinstance(b, Tensor) else b for b in bounds))


def check_arguments(
    eps: Any,
    attack: Any,
    alpha: Any,
    steps: Any,
    bounds: Any,
    eps_unit: Any,
    attack_args: Any,
    at: Any,
    chunk_size: Any,
) -> list[float]:
    """Check what can be checked without model and points. Returns the list of radii.

    Raises:
        ValueError: naming the argument, the value and what is possible.
    """
    several = isinstance(eps, Sequence) and not isinstance(eps, str)
    radii = list(eps) if several else [eps]
    if not radii or not all(_is_number(r) and 0 <= r < math.inf for r in radii):
        raise ValueError(f"`eps` must be a number >= 0 or a non-empty list of different ones, but got {eps!r}.")
    if len({*map(float, radii)}) < len(radii):
        raise ValueError(f"`eps` must be a number >= 0 or a non-empty list of different ones, but got {eps!r}.")
    if alpha is not None and not (_is_number(alpha) and 0 < alpha < math.inf):
        raise ValueError(f"`alpha` must be a positive number or None, but got {alpha!r}.")
    positive_integer("steps", steps)
    if chunk_size is not None:
        positive_integer("chunk_size", chunk_size)
    if bounds is not None and not (isinstance(bounds, (tuple, list)) and len(bounds) == 2):
        raise ValueError(f"`bounds` must be a pair (low, high), but got {bounds!r}.")
    if bounds is not None and all(map(_is_number, bounds)) and not bounds[0] < bounds[1]:
        raise ValueError(_NOT_BELOW.format(_short(bounds)))
    units = ["auto", "input", "std"]
    if eps_unit not in units:
        raise ValueError(
            f"`eps_unit` must be 'auto', 'input' or 'std', but got {eps_unit!r}{did_you_mean(eps_unit, units)}"
        )
    if attack_args is not None and not isinstance(attack_args, Mapping):
        raise ValueError(f"`attack_args` must be a mapping of names to values, but got {attack_args!r}.")
    if at is not None and not isinstance(at, str):
        raise ValueError(f"`at` must be the name of a module, but got {at!r}.")
    check_attack(attack, attack_args or {})
    return [float(r) for r in radii]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
