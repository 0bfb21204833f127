"""Three ordinary networks with the three callbacks as they are, without any argument: what a new user sees first.

    python examples/no_arguments.py digits                # an MLP on handwritten digits, 32,000 steps
    python examples/no_arguments.py sums                  # sums modulo 59 from an embedding, 20,000 steps: it groks
    python examples/no_arguments.py cnn --root ../data    # a CNN with batch normalisation on 2,000 images of MNIST

Each takes minutes on one core, ends with the sentences of the run, and leaves ``timeline.png`` in its log directory.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from data import MNIST, Digits, batches
from digits_grokking import DigitsMLP
from lightning.pytorch import LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback

Sets = tuple[TensorDataset, TensorDataset]


class ModularSums(LightningModule):
    """``(a, b)`` to ``a + b mod 59``: an embedding and one hidden layer, with strong weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(59, 64), nn.Flatten(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 59))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.net(pairs)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1.0)


class MnistCNN(LightningModule):
    """Two convolutions with batch normalisation, dropout, and a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(32 * 49, 64), nn.ReLU(), nn.Linear(64, 10)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.net(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def digits(root: str) -> Sets:
    """500 for training, 700 for testing, as vectors of 64 pixels."""
    train, test = (TensorDataset(x.flatten(1), y) for x, y in (split.tensors for split in Digits().load()))
    return train, test


def sums(root: str) -> Sets:
    """All pairs, two fifths of them for training."""
    pairs = torch.cartesian_prod(torch.arange(59), torch.arange(59))
    pairs = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))]
    train, test = (TensorDataset(some, some.sum(1) % 59) for some in (pairs[:1400], pairs[1400:]))
    return train, test


def mnist(root: str) -> Sets:
    """2,000 images for training, all 10,000 for testing."""
    return MNIST(root, n_train=2000).load()


RUNS = {
    "digits": (DigitsMLP, digits, 200, 32_000),
    "sums": (ModularSums, sums, 200, 20_000),
    "cnn": (MnistCNN, mnist, 64, 1500),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="The callbacks without arguments on three networks")
    parser.add_argument("run", choices=[*RUNS])
    parser.add_argument("--root", default="data", help="folder with MNIST/raw")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--output", type=Path, default=Path("demo_output"))
    args = parser.parse_args()

    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches come from memory
    make, load, batch_size, steps = RUNS[args.run]
    seed_everything(args.seed)
    torch.set_num_threads(1)  # a step is too small to share
    train, test = load(args.root)
    steps = args.steps or steps
    trainer = Trainer(
        max_steps=steps,
        callbacks=[LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()],
        logger=TensorBoardLogger(args.output, name=f"{args.run}_seed{args.seed}"),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_model_summary=False,
    )
    trainer.fit(make(), batches(train, batch_size, steps), DataLoader(test, 200))
    print(f"figure: {Path(trainer.log_dir) / 'timeline.png'}\ncurves: tensorboard --logdir {args.output}")


if __name__ == "__main__":
    main()
