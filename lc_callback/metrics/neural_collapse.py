"""Neural collapse, batch by batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lc_callback.functional.neural_collapse import last_features, neural_collapse_of
from lc_callback.functional.targets import check_targets
from lc_callback.metrics.measure import Measure

__all__ = ["NeuralCollapse"]


class NeuralCollapse(Measure):
    """NC1 to NC4 of the last features (Papyan, Han, Donoho 2020); see :func:`lc_callback.functional.neural_collapse`.

    ``compute()`` returns float64 tensors ``()`` by ``"nc1"``, ``"nc2_norms"``, ``"nc2_angles"``, ``"nc2_simplex"``,
    ``"nc3"`` and ``"nc4"``. The features of all points are kept, ``(N, D)``, for their class means are known at the end
    only. The weights of the head are those of the last update.

    Args:
        layer: name of the module whose output are the features; ``None``: what enters the last ``nn.Linear``.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one forward pass.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: in ``update()``, for what the function refuses; in ``compute()``, for fewer than two classes.

    Example::

        >>> import torch
        >>> from lc_callback.metrics import NeuralCollapse
        >>> net = torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(2, 2, bias=False))
        >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> metric = NeuralCollapse()
        >>> metric.update(net, torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0]))
        >>> metric.update(net, torch.tensor([[-2.0, 0.0], [-2.0, 0.0]]), torch.tensor([1, 1]))
        >>> {name: float(value) for name, value in metric.compute().items() if name in ("nc1", "nc3", "nc4")}
        {'nc1': 0.0, 'nc3': 0.0, 'nc4': 1.0}
    """

    plot_lower_bound = 0.0
    features: list[Tensor]
    classes: list[Tensor]
    decisions: list[Tensor]

    def __init__(
        self,
        *,
        layer: str | None = None,
        forward_fn: Callable[..., Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._options: dict[str, Any] = {"layer": layer, "forward_fn": forward_fn, "chunk_size": chunk_size}
        self._weight: Tensor | None = None
        for name in ("features", "classes", "decisions"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Any, targets: Tensor) -> None:
        """Add a batch of points."""
        last, classes = last_features(model, inputs, **self._options), check_targets(targets, None)
        if len(classes) != len(last.features):
            raise ValueError(f"there must be one target for each of {len(last.features)} points, not {len(classes)}.")
        self.features.append(last.features.to(self.device))
        self.classes.append(classes.to(self.device))
        self.decisions.append(last.decisions.to(self.device))
        self._weight = last.weight

    def compute(self) -> dict[str, Tensor]:
        """The measures over all points."""
        features, classes, decisions = map(dim_zero_cat, (self.features, self.classes, self.decisions))
        found = asdict(neural_collapse_of(features, classes, decisions, self._weight))
        return {
            name: torch.tensor(value, dtype=torch.float64, device=self.device)
            for name, value in found.items()
            if name != "n_classes"
        }
