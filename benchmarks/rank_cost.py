"""What a row of feature ranks costs, relative to a bare forward pass and the singular values of what it returns.

    python benchmarks/rank_cost.py [--threads 2] [--repeats 9]

*Bare* runs the model once under ``inference_mode`` with forward hooks that keep what the activations return, and takes
``torch.linalg.svdvals`` of each centred matrix in float64. *Ours* is ``feature_ranks``, which keeps no features.
"""

from __future__ import annotations

import argparse

import torch
from models import mlp
from timing import alternating
from torch import Tensor, nn

from lc_callback.functional import feature_ranks


def bare(model: nn.Module, x: Tensor) -> list[Tensor]:
    features: list[Tensor] = []
    handles = [
        module.register_forward_hook(lambda module, args, output: features.append(output))
        for module in model.modules()
        if isinstance(module, nn.ReLU)
    ]
    with torch.inference_mode():
        model(x)
        rows = [f.movedim(1, -1).flatten(0, -2) if f.ndim > 2 else f for f in features]
        spectra = [torch.linalg.svdvals((r - r.mean(0)).double()) for r in rows]
    for handle in handles:
        handle.remove()
    return spectra


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cnn = nn.Sequential(nn.Conv2d(3, 32, 3, 1, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU(), nn.Flatten())
    cnn.extend([nn.Linear(64 * 16 * 16, 100), nn.ReLU(), nn.Linear(100, 10)])
    cases = {
        "MLP 784-200-200-200-10, 1024 points": (mlp(784, 200, 200, 200, 10), torch.rand(1024, 1, 28, 28)),
        "MLP 784-400 x 8-10, 1024 points": (mlp(784, *[400] * 8, 10), torch.rand(1024, 1, 28, 28)),
        "CNN 3x32x32, 32 and 64 channels, 100 units, 256 points": (cnn, torch.rand(256, 3, 32, 32)),
    }
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} alternating repeats")
    for name, (model, x) in cases.items():
        model.eval()
        base, ours, ratio = alternating(
            lambda model=model, x=x: bare(model, x), lambda model=model, x=x: feature_ranks(model, x), args.repeats
        )
        print(f"{name}: bare {base:.3f} s, feature_ranks {ours:.3f} s, ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
