import math

import pytest
import torch
import torch.nn.functional as F
from networks import KINDS, Abs, Call, Clamp, Larger, made, seq
from networks import draw as points
from torch import nn

from lc_callback.engine.network.recorder import Recorder
from lc_callback.functional import cross_polytope_frame, local_complexity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


RADII = [0.01, 0.1, 1.0, 10.0]


def critical_radii(net, x, frame):
    """By forward-mode derivatives of every pre-activation: one list for each layer, over its units and points."""

    def pre_activations(point):
        seen = []

        def keep(site, kinks):
            seen.append(torch.stack([z - kink for z, kink in kinks]).flatten(1))

        with Recorder(net, keep):
            net(point[None])
        return seen

    found = []
    for point in x:
        values = pre_activations(point)
        slopes = [torch.zeros_like(z) for z in values]
        for direction in frame:
            # Central differences of a tiny step are exact, to rounding, on an affine piece.
            ends = [pre_activations(point + sign * 1e-6 * direction) for sign in (1, -1)]
            for layer, (one, other) in enumerate(zip(*ends, strict=True)):
                slopes[layer] = slopes[layer].maximum(((one - other) / 2e-6).abs())
        found.append([(z.abs() / slope).amin(0) for z, slope in zip(values, slopes, strict=True)])
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_critical_radii(kind):
    for seed in range(8):
        net, points = made(kind, seed)
        directions = min(4, points[0].numel())
        frame = cross_polytope_frame(tuple(points.shape[1:]), directions, seed=0, dtype=torch.float64)
        with torch.no_grad():
            expected = critical_radii(net, points, frame)
        for radius in RADII:
            safe = all((radii / radius - 1).abs().min() > 1e-6 for point in expected for radii in point)
            lc = local_complexity(net, points, radius=radius, n_directions=directions, method="linear")
            counts = torch.tensor([[int((radii <= radius).sum()) for radii in point] for point in expected])
            assert not safe or torch.equal(lc.counts, counts)
    assert lc.counts.sum() > 10


def test_all_radii_come_from_one_pass():
    net, points = made(KINDS[0], 0)
    lc = local_complexity(net, points, radius=RADII, n_directions=3, method="linear")
    assert lc.counts.shape == (4, 3, 3)
    for row, radius in enumerate(RADII):
        alone = local_complexity(net, points, radius=radius, n_directions=3, method="linear")
        assert torch.equal(lc.counts[row], alone.counts)
    assert (lc.counts[1:] >= lc.counts[:-1]).all()
    assert lc.counts[-1].sum() > lc.counts[0].sum()


@pytest.mark.parametrize("kind", KINDS)
def test_where_the_network_is_affine_both_methods_agree(kind):
    net, points = made(kind, 3)
    directions = min(4, points[0].numel())
    settings = {"radius": 1e-4, "n_directions": directions}
    linear = local_complexity(net, points, method="linear", **settings)
    assert torch.equal(linear.counts, local_complexity(net, points, **settings).counts)


@pytest.mark.parametrize("chunk_size", [1, 2, 3, 7, 10**6])
def test_chunk_size_does_not_matter(chunk_size):
    net, points = made(KINDS[1], 1)
    expected = local_complexity(net, points, radius=RADII, n_directions=5, method="linear")
    found = local_complexity(net, points, radius=RADII, n_directions=5, method="linear", chunk_size=chunk_size)
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(found.histogram, expected.histogram)


def test_the_critical_radii_of_one_unit():
    net = seq(nn.Linear(2, 1), nn.ReLU())
    with torch.no_grad():
        net[0].weight.copy_(torch.tensor([[2.0, 0.0]]))
        net[0].bias.fill_(-0.5)
    lc = local_complexity(net, torch.zeros(1, 2), radius=[0.2499, 0.2501], directions=torch.eye(2), method="linear")
    assert lc.counts[:, 0, 0].tolist() == [0, 1]
    assert lc.critical_radius(1.0) == pytest.approx(0.25, rel=0.024)
    assert lc.histogram.sum() == 1


def test_density_is_the_slope_at_zero():
    torch.manual_seed(0)
    net, x = seq(nn.Linear(10, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU()), torch.randn(200, 10)
    lc = local_complexity(net, x, radius=[0.001, 0.01], n_directions=10, method="linear")
    assert lc.density == pytest.approx(float(lc.mean[1]) / 0.01, rel=0.1)
    assert lc.critical_radius(1 / 600) == pytest.approx(1 / lc.density)
    assert lc.critical_radius(0.5) > lc.critical_radius(0.1)


def test_units_that_cannot_switch_never_do():
    net = seq(nn.Linear(2, 4), nn.ReLU())
    with torch.no_grad():
        net[0].weight[1:].zero_()
    lc = local_complexity(net, torch.ones(1, 2), radius=1e6, n_directions=2, method="linear")
    assert lc.total.tolist() == [1]
    assert lc.critical_radius(1.0) == float("inf")


class Awkward(nn.Module):
    """In place, reused, transposed, with a shortcut round the kinks."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.relu = nn.Linear(4, 6), nn.Linear(6, 6), nn.ReLU(inplace=True)

    def forward(self, x):
        hidden = self.relu(self.first(x).T)
        again = self.relu(self.second(hidden.T.clone()))
        return F.leaky_relu_(self.second(again + hidden.T), 0.2).clamp_(max=0.7)


with torch.random.fork_rng():
    torch.manual_seed(0)
    OTHERS = {
        "awkward": (Awkward(), (4,)),
        "others": (
            seq(
                nn.Linear(4, 8), nn.PReLU(8), nn.Linear(8, 8), nn.Softshrink(), nn.Linear(8, 8), nn.Hardsigmoid(), Abs()
            ),
            (4,),
        ),
        "maximum": (seq(nn.Linear(4, 8), Larger(), nn.Linear(4, 8), Clamp(), nn.Linear(8, 2), nn.ReLU6()), (4,)),
        "1d": (seq(nn.Conv1d(2, 3, 3), nn.MaxPool1d(2), nn.ReLU(), nn.Flatten(), nn.Linear(6, 4), nn.ReLU()), (2, 6)),
        "adaptive": (
            seq(nn.Conv2d(1, 3, 3), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(12, 9), nn.ReLU()),
            (1, 7, 7),
        ),
        "channels last": (seq(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten()), (2, 7, 7)),
        "smooth": (seq(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)), (4,)),
        "bound": (
            seq(nn.Linear(4, 8), Call(lambda x: x.clamp(min=torch.linspace(-1, 1, 8).to(x))), nn.Linear(8, 2)),
            (4,),
        ),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", OTHERS)
def test_awkward_models(case, dtype):
    torch.manual_seed(1)
    net, shape = OTHERS[case]
    net, x = net.to(dtype), torch.randn(1000, *shape, dtype=dtype)
    settings = {"radius": 0.03, "n_directions": 4}
    linear = local_complexity(net, x, method="linear", **settings)
    vertices = local_complexity(net, x, **settings)
    assert linear.layer_names == vertices.layer_names
    difference = (linear.counts - vertices.counts).abs().sum()
    assert difference <= 0.1 * vertices.counts.sum()
    assert vertices.counts.sum() > 20


def test_the_piece_goes_on_beyond_the_kinks():
    """relu(x) - 1 at x = 1/2: the piece x - 1 reaches 0 at radius 1/2; and on the other side never."""
    net = seq(nn.Identity(), nn.ReLU(), Call(lambda x: x - 1.0), nn.ReLU())
    directions = torch.ones(1, 1)
    lc = local_complexity(net, torch.tensor([[0.5], [-0.5]]), radius=0.6, directions=directions, method="linear")
    assert lc.counts.tolist() == [[1, 1], [1, 0]]


def test_tokens_dicts_and_compiled_models():
    torch.manual_seed(0)
    net = seq(nn.Embedding(7, 4), nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU())
    tokens = torch.randint(0, 7, (6, 3))
    lc = local_complexity(net, tokens, radius=0.1, n_directions=4, method="linear")
    assert lc.at == "0"
    assert lc.counts.sum() > 0
    tail = net[2:]
    x = torch.randn(6, 12)
    expected = local_complexity(tail, x, radius=0.1, n_directions=4, method="linear").counts
    assert torch.equal(
        local_complexity(tail, {"input": x}, radius=0.1, n_directions=4, method="linear").counts, expected
    )
    compiled = torch.compile(tail, backend="eager")
    compiled(x)
    assert torch.equal(local_complexity(compiled, x, radius=0.1, n_directions=4, method="linear").counts, expected)


def test_what_is_not_finite_is_marked():
    net = seq(nn.Linear(3, 9), nn.ReLU(), nn.Linear(9, 9), nn.ReLU())
    net[2].weight.data[0, 0] = float("nan")
    lc = local_complexity(net, torch.zeros(2, 3), radius=0.5, n_directions=3, method="linear")
    assert (lc.counts[:, 1] == -1).all()
    assert (lc.counts[:, 0] >= 0).all()


@pytest.mark.parametrize("argument", [{"layers": [nn.Linear]}, {"max_pool": True}, {"bracket": True}])
def test_what_the_linear_method_does_not_take(argument):
    with pytest.raises(ValueError, match="`method='linear'` follows all non-linearities"):
        local_complexity(seq(nn.Linear(3, 9), nn.ReLU()), torch.zeros(2, 3), method="linear", **argument)


def test_other_methods():
    with pytest.raises(ValueError, match="`method` must be 'vertices' or 'linear', but got 'tangents'"):
        local_complexity(seq(nn.Linear(3, 9), nn.ReLU()), torch.zeros(2, 3), method="tangents")


def test_critical_radii_need_the_linear_method():
    lc = local_complexity(seq(nn.Linear(3, 9), nn.ReLU()), torch.zeros(2, 3), n_directions=3)
    with pytest.raises(ValueError, match="critical radii need `method='linear'`"):
        _ = lc.density
    linear = local_complexity(seq(nn.Linear(3, 9), nn.ReLU()), torch.zeros(2, 3), n_directions=3, method="linear")
    for share in (0, 1.1):
        with pytest.raises(ValueError, match="`share` must be above 0 and at most 1"):
            linear.critical_radius(share)


# Networks whose affine pieces do not show where units switch


def test_smooth_networks_do_not_depend_on_the_other_radii():
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Linear(5, 30), nn.SiLU(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, 9), nn.GELU()),
        points(40, 5),
    )
    alone = local_complexity(net, x, radius=2.0, n_directions=5, method="linear")
    among = local_complexity(net, x, radius=[2.0, 0.1, 1e-4], n_directions=5, method="linear")
    assert torch.equal(among.counts[0], alone.counts)
    assert among.density == alone.density
    exact = local_complexity(net.double(), x, radius=2.0, n_directions=5, method="linear")  # by smaller steps
    assert (alone.counts - exact.counts).abs().sum() <= 0.002 * exact.counts.sum()


@pytest.mark.parametrize("jump", [torch.sign, torch.round, lambda x: x + (x.round() - x).detach()])
def test_networks_that_jump_are_counted_by_vertices(jump):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 30), nn.ReLU(), Call(jump), nn.Linear(30, 20), nn.ReLU())
    with pytest.warns(UserWarning, match=r"the model jumps \((sign|round)\).*counting by vertices"):
        found = local_complexity(net, points(10, 5), radius=0.3, n_directions=5, method="linear")
    assert torch.equal(found.counts, local_complexity(net, points(10, 5), radius=0.3, n_directions=5).counts)
    assert found.histogram is None


class Quantised(nn.Module):
    """A layer behind something that is constant but for jumps."""

    def __init__(self, quantise):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 30), nn.Linear(30, 2)
        self.codes = nn.Parameter(torch.randn(12, 6))
        self.quantise = quantise

    def forward(self, x):
        return self.c(torch.relu(self.b(self.quantise(self, self.a(x)))))


QUANTISERS = {
    "fake_quantize": lambda net, z: torch.fake_quantize_per_tensor_affine(z, 0.2, 0, -128, 127),
    "cast": lambda net, z: (3 * z).int().to(z.dtype),
    "codes": lambda net, z: net.codes[torch.cdist(z, net.codes).argmin(1)],
    "bins": lambda net, z: torch.bucketize(z, torch.linspace(-1, 1, 9, dtype=z.dtype)).to(z.dtype),
    "compared": lambda net, z: (z > 0.3).to(z.dtype),
}


@pytest.mark.parametrize("name", QUANTISERS)
def test_what_quantises_is_counted_by_vertices(name):
    torch.manual_seed(0)
    net, x = Quantised(QUANTISERS[name]), points(40, 4).float()
    expected = local_complexity(net, x, radius=0.1, n_directions=4)
    with pytest.warns(UserWarning, match="the model jumps .*counting by vertices"):
        found = local_complexity(net, x, radius=0.1, n_directions=4, method="linear")
    assert torch.equal(found.counts, expected.counts)


@pytest.mark.filterwarnings("error")
def test_what_is_decided_behind_the_last_layer_or_by_single_values_is_no_jump():
    class Predicts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 20), nn.Linear(20, 3)

        def forward(self, x):
            z = self.a(x) * (x != 0).any(1, keepdim=True)
            logits = self.b(torch.relu(z))
            return {"logits": logits, "class": logits.argmax(1), "sure": logits > 3}

    found = local_complexity(Predicts(), points(20, 4).float(), radius=0.1, n_directions=4, method="linear")
    assert found.density > 0


def test_rounded_sizes_are_no_jumps():
    net = Call(lambda x: F.relu(x * torch.tensor(2.4).round()))
    assert local_complexity(net, points(10, 5), radius=0.3, n_directions=5, method="linear").histogram is not None


def test_a_point_that_lies_far_out_changes_no_count_of_the_others():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(10, 64), nn.LayerNorm(64), nn.ReLU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ReLU())
    x = torch.randn(40, 10)
    x[-1] *= 1000
    setting = {"radius": 0.05, "n_directions": 10, "method": "linear"}
    expected = local_complexity(net, x[:-1], **setting).counts
    assert expected.sum() > 100
    assert torch.equal(local_complexity(net, x, **setting).counts[:-1], expected)


def test_points_may_have_a_number_each():
    class Timed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm = nn.Linear(5, 40), nn.LayerNorm(40)

        def forward(self, x, t):
            return torch.relu(self.norm(self.a(torch.cat([x, t[:, None]], 1))))

    torch.manual_seed(0)
    net, inputs = Timed().double(), (points(30, 4), points(30, seed=1))
    by = {m: local_complexity(net, inputs, radius=0.02, n_directions=5, method=m) for m in ("vertices", "linear")}
    assert by["linear"].mean == pytest.approx(by["vertices"].mean, rel=0.05)
    assert by["linear"].mean > 0.3


def test_units_on_their_kink_switch_at_any_radius():
    net = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.ReLU())
    x = torch.zeros(4, 1, 8, 8)
    x[:, :, 2:6, 2:6] = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)) + 0.1
    lc = local_complexity(net, x, radius=1e-6, method="linear", n_directions=5)
    assert lc.mean > 200  # those that see the border only
    assert lc.critical_radius(0.01) == 0.0
    assert lc.density == math.inf
    assert 0 < lc.critical_radius(0.9) < math.inf


def test_a_value_that_is_not_finite_leaves_no_density():
    net, x = nn.Sequential(nn.Linear(5, 30), nn.ReLU()), points(10, 5)
    x[3, 2] = float("nan")
    found = local_complexity(net, x, radius=0.3, n_directions=5, method="linear")
    assert math.isnan(found.mean)
    assert math.isnan(found.density)
    assert math.isnan(found.critical_radius(0.1))
