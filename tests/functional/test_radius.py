"""The radius that is found: enough units switch, it is local, and it depends on the network, not on its seed."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lc_callback.engine.counting.task import CountingTask
from lc_callback.functional import local_complexity
from lc_callback.functional.radius import (
    ENOUGH,
    LOCAL,
    _bisected,
    _chosen,
    _difference,
    _DistinctVertices,
    _smallest_radii,
    count_units,
    find_radius,
    nearest_distance,
    rounded,
    spread_over,
)

GRID = [float(f"{digit}e{exponent}") for exponent in range(-9, 9) for digit in (1, 2, 5)]


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def framed(*shape: int) -> Tensor:
    """Images with a blank border, as those of digits are."""
    images = torch.zeros(shape)
    images[..., 3:-3, 3:-3] = normal(*images[..., 3:-3, 3:-3].shape).abs()
    return images


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def cnn(bias: bool) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=bias),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1, bias=bias),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 49, 5),
    )


class Sign(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.sign(x)


def by_vertices(net: nn.Module, points: Tensor, most: float) -> float:
    task = CountingTask(_DistinctVertices, net, points)

    def switching(radius: float) -> float:
        return float(task.measure(radius, 25).counts.sum())

    return _bisected(switching, most, ENOUGH)


NETWORKS: dict[str, tuple[Any, Tensor]] = {
    "mlp": (lambda: mlp(64, 100, 100, 10), normal(400, 64)),
    "gelu": (lambda: nn.Sequential(nn.Linear(64, 200), nn.GELU(), nn.Linear(200, 5)), normal(400, 64)),
    "tokens": (
        lambda: nn.Sequential(nn.Embedding(30, 32), nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 30)),
        torch.cartesian_prod(torch.arange(30), torch.arange(30))[::3],
    ),
    "cnn_with_border": (lambda: cnn(bias=True), framed(100, 1, 14, 14)),
    "cnn_without_bias_with_border": (lambda: cnn(bias=False), framed(100, 1, 14, 14)),
    "jumps": (
        lambda: nn.Sequential(nn.Linear(64, 200), nn.ReLU(), Sign(), nn.Linear(200, 200), nn.ReLU()),
        normal(300, 64),
    ),
}


def made(make: Any, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return make()


@pytest.mark.parametrize("name", NETWORKS)
def test_five_seeds_get_one_radius_or_its_neighbour(name: str) -> None:
    make, points = NETWORKS[name]
    places = [GRID.index(find_radius(made(make, seed), points).radius) for seed in range(5)]
    assert max(places) - min(places) <= 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_enough_units_switch_at_the_radius_that_is_found(dtype: torch.dtype) -> None:
    net, points = made(lambda: mlp(64, 100, 100, 10)).to(dtype), normal(400, 64).to(dtype)
    counter = _smallest_radii(net, points, 1.0, ENOUGH, 25, 0, None)
    lc = local_complexity(net, points, radius=[counter.found(), counter.found() * 0.999], method="linear")
    assert int(lc.total[0].sum()) == ENOUGH  # no two units of an MLP have one value
    assert int(lc.total[1].sum()) < ENOUGH


def test_the_vertices_find_what_the_critical_radii_do() -> None:
    net, points = made(lambda: mlp(64, 100, 100, 10)), normal(400, 64)
    linear = _smallest_radii(net, points, 1.0, ENOUGH, 25, 0, None)
    vertices = by_vertices(net, points, 1.0)
    assert vertices == pytest.approx(linear.found(), rel=0.15)


@pytest.mark.parametrize("method", ["linear", "vertices"])
@pytest.mark.parametrize("copies", [1, 7])
def test_units_of_one_value_count_once(method: str, copies: int) -> None:
    class Copied(nn.Module):  # a feature map whose positions are copies of each other, as on a blank patch
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(64, 300)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.first(x).unsqueeze(-1).repeat(1, 1, copies)).sum(-1)

    net, points = made(Copied), normal(60, 64)
    if method == "linear":
        found = _smallest_radii(net, points, 1.0, ENOUGH, 25, 0, None).found()
    else:
        found = by_vertices(net, points, 10.0)
    single = local_complexity(net.first, points, layers=[nn.Linear], radius=found).total.sum()
    assert float(single) == pytest.approx(ENOUGH, rel=0.1)


@pytest.mark.parametrize("method", ["linear", "vertices"])
def test_units_on_their_kink_do_not_count(method: str) -> None:
    class Blank(nn.Module):  # 400 units that see zeros only: they are 0 at every point, and switch at any radius
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 300)
            self.blank = nn.Linear(32, 400, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.first(x[:, :32])).sum(-1) + torch.relu(self.blank(x[:, 32:])).sum(-1)

    net, points = made(Blank), normal(60, 64)
    points[:, 32:] = 0
    if method == "linear":
        found = _smallest_radii(net, points, 1.0, ENOUGH, 25, 0, None).found()
    else:
        found = by_vertices(net, points, 10.0)
    counts = local_complexity(net, points, radius=found, method=method).counts.sum(0).tolist()
    assert counts == [pytest.approx(ENOUGH, rel={"linear": 1e-9, "vertices": 0.1}[method]), 60 * 400]


BLANK: dict[str, Any] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(0.0, 4.0),
    "threshold": lambda: nn.Threshold(0.0, 0.0),
    "prelu": lambda: nn.PReLU(init=0.0),
}


def blank(act: Any, groups: int) -> nn.Sequential:
    """Without biases, units that see a blank border are on their kink; at its edge they see others as well."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False),
        act(),
        nn.Conv2d(12, 12, 3, padding=1, bias=False, groups=groups),
        nn.BatchNorm2d(12),
        act(),
        nn.Conv2d(12, 6, 1, bias=False),
        act(),
    )


@pytest.mark.parametrize("groups", [1, 12])
@pytest.mark.parametrize("act", BLANK, ids=BLANK)
def test_units_at_the_edge_of_a_blank_border_do_not_count(act: str, groups: int) -> None:
    net, points = made(lambda: blank(BLANK[act], groups)).eval(), torch.zeros(40, 3, 14, 14)
    points[..., 4:-4, 4:-4] = smooth(2, 40)[..., :6, :6]
    found = find_radius(net, points).radius
    assert 0.3 < found / by_vertices(net, points, LOCAL * nearest_distance(points.flatten(1))) < 3


@pytest.mark.parametrize("layers", [None, ["Linear"]])
def test_a_small_network_gets_the_largest_local_radius(layers: Any) -> None:
    net, points = made(lambda: mlp(64, 4, 2)), normal(50, 64)
    found = find_radius(net, points, layers=layers)
    assert found.radius <= LOCAL * nearest_distance(points) < 2.5 * found.radius
    assert "a twentieth of the median distance" in found.reason
    assert "fewer than 2,500 units switch at the 50 train points" in found.reason


def test_the_reason_says_how_many_units_switch() -> None:
    reason = find_radius(made(lambda: mlp(64, 100, 100, 10)), normal(400, 64)).reason
    assert reason.startswith("the smallest of 1, 2, 5 times a power of ten that can be read: about 2,500 units or more")
    assert "switch at the 400 train points together" in reason


@pytest.mark.parametrize(
    "make", [lambda: mlp(64, 100, 100, 10), lambda: nn.Sequential(nn.Linear(64, 300), nn.ReLU(), Sign())]
)
def test_more_than_500_points_make_the_radius_no_smaller(make: Any) -> None:
    net, points = made(make), normal(2000, 64)
    found = [find_radius(net, points[:n]) for n in (500, 1000, 2000)]
    assert found[0].radius == found[1].radius == found[2].radius
    assert ["2,500" in found[0].reason, "5,000" in found[1].reason, "10,000" in found[2].reason] == [True] * 3


def test_nor_does_their_distance() -> None:
    points = torch.rand(8000, 2, generator=torch.Generator().manual_seed(0))
    points = points[points[:, 0].argsort()]  # as in a table that is sorted: the first 500 lie in a strip
    radii = [find_radius(made(lambda: mlp(2, 8, 2)), points[:: 8000 // n]).radius for n in (500, 2000, 8000)]
    assert radii[0] == radii[1] == radii[2]


@pytest.mark.parametrize(("n", "most"), [(3, 5), (5, 5), (6, 5), (9, 5), (1000, 500), (1001, 500), (4, 1)])
def test_points_are_spread_over_all(n: int, most: int) -> None:
    chosen = spread_over(n, most).tolist()
    assert len(set(chosen)) == min(n, most)
    assert chosen[0] == 0
    assert most == 1 or chosen[-1] == n - 1


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e5])
def test_the_nearest_distance_is_the_obvious_one(scale: float) -> None:
    points = scale * normal(40, 7)
    points = torch.cat([points, points[:5], points[:5] + 0.0])  # copies have nearest points that are no copies
    distances = (points[:, None] - points).double().norm(dim=-1)
    distances[distances == 0] = math.inf
    assert nearest_distance(points) == pytest.approx(float(distances.amin(1).median()), rel=1e-6)


@pytest.mark.parametrize("points", [torch.ones(5, 3), torch.zeros(4, 3), normal(1, 3)])
def test_points_that_do_not_differ_are_an_error(points: Tensor) -> None:
    with pytest.raises(ValueError, match="needs train probes that differ"):
        nearest_distance(points)


@pytest.mark.parametrize(
    ("radius", "nearest", "below"),
    [
        (1.0, 1.0, 1.0),
        (0.99, 1.0, 0.5),
        (0.0222, 0.02, 0.02),
        (0.0317, 0.05, 0.02),
        (0.0316, 0.02, 0.02),
        (0.049, 0.05, 0.02),
        (7.1, 10.0, 5.0),
        (7.0, 5.0, 5.0),
        (3e-9, 2e-9, 2e-9),
        (140.0, 100.0, 100.0),
        (150.0, 200.0, 100.0),
    ],
)
def test_radii_are_rounded_by_ratio(radius: float, nearest: float, below: float) -> None:
    assert rounded(radius) == nearest
    assert rounded(radius, down=True) == below


@pytest.mark.parametrize(
    ("found", "slope", "most", "expected"),
    [
        (0.020, 1.0, 1.0, 0.02),
        (0.022, 1.0, 1.0, 0.02),  # 91 % of the units
        (0.023, 1.0, 1.0, 0.05),  # 87 %
        (0.011, 1.0, 1.0, 0.01),
        (0.012, 1.0, 1.0, 0.02),
        (0.012, 0.3, 1.0, 0.01),  # of which as many switch at smaller radii
        (0.049, 1.0, 1.0, 0.05),
        (0.060, 1.0, 1.0, 0.1),
        (0.060, 1.0, 0.09, 0.05),  # the next one is not local
        (0.025, 1.0, 0.04, 0.02),
        (math.inf, 1.0, 0.04, 0.02),
    ],
)
def test_a_radius_that_is_rounded_down_can_still_be_read(
    found: float, slope: float, most: float, expected: float
) -> None:
    assert _chosen(found, most, 10, lambda radius: ENOUGH * (radius / found) ** slope).radius == expected


@pytest.mark.parametrize("name", NETWORKS)
def test_units_are_counted_without_counting_switches(name: str) -> None:
    make, points = NETWORKS[name]
    net = made(make)
    assert count_units(net, points) == sum(local_complexity(net, points[:2], radius=0.1).layer_sizes)


def test_nothing_is_left_on_the_model() -> None:
    net, points = made(lambda: cnn(bias=True)), framed(20, 1, 14, 14)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    find_radius(net, points)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in net.modules())


class Inverted(nn.Module):
    """The block of a MobileNet: behind ReLU a depthwise convolution sees nine others."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(12, 48, 1, bias=False),
            nn.BatchNorm2d(48),
            act(),
            nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False),
            nn.BatchNorm2d(48),
            act(),
            nn.Conv2d(48, 12, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def inverted(act: Any) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *[Inverted(act) for _ in range(3)])


class Pairs(nn.Module):
    """Each unit sees two others."""

    def __init__(self, act: Any) -> None:
        super().__init__()
        self.first, self.act, self.weight = nn.Linear(64, 256), act, nn.Parameter(torch.randn(2, 256))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.act(self.first(x))
        return self.act(self.weight[0] * hidden + self.weight[1] * hidden.roll(1, -1))


class RMSNorm(nn.Module):
    """It turns sharply at 0."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps)


def padded(eps: float) -> nn.Sequential:
    net = nn.Sequential(
        nn.Embedding(20, 32, padding_idx=0),
        *(RMSNorm(eps), nn.Linear(32, 128), nn.ReLU(), nn.Linear(128, 32)),
        *(RMSNorm(eps), nn.Linear(32, 128), nn.ReLU()),
    )
    nn.init.normal_(net[2].bias, std=0.5)
    return net


def padded_tokens(share: int) -> Tensor:
    tokens = torch.randint(1, 20, (64, 6), generator=torch.Generator().manual_seed(1))
    tokens[:share, -1] = 0
    return tokens


class Attention(nn.Module):
    """Attention whose logits are ``scale`` times as large as usual."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.mlp, self.scale = nn.Sequential(nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32)), scale

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            weights = torch.softmax(self.query(x) @ self.key(x).mT * self.scale / 32**0.5, -1)
            x = self.value(x) + weights @ x
            x = x + self.mlp(x)
        return x.mean(1)


class Flat(nn.Module):
    """Its second layer moves by less than the rounding of float32 over a small step."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.first, self.second, self.size = nn.Linear(64, 40), nn.Linear(40, 400, bias=False), size
        with torch.no_grad():
            self.second.weight -= self.second.weight.mean(1, keepdim=True)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.second(1 + self.size * torch.tanh(self.first(x))))


class ZeroBlock(nn.Module):
    """The identity at initialisation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12)
        nn.init.zeros_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.norm(self.conv(torch.relu(x))))


def smooth(size: int, n: int = 64) -> Tensor:
    """Images that change slowly, so that neighbours are inactive together."""
    return F.interpolate(normal(n, 3, size, size), size=(12, 12), mode="bilinear")


DIFFER: dict[str, tuple[Any, Tensor]] = {
    "depthwise_relu": (lambda: inverted(nn.ReLU), smooth(2)),
    "depthwise_relu6": (lambda: inverted(nn.ReLU6), smooth(3)),
    "depthwise_clamped": (lambda: inverted(lambda: nn.Hardtanh(0.0, 4.0)), smooth(2)),
    "pairs": (lambda: Pairs(nn.ReLU()), normal(400, 64)),
    "pairs_thresholds": (lambda: Pairs(nn.Threshold(0.0, 0.0)), normal(400, 64)),
    "padding_behind_a_norm": (lambda: padded(1e-3), padded_tokens(16)),
    "some_padding_behind_a_norm": (lambda: padded(1e-3), padded_tokens(8)),
    "sharp_attention": (lambda: Attention(30.0), normal(64, 6, 32)),
    "sharper_attention": (lambda: Attention(100.0), normal(64, 6, 32)),
    "flat": (lambda: Flat(1e-4), normal(64, 64)),
}
AGREE: dict[str, tuple[Any, Tensor]] = {
    "depthwise_silu": (lambda: inverted(nn.SiLU), smooth(2)),
    "depthwise_leaky": (lambda: inverted(nn.LeakyReLU), smooth(2)),
    "pairs_of_abs": (lambda: Pairs(nn.Softshrink(0.0)), normal(400, 64)),
    "no_padding": (lambda: padded(1e-3), padded_tokens(0)),
    "attention": (lambda: Attention(1.0), normal(64, 6, 32)),
    "zero_blocks": (lambda: nn.Sequential(nn.Conv2d(3, 12, 3), ZeroBlock(), ZeroBlock()), smooth(6)),
    "not_flat": (lambda: Flat(0.1), normal(64, 64)),
    **{name: case for name, case in NETWORKS.items() if name != "jumps"},
}


def both(net: nn.Module, points: Tensor, radius: float) -> list[int]:
    """What is counted at every so manieth point."""
    some = points[:: -(-len(points) // 64)]
    methods = ("linear", "vertices")
    return [int(local_complexity(net, some, radius=radius, method=method).total.sum()) for method in methods]


@pytest.mark.parametrize("name", DIFFER)
def test_where_the_methods_differ_it_is_said(name: str) -> None:
    make, points = DIFFER[name]
    net = made(make).eval()
    found = find_radius(net, points)
    linear, vertices = both(net, points, found.radius)
    assert abs(linear / vertices - 1) > 0.01
    n = len(points[:: -(-len(points) // 64)])
    assert found.difference == (
        f"the linear method counts {linear:,} switching units at {n} of the train points, the vertices {vertices:,}"
    )


@pytest.mark.parametrize("name", AGREE)
def test_where_they_agree_nothing_is_said(name: str) -> None:
    make, points = AGREE[name]
    net = made(make).eval()
    found = find_radius(net, points)
    linear, vertices = both(net, points, found.radius)
    assert linear == pytest.approx(vertices, rel=0.01, abs=3)
    assert found.difference == ""


@pytest.mark.parametrize(
    ("linear", "vertices", "differs"),
    [
        ([100.0] * 50, [100.0] * 50, False),
        ([101.0] * 50, [100.0] * 50, False),  # 1 %
        ([102.0] * 50, [100.0] * 50, True),
        ([98.0] * 50, [100.0] * 50, True),
        ([95.0, 105.0] * 25, [100.0] * 50, False),
        ([7.0, 8.0], [8.0, 8.0], False),  # one unit
        ([0.0] * 20, [0.0] * 20, False),
        ([1.0] * 20, [0.0] * 20, True),
        ([torch.nan, 3.0], [2.0, 9.0], False),  # what is not finite, the rows say
    ],
)
def test_a_difference_is_more_than_chance(linear: list[float], vertices: list[float], differs: bool) -> None:
    assert (_difference(torch.tensor(linear), torch.tensor(vertices)) != "") is differs


def test_jumps_and_layers_have_no_other_method() -> None:
    make, points = NETWORKS["jumps"]
    assert find_radius(made(make), points).difference == ""
    assert find_radius(made(lambda: Pairs(nn.ReLU())), normal(90, 64), layers=["Linear"]).difference == ""
