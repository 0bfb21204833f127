"""Local complexity, robustness and feature rank of an MLP that learns handwritten digits, in minutes on two cores.

    python examples/digits_grokking.py                  # descent, ascent, region migration
    python examples/digits_grokking.py --init-scale 6   # the same network groks, and robustness comes late
    python examples/digits_grokking.py --slices         # with pictures and a film of its linear regions

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

import torch
from data import Digits, batches
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from lc_callback import (
    FeatureRankCallback,
    LocalComplexityCallback,
    PGDRobustnessCallback,
    SplinePartitionCallback,
)
from lc_callback.run.history import History
from lc_callback.run.timeline import run_sentences

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
    """500 for training, 700 for testing, as vectors of 64 pixels."""
    train, test = (TensorDataset(x.flatten(1), y) for x, y in (split.tensors for split in Digits().load()))
    return train, test


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


def main() -> None:
    parser = argparse.ArgumentParser(description="Local complexity of an MLP on handwritten digits")
    parser.add_argument("--init-scale", type=float, default=1.0, help="factor on all initial parameters")
    parser.add_argument("--steps", type=int, default=32_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slices", action="store_true", help="also draw the exact regions on two slices")
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    args = parser.parse_args()

    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches come from memory
    seed_everything(args.seed)
    torch.set_num_threads(1)  # a step is too small to share
    train, test = digits()
    name = f"digits_scale{args.init_scale:g}_seed{args.seed}"
    lc = LocalComplexityCallback(radius=0.05, per_layer=True, n_probes=500, test_probes=test)
    robust = PGDRobustnessCallback(eps=EPS, n_probes=700, test_probes=test)
    rank = FeatureRankCallback(test_probes=test)
    trainer = Trainer(
        max_steps=args.steps,
        callbacks=[lc, robust, rank, *([SplinePartitionCallback()] if args.slices else []), TQDMProgressBar(500)],
        logger=TensorBoardLogger(args.output, name=name),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(DigitsMLP(args.init_scale), batches(train, 200, args.steps))

    print(f"\n{table(lc.history, robust.history, rank.history)}\n")
    print(f"The picture: {Path(trainer.log_dir) / 'timeline.png'}")
    print(f"It shows: {run_sentences([callback.part() for callback in (lc, robust, rank)])[0]}")
    print(f"All curves, in the tab Dynamics of TensorBoard: tensorboard --logdir {args.output}")


if __name__ == "__main__":
    main()
