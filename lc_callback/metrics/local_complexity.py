"""Local complexity, batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lc_callback.functional import local_complexity
from lc_callback.functional.local_complexity import Z99, check_arguments, check_method
from lc_callback.metrics.measure import MeasureMetric

__all__ = ["LocalComplexity"]


class LocalComplexity(MeasureMetric):
    """Mean number of units that switch inside a small neighbourhood of a point.

    See :func:`lc_callback.functional.local_complexity` for the definition and its source. ``compute()`` returns a
    float64 tensor ``()``, or ``(R,)`` for ``R`` radii: from 0 to the number of units.

    Args:
        radius: ``r`` > 0 in input units, or several radii.
        kwargs: the other arguments of the function, and those of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for an argument out of range; in ``update()``, for a model or points that the function refuses.

    Example::

        >>> import torch
        >>> from lc_callback.metrics import LocalComplexity
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> with torch.no_grad():  # lines x = 0, y = 0 and x + y = 1
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        ...     _ = net[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        >>> metric = LocalComplexity(radius=0.1, n_directions=2)
        >>> for batch in torch.tensor([[[0.0, 0.0]], [[5.0, 5.0]]]):
        ...     metric.update(net, batch)
        >>> metric.compute()
        tensor(1., dtype=torch.float64)
    """

    function = staticmethod(local_complexity)
    left_out = ("radius", "directions", "bracket", "progress")
    plot_lower_bound = 0.0
    switching: list[Tensor]

    def __init__(self, radius: float | Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        own = self.options
        check_arguments(radius, own["n_directions"], own["layers"], own["at"], own["chunk_size"])
        check_method(own["method"], ("vertices", "linear"), own["layers"], own["max_pool"], False)
        self.radius = radius
        self.add_state("switching", [], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Any, targets: Any = None) -> None:
        """Count at a batch of points. ``targets`` are ignored: a collection passes them to all its metrics."""
        counts = local_complexity(model, inputs, radius=self.radius, **self.options).counts.sum(-1)
        self.switching.append(counts.reshape(-1, counts.shape[-1]).T.double().to(self.device))  # points first

    def compute(self) -> Tensor:
        """The mean over all points, one for each radius."""
        return self._of_radii(self._points().mean(0))

    def half_width(self) -> Tensor:
        """Half the width of the 99 % interval of that mean, over the points that this process has seen."""
        points = self._points()
        return self._of_radii(Z99 * points.std(0) / len(points) ** 0.5)

    def _points(self) -> Tensor:
        if not len(self.switching):
            return torch.empty(0, 1 if isinstance(self.radius, (int, float)) else len(self.radius), dtype=torch.float64)
        return dim_zero_cat(self.switching)

    def _of_radii(self, values: Tensor) -> Tensor:
        return values[0] if isinstance(self.radius, (int, float)) else values
