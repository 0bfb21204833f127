import copy

import pytest
import torch
import torch.nn.functional as F
from networks import KINDS, Call, Residual, made, seq
from torch import nn

from lc_callback.engine.chunks import Budget
from lc_callback.engine.counting import zonotope
from lc_callback.engine.network.recorder import Recorder
from lc_callback.functional import cross_polytope_frame, local_complexity, slice_partition


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


RADII = [0.02, 0.2, 1.0]


def switching(net, points, layer_names):
    """How many units of each layer are above a kink at some of these points and not above it at others."""
    counts = dict.fromkeys(layer_names, 0)

    def count(site, kinks):
        if site.path in counts:
            sides = [z.amax(0) > kink for z, kink in kinks], [z.amin(0) <= kink for z, kink in kinks]
            counts[site.path] += int(torch.stack([a & b for a, b in zip(*sides, strict=True)]).any(0).sum())

    with torch.no_grad(), Recorder(net, count):
        net(points)
    return torch.tensor([counts[name] for name in layer_names])


def in_hull(x, frame, radius, n, generator):
    """Points of the hull of the frame, its vertices among them."""
    shares = torch.distributions.Dirichlet(torch.ones(len(frame), dtype=torch.float64)).sample((n,))
    shares = shares * torch.randint(0, 2, shares.shape, generator=generator).mul(2).sub(1)
    shares[: n // 2] *= torch.rand(n // 2, 1, generator=generator, dtype=torch.float64)
    few = torch.randint(0, len(frame), (n // 4, 2), generator=generator)  # between two vertices
    rows = torch.arange(n // 4)
    shares[: n // 4] = 0
    shares[rows, few[:, 0]] = torch.rand(n // 4, generator=generator, dtype=torch.float64)
    shares[rows, few[:, 1]] += 1 - shares[rows, few[:, 0]]
    corners = torch.eye(len(frame), dtype=torch.float64)
    moves = radius * torch.cat([shares, corners, -corners]) @ frame.flatten(1)
    return x + moves.view(-1, *x.shape)


@pytest.mark.parametrize("part", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in range(1, 6))])
@pytest.mark.parametrize("kind", KINDS)
def test_random_search_does_not_leave_the_bracket(kind, part):
    """1,008 networks and points."""
    for seed in range(1000 + 24 * part, 1024 + 24 * part):
        net, points = made(kind, seed)
        x, radius = points[0], RADII[seed % 3]
        n = min(1 + seed % 7, x.numel())
        lc = local_complexity(net, x[None], radius=radius, n_directions=n, bracket=True, seed=seed)
        frame = cross_polytope_frame(tuple(x.shape), n, seed=seed, dtype=torch.float64)
        found = switching(net, in_hull(x, frame, radius, 400, torch.Generator().manual_seed(seed)), lc.layer_names)
        assert (lc.counts[0] <= found).all()
        assert (found <= lc.upper[0]).all()


@pytest.mark.slow
@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_count_of_two_directions_is_inside(kind, radius):
    lower = exact = upper = 0
    for seed in range(30):
        net, points = made(kind, seed)
        x = points[0]
        lc = local_complexity(net, x[None], radius=radius, n_directions=2, bracket=True)
        one, other = cross_polytope_frame(tuple(x.shape), 2, seed=0, dtype=torch.float64)
        sides, half = torch.stack([one + other, one - other]) / 2**0.5, radius / 2**0.5
        found = slice_partition(net, torch.stack([x, x + sides[0], x + sides[1]]), extent=(-half, half, -half, half))
        pools = [isinstance(net.get_submodule(name), nn.MaxPool2d) for name in found.layer_names]
        counts = torch.from_numpy(found.counts)[~torch.tensor(pools)]
        assert (lc.counts[0] <= counts).all()
        assert (counts <= lc.upper[0]).all()
        lower, exact, upper = lower + int(lc.total), exact + int(counts.sum()), upper + int(lc.upper.sum())
    assert lower <= exact <= upper <= 1.6 * exact + 1  # it says something


@pytest.mark.parametrize("n_directions", [1, 5, 20])
def test_the_first_layer_is_exact(n_directions):
    torch.manual_seed(0)
    net = seq(nn.Linear(20, 100), nn.ReLU(), nn.Linear(100, 2))
    lc = local_complexity(net, torch.randn(10, 20), radius=[0.1, 1.0, 10.0], n_directions=n_directions, bracket=True)
    assert lc.upper.shape == lc.counts.shape == (3, 10, 1)
    assert torch.equal(lc.upper, lc.counts)
    assert lc.total.sum() > 0
    assert lc.dtype is torch.float64


def test_a_unit_between_the_vertices():
    """|x + y - 1| - 1/2 seen from the origin: negative at (1/2, 1/2) only."""
    net = seq(nn.Linear(2, 1), Call(torch.abs), nn.Linear(1, 1), nn.ReLU())
    with torch.no_grad():
        for layer, weight, bias in ((net[0], [[1.0, -1.0]], -0.25), (net[2], [[1.0]], -0.5)):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.fill_(bias)
    lc = local_complexity(net, torch.zeros(1, 2), radius=1.0, directions=torch.eye(2) * 0.5**0.5, bracket=True)
    assert lc.counts.tolist() == [[1, 1]]
    assert lc.upper.tolist() == [[1, 1]]
    net[2].bias.data.fill_(-0.05)  # |d - 1/4| > 0.05 at the vertices d = +-0.7 and not between them
    lc = local_complexity(net, torch.zeros(1, 2), radius=1.0, directions=torch.eye(2) * 0.5**0.5, bracket=True)
    assert lc.counts.tolist() == [[1, 0]]
    assert lc.upper.tolist() == [[1, 1]]


def test_max_pooling_windows_are_bounded_too():
    torch.manual_seed(0)
    net = seq(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, 8), nn.ReLU())
    x = torch.randn(20, 1, 6, 6)
    lc = local_complexity(net, x, radius=0.3, n_directions=10, max_pool=True, bracket=True)
    assert lc.layer_names == ["1", "4"]
    assert (lc.counts <= lc.upper).all()
    assert (lc.counts < lc.upper).any()
    without = local_complexity(net, x, radius=0.3, n_directions=10, bracket=True)
    assert without.layer_names == ["4"]
    assert torch.equal(without.upper, lc.upper[:, 1:])


def test_max_pooling_may_rise_by_all_its_lead():
    """max(x, -x) - x is 0 or -2x, at -0.9 it is 1.8."""
    net = seq(Call(lambda x: F.max_pool1d(torch.cat([x, -x], 1)[:, None], 2)[:, 0] - x - 1.5), nn.ReLU())
    lc = local_complexity(net, torch.tensor([[0.1]]), radius=1.0, n_directions=1, bracket=True)
    assert lc.counts.tolist() == lc.upper.tolist() == [[1]]
    closer = local_complexity(net, torch.tensor([[0.1]]), radius=0.8, n_directions=1, bracket=True)
    assert closer.counts.tolist() == closer.upper.tolist() == [[0]]


def test_units_that_are_always_zero_are_not_counted():
    net = seq(nn.Linear(3, 4), nn.ReLU())
    with torch.no_grad():
        net[0].weight[1:].zero_()
        net[0].bias.zero_()
    lc = local_complexity(net, torch.zeros(1, 3), radius=0.1, n_directions=3, bracket=True)
    assert lc.counts.tolist() == lc.upper.tolist() == [[1]]


# Memory


def wide():
    torch.manual_seed(3)
    net = seq(nn.Linear(6, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 50), nn.ReLU())
    return net, torch.randn(4, 6)


def test_the_number_of_symbols_at_first_does_not_matter(monkeypatch):
    net, x = wide()
    expected = local_complexity(net, x, radius=0.5, n_directions=3, bracket=True)
    monkeypatch.setattr(zonotope, "_SYMBOLS", 2)
    assert torch.equal(local_complexity(net, x, radius=0.5, n_directions=3, bracket=True).upper, expected.upper)
    assert expected.upper.sum(1).max() > 40


def test_all_units_are_counted_after_the_last_symbol(monkeypatch):
    net, x = wide()
    expected = local_complexity(net, x, radius=0.5, n_directions=3, bracket=True)
    monkeypatch.setattr(zonotope, "_SYMBOLS", 4)
    monkeypatch.setattr(zonotope, "BOUNDS", Budget(cpu=0, cuda=0))
    found = local_complexity(net, x, radius=0.5, n_directions=3, bracket=True)
    assert torch.equal(found.upper[:, 0], expected.upper[:, 0])
    assert (expected.upper[:, 0] > 4).all()
    assert found.upper[:, 1:].tolist() == [[80, 50]] * 4


# Awkward models


class Awkward(nn.Module):
    """A reused non-linearity that works in place, with the batch on another axis, a clamp and a minimum."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(3, 5), nn.Linear(5, 5), nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.relu(self.first(x).T.unsqueeze(0))
        again = self.second(self.relu(hidden - 0.3)[0].T).clamp_(max=0.7)
        return torch.minimum(again, x.sum(1, keepdim=True)).chunk(2, 1)[0]


class Plain(nn.Module):
    """The same of modules that are used once."""

    def __init__(self, other):
        super().__init__()
        self.first, self.second = other.first, other.second
        self.one, self.two, self.three, self.four = (nn.ReLU() for _ in range(4))

    def forward(self, x):
        again = self.second(self.two(self.one(self.first(x)) - 0.3))
        again = 0.7 - self.three(0.7 - again)
        return x.sum(1, keepdim=True) - self.four(x.sum(1, keepdim=True) - again)


def test_in_place_reused_and_transposed():
    torch.manual_seed(1)
    net, x = Awkward(), torch.randn(20, 3)
    lc = local_complexity(net, x, radius=0.4, n_directions=3, bracket=True)
    assert torch.equal(lc.upper, local_complexity(Plain(net), x, radius=0.4, n_directions=3, bracket=True).upper)
    assert (lc.upper.sum(0) > 0).all()
    assert (lc.counts <= lc.upper).all()
    assert (lc.counts < lc.upper).any()


def test_a_clamp_between_tensors():
    class Between(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 6)
            self.low, self.high = nn.Parameter(torch.linspace(-1, 0, 6)), nn.Parameter(torch.linspace(0, 1, 6))

        def forward(self, x):
            return F.relu(self.last(torch.clamp(self.first(x), self.low, self.high)))

    torch.manual_seed(0)
    net, x = Between(), torch.randn(10, 4)
    lc = local_complexity(net, x, radius=0.5, n_directions=4, bracket=True)
    assert (lc.counts <= lc.upper).all()
    assert lc.counts.sum() >= 20
    assert torch.equal(lc.counts[:, 0], lc.upper[:, 0])


def test_tokens_move_behind_the_embedding():
    torch.manual_seed(0)
    net = seq(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())
    lc = local_complexity(net, torch.randint(0, 7, (6, 3)), radius=1.0, n_directions=4, bracket=True)
    assert lc.at == "0"
    assert torch.equal(lc.counts[:, 0], lc.upper[:, 0])
    assert (lc.counts <= lc.upper).all()
    assert lc.counts.sum() > 0


def test_compiled_models_and_forward_fn():
    torch.manual_seed(0)
    net, x = seq(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU()), torch.randn(5, 3)
    expected = local_complexity(net, x, radius=0.5, n_directions=3, bracket=True).upper
    compiled = torch.compile(copy.deepcopy(net), backend="eager")
    compiled(x)
    assert torch.equal(local_complexity(compiled, x, radius=0.5, n_directions=3, bracket=True).upper, expected)
    found = local_complexity(
        net, {"a": x}, radius=0.5, n_directions=3, bracket=True, forward_fn=lambda m, a: {"logits": m(a)}
    )
    assert torch.equal(found.upper, expected)


def test_what_is_not_finite_is_marked():
    net = seq(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU())
    net[2].weight.data[0, 0] = float("nan")
    net[0].bias.data[0] = 5.0
    lc = local_complexity(net, torch.zeros(1, 3), radius=0.5, n_directions=3, bracket=True)
    assert lc.upper[0, 1] == lc.counts[0, 1] == -1
    assert lc.upper[0, 0] >= 0


def test_the_model_is_left_as_it_was():
    net = seq(nn.Linear(3, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Dropout(0.5), nn.Linear(9, 9)).train()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    local_complexity(net, torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), n_directions=3, bracket=True)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(module.training for module in net.modules())
    assert net[0].weight.dtype is torch.float32


# What has no bracket

with torch.random.fork_rng():
    torch.manual_seed(0)
    BENT = {
        "gelu": (seq(nn.Linear(3, 5), nn.GELU(), nn.Linear(5, 5), nn.ReLU()), "'gelu' at '1' is not piecewise affine"),
        "jump": (seq(nn.Linear(3, 5), nn.Hardshrink(), nn.Linear(5, 5), nn.ReLU()), "'hardshrink' at '1' jumps"),
        "layer norm": (
            seq(nn.Linear(3, 5), nn.LayerNorm(5), nn.ReLU()),
            "before 'relu' at '2' something else is nonlinear",
        ),
        "softmax": (seq(nn.Linear(3, 5), nn.ReLU(), nn.Softmax(1), nn.ReLU()), "before 'relu' at '3' something else"),
        "product": (
            seq(nn.Linear(3, 5), Call(lambda x: x * x), nn.ReLU()),
            "before 'relu' at '2' something else is nonlinear",
        ),
        "residual product": (
            seq(nn.Linear(3, 5), Residual(Call(torch.square), nn.ReLU())),
            "something else is nonlinear",
        ),
        "clamp": (
            seq(nn.Linear(3, 5), Call(lambda x: x.clamp(max=x.mean(1, keepdim=True)))),
            "something else is nonlinear",
        ),
    }


@pytest.mark.parametrize("radius", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("case", BENT)
def test_what_is_not_piecewise_affine(case, radius):
    net, match = BENT[case]
    torch.manual_seed(0)
    with pytest.raises(ValueError, match=match):
        local_complexity(net, torch.randn(2, 3), radius=radius, n_directions=3, bracket=True)


def test_outputs_of_modules_have_no_bracket():
    with pytest.raises(ValueError, match="`bracket=True` bounds the pre-activations"):
        local_complexity(seq(nn.Linear(3, 5), nn.ReLU()), torch.randn(2, 3), layers=["0"], bracket=True)


def test_without_bracket_there_is_no_upper_bound():
    assert local_complexity(seq(nn.Linear(3, 5), nn.ReLU()), torch.randn(2, 3), n_directions=3).upper is None
