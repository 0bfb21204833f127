"""What robust accuracy costs, relative to torchattacks called directly.

    python benchmarks/attack_cost.py [--threads 2] [--repeats 9]

*Direct* is what one writes without this library: accuracy at the points, ``torchattacks.PGD`` with 10 steps, accuracy
at the attacked points. *Ours* is ``robust_accuracy`` for the same, through the adapter and through the built-in twin.
"""

from __future__ import annotations

import argparse

import torch
import torchattacks
from models import PreActResNet18, mlp
from timing import alternating
from torch import Tensor, nn

from lc_callback.functional import attacks, robust_accuracy

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def direct(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    adversarial = torchattacks.PGD(model, EPS, ALPHA, STEPS)(x, y)
    with torch.no_grad():
        robust = clean & (model(adversarial).argmax(1) == y)
    return clean.float().mean(), robust.float().mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    small = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU())
    small.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)])
    cases = {
        "MLP 784-200-200-200-10, 1000 points": (mlp(784, 200, 200, 200, 10), torch.rand(1000, 1, 28, 28)),
        "CNN of two layers, 256 points 3x16x16": (small, torch.rand(256, 3, 16, 16)),
        "pre-activation ResNet-18, width 16, 64 points 3x32x32": (PreActResNet18(16), torch.rand(64, 3, 32, 32)),
    }
    is_installed = attacks._installed
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} alternating repeats")
    for name, (model, x) in cases.items():
        model.eval()
        y = model(x).argmax(1)
        for engine, installed, normalize in (
            ("adapter", True, False),
            ("built in", False, False),
            ("adapter", True, True),
        ):
            attacks._installed = is_installed if installed else lambda: False

            def ours(model: nn.Module = model, x: Tensor = x, y: Tensor = y, normalize: bool = normalize) -> object:
                return robust_accuracy(
                    model, x, y, eps=EPS, alpha=ALPHA, steps=STEPS, bounds=(0, 1), normalize_logits=normalize
                )

            base, our, ratio = alternating(lambda model=model, x=x, y=y: direct(model, x, y), ours, args.repeats)
            logits = "normalised" if normalize else "raw"
            print(f"{name}, {engine}, {logits} logits: direct {base:.3f} s, ours {our:.3f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
