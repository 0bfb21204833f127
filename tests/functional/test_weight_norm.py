"""Norms of weights against torch.linalg."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lc_callback.functional import weight_norms


def norm(*tensors):
    return float(torch.linalg.vector_norm(torch.cat([t.detach().double().flatten() for t in tensors])))


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 2, bias=False)))


def test_each_module_and_all_together():
    net = mlp()
    expected = {
        "total": norm(*net.parameters()),
        "0": norm(net[0].weight, net[0].bias),
        "2.0": norm(net[2][0].weight, net[2][0].bias),
        "2.1": norm(net[2][1].weight),
    }
    found = weight_norms(net)
    assert list(found) == list(expected)  # the total first, then in the order of the modules
    assert found == pytest.approx(expected, rel=1e-12)
    assert found["total"] == pytest.approx(math.sqrt(sum(v**2 for k, v in found.items() if k != "total")), rel=1e-12)


def test_a_shared_weight_counts_for_each_module_and_once_in_the_total():
    net = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    net[1].weight = net[0].weight
    found = weight_norms(net)
    weight, bias = net[1].weight, net[1].bias
    expected = {"total": norm(weight, bias), "0": norm(weight), "1": norm(weight, bias)}
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_module_that_is_used_twice_has_one_name():
    layer = nn.Linear(3, 3)
    found = weight_norms(nn.Sequential(layer, nn.ReLU(), layer))
    assert found == pytest.approx({"total": norm(*layer.parameters()), "0": norm(*layer.parameters())})


def test_frozen_weights_count():
    net = mlp()
    before = weight_norms(net)
    net[0].requires_grad_(False)
    assert weight_norms(net) == before


def test_buffers_do_not_count():
    net = mlp()
    before = weight_norms(net)
    net[2][0].running_mean += 100
    assert weight_norms(net) == before


def test_half_precision_is_summed_in_float64():
    net = nn.Linear(200, 200, bias=False).bfloat16()
    nn.init.constant_(net.weight, 0.1)
    net.weight.data[0, 0] = 2.0**70  # its square overflows float32
    assert weight_norms(net)["total"] == pytest.approx(norm(net.weight), rel=1e-12)
    nn.init.constant_(net.weight, 0.1)
    assert weight_norms(net)["total"] == pytest.approx(200 * float(torch.tensor(0.1).bfloat16()), rel=1e-12)


def test_complex_weights_count_with_both_parts():
    net = nn.Module()
    net.weight = nn.Parameter(torch.tensor([3 + 4j, 12j], dtype=torch.complex64))
    assert weight_norms(net) == {"total": 13.0, "Module": 13.0}


class Root(nn.Module):
    """A root with parameters of its own, as a LightningModule may have."""

    def __init__(self):
        super().__init__()
        self.temperature = nn.Parameter(torch.tensor(-2.0))
        self.scales = nn.ParameterList([nn.Parameter(torch.ones(9))])
        self.register_parameter("absent", None)
        self.net = mlp()

    def forward(self, x):
        return self.net(x)


def test_parameters_of_the_root_are_under_its_class():
    root = Root()
    found = weight_norms(root)
    assert list(found) == ["total", "Root", "scales", "net.0", "net.2.0", "net.2.1"]
    assert (found["Root"], found["scales"]) == (2.0, 3.0)
    assert found["total"] == pytest.approx(norm(*root.parameters()))


def test_compiled_networks_and_parts_have_their_own_names():
    root = Root()
    eager = weight_norms(root)
    assert weight_norms(torch.compile(root, backend="eager")) == eager
    root.net = torch.compile(root.net, backend="eager")
    assert weight_norms(root) == eager


def test_a_network_without_weights_is_zero():
    assert weight_norms(nn.ReLU()) == {"total": 0.0}


def test_nothing_is_attached_to_the_weights():
    net = mlp()
    net(torch.randn(3, 4)).sum().backward()
    grads, versions = [p.grad.clone() for p in net.parameters()], [p._version for p in net.parameters()]
    assert all(type(value) is float for value in weight_norms(net).values())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert [p._version for p in net.parameters()] == versions


def test_not_finite_is_not_hidden():
    net = mlp()
    net[0].weight.data[0, 0] = math.nan
    found = weight_norms(net)
    assert math.isnan(found["total"])
    assert math.isnan(found["0"])
    assert found["2.1"] == pytest.approx(norm(net[2][1].weight))
