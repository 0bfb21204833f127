"""The plain functions leave a network as it was, whatever its forward writes to, and find the same twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memories import NETWORKS, VARIES, inputs_of, made
from torch import Tensor, nn

from lc_callback.functional import (
    centroid_alignment,
    feature_ranks,
    linear_probe,
    local_complexity,
    robust_accuracy,
    slice_partition,
)

FUNCTIONS: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "robust_accuracy": lambda net, x, y: robust_accuracy(net, x, y, eps=0.1, steps=2).robust_acc,
    "local_complexity": lambda net, x, y: local_complexity(net, x, radius=0.1, n_directions=3).counts.tolist(),
    "feature_ranks": lambda net, x, y: [(rank.rank, rank.effective_rank) for rank in feature_ranks(net, x).values()],
    "linear_probe": lambda net, x, y: linear_probe(net, (x, y), (x, y)),
    "centroid_alignment": lambda net, x, y: centroid_alignment(net, x).cosine.tolist(),
    "slice_partition": lambda net, x, y: slice_partition(net, x[:3]).n_regions,
}


def trained_a_little(name: str, net: nn.Module) -> list[Tensor]:
    """What it gives in training from here on, and what it is then."""
    net.train()
    outputs = [net(inputs_of(name, seed=seed)).detach().clone() for seed in range(4)]
    return [*outputs, *net.state_dict().values()]


# What is another function at each call has no partition.
CASES = [(name, function) for name in NETWORKS for function in FUNCTIONS]
CASES = [(name, function) for name, function in CASES if not (name in VARIES and function == "slice_partition")]


@pytest.mark.parametrize(("name", "function"), CASES)
def test_a_network_with_a_memory_is_what_it_was(name: str, function: str) -> None:
    expected = trained_a_little(name, made(name))
    net, inputs, targets = made(name), inputs_of(name, 6), torch.arange(6) % 3
    tensors = [*net.parameters(), *net.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    found = [FUNCTIONS[function](net, inputs, targets) for _ in range(2)]
    assert all(one is other for one, other in zip([*net.parameters(), *net.buffers()], tensors, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(tensors, values, strict=True))
    given = trained_a_little(name, net)
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))
    assert repr(found[0]) == repr(found[1])
