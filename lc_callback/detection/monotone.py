"""The rising curve nearest to a curve: what it has gained for good, whatever it lost for a while."""

from __future__ import annotations

from statistics import median

import numpy as np
from numpy.typing import NDArray

__all__ = ["rising"]

Floats = NDArray[np.float64]


def rising(y: Floats) -> Floats:
    """The curve that never falls and has the least sum of distances from ``y``, ``(N,)``.

    A dip that has fewer points than the height around it vanishes; a height that has fewer points than what came after
    it does, too. Found by pooling neighbours that fall (Barlow et al., 1972), with medians.

    Example::

        >>> import numpy as np
        >>> from lc_callback.detection.monotone import rising
        >>> rising(np.array([0.1, 0.1, 0.9, 0.9, 0.2, 0.9, 0.9])).tolist()
        [0.1, 0.1, 0.9, 0.9, 0.9, 0.9, 0.9]
    """
    each: list[float] = y.tolist()
    starts: list[int] = []
    medians: list[float] = []
    for i, value in enumerate(each):
        starts.append(i)
        medians.append(value)
        while len(medians) > 1 and medians[-2] > medians[-1]:
            starts.pop()
            medians[-2:] = [median(each[starts[-1] : i + 1])]
    return np.repeat(medians, np.diff([*starts, len(y)]))
