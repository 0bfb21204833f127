"""The measures in a training loop of one's own, or with Lightning Fabric: as metrics of torchmetrics.

    python examples/without_lightning.py plain     # nothing but torch
    python examples/without_lightning.py fabric    # the same loop, on as many processes as Fabric starts

At steps that are equally far apart on a logarithmic axis each metric sees test points batch by batch. In several
processes each sees its own share, and ``compute()`` is over all of them.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from data import Digits
from lightning.fabric import Fabric
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MetricCollection

from lc_callback.metrics import FeatureRank, LocalComplexity, NeuralCollapse, RobustAccuracy
from lc_callback.run.schedule import is_log_step


def metrics() -> MetricCollection:
    """One of each measure, at a radius and a budget that suit the digits."""
    return MetricCollection(
        {
            "lc": LocalComplexity(radius=0.02, method="linear"),
            "robust": RobustAccuracy(eps=[0.03, 0.1], bounds=(0, 1)),
            "rank": FeatureRank(),
            "collapse": NeuralCollapse(),
        }
    )


def network() -> nn.Module:
    """Two hidden layers."""
    return nn.Sequential(nn.Linear(64, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))


def measured(model: nn.Module, collection: MetricCollection, loader: Any) -> dict[str, float]:
    """All values over the points of the loader."""
    collection.reset()
    for inputs, targets in loader:
        collection.update(model, inputs, targets)
    return {name: round(float(value), 4) for name, value in collection.compute().items()}


def train(model: nn.Module, optimizer: Any, loaders: tuple[Any, Any], steps: int, fabric: Fabric | None = None) -> list:
    """Rows of the metrics at the test points."""
    collection = metrics() if fabric is None else metrics().to(fabric.device)
    own = model if fabric is None else model.module  # Fabric wraps it for the training only
    rows, step, (train_loader, test_loader) = [], 0, loaders
    while step <= steps:
        for inputs, targets in train_loader:
            if is_log_step(step) or step == steps:
                rows.append({"step": step} | measured(own, collection, test_loader))
                if fabric is None or fabric.is_global_zero:
                    print(rows[-1], flush=True)
            step += 1
            if step > steps:
                break
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            if fabric is None:
                loss.backward()
            else:
                fabric.backward(loss)
            optimizer.step()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("loop", choices=["plain", "fabric"])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--devices", type=int, default=1, help="processes of Fabric")
    args = parser.parse_args()
    torch.manual_seed(0)
    sets = [TensorDataset(x.flatten(1), y) for x, y in (split.tensors for split in Digits().load())]
    loaders = DataLoader(sets[0], 100, shuffle=True), DataLoader(sets[1], 100)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if args.loop == "plain":
        train(model, optimizer, loaders, args.steps)
        return
    fabric = Fabric(accelerator="cpu", devices=args.devices)
    fabric.launch()
    model, optimizer = fabric.setup(model, optimizer)
    train(model, optimizer, fabric.setup_dataloaders(*loaders), args.steps, fabric)


if __name__ == "__main__":
    main()
