"""Small models, data, loggers and trainers that the tests of the callbacks share."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback

DIM, CLASSES = 6, 3

KINDS = {"lc": LocalComplexityCallback, "robustness": PGDRobustnessCallback, "rank": FeatureRankCallback}
NAMES = tuple(kind.__name__ for kind in KINDS.values())
TINY = {
    "lc": {"n_probes": 4, "n_directions": 3},
    "robustness": {"n_probes": 4, "eps": 0.1, "steps": 2},
    "rank": {"n_probes": 4},
}
# What stands before the first "/" of our keys.
_GROUPS = ("lc", "lc_ci99", "lc_layer", "clean_acc", "robust_acc", "robust_acc_raw", "rank", "effective_rank")
_GROUPS += (
    "lc_density",
    "lc_boundary",
    "lc_tv",
    "lc_radius",
    "lc_spread",
    "stable_rank",
    "tunnel_length",
    "weight_norm",
    "alignment",
    "linear_probe",
)


def tiny(kind: str, **arguments: Any) -> Any:
    """The callback of that kind with settings that cost little."""
    return KINDS[kind](**{**TINY[kind], **arguments})


def kinds_of(kind: str) -> list[str]:
    """The kinds that run: the one, or all for "together"."""
    return [*KINDS] if kind == "together" else [kind]


def is_ours(key: str) -> bool:
    return key.split("/")[0].removesuffix("_test") in _GROUPS


def timeless(rows: Any) -> list[dict[str, Any]]:
    """Rows without what the clock said."""
    return [{key: value for key, value in row.items() if not key.endswith("/seconds")} for row in rows]


class Calls(Sequence[Any]):
    """A list for spies in a network, which outlasts a measurement.

    All else that a network or its hooks remember is set back. What holds a lock is not: other threads may write to it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._items: list[Any] = []

    def append(self, item: Any) -> None:
        self._items.append(item)

    def clear(self) -> None:
        self._items.clear()

    def __getitem__(self, index: Any) -> Any:
        return self._items[index]

    def __len__(self) -> int:
        return len(self._items)


def points(n: int = 24, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, DIM, generator=generator)
    return TensorDataset(inputs, torch.randint(0, CLASSES, (n,), generator=generator))


def loader(dataset: Any = None, batch_size: int = 8, **kwargs: Any) -> DataLoader:
    return DataLoader(points() if dataset is None else dataset, batch_size=batch_size, **kwargs)


def mlp(width: int = 16) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(DIM, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


class Classifier(pl.LightningModule):
    """Any network, trained on pairs; counts its training steps."""

    def __init__(self, net: nn.Module | None = None, optimizer: Any = None) -> None:
        super().__init__()
        self.net = mlp() if net is None else net
        self.optimizer = optimizer or (lambda parameters: torch.optim.SGD(parameters, lr=0.1))
        self.steps_taken = 0

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def loss(self, batch: Any) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.cross_entropy(self(inputs), targets)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.steps_taken += 1
        return self.loss(batch)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(batch))

    def configure_optimizers(self) -> Any:
        return self.optimizer([p for p in self.parameters() if p.requires_grad])


class Tokens(Classifier):
    """Its embedding, in which it is measured, moves."""

    def __init__(self) -> None:
        super().__init__(nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))


class TwoOptimizers(Classifier):
    """Manual optimization: each batch is two optimizer steps."""

    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__(net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        self.steps_taken += 1
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))
            optimizer.step()

    def configure_optimizers(self) -> Any:
        layers = [layer for layer in self.net if isinstance(layer, nn.Linear)]
        return torch.optim.SGD(layers[0].parameters(), lr=0.1), torch.optim.Adam(layers[-1].parameters(), lr=0.01)


class RowLogger(Logger):
    """Remembers what it was asked to log."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int, dict[str, float]]] = []

    @property
    def name(self) -> str:
        return "rows"

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.calls.append((step, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Not of interest."""

    def steps(self, key: str = "lc/train") -> list[int]:
        return [step for step, metrics in self.calls if key in metrics]


def make_trainer(folder: Any, *callbacks: Any, **kwargs: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}
    plain = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "devices": 1}
    return pl.Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **plain, **kwargs})


@contextmanager
def our_warnings(*names: str) -> Iterator[list[str]]:
    """The warnings raised inside that begin with the name of a callback, by default of ours."""
    found: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield found
    found.extend(text for text in (str(warning.message) for warning in caught) if text.startswith(names or NAMES))
