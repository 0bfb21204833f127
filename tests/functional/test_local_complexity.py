import copy
import itertools
import math
import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import Calls
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import draw, looked_at, mlp
from torch import nn

from lc_callback.engine.chunks import default_chunk
from lc_callback.functional import cross_polytope_frame, local_complexity

# The twin: NumPy only


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


ACTIVATIONS = {
    "relu": (F.relu, lambda z: z * (z > 0), [0]),
    "leaky_relu": (F.leaky_relu, lambda z: np.where(z > 0, z, 0.01 * z), [0]),
    "gelu": (F.gelu, lambda z: z / 2 * (1 + np.vectorize(math.erf)(z / 2**0.5)), [0]),
    "tanh": (torch.tanh, np.tanh, [0]),
    "sigmoid": (torch.sigmoid, sigmoid, [0]),
    "silu": (F.silu, lambda z: z * sigmoid(z), [0]),
    "elu": (F.elu, lambda z: np.where(z > 0, z, np.expm1(np.minimum(z, 0))), [0]),
    "relu6": (F.relu6, lambda z: np.clip(z, 0, 6), [0, 6]),
    "hardtanh": (F.hardtanh, lambda z: np.clip(z, -1, 1), [-1, 1]),
    "hardswish": (F.hardswish, lambda z: z * np.clip(z + 3, 0, 6) / 6, [-3, 3]),
    "softshrink": (F.softshrink, lambda z: np.sign(z) * np.maximum(abs(z) - 0.5, 0), [-0.5, 0.5]),
    "clamp": (lambda z: z.clamp(-0.3, 2), lambda z: np.clip(z, -0.3, 2), [-0.3, 2]),
    "abs": (torch.abs, np.abs, [0]),
}


def affine(u, w, b):
    if w.ndim == 2:
        return u @ w.T + b
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(u, [(0, 0), (0, 0), (1, 1), (1, 1)]), (3, 3), (2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, w) + b[:, None, None]


def twin(weights, activation, residual, x, frame, radius):
    """Counts ``(L,)`` at one point, and how near to a kink any vertex comes (relative to the layer's largest value)."""
    _, act, kinks = ACTIVATIONS[activation]
    u = np.concatenate([x + radius * frame, x - radius * frame])
    counts, nearest = [], np.inf
    for w, b in weights:
        z = affine(u, w, b)
        crossed = [(z > k).any(0) & (z <= k).any(0) for k in kinks]
        counts.append(np.any(crossed, 0).sum())
        nearest = min(nearest, *(abs(z - k).min() / abs(z).max() for k in kinks))
        u = act(z) + u if residual and u.shape == z.shape else act(z)
    return counts, nearest


class Net(nn.Module):
    def __init__(self, weights, activation, residual):
        super().__init__()
        self.weights = nn.ParameterList(torch.from_numpy(array) for pair in weights for array in pair)
        self.act, self.residual = ACTIVATIONS[activation][0], residual

    def forward(self, u):
        for w, b in zip(self.weights[::2], self.weights[1::2], strict=True):
            z = F.linear(u, w, b) if w.ndim == 2 else F.conv2d(u, w, b, padding=1)
            u = self.act(z) + u if self.residual and u.shape == z.shape else self.act(z)
        return u.flatten(1).sum(1)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(
    seed=st.integers(0, 10**6),
    widths=st.lists(st.integers(1, 9), min_size=2, max_size=6),
    constant_width=st.booleans(),  # else a residual connection is rare
    conv=st.booleans(),
    activation=st.sampled_from(sorted(ACTIVATIONS)),
    residual=st.booleans(),
    n_directions=st.integers(1, 12),
    log_radius=st.floats(-3, 1),
    chunk_size=st.sampled_from([None, 1, 7, 64]),
)
def test_counts_are_those_of_the_twin(
    seed, widths, constant_width, conv, activation, residual, n_directions, log_radius, chunk_size
):
    rng = np.random.default_rng(seed)
    widths = [widths[0]] * len(widths) if constant_width else widths
    kernel, shape = ((3, 3), (widths[0], 3, 4)) if conv else ((), (widths[0],))
    gain = (18 / 9 if conv else 2) ** 0.5
    weights = [
        (rng.normal(size=(b, a, *kernel)) * gain / (a * (9 if conv else 1)) ** 0.5, rng.normal(size=b) / 2)
        for a, b in itertools.pairwise(widths)
    ]
    n_directions, radius = min(n_directions, math.prod(shape)), 10**log_radius
    x = rng.normal(size=(3, *shape))
    lc = local_complexity(
        Net(weights, activation, residual),
        torch.from_numpy(x),
        radius=radius,
        n_directions=n_directions,
        seed=seed,
        chunk_size=chunk_size,
    )
    frame = cross_polytope_frame(shape, n_directions, seed=seed, dtype=torch.float64).numpy()
    expected, nearest = zip(*(twin(weights, activation, residual, point, frame, radius) for point in x), strict=True)
    assert min(nearest) > 1e-10  # no vertex so near to a kink that the rounding of a BLAS decides
    assert lc.counts.tolist() == np.array(expected).tolist()


# What the paper says


@pytest.mark.slow
def test_a_linear_network_without_biases_switches_everywhere_at_the_origin():
    torch.manual_seed(0)
    widths = [784] + [400] * 50
    net = nn.Sequential(*(nn.Linear(a, b, bias=False) for a, b in itertools.pairwise(widths)))
    radii = [1e-4, 1e-3, 1e-2, 0.1, 1, 10]
    for n_directions in (2, 10, 25, 50, 100, 200):
        lc = local_complexity(
            net, torch.zeros(1, 784), radius=radii, n_directions=n_directions, layers=[nn.Linear], chunk_size=400
        )
        assert (lc.counts == 400).all()
        assert lc.counts.shape == (6, 1, 50)
        assert lc.total.tolist() == [[20_000]] * 6


@pytest.mark.parametrize("radius", [0.01, 0.3, 2.0])
def test_the_first_layer_is_exact(radius):
    net, x = mlp(9, 200, 2), draw(6, 9)
    frame = cross_polytope_frame(9, 4, seed=2, dtype=torch.float64).numpy()
    w, b = (p.detach().numpy() for p in net[0].parameters())
    expected = abs(x.numpy() @ w.T + b) < radius * abs(w @ frame.T).max(1)
    lc = local_complexity(net, x, radius=radius, n_directions=4, seed=2)
    assert lc.counts[:, 0].tolist() == expected.sum(1).tolist()
    assert expected.sum() > 0


def test_more_directions_of_a_nested_frame_never_lower_a_count():
    net, x = mlp(12, 20, 20, 20, 2), draw(5, 12)
    counts = [local_complexity(net, x, radius=0.3, n_directions=p, seed=4).counts for p in range(1, 13)]
    assert all((more >= fewer).all() for fewer, more in itertools.pairwise(counts))
    assert counts[-1].sum() > counts[0].sum()


def test_kinks_out_of_reach_count_zero():
    net = mlp(3, 5, 1)
    nn.init.constant_(net[0].bias, 100.0)
    assert local_complexity(net, draw(4, 3), radius=0.1, n_directions=3).total.tolist() == [0, 0, 0, 0]


def test_zero_is_not_above_the_kink():
    # Vertices on the kink are one side, whatever the other sign: sign(0) is no third state.
    line = nn.Sequential(nn.Identity(), nn.ReLU())
    below, above = torch.tensor([[-0.5]]), torch.tensor([[0.5]])
    assert local_complexity(line, below, radius=0.5, n_directions=1).total.tolist() == [0]
    assert local_complexity(line, above, radius=0.5, n_directions=1).total.tolist() == [1]


# Arguments that change no count, or in a known way


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 19, 20, 21, 40, 1000])
def test_chunk_size_changes_no_count(chunk_size):
    net, x = mlp(10, 16, 16, 2), draw(7, 10)
    whole = local_complexity(net, x, radius=0.4, n_directions=10, chunk_size=10**6)
    assert torch.equal(
        local_complexity(net, x, radius=0.4, n_directions=10, chunk_size=chunk_size).counts, whole.counts
    )
    assert whole.counts.sum() > 20


def test_no_forward_pass_is_larger_than_the_chunk():
    sizes = Calls()
    net = mlp(6, 8, 1).insert(2, nn.Identity())
    net[2].forward = lambda x: sizes.append(len(x)) or looked_at(x)
    local_complexity(net, draw(5, 6), n_directions=6, chunk_size=30)
    assert max(sizes) == 24
    assert sizes[-3:] == [24, 24, 12]
    sizes.clear()
    local_complexity(net, draw(2, 6), n_directions=6, chunk_size=5)
    assert max(sizes) == 5
    assert sizes[-6:] == [5, 5, 2, 5, 5, 2]


@pytest.mark.parametrize(("megabytes", "samples"), [(1 / 64, 512), (0.25, 32), (3, 32), (12, 8), (100, 1)])
def test_a_few_large_samples_are_in_one_pass(megabytes, samples):
    assert default_chunk(torch.device("cpu"), int(megabytes * 2**20)) == samples
    assert default_chunk(torch.device("cuda"), int(megabytes * 2**20)) == int(512 / megabytes)


def test_more_than_255_vertices_are_counted_right():
    # A byte holds no more: 256 vertices above would look like none.
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    x = torch.full((1, 300), 5.0)
    x[0, :7] = 0.001
    directions = torch.eye(300)
    lc = local_complexity(net, x, radius=0.1, directions=directions)
    assert lc.total.tolist() == [7]
    assert local_complexity(net, x, radius=0.1, directions=directions[:128]).total.tolist() == [7]


def test_several_radii_are_separate_calls():
    net, x = mlp(5, 12, 12, 2), draw(6, 5)
    radii = [0.01, 0.2, 3]
    together = local_complexity(net, x, radius=radii, n_directions=5)
    apart = [local_complexity(net, x, radius=radius, n_directions=5) for radius in radii]
    assert torch.equal(together.counts, torch.stack([lc.counts for lc in apart]))
    assert torch.equal(together.total, torch.stack([lc.total for lc in apart]))
    assert together.mean.tolist() == [lc.mean for lc in apart]
    assert together.sem.tolist() == pytest.approx([lc.sem for lc in apart])
    assert together.layer_means == [lc.layer_means for lc in apart]
    assert together.radius == radii
    assert local_complexity(net, x, radius=[0.2], n_directions=5).counts.shape == (1, 6, 2)


def test_statistics_are_those_of_numpy():
    lc = local_complexity(mlp(5, 30, 12, 2), draw(8, 5), radius=0.5, n_directions=5)
    total = lc.counts.numpy().sum(1)
    assert lc.counts.dtype == torch.int64
    assert lc.total.tolist() == total.tolist()
    assert isinstance(lc.mean, float)
    assert lc.mean == pytest.approx(total.mean())
    assert lc.sem == pytest.approx(total.std(ddof=1) / 8**0.5)
    assert lc.sem > 0
    assert lc.ci99 == pytest.approx(2.575829 * lc.sem)
    assert lc.layer_means == pytest.approx(lc.counts.numpy().mean(0).tolist())
    assert lc.layer_names == ["1", "3"]
    assert lc.layer_sizes == [30, 12]
    assert math.isnan(local_complexity(mlp(5, 3, 2), draw(1, 5), n_directions=5).sem)


def test_directions_are_used_as_given():
    net, x = mlp(6, 40, 2), draw(5, 2, 3)
    net = nn.Sequential(nn.Flatten(), *net)
    given_directions = torch.tensor([[3.0, 0, 0, 0, 0, 0], [1.0, 1, 0, 0, 0, 0]])  # neither unit nor orthogonal
    lc = local_complexity(net, x, radius=0.2, directions=given_directions)
    w, b = net[1].weight.detach(), net[1].bias.detach()
    reach = 0.2 * (w @ given_directions.double().T).abs().amax(1)
    assert lc.total.tolist() == ((x.flatten(1) @ w.T + b).abs() < reach).sum(1).tolist()
    shaped = local_complexity(net, x, radius=0.2, directions=given_directions.view(2, 2, 3))
    assert torch.equal(shaped.counts, lc.counts)


def test_directions_of_the_default_frame_are_the_default():
    net, x = mlp(6, 40, 2), draw(5, 6)
    frame = cross_polytope_frame(6, 3, seed=9, dtype=torch.float64)
    given_frame = local_complexity(net, x, radius=0.5, directions=frame)
    assert torch.equal(given_frame.counts, local_complexity(net, x, radius=0.5, n_directions=3, seed=9).counts)
    assert not torch.equal(given_frame.counts, local_complexity(net, x, radius=0.5, n_directions=3, seed=8).counts)


@pytest.mark.parametrize(
    "directions", [torch.ones(2, 5), torch.ones(6), torch.ones(0, 6), torch.full((1, 6), torch.nan), [[1.0] * 6]]
)
def test_wrong_directions_are_named(directions):
    with pytest.raises(ValueError, match="`directions` must be"):
        local_complexity(mlp(6, 4, 2), draw(2, 6), directions=directions)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *[("radius", value) for value in (0, -1, math.inf, math.nan, [], [1, -1], [0.1, 0.1], "auto", True, None)],
        *[("n_directions", value) for value in (0, 4, 2.0, True, "3")],
        *[("chunk_size", value) for value in (0, -3, 2.5, True)],
        ("at", 3),
        ("at", "9"),
        ("method", "exact"),
    ],
)
def test_arguments_out_of_range_are_named(argument, value):
    with pytest.raises(ValueError, match=f"`{argument}"):
        local_complexity(mlp(3, 4, 2), draw(2, 3), **{"n_directions": 3, argument: value})


@pytest.mark.parametrize(
    "inputs", [torch.zeros(0, 3), torch.tensor(1.0), "points", (torch.zeros(2, 3), torch.zeros(3))]
)
def test_wrong_inputs_are_named(inputs):
    with pytest.raises(ValueError, match="`inputs` must be one or more tensors"):
        local_complexity(mlp(3, 4, 2), inputs, n_directions=3)


def test_a_function_is_no_model():
    with pytest.raises(ValueError, match=r"`model` must be a torch\.nn\.Module, but got function"):
        local_complexity(lambda x: x, draw(2, 3))


def test_progress_reaches_the_end():
    calls = []
    local_complexity(
        mlp(3, 4, 2),
        draw(5, 3),
        radius=[0.1, 1],
        n_directions=3,
        chunk_size=12,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(2, 10), (4, 10), (5, 10), (7, 10), (9, 10), (10, 10)]


# Where it is perturbed


def test_at_a_hidden_layer_is_the_rest_of_the_network_at_its_output():
    net, x = mlp(5, 8, 7, 6, 2), draw(4, 5)
    lc = local_complexity(net, x, radius=0.3, n_directions=6, at="2")
    rest = local_complexity(net[3:], net[:3](x).detach(), radius=0.3, n_directions=6)
    assert torch.equal(lc.counts, rest.counts)
    assert lc.at == "2"
    assert rest.at is None
    assert lc.layer_names == ["3", "5"]  # what runs before is not counted
    assert lc.counts.sum() > 5
    chunked = local_complexity(net, x, radius=0.3, n_directions=6, at="2", chunk_size=5)
    assert torch.equal(chunked.counts, lc.counts)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.position, self.token = nn.Embedding(5, 4), nn.Embedding(11, 4)
        self.tail = nn.Sequential(nn.Flatten(), nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 2))

    def forward(self, ids):
        x = self.token(ids)
        return self.tail(x + self.position(torch.arange(5)))


def test_tokens_are_perturbed_at_the_first_embedding_that_runs():
    net = Tokens().double()
    ids = torch.randint(0, 11, (6, 5), generator=torch.Generator().manual_seed(0))
    lc = local_complexity(net, ids, radius=0.5, n_directions=20)
    embedded = (net.token(ids) + net.position.weight).detach()
    assert lc.at == "token"
    assert torch.equal(lc.counts, local_complexity(net.tail, embedded, radius=0.5, n_directions=20).counts)
    assert len(set(lc.total.tolist())) > 1


def test_integers_without_an_embedding_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"`inputs` holds no floating-point tensor.*`at=`"):
        local_complexity(nn.ReLU(), torch.ones(2, 3, dtype=torch.long))


def test_at_a_module_that_does_not_run_or_returns_no_tensor_is_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.unused = nn.LSTM(3, 4), nn.Linear(3, 3)

        def forward(self, x):
            return torch.relu(self.lstm(x)[0])

    with pytest.raises(ValueError, match="`at='lstm'` must name a module that returns a tensor"):
        local_complexity(Net(), torch.randn(2, 3), n_directions=3, at="lstm")
    with pytest.raises(ValueError, match="after 'unused', whose output is perturbed"):
        local_complexity(Net(), torch.randn(2, 3), n_directions=3, at="unused")


def test_at_a_module_whose_output_is_not_batch_first_is_named():
    class TimeFirst(nn.Module):
        def __init__(self):
            super().__init__()
            self.swap = nn.Identity()

        def forward(self, x):
            return torch.relu(self.swap(x.transpose(0, 1)))

    with pytest.raises(ValueError, match=r"`at='swap'` must name a module whose output has the batch first"):
        local_complexity(TimeFirst(), draw(2, 5, 3), n_directions=3, at="swap")


# Other ways to write the same network


class Functional(nn.Module):
    def __init__(self, net, relu):
        super().__init__()
        self.linears, self.relu = nn.ModuleList(net[::2]), relu

    def forward(self, x):
        for linear in self.linears[:-1]:
            x = self.relu(linear(x))
        return self.linears[-1](x)


@pytest.mark.parametrize(
    "relu",
    [
        F.relu,
        torch.relu,
        torch.relu_,
        lambda x: x.relu(),
        lambda x: x.clamp(min=0),
        lambda x: torch.maximum(x, torch.zeros(())),
        nn.ReLU(),  # one module, used three times
        nn.ReLU(inplace=True),
        nn.Threshold(0, 0, inplace=True),
    ],
)
def test_however_the_relu_is_written_the_count_is_the_same(relu):
    net, x = mlp(6, 9, 8, 7, 2), draw(5, 6)
    explicit = local_complexity(net, x, radius=0.5, n_directions=6)
    other = local_complexity(Functional(net, relu), x, radius=0.5, n_directions=6)
    assert torch.equal(other.counts, explicit.counts)
    assert other.layer_sizes == explicit.layer_sizes == [9, 8, 7]
    assert explicit.counts.sum(0).min() > 0


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.* is deprecated")
def test_a_scripted_network_is_counted():
    net, x = mlp(6, 9, 8, 2), draw(5, 6)
    scripted = local_complexity(torch.jit.script(net), x, radius=0.5, n_directions=6)
    assert torch.equal(scripted.counts, local_complexity(net, x, radius=0.5, n_directions=6).counts)


@pytest.mark.usefixtures("looks_into_compiled_modules")
def test_a_compiled_network_or_part_is_counted_under_its_own_names():
    net, x = mlp(6, 9, 8, 2), draw(5, 6)
    eager = local_complexity(net, x, radius=0.5, n_directions=6)
    compiled = torch.compile(net, backend="eager")
    compiled(x)  # code that is there must not be used
    part = nn.Sequential(torch.compile(net, backend="eager"))
    in_place = copy.deepcopy(net)
    in_place.compile(backend="eager")
    for model, names in ((compiled, ["1", "3"]), (part, ["0.1", "0.3"]), (in_place, ["1", "3"])):
        lc = local_complexity(model, x, radius=0.5, n_directions=6)
        assert torch.equal(lc.counts, eager.counts)
        assert lc.layer_names == names


def test_every_unit_of_a_feature_map_counts():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(27, 2)).double()
    net(draw(8, 2, 5, 5))  # running statistics
    lc = local_complexity(net, draw(4, 2, 5, 5), radius=0.5, n_directions=10)
    assert lc.layer_sizes == [27]
    folded = copy.deepcopy(net).eval()
    assert torch.equal(lc.counts, local_complexity(folded, draw(4, 2, 5, 5), radius=0.5, n_directions=10).counts)
    assert lc.counts.sum() > 4


def test_max_pool_counts_changed_winners():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()).double()
    x, radius = draw(5, 1, 6, 6), 0.4
    frame = cross_polytope_frame((1, 6, 6), 8, dtype=torch.float64).numpy()
    lc = local_complexity(net, x, radius=radius, n_directions=8, max_pool=True)
    w, b = (p.detach().numpy() for p in net[0].parameters())
    for point, counts in zip(x.numpy(), lc.counts.tolist(), strict=True):
        z = np.maximum(affine(np.concatenate([point + radius * frame, point - radius * frame]), w, b), 0)
        winners = z.reshape(-1, 3, 3, 2, 3, 2).swapaxes(3, 4).reshape(-1, 27, 4).argmax(2)
        assert counts[1] == (winners != winners[0]).any(0).sum()
    assert lc.layer_names == ["1", "2"]
    assert lc.layer_sizes == [108, 27]
    assert lc.counts[:, 1].min() > 0
    chunked = local_complexity(net, x, radius=radius, n_directions=8, max_pool=True, chunk_size=1)
    assert torch.equal(chunked.counts, lc.counts)
    without = local_complexity(net, x, radius=radius, n_directions=8)
    assert without.layer_names == ["1"]
    assert torch.equal(without.counts[:, 0], lc.counts[:, 0])


def test_an_lstm_is_one_layer_of_all_its_gates():
    torch.manual_seed(0)
    lstm = nn.LSTM(2, 4, batch_first=True).double()
    x, radius = draw(5, 3, 2), 0.5
    lc = local_complexity(Last(lstm), x, radius=radius, n_directions=6)
    assert lc.layer_names == ["rnn"]
    assert lc.layer_sizes == [3 * 5 * 4]  # steps, three sigmoids and two tanh, hidden units
    frame = cross_polytope_frame((3, 2), 6, dtype=torch.float64).numpy()
    weights = {name: value.detach().numpy() for name, value in lstm.named_parameters()}
    bias = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    for point, count in zip(x.numpy(), lc.total.tolist(), strict=True):
        u = np.concatenate([point + radius * frame, point - radius * frame])
        h = c = np.zeros((12, 4))
        met = []
        for step in range(3):
            z = u[:, step] @ weights["weight_ih_l0"].T + h @ weights["weight_hh_l0"].T + bias
            i, f, g, o = np.split(z, 4, axis=1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
            met += [z > 0, c > 0]
        above = np.concatenate(met, axis=1)
        assert count == (above.any(0) & ~above.all(0)).sum()
        assert count > 0


class Last(nn.Module):
    """A recurrent module and a head on its last step."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(4, 1).double()

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


@pytest.mark.parametrize(("kind", "per_unit"), [(nn.LSTM, 5), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_modules_are_one_layer(kind, per_unit):
    torch.manual_seed(0)
    lc = local_complexity(Last(kind(2, 4, num_layers=2, batch_first=True).double()), draw(2, 3, 2), n_directions=6)
    assert lc.layer_names == ["rnn"]
    assert lc.layer_sizes == [2 * 3 * 4 * per_unit]


def test_a_transformer_layer_does_not_hide_behind_its_fused_kernel():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).double()
    x = draw(4, 3, 8)
    for net in (layer.train(), layer.eval(), nn.TransformerEncoder(layer, 1).eval()):
        lc = local_complexity(net, x, radius=0.5, n_directions=10)
        linear = local_complexity(net, x, radius=0.5, n_directions=10, layers=["*linear1"])
        assert lc.layer_sizes == [3 * 16]
        assert torch.equal(lc.counts, linear.counts)
        assert lc.counts.sum() > 4
    assert torch.backends.mha.get_fastpath_enabled()


# Inputs and calls


def test_a_tuple_is_one_product_space_of_positional_arguments():
    class Two(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, image, vector, flag):
            return self.net(torch.cat([image.flatten(1), vector], 1) * (1 - flag[:, None]))

    net, image, vector = mlp(6, 30, 2), draw(5, 2, 2), draw(5, 2, seed=1)
    flag = torch.tensor([0, 0, 0, 0, 1])
    lc = local_complexity(Two(net), (image, vector, flag), radius=0.5, n_directions=6)
    joined = torch.cat([image.flatten(1), vector], 1)
    plain = local_complexity(net, joined, radius=0.5, n_directions=6)
    assert torch.equal(lc.counts[:4], plain.counts[:4])
    assert lc.total[4] == 0  # the integer input went along unperturbed
    assert plain.total[4] > 0


def test_a_dict_is_keywords_and_forward_fn_says_how_to_call():
    class Named(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, *, x, scale=1.0):
            return self.net(x * scale)

        def features(self, x):
            return self.net[:2](x)

    net, x = mlp(4, 20, 20, 2), draw(5, 4)
    plain = local_complexity(net, x, radius=0.5, n_directions=4)
    assert torch.equal(local_complexity(Named(net), {"x": x}, radius=0.5, n_directions=4).counts, plain.counts)
    scaled = local_complexity(Named(net), {"x": x, "scale": 0.5}, radius=0.5, n_directions=4)
    assert not torch.equal(scaled.counts, plain.counts)
    half = local_complexity(
        Named(net), x, radius=0.5, n_directions=4, forward_fn=lambda model, inputs: model.features(inputs)
    )
    assert torch.equal(half.counts, plain.counts[:, :1])
    positional = local_complexity(
        Named(net), (x,), radius=0.5, n_directions=4, forward_fn=lambda model, inputs: model(x=inputs)
    )
    assert torch.equal(positional.counts, plain.counts)


def test_inference_mode_around_the_call_changes_nothing():
    class Counting(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1  # a clone made in inference mode could not be written to
            return self.net(x)

    model, x = Counting(mlp(4, 20, 2)), draw(5, 4)
    outside = local_complexity(model, x, radius=0.5, n_directions=4)
    with torch.inference_mode():
        inside = local_complexity(model, x.clone(), radius=0.5, n_directions=4)
        assert torch.is_inference_mode_enabled()
    assert torch.equal(inside.counts, outside.counts)
    assert not inside.counts.is_inference()
    assert model.calls == 0


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_parameters_are_measured_as_a_float32_copy_and_restored(dtype):
    net = nn.Sequential(nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 2)).to(dtype)
    before = {name: (id(tensor), tensor.clone()) for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    x = draw(5, 6).to(dtype)
    lc = local_complexity(net, x, radius=0.5, n_directions=6)
    wide = local_complexity(copy.deepcopy(net).float(), x.float(), radius=0.5, n_directions=6)
    assert lc.dtype == torch.float32
    assert torch.equal(lc.counts, wide.counts)
    after = {name: (id(tensor), tensor) for name, tensor in [*net.named_parameters(), *net.named_buffers()]}
    assert {name: key for name, (key, _) in after.items()} == {name: key for name, (key, _) in before.items()}
    assert all(torch.equal(tensor, before[name][1]) for name, (_, tensor) in after.items())
    assert net[0].weight.dtype == dtype


def test_a_half_precision_lstm_is_restored():
    lstm = Last(nn.LSTM(2, 4, batch_first=True)).bfloat16()
    weights = [id(weight) for weight in lstm.rnn._flat_weights]
    x = draw(3, 3, 2)
    lc = local_complexity(lstm, x, radius=0.5, n_directions=6)
    assert torch.equal(lc.counts, local_complexity(copy.deepcopy(lstm).float(), x, radius=0.5, n_directions=6).counts)
    assert [id(weight) for weight in lstm.rnn._flat_weights] == weights
    assert lstm(x.bfloat16()).dtype == torch.bfloat16


def test_the_widest_parameter_decides():
    net, x = mlp(3, 4, 2).float(), draw(2, 3)
    assert local_complexity(net, x, n_directions=3).dtype == torch.float32
    net[2].double()
    assert local_complexity(net, x.float(), n_directions=3).dtype == torch.float64


def test_a_step_that_drowns_in_rounding_moves_to_float64_and_says_so():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 300), nn.ReLU(), nn.Linear(300, 2))
    weight = net[0].weight
    x = 1000 + torch.randn(4, 4)
    with torch.no_grad():
        net[0].bias.copy_(-(weight.double() @ x[0].double()))  # every kink passes near the first point
    with pytest.warns(UserWarning, match=r"`radius=0\.0001` is a step of 5.0e-05 .* computing in float64"):
        lc = local_complexity(net, x, radius=1e-4, n_directions=4)
    assert lc.dtype == torch.float64
    assert net[0].weight is weight
    assert weight.dtype == torch.float32
    exact = local_complexity(copy.deepcopy(net).double(), x.double(), radius=1e-4, n_directions=4)
    assert torch.equal(lc.counts, exact.counts)
    assert lc.counts.sum() > 20
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert local_complexity(net, x, radius=1.0, n_directions=4).dtype == torch.float32


def reduced():
    """Whether matrix products of float32 may be computed in less."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if matmul is None:  # torch < 2.9
        return torch.get_float32_matmul_precision() != "highest"
    return matmul.fp32_precision in ("tf32", "bf16") or torch.backends.cuda.matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_is_off_inside_and_restored(precision):
    net, x, inside = mlp(6, 9, 2).float(), draw(5, 6), Calls()
    plain = local_complexity(net, x, radius=0.5, n_directions=6)
    spied = nn.Sequential(nn.Identity(), *net)
    spied[0].forward = lambda x: inside.append(reduced()) or x
    try:
        torch.set_float32_matmul_precision(precision)
        lc = local_complexity(spied, x, radius=0.5, n_directions=6)
        assert reduced()
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
    assert inside
    assert not any(inside)
    assert torch.equal(lc.counts, plain.counts)


def test_autocast_around_the_call_changes_no_count():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(50, 80), nn.ReLU(), nn.Linear(80, 80), nn.ReLU(), nn.Linear(80, 2))
    x = draw(10, 50).float()
    plain = local_complexity(net, x, radius=0.005, n_directions=10)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = local_complexity(net, x, radius=0.005, n_directions=10)
        assert net(x).dtype == torch.bfloat16  # autocast is on again
    assert torch.equal(inside.counts, plain.counts)
    assert plain.counts.sum() > 0


def test_a_cast_inside_the_forward_is_refused():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return torch.relu(self.linear(x))

    with pytest.raises(ValueError, match=r"the pre-activation of 'relu' is computed in torch.bfloat16, too coarse"):
        local_complexity(Cast(), draw(2, 4), n_directions=4)


# What goes wrong later


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_no_counts(value):
    net, x = mlp(4, 8, 8, 2), draw(3, 4)
    with torch.no_grad():
        net[2].weight[0, 0] = value
        net[0].bias[0] = 10.0  # the unit that meets it is on
    lc = local_complexity(net, x, radius=0.5, n_directions=4)
    assert (lc.counts[:, 0] >= 0).all()
    assert lc.counts[:, 1].tolist() == [-1, -1, -1]
    assert lc.total.isnan().all()
    assert math.isnan(lc.mean)
    assert math.isnan(lc.sem)
    assert [math.isnan(mean) for mean in lc.layer_means] == [False, True]


def test_one_broken_point_leaves_the_others():
    x = draw(4, 3)
    x[2, 1] = math.nan
    net = mlp(3, 8, 2)
    lc = local_complexity(net, x, radius=0.5, n_directions=3, chunk_size=4)
    assert lc.total.isnan().tolist() == [False, False, True, False]
    others = [0, 1, 3]
    assert lc.total[others].tolist() == local_complexity(net, x[others], radius=0.5, n_directions=3).total.tolist()


class Small(nn.Module):
    """A network on a machine with room for few samples."""

    def __init__(self, net, room, error):
        super().__init__()
        self.first, self.rest, self.room, self.error, self.sizes = net[:2], net[2:], room, error, Calls()

    def forward(self, x):
        x = self.first(x)
        self.sizes.append(len(x))
        if len(x) not in self.room:
            raise self.error
        return self.rest(looked_at(x))


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("full"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
@pytest.mark.parametrize("most", [3, 8, 13])
def test_out_of_memory_halves_the_chunk_and_changes_no_count(error, most):
    net, x = mlp(6, 9, 9, 2), draw(5, 6)
    small = Small(net, range(most + 1), error)
    calls = []
    lc = local_complexity(
        small, x, radius=0.5, n_directions=6, chunk_size=60, progress=lambda done, total: calls.append(done)
    )
    assert torch.equal(lc.counts, local_complexity(net, x, radius=0.5, n_directions=6).counts)
    failed = [size for size in small.sizes if size > most]
    assert failed == {3: [60, 24, 12, 6], 8: [60, 24, 12], 13: [60, 24]}[most]  # smaller each time, then never again
    assert calls == [1, 2, 3, 4, 5]


class RoomForTwoCalls(list):
    """Those in which the layers are traced."""

    def __contains__(self, size):
        self.append(size)
        return len(self) <= 2


def test_out_of_memory_with_one_sample_ends_the_search():
    small = Small(mlp(6, 9, 2), RoomForTwoCalls(), torch.OutOfMemoryError("full"))
    with pytest.raises(torch.OutOfMemoryError):
        local_complexity(small, draw(2, 6), n_directions=6, chunk_size=1)
    assert [*small.sizes] == [2, 3, 2]  # a single sample runs twice


def test_another_error_is_not_tried_again():
    small = Small(mlp(6, 9, 2), (2, 3), RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        local_complexity(small, draw(2, 6), n_directions=6)
    assert [size for size in small.sizes if size not in (2, 3)] == [24]


def test_a_path_that_depends_on_the_values_is_refused():
    class Branch(nn.Module):
        def forward(self, x):
            x = torch.relu(x)
            return torch.relu(x - 1) if x.max() > 5 else x

    x = torch.tensor([[1.0, 1.0], [9.0, 9.0]])
    with pytest.raises(ValueError, match="executed 2 non-linearities here but 1 when traced"):
        local_complexity(Branch(), x, radius=0.1, n_directions=2)


@pytest.mark.parametrize("read", [torch.Tensor.tolist, torch.Tensor.numpy, np.asarray], ids=["list", "numpy", "array"])
def test_values_that_are_read_past_all_operations_are_warned_of(read):
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(3, 20)

        def forward(self, x, lengths):
            return torch.relu(self.a(x[:, : max(read(lengths))])).sum(1)

    x, lengths = torch.randn(6, 5, 3), torch.tensor([5, 5, 5, 5, 4, 2])
    with pytest.warns(UserWarning, match="looks at values in Python.*`chunk_size`"):
        local_complexity(Cut(), (x, lengths), radius=0.05, n_directions=8)


class FirstBranch(nn.Module):
    """Goes one of two ways with a whole batch, and both have one non-linearity."""

    def __init__(self):
        super().__init__()
        self.one, self.other = nn.Linear(8, 32), nn.Linear(8, 32)

    def forward(self, x):
        return torch.relu(self.one(x) if x.sum() > 0 else self.other(x))


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("chunk_size", [None, 1, 16, 17, 64])
def test_a_way_that_a_whole_batch_takes_is_warned_of(method, chunk_size):
    torch.manual_seed(0)
    net, x = FirstBranch(), torch.randn(64, 8)
    with pytest.warns(UserWarning, match="looks at values in Python.*`chunk_size`"):
        lc = local_complexity(net, x, radius=0.05, n_directions=8, method=method, chunk_size=chunk_size)
    assert 0.4 < lc.mean < 2
    if chunk_size == 1 and method == "vertices":
        ways = {one: net.one if one else net.other for one in (True, False)}
        frame = 0.05 * cross_polytope_frame(8, 8)
        count = 0
        for point in x:
            z = torch.stack([ways[bool(v.sum() > 0)](v) for v in (*(point + frame), *(point - frame))]) > 0
            count += int((z.any(0) & ~z.all(0)).sum())
        assert lc.total.sum() == count


def test_the_model_is_given_back_as_it_was():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.ReLU(), nn.Linear(6, 1)).double()
    net[1].eval()
    net(draw(8, 4)).sum().backward()
    state = copy.deepcopy(net.state_dict())
    grads = [p.grad.clone() for p in net.parameters()]
    rng = torch.get_rng_state()
    local_complexity(net, draw(5, 4), radius=0.5, n_directions=4)
    assert [m.training for m in net.modules()] == [True, True, False, True, True, True]
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert torch.equal(torch.get_rng_state(), rng)
    assert torch.is_grad_enabled()


# Strings


class ByName(nn.Module):
    """Does something else with each point, by its name."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 40), nn.Linear(40, 2)

    def forward(self, x, names, classes):
        assert (len(names), classes) == (len(x), ["cat", "dog"])
        factors = torch.tensor([5.0 if int(name.split("-")[1]) % 2 else 0.2 for name in names]).to(x)
        return self.b(torch.relu(self.a(x * factors[:, None])))


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 30])
def test_each_point_keeps_its_name(method, chunk_size):
    torch.manual_seed(0)
    net, x = ByName().double(), draw(9, 4)
    names, classes = [f"image-{i * i + i // 2}" for i in range(9)], ["cat", "dog"]
    setting = {"radius": 0.1, "n_directions": 4, "method": method, "chunk_size": chunk_size}
    together = local_complexity(net, (x, names, classes), **setting)
    alone = [local_complexity(net, (x[i : i + 1], names[i : i + 1], classes), **setting).counts for i in range(9)]
    assert torch.equal(together.counts, torch.cat(alone))
    assert len(together.total.unique()) > 3
