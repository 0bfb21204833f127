import copy
import itertools
import math
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from helpers import Calls
from networks import draw, looked_at, mlp
from torch import nn

from lc_callback.functional import cross_polytope_frame, local_complexity, local_complexity_map, slice_partition

matplotlib.use("Agg")


def conv_net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.Conv2d(4, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)
    ).double()


def lines(seed=0):
    """A network of one hidden layer, whose edges are eight lines of a plane."""
    return mlp(2, 8, 1, seed=seed)


@pytest.mark.parametrize(
    ("net", "shape", "chunk_size"),
    [
        (mlp(5, 12, 12, 2), (5,), None),
        (mlp(5, 12, 12, 2), (5,), 3),  # less than the frame of one cell
        (mlp(5, 12, 12, 2, act=nn.GELU), (5,), 100),
        (conv_net(), (2, 6, 6), None),
    ],
)
def test_each_value_is_the_local_complexity_at_that_point_of_the_plane(net, shape, chunk_size):
    setting = {"radius": 0.4, "n_directions": 4, "seed": 7}
    found = local_complexity_map(
        net, draw(3, *shape), resolution=(6, 9), per_layer=True, chunk_size=chunk_size, **setting
    )
    lc = local_complexity(net, found.to_input(found.uv), **setting)
    assert found.values.shape == (6, 9)
    assert found.values.ravel().tolist() == lc.total.tolist()
    assert found.layer_values.reshape(len(lc.layer_names), -1).T.tolist() == lc.counts.tolist()
    assert (found.layer_names, found.layer_sizes) == (lc.layer_names, lc.layer_sizes)
    assert len(np.unique(found.values)) > 3


@pytest.mark.parametrize("seed", range(5))
def test_it_is_zero_inside_regions_and_positive_at_their_edges(seed):
    net, corners, radius = lines(seed), draw(3, 2, seed=seed), 0.02
    found = local_complexity_map(net, corners, resolution=60, radius=radius, n_directions=2)
    w, b = (parameter.detach().numpy() for parameter in net[0].parameters())
    # coordinates by hand: rows from low to high v, columns from low to high u
    along = (corners[1] - corners[0]).numpy()
    along /= np.linalg.norm(along)
    across = np.array([-along[1], along[0]])
    across *= np.sign(across @ (corners[2] - corners[0]).numpy())
    u0, u1, v0, v1 = found.extent
    inside = edges = 0
    for row, column in itertools.product(range(60), range(60)):
        u, v = u0 + (column + 0.5) * (u1 - u0) / 60, v0 + (row + 0.5) * (v1 - v0) / 60
        point = corners[0].numpy() + u * along + v * across
        distances = abs(w @ point + b) / np.linalg.norm(w, axis=1)
        near, far = (distances < radius / 2**0.5).sum(), (distances < radius).sum()
        assert near <= found.values[row, column] <= far
        inside, edges = inside + (far == 0), edges + (near > 0)
    assert inside > 500
    assert edges > 50


def test_window_and_points_are_those_of_the_partition():
    net, corners = mlp(4, 9, 1), draw(3, 4)
    found, exact = local_complexity_map(net, corners, resolution=4, n_directions=2), slice_partition(net, corners)
    assert found.extent == exact.extent
    assert torch.allclose(found.to_input(found.plane.points), corners)
    given = local_complexity_map(net, corners, extent=(0, 2, -3, 1), resolution=(2, 4), n_directions=2)
    assert given.extent == (0, 2, -3, 1)
    assert given.uv.tolist() == [[[u, v] for u in (0.25, 0.75, 1.25, 1.75)] for v in (-2, 0)]


def test_directions_of_the_plane_see_only_what_meets_it():
    net = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU()).double()
    with torch.no_grad():  # the planes x = 0 and x + 9 y = 0
        net[0].weight.copy_(torch.tensor([[1.0, 0, 0], [1.0, 9, 0]]))
    corners = torch.tensor([[1.0, 0, 0], [1.0, 0, 1], [2.0, 0, 0]])  # y = 0, x = 1 + v: both meet it in v = -1
    window = {"extent": (0, 1, -1, 1), "resolution": (2, 1), "radius": 0.6}  # at v = -0.5 and 0.5
    everywhere = local_complexity_map(net, corners, directions=torch.eye(3), **window)
    inside = local_complexity_map(net, corners, directions=everywhere.plane.directions, **window)
    assert everywhere.values.ravel().tolist() == [2, 1]  # the second plane is near in y
    assert inside.values.ravel().tolist() == [2, 0]


# Other spaces


class Tokens(nn.Module):
    """Embedding, a smooth unit for each token, and what the token itself says: held when the embedding moves."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.embedding, self.shift = nn.Embedding(7, 3), nn.Embedding(7, 5)
        self.inner, self.outer = nn.Linear(3, 5), nn.Linear(5, 4)
        self.double()

    def forward(self, tokens):
        hidden = nn.functional.gelu(self.inner(self.embedding(tokens)) + self.shift(tokens))
        return torch.tanh(self.outer(hidden).mean(1)).square()


def test_tokens_are_mapped_in_the_space_of_their_embedding():
    net, tokens, radius = Tokens(), torch.tensor([[1, 2], [3, 2], [6, 0]]), 0.3
    found = local_complexity_map(
        net, tokens, resolution=(7, 8), radius=radius, n_directions=5, seed=1, per_layer=True, chunk_size=33
    )
    assert (found.at, found.layer_names, found.layer_sizes) == ("embedding", ["gelu", "tanh"], [10, 4])

    # the twin: vertex by vertex, in NumPy
    weights = {name: parameter.detach().numpy() for name, parameter in net.named_parameters()}
    start, one, two = weights["embedding.weight"][tokens.numpy()].reshape(3, -1)
    along = (one - start) / np.linalg.norm(one - start)
    across = two - start - (two - start) @ along * along
    across /= np.linalg.norm(across)
    frame = cross_polytope_frame((2, 3), 5, seed=1, dtype=torch.float64).flatten(1).numpy()
    erf = np.vectorize(math.erf)
    expected = np.zeros((2, 7, 8))
    for row, column in itertools.product(range(7), range(8)):
        u, v = found.uv[row, column]
        above = []
        for offset in np.concatenate([frame, -frame]):
            x = (start + u * along + v * across + radius * offset).reshape(2, 3)
            first = x @ weights["inner.weight"].T + weights["inner.bias"] + weights["shift.weight"][[1, 2]]
            hidden = first / 2 * (1 + erf(first / 2**0.5))
            second = (hidden @ weights["outer.weight"].T + weights["outer.bias"]).mean(0)
            above.append(np.concatenate([first.ravel() > 0, second > 0]))
        crossed = np.any(above, 0) & ~np.all(above, 0)
        expected[:, row, column] = crossed[:10].sum(), crossed[10:].sum()
    assert found.layer_values.tolist() == expected.tolist()
    assert found.values.tolist() == expected.sum(0).tolist()
    assert (expected.max((1, 2)) > 0).all()


def test_at_a_hidden_layer_it_is_the_map_of_the_rest_of_the_network():
    net, images = conv_net().eval(), draw(3, 2, 6, 6)
    setting = {"resolution": 5, "radius": 0.5, "n_directions": 6}
    found = local_complexity_map(net, images, at="1", **setting)
    rest = local_complexity_map(net[2:], net[:2](images).detach(), **setting)
    assert found.at == "1"
    assert found.layer_names == ["2", "4"]
    assert found.values.tolist() == rest.values.tolist()
    assert found.values.max() > found.values.min()


def test_several_inputs_are_one_product_space():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = mlp(3, 6, 1), mlp(2, 6, 1, seed=1)

        def forward(self, one, two):
            return self.one(one) + self.two(two)

    net, one, two = Sum(), draw(3, 3), draw(3, 2, seed=1)
    found = local_complexity_map(net, {"two": two, "one": one}, resolution=6, radius=0.3, n_directions=5)
    inputs = found.to_input(found.uv)
    lc = local_complexity(net, {"two": inputs[:, :2], "one": inputs[:, 2:]}, radius=0.3, n_directions=5)
    assert found.values.ravel().tolist() == lc.total.tolist()
    assert found.values.max() > 0


def test_forward_fn_and_layers_say_what_is_counted():
    net, corners = mlp(3, 6, 4, 2), draw(3, 3)
    setting = {"resolution": 4, "radius": 1.0, "n_directions": 3, "layers": [nn.Linear], "per_layer": True}
    found = local_complexity_map(net, corners, forward_fn=lambda model, x: model(x - 1), **setting)
    moved = local_complexity_map(net, corners - 1, **setting)
    assert found.layer_names == ["0", "2", "4"]
    assert found.layer_values.tolist() == moved.layer_values.tolist()
    assert found.layer_values[2].max() > 0


def test_winners_of_max_pooling_count_on_request():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.MaxPool2d(2), nn.Flatten(), nn.ReLU()).double()
    setting = {"radius": 0.3, "n_directions": 4, "max_pool": True}
    found = local_complexity_map(net, draw(3, 1, 6, 6), resolution=4, per_layer=True, **setting)
    lc = local_complexity(net, found.to_input(found.uv), **setting)
    assert found.layer_names == ["1", "3"]
    assert found.layer_values.reshape(2, -1).T.tolist() == lc.counts.tolist()
    assert found.layer_values[0].max() > 0


# Numbers


def test_a_window_in_which_the_step_drowns_moves_to_float64_and_says_so():
    net, corners = lines().float(), draw(3, 2).float()
    with pytest.warns(UserWarning, match="computing in float64"):
        far = local_complexity_map(net, corners, extent=(0, 1e6, 0, 1), resolution=2, radius=0.1, n_directions=2)
    assert far.dtype == torch.float64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        near = local_complexity_map(net, corners, resolution=2, radius=0.1, n_directions=2)
    assert near.dtype == torch.float32


def test_a_pre_activation_that_is_not_finite_is_no_count():
    class Root(nn.Module):
        def forward(self, x):
            return torch.relu(x.sqrt() - 1)

    corners = torch.tensor([[0.5, 0.5], [1.0, 0.5], [0.5, 1.0]])
    found = local_complexity_map(
        Root(), corners, extent=(-1.5, 1.5, -0.4, 0.6), resolution=(1, 6), radius=0.05, n_directions=2, per_layer=True
    )
    assert np.isnan(found.values).tolist() == [[True, True, False, False, False, False]]
    assert np.isnan(found.layer_values[0]).tolist() == np.isnan(found.values).tolist()


def test_the_model_is_given_back_as_it_was():
    net, images = conv_net().train(), draw(3, 2, 6, 6)
    before, random = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    local_complexity_map(net, images, resolution=2)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), random)


def test_progress_reaches_the_number_of_cells():
    calls = []
    local_complexity_map(
        lines(),
        draw(3, 2),
        resolution=(4, 5),
        n_directions=2,
        chunk_size=24,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == [(6, 20), (12, 20), (18, 20), (20, 20)]


def test_running_out_of_memory_halves_the_chunk():
    net, corners, batches = lines(), draw(3, 2), Calls()

    def limited(module, args):
        batches.append(len(looked_at(args[0])))
        if len(args[0]) > 9:
            raise RuntimeError("CUDA out of memory")

    setting = {"resolution": 5, "radius": 0.3, "n_directions": 2}
    expected = local_complexity_map(net, corners, **setting)
    net[1].register_forward_pre_hook(limited)
    found = local_complexity_map(net, corners, **setting)
    assert found.values.tolist() == expected.values.tolist()
    assert max(batches) == 100


# Pictures


def test_the_picture_shows_the_values_the_right_way_up():
    found = local_complexity_map(mlp(3, 9, 9, 1), draw(3, 3), resolution=(5, 6), radius=0.3, n_directions=3)
    figure, axes = found.plot()
    (image,) = axes.images
    assert np.asarray(image.get_array()).tolist() == found.values.tolist()
    assert (image.origin, tuple(image.get_extent())) == ("lower", found.extent)
    assert axes.get_xlim() + axes.get_ylim() == found.extent
    assert axes.lines[0].get_xydata().tolist() == found.plane.points.tolist()
    assert len(figure.axes) == 2  # the colour bar
    matplotlib.pyplot.close(figure)


def test_the_picture_of_one_layer():
    net, corners = mlp(3, 9, 9, 1), draw(3, 3)
    found = local_complexity_map(net, corners, resolution=5, radius=0.3, n_directions=3, per_layer=True)
    figure, axes = matplotlib.pyplot.subplots()
    assert found.plot(axes, layer="3") == (figure, axes)
    assert np.asarray(axes.images[0].get_array()).tolist() == found.layer_values[1].tolist()
    assert found.layer_values[1].tolist() != found.values.tolist()
    matplotlib.pyplot.close(figure)
    with pytest.raises(ValueError, match=r"`layer='2'` cannot be drawn: the layers are \['1', '3'\]"):
        found.plot(layer="2")
    without = local_complexity_map(net, corners, resolution=2, n_directions=3)
    assert without.layer_values is None
    with pytest.raises(ValueError, match="were not kept: pass `per_layer=True`"):
        without.plot(layer="3")


# Errors


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("resolution", 0, "`resolution` must be a positive integer, but got 0"),
        ("resolution", (3, 2.5), "`resolution` must be a positive integer, but got 2.5"),
        ("resolution", (3, 3, 3), r"`resolution` must be a positive integer or a pair \(H, W\)"),
        ("radius", [0.1, 0.2], r"`radius` must be one positive number, but got \[0.1, 0.2\]"),
        ("radius", -1.0, "`radius` must be a positive number"),
        ("n_directions", 3, "`n_directions` must be an integer from 1 to 2"),
        ("extent", (0, 0, 0, 1), r"`extent` must be \(u0, u1, v0, v1\) with u0 < u1 and v0 < v1"),
        ("extent", (0, 1, 1, 1), "`extent` must be"),
        ("extent", (0, 1, 0, math.inf), "`extent` must be"),
        ("extent", (math.nan, 1, 0, 1), "`extent` must be"),
        ("extent", (0, 1, 0), "`extent` must be"),
        ("at", "7", "`at='7'` is not the name of a module"),
        ("points", draw(4, 2), "`points` must be three points, but got 4"),
        ("points", torch.arange(6.0).view(3, 2), "`points` must be three points that are not on one line"),
    ],
)
def test_arguments_out_of_range_are_named(argument, value, message):
    arguments = {"points": draw(3, 2), "n_directions": 2, "resolution": 2, argument: value}
    with pytest.raises(ValueError, match=message):
        local_complexity_map(lines(), **arguments)
