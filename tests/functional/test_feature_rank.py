"""Ranks of features against NumPy and torch, and from a stream against all at once."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lc_callback.functional import FeatureCovariance, feature_rank

OPTIONS = [
    dict(zip(("matrix", "center", "tol", "relative", "precision"), values, strict=True))
    for values in itertools.product(
        ("covariance", "features"), (True, False), (None, 0.01), (True, False), (None, torch.float32, torch.bfloat16)
    )
]


def twin(features: torch.Tensor, matrix, center, tol, relative, precision):
    """Rank, spectrum, effective and stable rank by the definitions, in NumPy."""
    x = features.double().numpy()
    n, d = x.shape
    x = x - x.mean(0) if center else x
    sigma = np.linalg.svd(x, compute_uv=False)
    if matrix == "covariance":
        spectrum = np.linalg.svd(x.T @ x / (n - 1 if center else n), compute_uv=False)[: min(n, d)]
    else:
        spectrum = sigma
    if tol is None:
        tol = d * torch.finfo(precision or features.dtype).eps
    threshold = tol * spectrum[0] if relative else tol
    p = sigma[sigma > 0] / sigma.sum()
    return (spectrum > threshold).sum(), spectrum, np.exp(-(p * np.log(p)).sum()), (sigma**2).sum() / sigma[0] ** 2


def low_rank(n: int, d: int, rank: int, seed: int, dtype: torch.dtype, decay: float = 0.0) -> torch.Tensor:
    """Features of that rank about a mean, with singular values that decay."""
    g = torch.Generator().manual_seed(seed)
    scales = torch.exp(-decay * torch.arange(rank, dtype=torch.float64))
    left = torch.randn(n, rank, generator=g, dtype=torch.float64) * scales
    mean = torch.randn(d, generator=g, dtype=torch.float64)
    return (left @ torch.randn(rank, d, generator=g, dtype=torch.float64) + mean).to(dtype)


@st.composite
def draws(draw):
    n, d = draw(st.integers(2, 40)), draw(st.integers(1, 30))
    rank = draw(st.integers(1, 30))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return low_rank(n, d, rank, draw(st.integers(0, 10_000)), dtype, draw(st.sampled_from([0.0, 0.3])))


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(draws())
def test_rank_of_the_features_is_that_of_torch(features):
    centred = features.double() - features.double().mean(0)
    tol = features.shape[1] * torch.finfo(features.dtype).eps
    assert feature_rank(features, matrix="features").rank == torch.linalg.matrix_rank(centred, rtol=tol)


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(draws(), st.sampled_from(OPTIONS))
def test_every_option_agrees_with_the_twin(features, options):
    rank, spectrum, effective, stable = twin(features, **options)
    found = feature_rank(features, **options)
    near = np.abs(spectrum - found.threshold) < 1e-12 * spectrum[0]  # there rounding decides
    assert abs(found.rank - rank) <= near.sum()
    np.testing.assert_allclose(found.spectrum.numpy(), spectrum, atol=1e-12 * spectrum[0])
    assert found.effective_rank == pytest.approx(effective, rel=1e-9)
    assert found.stable_rank == pytest.approx(stable, rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_stream_gives_what_all_at_once_gives(options):
    for seed, (n, d, size) in enumerate([(50, 8, 7), (9, 20, 4), (64, 16, 64), (30, 30, 1)]):
        features = low_rank(n, d, 6, seed, torch.float32)
        stream = FeatureCovariance()
        for batch in features.split(size):
            stream.update(batch)
        found, expected = stream.rank(**options), feature_rank(features, **options)
        squares = (found.spectrum, expected.spectrum)
        if options["matrix"] == "features":  # the stream knows the squares
            squares = tuple(s.square() for s in squares)
        assert torch.allclose(*squares, rtol=0, atol=1e-10 * float(squares[1][0]))
        if options["tol"] is not None or options["precision"] is torch.bfloat16:
            assert found.rank == expected.rank
        assert found.stable_rank == pytest.approx(expected.stable_rank, rel=1e-10)


def test_a_stream_with_a_large_mean_keeps_its_digits():
    features = low_rank(100, 5, 5, 0, torch.float64) + 1e6
    stream = FeatureCovariance()
    for batch in features.split(3):
        stream.update(batch)
    assert torch.allclose(stream.rank().spectrum, feature_rank(features).spectrum, rtol=1e-9)


def test_ranks_of_known_matrices():
    found = feature_rank(torch.eye(4), matrix="features", center=False)
    assert (found.rank, found.effective_rank, found.stable_rank) == (4, pytest.approx(4), pytest.approx(4))
    assert feature_rank(torch.eye(4)).rank == 3  # the mean is one of the four directions
    one = feature_rank(torch.ones(5, 3), center=False)
    assert (one.rank, one.effective_rank, one.stable_rank) == (1, pytest.approx(1), pytest.approx(1))
    constant = feature_rank(torch.ones(5, 3))
    assert (constant.rank, constant.effective_rank, constant.stable_rank) == (0, 0.0, 0.0)


def test_precision_moves_the_threshold():
    features = low_rank(60, 20, 20, 0, torch.float64, decay=0.9)
    ranks = [feature_rank(features, precision=p).rank for p in (torch.bfloat16, torch.float32, torch.float64)]
    assert ranks[0] < ranks[1] < ranks[2]
    assert feature_rank(features.float()).rank == ranks[1]


# Not more rows, nor more positions, make the tolerance coarser.


@pytest.mark.parametrize("precision", [None, torch.float64], ids=str)
@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("d", "decay"), [(2, 0.0), (16, 0.0), (16, 1.0), (64, 0.1), (64, 0.3), (100, 0.1)])
def test_more_points_never_lower_the_rank_of_iid_features(d, decay, center, precision):
    g = torch.Generator().manual_seed(0)
    turned = torch.linalg.qr(torch.randn(d, d, generator=g, dtype=torch.float64))[0]
    scales = torch.exp(-decay * torch.arange(d, dtype=torch.float64))
    rows = (torch.randn(20_000, d, generator=g, dtype=torch.float64) * scales @ turned + 1).float()
    for matrix in ("covariance", "features"):
        options = {"center": center, "matrix": matrix, "precision": precision}
        ranks = [feature_rank(rows[:n], **options).rank for n in (8, 64, 512, 4_096, 20_000)]
        assert ranks == sorted(ranks)
        if not decay:
            assert ranks[-1] == d


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("planted", "mean"), [(1, 0.0), (5, 0.0), (5, 1.0), (5, 100.0), (16, 1.0)])
def test_a_stream_of_a_million_rows_has_the_rank_that_was_planted(planted, mean, dtype):
    g = torch.Generator().manual_seed(1)
    mix = torch.randn(planted, 16, generator=g, dtype=dtype)
    stream = FeatureCovariance()
    for _ in range(5):
        stream.update(torch.randn(200_704, planted, generator=g, dtype=dtype) @ mix + mean)
    # What rounding leaves beside the planted directions lies far below the tolerance, 16 * eps.
    for matrix in ("covariance", "features"):
        found = stream.rank(matrix=matrix, precision=torch.float32)
        assert found.rank == planted
        assert (found.spectrum[planted:] < 0.5 * found.threshold).all()


def test_not_finite_is_nan_never_a_rank():
    features = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    features[2, 1] = math.inf
    stream = FeatureCovariance()
    stream.update(features)
    for found in (feature_rank(features), stream.rank()):
        assert math.isnan(found.rank)
        assert math.isnan(found.effective_rank)
        assert found.spectrum.isnan().all()


@pytest.mark.parametrize(
    ("features", "arguments", "text"),
    [
        (torch.ones(4, 3), {"matrix": "gram"}, "`matrix` must be one of .* 'gram'"),
        (torch.ones(4, 3), {"tol": -1.0}, "`tol` must be a number >= 0 or None, but got -1.0"),
        (torch.ones(4, 3), {"precision": torch.int32}, "`precision` must be .* torch.int32"),
        (torch.ones(4, 3, 2), {}, r"`features` must be .* \(4, 3, 2\): flatten"),
        (torch.ones(4, 3, dtype=torch.long), {}, "`features` must be .* torch.int64"),
        ([[1.0]], {}, "`features` must be .* list"),
        (torch.ones(1, 3), {}, r"at least 2 rows and 1 column, but has shape \(1, 3\)"),
    ],
)
def test_bad_input_is_named(features, arguments, text):
    with pytest.raises(ValueError, match=text):
        feature_rank(features, **arguments)


def test_a_stream_names_bad_batches():
    stream = FeatureCovariance()
    with pytest.raises(ValueError, match=r"at least 2 rows .* 0 were added"):
        stream.rank()
    stream.update(torch.ones(3, 2))
    stream.update(torch.ones(0, 2))
    with pytest.raises(ValueError, match=r"tensor \(n, 2\), but got torch.float32 \(3, 4\)"):
        stream.update(torch.ones(3, 4))
    assert stream.n == 3
