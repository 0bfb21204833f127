"""What the exact partition of a slice costs, by the number of its regions.

    python benchmarks/partition_cost.py [--threads 1] [--repeats 3]

Random networks, windows of several sizes round the origin, one after another in one process, the largest last: the
peak memory is that of the largest.
"""

from __future__ import annotations

import argparse
import resource
import statistics

import torch
from models import PreActResNet18, mlp
from timing import seconds
from torch import Tensor, nn

from lc_callback.functional import SlicePartition, slice_partition


def window(model: nn.Module, points: Tensor, half: float) -> SlicePartition:
    return slice_partition(model, points, extent=(-half, half, -half, half))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    resnet = PreActResNet18(4).eval()
    for module in resnet.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics as after some training
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    cases = {
        "MLP 64-200-200-200-10": (mlp(64, 200, 200, 200, 10), torch.rand(3, 64), (3.0, 10.0)),
        "MLP 784-200-200-200-10": (mlp(784, 200, 200, 200, 10), torch.rand(3, 784), (8.0, 30.0)),
        "pre-activation ResNet-18, width 4, 3x32x32": (resnet, torch.randn(3, 3, 32, 32), (0.1, 0.25, 0.5)),
    }
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} repeats")
    for name, (model, points, halves) in cases.items():
        window(model, points, halves[0] / 100)  # warm
        for half in halves:
            found = window(model, points, half)
            taken = statistics.median(
                seconds(lambda model=model, points=points, half=half: window(model, points, half))
                for _ in range(args.repeats)
            )
            area = float(found.areas.sum()) / (2 * half) ** 2
            print(
                f"{name}, window {2 * half:g}: {found.n_regions} regions in {taken:.2f} s, V - E + F = {found.euler}, "
                f"area {area:.12f} of the window, peak memory so far "
                f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
