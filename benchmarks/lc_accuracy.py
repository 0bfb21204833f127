"""The vertex count of local complexity against the exact number of units that switch inside the frame, for P = 2.

    python benchmarks/lc_accuracy.py [--points 10] [--networks random trained] [--depths 1 2 4 8 12]

With two directions the frame is a square in a plane, and ``slice_partition`` of that square gives every unit that
switches inside it. Networks: random, and digits MLPs trained as in ``examples/digits_grokking.py`` (1,000 steps of
AdamW with learning rate 1e-3 and weight decay 0.1 on the squared error).
"""

from __future__ import annotations

import argparse

import torch
from models import mlp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lc_callback.functional import cross_polytope_frame, local_complexity, slice_partition


def exact(model: nn.Module, x: Tensor, frame: Tensor, radius: float) -> int:
    """Units that switch somewhere in the square with the corners ``x +- radius v``."""
    sides = torch.stack([frame[0] + frame[1], frame[0] - frame[1]]) / 2**0.5
    half = radius / 2**0.5
    found = slice_partition(model, torch.stack([x, x + sides[0], x + sides[1]]), extent=(-half, half, -half, half))
    return int(found.counts.sum())


def trained(widths: list[int], x: Tensor, y: Tensor, steps: int = 1000) -> nn.Module:
    model = mlp(*widths)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(steps):
        batch = torch.randint(0, len(x), (200,))
        loss = F.mse_loss(model(x[batch]), F.one_hot(y[batch], 10).float())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--networks", nargs="+", default=["random", "trained"])
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 4, 8, 12])
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32)[:500] / 16, torch.tensor(labels)[:500]
    frame = cross_polytope_frame(64, 2, seed=0, dtype=torch.float64)
    print("| network | depth | width | r | exact | estimate | found |\n|---|---:|---:|---:|---:|---:|---:|")
    for kind in args.networks:
        for depth in args.depths:
            for width in (50, 200):
                widths = [64, *[width] * depth, 10]
                model = (mlp(*widths) if kind == "random" else trained(widths, x, y)).double()
                for radius in (0.05, 0.5, 5.0):
                    inputs = x[: args.points].double()
                    truth = sum(exact(model, point, frame, radius) for point in inputs) / len(inputs)
                    estimate = local_complexity(model, inputs, radius=radius, directions=frame).mean
                    share = f"{estimate / truth:.1%}" if truth else "-"
                    row = f"| {kind} | {depth} | {width} | {radius:g} | {truth:.2f} | {estimate:.2f} | {share} |"
                    print(row, flush=True)


if __name__ == "__main__":
    main()
