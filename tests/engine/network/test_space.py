"""The space in which a model is probed: its points, their spread, and the model as a function of them."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from lc_callback.engine.network.space import Space, compute_dtype, input_points, input_spread
from lc_callback.isolation import untouched


def points(n, *shape, seed=0):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def tokens(n, length, below=11):
    return torch.randint(0, below, (n, length), generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Takes a map, a vector and a mask."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 4), nn.Linear(3, 4)

    def forward(self, image, vector, mask):
        return torch.tanh(self.first(image.flatten(1)) * mask) + self.second(vector)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.positions, self.words = nn.Embedding(4, 3), nn.Embedding(11, 3)
        self.net = nn.Sequential(nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(12, 2))

    def forward(self, x):
        return self.net(self.words(x) + self.positions(torch.arange(4)))


class Nested(nn.Module):
    def forward(self, batch, extra=None):
        return batch["a"].sum((1, 2)) + batch["rest"][0] + (0 if extra is None else extra.flatten(1).sum(1))


def cases():
    """Model, inputs, ``at``, and the points that are perturbed."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)).double()
    x, image, vector, ids = points(70, 5), points(70, 2, 3), points(70, 3, seed=1), tokens(70, 4)
    mask, scalar = points(70, 4, seed=2) > 0, points(70, seed=3)
    embedded = Tokens().double()
    return {
        "vector": (net, x, None, x),
        "one entry": (net, [x], None, x),
        "map": (nn.Sequential(nn.Conv1d(2, 3, 2), nn.Tanh()).double(), image, None, image),
        "module": (net, x, "0", net[0](x).detach()),
        "tuple": (Two().double(), (image, vector, mask), None, torch.cat([image.flatten(1), vector], 1)),
        "dict": (
            Two().double(),
            {"vector": vector, "mask": mask, "image": image},
            None,
            torch.cat([vector, image.flatten(1)], 1),
        ),
        "nested": (
            Nested(),
            ({"a": image, "rest": [scalar]}, ids),
            None,
            torch.cat([image.flatten(1), scalar[:, None]], 1),
        ),
        "tokens": (embedded, ids, None, embedded.words(ids).detach()),
        "tokens, at": (
            embedded,
            {"x": ids},
            "net.1",
            (embedded.words(ids) + embedded.positions.weight).detach().relu().flatten(1),
        ),
    }


CASES = list(cases())


def call(model, inputs, rows=slice(None)):
    """The model's own output."""
    cut = torch.utils._pytree.tree_map(lambda leaf: leaf[rows].clone(), inputs)
    with untouched(model):
        if isinstance(cut, dict):
            return model(**cut)
        return model(*cut) if isinstance(cut, (tuple, list)) else model(cut)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("batch", [1, 32, 100])
def test_values_are_the_points_that_are_perturbed(name, batch):
    model, inputs, at, expected = cases()[name]
    space = Space(model, inputs, at=at)
    with untouched(model):
        space.locate(torch.float64)
        batches = list(space.values(batch))
    assert [len(values) for values in batches] == [len(part) for part in expected.split(batch)]
    assert torch.cat(batches).shape == expected.shape
    assert torch.allclose(torch.cat(batches), expected)
    assert space.shape == expected.shape[1:]
    assert space.dim == expected[0].numel()


@pytest.mark.parametrize("name", CASES)
def test_the_output_at_the_points_is_the_models_own(name):
    model, inputs, at, _ = cases()[name]
    space, some = Space(model, inputs, at=at), torch.tensor([3, 60, 7])
    with untouched(model):
        space.locate(torch.float64)
        values = torch.cat(list(space.values()))[some]
        found = space.output(some, values)
    assert torch.allclose(found, call(model, inputs, some))


def forward_from(name, model, inputs, values, some):
    """The output by hand at points that were moved to ``values``."""
    if name in ("vector", "one entry", "map"):
        return copy.deepcopy(model)(values.clone())
    if name == "module":
        return model[1:](values.clone())
    if name == "tuple":
        return model(values[:, :6].view(-1, 2, 3), values[:, 6:], inputs[2][some])
    if name == "dict":
        return model(values[:, 3:].view(-1, 2, 3), values[:, :3], inputs["mask"][some])
    if name == "nested":
        return values.sum(1) + inputs[1][some].sum(1)
    if name == "tokens":
        return model.net(values + model.positions.weight)
    return model.net[2](values)


@pytest.mark.parametrize("name", CASES)
def test_the_output_elsewhere_and_its_gradient_are_those_by_hand(name):
    model, inputs, at, expected = cases()[name]
    space, some = Space(model, inputs, at=at), torch.tensor([3, 60, 7])
    elsewhere = (expected[some] + points(3, *expected.shape[1:], seed=9)).detach()
    with untouched(model, grad=True):
        space.locate(torch.float64)
        x, by_hand = elsewhere.clone().requires_grad_(), elsewhere.clone().requires_grad_()
        outputs = space.output(some, x), forward_from(name, model, inputs, by_hand, some)
        gradients = [
            torch.autograd.grad(out.square().sum(), v)[0] for out, v in zip(outputs, (x, by_hand), strict=True)
        ]
    assert torch.allclose(*outputs)
    assert torch.allclose(*gradients)
    assert gradients[0].abs().max() > 0
    assert torch.equal(x.detach(), elsewhere)  # also where the forward works in place


@pytest.mark.parametrize("name", CASES)
def test_spread_and_input_points(name):
    model, inputs, at, expected = cases()[name]
    dim, spread = input_spread(model.double(), inputs, at=at)
    assert dim == expected[0].numel()
    assert spread == pytest.approx(float(expected.flatten(1).var(0, correction=0).mean().sqrt()))
    found = input_points(model, inputs, at=at)
    if name in ("module", "tokens", "tokens, at"):
        assert found is None
    else:
        assert torch.equal(found, expected)


def test_the_spread_is_within_a_coordinate_not_between_them():
    x = torch.tensor([[0.0, 100.0], [2.0, 104.0]])
    assert input_spread(nn.Linear(2, 1), x) == (2, pytest.approx((1 + 4) ** 0.5 / 2**0.5))


def test_a_module_that_is_called_twice_is_moved_at_its_first_call():
    torch.manual_seed(0)
    layer = nn.Linear(4, 4).double()
    net, x, moved = nn.Sequential(layer, nn.Tanh(), layer), points(6, 4), points(6, 4, seed=1)
    space = Space(net, x, at="0")
    with untouched(net):
        space.locate(torch.float64)
        assert torch.allclose(torch.cat(list(space.values())), layer(x))
        found = space.output(torch.arange(6), moved)
        assert torch.allclose(found, layer(moved.tanh()))


def test_the_first_embedding_that_runs_is_found_and_named():
    class Reversed(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Embedding(5, 2), nn.Embedding(7, 3)

        def forward(self, x):
            return self.first(x).sum(1)[:, :2] + self.last(x % 5).sum(1)

    model, ids = Reversed(), tokens(6, 4, below=7)
    space = Space(model, ids)
    space.locate(torch.float32)
    assert space.at == "first"
    assert input_spread(model, ids)[0] == 12


def test_forward_fn_says_how_to_call():
    net, x = nn.Linear(5, 2).double(), points(6, 5)
    space = Space(net, {"x": x}, forward_fn=lambda model, x: model(2 * x))
    space.locate(torch.float64)
    assert torch.equal(space.output(torch.arange(6), x), net(2 * x))


@pytest.mark.parametrize(
    ("parameters", "inputs", "dtype"),
    [
        (torch.float64, torch.float32, torch.float64),
        (torch.bfloat16, torch.float64, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (None, torch.float64, torch.float64),
        (None, torch.int64, torch.float32),
    ],
)
def test_the_type_is_that_of_the_parameters_and_float32_at_least(parameters, inputs, dtype):
    model = nn.ReLU() if parameters is None else nn.Linear(2, 2).to(parameters)
    assert compute_dtype(model, {"x": torch.zeros(3, 2).to(inputs)}) == dtype


def test_the_widest_of_several_types_decides():
    assert compute_dtype(nn.Sequential(nn.Linear(2, 2).half(), nn.Linear(2, 2).double()), None) == torch.float64


def test_points_go_to_the_type_of_the_network():
    net, x = nn.Linear(5, 2).bfloat16(), points(6, 5)
    assert input_points(net, x).dtype == torch.float32
    assert torch.equal(input_points(net, x), x.float())


class Batched(nn.Module):
    """Returns the time first, or a pair."""

    def __init__(self):
        super().__init__()
        self.turn, self.pair = Part(lambda x: x.transpose(0, 1)), Part(lambda x: (x, x))
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        return self.pair(self.turn(x))[0]


class Part(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("at", "text"),
    [
        ("turn", r"must name a module whose output has the batch first, but for 6 samples it returns shape \(4, 6\)"),
        ("pair", "must name a module that returns a tensor, not a tuple"),
        ("unused", "names a module that was not executed"),
        ("absent", r"`at='absent'` is not the name of a module. Modules: turn, pair, unused"),
    ],
)
def test_modules_that_cannot_be_moved_are_named(at, text):
    with pytest.raises(ValueError, match=text):
        input_spread(Batched(), points(6, 4), at=at)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (tokens(6, 5), "no floating-point tensor to perturb"),
        (torch.tensor(1.0), "at least 1"),
        ((torch.zeros(3, 5), torch.zeros(4, 5)), r"\[\(3, 5\), \(4, 5\)\]"),
        ("points", "but got str"),
    ],
)
def test_inputs_that_are_no_points_are_named(inputs, text):
    with pytest.raises(ValueError, match=text):
        input_spread(nn.Linear(5, 2), inputs)


def test_nothing_stays_attached():
    model, inputs, at, _ = cases()["module"]
    model.train()
    input_spread(model, inputs, at=at)
    space = Space(model, inputs, at=at, forward_fn=lambda model, x: 1 / 0)
    space.locate(torch.float64)
    with pytest.raises(ZeroDivisionError):
        space.output(torch.arange(2), torch.zeros(2, 4))
    hooks = torch.nn.modules.module
    assert not hooks._global_forward_hooks
    assert not hooks._global_forward_pre_hooks
    assert model.training
