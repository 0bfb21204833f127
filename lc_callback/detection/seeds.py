"""Several runs of one setting: their mean curve, and the noise on it, taken from how the runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.noisy_fit import Noise

__all__ = ["Pooled", "pool"]

Floats = NDArray[np.float64]

_FEWEST = 3  # runs whose differences tell the noise; of two they tell little
_WINDOW = 9  # rows over which the spread is smoothed
_ROUNDING = 1e-9  # of the values
_MOST = 0.95  # autocorrelation


@dataclass(frozen=True)
class Pooled:
    """The mean of several curves.

    Attributes:
        steps: ``(N,)``, those at which all runs that go so far have a row, or lie between two of their own.
        mean: ``(N,)``.
        spread: ``(N,)``, standard deviation over the runs; 0 where there is one only.
        counts: ``(N,)``, how many runs go so far.
        noise: of the mean; ``None`` for fewer than three runs.
    """

    steps: Floats
    mean: Floats
    spread: Floats
    counts: NDArray[np.int64]
    noise: Noise | None


def pool(curves: Sequence[tuple[Floats, Floats]]) -> Pooled:
    """The mean of curves at the steps of all of them.

    Between two rows of a curve its value is interpolated on a logarithmic axis; outside of its rows it has none, so
    steps that fewer than half of the curves reach are left out.

    Args:
        curves: of each run steps ``(N,)``, increasing, and values ``(N,)``, finite; at least one run.

    Example::

        >>> import numpy as np
        >>> from lc_callback.detection.seeds import pool
        >>> steps = np.array([0.0, 9.0, 99.0])
        >>> pooled = pool([(steps, np.array([1.0, 2.0, 3.0])), (steps, np.array([3.0, 2.0, 5.0]))])
        >>> pooled.mean.tolist(), pooled.counts.tolist()
        ([2.0, 2.0, 4.0], [2, 2, 2])
    """
    curves = [curve for curve in curves if len(curve[0])]
    if not curves:
        raise ValueError("there is no curve with a finite value to take the mean of.")
    steps = np.unique(np.concatenate([at for at, _ in curves]))
    x = np.log10(steps + 1)
    values = np.array([np.interp(x, np.log10(at + 1), own, left=np.nan, right=np.nan) for at, own in curves])
    counts = np.isfinite(values).sum(0)
    kept = counts >= max(1, (len(curves) + 1) // 2)
    steps, values, counts = steps[kept], values[:, kept], counts[kept]
    mean = np.nanmean(values, axis=0)
    differences = values - mean
    squares = np.nansum(differences**2, axis=0) / np.maximum(counts - 1, 1)
    noise = (
        _noise(differences, squares, counts, float(np.abs(mean).max()))
        if len(curves) >= _FEWEST and len(steps)
        else None
    )
    return Pooled(steps, mean, np.sqrt(squares), counts, noise)


def _noise(differences: Floats, squares: Floats, counts: NDArray[np.int64], size: float) -> Noise | None:
    """Of the mean: what the runs differ by, smoothed along the curve and divided by the root of their number.

    ``None`` if they do not differ by more than a rounding of values of this ``size``.
    """
    window = np.ones(min(_WINDOW, len(squares)))
    half = len(window) // 2
    sums, weights = (np.convolve(some, window)[half:][: len(squares)] for some in (squares, np.ones_like(squares)))
    variances = sums / weights / counts
    if variances.max() <= (_ROUNDING * size) ** 2:
        return None
    unit = np.nan_to_num(differences / np.sqrt(np.maximum(sums / weights, 1e-12 * (sums / weights).max())))
    rho = float((unit[:, 1:] * unit[:, :-1]).sum() / max(float((unit[:, :-1] ** 2).sum()), 1e-12))
    floor = 1e-3 * float(variances.max())
    return Noise(np.sqrt(np.maximum(variances, floor)), float(np.clip(rho, 0.0, _MOST)))
