"""Accuracy with and without attack, batch by batch."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lc_callback.engine.adversarial.attacked import Verdict
from lc_callback.engine.adversarial.labels import Labels
from lc_callback.functional import robust_accuracy
from lc_callback.functional.judging import fresh, number, take
from lc_callback.functional.robustness import check_arguments, outcome_of
from lc_callback.functional.targets import TASKS
from lc_callback.metrics.measure import MeasureMetric
from lc_callback.names import number_names

__all__ = ["RobustAccuracy"]

_TASKS = TASKS[1:]


class RobustAccuracy(MeasureMetric):
    """Share of the decisions that a classifier gets right, without attack and under attack.

    :func:`lc_callback.functional.robust_accuracy` says what the attack is, which logits it sees, and what counts as a
    decision. ``compute()`` returns float64 tensors ``()`` by ``"clean_acc"`` and ``"robust_acc_eps0.03"`` and so on,
    from 0 to 1; NaN if a logit was not finite. With ``metric=`` they are the values of that metric.

    Without ``bounds`` each batch has a domain of its own, found from its points. Likewise the unit of ``eps``, if it is
    their spread. The noise at the start is the same for every batch.

    Args:
        eps: radius of the attack, or several.
        kwargs: the other arguments of the function, and those of :class:`torchmetrics.Metric`.

    Raises:
        ValueError: for an argument out of range; in ``update()``, for a model or points that the function refuses, or
            for a batch that belongs to another task than those before it.

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

    function = staticmethod(robust_accuracy)
    left_out = ("return_adversarial",)
    higher_is_better = True
    plot_lower_bound, plot_upper_bound = 0.0, 1.0
    n_right: Tensor
    n_broken: Tensor
    n_decided: Tensor
    n_of_task: Tensor

    def __init__(self, eps: float | Sequence[float], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_arguments(eps=eps, **self.options)
        self.eps: list[float] = [float(eps)] if isinstance(eps, Real) else [float(one) for one in eps]  # type: ignore[union-attr]
        #: How the logits of a model that returns probabilities were found; empty if it returns logits.
        self.note = ""
        n = 1 + len(self.eps)
        self.add_state("n_right", torch.zeros(n, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_broken", torch.zeros(n, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_decided", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("n_of_task", torch.zeros(len(_TASKS), dtype=torch.int64), dist_reduce_fx="sum")
        metric = self.options["metric"]
        self._judge = None if metric is None else fresh(metric)
        if self._judge is not None:  # one metric object serves every eps; its states for each are kept here
            for index in range(n):
                for name, default in self._judge._defaults.items():
                    own = copy.deepcopy(default)  # which a metric may add to in place
                    self.add_state(f"{name}_{index}", own, dist_reduce_fx=self._judge._reductions[name])

    def update(self, model: nn.Module, inputs: Any, targets: Any, *, share: tuple[int, int] = (0, 1)) -> None:
        """Attack a batch of points.

        Args:
            model: the classifier.
            inputs: the points.
            targets: the right classes or labels there.
            share: ``(index, of)``: ``of`` processes have the same points, and this one judges every ``of``-th of them,
                from ``index`` on.
        """
        found = outcome_of(model, inputs, targets, share=share, eps=self.eps, **self.options)
        if found.note and not self.note:
            self.note = found.note
            self._tell(found.note)
        self.n_of_task[_TASKS.index(found.labels.task)] += 1
        self._check_tasks()
        labels = found.labels.to(self.device)
        for index, verdict in enumerate([found.clean, *(found.robust[eps] for eps in self.eps)]):
            self._take(index, verdict, labels)
        self.n_decided += labels.n_counted

    def _tell(self, note: str) -> None:
        warnings.warn(note, stacklevel=4)

    @property
    def task(self) -> str:
        """The task of the batches so far; empty before the first."""
        return next((task for task, n in zip(_TASKS, self.n_of_task.tolist(), strict=True) if n), "")

    def _check_tasks(self) -> None:
        tasks = [task for task, n in zip(_TASKS, self.n_of_task.tolist(), strict=True) if n]
        if len(tasks) > 1:
            raise ValueError(
                f"the targets of some batches are {tasks[0]}, those of others {tasks[1]}: pass `task=`, because one "
                "batch may not show which task it is."
            )

    def _take(self, index: int, verdict: Verdict, labels: Labels) -> None:
        right = verdict.right.to(self.device)
        self.n_right[index] += (right if labels.counted is None else right[labels.counted]).sum()
        self.n_broken[index] += not verdict.is_known
        if self._judge is not None and verdict.is_known and len(right):
            assert verdict.logits is not None
            with self._judging(index) as judge:
                take(judge, Verdict(right, True, verdict.logits.to(self.device)), labels)

    @contextmanager
    def _judging(self, index: int) -> Iterator[Metric]:
        """The user's metric with its states of one ``index``: 0 is without attack, the others are one for each eps."""
        judge = self._judge
        assert judge is not None
        names = [*judge.metric_state]
        for name in names:
            setattr(judge, name, getattr(self, f"{name}_{index}"))
        judge._computed, judge._update_count = None, 1  # else it returns an old value, or warns that it is empty
        yield judge
        for name in names:
            setattr(self, f"{name}_{index}", getattr(judge, name))
            setattr(judge, name, copy.deepcopy(judge._defaults[name]))  # a `reset` would empty our list

    def compute(self) -> dict[str, Tensor]:
        """The shares of all decisions, or the values of the metric."""
        self._check_tasks()
        names = ["clean_acc", *(f"robust_acc_eps{name}" for name in number_names(self.eps))]
        values = [self._value(index) for index in range(len(names))]
        return {
            name: torch.where(broken > 0, torch.nan, value)
            for name, value, broken in zip(names, values, self.n_broken, strict=True)
        }

    def _value(self, index: int) -> Tensor:
        if self._judge is None:
            return self.n_right[index] / self.n_decided
        if bool(self.n_broken[index] > 0):
            return self._number(math.nan)
        with self._judging(index) as judge:
            return number(judge.compute(), judge).double()
