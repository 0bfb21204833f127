import copy
import random

import matplotlib

matplotlib.use("Agg")

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from networks import (
    KINDS,
    Abs,
    Call,
    Clamp,
    Larger,
    batchnorm,
    conv,
    dense,
    made,
    others,
    overlapping,
    seq,
)
from torch import nn

from lc_callback.engine.slices import slicer
from lc_callback.functional import cross_polytope_frame, local_complexity, partition, slice_partition

WINDOW = (-4.0, 4.0, -4.0, 4.0)
TRIANGLE = torch.tensor([[0.0, 0], [1, 0], [0, 1]], dtype=torch.float64)


# The kinks of each module, noted without the library.
KINKS = {nn.ReLU: [0], nn.LeakyReLU: [0], nn.PReLU: [0], nn.ReLU6: [0, 6], nn.Hardtanh: [-1, 1], Abs: [0]}
KINKS[Clamp] = [-0.5, 1.0]


def watched(net, x, look):
    """What ``look(module, input)`` returns, by module path; and the output."""
    found = {}

    def note(path):
        return lambda module, args: found.update({path: look(module, args[0])})

    kinds = (*KINKS, Larger, nn.MaxPool2d)
    hooks = [m.register_forward_pre_hook(note(path)) for path, m in net.named_modules() if isinstance(m, kinds)]
    with torch.no_grad():
        output = net(x)
    for hook in hooks:
        hook.remove()
    return found, output.numpy()


def piece(module, x):
    """The number of the linear piece, or of the winner."""
    if isinstance(module, nn.MaxPool2d):
        sizes = (module.kernel_size, module.stride, module.padding)
        return F.max_pool2d(x, *sizes, return_indices=True)[1].flatten(1)
    if isinstance(module, Larger):
        a, b = x.chunk(2, 1)
        return (a > b).flatten(1)
    return sum((x > kink).long() for kink in KINKS[type(module)]).flatten(1)


def to_kink(module, x):
    """How far each unit is from a kink."""
    if isinstance(module, nn.MaxPool2d):
        k, s, p = module.kernel_size, module.stride, module.padding
        x = F.pad(x, (p, p, p, p), value=-1e9)
        windows = F.unfold(x, k, stride=s).view(len(x), x.shape[1], k * k, -1)
        best = windows.topk(2, dim=2).values
        return (best[:, :, 0] - best[:, :, 1]).flatten(1)
    if isinstance(module, Larger):
        a, b = x.chunk(2, 1)
        return (a - b).abs().flatten(1)
    return torch.stack([(x - kink).abs() for kink in KINKS[type(module)]]).amin(0).flatten(1)


def patterns(net, x):
    found, output = watched(net, x, piece)
    return torch.cat([pieces.to(torch.int16) for pieces in found.values()], 1).numpy(), output


def jacobians(net, x):
    """(N, C, D)."""
    x = x.clone().requires_grad_()
    output = net(x)
    rows = [torch.autograd.grad(output[:, c].sum(), x, retain_graph=True)[0] for c in range(output.shape[1])]
    return torch.stack([row.flatten(1) for row in rows], 1).numpy()


def grid(extent, n):
    u0, u1, v0, v1 = extent
    u, v = np.meshgrid(np.linspace(u0, u1, n + 2)[1:-1], np.linspace(v0, v1, n + 2)[1:-1])
    return np.stack([u.ravel(), v.ravel()], 1)


def inside(found, rng, n):
    """``n`` points in each region, one region after another."""
    return np.concatenate([rng.dirichlet(np.ones(len(polygon)), n) @ polygon for polygon in found.polygons])


def two_layer(weight, bias):
    weight, bias = torch.tensor(weight, dtype=torch.float64), torch.tensor(bias, dtype=torch.float64)
    net = seq(nn.Linear(weight.shape[1], len(weight)), nn.ReLU(), nn.Linear(len(weight), 2)).double()
    net[0].weight.data, net[0].bias.data = weight, bias
    return net


# What is counted


def expected_regions(lines, extent):
    """1 + lines that meet the window + crossings in it, those of m lines counting m - 1 times."""
    u0, u1, v0, v1 = extent
    corners = np.array([[u0, v0, 1], [u1, v0, 1], [u0, v1, 1], [u1, v1, 1]]) @ lines.T
    lines = lines[(corners.min(0) < 0) & (corners.max(0) > 0)]
    through = {}
    for i in range(len(lines)):
        for j in range(i):
            if abs(np.linalg.det(lines[[i, j], :2])) > 1e-12:
                u, v = np.linalg.solve(lines[[i, j], :2], -lines[[i, j], 2])
                if u0 < u < u1 and v0 < v < v1:
                    through.setdefault((round(u, 8) + 0.0, round(v, 8) + 0.0), set()).update((i, j))
    return 1 + len(lines) + sum(len(at) - 1 for at in through.values())


@pytest.mark.parametrize("part", range(4))
def test_one_hidden_layer(part):
    for seed in range(50 * part, 50 * part + 50):
        rng = np.random.default_rng(seed)
        width, dim = int(rng.integers(1, 30)), int(rng.integers(2, 12))
        weight, bias = rng.normal(size=(width, dim)), rng.normal(size=width) * (seed % 3)
        points = torch.from_numpy(rng.normal(size=(3, dim)))
        if seed % 3 == 0:  # all lines through the first point
            points[0] = 0
        found = slice_partition(two_layer(weight, bias), points, extent=(-2, 3, -1.5, 2.5))
        directions = found.plane.directions.numpy()
        lines = np.column_stack([weight @ directions.T, weight @ points[0].numpy() + bias])
        assert found.n_regions == expected_regions(lines, found.extent)
        assert found.euler == 1


def test_units_that_share_a_line_count_each():
    net = two_layer([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [0.0, 0.0, 0.0, 0.5, 99.0])
    found = slice_partition(net, TRIANGLE, extent=WINDOW)
    assert found.n_regions == 4
    assert found.counts.tolist() == [4]


def test_windows_that_share_a_line_count_each():
    """Three windows of two values, of which two are the same; in the third nothing changes."""
    pool = seq(Call(lambda x: torch.stack([x, x, torch.stack([x[:, 0], x[:, 0] + 1], 1)], 1)), nn.MaxPool1d(2))
    found = slice_partition(seq(*pool, nn.Flatten()), TRIANGLE, extent=WINDOW)
    assert found.n_regions == 2
    assert found.counts.tolist() == [2]


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
@pytest.mark.parametrize("kind", KINDS)
def test_regions_of_deeper_networks(kind, part):
    for seed in range(25 * part, 25 * part + 25):
        net, points = made(kind, seed)
        rng = np.random.default_rng(seed)
        found = slice_partition(net, points, extent=WINDOW)
        assert found.euler == 1
        assert found.areas.min() > 0
        assert found.areas.sum() == pytest.approx(64, rel=1e-12)

        uv = inside(found, rng, 4)
        seen, _ = patterns(net, found.to_input(uv))
        seen = seen.reshape(found.n_regions, 4, -1)
        assert (seen == seen[:, :1]).all()
        slopes = jacobians(net, found.to_input(uv)).reshape(found.n_regions, 4, -1)
        assert np.abs(slopes - slopes[:, :1]).max() < 1e-9

        regions = {row.tobytes() for row in seen[:, 0]}
        assert len(regions) == found.n_regions  # a pattern holds on a convex set, so no two regions have the same
        on_grid, _ = patterns(net, found.to_input(grid(WINDOW, 60)))
        assert {row.tobytes() for row in on_grid} <= regions


@pytest.mark.parametrize("kind", KINDS)
def test_vertices_and_outputs(kind):
    net, points = made(kind, 7)
    found = slice_partition(net, points, extent=WINDOW)
    with torch.no_grad():
        np.testing.assert_allclose(found.outputs, net(found.to_input(found.vertices)).numpy(), atol=1e-10)
    # The network is affine on each region, so its value inside is the mean of those at the vertices.
    with torch.no_grad():
        at_centres = net(found.to_input(found.centres)).numpy()
    by_place = {tuple(vertex): output for vertex, output in zip(found.vertices.tolist(), found.outputs, strict=True)}
    means = [np.mean([by_place[tuple(v)] for v in polygon.tolist()], 0) for polygon in found.polygons]
    np.testing.assert_allclose(at_centres, means, atol=1e-10)


@pytest.mark.parametrize("kind", KINDS)
def test_edge_makers(kind):
    net, points = made(kind, 3)
    found = slice_partition(net, points, extent=WINDOW)
    middle, makers = [], []
    for region, polygon in enumerate(found.polygons):
        middle.extend((polygon + np.roll(polygon, -1, 0)) / 2)
        makers.extend(found.edge_makers(region))
    middle = np.array(middle)
    distances, _ = watched(net, found.to_input(middle), to_kink)
    inner = 0
    for i, maker in enumerate(makers):
        on_frame = np.isclose(np.abs(middle[i]).max(), 4, rtol=0, atol=1e-12)
        assert on_frame == (maker is None)
        if maker is not None:
            inner += 1
            assert distances[maker[0]][i, maker[1]] < 1e-10
    assert inner > 40
    assert {maker[0] for maker in makers if maker} <= set(found.layer_names)


@pytest.mark.parametrize("kind", KINDS)
def test_slope_norm(kind):
    net, points = made(kind, 5)
    found = slice_partition(net, points, extent=WINDOW, slopes=True)
    expected = np.sqrt((jacobians(net, found.to_input(found.centres)) ** 2).sum((1, 2)))
    np.testing.assert_allclose(found.slope_norm, expected, rtol=1e-10)
    assert slice_partition(net, points, extent=WINDOW).slope_norm is None


def test_slope_norm_of_a_network_that_works_in_place():
    net = seq(nn.ReLU(inplace=True), nn.Linear(2, 2), nn.ReLU(inplace=True), nn.Linear(2, 2)).double()
    twin = seq(nn.ReLU(), net[1], nn.ReLU(), net[3])
    found, expected = (slice_partition(n, TRIANGLE, extent=WINDOW, slopes=True) for n in (net, twin))
    np.testing.assert_array_equal(found.slope_norm, expected.slope_norm)
    assert len(set(found.slope_norm.round(9))) > 2


# The decision boundary


def differs(net, found, segments, rng, n):
    """Difference of the top logits at ``n`` points of each segment, relative to the logits' spread in the window."""
    share = rng.uniform(size=(len(segments), n, 1))
    uv = (segments[:, :1] + share * (segments[:, 1:] - segments[:, :1])).reshape(-1, 2)
    with torch.no_grad():
        top = net(found.to_input(uv)).numpy()
    if top.shape[1] == 1:
        return np.abs(top[:, 0]) / np.ptp(found.outputs)
    top.sort(1)
    return (top[:, -1] - top[:, -2]) / np.ptp(found.outputs)


def is_separated(a, b, segments):
    """Whether each pair of points has a segment between its two points."""

    def side(p, q, r):
        return (q[..., 0] - p[..., 0]) * (r[..., 1] - p[..., 1]) - (q[..., 1] - p[..., 1]) * (r[..., 0] - p[..., 0])

    a, b, start, end = a[:, None], b[:, None], segments[None, :, 0], segments[None, :, 1]
    # A segment may end on the line between the points, where the next one begins.
    across = side(start, end, a) * side(start, end, b) <= 0
    along = side(a, b, start) * side(a, b, end) <= 1e-18
    return (across & along).any(1)


def classes(net, found, uv):
    with torch.no_grad():
        output = net(found.to_input(uv))
    return (output.argmax(1) if output.shape[1] > 1 else output[:, 0] > 0).numpy()


@pytest.mark.parametrize("outputs", [1, 2, 3, 10])
@pytest.mark.parametrize("kind", [dense, conv, overlapping])
def test_decision_boundary(kind, outputs):
    points_on_it = 0
    for seed in range(10):
        net, points = made(kind, seed)
        last = net[-1]
        torch.manual_seed(seed)
        net[-1] = nn.Linear(last.in_features, outputs).double()
        rng = np.random.default_rng(seed)
        found = slice_partition(net, points, extent=WINDOW)
        segments = found.decision_boundary
        assert segments.shape[1:] == (2, 2)
        if len(segments):
            difference = differs(net, found, segments, rng, 1 + 1000 // len(segments))
            assert difference.max() < 1e-9
            points_on_it += len(difference)
        n = 60
        uv = grid(WINDOW, n).reshape(n, n, 2)
        top = classes(net, found, uv.reshape(-1, 2)).reshape(n, n)
        for changes, a, b in (
            (top[1:] != top[:-1], uv[:-1], uv[1:]),
            (top[:, 1:] != top[:, :-1], uv[:, :-1], uv[:, 1:]),
        ):
            assert is_separated(a[changes], b[changes], segments).all()
    assert points_on_it > 1000


def test_decision_boundary_has_different_classes_on_its_sides():
    net, points = made(dense, 1)
    found = slice_partition(net, points, extent=WINDOW)
    along = found.decision_boundary[:, 1] - found.decision_boundary[:, 0]
    length = np.linalg.norm(along, axis=1)
    long = length > 1e-3
    across = np.stack([-along[:, 1], along[:, 0]], 1)[long] / length[long, None] * 1e-6
    middle = found.decision_boundary.mean(1)[long]
    assert long.sum() > 5
    assert (classes(net, found, middle + across) != classes(net, found, middle - across)).all()


SPLIT = torch.tensor([[1.0, 0], [-1, 0]], dtype=torch.float64)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: (x @ SPLIT.T).relu(),  # two logits: relu(u), relu(-u)
        lambda x: x[:, :1].relu() - (-x[:, :1]).relu(),
        lambda x: x[:, :1].relu(),  # zero on one side, positive on the other
    ],
)
def test_decision_boundary_on_a_kink(function):
    found = slice_partition(Call(lambda x: function(torch.cat([x, x * 0], 1)[:, :2])), TRIANGLE, extent=(-1, 1, -1, 1))
    assert found.n_regions == 2
    assert sorted(found.decision_boundary[0].tolist()) == [[0, -1], [0, 1]]
    assert len(found.decision_boundary) == 1


def test_no_boundary_where_one_class_wins():
    net, points = made(dense, 0)
    net[-1].bias.data[1] += 1e4
    assert slice_partition(net, points, extent=WINDOW).decision_boundary.shape == (0, 2, 2)


# Degenerate inputs

DEGENERATE = {
    "zero bias": ([[1, 0], [0, 1], [1, 1], [2, -1]], [0, 0, 0, 0], 8),
    "concurrent": ([[1, 0], [0, 1], [1, 1]], [-0.3, -0.6, -0.9], 6),
    "duplicate": ([[1, 0.2], [1, 0.2], [0.3, 1]], [0.1, 0.1, 0], 4),
    "opposite": ([[1, 0.2], [-1, -0.2], [0.3, 1]], [0.1, -0.1, 0], 4),
    "multiple": ([[1, 0.2], [3, 0.6]], [0.1, 0.3], 2),
    "1e-9 apart": ([[1, 0.2], [1, 0.2]], [0.1, 0.1 + 1e-9], 3),
    "1e-9 apart, crossed": ([[1, 0.2], [1, 0.2], [0.3, 1]], [0.1, 0.1 + 1e-9, 0], 6),
    "on the frame": ([[1, 0], [0, 1]], [-1, 1], 1),
    "through a corner": ([[1, -1]], [0], 2),
    "through a corner only": ([[1, 1]], [-2], 1),
    "dead": ([[1, 0], [0, 0]], [-50, -1], 1),
    "constant": ([[0, 0], [1, 0]], [1, 0], 2),
    "zero": ([[0, 0], [1, 0]], [0, 0], 2),
    "one region": ([[1, 1]], [50], 1),
}


@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate(case):
    weight, bias, expected = DEGENERATE[case]
    weight, bias = np.array(weight, float), np.array(bias, float)
    found = slice_partition(two_layer(weight, bias), TRIANGLE, extent=(-1, 1, -1, 1))
    assert found.n_regions == expected
    assert found.euler == 1
    assert found.areas.sum() == pytest.approx(4)
    assert found.areas.min() > 0
    if case == "1e-9 apart":
        assert found.areas.min() == pytest.approx(2e-9, rel=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_deep_networks_of_duplicate_concurrent_and_dead_units(seed):
    # Small integers as weights: lines meet in threes, lie on each other, and units are zero on whole regions.
    torch.manual_seed(seed)
    convolutions = (nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(3, 1, 1), nn.Conv2d(2, 2, 3), nn.ReLU())
    nets = [
        (seq(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), TRIANGLE),
        (seq(*convolutions, nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(2, 3)), torch.randint(-2, 3, (3, 1, 4, 4))),
    ]
    for net, points in nets:
        for parameter in net.double().parameters():
            parameter.data = torch.randint(-1, 2, parameter.shape).double()
        found = slice_partition(net, points.double(), extent=WINDOW)
        assert found.euler == 1
        assert found.areas.sum() == pytest.approx(64)
        slopes = jacobians(net, found.to_input(inside(found, np.random.default_rng(seed), 4)))
        slopes = slopes @ found.plane.directions.flatten(1).T.numpy()
        slopes = slopes.reshape(found.n_regions, 4, -1)
        assert np.abs(slopes - slopes[:, :1]).max() < 1e-9


@pytest.mark.parametrize("seed", range(20))
def test_deep_networks_without_bias(seed):
    torch.manual_seed(seed)
    layers = [layer for _ in range(4) for layer in (nn.Linear(6, 6, bias=False), nn.ReLU())]
    net = seq(*layers, nn.Linear(6, 2, bias=False)).double()
    found = slice_partition(net, torch.cat([torch.zeros(1, 6), torch.randn(2, 6)]).double(), extent=WINDOW)
    # Every region is a cone at the origin, and they go once round.
    corner = [np.abs(polygon).sum(1).min() < 1e-12 for polygon in found.polygons]
    assert all(corner)
    assert found.n_regions > 4
    assert found.euler == 1


@pytest.mark.parametrize("net", [nn.Linear(2, 3), seq(nn.Linear(2, 4), nn.Linear(4, 3))])
def test_an_affine_network_is_one_region(net):
    found = slice_partition(net, TRIANGLE, extent=WINDOW, slopes=True)
    assert (found.n_regions, found.layer_names, found.euler) == (1, [], 1)
    assert found.edge_makers(0) == [None] * 4


def in_pairs(net, gap):
    """The dense network with two of each unit of its second and third layer, whose lines are ``gap`` apart."""
    twin = copy.deepcopy(net)
    for i in (2, 4, 6):
        weight, bias = net[i].weight.data, net[i].bias.data
        weight = weight if i == 2 else torch.cat([weight, weight], 1) / 2
        if i < 6:
            weight, bias = torch.cat([weight, weight]), torch.cat([bias, bias + gap])
        twin[i].weight.data, twin[i].bias.data = weight, bias
    return twin


@pytest.mark.parametrize("seed", range(5))
def test_slivers_of_deeper_layers_are_kept(seed):
    net, points = made(dense, seed)
    base, wide, thin = (slice_partition(in_pairs(net, gap), points, extent=WINDOW) for gap in (0, 1e-7, 1e-9))
    assert base.n_regions == slice_partition(net, points, extent=WINDOW).n_regions
    assert thin.n_regions == wide.n_regions > 1.2 * base.n_regions
    assert 0 < thin.areas.min() < 1e-8
    assert thin.euler == 1
    assert thin.areas.sum() == pytest.approx(64, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_windows_of_any_size(scale):
    net, points = made(dense, 4)
    found = slice_partition(net, points, extent=WINDOW)
    scaled = copy.deepcopy(net)
    scaled[0].weight.data /= scale
    other = slice_partition(scaled, points * scale, extent=[side * scale for side in WINDOW])
    assert other.n_regions == found.n_regions
    np.testing.assert_allclose(other.areas / scale**2, found.areas, rtol=1e-5, atol=1e-12)


# The plane


def test_the_plane_is_orthonormal_and_in_input_units():
    points = torch.randn(3, 2, 5, generator=torch.Generator().manual_seed(0))
    net = seq(nn.Flatten(), nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 2))
    found = slice_partition(net, points)
    flat = found.plane.directions.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(2, dtype=torch.float64))
    torch.testing.assert_close(found.to_input(found.plane.points), points.double())
    assert found.to_input([0.0, 0.0]).shape == (1, 2, 5)
    assert found.plane.points[0].tolist() == [0, 0]
    assert found.plane.points[1, 1] == pytest.approx(0, abs=1e-12)
    assert found.plane.points[1, 0] == pytest.approx(float((points[1] - points[0]).double().norm()))
    u, v = found.to_input([[0.0, 0], [3.0, 4]])
    assert float((u - v).norm()) == pytest.approx(5)


def test_the_default_window_is_the_bounding_square_with_a_margin():
    points = torch.tensor([[1.0, 1], [4.0, 1], [3.0, 2]])
    found = slice_partition(nn.Linear(2, 2), points)
    assert found.extent == pytest.approx((1.5 - 2.1, 1.5 + 2.1, 0.5 - 2.1, 0.5 + 2.1))  # 3 wide, a fifth on each side
    assert slice_partition(nn.Linear(2, 2), points, extent=[0, 1, 2, 4]).areas.tolist() == [2]


def test_the_window_in_parts_of_the_default():
    whole = slice_partition(nn.Linear(2, 3), TRIANGLE).extent
    half = slice_partition(nn.Linear(2, 3), TRIANGLE, extent=0.5).extent
    assert np.subtract(half[1::2], half[::2]).tolist() == pytest.approx(
        (np.subtract(whole[1::2], whole[::2]) / 2).tolist()
    )
    assert np.add(half[1::2], half[::2]).tolist() == pytest.approx(np.add(whole[1::2], whole[::2]).tolist())


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_the_way_to_the_boundary_ends_on_it(kind):
    reached = 0
    for seed in range(10):
        net, points = made(kind, seed)
        found = partition.toward_boundary(net, points[:1])
        if found is not None:
            reached += 1
            two = net(found[None])[0].detach().topk(2).values
            assert float(two[0] - two[1]) <= 1e-9 * float(two.abs().max())
            assert not torch.equal(found, points[0])
    assert reached >= 5


def test_no_way_to_a_boundary_that_is_not_there():
    net = seq(nn.Linear(2, 3), nn.ReLU())
    with torch.no_grad():
        net[0].weight.zero_()
    assert partition.toward_boundary(net, TRIANGLE[:1]) is None


def test_float32_models_are_measured_in_float64():
    net, points = made(conv, 8)
    net, points = net.float(), points.float()
    found = slice_partition(net, points, extent=WINDOW, slopes=True)
    expected = slice_partition(copy.deepcopy(net).double(), points.double(), extent=WINDOW, slopes=True)
    np.testing.assert_array_equal(found.vertices, expected.vertices)
    np.testing.assert_array_equal(found.slope_norm, expected.slope_norm)
    assert found.n_regions == expected.n_regions > 50


# Arguments that are wrong

LINE = torch.randn(2, 5, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("points", "match"),
    [
        (torch.tensor([[0.0, 0], [1, 1], [3, 3]]), "one line"),
        (torch.tensor([[0.0, 0], [0, 0], [3, 3]]), "one line"),
        (torch.tensor([[1.0, 0], [2, 0], [1, 0]]), "one line"),
        (TRIANGLE[:2], "three points"),
        (torch.cat([TRIANGLE, TRIANGLE]), "three points"),
        (torch.ones(3, dtype=torch.long), "float"),
        (torch.ones(3, 2, dtype=torch.long), "`points` holds no floating-point"),
        ([1, 2, 3], "`points` must be one or more tensors"),
        (TRIANGLE * float("nan"), "`points` must be finite"),
    ],
)
def test_points_that_span_no_plane(points, match):
    with pytest.raises(ValueError, match=match):
        slice_partition(seq(nn.Linear(2, 3), nn.ReLU()), points)


def test_float32_points_on_one_line():
    points = torch.stack([LINE[0], LINE[0] + LINE[1], LINE[0] + 0.3 * LINE[1]])
    with pytest.raises(ValueError, match="one line"):
        slice_partition(seq(nn.Linear(5, 3), nn.ReLU()), points)


@pytest.mark.parametrize(
    "extent",
    [
        0,
        -1,
        True,
        float("inf"),
        "abcd",
        (0, 1, 0, "x"),
        (0, 1),
        (1, 0, 0, 1),
        (0, 1, 1, 1),
        (0, 1, 0, float("nan")),
        (0, 1, 0, float("inf")),
        (0, 1, 2, 3, 4),
    ],
)
def test_wrong_extents(extent):
    with pytest.raises(ValueError, match=r"extent.*u0 < u1"):
        slice_partition(nn.Linear(2, 3), TRIANGLE, extent=extent)


def test_points_are_no_numbers():
    with pytest.raises(ValueError, match=r"`points` must be \(3, \*input_shape\), but got shape \(3,\)"):
        slice_partition(Call(lambda x: x[:, None]), torch.randn(3))


def test_one_output_for_a_whole_batch():
    with pytest.raises(ValueError, match="one number for a whole batch: pass `forward_fn=`"):
        slice_partition(nn.Linear(2, 3), TRIANGLE, forward_fn=lambda m, x: m(x).sum())


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, "a"])
def test_wrong_chunk_sizes(chunk_size):
    with pytest.raises(ValueError, match="`chunk_size` must be a positive integer"):
        slice_partition(nn.Linear(2, 3), TRIANGLE, chunk_size=chunk_size)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.last = nn.LSTM(1, 4, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.cell(x[..., None])[0][:, -1])


def hidden(*layers):
    return seq(nn.Linear(2, 4), *layers, nn.Linear(4, 2))


BENT = {
    "GELU": (hidden(nn.GELU()), "'gelu' at '1' is not piecewise affine"),
    "tanh": (hidden(nn.Tanh()), "'tanh' at '1' is not piecewise affine"),
    "SiLU": (hidden(nn.SiLU()), "'silu'"),
    "softplus behind a ReLU": (hidden(nn.ReLU(), nn.Softplus()), "'softplus' at '2'"),
    "Hardswish": (hidden(nn.Hardswish()), "'hardswish'"),
    "LSTM": (Recurrent(), "'LSTM' at 'cell'"),
    "LayerNorm": (hidden(nn.LayerNorm(4), nn.ReLU()), "LayerNorm"),
    "softmax inside": (hidden(nn.ReLU(), nn.Softmax(1)), "softmax"),
    "softmax last": (seq(hidden(nn.ReLU()), nn.Softmax(1)), "softmax"),
    "sigmoid last": (seq(hidden(nn.ReLU()), nn.Sigmoid()), "something else in it is nonlinear"),
    "product": (hidden(Call(lambda x: x.relu() * x)), "product"),
    "product of coordinates": (Call(lambda x: x.relu() * x.flip(1)), "product"),
    "where": (hidden(Call(lambda x: torch.where(x > 0, x, 0.1 * x))), "comparison"),
    "where behind a ReLU": (hidden(nn.ReLU(), Call(lambda x: torch.where(x > 1, x, 1.0))), "comparison"),
    "sort": (hidden(nn.ReLU(), Call(lambda x: x.sort(1)[0])), "something else in it is nonlinear"),
    "round": (Call(lambda x: x.round() + x.relu()), "something else in it is nonlinear"),
    "Hardshrink": (hidden(nn.Hardshrink()), "'hardshrink' at '1' jumps"),
    "threshold": (hidden(nn.Threshold(0.1, 20)), "'threshold' at '1' jumps"),
}


@pytest.mark.parametrize("case", BENT)
def test_what_is_not_piecewise_affine(case):
    net, match = BENT[case]
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter)
    with pytest.raises(ValueError, match=match) as error:
        slice_partition(net, TRIANGLE, extent=(-2, 2, -2, 2))
    assert "`local_complexity_map`" in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(value):
    net = hidden(nn.ReLU())
    net[2].weight.data[0, 0] = value
    with pytest.raises(ValueError, match="not finite"):
        slice_partition(net, TRIANGLE)


@pytest.mark.parametrize("seed", range(5))
def test_adaptive_max_pooling_is_max_pooling(seed):
    torch.manual_seed(seed)
    first = (nn.Linear(3, 2 * 6 * 4), nn.Unflatten(1, (2, 6, 4)))
    pool, adaptive = (seq(*first, p, nn.Flatten()) for p in (nn.MaxPool2d((2, 4)), nn.AdaptiveMaxPool2d((3, 1))))
    points = torch.randn(3, 3)
    found = slice_partition(adaptive, points, extent=WINDOW)
    same_regions(found, slice_partition(pool, points, extent=WINDOW))
    assert found.n_regions > 10
    assert found.counts.tolist() == slice_partition(pool, points, extent=WINDOW).counts.tolist()


def test_adaptive_max_pooling_of_windows_that_overlap():
    """Three values in two windows, which share the middle."""
    net = seq(Call(lambda x: torch.cat([x, 1 - x[:, :1]], 1)[:, None]), nn.AdaptiveMaxPool1d(2), nn.Flatten())
    found = slice_partition(net, TRIANGLE, extent=WINDOW)
    assert found.n_regions == 4  # lines u = v and v = 1 - u
    assert found.counts.tolist() == [2]


def test_a_threshold_without_a_jump_is_a_relu():
    torch.manual_seed(0)
    first, last, points = nn.Linear(2, 8), nn.Linear(8, 3), torch.randn(3, 2)
    found = slice_partition(seq(first, nn.Threshold(0.0, 0.0), last), points, extent=WINDOW)
    same_regions(found, slice_partition(seq(first, nn.ReLU(), last), points, extent=WINDOW))
    shifted = slice_partition(seq(first, nn.Threshold(0.5, 0.5), last), points, extent=WINDOW)
    same_regions(shifted, slice_partition(seq(first, Call(lambda x: x.clamp(min=0.5)), last), points, extent=WINDOW))


# The model


def tensors_of(net):
    return {name: (id(t), t.clone()) for name, t in [*net.named_parameters(), *net.named_buffers()]}


def test_the_model_is_left_as_it_was():
    torch.manual_seed(0)
    net = seq(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, 3)).float()
    net(torch.randn(8, 2)).sum().backward()
    net.train()
    net[1].eval()
    net[4].weight.requires_grad_(False)
    points = TRIANGLE.float()
    before = tensors_of(net), points.clone(), [m.training for m in net.modules()]
    grads = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    with torch.enable_grad():
        found = slice_partition(net, points, extent=WINDOW, slopes=True)
        assert torch.is_grad_enabled()
    assert found.n_regions > 4

    tensors, same_points, training = before
    for name, (identity, value) in tensors_of(net).items():
        assert identity == tensors[name][0]
        assert torch.equal(value, tensors[name][1])
        assert value.dtype == tensors[name][1].dtype
    assert torch.equal(points, same_points)
    assert [m.training for m in net.modules()] == training
    for name, parameter in net.named_parameters():
        assert torch.equal(parameter.grad, grads[name])
        assert parameter.requires_grad == (name != "4.weight")
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (np.random.get_state()[1] == streams[1]).all()
    assert random.getstate() == streams[2]
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_training_mode_does_not_matter():
    net, points = made(batchnorm, 1)
    expected = slice_partition(net, points, extent=WINDOW)
    found = slice_partition(net.train(), points, extent=WINDOW)
    np.testing.assert_array_equal(found.vertices, expected.vertices)


def same_regions(found, expected):
    assert found.n_regions == expected.n_regions
    for polygon, other in zip(found.polygons, expected.polygons, strict=True):
        np.testing.assert_allclose(polygon, other, atol=1e-10)


def test_in_place_and_reused_modules():
    net, points = made(dense, 6)
    shared = nn.ReLU(inplace=True)
    twin = seq(net[0], shared, net[2], shared, net[4], shared, net[6])
    found, expected = slice_partition(twin, points, extent=WINDOW), slice_partition(net, points, extent=WINDOW)
    same_regions(found, expected)
    assert found.layer_names == ["1#1", "1#2", "1#3"]
    assert expected.layer_names == ["1", "3", "5"]
    assert {maker[0] for r in range(found.n_regions) for maker in found.edge_makers(r) if maker} == {
        "1#1",
        "1#2",
        "1#3",
    }


def test_compiled_models():
    net, points = made(dense, 6)
    compiled = torch.compile(net, backend="eager")
    expected = slice_partition(net, points, extent=WINDOW)
    compiled(points)
    found = slice_partition(compiled, points, extent=WINDOW)
    same_regions(found, expected)
    assert found.layer_names == expected.layer_names


class Named(nn.Module):
    """Takes keywords: what moves, and a choice that is held."""

    def __init__(self, net):
        super().__init__()
        self.net, self.gain = net, nn.Embedding(2, 1)
        self.gain.weight.data = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def forward(self, x, choice):
        return {"logits": self.net(x * self.gain(choice))}


def test_dictionaries_of_inputs():
    net, points = made(dense, 6)
    held = {"x": points, "choice": torch.tensor([1, 0, 0])}  # of the first point
    found = slice_partition(Named(net), held, extent=WINDOW)
    expected = slice_partition(Call(lambda x: net(-2 * x)), points, extent=WINDOW)
    same_regions(found, expected)


def test_several_inputs_span_their_product():
    net, points = made(dense, 6)
    two = Call(lambda a, b: net(torch.cat([a, b], 1)))
    found = slice_partition(two, (points[:, :1], points[:, 1:]), extent=WINDOW)
    same_regions(found, slice_partition(net, points, extent=WINDOW))
    assert found.to_input([1.0, 2]).shape == (1, 3)


def test_forward_fn():
    net, points = made(dense, 6)
    found = slice_partition(net, points, extent=WINDOW, forward_fn=lambda model, x: (model(2 * x)[:, :1], None))
    expected = slice_partition(Call(lambda x: net(2 * x)[:, :1]), points, extent=WINDOW)
    same_regions(found, expected)
    np.testing.assert_allclose(found.decision_boundary, expected.decision_boundary, atol=1e-10)


def test_tokens_move_behind_the_embedding():
    torch.manual_seed(0)
    embedding, head = nn.Embedding(7, 3), seq(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    tokens = torch.tensor([[1, 2], [3, 4], [5, 6]])
    with torch.no_grad():
        embedded = embedding(tokens)
    found = slice_partition(seq(embedding, head), tokens, extent=WINDOW, slopes=True)
    expected = slice_partition(head, embedded, extent=WINDOW, slopes=True)
    same_regions(found, expected)
    np.testing.assert_allclose(found.slope_norm, expected.slope_norm)
    assert found.n_regions > 8
    assert found.to_input([0, 0]).shape == (1, 2, 3)


def test_at_a_hidden_layer():
    net, points = made(dense, 6)
    with torch.no_grad():
        behind = net[:3](points)
    found = slice_partition(net, points, at="2", extent=WINDOW, slopes=True)
    expected = slice_partition(net[3:], behind, extent=WINDOW, slopes=True)
    same_regions(found, expected)
    np.testing.assert_allclose(found.slope_norm, expected.slope_norm)
    assert found.n_regions > 8
    with pytest.raises(ValueError, match="`at='nowhere'`"):
        slice_partition(net, points, at="nowhere")


def test_an_input_that_is_used_again():
    net, points = made(dense, 6)

    def again(x):
        return net(x) + x.roll(1, 1).relu()

    found = slice_partition(Call(again), points, extent=WINDOW)
    x = found.to_input(inside(found, np.random.default_rng(0), 3))
    slopes = jacobians(again, x).reshape(found.n_regions, 3, -1)
    assert np.abs(slopes - slopes[:, :1]).max() < 1e-9
    seen = np.concatenate([patterns(net, x)[0], (x > 0).numpy()], 1)[::3]
    assert len(np.unique(seen, axis=0)) == found.n_regions


@pytest.mark.parametrize("kind", [dense, overlapping, batchnorm])
@pytest.mark.parametrize("chunk_size", [1, 7, 10**6])
def test_chunk_size_does_not_matter(kind, chunk_size):
    net, points = made(kind, 1)
    expected = slice_partition(net, points, extent=(-2, 2, -2, 2), slopes=True)
    found = slice_partition(net, points, extent=(-2, 2, -2, 2), slopes=True, chunk_size=chunk_size)
    same_regions(found, expected)
    np.testing.assert_allclose(found.slope_norm, expected.slope_norm)


def with_memory(held, monkeypatch):
    """Let the values of so many bytes be kept. Returns a list: for each layer, whether they were, and all of them."""
    layers = []

    def cut_along(self, position, values, *more):
        if values.units():
            layers.append((values.complete(), bool(values._kept.all())))
        original(self, position, values, *more)

    original = slicer.Slicer._cut_along
    monkeypatch.setattr(slicer.Slicer, "_cut_along", cut_along)
    monkeypatch.setattr(slicer, "_HELD", held)
    return layers


@pytest.mark.parametrize("kind", KINDS)
def test_each_layer_computed_anew_gives_the_same(kind, monkeypatch):
    net, points = made(kind, 1)
    expected = slice_partition(net, points, extent=WINDOW)
    layers = with_memory(0, monkeypatch)
    same_regions(slice_partition(net, points, extent=WINDOW), expected)
    assert not any(complete for complete, _ in layers)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_keeping_only_what_will_be_needed_gives_the_same(seed, monkeypatch):
    torch.manual_seed(seed)
    net = seq(nn.Linear(3, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU(), nn.Linear(60, 60), nn.ReLU())
    net = seq(*net, nn.Unflatten(1, (15, 2, 2)), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(15, 3))
    points = torch.randn(3, 3)
    window = (-1, 1, -1, 1)
    expected = slice_partition(net, points, extent=window, chunk_size=8)
    layers = with_memory(300_000, monkeypatch)
    same_regions(slice_partition(net, points, extent=window, chunk_size=8), expected)
    assert (True, False) in layers


def test_the_same_call_gives_the_same_numbers():
    net, points = made(others, 1)
    one, two = (slice_partition(net, points, extent=WINDOW) for _ in range(2))
    np.testing.assert_array_equal(one.vertices, two.vertices)
    np.testing.assert_array_equal(one.decision_boundary, two.decision_boundary)


@pytest.mark.parametrize("slopes", [False, True])
def test_plot(slopes):
    from matplotlib import pyplot

    net, points = made(dense, 1)
    found = slice_partition(net, points, extent=WINDOW, slopes=slopes)
    figure, axes = found.plot()
    assert isinstance(figure, Figure)
    assert isinstance(axes, Axes)
    regions, boundary = axes.collections
    assert len(regions.get_paths()) == found.n_regions
    assert len(boundary.get_segments()) == len(found.decision_boundary) > 0
    assert axes.get_xlim() == (-4, 4)
    figure.canvas.draw()
    assert (regions.get_array() is not None) == slopes
    again, same = found.plot(axes)
    assert same is axes
    assert again is figure
    pyplot.close(figure)


@pytest.mark.parametrize("seed", range(20))
def test_the_vertices_of_a_frame_of_two_directions_miss_units_and_invent_none(seed: int) -> None:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 20), nn.ReLU(), nn.Linear(20, 20), nn.ReLU(), nn.Linear(20, 3)).double()
    x, radius = torch.randn(5, dtype=torch.float64), 2.0
    frame = cross_polytope_frame(5, 2, seed=seed, dtype=torch.float64)
    sides = torch.stack([frame[0] + frame[1], frame[0] - frame[1]]) / 2**0.5
    half = radius / 2**0.5
    found = slice_partition(net, torch.stack([x, x + sides[0], x + sides[1]]), extent=(-half, half, -half, half))
    estimate = local_complexity(net, x[None], radius=radius, directions=frame).counts[0]
    assert found.counts.tolist()[0] == int(estimate[0]) > 0  # the first layer is exact
    assert found.counts.tolist()[1] >= int(estimate[1])
