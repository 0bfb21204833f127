"""A training with the callbacks, together or each alone, is bit for bit the training without."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from all_kinds import KINDS, ROWS, is_ours, tiny
from helpers import (
    CLASSES,
    DIM,
    Classifier,
    TwoOptimizers,
    kinds_of,
    loader,
    make_trainer,
    mlp,
    our_warnings,
    points,
)
from made_up import leave_out_pictures
from memories import NETWORKS, READS_TOKENS, VARIES, inputs_of, made
from torch import nn
from torch.nn.modules import module as torch_module
from torch.nn.utils import parametrizations
from torch.utils.data import Dataset, IterableDataset, TensorDataset

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn")]
EPOCHS, STEPS = 2, 6  # of three batches


def batch_norm() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, CLASSES))


def frozen_batch_norm() -> nn.Sequential:
    net = batch_norm()
    net[1].eval()
    return net


def frozen_weights() -> nn.Sequential:
    net = frozen_batch_norm()
    for parameter in net[:2].parameters():
        parameter.requires_grad_(False)
    return net


def dropout() -> nn.Sequential:
    return nn.Sequential(nn.Linear(DIM, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, CLASSES))


def compiled_in_place() -> nn.Module:
    net = dropout()
    net.compile(backend="eager")
    return net


def parametrized(how: Callable[[nn.Module], nn.Module]) -> nn.Sequential:
    return nn.Sequential(how(nn.Linear(DIM, 16)), nn.ReLU(), how(nn.Linear(16, CLASSES)))


def tied() -> nn.Sequential:
    net = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, DIM), nn.ReLU(), nn.Linear(DIM, CLASSES))
    net[2].weight = net[0].weight
    return net


def convolution() -> nn.Sequential:
    net = nn.Sequential(nn.Unflatten(1, (1, DIM)), nn.Conv1d(1, 4, 3, padding=1), nn.BatchNorm1d(4), nn.ReLU())
    return net.extend([nn.MaxPool1d(2), nn.Dropout1d(0.2), nn.Flatten(), nn.Linear(12, CLASSES)])


def hooked() -> nn.Sequential:
    net = mlp()
    net[0].register_forward_hook(lambda module, args, output: output * 1.5)
    net[2].register_forward_pre_hook(lambda module, args: (args[0] - 0.1,))
    return net


class Writer(nn.Module):
    """Writes to its buffers in every mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(DIM))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.seen = self.seen + x.detach().sum(0)
        return x + 0.01 * torch.tanh(self.seen)


class Noise(nn.Module):
    """Draws from every stream in every mode, its own included."""

    def __init__(self) -> None:
        super().__init__()
        self.own = np.random.default_rng(7)
        self.generator = torch.Generator().manual_seed(7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scalar = random.random() + np.random.rand() + self.own.random() + torch.rand(1, generator=self.generator)
        return x + 0.01 * scalar + 0.01 * torch.randn(DIM)


class Tripwire(nn.Module):
    """Raises in the middle of every measurement from the third training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.trained += self.training
        if not self.training and self.trained > 2:
            raise RuntimeError("tripped")
        return x


def tripwire() -> nn.Sequential:
    return nn.Sequential(Writer(), Noise(), *batch_norm()[:3], nn.Dropout(0.2), Tripwire(), nn.Linear(16, CLASSES))


class MidAttack(nn.Module):
    """Raises at the second gradient pass in a row, from the third training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.trained = self.in_a_row = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.trained += self.training
        self.in_a_row = self.in_a_row + 1 if torch.is_grad_enabled() and not self.training else 0
        if self.in_a_row == 2 and self.trained > 2:
            raise RuntimeError("tripped")
        return x


def mid_attack() -> nn.Sequential:
    return nn.Sequential(Writer(), Noise(), *mid_slopes())


def mid_slopes() -> nn.Sequential:
    return nn.Sequential(*frozen_weights()[:3], MidAttack(), nn.Linear(16, CLASSES))


class Merging(nn.Linear):
    """Merges its weights when ``train()`` and ``eval()`` are called, as LoRA layers do."""

    def train(self, mode: bool = True) -> Merging:
        with torch.no_grad():
            self.weight += 0.01
        return super().train(mode)


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(1, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(x[..., None])[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.embed(x[..., None])).mean(1))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.net = nn.Embedding(9, DIM), mlp()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.net(self.embed(tokens).mean(1))


class TokenPairs(Dataset):
    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return (torch.arange(4) + index) % 9, index % CLASSES

    def __len__(self) -> int:
        return 24


class Augmented(Dataset):
    """Noise from generators of its own, and from the global streams."""

    def __init__(self) -> None:
        self.pairs = points()
        self.numpy = np.random.default_rng(1)
        self.transforms = [{"generator": torch.Generator().manual_seed(2)}, random.Random(3), np.random.RandomState(4)]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = self.pairs[index]
        first, second, third = self.transforms
        noise = self.numpy.normal() + torch.randn(DIM, **first) + second.random() + third.rand() + np.random.rand()
        return x + 0.1 * (noise + random.random() + torch.randn(DIM)).float(), y

    def __len__(self) -> int:
        return len(self.pairs)


class Stream(IterableDataset):
    """Each sample can be taken once in an epoch."""

    def __init__(self) -> None:
        self.pairs, self.taken, self.own = points(), 0, np.random.default_rng(5)

    def __iter__(self) -> Any:
        for _ in range(24):
            self.taken += 1
            x, y = self.pairs[self.taken % 24]
            yield x + torch.from_numpy(self.own.normal(size=DIM)).float(), y


class Logging(Classifier):
    """Logs from its forward and has a learning-rate schedule."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.log("mean", x.mean(), on_epoch=True)
        return super().forward(x)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.7)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Regression(Classifier):
    """Targets that are no classes, and one output for each, so no logits."""

    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch[0]), batch[1])


def numbers() -> TensorDataset:
    x = points()[:][0]
    return TensorDataset(x, x.sum(1, keepdim=True))


SIGN = {
    "forward_fn": lambda module, x: torch.cat([-module(x), module(x)], 1),
    "target_fn": lambda batch: (batch[1][:, 0] > 0).long(),
}


YES = {"target_fn": SIGN["target_fn"]}


class Reconstruction(Classifier):
    def loss(self, batch: Any) -> torch.Tensor:
        return nn.functional.mse_loss(self(batch), batch)


def inputs_only() -> Any:
    return points()[:][0]


LARGEST = {"target_fn": lambda batch: batch.argmax(1)}


class Averaging(pl.Callback):
    """An exponential moving average of the weights, put in place of them for validation."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.average = [p.detach().clone() for p in pl_module.parameters()]

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for average, parameter in zip(self.average, pl_module.parameters(), strict=True):
            average.lerp_(parameter.detach(), 0.3)

    def _swap(self, trainer: Any, pl_module: Any) -> None:
        for i, parameter in enumerate(pl_module.parameters()):
            self.average[i], parameter.data = parameter.data.clone(), self.average[i]

    on_validation_start = on_validation_end = _swap


def tokens_for(name: str) -> TensorDataset:
    return TensorDataset(inputs_of(name, 24), torch.arange(24) % CLASSES)


@dataclass
class Setup:
    net: Callable[[], nn.Module] = mlp
    module: Callable[..., Classifier] = Classifier
    optimizer: Callable[..., Any] | None = None
    data: Callable[[], Any] = points
    loader: dict[str, Any] = field(default_factory=dict)
    validate: bool = False
    trainer: dict[str, Any] = field(default_factory=dict)
    extra: Callable[[], pl.Callback] = pl.Callback
    callback: dict[str, Any] = field(default_factory=dict)  # all of ours get this
    lc: dict[str, Any] = field(default_factory=dict)
    robustness: dict[str, Any] = field(default_factory=dict)
    rank: dict[str, Any] = field(default_factory=dict)
    partition: dict[str, Any] = field(default_factory=dict)
    collapse: dict[str, Any] = field(default_factory=dict)
    lost: dict[str, int] = field(default_factory=dict)  # rows, by kind
    epochs: int = EPOCHS
    drawn: bool = True  # a slice of it can be

    def lit(self) -> Classifier:
        return self.module(self.net(), self.optimizer) if self.optimizer else self.module(self.net())

    def measuring(self, kind: str) -> dict[str, Any]:
        """One callback of each kind that runs, which measures every step, or every second."""
        kinds = [k for k in KINDS if self.drawn or k != "partition"] if kind == "all" else kinds_of(kind)
        return {
            k: tiny(k, **{**self.callback, **getattr(self, k, {})}, every_n_train_steps=ROWS[k].between_rows)
            for k in kinds
        }


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01)


SOME_RIGHT = {"n_probes": 32}  # where no point is right there is no attack

SETUPS = {
    "sgd": Setup(),
    "sgd_momentum": Setup(optimizer=lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True)),
    "adamw": Setup(optimizer=adamw),
    "lbfgs": Setup(optimizer=lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3)),
    "dropout": Setup(net=dropout, optimizer=adamw),
    "batch_norm": Setup(net=batch_norm),
    "batch_norm_frozen": Setup(net=frozen_batch_norm),
    "weights_frozen": Setup(net=frozen_weights),
    "convolution": Setup(net=convolution, lc={"max_pool": True, "per_layer": True}, robustness={"raw": True}),
    "accumulate": Setup(net=batch_norm, trainer={"accumulate_grad_batches": 3}, loader={"batch_size": 2}),
    "accumulate_adamw": Setup(net=dropout, optimizer=adamw, trainer={"accumulate_grad_batches": 2}),
    "shuffle": Setup(loader={"shuffle": True}),
    "shuffle_dropout": Setup(net=dropout, loader={"shuffle": True}, validate=True, rank={"linear_probe": True}),
    "workers": Setup(data=Augmented, net=dropout, loader={"shuffle": True, "num_workers": 2}),
    "workers_persistent": Setup(loader={"shuffle": True, "num_workers": 2, "persistent_workers": True}),
    "bf16_mixed": Setup(net=batch_norm, trainer={"precision": "bf16-mixed"}),
    "bf16_true": Setup(net=dropout, trainer={"precision": "bf16-true"}),
    "float64_true": Setup(trainer={"precision": "64-true"}),
    "clip_norm": Setup(trainer={"gradient_clip_val": 0.01}, optimizer=adamw),
    "clip_value": Setup(trainer={"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}),
    "two_optimizers": Setup(net=dropout, module=TwoOptimizers),
    "raises_midway": Setup(net=tripwire, lost=dict.fromkeys(KINDS, 4)),
    "raises_in_mid_attack": Setup(net=mid_attack, robustness=SOME_RIGHT, lost={"robustness": 4}),
    "raises_in_mid_slopes": Setup(net=mid_slopes, robustness=SOME_RIGHT, lost={"robustness": 4, "partition": 2}),
    "augmented": Setup(data=Augmented, loader={"shuffle": True}),
    "augmented_validation": Setup(data=Augmented, validate=True),
    "stream": Setup(data=Stream),
    "tokens": Setup(net=Tokens, data=TokenPairs),
    "writes_buffers": Setup(net=lambda: nn.Sequential(Writer(), *mlp())),
    "draws_when_measured": Setup(net=lambda: nn.Sequential(Noise(), *dropout())),
    "merges_on_train": Setup(net=lambda: nn.Sequential(Merging(DIM, 16), nn.ReLU(), nn.Linear(16, CLASSES))),
    "compiled": Setup(net=lambda: torch.compile(batch_norm(), backend="eager")),
    "compiled_in_place": Setup(net=compiled_in_place),
    "weight_norm": Setup(net=lambda: parametrized(parametrizations.weight_norm)),
    "spectral_norm": Setup(net=lambda: parametrized(parametrizations.spectral_norm)),
    "tied_weights": Setup(net=tied),
    "recurrent": Setup(net=Recurrent),
    "attention": Setup(net=Attention, optimizer=adamw),
    "user_hooks": Setup(net=hooked),
    "logs_and_schedules": Setup(net=dropout, module=Logging, validate=True),
    "weight_average": Setup(net=batch_norm, extra=Averaging, validate=True),
    "stochastic_average": Setup(extra=lambda: pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1)),
    "deterministic": Setup(net=dropout, trainer={"deterministic": True}, loader={"shuffle": True}),
    "several_radii": Setup(  # one in float64
        net=dropout,
        lc={"radius": [1e-7, 0.5], "chunk_size": 7},
        robustness={"eps": [0.0, 1e-7, 0.5], "chunk_size": 3},
        rank={"max_width": 5, "chunk_size": 3},
        collapse={"chunk_size": 3},
        partition={"chunk_size": 7},
    ),
    "own_method": Setup(
        net=dropout,
        callback={"forward_fn": "forward"},
        lc={"layers": ["net.0"], "at": "net.0"},
        robustness={"at": "net.0"},
        rank={"layers": ["net.0"]},
        collapse={"layer": "net.0"},
        partition={"at": "net.0"},
    ),
    "no_classes": Setup(
        net=lambda: mlp()[:4].append(nn.Linear(16, 1)), module=Regression, data=numbers, robustness=SIGN, collapse=YES
    ),
    "no_targets": Setup(
        net=lambda: mlp()[:4].append(nn.Linear(16, DIM)),
        module=Reconstruction,
        data=inputs_only,
        robustness=LARGEST,
        collapse=LARGEST,
    ),
}
# Attacks of torchattacks that call `backward()`, or reseed the global streams.
ATTACKS = {"FAB": {"steps": 2}, "CW": {"steps": 5}, "DeepFool": {"steps": 5}, "APGD": {}, "Square": {"n_queries": 9}}
for attack, budget in ATTACKS.items():
    SETUPS[attack] = Setup(
        net=frozen_weights, loader={"shuffle": True}, robustness={"attack": attack, "attack_args": budget}
    )


class Remembering(Classifier):
    """Writes to attributes of its own in its forward, which count in training."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.calls, self.norms, self.last = 0, [0.0], {"mean": torch.zeros(DIM)}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        self.norms.append(x.norm().item())
        self.last["mean"] += x.detach().mean(0).to(torch.float32)
        self.last["output"] = super().forward(x)
        value = self.calls + sum(self.norms) + self.last["mean"].sum()
        return self.last["output"] * (1 + 0.1 * torch.sin(value)) if self.training else self.last["output"]


class Recording(pl.Callback):
    """Keeps activations, through a hook that is a method of its own."""

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        self.kept: list[torch.Tensor] = []
        pl_module.net[0].register_forward_hook(self.keep)

    def keep(self, module: nn.Module, args: Any, output: torch.Tensor) -> Any:
        self.kept.append(output.detach().mean())
        return output + sum(self.kept) if module.training else output


SETUPS["module_with_a_memory"] = Setup(module=Remembering)
SETUPS["callback_with_a_hook"] = Setup(extra=Recording)
SETUPS["validates_with_a_memory"] = Setup(module=Remembering, validate=True, rank={"linear_probe": True})
for table in ("a_table", "a_bag"):
    SETUPS[table] = Setup(net=functools.partial(made, table), data=functools.partial(tokens_for, table))


def all_four(name: str) -> Setup:
    """The set-up of a network that writes to what it keeps."""
    data = functools.partial(tokens_for, name) if name in READS_TOKENS else points
    return Setup(net=functools.partial(made, name), data=data, epochs=1, drawn=name not in VARIES)


ALL_FOUR = [name for name in NETWORKS if name not in SETUPS]
SETUPS |= {name: all_four(name) for name in ALL_FOUR}

NOT_AFFINE = "something else in it is nonlinear"
# Networks that are not piecewise affine, or that no two forward passes find the same.
REFUSED = {
    "raises_midway": NOT_AFFINE,
    "raises_in_mid_attack": NOT_AFFINE,
    "writes_buffers": NOT_AFFINE,
    "draws_when_measured": NOT_AFFINE,
    "recurrent": "'GRU' at 'net.cell' is not piecewise affine",
    "attention": NOT_AFFINE,
}
RUNS = [(name, kind) for kind in [*KINDS, "together"] for name in SETUPS if name not in ALL_FOUR]
RUNS = [run for run in RUNS if run[1] != "partition" or run[0] not in {*REFUSED, *ATTACKS}]
RUNS += [(name, "all") for name in ALL_FOUR]
# Each callback alone takes most of the time, and shows which one it is if all together leave a trace. Of all together
# each third is quick, and of the networks with a memory, which are in the order of what they write to, each sixth;
# `test_snapshot.py` has them all.
QUICK = [run for run in RUNS if run[1] == "together"][::3] + [(name, "all") for name in ALL_FOUR[::6]]
RUNS = [run if run in QUICK else pytest.param(*run, marks=pytest.mark.slow) for run in RUNS]
# Most of a short run goes into the picture of its timeline. Drawing is the same in all set-ups: each fourth draws.
PICTURED = [name for name in SETUPS if name not in ALL_FOUR][::4]


def plain(value: Any) -> Any:
    """Tensors and arrays as bytes, so that ``==`` compares every bit and every NaN."""
    if isinstance(value, torch.Tensor):
        value = value.to_dense() if value.is_sparse else value
        raw = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        return str(value.dtype), tuple(value.shape), raw
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, dict):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value if isinstance(value, (int, float, str, bool)) else type(value).__name__


class Watch(pl.Callback):
    """What can be seen of a training after every batch, later than the callback under test."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.look(trainer, pl_module, None)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.look(trainer, pl_module, outputs)

    def look(self, trainer: Any, pl_module: Any, outputs: Any) -> None:
        attributes = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
        modules = dict(pl_module.named_modules())
        seen = {
            "step": trainer.global_step,
            "outputs": outputs,
            "weights_and_buffers": pl_module.state_dict(),
            "gradients": {name: p.grad for name, p in pl_module.named_parameters()},
            "frozen": {name: p.requires_grad for name, p in pl_module.named_parameters()},
            "training": {name: module.training for name, module in modules.items()},
            "attributes": {name: sorted(vars(module)) for name, module in modules.items()},
            "hooks": {name: [len(vars(module)[a]) for a in attributes] for name, module in modules.items()},
            "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state(),
            "grad_mode": torch.is_grad_enabled(),
            "logged": {k: v for k, v in trainer.logged_metrics.items() if not is_ours(k)},
        }
        self.seen.append(plain(seen))


def train(setup: Setup, folder: Any, *measuring: pl.Callback) -> list[dict[str, Any]]:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    watch = Watch()
    trainer = make_trainer(folder, setup.extra(), *measuring, watch, max_epochs=setup.epochs, **setup.trainer)
    validation = loader() if setup.validate else None
    trainer.fit(setup.lit(), loader(setup.data(), **setup.loader), validation)
    return watch.seen


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What was seen of the training without us, by set-up; run once."""
    return functools.cache(lambda name: train(SETUPS[name], tmp_path_factory.mktemp("alone")))


@pytest.mark.parametrize(("name", "kind"), RUNS)
def test_training_is_bit_identical(
    name: str, kind: str, alone: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    setup = SETUPS[name]
    if name in ALL_FOUR or (kind == "together" and name not in PICTURED):
        leave_out_pictures(monkeypatch)
    callbacks = setup.measuring(kind)
    measured = train(setup, tmp_path, *callbacks.values())
    assert len(measured) == len(alone(name)) > STEPS * setup.epochs / EPOCHS
    steps = sorted({seen["step"] for seen in measured})
    for one, callback in callbacks.items():  # else nothing was shown
        due = [step for step in steps if step % ROWS[one].between_rows == 0]
        assert callback.history.steps == due[: len(due) - setup.lost.get(one, 0)]
    for step, (one, other) in enumerate(zip(alone(name), measured, strict=True)):
        assert [f"{key} at look {step}" for key in one if one[key] != other[key]] == []


class Refusal(Watch):
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.look(trainer, pl_module, None)


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_leaves_no_trace(name: str, tmp_path: Any) -> None:
    setup, watch = SETUPS[name], Refusal()
    trainer = make_trainer(tmp_path, watch, *setup.measuring("partition").values(), max_epochs=1)
    with pytest.raises(ValueError, match=REFUSED[name]):
        trainer.fit(setup.lit(), loader(setup.data()))
    before, after = watch.seen
    assert [key for key in before if before[key] != after[key]] == []


def test_the_matrix_is_large() -> None:
    assert len(SETUPS) >= 150


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_measured_at_every_step(kind: str, tmp_path: Any) -> None:
    callback = tiny(kind, every_n_train_steps=1)
    train(SETUPS["dropout"], tmp_path, callback)
    assert callback.history.steps == list(range(STEPS + 1))


@dataclass
class Raised:
    """A training in which measurements raise: its callbacks, their warnings, and how many global hooks there were."""

    setup: Setup
    callbacks: dict[str, Any]
    warned: list[str]
    before: dict[str, int]
    after: dict[str, int]


def global_hooks() -> dict[str, int]:
    names = [name for name in vars(torch_module) if name.startswith("_global_") and name.endswith("_hooks")]
    return {name: len(getattr(torch_module, name)) for name in names}


@pytest.fixture(scope="module", params=["raises_midway", "raises_in_mid_attack"])
def raised(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Raised:
    setup, before = SETUPS[request.param], global_hooks()
    callbacks = setup.measuring("together")
    with our_warnings() as warned:
        train(setup, tmp_path_factory.mktemp("raised"), *callbacks.values())
    return Raised(setup, callbacks, warned, before, global_hooks())


def test_an_exception_in_a_measurement_costs_rows_of_its_own_callback(raised: Raised) -> None:
    for kind, callback in raised.callbacks.items():
        lost = raised.setup.lost.get(kind, 0)
        assert callback.history.steps == list(range(STEPS + 1 - lost))
        assert sum("tripped" in text and text.startswith(KINDS[kind].__name__) for text in raised.warned) == lost


def test_no_hooks_remain_anywhere(raised: Raised) -> None:
    assert len(raised.before) >= 4
    assert raised.after == raised.before


def test_the_comparison_sees_a_disturbance(tmp_path: Any) -> None:
    class Draw(pl.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            torch.rand(1)

    alone, disturbed = train(SETUPS["dropout"], tmp_path), train(SETUPS["dropout"], tmp_path, Draw())
    assert [key for key in alone[1] if alone[1][key] != disturbed[1][key]] == ["torch"]
    assert alone[-1]["weights_and_buffers"] != disturbed[-1]["weights_and_buffers"]
