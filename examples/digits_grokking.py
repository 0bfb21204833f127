"""Local complexity, robustness and feature rank of an MLP that learns handwritten digits, in minutes on two cores.

    python examples/digits_grokking.py                  # descent, ascent, region migration
    python examples/digits_grokking.py --init-scale 6   # the same network groks, and robustness comes late

The digits are the 1797 real 8x8 scans inside scikit-learn, scaled to [0, 1]: 500 for training, 700 for testing. The
recipe follows figure 2 of *Deep Networks Always Grok and Here is Why* (ICML 2024) at this size: a ReLU MLP
64-200-200-200-10, mean squared error on one-hot labels, AdamW with learning rate 1e-3 and weight decay 0.1, batches of
200 drawn with replacement.
"""

from __future__ import annotations

import argparse
import warnings
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

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.history import History

matplotlib.use("Agg")
from matplotlib import pyplot as plt

EPS = [0.03, 0.1]


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


def digits() -> tuple[TensorDataset, TensorDataset]:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    x, y = torch.tensor(images, dtype=torch.float32)[order] / 16, torch.tensor(labels)[order]
    return TensorDataset(x[:500], y[:500]), TensorDataset(x[500:1200], y[500:1200])


def batches(dataset: TensorDataset, batch_size: int, n_batches: int) -> DataLoader:
    """Random batches, indexed by lists: collating 200 single samples would take longer than the step."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=batch_size * n_batches)
    return DataLoader(dataset, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)


def table(lc: History, acc: History, rank: History) -> str:
    """A few rows, evenly spaced on the log axis."""
    shown = {"LC train": lc["lc/train"], "LC test": lc["lc/test"], "LC random": lc["lc/random"]}
    shown |= {"acc train": acc["clean_acc/train"], "acc test": acc["clean_acc/test"]}
    shown |= {f"PGD {eps}": acc[f"robust_acc/test_eps{eps}"] for eps in EPS}
    shown |= {
        f"rank {i + 1}": rank[key] for i, key in enumerate(key for key in rank.keys if key.startswith("rank/net"))
    }
    lines = ["   step  " + "  ".join(f"{name:>9}" for name in shown)]
    for i in sorted({*range(0, len(lc), max(1, len(lc) // 14)), len(lc) - 1}):
        lines.append(f"{lc.steps[i]:7d}  " + "  ".join(f"{values[i]:9.3f}" for values in shown.values()))
    return "\n".join(lines)


def figure(lc: History, acc: History, rank: History, title: str, path: Path) -> None:
    """Local complexity, accuracies and ranks over the steps, on a logarithmic axis; step 0 stands at its left end."""
    colours = {"train": "tab:green", "test": "tab:orange", "random": "tab:blue"}  # as in the paper
    fig, (top, middle, bottom) = plt.subplots(3, 1, figsize=(7, 8.5), sharex=True, layout="constrained")
    for split, colour in colours.items():
        mean, half = torch.tensor(lc[f"lc/{split}"]), torch.tensor(lc[f"lc_ci99/{split}"])
        top.plot(lc.steps, mean, color=colour, label=split)
        top.fill_between(lc.steps, mean - half, mean + half, color=colour, alpha=0.2, linewidth=0)
    for split in ("train", "test"):
        middle.plot(acc.steps, acc[f"clean_acc/{split}"], color=colours[split], label=split)
    for eps, colour in zip(EPS, ("tab:red", "tab:purple"), strict=True):
        middle.plot(acc.steps, acc[f"robust_acc/test_eps{eps}"], color=colour, label=f"test, PGD eps {eps}")
    layers = [key for key in rank.keys if key.startswith("rank/net")]
    for i, (key, colour) in enumerate(zip(layers, plt.colormaps["viridis"](torch.linspace(0.1, 0.8, 3)), strict=True)):
        bottom.plot(rank.steps, rank[key], color=colour, label=f"hidden layer {i + 1}")
    top.set(title=title, ylabel="local complexity (units)", ylim=(0, None))
    middle.set(ylabel="accuracy", ylim=(0, 1.02))
    bottom.set(xlabel="optimizer steps", ylabel="feature rank (of 200)", ylim=(0, 205))
    bottom.set_xscale("symlog", linthresh=1, linscale=0.3)
    bottom.set_xlim(0, lc.steps[-1])
    for axes, heading in ((top, "points"), (middle, "accuracy"), (bottom, "features of")):
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(title=heading, frameon=False, loc="upper left", bbox_to_anchor=(1, 1), alignment="left")
    fig.savefig(path, dpi=110)
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
    robust = PGDRobustnessCallback(eps=EPS, n_probes=700, test_probes=test)
    rank = FeatureRankCallback(test_probes=test)
    trainer = Trainer(
        max_steps=args.steps,
        callbacks=[lc, robust, rank, TQDMProgressBar(refresh_rate=500)],
        logger=TensorBoardLogger(args.output, name=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsMLP(args.init_scale), batches(train, 200, args.steps))

    path = Path(trainer.log_dir) / "digits.png"
    title = f"Digits MLP 64-200-200-200-10, initialisation x {args.init_scale:g}"
    histories = lc.history, robust.history, rank.history
    figure(*histories, title, path)
    print(f"\n{table(*histories)}\n\nfigure: {path}\ncurves: tensorboard --logdir {args.output}")


if __name__ == "__main__":
    main()
