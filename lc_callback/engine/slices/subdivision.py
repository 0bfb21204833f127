"""Convex subdivisions of a rectangle: shared vertices, directed edges, and the face on each side of an edge."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["Subdivision", "Table"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_TOLERANCE = 1e-13  # of a function's largest absolute value: a vertex this near to its zero line is on it
_CANDIDATE = -2  # the unit of edges that may be removed again


class Table:
    """Values of functions at the vertices, which are affine on each face.

    Args:
        values: ``(V, M)``: a vertex is a row, whose values lie together in memory.
    """

    def __init__(self, values: Floats) -> None:
        self._values, self._n = values, len(values)

    @property
    def values(self) -> Floats:
        """``(V, M)``, at the vertices so far."""
        return self._values[: self._n]

    def extend(self, low: Ints, high: Ints, share: Floats, first: int) -> None:
        """Add vertices between the vertices ``low`` and ``high``. Columns before ``first`` are no longer needed."""
        n = self._n + len(low)
        if n > len(self._values):
            larger = np.zeros((max(n, 2 * len(self._values)), self._values.shape[1]))
            larger[: self._n] = self.values
            self._values = larger
        columns = self._values[:, first:]
        at = columns[low]
        columns[self._n : n] = at + share[:, None] * (columns[high] - at)
        self._n = n


class Subdivision:
    """A rectangle cut into convex faces by the zero lines of functions that are affine on each face.

    Every edge is stored once, with the face on its left and on its right. So neighbours agree bit for bit on what they
    share. A new vertex is computed from the two ends of its edge, in the order of their numbers.

    Ties: a vertex is on the zero line of a function if the function is within ``1e-13`` of its largest absolute value
    there. A line through a vertex makes no second vertex. So concurrent, duplicate and opposite lines, and lines on an
    edge, cut nothing twice. A face stays whole if, by rounding, the line enters or leaves it more than once.

    Args:
        extent: ``(u0, u1, v0, v1)``.

    Attributes:
        n_faces: number of faces, numbered from 0.
    """

    def __init__(self, extent: tuple[float, float, float, float]) -> None:
        u0, u1, v0, v1 = extent
        self._uv = np.array([[u0, v0], [u1, v0], [u1, v1], [u0, v1]], np.float64)
        self._edges = np.array([[0, 1, 2, 3], [1, 2, 3, 0], [0] * 4, [-1] * 4], np.int64)
        self._made_by = np.full((2, 4), -1, np.int64)
        self._n_vertices = self._n_edges = 4
        self.n_faces = 1

    @property
    def vertices(self) -> Floats:
        """``(V, 2)``."""
        return self._uv[: self._n_vertices]

    @property
    def edges(self) -> Ints:
        """``(4, E)``: start, end, face on the left, face on the right (-1 outside)."""
        return self._edges[:, : self._n_edges]

    @property
    def made_by(self) -> Ints:
        """``(2, E)``: two numbers of the caller that say which cut made each edge; -1 for the frame."""
        return self._made_by[:, : self._n_edges]

    @property
    def euler(self) -> int:
        """Vertices minus edges plus faces: 1, if nothing was lost."""
        return len(np.unique(self.edges[:2])) - self._n_edges + self.n_faces

    def copy(self) -> Subdivision:
        """A subdivision that can be cut on its own."""
        twin = object.__new__(Subdivision)
        twin._uv, twin._edges, twin._made_by = self.vertices.copy(), self.edges.copy(), self.made_by.copy()
        twin._n_vertices, twin._n_edges, twin.n_faces = self._n_vertices, self._n_edges, self.n_faces
        return twin

    # Cutting

    def cut(self, function: Floats, table: Table, first: int, made_by: tuple[int, int]) -> bool:
        """Cut all faces along the zero line of a function. Returns whether the function takes both signs.

        Args:
            function: ``(V,)``, its values at the vertices.
            table: other functions, whose values at new vertices are needed.
            first: the first column of the table that is still needed.
            made_by: kept with the new edges.
        """
        tolerance = _TOLERANCE * float(np.abs(function).max())
        sign = (function > tolerance).astype(np.int8) - (function < -tolerance)
        if sign.max() <= 0 or sign.min() >= 0:
            return False
        start, end = self.edges[:2]
        crossing = np.flatnonzero(sign[start] * sign[end] < 0)
        sign = self._split_edges(crossing, function, sign, table, first)
        self._split_faces(sign, made_by)
        return True

    def _split_edges(
        self, crossing: Ints, function: Floats, sign: NDArray[np.int8], table: Table, first: int
    ) -> NDArray[np.int8]:
        """Add a vertex on each of these edges, where the function is zero. Returns the signs at all vertices."""
        start, end = self.edges[:2, crossing]
        low, high = np.minimum(start, end), np.maximum(start, end)
        share = function[low] / (function[low] - function[high])
        n = len(crossing)
        self._reserve(n, n + self.n_faces)
        at = self._uv[low]
        new = np.arange(self._n_vertices, self._n_vertices + n)
        self._uv[new] = at + share[:, None] * (self._uv[high] - at)
        table.extend(low, high, share, first)
        self._n_vertices += n
        second = slice(self._n_edges, self._n_edges + n)  # the halves behind the new vertices
        self._edges[:, second] = self._edges[:, crossing]
        self._made_by[:, second] = self._made_by[:, crossing]
        self._edges[0, second] = self._edges[1, crossing] = new
        self._n_edges += n
        return np.concatenate([sign, np.zeros(n, np.int8)])

    def _split_faces(self, sign: NDArray[np.int8], made_by: tuple[int, int]) -> None:
        """An edge through each face with vertices on both sides; no edge has its ends on different sides any more."""
        start, end = self.edges[:2]
        at_start, at_end = sign[start], sign[end]
        touching = np.flatnonzero((at_start == 0) != (at_end == 0))
        a, b, left_of, right_of = self.edges[:, touching]
        first, second = at_start[touching], at_end[touching]
        # Counter-clockwise round a face, the line is entered where the function turns positive, left where it ends.
        rises, falls = second > 0, first > 0
        entries = np.concatenate([left_of[rises], right_of[falls]]), np.concatenate([a[rises], b[falls]])
        exits = np.concatenate([left_of[falls], right_of[rises]]), np.concatenate([b[falls], a[rises]])
        negative = (first < 0) | (second < 0)
        n = self.n_faces + 1  # the last for what is outside, -1
        below = np.zeros(n, bool)
        below[left_of[negative]] = below[right_of[negative]] = True
        entry, exit_ = np.zeros(n, np.int64), np.zeros(n, np.int64)
        entry[entries[0]], exit_[exits[0]] = entries[1], exits[1]
        once = (np.bincount(entries[0] % n, minlength=n) == 1) & (np.bincount(exits[0] % n, minlength=n) == 1)
        faces = np.flatnonzero((once & below & (entry != exit_))[:-1])
        if not len(faces):
            return
        renamed = np.full(n, -1, np.int64)
        renamed[faces] = np.arange(self.n_faces, self.n_faces + len(faces))
        above = np.flatnonzero((at_start > 0) | (at_end > 0))
        for side in (2, 3):
            new = renamed[self._edges[side, above]]
            self._edges[side, above[new >= 0]] = new[new >= 0]
        added = slice(self._n_edges, self._n_edges + len(faces))
        self._edges[:, added] = exit_[faces], entry[faces], renamed[faces], faces
        self._made_by[:, added] = np.array(made_by)[:, None]
        self._n_edges += len(faces)
        self.n_faces += len(faces)

    def _reserve(self, vertices: int, edges: int) -> None:
        if self._n_vertices + vertices > len(self._uv):
            larger = np.empty((2 * (self._n_vertices + vertices), 2))
            larger[: self._n_vertices] = self.vertices
            self._uv = larger
        if self._n_edges + edges > self._edges.shape[1]:
            for name in ("_edges", "_made_by"):
                old = getattr(self, name)
                larger_ints = np.empty((len(old), 2 * (self._n_edges + edges)), np.int64)
                larger_ints[:, : self._n_edges] = old[:, : self._n_edges]
                setattr(self, name, larger_ints)

    def cut_maximum(self, table: Table, columns: range, made_by: int, unit: int) -> bool:
        """Cut all faces along the edges of the upper envelope of some functions: where the largest one changes.

        The functions join the envelope one after another. Parts of older edges that are then below it are removed.
        Returns whether no single function is the largest everywhere.

        Args:
            table: the functions, and others that are still needed.
            columns: the functions of the envelope; all columns behind them are still needed.
            made_by: kept with the new edges.
            unit: the number of this envelope, kept with them too.
        """
        for column in columns[1:]:
            envelope = table.values[:, columns.start : column].max(1)
            self.cut(table.values[:, column] - envelope, table, columns.start, (made_by, _CANDIDATE))
        self._remove(self._without_change(table, columns))
        self._made_by[1, : self._n_edges][self.made_by[1] == _CANDIDATE] = unit
        values = table.values[:, columns.start : columns.stop]
        largest = values >= values.max(1, keepdims=True) - 10 * _TOLERANCE * float(np.abs(values).max())
        return not largest.all(0).any()

    def _without_change(self, table: Table, columns: range) -> Ints:
        """New edges that have the same largest function on both sides."""
        candidates = np.flatnonzero(self.made_by[1] == _CANDIDATE)
        start, end, left, right = self.edges
        beside = np.zeros(self.n_faces, bool)
        beside[left[candidates]] = beside[right[candidates]] = True
        slot = np.cumsum(beside) - 1
        values = table.values[:, columns.start : columns.stop]
        mean = np.zeros((int(beside.sum()), len(columns)))
        corners = np.zeros(len(mean))
        for face, corner in ((left, start), (right, end)):
            mine = np.flatnonzero((face >= 0) & beside[face])
            np.add.at(mean, slot[face[mine]], values[corner[mine]])
            corners += np.bincount(slot[face[mine]], minlength=len(mean))
        mean /= corners[:, None]
        below = mean - mean.max(1, keepdims=True)
        same = np.minimum(below[slot[left[candidates]]], below[slot[right[candidates]]]).max(1)
        return candidates[same > -10 * _TOLERANCE * float(np.abs(values).max())]

    def _remove(self, edges: Ints) -> None:
        """Remove edges, and make one face of the faces on their sides."""
        if not len(edges):
            return
        name = np.arange(self.n_faces)
        left, right = self.edges[2:, edges]
        while True:  # the smallest number of each group, by pointer jumping
            smaller = np.minimum(name[left], name[right])
            before = name.copy()
            np.minimum.at(name, name[left], smaller)
            np.minimum.at(name, name[right], smaller)
            name = name[name]
            if (name == before).all():
                break
        kept, compact = np.unique(name, return_inverse=True)
        faces = np.append(compact, -1)
        remaining = np.ones(self._n_edges, bool)
        remaining[edges] = False
        self._edges, self._made_by = self.edges[:, remaining], self.made_by[:, remaining]
        self._edges[2:] = faces[self._edges[2:]]
        self._n_edges, self.n_faces = self._edges.shape[1], len(kept)

    # Reading

    def loops(self) -> tuple[Ints, Ints]:
        """Vertices of each face, counter-clockwise: offsets ``(F + 1,)`` and vertex numbers, one face after another."""
        start, end, left, right = self.edges
        face = np.concatenate([left, right])
        source, target = np.concatenate([start, end]), np.concatenate([end, start])
        inside = face >= 0
        face, source, target = face[inside], source[inside], target[inside]
        order = np.lexsort((source, face))
        face, source, target = face[order], source[order], target[order]
        keys = face * self._n_vertices + source
        following = np.searchsorted(keys, face * self._n_vertices + target)
        offsets = np.searchsorted(face, np.arange(self.n_faces + 1))
        sizes = np.diff(offsets)
        loop = np.empty(len(face), np.int64)
        at = offsets[:-1].copy()
        for place in range(int(sizes.max())):
            longer = place < sizes
            loop[offsets[:-1][longer] + place] = source[at[longer]]
            at[longer] = following[at[longer]]
        return offsets, loop
