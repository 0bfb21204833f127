"""Winners of maxima against the naive twin, which asks the model at each vertex."""

import pytest
import torch
import torch.nn.functional as F
from networks import Call
from torch import nn

from lc_callback.functional import local_complexity, slice_partition

GROUPS = (8, 4)


def draw(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def grouped(function):
    return lambda z: function(z.unflatten(-1, GROUPS))


def top(z, k):
    return torch.zeros_like(z).scatter(-1, z.topk(k).indices, 1.0)


def cuts(z):
    """Which inputs are among the first k of the order, for each k."""
    order = z.argsort(-1)
    member = F.one_hot(order, z.shape[-1]).cumsum(-2)[..., :-1, :]  # (..., k, input)
    return (member * 2 ** torch.arange(z.shape[-1])).sum(-1)


def points(z):  # 4 points of 8 features
    return z.unflatten(-1, (4, 8))


# What runs, the operation, and what is a winner.
TABLE = {
    "maxout": (grouped(lambda z: z.amax(-1)), "amax", grouped(lambda z: z.argmax(-1))),
    "amax_two_axes": (
        lambda z: z.unflatten(-1, (4, 4, 2)).amax((1, 3)),
        "amax",
        lambda z: torch.stack([z.unflatten(-1, (4, 4, 2))[:, :, i].flatten(1).argmax(-1) for i in range(4)], -1),
    ),
    "amax_keepdim": (grouped(lambda z: z - z.amax(-1, keepdim=True)), "amax", grouped(lambda z: z.argmax(-1))),
    "amin": (grouped(lambda z: z.amin(dim=-1)), "amin", grouped(lambda z: z.argmin(-1))),
    "max_dim": (grouped(lambda z: z.max(-1)[0]), "max", grouped(lambda z: z.argmax(-1))),
    "max_keyword": (grouped(lambda z: torch.max(z, dim=2).values), "max", grouped(lambda z: z.argmax(-1))),
    "min_dim": (grouped(lambda z: z.min(-1).values), "min", grouped(lambda z: z.argmin(-1))),
    "pointnet": (lambda z: points(z).max(1)[0], "max", lambda z: points(z).argmax(1)),
    "pointnet_amax": (lambda z: points(z).amax(-2), "amax", lambda z: points(z).argmax(-2)),
    "group_sort": (
        lambda z: z.unflatten(-1, (16, 2)).sort(-1).values.flatten(1),
        "sort",
        lambda z: z.unflatten(-1, (16, 2)).argmax(-1),
    ),
    "sort_descending": (grouped(lambda z: z.sort(dim=-1, descending=True)[0]), "sort", grouped(cuts)),
    "sort_stable": (grouped(lambda z: z.sort(stable=True).values), "sort", grouped(cuts)),
    "msort": (lambda z: z.T.unflatten(0, GROUPS).sort(1).values.flatten(0, 1).T, "sort", grouped(cuts)),
    "topk": (
        lambda z: torch.zeros_like(z).scatter(-1, z.topk(8).indices, z.topk(8).values),
        "topk",
        lambda z: top(z, 8),
    ),
    "topk_values": (lambda z: z.topk(5)[0], "topk", lambda z: top(z, 5)),
    "topk_dim": (lambda z: points(z).topk(2, 1)[0], "topk", lambda z: top(points(z).mT, 2)),
    "kthvalue": (grouped(lambda z: z.kthvalue(2)[0]), "kthvalue", grouped(lambda z: z.kthvalue(2)[1])),
    "median": (grouped(lambda z: z.median(-1).values), "median", grouped(lambda z: z.median(-1).indices)),
    "max_pool1d": (
        lambda z: F.max_pool1d(z[:, None], 4)[:, 0],
        "max_pool2d_with_indices",
        grouped(lambda z: z.argmax(-1)),
    ),
}


class Net(nn.Module):
    """One layer of winners, one of ReLUs."""

    def __init__(self, act):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.act = nn.Linear(8, 32), Call(act)
        width = act(torch.zeros(2, 32)).flatten(1).shape[1]
        self.second, self.last = nn.Linear(width, 30), nn.Linear(30, 3)

    def forward(self, x):
        return self.last(torch.relu(self.second(self.act(self.first(x)).flatten(1))))


def switching(values):
    """Of ``(n, vertices, ...)``, how many differ between the vertices of each of the ``n``."""
    return (values != values[:, :1]).any(1).flatten(1).sum(1).tolist()


@pytest.mark.parametrize("name", TABLE)
def test_winners_are_those_of_the_naive_twin(name):
    act, op, winner = TABLE[name]
    net, x, frame = Net(act).double(), draw(30, 8), torch.linalg.qr(draw(8, 8))[0]
    vertices = (x[:, None] + 0.3 * torch.cat([frame, -frame])).flatten(0, 1)
    with torch.no_grad():
        winners = winner(net.first(vertices)).unflatten(0, (30, 16))
        signs = (net.second(net.act(net.first(vertices)).flatten(1)) > 0).unflatten(0, (30, 16))
    lc = local_complexity(net, x, radius=0.3, directions=frame, max_pool=True)
    assert lc.layer_names == ["act", "relu"] or name == "sort_descending"
    assert lc.counts[:, 0].tolist() == switching(winners)
    assert lc.counts[:, 1].tolist() == switching(signs)
    assert lc.counts[:, 0].sum() > 10
    assert lc.uncounted == ()
    without = local_complexity(net, x, radius=0.3, directions=frame)
    assert torch.equal(without.counts[:, 0], lc.counts[:, 1])
    assert without.uncounted == (op,)


@pytest.mark.parametrize(
    "act",
    [
        lambda z: z + z.max(),  # of all values there are
        lambda z: z + z.topk(2)[1].sum(-1, keepdim=True),  # a decision, no kink
        lambda z: z * z.max(-1, keepdim=True).indices,
        lambda z: z + nn.Parameter(torch.arange(8.0).view(2, 4)).amax(1).sum(),
    ],
)
def test_what_has_no_winner_of_a_point_is_no_layer(act):
    lc = local_complexity(Net(act).double(), draw(5, 8), radius=0.3, n_directions=4, max_pool=True)
    assert lc.layer_names == ["relu"]


@pytest.mark.parametrize("name", ["maxout", "topk", "group_sort", "median"])
def test_a_model_of_winners_alone_says_how_they_are_counted(name):
    model = nn.Sequential(nn.Linear(8, 32), Call(TABLE[name][0])).double()
    with pytest.raises(ValueError, match=f"winners of {TABLE[name][1]} with `max_pool=True`"):
        local_complexity(model, draw(5, 8), radius=0.3, n_directions=4)


@pytest.mark.parametrize("name", ["maxout", "amax_two_axes", "amin", "max_dim", "min_dim", "pointnet", "amax_keepdim"])
def test_slices_are_cut_where_the_winner_changes(name):
    act, _, winner = TABLE[name]
    net = Net(act).double()
    found = slice_partition(net, draw(3, 8, seed=2), extent=0.7)
    grid = torch.cartesian_prod(torch.linspace(0, 1, 40), torch.linspace(0, 1, 40)).double().numpy()
    u0, u1, v0, v1 = found.extent
    inside = grid * [u1 - u0, v1 - v0] + [u0, v0]
    x = found.to_input(inside)
    with torch.no_grad():
        hidden = net.first(x)
        winners = winner(hidden).flatten(1)
        signs = net.second(net.act(hidden).flatten(1)) > 0
    patterns = torch.cat([winners, signs.long()], 1)
    assert found.n_regions >= len(patterns.unique(dim=0)) > 20
    assert found.counts[0] >= (winners != winners[0]).any(0).sum() > 3


@pytest.mark.parametrize("name", ["maxout", "amin", "max_dim", "pointnet"])
def test_winners_are_bounded(name):
    net, x = Net(TABLE[name][0]).double(), draw(4, 8)
    lc = local_complexity(net, x, radius=0.05, n_directions=8, max_pool=True, bracket=True)
    assert (lc.upper >= lc.counts).all()
    assert lc.upper.sum() < 3 * lc.counts.sum() + 40
    with pytest.raises(ValueError, match=r"bracket|not affine"):
        local_complexity(Net(TABLE["topk"][0]).double(), x, radius=0.05, n_directions=8, max_pool=True, bracket=True)
