import copy
import itertools
import math

import numpy as np
import pytest
import torch
from helpers import Calls
from networks import draw, mlp
from torch import nn

from lc_callback.functional import cross_polytope_frame, frame_deformation


def linear(*weights):
    layers = [nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64) for weight in weights]
    for layer, weight in zip(layers, weights, strict=True):
        layer.weight = nn.Parameter(weight)
    return nn.Sequential(*layers)


# The twin: the definition, vertex by vertex


def sizes(z):
    """Eccentricity and diameter of the graph of ``z (2P, units)``, antipodes P apart, by Floyd and Warshall."""
    k = len(z)
    length = np.full((k, k), np.inf)
    for i, j in itertools.product(range(k), range(k)):
        if abs(i - j) != k // 2:
            length[i, j] = np.sqrt(((z[i] - z[j]) ** 2).sum())
    for via in range(k):
        length = np.minimum(length, length[:, via, None] + length[via])
    return length.max(1).mean(), length.max()


def twin(net, x, frame, radius):
    """``(L, 2)`` for an MLP at one point."""
    u, found = np.concatenate([x + radius * frame, x - radius * frame]), []
    for layer in net:
        if isinstance(layer, nn.Linear):
            u = u @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()
        else:
            found.append(sizes(u))
            u = np.maximum(u, 0)
    return found


@pytest.mark.parametrize("seed", range(12))
def test_it_agrees_with_the_twin(seed):
    rng = np.random.default_rng(seed)
    widths = rng.integers(1, 12, size=rng.integers(3, 6)).tolist()
    widths[0] = 2 + widths[0]
    net, x = mlp(*widths, seed=seed), draw(3, widths[0], seed=seed)
    n_directions, radius = int(rng.integers(2, widths[0] + 1)), float(10 ** rng.uniform(-2, 1))
    frame = cross_polytope_frame(widths[0], n_directions, seed=seed, dtype=torch.float64).numpy()
    found = frame_deformation(net, x, radius=radius, n_directions=n_directions, seed=seed)
    expected = np.array([twin(net, point, frame, radius) for point in x.numpy()])
    np.testing.assert_allclose(found.eccentricity.numpy(), expected[..., 0], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.diameter.numpy(), expected[..., 1], rtol=1e-9, atol=1e-12)
    assert found.eccentricity.shape == (3, len(widths) - 2)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        ("0", 2 * 65**0.5),  # (8, 0, 0) to its antipode, by way of (0, 0, 1)
        ("2", 128**0.5),  # (8, 0, 0) to (0, 8, 0): all the antipodes are at 0 now
    ],
)
def test_the_farthest_vertex_may_be_the_antipode_or_another_one(layer, expected):
    net = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU(), nn.Identity()).double()
    net[0].weight = nn.Parameter(torch.tensor([8.0, 8.0, 1.0]).diag().double())
    found = frame_deformation(net, torch.zeros(1, 3), radius=1.0, directions=torch.eye(3), layers=[layer])
    assert float(found.diameter) == pytest.approx(expected)


# Closed forms


def test_a_linear_network_stretches_the_frame_as_its_weights_do():
    one, two = draw(4, 4), draw(4, 4, seed=1)
    axes = torch.linalg.svd(two @ one).Vh  # the directions stay orthogonal, and are stretched by the singular values
    stretch = torch.linalg.svdvals(two @ one).tolist()
    found = frame_deformation(
        linear(one, two), draw(5, 4, seed=2), radius=0.3, directions=axes.contiguous(), layers=[nn.Linear]
    )
    expected = []
    for p, s in enumerate(stretch):
        edges = [math.hypot(s, t) for q, t in enumerate(stretch) if q != p]
        expected.append(0.3 * max(*edges, 2 * min(edges)))
    assert found.layer_names == ["0", "1"]
    assert found.eccentricity[:, 1].tolist() == pytest.approx([sum(expected) / 4] * 5)
    assert found.diameter[:, 1].tolist() == pytest.approx([max(expected)] * 5)


def test_rotations_leave_the_frame_as_it_is_in_the_input():
    rotations = [torch.linalg.qr(draw(6, 6, seed=seed)).Q for seed in range(5)]
    found = frame_deformation(linear(*rotations), draw(2, 6), radius=0.01, n_directions=4, layers=[nn.Linear])
    expected = torch.full((2, 5), 0.01 * 8**0.5, dtype=torch.float64)
    assert torch.allclose(found.eccentricity, expected)
    assert torch.allclose(found.diameter, expected)


def test_all_units_of_a_layer_are_one_distance():
    """A recurrent module is one layer of all its time steps."""
    torch.manual_seed(0)
    net, x = nn.RNN(3, 4, batch_first=True).double(), draw(2, 2, 3)
    found = frame_deformation(net, x, radius=0.5, n_directions=3)
    w, u, b, c = (parameter.detach() for parameter in net.parameters())
    frame = 0.5 * cross_polytope_frame((2, 3), 3, dtype=torch.float64)
    for point, *measured in zip(x, found.eccentricity[:, 0], found.diameter[:, 0], strict=True):
        vertices = torch.cat([point + frame, point - frame])
        first = vertices[:, 0] @ w.T + b + c
        second = vertices[:, 1] @ w.T + b + first.tanh() @ u.T + c
        assert [float(value) for value in measured] == pytest.approx(sizes(torch.cat([first, second], 1).numpy()))
    assert len(found.layer_names) == 1


@pytest.mark.parametrize("act", [nn.ReLU6, nn.Hardtanh])
def test_a_unit_with_two_kinks_is_one_coordinate(act):
    x = draw(2, 5)
    one, two = (frame_deformation(mlp(5, 7, 2, act=a), x, n_directions=3) for a in (nn.ReLU, act))
    assert torch.equal(one.diameter, two.diameter)
    assert one.diameter.min() > 0


# Points, radii and chunks


def test_several_radii_are_separate_calls():
    net, x, radii = mlp(5, 9, 9, 2), draw(3, 5), [0.01, 1.0, 30.0]
    found = frame_deformation(net, x, radius=radii, n_directions=4)
    assert found.radius == radii
    for row, radius in enumerate(radii):
        one = frame_deformation(net, x, radius=radius, n_directions=4)
        assert one.radius == radius
        assert torch.equal(found.eccentricity[row], one.eccentricity)
        assert torch.equal(found.diameter[row], one.diameter)
    first_layer = found.diameter[:, :, 0] / torch.tensor(radii)[:, None]
    assert torch.allclose(first_layer, first_layer[:1].expand(3, 3))
    assert not torch.allclose(found.diameter[2, :, 1] / 30, found.diameter[0, :, 1] / 0.01)


@pytest.mark.parametrize(("chunk_size", "largest"), [(1, 8), (17, 16), (1000, 40)])
def test_chunks_hold_whole_frames_and_change_nothing(chunk_size, largest):
    batches = Calls()

    def forward(model, x):
        batches.append(len(x))
        return model(x)

    net, x = mlp(5, 9, 9, 2), draw(5, 5)
    found = frame_deformation(net, x, n_directions=4, chunk_size=chunk_size, forward_fn=forward)
    assert max(batches) == largest
    assert torch.allclose(found.diameter, frame_deformation(net, x, n_directions=4).diameter, rtol=1e-12)


def test_tokens_are_moved_at_their_embedding():
    torch.manual_seed(0)
    rest = nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    net, tokens = nn.Sequential(nn.Embedding(9, 3, dtype=torch.float64), rest), torch.tensor([[1, 4], [0, 8]])
    found = frame_deformation(net, tokens, radius=0.5, n_directions=4)
    direct = frame_deformation(rest, net[0](tokens).detach(), radius=0.5, n_directions=4)
    assert (found.at, found.layer_names, found.layer_sizes) == ("0", ["1.2", "1.4"], [5, 3])
    assert torch.allclose(found.eccentricity, direct.eccentricity)
    hidden = frame_deformation(net, tokens, radius=0.5, n_directions=4, at="1.1")
    assert hidden.layer_names == ["1.2", "1.4"]
    assert torch.allclose(hidden.diameter[:, 0], torch.tensor(0.5 * 8**0.5).double())


def test_values_that_are_not_finite_give_nan():
    net, x = mlp(3, 4, 4, 1), draw(3, 3)
    x[1, 0] = math.inf
    found = frame_deformation(net, x, n_directions=3)
    for sizes_found in (found.eccentricity, found.diameter):
        assert sizes_found.isnan().any(1).tolist() == [False, True, False]


def test_the_model_is_given_back_as_it_was():
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(), nn.Linear(6, 2)).train()
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = frame_deformation(net, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), n_directions=2)
    assert found.diameter.dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert {value.dtype for value in net.parameters()} == {torch.float32}
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("n_directions", 1, "`n_directions` must be at least 2"),
        ("n_directions", 6, "`n_directions` must be an integer from 1 to 5"),
        ("directions", torch.ones(1, 5), "at least 2"),
        ("directions", torch.ones(2, 4), r"`directions` must be a tensor \(P, 5\)"),
        ("radius", [], "`radius` must be a positive number or a non-empty list"),
        ("chunk_size", 0, "`chunk_size` must be a positive integer"),
        ("layers", ["nothing"], "`layers` entry 'nothing' matches no module"),
        ("at", "9", "`at='9'` is not the name of a module"),
    ],
)
def test_arguments_out_of_range_are_named(argument, value, message):
    with pytest.raises(ValueError, match=message):
        frame_deformation(mlp(5, 6, 2), draw(2, 5), **{"n_directions": 3, argument: value})
