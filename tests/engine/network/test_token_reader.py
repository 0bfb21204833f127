"""Where tokens are perturbed: at the embedding that reads them, whatever else is looked up, and before what."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lc_callback.engine.network.space import Space, input_spread
from lc_callback.functional import local_complexity
from lc_callback.isolation import untouched

N, T, VOCABULARY = 8, 6, 50


class Model(nn.Module):
    """Tokens, positions and segments; subclasses say in which order, and what they are looked up by."""

    def __init__(self):
        super().__init__()
        self.pos, self.kind = nn.Embedding(512, 8), nn.Embedding(3, 8)
        self.tok = nn.Embedding(VOCABULARY, 8)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 2))

    def positions(self, ids):
        return self.pos(torch.arange(ids.shape[1]))

    def forward(self, ids):
        positions = self.positions(ids)
        return self.net(self.tok(ids) + positions).mean(1)


class Expanded(Model):
    def positions(self, ids):
        return self.pos(torch.arange(ids.shape[1]).expand_as(ids))


class Repeated(Model):
    def positions(self, ids):
        return self.pos(torch.arange(ids.shape[1])[None].repeat(len(ids), 1))


class OfPadding(Model):
    """As RoBERTa counts them."""

    def positions(self, ids):
        mask = ids.ne(1).int()
        return self.pos((torch.cumsum(mask, 1).type_as(mask) * mask).long() + 1)


class OfShape(Model):
    def positions(self, ids):
        return self.pos(torch.ones_like(ids).cumsum(1) - 1)


class OfMask(Model):
    def forward(self, ids, mask):
        positions = self.pos((mask.cumsum(-1) - 1).masked_fill(mask == 0, 1))
        return self.net((self.tok(ids) + positions) * mask[..., None]).mean(1)


class Given(Model):
    """Positions and segments come with the batch."""

    def forward(self, position_ids, token_type_ids, ids):
        return self.net(self.pos(position_ids) + self.kind(token_type_ids) + self.tok(ids)).mean(1)


class TimeFirst(Model):
    def forward(self, ids):
        positions = self.pos(torch.arange(ids.shape[1]))[:, None]
        return self.net(self.tok(ids.T.contiguous().T) + positions.transpose(0, 1)).mean(1)


class Shifted(Model):
    """A start token, and what comes out of range is clipped."""

    def forward(self, ids):
        positions = self.positions(ids)
        shifted = torch.full_like(ids, 2)
        shifted[:, 1:] = ids[:, :-1]
        return self.net(self.tok(shifted.clamp(max=40)) + positions).mean(1)


class Joined(Model):
    def forward(self, ids):
        start = torch.full((len(ids), 1), 2)
        positions = self.pos(torch.arange(ids.shape[1] + 1)).expand(len(ids), -1, -1)
        return self.net(positions + self.tok(torch.cat([start, ids], 1))).mean(1)


class Relabelled(Model):
    """Tokens by way of a table."""

    def __init__(self):
        super().__init__()
        self.register_buffer("table", torch.randperm(VOCABULARY))

    def forward(self, ids):
        positions = self.positions(ids)
        return self.net(self.tok(self.table[ids]) + positions).mean(1)


class Own(nn.Module):
    """An embedding that is no nn.Embedding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(VOCABULARY, 8))

    def forward(self, ids):
        return F.embedding(ids, self.weight) * 2


class OfItsOwn(Model):
    def __init__(self):
        super().__init__()
        self.tok = Own()


class Tied(Model):
    """The table is the last layer, too."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, VOCABULARY, bias=False)
        self.head.weight = self.tok.weight

    def forward(self, ids):
        positions = self.positions(ids)
        return self.head(self.tok(ids) + positions).relu().mean(1)


class Shared(Model):
    """The first call of the table reads a prompt of its own."""

    def forward(self, ids):
        prompt = self.tok(torch.arange(3).expand(len(ids), -1))
        return self.net(torch.cat([prompt, self.tok(ids)], 1)).mean(1)


class EncoderDecoder(Model):
    """Both read with one table; the encoder is first."""

    def forward(self, ids, decoder_ids):
        return self.net(self.tok(ids)).mean(1) + self.net(self.tok(decoder_ids)).mean(1)


class Bags(nn.Module):
    def __init__(self):
        super().__init__()
        self.tok, self.net = nn.EmbeddingBag(VOCABULARY, 8), nn.Sequential(nn.Linear(8, 16), nn.ReLU())

    def forward(self, ids):
        return self.net(self.tok(ids))


class OutOfSight(Model):
    """Tokens by way of NumPy."""

    def forward(self, ids):
        return self.net(self.tok(torch.from_numpy(ids.numpy().copy()))).mean(1)


def tokens(seed=0, low=3):
    return torch.randint(low, VOCABULARY, (N, T), generator=torch.Generator().manual_seed(seed))


def padded(left=False):
    ids = tokens()
    for i in range(1, N, 2):
        ids[i, : i // 2] = ids[i, T - i // 2 :] if left else ids[i, : i // 2]
        ids[i, slice(None, i // 2) if left else slice(T - i // 2, None)] = 1
    return ids


COUNTED = torch.arange(T).expand(N, T)
SEGMENTS = (torch.arange(T) > torch.arange(N)[:, None] % T).long()
FROM_THE_LEFT = (padded(left=True) != 1).long()
OWN_POSITIONS = (FROM_THE_LEFT.cumsum(-1) - 1).masked_fill(FROM_THE_LEFT == 0, 1)
CASES = {
    "positions first": (Model, tokens(), "tok"),
    "expanded": (Expanded, tokens(), "tok"),
    "repeated": (Repeated, tokens(), "tok"),
    "counted from padding": (OfPadding, padded(), "tok"),
    "counted from the shape": (OfShape, tokens(), "tok"),
    "counted from a mask": (OfMask, (padded(), (padded() != 1).long()), "tok"),
    "counted from a mask on the left": (OfMask, (padded(left=True), FROM_THE_LEFT), "tok"),
    "given": (Given, (COUNTED, SEGMENTS, tokens()), "tok"),
    "given, by name": (Given, {"position_ids": COUNTED, "token_type_ids": SEGMENTS, "ids": tokens()}, "tok"),
    "given, padded on the left": (Given, (OWN_POSITIONS, 2 * SEGMENTS, padded(left=True)), "tok"),
    "time first": (TimeFirst, tokens(), "tok"),
    "shifted": (Shifted, tokens(), "tok"),
    "joined to a start": (Joined, tokens(), "tok"),
    "relabelled": (Relabelled, tokens(), "tok"),
    "int32": (Model, tokens().int(), "tok"),
    "a kind of its own": (OfItsOwn, tokens(), "tok"),
    "tied": (Tied, tokens(), "tok"),
    "shared with a prompt": (Shared, tokens(), "tok#2"),
    "encoder and decoder": (EncoderDecoder, (tokens(), tokens(1)), "tok"),
    "bags": (Bags, tokens(), "tok"),
    "out of sight": (OutOfSight, tokens(), "tok"),
    "few tokens": (Model, tokens() % 2, "tok"),
    "one point": (Expanded, tokens()[:1], "tok"),
}


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_perturbed_where_they_are_read(name):
    make, inputs, at = CASES[name]
    torch.manual_seed(0)
    model = make()
    space = Space(model, inputs)
    with untouched(model):
        space.locate(torch.float32)
    assert space.at == at
    found, named = (
        local_complexity(model, inputs, radius=0.3, n_directions=6, method="vertices", **where)
        for where in ({}, {"at": at})
    )
    assert found.at == at
    assert found.mean == named.mean > 0
    assert input_spread(model, inputs) == input_spread(model, inputs, at=at)


@pytest.mark.parametrize("method", ["vertices", "linear"])
def test_the_second_call_of_a_shared_table_is_moved(method):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.tok, self.act = nn.Embedding(VOCABULARY, 8), nn.ReLU()

        def forward(self, ids):
            return self.act(self.tok(torch.zeros_like(ids)) - 5), self.act(self.tok(ids))

    torch.manual_seed(0)
    model, ids = Twice(), tokens()
    values = model.tok(ids).flatten(1)
    result = local_complexity(model, ids, radius=0.3, n_directions=4, method=method)
    assert result.at == "tok#2"
    reached = local_complexity(nn.Sequential(nn.ReLU()), values.detach(), radius=0.3, n_directions=4, method=method)
    assert result.mean == reached.mean > 0


def test_the_output_moves_at_the_call_that_is_named():
    torch.manual_seed(0)
    model, ids = Shared(), tokens()
    space, points = Space(model, ids, at="tok#2"), torch.arange(N)
    with untouched(model):
        space.locate(torch.float32)
        values = next(space.values())
        assert torch.equal(values, model.tok(ids))
        assert torch.equal(space.output(points, values), model(ids))
        assert not torch.equal(space.output(points, values + 1), model(ids))


@pytest.mark.parametrize("at", ["tok#3", "tok#0", "tok#", "tok#x", "#1"])
def test_calls_that_there_are_not_are_refused(at):
    with pytest.raises(ValueError, match=f"'{at}'"):
        local_complexity(Shared(), tokens(), radius=0.1, n_directions=2, at=at)
