"""Models that put the points on other axes than the first: counts by rules, by small steps and by vertices are one."""

import pytest
import torch
import torch.nn.functional as F
from networks import counted, draw, seq
from torch import nn

from lc_callback.engine.counting.critical_radius import CriticalRadii
from lc_callback.functional import local_complexity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# Units that are 0 because others are inactive

PLACES = {
    "first": (lambda z: z, lambda z: z),
    "steps first": (lambda z: z.transpose(0, 1), lambda z: z.transpose(0, 1)),
    "last": (lambda z: z.permute(1, 2, 0), lambda z: z.permute(2, 0, 1)),
    "folded": (lambda z: z.reshape(-1, 8), lambda z: z.view(-1, 5, 8)),
    "folded, steps first": (
        lambda z: z.transpose(0, 1).reshape(-1, 8),
        lambda z: z.view(5, -1, 8).transpose(0, 1),
    ),
    "folded, last": (lambda z: z.permute(2, 1, 0).flatten(1), lambda z: z.unflatten(1, (5, -1)).permute(2, 1, 0)),
}
ACTS = {"relu": F.relu, "clamp": lambda z: z.clamp(min=0), "threshold": lambda z: F.threshold(z, 0, 0)}


class Elsewhere(nn.Module):
    """A non-linearity that sees the points in another place."""

    def __init__(self, place, act):
        super().__init__()
        (self.there, self.back), self.act = PLACES[place], ACTS[act]

    def forward(self, z):
        return self.back(self.act(self.there(z)))


class ZeroBlock(nn.Module):
    """The identity at initialisation."""

    def __init__(self, act):
        super().__init__()
        self.inner, self.outer, self.act = nn.Linear(8, 8), nn.Linear(8, 8), act
        nn.init.zeros_(self.outer.weight), nn.init.zeros_(self.outer.bias)

    def forward(self, z):
        return self.act(z + self.outer(self.act(self.inner(z))))


def blocks(act):
    return seq(nn.Linear(3, 8), act, *[ZeroBlock(act) for _ in range(5)], nn.Linear(8, 8), act)


def repeated(act):
    return seq(nn.Linear(3, 8), *[act] * 8, nn.Linear(8, 8), act)


def dying(act):
    """At points near 0 no unit of the first layer is active, and all others are 0."""
    net = seq(nn.Linear(3, 8), act, *[layer for _ in range(2) for layer in (nn.Linear(8, 8, bias=False), act)])
    nn.init.constant_(net[0].bias, -0.3)
    return net


@pytest.mark.parametrize("make", [blocks, *(pytest.param(make, marks=pytest.mark.slow) for make in (repeated, dying))])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("place", PLACES)
def test_units_that_are_zero_because_of_others(place, act, make, monkeypatch):
    net, x = make(Elsewhere(place, act)).double().eval(), draw(20, 5, 3)
    x[-4:] *= 0.02
    found, counter = counted(net, x, "linear")
    assert counter.route.uses_derivative_rules == (act == "relu" or place == "first"), counter.route.explain()
    if act != "relu" and place != "first":  # these compare the values of a row
        assert "no rules: `" in counter.route.explain()
        assert counter.route.explain().endswith("has no derivative rule where samples are not rows of the first axis")
    monkeypatch.setattr(CriticalRadii, "has_rules", False)
    steps, plain = counted(net, x, "linear")
    assert not plain.route.uses_derivative_rules
    assert torch.equal(found.counts, steps.counts)
    elsewhere = counted(net, x)[0].counts.sum((1, 2))
    for module in net.modules():
        if isinstance(module, Elsewhere):
            module.there, module.back = PLACES["first"]
    assert torch.equal(found.counts, counted(net, x, "linear")[0].counts)
    assert torch.equal(elsewhere, counted(net, x)[0].counts.sum((1, 2)))
    assert found.counts.sum() > 200


# Everything else that may be done with the axis of the points


class Between(nn.Module):
    """ReLU layers over steps `(T, N, d)`, with something done to them on the way."""

    def __init__(self, within, width=8, module=None):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(3, 8), nn.Linear(width, 8), nn.Linear(8, 4)
        self.within, self.module = within, module

    def forward(self, x):
        z = F.relu(self.first(x.transpose(0, 1)))
        z = self.within(z) if self.module is None else self.within(z, self.module)
        return F.relu(self.third(F.relu(self.second(z))))


MIX = draw(5, 5, seed=3)
TURN = draw(8, 8, seed=4)
SOME = torch.tensor([4, 0, 2])


def grouped(z, conv):
    """The points as groups of channels."""
    steps, n, d = z.shape
    z = z.permute(1, 2, 0).reshape(1, n * d, steps)
    z = F.conv1d(z, conv.weight.repeat(n, 1, 1), conv.bias.repeat(n), padding=1, groups=n)
    return z.view(n, d, steps).permute(2, 0, 1)


RULES = {
    "movedim": lambda: Between(lambda z: z.movedim((0, 1), (1, 2)).movedim(0, 2)),
    "grouped convolution": lambda: Between(grouped, module=nn.Conv1d(8, 8, 3)),
    "convolution over steps": lambda: Between(
        lambda z, conv: conv(z.permute(1, 2, 0)).permute(2, 0, 1), module=nn.Conv1d(8, 8, 3, padding=1)
    ),
    "norm": lambda: Between(lambda z, norm: norm(z.permute(1, 2, 0)).permute(2, 0, 1), module=nn.BatchNorm1d(8)),
    "squeeze one by one": lambda: Between(lambda z: z.unsqueeze(1).unsqueeze(-1).squeeze(1).squeeze(-1)),
    "squeeze all": lambda: Between(lambda z: z[None, :, None].squeeze()),
    "flatten in the middle": lambda: Between(lambda z: z.flatten(0, 1)),
    "flatten and back": lambda: Between(lambda z: z.flatten(0, 1).unflatten(0, (5, -1)).transpose(0, 1)),
    "flatten behind steps": lambda: Between(lambda z: z.flatten(1).unflatten(1, (-1, 8))),
    "flatten units first": lambda: Between(lambda z: z.permute(2, 1, 0).flatten(0, 1).view(8, -1, 5).permute(1, 2, 0)),
    "halves of the points": lambda: Between(lambda z: torch.cat([z[:, : z.shape[1] // 2], z[:, z.shape[1] // 2 :]], 1)),
    "points backwards and back": lambda: Between(lambda z: (2 * z.flip(1)).flip(1)),
    "points padded and cut": lambda: Between(lambda z: F.pad(z, (0, 0, 1, 1))[:, 1:-1]),
    "mean of units": lambda: Between(lambda z: F.avg_pool1d(z, 2), width=4),
    "mean of steps": lambda: Between(lambda z: F.avg_pool1d(z.permute(1, 2, 0), 2).permute(2, 0, 1)),
    "adaptive mean": lambda: Between(lambda z: F.adaptive_avg_pool2d(z, (z.shape[1], 4)), width=4),
}
STEPS = {
    "LSTM": lambda: Between(lambda z, module: module(z)[0], module=nn.LSTM(8, 8)),
    "GRU": lambda: Between(lambda z, module: module(z)[0], module=nn.GRU(8, 8)),
    "RNN": lambda: Between(lambda z, module: module(z)[0], module=nn.RNN(8, 8, nonlinearity="relu")),
    "unfold": lambda: Between(lambda z: z.unfold(0, 2, 1).flatten(2), width=16),
    "unfold, points first": lambda: Between(lambda z: z.transpose(0, 1).unfold(1, 2, 1).flatten(2), width=16),
    "unfold images": lambda: Between(
        lambda z: F.unfold(z.permute(1, 2, 0)[:, :, None], (1, 2)).permute(2, 0, 1), width=16
    ),
    "einsum, steps": lambda: Between(lambda z: torch.einsum("tnd,ts->snd", z, MIX)),
    "einsum, points first": lambda: Between(lambda z: torch.einsum("de,tnd->nte", TURN, z)),
    "einsum, points in the middle": lambda: Between(lambda z: torch.einsum("tnd,ts->dns", z, MIX).permute(2, 1, 0)),
    "einsum of two": lambda: Between(lambda z: torch.einsum("tnd,tne->tnde", z, z).flatten(2), width=64),
    "tensordot": lambda: Between(lambda z: torch.tensordot(MIX, z, dims=([0], [0]))),
    "product from the left": lambda: Between(lambda z: (MIX @ z.transpose(0, 1)).transpose(0, 1)),
    "chunks of steps": lambda: Between(lambda z: torch.cat(z.chunk(5)[::-1])),
    "stack of steps": lambda: Between(lambda z: torch.stack(z.unbind()[::-1])),
    "stack of points": lambda: Between(lambda z: torch.stack(z.unbind(1), 1)),
    "split into points": lambda: Between(lambda z: torch.cat(z.split(1, 1), 1)),
    "stack in front": lambda: Between(lambda z: torch.stack([z, 2 * z]).sum(0)),
    "roll of steps": lambda: Between(lambda z: z.roll(1, 0)),
    "roll of points and back": lambda: Between(lambda z: z.roll(1, 1).roll(-1, 1)),
    "sum so far": lambda: Between(lambda z: z.cumsum(0)),
    "softmax over steps": lambda: Between(lambda z: z.softmax(0)),
    "some steps": lambda: Between(lambda z: z[SOME]),
    "index of steps": lambda: Between(lambda z: z.index_select(0, SOME)),
    "gather": lambda: Between(lambda z: z.gather(0, SOME[:, None, None].expand(3, *z.shape[1:]))),
    "points by number": lambda: Between(lambda z: z[:, torch.arange(z.shape[1])]),
    "points twice": lambda: Between(lambda z: z.repeat(1, 2, 1).view(5, 2, -1, 8).sum(1)),
    "each point twice": lambda: Between(lambda z: z.repeat_interleave(2, 1).view(5, -1, 2, 8).sum(2)),
    "pooling of units": lambda: Between(lambda z: F.max_pool1d(z, 2), width=4),
}


@pytest.mark.filterwarnings("error:.*depends on the other points")
@pytest.mark.parametrize("name", [*RULES, *STEPS])
def test_the_linear_method_counts_what_the_vertices_count(name, monkeypatch):
    net, x = {**RULES, **STEPS}[name]().double().eval(), draw(100, 5, 3)
    settings = {"radius": [1e-3, 1e-2], "n_directions": 4}
    linear = local_complexity(net, x, method="linear", **settings)
    assert ("derivatives by rules" in linear.route) == (name in RULES), linear.route
    monkeypatch.setattr(CriticalRadii, "has_rules", False)
    assert torch.equal(linear.counts, local_complexity(net, x, method="linear", **settings).counts)
    vertices = local_complexity(net, x, **settings)
    assert vertices.counts[1].sum() > 10
    assert (linear.counts - vertices.counts).abs().sum() <= 3  # a second unit switches on the way


IN_CHUNKS = {
    **{name: {**RULES, **STEPS}[name] for name in ("squeeze all", "grouped convolution", "stack of points")},
    "pooling of units": lambda: Between(lambda z: F.max_pool1d(z, 2), width=4),  # 5 steps, and 5 samples of a point
    "pooling of images": lambda: Between(lambda z: F.max_pool2d(z.unflatten(2, (2, 4)), 2).flatten(2), width=2),
    "pooling of units, chosen": lambda: Between(
        lambda z: F.adaptive_max_pool2d(z.unflatten(2, (2, 4)), 2).flatten(2), width=4
    ),
}


@pytest.mark.parametrize("has_rules", [True, False])
@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("name", IN_CHUNKS)
def test_chunks_change_no_count(name, method, has_rules, monkeypatch):
    monkeypatch.setattr(CriticalRadii, "has_rules", has_rules)
    net, x = IN_CHUNKS[name]().double().eval(), draw(13, 5, 3)
    settings = {"radius": [0.01, 0.2], "n_directions": 4, "method": method}
    whole = local_complexity(net, x, **settings).counts
    assert whole.sum() > 10
    for chunk_size in (1, 5, 7):  # parts of 1, 5 and 7 samples, and what remains
        assert torch.equal(local_complexity(net, x, chunk_size=chunk_size, **settings).counts, whole)
