"""On a GPU: the same counts as on the CPU, and no waiting for it inside a chunk."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import METHODS, NETS, measured

from lc_callback.engine.counting.counter import SwitchCounter

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def moved(inputs):
    """To the GPU."""
    return {k: v.cuda() for k, v in inputs.items()} if isinstance(inputs, dict) else inputs.cuda()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
def test_counts_on_a_gpu_are_those_on_the_cpu(name, method):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    net = make().double().eval()
    expected, _ = measured(net, inputs, method)
    for repeat in (True, False):
        found, _ = measured(copy.deepcopy(net).cuda(), inputs, method, repeat=repeat)
        assert torch.equal(found, expected)
    assert torch.equal(measured(copy.deepcopy(net).cuda(), moved(inputs), method)[0], expected)
    assert expected.sum() > 10


@pytest.mark.parametrize("method", METHODS)
def test_no_chunk_waits_for_the_gpu(method, monkeypatch):
    torch.manual_seed(0)
    make, inputs = NETS["images"]
    count, chunks = SwitchCounter._count_points, []

    def strictly(self, points, *arguments):
        torch.cuda.set_sync_debug_mode("error")
        try:
            chunks.append(len(points))
            return count(self, points, *arguments)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(SwitchCounter, "_count_points", strictly)
    measured(make().eval().cuda(), inputs, method, chunk_size=12)
    assert len(chunks) > 4
