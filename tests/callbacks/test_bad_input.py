"""What is wrong in the set-up is found before the first step, and the message helps."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import CLASSES, DIM, Classifier, loader, make_trainer, mlp, points
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lc_callback import LocalComplexityCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WHOLE = "must be a positive integer"
SOME_STEPS = "'log', a non-empty list of steps >= 0, or a function"
SOME_LAYERS = "non-empty list of module names, patterns, class names or module types"
RADII = "positive number or a non-empty list of different ones"
NAME = "must be the name of a module"
FLAG = "must be True or False"
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
    ({"n_probes": 0}, "`n_probes`", "got 0", WHOLE),
    ({"n_probes": "all"}, "`n_probes`", "got 'all'", WHOLE),
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
    ({"per_layer": "all"}, "`per_layer`", "got 'all'", FLAG),
    ({"log_key_prefix": 3}, "`log_key_prefix`", "got 3", "must be a string"),
]


@pytest.mark.parametrize(
    ("arguments", "name", "given", "possible"),
    CONSTRUCTOR,
    ids=[",".join(f"{key}={value}" for key, value in row[0].items()) for row in CONSTRUCTOR],
)
def test_constructor(arguments: dict[str, Any], name: str, given: str, possible: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        LocalComplexityCallback(**arguments)
    text = str(caught.value)
    assert [part for part in (name, given, possible) if part not in text] == []


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
        ["torch.int64 tensor (2, 6)", "`train_probes=`", "`forward_fn=`"],
    ),
    "integers_that_nothing_embeds": (
        {"train_probes": torch.ones(5, DIM, dtype=torch.long), "forward_fn": lambda module, x: module.net(x.float())},
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
    "function_raises": (
        {"forward_fn": lambda module, x: module.net[:2](x[0, 0, 0])},
        Classifier,
        loader,
        ["IndexError", "called with", "`forward_fn=`"],
    ),
}


@pytest.mark.parametrize("name", SETUP)
def test_set_up(name: str, tmp_path: Path) -> None:
    arguments, make_module, make_loader, parts = SETUP[name]
    torch.manual_seed(0)
    module = make_module()
    callback = LocalComplexityCallback(**arguments)
    trainer = make_trainer(tmp_path, callback, max_steps=2)
    with pytest.raises((ValueError, MisconfigurationException)) as caught:
        trainer.fit(module, make_loader(), loader())
    assert module.steps_taken == 0
    assert [part for part in parts if part not in str(caught.value)] == []
    assert not any(m.training is False for m in module.modules())  # also given back as it was


def test_the_table_is_large() -> None:
    assert len(CONSTRUCTOR) + len(SETUP) >= 30


def test_what_is_right_trains(tmp_path: Path) -> None:
    module = Classifier(mlp())
    make_trainer(tmp_path, LocalComplexityCallback(), max_steps=2).fit(module, loader(), loader())
    assert module.steps_taken == 2
