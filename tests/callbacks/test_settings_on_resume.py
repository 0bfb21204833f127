"""Other settings than those of the checkpoint are reported by name; the same ones are not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from all_kinds import KINDS, tiny
from helpers import Classifier, loader, make_trainer, our_warnings, points
from torch import nn
from torch.utils.data import TensorDataset
from torchmetrics.classification import MulticlassF1Score

from lc_callback.callbacks import ProbeCallback
from lc_callback.callbacks.settings import arguments_of, in_text

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn", "no_timeline")]


def call(module: nn.Module, inputs: torch.Tensor) -> Any:
    return module(inputs)


def call_too(module: nn.Module, inputs: torch.Tensor) -> Any:
    return module(inputs)


def last(batch: Any) -> Any:
    return batch[1]


def also_last(batch: Any) -> Any:
    return batch[-1]


def attack(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return x


# What is measured: a value, and another one.
MEASURED: dict[str, tuple[Any, Any]] = {
    "radius": (1.0, [0.5, 1.0]),
    "n_directions": (3, 4),
    "n_probes": (4, 5),
    "layers": (["net.1"], ["net.3"]),
    "at": (None, "net.1"),
    "random_probes": (True, False),
    "seed": (0, 1),
    "max_pool": (False, True),
    "per_layer": (False, True),
    "submodule": (None, "net"),
    "forward_fn": (call, call_too),
    "method": ("vertices", "auto"),
    "eps": ([0.1], [0.1, 0.2]),
    "attack": ("PGD", attack),
    "alpha": (None, 0.01),
    "steps": (2, 3),
    "bounds": (None, (-6, 6)),
    "eps_unit": ("auto", "std"),
    "attack_args": (None, {"random_start": False}),
    "raw": (False, True),
    "task": ("auto", "multiclass"),
    "metric": (None, MulticlassF1Score(num_classes=3)),
    "layer": (None, "net.1"),
    "target_fn": (last, also_last),
    "split": ("train", "test"),
    "matrix": ("covariance", "features"),
    "center": (True, False),
    "tol": (None, 1e-3),
    "relative": (True, False),
    "precision": (None, "float64"),
    "tunnel_fraction": (0.75, 0.5),
    "linear_probe": (False, True),
    "alignment": (True, False),
    "max_width": (64, 8),
    "near": (0.1, 0.2),
    "window": (1.0, 0.5),
    "max_regions": ("auto", 5000),
}
# When rows are taken and what is done with them: curves stay comparable. Points have a fingerprint.
NOT_MEASURED: dict[str, tuple[Any, Any]] = {
    "schedule": ("log", [0, 1]),
    "every_n_train_steps": (1, 2),
    "every_n_epochs": (1, 2),
    "max_overhead": (None, 0.5),
    "raise_on_error": (False, True),
    "detection": (None, {}),
    "on_transition": (None, ["checkpoint"]),
    "stop_after": (None, None),
    "certainty": ("firm", "tentative"),
    "custom_scalars": (False, True),
    "histogram": (False, True),
    "chunk_size": (None, 7),
    "train_probes": (None, torch.ones(3, 6)),
    "test_probes": (None, torch.ones(3, 6)),
    "log_key_prefix": ("", ""),
}


def parameters(kind: str) -> list[str]:
    return [*arguments_of(KINDS[kind])]


def test_every_argument_is_in_one_of_the_tables() -> None:
    assert {name for kind in KINDS for name in parameters(kind)} == {*MEASURED} | {*NOT_MEASURED}
    assert not {*MEASURED} & {*NOT_MEASURED}


def resumed(before: ProbeCallback, now: ProbeCallback) -> list[str]:
    """What is said when the state of one goes to the other, without a run."""
    now.load_state_dict(before.state_dict())
    with our_warnings(type(now).__name__) as warned:
        now._loop.warn_of_changes(now._arguments)
    return warned


@pytest.mark.parametrize(("kind", "name"), [(k, name) for k in KINDS for name in MEASURED if name in parameters(k)])
def test_a_changed_argument_is_reported_by_name(kind: str, name: str) -> None:
    before, now = (tiny(kind, **{name: value}) for value in MEASURED[name])
    (text,) = resumed(before, now)
    old, new = map(in_text, MEASURED[name])
    assert text.startswith(f"{KINDS[kind].__name__}: ")
    assert f"`{name}` was {old} and is {new}" in text
    assert text.count(" was ") == 1


@pytest.mark.parametrize(
    ("kind", "name"), [(k, name) for k in KINDS for name in MEASURED | NOT_MEASURED if name in parameters(k)]
)
def test_the_same_argument_is_not_reported(kind: str, name: str) -> None:
    for value in (MEASURED | NOT_MEASURED)[name]:
        same = {"radius": [0.5, np.float64(1)]} if name == "radius" and value == [0.5, 1.0] else {name: value}
        assert resumed(tiny(kind, **{name: value}), tiny(kind, **same)) == []


@pytest.mark.parametrize(("kind", "name"), [(k, name) for k in KINDS for name in NOT_MEASURED if name in parameters(k)])
def test_what_leaves_a_curve_as_it_is_is_not_reported(kind: str, name: str) -> None:
    before, now = (tiny(kind, **{name: value}) for value in NOT_MEASURED[name])
    assert resumed(before, now) == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_of_an_earlier_version_is_not_reported(kind: str) -> None:
    state = tiny(kind, seed=1).state_dict()
    del state["settings"]
    callback = tiny(kind)
    callback.load_state_dict(state)
    with our_warnings(KINDS[kind].__name__) as warned:
        callback._loop.warn_of_changes(callback._arguments)
    assert warned == []


class Own(ProbeCallback):
    group = "own"

    def __init__(self, power: float = 2.0, **arguments: Any) -> None:
        super().__init__(**{"n_probes": 4, **arguments})
        self.power = power

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        return {"own/power": self.power}


class Inherited(Own):
    """Has the arguments of its base."""


class Hidden(Own):
    """Settles an argument of its base."""

    def __init__(self, which: str = "a") -> None:
        super().__init__(power={"a": 1.0, "b": 2.0}[which], seed=3)


@pytest.mark.parametrize(
    ("before", "now", "names"),
    [
        (Own(), Own(power=3), ["power"]),
        (Own(), Own(power=2), []),
        (Own(seed=1), Own(seed=2), ["seed"]),
        (Inherited(power=1, n_probes=5), Inherited(power=2), ["n_probes", "power"]),
        (Hidden("a"), Hidden("b"), ["power", "which"]),
        (Hidden(), Hidden("a"), []),
    ],
)
def test_measures_of_a_users_own(before: Any, now: Any, names: list[str]) -> None:
    told = resumed(before, now)
    assert [name for name in ("n_probes", "power", "seed", "which") if f"`{name}` was" in "".join(told)] == names
    assert len(told) == bool(names)


def noise(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))


ALIKE = [
    (1, 1.0, True),
    (1, np.float32(1), True),
    (0.1, 0.10000001, False),
    (True, 1, False),
    ((0.1, 0.2), [0.1, 0.2], True),
    ([0.1, 0.2], [0.2, 0.1], False),
    (noise(0), noise(0), True),
    (noise(0), noise(1), False),
    (noise(0), noise(0).numpy(), True),
    ((noise(0), noise(1)), (noise(0), noise(2)), False),
    (torch.tensor(0.5), 0.5, True),
    (nn.Linear, nn.Linear, True),
    (nn.Linear, nn.Conv2d, False),
    (partial(call, inputs=1), partial(call, inputs=1), True),
    (partial(call, inputs=1), partial(call, inputs=2), False),
    (torch.float32, torch.float64, False),
    (float("nan"), float("nan"), True),
    (float("inf"), 1e300, False),
    ({"a": 1}, {"a": 2}, False),
    (object(), object(), True),
    (torch.relu, torch.tanh, False),
]


@pytest.mark.parametrize(("one", "other", "same"), ALIKE, ids=range(len(ALIKE)))
def test_text_of_values(one: Any, other: Any, same: bool) -> None:
    assert (in_text(one) == in_text(other)) == same
    assert " at 0x" not in in_text(one)
    assert len(in_text(one)) < 80


# In runs


def fit(folder: Path, callback: Any, data: Any = None, steps: int = 2, resume: Any = None) -> list[str]:
    trainer = make_trainer(folder, callback, max_steps=steps)
    torch.manual_seed(0)
    with our_warnings(type(callback).__name__) as warned:
        trainer.fit(Classifier(), loader(data), loader(points(seed=1)), ckpt_path=resume)
    trainer.save_checkpoint(folder / "end.ckpt")
    return [text for text in warned if "no logger" not in text]


CHANGES = [
    ("lc", "radius"),
    ("lc", "seed"),
    ("lc", "submodule"),
    ("robustness", "eps"),
    ("robustness", "bounds"),
    ("rank", "matrix"),
    ("rank", "n_probes"),
    ("partition", "window"),
]


@pytest.mark.parametrize(("kind", "name"), CHANGES)
def test_a_run_that_is_resumed_with_another_setting(kind: str, name: str, tmp_path: Path) -> None:
    before, now, again = (tiny(kind, every_n_train_steps=1, **{name: MEASURED[name][i]}) for i in (0, 1, 0))
    fit(tmp_path, before)
    (text,) = fit(tmp_path / "other", now, steps=3, resume=tmp_path / "end.ckpt")
    assert f"`{name}` was {in_text(MEASURED[name][0])} and is {in_text(MEASURED[name][1])}" in text
    assert now.history.steps == [0, 1, 2, 3]
    assert fit(tmp_path / "same", again, steps=3, resume=tmp_path / "end.ckpt") == []
    (text,) = fit(tmp_path / "back", tiny(kind, every_n_train_steps=1), steps=4, resume=tmp_path / "other" / "end.ckpt")
    assert f"`{name}` was {in_text(MEASURED[name][1])}" in text


def other_labels() -> TensorDataset:
    inputs, targets = points().tensors
    return TensorDataset(inputs, (targets + 1) % 3)


@pytest.mark.parametrize(
    ("kind", "reported"), [("lc", False), ("robustness", True), ("rank", True), ("partition", True)]
)
def test_other_labels_are_reported_where_they_count(kind: str, reported: bool, tmp_path: Path) -> None:
    fit(tmp_path, tiny(kind))
    told = fit(tmp_path, tiny(kind), other_labels(), 3, tmp_path / "end.ckpt")
    assert ["the labels of the train probes are not those of the checkpoint" in text for text in told] == (
        [True] * reported
    )
