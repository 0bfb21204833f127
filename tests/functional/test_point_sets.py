"""Several sets of points from one trace: the counts of separate calls."""

import warnings

import pytest
import torch
from networks import NETS
from torch import nn
from torch.utils._pytree import tree_leaves

from lc_callback.engine.counting.task import CountingTask
from lc_callback.functional.local_complexity import counting_task, joined, share_of, wrapped
from lc_callback.functional.point_sets import local_complexity_of_sets

RADII = [0.05, 0.4]


class Looking(nn.Module):
    """Another non-linearity for what is negative in the mean."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 9), nn.Linear(9, 9)

    def forward(self, x):
        z = self.a(x)
        return torch.relu(self.b(torch.relu(z))) if x.mean() > 0 else self.b(torch.tanh(z))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 9)

    def forward(self, x, names):
        return torch.relu(self.a(x)) if names[0] == "left" else torch.tanh(torch.relu(self.a(x))).relu()


class Two(nn.Module):
    """A product space, beside a constant that is no tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 9), nn.Linear(4, 9)

    def forward(self, x, y, n):
        z = torch.relu(self.a(x) + self.b(y))
        return z.relu() if n == 1 else torch.relu(z - 0.1)


class Mean(nn.Module):
    """Sequences of any length."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 9)

    def forward(self, x):
        return torch.relu(self.a(x)).mean(1)


class Folded(nn.Module):
    """The first axis holds the steps of all samples, step by step."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 9)

    def forward(self, x):
        return torch.relu(self.a(x.transpose(0, 1).reshape(-1, 3)))


def normal(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cut(inputs, points):
    if isinstance(inputs, dict):
        return {name: leaf[points] for name, leaf in inputs.items()}
    return inputs[points]


def of_table(name):
    make, inputs = NETS[name]
    return make, {
        "train": cut(inputs, slice(0, 4)),
        "test": cut(inputs, slice(4, 6)),
        "random": cut(inputs, slice(6, 7)),
    }


def many(**shapes):
    return {name: normal(*shape, seed=seed) for seed, (name, shape) in enumerate(shapes.items())}


def two(n, seed, constant=1):
    return normal(n, 6, seed=seed), normal(n, 4, seed=seed + 9), constant


NAMES = ["left", "right"]
FAR = normal(3, 6, seed=0) * 1e3
BROKEN = torch.full((2, 6), torch.nan, dtype=torch.float64)
# The network, its sets, and how many traces these need.
CASES = {
    **{name: (*of_table(name), 1) for name in NETS},
    "far_out": (NETS["mlp"][0], {"near": normal(5, 6, seed=1), "far": FAR}, 1),
    "broken_first": (NETS["mlp"][0], {"broken": BROKEN, "whole": normal(5, 6, seed=1)}, 1),
    "broken_folded": (Folded, {"broken": torch.full((2, 5, 3), torch.nan).double(), **many(whole=(4, 5, 3))}, 1),
    "product": (Two, {"a": two(3, 1), "b": two(5, 2)}, 1),
    "constants": (Two, {"a": two(3, 1), "b": two(5, 2, 7), "c": two(2, 3)}, 2),
    "lengths": (Mean, many(a=(4, 5, 3), b=(2, 7, 3), c=(1, 5, 3)), 2),
    "numbers": (NETS["mlp"][0], {"a": normal(3, 6, seed=1), "b": normal(4, 6, seed=2).float()}, 2),
    "names": (Named, {"a": (normal(2, 6, seed=1), ["left"] * 2), "b": (normal(2, 6, seed=2), ["right"] * 2)}, 2),
    "same_names": (Named, {"a": (normal(2, 6, seed=1), NAMES), "b": (normal(2, 6, seed=2), NAMES)}, 2),
    "looking": (Looking, {"up": 1 + normal(4, 6, seed=1).abs(), "down": -1 - normal(3, 6, seed=2).abs()}, 3),
    "jumps": (lambda: nn.Sequential(nn.Linear(6, 9), Sign(), nn.Linear(9, 9), nn.ReLU()), many(a=(4, 6), b=(3, 6)), 1),
}


class Sign(nn.Module):
    def forward(self, x):
        return torch.sign(x)


def separate(method, net, sets, share=(0, 1), **arguments):
    found = {}
    for name, inputs in sets.items():
        task = counting_task(method, net, inputs, **{"layers": None, "max_pool": False, **arguments})
        n = len(next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, torch.Tensor)))
        found[name] = wrapped(task.measure(RADII, 3, points=share_of(n, *share)))
    return found


def check(found, expected):
    assert [*found] == [*expected]
    for name, lc in found.items():
        twin = expected[name]
        assert torch.equal(lc.counts, twin.counts), name
        assert (lc.layer_names, lc.layer_sizes, lc.at, lc.dtype) == (
            twin.layer_names,
            twin.layer_sizes,
            twin.at,
            twin.dtype,
        )
        assert (lc.histogram is None) == (twin.histogram is None)


@pytest.mark.filterwarnings("ignore:.*(looks at values|the model jumps)")
@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("name", CASES)
def test_counts_are_those_of_separate_calls(name, method, monkeypatch):
    make, sets, n_traces = CASES[name]
    torch.manual_seed(0)
    net = make().double().eval()
    expected = separate(method, net, sets, at=None, forward_fn=None)
    traces = []
    plain = CountingTask._traced
    monkeypatch.setattr(CountingTask, "_traced", lambda *arguments: traces.append(1) or plain(*arguments))
    found = local_complexity_of_sets(method, net, sets, RADII, 3)
    check(found, expected)
    assert sum(int((lc.counts > 0).sum()) for lc in found.values()) > 0
    jumped = name == "jumps" and method == "linear"
    assert len(traces) == n_traces + jumped


@pytest.mark.parametrize("name", ["mlp", "images", "attention"])
def test_histograms_are_of_each_set(name):
    make, sets = of_table(name)
    torch.manual_seed(0)
    net = make().double().eval()
    found = local_complexity_of_sets("linear", net, sets, RADII, 3)
    for lc, twin in zip(found.values(), separate("linear", net, sets, at=None, forward_fn=None).values(), strict=True):
        assert int(lc.histogram.sum()) == len(lc.total[0]) * sum(lc.layer_sizes)
        assert lc.density == pytest.approx(twin.density, rel=0.05)


@pytest.mark.parametrize(
    "arguments",
    [
        {"layers": ["*"], "name": "mlp"},
        {"layers": [nn.Conv2d], "name": "images"},
        {"max_pool": True, "name": "images"},
        {"at": "0", "name": "mlp"},
        {"forward_fn": lambda net, x: net(2 * x), "name": "residual"},
    ],
)
def test_arguments_reach_every_set(arguments):
    name = arguments["name"]
    arguments = {key: value for key, value in arguments.items() if key != "name"}
    make, sets = of_table(name)
    torch.manual_seed(0)
    net = make().double().eval()
    expected = separate("vertices", net, sets, **{"at": None, "forward_fn": None, **arguments})
    check(local_complexity_of_sets("vertices", net, sets, RADII, 3, **arguments), expected)


@pytest.mark.parametrize("method", ["vertices", "linear"])
@pytest.mark.parametrize("name", ["mlp", "images", "attention"])
@pytest.mark.parametrize("of", [2, 5])
def test_shares_put_together_are_the_whole(name, method, of):
    make, sets = of_table(name)
    torch.manual_seed(0)
    net = make().double().eval()
    whole = local_complexity_of_sets(method, net, sets, RADII, 3)
    parts = [local_complexity_of_sets(method, net, sets, RADII, 3, share=(index, of)) for index in range(of)]
    for split, lc in whole.items():
        assert torch.equal(joined([part[split] for part in parts]).counts, lc.counts)


def test_the_precision_is_what_one_of_the_sets_takes():
    net = NETS["mlp"][0]().float()
    near, far = normal(5, 6, seed=1).float(), 1e5 * normal(3, 6, seed=2).float()
    for sets in ({"near": near, "far": far}, {"far": far, "near": near}):
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            found = local_complexity_of_sets("vertices", net, sets, RADII, 3)
        assert {lc.dtype for lc in found.values()} == {torch.float64}
        assert len([warning for warning in told if "float64" in str(warning.message)]) == 1


def test_the_precision_behind_a_module_is_what_one_of_the_sets_takes():
    net = nn.Sequential(nn.Embedding(4, 3), nn.Flatten(), nn.Linear(6, 5), nn.ReLU())
    with torch.no_grad():
        net[0].weight[3] *= 1e6
    sets = {"near": torch.tensor([[0, 1], [1, 2]]), "far": torch.tensor([[3, 3]])}
    with pytest.warns(UserWarning, match="computing in float64"):
        found = local_complexity_of_sets("vertices", net, sets, RADII, 3)
    assert {lc.dtype for lc in found.values()} == {torch.float64}


@pytest.mark.parametrize("method", ["vertices", "linear"])
def test_radii_may_be_tried_without_another_trace(method, monkeypatch):
    make, sets = of_table("mlp")
    torch.manual_seed(0)
    net = make().double().eval()
    first, *others = sets.values()
    task = counting_task(method, net, first, others=others, layers=None, max_pool=False, at=None, forward_fn=None)
    with task.ready(0.05, 3) as ready:
        monkeypatch.setattr(CountingTask, "_traced", None)
        found = [[ready.count_set(index, radius).counts for index in range(3)] for radius in RADII]
        some = ready.count_set(0, RADII, points=torch.tensor([2])).counts
    monkeypatch.undo()
    expected = separate(method, net, sets, at=None, forward_fn=None)
    for index, lc in enumerate(expected.values()):
        for row in range(2):
            assert torch.equal(found[row][index], lc.counts[row])
    assert torch.equal(some, expected["train"].counts[:, 2:3])


def test_progress_is_told_for_each_set():
    make, sets = of_table("mlp")
    told = []
    local_complexity_of_sets(
        "vertices", make(), sets, 0.1, 3, progress=lambda name: lambda done, total: told.append((name, done, total))
    )
    assert told[-1] == ("random", 1, 1)
    assert {name for name, done, total in told if done == total} == {*sets}
