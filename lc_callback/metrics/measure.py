"""What all measures have in common as metrics."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from lc_callback.functional.options import defaults_of

__all__ = ["MeasureMetric"]


class MeasureMetric(Metric):
    """A metric that is updated by ``update(model, inputs[, targets])``.

    Its keyword arguments are those of :attr:`function`, with the same defaults, and those of
    :class:`torchmetrics.Metric`.
    """

    is_differentiable = False
    full_state_update = False
    #: The function that does the work.
    function: ClassVar[Callable[..., Any]]
    #: Arguments of the function that the metric does not take.
    left_out: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "function" in vars(cls):
            cls.__signature__ = _signature(cls)  # type: ignore[attr-defined]

    def __init__(self, **kwargs: Any) -> None:
        options = {name: kwargs.pop(name, default) for name, default in _defaults(type(self)).items()}
        super().__init__(**kwargs)
        #: The arguments of :attr:`function`.
        self.options = options

    def seen(self) -> dict[str, Any]:
        """What the metric has seen: its states by name, on the CPU. :meth:`join` needs nothing else."""
        return {
            name: [part.cpu() for part in value] if isinstance(value, list) else value.cpu()
            for name, value in self.metric_state.items()
        }

    def join(self, parts: Sequence[Mapping[str, Any]]) -> None:
        """Replace the state by that of several metrics together; each part is what one of them has :meth:`seen`.

        Their arguments have to be the same.

        Example::

            >>> import torch
            >>> from lc_callback.metrics import CentroidAlignment
            >>> net, points = torch.nn.Linear(2, 3), torch.randn(7, 2)
            >>> first, second, whole = CentroidAlignment(), CentroidAlignment(), CentroidAlignment()
            >>> first.update(net, points[:4])
            >>> second.update(net, points[4:])
            >>> whole.join([first.seen(), second.seen()])
            >>> whole.update_count
            2
        """
        self.reset()
        for name, reduce in self._reductions.items():
            values = [part[name] for part in parts]
            if isinstance(self._defaults[name], list):
                setattr(self, name, [value.to(self.device) for part in values for value in part])
            else:
                assert callable(reduce)
                setattr(self, name, reduce(torch.stack(values)).to(self.device))
        self._update_count = len(parts)

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one or several values, as other metrics of torchmetrics do. Returns the figure and its axes."""
        return self._plot(val, ax)

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float64, device=self.device)


def _defaults(cls: type[MeasureMetric]) -> dict[str, Any]:
    return {name: default for name, default in defaults_of(cls.function).items() if name not in cls.left_out}


def _signature(cls: type[MeasureMetric]) -> inspect.Signature:
    """The signature of the constructor, with the arguments of the function."""
    own = [*inspect.signature(cls.__init__).parameters.values()][1:]
    of_function = inspect.signature(cls.function).parameters
    passed = [of_function[name] for name in _defaults(cls)]
    return inspect.Signature([*own[:-1], *passed, own[-1]])
