"""Cutting a window of a plane into the regions on which a network is affine."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_callback.checks import positive_integer
from lc_callback.engine.chunks import SLICES
from lc_callback.engine.network.layers import Consumer, Execution, TracedLayers
from lc_callback.engine.network.max_pools import WINNERS
from lc_callback.engine.network.modules import Reached
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space
from lc_callback.engine.replay.recording import NotRepeatable
from lc_callback.engine.replay.route import Route
from lc_callback.engine.replay.way import Way, pre_activations
from lc_callback.engine.slices.plane import Plane
from lc_callback.engine.slices.subdivision import Subdivision, Table
from lc_callback.engine.slices.vertex_values import UnitValues, VertexRows, WinnerValues
from lc_callback.engine.slices.window import Extent, TooManyRegions

__all__ = ["Slicer"]

Floats = NDArray[np.float64]

_HELD = 2**28  # bytes of the units' values at the vertices that may be kept ahead
_STAGES = 1000  # of the cutting, as progress


class _Vertices:
    """What a faster way must not change: the values at all places, and the output."""

    has_rules = False

    def __init__(self) -> None:
        self.execution = Execution()

    def observe(self, way: Way, points: Tensor, moves: Tensor, most: int) -> list[Tensor]:
        """As of :class:`Observer`."""
        return pre_activations(way, points, moves, most, with_output=True)


class Slicer:
    """Cuts a window along the zero lines of the traced layers, one after another.

    To be made in measuring conditions, in float64, and used in them.

    Args:
        space: of the points that span the plane.
        chunk_size: points in one forward pass; ``None``: what fits a memory budget.
        progress: called as ``progress(done, total)``.

    Attributes:
        space: of the points that span the plane.
        layers: along which the window is cut.
        plane: through the points.
        chunk: points in one forward pass.
        progress: as it was given.
        extent: the window that was cut last, ``(u0, u1, v0, v1)``.
        cells: its regions.
        counts: ``(L,)``: units of each layer that cut it.

    Raises:
        ValueError: for points that span no plane, or a network that is not piecewise affine.
    """

    def __init__(self, space: Space, chunk_size: int | None, progress: Callable[[int, int], None]) -> None:
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        space.locate(torch.float64)
        # An affine network is one region.
        layers = TracedLayers(space, max_pool="candidates", hint="", required=False)
        self.space, self.layers, self.progress = space, layers, progress
        self.plane = Plane.through(space.all_values())
        self.chunk = chunk_size or SLICES.samples(space.device, layers.bytes_per_sample)
        layers.check_piecewise_affine(
            "so there are no regions to find. See `local_complexity_map` for a picture of any model."
        )
        frame = self.plane.directions.flatten(1).to(space.device)
        verified = torch.tensor([0, space.points.n - 1]).unique()
        not_repeatable = NotRepeatable("the output is needed")
        self._route = Route(layers, frame, self.chunk, _Vertices(), verified, not_repeatable)
        self._begin((0.0, 1.0, 0.0, 1.0), None)

    def n_outputs(self) -> int:
        """Numbers in the output for one point."""
        return self._forward(np.zeros((1, 2)), _ignore).shape[1]

    def cut(self, extent: Extent, most: int | None = None) -> tuple[int, int]:
        """Cut a window along all layers. Returns its regions, and the lines that cut it.

        Raises:
            TooManyRegions: as soon as there are more than ``most``.
        """
        self._begin(extent, most)
        self.progress(0, _STAGES)
        followed = [*self._ahead]
        self._evaluate(0)
        for i, position in enumerate(followed):
            values = self._ahead.pop(position)
            before = len(self.cells.vertices)
            self._cut_along(position, values, (i / len(followed), 1 / len(followed)))
            if len(self.cells.vertices) > before:
                self._evaluate(before)
        return self.cells.n_faces, int(self.counts.sum())

    def _begin(self, extent: Extent, most: int | None) -> None:
        self.extent, self.cells, self._most = extent, Subdivision(extent), most
        followed = [position for position, axis in enumerate(self.layers.axes) if axis is not None]
        self._ahead = {p: WinnerValues() if self._is_pool(p) else UnitValues() for p in followed}
        self._outputs = VertexRows()
        self.counts = np.zeros(len(self.layers.names), np.int64)

    def _limit(self, more: int = 0) -> None:
        if self._most is not None and self.cells.n_faces + more > self._most:
            raise TooManyRegions(f"more than {self._most:,} regions")

    def _is_pool(self, position: int) -> bool:
        return self.layers.sites[position].op in WINNERS

    def _evaluate(self, start: int) -> None:
        """Run the model at the vertices from this one on, and keep what the places ahead and the output have there."""
        n = len(self.cells.vertices)
        parts = -(-(n - start) // self.chunk)
        for part in (np.arange(start + i, n, parts) for i in range(parts)):  # each from all over the window

            def note(at: int, knots: list[Knot], part: NDArray[np.int64] = part) -> None:
                if at in self._ahead:
                    self._ahead[at].add(part, knots)

            self._outputs.add(part, self._forward(self.cells.vertices[part], note))
            self._make_room()

    def _make_room(self) -> None:
        """Keep less where it is too much: first what will not be needed, then what is needed last."""
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
        """Cut along the units of one place, which is from ``part[0]`` on so large a part of the whole work."""
        units = values.units()
        if not units:
            return
        self._limit(0 if self._is_pool(position) else len(set(units)))  # each cuts some region
        columns = values.table() if values.complete() else self._again(position, values)
        layer = self.layers.layer_of[position]
        if columns.ndim == 3:
            several, inside = columns.shape[-1], columns[columns > -math.inf]
            lowest = float(inside.min()) if len(inside) else 0.0  # with this, nothing wins beyond the border
            table = Table(columns.reshape(len(columns), -1).clip(min=lowest))
            cut = partial(self._cut_winner, table, several, layer)
        else:
            table = Table(columns)
            cut = partial(self._cut_unit, table, layer)
        cuts = []
        for i, unit in enumerate(units):
            cuts.append(cut(i, unit))
            self._limit()
            self.progress(int(_STAGES * (part[0] + part[1] * i / len(units))), _STAGES)
        self.counts[layer] += len({unit for unit, cut in zip(units, cuts, strict=True) if cut})

    def _cut_winner(self, table: Table, several: int, layer: int, i: int, unit: int) -> bool:
        return self.cells.cut_maximum(table, range(i * several, (i + 1) * several), layer, unit)

    def _cut_unit(self, table: Table, layer: int, i: int, unit: int) -> bool:
        return self.cells.cut(table.values[:, i].copy(), table, i + 1, (layer, unit))

    def _again(self, position: int, values: UnitValues) -> Floats:
        """Run the model once more at all vertices, as far as this place."""
        rows = VertexRows()
        n = len(self.cells.vertices)
        for part in self._chunks(np.arange(n)):

            def note(at: int, knots: list[Knot], part: NDArray[np.int64] = part) -> None:
                if at == position:
                    rows.add(part, values.select(knots))
                    raise Reached

            try:
                self._forward(self.cells.vertices[part], note)
            except Reached:
                continue
        return rows.table()

    def outputs(self, at: Floats | None = None) -> Floats:
        """The model's output ``(K, C)`` at coordinates, by default those of the vertices."""
        if at is None:
            return self._outputs.table()
        return torch.cat([self._forward(part, _ignore).cpu() for part in self._chunks(at)]).numpy()

    def _chunks(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        return np.array_split(rows, -(-len(rows) // self.chunk))

    def _forward(self, coordinates: Floats, consumer: Consumer) -> Tensor:
        """The model's output ``(k, C)`` at coordinates; what its places have goes to the consumer."""
        coefficients = torch.as_tensor(coordinates).to(self._route.frame)
        return _rows(self._route.follow(torch.zeros(1, dtype=torch.long), coefficients, consumer)).detach()

    def run_whole(self, coordinates: Floats) -> Tensor:
        """The output ``(k, C)`` at coordinates, from the model as it is, unobserved."""
        return self._run(self.plane.to_input(coordinates).to(self.space.device))

    def _run(self, values: Tensor) -> Tensor:
        return _rows(self.space.output(torch.zeros(len(values), dtype=torch.long), values))

    def slope_norms(self, centres: Floats) -> Floats:
        """Frobenius norm of the Jacobian of the output at these coordinates."""
        norms = []
        parts = self._chunks(centres)
        for i, part in enumerate(parts):
            self.progress(i, len(parts))
            values = self.plane.to_input(part).to(self.space.device).requires_grad_()
            output = self._run(values)
            squares = torch.zeros(len(part), dtype=torch.float64, device=self.space.device)
            for c in range(output.shape[1]):
                (gradient,) = torch.autograd.grad(output[:, c].sum(), values, retain_graph=True)
                squares += gradient.flatten(1).square().sum(1)
            norms.append(squares.sqrt().cpu())
        return torch.cat(norms).numpy()


def _rows(output: Any) -> Tensor:
    output = main_output(output)
    if not output.ndim:
        raise ValueError("the model returns one number for a whole batch: pass `forward_fn=` that returns a row each.")
    return output.flatten(1) if output.ndim > 1 else output[:, None]


def _ignore(position: int, knots: list[Knot]) -> None:
    """Consumes nothing: only the output counts."""
