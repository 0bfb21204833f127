"""The networks of the experiments: plain torch modules, each the ``network`` of a YAML file."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}
_INITS = {
    "xavier": nn.init.xavier_normal_,
    "kaiming": partial(nn.init.kaiming_normal_, nonlinearity="relu"),
    "orthogonal": nn.init.orthogonal_,
}


class MLP(nn.Sequential):
    """A dense network of one width.

    Args:
        inputs: number of input features, such as 64 for an image of 8x8.
        width: of each hidden layer.
        depth: number of linear layers, the last one included, as the papers count.
        outputs: number of classes.
        activation: after each hidden layer.
        batch_norm: BatchNorm before each activation.
        init: ``"torch"`` is what ``nn.Linear`` does; the others draw the weights, and set the biases to 0.
        init_scale: factor on all initial parameters, as in Omnigrok and in both papers. Those of BatchNorm are among
            them, and alone decide then: the normalisation undoes the factor on the weights before it.
    """

    def __init__(
        self,
        inputs: int = 64,
        width: int = 200,
        depth: int = 4,
        outputs: int = 10,
        activation: Literal["relu", "gelu"] = "relu",
        batch_norm: bool = False,
        init: Literal["torch", "xavier", "kaiming", "orthogonal"] = "torch",
        init_scale: float = 1.0,
    ) -> None:
        layers: list[nn.Module] = [nn.Flatten()]
        for fan_in, fan_out in pairwise([inputs] + [width] * (depth - 1)):
            norm = [nn.BatchNorm1d(fan_out)] if batch_norm else []
            layers += [nn.Linear(fan_in, fan_out), *norm, _ACTIVATIONS[activation]()]
        super().__init__(*layers, nn.Linear(width if depth > 1 else inputs, outputs))
        if init != "torch":
            for layer in self:
                if isinstance(layer, nn.Linear):
                    _INITS[init](layer.weight)
                    nn.init.zeros_(layer.bias)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(init_scale)


class SmallCNN(nn.Sequential):
    """Five convolutions and two linear layers, as the CIFAR CNN of the ICML paper, for images ``(N, 1, size, size)``.

    Args:
        width: channels of the first two convolutions; doubled where a stride of 2 halves the image.
        batch_norm: BatchNorm before each ReLU of a convolution.
        outputs: number of classes.
        size: side of an image; a multiple of 4.
    """

    def __init__(self, width: int = 16, batch_norm: bool = False, outputs: int = 10, size: int = 8) -> None:
        layers: list[nn.Module] = []
        for c_in, c_out in pairwise([1, width, width, 2 * width, 2 * width, 4 * width]):
            norm = [nn.BatchNorm2d(c_out)] if batch_norm else []
            stride = 2 if c_out == 2 * c_in else 1
            layers += [nn.Conv2d(c_in, c_out, 3, stride, 1), *norm, nn.ReLU()]
        hidden = 4 * width
        first = nn.Linear(hidden * (size // 4) ** 2, hidden)
        super().__init__(*layers, nn.Flatten(), first, nn.ReLU(), nn.Linear(hidden, outputs))


class PreActBlock(nn.Module):
    """BatchNorm, ReLU and convolution, twice, around a shortcut."""

    def __init__(self, c_in: int, c_out: int, stride: int, batch_norm: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(c_in) if batch_norm else nn.Identity()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(c_out) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(c_out, c_out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(c_in, c_out, 1, stride, bias=False) if c_in != c_out else None

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.bn1(x))
        shortcut = x if self.shortcut is None else self.shortcut(out)
        return self.conv2(torch.relu(self.bn2(self.conv1(out)))) + shortcut


class PostActBlock(nn.Module):
    """Convolution, BatchNorm and ReLU, twice, the second ReLU behind the shortcut: the block of torchvision."""

    def __init__(self, c_in: int, c_out: int, stride: int, batch_norm: bool) -> None:
        super().__init__()

        def convolution(c_in: int, kernel: int, stride: int) -> nn.Sequential:
            norm = [nn.BatchNorm2d(c_out)] if batch_norm else []
            return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), *norm)

        self.conv1, self.conv2 = convolution(c_in, 3, stride), convolution(c_out, 3, 1)
        self.shortcut = convolution(c_in, 1, stride) if c_in != c_out else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(torch.relu(self.conv1(x)))
        return torch.relu(out + self.shortcut(x))


def _stages(block: type[nn.Module], width: int, batch_norm: bool) -> list[nn.Module]:
    """The eight blocks of a ResNet-18: four stages of two, each of twice the channels of the one before."""
    blocks: list[nn.Module] = []
    for stage, (c_in, c_out) in enumerate(pairwise([width, width, 2 * width, 4 * width, 8 * width])):
        blocks += [block(c_in, c_out, 2 if stage else 1, batch_norm), block(c_out, c_out, 1, batch_norm)]
    return blocks


class PreActResNet18(nn.Sequential):
    """Pre-activation ResNet-18 for small images ``(N, C, H, W)``, as in the code of the ICML paper.

    Args:
        channels: of the images.
        width: channels of the first stage.
        batch_norm: with BatchNorm; the ICML paper leaves it out.
        outputs: number of classes.
    """

    def __init__(self, channels: int = 3, width: int = 16, batch_norm: bool = False, outputs: int = 10) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False),
            *_stages(PreActBlock, width, batch_norm),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, outputs),
        )


class ResNet18(nn.Sequential):
    """ResNet-18 for large images ``(N, 3, H, W)``, laid out as in torchvision.

    Args:
        width: channels of the first stage.
        batch_norm: with BatchNorm; the ICML paper leaves it out.
        outputs: number of classes.
    """

    def __init__(self, width: int = 64, batch_norm: bool = False, outputs: int = 10) -> None:
        norm = [nn.BatchNorm2d(width)] if batch_norm else []
        super().__init__(
            nn.Conv2d(3, width, 7, 2, 3, bias=False),
            *norm,
            nn.ReLU(),
            nn.MaxPool2d(3, 2, 1),
            *_stages(PostActBlock, width, batch_norm),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8 * width, outputs),
        )


class ModularTransformer(nn.Module):
    """A transformer of one block, without LayerNorm, that reads ``a b =`` and says ``(a + b) mod p``.

    The answer is read off the last position, so attention asks and the MLP runs there only.

    Args:
        modulus: ``p``; the tokens are 0 to p - 1, and p for ``=``.
        width: of the embedding.
        heads: of the attention.
    """

    def __init__(self, modulus: int = 97, width: int = 128, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embedding = nn.Embedding(modulus + 1, width)
        self.position = nn.Parameter(torch.empty(3, width))
        for weight in (self.embedding.weight, self.position):
            nn.init.normal_(weight, std=width**-0.5)
        self.query, self.key, self.value = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Linear(width, modulus, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens ``(N, 3)`` to logits ``(N, p)``."""
        x = self.embedding(tokens) + self.position
        last = x[:, -1:]
        q, k, v = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, heads, positions, width / heads)
            for layer, source in ((self.query, last), (self.key, x), (self.value, x))
        )
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        last = last + self.out(attended)
        return self.head(last + self.mlp(last)).squeeze(1)
