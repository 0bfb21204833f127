"""The code of docs/metrics.md runs as it stands."""

from __future__ import annotations

import importlib.util
import math
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lc_callback import metrics
from lc_callback.metrics import FeatureRank, LocalComplexity, NeuralCollapse, RobustAccuracy

PAGE = (Path(__file__).parents[1] / "docs" / "metrics.md").read_text()
PLAIN, TRANSFORMERS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


class TokenClassifier(nn.Module):
    """Called and returning as those of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.body = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 8), nn.ReLU())
        self.classifier = nn.Linear(8, 3)

    @property
    def device(self) -> torch.device:
        return self.classifier.weight.device

    def forward(self, input_ids: Any = None, attention_mask: Any = None, labels: Any = None) -> Any:
        x = (self.embedding(input_ids) * attention_mask[..., None]).mean(1)
        logits = self.classifier(self.body(x))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SimpleNamespace(logits=logits, loss=loss)


class StandIn:
    """Calls its callbacks as the Trainer of transformers does, and logs as it does."""

    def __init__(self, model: nn.Module, loader: Any) -> None:
        self.model, self.loader = model, loader
        self.state = SimpleNamespace(global_step=0, log_history=[])
        self.callbacks: list[Any] = []

    def add_callback(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def log(self, logs: dict[str, float]) -> None:
        self.state.log_history.append({**logs, "step": self.state.global_step})

    def call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(SimpleNamespace(), self.state, SimpleNamespace(), model=self.model, optimizer=None)

    def train(self) -> None:
        optimizer = torch.optim.Adam(self.model.parameters(), 0.01)
        self.call("on_train_begin")
        for batch in self.loader:
            optimizer.zero_grad()
            self.model(**batch).loss.backward()
            optimizer.step()
            self.state.global_step += 1
            self.call("on_step_end")


def batches(n: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (n, 20, 4), generator=generator)
    return [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": torch.arange(20) % 3} for t in tokens]


@pytest.fixture
def transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in, if it is not installed."""
    if importlib.util.find_spec("transformers") is None:
        module = ModuleType("transformers")
        module.TrainerCallback = type("TrainerCallback", (), {})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "transformers", module)


@pytest.mark.usefixtures("transformers")
def test_the_callback_for_the_trainer_of_transformers() -> None:
    torch.manual_seed(0)
    space: dict[str, Any] = {}
    exec(TRANSFORMERS, space)
    collection = MetricCollection(
        {"lc": LocalComplexity(0.1), "robust": RobustAccuracy(0.2), "rank": FeatureRank(), "nc": NeuralCollapse()}
    )
    trainer = StandIn(TokenClassifier(), batches(12))
    trainer.add_callback(space["GeometryCallback"](trainer, collection, batches(2)))
    trainer.train()
    rows = trainer.state.log_history
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4, 5, 6, 8, 10]
    assert {"geometry/lc", "geometry/clean_acc", "geometry/robust_acc_eps0.2", "geometry/nc1"} < {*rows[0]}
    assert all(math.isfinite(value) for row in rows for value in row.values())
    assert rows[0]["geometry/lc"] != rows[-1]["geometry/lc"]
    assert trainer.model.training


def test_the_plain_loop(capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    loader = DataLoader(TensorDataset(torch.rand(40, 4), torch.arange(40) % 3), 10)
    exec(PLAIN, {"model": model, "train_loader": loader, "test_loader": loader})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["0", "1", "2", "3"]
    assert all("'lc'" in line and "'robust_acc_eps0.1'" in line for line in lines)


def test_the_table_names_every_metric() -> None:
    assert {*re.findall(r"^\| `(\w+)\(", PAGE, re.M)} == {*metrics.__all__}
