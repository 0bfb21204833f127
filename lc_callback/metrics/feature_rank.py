"""Feature rank, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lc_callback.engine.network.features import Features
from lc_callback.functional.feature_rank import FeatureCovariance, check_options
from lc_callback.metrics.measure import Measure

__all__ = ["FeatureRank"]


class FeatureRank(Measure):
    """Numerical, effective and stable rank of each hidden layer's features (*Deep Grokking*, 2024, page 3).

    See :func:`lc_callback.functional.feature_ranks` for the definitions. ``compute()`` returns float64 tensors ``()``
    by ``"rank/<layer>"``, ``"effective_rank/<layer>"`` and ``"stable_rank/<layer>"``: from 0 to the smaller of a
    layer's width and its rows; NaN if a feature is not finite. Of each layer of width ``d`` a matrix ``(d, d)`` is kept
    for each batch. In several processes each must have seen a batch before ``compute()``, for the layers are known from
    there.

    Args:
        layers: ``None`` takes what every executed non-linearity returns; names, patterns or types the outputs of these
            modules.
        matrix: ``"covariance"`` or ``"features"``, as for :func:`lc_callback.functional.feature_rank`, and so are the
            next four.
        center: subtract the mean over the rows first.
        tol: tolerance; ``None`` is ``d * eps``.
        relative: the tolerance is relative to the largest singular value.
        precision: floating-point type whose ``eps`` is meant; ``None`` is that of the computation.
        max_width: wider layers are projected to this width.
        seed: of the projection.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one forward pass.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for an argument out of range; in ``update()`` for what the function refuses, in ``compute()`` for
            fewer than two rows.

    Example::

        >>> import torch
        >>> from lc_callback.metrics import FeatureRank
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> with torch.no_grad():  # nearly linear, so the two inputs span all there is
        ...     _ = net[0].weight.mul_(1e-3), net[0].bias.zero_()
        >>> metric = FeatureRank()
        >>> for batch in torch.randn(50, 2, generator=torch.Generator().manual_seed(0)).split(20):
        ...     metric.update(net, batch)
        >>> int(metric.compute()["rank/1"])
        2
    """

    plot_lower_bound = 0.0
    moments: list[Tensor]

    def __init__(
        self,
        *,
        layers: Sequence[str | type] | None = None,
        matrix: str = "covariance",
        center: bool = True,
        tol: float | None = None,
        relative: bool = True,
        precision: torch.dtype | None = None,
        max_width: int = 4096,
        seed: int = 0,
        forward_fn: Callable[..., Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_options(matrix, tol, precision)
        self._chunk_size = chunk_size
        self._features: dict[str, Any] = {"layers": layers, "max_width": max_width, "seed": seed}
        self._features["forward_fn"] = forward_fn
        self._ranks: dict[str, Any] = {"matrix": matrix, "center": center, "tol": tol, "relative": relative}
        self._precision = precision
        self._layers: list[str] = []
        self.add_state("moments", [], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Any, targets: Any = None) -> None:
        """Add a batch of points; ``targets`` are not looked at, so that a collection can pass them."""
        batch: dict[str, FeatureCovariance] = {}

        def add(name: str, rows: Tensor) -> None:
            batch.setdefault(name, FeatureCovariance()).update(rows.flatten(0, 1))

        features = Features(model, inputs, **self._features)
        features.stream(add, self._chunk_size)
        self._precision = self._precision or features.dtype
        for name, covariance in batch.items():
            if name not in self._layers:
                self._layers.append(name)
            number = torch.tensor([self._layers.index(name)], dtype=torch.float64, device=self.device)
            self.moments += [number, covariance.packed().to(self.device)]

    def compute(self) -> dict[str, Tensor]:
        """The ranks over all points."""
        merged: dict[str, FeatureCovariance] = {}
        rest = dim_zero_cat(self.moments) if len(self.moments) else torch.empty(0)
        while len(rest):
            name = self._layers[int(rest[0])]
            rest = merged.setdefault(name, FeatureCovariance()).add_packed(rest[1:])
        values: dict[str, Tensor] = {}
        for name in self._layers:
            if name in merged:
                found = merged[name].rank(**self._ranks, precision=self._precision)
                for kind in ("rank", "effective_rank", "stable_rank"):
                    value = float(getattr(found, kind))
                    values[f"{kind}/{name}"] = torch.tensor(value, dtype=torch.float64, device=self.device)
        return values
