"""Neural collapse: how near the last features are to their class means, and these to a simplex and to the head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lc_callback.checks import positive_integer
from lc_callback.engine.adversarial.probabilities import BeforeSquashing, kind_of_squashing
from lc_callback.engine.network.modules import find_module, module_paths
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space, compute_dtype
from lc_callback.functional.targets import check_classes
from lc_callback.isolation import untouched

__all__ = ["LastFeatures", "NeuralCollapse", "last_features", "neural_collapse", "neural_collapse_of"]

_CHUNK = 256  # points of one forward pass
_NONE = 1e-10  # of the largest spread of the class means: an axis with less of it has no spread


@dataclass(frozen=True)
class NeuralCollapse:
    """How far the last features have collapsed.

    Attributes:
        nc1: variability within the classes over that between them, from 0; 0 if each class is one point.
        nc2_norms: coefficient of variation of the norms of the centred class means, from 0; 0 if all are equal.
        nc2_angles: standard deviation of the cosines between centred class means, from 0; 0 if all are equal.
        nc2_simplex: mean deviation of these cosines from ``-1 / (C - 1)``, from 0; 0 for a simplex.
        nc3: distance of the head's weights from the centred class means, each divided by its norm, from 0 to 2; NaN if
            there is no linear head.
        nc4: share of the points for which the model decides for the nearest class mean, from 0 to 1.
        n_classes: ``C``, of the points.
    """

    nc1: float
    nc2_norms: float
    nc2_angles: float
    nc2_simplex: float
    nc3: float
    nc4: float
    n_classes: int

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.4g}" for name, value in vars(self).items())
        return f"NeuralCollapse({values})"


@dataclass(frozen=True, eq=False)
class LastFeatures:
    """What a model decides by.

    Attributes:
        features: ``(N, D)``.
        decisions: ``(N,)``, the class of the largest logit; of one logit its sign.
        weight: ``(C, D)``, of the head; ``None`` if there is no linear head on these features. One logit has the rows
            ``(-w, w)``.
        n_logits: how many there are for a point.
        source: where they are from, for people.
    """

    features: Tensor
    decisions: Tensor
    weight: Tensor | None
    n_logits: int
    source: str


def neural_collapse(
    model: nn.Module,
    inputs: Any,
    targets: Tensor,
    *,
    layer: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
) -> NeuralCollapse:
    r"""Neural collapse of a classifier's last features (Papyan, Han, Donoho 2020, arXiv 2008.08186, section 2).

    With the features :math:`h`, the mean :math:`\mu_c` of class :math:`c` of :math:`C`, the mean :math:`\mu_G` of the
    class means, the covariances :math:`\Sigma_W` within classes and :math:`\Sigma_B` of the class means, and the
    weights :math:`W` of the head:

    - NC1 :math:`= \mathrm{tr}(\Sigma_W \Sigma_B^+) / C`.
    - NC2: the :math:`\mu_c - \mu_G` have equal norms, and cosines of :math:`-1 / (C - 1)`.
    - NC3 :math:`= \| W / \|W\|_F - M / \|M\|_F \|_F` with the rows :math:`\mu_c - \mu_G` of :math:`M`.
    - NC4: the model decides for the class with the nearest :math:`\mu_c`.

    The model is run in eval mode, in float32 or better, and left exactly as it was.

    Args:
        model: a classifier that returns logits ``(N, C)``, or one for each point, ``(N,)`` or ``(N, 1)`` (or has them
            as ``logits``, or first in a tuple).
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords).
        targets: ``(N,)`` integer classes; 0 and 1 for one logit.
        layer: name of the module whose output are the features; positions are averaged. ``None``: what enters the last
            ``nn.Linear`` that makes outputs of the shape of the logits.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one forward pass.

    Raises:
        ValueError: if there is no such layer, the points have fewer than two classes, targets are no classes, or an
            argument is out of range.

    Example::

        >>> import torch
        >>> from lc_callback.functional import neural_collapse
        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> x = torch.tensor([[2.0, 0.0], [2.0, 0.0], [-2.0, 0.0], [-2.0, 0.0]])
        >>> neural_collapse(net, x, torch.tensor([0, 0, 1, 1]))
        NeuralCollapse(nc1=0, nc2_norms=0, nc2_angles=0, nc2_simplex=0, nc3=0, nc4=1, n_classes=2)
    """
    last = last_features(model, inputs, layer=layer, forward_fn=forward_fn, chunk_size=chunk_size)
    classes = check_classes(targets, len(last.features), last.n_logits)
    return neural_collapse_of(last.features, classes, last.decisions, last.weight)


def neural_collapse_of(
    features: Tensor, targets: Tensor, decisions: Tensor, weight: Tensor | None = None
) -> NeuralCollapse:
    """Neural collapse of features that are known; see :func:`neural_collapse`.

    Args:
        features: ``(N, D)``.
        targets: ``(N,)`` integer classes.
        decisions: ``(N,)``, what the model decides for.
        weight: ``(C, D)``, of the head, one row for each class; ``None`` if there is none.

    Raises:
        ValueError: if there are fewer than two classes.

    Example::

        >>> import torch
        >>> from lc_callback.functional.neural_collapse import neural_collapse_of
        >>> h = torch.tensor([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [-3.0, 0.0]])
        >>> neural_collapse_of(h, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 1, 1])).nc1
        0.125
    """
    present, own = targets.to(features.device).unique(return_inverse=True)
    n = len(present)
    if n < 2:
        raise ValueError(f"neural collapse needs points of two classes or more, but these are of {n}.")
    h = features.double()
    one_hot = nn.functional.one_hot(own, n).double()
    means = one_hot.T @ h / one_hot.sum(0)[:, None]
    centred = means - means.mean(0)
    norms = centred.norm(dim=1)
    directions = centred / norms[:, None]
    cosines = (directions @ directions.T)[~torch.eye(n, dtype=torch.bool, device=h.device)]
    away = torch.cdist(h, means, compute_mode="donot_use_mm_for_euclid_dist")
    agrees = present[away.argmin(1)] == decisions.to(h.device)
    return NeuralCollapse(
        nc1=_within_over_between(h - means[own], centred) / n,
        nc2_norms=float(norms.std(correction=0) / norms.mean()),
        nc2_angles=float(cosines.std(correction=0)),
        nc2_simplex=float((cosines + 1 / (n - 1)).abs().mean()),
        nc3=math.nan if weight is None else _distance(weight.to(h.device).double()[present], centred),
        nc4=float(agrees.double().mean()) if h.isfinite().all() else math.nan,
        n_classes=n,
    )


def _within_over_between(residuals: Tensor, centred: Tensor) -> float:
    """The trace of the covariance ``(D, D)`` of the residuals times the pseudo-inverse of that of the class means."""
    if not (residuals.isfinite().all() and centred.isfinite().all()):
        return math.nan
    _, spreads, axes = torch.linalg.svd(centred / math.sqrt(len(centred)), full_matrices=False)
    seen = spreads > _NONE * spreads.max()
    if not seen.any():
        return math.nan  # all class means are one point
    within = (residuals @ axes[seen].T).square().mean(0)
    return float((within / spreads[seen].square()).sum())


def _distance(weight: Tensor, centred: Tensor) -> float:
    return float((weight / weight.norm() - centred / centred.norm()).norm())


def last_features(
    model: nn.Module,
    inputs: Any,
    *,
    layer: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
) -> LastFeatures:
    """The features that the head of a classifier gets, and what it decides; arguments of :func:`neural_collapse`."""
    if chunk_size is not None:
        positive_integer("chunk_size", chunk_size)
    own = None if layer is None else find_module(model, "layer", layer)
    space, dtype = Space(model, inputs, forward_fn=forward_fn), compute_dtype(model, inputs)
    parts = []
    with untouched(model, forward_fn, dtype=dtype):
        space.locate(dtype, perturbed=False)
        for points in torch.arange(space.points.n).split(chunk_size or _CHUNK):
            with _calls_seen(model) as calls, BeforeSquashing() as before:
                output = main_output(space.run(space.points.batch(points, None)))
            parts.append(_found_in(calls, output, before, own))
        if parts[0].features is None or any(part.features is None for part in parts):
            raise ValueError(_not_found(model, layer))
        head, n_features = parts[-1].head, parts[0].features.shape[1]
        fits = head is not None and head.module.weight.shape[1] == n_features
        weight = head.module.weight.detach().to(dtype) if head is not None and fits else None
    names = module_paths(model)
    source = (
        f"what enters `{names[id(head.module)]}`" if head is not None and layer is None else f"the output of `{layer}`"
    )
    if weight is not None and len(weight) == 1:
        weight = torch.cat([-weight, weight])
    features = torch.cat([part.features for part in parts if part.features is not None])
    return LastFeatures(features, torch.cat([part.decisions for part in parts]), weight, parts[0].n_logits, source)


@dataclass(frozen=True, eq=False)
class _Part:
    """What was found in one forward pass."""

    features: Tensor | None
    decisions: Tensor
    head: _Call | None
    n_logits: int


def _found_in(calls: list[_Call], output: Any, before: BeforeSquashing, own: nn.Module | None) -> _Part:
    if not isinstance(output, Tensor) or output.ndim not in (1, 2):
        raise ValueError(
            "neural collapse needs a model that returns logits (N, C), one class for each point: pass `forward_fn=` "
            "that does."
        )
    head = next((call for call in reversed(calls) if _makes(call, output)), None)
    found = head.entered if head is not None and own is None else None
    if own is not None:
        found = next((main_output(call.returned) for call in reversed(calls) if call.module is own), None)
    is_usable = isinstance(found, Tensor) and found.ndim >= 2 and len(found) == len(output)
    features = _rows(found) if is_usable and isinstance(found, Tensor) else None
    if output.ndim == 2 and output.shape[1] > 1:
        return _Part(features, output.argmax(1), head, output.shape[1])
    logits = before.logits_of(output)
    is_squashed = logits is not None and kind_of_squashing(logits, output) == "sigmoid"
    return _Part(features, (logits if is_squashed and logits is not None else output).reshape(-1) > 0, head, 1)


@dataclass(frozen=True, eq=False)
class _Call:
    """A module that was executed: with what, and what it returned."""

    module: Any
    entered: Any
    returned: Any


@contextmanager
def _calls_seen(model: nn.Module) -> Iterator[list[_Call]]:
    """The calls of the model's modules, in their order, of what is executed inside the block."""
    own, calls = {*map(id, model.modules())}, []

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in own:
            calls.append(_Call(module, args[0] if args else None, output))

    handle = register_module_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def _makes(call: _Call, logits: Tensor) -> bool:
    """Whether a linear layer makes what has the shape of the logits."""
    is_linear = isinstance(call.module, nn.Linear) and isinstance(call.entered, Tensor)
    shapes = (logits.shape, (*logits.shape, 1))  # the last axis of one logit may be dropped behind the head
    return is_linear and isinstance(call.returned, Tensor) and tuple(call.returned.shape) in map(tuple, shapes)


def _rows(features: Tensor) -> Tensor:
    """``(n, D)``: of a feature map ``(n, D, ...)`` the mean over positions, of a sequence ``(n, T, D)`` that over T."""
    if features.ndim == 3:
        return features.mean(1)
    return features.flatten(2).mean(2) if features.ndim > 3 else features


def _not_found(model: nn.Module, layer: str | None) -> str:
    if layer is not None:
        return f"`layer={layer!r}` names a module that returned no features (N, D) in this forward pass."
    return (
        f"no nn.Linear in {type(model).__name__} makes outputs of the shape of the logits: name the module whose "
        "output are the last features with `layer=`."
    )
