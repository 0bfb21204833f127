"""The networks that are timed: an MLP and a pre-activation ResNet-18 as in the released code of the papers, a GPT."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(*widths: int) -> nn.Sequential:
    """Dense ReLU network, for instance ``mlp(784, 200, 200, 200, 10)``."""
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class PreActBlock(nn.Module):
    """BatchNorm, ReLU, convolution, twice, around a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, norm: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in) if norm else nn.Identity()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out) if norm else nn.Identity()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if stride > 1 or c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        """``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        out = torch.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        out = self.conv1(out)
        return self.conv2(torch.relu(self.bn2(out))) + shortcut


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 for ``(N, 3, 32, 32)`` images."""

    def __init__(self, width: int = 16, norm: bool = True, n_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        widths, blocks = [width, width, 2 * width, 4 * width, 8 * width], []
        for stage, (c_in, c_out) in enumerate(pairwise(widths)):
            blocks.append(PreActBlock(c_in, c_out, 1 if stage == 0 else 2, norm))
            blocks.append(PreActBlock(c_out, c_out, 1, norm))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.head(self.blocks(self.stem(x)).mean((2, 3)))


class Block(nn.Module):
    """Attention and an MLP of GELU units, each behind a LayerNorm and around a shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T, width)`` to the same."""
        n, t, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(n, t, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(n, t, width))
        return x + self.mlp(self.norm2(x))


class TinyGPT(nn.Module):
    """Tokens ``(N, T)`` to logits."""

    def __init__(self, tokens: int = 65, length: int = 64, width: int = 128, depth: int = 4, heads: int = 4) -> None:
        super().__init__()
        self.embedding, self.position = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*[Block(width, heads) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, tokens)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, T)`` to ``(N, T, tokens)``."""
        x = self.embedding(x) + self.position.weight[: x.shape[1]]
        return self.head(self.norm(self.blocks(x)))


class BasicBlock(nn.Module):
    """Convolution, BatchNorm, ReLU, convolution, BatchNorm, around a shortcut, and a ReLU behind it."""

    def __init__(self, c_in: int, c_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out)
        self.conv2, self.bn2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False), nn.BatchNorm2d(c_out)
        shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))
        self.shortcut = shortcut if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """``(N, c_in, H, W)`` to ``(N, c_out, H / stride, W / stride)``."""
        out = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(out + self.shortcut(x))


def resnet18(n_classes: int = 1000) -> nn.Sequential:
    """ResNet-18 for ``(N, 3, 224, 224)`` images."""
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    blocks = [
        block
        for c_in, c_out in pairwise([64, 64, 128, 256, 512])
        for block in (BasicBlock(c_in, c_out, 1 if c_out == 64 else 2), BasicBlock(c_out, c_out, 1))
    ]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, n_classes))
