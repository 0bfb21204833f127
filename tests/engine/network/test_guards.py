"""Guards against division by zero are no layer; bounds that do more are."""

import pytest
import torch
import torch.nn.functional as F
from networks import Call
from torch import nn

from lc_callback.functional import feature_ranks, local_complexity


def norm(z, p=2.0):
    return torch.linalg.vector_norm(z, p, -1, keepdim=True)


EPS = nn.Parameter(torch.tensor([1e-8], dtype=torch.float64))
GUARDS = {
    "normalize": F.normalize,
    "normalize_l1": lambda z: F.normalize(z, p=1, dim=-1, eps=1e-6),
    "clamp": lambda z: z / norm(z).clamp(min=1e-5),
    "in_place": lambda z: z / norm(z).clamp_min_(1e-8),
    "maximum": lambda z: z / torch.maximum(norm(z), EPS),
    "eps_first": lambda z: z / torch.fmax(EPS, norm(z)),
    "tensor_bound": lambda z: z / norm(z).clamp_min(EPS),
    "reciprocal": lambda z: z * norm(z).clamp(min=1e-8).reciprocal(),
    "rsqrt": lambda z: z * z.pow(2).sum(-1, keepdim=True).clamp(min=1e-8).rsqrt(),
    "power": lambda z: z * z.pow(2).sum(-1, keepdim=True).clamp(min=1e-8) ** -0.5,
    "sqrt": lambda z: z / z.pow(2).sum(-1, keepdim=True).clamp(min=1e-8).sqrt(),
    "rearranged": lambda z: z / norm(z)[:, 0].clamp(min=1e-8).unsqueeze(1).expand_as(z),
    "cosine": lambda z: F.cosine_similarity(z[:, None], z.new_ones(3, 16), dim=-1),
    "one_over": lambda z: z * (1 / norm(z).clamp(min=1e-8)),
    "divisor_twice": lambda z: (lambda n: torch.cat([z / n, (z + 1) / n], 1))(norm(z).clamp(min=1e-8)),
    "sinkhorn": lambda z: F.normalize(F.normalize(z.exp().view(-1, 4, 4), p=1, dim=-2), p=1, dim=-1),
}
LAYERS = {
    "large": lambda z: z / norm(z).clamp(min=1.0),
    "negative": lambda z: z / z.clamp(min=-1e-6),
    "zero": lambda z: z / (z.clamp(min=0) + 1),
    "read_elsewhere": lambda z: (lambda n: z / n + n)(norm(z).clamp(min=1e-8)),
    "divided": lambda z: z.clamp(min=1e-8) / (1 + norm(z)),
    "by_itself": lambda z: (lambda n: n / n.sum(-1, keepdim=True))(z.clamp(min=1e-8)),
    "two_sided": lambda z: z / norm(z).clamp(min=1e-8, max=1.0),
    "power": lambda z: z.clamp(min=1e-6).pow(3),
    "from_above": lambda z: z / z.clamp(max=1e-6),
}


def net(function):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), Call(function)).double()


def draw(n=20):
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("name", GUARDS)
def test_a_guard_is_no_layer(name, method):
    lc = local_complexity(net(GUARDS[name]), draw(), radius=0.1, n_directions=6, method=method)
    assert lc.layer_names == ["1"]
    assert lc.counts.sum() > 3
    assert {*feature_ranks(net(GUARDS[name]), draw())} == {"1"}


@pytest.mark.parametrize("name", LAYERS)
def test_what_is_more_than_a_guard_is_a_layer(name):
    lc = local_complexity(net(LAYERS[name]), draw(), radius=0.1, n_directions=6)
    assert lc.layer_names == ["1", "2"]


def test_a_guard_that_is_returned_is_a_layer():
    class Net(nn.Module):
        def forward(self, x):
            length = norm(x).clamp(min=1e-6)
            return torch.relu(x / length), length

    assert len(local_complexity(Net(), draw(), radius=0.1, n_directions=6).layer_names) == 2


def test_layers_behind_a_guard_are_counted_as_before():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), Call(F.normalize), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2)).double()
    x = draw()
    frame = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))[0]
    lc = local_complexity(model, x, radius=0.3, directions=frame)
    vertices = x[:, None] + 0.3 * torch.cat([frame, -frame])
    signs = model[:3](vertices.flatten(0, 1)).unflatten(0, (20, 16)) > 0
    assert lc.counts[:, 0].tolist() == (signs.any(1) & ~signs.all(1)).sum(1).tolist()
