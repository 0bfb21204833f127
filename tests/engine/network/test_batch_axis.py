import warnings

import pytest
import torch
from networks import Call
from torch import nn

from lc_callback.engine.network.batch_axis import BatchAxis, find_batch_axis
from lc_callback.functional import feature_ranks, local_complexity

A, B, C = (torch.arange(12.0).view(3, 4) + 100 * k for k in range(3))  # three samples of shape (3, 4)
TWO, THREE = torch.stack([A, B]), torch.stack([C, B, A])  # (N, T, D)

LAYOUTS = {
    "batch first": (lambda x: x, BatchAxis(0)),
    "time first": (lambda x: x.transpose(0, 1), BatchAxis(1)),
    "batch last": (lambda x: x.movedim(0, -1), BatchAxis(2)),
    "folded into time": (lambda x: x.flatten(0, 1), BatchAxis(0, 3)),
    "time folded, time first": (lambda x: x.transpose(0, 1).flatten(0, 1), BatchAxis(0, 3, False)),
    "two views, one after the other": (lambda x: torch.cat([x, -x]), BatchAxis(0, 2, False)),
    "folded into the last axis": (lambda x: x.permute(2, 0, 1).flatten(1), BatchAxis(1, 3)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_batch_axis_of_a_layout_is_found(layout):
    arrange, expected = LAYOUTS[layout]
    axis, difference = find_batch_axis(arrange(TWO), arrange(THREE))
    assert axis == expected
    assert difference == 0


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_come_to_the_front(layout):
    arrange, axis = LAYOUTS[layout]
    front = axis.to_front(arrange(THREE), 3)
    alone = [axis.to_front(arrange(THREE[k : k + 1]), 1)[0] for k in range(3)]
    assert front.shape[0] == 3
    assert torch.equal(front, torch.stack(alone))


def test_a_value_that_does_not_depend_on_the_samples_has_no_batch_axis():
    assert find_batch_axis(A, A) is None
    assert find_batch_axis(torch.tensor(1.0), torch.tensor(2.0)) is None


def test_the_difference_is_relative_to_the_largest_entry():
    moved = THREE.clone()
    moved[-1, 0, 0] += 1.11
    assert find_batch_axis(TWO, moved)[1] == pytest.approx(0.01)


def test_indices_that_change_count_by_their_share():
    moved = THREE.long()
    moved[-1, 0, :3] += 1
    assert find_batch_axis(TWO.long(), moved)[1] == pytest.approx(3 / 24)


def test_zeros_and_nan_make_no_difference():
    assert find_batch_axis(torch.zeros(2, 4), torch.zeros(3, 4)) == (BatchAxis(0), 0.0)
    assert find_batch_axis(torch.zeros(4, 4), torch.zeros(6, 4), sample_first=False) == (BatchAxis(0, 2, False), 0.0)
    broken = torch.full((3, 4), torch.nan)
    assert find_batch_axis(broken[:2], broken) == (BatchAxis(0), 0.0)


@pytest.mark.parametrize(
    ("two", "three"),
    [
        ((2, 4), (3, 5)),  # two axes grow
        ((2, 2), (3, 3)),  # samples against samples
        ((3, 4), (4, 4)),  # a class token in the batch axis
        ((4,), (9,)),  # pairs of samples
    ],
)
def test_no_single_proportional_axis_is_an_error(two, three):
    with pytest.raises(ValueError, match="no single axis grows in proportion to the number of samples"):
        find_batch_axis(torch.zeros(two), torch.zeros(three))


def test_a_changing_rank_is_an_error():
    with pytest.raises(ValueError, match="its rank depends on the number of samples"):
        find_batch_axis(torch.zeros(2), torch.zeros(3, 1))


@pytest.mark.parametrize("shape", [(5, 4), (9,), ()])
def test_a_tensor_of_another_size_is_refused(shape):
    with pytest.raises(ValueError, match="does not hold 3 samples"):
        BatchAxis(0, 2).to_front(torch.zeros(shape), 3)


# Layouts inside a network: each computes what the plain one computes


class Net(nn.Module):
    def __init__(self, arrange, back):
        super().__init__()
        self.arrange, self.back = arrange, back
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x):  # (N, T, 4)
        z = self.arrange(x)
        z = torch.relu(self.second(torch.relu(self.first(z))))
        return self.head(self.back(z, len(x)))


INSIDE = {
    "folded into time": (lambda x: x.reshape(-1, 4), lambda z, n: z.view(n, 3, 5)),
    "time first": (lambda x: x.transpose(0, 1), lambda z, n: z.transpose(0, 1)),
    "time folded, time first": (
        lambda x: x.transpose(0, 1).reshape(-1, 4),
        lambda z, n: z.view(3, n, 5).transpose(0, 1),
    ),
    "cat of the steps": (lambda x: torch.cat(list(x.unbind(1))), lambda z, n: torch.stack(z.chunk(3), 1)),
}


@pytest.mark.parametrize("chunk_size", [None, 3])
@pytest.mark.parametrize("layout", INSIDE)
def test_a_layout_changes_no_count(layout, chunk_size):
    x = torch.randn(7, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    settings = {"radius": 0.8, "n_directions": 5, "chunk_size": chunk_size}
    plain = local_complexity(Net(lambda x: x, lambda z, n: z).double(), x, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arranged = local_complexity(Net(*INSIDE[layout]).double(), x, **settings)
    assert torch.equal(arranged.counts, plain.counts)
    assert arranged.layer_sizes == plain.layer_sizes == [18, 15]
    assert len(set(map(tuple, plain.counts.tolist()))) > 5  # mixed-up samples would show


def test_two_views_in_one_batch_are_the_sum_of_both():
    class Siamese(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, a, b):
            return self.net(torch.cat([a, b], 0))

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 9), nn.ReLU(), nn.Linear(9, 1)).double()
    a, b = torch.randn(2, 6, 4, dtype=torch.float64)
    directions = torch.linalg.qr(torch.randn(8, 5, dtype=torch.float64))[0].T
    both = local_complexity(Siamese(net), (a, b), radius=0.9, directions=directions)
    # The parts of unit directions of (a, b) are directions of a and of b.
    one = local_complexity(net, a, radius=0.9, directions=directions[:, :4])
    other = local_complexity(net, b, radius=0.9, directions=directions[:, 4:])
    assert both.layer_sizes == [18]
    assert torch.equal(both.total, one.total + other.total)
    assert len(set(both.total.tolist())) > 2


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("layout", INSIDE)
def test_the_order_of_a_folded_axis_is_that_of_the_layers_before_where_all_units_are_zero(layout, method):
    """At the first point, at which layouts are found, no unit of the first layer is active."""
    x = torch.randn(40, 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[0] *= 0.02
    plain, arranged = Net(lambda x: x, lambda z, n: z).double(), Net(*INSIDE[layout]).double()
    for net in (plain, arranged):
        nn.init.constant_(net.first.bias, -0.3)
    settings = {"radius": 0.5, "n_directions": 5, "method": method}
    expected = local_complexity(plain, x, **settings).counts
    assert torch.equal(local_complexity(arranged, x, **settings).counts, expected)
    assert expected[:, 1].sum() > 10


class OverSamples(nn.Module):
    """A module that takes the samples for steps."""

    def __init__(self, module, shape=lambda z: z):
        super().__init__()
        self.module, self.shape = module, shape

    def forward(self, x):
        found = self.module(self.shape(x))
        return (found[0] if isinstance(found, tuple) else found).view(x.shape)


MIXES = {
    "mean": lambda: Call(lambda x: x - x.mean(0)),
    "norm of all": lambda: Call(lambda x: x / x.norm()),
    "plus the mean": lambda: Call(lambda x: x + x.mean(0)),
    "softmax": lambda: Call(lambda x: x.softmax(0)),
    "sorted": lambda: Call(lambda x: x.sort(0).values),
    "sum so far": lambda: Call(lambda x: x.cumsum(0)),
    "sum of the rest": lambda: Call(lambda x: x.flip(0).cumsum(0).flip(0)),
    "largest so far": lambda: Call(lambda x: x.cummax(0).values + x),
    "the first": lambda: Call(lambda x: x - 2 * x[0]),
    "the last": lambda: Call(lambda x: x - 2 * x[-1]),
    "the sample before": lambda: Call(lambda x: x - torch.cat([0 * x[:1], x[:-1]])),
    "the sample behind": lambda: Call(lambda x: x - torch.cat([x[1:], 0 * x[:1]])),
    "turned round": lambda: Call(lambda x: x + x.flip(0)),
    "shifted round": lambda: Call(lambda x: x.roll(1, 0)),
    "similarity": lambda: Call(lambda x: x @ x.T @ x),
    "norm of the batch": lambda: nn.BatchNorm1d(5, track_running_stats=False),
    "causal convolution": lambda: OverSamples(nn.Conv1d(5, 5, 2), lambda z: nn.functional.pad(z.T, (1, 0))[None]),
}


@pytest.mark.parametrize("measure", [local_complexity, feature_ranks])
@pytest.mark.parametrize("name", MIXES)
def test_samples_that_influence_each_other_are_told(name, measure):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), MIXES[name](), nn.ReLU(), nn.Linear(5, 2)).eval()
    with pytest.warns(UserWarning, match="at one point depends on the other points of the batch"):
        measure(net, torch.randn(12, 4))


@pytest.mark.parametrize("module", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrence_over_the_samples_is_told(module):
    """As with `batch_first=True` forgotten: there are more steps of more samples."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 5), OverSamples(module(5, 5)), nn.ReLU(), nn.Linear(5, 2)).eval()
    with pytest.raises(ValueError, match=r"executed \d+ non-linearities for two samples but \d+ for three"):
        local_complexity(net, torch.randn(12, 4))
    with pytest.warns(UserWarning, match="at one point depends on the other points of the batch"):
        feature_ranks(net, torch.randn(12, 4))


def test_a_model_that_draws_in_eval_mode_is_told():
    class Noisy(nn.Module):
        def forward(self, x):
            return torch.relu(x + torch.randn_like(x)).sum(1)

    with pytest.warns(UserWarning, match="is random in eval mode"):
        local_complexity(Noisy(), torch.randn(3, 4), n_directions=4)


def test_units_between_samples_are_refused_with_the_way_out():
    class Kernel(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 5)

        def forward(self, x):
            z = torch.relu(self.linear(x))
            return torch.relu(z @ z.T)

    net, x = Kernel(), torch.randn(3, 4)
    with pytest.raises(ValueError, match=r"the units of 'relu' cannot be separated from the samples.*`layers=`"):
        local_complexity(net, x, n_directions=4)
    assert local_complexity(net, x, n_directions=4, layers=["linear"]).layer_sizes == [5]


def test_a_network_of_changing_depth_is_refused():
    class Changing(nn.Module):
        def forward(self, x):
            for _ in x:
                x = torch.relu(x)
            return x

    with pytest.raises(ValueError, match="executed 2 non-linearities for two samples but 3 for three"):
        local_complexity(Changing(), torch.randn(3, 4), n_directions=4)
