"""Operations that are written down once and repeated: the same counts as by running the model, or not repeated."""

import pytest
import torch
import torch.nn.functional as F
from networks import (
    METHODS,
    NETS,
    Call,
    ReadsTwice,
    draw,
    executed,
    images,
    looked_at,
    measured,
    mlp,
    seq,
)
from torch import nn

from lc_callback.functional import local_complexity


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_counts_are_those_of_the_model_itself(name, method, dtype):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    net = make().to(dtype).eval()
    for chunk_size in (None, 6, 50):
        again, route = measured(net, inputs, method, chunk_size=chunk_size)
        run, plain = measured(net, inputs, method, repeat=False, chunk_size=chunk_size)
        assert route.program is not None
        assert plain.program is None
        assert torch.equal(again, run)
        assert run.sum() > 10


@pytest.mark.parametrize("arguments", [{"max_pool": True}, {"layers": ["Linear", "Conv2d"]}, {"at": "4"}])
def test_so_they_are_with_every_choice_of_what_is_counted(arguments):
    torch.manual_seed(0)
    net, inputs = images().eval(), draw(7, 2, 8, 8)
    again, route = measured(net, inputs, directions=5, **arguments)
    assert route.program is not None
    assert torch.equal(again, measured(net, inputs, repeat=False, directions=5, **arguments)[0])
    assert again.sum() > 20


class Buffered(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        self.calls += 1
        return F.relu(x * self.calls)


class Counted(nn.Module):
    """Another network each time it is called."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return F.relu(x * self.calls)


@pytest.mark.parametrize(
    "net",
    [
        Call(lambda x: F.relu(looked_at(x))),
        Call(lambda x: F.relu(x) if bool((x < 1e9).all()) else x),
        Call(lambda x: F.relu(x + torch.ones(len(x) ** 2).sum())),
        Buffered(),
        Counted(),
        Call(lambda x: F.relu(torch.from_numpy(x.numpy() + 1))),
    ],
    ids=["looks", "branches", "squared_size", "writes", "counts", "leaves_torch"],
)
def test_a_model_of_which_the_operations_do_not_tell_all_runs_each_time(net):
    again, route = measured(net, draw(4, 3))
    assert route.program is None
    assert torch.equal(again, measured(net, draw(4, 3), repeat=False)[0])


def test_nothing_behind_the_last_pre_activation_is_executed_for_each_chunk():
    net, inputs = seq(nn.Linear(3, 4), nn.ReLU(), Call(lambda x: x.cumsum(1))), draw(20, 3)
    few, many = (executed(net, inputs, n).count("cumsum") for n in (2, 20))
    assert few == many > 0


def test_what_depends_on_the_weights_alone_is_computed_once():
    net = seq(nn.Linear(3, 4), nn.ReLU(), Call(lambda x: x @ torch.linspace(0, 1, 16).view(4, 4).cumsum(0)), nn.ReLU())
    few, many = (executed(net, draw(20, 3), n).count("cumsum") for n in (2, 20))
    assert few == many > 0


def test_an_operand_that_is_not_read_again_is_overwritten():
    names = executed(mlp(3, 4, 4, 2), draw(20, 3), 20)
    assert names.count("relu_") > 20
    assert executed(ReadsTwice(), draw(20, 6), 20).count("relu_") == 0  # read again, or not needed


def test_a_product_is_written_over_what_it_alone_reads():
    class Shortcut(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)

        def forward(self, x):
            x = F.relu(self.first(x))
            return F.relu(self.second(x) * x)

    assert executed(Shortcut(), draw(20, 6), 20).count("mul_") > 20
    assert executed(NETS["own_view"][0](), draw(20, 6), 20).count("mul_") == 0


def test_random_numbers_are_drawn_again_in_each_pass():
    """Of a model that draws in eval mode little can be said, but it must not be made to look steady."""
    net = Call(lambda x: F.relu(x + torch.rand(3)))
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="random in eval mode"):
        counts, _ = measured(net, torch.full((40, 3), -0.5), chunk_size=6)
    assert len({tuple(row) for row in counts[0].tolist()}) > 1


def test_a_module_whose_output_is_not_the_only_way_in_is_no_entry():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first = nn.Linear(3, 3)

        def forward(self, x):
            return F.relu(F.relu(self.first(x)) - x)

    net = Twice()
    again, route = measured(net, draw(5, 3))
    assert route.prefix is None
    assert route.program is not None
    assert torch.equal(again, measured(net, draw(5, 3), repeat=False)[0])


@pytest.mark.parametrize("chunk_size", [None, 7, 49])
def test_a_single_sample_left_over_is_laid_out_as_the_model_does(chunk_size):
    """Of 50 vertices one is left: channels first and last at once, so that a ``contiguous()`` has nothing to do."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(4, 8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3))
    x = torch.randn(2, 3, 8, 8)
    one_by_one = local_complexity(net, x, radius=0.5, chunk_size=1)
    found = local_complexity(net, x, radius=0.5, chunk_size=chunk_size)
    assert torch.equal(found.counts, one_by_one.counts)
    assert found.mean > 0
