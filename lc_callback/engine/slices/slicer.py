"""Cutting a window of a plane into the regions on which a network is affine."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lc_callback.engine.network.max_pools import MAX_POOLS
from lc_callback.engine.network.modules import Reached
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.slices.sliced_network import SlicedNetwork
from lc_callback.engine.slices.subdivision import Subdivision, Table
from lc_callback.engine.slices.vertex_values import UnitValues, VertexRows, WinnerValues
from lc_callback.engine.slices.window import Extent, TooManyRegions

__all__ = ["Slicer"]

Floats = NDArray[np.float64]

_HELD = 2**28  # bytes: the values of units at the vertices that may be kept for later cuts
_STAGES = 1000  # steps in which the progress is reported


class Slicer:
    """Cuts a window along the zero lines of the layers of a network, one after another.

    Args:
        network: the network whose regions are found.
        extent: the window, ``(u0, u1, v0, v1)``.
        most: how many regions there may be; ``None`` sets no limit.
        progress: called as ``progress(done, total)``.

    Attributes:
        extent: the window.
        cells: its regions.
        counts: ``(L,)``: how many units of each layer cut it.

    Raises:
        TooManyRegions: as soon as there are more than ``most``.
    """

    def __init__(
        self, network: SlicedNetwork, extent: Extent, most: int | None, progress: Callable[[int, int], None]
    ) -> None:
        self.extent, self.cells = extent, Subdivision(extent)
        self._network, self._most, self._progress = network, most, progress
        progress(0, _STAGES)
        followed = [position for position, axis in enumerate(network.layers.axes) if axis is not None]
        self._ahead = {p: WinnerValues() if self._is_pool(p) else UnitValues() for p in followed}
        self._outputs = VertexRows()
        self.counts = np.zeros(len(network.layers.names), np.int64)
        self._evaluate(0)
        for i, position in enumerate(followed):
            values = self._ahead.pop(position)
            before = len(self.cells.vertices)
            self._cut_along(position, values, (i / len(followed), 1 / len(followed)))
            if len(self.cells.vertices) > before:
                self._evaluate(before)

    @property
    def size(self) -> tuple[int, int]:
        """Numbers of the regions, and of the lines that cut the window."""
        return self.cells.n_faces, int(self.counts.sum())

    def outputs(self) -> Floats:
        """The network's output ``(V, C)`` at the vertices."""
        return self._outputs.table()

    def _limit(self, more: int = 0) -> None:
        if self._most is not None and self.cells.n_faces + more > self._most:
            raise TooManyRegions(f"more than {self._most:,} regions")

    def _is_pool(self, position: int) -> bool:
        return self._network.layers.sites[position].op in MAX_POOLS

    def _evaluate(self, start: int) -> None:
        """Run the model at the vertices from ``start`` on. Keep the output, and the values of layers not cut yet."""
        n = len(self.cells.vertices)
        parts = self._network.n_passes(n - start)
        for part in (np.arange(start + i, n, parts) for i in range(parts)):  # each from all over the window

            def note(at: int, kinks: list[Kink], part: NDArray[np.int64] = part) -> None:
                if at in self._ahead:
                    self._ahead[at].add(part, kinks)

            self._outputs.add(part, self._network.follow(self.cells.vertices[part], note))
            self._make_room()

    def _make_room(self) -> None:
        """Free memory where too much is kept: first what will not be needed, then what is needed last."""
        if sum(values.n_bytes for values in self._ahead.values()) <= _HELD:
            return
        for values in self._ahead.values():
            values.narrow()
        held = sum(values.n_bytes for values in self._ahead.values())
        for values in reversed(self._ahead.values()):
            if held > _HELD / 2:  # so that there is room for some more
                held -= values.n_bytes
                values.drop()

    def _cut_along(self, position: int, values: UnitValues, part: tuple[float, float]) -> None:
        """Cut along the units of one place. ``part`` says where in the whole work this begins, and its share of it."""
        units = values.units()
        if not units:
            return
        self._limit(0 if self._is_pool(position) else len(set(units)))  # each unit cuts at least one region
        columns = values.table() if values.complete() else self._again(position, values)
        layer = self._network.layers.layer_of[position]
        if columns.ndim == 3:
            several, inside = columns.shape[-1], columns[columns > -math.inf]
            lowest = float(inside.min()) if len(inside) else 0.0  # so that nothing beyond the border wins
            table = Table(columns.reshape(len(columns), -1).clip(min=lowest))
            cut = partial(self._cut_winner, table, several, layer)
        else:
            table = Table(columns)
            cut = partial(self._cut_unit, table, layer)
        cuts = []
        for i, unit in enumerate(units):
            cuts.append(cut(i, unit))
            self._limit()
            self._progress(int(_STAGES * (part[0] + part[1] * i / len(units))), _STAGES)
        self.counts[layer] += len({unit for unit, cut in zip(units, cuts, strict=True) if cut})

    def _cut_winner(self, table: Table, several: int, layer: int, i: int, unit: int) -> bool:
        return self.cells.cut_maximum(table, range(i * several, (i + 1) * several), layer, unit)

    def _cut_unit(self, table: Table, layer: int, i: int, unit: int) -> bool:
        return self.cells.cut(table.values[:, i].copy(), table, i + 1, (layer, unit))

    def _again(self, position: int, values: UnitValues) -> Floats:
        """Run the model again at all vertices, up to this place."""
        rows = VertexRows()
        n = len(self.cells.vertices)
        for part in self._network.chunks(np.arange(n)):

            def note(at: int, kinks: list[Kink], part: NDArray[np.int64] = part) -> None:
                if at == position:
                    rows.add(part, values.select(kinks))
                    raise Reached

            try:
                self._network.follow(self.cells.vertices[part], note)
            except Reached:
                continue
        return rows.table()
