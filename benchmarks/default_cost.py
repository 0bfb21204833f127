"""What the default settings of LocalComplexityCallback cost in a 100-epoch ResNet-18 run on CIFAR-10-sized data.

    python benchmarks/default_cost.py [--width 64] [--repeats 3]

Measures one training step (batch of 128, SGD with momentum) and the time of a few probe points, alternating, and prints
the sum: rows of the default schedule times points of a row times seconds a point, over steps times seconds a step.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from models import PreActResNet18
from timing import seconds
from torch.nn import functional as F

from lc_callback import LocalComplexityCallback
from lc_callback.functional import local_complexity
from lc_callback.schedule import is_log_step

BATCH, EPOCHS, SAMPLES, POINTS = 128, 100, 50_000, 4


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

    defaults = LocalComplexityCallback()
    n_steps = EPOCHS * -(-SAMPLES // BATCH)
    rows = sum(is_log_step(s) for s in range(n_steps + 1)) + (not is_log_step(n_steps))
    model.train()
    step()
    steps, points = [], []
    for _ in range(args.repeats):
        steps.append(seconds(step))
        measured = seconds(lambda: local_complexity(model, x[:POINTS], n_directions=defaults.n_directions))
        points.append(measured / POINTS)
    training = n_steps * statistics.median(steps)
    callback = rows * 3 * defaults.n_probes * statistics.median(points)
    print(
        f"ResNet-18 of width {args.width}, {EPOCHS} epochs of {SAMPLES}: {n_steps} steps x "
        f"{statistics.median(steps):.3f} s = {training / 3600:.2f} h\n"
        f"callback: {rows} rows x 3 splits x {defaults.n_probes} points x {statistics.median(points):.3f} s"
        f" = {callback / 3600:.3f} h, {callback / training:.1%} of the training"
    )


if __name__ == "__main__":
    main()
