import pytest
import torch
import torch.nn.functional as F
from networks import Call, looked_at, seq
from torch import nn

from lc_callback.engine.counting.task import CountingTask
from lc_callback.engine.replay import route as route_module
from lc_callback.engine.replay.route import _Search
from lc_callback.functional import local_complexity


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


class Again(nn.Module):
    """Uses its input again behind the first non-linearity, with a weight that may be 0."""

    def __init__(self, weight=1.0):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x):
        hidden = F.relu(self.first(x))
        return self.last(hidden + self.weight * F.relu(self.second(x)))


class PreActivation(nn.Module):
    """A residual block whose shortcut leaves before the first non-linearity."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(F.relu(self.norm(x)))
        return self.head(F.relu(x).mean((2, 3)))


class Viewed(nn.Module):
    """Demands the default layout of images."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3), nn.Linear(64, 3)

    def forward(self, x):
        return self.head(F.relu(self.conv(x)).view(len(x), -1))


def prefix_of(net, inputs, dtype=torch.float64, directions=4, **arguments):
    """The name of the module behind which the vertices enter, and whether images are laid out channels last."""
    task = CountingTask.by("vertices", net, inputs, records=False, **arguments)
    with task.ready(0.1, directions, chunk_size=100, dtype=dtype) as counter:
        route = counter.route
        assert counter.layers.space.points.channels_last == route.way.channels_last
    names = {module: name for name, module in net.named_modules()}
    return route.prefix and names[route.prefix.module], route.way.channels_last


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


with torch.random.fork_rng():
    torch.manual_seed(0)
    FOUND = {
        "dense": (seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), draw(4, 5), "0"),
        "flatten": (seq(nn.Flatten(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), draw(4, 2, 4), "1"),
        "nested": (seq(seq(nn.Linear(5, 8), nn.BatchNorm1d(8)), nn.GELU(), nn.Linear(8, 2)), draw(4, 5), "0"),
        "pooling": (seq(nn.Conv2d(2, 3, 3), nn.AvgPool2d(2), nn.ReLU(), nn.Flatten()), draw(4, 2, 6, 6), "1"),
        "max-pooling": (seq(nn.Conv2d(2, 3, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten()), draw(4, 2, 6, 6), "0"),
        "shortcut": (PreActivation(), draw(4, 2, 5, 5), "stem"),
        "dict": (seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2)), {"input": draw(4, 5)}, "0"),
    }


@pytest.mark.parametrize("case", FOUND)
def test_vertices_enter_behind_what_is_affine(case):
    net, inputs, expected = FOUND[case]
    assert prefix_of(net, inputs)[0] == expected
    assert prefix_of(net, inputs, torch.float32)[0] == expected


with torch.random.fork_rng():
    torch.manual_seed(0)
    NOT_FOUND = {
        "layer norm": (seq(nn.Linear(5, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 2)), draw(4, 5), {}, "0"),
        "first of all": (seq(nn.ReLU(), nn.Linear(5, 2)), draw(4, 5), {}, None),
        "square": (seq(Call(torch.square), nn.Linear(5, 8), nn.ReLU()), draw(4, 5), {}, None),
        "unseen kink": (seq(Call(lambda x: x * (x > 0)), nn.Linear(5, 8), nn.ReLU()), draw(4, 5), {}, None),
        "input again": (Again(), draw(4, 5), {}, None),
        "input again, without weight": (Again(0.0), draw(4, 5), {}, None),
        "batch size of the input": (Viewed(), draw(4, 2, 6, 6), {}, None),
        "batch size of the input, one point": (Viewed(), draw(1, 2, 6, 6), {}, None),
        "at": (seq(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 2), nn.ReLU()), draw(4, 5), {"at": "1"}, None),
        "tokens": (seq(nn.Embedding(3, 4), nn.Flatten(), nn.Linear(8, 9), nn.ReLU()), torch.tensor([[0, 1]]), {}, None),
        "affine": (seq(nn.Linear(5, 8), nn.Linear(8, 2)), draw(4, 5), {"layers": [nn.Linear]}, None),
    }


@pytest.mark.parametrize("case", NOT_FOUND)
def test_where_it_would_not_give_the_same_they_do_not(case):
    net, inputs, arguments, expected = NOT_FOUND[case]
    assert prefix_of(net, inputs, **arguments)[0] == expected


def test_masks_stay_with_their_points():
    """Where something belongs to the points, one run before the entrance is not enough."""
    net = nn.Module()
    net.first, net.last = nn.Linear(5, 8), nn.Linear(8, 3)
    net.forward = lambda x, mask: net.last(F.relu(net.first(x)) * mask)
    inputs = {"x": draw(4, 5), "mask": torch.tensor([[1], [1], [0], [1]])}
    assert prefix_of(net, inputs)[0] is None


@pytest.mark.parametrize("case", [*FOUND, *NOT_FOUND])
def test_counts_are_those_of_whole_forward_passes(case, monkeypatch):
    net, inputs, *arguments = {**FOUND, **NOT_FOUND}[case]
    arguments = arguments[0] if isinstance(arguments[0], dict) else {}
    settings = {"radius": [0.1, 0.5], "n_directions": 3, "max_pool": True, "chunk_size": 7, **arguments}
    found = local_complexity(net.double(), inputs, **settings)
    net.float()
    single = local_complexity(net, inputs, **settings)
    monkeypatch.setattr(_Search, "_behind_modules", lambda *arguments, **named: iter(()))
    expected = local_complexity(net.double(), inputs, **settings)
    net.float()
    assert torch.equal(found.counts, expected.counts)
    assert torch.equal(single.counts, expected.counts)


def test_a_prefix_in_a_chunk_of_one():
    net, x = seq(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU()).double(), draw(3, 5)
    expected = local_complexity(net, x, radius=0.3, n_directions=4).counts
    assert torch.equal(local_complexity(net, x, radius=0.3, n_directions=4, chunk_size=1).counts, expected)
    assert expected.sum() > 5


class Changed(nn.Module):
    """What a module returns is written to before, between and behind the non-linearities that take it."""

    def __init__(self, before):
        super().__init__()
        self.first, self.last, self.before = nn.Linear(5, 8), nn.Linear(8, 8), before

    def forward(self, x):
        z = self.first(x)
        if self.before:
            z += torch.linspace(-1, 1, 8)
        y = F.relu(z)
        z.mul_(torch.linspace(-2, 2, 8))
        return F.relu(self.last(F.leaky_relu(z) + y))


@pytest.mark.parametrize("before", [True, False])
def test_the_extremes_of_what_entered_are_known_until_it_is_changed(before, monkeypatch):
    torch.manual_seed(0)
    net, x = Changed(before).double(), draw(30, 5)
    with CountingTask.by("vertices", net, x).ready(0.3, 3) as counter:
        found = counter.count_set(0, [0.3, 1.0]).counts
        assert counter.route.prefix is not None
    monkeypatch.setattr(_Search, "_behind_modules", lambda *arguments, **named: iter(()))
    expected = CountingTask.by("vertices", net, x).measure([0.3, 1.0], 3).counts
    assert torch.equal(found, expected)
    assert found.sum() > 50


# The layout of images


def test_images_are_laid_out_channels_last_where_that_gives_the_same():
    assert prefix_of(PreActivation(), draw(4, 2, 5, 5), torch.float32) == ("stem", True)
    assert prefix_of(PreActivation(), draw(4, 2, 5, 5)) == ("stem", False)  # slower in float64
    assert prefix_of(seq(nn.Linear(5, 8), nn.ReLU()), draw(4, 5), torch.float32) == ("0", False)


def test_a_view_keeps_the_layout_and_the_counts():
    net, x = Viewed(), draw(4, 2, 6, 6)
    assert prefix_of(net, x, torch.float32) == (None, False)
    found = local_complexity(net, x, radius=0.5, n_directions=5)
    assert torch.equal(found.counts, local_complexity(net.double(), x, radius=0.5, n_directions=5).counts)
    assert found.total.sum() > 0


def test_counts_do_not_depend_on_the_layout(monkeypatch):
    torch.manual_seed(0)
    net, x = PreActivation(), draw(6, 2, 5, 5)
    found = local_complexity(net, x, radius=0.5, n_directions=5, chunk_size=4)
    monkeypatch.setattr(route_module, "has_images", lambda space: False)
    assert torch.equal(found.counts, local_complexity(net, x, radius=0.5, n_directions=5, chunk_size=4).counts)
    assert found.counts.sum() > 20


# Values that are not finite


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("vertex", [0, 3])
def test_one_value_that_is_not_finite_marks_its_point_and_layer(value, vertex):
    bad = torch.tensor(value)

    class Spoiled(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(2, 3), nn.Linear(3, 3)

        def forward(self, x):
            z = looked_at(self.first(x))
            if len(z) == 4 * 5:
                z = z.clone()
                z[5 * vertex + 2, 1] = bad
            return F.relu(self.last(F.relu(z).nan_to_num(0.0, 0.0, 0.0)))

    torch.manual_seed(0)
    lc = local_complexity(Spoiled(), draw(5, 2), radius=0.1, n_directions=2, chunk_size=20)
    counts = torch.tensor([[-1 if i == 2 else 0, 0] for i in range(5)])
    assert torch.equal(lc.counts < 0, counts < 0)


def test_large_values_are_not_taken_for_infinite_ones():
    net, x = seq(nn.Linear(2, 400), nn.ReLU()), draw(3, 2)
    with torch.no_grad():
        net[0].bias.zero_()
    expected = local_complexity(net, x, radius=0.5, n_directions=2).counts
    net[0].weight.data *= 1e38
    assert torch.equal(local_complexity(net, x, radius=0.5, n_directions=2).counts, expected)


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("fill", ["where", "nan_to_num"])
def test_points_that_the_first_operations_treat_in_another_way_do_not_enter_behind_them(fill, method):
    """Coordinates that are missing do not move, and at the first and the last point there are none."""

    class Imputes(nn.Module):
        def __init__(self):
            super().__init__()
            self.mean, self.a, self.b = nn.Parameter(torch.zeros(6)), nn.Linear(6, 50), nn.Linear(50, 2)

        def forward(self, x):
            x = torch.where(x.isnan(), self.mean, x) if fill == "where" else x.nan_to_num(0.0)
            return self.b(torch.relu(self.a(x)))

    torch.manual_seed(0)
    net, x = Imputes().double(), draw(8, 6)
    x[3, :5] = x[4, 0] = float("nan")
    setting = {"radius": 0.5, "n_directions": 6, "method": method}
    together = local_complexity(net, x, **setting)
    alone = [local_complexity(net, x[i : i + 1], **setting).counts for i in range(8)]
    assert torch.equal(together.counts, torch.cat(alone))
    assert (together.total > 0).all()
