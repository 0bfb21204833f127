"""What a classifier decides at points: one class of several, yes or no, or several times yes or no."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["Labels"]


@dataclass(frozen=True, eq=False)
class Labels:
    """The right decisions at ``N`` points, and how decisions are read from the output of the model.

    A point has one decision, or ``E`` of them: one for each pixel or each label. A yes-or-no decision with one logit
    ``z`` is treated as one between two classes with logits ``(-z / 2, z / 2)``. Their cross entropy is the binary cross
    entropy of ``z``. So an attack needs no other loss for it.

    Attributes:
        task: ``"multiclass"``, ``"binary"`` or ``"multilabel"``.
        classes: ``(N, *E)`` int64, the right classes; 0 where nothing has to be decided.
        counted: ``(N, *E)``, whether something has to be decided there; ``None`` if it has everywhere.
        shape: shape of the output for one point: ``(C, *E)`` for a multi-class task, else that of its decisions.
        ignored: the target of decisions that are not counted.
    """

    task: str
    classes: Tensor
    counted: Tensor | None
    shape: tuple[int, ...]
    ignored: int | None = None

    def __getitem__(self, rows: Tensor | slice) -> Labels:
        """The labels of some points."""
        return replace(self, classes=self.classes[rows], counted=None if self.counted is None else self.counted[rows])

    def to(self, device: torch.device) -> Labels:
        """The same labels on a device."""
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
        """``(n, C, *E)`` logits, given the output of the model for ``n`` points."""
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
        """``(n, *shape)`` float64 probabilities, in the form that the metrics of torchmetrics take."""
        z = self.outputs(logits).double()
        return z.softmax(1) if self.task == "multiclass" else z.sigmoid()

    def targets(self) -> Tensor:
        """The right classes, in the shape that fits :meth:`outputs`, with ``ignored`` where nothing is counted."""
        classes = self.classes if self.counted is None else self.classes.where(self.counted, self.ignored or 0)
        return classes if self.task == "multiclass" else classes.reshape(len(classes), *self.shape)
