"""Neural collapse, batch by batch."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lc_callback.functional.neural_collapse import last_features, neural_collapse, neural_collapse_of
from lc_callback.functional.targets import check_classes
from lc_callback.metrics.measure import MeasureMetric

__all__ = ["NeuralCollapse"]


class NeuralCollapse(MeasureMetric):
    """NC1 to NC4 of the last features (Papyan, Han, Donoho 2020); see :func:`lc_callback.functional.neural_collapse`.

    ``compute()`` returns float64 tensors ``()`` by ``"nc1"``, ``"nc2_norms"``, ``"nc2_angles"``, ``"nc2_simplex"``,
    ``"nc3"`` and ``"nc4"``. The metric keeps the features ``(N, D)`` of all points, because their class means are known
    only at the end. It takes the weights of the head from the last update.

    Args:
        kwargs: the arguments of the function, and those of :class:`torchmetrics.Metric`.

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

    function = staticmethod(neural_collapse)
    plot_lower_bound = 0.0
    features: list[Tensor]
    classes: list[Tensor]
    decisions: list[Tensor]
    weight: list[Tensor]
    n_weights: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        #: Where the features come from, as a text.
        self.source = ""
        for name in ("features", "classes", "decisions", "weight"):
            self.add_state(name, [], dist_reduce_fx="cat")
        self.add_state("n_weights", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, model: nn.Module, inputs: Any, targets: Tensor) -> None:
        """Add a batch of points."""
        last = last_features(model, inputs, **self.options)
        self.features.append(last.features.to(self.device))
        self.classes.append(check_classes(targets, len(last.features), last.n_logits).to(self.device))
        self.decisions.append(last.decisions.to(self.device))
        self.weight = [] if last.weight is None else [last.weight.to(self.device)]
        self.n_weights.fill_(len(self.weight))
        self.source = last.source

    def compute(self) -> dict[str, Tensor]:
        """The measures over all points."""
        features, classes, decisions = map(dim_zero_cat, (self.features, self.classes, self.decisions))
        weight = dim_zero_cat(self.weight) if int(self.n_weights) else None
        if weight is not None:  # each process has added one, and so has each batch that `forward` has seen
            weight = weight[-(len(weight) // int(self.n_weights)) :]
        found = asdict(neural_collapse_of(features, classes, decisions, weight))
        return {name: self._number(value) for name, value in found.items() if name != "n_classes"}
