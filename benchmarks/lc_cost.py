"""What one measurement of local complexity costs, relative to a bare forward pass of the same vertices.

    python benchmarks/lc_cost.py [--threads 2] [--repeats 9]

*Bare* runs the model under ``inference_mode`` on the same vertices, in chunks, with nothing recorded. The two
alternate; the ratio is the median of the ratios of neighbours. Seconds differ from machine to machine.
"""

from __future__ import annotations

import argparse

import torch
from models import PreActResNet18, mlp
from timing import alternating, seconds
from torch import Tensor, nn

from lc_callback.functional import cross_polytope_frame, local_complexity

RADIUS = 0.05


def bare(model: nn.Module, x: Tensor, n_directions: int, chunk: int) -> None:
    frame = RADIUS * cross_polytope_frame(x.shape[1:], n_directions)
    offsets = torch.cat([frame, -frame])
    with torch.inference_mode():
        for points in x.split(max(1, chunk // len(offsets))):
            model((points[:, None] + offsets[None]).flatten(0, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    cases = {
        "MLP 784-200-200-200-10, 1000 points, P=25": (mlp(784, 200, 200, 200, 10), torch.rand(1000, 1, 28, 28), 25),
        "pre-activation ResNet-18, width 16, 3x32x32, 32 points, P=20": (
            PreActResNet18(16),
            torch.rand(32, 3, 32, 32),
            20,
        ),
    }
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} alternating repeats")
    for name, (model, x, n_directions) in cases.items():
        model.eval()
        compare(name, model, x, n_directions, args.repeats)


def compare(name: str, model: nn.Module, x: Tensor, n_directions: int, repeats: int) -> None:
    # Bare is given its own best chunk, so that the ratio does not flatter us.
    chunks = [128, 256, 512, 1024, 2048]
    best = min(chunks, key=lambda c: min(seconds(lambda: bare(model, x, n_directions, c)) for _ in range(3)))
    base, ours, ratio = alternating(
        lambda: bare(model, x, n_directions, best),
        lambda: local_complexity(model, x, radius=RADIUS, n_directions=n_directions),
        repeats,
    )
    print(f"{name}\n  bare (chunk {best}) {base:.3f} s   local_complexity {ours:.3f} s   ratio {ratio:.2f}")


if __name__ == "__main__":
    main()
