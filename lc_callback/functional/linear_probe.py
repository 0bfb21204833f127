"""Linear probes: how well a linear head on the features of each layer would classify."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.features import Features
from lc_callback.functional.targets import check_classes

__all__ = ["linear_probe"]

_RIDGE = 1e-4  # of the mean variance of the features


def linear_probe(
    model: nn.Module,
    train: tuple[Any, Tensor],
    test: tuple[Any, Tensor],
    *,
    layers: Sequence[str | type] | None = None,
    max_width: int = 4096,
    seed: int = 0,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
) -> dict[str, float]:
    """Test accuracy of a linear head on the features of each hidden layer (*Deep Grokking*, 2024, figure 1).

    The head is a ridge regression of the one-hot classes with intercept, in closed form; the penalty is 1e-4 of the
    mean variance of the features. Feature maps and sequences are averaged over positions.

    Args:
        model: any torch module.
        train: ``(inputs, targets)`` that the head is fitted to, targets ``(N,)`` integer classes.
        test: ``(inputs, targets)`` that it is scored on.
        layers: as for :func:`feature_ranks`, and so are the others.
        max_width: wider layers are projected, and the key says so.
        seed: seed of the projection.
        forward_fn: what is called as ``forward_fn(model, *inputs)``.
        chunk_size: points in one forward pass.

    Returns:
        Accuracy from 0 to 1 by layer, in execution order; NaN if a feature is not finite.

    Raises:
        ValueError: for an argument out of range, or targets that are no classes.

    Example::

        >>> import torch
        >>> from lc_callback.functional import linear_probe
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> y = (x[:, 0] > 0).long()
        >>> linear_probe(net, (x[:100], y[:100]), (x[100:], y[100:]))["1"] > 0.8
        True
    """
    y_train, y_test = _classes(*train), _classes(*test)
    n_classes = int(max(y_train.max(), y_test.max())) + 1
    one_hot = nn.functional.one_hot(y_train, n_classes).double()
    arguments: dict[str, Any] = {"layers": layers, "max_width": max_width, "seed": seed, "forward_fn": forward_fn}
    moments: dict[str, _Moments] = {}

    def fit(name: str, rows: Tensor) -> None:
        x, seen = rows.mean(1).double(), moments.setdefault(name, _Moments())
        seen.add(x, one_hot[seen.n : seen.n + len(x)].to(x.device))

    Features(model, train[0], **arguments).stream(fit, chunk_size)
    heads = {name: seen.ridge() for name, seen in moments.items()}
    hits: dict[str, list[float]] = {name: [] for name in heads}

    def score(name: str, rows: Tensor) -> None:
        weights, mean, offset = heads[name]
        scores, done = (rows.mean(1).double() - mean) @ weights + offset, len(hits[name])
        right = (scores.argmax(1).cpu() == y_test[done : done + len(scores)]).double()
        hits[name] += right.masked_fill(~scores.isfinite().all(1).cpu(), math.nan).tolist()

    Features(model, test[0], **arguments).stream(score, chunk_size)
    return {name: sum(right) / len(right) for name, right in hits.items()}


def _classes(inputs: Any, targets: Any) -> Tensor:
    sizes = [len(leaf) for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    n = sizes[0] if sizes else len(targets)
    return check_classes(targets, n, measure="a linear probe", left_out="`linear_probe`").cpu()


class _Moments:
    """Sums for a linear regression with intercept."""

    def __init__(self) -> None:
        self.n = 0
        self._x: Any = 0.0
        self._y: Any = 0.0
        self._xx: Any = 0.0
        self._xy: Any = 0.0
        self._shift: Tensor | None = None

    def add(self, x: Tensor, y: Tensor) -> None:
        if self._shift is None:
            self._shift = x.mean(0)  # else a large mean would drown the variance
        x = x - self._shift
        self.n += len(x)
        self._x, self._y = self._x + x.sum(0), self._y + y.sum(0)
        self._xx, self._xy = self._xx + x.T @ x, self._xy + x.T @ y

    def ridge(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights ``(d, C)``, mean of the features ``(d,)`` and mean of the targets ``(C,)``."""
        mean, offset = self._x / self.n, self._y / self.n
        scatter = self._xx - self.n * torch.outer(mean, mean)
        product = self._xy - self.n * torch.outer(mean, offset)
        penalty = _RIDGE * float(scatter.diagonal().mean()) or 1.0
        matrix = scatter + penalty * torch.eye(len(mean), dtype=scatter.dtype, device=scatter.device)
        if not matrix.isfinite().all():
            return torch.full_like(product, math.nan), mean, offset
        return torch.linalg.solve(matrix, product), mean + self._shift, offset
