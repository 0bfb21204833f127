"""The Jacobian of the output and the density of boundaries, against what autograd and grids say."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lc_callback.engine.counting import strategy
from lc_callback.engine.network.frame import steepest_share
from lc_callback.functional import local_complexity
from lc_callback.functional.local_complexity import joined
from lc_callback.functional.point_sets import local_complexity_of_sets


class Net(nn.Sequential):
    """What it returns is made of the last layer's output by ``last``."""

    def __init__(self, *layers: nn.Module, last: Any = None) -> None:
        super().__init__(*layers)
        self.last = last

    def forward(self, x: Tensor) -> Any:
        """The layers, and ``last``."""
        y = super().forward(x)
        return y if self.last is None else self.last(x, y)


def mlp(last: Any = None) -> Net:
    return Net(nn.Linear(6, 20), nn.ReLU(), nn.Linear(20, 20), nn.LeakyReLU(), nn.Linear(20, 6), last=last)


def cnn(*pool: nn.Module) -> nn.Module:
    start = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *pool
    return nn.Sequential(*start, nn.Conv2d(4, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


class Residual(nn.Module):
    """Both branches of the last sum reach the output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 9), nn.Linear(9, 4)
        self.inner, self.outer = (nn.ModuleList(nn.Linear(9, 9) for _ in range(2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """Two blocks of pre-activations, and logits."""
        x = self.first(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + outer(torch.relu(inner(x)))
        return self.last(x)


NETWORKS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (mlp, (6,)),
    "cnn": (cnn, (1, 8, 8)),
    "max_pool": (lambda: cnn(nn.MaxPool2d(2)), (1, 8, 8)),
    "pool_last": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()), (1, 6, 6)),
    "residual": (Residual, (6,)),
    "to_images": (lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Unflatten(1, (1, 3, 3))), (6,)),
    "layer_norm": (lambda: nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)), (6,)),
    "logits": (lambda: mlp(lambda x, y: {"features": 2 * y, "logits": y}), (6,)),
    "pair": (lambda: mlp(lambda x, y: (y, x)), (6,)),
}


def randomised(network: nn.Module) -> nn.Module:
    """Running statistics are not 0 and 1; in eval mode and float64."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return network.double().eval()


def output_of(network: nn.Module, x: Tensor) -> Tensor:
    output = network(x)
    output = output["logits"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output
    return output


def twin(network: nn.Module, points: Tensor) -> Tensor:
    """The Frobenius norm of the Jacobian, point by point."""
    norms = []
    for x in points:
        jacobian = torch.autograd.functional.jacobian(lambda v: output_of(network, v[None]), x)
        norms.append(jacobian.norm())
    return torch.stack(norms)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_norm_of_the_jacobian_is_that_of_autograd(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, points = randomised(make()), torch.randn(9, *shape, dtype=torch.float64)
    dim = math.prod(shape)
    found = local_complexity(network, points, radius=0.1, n_directions=dim, method="linear")
    by_rules = "by rules" in found.route
    assert by_rules or name == "layer_norm"
    torch.testing.assert_close(found.jacobian_norm, twin(network, points), rtol=1e-9 if by_rules else 1e-4, atol=0)
    assert found.total_variation == pytest.approx(float(found.jacobian_norm.mean()))
