"""Neural collapse: exact on features made with known values, equal to a NumPy twin on random ones."""

from __future__ import annotations

import math
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lc_callback.functional import NeuralCollapse, neural_collapse
from lc_callback.functional.neural_collapse import last_features, neural_collapse_of


def twin(h: np.ndarray, y: np.ndarray, decisions: np.ndarray, w: np.ndarray) -> dict[str, float]:
    """The formulas as they are written, one class and one pair at a time."""
    classes = np.unique(y)
    c, (n, d) = len(classes), h.shape
    means = [h[y == k].mean(0) for k in classes]
    overall = sum(means) / c
    within, between = np.zeros((d, d)), np.zeros((d, d))
    for row, k in zip(h, y, strict=True):
        away = row - means[list(classes).index(k)]
        within += np.outer(away, away) / n
    for mean in means:
        between += np.outer(mean - overall, mean - overall) / c
    norms = [np.linalg.norm(mean - overall) for mean in means]
    cosines = [
        (means[i] - overall) @ (means[j] - overall) / (norms[i] * norms[j])
        for i in range(c)
        for j in range(c)
        if i != j
    ]
    m = np.stack([mean - overall for mean in means])
    nearest = [classes[np.argmin([np.linalg.norm(row - mean) for mean in means])] for row in h]
    rows = w[classes]
    return {
        "nc1": np.trace(within @ np.linalg.pinv(between, rcond=1e-10)) / c,
        "nc2_norms": np.std(norms) / np.mean(norms),
        "nc2_angles": np.std(cosines),
        "nc2_simplex": np.mean([abs(cosine + 1 / (c - 1)) for cosine in cosines]),
        "nc3": np.linalg.norm(rows / np.linalg.norm(rows) - m / np.linalg.norm(m)),
        "nc4": np.mean(np.array(nearest) == decisions),
    }


def assert_same(found: NeuralCollapse, expected: dict[str, float]) -> None:
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name


def simplex(c: int, d: int, seed: int = 0) -> Tensor:
    """``(c, d)``: a simplex of norm 1 round 0, turned at random."""
    frame = torch.eye(c, dtype=torch.float64) - 1 / c
    turned = torch.linalg.qr(torch.randn(d, c, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]
    return (frame @ turned.T) / math.sqrt(1 - 1 / c)


@pytest.mark.parametrize(("c", "d"), [(2, 2), (3, 8), (10, 10), (10, 64), (4, 4)])
@pytest.mark.parametrize("shift", [0.0, 50.0])
def test_a_simplex_has_collapsed(c: int, d: int, shift: float) -> None:
    means = 3 * simplex(c, d)
    y = torch.arange(c).repeat(7)
    found = neural_collapse_of(means[y] + shift, y, y, 5 * simplex(c, d))
    expected = {"nc1": 0, "nc2_norms": 0, "nc2_angles": 0, "nc2_simplex": 0, "nc3": 0, "nc4": 1}
    for name, value in expected.items():
        assert getattr(found, name) == pytest.approx(value, abs=1e-7), name
    assert found.n_classes == c


@pytest.mark.parametrize("seed", range(200))
def test_random_features_as_the_twin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    c, d = int(rng.integers(2, 9)), int(rng.integers(1, 12))
    n = int(rng.integers(2 * c, 60))
    y = rng.permutation(np.concatenate([np.arange(c), rng.integers(0, c, n - c)]))
    h = rng.standard_normal((n, d)) * rng.uniform(0.1, 3, d) + rng.standard_normal((c, d))[y] * rng.uniform(0, 5)
    if seed % 5 == 0:
        y = 2 * y  # classes that no point has
    w, decisions = rng.standard_normal((2 * c, d)), rng.integers(0, 2 * c, n)
    found = neural_collapse_of(*map(torch.as_tensor, (h, y, decisions, w)))
    assert_same(found, twin(h, y, decisions, w))


def test_variability_of_known_size() -> None:
    """Two classes at -2 and 2, spread 1 along the axis between them, 3 across: only the first counts."""
    h = torch.tensor(
        [[2.0 + a, b] for a in (-1, 1) for b in (-3, 3)] + [[-2.0 + a, b] for a in (-1, 1) for b in (-3, 3)]
    )
    y = torch.tensor([0] * 4 + [1] * 4)
    assert neural_collapse_of(h, y, y).nc1 == pytest.approx(1 / 4 / 2)


def test_without_a_head_or_with_features_that_are_not_finite() -> None:
    h, y = torch.randn(12, 3, dtype=torch.float64), torch.arange(12) % 3
    assert math.isnan(neural_collapse_of(h, y, y).nc3)
    h[4, 1] = math.nan
    found = neural_collapse_of(h, y, y)
    assert all(math.isnan(getattr(found, name)) for name in ("nc1", "nc2_norms", "nc2_angles", "nc4"))


class Functional(nn.Module):
    """Its head is no module."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(6, 5), nn.ReLU()), nn.Parameter(torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) @ self.head.T


class Tuple(nn.Module):
    """Returns its features beside the log-probabilities."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 5), nn.Linear(5, 3), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Any:
        h = self.body(x).relu()
        logits = self.head(h).log_softmax(1)
        return logits, self.other(h)


class Conv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(1, 5, 2), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x.view(-1, 1, 2, 3)).relu().mean((2, 3)))


MODELS: dict[str, tuple[Any, dict[str, Any], bool]] = {
    "sequential": (lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), {}, True),
    "tuple": (Tuple, {}, True),
    "convolution": (Conv, {}, True),
    "feature map by name": (Conv, {"layer": "conv"}, True),
    "functional head": (Functional, {"layer": "body"}, False),
    "layer of another width": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3)),
        {"layer": "1"},
        False,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_features_are_found(name: str) -> None:
    torch.manual_seed(0)
    make, named, has_head = MODELS[name]
    model, x, y = make().train(), torch.randn(40, 6), torch.arange(40) % 3
    before = {key: value.clone() for key, value in model.state_dict().items()}
    last = last_features(model, x, chunk_size=7, **named)
    assert (last.weight is not None) == has_head
    logits = model(x)
    logits = logits[0] if isinstance(logits, tuple) else logits
    assert torch.equal(last.decisions, logits.argmax(1))
    if has_head and name != "feature map by name":
        head = model.head if hasattr(model, "head") else model[-1]
        torch.testing.assert_close((last.features @ head.weight.T + head.bias).argmax(1), last.decisions)
    found = neural_collapse(model, x, y, chunk_size=9, **named)
    for one, other in zip(astuple(found), astuple(neural_collapse(model, x, y, **named)), strict=True):
        assert one == pytest.approx(other, rel=1e-4, nan_ok=True)
    assert math.isnan(found.nc3) != has_head
    assert model.training
    assert not model._forward_hooks
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("make", "arguments", "message"),
    [
        (Functional, {}, "name the module whose output are the last features with `layer=`"),
        (Functional, {"layer": "boddy"}, "body"),
        (Tuple, {"targets": torch.zeros(40, dtype=torch.long)}, "two classes or more, but these are of 1"),
        (Tuple, {"targets": torch.randn(40)}, "integer classes"),
        (Tuple, {"targets": torch.arange(39) % 3}, "39 targets for 40 points"),
        (Tuple, {"chunk_size": 0}, "chunk_size"),
    ],
)
def test_bad_arguments(make: Any, arguments: dict[str, Any], message: str) -> None:
    given = {"targets": torch.arange(40) % 3} | arguments
    with pytest.raises(ValueError, match=message):
        neural_collapse(make(), torch.randn(40, 6), **given)


def test_training_collapses() -> None:
    torch.manual_seed(0)
    y = torch.arange(60) % 3
    x = torch.randn(3, 6)[y] * 2 + torch.randn(60, 6)
    model = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 3))
    before = neural_collapse(model, x, y)
    optimizer = torch.optim.Adam(model.parameters(), 0.01, weight_decay=1e-3)
    for _ in range(400):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    after = neural_collapse(model, x, y)
    assert after.nc1 < 0.2 * before.nc1
    assert after.nc2_simplex < 0.5 * before.nc2_simplex
    assert after.nc3 < before.nc3
    assert after.nc4 == 1.0
