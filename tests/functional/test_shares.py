"""Local complexity at the shares of several processes, and put together from them."""

import pytest
import torch
from torch import nn

from lc_callback.engine.counting.task import CountingTask
from lc_callback.functional import local_complexity
from lc_callback.functional.local_complexity import joined, share_of, wrapped

RADII = [0.05, 0.5]


def made(seed=0):
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.LeakyReLU(), nn.Linear(16, 2))
    return net, torch.randn(7, 5)


def parts(method, net, x, n, radius=RADII, progress=None):
    shares = [share_of(len(x), index, n) for index in range(n)]
    task = CountingTask.by(method, net, x)
    return [wrapped(task.measure(radius, 3, progress=progress, points=share)) for share in shares]


def test_shares_hold_every_point_once():
    shares = [share_of(7, index, 3).tolist() for index in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert [share_of(2, index, 4).tolist() for index in range(4)] == [[0], [1], [], []]


@pytest.mark.parametrize("n", [1, 2, 4, 9])
@pytest.mark.parametrize("method", ["vertices", "linear"])
def test_all_shares_together_are_the_whole(method, n):
    net, x = made()
    x[4, 2] = float("nan")
    whole = local_complexity(net, x, radius=RADII, n_directions=3, method=method)
    found = joined(parts(method, net, x, n))
    assert torch.equal(found.counts, whole.counts)
    assert (whole.counts[:, 4] < 0).all()
    assert whole.counts[1].sum() > 10
    assert (found.layer_names, found.layer_sizes, found.radius) == (whole.layer_names, whole.layer_sizes, RADII)
    if method == "linear":
        assert torch.equal(found.histogram, whole.histogram)


def test_shares_of_a_single_radius():
    net, x = made()
    whole = local_complexity(net, x, radius=0.5, n_directions=3)
    found = joined(parts("vertices", net, x, 3, radius=0.5))
    assert torch.equal(found.counts, whole.counts)
    assert found.mean == whole.mean


@pytest.mark.filterwarnings("ignore:.*computing in float64")
def test_the_precision_is_that_of_all_points():
    net, x = made()
    assert {part.dtype for part in parts("vertices", net, x, 3)} == {torch.float32}
    x[1] *= 1e5
    assert {part.dtype for part in parts("vertices", net, x, 3)} == {torch.float64}


def test_progress_counts_the_points_of_the_share():
    net, x = made()
    told = []
    parts("vertices", net, x, 3, progress=lambda done, total: told.append((done, total)))
    assert [each for each in told if each[0] == each[1]] == [(6, 6), (4, 4), (4, 4)]
