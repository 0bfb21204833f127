"""Robust accuracy: the share of points that stay correct under attack."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.adversarial.attacked import Attacked, Verdict
from lc_callback.engine.adversarial.attacks import Attack, check_attack
from lc_callback.engine.adversarial.domain import box_of, find_bounds, not_below, spread_of, usable_spread
from lc_callback.engine.adversarial.labels import Labels
from lc_callback.engine.adversarial.logits import PointLogits
from lc_callback.engine.network.space import Space, compute_dtype
from lc_callback.functional.judging import check_metric, ignored_by, task_of, value_of
from lc_callback.functional.options import defaults_of
from lc_callback.functional.targets import check_labels, check_task
from lc_callback.isolation import untouched
from lc_callback.suggestions import did_you_mean

if TYPE_CHECKING:
    from torchmetrics import Metric

__all__ = ["Outcome", "RobustAccuracy", "check_arguments", "outcome_of", "robust_accuracy"]


@dataclass(frozen=True, eq=False)
class RobustAccuracy:
    """Accuracy with and without attack.

    Attributes:
        clean_acc: share of the decisions that are right, from 0 to 1; NaN if a logit is not finite. With ``metric=``
            its value.
        robust_acc: by eps, the share of the decisions that are right both at the point and at the attacked points, from
            0 to ``clean_acc``; NaN if a point that has not fallen has a logit that is not finite. With ``metric=`` its
            value.
        adversarial: by eps, the attacked points ``(N, ...)`` on the CPU in input units (with ``at=``: outputs of that
            module), if they were asked for; of a point that has fallen, the first that is misclassified. Some attacks
            return the point itself where they fail.
        bounds: the domain, ``(low, high)`` with tensors of the shape of one point.
        note: what was done about a model that returns probabilities; empty for logits.
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
    """

    clean_acc: float
    robust_acc: dict[float, float]
    adversarial: dict[float, Tensor] | None
    bounds: tuple[Tensor, Tensor]
    note: str = ""
    task: str = "multiclass"

    def __repr__(self) -> str:
        robust = ", ".join(f"{eps:g}: {share:.4g}" for eps, share in self.robust_acc.items())
        kept = "" if self.adversarial is None else f", adversarial of {len(self.adversarial)} eps"
        return f"RobustAccuracy(clean_acc={self.clean_acc:.4g}, robust_acc={{{robust}}}{kept})"


@dataclass(frozen=True, eq=False)
class Outcome:
    """What an attack has done to the decisions at some points; :class:`RobustAccuracy` has the numbers.

    Attributes:
        clean: the decisions as they are.
        robust: by eps, those under attack.
        labels: what is right.
        adversarial: as of :class:`RobustAccuracy`, at all points, and so are the next two.
        domain: likewise.
        note: likewise.
    """

    clean: Verdict
    robust: dict[float, Verdict]
    labels: Labels
    adversarial: dict[float, Tensor] | None
    domain: tuple[Tensor, Tensor]
    note: str


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
    task: str = "auto",
    metric: Metric | None = None,
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

    A point has one decision, or several: one for each label or each pixel. Each counts by itself, as in the accuracy of
    torchmetrics with ``average="micro"``: robust accuracy is the share of the *decisions* that are right at the point
    and at all attacked points that were looked at. An attack has one budget for the whole point. It increases the
    summed loss of the decisions of the point that stand, until the last of them has fallen.

    With ``metric=`` another metric of torchmetrics takes the place of accuracy. For each decision it gets the
    probabilities at the point if it is wrong there, else those at the first attacked point where it is wrong, else
    those where the attack ended. Decisions that are wrong at one eps are wrong at every larger one, and so robust
    accuracy never rises with eps; of other metrics this is not sure.

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
        model: any torch module whose output is logits, or has them as ``logits``: ``(N, C)`` or ``(N, C, H, W)`` of
            ``C >= 2`` classes, ``(N,)`` or ``(N, 1)`` of no or yes, or ``(N, L)`` of ``L`` labels.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords). The
            floating-point ones are attacked (several as one product space); integer and boolean ones are held.
        targets: ``(N,)`` or ``(N, H, W)`` integer classes, or 0 and 1 in the shape of the outputs.
        eps: radius of the attack, or several. 0 is no attack.
        attack: name of an attack of torchattacks (``"PGD"``, ``"PGDL2"``, ``"APGD"``, ``"AutoAttack"``, ``"Square"``,
            ...; all but ``"PGD"`` need the extra ``attacks``), or a function ``attack(model, x, y) -> x_adv`` with
            ``x (N, ...)`` in input units; one that has a parameter ``eps`` gets it. ``y`` are the classes, or, in the
            shape of the outputs, 0.0 and 1.0 for no and yes. Attacks that look for the smallest
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
        task: ``"multiclass"``, ``"binary"`` (one logit for each point or pixel), ``"multilabel"`` (one for each label),
            or ``"auto"``: multi-label for targets of 0 and 1 in the shape of the outputs that are not one-hot, binary
            for one output, else multi-class. The attack increases the cross entropy that belongs to the task.
        metric: ``None`` is accuracy. A metric of torchmetrics for classifiers, which names its task, such as
            ``torchmetrics.classification.MulticlassF1Score(num_classes=10)``; it must give one number. Targets that are
            its ``ignore_index`` do not count, nor do pixels of class -100.

    Returns:
        :class:`RobustAccuracy`.

    Raises:
        ValueError: for an argument out of range, targets that do not fit the outputs, points outside the bounds, an
            attack that leaves its budget, or a model through which no gradient flows. The message says what to pass
            instead.

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
    found = outcome_of(
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
        task=task,
        metric=metric,
    )
    if found.note:
        warnings.warn(found.note, stacklevel=2)
    robust = {radius: value_of(verdict, found.labels, metric) for radius, verdict in found.robust.items()}
    clean = value_of(found.clean, found.labels, metric)
    return RobustAccuracy(clean, robust, found.adversarial, found.domain, found.note, found.labels.task)


def outcome_of(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    share: tuple[int, int] = (0, 1),
    return_adversarial: bool = False,
    **options: Any,
) -> Outcome:
    """What :func:`robust_accuracy` is about, without its warning.

    Args:
        model: any torch module.
        inputs: the points.
        targets: what is right there.
        share: ``(index, of)``: only the points ``index``, ``index + of``, ... are judged, and attacked where the attack
            does the same to some points as to all. What has to be decided is decided from all points.
        return_adversarial: keep the attacked points.
        options: the other arguments of :func:`robust_accuracy`, with its defaults.
    """
    chosen = {**defaults_of(robust_accuracy), **options}
    radii = check_arguments(**chosen)
    attack, alpha, metric = chosen["attack"], chosen["alpha"], chosen["metric"]
    space = Space(model, inputs, at=chosen["at"], forward_fn=chosen["forward_fn"])
    task = chosen["task"] if metric is None else task_of(metric) or chosen["task"]
    label = partial(check_labels, targets, task=task, ignored=ignored_by(metric))
    dtype = compute_dtype(model, inputs)
    with untouched(model, chosen["forward_fn"], dtype=dtype, seed=chosen["seed"], grad=True):
        # Any other attack than PGD sees all points, and so finds out by itself.
        needs_gradient = attack == "PGD" and max(radii) > 0
        logits = PointLogits(space, label, chunk_size=chosen["chunk_size"], needs_gradient=needs_gradient)
        own = torch.zeros(len(logits), dtype=torch.bool)
        own[share[0] :: share[1]] = True
        attacked = Attacked(logits, own, every=return_adversarial, keeps_logits=metric is not None)
        unit = 1.0
        if chosen["eps_unit"] == "std" or (chosen["eps_unit"] == "auto" and logits.behind is not None):
            spread = spread_of(logits.x)
            if math.isfinite(spread):
                unit = usable_spread(spread)
            else:
                attacked.forget()
        box, domain = box_of(logits.x, _bounds(chosen["bounds"], logits), unit * max(radii))
        robust, adversarial = {}, {}
        for radius in sorted(radii):
            step = None if alpha is None else alpha * unit
            one = Attack(attack, radius * unit, step, chosen["steps"], chosen["attack_args"] or {}, chosen["seed"])
            robust[radius], adversarial[radius] = attacked.under(one, box, chosen["normalize_logits"])
    kept = {radius: adversarial[radius] for radius in radii} if return_adversarial else None
    in_order = {radius: robust[radius] for radius in radii}
    return Outcome(attacked.clean, in_order, logits.labels[own], kept, domain, logits.note)


def _bounds(bounds: tuple[Any, Any] | None, logits: PointLogits) -> tuple[Any, Any]:
    if bounds is not None:
        return bounds
    return find_bounds(logits.x)[:2] if logits.behind is None else (-math.inf, math.inf)


def check_arguments(
    *,
    eps: Any,
    attack: Any,
    alpha: Any,
    steps: Any,
    bounds: Any,
    eps_unit: Any,
    attack_args: Any,
    at: Any,
    chunk_size: Any,
    task: Any,
    metric: Any,
    **others: Any,
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
        raise ValueError(not_below(bounds))
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
    check_task(task)
    check_metric(metric, task)
    return [float(r) for r in radii]


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
