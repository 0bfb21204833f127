"""Least squares of continuous piecewise linear functions, for several curves or kinds of noise at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["SAME", "HingeSearch", "design", "first_largest"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MOST_KNOTS = 5
SAME = 1e-7  # difference of costs, and relative one of squares, that is taken for rounding
_SHORTEST = 0.15  # decades between two breakpoints
_PASSES = 8  # in which each breakpoint is moved to its best place, at most
_SINGULAR = 1e-9  # part of a column that the others must leave


def design(x: Floats, breakpoints: Sequence[float] | Floats) -> Floats:
    """Columns of a piecewise linear function: one, ``x``, and a hinge at each breakpoint. ``(N, 2 + K)``."""
    hinges = np.maximum(x[:, None] - np.asarray(breakpoints, np.float64), 0)
    return np.concatenate([np.ones((len(x), 1)), x[:, None], hinges], axis=1)


class HingeSearch:
    """The best places of 0 to 5 breakpoints, for several curves or kinds of noise at once.

    Breakpoints are added one by one, then removed one by one; after each change every one is moved to its best place.
    Only products of columns are needed, so a step costs a small system of equations and no pass over the points.

    Args:
        x: ``(N,)``, increasing.
        products: ``(R, P, P)``, of the columns of :meth:`columns`, for each case.
    """

    def __init__(self, x: Floats, products: Floats) -> None:
        self.grid = _grid(x)
        self._gram, self._moments, self._total = products[:, :-1, :-1], products[:, :-1, -1], products[:, -1, -1]
        self._diagonal = np.einsum("rii->ri", self._gram)
        self._singular = _SINGULAR * self._diagonal
        self._lanes = np.arange(len(products))[:, None]
        self._line = np.repeat([[0, 1]], len(products), axis=0)  # columns of a fit without breakpoints
        self._near = np.abs(self.grid[:, None] - self.grid) < _SHORTEST - 1e-12
        self._known: dict[tuple[int, bytes], Ints | None] = {}  # by breakpoints; nearly half are asked for again

    @classmethod
    def in_noise(cls, x: Floats, y: Floats, rhos: Sequence[float], scales: Floats | None = None) -> HingeSearch:
        """For noise of several autocorrelations.

        Args:
            x: ``(N,)``, increasing.
            y: ``(N,)``, of a range near 1.
            rhos: ``(R,)``, autocorrelations of neighbouring points.
            scales: ``(N,)``, standard deviation of each point but for a factor; by default all alike.
        """
        columns = _columns(x, y)
        if scales is not None:
            columns /= scales[:, None]
        own, inner = columns.T @ columns, columns[1:-1].T @ columns[1:-1]
        shifted = columns[1:].T @ columns[:-1]
        r = np.asarray(rhos, np.float64)[:, None, None]
        return cls(x, own + r**2 * inner - r * (shifted + shifted.T))

    @classmethod
    def without(cls, x: Floats, y: Floats, left_out: NDArray[np.bool_]) -> HingeSearch:
        """For several choices ``(R, N)`` of points that are left out."""
        columns = _columns(x, y)
        whole = columns.T @ columns
        return cls(x, np.stack([whole - columns[some].T @ columns[some] for some in left_out]))

    def fits(self) -> Iterator[tuple[Floats, Ints]]:
        """Squares ``(R,)`` and indices of breakpoints in the grid ``(R, K)``, several times for each ``K``."""
        breakpoints = np.empty((len(self._lanes), 0), np.int64)
        yield self._squares(breakpoints), breakpoints
        for _ in range(min(_MOST_KNOTS, len(self.grid))):
            more = self._placed(breakpoints)
            if more is None:
                break
            breakpoints = self._settled(np.sort(np.concatenate([breakpoints, more[:, None]], axis=1), axis=1))
            yield self._squares(breakpoints), breakpoints
        while breakpoints.shape[1] > 1:
            fewer = np.stack([np.delete(breakpoints, i, axis=1) for i in range(breakpoints.shape[1])])
            squares = np.stack([self._squares(some) for some in fewer])
            breakpoints = self._settled(fewer[first_largest(-squares.T), self._lanes[:, 0]])
            yield self._squares(breakpoints), breakpoints

    def profile(self, others: Floats) -> Floats:
        """Squares ``(R, M)`` of a fit with breakpoints at these values and one more at each place of the grid.

        Infinite where one more breakpoint has no room.
        """
        nearest = np.abs(self.grid[:, None] - others).argmin(0) if len(others) else np.empty(0, np.int64)
        breakpoints = np.broadcast_to(nearest, (len(self._lanes), len(nearest)))
        gains = self._gains(breakpoints)
        return np.where(gains < 0, np.inf, self._squares(breakpoints)[:, None] - gains)

    def _fixed(self, breakpoints: Ints) -> Ints:
        """Indices of the columns of a fit with these breakpoints."""
        return np.concatenate([self._line, breakpoints + 2], axis=1)

    def _squares(self, breakpoints: Ints) -> Floats:
        fixed, lanes = self._fixed(breakpoints), self._lanes
        inner, moments = (
            self._gram[lanes[:, :, None], fixed[:, :, None], fixed[:, None, :]],
            self._moments[lanes, fixed],
        )
        coefficients = (np.linalg.inv(inner) @ moments[..., None])[..., 0]
        return np.maximum(self._total - (moments * coefficients).sum(1), 0.0)

    def _gains(self, breakpoints: Ints) -> Floats:
        """By how much one more breakpoint lowers the squares, at each place of the grid; -1 where there is no room."""
        fixed, lanes = self._fixed(breakpoints), self._lanes
        rows = self._gram[lanes, fixed]
        inverse = np.linalg.inv(rows[lanes[:, :, None], np.arange(fixed.shape[1])[:, None], fixed[:, None, :]])
        solved = inverse @ rows
        rest = self._moments - (self._moments[lanes, fixed][:, None, :] @ solved)[:, 0]
        norms = self._diagonal - (rows * solved).sum(1)
        free = norms > self._singular
        gains: Floats = np.where(free, rest**2 / np.where(free, norms, 1.0), -1.0)[:, 2:]
        if breakpoints.shape[1]:
            gains[self._near[breakpoints].any(1)] = -1.0
        return gains

    def _placed(self, breakpoints: Ints) -> Ints | None:
        """The best place for one more breakpoint, ``(R,)``; ``None`` if one of the fits has no room."""
        key = breakpoints.shape[1], breakpoints.tobytes()
        if key not in self._known:
            gains = self._gains(breakpoints)
            best = first_largest(gains)
            self._known[key] = None if (gains[self._lanes[:, 0], best] < 0).any() else best
        return self._known[key]

    def _settled(self, breakpoints: Ints) -> Ints:
        """Each breakpoint moved to its best place, until none moves."""
        for _ in range(_PASSES):
            before = breakpoints
            for i in range(breakpoints.shape[1]):
                others = breakpoints[:, [j for j in range(breakpoints.shape[1]) if j != i]]
                place = self._placed(others)
                if place is not None:
                    breakpoints = np.sort(np.concatenate([others, place[:, None]], axis=1), axis=1)
            if (breakpoints == before).all():
                break
        return breakpoints


def first_largest(values: Floats) -> Ints:
    """``(R,)``: where each row of ``values (R, M)`` is largest, at the first of places that differ by rounding only.

    Rounding is another one on another processor, and a search that goes on from here would end elsewhere.
    """
    largest = values.max(1, keepdims=True)
    return (values >= largest - SAME * np.abs(largest)).argmax(1)


def _grid(x: Floats) -> Floats:
    """Where breakpoints may be: at the points and halfway between them."""
    grid = np.unique(np.concatenate([x, (x[1:] + x[:-1]) / 2]))
    return grid[(grid >= x[1]) & (grid <= x[-2])]


def _columns(x: Floats, y: Floats) -> Floats:
    return np.concatenate([design(x - x[0], _grid(x) - x[0]), y[:, None]], axis=1)
