"""Rows that are picked by values: an error that says so, the same for any points; picked by what is fixed: counted."""

import pytest
import torch
from torch import nn

from lc_callback.functional import feature_ranks, local_complexity


def draw(n=12):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(1))


def masked(s, h):
    inside, out = h[:, 0] > 0, h.clone()
    out[inside] = torch.relu(s.b(h[inside]))
    return out


def nonzero(s, h):
    index = (h[:, 0] > 0).nonzero()[:, 0]
    return h.index_add(0, index, torch.relu(s.b(h[index])))


def where(s, h):
    (index,) = torch.where(h.sum(1) > 0.5)
    return h.index_copy(0, index, torch.relu(s.b(h.index_select(0, index))))


def experts(s, h):
    """Each sample goes to the expert with the largest gate."""
    chosen, out = h[:, :2].argmax(1), torch.zeros_like(h)
    for number, expert in enumerate((s.b, s.d)):
        out[chosen == number] = torch.relu(expert(h[chosen == number]))
    return out


def top_experts(s, h):
    out, chosen = torch.zeros_like(h), h[:, :2].topk(1)[1]
    for number, expert in enumerate((s.b, s.d)):
        row, _ = torch.where(chosen == number)
        out.index_add_(0, row, torch.relu(expert(h[row])))
    return out


def masked_select(s, h):
    mask = h > 0.1
    return h.masked_scatter(mask, torch.relu(h.masked_select(mask) - 0.3))


def positions(s, h):
    """Some positions of each sample."""
    h = h.view(-1, 4, 4)
    mask, out = h[..., 0] > 0, h.clone()
    out[mask] = torch.tanh(h[mask]) + h[mask]
    return out.flatten(1)


def never(s, h):
    """No row at first, which training may change."""
    inside, out = h[:, 0] > 1e6, h.clone()
    out[inside] = torch.relu(s.b(h[inside]))
    return out


KINDS = [masked, nonzero, where, experts, top_experts, masked_select, positions, never]


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c, self.d = (nn.Linear(*sizes) for sizes in ((4, 16), (16, 16), (16, 2), (16, 16)))
        self.middle = middle

    def forward(self, x):
        return self.c(self.middle(self, torch.relu(self.a(x))))


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("kind", KINDS)
def test_rows_picked_by_values_are_an_error_whatever_the_points(kind, method):
    for points in (draw(), draw()[:1], draw()[1:3], draw()[5:]):
        with pytest.raises(ValueError, match=r"depends on values .*torch.where\(mask"):
            local_complexity(Net(kind), points, radius=0.1, n_directions=4, method=method)
    with pytest.raises(ValueError, match=r"depends on values .*`layers="):
        feature_ranks(Net(kind), draw())


@pytest.mark.parametrize("kind", KINDS)
def test_layers_with_all_rows_are_counted(kind):
    lc = local_complexity(Net(kind), draw(), radius=0.1, n_directions=4, layers=["a"])
    plain = local_complexity(Net(lambda s, h: h), draw(), radius=0.1, n_directions=4)
    assert torch.equal(lc.counts, plain.counts)


def chosen_afterwards(s, h):
    return torch.where(h[:, :1] > 0, torch.relu(s.b(h)), h)


def fixed_mask(s, h):
    return h[:, torch.arange(16) % 2 == 0].repeat(1, 2).relu()


def fixed_index(s, h):
    return torch.relu(s.b(h))[:, torch.arange(16).flip(0)]


def put_back(s, h):
    out = s.b(h)
    out[out > 2] = 2.0
    return torch.relu(out)


@pytest.mark.parametrize("kind", [chosen_afterwards, fixed_mask, fixed_index, put_back])
def test_masks_that_let_all_rows_through_are_none_of_these(kind):
    net, x = Net(kind).double(), draw().double()
    assert len(local_complexity(net, x, radius=0.1, n_directions=4).layer_names) == 2


def test_rows_picked_by_tokens_are_counted():
    """The last token of each sample, found by a mask, as of BART."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.dense = nn.Embedding(9, 8), nn.Linear(8, 8)

        def forward(self, tokens):
            h = self.embedding(tokens)
            return torch.relu(self.dense(h[tokens == 8].view(len(tokens), -1, 8)[:, -1]))

    torch.manual_seed(0)
    tokens = torch.cat([torch.randint(0, 8, (5, 6)), torch.full((5, 1), 8)], 1)
    lc = local_complexity(Last(), tokens, radius=1.0, n_directions=8)
    assert lc.layer_names == ["relu"]
    assert lc.counts.sum() > 3
