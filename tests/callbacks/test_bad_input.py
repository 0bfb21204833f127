"""What is wrong in the set-up is found before the first step, and the message helps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from all_kinds import KINDS
from helpers import CLASSES, DIM, Classifier, loader, make_trainer, mlp, points
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lc_callback.callbacks.settings import arguments_of

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn", "no_timeline")]

WHOLE = "must be a positive integer"
SOME_STEPS = "'log', a non-empty list of steps >= 0, or a function"
SOME_LAYERS = "non-empty list of module names, patterns, class names or module types"
RADII = "positive number or a non-empty list of different ones"
NAME = "must be the name of a module"
FLAG = "must be True or False"
EPS = "a number >= 0 or a non-empty list of different ones"
ONLY_ONE = "only one of `schedule`, `every_n_train_steps`, `every_n_epochs`"

# Arguments, then what the message must hold: the argument, the value, what is possible.
CONSTRUCTOR = [
    ({"radius": 0}, "`radius`", "not 0", RADII),
    ({"radius": -0.5}, "`radius`", "not -0.5", RADII),
    ({"radius": "big"}, "`radius`", "not 'big'", RADII),
    ({"radius": []}, "`radius`", "not []", RADII),
    ({"radius": math.nan}, "`radius`", "not nan", RADII),
    ({"radius": math.inf}, "`radius`", "not inf", RADII),
    ({"radius": [0.1, 0.1]}, "`radius`", "not [0.1, 0.1]", RADII),
    ({"radius": [0.1, "auto"]}, "`radius`", "not [0.1, 'auto']", RADII),
    ({"radius": True}, "`radius`", "not True", RADII),
    ({"radius": None}, "`radius`", "not None", RADII),
    ({"n_directions": 0}, "`n_directions`", "got 0", WHOLE),
    ({"n_directions": 2.5}, "`n_directions`", "got 2.5", WHOLE),
    ({"n_directions": True}, "`n_directions`", "got True", WHOLE),
    ({"n_probes": 0}, "`n_probes`", "got 0", "a positive integer"),
    ({"n_probes": "all"}, "`n_probes`", "got 'all'", "a positive integer"),
    ({"n_probes": "Auto"}, "`n_probes`", "got 'Auto'", "a positive integer"),
    ({"n_probes": -64}, "`n_probes`", "got -64", "a positive integer"),
    ({"n_probes": 64.0}, "`n_probes`", "got 64.0", "a positive integer"),
    ({"n_probes": True}, "`n_probes`", "got True", "a positive integer"),
    ({"n_probes": None}, "`n_probes`", "got None", "a positive integer"),
    ({"n_probes": [64]}, "`n_probes`", "got [64]", "a positive integer"),
    ({"schedule": "linear"}, "`schedule`", "got 'linear'", SOME_STEPS),
    ({"schedule": []}, "`schedule`", "got []", SOME_STEPS),
    ({"schedule": ["a"]}, "`schedule`", "holds 'a'", SOME_STEPS),
    ({"schedule": [3, -1]}, "`schedule`", "holds -1", SOME_STEPS),
    ({"schedule": [2.5]}, "`schedule`", "holds 2.5", SOME_STEPS),
    ({"schedule": 7}, "`schedule`", "got 7", SOME_STEPS),
    ({"every_n_epochs": 0}, "`every_n_epochs`", "got 0", WHOLE),
    ({"every_n_train_steps": -2}, "`every_n_train_steps`", "got -2", WHOLE),
    ({"every_n_train_steps": 1.0}, "`every_n_train_steps`", "got 1.0", WHOLE),
    ({"every_n_epochs": 2, "every_n_train_steps": 3}, "`every_n_epochs=2`", "`every_n_train_steps=3`", ONLY_ONE),
    ({"schedule": "log", "every_n_epochs": 2}, "`schedule='log'`", "`every_n_epochs=2`", ONLY_ONE),
    ({"layers": "fc"}, "`layers`", "got 'fc'", SOME_LAYERS),
    ({"radius": "Auto"}, "`radius`", "not 'Auto'", "'auto'"),
    ({"layers": []}, "`layers`", "got []", SOME_LAYERS),
    ({"layers": ["fc", 3]}, "`layers`", "holds 3", SOME_LAYERS),
    ({"layers": [int]}, "`layers`", "holds <class 'int'>", SOME_LAYERS),
    ({"layers": nn.Linear}, "`layers`", "Linear", SOME_LAYERS),
    ({"at": 3}, "`at`", "got 3", NAME),
    ({"submodule": 3}, "`submodule`", "got 3", NAME),
    ({"forward_fn": 3}, "`forward_fn`", "not 3", "a function, an import path or a method name"),
    ({"seed": -1}, "`seed`", "got -1", "an integer from 0"),
    ({"seed": 0.5}, "`seed`", "got 0.5", "an integer from 0"),
    ({"chunk_size": 0}, "`chunk_size`", "got 0", WHOLE),
    ({"random_probes": "yes"}, "`random_probes`", "got 'yes'", FLAG),
    ({"raise_on_error": "no"}, "`raise_on_error`", "got 'no'", FLAG),
    ({"max_pool": 1}, "`max_pool`", "got 1", FLAG),
    ({"method": "exact"}, "`method`", "got 'exact'", "'vertices' or 'linear'"),
    ({"method": "linear", "max_pool": True}, "`method='linear'`", "`max_pool`", "leave `layers`"),
    ({"method": "linear", "layers": ["Linear"]}, "`method='linear'`", "`layers`", "leave `layers`"),
    ({"per_layer": "all"}, "`per_layer`", "got 'all'", FLAG),
    ({"log_key_prefix": 3}, "`log_key_prefix`", "got 3", "must be a string"),
    ({"target_fn": 3}, "`target_fn`", "got 3", "a function or an import path"),
    ({"task": "classes"}, "`task`", "got 'classes'", "'multilabel'"),
    ({"layer": 3}, "`layer`", "got 3", NAME),
    ({"metric": "f1"}, "`metric`", "got str 'f1'", "a metric of torchmetrics"),
    ({"eps": -0.1}, "`eps`", "got -0.1", EPS),
    ({"eps": "8/255"}, "`eps`", "got '8/255'", EPS),
    ({"eps": []}, "`eps`", "got []", EPS),
    ({"eps": [0.1, None]}, "`eps`", "got [0.1, None]", EPS),
    ({"eps": [0.1, 0.1]}, "`eps`", "got [0.1, 0.1]", EPS),
    ({"eps": math.nan}, "`eps`", "got nan", EPS),
    ({"eps": math.inf}, "`eps`", "got inf", EPS),
    ({"eps": True}, "`eps`", "got True", EPS),
    ({"eps": None}, "`eps`", "got None", EPS),
    ({"attack": "PDG"}, "`attack='PDG'`", "is not one of", "APGD"),
    ({"attack": 3}, "`attack`", "got 3", "a function (model, x, y)"),
    ({"attack": None}, "`attack`", "got None", "a function (model, x, y)"),
    ({"alpha": 0}, "`alpha`", "got 0", "a positive number or None"),
    ({"alpha": -0.1}, "`alpha`", "got -0.1", "a positive number or None"),
    ({"alpha": "auto"}, "`alpha`", "got 'auto'", "a positive number or None"),
    ({"alpha": math.nan}, "`alpha`", "got nan", "a positive number or None"),
    ({"steps": 0}, "`steps`", "got 0", WHOLE),
    ({"steps": 2.5}, "`steps`", "got 2.5", WHOLE),
    ({"bounds": 1.0}, "`bounds`", "got 1.0", "a pair (low, high)"),
    ({"bounds": (0, 1, 2)}, "`bounds`", "got (0, 1, 2)", "a pair (low, high)"),
    ({"bounds": "box"}, "`bounds`", "got 'box'", "a pair (low, high)"),
    ({"eps_unit": "pixel"}, "`eps_unit`", "got 'pixel'", "'auto', 'input' or 'std'"),
    ({"attack_args": ["norm"]}, "`attack_args`", "got ['norm']", "a mapping of names to values"),
    ({"attack_args": {"norm": "L2"}}, "`attack_args` of 'PGD'", "['norm']", "random_start"),
    ({"attack": "APGD", "attack_args": {"nrom": "L2"}}, "`attack_args` of 'APGD'", "['nrom']", "'norm'"),
    ({"raw": 1}, "`raw`", "got 1", FLAG),
    *(({"max_overhead": v}, "`max_overhead`", f"got {v!r}", "a positive number") for v in (0, -1, True, "10 %")),
    ({"split": "val"}, "`split`", "got 'val'", "'train' or 'test'"),
    ({"split": None}, "`split`", "got None", "'train' or 'test'"),
    ({"matrix": "gram"}, "`matrix`", "got 'gram'", "('covariance', 'features')"),
    ({"center": None}, "`center`", "got None", FLAG),
    ({"tol": -1.0}, "`tol`", "got -1.0", "a number >= 0 or None"),
    ({"tol": "auto"}, "`tol`", "got 'auto'", "a number >= 0 or None"),
    ({"tol": math.nan}, "`tol`", "got nan", "a number >= 0 or None"),
    ({"relative": "yes"}, "`relative`", "got 'yes'", FLAG),
    ({"precision": "int64"}, "`precision`", "not 'int64'", "'float64', 'float32', 'bfloat16' or 'float16'"),
    ({"precision": "double precision"}, "`precision`", "not 'double precision'", "'float64', 'float32'"),
    ({"precision": "manual_seed"}, "`precision`", "not 'manual_seed'", "'float64', 'float32'"),
    ({"precision": 32}, "`precision`", "not 32", "'float64', 'float32'"),
    ({"tunnel_fraction": 0}, "`tunnel_fraction`", "got 0", "above 0 and at most 1"),
    ({"tunnel_fraction": 1.5}, "`tunnel_fraction`", "got 1.5", "above 0 and at most 1"),
    ({"tunnel_fraction": True}, "`tunnel_fraction`", "got True", "above 0 and at most 1"),
    ({"tunnel_fraction": "most"}, "`tunnel_fraction`", "got 'most'", "above 0 and at most 1"),
    ({"linear_probe": 1}, "`linear_probe`", "got 1", FLAG),
    ({"alignment": "train"}, "`alignment`", "got 'train'", FLAG),
    ({"histogram": 0}, "`histogram`", "got 0", FLAG),
    ({"max_width": 0}, "`max_width`", "got 0", WHOLE),
    ({"max_width": 64.0}, "`max_width`", "got 64.0", WHOLE),
    ({"near": 0}, "`near`", "got 0", "above 0 and at most 0.5"),
    ({"near": 0.6}, "`near`", "got 0.6", "above 0 and at most 0.5"),
    ({"near": math.nan}, "`near`", "got nan", "above 0 and at most 0.5"),
    ({"near": True}, "`near`", "got True", "above 0 and at most 0.5"),
    ({"window": 0}, "`window`", "got 0", "a positive number"),
    ({"window": math.inf}, "`window`", "got inf", "a positive number"),
    ({"window": True}, "`window`", "got True", "a positive number"),
    ({"window": "all"}, "`window`", "got 'all'", "a positive number"),
    ({"max_regions": 0}, "`max_regions`", "got 0", "a positive integer"),
    ({"max_regions": "all"}, "`max_regions`", "got 'all'", "'auto'"),
    ({"max_regions": 2.5}, "`max_regions`", "got 2.5", "a positive integer"),
    ({"near": "points"}, "`near`", "got 'points'", "above 0 and at most 0.5"),
    ({"detection": 0.1}, "`detection`", "got 0.1", "a dict of settings"),
    ({"detection": {"slope": 1}}, "`detection`", "'slope'", "possible are ["),
    ({"detection": {"delay": "long"}, "eps": 0.1}, "`detection`", "delay='long'", "no number"),
    ({"detection": {"delay": 1.0}, "eps": 0.1}, "`detection`: `delay`", "got 1.0", "above 1"),
    ({"detection": {"flatness": 1.0}, "layers": ["fc"]}, "`detection`: `flatness`", "got 1.0", "below 1"),
    ({"on_transition": "checkpoint"}, "`on_transition`", "got 'checkpoint'", "['checkpoint']"),
    ({"on_transition": ["stop"]}, "`on_transition`", "got ['stop']", "['checkpoint']"),
    ({"on_transition": 1}, "`on_transition`", "got 1", "['checkpoint']"),
    ({"stop_after": "convergence"}, "`stop_after`", "got 'convergence'", "must be one of ['"),
    ({"stop_after": "rank_rise", "eps": 0.1}, "`stop_after`", "got 'rank_rise'", "'delayed_robustness'"),
    ({"certainty": "sure"}, "`certainty`", "got 'sure'", "'firm' or 'tentative'"),
    ({"certainty": None}, "`certainty`", "got None", "'firm' or 'tentative'"),
    ({"custom_scalars": "all"}, "`custom_scalars`", "got 'all'", FLAG),
]


def parameters(kind: str) -> set[str]:
    return {*arguments_of(KINDS[kind])}


# Each row for every callback that has its arguments.
ROWS = [(kind, *row) for kind in KINDS for row in CONSTRUCTOR if {*row[0]} <= parameters(kind)]


def test_the_number_of_probes_can_be_found_for_local_complexity_only() -> None:
    with pytest.raises(ValueError, match=r"`n_probes` must be 'auto' or a positive integer, but got 0"):
        KINDS["lc"](n_probes=0)
    with pytest.raises(ValueError, match=r"`n_probes` must be a positive integer, but got 'auto'"):
        KINDS["rank"](n_probes="auto")


@pytest.mark.parametrize(
    ("kind", "arguments", "name", "given", "possible"),
    ROWS,
    ids=[",".join([row[0], *(f"{key}={value}" for key, value in row[1].items())]) for row in ROWS],
)
def test_constructor(kind: str, arguments: dict[str, Any], name: str, given: str, possible: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        KINDS[kind](**arguments)
    text = str(caught.value)
    assert [part for part in (name, given, possible) if part not in text] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_argument_is_in_the_table(kind: str) -> None:
    in_table = {name for one, arguments, *_ in ROWS if one == kind for name in arguments}
    assert parameters(kind) - in_table == parameters(kind) & {"train_probes", "test_probes"}  # checked at set-up


class NoForward(Classifier):
    forward = pl.LightningModule.forward

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])


class Uncopyable(IterableDataset):
    def __init__(self) -> None:
        self.samples = (sample for sample in points())

    def __iter__(self) -> Any:
        return self.samples


class Listing(nn.Module):
    """Returns a list, so that its output cannot be perturbed."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.ModuleList([nn.Linear(DIM, CLASSES)])
        self.pair = Pair()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner[0](self.pair(x)[0]))


class Pair(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x, x


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(DIM, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.layer(x).bfloat16()).float()


def with_nan() -> torch.Tensor:
    inputs = torch.randn(5, DIM)
    inputs[3, 2] = math.nan
    return inputs


def linear() -> Classifier:
    return Classifier(nn.Sequential(nn.Linear(DIM, 8), nn.Linear(8, CLASSES)))


def dicts() -> DataLoader:
    """Batches that are dicts, for a network whose forward has other names."""
    return DataLoader([{"image": torch.randn(DIM), "label": i % CLASSES} for i in range(24)], 8)


def in_dict(dataset: Any) -> dict[str, DataLoader]:
    return {"a": loader(dataset), "b": loader(dataset)}


Make = Callable[[], Any]
# Arguments, module, train loader, then what the message must hold.
SETUP: dict[str, tuple[dict[str, Any], Make, Make, list[str]]] = {
    "layers_match_nothing": ({"layers": ["fc*"]}, Classifier, loader, ["`layers`", "'fc*'", "net.0, net.1"]),
    "layers_of_no_such_type": ({"layers": [nn.Conv2d]}, Classifier, loader, ["`layers`", "Conv2d", "net.0, net.1"]),
    "at_is_no_module": ({"at": "stem"}, Classifier, loader, ["`at='stem'`", "net.0, net.1"]),
    "at_returns_a_tuple": (
        {"at": "net.pair"},
        lambda: Classifier(Listing()),
        loader,
        ["`at='net.pair'`", "a tuple", "returns a tensor"],
    ),
    "at_is_never_called": (
        {"at": "net.inner"},
        lambda: Classifier(Listing()),
        loader,
        ["`at='net.inner'`", "not executed"],
    ),
    "at_is_after_everything": ({"at": "net.4"}, Classifier, loader, ["'net.4'", "no non-linearity", "`layers=`"]),
    "submodule_is_no_module": ({"submodule": "backbone"}, Classifier, loader, ["`submodule='backbone'`", "net.0"]),
    "no_forward": ({}, NoForward, loader, ["NoForward has no forward", "`submodule=`", "net", "`forward_fn=`"]),
    "forward_fn_is_no_method": (
        {"forward_fn": "encode"},
        Classifier,
        loader,
        ["`forward_fn='encode'`", "method of Classifier", "import path"],
    ),
    "forward_fn_is_no_import": ({"forward_fn": "os.nothing"}, Classifier, loader, ["`forward_fn='os.nothing'`"]),
    "forward_fn_is_no_function": ({"forward_fn": "math.pi"}, Classifier, loader, ["`forward_fn='math.pi'`"]),
    "no_non_linearity": ({}, linear, loader, ["no non-linearity", "Classifier", "`layers=[torch.nn.Linear]`"]),
    "half_precision_inside": ({}, lambda: Classifier(Half()), loader, ["bfloat16", "`layers=`"]),
    "nan_in_probes": ({"train_probes": with_nan()}, Classifier, loader, ["`train_probes`", "NaN", "clean points"]),
    "nan_in_the_dataset": (
        {},
        Classifier,
        lambda: loader(TensorDataset(with_nan(), torch.zeros(5, dtype=torch.long))),
        ["`train_probes`", "NaN", "clean points"],
    ),
    "empty_dataset": (
        {"train_probes": TensorDataset(torch.zeros(0, DIM))},
        Classifier,
        loader,
        ["`train_probes`", "empty TensorDataset", "at least one sample"],
    ),
    "empty_tensor": ({"test_probes": torch.zeros(0, DIM)}, Classifier, loader, ["`test_probes`", "at least 1", "(0, "]),
    "empty_list": ({"train_probes": []}, Classifier, loader, ["`train_probes`", "0 entries", "a pair"]),
    "three_tensors": ({"test_probes": [torch.ones(2)] * 3}, Classifier, loader, ["`test_probes`", "3 entries", "pair"]),
    "number": ({"train_probes": 5}, Classifier, loader, ["`train_probes`", "int", "a tensor, a pair"]),
    "string": ({"test_probes": "val"}, Classifier, loader, ["`test_probes`", "'val'", "a DataLoader"]),
    "mapping_without_tensors": (
        {"train_probes": {"x": "text"}},
        Classifier,
        loader,
        ["`train_probes`", "no tensor", "pass a tensor"],
    ),
    "targets_of_another_length": (
        {"train_probes": (torch.randn(5, DIM), torch.zeros(4))},
        Classifier,
        loader,
        ["`train_probes`", "5 inputs and 4 targets", "as many targets as inputs"],
    ),
    "wrong_shape": (
        {"train_probes": torch.randn(5, DIM + 1)},
        Classifier,
        loader,
        ["torch.float32 tensor (2, 7)", "`train_probes=`", "`submodule=`", "`forward_fn=`"],
    ),
    "integers_without_embedding": (
        {"train_probes": torch.ones(5, DIM, dtype=torch.long), "test_probes": torch.ones(5, DIM, dtype=torch.long)},
        Classifier,
        loader,
        ["no floating-point tensor", "Long and Float", "convert the inputs to float"],
    ),
    "integers_that_nothing_embeds": (
        {
            "train_probes": torch.arange(5 * DIM).view(5, DIM),
            "forward_fn": lambda module, x: module.net(x.to(module.net[0].weight)),
        },
        Classifier,
        loader,
        ["no floating-point tensor", "nn.Embedding", "`at=`"],
    ),
    "train_loader_is_a_dict": ({}, Classifier, lambda: in_dict(points()), ["dict", "`train_probes=`", "a tensor"]),
    "equal_points": (
        {"train_probes": torch.ones(5, DIM)},
        Classifier,
        loader,
        ["`radius='auto'`", "all equal", "Pass a number"],
    ),
    "uncopyable_stream": (
        {"train_probes": Uncopyable()},
        Classifier,
        loader,
        ["`train_probes`", "Uncopyable", "cannot be copied", "Pass a tensor"],
    ),
    "dict_for_a_tensor": (
        {},
        Classifier,
        dicts,
        ["was called with", "forward_fn=lambda module, batch: module(batch['image'])"],
    ),
    "dict_for_a_submodule": (
        {"submodule": "net"},
        Classifier,
        dicts,
        ["was called with", "forward_fn=lambda module, batch: module.net(batch['image'])"],
    ),
    "function_raises": (
        {"forward_fn": lambda module, x: module.net[:2](x[0, 0, 0])},
        Classifier,
        loader,
        ["IndexError", "called with", "`forward_fn=`"],
    ),
}


# Of these each callback must say the same.
FOR_ALL = [
    *("submodule_is_no_module", "no_forward", "forward_fn_is_no_method", "forward_fn_is_no_import", "function_raises"),
    *(
        "forward_fn_is_no_function",
        "nan_in_probes",
        "nan_in_the_dataset",
        "empty_dataset",
        "empty_tensor",
        "empty_list",
    ),
    *("three_tensors", "number", "string", "mapping_without_tensors", "targets_of_another_length"),
    *("train_loader_is_a_dict", "uncopyable_stream", "dict_for_a_tensor", "dict_for_a_submodule"),
]


class Stopped(Classifier):
    """No gradient passes from its output to its inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if self.training else x.detach())


def halves(targets: torch.Tensor) -> Make:
    inputs = points()[:][0]
    return lambda: loader(TensorDataset(inputs[: len(targets)], targets))


def beyond(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x + 1.0


def too_few(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x[:1, :2]


class Regressor(Classifier):
    def loss(self, batch: Any) -> torch.Tensor:
        return self(batch[0]).square().mean()


def one_output() -> Classifier:
    return Regressor(mlp().append(nn.Linear(CLASSES, 1)))


SAID_OF_NUMBERS = [
    *("train probes", "torch.float32 of shape (24,)", "numbers, not classes"),
    *("for a regression leave this callback", "`target_fn=`"),
]
OF_ROBUSTNESS: dict[str, tuple[dict[str, Any], Make, Make, list[str]]] = {
    "no_targets": ({"train_probes": torch.randn(5, DIM)}, Classifier, loader, ["no targets were found", "`target_fn="]),
    "float_targets": (
        {},
        Regressor,
        halves(torch.rand(24)),
        SAID_OF_NUMBERS,
    ),
    "regression": ({}, one_output, halves(torch.linspace(20, 90, 24)), SAID_OF_NUMBERS),
    "regression_of_three": ({}, Regressor, halves(torch.randn(24, 3)), ["numbers, not classes", "this callback"]),
    "two_columns_of_targets": ({}, Regressor, halves(torch.ones(24, 2).long()), ["shape (24, 2)", "`target_fn=`"]),
    "a_class_too_many": (
        {},
        Regressor,
        halves(torch.arange(24) % (CLASSES + 1)),
        ["range from 0 to 3", "returns 3 logits", "classes 0 to 2", "`target_fn=`"],
    ),
    "negative_class": ({}, Regressor, halves(torch.arange(24) % 2 - 1), ["range from -1 to 0", "`target_fn=`"]),
    "one_output": (
        {},
        one_output,
        loader,
        ["returns shape (24, 1)", "range from 0 to 2", "task='binary' needs 0 and 1", "`target_fn=`", "`forward_fn=`"],
    ),
    "target_fn_is_no_import": ({"target_fn": "os.nothing"}, Classifier, loader, ["`target_fn='os.nothing'`", "import"]),
    "target_fn_is_a_method": ({"target_fn": "loss"}, Classifier, loader, ["`target_fn='loss'`", "import path"]),
    "target_fn_raises": (
        {"target_fn": lambda batch: batch["label"]},
        Classifier,
        loader,
        ["`target_fn` failed", "`train_probes`", "TypeError", "a list"],
    ),
    "target_fn_gives_floats": (
        {"target_fn": lambda batch: batch[0][:, 0]},
        Classifier,
        loader,
        ["torch.float32", "integer classes", "`target_fn=`"],
    ),
    "outside_the_bounds": ({"bounds": (0, 1)}, Classifier, loader, ["`bounds=(0, 1)`", "points, which range from -"]),
    "bounds_exchanged": ({"bounds": ([9.0] * 6, [-9.0] * 6)}, Classifier, loader, ["`bounds=([9.0", "low below high"]),
    "bounds_of_another_shape": (
        {"bounds": ([-9.0] * 4, [9.0] * 4)},
        Classifier,
        loader,
        ["`bounds=", "scalars or have the shape (6,)", "shape (4,)"],
    ),
    "equal_points": (
        {"eps_unit": "std", "train_probes": (torch.ones(5, DIM), torch.zeros(5).long())},
        Classifier,
        loader,
        ["`eps_unit='std'`", "all equal", "Use eps_unit='input'"],
    ),
    "at_is_no_module": ({"at": "stem"}, Classifier, loader, ["`at='stem'`", "net.0, net.1"]),
    "at_is_never_called": (
        {"at": "net.inner"},
        lambda: Classifier(Listing()),
        loader,
        ["`at='net.inner'`", "executed"],
    ),
    "no_gradient": ({}, Stopped, loader, ["no gradient flows", "`at=`", "`forward_fn=`", "attack='Square'"]),
    "attack_beyond_eps": (
        {"attack": beyond, "bounds": (-9, 9)},
        Classifier,
        loader,
        ["beyond", "more than eps = 0.03"],
    ),
    "attack_of_another_shape": (
        {"attack": too_few},
        Classifier,
        loader,
        ["`attack` must return a tensor (2, 6)", "(1, 2)"],
    ),
    "attack_of_images": ({"attack": "DIFGSM"}, Classifier, loader, ["`attack='DIFGSM'`", "images", "(2, 6)"]),
}
OF_RANK: dict[str, tuple[dict[str, Any], Make, Make, list[str]]] = {
    "layers_match_nothing": ({"layers": ["fc*"]}, Classifier, loader, ["`layers`", "'fc*'", "net.0, net.1"]),
    "no_non_linearity": ({}, linear, loader, ["no non-linearity", "Classifier", "`layers=[torch.nn.Linear]`"]),
    "half_precision_inside": ({}, lambda: Classifier(Half()), loader, ["feature", "bfloat16", "`layers=`"]),
    "one_point": ({"n_probes": 1}, Classifier, loader, ["at least 2 rows of features", "but 1"]),
    "probe_of_floats": (
        {"linear_probe": True},
        Regressor,
        halves(torch.rand(24)),
        ["torch.float32", "integer classes", "`target_fn=`"],
    ),
    "probe_without_targets": (
        {"linear_probe": True, "train_probes": torch.randn(5, DIM)},
        Classifier,
        loader,
        ["no targets were found", "`target_fn=`"],
    ),
    "target_fn_is_no_import": ({"target_fn": "os.nothing"}, Classifier, loader, ["`target_fn='os.nothing'`", "import"]),
}
AT = ("integers_that_nothing_embeds", "at_is_no_module", "at_returns_a_tuple", "at_is_never_called", "wrong_shape")
OF_PARTITION: dict[str, tuple[dict[str, Any], Make, Make, list[str]]] = {
    "smooth": (
        {},
        lambda: Classifier(nn.Sequential(nn.Linear(DIM, 8), nn.GELU(), nn.Linear(8, CLASSES))),
        loader,
        ["'gelu' at 'net.1' is not piecewise affine", "`local_complexity_map`"],
    ),
    "jumps": (
        {},
        lambda: Classifier(nn.Sequential(nn.Linear(DIM, 8), nn.Hardshrink(), nn.Linear(8, CLASSES))),
        loader,
        ["'hardshrink' at 'net.1' jumps", "`local_complexity_map`"],
    ),
    "bends_without_a_name": (
        {},
        lambda: Classifier(mlp()[:4].extend([nn.LayerNorm(16), nn.Linear(16, CLASSES)])),
        loader,
        ["not affine between its non-linearities", "a LayerNorm", "`local_complexity_map`"],
    ),
    "two_points": ({"n_probes": 2}, Classifier, loader, ["three points", "gives 2", "`train_probes`"]),
    "equal_points": (
        {"train_probes": torch.ones(5, DIM)},
        Classifier,
        loader,
        ["three points", "of which 1 differ", "`train_probes`"],
    ),
    "target_fn_is_no_import": ({"target_fn": "os.nothing"}, Classifier, loader, ["`target_fn='os.nothing'`", "import"]),
    **{
        name: SETUP[name]
        for name in (
            "integers_that_nothing_embeds",
            "at_is_no_module",
            "at_returns_a_tuple",
            "at_is_never_called",
            "wrong_shape",
        )
    },
}
OF_COLLAPSE: dict[str, tuple[dict[str, Any], Make, Make, list[str]]] = {
    **{name: OF_ROBUSTNESS[name] for name in ("no_targets", "a_class_too_many")},
    "negative_class": ({}, Regressor, OF_ROBUSTNESS["negative_class"][2], ["go down to -1", "`target_fn=`"]),
    "float_targets": (
        {},
        Regressor,
        halves(torch.rand(24)),
        SAID_OF_NUMBERS,
    ),
    "regression": ({}, one_output, halves(torch.linspace(20, 90, 24)), SAID_OF_NUMBERS),
    "one_class": ({}, Classifier, halves(torch.zeros(24).long()), ["points of two classes or more", "of 1"]),
    "layer_is_no_module": ({"layer": "head"}, Classifier, loader, ["`layer='head'`", "net.0, net.1"]),
    "layer_is_never_called": (
        {"layer": "net.inner"},
        lambda: Classifier(Listing()),
        loader,
        ["`layer='net.inner'`", "no features (N, D)"],
    ),
    "no_head": (
        {},
        lambda: Classifier(nn.Sequential(nn.Linear(DIM, 6), nn.Unflatten(1, (1, 6)), nn.AvgPool1d(2), nn.Flatten())),
        loader,
        ["no nn.Linear in", "`layer=`"],
    ),
}
SET_UPS = {
    **{f"lc-{name}": ("lc", *row) for name, row in SETUP.items()},
    **{f"{kind}-{name}": (kind, *SETUP[name]) for kind in ("robustness", "rank", "collapse") for name in FOR_ALL},
    **{f"robustness-{name}": ("robustness", *row) for name, row in OF_ROBUSTNESS.items()},
    **{f"rank-{name}": ("rank", *row) for name, row in OF_RANK.items()},
    **{f"partition-{name}": ("partition", *SETUP[name]) for name in FOR_ALL if "test_probes" not in SETUP[name][0]},
    **{f"partition-{name}": ("partition", *row) for name, row in OF_PARTITION.items()},
    **{f"collapse-{name}": ("collapse", *row) for name, row in OF_COLLAPSE.items()},
}


@pytest.mark.parametrize("name", SET_UPS)
def test_set_up(name: str, tmp_path: Path) -> None:
    kind, arguments, make_module, make_loader, parts = SET_UPS[name]
    torch.manual_seed(0)
    module = make_module()
    trainer = make_trainer(tmp_path, KINDS[kind](**arguments), max_steps=2)
    with pytest.raises((ValueError, MisconfigurationException)) as caught:
        trainer.fit(module, make_loader(), loader())
    assert module.steps_taken == 0
    assert [part for part in parts if part not in str(caught.value)] == []
    assert not any(m.training is False for m in module.modules())  # also given back as it was


def test_the_table_is_large() -> None:
    assert len(CONSTRUCTOR) + len(SET_UPS) >= 30


def test_what_is_right_trains(tmp_path: Path) -> None:
    module = Classifier(mlp())
    make_trainer(tmp_path, *(kind() for kind in KINDS.values()), max_steps=2).fit(module, loader(), loader())
    assert module.steps_taken == 2
