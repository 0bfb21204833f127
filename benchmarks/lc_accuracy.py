"""The vertex count of local complexity against the exact number of units that switch inside the frame, for P = 2.

    python benchmarks/lc_accuracy.py [--points 10] [--networks random trained] [--depths 1 2 4 8 12]
    python benchmarks/lc_accuracy.py --deformation --points 500 --depths 12
    python benchmarks/lc_accuracy.py --methods --points 500 --radii 0.005 0.05 0.5 1 5

The second line asks instead how large the frame of 25 directions is when it arrives at each layer, the third how the
linear method differs from the count by vertices, with 25 directions. Rows are printed as in docs/accuracy.md, without
their heads.

With two directions the frame is a square in a plane, and ``slice_partition`` of that square gives every unit that
switches inside it. Networks: random, and digits MLPs trained as in ``examples/digits_grokking.py`` (1,000 steps of
AdamW with learning rate 1e-3 and weight decay 0.1 on the squared error).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch
from models import mlp
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from lc_callback.functional import (
    SlicePartition,
    cross_polytope_frame,
    frame_deformation,
    local_complexity,
    slice_partition,
)

DEPTHS = [1, 2, 4, 8, 12]
SMALL = 0.005


def partition(model: nn.Module, x: Tensor, frame: Tensor, radius: float) -> SlicePartition:
    """Of the square with the corners ``x +- radius v``."""
    sides = torch.stack([frame[0] + frame[1], frame[0] - frame[1]]) / 2**0.5
    half = radius / 2**0.5
    return slice_partition(model, torch.stack([x, x + sides[0], x + sides[1]]), extent=(-half, half, -half, half))


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


def networks(kind: str, x: Tensor, y: Tensor) -> Iterator[tuple[int, int, nn.Module]]:
    """Depth, width and network, always all: each is drawn where the generator stood after the one before."""
    torch.manual_seed(0)
    for depth in DEPTHS:
        for width in (50, 200):
            widths = [64, *[width] * depth, 10]
            yield depth, width, (mlp(*widths) if kind == "random" else trained(widths, x, y)).double()


def counts(name: str, model: nn.Module, inputs: Tensor, radii: list[float]) -> None:
    frame = cross_polytope_frame(64, 2, seed=0, dtype=torch.float64)
    print(f"| {name}", end="")
    for radius in radii:
        truth = sum(int(partition(model, point, frame, radius).counts.sum()) for point in inputs) / len(inputs)
        estimate = local_complexity(model, inputs, radius=radius, directions=frame).mean
        print(f" | {truth:.2f} | {estimate / truth:.1%}" if truth else " | 0 | -", end="", flush=True)
    print(" |")


def sizes(name: str, model: nn.Module, inputs: Tensor, radii: list[float]) -> None:
    """For each layer and radius: eccentricity, diameter and *bent*.

    The former over their value in the input, ``2 sqrt(2) r``; the last is the median over the points of the relative
    difference of this eccentricity to that of a frame so small that the network is affine on most.
    """
    found = frame_deformation(model, inputs, radius=[SMALL, *radii])
    scale = 8**0.5 * torch.tensor([SMALL, *radii], dtype=torch.float64)[:, None, None]
    eccentricity, diameter = found.eccentricity / scale, found.diameter / scale
    bent = (eccentricity / eccentricity[0] - 1).abs().median(1).values
    for layer in sorted({0, 1, 3, 7, 11} & {*range(len(found.layer_names))}):
        cells = [
            f"{float(eccentricity[i, :, layer].mean()):.3g} | {float(diameter[i, :, layer].mean()):.3g}"
            f" | {float(bent[i, layer]):.1%}"
            for i in range(1, len(scale))
        ]
        print(f"| {name} | {layer + 1} | " + " | ".join(cells) + " |", flush=True)


def methods(name: str, model: nn.Module, inputs: Tensor, radii: list[float]) -> None:
    """For each radius: the mean by vertices, how much more it is by the linear method, and how far single points are.

    The last is the mean over the points of the absolute difference, over the mean.
    """
    vertices, linear = (local_complexity(model, inputs, radius=radii, method=m) for m in ("vertices", "linear"))
    more = linear.mean / vertices.mean - 1
    apart = (linear.total - vertices.total).abs().double().mean(1) / vertices.mean
    cells = zip(vertices.mean.tolist(), more.tolist(), apart.tolist(), strict=True)
    print(f"| {name} | " + " | ".join(f"{mean:.4g} | {m:+.1%} | {a:.1%}" for mean, m, a in cells) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--networks", nargs="+", default=["random", "trained"])
    parser.add_argument("--depths", nargs="+", type=int, choices=DEPTHS, default=DEPTHS)
    parser.add_argument("--radii", nargs="+", type=float, default=[0.05, 0.5, 5.0])
    parser.add_argument("--deformation", action="store_true")
    parser.add_argument("--methods", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32)[:500] / 16, torch.tensor(labels)[:500]
    show = sizes if args.deformation else methods if args.methods else counts
    for kind in args.networks:
        for depth, width, model in networks(kind, x, y):
            if depth in args.depths:
                show(f"{kind} | {depth} | {width}", model, x[: args.points].double(), args.radii)


if __name__ == "__main__":
    main()
