"""Rank of features: numerical, effective and stable, at once or from a stream of batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.engine.network.features import Features
from lc_callback.suggestions import did_you_mean

__all__ = [
    "FeatureCovariance",
    "FeatureRank",
    "check_options",
    "coarse_tolerance",
    "feature_rank",
    "feature_ranks",
    "ranks_of",
]

_MATRICES = ("covariance", "features")
_COARSE = 0.01  # tolerance from which a numerical rank says little


@dataclass(frozen=True, eq=False)
class FeatureRank:
    """Rank and spectrum of ``n`` features of width ``d``.

    Attributes:
        rank: numerical rank, from 0 to ``min(n, d)``; NaN if a feature is not finite.
        spectrum: ``(min(n, d),)`` float64, descending: singular values of the matrix that was asked for.
        effective_rank: exponential of the entropy of the normalised singular values of the features, from 1 to
            ``min(n, d)`` (Roy and Vetterli, 2007). 0 if all are 0. Needs no threshold, and nor does the next.
        stable_rank: squared Frobenius norm of the features over their squared spectral norm, from 1 to ``min(n, d)``.
            0 if all features are 0.
        threshold: the value that a singular value of the matrix must exceed to count.
        n: number of samples.
        d: width.
    """

    rank: float
    spectrum: Tensor
    effective_rank: float
    stable_rank: float
    threshold: float
    n: int
    d: int

    def __repr__(self) -> str:
        ranks = f"rank={self.rank}, effective_rank={self.effective_rank:.4g}, stable_rank={self.stable_rank:.4g}"
        return f"FeatureRank({ranks}, n={self.n}, d={self.d})"


def feature_rank(
    features: Tensor,
    *,
    matrix: str = "covariance",
    center: bool = True,
    tol: float | None = None,
    relative: bool = True,
    precision: torch.dtype | None = None,
) -> FeatureRank:
    r"""Numerical rank of a layer's features, with its spectrum and two ranks that need no threshold.

    The numerical rank is the number of singular values above ``tol`` times the largest, by default with
    ``tol = d * eps``. For the covariance, a matrix ``(d, d)``, this is :func:`torch.linalg.matrix_rank`. It does not
    grow with the number of samples, so more samples of the same distribution do not lower the rank.

    *Deep Grokking* (2024, page 3) counts the singular values of the covariance that way. It writes ``max(n, d) * eps``,
    and leaves centring and precision open; they change the number much. The default here is the centred covariance with
    the ``eps`` of the features' own dtype; ``tol=max(n, d) * eps`` is the paper's formula to the letter. The
    computation itself is in float64 whatever the precision.

    Args:
        features: ``(n, d)``, one row for each sample.
        matrix: ``"covariance"`` (singular values :math:`\sigma_i^2 / (n - 1)`; over ``n`` without centring), or
            ``"features"`` (:math:`\sigma_i`), where :math:`\sigma_i` are the singular values of the features.
        center: subtract the mean over the samples first.
        tol: tolerance; ``None`` is ``d * eps``.
        relative: the tolerance is relative to the largest singular value, else it is the threshold itself.
        precision: floating-point type whose ``eps`` is meant; ``None`` is that of the features.

    Raises:
        ValueError: if ``features`` is not a floating-point matrix with at least two rows and one column, or an argument
            is out of range.

    Example::

        >>> import torch
        >>> from lc_callback.functional import feature_rank
        >>> generator = torch.Generator().manual_seed(0)
        >>> low_rank = torch.randn(100, 3, generator=generator) @ torch.randn(3, 20, generator=generator)
        >>> feature_rank(low_rank).rank
        3
    """
    check_options(matrix, tol, precision)
    if not isinstance(features, Tensor) or features.ndim != 2 or not features.is_floating_point():
        got = f"{features.dtype} {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"`features` must be a floating-point tensor (n, d), but got {got}: flatten it to two axes.")
    n, d = features.shape
    if n < 2 or d < 1:
        raise ValueError(f"`features` must have at least 2 rows and 1 column, but has shape {(n, d)}.")
    values = features.detach().double()
    if not values.isfinite().all():
        sigma = torch.full((min(n, d),), math.nan, dtype=torch.float64)
    else:
        sigma = torch.linalg.svdvals(values - values.mean(0) if center else values)
    return _ranks(sigma, n, d, matrix, center, tol, relative, precision or features.dtype)


class FeatureCovariance:
    """The same ranks from batches, in memory ``O(d^2)`` whatever the number of samples.

    Means and scatter matrices are merged in float64 (Chan, Golub and LeVeque, 1983), so the order of batches and their
    size do not matter beyond rounding. Singular values of the features below about 1e-7 of the largest drown in the
    squaring and are given as 0; no tolerance of float32 or coarser sees that.

    Example::

        >>> import torch
        >>> from lc_callback.functional import FeatureCovariance, feature_rank
        >>> features = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
        >>> stream = FeatureCovariance()
        >>> for batch in features.split(30):
        ...     stream.update(batch)
        >>> torch.allclose(stream.rank().spectrum, feature_rank(features).spectrum)
        True
    """

    def __init__(self) -> None:
        self.n = 0
        self._mean: Tensor | None = None
        self._scatter: Tensor | None = None
        self._dtype = torch.float32

    def __repr__(self) -> str:
        return f"FeatureCovariance(n={self.n}, d={None if self._mean is None else len(self._mean)})"

    def update(self, features: Tensor) -> None:
        """Add a batch ``(n, d)``.

        Raises:
            ValueError: if it is not a floating-point matrix of the width of the batches before it.
        """
        width = None if self._mean is None else len(self._mean)
        shape = tuple(features.shape)
        if features.ndim != 2 or not features.is_floating_point() or (width is not None and shape[1] != width):
            raise ValueError(
                f"`features` must be a floating-point tensor (n, {'d' if width is None else width}), but got "
                f"{features.dtype} {shape}."
            )
        if not len(features):
            return
        self._dtype = features.dtype
        values = features.detach().double()
        mean = values.mean(0)
        centred = values - mean
        self._merge(len(values), mean, centred.T @ centred)

    def _merge(self, n: int, mean: Tensor, scatter: Tensor) -> None:
        if self._mean is None or self._scatter is None:
            self.n, self._mean, self._scatter = n, mean, scatter
            return
        total = self.n + n
        gap = mean - self._mean
        self._scatter += scatter + torch.outer(gap, gap) * (self.n * n / total)
        self._mean += gap * (n / total)
        self.n = total

    @property
    def dtype(self) -> torch.dtype:
        """That of the features, whose ``eps`` is the default precision."""
        return self._dtype

    def packed(self) -> Tensor:
        """``(2 + d + d * d,)`` float64: number of rows, width, mean and scatter matrix."""
        if self._mean is None or self._scatter is None:
            raise ValueError("nothing was added.")
        head = torch.tensor([self.n, len(self._mean)], dtype=torch.float64, device=self._mean.device)
        return torch.cat([head, self._mean, self._scatter.flatten()])

    def add_packed(self, packed: Tensor) -> Tensor:
        """Add what :meth:`packed` returned and stands first in a vector; returns the rest of the vector."""
        n, d = int(packed[0]), int(packed[1])
        mean, scatter, rest = packed[2:].double().split([d, d * d, len(packed) - 2 - d - d * d])
        self._merge(n, mean.clone(), scatter.view(d, d).clone())
        return rest

    def rank(
        self,
        *,
        matrix: str = "covariance",
        center: bool = True,
        tol: float | None = None,
        relative: bool = True,
        precision: torch.dtype | None = None,
    ) -> FeatureRank:
        """The ranks of all that was added; arguments as in :func:`feature_rank`.

        Raises:
            ValueError: if fewer than two rows were added, or an argument is out of range.
        """
        check_options(matrix, tol, precision)
        if self.n < 2 or self._mean is None or self._scatter is None:
            raise ValueError(f"at least 2 rows of features are needed, but {self.n} were added.")
        d = len(self._mean)
        scatter = self._scatter if center else self._scatter + self.n * torch.outer(self._mean, self._mean)
        if scatter.isfinite().all():
            squares = torch.linalg.eigvalsh(scatter).flip(0)[: min(self.n, d)]
            noise = d * torch.finfo(torch.float64).eps * squares[0]
            sigma = torch.where(squares > noise, squares, 0.0).sqrt()
        else:
            sigma = torch.full((min(self.n, d),), math.nan, dtype=torch.float64)
        return _ranks(sigma, self.n, d, matrix, center, tol, relative, precision or self._dtype)


def feature_ranks(
    model: nn.Module,
    inputs: Any,
    *,
    layers: Sequence[str | type] | None = None,
    matrix: str = "covariance",
    center: bool = True,
    tol: float | None = None,
    relative: bool = True,
    precision: torch.dtype | None = None,
    max_width: int = 4096,
    seed: int = 0,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
) -> dict[str, FeatureRank]:
    """Rank of the features of each hidden layer of a model over points (*Deep Grokking*, 2024, page 3).

    Features are what the non-linearities return, one row for each point. Feature maps of convolutions have a row for
    each point and position and a column for each channel; sequences a row for each point and token. Batches are added
    to a covariance, so memory is ``O(d^2)`` for a layer of width ``d`` and any number of points.

    The model is run in eval mode, in float32 or better, and left exactly as it was.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor with ``N >= 2``, a tuple of tensors (positional arguments) or a dict (keywords).
        layers: ``None`` takes what every executed non-linearity returns (of recurrent modules their output). A list of
            module names, ``fnmatch`` patterns, class names or types takes the outputs of these modules.
        matrix: as for :func:`feature_rank`, and so are the next four.
        center: subtract the mean over the rows first.
        tol: tolerance; ``None`` is ``d * eps``, whatever the number of points and positions.
        relative: the tolerance is relative to the largest singular value.
        precision: floating-point type whose ``eps`` is meant; ``None`` is that of the computation.
        max_width: wider layers are first projected to this width by a seeded Gaussian matrix, and the key ends in
            ``_proj<max_width>``.
        seed: seed of the projection.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one forward pass; by default as many as fit a memory budget.

    Returns:
        :class:`FeatureRank` by layer, in execution order.

    Raises:
        ValueError: for an argument out of range, or if no layer was seen.

    Example::

        >>> import torch
        >>> from lc_callback.functional import feature_ranks
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        >>> with torch.no_grad():  # nearly linear, so the two inputs span all there is
        ...     _ = net[0].weight.mul_(1e-3), net[0].bias.zero_()
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> {layer: found.rank for layer, found in feature_ranks(net, x).items()}
        {'1': 2}
    """
    features = Features(model, inputs, layers=layers, max_width=max_width, seed=seed, forward_fn=forward_fn)
    options: dict[str, Any] = {"matrix": matrix, "center": center, "tol": tol, "relative": relative}
    found = ranks_of(features, chunk_size, **options, precision=precision)
    text = coarse_tolerance(found, tol)
    if text:
        warnings.warn(text, stacklevel=2)
    return found


def ranks_of(features: Features, chunk_size: int | None = None, **options: Any) -> dict[str, FeatureRank]:
    """:func:`feature_ranks` of these features, with the options of :func:`feature_rank`, without its warning."""
    covariances: dict[str, FeatureCovariance] = {}
    features.stream(
        lambda name, rows: covariances.setdefault(name, FeatureCovariance()).update(rows.flatten(0, 1)), chunk_size
    )
    return {name: stream.rank(**options) for name, stream in covariances.items()}


def coarse_tolerance(found: Mapping[str, FeatureRank], tol: float | None) -> str:
    """A sentence about the layers of which a default tolerance leaves much out; empty if there are none."""
    coarse = [name for name, ranks in found.items() if tol is None and ranks.threshold > _COARSE * ranks.spectrum[0]]
    if not coarse:
        return ""
    return (
        f"the rank of {', '.join(coarse)} leaves out what is below 1 % or more of the largest singular value, for the "
        "tolerance is `d * eps` of the `precision`, with `d` the width. Pass `tol=` or a finer `precision=`, or look "
        "at the effective rank."
    )


def _ranks(
    sigma: Tensor,
    n: int,
    d: int,
    matrix: str,
    center: bool,
    tol: float | None,
    relative: bool,
    precision: torch.dtype,
) -> FeatureRank:
    """The ranks of ``(n, d)`` features with singular values ``sigma``, descending."""
    spectrum = sigma if matrix == "features" else sigma.square() / (n - 1 if center else n)
    # Not max(n, d): with the rows of a feature map, points x positions, that leaves out more and more of the spectrum.
    tol = d * torch.finfo(precision).eps if tol is None else tol
    largest = float(spectrum[0])
    threshold = tol * largest if relative else tol
    if math.isnan(largest):
        return FeatureRank(math.nan, spectrum.cpu(), math.nan, math.nan, math.nan, n, d)
    if largest == 0:
        return FeatureRank(0, spectrum.cpu(), 0.0, 0.0, threshold, n, d)
    shares = sigma / sigma.sum()
    entropy = -torch.special.xlogy(shares, shares).sum()
    stable = (sigma / sigma[0]).square().sum()
    return FeatureRank(
        int((spectrum > threshold).sum()), spectrum.cpu(), float(entropy.exp()), float(stable), threshold, n, d
    )


def check_options(matrix: str, tol: float | None, precision: torch.dtype | None) -> None:
    """Raise ``ValueError``, naming the argument, unless the options of :func:`feature_rank` are in range."""
    if matrix not in _MATRICES:
        raise ValueError(f"`matrix` must be one of {_MATRICES}, but got {matrix!r}{did_you_mean(matrix, _MATRICES)}")
    if tol is not None and not (isinstance(tol, Real) and 0 <= tol < math.inf):
        raise ValueError(f"`tol` must be a number >= 0 or None, but got {tol!r}.")
    if precision is not None and not (isinstance(precision, torch.dtype) and precision.is_floating_point):
        raise ValueError(f"`precision` must be a floating-point dtype or None, but got {precision!r}.")
