import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules import module as modules

from lc_callback.engine.network.recorder import Recorder, known_operations
from lc_callback.functional import local_complexity

RADIUS = 0.07
GRID = np.arange(-80, 81) / 10 + 0.003  # one point within the radius of every multiple of 0.1


class Call(nn.Module):
    """A function as a module; what follows it keeps a squashing function from being the output."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return 2 * self.function(x)


def switching(function):
    """Grid points whose neighbourhood on the line holds a kink, with the layer names."""
    points = torch.from_numpy(GRID)[:, None]
    lc = local_complexity(Call(function), points, radius=RADIUS, n_directions=1)
    return lc.counts.sum(1).tolist(), lc


def near(kinks):
    return [sum(abs(x - kink) < RADIUS for kink in kinks) for x in GRID]


def in_place(name, *args):
    return lambda x: getattr(x.clone(), name)(*args)


SLOPE = torch.full((1,), 0.2, dtype=torch.float64)
TWO = torch.full((1,), 2.0, dtype=torch.float64)

# What is called, the operation that is seen, and the kinks that its documentation names.
TABLE = {
    "F.relu": (F.relu, "relu", [0]),
    "torch.relu": (torch.relu, "relu", [0]),
    "x.relu": (lambda x: x.relu(), "relu", [0]),
    "x.relu_": (in_place("relu_"), "relu", [0]),
    "nn.ReLU(inplace)": (lambda x: nn.ReLU(inplace=True)(x.clone()), "relu", [0]),
    "F.leaky_relu": (lambda x: F.leaky_relu(x, 0.3), "leaky_relu", [0]),
    "F.leaky_relu_": (lambda x: F.leaky_relu_(x.clone()), "leaky_relu", [0]),
    "F.prelu": (lambda x: F.prelu(x, SLOPE), "_prelu_kernel", [0]),
    "torch.prelu": (lambda x: torch.prelu(x, SLOPE), "_prelu_kernel", [0]),
    "F.rrelu": (F.rrelu, "rrelu_with_noise", [0]),
    "abs": (abs, "abs", [0]),
    "x.abs_": (in_place("abs_"), "abs", [0]),
    "F.softsign": (F.softsign, "abs", [0]),
    "F.elu": (F.elu, "elu", [0]),
    "F.elu_": (lambda x: F.elu_(x.clone()), "elu", [0]),
    "F.celu": (F.celu, "celu", [0]),
    "F.selu": (F.selu, "elu", [0]),
    "F.gelu": (F.gelu, "gelu", [0]),
    "F.gelu(tanh)": (lambda x: F.gelu(x, approximate="tanh"), "gelu", [0]),
    "F.silu": (F.silu, "silu", [0]),
    "F.silu(inplace)": (lambda x: F.silu(x.clone(), inplace=True), "silu", [0]),
    "F.mish": (F.mish, "mish", [0]),
    "F.softplus": (lambda x: F.softplus(x, beta=2), "softplus", [0]),
    "torch.tanh": (torch.tanh, "tanh", [0]),
    "x.tanh_": (in_place("tanh_"), "tanh", [0]),
    "F.tanhshrink": (F.tanhshrink, "tanh", [0]),
    "torch.sigmoid": (torch.sigmoid, "sigmoid", [0]),
    "x.sigmoid_": (in_place("sigmoid_"), "sigmoid", [0]),
    "F.logsigmoid": (F.logsigmoid, "log_sigmoid_forward", [0]),
    "torch.erf": (torch.erf, "erf", [0]),
    "F.relu6": (F.relu6, "hardtanh", [0, 6]),
    "F.relu6(inplace)": (lambda x: F.relu6(x.clone(), inplace=True), "hardtanh", [0, 6]),
    "F.hardtanh": (F.hardtanh, "hardtanh", [-1, 1]),
    "F.hardtanh(-2, 5)": (lambda x: F.hardtanh(x, -2, 5), "hardtanh", [-2, 5]),
    "F.hardtanh(max_val)": (lambda x: F.hardtanh(x, max_val=3.0), "hardtanh", [-1, 3]),
    "F.hardswish": (F.hardswish, "hardswish", [-3, 3]),
    "F.hardsigmoid": (F.hardsigmoid, "hardsigmoid", [-3, 3]),
    "F.hardshrink": (F.hardshrink, "hardshrink", [-0.5, 0.5]),
    "F.hardshrink(2)": (lambda x: F.hardshrink(x, 2.0), "hardshrink", [-2, 2]),
    "F.softshrink": (F.softshrink, "softshrink", [-0.5, 0.5]),
    "F.softshrink(2)": (lambda x: F.softshrink(x, 2.0), "softshrink", [-2, 2]),
    "F.threshold": (lambda x: F.threshold(x, 1.5, -7.0), "threshold", [1.5]),
    "x.threshold_": (lambda x: F.threshold_(x.clone(), 1.5, -7.0), "threshold", [1.5]),
    "clamp(0, 6)": (lambda x: x.clamp(0, 6), "clamp", [0, 6]),
    "clamp(0)": (lambda x: x.clamp(0), "clamp", [0]),
    "clamp(min=1)": (lambda x: x.clamp(min=1), "clamp", [1]),
    "clamp(max=-4)": (lambda x: x.clamp(max=-4), "clamp", [-4]),
    "clamp_(-1, 1)": (in_place("clamp_", -1, 1), "clamp", [-1, 1]),
    "clip(-1, 1)": (lambda x: torch.clip(x, -1, 1), "clamp", [-1, 1]),
    "clamp(min=tensor)": (lambda x: x.clamp(min=TWO), "clamp", [2]),
    "clamp(tensor, tensor)": (lambda x: x.clamp(-TWO, TWO), "clamp", [-2, 2]),
    "clamp_min": (lambda x: x.clamp_min(-3), "clamp_min", [-3]),
    "clamp_min_": (in_place("clamp_min_", 0), "clamp_min", [0]),
    "clamp_min(tensor)": (lambda x: x.clamp_min(TWO), "clamp_min", [2]),
    "clamp_max": (lambda x: x.clamp_max(3), "clamp_max", [3]),
    "clamp_max(max=)": (lambda x: torch.clamp_max(x, max=3), "clamp_max", [3]),
    "clamp_max(tensor)": (lambda x: x.clamp_max(TWO), "clamp_max", [2]),
    "maximum(x, 0)": (lambda x: torch.maximum(x, torch.zeros_like(x)), "maximum", [0]),
    "maximum(0, x)": (lambda x: torch.maximum(x.new_zeros(()), x), "maximum", [0]),
    "torch.max(x, y)": (lambda x: torch.max(x, 0.5 * x + 1), "maximum", [2]),
    "minimum": (lambda x: torch.minimum(x, 0.5 * x + 1), "minimum", [2]),
    "torch.min(x, y)": (lambda x: torch.min(x, TWO), "minimum", [2]),
    "fmax": (lambda x: torch.fmax(x, TWO), "fmax", [2]),
    "fmin": (lambda x: torch.fmin(x, TWO), "fmin", [2]),
    "glu, the gate": (lambda x: F.glu(torch.cat([x - 3, x - 2], 1), 1), "glu", [2]),
    "glu of another axis": (lambda x: F.glu(torch.stack([x, x - 4], 1), dim=1), "glu", [4]),
}


@pytest.mark.parametrize("entry", TABLE)
def test_the_operation_is_seen_and_switches_at_its_kinks_only(entry):
    function, op, kinks = TABLE[entry]
    counts, lc = switching(function)
    assert lc.layer_names == [op]
    assert lc.layer_sizes == [1]
    assert counts == near(kinks)
    assert sum(counts) == len(kinks)  # the grid has one point at each kink


def test_the_table_is_complete():
    seen = {op for _, op, _ in TABLE.values() if not op.startswith("_")}
    composed = {"prelu", "relu6", "selu"}  # torch makes these of other operations
    assert set(known_operations().split(", ")) == seen | composed


def test_a_unit_with_two_kinks_counts_once():
    lc = local_complexity(Call(F.relu6), torch.full((1, 1), 3.0), radius=10.0, n_directions=1)
    assert lc.counts.tolist() == [[1]]


@pytest.mark.parametrize("function", [lambda x: x * (x.long().clamp(0, 1) + 1), lambda x: x + torch.relu(TWO)])
def test_integers_and_values_of_the_weights_are_no_units(function):
    with pytest.raises(ValueError, match="no non-linearity"):
        switching(function)


def global_hooks():
    return list(modules._global_forward_hooks) + list(modules._global_forward_pre_hooks)


def test_nothing_stays_attached():
    net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    hooks = global_hooks()
    met = []
    recorder = Recorder(net, lambda site, kinks: met.append(site))
    with recorder:
        net(torch.ones(1, 2))
    net(torch.ones(1, 2))
    with pytest.raises(ZeroDivisionError), Recorder(net, lambda site, kinks: 1 / 0):
        net(torch.ones(1, 2))
    net(torch.ones(1, 2))
    assert [(site.path, site.op) for site in met] == [("1", "relu")]
    assert global_hooks() == hooks
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_modules_of_other_models_do_not_hide_the_name():
    helper = nn.ReLU()  # not a part of the model

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 3)

        def forward(self, x):
            return helper(self.inner(x)).sum(1)

    assert local_complexity(Net(), torch.randn(2, 2), n_directions=2).layer_names == ["relu"]


# Names


class Names(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.act = nn.Linear(4, 4), nn.ReLU()
        self.block = nn.Sequential(nn.Linear(4, 5), nn.GELU())

    def forward(self, x):
        x = self.act(self.first(x))
        x = F.relu(self.block(x))
        x = torch.cat([self.act(x), self.act(x[:, :2])], 1)
        return torch.tanh(x).sum(1) + F.relu(x).sum(1)


def test_names_are_in_execution_order_and_numbered_when_used_again():
    lc = local_complexity(Names(), torch.randn(2, 4), n_directions=4)
    assert lc.layer_names == ["act#1", "block.1", "relu#1", "act#2", "act#3", "tanh", "relu#2"]
    assert lc.layer_sizes == [4, 5, 5, 5, 2, 7, 7]
    assert lc.counts.shape == (2, 7)


def test_a_functional_non_linearity_is_named_after_the_module_it_is_in():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return F.relu(self.linear(x)) + F.silu(x)

    net = nn.Sequential(Block(), Block(), nn.Linear(4, 1))
    lc = local_complexity(net, torch.randn(2, 4), n_directions=4)
    assert lc.layer_names == ["0#1", "0#2", "1#1", "1#2"]


def test_an_exception_that_the_model_catches_does_not_shift_the_names():
    class Picky(nn.Module):
        def forward(self, x):
            raise NotImplementedError

    class Fallback(nn.Module):
        def __init__(self):
            super().__init__()
            self.picky = Picky()

        def forward(self, x):
            try:
                return self.picky(x)
            except NotImplementedError:
                return F.relu(x)

    net = nn.Sequential(nn.Linear(3, 4), Fallback(), nn.Linear(4, 2))
    assert local_complexity(net, torch.randn(2, 3), n_directions=3).layer_names == ["1"]


# layers=


class Deep(nn.Module):
    """Linear layers, each before an in-place ReLU that overwrites its output."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 6)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 6), nn.ReLU(inplace=True)) for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, x):
        x = F.relu_(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (["stem"], ["stem"]),
        (["head", "stem"], ["stem", "head"]),  # execution order, not the order of the argument
        (["blocks.*.0"], ["blocks.0.0", "blocks.1.0"]),
        (["blocks.?.0", "blocks.1.0"], ["blocks.0.0", "blocks.1.0"]),
        (["Linear"], ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        (["torch.nn.Linear"], ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        (["torch.nn.modules.linear.Linear"], ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        ([nn.Linear], ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        ((nn.Linear, "stem"), ["stem", "blocks.0.0", "blocks.1.0", "head"]),
        ([nn.ReLU], ["blocks.0.1", "blocks.1.1"]),
    ],
)
def test_layers_by_name_pattern_class_and_type(layers, names):
    torch.manual_seed(0)
    assert local_complexity(Deep(), torch.randn(2, 3), n_directions=3, layers=layers).layer_names == names


def test_outputs_before_an_in_place_relu_are_what_the_relu_meets():
    torch.manual_seed(1)
    net, x = Deep().double(), torch.randn(20, 3, dtype=torch.float64)
    outputs = local_complexity(net, x, radius=0.7, n_directions=3, layers=["stem", "blocks.*.0"])
    met = local_complexity(net, x, radius=0.7, n_directions=3)
    assert torch.equal(outputs.counts, met.counts)
    assert met.counts.sum() > 20


def test_outputs_of_a_relu_count_units_that_die_and_live():
    net = nn.Sequential(nn.Identity(), nn.ReLU())
    lc = local_complexity(net, torch.tensor([[0.05], [1.0]]), radius=0.1, n_directions=1, layers=["1"])
    assert lc.counts.tolist() == [[1], [0]]


@pytest.mark.parametrize("layers", ["stem", nn.Linear, [], [3], [int], {"stem"}, [None]])
def test_layers_of_a_wrong_kind_are_named(layers):
    with pytest.raises(ValueError, match="`layers` must be a non-empty list"):
        local_complexity(Deep(), torch.randn(2, 3), n_directions=3, layers=layers)


@pytest.mark.parametrize("layers", [["stam"], ["Conv2d"], [nn.Conv2d], ["stem", "blocks.7.*"]])
def test_layers_that_match_nothing_list_the_modules(layers):
    with pytest.raises(ValueError, match=r"`layers` entry .* matches no module.*Modules: stem, blocks, blocks.0, "):
        local_complexity(Deep(), torch.randn(2, 3), n_directions=3, layers=layers)


def test_layers_that_do_not_run_or_return_no_tensor_are_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused = nn.Linear(2, 2), nn.Linear(2, 2)
            self.dict = Call(lambda x: torch.relu(x))
            self.dict.forward = lambda x: {"out": x}

        def forward(self, x):
            return self.dict(self.used(x))["out"]

    with pytest.raises(ValueError, match="`layers` names modules that were not executed"):
        local_complexity(Net(), torch.randn(2, 2), n_directions=2, layers=["unused"])
    with pytest.raises(ValueError, match="`layers` names 'dict', which returns no tensor but a dict"):
        local_complexity(Net(), torch.randn(2, 2), n_directions=2, layers=["dict"])


def test_a_network_without_kinks_is_told_to_name_layers():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"no non-linearity was executed.*`layers=`"):
        local_complexity(net, torch.randn(2, 3), n_directions=3)


# What shapes the output only


class Returns(nn.Module):
    """The logits and, if asked to, the features that they are made of; or probabilities, and what they say."""

    def __init__(self, link, what):
        super().__init__()
        self.a, self.b, self.link, self.what = nn.Linear(5, 20), nn.Linear(20, 3), link, what

    def forward(self, x):
        h = self.link(self.a(x))
        logits = self.b(h)
        if self.what == "features":
            return logits, h
        if self.what == "by name":
            return {"logits": logits, "features": h.flatten(1)}
        probabilities = self.link(logits)
        return probabilities, probabilities > 0.5


@pytest.mark.parametrize("link", [nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid()])
@pytest.mark.parametrize("what", ["features", "by name", "probabilities"])
def test_a_hidden_layer_that_is_also_returned_is_counted(link, what):
    found = local_complexity(Returns(link, what), torch.randn(4, 5), radius=0.1, n_directions=5)
    assert (found.layer_names, found.layer_sizes) == (["link"], [20])


@pytest.mark.parametrize("link", [nn.Sigmoid(), nn.Tanh(), nn.LogSigmoid()])
def test_a_squashing_function_of_the_logits_is_not_counted_but_a_hidden_one_is(link):
    hidden = nn.Sequential(nn.Linear(3, 5), link, nn.Linear(5, 2))
    both = nn.Sequential(*hidden, link)
    x = torch.randn(4, 3)
    assert local_complexity(hidden, x, n_directions=3).layer_names == ["1"]
    twice = local_complexity(both, x, n_directions=3, radius=1.0)
    assert twice.layer_names == ["1"]
    assert twice.layer_sizes == [5]
    assert torch.equal(twice.counts, local_complexity(hidden, x, n_directions=3, radius=1.0).counts)


def test_every_entry_of_a_nested_output_is_looked_at():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.hidden, self.heads = nn.Linear(3, 5), nn.ModuleList([nn.Linear(5, 2), nn.Linear(5, 1)])

        def forward(self, x):
            x = torch.sigmoid(self.hidden(x))
            return {"mean": self.heads[0](x), "rest": [torch.sigmoid(self.heads[1](x))[:, 0]]}

    assert local_complexity(Net(), torch.randn(2, 3), n_directions=3).layer_sizes == [5]


def test_a_last_relu_does_switch():
    net = nn.Sequential(nn.Linear(3, 5), nn.ReLU())
    assert local_complexity(net, torch.randn(2, 3), n_directions=3).layer_names == ["1"]
