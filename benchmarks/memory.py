"""Peak memory of local complexity, of a ResNet-18 (width 64) at 3x224x224 with 1,000 points and 25 directions.

    python benchmarks/memory.py [--method linear] [--points 1000] [--measured 20]

Prints the resident memory of the process before the measurement, points and network included, and its peak. Each point
takes seconds, so only the first ``--measured`` are counted; those after them take the same memory.
"""

from __future__ import annotations

import argparse
import contextlib
import resource

import torch
from models import resnet18
from timing import seconds

from lc_callback.functional import local_complexity


class Enough(Exception):  # noqa: N818 (no error)
    """As many points as were asked for."""


def peak() -> float:
    """In GB (10^9 bytes), of the whole process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--method", default="vertices")
    parser.add_argument("--points", type=int, default=1000)
    parser.add_argument("--measured", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    net, images = resnet18().eval(), torch.rand(args.points, 3, 224, 224)
    before = peak()

    def stop(done: int, total: int) -> None:
        if done >= args.measured:
            raise Enough

    def measure() -> None:
        with contextlib.suppress(Enough):
            local_complexity(net, images, radius=0.005, n_directions=25, method=args.method, progress=stop)

    each = seconds(measure) / min(args.measured, args.points)
    print(f"{args.method}, {args.points} points: {before:.2f} GB before, peak {peak():.2f} GB, {each:.1f} s a point")


if __name__ == "__main__":
    main()
