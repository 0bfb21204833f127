"""Which way points are followed, and the reasons that are given for it."""

import pytest
import torch
import torch.nn.functional as F
from networks import METHODS, NETS, TOKENS, Call, draw, looked_at, measured, mlp, seq
from torch import nn

from lc_callback.engine.replay import derivative_rules
from lc_callback.functional import local_complexity


class ReadsAgain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 6)

    def forward(self, x):
        return F.relu(F.relu(self.first(x)) - x)


def self_products(z):
    z = z.unflatten(1, (2, 4))
    return torch.einsum("bij,bkj->bik", z, z).flatten(1)


REPLAYS, RUNS = "replays the recorded operations", "runs the model for all samples"
CASES = {
    "all": (lambda: mlp(6, 9, 9, 2), draw(7, 6), f"{REPLAYS} behind '0', derivatives by rules"),
    "einsum": (
        lambda: seq(nn.Linear(6, 8), nn.ReLU(), Call(self_products), nn.ReLU()),
        draw(7, 6),
        f"{REPLAYS} behind '0', derivatives by small steps; no rules: `bmm` (of `einsum`, `matmul`) in '2' has no "
        "derivative rule",
    ),
    "product": (
        lambda: seq(nn.Linear(6, 8), nn.ReLU(), Call(lambda z: z * z[:, :1]), nn.ReLU()),
        draw(7, 6),
        f"{REPLAYS} behind '0', derivatives by small steps; no rules: `mul` in '2' has no derivative rule for what it "
        "gets here",
    ),
    "layer norm": (
        lambda: seq(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU()),
        draw(7, 6),
        f"{REPLAYS} behind '0', derivatives by small steps; no rules: `native_layer_norm` in '1' has no derivative "
        "rule",
    ),
    "smooth": (
        lambda: seq(nn.Linear(6, 8), nn.GELU()),
        draw(7, 6),
        f"{REPLAYS} behind '0', derivatives by rules",
    ),
    "tokens": (
        lambda: seq(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 50), nn.ReLU()),
        TOKENS,
        f"{REPLAYS}, derivatives by rules; no later entry: the output of '0' is perturbed",
    ),
    "inputs again": (
        ReadsAgain,
        draw(7, 6),
        f"{REPLAYS}, derivatives by rules; no later entry: behind 'first', the inputs are read again",
    ),
    "reads values": (
        lambda: seq(nn.Linear(6, 8), Call(looked_at), nn.ReLU()),
        draw(7, 6),
        f"{RUNS}, derivatives by small steps; no replay: `_local_scalar_dense` (of `item`, `float`, `if`) in '1' gives "
        "values to the model's Python code; no later entry: it reads values in Python; no rules: no operations are "
        "replayed",
    ),
}


@pytest.mark.filterwarnings("ignore:.*looks at values")
@pytest.mark.parametrize("case", CASES)
def test_the_route_says_which_way_it_took_and_why_not_a_faster_one(case):
    make, inputs, expected = CASES[case]
    torch.manual_seed(0)
    lc = local_complexity(make().eval(), inputs.float() if inputs.is_floating_point() else inputs, method="linear")
    assert lc.route == expected


def test_vertices_have_no_derivatives():
    lc = local_complexity(mlp(6, 9, 9, 2), draw(7, 6), method="vertices")
    assert lc.route == f"{REPLAYS} behind '0'"


def failing(error):
    def rule(step, args, at_points, kwargs, values):
        raise error

    return rule


def test_no_exception_is_lost(monkeypatch):
    """Also one that nobody has thought of."""
    monkeypatch.setitem(derivative_rules.RULES, "relu", failing(ZeroDivisionError("of my own\nand more")))
    _, route = measured(mlp(6, 9, 9, 2), draw(7, 6), "linear")
    assert not route.uses_derivative_rules
    assert route.explain().endswith("no rules: ZeroDivisionError: of my own")


class Attends(nn.Module):
    """What comes before its first non-linearity is not affine."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(6, 9), nn.Linear(9, 2)

    def forward(self, x):
        return self.head(torch.relu(self.first((x @ x.transpose(1, 2)).softmax(-1) @ x)))


@pytest.mark.parametrize("method", METHODS)
def test_why_points_do_not_enter_behind_attention_is_told(method):
    _, route = measured(Attends(), draw(7, 5, 6), method)
    reason = "which is not affine in the inputs, or not all that the rest of the model reads"
    assert f"no later entry: behind 'first', {reason}" in route.explain()
    assert "other values" not in route.explain()


def test_a_wrong_rule_is_named(monkeypatch):
    relu = derivative_rules.RULES["relu"]

    def twice(step, args, at_points, kwargs, values):
        dual = relu(step, args, at_points, kwargs, values)
        return dual.scaled(dual.value, dual.value.new_full((), 2.0))

    monkeypatch.setitem(derivative_rules.RULES, "relu", twice)
    _, route = measured(mlp(6, 9, 9, 2), draw(7, 6), "linear")
    assert route.explain().endswith("no rules: it gives other values than the model itself")


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("repeat", [True, False])
@pytest.mark.parametrize("name", NETS)
def test_what_is_not_taken_has_a_reason(name, repeat, method):
    torch.manual_seed(0)
    make, inputs = NETS[name]
    _, route = measured(make().double().eval(), inputs, method, repeat=repeat)
    text = route.explain()
    assert "not tried" not in text
    assert "\n" not in text
    assert ("no replay: " in text) == (route.program is None)
    assert ("no later entry: " in text) == (route.prefix is None)
    assert ("no rules: " in text) == (method == "linear" and not route.uses_derivative_rules)
