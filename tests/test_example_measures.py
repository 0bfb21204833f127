"""The measures and the bound under ``examples/``, against what autograd says point by point."""

from __future__ import annotations

import math
from typing import Any

import bound
import measures
import pytest
import torch
from helpers import Classifier, loader, make_trainer
from torch import nn

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def network() -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.ReLU()
    return nn.Sequential(*hidden, nn.Linear(9, 4))


def test_the_spectra_are_those_of_each_jacobian() -> None:
    net, points = network(), torch.randn(21, 6)
    found = measures.jacobian_spectra(net, points, chunk_size=8)
    jacobians = [torch.autograd.functional.jacobian(net[:-1], x) for x in points]
    torch.testing.assert_close(
        found, torch.stack([torch.linalg.svdvals(j) for j in jacobians]).double(), rtol=1e-4, atol=1e-5
    )
    assert [p.requires_grad for p in net.parameters()] == [True] * 6
    assert not net[-1]._forward_pre_hooks


@pytest.mark.parametrize(
    ("spectrum", "numerical", "effective"),
    [
        ([1.0, 1.0, 1.0, 0.0], 3, 3.0),
        ([1.0, 0.02, 0.005, 0.0], 2, None),
        ([5.0, 0.04], 1, None),
        ([0.0, 0.0], 0, 0.0),
        ([5.0], 1, 1.0),
    ],
)
def test_ranks_of_a_spectrum(spectrum: list[float], numerical: int, effective: float | None) -> None:
    spectra = torch.tensor([spectrum])
    assert measures.numerical_rank(spectra, 0.01).tolist() == [numerical]
    if effective is not None:
        assert measures.effective_rank(spectra).tolist() == pytest.approx([effective])


def test_the_callback_logs_both_ranks_of_the_training_points(tmp_path: Any) -> None:
    callback = measures.LocalRank(n_probes=5, schedule=[0, 2])
    make_trainer(tmp_path, callback, max_steps=2).fit(Classifier(), loader())
    assert set(callback.history.keys) == {"local_rank/train", "local_rank/effective_train", "local_rank/seconds"}
    for numerical, effective in zip(
        callback.history["local_rank/train"], callback.history["local_rank/effective_train"], strict=True
    ):
        assert 1 <= numerical <= 6
        assert 1 <= effective <= 6


@pytest.mark.parametrize("tol", [0.0, 1.0, -1.0])
def test_a_tolerance_out_of_range_is_named(tol: float) -> None:
    with pytest.raises(ValueError, match="`tol` must be"):
        measures.LocalRank(tol=tol)


def test_the_bound_holds_and_its_sides_are_those_of_autograd() -> None:
    net, points = network(), torch.randn(15, 6)
    found = bound.bound(net, points)
    variation = complexity = highest = 0.0
    double = network().double().requires_grad_(False)
    for x in points.double():
        variation += float(torch.autograd.functional.jacobian(double, x).norm()) / 15
        z, slopes = double[:-2](x), torch.autograd.functional.jacobian(double[:-2], x)
        density = torch.distributions.Normal(0.0, found.noise).log_prob(z).exp()
        complexity += float((slopes.norm(dim=1) * density).sum()) / 15
        highest = max(highest, float(z.max()))
    heaviest = max(float(column.norm()) for column in double[-1].weight.T)
    assert (found.total_variation, found.complexity) == pytest.approx((variation, complexity))
    assert found.noise == pytest.approx(highest)
    assert found.constant == pytest.approx(math.sqrt(2 * math.pi * math.e) * highest * heaviest)
    assert found.constant * found.complexity >= found.total_variation
    assert found.looseness == pytest.approx(found.constant * complexity / variation)


def test_rows_are_compared() -> None:
    row = {"lc_tv/train": 2.0, "lc_boundary/train": 6.0}
    assert (bound.of_row(row), bound.of_row(row, 0.5)) == (3.0, 1.5)
    assert bound.looseness(0.0, 1.0) == math.inf
    with pytest.raises(ValueError, match="ends with"):
        bound.bound(nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1)), torch.randn(2, 2))
