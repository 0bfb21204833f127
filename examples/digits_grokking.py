"""Local complexity of an MLP that learns handwritten digits: its three phases, in about two minutes on two cores.

    python examples/digits_grokking.py                  # descent, ascent, region migration
    python examples/digits_grokking.py --init-scale 6   # the same network groks

The digits are the 1797 real 8x8 scans inside scikit-learn, scaled to [0, 1]: 500 for training, 700 for testing. The
recipe follows figure 2 of *Deep Networks Always Grok and Here is Why* (ICML 2024) at this size: a ReLU MLP
64-200-200-200-10, mean squared error on one-hot labels, AdamW with learning rate 1e-3 and weight decay 0.1, batches of
200 drawn with replacement.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import matplotlib
import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from lc_callback import LocalComplexityCallback
from lc_callback.callbacks import Network, ProbeCallback
from lc_callback.history import History
from lc_callback.probes import Probes

matplotlib.use("Agg")
from matplotlib import pyplot as plt


class DigitsMLP(LightningModule):
    def __init__(self, init_scale: float = 1.0) -> None:
        super().__init__()
        widths = [64, 200, 200, 200, 10]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
        self.net = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(init_scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        return F.mse_loss(self(x), F.one_hot(y, 10).float())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.1, fused=True)


class AccuracyCallback(ProbeCallback):
    """Accuracy at the same points and steps: all that a further measure needs is ``measure``."""

    group = "acc"

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        return {
            f"acc/{split}": (network.module(points.inputs).argmax(1) == points.targets).float().mean().item()
            for split, points in probes.items()
        }


def digits() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return TensorDataset(x[:500], y[:500]), TensorDataset(x[500:1200], y[500:1200])


def batches(dataset: TensorDataset, batch_size: int, n_batches: int) -> DataLoader:
    """Random batches, indexed by lists: collating 200 single samples would take longer than the step."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=batch_size * n_batches)
    return DataLoader(dataset, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)


def table(lc: History, acc: History) -> str:
    """A few rows, evenly spaced on the log axis."""
    lines = [f"{'step':>7}  {'LC train':>8}  {'LC test':>8}  {'LC random':>9}  {'acc train':>9}  {'acc test':>8}"]
    shown = range(0, len(lc), max(1, len(lc) // 14))
    for i in sorted({*shown, len(lc) - 1}):
        columns = (lc["lc/train"][i], lc["lc/test"][i], lc["lc/random"][i], acc["acc/train"][i], acc["acc/test"][i])
        lines.append("{:7d}  {:8.2f}  {:8.2f}  {:9.2f}  {:9.3f}  {:8.3f}".format(lc.steps[i], *columns))
    return "\n".join(lines)


def figure(lc: History, acc: History, title: str, path: Path) -> None:
    """LC and accuracy over the steps, on a logarithmic axis; step 0 stands at its left end."""
    colours = {"train": "tab:green", "test": "tab:orange", "random": "tab:blue"}  # as in the paper
    fig, (top, bottom) = plt.subplots(2, 1, figsize=(7, 6), sharex=True, height_ratios=(2, 1), layout="constrained")
    for split, colour in colours.items():
        mean, half = torch.tensor(lc[f"lc/{split}"]), torch.tensor(lc[f"lc_ci99/{split}"])
        top.plot(lc.steps, mean, color=colour, label=split)
        top.fill_between(lc.steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    for split in ("train", "test"):
        bottom.plot(acc.steps, acc[f"acc/{split}"], color=colours[split])
    top.set(title=title, ylabel="local complexity (units)", ylim=(0, None))
    top.legend(title="points", frameon=False)
    bottom.set(xlabel="optimizer steps", ylabel="accuracy", ylim=(0, 1.02))
    bottom.set_xscale("symlog", linthresh=1, linscale=0.3)
    bottom.set_xlim(0, lc.steps[-1])
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description="Local complexity of an MLP on handwritten digits")
    parser.add_argument("--init-scale", type=float, default=1.0, help="factor on all initial parameters")
    parser.add_argument("--steps", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    args = parser.parse_args()

    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches come from memory
    seed_everything(args.seed)
    torch.set_num_threads(1)  # a step is too small to share
    train, test = digits()
    name = f"digits_scale{args.init_scale:g}_seed{args.seed}"
    lc = LocalComplexityCallback(radius=0.05, n_probes=500, test_probes=test)
    acc = AccuracyCallback(n_probes=700, random_probes=False, test_probes=test)
    trainer = Trainer(
        max_steps=args.steps,
        callbacks=[lc, acc, TQDMProgressBar(refresh_rate=500)],
        logger=TensorBoardLogger(args.output, name=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsMLP(args.init_scale), batches(train, 200, args.steps))

    path = Path(trainer.log_dir) / "local_complexity.png"
    title = f"Digits MLP 64-200-200-200-10, initialisation x {args.init_scale:g}"
    figure(lc.history, acc.history, title, path)
    print(f"\n{table(lc.history, acc.history)}\n\nfigure: {path}\ncurves: tensorboard --logdir {args.output}")


if __name__ == "__main__":
    main()
