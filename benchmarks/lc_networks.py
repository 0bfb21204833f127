"""What local complexity of other kinds of networks costs, relative to a bare forward pass of the same vertices.

    python benchmarks/lc_networks.py [--threads 2] [--repeats 5] [--networks VGG U-Net]

*Bare* as in ``lc_cost.py``, in its own best chunk size; ours with default settings, by vertices and with
``method="linear"``, at one radius. All alternate; a ratio is the median of the ratios of neighbours.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable

import torch
from lc_cost import RADIUS, bare, best_chunk
from models import resnet18
from timing import in_turn, ratio
from torch import Tensor, nn
from torch.nn import functional as F

from lc_callback.functional import local_complexity

P = 25


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """With a normalisation and an in-place non-linearity."""
    inner = nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False)
    return nn.Sequential(inner, nn.BatchNorm2d(outputs), nn.ReLU6(inplace=True))


def vgg() -> nn.Sequential:
    """Convolutions, each followed by a ReLU in place, and max-pooling."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, 32), (32, 64)):
        for before in (inputs, outputs):
            layers += [nn.Conv2d(before, outputs, 3, padding=1), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4096, 256), nn.ReLU(inplace=True), nn.Linear(256, 10))


class InvertedResidual(nn.Module):
    """Of MobileNet-v2."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        wide = 4 * inputs
        self.wide = nn.Sequential(convolution(inputs, wide, 1), convolution(wide, wide, 3, stride, wide))
        self.narrow = nn.Sequential(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.same = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Images to features."""
        y: Tensor = self.narrow(self.wide(x))
        return x + y if self.same else y


def mobilenet() -> nn.Sequential:
    """Depthwise convolutions."""
    sizes = ((16, 24, 1), (24, 24, 1), (24, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1))
    blocks = [InvertedResidual(*size) for size in sizes]
    return nn.Sequential(convolution(3, 16), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


class DenseNet(nn.Module):
    """One block, in which each convolution reads all that came before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Linear(112, 10)
        self.blocks = nn.ModuleList()
        for width in range(16, 112, 12):
            inner = nn.Conv2d(width, 12, 3, padding=1, bias=False)
            self.blocks.append(nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), inner))

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.first(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        logits: Tensor = self.head(F.relu(x).mean((2, 3)))
        return logits


class UNet(nn.Module):
    """One step down and up."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.low, self.after = convolution(3, 16), convolution(16, 32), convolution(32, 16)
        self.up, self.head = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(16, 10, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.down(x)
        y = self.up(self.low(F.max_pool2d(x, 2)))
        logits: Tensor = self.head(self.after(torch.cat([x, y], 1)))
        return logits


class ViT(nn.Module):
    """Four blocks of width 128, 64 patches."""

    def __init__(self) -> None:
        super().__init__()
        block = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True, activation="gelu", norm_first=True)
        self.patches, self.head = nn.Conv2d(3, 128, 4, 4), nn.Linear(128, 10)
        self.position = nn.Parameter(torch.randn(1, 64, 128) / 50)
        self.blocks = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.blocks(x).mean(1))
        return logits


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "VGG": (vgg, (32, 3, 32, 32)),
    "MobileNet": (mobilenet, (16, 3, 32, 32)),
    "DenseNet": (DenseNet, (16, 3, 32, 32)),
    "U-Net": (UNet, (32, 3, 32, 32)),
    "ViT": (ViT, (16, 3, 32, 32)),
    "ResNet-18 at 224": (resnet18, (4, 3, 224, 224)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"torch {torch.__version__}, {args.threads} thread(s), median of {args.repeats} alternating repeats")
    for name in args.networks:
        compare(name, args.repeats)


def compare(name: str, repeats: int) -> None:
    """Print one line."""
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    model, x = make().eval(), torch.rand(shape)
    best = best_chunk(model, x, P)
    runs: dict[str, Callable[[], object]] = {"bare": lambda: bare(model, x, P, best)}
    for method in ("vertices", "linear"):
        runs[method] = functools.partial(local_complexity, model, x, radius=RADIUS, n_directions=P, method=method)
    taken = in_turn(runs, repeats)
    print(name, *(f"{run} {ratio(own, taken['bare']):.2f}" for run, own in taken.items()), sep=", ", flush=True)


if __name__ == "__main__":
    main()
