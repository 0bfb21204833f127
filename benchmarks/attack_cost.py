"""What robust accuracy costs, relative to torchattacks called directly.

    python benchmarks/attack_cost.py [--threads 2] [--repeats 9]

*Direct* is what one writes without this library: accuracy at the points, ``torchattacks.PGD`` with 10 steps, accuracy
at the attacked points. *Ours* is ``robust_accuracy`` for the same: with raw logits through the adapter and through the
built-in twin, point for point as torchattacks does it; with normalised logits each point until it falls.

Then a row of a trained digits MLP with two and with six eps, against as many separate attacks.
"""

from __future__ import annotations

import argparse

import torch
import torchattacks
from models import PreActResNet18, mlp
from sklearn.datasets import load_digits
from timing import alternating
from torch import Tensor, nn

from lc_callback.engine.adversarial import attacks
from lc_callback.functional import robust_accuracy

EPS, ALPHA, STEPS = 8 / 255, 2 / 255, 10


def direct(model: nn.Module, x: Tensor, y: Tensor, eps: float = EPS, alpha: float = ALPHA) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        clean = model(x).argmax(1) == y
    adversarial = torchattacks.PGD(model, eps, alpha, STEPS)(x, y)
    with torch.no_grad():
        robust = clean & (model(adversarial).argmax(1) == y)
    return clean.float().mean(), robust.float().mean()


def trained_digits() -> tuple[nn.Module, Tensor, Tensor]:
    """The network of ``examples/digits_grokking.py`` after 1,000 steps, and its 700 test points."""
    x, y = (torch.as_tensor(part) for part in load_digits(return_X_y=True))
    x = x.float() / 16
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:500], order[500:1200]
    model = mlp(64, 200, 200, 200, 10)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    for _ in range(1000):
        some = train[torch.randint(500, (200,))]
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x[some]), nn.functional.one_hot(y[some], 10).float()).backward()
        optimizer.step()
    return model, x[test], y[test]


def several_eps(repeats: int) -> None:
    model, x, y = trained_digits()
    for eps in ([0.03, 0.1], [0.03, 0.06, 0.1, 0.13, 0.16, 0.2]):

        def separate(eps: list[float] = eps) -> object:
            return [direct(model, x, y, one, 0.25 * one) for one in eps]

        def together(eps: list[float] = eps) -> object:
            return robust_accuracy(model, x, y, eps=eps, bounds=(0, 1))

        base, our, ratio = alternating(separate, together, repeats)
        values = ", ".join(f"{value:.2f}" for value in robust_accuracy(model, x, y, eps=eps).robust_acc.values())
        print(f"digits MLP, {len(eps)} eps ({values}): separate {base:.3f} s, together {our:.3f} s, ratio {ratio:.2f}")


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
            ("until it falls", True, True),
        ):
            attacks._installed = is_installed if installed else lambda: False

            def ours(model: nn.Module = model, x: Tensor = x, y: Tensor = y, normalize: bool = normalize) -> object:
                return robust_accuracy(
                    model, x, y, eps=EPS, alpha=ALPHA, steps=STEPS, bounds=(0, 1), normalize_logits=normalize
                )

            base, our, ratio = alternating(lambda model=model, x=x, y=y: direct(model, x, y), ours, args.repeats)
            logits = "normalised" if normalize else "raw"
            print(f"{name}, {engine}, {logits} logits: direct {base:.3f} s, ours {our:.3f} s, ratio {ratio:.2f}")
    attacks._installed = is_installed
    several_eps(args.repeats)


if __name__ == "__main__":
    main()
