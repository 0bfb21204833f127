"""Networks that write when they run, to all that a network may keep: a table that several tests go through.

What they wrote counts in training only: one measurement that is not undone changes the training, and the measured
network is piecewise affine and the same in every call.
"""

from __future__ import annotations

import array
import collections
import copy
import functools
import itertools
import math
import random
import types
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import helpers
import numpy as np
import torch
import torchmetrics
from helpers import CLASSES, DIM
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

NETWORKS: dict[str, Callable[[], nn.Module]] = {}
READS_TOKENS: set[str] = set()
VARIES = {"a_weight_that_decays"}  # from call to call, so that no slice of it can be drawn


def network(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    NETWORKS[make.__name__] = make
    return make


def behind(*parts: nn.Module) -> nn.Sequential:
    """A network that has these in front of its layers."""
    return nn.Sequential(*parts, nn.Linear(DIM, 12), nn.ReLU(), nn.Linear(12, CLASSES))


# Attributes


class Remembering(nn.Module):
    """``recall(self, x)`` writes to what ``start(self)`` made, and returns a number that shows what was there."""

    def __init__(self, start: Callable[[Any], None], recall: Callable[[Any, torch.Tensor], Any]) -> None:
        super().__init__()
        self.recall = recall
        start(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value = float(torch.as_tensor(self.recall(self, x)).detach())
        return x * (1 + 0.1 * math.sin(value)) if self.training else x


def remembering(**start: Callable[[], Any]) -> Callable[[Callable[[Any, torch.Tensor], Any]], Any]:
    """Enter a network whose memory has these attributes, and is written to by the function."""

    def set_attributes(module: nn.Module) -> None:
        for name, make in start.items():
            setattr(module, name, make())

    def enter(recall: Callable[[Any, torch.Tensor], Any]) -> Any:
        NETWORKS[recall.__name__] = lambda: behind(Remembering(set_attributes, recall))
        return recall

    return enter


@remembering(n=int)
def an_int(self, x):
    self.n += 1
    return self.n


@remembering(mean=float)
def a_float(self, x):
    self.mean = 0.9 * self.mean + 0.1 * x.norm().item()
    return self.mean


@remembering(seen=list)
def a_list_that_grows(self, x):
    self.seen.append(x.detach().norm())
    return sum(self.seen)


@remembering(seen=lambda: [0, 0])
def an_item_of_a_list(self, x):
    self.seen[1] += 1
    return self.seen[1]


@remembering(seen=lambda: collections.deque(maxlen=3))
def a_deque(self, x):
    self.seen.append(x.detach().sum().item())
    return sum(self.seen)


@remembering(seen=dict)
def a_dict(self, x):
    self.seen[len(self.seen)] = x.detach().mean()
    return sum(self.seen.values())


@remembering(seen=collections.Counter)
def a_counter(self, x):
    self.seen[len(x) % 2] += 1
    return self.seen[0] - 2 * self.seen[1]


@remembering(seen=lambda: collections.defaultdict(list))
def a_defaultdict(self, x):
    self.seen["x"].append(1)
    return len(self.seen["x"])


@remembering(seen=lambda: collections.OrderedDict.fromkeys("abc"))
def the_order_of_a_dict(self, x):
    self.seen.move_to_end(next(iter(self.seen)))
    return ord(next(iter(self.seen)))


@remembering(seen=lambda: collections.UserDict(n=0))
def a_user_dict(self, x):
    self.seen["n"] += 1
    return self.seen["n"]


@remembering(seen=set)
def a_set(self, x):
    self.seen.add(len(self.seen))
    return len(self.seen)


@remembering(seen=lambda: array.array("d", [0.0]))
def an_array_of_python(self, x):
    self.seen[0] += 1
    self.seen.append(self.seen[0])
    return sum(self.seen)


@remembering(seen=lambda: bytearray(2))
def a_bytearray(self, x):
    self.seen[0] = (self.seen[0] + 1) % 256
    return self.seen[0]


@remembering(counter=itertools.count)
def a_counting_iterator(self, x):
    return next(self.counter)


@remembering(states=lambda: itertools.cycle([1, 2, 4]))
def a_circling_iterator(self, x):
    return next(self.states)


@remembering(rest=lambda: iter([1, 5, 3] * 100))
def an_iterator_of_a_list(self, x):
    return next(self.rest, 0)


@remembering(own=types.SimpleNamespace)
def a_namespace(self, x):
    self.own.n = getattr(self.own, "n", 0) + 1
    return self.own.n


@dataclass
class Statistics:
    n: int = 0
    sums: list[float] = field(default_factory=list)
    mean: torch.Tensor = field(default_factory=lambda: torch.zeros(DIM))


@remembering(own=Statistics)
def a_dataclass(self, x):
    self.own.n += 1
    self.own.sums.append(0.5)
    self.own.mean.add_(x.detach().mean(0))
    return self.own.n + sum(self.own.sums) + self.own.mean.sum()


@dataclass(frozen=True)
class Frozen:
    inner: tuple[dict[str, Statistics], ...] = field(default_factory=lambda: ({"own": Statistics()},))


@remembering(own=Frozen)
def an_object_in_a_dict_in_a_tuple_in_an_object(self, x):
    self.own.inner[0]["own"].n += 1
    return self.own.inner[0]["own"].n


class Slotted:
    __slots__ = ("late", "n")

    def __init__(self) -> None:
        self.n = 0


@remembering(own=Slotted)
def slots(self, x):
    self.own.n += 1
    self.own.late = getattr(self.own, "late", 0) + 2
    return self.own.n + self.own.late


Pair = collections.namedtuple("Pair", "count total")


@remembering(own=lambda: Pair(torch.zeros(()), torch.zeros(DIM)))
def a_named_tuple_of_tensors(self, x):
    self.own.count.add_(1)
    self.own.total.add_(x.detach().sum(0))
    return self.own.count + self.own.total.sum()


@remembering()
def an_attribute_made_late(self, x):
    if not hasattr(self, "first"):
        self.first = x.detach().norm()
    return self.first


@remembering(first=float)
def an_attribute_that_goes(self, x):
    if "first" in vars(self):
        del self.first
        return 1
    return 0


# Tensors and arrays


@remembering(total=lambda: torch.zeros(()))
def a_tensor_in_place(self, x):
    self.total += 1
    return self.total


@remembering(total=lambda: torch.zeros(()))
def a_tensor_by_its_data(self, x):
    self.total.data += 1
    return self.total


@remembering(total=lambda: torch.zeros(()))
def a_tensor_bound_anew(self, x):
    self.total = self.total + x.detach().norm()
    return self.total


@remembering(total=lambda: torch.zeros(1))
def a_tensor_of_other_data(self, x):
    self.total.data = torch.cat([self.total.data, torch.ones(1)])
    return self.total.sum()


@remembering(total=lambda: torch.arange(6.0).view(2, 3))
def a_tensor_that_turns(self, x):
    self.total.t_()
    return self.total[0].sum()


@remembering(bank=lambda: torch.zeros(4, DIM), n=int)
def a_view_of_a_tensor(self, x):
    self.row = self.bank[self.n % 4]
    self.row.add_(x.detach().sum(0))
    self.n += 1
    return self.bank.sum()


@remembering(bank=lambda: torch.zeros(300, 400))
def a_large_tensor(self, x):
    self.bank[0] += 1
    return self.bank[0, 0]


@remembering(bank=lambda: torch.zeros(8, dtype=torch.int8))
def small_integers(self, x):
    self.bank[3] += 1
    return self.bank[3]


@remembering(mean=lambda: torch.zeros(DIM, requires_grad=True))
def a_tensor_with_a_gradient(self, x):
    with torch.no_grad():
        self.mean.add_(x.mean(0))
    return self.mean.sum()


@remembering(bank=lambda: [torch.zeros(DIM), [torch.zeros(())]])
def tensors_in_lists(self, x):
    self.bank[0] += 1
    self.bank[1][0] -= 3
    return self.bank[0][0] + self.bank[1][0]


@remembering(bank=lambda: {"a": torch.zeros(DIM), "b": None})
def tensors_in_a_dict(self, x):
    self.bank["a"] += x.detach().sum(0)
    self.bank["b"] = self.bank["a"].norm() + (0 if self.bank["b"] is None else self.bank["b"])
    return self.bank["b"]


@remembering(bank=lambda: np.zeros(DIM))
def an_array(self, x):
    self.bank += x.detach().numpy().astype(np.float64).sum(0)
    return self.bank.sum()


@remembering(bank=lambda: np.zeros((500, 600)))
def a_large_array(self, x):
    self.bank[3] += 1
    return self.bank[3, 0]


@remembering(bank=lambda: np.array([[], {}], dtype=object))
def an_array_of_objects(self, x):
    self.bank[0].append(1)
    self.bank[1]["n"] = self.bank[1].get("n", 0) + 1
    return len(self.bank[0]) + self.bank[1]["n"]


@remembering(bank=lambda: torch.zeros(3))
def a_tensor_through_its_array(self, x):
    if not hasattr(self, "array"):
        self.array = self.bank.numpy()
    self.array += 1
    self.bank += 1
    return self.array.sum() - self.bank.sum() / 3


@remembering(samples=lambda: np.zeros(0))
def quantiles(self, x):
    self.samples = np.sort(np.append(self.samples, x.detach().numpy().ravel()))[-50:]
    return np.quantile(self.samples, 0.3)


@remembering(prior=lambda: torch.distributions.Normal(torch.zeros(()), torch.ones(())))
def a_distribution(self, x):
    self.prior.loc += 1
    return self.prior.loc


@remembering(seen=weakref.WeakKeyDictionary)
def a_memory_by_weak_reference(self, x):
    self.seen[self] = self.seen.get(self, 0) + 1
    return self.seen[self]


@remembering(bank=lambda: torch.zeros(()))
def an_attribute_of_a_tensor(self, x):
    self.bank.n = getattr(self.bank, "n", 0) + 1
    return self.bank.n


# Random generators


@remembering(own=lambda: torch.Generator().manual_seed(1))
def a_generator(self, x):
    return torch.rand((), generator=self.own) * 6


@remembering(own=lambda: {"streams": [np.random.default_rng(1), np.random.RandomState(2)]})
def generators_in_a_list(self, x):
    first, second = self.own["streams"]
    return 3 * first.random() + 3 * second.random()


class Drawing:
    def __init__(self) -> None:
        self.own = random.Random(3)

    def __call__(self) -> float:
        return 6 * self.own.random()


@remembering(own=Drawing)
def a_generator_of_an_object(self, x):
    return self.own()


class OwnDropout(nn.Module):
    """Draws its mask in every mode, from a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.rand(x.shape[-1], generator=self.generator) > 0.3
        return x * mask if self.training else x


@network
def dropout_with_its_generator() -> nn.Module:
    return behind(OwnDropout())


# What belongs to no instance


@network
def a_class_variable() -> nn.Module:
    class Counting(nn.Module):
        n = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.n += 1
            return x * (1 + 0.1 * math.sin(Counting.n)) if self.training else x

    return behind(Counting())


@network
def a_list_of_a_class() -> nn.Module:
    class Base(nn.Module):
        seen: list[int] = []

    class Counting(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(1)
            return x * (1 + 0.1 * math.sin(len(self.seen))) if self.training else x

    return behind(Counting())


N_CALLS, CALLS = 0, {"n": 0}


@remembering()
def a_global_number(self, x):
    global N_CALLS
    N_CALLS += 1
    return N_CALLS


@remembering()
def a_global_dict(self, x):
    return one_more_call()


METER, TOTALS = Statistics(), types.SimpleNamespace(n=0)


@remembering()
def a_global_object(self, x):
    METER.sums.append(1.0)
    TOTALS.n += 1
    return len(METER.sums) + TOTALS.n


class Registry:
    n = 0


@remembering()
def a_variable_of_another_class(self, x):
    Registry.n += 1
    return Registry.n


@remembering()
def a_variable_of_another_file(self, x):
    helpers.N_CALLS += 1
    return helpers.N_CALLS


@network
def a_decorated_forward_of_a_base() -> nn.Module:
    class Base(nn.Module):
        @torch.no_grad()
        def scale(self) -> float:
            return math.sin(one_more_call())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale = self.scale()
            return x * (1 + 0.1 * scale) if self.training else x

    class Derived(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)

    return behind(Derived())


def one_more_call() -> int:
    CALLS["n"] += 1
    return CALLS["n"]


def forget_globals() -> None:
    global N_CALLS
    N_CALLS, CALLS["n"], TOTALS.n, Registry.n = 0, 0, 0, 0
    METER.sums.clear()
    helpers.N_CALLS = 0


@network
def a_variable_of_a_function() -> nn.Module:
    n, seen = 0, []

    def recall(self: Any, x: torch.Tensor) -> int:
        nonlocal n
        n += 1
        seen.append(n)
        return n + len(seen)

    return behind(Remembering(lambda module: None, recall))


@network
def a_default_argument() -> nn.Module:
    def recall(self: Any, x: torch.Tensor, seen: list[int] = [], *, more: Any = {"n": 0}) -> int:  # noqa: B006
        seen.append(1)
        more["n"] += 1
        return len(seen) + more["n"]

    return behind(Remembering(lambda module: None, recall))


@network
def an_attribute_of_a_function() -> nn.Module:
    def recall(self: Any, x: torch.Tensor) -> int:
        recall.n = getattr(recall, "n", 0) + 1
        return recall.n

    return behind(Remembering(lambda module: None, recall))


# Hooks


class Recorder:
    """An object whose methods are hooks."""

    def __init__(self) -> None:
        self.n, self.kept = 0, {"outputs": [], "mean": torch.zeros(())}

    def after(self, module: nn.Module, args: Any, output: torch.Tensor) -> Any:
        self.n += 1
        self.kept["outputs"] = [*self.kept["outputs"], output.detach()][-2:]
        self.kept["mean"] += output.detach().mean()
        value = self.n + len(self.kept["outputs"]) + self.kept["mean"].item()
        return output * (1 + 0.1 * math.sin(value)) if module.training else output

    def before(self, module: nn.Module, args: Any) -> Any:
        return (self.after(module, None, args[0]),)

    __call__ = after


@network
def a_hook_of_an_object() -> nn.Module:
    net = behind()
    net[0].register_forward_hook(Recorder().after)
    return net


@network
def a_hook_before_the_forward() -> nn.Module:
    net = behind()
    net[1].register_forward_pre_hook(Recorder().before)
    return net


@network
def a_hook_that_is_an_object() -> nn.Module:
    net = behind()
    net.register_forward_hook(Recorder())
    return net


@network
def a_partial_hook() -> nn.Module:
    def count(seen: list[int], module: nn.Module, args: Any, output: torch.Tensor) -> Any:
        seen.append(1)
        return output * (1 + 0.1 * math.sin(len(seen))) if module.training else output

    net = behind()
    net[0].register_forward_hook(functools.partial(count, []))
    return net


@network
def a_hook_with_a_closure() -> nn.Module:
    activations: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, args: Any, output: torch.Tensor) -> Any:
            last = activations.get(name, torch.zeros(()))
            activations[name] = output.detach().mean() + last
            return output * (1 + 0.1 * math.sin(last)) if module.training else output

        return hook

    net = behind()
    for name in "02":
        net[int(name)].register_forward_hook(keep(name))
    return net


@network
def a_hook_that_comes_in_the_forward() -> nn.Module:
    class Hooking(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(self._forward_hooks) < 3:
                self.register_forward_hook(lambda module, args, output: output * (0.9 if module.training else 1))
            return super().forward(x)

    return behind(Hooking(DIM, DIM))


@network
def a_method_in_place_of_the_forward() -> nn.Module:
    net, recorder = behind(), Recorder()
    forward = net[0].forward
    net[0].forward = lambda x: recorder.after(net[0], None, forward(x))
    return net


# Modules, and buffers


@network
def a_queue_of_keys() -> nn.Module:
    class Queue(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("queue", torch.zeros(16, DIM))
            self.place = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            places = (self.place + torch.arange(len(x))) % 16
            self.queue[places] = x.detach()
            self.place = (self.place + len(x)) % 16
            return x + 0.1 * self.queue.mean(0) * self.place if self.training else x

    return behind(Queue())


class Teacher(nn.Module):
    """Follows its student in every mode."""

    def __init__(self, hidden: bool) -> None:
        super().__init__()
        self.student = nn.Linear(DIM, DIM)
        teacher = copy.deepcopy(self.student).requires_grad_(False)
        self.teacher = [teacher] if hidden else nn.ModuleList([teacher])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            for one, other in zip(self.teacher[0].parameters(), self.student.parameters(), strict=True):
                one.mul_(0.9).add_(0.1 * other.sin())
        return self.student(x) + self.teacher[0](x) if self.training else self.student(x)


@network
def a_teacher() -> nn.Module:
    return behind(Teacher(hidden=False))


@network
def a_teacher_in_a_list() -> nn.Module:
    return behind(Teacher(hidden=True))


@network
def statistics_of_a_module_in_a_list() -> nn.Module:
    class Hiding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden = [nn.BatchNorm1d(DIM, affine=False)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.hidden[0](torch.cat([x, -x - 1]).detach().float())
            return x + self.hidden[0].running_mean if self.training else x

    return behind(Hiding())


@network
def a_codebook() -> nn.Module:
    class Codebook(nn.Module):
        """Its codes follow their inputs, in training only."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("codes", torch.randn(5, DIM))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            nearest = torch.cdist(x.detach(), self.codes).argmin(1)
            if self.training:
                for i in nearest.unique():
                    self.codes[i].lerp_(x.detach()[nearest == i].mean(0), 0.1)
                return x + self.codes[nearest]
            return x

    return behind(Codebook())


@remembering(cache=list)
def keys_and_values(self, x):
    past = self.cache[-1] if self.cache else torch.zeros(0, DIM)
    self.cache = [*self.cache[-2:], torch.cat([past, x.detach()])[-32:]]
    return self.cache[-1].norm()


@remembering(n=int)
def a_table_of_angles(self, x):
    if len(x) > self.n:
        self.n = len(x)
        self.register_buffer("angles", torch.arange(self.n).float().sin(), persistent=False)
    return self.angles.sum() + self.n


@remembering()
def a_module_made_late(self, x):
    if not hasattr(self, "late"):
        self.late = nn.Linear(1, 1)
    return self.late.weight.item() * 3


@remembering(parts=nn.ModuleList)
def a_list_of_modules_that_grows(self, x):
    self.parts.append(nn.Identity())
    return len(self.parts)


@remembering(metric=torchmetrics.MeanMetric)
def a_metric(self, x):
    self.metric.update(x.detach().abs().mean())
    return self.metric.compute()


@remembering(metric=torchmetrics.CatMetric)
def a_metric_of_lists(self, x):
    return self.metric(x.detach().abs().mean(1)).sum() + len(self.metric.value)


@network
def flags_of_parts() -> nn.Module:
    class Alternating(nn.Module):
        """Its dropout is on in every second call."""

        def __init__(self) -> None:
            super().__init__()
            self.dropout, self.n = nn.Dropout(0.3), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.training:
                x = self.dropout(x)
            self.n += 1
            self.dropout.train(self.n % 2 == 0)
            return x

    return behind(Alternating())


# Parameters


class Writing(nn.Linear):
    """Writes to its own weight in every mode."""

    def __init__(self, write: Callable[[nn.Linear], None]) -> None:
        super().__init__(DIM, DIM)
        self.write = write
        with torch.no_grad():
            self.weight *= 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.write(self)
        return super().forward(x)


def writing(write: Callable[[Any], None]) -> Any:
    NETWORKS[write.__name__] = lambda: behind(Writing(write))
    return write


@writing
def a_weight_clamped(self):
    self.weight.data.clamp_(-0.5, 0.5)


@writing
def a_weight_renormed(self):
    self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=1.0)


@writing
def a_weight_divided_by_its_norm(self):
    with torch.no_grad():
        self.weight.div_(self.weight.norm(dim=1, keepdim=True))


@writing
def a_weight_that_decays(self):
    with torch.no_grad():
        self.weight.mul_(0.99)
        self.bias.copy_(self.bias.round(decimals=2))


@writing
def a_weight_whose_diagonal_is_filled(self):
    self.weight.data.fill_diagonal_(0)


@writing
def a_weight_through_its_view(self):
    self.weight.data.view(-1)[::2].clamp_(-0.5, 0.5)


@writing
def a_weight_frozen_in_the_forward(self):
    self.weight.requires_grad_(False)


@network
def a_new_parameter_in_the_forward() -> nn.Module:
    def write(self: Any) -> None:
        if not self.training:
            self.weight = nn.Parameter(self.weight.detach().clamp(-0.5, 0.5))

    return behind(Writing(write))


@network
def a_weight_renormed_in_a_hook() -> nn.Module:
    def renorm(module: Any, args: Any) -> None:
        with torch.no_grad():
            module.weight.renorm_(2, 0, 0.3)

    net = behind()
    net[0].register_forward_pre_hook(renorm)
    return net


@network
def a_weight_that_a_hook_keeps() -> nn.Module:
    net = behind()
    weight = net[0].weight

    def shrink(module: Any, args: Any) -> None:
        weight.data.clamp_(-0.2, 0.2)

    net[2].register_forward_pre_hook(shrink)
    return net


@network
def weights_in_a_list() -> nn.Module:
    class Listing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(DIM, DIM)
            self.weights = [*self.linear.parameters()]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for weight in self.weights:
                weight.data.clamp_(-0.2, 0.2)
            return self.linear(x)

    return behind(Listing())


@network
def a_shared_weight() -> nn.Module:
    net = behind(Writing(a_weight_clamped), nn.ReLU(), nn.Linear(DIM, DIM))
    net[2].weight = net[0].weight
    return net


@network
def a_convolution_of_limited_norm() -> nn.Module:
    class Limited(nn.Conv1d):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
            return super().forward(x)

    return behind(nn.Unflatten(1, (1, DIM)), Limited(1, 1, 3, padding=1), nn.Flatten())


@network
def a_parametrization_with_a_memory() -> nn.Module:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n = torch.zeros(())

        def forward(self, weight: torch.Tensor) -> torch.Tensor:
            self.n += 1
            return weight * (1 + 0.1 * math.sin(self.n)) if self.training else weight

    net = behind()
    parametrize.register_parametrization(net[0], "weight", Scale())
    return net


@network
def a_parametrization_made_late() -> nn.Module:
    class Late(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if not self.training and not parametrize.is_parametrized(self):
                parametrizations.orthogonal(self)
            return F.linear(x, self.weight, self.bias)

    return behind(Late(DIM, DIM))


def old_norm(name: str) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return behind(getattr(nn.utils, name)(nn.Linear(DIM, DIM)))

    return make


NETWORKS["an_old_spectral_norm"], NETWORKS["an_old_weight_norm"] = old_norm("spectral_norm"), old_norm("weight_norm")


def reading(**arguments: Any) -> Callable[[], nn.Module]:
    """Three tokens, each of whose rows is shrunk when it is looked up."""

    def make() -> nn.Module:
        table = nn.Embedding(9, 4, max_norm=1.0, **arguments)
        return nn.Sequential(table, nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))

    return make


@network
def a_table_through_a_function() -> nn.Module:
    class Table(nn.Embedding):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return F.embedding(tokens, self.weight, max_norm=0.5, norm_type=1.0).flatten(1)

    return nn.Sequential(Table(9, 4), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, CLASSES))


@network
def a_bag() -> nn.Module:
    table = nn.EmbeddingBag(9, 8, max_norm=1.0, mode="mean")
    return nn.Sequential(table, nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, CLASSES))


NETWORKS["a_table"] = reading()
NETWORKS["a_padded_table"] = reading(padding_idx=0)
NETWORKS["a_table_scaled_by_frequency"] = reading(scale_grad_by_freq=True)
NETWORKS["a_table_of_sparse_gradients"] = reading(sparse=True)
NETWORKS["a_table_of_another_norm"] = reading(norm_type=1.0)
READS_TOKENS |= {name for name in NETWORKS if "table" in name and "angles" not in name} | {"a_bag"}


def inputs_of(name: str, n: int = 16, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if name in READS_TOKENS:
        return torch.randint(0, 9, (n, 3), generator=generator)
    return torch.randn(n, DIM, generator=generator)


def made(name: str, seed: int = 0) -> nn.Module:
    """The network at its start, whatever ran before."""
    forget_globals()
    torch.manual_seed(seed)
    return NETWORKS[name]()
