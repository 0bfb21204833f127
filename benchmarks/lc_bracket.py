"""How wide the certified bracket of local complexity is, and what random search finds inside it.

    python benchmarks/lc_bracket.py [--points 10] [--depths 1 2 4 8 12]

Digits MLPs of width 200, random and trained, as in ``lc_accuracy.py``, with P = 25 directions. *Search* is the number
of units that differ among the vertices and 2,000 random points of the hull, half of them on edges between two vertices.
"""

from __future__ import annotations

import argparse
import time

import torch
from lc_accuracy import trained
from models import mlp
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lc_callback.functional import cross_polytope_frame, local_complexity


def hull(frame: Tensor, radius: float, n: int) -> Tensor:
    """The vertices and random points of the hull of the frame, as offsets."""
    shares = torch.distributions.Dirichlet(torch.full((len(frame),), 0.2, dtype=torch.float64)).sample((n,))
    shares[: n // 2] = 0
    ends = torch.rand(n // 2, len(frame)).topk(2).indices
    part = torch.rand(n // 2, 1, dtype=torch.float64)
    shares[: n // 2] = shares[: n // 2].scatter(1, ends, torch.cat([part, 1 - part], 1))
    shares *= torch.randint(0, 2, shares.shape) * 2 - 1
    corners = torch.eye(len(frame), dtype=torch.float64)
    return radius * torch.cat([corners, -corners, shares]) @ frame


def searched(model: nn.Sequential, points: Tensor) -> int:
    found, z = 0, points
    for layer in model:
        if isinstance(layer, nn.ReLU):
            found += int(((z.amax(0) > 0) & (z.amin(0) <= 0)).sum())
        z = layer(z)
    return found


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=10)
    parser.add_argument("--depths", nargs="+", type=int, default=[1, 2, 4, 8, 12])
    args = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images, dtype=torch.float32)[:500] / 16, torch.tensor(labels)[:500]
    frame = cross_polytope_frame(64, 25, seed=0, dtype=torch.float64)
    print("| network | depth | r | vertices | search | upper bound | ms a point |\n|---|---:|---:|---:|---:|---:|---:|")
    for kind in ("random", "trained"):
        for depth in args.depths:
            widths = [64, *[200] * depth, 10]
            with torch.enable_grad():
                model = (mlp(*widths) if kind == "random" else trained(widths, x, y)).double()
            for radius in (0.005, 0.05, 0.5, 5.0):
                start = time.perf_counter()
                lc = local_complexity(model, x[: args.points], radius=radius, n_directions=25, bracket=True)
                took = (time.perf_counter() - start) / args.points
                search = sum(searched(model, point + hull(frame, radius, 2000)) for point in x[: args.points].double())
                print(
                    f"| {kind} | {depth} | {radius:g} | {lc.mean:.2f} | {search / args.points:.2f} | "
                    f"{float(lc.upper.sum(-1).double().mean()):.2f} | {1e3 * took:.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
