"""What all measures have in common as metrics."""

from __future__ import annotations

from typing import Any

from torchmetrics import Metric

__all__ = ["Measure"]


class Measure(Metric):
    """A metric that is updated by ``update(model, inputs[, targets])``."""

    is_differentiable = False
    full_state_update = False

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw one or several values, as other metrics do. Returns the figure and its axes."""
        return self._plot(val, ax)
