"""Feature rank, batch by batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics.utilities import dim_zero_cat

from lc_callback.engine.network.features import Features
from lc_callback.functional.feature_rank import FeatureCovariance, check_options, feature_ranks
from lc_callback.functional.feature_rank import FeatureRank as Ranks
from lc_callback.metrics.measure import MeasureMetric

__all__ = ["FeatureRank"]

# Arguments of the function: those that the features take, and those that the ranks take.
_OF_FEATURES = ("layers", "max_width", "seed", "forward_fn")
_OF_RANK = ("matrix", "center", "tol", "relative")


class FeatureRank(MeasureMetric):
    """Numerical, effective and stable rank of each hidden layer's features (*Deep Grokking*, 2024, page 3).

    See :func:`lc_callback.functional.feature_ranks` for the definitions. ``compute()`` returns float64 tensors ``()``
    by ``"rank/<layer>"``, ``"effective_rank/<layer>"`` and ``"stable_rank/<layer>"``: from 0 to the smaller of a
    layer's width and its rows; NaN if a feature is not finite. The metric keeps a matrix ``(d, d)`` for each batch and
    each layer of width ``d``.

    Args:
        kwargs: the arguments of the function, and those of :class:`torchmetrics.Metric`.

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

    function = staticmethod(feature_ranks)
    plot_lower_bound = 0.0
    moments: list[Tensor]

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_options(self.options["matrix"], self.options["tol"], self.options["precision"])
        self.add_state("moments", [], dist_reduce_fx="cat")

    def update(self, model: nn.Module, inputs: Any, targets: Any = None) -> None:
        """Add a batch of points. ``targets`` are ignored: a collection passes them to all its metrics."""
        batch: dict[str, FeatureCovariance] = {}

        def add(name: str, rows: Tensor) -> None:
            batch.setdefault(name, FeatureCovariance()).update(rows.flatten(0, 1))

        features = Features(model, inputs, **{name: self.options[name] for name in _OF_FEATURES})
        features.stream(add, self.options["chunk_size"])
        for name, covariance in batch.items():
            precision = self.options["precision"] or covariance.dtype
            # The state holds the names too: a process that has seen no batch knows no layer.
            label = f"{name}\n{precision}".encode(errors="surrogatepass")
            head = torch.tensor([len(label), *label], dtype=torch.float64, device=self.device)
            self.moments += [head, covariance.packed().to(self.device)]

    def ranks(self) -> dict[str, Ranks]:
        """The ranks of each layer, with their spectra, over the points that this process has seen."""
        merged: dict[str, FeatureCovariance] = {}
        rest = dim_zero_cat(self.moments) if len(self.moments) else torch.empty(0)
        while len(rest):
            n = 1 + int(rest[0])
            label = bytes(rest[1:n].byte().tolist()).decode(errors="surrogatepass")
            rest = merged.setdefault(label, FeatureCovariance()).add_packed(rest[n:])
        found: dict[str, Ranks] = {}
        for label, covariance in merged.items():
            name, _, dtype = label.rpartition("\n")
            precision = getattr(torch, dtype.removeprefix("torch."))
            found[name] = covariance.rank(**{key: self.options[key] for key in _OF_RANK}, precision=precision)
        return found

    def compute(self) -> dict[str, Tensor]:
        """The ranks over all points."""
        kinds = ("rank", "effective_rank", "stable_rank")
        ranks = self.ranks().items()
        return {f"{kind}/{name}": self._number(getattr(found, kind)) for name, found in ranks for kind in kinds}
