"""What a measurement sets back, and how: each thing stays itself, and what is not the model's is left alone."""

from __future__ import annotations

import copy
import logging
import pickle
import queue
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import Calls
from memories import NETWORKS, inputs_of, made
from torch import Tensor, nn

from lc_callback.callbacks import ProbeCallback
from lc_callback.functional import local_complexity
from lc_callback.isolation import untouched
from lc_callback.isolation.snapshot import restored


class BodyError(Exception):
    pass


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("grad", [False, True])
def test_a_memory_comes_back_when_a_measurement_raises(name: str, grad: bool) -> None:
    twin = made(name)
    expected = [twin(inputs_of(name, seed=seed)) for seed in range(3)]
    net = made(name)

    def body() -> None:
        with untouched(net, grad=grad):
            net(inputs_of(name))
            net(inputs_of(name, 5))
            raise BodyError

    with pytest.raises(BodyError):
        body()
    given = [net(inputs_of(name, seed=seed)) for seed in range(3)]
    assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


# The same object, and the same memory


SIZES = pytest.mark.parametrize("size", [3, 400])  # one is copied at once, the other when it is written


def holding(**attributes: Any) -> nn.Module:
    module = nn.Module()
    vars(module).update(attributes)
    return module


@SIZES
@pytest.mark.parametrize("write", [Tensor.zero_, lambda t: t.data.zero_(), lambda t: setattr(t, "data", t.data * 2)])
def test_a_weight_stays_where_it_is(size: int, write: Callable[[Tensor], Any]) -> None:
    net = nn.Linear(size, size)
    weight, place = net.weight, net.weight.data_ptr()
    before, view, array = weight.detach().clone(), weight.detach()[1], weight.detach().numpy()
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    for grad in (False, True):
        with untouched(net, grad=grad), torch.no_grad():
            write(net.weight)
            assert not torch.equal(net.weight, before)
    assert net.weight is weight
    assert torch.equal(weight, before)
    weight.sum().backward()
    optimizer.step()
    assert weight.data_ptr() == place
    assert torch.equal(weight, before - 1)
    assert torch.equal(view, before[1] - 1)
    assert np.array_equal(array, before.numpy() - 1)


@SIZES
def test_an_attribute_and_its_views_share_their_memory(size: int) -> None:
    tensor = torch.ones(size, size)
    row, turned, net = tensor[1], tensor.t(), holding()
    net.kept = {"all": tensor, "parts": [row, (turned,)]}
    for part in (tensor, row, turned):
        with untouched(net):
            part.add_(1)
            net.kept["parts"].append(part)
        assert len(net.kept["parts"]) == 2
    assert torch.equal(tensor, torch.ones(size, size))
    tensor[1] = 5
    assert row[0] == turned[0, 1] == 5


def test_the_array_of_a_small_tensor_stays_its_array() -> None:
    net = holding(counts=torch.zeros(4))
    net.array = net.counts.numpy()
    with untouched(net):
        net.counts += 1
        net.array += 1
    assert net.counts.tolist() == [0] * 4
    net.array += 3
    assert net.counts.tolist() == [3] * 4


def test_weights_in_shared_memory_stay_there() -> None:
    net = nn.Linear(300, 300).share_memory()
    before = net.weight.detach().clone()
    with untouched(net), torch.no_grad():
        net.weight.zero_()
    assert net.weight.is_shared()
    assert torch.equal(net.weight, before)


def test_weights_that_are_only_read_take_no_memory() -> None:
    net = nn.Sequential(nn.Linear(300, 300), nn.LayerNorm(300), nn.Conv1d(1, 1, 3), nn.Flatten(), nn.Linear(298, 2))
    net.insert(2, nn.Unflatten(1, (1, 300)))
    places = [torch._C._data_address(p) for p in net.parameters()]
    for grad in (False, True):
        with untouched(net, grad=grad):
            net(torch.rand(3, 300))
            assert [torch._C._data_address(p) for p in net.parameters()] == places
    assert [p.data_ptr() for p in net.parameters()] == places


def quantized() -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(4), 0.5, 0, torch.qint8)


TENSORS: dict[str, tuple[Callable[[], Tensor], Callable[[Tensor], Any]]] = {
    "sparse": (lambda: torch.eye(3).to_sparse(), lambda t: t.mul_(2)),
    "sparse rows": (lambda: torch.eye(3).to_sparse_csr(), lambda t: t.mul_(2)),
    "quantized": (quantized, lambda t: t.copy_(torch.zeros(4))),
    "complex": (lambda: torch.ones(3, dtype=torch.complex64), lambda t: t.mul_(1j)),
    "conjugate": (lambda: torch.tensor([1 + 1j]).conj(), lambda t: t.mul_(1j)),
    "bool": (lambda: torch.tensor([True, False]), lambda t: t.logical_not_()),
    "bfloat16": (lambda: torch.ones(400, 400, dtype=torch.bfloat16), lambda t: t[3].fill_(2)),
    "not a number": (lambda: torch.tensor([float("nan"), 1.0]), lambda t: t.zero_()),
    "empty": (lambda: torch.zeros(0), lambda t: t.resize_(3).fill_(1)),
    "expanded": (lambda: torch.ones(3).expand(4, 3), lambda t: t[0].fill_(2)),
    "of an array": (lambda: torch.from_numpy(np.ones(3)), lambda t: t.zero_()),
    "of a large array": (lambda: torch.from_numpy(np.ones(300_000)), lambda t: t[5:].zero_()),
    "a leaf": (lambda: torch.ones(3, requires_grad=True), lambda t: t.data.mul_(2)),
    "a leaf that is frozen": (lambda: torch.ones(3, requires_grad=True), lambda t: t.requires_grad_(False)),
    "of a graph": (lambda: torch.ones(3, requires_grad=True) * 2, lambda t: t.detach().mul_(2)),
    "resized": (lambda: torch.ones(3), lambda t: t.resize_(7)),
    "squeezed": (lambda: torch.ones(1, 3), lambda t: t.squeeze_(0)),
    "set": (lambda: torch.ones(3), lambda t: t.set_(torch.zeros(2))),
    "of another type": (lambda: torch.ones(3), lambda t: setattr(t, "data", t.double())),
    "without values": (lambda: torch.ones(3, device="meta"), lambda t: t.mul_(2)),
    "a parameter of another kind": (lambda: type("Own", (nn.Parameter,), {})(torch.ones(3)), lambda t: t.data.zero_()),
}


def described(tensor: Tensor) -> Any:
    dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    dense = dense.dequantize() if dense.is_quantized else dense
    values = None if tensor.is_meta else repr(dense.detach().tolist())
    return id(tensor), tensor.dtype, tensor.shape, tensor.layout, tensor.requires_grad, tensor.is_conj(), values


@pytest.mark.parametrize("kind", TENSORS)
def test_any_kind_of_tensor_comes_back(kind: str) -> None:
    make, write = TENSORS[kind]
    tensor = make()
    net, before = holding(kept=[tensor]), described(tensor)
    with untouched(net), torch.no_grad():
        write(tensor)
    assert described(net.kept[0]) == before


def test_a_parameter_of_another_kind_is_not_replaced() -> None:
    class Packed(nn.Parameter):
        pass

    net = nn.Module()
    net.weight = Packed(torch.ones(3))
    with untouched(net), torch.no_grad():
        assert type(net.weight) is Packed
        net.weight.mul_(2)
    assert net.weight.tolist() == [1, 1, 1]


def test_a_parameter_has_its_own_attributes_inside() -> None:
    net = nn.Linear(2, 2)
    net.weight.decays = False
    with untouched(net):
        assert not net.weight.decays
        assert isinstance(net.weight, nn.Parameter)
        assert net.weight.requires_grad


@pytest.mark.parametrize("grad", [False, True])
def test_a_model_finds_its_parameters_by_what_they_are(grad: bool) -> None:
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 3)
            self.masks = {p: torch.rand_like(p) > 0.5 for p in self.parameters()}

        def forward(self, x: Tensor) -> Tensor:
            for parameter in self.parameters():
                parameter.data *= self.masks[parameter]
            return super().forward(x)

    net = Masked()
    before = copy.deepcopy(net.state_dict())
    with untouched(net, grad=grad):
        assert (net(torch.zeros(1, 3)) == 0).sum() == (~net.masks[net.bias]).sum()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("grad", [False, True])
def test_a_backward_pass_that_waits_can_go_on(grad: bool) -> None:
    net, twin = made("a_weight_clamped"), made("a_weight_clamped")
    results = []
    for one in (net, twin):
        loss = one(inputs_of("a_weight_clamped")).square().sum()
        if one is net:
            with untouched(net, grad=grad):
                net(inputs_of("a_weight_clamped"))
        loss.backward()
        results.append([p.grad for p in one.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_class_that_changed_is_changed_back() -> None:
    class Other(nn.Linear):
        pass

    net = nn.Linear(2, 2)
    with untouched(net):
        net.__class__ = Other
    assert type(net) is nn.Linear


def test_a_measured_model_can_be_copied_and_saved() -> None:
    net = nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 2))
    before = copy.deepcopy(net.state_dict())
    local_complexity(net, torch.rand(3, 300), radius=0.1, n_directions=2)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert all(torch.equal(value, before[name]) for name, value in twin.state_dict().items())


# What is not the model's


class Worker:
    """Another thread writes to what it keeps."""

    def __init__(self) -> None:
        self.lock, self.results = threading.Lock(), []


class Fitted(pl.LightningModule):
    pass


def of_lightning() -> tuple[Any, Callable[[], Any]]:
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    return trainer, lambda: trainer.callback_metrics


def of_a_thread() -> tuple[Any, Callable[[], Any]]:
    worker = Worker()
    return worker, lambda: worker.results


def of_a_queue() -> tuple[Any, Callable[[], Any]]:
    waiting = queue.Queue()
    return waiting, lambda: waiting.queue


def of_a_logger() -> tuple[Any, Callable[[], Any]]:
    logger = logging.Logger("own")
    return logger, lambda: logger.filters


def of_a_spy() -> tuple[Any, Callable[[], Any]]:
    calls = Calls()
    return calls, lambda: calls


def of_a_measure() -> tuple[Any, Callable[[], Any]]:
    class Own(ProbeCallback):
        pass

    callback = Own()
    callback.rows = []
    return callback, lambda: callback.rows


@pytest.mark.parametrize("make", [of_a_measure, of_lightning, of_a_thread, of_a_queue, of_a_logger, of_a_spy])
@pytest.mark.parametrize("nested", [False, True])
def test_what_others_write_to_is_left_alone(make: Any, nested: bool) -> None:
    keeper, contents = make()
    net = holding(kept=types.SimpleNamespace(inner=[keeper]) if nested else keeper)
    with untouched(net):
        found = contents()
        found.update(n=torch.ones(())) if isinstance(found, dict) else found.append(1)
    assert len(contents()) == 1


def test_a_module_does_not_lead_to_its_trainer() -> None:
    module = Fitted()
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    module.trainer = trainer
    trainer.own = []
    with untouched(module):
        trainer.own.append(1)
    assert trainer.own == [1]


class Broken:
    """Raises whatever it is asked."""

    def __init__(self, error: Exception) -> None:
        object.__setattr__(self, "error", error)

    def __getattribute__(self, name: str) -> Any:
        raise object.__getattribute__(self, "error")


@pytest.mark.parametrize("error", [AttributeError("no"), RuntimeError("no"), KeyError("no"), ReferenceError("no")])
def test_an_object_that_cannot_be_looked_at_is_left_alone(error: Exception) -> None:
    net = holding(broken=Broken(error), after=[1])
    with untouched(net):
        net.after.append(2)
    assert net.after == [1]


def test_references_in_a_circle_are_followed_once() -> None:
    net = holding(one=[], two={})
    net.one += [net.two, net, net.one]
    net.two["one"] = net.one
    with untouched(net):
        net.two["more"] = net.one.pop()
    assert [*net.two] == ["one"]
    assert net.one[2] is net.one


def test_all_that_can_be_set_back_is() -> None:
    array, seen = np.zeros(3), []

    def body() -> None:
        with restored([seen, array, {"n": seen}]):
            seen.append(1)
            array.flags.writeable = False

    with pytest.raises(ValueError, match="read-only"):
        body()
    assert seen == []


def test_read_only_arrays_are_left_alone() -> None:
    array = np.zeros(3)
    array.flags.writeable = False
    with untouched(holding(kept=array)):
        pass
    assert not array.flags.writeable


def test_arrays_are_copied_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lc_callback.isolation.snapshot._MOST_BYTES", 1000)
    small, large = np.zeros(10), np.zeros(1000)
    with untouched(holding(kept=[large, small])):
        small += 1
        large += 1
    assert small.tolist() == [0] * 10
    assert large.tolist() == [1] * 1000


def test_what_a_forward_fn_remembers_comes_back() -> None:
    class Counting:
        def __init__(self) -> None:
            self.n = 0

        def __call__(self, model: nn.Module, x: Tensor) -> Tensor:
            self.n += 1
            return model(x)

    forward_fn, net = Counting(), nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    local_complexity(net, torch.rand(4, 2), radius=0.1, n_directions=2, forward_fn=forward_fn)
    assert forward_fn.n == 0
