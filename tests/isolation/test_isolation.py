import copy
import random
import subprocess
import sys
import warnings
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import Dataset

from lc_callback.isolation import fixed_rng, untouched


class BodyError(Exception):
    pass


def run(context, body, fails):
    """Run ``body`` in ``context``, to its end or with an exception after it."""
    with pytest.raises(BodyError) if fails else nullcontext(), context:
        body()
        if fails:
            raise BodyError


either_way = pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])


def network():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(), nn.Sequential(nn.BatchNorm1d(6), nn.ReLU()))
    net[3][0].eval()  # frozen
    return net


# Modes


@either_way
def test_every_flag_comes_back(fails):
    net = network()
    before = [module.training for module in net.modules()]
    inside = []
    run(untouched(net), lambda: inside.extend(module.training for module in net.modules()), fails)
    assert inside == [False] * 7
    assert [module.training for module in net.modules()] == before
    assert before == [True, True, True, True, True, False, True]


@either_way
def test_an_evaluated_network_with_a_training_part_comes_back(fails):
    net = network().eval()
    net[2].train()
    run(untouched(net), lambda: None, fails)
    assert [name for name, module in net.named_modules() if module.training] == ["2"]


def test_an_overridden_train_is_not_called():
    class Merging(nn.Linear):
        def train(self, mode=True):
            raise AssertionError("would merge weights")

    net = Merging(2, 2)
    with untouched(net):
        assert not net.training
    assert net.training


# Tensors


class Mutating(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("absent", None)

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)  # bound anew
        return self.linear(x)


@either_way
def test_buffers_that_a_forward_writes_to_come_back(fails):
    net = Mutating()
    ids, inside = {name: id(buffer) for name, buffer in net.named_buffers()}, []

    def body():
        net(torch.ones(3, 2))
        inside.append(net.calls.item())
        inside.extend(net.mean.tolist())

    run(untouched(net), body, fails)
    assert inside == pytest.approx([1, 0.1, 0.1])
    assert {name: id(buffer) for name, buffer in net.named_buffers()} == ids
    assert net.calls.item() == 0
    assert net.mean.tolist() == [0, 0]
    assert net.absent is None


class Caching(nn.Module):
    """Keeps what it computed, counts, and makes a buffer and a module when it first runs."""

    def __init__(self):
        super().__init__()
        self.linear, self.calls, self.last, self.length = nn.Linear(2, 2), 0, None, 0

    def forward(self, x):
        self.calls += 1
        self.last = self.linear(x)
        if len(x) > self.length:  # the length goes with the buffer
            self.length = len(x)
            self.register_buffer("place", torch.arange(len(x)).to(x), persistent=False)
            self.head = nn.Identity()
        return self.head(self.last + self.place[: len(x), None])


@either_way
@pytest.mark.parametrize("ran_before", [False, True])
def test_attributes_that_a_forward_sets_come_back(fails, ran_before):
    net, reached = Caching(), []
    if ran_before:
        net(torch.ones(2, 2))
    before = {name: id(value) for name, value in vars(net).items()}
    keys, modules = [name for name, _ in net.named_buffers()], [name for name, _ in net.named_modules()]

    def body():
        net(torch.ones(3, 2, dtype=torch.float64))
        reached.append((net.calls, net.length))

    run(untouched(net, dtype=torch.float64), body, fails)
    assert reached == [(1 + ran_before, 3)]
    assert {name: id(value) for name, value in vars(net).items()} == before
    assert [name for name, _ in net.named_buffers()] == keys
    assert [name for name, _ in net.named_modules()] == modules
    assert net._non_persistent_buffers_set == set(keys)
    net(torch.ones(3, 2))


@either_way
@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "prune"])
def test_weights_that_a_hook_computes_come_back(fails, kind):
    net = nn.Linear(3, 2)
    if kind == "prune":
        prune.l1_unstructured(net, "weight", 2)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            getattr(nn.utils, kind)(net)
    net(torch.ones(1, 3))
    weight = net.weight
    run(untouched(net, dtype=torch.float64), lambda: net(torch.ones(1, 3, dtype=torch.float64)), fails)
    assert net.weight is weight
    net.weight.square().sum().backward()


@either_way
def test_running_statistics_and_gradients_stay(fails):
    net = network()
    net(torch.randn(8, 4)).sum().backward()
    state, grads = copy.deepcopy(net.state_dict()), [p.grad.clone() for p in net.parameters()]
    run(untouched(net), lambda: net(torch.randn(8, 4)), fails)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), grads, strict=True))
    assert all(p.requires_grad for p in net.parameters())


@either_way
@pytest.mark.parametrize("dtype", [None, torch.float32, torch.float64])
def test_a_gradient_inside_reaches_the_inputs_only(fails, dtype):
    net = network()
    net[0].weight.requires_grad_(False)
    net(torch.randn(8, 4)).sum().backward()
    tensors = [*net.parameters(), *net.buffers()]
    flags, grads = [p.requires_grad for p in tensors], [None if p.grad is None else p.grad.clone() for p in tensors]
    inputs = torch.randn(8, 4, dtype=dtype or torch.float32, requires_grad=True)

    def backward():
        assert torch.is_grad_enabled()
        assert not any(p.requires_grad for p in net.parameters())
        net(inputs).square().sum().backward()

    run(untouched(net, dtype=dtype, grad=True), backward, fails)
    assert inputs.grad.abs().sum() > 0
    after = [*net.parameters(), *net.buffers()]
    assert all(one is other for one, other in zip(after, tensors, strict=True))
    assert [p.requires_grad for p in after] == flags
    now = [p.grad for p in after]
    assert [grad is None for grad in now] == [grad is None for grad in grads]
    assert all(torch.equal(one, two) for one, two in zip(now, grads, strict=True) if two is not None)


@either_way
def test_gradients_are_on_inside_even_where_they_are_off(fails):
    seen = []
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            run(untouched(network(), grad=True), lambda: seen.append(torch.ones(1, requires_grad=True) * 2), fails)
            assert not torch.is_grad_enabled()
    assert [(value.requires_grad, value.is_inference()) for value in seen] == [(True, False)] * 2


@either_way
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_gradient_through_a_recurrent_module_reaches_no_weight(fails, kind):
    rnn = kind(2, 3)
    flat = [id(weight) for weight in rnn._flat_weights]
    inputs = torch.ones(1, 2, requires_grad=True)
    run(untouched(rnn, grad=True), lambda: rnn(inputs)[0].sum().backward(), fails)
    assert inputs.grad is not None
    assert all(p.grad is None and p.requires_grad for p in rnn.parameters())
    assert [id(weight) for weight in rnn._flat_weights] == flat


@either_way
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_another_type_is_a_copy(fails, dtype):
    net = network().bfloat16()
    tensors = [*net.parameters(), *net.buffers()]
    values, inside = [tensor.detach().clone() for tensor in tensors], []
    run(untouched(net, dtype=dtype), lambda: inside.extend(t.dtype for t in [*net.parameters(), *net.buffers()]), fails)
    assert set(inside) == {dtype, torch.int64}  # the integer buffer counts batches
    after = [*net.parameters(), *net.buffers()]
    assert all(one is other for one, other in zip(after, tensors, strict=True))
    assert all(torch.equal(tensor, value) for tensor, value in zip(after, values, strict=True))


def test_parameters_of_the_right_type_are_not_copied():
    net = network()
    addresses = [torch._C._data_address(p) for p in net.parameters()]  # `data_ptr()` would make torch copy
    with untouched(net, dtype=torch.float32):
        assert [torch._C._data_address(p) for p in net.parameters()] == addresses


def test_what_is_shared_stays_shared():
    net = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2), nn.Identity()])
    net[1].weight = net[0].weight
    net[3].register_buffer("mean", net[2].running_mean)
    with untouched(net, dtype=torch.float64):
        assert net[0].weight.dtype == torch.float64
        assert net[1].weight is net[0].weight
        assert net[3].mean is net[2].running_mean
    assert net[1].weight is net[0].weight
    assert net[3].mean is net[2].running_mean


@either_way
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_a_recurrent_module_uses_the_copies_and_its_own_weights_again(fails, kind):
    rnn, inside = kind(2, 3), []
    flat = [id(weight) for weight in rnn._flat_weights]
    run(untouched(rnn, dtype=torch.float64), lambda: inside.append(rnn(torch.ones(1, 2).double())[0].dtype), fails)
    assert inside == [torch.float64]
    assert [id(weight) for weight in rnn._flat_weights] == flat
    assert rnn(torch.ones(1, 2))[0].dtype == torch.float32


# Surroundings


@either_way
def test_gradients_inference_mode_and_autocast_are_off_inside_only(fails):
    net, inside = network(), []

    def body():
        inside.extend([torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")])

    run(untouched(net), body, fails)
    assert torch.is_grad_enabled()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        run(untouched(net), body, fails)
        assert torch.is_inference_mode_enabled()
        assert torch.is_autocast_enabled("cpu")
    assert inside == [False] * 6


@either_way
def test_a_buffer_can_be_written_to_when_called_in_inference_mode(fails):
    net, inside = Mutating(), []
    with torch.inference_mode():
        run(untouched(net), lambda: inside.append(net(torch.ones(3, 2)).shape), fails)
    assert inside == [(3, 2)]
    assert net.calls.item() == 0
    net(torch.ones(3, 2)).sum().backward()  # nothing of the model was made in inference mode


@either_way
@pytest.mark.parametrize("enabled", [True, False])
def test_the_fused_transformer_kernel_is_off_inside_only(fails, enabled):
    inside = []
    try:
        torch.backends.mha.set_fastpath_enabled(enabled)
        run(untouched(network()), lambda: inside.append(torch.backends.mha.get_fastpath_enabled()), fails)
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)
    assert inside == [False]


@either_way
def test_fused_recurrent_kernels_are_off_inside_only_and_only_where_needed(fails):
    inside = []

    def body():
        inside.append((torch.backends.cudnn.enabled, torch.backends.mkldnn.enabled))

    run(untouched(nn.LSTM(2, 3)), body, fails)
    run(untouched(nn.Linear(2, 3)), body, fails)
    assert inside == [(False, False), (True, True)]
    assert torch.backends.cudnn.enabled
    assert torch.backends.mkldnn.enabled


@either_way
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_matmul_precision_comes_back(fails, precision):
    try:
        torch.set_float32_matmul_precision(precision)
        run(untouched(network()), lambda: None, fails)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.usefixtures("looks_into_compiled_modules")
@either_way
def test_compiled_code_does_not_run_inside(fails):
    torch.compiler.reset()  # of one forward only so many are compiled in a process
    traced = []

    def backend(graph, example_inputs):
        traced.append(graph)
        return graph.forward

    net = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend=backend)
    run(untouched(net), lambda: net(torch.ones(1, 2)), fails)
    assert not traced
    net(torch.ones(1, 2))
    assert len(traced) == 1


def test_compiled_modules_are_refused_where_torch_cannot_look_into_them(monkeypatch):
    monkeypatch.delattr(torch.compiler, "set_stance", raising=False)  # before torch 2.6
    net = torch.compile(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), backend="eager")
    with pytest.raises(ValueError, match=r"use torch >= 2\.6, or measure the module that was given"), untouched(net):
        pass


# Random streams


class Drawing(nn.Module):
    """Draws from every stream, and from generators of its own."""

    def __init__(self):
        super().__init__()
        self.generator = torch.Generator().manual_seed(1)
        self.python = random.Random(1)
        self.numpy = np.random.default_rng(1)
        self.legacy = np.random.RandomState(1)
        self.child = nn.Module()
        self.child.generator = torch.Generator().manual_seed(2)

    def draw(self):
        return [*global_draws(), *self.own_draws()]

    def own_draws(self):
        return [
            torch.rand((), generator=self.generator).item(),
            torch.rand((), generator=self.child.generator).item(),
            self.python.random(),
            self.numpy.random(),
            self.legacy.random(),
        ]


def global_draws():
    return [random.random(), np.random.random(), torch.rand(()).item()]


def start_streams():
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)


@either_way
@pytest.mark.parametrize("seed", [None, 3])
def test_no_stream_moves(fails, seed):
    model = Drawing()
    start_streams()
    expected = Drawing().draw()
    start_streams()
    run(untouched(model, seed=seed), lambda: [model.draw() for _ in range(3)], fails)
    assert model.draw() == expected


def test_a_seed_makes_two_measurements_draw_alike():
    draws = []
    for start in (1, 2):
        torch.manual_seed(start)
        np.random.seed(start)
        random.seed(start)
        with untouched(nn.Identity(), seed=7):
            draws.append(global_draws())
        with untouched(nn.Identity(), seed=8):
            draws.append(global_draws())
    assert draws[0] == draws[2]
    assert draws[1] == draws[3]
    assert all(one != other for one, other in zip(draws[0], draws[1], strict=True))


def test_without_a_seed_the_streams_go_on_inside():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    with fixed_rng(None):
        assert torch.equal(torch.rand(3), expected)
    assert torch.equal(torch.rand(3), expected)


def test_a_seed_larger_than_numpys_is_taken():
    with fixed_rng(2**40 + 3 * 2**30):
        first = np.random.random()
    with fixed_rng(3 * 2**30):
        assert np.random.random() == first


SEEDS = {"cuda": "manual_seed_all", "mps": "manual_seed", "xpu": "manual_seed_all", "mtia": "manual_seed_all"}


@pytest.mark.parametrize(
    ("device", "seed_all"),
    [(device, name) for device, name in SEEDS.items() if hasattr(getattr(torch, device), name)],  # torch 2.4: no mtia
)
def test_devices_that_are_not_in_use_are_not_seeded(device, seed_all, monkeypatch):
    seeds = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(getattr(torch, device), seed_all, seeds.append)
    with fixed_rng(0):
        torch.rand(1)
    assert seeds == []  # else the stream of a device begins there when the training comes to it
    torch.manual_seed(1)
    assert seeds == [1]


class Noise:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(3)

    def __call__(self, x):
        return x + torch.rand((), generator=self.generator).item()


class Augmented(Dataset):
    """Generators in nested places: a transform in a list, a subset's dataset, a dict."""

    def __init__(self, inner=None):
        self.inner = inner
        self.transforms = [str, Noise()]
        self.streams = {"numpy": (np.random.default_rng(3),), "python": random.Random(3)}
        self.owner = self  # a cycle

    def __getitem__(self, index):
        x = self.transforms[1](index) + self.streams["numpy"][0].random() + self.streams["python"].random()
        return x if self.inner is None else x + self.inner[index]


@either_way
@pytest.mark.parametrize("holder", [lambda: Augmented(), lambda: torch.utils.data.Subset(Augmented(Augmented()), [0])])
def test_generators_nested_in_a_dataset_come_back(fails, holder):
    dataset, twin = holder(), holder()
    expected = [twin[0] for _ in range(3)]

    run(fixed_rng(0, dataset), lambda: [dataset[0] for _ in range(5)], fails)
    assert [dataset[0] for _ in range(3)] == expected
    assert len(set(expected)) == 3


def test_a_module_is_not_searched_beyond_its_own_attributes():
    class Trainer:
        def __init__(self):
            self.noise = Noise()

    module = nn.Identity()
    module.trainer = Trainer()  # knows everything; copying all of that is not our business
    state = module.trainer.noise.generator.get_state()
    with fixed_rng(0, module):
        module.trainer.noise(0)
    assert not torch.equal(module.trainer.noise.generator.get_state(), state)


@pytest.mark.slow
def test_memory_that_was_freed_is_used_again():
    program = """
import resource, torch
from lc_callback.functional import local_complexity

torch.set_num_threads(1)
net = torch.nn.Sequential(*[m for _ in range(3) for m in (torch.nn.Linear(200, 200), torch.nn.ReLU())])
points = torch.rand(500, 200)
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    local_complexity(net, points)
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    n_vertices, values = 500 * 50, 200 * 4
    assert int(found.stdout) < n_vertices * values / 2  # a layer's results; there are several
