"""What is compared or rounded, but does not depend on what is perturbed, is no jump."""

import warnings

import pytest
import torch
from torch import nn

from lc_callback.functional import local_complexity


class Net(nn.Module):
    """A mask is made on the way."""

    def __init__(self, mask):
        super().__init__()
        self.a, self.b, self.mask = nn.Linear(12, 32), nn.Linear(32, 2), mask

    def forward(self, x, *others):
        return self.b(torch.relu(self.a(x * self.mask(x, *others))))


class Behind(nn.Module):
    """Tokens and their length, compared before and after the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.a = nn.Embedding(9, 6), nn.Linear(6, 20)

    def forward(self, tokens, length):
        x = self.embedding(tokens)
        inside = torch.arange(4.0) < length[:, None]
        return torch.relu(self.a(x * inside[..., None])).sum(1)


def lengths(x):
    return torch.arange(12.0).expand(len(x), 12) < (torch.ones(len(x)) * 9)[:, None]


CONSTANT = {
    "lengths": (Net(lengths),),
    "rounded": (Net(lambda x: torch.linspace(0, 2, 12).expand(len(x), 12).round()),),
    "floor": (Net(lambda x: torch.floor(torch.full_like(x, 1.5))),),
    "to_integers": (Net(lambda x: (torch.ones(len(x), 12) * 1.7).long()),),
    "written_to": (Net(lambda x: torch.zeros_like(x).add_(0.3).ceil_()),),
    "mask_of_the_points": (Net(lambda x, mask: mask.sum(1, keepdim=True).sign()), torch.ones(8, 12, dtype=torch.bool)),
}
OF_POINTS = {
    "compared": lambda x: x > x.mean(),
    "rounded": lambda x: x.round(),
    "sign_of_sum": lambda x: torch.zeros_like(x).add_(x.sum(1, keepdim=True)).sign(),
    "written_to": lambda x: torch.zeros_like(x).copy_(x).ceil_(),
    "part_of_memory": lambda x: torch.cat([x[:, :6], torch.ones(len(x), 6)], 1).view(-1, 2, 6).floor().flatten(1),
    "from_python": lambda x: torch.tensor(x.tolist()).sign(),
}


@pytest.mark.parametrize("name", CONSTANT)
def test_constants_are_no_jump(name):
    torch.manual_seed(0)
    net, *others = CONSTANT[name]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc = local_complexity(net, (torch.randn(8, 12), *others), radius=0.1, n_directions=6, method="linear")
    assert lc.histogram is not None


def test_lengths_are_no_jump_where_an_embedding_is_perturbed():
    torch.manual_seed(0)
    inputs = torch.randint(9, (8, 4)), torch.randint(1, 5, (8,)).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lc = local_complexity(Behind(), inputs, radius=0.1, n_directions=6, method="linear", at="embedding")
    assert lc.histogram is not None


@pytest.mark.filterwarnings("ignore:.*looks at values")
@pytest.mark.parametrize("name", OF_POINTS)
def test_what_depends_on_the_points_still_jumps(name):
    torch.manual_seed(0)
    with pytest.warns(UserWarning, match="the model jumps"):
        lc = local_complexity(Net(OF_POINTS[name]), torch.randn(8, 12), radius=0.1, n_directions=6, method="linear")
    assert lc.histogram is None
