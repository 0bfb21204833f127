"""Centroid alignment: how far the summed rows of the input-output Jacobian point along the input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space, compute_dtype
from lc_callback.isolation import untouched

__all__ = ["CentroidAlignment", "centroid_alignment"]


@dataclass(frozen=True, eq=False)
class CentroidAlignment:
    """Centroid alignment at ``N`` points.

    Attributes:
        cosine: ``(N,)``, from -1 to 1; 0 where the point or the gradient is 0, NaN where it is not finite.
    """

    cosine: Tensor

    def __repr__(self) -> str:
        return f"CentroidAlignment(mean={self.mean:.4g}, {len(self.cosine)} points)"

    @property
    def mean(self) -> float:
        """Mean over the points."""
        return float(self.cosine.double().mean())


def centroid_alignment(
    model: nn.Module,
    inputs: Any,
    *,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int = 64,
) -> CentroidAlignment:
    r"""Cosine between each point and the summed rows of the network's Jacobian there.

    With :math:`J_{ki} = \partial f_k / \partial x_i` this is :math:`\cos(x, \sum_k J_k)`, one vector-Jacobian
    product for each point (*GrokAlign*, arXiv 2506.12284, which tracks the stages of training with it). The model is
    run in eval mode, in float32 or better, and left exactly as it was.

    Args:
        model: any torch module that returns a tensor (or has it as ``logits``, or first in a tuple).
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords).
        at: name of the module whose output takes the place of the input. If no input is floating-point, this is the
            first ``nn.Embedding`` that is executed.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one pass.

    Raises:
        ValueError: if no gradient flows from the output to the inputs, the model returns no tensor, or an argument is
            out of range.

    Example::

        >>> import torch
        >>> from lc_callback.functional import centroid_alignment
        >>> net = torch.nn.Linear(2, 3)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> round(centroid_alignment(net, torch.tensor([[2.0, 2.0], [1.0, -1.0]])).mean, 6)
        0.5
    """
    positive_integer("chunk_size", chunk_size)
    space, dtype = Space(model, inputs, at=at, forward_fn=forward_fn), compute_dtype(model, inputs)
    cosines, done = [], 0
    with untouched(model, forward_fn, dtype=dtype, grad=True):
        space.locate(dtype)
        for values in space.values(chunk_size):
            x = values.detach().clone().requires_grad_()
            total = main_output(space.output(torch.arange(done, done + len(x)), x)).sum()
            done += len(x)
            gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
            if gradient is None:
                raise ValueError(
                    "no gradient flows from the output to the inputs (is there a `no_grad` or `detach` in the "
                    "forward?): pass `at=` with a module behind it, or another `forward_fn=`."
                )
            a, b = x.detach().reshape(len(x), -1).double(), gradient.reshape(len(x), -1).double()
            norms = a.norm(dim=1) * b.norm(dim=1)
            cosines.append(((a * b).sum(1) / torch.where(norms == 0, 1.0, norms)).cpu())
    return CentroidAlignment(torch.cat(cosines))
