"""Inference tensors that a model keeps: a measurement works on copies, and gives back the originals."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from helpers import our_warnings
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import PGDRobustnessCallback
from lc_callback.functional import local_complexity, robust_accuracy
from lc_callback.isolation import untouched

Pair = namedtuple("Pair", "means count")


@dataclass
class Memory:
    means: Tensor
    inner: Any = None


class Prototypes(LightningModule):
    """Compares with class means that an evaluation has left somewhere."""

    def __init__(self, keep: Any, look: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.keep, self.look = keep, look
        keep(self, torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(self.net(x), self.look(self))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        z = self.net(batch[0])
        self.keep(self, torch.stack([z[batch[1] == c].mean(0) for c in range(3)]))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        pass


def deep(model: Any, means: Tensor) -> None:
    model.state = Memory(torch.zeros(1), {"of": [Memory(means)]})


PLACES: dict[str, tuple[Any, Any]] = {
    "attribute": (lambda m, v: setattr(m, "means", v), lambda m: m.means),
    "list": (lambda m, v: setattr(m, "means", [0, v]), lambda m: m.means[1]),
    "dict in a dict": (lambda m, v: setattr(m, "means", {"a": {"b": v}}), lambda m: m.means["a"]["b"]),
    "named tuple": (lambda m, v: setattr(m, "means", Pair(v, 3)), lambda m: m.means.means),
    "own object": (lambda m, v: setattr(m, "means", Memory(v)), lambda m: m.means.means),
    "object in a list in a dict": (deep, lambda m: m.state.inner["of"][0].means),
    "submodule": (lambda m, v: setattr(m.net[0], "means", v), lambda m: m.net[0].means),
    "parameter": (lambda m, v: setattr(m.net, "means", nn.Parameter(v)), lambda m: m.net.means),
    "buffer": (lambda m, v: m.net.register_buffer("means", v), lambda m: m.net.means),
}


@pytest.mark.parametrize("inference_mode", [True, False])
@pytest.mark.parametrize("place", PLACES)
def test_a_test_run_attacks_a_model_with_a_memory(place: str, inference_mode: bool, tmp_path: Any) -> None:
    model = Prototypes(*PLACES[place])
    x = torch.rand(60, 8)
    y = (3 * x[:, 0]).long()
    data = DataLoader(TensorDataset(x, y), 60)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        inference_mode=inference_mode, logger=False, accelerator="cpu", default_root_dir=tmp_path, **quiet
    )
    trainer.validate(model, data, verbose=False)
    kept = model.look(model)
    assert kept.is_inference() == inference_mode
    trainer.callbacks.append(PGDRobustnessCallback(eps=0.02, n_probes=60))
    with our_warnings("PGDRobustnessCallback") as warned:
        trainer.test(model, data, verbose=False)
    assert not [text for text in warned if "failed" in text]
    assert model.look(model) is kept
    model.keep(model, kept.clone().detach())
    expected = robust_accuracy(model, x, y, eps=0.02).robust_acc[0.02]
    assert float(trainer.callback_metrics["robust_acc/test_eps0.02"]) == pytest.approx(expected)


def test_what_is_shared_stays_shared_and_comes_back() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with torch.inference_mode():
        means = torch.zeros(2)
    net.means, net[0].all = means, [means]
    originals = net.means, net[0].all
    with untouched(net):
        assert not net.means.is_inference()
        assert net.means is net[0].all[0]
        net.means.add_(1)
    assert (net.means, net[0].all) == originals
    assert net[0].all[0] is means
    assert float(means.sum()) == 0


def test_a_forward_may_write_to_them() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(2, 8), nn.ReLU())
            with torch.inference_mode():
                self.seen = torch.zeros(1)

        def forward(self, x: Tensor) -> Tensor:
            self.seen += len(x)
            return self.net(x)

    model = Counts()
    assert local_complexity(model, torch.randn(4, 2), radius=9.0, n_directions=2).mean > 0
    assert float(model.seen) == 0
