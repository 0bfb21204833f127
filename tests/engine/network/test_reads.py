"""Values that the model's Python code reads: of the inputs they are warned of, constants are not."""

import warnings

import pytest
import torch
from torch import nn

from lc_callback.functional import local_complexity


class Reading(nn.Module):
    """Multiplies by 2 where what it reads says so."""

    def __init__(self, read):
        super().__init__()
        self.a, self.b, self.read = nn.Linear(12, 32), nn.Linear(32, 2), read
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x, *others):
        return self.b(torch.relu((2 if self.read(self, x, *others) else 1) * self.a(x)))


class Tokens(nn.Module):
    """A causal mask, left out where positions say so: as models of language do it."""

    def __init__(self, read):
        super().__init__()
        self.embedding, self.a, self.read = nn.Embedding(9, 6), nn.Linear(6, 20), read

    def forward(self, tokens):
        x = self.embedding(tokens)
        mask = None if self.read(tokens, x) else torch.ones(4, 4).tril()
        return torch.relu(self.a(x if mask is None else mask @ x)).sum(1)


def packed(tokens, x):
    positions = torch.arange(x.shape[1]).unsqueeze(0)
    return bool(((positions[:, 1:] - positions[:, :-1] != 1).cumsum(-1)[:, -1] == 0).all())


def written(net, x):
    net.mean.copy_(x.mean(0))
    return net.mean.sum() > 0


def written_together(net, x):
    torch._foreach_add_([net.mean], [x.mean(0)])
    return net.mean.sum() > 0


CONSTANT = {
    "parameter": lambda net, x: net.a.weight.sum() > 0,
    "buffer": lambda net, x: net.scale.item() > 0,
    "list": lambda net, x: net.mean.tolist()[0] > 0,
    "array": lambda net, x: net.mean.numpy().sum() > 0,
    "positions": lambda net, x: (torch.arange(x.shape[1]) > 3).all(),
    "shape": lambda net, x: torch.tensor(x.shape[1]) > 3,
    "zeros_like": lambda net, x: torch.zeros_like(x).any(),
    "equal": lambda net, x: torch.equal(net.mean, torch.zeros(12)),
}
OF_INPUTS = {
    "sum": lambda net, x: x.sum() > 0,
    "item": lambda net, x: x.mean().item() > 0,
    "view": lambda net, x: bool(x.view(-1)[0] > 0),
    "hidden": lambda net, x: net.a(x).mean() > 0,
    "list": lambda net, x: x.tolist()[0][0] > 0,
    "array": lambda net, x: x.numpy().mean() > 0,
    "integers": lambda net, x: (x > 0).long().sum() > 3,
    "equal": lambda net, x: torch.equal(x, net.mean.expand_as(x)),
    "part_of_a_constant": lambda net, x: torch.zeros_like(x).add_(x).any(),
    "written": written,
    "written_together": written_together,
    "drawn": lambda net, x: torch.rand(()) > 0.5,
    "from_python": lambda net, x: torch.tensor(x.tolist()).sum() > 0,
}


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("name", CONSTANT)
def test_constants_may_be_read(name, method):
    torch.manual_seed(0)
    net, x = Reading(CONSTANT[name]).eval(), torch.randn(8, 12)
    settings = {"radius": 0.1, "n_directions": 6, "method": method}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc = local_complexity(net, x, **settings)
    plain = local_complexity(nn.Sequential(net.a, nn.ReLU()), x, **settings)  # a factor moves no kink
    assert torch.equal(lc.counts, plain.counts)
    assert lc.total.sum() > 0


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("name", OF_INPUTS)
def test_values_of_the_inputs_that_are_read_are_warned_of(name, method):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="looks at values in Python"):
        local_complexity(Reading(OF_INPUTS[name]), torch.randn(8, 12), radius=0.1, n_directions=6, method=method)


def test_held_inputs_that_are_read_are_warned_of():
    torch.manual_seed(0)
    net = Reading(lambda net, x, mask: mask.all())
    with pytest.warns(UserWarning, match="looks at values in Python"):
        local_complexity(net, (torch.randn(8, 12), torch.ones(8, 12, dtype=torch.bool)), radius=0.1, n_directions=6)


@pytest.mark.parametrize("at", [None, "embedding"])
def test_positions_of_tokens_may_be_read(at):
    torch.manual_seed(0)
    tokens = torch.randint(9, (8, 4))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc = local_complexity(Tokens(packed), tokens, radius=0.3, n_directions=6, at=at)
    assert lc.total.sum() > 0


@pytest.mark.parametrize("read", [lambda tokens, x: (tokens == 3).any(), lambda tokens, x: x.sum() > 0])
def test_tokens_and_what_they_are_embedded_to_are_warned_of(read):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="looks at values in Python"):
        local_complexity(Tokens(read), torch.randint(9, (8, 4)), radius=0.3, n_directions=6)
