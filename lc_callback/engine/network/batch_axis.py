"""Which axis of an intermediate tensor is the batch, found by running the model on two and on three samples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BatchAxis", "find_batch_axis"]


@dataclass(frozen=True)
class BatchAxis:
    """The place of the samples in a tensor.

    Attributes:
        axis: the axis that grows with the batch.
        per_sample: entries of that axis for each sample: 1, or more where the batch was folded into another axis.
        sample_first: whether the entries of a sample lie next to each other (as ``(N, T)``) or not (as ``(T, N)``).
    """

    axis: int
    per_sample: int = 1
    sample_first: bool = True

    def to_front(self, tensor: Tensor, n_samples: int) -> Tensor:
        """A view of ``tensor`` of shape ``(n_samples, ...)``.

        Raises:
            ValueError: if the tensor does not hold ``n_samples`` samples.
        """
        if self.axis >= tensor.ndim or tensor.shape[self.axis] != n_samples * self.per_sample:
            raise ValueError(f"shape {tuple(tensor.shape)} does not hold {n_samples} samples on axis {self.axis}")
        front = tensor.movedim(self.axis, 0) if self.axis else tensor
        if self.per_sample == 1:
            return front
        if self.sample_first:
            return front.unflatten(0, (n_samples, self.per_sample))
        return front.unflatten(0, (self.per_sample, n_samples)).movedim(1, 0)


def find_batch_axis(of_two: Tensor, of_three: Tensor, sample_first: bool = True) -> tuple[BatchAxis, float] | None:
    """Find the batch axis of a tensor, given what it was for samples ``[a, b]`` and for ``[c, b, a]``.

    In the other order ``a`` and ``b`` have other samples before and behind them. So influence shows that goes one way
    only, as that of a cumulative sum over the batch.

    Args:
        of_two: the tensor computed from two samples.
        of_three: the same tensor computed from a third and these two, the last first.
        sample_first: of a folded axis, what is taken where all samples have the same values, as those of a dead layer.

    Returns:
        The axis, and by how much (relative to the largest entry) what belongs to ``a`` and ``b`` differs between the
        two runs: rounding, unless samples influence each other or the model draws random numbers. ``None`` if the
        tensor does not depend on the number of samples, as a value computed from the weights.

    Raises:
        ValueError: if no single axis grows in proportion to the number of samples.
    """
    shapes = f"{tuple(of_two.shape)} for two samples, {tuple(of_three.shape)} for three"
    if of_two.ndim != of_three.ndim:
        raise ValueError(f"its rank depends on the number of samples: {shapes}")
    grown = [axis for axis in range(of_two.ndim) if of_two.shape[axis] != of_three.shape[axis]]
    if not grown:
        return None
    axis = grown[0]
    if len(grown) > 1 or of_two.shape[axis] * 3 != of_three.shape[axis] * 2:
        raise ValueError(f"no single axis grows in proportion to the number of samples: {shapes}")
    per_sample = of_two.shape[axis] // 2
    orders = [sample_first, not sample_first] if per_sample > 1 else [True]
    choices = [BatchAxis(axis, per_sample, order) for order in orders]
    differences = [_difference(c.to_front(of_two, 2), c.to_front(of_three, 3).flip(0)[:2]) for c in choices]
    best = min(range(len(choices)), key=differences.__getitem__)
    return choices[best], differences[best]


def _difference(one: Tensor, other: Tensor) -> float:
    if not one.is_floating_point():
        return float((one != other).double().mean())
    scale = torch.nan_to_num(one).abs().max()
    return float(torch.nan_to_num(one - other).abs().max() / scale) if scale > 0 else 0.0
