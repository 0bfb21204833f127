"""The linear method says what the vertices say, where units are 0 because of others, and however a kink is written."""

import pytest
import torch
from networks import Call
from torch import nn

from lc_callback.functional import local_complexity

RADII = [1e-4, 1e-3, 1e-2]


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Block(nn.Module):
    """The identity at initialisation: the last norm scales by 0."""

    def __init__(self, norm, layer, act=nn.ReLU):
        super().__init__()
        self.a, self.b, self.norm, self.act = layer(), layer(), norm, act()
        nn.init.zeros_(self.norm.weight)

    def forward(self, x):
        return self.act(x + self.norm(self.b(self.act(self.a(x)))))


class Rezero(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.scale = nn.Linear(width, width), nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return torch.relu(torch.add(x, self.scale * torch.tanh(self.a(x))))


def dense(*acts, width=128):
    return nn.Sequential(nn.Linear(16, width), *acts, nn.Linear(width, 40), nn.ReLU(), nn.Linear(40, 2))


def blocks(n, act=nn.ReLU):
    return [Block(nn.BatchNorm1d(64), lambda: nn.Linear(64, 64), act) for _ in range(n)]


def image_blocks(n):
    return [Block(nn.BatchNorm2d(6), lambda: nn.Conv2d(6, 6, 3, padding=1)) for _ in range(n)]


ZERO = {
    "twice": lambda: dense(nn.ReLU(), nn.ReLU()),
    "in_place": lambda: dense(nn.ReLU(inplace=True), nn.ReLU(inplace=True)),
    "four_times": lambda: dense(*[nn.ReLU()] * 4),
    "clamped": lambda: dense(Call(lambda z: z.clamp(min=0)), nn.ReLU()),
    "clamp_min": lambda: dense(Call(lambda z: z.clamp_min_(0)), Call(lambda z: z.clamp(min=0))),
    "relu6": lambda: dense(nn.ReLU6(), nn.ReLU()),
    "hardtanh": lambda: dense(nn.Hardtanh(0.0, 9.0), nn.ReLU()),
    "threshold": lambda: dense(nn.Threshold(0.0, 0.0), nn.ReLU()),
    "maximum": lambda: dense(Call(lambda z: torch.maximum(z, torch.zeros_like(z))), nn.ReLU()),
    "maximum_first": lambda: dense(Call(lambda z: torch.maximum(torch.zeros((), dtype=z.dtype), z)), nn.ReLU()),
    "scaled": lambda: dense(nn.ReLU(), Call(lambda z: 3 * z), nn.ReLU()),
    "minimum": lambda: dense(Call(lambda z: -torch.minimum(z, z.new_zeros(1))), nn.ReLU()),
    "dropout_between": lambda: dense(nn.ReLU(), nn.Dropout(), nn.ReLU()),
    "gelu_elsewhere": lambda: dense(nn.ReLU(), nn.ReLU(), nn.Linear(128, 40), nn.GELU(), nn.Linear(40, 128)),
    "blocks": lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), *blocks(4), nn.Linear(64, 2)),
    "many_blocks": lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), *blocks(30), nn.Linear(64, 2)),
    "in_place_blocks": lambda: nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), *blocks(3, lambda: nn.ReLU(inplace=True)), nn.Linear(64, 2)
    ),
    "rezero": lambda: nn.Sequential(nn.Linear(16, 64), nn.ReLU(), Rezero(64), Rezero(64)),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), *image_blocks(3)
    ),
    "pooled": lambda: nn.Sequential(
        nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2), nn.ReLU()
    ),
}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float64, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "scale"),
    [(name, scale) for name in ZERO for scale in (1e-5, 1, 1e4) if scale == 1 or name not in ("relu6", "hardtanh")],
)
def test_units_that_are_zero_for_others_switch_with_these(name, scale, dtype):
    torch.manual_seed(0)
    net = ZERO[name]().to(dtype).eval()
    with torch.no_grad():
        net[0 if name not in ("images", "pooled") else 1].weight *= scale
        net[0 if name not in ("images", "pooled") else 1].bias *= scale
    x = draw(100, 16).to(dtype)
    radii = RADII if dtype is torch.float64 else [3e-3, 1e-2]
    linear = local_complexity(net, x, radius=radii, n_directions=16, method="linear")
    vertices = local_complexity(net, x, radius=radii, n_directions=16)
    assert linear.layer_names == vertices.layer_names
    assert linear.counts.sum() == pytest.approx(int(vertices.counts.sum()), rel=0.01)
    for one, other in zip(linear.layer_means[-1], vertices.layer_means[-1], strict=True):
        assert one == pytest.approx(other, rel=0.03, abs=0.03)


def test_what_never_moves_never_switches():
    net = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), Call(lambda z: 0 * z), nn.ReLU(), nn.Linear(8, 2)).double()
    lc = local_complexity(net, draw(20, 16), radius=1.0, n_directions=16, method="linear")
    assert lc.counts[:, 0].sum() > 0
    assert lc.counts[:, 1].sum() == 0


@pytest.mark.parametrize("turn", [lambda z: -z, lambda z: -3 * z, lambda z: 0 - z, lambda z: z.neg() / 2])
@pytest.mark.parametrize("act", [nn.ReLU(), nn.ReLU(inplace=True), Call(lambda z: z.clamp(min=0)), nn.Threshold(0, 0)])
def test_a_zero_that_can_only_fall_does_not_switch(turn, act):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), act, Call(turn), nn.ReLU(), Call(torch.neg), nn.ReLU()).double()
    with torch.no_grad():
        net[0].bias[::2] -= 2.5  # inactive
        net[0].bias[1::2] += 30  # far from the kink
    x = draw(20, 16)
    linear = local_complexity(net, x, radius=12.0, n_directions=16, method="linear")
    vertices = local_complexity(net, x, radius=12.0, n_directions=16)
    assert torch.equal(linear.counts, vertices.counts)
    assert linear.counts[:, 0].sum() > 20
    assert linear.counts[:, 1:].sum() == 0


def below(turn, act=torch.relu):
    """ReLU of what is never above zero."""
    return [nn.ReLU(), Call(turn), Call(act)]


FALLING = {
    "neg": below(torch.neg),
    "three": [*below(torch.neg), Call(torch.neg), nn.ReLU()],
    "zero_again": [*below(torch.neg), nn.ReLU()],
    "clamped": [Call(lambda z: z.clamp(min=0)), Call(lambda z: -2 * z), Call(lambda z: z.clamp(min=0))],
    "in_place": [nn.ReLU(inplace=True), Call(lambda z: z.neg_()), nn.ReLU(inplace=True)],
    "leaky": below(torch.neg, lambda z: nn.functional.leaky_relu(z, 0.2)),
    "difference": below(lambda z: 0 - z),
    "quotient": below(lambda z: z / -3.0),
    "less_than": below(lambda z: -z - 0.01),
    "reshaped": below(lambda z: -z.view(len(z), 4, -1).transpose(1, 2).reshape(len(z), -1)),
    "pooled": below(lambda z: -nn.functional.avg_pool1d(z[:, None], 2)[:, 0].repeat(1, 2)),
    "largest": below(lambda z: -z.unflatten(1, (-1, 2)).amax(2).repeat(1, 2)),
    "minimum": [Call(lambda z: z.clamp(max=0)), nn.ReLU6()],
}


@pytest.mark.parametrize("by_steps", [False, True])
@pytest.mark.parametrize("width", [4, 64])
@pytest.mark.parametrize("name", FALLING)
def test_what_is_never_above_zero_does_not_switch(name, width, by_steps):
    torch.manual_seed(0)
    norm = [nn.LayerNorm(width, elementwise_affine=False)] if by_steps else []
    net = nn.Sequential(nn.Linear(16, width), *norm, *FALLING[name], nn.Linear(width, 20), nn.ReLU()).double()
    x = draw(50, 16)
    linear = local_complexity(net, x, radius=1e-2, n_directions=16, method="linear")
    vertices = local_complexity(net, x, radius=1e-2, n_directions=16)
    assert vertices.counts[:, 0].sum() > (width > 4)
    for one, other in zip(linear.counts.sum(0).tolist(), vertices.counts.sum(0).tolist(), strict=True):
        assert one == pytest.approx(other, rel=0.03, abs=1)


def counts_by_both(function):
    """Counts by the linear method and by the vertices, and which layer is the last inside the function."""
    net, x = of(function), draw(500, 3)
    linear = local_complexity(net, x, radius=1e-2, method="linear", n_directions=3)
    vertices = local_complexity(net, x, radius=1e-2, n_directions=3)
    last = max(place for place, layer in enumerate(linear.layer_names) if layer.split("#")[0] == "1")
    return linear.counts, vertices.counts, last


RISING = {
    "abs": lambda z: torch.relu(z.abs()),
    "abs, leaky": lambda z: nn.functional.leaky_relu(z.abs(), 0.2),
    "abs twice": lambda z: z.abs().abs(),
    "abs, smooth": lambda z: nn.functional.silu(z.abs()),
    "abs, tanh, ReLU": lambda z: torch.relu(torch.tanh(z.abs())),
    "abs of half": lambda z: torch.relu(0.5 * z.abs()),
    "minus abs, clamped from above": lambda z: (-z.abs()).clamp(max=0),
    "square": lambda z: torch.relu(z * z),
    "power": lambda z: torch.relu(z.pow(2)),
    "sum of two": lambda z: torch.relu(z.abs() + z.flip(1).abs()),
    "sum with ReLU": lambda z: torch.relu(z.abs() + z.flip(1).relu()),
    "pooled": lambda z: torch.relu(nn.functional.avg_pool1d(z.abs()[:, None], 2)[:, 0]).repeat(1, 2),
    "above a bound": lambda z: torch.relu(z.clamp(min=0.1)),
    "softplus": lambda z: torch.relu(nn.functional.softplus(z)),
}


@pytest.mark.parametrize("name", RISING)
def test_what_is_never_below_zero_does_not_switch(name):
    linear, vertices, last = counts_by_both(RISING[name])
    assert linear[:, last].sum() == vertices[:, last].sum() == 0
    assert vertices.sum() > 10
    assert (linear - vertices).abs().sum() <= 6


@pytest.mark.filterwarnings("error")
def test_what_comes_before_the_module_at_which_points_are_moved_says_nothing():
    """There `hardtanh` of `hardtanh` is flat at kinks, and `abs` never below zero: neither is counted."""
    torch.manual_seed(0)
    before = nn.Sequential(nn.Linear(3, 32), Call(lambda z: hardtanh(hardtanh(z)).abs().relu()), nn.Linear(32, 32))
    net, x = nn.Sequential(before, nn.ReLU(), nn.Linear(32, 20), nn.ReLU()).double(), draw(300, 3)
    linear = local_complexity(net, x, radius=1e-2, method="linear", at="0")
    vertices = local_complexity(net, x, radius=1e-2, at="0")
    assert vertices.counts.sum() > 50
    assert torch.equal(linear.counts, vertices.counts)


RESTING = {
    "ReLU": lambda z: z.relu().abs().relu(),
    "ReLU, smooth": lambda z: torch.relu(nn.functional.silu(z.relu())),
    "sum of two": lambda z: torch.relu(z.relu() + z.flip(1).relu()),
    "shifted and back": lambda z: torch.relu((z.abs() + 1) - 1.05),
}


@pytest.mark.parametrize("name", RESTING)
def test_what_rests_at_zero_switches_when_it_leaves(name):
    linear, vertices, last = counts_by_both(RESTING[name])
    assert vertices[:, last].sum() > 10
    assert (linear - vertices)[:, last].abs().sum() <= 4


@pytest.mark.parametrize("turn", [lambda z: z, lambda z: 1 - z, lambda z: -z + 0.01, lambda z: -(z - 0.01)])
def test_what_may_be_above_zero_switches(turn):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), Call(turn), nn.ReLU(), nn.Linear(64, 2)).double()
    x = draw(100, 16)
    linear = local_complexity(net, x, radius=1e-2, n_directions=16, method="linear")
    vertices = local_complexity(net, x, radius=1e-2, n_directions=16)
    assert vertices.counts[:, 1].sum() > 3
    assert torch.equal(linear.counts[:, 1], vertices.counts[:, 1])


# What is flat right at a kink, and what jumps: affine pieces do not tell where it switches

hardtanh, relu6 = nn.functional.hardtanh, nn.functional.relu6
FLAT_AT_KINKS = {
    "hardtanh": lambda z: hardtanh(hardtanh(z)),
    "hardtanh, in place": lambda z: nn.functional.hardtanh_(nn.functional.hardtanh_(z)),
    "relu6": lambda z: relu6(relu6(8 * z)),
    "relu6 of a sum": lambda z: relu6(relu6(8 * z) + relu6(8 * z.flip(1))),
    "clamp": lambda z: z.clamp(0, 1).clamp(0, 1),
    "clamp, then scaled": lambda z: relu6(6 * z.clamp(0, 1)),
    "clamp, then scaled by a tensor": lambda z: relu6(z.clamp(0, 1) * torch.tensor(6.0)),
    "moved to zero": lambda z: torch.relu(1 + hardtanh(z)),
    "turned": lambda z: torch.relu(1 - hardtanh(z)),
    "moved from zero": lambda z: (torch.relu(z) + 1).clamp(min=1),
    "moved from zero and back": lambda z: torch.relu((torch.relu(z) + 1) - 1),
    "threshold of one value": lambda z: nn.functional.threshold(nn.functional.threshold(z, 0.1, 0.1), 0.1, 0.1),
    "softshrink": lambda z: torch.relu(nn.functional.softshrink(z)),
    "softshrink, absolute": lambda z: nn.functional.softshrink(z).abs(),
    "hardsigmoid": lambda z: nn.functional.hardsigmoid(8 * z).clamp(0, 1),
    "softshrink, then smooth ones": lambda z: nn.functional.gelu(nn.functional.hardswish(nn.functional.softshrink(z))),
    "leaky with slope 0": lambda z: nn.functional.leaky_relu(nn.functional.leaky_relu(z, 0.0), 0.0),
    "ReLU, absolute": lambda z: z.relu().abs().relu(),
    "sum of two ReLU": lambda z: torch.relu(z.relu() + z.flip(1).relu()),
    "mean of ReLU": lambda z: torch.relu(nn.functional.avg_pool1d(z.relu()[:, None], 2)[:, 0]).repeat(1, 2),
    "largest of ReLU": lambda z: torch.relu(z.relu().view(len(z), 2, -1).amax(1)).repeat(1, 2),
    "sum over ReLU": lambda z: torch.relu(z.relu().view(len(z), 2, -1).sum(1)).repeat(1, 2),
    "behind pooling": lambda z: hardtanh(nn.functional.max_pool1d(hardtanh(3 * z)[:, None], 2)[:, 0]).repeat(1, 2),
    "behind a view": lambda z: hardtanh(hardtanh(z).view(len(z), 2, -1).transpose(1, 2)).reshape(len(z), -1),
    "behind a concatenation": lambda z: hardtanh(torch.cat([hardtanh(z[:, :9]), z[:, 9:]], 1)),
    "a part, in place": lambda z: hardtanh(torch.cat([z[:, :9].clamp_(-1, 1), z[:, 9:]], 1)),
}
JUMPS = {
    "hardshrink": nn.functional.hardshrink,
    "hardshrink, then ReLU": lambda z: torch.relu(nn.functional.hardshrink(z)),
    "threshold": lambda z: nn.functional.threshold(z, 0.1, 0.0),
    "threshold twice": lambda z: nn.functional.threshold(nn.functional.threshold(z, 0.1, 0.0), 0.1, 0.0),
    "threshold with a far value": lambda z: nn.functional.threshold(z, 0.1, 20.0),
    "threshold, in place": lambda z: nn.functional.threshold_(z, 0.1, -3.0),
}
FOLLOWED = {
    "hardtanh, then ReLU": lambda z: torch.relu(hardtanh(z)),
    "hardtanh, then other bounds": lambda z: hardtanh(hardtanh(z), -0.5, 0.5),
    "hardtanh of a sum": lambda z: hardtanh(hardtanh(z) + z),
    "hardtanh behind a layer": lambda z: hardtanh(hardtanh(z) @ MIXED),
    "softshrink twice": lambda z: nn.functional.softshrink(nn.functional.softshrink(z)),
    "ReLU, then hardtanh": lambda z: hardtanh(torch.relu(z)),
    "scaled by a tensor": lambda z: relu6(z.clamp(0, 1) * torch.tensor(3.0)),
    "absolute value of complex ones": lambda z: torch.relu(torch.fft.fft(hardtanh(z)).abs() - 2.0),
    "scaled by a complex tensor": lambda z: torch.relu((z.relu() * torch.tensor(1j)).imag - 0.3),
}
MIXED = draw(32, 32)


def of(function):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 32), Call(function), nn.Linear(32, 20), nn.ReLU(), nn.Linear(20, 2)).double()


@pytest.mark.parametrize("name", [*FLAT_AT_KINKS, *JUMPS])
def test_where_affine_pieces_do_not_tell_vertices_are_counted(name):
    net, x = of({**FLAT_AT_KINKS, **JUMPS}[name]), draw(300, 3)
    vertices = local_complexity(net, x, radius=1e-2)
    reason = r"jumps \((threshold|hardshrink)" if name in JUMPS else "is flat right at kinks of 1"
    with pytest.warns(UserWarning, match=f"the model {reason}.*counting by vertices instead"):
        linear = local_complexity(net, x, radius=1e-2, method="linear")
    assert torch.equal(linear.counts, vertices.counts)
    assert vertices.counts.sum() > 50


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", FOLLOWED)
def test_plateaus_that_meet_no_kink_are_followed(name):
    net, x = of(FOLLOWED[name]), draw(300, 3)
    linear = local_complexity(net, x, radius=1e-3, method="linear")
    vertices = local_complexity(net, x, radius=1e-3)
    assert vertices.counts.sum() > 10
    assert (linear.counts - vertices.counts).abs().sum() <= 2


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_leaves_the_other_points(value):
    torch.manual_seed(0)
    net = dense(nn.ReLU(), nn.ReLU()).double()
    x = draw(20, 16)
    whole = local_complexity(net, x, radius=RADII, n_directions=16, method="linear").counts
    x[3, 1] = value
    broken = local_complexity(net, x, radius=RADII, n_directions=16, method="linear").counts
    others = [point for point in range(20) if point != 3]
    assert torch.equal(broken[:, others], whole[:, others])
    assert (broken[:, 3, 0] == -1).all()


class First(nn.Module):
    """A maximum or minimum whose first operand is the smaller tensor."""

    def __init__(self, operation, operand):
        super().__init__()
        self.operation, self.operand = operation, nn.Parameter(operand)

    def forward(self, x):
        return self.operation(self.operand, x)


@pytest.mark.parametrize("shape", [(), (1,), (32,), (1, 32), (1, 1, 32)])
@pytest.mark.parametrize("operation", [torch.maximum, torch.minimum, torch.fmax, torch.fmin])
@pytest.mark.parametrize("smooth", [False, True])
def test_the_smaller_operand_may_come_first(operation, shape, smooth):
    torch.manual_seed(0)
    acts = [Call(lambda z: z[:, None])] if len(shape) == 3 else []
    more = [nn.GELU()] if smooth else []
    first = First(operation, 0.1 * torch.randn(shape))
    net = nn.Sequential(nn.Linear(8, 32), *more, *acts, first, nn.Flatten(), nn.Linear(32, 2)).double()
    x = draw(40, 8)
    linear = local_complexity(net, x, radius=RADII, n_directions=8, method="linear")
    vertices = local_complexity(net, x, radius=RADII, n_directions=8)
    assert vertices.counts[2].sum() > 3
    assert linear.counts.sum() == pytest.approx(int(vertices.counts.sum()), rel=0.05)
