"""What the default settings of the callbacks cost in a 100-epoch ResNet-18 run on CIFAR-10-sized data.

    python benchmarks/default_cost.py [--width 64] [--repeats 3]

Measures one training step (batch of 128, SGD with momentum) and the time of a few probe points of each measure,
alternating, and prints the sums: rows of the default schedule times points of a row times seconds a point, over steps
times seconds a step.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from models import PreActResNet18
from timing import seconds
from torch.nn import functional as F

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.functional import feature_ranks, local_complexity, robust_accuracy
from lc_callback.schedule import is_log_step

BATCH, EPOCHS, SAMPLES = 128, 100, 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model = PreActResNet18(args.width)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    lc, robust, rank = LocalComplexityCallback(), PGDRobustnessCallback(), FeatureRankCallback()
    n_steps = EPOCHS * -(-SAMPLES // BATCH)
    rows = sum(is_log_step(s) for s in range(n_steps + 1)) + (not is_log_step(n_steps))
    measures = {  # points of a row, points that are timed, the measure
        "LocalComplexityCallback": (3 * lc.n_probes, 4, lambda x, y: local_complexity(model, x)),
        "PGDRobustnessCallback": (robust.n_probes, 16, lambda x, y: robust_accuracy(model, x, y, eps=robust.eps)),
        "FeatureRankCallback": (rank.n_probes, BATCH, lambda x, y: feature_ranks(model, x)),
    }
    model.train()
    step()
    steps: list[float] = []
    points: dict[str, list[float]] = {name: [] for name in measures}
    for _ in range(args.repeats):
        steps.append(seconds(step))
        for name, (_, few, measure) in measures.items():
            points[name].append(seconds(lambda few=few, measure=measure: measure(x[:few], y[:few])) / few)
    training = n_steps * statistics.median(steps)
    print(
        f"ResNet-18 of width {args.width}, {EPOCHS} epochs of {SAMPLES}: {n_steps} steps x "
        f"{statistics.median(steps):.3f} s = {training / 3600:.2f} h"
    )
    for name, (n_points, _, _) in measures.items():
        total = rows * n_points * statistics.median(points[name])
        print(
            f"{name}: {rows} rows x {n_points} points x {statistics.median(points[name]):.3f} s = "
            f"{total / 3600:.2f} h, {total / training:.1%} of the training"
        )


if __name__ == "__main__":
    main()
