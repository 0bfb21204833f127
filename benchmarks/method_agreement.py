"""The linear method against the vertices at the radius of ``radius="auto"``, on networks of others as they start.

    python benchmarks/method_agreement.py timm:resnet18 timm:mobilenetv2_100 torchvision:mnasnet0_5 [--points 16]

Weights are random, in eval mode; points are normal, 3 x 64 x 64. One row for each network: radius, mean number of
switching units by both methods, how much the linear one is off, and what counts in ``LocalComplexityCallback``.
"""

from __future__ import annotations

import argparse
import importlib
import warnings

import torch
from torch import nn

from lc_callback.functional import local_complexity
from lc_callback.functional.radius import find_radius


def made(name: str, size: int) -> nn.Module:
    """``package:model`` with ten classes."""
    package, _, model = name.partition(":")
    torch.manual_seed(0)
    if package == "torchvision":
        return getattr(importlib.import_module("torchvision.models"), model)(num_classes=10).eval()  # type: ignore[no-any-return]
    create = importlib.import_module("timm").create_model
    try:
        return create(model, num_classes=10, img_size=size).eval()  # type: ignore[no-any-return]
    except TypeError:  # any size is fine
        return create(model, num_classes=10).eval()  # type: ignore[no-any-return]


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--points", type=int, default=16)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--directions", type=int, default=10)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(arguments.points, 3, arguments.size, arguments.size, generator=generator)
    for name in arguments.networks:
        net = made(name, arguments.size)
        found = find_radius(net, points, n_directions=arguments.directions)
        linear, vertices = (
            local_complexity(net, points, radius=found.radius, n_directions=arguments.directions, method=method).mean
            for method in ("linear", "vertices")
        )
        off = f"{linear / vertices - 1:+.2%}" if vertices else ""
        counts = "vertices" if found.difference else "linear"
        print(f"| {name} | {found.radius:g} | {vertices:.2f} | {linear:.2f} | {off} | {counts} |", flush=True)


if __name__ == "__main__":
    main()
