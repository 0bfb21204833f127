"""Centroid alignment, batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.functional import centroid_alignment
from lc_callback.metrics.measure import MeasureMetric

__all__ = ["CentroidAlignment"]


class CentroidAlignment(MeasureMetric):
    """Mean cosine between a point and the sum of the rows of the Jacobian at that point.

    See :func:`lc_callback.functional.centroid_alignment` for the definition and its source. ``compute()`` returns a
    float64 tensor ``()``, from -1 to 1; NaN if one of the points is not finite.

    Args:
        kwargs: the arguments of the function, and those of :class:`torchmetrics.Metric`.

    Example::

        >>> import torch
        >>> from lc_callback.metrics import CentroidAlignment
        >>> net = torch.nn.Linear(2, 3)
        >>> _ = torch.nn.init.ones_(net.weight)
        >>> metric = CentroidAlignment()
        >>> metric.update(net, torch.tensor([[2.0, 2.0]]))
        >>> metric.update(net, torch.tensor([[1.0, -1.0]]))
        >>> round(float(metric.compute()), 6)
        0.5
    """

    function = staticmethod(centroid_alignment)
    plot_lower_bound, plot_upper_bound = -1.0, 1.0
    cosines: Tensor
    n_cosines: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("cosines", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_cosines", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, model: nn.Module, inputs: Any, targets: Any = None) -> None:
        """Add a batch of points. ``targets`` are ignored: a collection passes them to all its metrics."""
        cosine = centroid_alignment(model, inputs, **self.options).cosine
        self.cosines += cosine.sum().to(self.cosines)
        self.n_cosines += len(cosine)

    def compute(self) -> Tensor:
        """The mean over all points."""
        return self.cosines / self.n_cosines
