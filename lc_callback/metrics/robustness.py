"""Accuracy with and without attack, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.functional import robust_accuracy
from lc_callback.functional.robustness import check_arguments
from lc_callback.metrics.measure import Measure
from lc_callback.names import number_names

__all__ = ["RobustAccuracy"]


class RobustAccuracy(Measure):
    """Share of points that a classifier gets right, as they are and under attack.

    See :func:`lc_callback.functional.robust_accuracy` for the attack and the logits that it sees. ``compute()`` returns
    float64 tensors ``()`` from 0 to 1 by ``"clean_acc"`` and ``"robust_acc_eps0.03"`` and so on;
    NaN if a logit was not finite.

    Args:
        eps: budget, or several.
        attack: name of an attack, or a function.
        alpha: of one step; ``None`` is 2.5 eps / steps.
        steps: of the attack.
        bounds: ``(low, high)`` of the domain; ``None`` takes the range of the points of each batch.
        seed: of the start noise, the same in each batch.
        eps_unit: ``"auto"``, ``"input"`` or ``"std"``; in spreads of the points of each batch.
        attack_args: further arguments of the attack.
        normalize_logits: whether the attack sees logits that do not saturate.
        at: name of the module whose output is attacked instead of the input.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one pass.
        kwargs: of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for an argument out of range; in ``update()``, for a model or points that the function refuses.

    Example::

        >>> import torch
        >>> from lc_callback.metrics import RobustAccuracy
        >>> net = torch.nn.Linear(1, 2)
        >>> with torch.no_grad():  # class 1 right of 0
        ...     _ = net.weight.copy_(torch.tensor([[-1.0], [1.0]])), net.bias.zero_()
        >>> metric = RobustAccuracy(eps=0.5, bounds=(-5, 5))
        >>> metric.update(net, torch.tensor([[-2.0], [-0.1]]), torch.tensor([0, 0]))
        >>> metric.update(net, torch.tensor([[3.0], [4.0]]), torch.tensor([1, 0]))
        >>> {name: round(float(share), 2) for name, share in metric.compute().items()}
        {'clean_acc': 0.75, 'robust_acc_eps0.5': 0.5}
    """

    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    n_right: Tensor
    n_robust: Tensor
    n_attacked: Tensor

    def __init__(
        self,
        eps: float | Sequence[float],
        *,
        attack: str | Callable[..., Tensor] = "PGD",
        alpha: float | None = None,
        steps: int = 10,
        bounds: tuple[Any, Any] | None = None,
        seed: int = 0,
        eps_unit: str = "auto",
        attack_args: Mapping[str, Any] | None = None,
        normalize_logits: bool = True,
        at: str | None = None,
        forward_fn: Callable[..., Any] | None = None,
        chunk_size: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_arguments(eps, attack, alpha, steps, bounds, eps_unit, attack_args, at, chunk_size)
        self.eps = [eps] if isinstance(eps, (int, float)) else list(eps)
        self._options: dict[str, Any] = {
            "eps": self.eps,
            "attack": attack,
            "alpha": alpha,
            "steps": steps,
            "bounds": bounds,
            "seed": seed,
            "eps_unit": eps_unit,
            "attack_args": attack_args,
            "normalize_logits": normalize_logits,
            "at": at,
            "forward_fn": forward_fn,
            "chunk_size": chunk_size,
        }
        self.add_state("n_right", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_robust", torch.zeros(len(self.eps), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_attacked", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, model: nn.Module, inputs: Any, targets: Tensor) -> None:
        """Attack a batch of points."""
        found, n = robust_accuracy(model, inputs, targets, **self._options), len(targets)
        robust = torch.tensor([found.robust_acc[eps] for eps in self.eps], dtype=torch.float64)
        self.n_right += torch.tensor(n * found.clean_acc, dtype=torch.float64).round().to(self.n_right)
        self.n_robust += (n * robust).round().to(self.n_robust)
        self.n_attacked += n

    def compute(self) -> dict[str, Tensor]:
        """The shares of all points."""
        robust = dict(
            zip(
                (f"robust_acc_eps{name}" for name in number_names(self.eps)),
                self.n_robust / self.n_attacked,
                strict=True,
            )
        )
        return {"clean_acc": self.n_right / self.n_attacked, **robust}
