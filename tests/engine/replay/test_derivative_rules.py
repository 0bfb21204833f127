"""Derivatives taken operation by operation against steps along each direction."""

import pytest
import torch
import torch.nn.functional as F
from networks import NETS, TOKENS, Call, counted, draw, executed, images, measured, mlp, seq
from torch import nn

from lc_callback.engine.counting import counter as counting
from lc_callback.engine.counting.critical_radius import CriticalRadii
from lc_callback.engine.counting.vertices import number_of_ones
from lc_callback.engine.replay import derivative_rules
from lc_callback.engine.replay.route import _Search
from lc_callback.functional import local_complexity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Shortcuts(nn.Module):
    """Sums of what is read again, of the same twice, of what does not move, and differences."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        z = self.first(x)
        z = z + F.relu(z)
        y = self.second(z)
        y = F.leaky_relu(y) + y
        y = z - (y + y)
        y += self.third(F.relu(y))
        return F.relu(1.5 - y / 2 + torch.linspace(0, 1, 8))


class Bottleneck(nn.Module):
    """A residual block in which one normalisation follows a convolution that is read twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner, self.inner_norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 5)
        for norm in (self.norm, self.inner_norm):
            nn.init.uniform_(norm.running_mean), nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, -1, 1), nn.init.uniform_(norm.bias)

    def forward(self, x):
        x = self.stem(x)
        x = x + F.relu(self.inner_norm(self.inner(F.relu(self.norm(x)))))
        return F.relu(self.head(F.avg_pool2d(F.relu(x), 2).mean((2, 3))))


class SideBySide(nn.Module):
    """What was read before next to what came of it and what does not move."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Conv2d(2, 4, 3), nn.Conv2d(6, 3, 1), nn.Conv2d(7, 4, 3)
        self.constant = nn.Parameter(torch.randn(1, 2, 6, 6))

    def forward(self, x):
        x = self.first(x)
        y = self.second(torch.cat([F.relu(x), self.constant.expand(len(x), -1, -1, -1)], 1))
        x = torch.cat((x, F.relu_(y)), dim=-3)
        x = self.third(x)
        return F.relu(torch.cat([x[:, 1:], -x[:, :1]], 1))


class UpAndDown(nn.Module):
    """What is done to images between convolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (nn.Conv2d(*sizes, 3) for sizes in ((2, 8), (2, 3), (3, 4)))

    def forward(self, x):
        x = F.pixel_shuffle(F.relu(self.first(x)), 2)
        x = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
        x = F.relu(self.second(F.pad(x.flip(-1), (1, 0, 0, 1))))
        x = F.interpolate(F.max_pool2d(x, 2), scale_factor=2)
        return F.relu(self.third(F.pad(x, (1, 1, 1, 1), mode="reflect")))


class ScaledStem(nn.Module):
    """A residual block of which the scaling meets what is still affine."""

    def __init__(self, scale):
        super().__init__()
        self.stem, self.inner, self.scale = nn.Linear(6, 8), nn.Linear(8, 8), scale

    def forward(self, x):
        x = self.stem(x)
        x = x + self.inner(F.relu(self.inner(self.scale(x))))
        return F.relu(self.inner(x))


PIXELS = draw(7, 2, 8, 8)
SCALES = {
    "norm": nn.BatchNorm1d(8),
    "product": Call(lambda x: x * torch.linspace(0.5, 2, 8)),
    "quotient": Call(lambda x: x / torch.linspace(0.5, 2, 8)),
    "difference": Call(lambda x: 1 - x),
    "several": seq(nn.BatchNorm1d(8), Call(lambda x: 3 - x)),
}
WITH_RULES = {
    "mlp": (lambda: mlp(6, 9, 9, 2), draw(7, 6)),
    "in_place": (lambda: seq(nn.Linear(6, 9), nn.ReLU(True), nn.Linear(9, 4), nn.LeakyReLU(0.1, True)), draw(7, 6)),
    "in place, of which the sign is lost": (
        lambda: seq(nn.Linear(6, 9), Call(torch.abs_), nn.Linear(9, 4), nn.ReLU()),
        draw(7, 6),
    ),
    "two kinks of one": (lambda: _TwoKinks(), draw(7, 6)),
    "reused": NETS["reused"],
    "second axis": NETS["second_first"],
    "images": (images, PIXELS),
    "shortcuts": (Shortcuts, draw(7, 6)),
    "residual images": (Bottleneck, PIXELS),
    "side by side": (SideBySide, PIXELS),
    "up and down": (UpAndDown, PIXELS),
    "several kinks": (lambda: seq(nn.Linear(6, 9), nn.ReLU6(), nn.Linear(9, 9), nn.Hardtanh(), nn.PReLU()), draw(7, 6)),
    "no bias": (lambda: seq(nn.Linear(6, 9, bias=False), Call(torch.abs), nn.Linear(9, 4, bias=False)), draw(7, 6)),
    "tokens": (
        lambda: seq(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU()),
        TOKENS,
    ),
    "each token": (lambda: seq(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU()), draw(7, 5, 3)),
    "volumes": (
        lambda: seq(nn.Conv3d(1, 3, 2), nn.BatchNorm3d(3), nn.ReLU(), nn.MaxPool3d(2), nn.Conv3d(3, 4, 1), nn.ReLU()),
        draw(4, 1, 5, 5, 5),
    ),
    "rows": (
        lambda: seq(nn.Conv1d(2, 4, 3), nn.BatchNorm1d(4), nn.ReLU(), nn.Conv1d(4, 4, 3), nn.ReLU()),
        draw(7, 2, 9),
    ),
    **{f"scaled stem, {name}": (lambda scale=scale: ScaledStem(scale), draw(7, 6)) for name, scale in SCALES.items()},
    "two inputs": (lambda: _TwoInputs(), {"x": draw(7, 3), "y": draw(7, 4, seed=1)}),
}


class _TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.of_x, self.of_y = nn.Linear(3, 8), nn.Linear(4, 8)

    def forward(self, x, y):
        return F.relu(F.relu(self.of_x(x)) - self.of_y(y))


def by_steps(monkeypatch):
    monkeypatch.setattr(CriticalRadii, "has_rules", False)


class _TwoKinks(nn.Module):
    """Both read the same memory, and nothing else does afterwards."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)

    def forward(self, x):
        z = self.second(F.relu(self.first(x)))
        y = F.relu(z + 1) + F.leaky_relu(z, 0.2)
        z = self.second(y)
        return F.relu(F.relu(z) - F.hardtanh(z))


@pytest.mark.parametrize("chunk_size", [None, 3, 9, 50])
@pytest.mark.parametrize("name", WITH_RULES)
def test_counts_and_critical_radii_are_those_of_steps(name, chunk_size, monkeypatch):
    make, inputs = WITH_RULES[name]
    net = make().double().eval()
    found, counter = counted(net, inputs, "linear", chunk_size=chunk_size)
    assert counter.route.uses_derivative_rules
    by_steps(monkeypatch)
    expected, plain = counted(net, inputs, "linear", chunk_size=chunk_size)
    assert not plain.route.uses_derivative_rules
    assert torch.equal(found.counts, expected.counts)
    assert (found.histogram - expected.histogram).abs().sum() <= 2  # one on the edge of a bin
    assert found.counts.sum() > 10


@pytest.mark.parametrize("name", WITH_RULES)
def test_single_precision_follows_double(name):
    make, inputs = WITH_RULES[name]
    net = make().eval()
    single, route = measured(net, inputs, "linear")
    assert route.uses_derivative_rules
    double, _ = measured(net.double(), inputs, "linear")
    assert (single - double).abs().sum() <= 0.01 * double.sum()


WITHOUT = {
    "layer norm": (lambda: seq(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3), nn.ReLU()), draw(7, 6)),
    "smooth": (lambda: seq(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3), nn.ReLU()), draw(7, 6)),
    "product": NETS["own_view"],
    "maxout": NETS["maxout"],
    "attention": NETS["attention"],
    "padded with ones": (
        lambda: seq(
            nn.Linear(6, 8), nn.ReLU(), Call(lambda x: F.pad(x, (1, 0), value=1.0)), nn.Linear(9, 8), nn.ReLU()
        ),
        draw(7, 6),
    ),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_where_there_is_no_rule_steps_are_taken(name):
    make, inputs = WITHOUT[name]
    found, route = measured(make().double().eval(), inputs, "linear")
    assert not route.uses_derivative_rules
    assert found.sum() > 10


def test_a_wrong_rule_is_found_out(monkeypatch):
    rules = derivative_rules.RULES
    net, x = mlp(6, 9, 9, 2).double(), draw(7, 6)
    expected, _ = measured(net, x, "linear")
    relu = rules["relu"]

    def twice(step, args, at_points, kwargs, values):
        dual = relu(step, args, at_points, kwargs, values)
        return dual.scaled(dual.value, dual.value.new_full((), 2.0))

    monkeypatch.setitem(rules, "relu", twice)
    found, route = measured(net, x, "linear")
    assert not route.uses_derivative_rules
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("bias", "expected"), [(0.5, 1), (-0.5, 0)])
@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_is_not_above_zero(bias, expected, method, dtype):
    """At its critical radius a positive unit reaches 0 and switches; a negative one reaches 0 and does not."""
    net = seq(nn.Linear(2, 1), nn.ReLU()).to(dtype)
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 0.0]]))
        net[0].bias.fill_(bias)
    lc = local_complexity(net, torch.zeros(1, 2), radius=0.25, directions=torch.eye(2), method=method)
    assert lc.total.tolist() == [expected]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_marks_its_point(value):
    x = draw(5, 6)
    x[2, 3] = value
    found, route = measured(mlp(6, 9, 9, 2).double(), x, "linear")
    assert route.uses_derivative_rules
    assert (found[:, 2] < 0).any(-1).all()
    assert (found[:, [0, 1, 3, 4]] >= 0).all()


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_not_finite_at_one_place_marks_the_layer_that_goes_on(dtype, method):
    """The gates of the first step are not finite; they saturate, so those of the later ones are."""
    net, x = nn.LSTM(3, 4, batch_first=True), draw(5, 3, 3).to(dtype)
    x[2, 0, 1] = float("inf")
    lc = local_complexity(net.to(dtype), x, radius=0.5, n_directions=4, method=method)
    assert lc.counts[2].tolist() == [-1]
    assert (lc.counts[[0, 1, 3, 4]] > 0).all()


def test_more_units_than_single_precision_counts():
    n = 2**24 + 1
    assert number_of_ones(torch.ones(1, n)).tolist() == [n]


# What the operations are turned into


def test_a_normalisation_is_folded_into_the_convolution_that_only_it_reads():
    few, many = (executed(Bottleneck().double().eval(), PIXELS, n).count("native_batch_norm") for n in (2, 7))
    assert many - few == 10  # one of the two, for five points and two radii
    net = Bottleneck().double().eval()
    folded, _ = measured(net, PIXELS)
    plain, route = measured(net, PIXELS, repeat=False)
    assert route.program is None
    assert torch.equal(folded, plain)


def test_convolutions_are_those_of_compiled_models_where_there_are_any():
    convolutions = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()
    net, x = seq(*convolutions, nn.Flatten(), nn.Linear(64, 20), nn.ReLU()).eval(), PIXELS
    quick = executed(net, x, 7)
    with torch.backends.mkldnn.flags(enabled=False):
        plain = executed(net, x, 7)
        expected, _ = measured(net, x)
    found, route = measured(net, x)
    assert route.way.channels_last
    assert route.program is not None
    assert torch.equal(found, expected)
    if torch.backends.mkldnn.is_available():
        assert quick.count("mkldnn::_convolution_pointwise") > plain.count("mkldnn::_convolution_pointwise") == 0


def test_what_is_written_to_keeps_its_views():
    class Written(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 8)

        def forward(self, x):
            z = self.first(x)
            z.view(-1, 2, 4)[:, 0] += 1.0
            return F.relu(self.second(F.relu(z)))

    net = Written().double()
    for method in ("vertices", "linear"):
        found, route = measured(net, draw(7, 6), method)
        assert route.program is not None
        assert not route.uses_derivative_rules
        assert torch.equal(found, measured(net, draw(7, 6), method, repeat=False)[0])


@pytest.mark.parametrize("method", ["vertices", "linear"])
def test_chunks_are_counted_together_or_one_by_one(method, monkeypatch):
    net, x = mlp(6, 9, 9, 2).double(), draw(40, 6)
    x[7, 0] = float("nan")
    together, _ = measured(net, x, method, chunk_size=13)
    monkeypatch.setattr(counting, "_KEPT", 0)
    alone, _ = measured(net, x, method, chunk_size=13)
    assert torch.equal(together, alone)
    assert (together[:, 7] < 0).any()
    assert together.sum() > 40


@pytest.mark.parametrize("make", [lambda: mlp(6, 9, 9, 2), lambda: NETS["own_view"][0]()])
def test_one_pass_confirms_what_is_likely(make, monkeypatch):
    """And it is what each of the ways would have been found out to give."""
    net, x = make().double(), draw(7, 6)
    tried = []
    each = _Search._each
    monkeypatch.setattr(_Search, "_each", lambda *arguments: tried.append(1) or each(*arguments))
    _, route = measured(net, x, "linear", directions=6)
    assert route.uses_derivative_rules != bool(tried)
    assert route.prefix is not None
    assert route.program is not None
