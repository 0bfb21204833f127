"""A classifier as an attack sees it: a differentiable function from points to logits, within the memory there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.adversarial.labels import Labels
from lc_callback.engine.adversarial.probabilities import (
    BeforeSquashing,
    kind_of_probabilities,
    kind_of_squashing,
    logits_from,
    share_rounded,
)
from lc_callback.engine.chunks import ATTACKS, fitting
from lc_callback.engine.network.layout import memory_of
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space, compute_dtype

__all__ = ["PointLogits", "gradients_explained", "normal"]


# PGD is fastest on a CPU if one backward pass keeps so many bytes; a pass has so many points in any case.
_FAST, _WORTHWHILE = 64 * 2**20, 32
_CHUNK = 256  # points of one pass without a gradient
# Errors of torch where no gradient gets through: at a `no_grad`, at a `detach`, in a reentrant checkpoint, at NumPy.
_WITHOUT_GRADIENT = ("does not require grad", "have been used in the graph", "use_reentrant", "Can't call numpy()")


class PointLogits:
    """The logits of a classifier at labelled points and near them. Make it and use it in measuring conditions.

    Args:
        space: the model and its points, not located yet.
        label: called with the outputs ``(N, *shape)`` at the points, returns the labels there.
        chunk_size: points in one pass; ``None`` is as many as fit the budget.
        needs_gradient: whether it is an error if no gradient reaches the points.

    Attributes:
        x: ``(N, ...)``, the points.
        labels: the right decisions there.
        clean: ``(N, C, *E)``, the logits there.
        behind: the module whose output is attacked; ``None`` for inputs.
        chunk: points in one pass with a gradient.
        fast: how many points make such a pass fastest.
        holds: whether other inputs belong to the points, which are not attacked.
        largest: the largest absolute value of what is attacked.
        note: how the logits of a model that returns probabilities were found; empty if it returns logits.
    """

    def __init__(
        self,
        space: Space,
        label: Callable[[Tensor], Labels],
        *,
        chunk_size: int | None,
        needs_gradient: bool,
    ) -> None:
        self._space = space
        self._squashed: str | None = None  # the model returns probabilities of this kind
        self._behind: str | None = None  # likewise, and what they are computed from is at hand
        self.note = ""
        space.locate(compute_dtype(space.model, space.inputs))
        with torch.no_grad():
            self.x = normal(space.all_values())
        self.behind = space.at_module
        self.largest = space.largest if self.behind is None else float(self.x.abs().max())
        tensors = [leaf for leaf in tree_leaves(space.inputs) if isinstance(leaf, Tensor)]
        self.holds = self.behind is not None or len(tensors) > len(space.points.moving)
        each = self._bytes_per_point(needs_gradient)
        self.chunk = chunk_size or ATTACKS.samples(self.device, each)
        by_default = chunk_size is None and self.device.type == "cpu"
        self.fast = max(_WORTHWHILE, _FAST // each) if by_default else self.chunk
        outputs = self.with_memory(lambda: self._in_parts(self._outputs, self.x))
        self.labels = label(outputs).to(self.device)
        self.clean = self.labels.logits(self._without_squashing(outputs))

    def __len__(self) -> int:
        return len(self.x)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._space.device

    def __call__(self, points: Tensor, x: Tensor) -> Tensor:
        """``(n, C, *E)`` at the points ``(n,)`` of these, moved to ``x (n, ...)``."""
        return self.labels.logits(self._outputs(points, x))

    def of_two(self, points: Tensor, x: Tensor) -> Tensor:
        """The same. A single point is computed twice, because some models drop a batch axis of size 1."""
        if len(x) > 1 or len(self) == 1 or self.chunk == 1:
            return self(points, x)
        return self(points.expand(2), torch.cat([x, x]))[:1]

    def in_chunks(self, points: Tensor, x: Tensor) -> Tensor:
        """The same, in chunks if memory needs it."""
        if len(x) <= self.chunk:
            return self(points, x)
        return _InChunks.apply(x, points, self, self.chunk)

    def at(self, x: Tensor) -> Tensor:
        """``(N, C, *E)`` at all points, moved to ``x (N, ...)``, without a gradient."""
        return self.with_memory(lambda: self._in_parts(self, x))

    def with_memory(self, compute: Callable[[], Any]) -> Any:
        """``compute()``, in halved chunks as long as memory does not suffice."""

        def with_chunk(chunk: int) -> Any:
            self.chunk = chunk
            return compute()

        found, self.chunk = fitting(with_chunk, self.chunk, lambda chunk: len(self))
        return found

    def _in_parts(self, function: Callable[[Tensor, Tensor], Tensor], x: Tensor) -> Tensor:
        size = min(self.chunk, _CHUNK)
        parts = zip(torch.arange(len(self)).split(size), x.split(size), strict=True)
        with torch.no_grad():
            return torch.cat([function(points, part) for points, part in parts])

    def _outputs(self, points: Tensor, x: Tensor) -> Tensor:
        """The output of the model, as logits."""
        if self._behind is None:
            output = main_output(self._space.output(points, x))
            return output if self._squashed is None else logits_from(output, self._squashed)
        with BeforeSquashing() as before:
            output = main_output(self._space.output(points, x))
        logits = before.logits_of(output)
        return logits_from(output, self._behind) if logits is None else logits

    def _without_squashing(self, outputs: Tensor) -> Tensor:
        """The outputs as logits. Writes a note if they are probabilities."""
        hint = "Pass `forward_fn=`, a function (module, inputs) -> logits (N, C)."
        if self._behind is not None:
            self.note = f"the model returns probabilities: the logits that they are computed from are attacked. {hint}"
            return outputs
        self._squashed = kind_of_probabilities(outputs, self.labels.task == "multiclass")
        if self._squashed is None:
            return outputs
        seen = "sum to 1" if self._squashed == "softmax" else "are between 0 and 1 and come near both"
        lost = share_rounded(outputs)
        rounded = f" {lost:.0%} of them are rounded to 0 and 1, where no attack can see a way." if lost else ""
        self.note = (
            f"the model returns probabilities, for its outputs {seen}: their logarithms are attacked.{rounded} {hint}"
        )
        return logits_from(outputs, self._squashed)

    def _bytes_per_point(self, needs_gradient: bool) -> int:
        """Bytes that one point keeps for the backward pass, found by trying it.

        Raises:
            ValueError: if no gradient reaches the points though one is needed.
        """
        model = self._space.model
        weights = {memory_of(t) for t in [*model.parameters(), *model.buffers()]}
        kept = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal kept
            if memory_of(tensor) not in weights:
                kept += tensor.numel() * tensor.element_size()
            return tensor

        few = torch.arange(min(2, len(self)))
        x = self.x[: len(few)].clone().requires_grad_()
        try:
            with gradients_explained():
                with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), BeforeSquashing() as before:
                    output = main_output(self._space.output(few, x))
                behind = before.logits_of(output)
                self._behind = None if behind is None else kind_of_squashing(behind, output)
                if needs_gradient:
                    torch.autograd.grad(output, x, torch.ones_like(output))
        except ValueError:
            if needs_gradient:
                raise
        return max(1, kept // len(few))


class _InChunks(torch.autograd.Function):
    """Logits in parts. The backward pass computes intermediate values again, instead of keeping them."""

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
def gradients_explained() -> Iterator[None]:
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


def normal(tensor: Tensor) -> Tensor:
    """The tensor, or a copy that a backward pass can keep if it was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor
