"""What a classifier has to decide at points: one class of several, yes or no, or several times yes or no."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Labels"]


@dataclass(frozen=True, eq=False)
class Labels:
    """The right decisions at ``N`` points, and how they are read from what the model returns.

    A point has one decision, or ``E`` of them: one for each pixel or each label. A decision between no and yes, of one
    logit ``z``, is one between two classes of logits ``(-z / 2, z / 2)``. Their cross entropy is the binary cross
    entropy of ``z``, so an attack needs no loss of its own for it.

    Attributes:
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        classes: ``(N, *E)`` int64; 0 where nothing is to be decided.
        counted: ``(N, *E)``, whether there is something to decide; ``None`` if there is everywhere.
        shape: of the outputs of one point: ``(C, *E)`` for a multi-class task, else that of its decisions.
        ignored: the target of what is not counted.
    """

    task: str
    classes: Tensor
    counted: Tensor | None
    shape: tuple[int, ...]
    ignored: int | None = None

    def __getitem__(self, rows: Tensor | slice) -> Labels:
        """Those of some points."""
        return replace(self, classes=self.classes[rows], counted=None if self.counted is None else self.counted[rows])

    def to(self, device: torch.device) -> Labels:
        """The same on a device."""
        classes, counted = self.classes.to(device), None if self.counted is None else self.counted.to(device)
        # A backward pass cannot keep what was made in inference mode.
        return replace(self, classes=classes.clone() if classes.is_inference() else classes, counted=counted)

    @property
    def is_single(self) -> bool:
        """Whether there is one decision for each point."""
        return self.classes.ndim == 1

    @property
    def n_counted(self) -> int:
        """The number of decisions."""
        return self.classes.numel() if self.counted is None else int(self.counted.sum())

    def logits(self, outputs: Tensor) -> Tensor:
        """``(n, C, *E)`` logits for what the model returns for ``n`` points."""
        if self.task == "multiclass":
            return outputs
        half = outputs.reshape(len(outputs), *self.classes.shape[1:]) / 2
        return torch.stack([-half, half], 1)

    def outputs(self, logits: Tensor) -> Tensor:
        """The inverse of :meth:`logits`: ``(n, *shape)``."""
        if self.task == "multiclass":
            return logits
        return (logits[:, 1] - logits[:, 0]).reshape(len(logits), *self.shape)

    def scores(self, logits: Tensor) -> Tensor:
        """``(n, *shape)`` float64 probabilities, as the metrics of torchmetrics take them."""
        z = self.outputs(logits).double()
        return z.softmax(1) if self.task == "multiclass" else z.sigmoid()

    def targets(self) -> Tensor:
        """Integers in the shape that goes with :meth:`outputs`, with ``ignored`` where nothing is counted."""
        classes = self.classes if self.counted is None else self.classes.where(self.counted, self.ignored or 0)
        return classes if self.task == "multiclass" else classes.reshape(len(classes), *self.shape)
