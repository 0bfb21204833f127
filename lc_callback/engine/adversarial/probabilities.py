"""Models that return probabilities: finds the logits behind them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["BeforeSquashing", "kind_of_probabilities", "kind_of_squashing", "logits_from", "share_rounded"]

# Rows of probabilities may differ by so much from a sum of 1, or from a softmax that is computed again.
_SLACK = 1e-3
# Outputs between 0 and 1 count as squashed if they come so near to both ends.
_NEAR = 0.01

_functional: Any = nn.functional
_SQUASHING = {torch.softmax, Tensor.softmax, _functional.softmax, torch.special.softmax, torch.exp, Tensor.exp}
_SQUASHING |= {torch.sigmoid, Tensor.sigmoid, _functional.sigmoid, torch.special.expit}
# What a model may do to probabilities before it returns them. The same is then done to the logits.
_RESHAPING = {torch.squeeze, torch.flatten, torch.reshape, torch.clone, Tensor.clone, Tensor.contiguous, Tensor.to}
_RESHAPING |= {Tensor.squeeze, Tensor.flatten, Tensor.reshape, Tensor.view, Tensor.float, Tensor.double}
_RESHAPING |= {Tensor.__getitem__, torch.select, Tensor.select, Tensor.type, Tensor.type_as}
# These change no decision, so the logits stay as they are.
_CUTTING = {torch.clamp, Tensor.clamp, torch.clip, Tensor.clip, Tensor.clamp_min, Tensor.clamp_max}
# ``exp(z) / sum(exp(z))``: all classes are divided by the same number.
_SCALING = {torch.div, Tensor.div, Tensor.__truediv__, torch.true_divide}


class BeforeSquashing(TorchFunctionMode):
    """Remembers, inside, the input of each softmax, sigmoid and exponential of a forward pass.

    These logits still hold what the probabilities lose by rounding. In float32 a probability is 1 from a margin of
    about 17 on, and 0 from a margin of about 100 on.
    """

    def __init__(self) -> None:
        super().__init__()
        self._behind: dict[int, tuple[Tensor, Tensor]] = {}  # by the probabilities: these, and the logits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        source = args[0] if args else kwargs.get("input")
        if isinstance(result, Tensor) and isinstance(source, Tensor):
            logits = self._logits(func, source, args[1:], kwargs)
            if logits is not None:
                self._behind[id(result)] = result, logits
        return result

    def _logits(self, func: Any, source: Tensor, rest: Any, kwargs: Any) -> Tensor | None:
        if func in _SQUASHING:
            return source
        found = self._behind.get(id(source))
        if found is None:
            return None
        logits = found[1]
        if func in _RESHAPING:
            return func(logits, *rest, **kwargs)
        if func in _SCALING:
            scale = rest[0] if rest else kwargs.get("other")
            return logits if isinstance(scale, Tensor) and scale.ndim and scale.shape[-1] == 1 else None
        return logits if func in _CUTTING else None

    def logits_of(self, output: Tensor) -> Tensor | None:
        """The logits from which the ``output`` was computed; ``None`` if no softmax or sigmoid comes last."""
        found = self._behind.get(id(output))
        return None if found is None else found[1]


def kind_of_squashing(logits: Tensor, output: Tensor) -> str | None:
    """Which function gives the ``output`` from ``logits (N, ...)``: ``"softmax"``, ``"sigmoid"`` or ``None``."""
    if logits.shape != output.shape or not _in_unit_interval(output):
        return None
    squashings: dict[str, Callable[[Tensor], Tensor]] = {"softmax": lambda z: z.softmax(1), "sigmoid": torch.sigmoid}
    for kind, squash in squashings.items():
        several = output.ndim > 1 and output.shape[1] > 1
        if (several or kind == "sigmoid") and torch.allclose(squash(logits.detach()), output.detach(), atol=_SLACK):
            return kind
    return None


def kind_of_probabilities(outputs: Tensor, of_classes: bool) -> str | None:
    """``"softmax"`` or ``"sigmoid"`` if ``outputs (N, ...)`` look like its results, ``None`` for logits.

    The classes of a softmax, along the second axis, sum to 1. Values between 0 and 1 may also be logits, unless they
    come near to both ends.

    Args:
        outputs: what a model returns.
        of_classes: whether the second axis has the classes of one decision.
    """
    if not _in_unit_interval(outputs):
        return None
    if of_classes and bool(((outputs.sum(1) - 1).abs() <= _SLACK).all()):
        return "softmax"
    ends = float(outputs.min()) < _NEAR and float(outputs.max()) > 1 - _NEAR
    return "sigmoid" if ends else None


def logits_from(outputs: Tensor, kind: str) -> Tensor:
    """Logits that give these probabilities, as far as rounding allows, with the same decisions."""
    limits = torch.finfo(outputs.dtype)
    low = outputs.clamp_min(limits.tiny).log()
    return low if kind == "softmax" else low - torch.log1p(-outputs.clamp_max(1 - limits.eps / 2))


def share_rounded(outputs: Tensor) -> float:
    """The share of points ``(N, ...)`` whose values are all rounded to 0 or 1: no gradient passes there."""
    limits = torch.finfo(outputs.dtype)
    rounded = (outputs <= limits.tiny) | (outputs >= 1 - limits.eps)
    return float(rounded.reshape(len(outputs), -1).all(1).double().mean())


def _in_unit_interval(outputs: Tensor) -> bool:
    return bool((outputs >= 0).all()) and bool((outputs <= 1 + _SLACK).all())
