"""The Jacobian of the output and the density of boundaries, against what autograd and grids say."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lc_callback.engine.counting.critical_radius import CriticalRadiiSweep
from lc_callback.engine.network.frame import steepest_share
from lc_callback.engine.replay.way import Way
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
    return output["logits"] if isinstance(output, dict) else output[0] if isinstance(output, tuple) else output


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
    network, points = randomised(make()), torch.randn(36, *shape, dtype=torch.float64)
    dim = math.prod(shape)
    found = local_complexity(network, points, radius=0.1, n_directions=dim, method="linear")
    by_rules = "by rules" in found.route
    assert by_rules or name == "layer_norm"
    expected = twin(network, points[:9])
    torch.testing.assert_close(found.jacobian_norm, expected, rtol=1e-9 if by_rules else 1e-4, atol=0)
    assert found.total_variation == pytest.approx(float(found.jacobian_norm.mean()))


def test_behind_an_embedding_it_is_by_the_vectors() -> None:
    torch.manual_seed(0)
    head = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    network, tokens = nn.Sequential(nn.Embedding(5, 4).double(), *head), torch.randint(0, 5, (28, 3))
    found = local_complexity(network, tokens, radius=0.1, n_directions=12, method="linear")
    vectors = network[0](tokens[:7]).detach().requires_grad_()
    torch.testing.assert_close(found.jacobian_norm, twin(head, vectors), rtol=1e-6, atol=0)


NOT_FOLLOWED: dict[str, Any] = {
    "no_rule": lambda: nn.Sequential(mlp(), nn.Softmax(-1)),
    "last_gelu": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 9), nn.GELU(), nn.Linear(9, 4)),
    "no_tensor": lambda: mlp(lambda x, y: {"y": y}),
    "input_again": lambda: mlp(lambda x, y: x + y),
    "larger": lambda: nn.Sequential(nn.Linear(6, 9), nn.ReLU(), nn.Linear(9, 500)),
}


@pytest.mark.parametrize("name", NOT_FOLLOWED)
def test_where_the_output_is_not_followed_the_counts_are_the_same(name: str) -> None:
    torch.manual_seed(0)
    network, points = NOT_FOLLOWED[name](), torch.randn(9, 6)
    found = local_complexity(network, points, radius=0.1, n_directions=3, method="linear")
    assert found.jacobian_norm is None
    assert found.total_variation is None
    assert "by rules" in found.route
    before = network[0] if name == "no_rule" else network
    assert found.counts.equal(local_complexity(before, points, radius=0.1, n_directions=3, method="linear").counts)


def test_of_few_directions_its_square_is_right_in_the_mean() -> None:
    torch.manual_seed(0)
    network, points = mlp().double(), torch.randn(20, 6, dtype=torch.float64)
    frames = [
        local_complexity(network, points, radius=0.1, n_directions=2, seed=s, method="linear") for s in range(150)
    ]
    mean = torch.stack([frame.jacobian_norm.square() for frame in frames]).mean(0).sqrt()
    torch.testing.assert_close(mean, twin(network, points[:5]), rtol=0.05, atol=0)


@pytest.mark.parametrize("name", ["mlp", "layer_norm"])
def test_directions_that_are_followed_in_parts_add_up(name: str) -> None:
    torch.manual_seed(0)
    make, shape = NETWORKS[name]
    network, points = randomised(make()), torch.randn(20, *shape, dtype=torch.float64)
    whole, parts = (
        local_complexity(network, points, radius=0.1, n_directions=6, method="linear", chunk_size=size)
        for size in (None, 3)  # a point and two directions
    )
    torch.testing.assert_close(parts.jacobian_norm, whole.jacobian_norm)


@pytest.mark.parametrize(("n", "expected"), [(1, 1), (5, 2), (100, 25), (253, 64), (300, 64)])
def test_only_the_first_points_have_one_and_shares_are_joined(n: int, expected: int) -> None:
    torch.manual_seed(0)
    network, sets = mlp().double(), {"a": torch.randn(n, 6).double(), "b": torch.randn(11, 6).double()}
    whole = local_complexity_of_sets("linear", network, sets, 0.1, 3)
    parts = [local_complexity_of_sets("linear", network, sets, 0.1, 3, share=(i, 3)) for i in range(3)]
    assert len(whole["a"].jacobian_norm) == expected
    torch.testing.assert_close(joined([part["a"] for part in parts]).jacobian_norm, whole["a"].jacobian_norm)
    assert whole["b"].jacobian_norm is joined([part["b"] for part in parts]).jacobian_norm is None  # of the first set


@pytest.mark.parametrize("at_once", [7, 30])
def test_at_no_other_point_the_output_is_followed(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    followed: list[int] = []
    way_of = CriticalRadiiSweep.way_of

    def spied(self: CriticalRadiiSweep, points: Tensor) -> Way:
        way = way_of(self, points)
        followed.extend(points.tolist() if way.with_output else [])
        return way

    monkeypatch.setattr(CriticalRadiiSweep, "way_of", spied)
    points = torch.randn(41, 6, dtype=torch.float64)
    local_complexity(mlp().double(), points, radius=0.1, n_directions=1, method="linear", chunk_size=at_once)
    assert followed == [*range(11)]


def test_what_is_not_finite_is_reported() -> None:
    torch.manual_seed(0)
    points = torch.randn(5, 6)
    points[1, 0] = math.nan
    found = local_complexity(mlp(), points, radius=[0.1, 0.2], n_directions=3, method="linear")
    assert math.isnan(found.total_variation)
    assert math.isnan(found.boundary_density)


@pytest.mark.parametrize(("dim", "n_directions"), [(1, 1), (2, 1), (3, 3), (50, 7), (200, 200)])
def test_the_share_of_the_steepest_direction_is_that_of_random_vectors(dim: int, n_directions: int) -> None:
    vectors = torch.randn(20_000, dim, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    drawn = (vectors[:, :n_directions].abs().amax(1) / vectors.norm(dim=1)).mean()
    assert steepest_share(dim, n_directions) == pytest.approx(float(drawn), rel=0.02)


def test_the_density_of_boundaries_is_their_length_in_an_area() -> None:
    """Two lines through a square of side 2: sum of their lengths over the area."""
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[3.0, 0.0], [1.0, 1.0]]))
        network[0].bias.zero_()
    points = 2 * torch.rand(40_000, 2, generator=torch.Generator().manual_seed(0)) - 1
    for n_directions in (1, 2):  # of a frame of its own each: the mean over frames counts
        found = [
            local_complexity(network, points, radius=0.1, n_directions=n_directions, seed=seed, method="linear")
            for seed in range(12)
        ]
        mean = sum(each.boundary_density for each in found) / len(found)
        assert mean == pytest.approx((2 + 2 * 2**0.5) / 4, rel=0.12)


def test_directions_that_are_given_have_no_constant() -> None:
    found = local_complexity(mlp(), torch.randn(5, 6), radius=0.1, directions=torch.eye(6)[:2], method="linear")
    assert (found.boundary_density, found.total_variation) == (None, None)
    assert found.density > 0
