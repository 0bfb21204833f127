"""Recurrent modules of ReLUs are piecewise affine; all others are not."""

import numpy as np
import pytest
import torch
from torch import nn

from lc_callback.functional import local_complexity, slice_partition


class Recurrent(nn.Module):
    def __init__(self, kind=nn.RNN, **named):
        super().__init__()
        torch.manual_seed(0)
        self.rnn, self.last = kind(2, 5, **named), nn.LazyLinear(2)
        self.first = named.get("batch_first", False)
        self(torch.zeros(1, 4, 2))

    def forward(self, x):
        out = self.rnn(x if self.first else x.transpose(0, 1))[0]
        return self.last(out[:, -1] if self.first else out[-1])


VARIATIONS = [
    {"batch_first": True},
    {},
    {"batch_first": True, "num_layers": 2},
    {"bidirectional": True},
    {"batch_first": True, "bias": False},
    {"batch_first": True, "num_layers": 2, "bidirectional": True, "dropout": 0.5},
]


def draw(n=3):
    return torch.randn(n, 4, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("named", VARIATIONS)
def test_a_slice_of_relus_is_cut_into_its_affine_pieces(named):
    net = Recurrent(nonlinearity="relu", **named).double().eval()
    found = slice_partition(net, draw(), extent=4.0)
    assert found.layer_names == ["rnn"]
    assert found.n_regions > 8
    largest = np.argsort(found.areas)[-8:]
    for region in largest:  # the network at the middle is the mean of its corners
        polygon = found.polygons[region]
        corners = net(found.to_input(polygon)).mean(0)
        torch.testing.assert_close(net(found.to_input(polygon.mean(0, keepdims=True)))[0], corners)
    loose = slice_partition(net, draw(), extent=4.0, slopes=True).slope_norm
    assert len(np.unique(loose.round(9))) > 4


@pytest.mark.parametrize("named", VARIATIONS)
def test_the_linear_method_agrees_with_the_vertices(named):
    net, x = Recurrent(nonlinearity="relu", **named).double().eval(), draw(50)
    linear, vertices = (
        local_complexity(net, x, radius=1e-3, n_directions=8, method=method) for method in ("linear", "vertices")
    )
    assert torch.equal(linear.counts, vertices.counts)


@pytest.mark.parametrize(("kind", "name"), [(nn.LSTM, "LSTM"), (nn.GRU, "GRU"), (nn.RNN, "RNN")])
def test_smooth_ones_are_named(kind, name):
    with pytest.raises(ValueError, match=f"{name}' at 'rnn' is not piecewise affine"):
        slice_partition(Recurrent(kind).double(), draw())
