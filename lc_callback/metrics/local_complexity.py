"""Local complexity, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lc_callback.functional import local_complexity
from lc_callback.functional.local_complexity import Z99, check_arguments, check_method
from lc_callback.metrics.measure import Measure

__all__ = ["LocalComplexity"]


class LocalComplexity(Measure):
    """Mean number of units that switch inside a small neighbourhood of a point.

    See :func:`lc_callback.functional.local_complexity` for the definition and its source. ``compute()`` returns a
    float64 tensor ``()``, or ``(R,)`` for ``R`` radii: from 0 to the number of units.

    Args:
        radius: ``r`` > 0 in input units, or several radii.
        n_directions: of the frame; ``None`` is 25, or all there are if fewer.
        seed: of the frame.
        layers: ``None`` counts every non-linearity that is executed; names, patterns or types count the outputs of
            these modules.
        at: name of the module whose output is perturbed instead of the input.
        method: ``"vertices"`` or ``"linear"``.
        max_pool: also count the winners that change.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: vertices in one forward pass.
        kwargs: of :class:`torchmetrics.Metric`.

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

    plot_lower_bound = 0.0
    switching: list[Tensor]

    def __init__(
        self,
        radius: float | Sequence[float],
        *,
        n_directions: int | None = None,
        seed: int = 0,
        layers: Sequence[str | type] | None = None,
        at: str | None = None,
        method: str = "vertices",
        max_pool: bool = False,
        forward_fn: Callable[..., Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_arguments(radius, n_directions, layers, at, chunk_size)
        check_method(method, ("vertices", "linear"), layers, max_pool, False)
        self.radius = radius
        self._options: dict[str, Any] = {
            "n_directions": n_directions,
            "seed": seed,
            "layers": layers,
            "at": at,
            "method": method,
            "max_pool": max_pool,
            "forward_fn": forward_fn,
            "chunk_size": chunk_size,
        }
        self.add_state("switching", [], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Any, targets: Any = None) -> None:
        """Count at a batch of points; ``targets`` are not looked at, so that a collection can pass them."""
        counts = local_complexity(model, inputs, radius=self.radius, **self._options).counts.sum(-1)
        self.switching.append(counts.reshape(-1, counts.shape[-1]).T.double().to(self.device))  # points first

    def compute(self) -> Tensor:
        """The mean over all points, one for each radius."""
        return self._of_radii(self._points().mean(0))

    def half_width(self) -> Tensor:
        """Half the width of the 99 % interval of that mean over the points, of the points of this process."""
        points = self._points()
        return self._of_radii(Z99 * points.std(0) / len(points) ** 0.5)

    def _points(self) -> Tensor:
        if not len(self.switching):
            return torch.empty(0, 1 if isinstance(self.radius, (int, float)) else len(self.radius), dtype=torch.float64)
        return dim_zero_cat(self.switching)

    def _of_radii(self, values: Tensor) -> Tensor:
        return values[0] if isinstance(self.radius, (int, float)) else values
