"""A histogram of critical radii on a logarithmic scale: by the leading bits of a float32."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["BINS", "INFINITE", "bin_of", "binned", "radius_at_rank"]

_DROPPED = 18  # bits of a critical radius as float32, which leaves 32 bins for a factor of two, of 3 % at most
BINS = 2 ** (31 - _DROPPED)
INFINITE = 0x7F800000 >> _DROPPED  # the bin of infinity; behind it are those of NaN


def bin_of(radius: float) -> int:
    """The bin of one radius."""
    return int(torch.tensor(radius, dtype=torch.float32).view(torch.int32)) >> _DROPPED


def binned(keys: Tensor) -> Tensor:
    """``(BINS,)``: how many critical radii are in each bin, from their bits as integers; float64 has 64 of these."""
    bins = keys if keys.dtype is torch.int32 else keys.view(torch.float64).float().view(torch.int32)
    bins = (bins >> _DROPPED).bitwise_and_(BINS - 1).flatten()
    if bins.device.type == "cpu":
        return torch.bincount(bins, minlength=BINS)
    bins = bins.long()  # bincount would wait for the device
    return bins.new_zeros(BINS).scatter_add_(0, bins, bins.new_ones(1).expand_as(bins))


def radius_at_rank(histogram: Tensor, rank: float) -> float:
    """The critical radius with so many smaller ones."""
    below = histogram.cumsum(0)
    place = int((below < rank).sum())
    if place >= INFINITE:
        return math.inf
    if not place:  # zero, or as good as
        return 0.0
    edges = (torch.tensor([place, place + 1], dtype=torch.int32) << _DROPPED).view(torch.float32)
    return float(edges.double().mean())
