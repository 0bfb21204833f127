"""The exact partition of a 2-D slice of input space into the regions on which a network is affine."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.network.layers import Layers
from lc_callback.engine.network.max_pools import WINNERS
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.space import Space
from lc_callback.engine.slices.affine_check import check_affine
from lc_callback.engine.slices.subdivision import Subdivision, Table
from lc_callback.engine.slices.vertex_values import UnitValues, VertexRows, WinnerValues
from lc_callback.engine.slices.window import (
    SHARES,
    Extent,
    TooManyRegions,
    affordable_regions,
    fitting_share,
    shrunk,
)
from lc_callback.isolation import untouched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plane", "Slice", "SlicePartition", "WindowRule", "cut_slice", "slice_partition", "toward_boundary"]

Floats = NDArray[np.float64]

_MARGIN = 0.2  # of the bounding square of the points, on each side
_BUDGET = {"cpu": 2**20, "cuda": 2**28}  # bytes of the largest tensor of a forward pass: in the cache it is faster
_HELD = 2**28  # bytes of the units' values at the vertices that may be kept ahead
_FLAT = 1e-6  # points are on one line if they are but for this: the rounding of float32
_THIN_FROM = 5000  # regions
_STAGES = 1000  # of the cutting, as progress
_STEPS, _BEYOND, _HALVINGS = 50, 1.02, 60  # on the way to the decision boundary


@dataclass(frozen=True)
class Plane:
    """A plane in input space, with coordinates in input units.

    Attributes:
        origin: ``(*shape)``, the first point.
        directions: ``(2, *shape)``, orthonormal.
        points: ``(3, 2)``, coordinates of the points that span it.
    """

    origin: Tensor
    directions: Tensor
    points: Floats

    def __repr__(self) -> str:
        points = ", ".join(f"({u:.4g}, {v:.4g})" for u, v in self.points.tolist())
        return f"Plane(inputs of shape {tuple(self.origin.shape)}, points at {points})"

    def to_input(self, uv: Any) -> Tensor:
        """The inputs ``(K, *shape)`` at coordinates ``(K, 2)``."""
        coordinates = torch.as_tensor(np.asarray(uv, np.float64)).reshape(-1, 2)
        flat = coordinates.to(self.directions) @ self.directions.flatten(1)
        return self.origin + flat.view(-1, *self.origin.shape)

    @classmethod
    def through(cls, points: Tensor) -> Plane:
        """The plane through three points ``(3, *shape)``.

        Raises:
            ValueError: if there are not three, or they are on one line.
        """
        if len(points) != 3:
            raise ValueError(f"`points` must be three points, but got {len(points)}.")
        if points.ndim < 2:
            raise ValueError(f"`points` must be (3, *input_shape), but got shape {tuple(points.shape)}.")
        if not points.isfinite().all():
            raise ValueError("`points` must be finite, but holds NaN or infinity.")
        flat = points.double().flatten(1)
        sides = flat[1:] - flat[0]
        first = sides[0].norm()
        along = sides[0] / first
        rest = sides[1] - (sides[1] @ along) * along
        rest = rest - (rest @ along) * along
        second = rest.norm()
        if not first > 0 or not second > _FLAT * sides[1].norm():
            raise ValueError("`points` must be three points that are not on one line, for they span the plane.")
        directions = torch.stack([along, rest / second])
        coordinates = (sides @ directions.T).cpu().numpy()
        shape = points.shape[1:]
        return cls(points[0].double(), directions.view(2, *shape), np.concatenate([np.zeros((1, 2)), coordinates]))

    def window(self, extent: Sequence[float] | float | None) -> Extent:
        """The window that is asked for: the bounding square of the points with a margin, that in parts, or as it is.

        Raises:
            ValueError: if ``extent`` is neither a positive number nor ``(u0, u1, v0, v1)``.
        """
        parts = 1.0 if extent is None else extent
        if isinstance(parts, (int, float)) and not isinstance(parts, bool) and 0 < parts < math.inf:
            low, high = self.points.min(0), self.points.max(0)
            middle, half = (low + high) / 2, parts * (0.5 + _MARGIN) * float((high - low).max())
            u, v = map(float, middle)
            return u - half, u + half, v - half, v + half
        sides: tuple[float, ...]
        try:
            sides = tuple(map(float, extent))  # type: ignore[arg-type]
        except (TypeError, ValueError):
            sides = ()
        if len(sides) != 4 or not (-math.inf < sides[0] < sides[1] < math.inf > sides[3] > sides[2] > -math.inf):
            raise ValueError(
                f"`extent` must be (u0, u1, v0, v1) with u0 < u1 and v0 < v1, or a positive number, but got {extent!r}."
            )
        return sides


def extent_text(extent: Extent) -> str:
    """The window in plane coordinates, for people."""
    return f"extent=({', '.join(f'{side:.4g}' for side in extent)})"


@dataclass(frozen=True)
class SlicePartition:
    """The regions of a slice.

    Attributes:
        plane: where the slice is.
        extent: ``(u0, u1, v0, v1)``, the window in plane coordinates.
        vertices: ``(V, 2)``, plane coordinates of the vertices, which neighbours share.
        outputs: ``(V, C)``, the network's output there (flattened).
        decision_boundary: ``(S, 2, 2)``, segments on which the top class changes; for a single output, its sign.
        layer_names: in execution order.
        counts: ``(L,)``: units of each layer that switch inside the window, which ``local_complexity`` estimates.
        slope_norm: ``(R,)``, Frobenius norm of the Jacobian of the output in each region, if it was asked for.
        euler: vertices minus edges plus regions: 1.
    """

    plane: Plane
    extent: Extent
    vertices: Floats
    outputs: Floats
    decision_boundary: Floats
    layer_names: list[str]
    counts: NDArray[np.int64]
    slope_norm: Floats | None
    euler: int
    _offsets: NDArray[np.int64] = field(repr=False)
    _loop: NDArray[np.int64] = field(repr=False)
    _edges: NDArray[np.int64] = field(repr=False)
    _made_by: NDArray[np.int64] = field(repr=False)

    def __repr__(self) -> str:
        units = f"{int(self.counts.sum())} units of {len(self.layer_names)} layers"
        return f"SlicePartition({self.n_regions} regions by {units}, {extent_text(self.extent)})"

    @property
    def n_regions(self) -> int:
        """Number of regions in the window."""
        return len(self._offsets) - 1

    @cached_property
    def polygons(self) -> list[Floats]:
        """Vertices ``(k, 2)`` of each region, counter-clockwise. Some may lie on a straight side."""
        return np.split(self.vertices[self._loop], self._offsets[1:-1])

    @cached_property
    def areas(self) -> Floats:
        """``(R,)``, in squared input units."""
        first = np.repeat(self.vertices[self._loop[self._offsets[:-1]]], np.diff(self._offsets), axis=0)
        x, y = (self.vertices[self._loop] - first).T  # small numbers: else slivers drown in rounding
        to_x, to_y = (self.vertices[self._following()] - first).T
        return np.add.reduceat(x * to_y - to_x * y, self._offsets[:-1]) / 2

    @cached_property
    def centres(self) -> Floats:
        """``(R, 2)``, means of the vertices, each inside its region."""
        return self._means(self.vertices)

    def edge_makers(self, region: int) -> list[tuple[str, int] | None]:
        """Layer and unit that made each edge of a region, the first being that from its first to its second vertex.

        ``None`` for the window's frame.
        """
        place = slice(self._offsets[region], self._offsets[region + 1])
        pairs = zip(self._loop[place].tolist(), self._following()[place].tolist(), strict=True)
        found = (self._makers[min(pair), max(pair)] for pair in pairs)
        return [None if layer < 0 else (self.layer_names[layer], unit) for layer, unit in found]

    def to_input(self, uv: Any) -> Tensor:
        """The inputs ``(K, *shape)`` at plane coordinates ``(K, 2)``."""
        return self.plane.to_input(uv)

    def plot(self, ax: Axes | None = None) -> tuple[Figure, Axes]:
        """Draw the regions, shaded by slope norm if there is one, the decision boundary in red, and the points."""
        from matplotlib import pyplot
        from matplotlib.collections import LineCollection, PolyCollection

        if ax is None:
            _, ax = pyplot.subplots(figsize=(6, 6), layout="constrained")
        shade = {"facecolor": "none"} if self.slope_norm is None else {"array": self.slope_norm, "cmap": "YlGnBu"}
        width = 0.3 * min(1.0, (_THIN_FROM / self.n_regions) ** 0.5)  # else the edges of many hide their shades
        ax.add_collection(PolyCollection(self.polygons, edgecolor="black", linewidth=width, **shade))
        ax.add_collection(LineCollection(list(self.decision_boundary), color="red", linewidth=1.5))
        ax.plot(*self.plane.points.T, "o", color="white", markeredgecolor="black")
        ax.set(xlim=self.extent[:2], ylim=self.extent[2:], aspect="equal", xlabel="u", ylabel="v")
        return cast("Figure", ax.figure), ax

    def _following(self) -> NDArray[np.int64]:
        following = np.roll(self._loop, -1)
        following[self._offsets[1:] - 1] = self._loop[self._offsets[:-1]]
        return following

    def _means(self, values: Floats) -> Floats:
        sizes = np.diff(self._offsets)
        return np.add.reduceat(values[self._loop], self._offsets[:-1]) / sizes[:, None]

    @cached_property
    def _makers(self) -> dict[tuple[int, int], tuple[int, int]]:
        low, high = self._edges[:2].min(0).tolist(), self._edges[:2].max(0).tolist()
        return dict(zip(zip(low, high, strict=True), zip(*self._made_by.tolist(), strict=True), strict=True))


def slice_partition(
    model: nn.Module,
    points: Any,
    *,
    extent: Sequence[float] | float | None = None,
    slopes: bool = False,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    max_regions: int | str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> SlicePartition:
    r"""Cut a 2-D slice of input space into the regions on which a continuous piecewise affine network is affine.

    These are the pictures of *Deep Networks Always Grok and Here is Why* (ICML 2024, figures 2, 3 and 7), which are
    drawn with SplineCam there. Here any torch module works, unchanged: on every region found so far the network up to
    its next non-linearity is affine, so the pre-activations that the model itself has at the regions' vertices give
    each unit's zero line on each region, by interpolation. Convolutions, residual sums, normalisation in eval mode and
    average pooling need nothing of their own; max-pooling is cut where its winner changes.

    Computed in float64 with the model in eval mode, which is left exactly as it was. Ties are those of
    :class:`lc_callback.engine.slices.subdivision.Subdivision`: a vertex within ``1e-13`` of a unit's largest value in
    the window is on its zero line.

    Args:
        model: any torch module of ReLU, LeakyReLU, PReLU, ReLU6, Hardtanh, abs, clamp, maximum or max-pooling and what
            is affine.
        points: ``(3, *input_shape)``, or a tuple or dict of such tensors. The first is the origin, the others give the
            directions, orthonormalised, so plane coordinates are in input units. Of integer inputs (tokens) those of
            the first point are held.
        extent: ``(u0, u1, v0, v1)``, the window in plane coordinates; by default the points' bounding square with a
            margin of a fifth. One number is the side in parts of that.
        slopes: also compute ``slope_norm``: one backward pass for each output.
        at: name of the module whose output (batch first) spans the plane instead of the input. If no input is
            floating-point, this is the first ``nn.Embedding`` that is executed.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: points in one forward pass; by default what fits a memory budget.
        max_regions: if the window holds more, it shrinks round its middle to a half, a fifth, a tenth, ... of its
            sides, until it holds no more; ``extent`` of the result is what was sliced. ``"auto"`` is what can be
            afforded: from 200 to 200,000, as many as keep regions x units x (1 + outputs) below 1e9. ``None`` sets no
            limit: a convolutional network may have millions.
        progress: called as ``progress(done, total)`` while a window is cut, and again from 0 on for the next window
            that is tried and for the slopes.

    Raises:
        ValueError: for an argument out of range, if the points are on one line, if more than ``max_regions`` meet in
            one point, or for a network that is not piecewise affine, because of a smooth non-linearity or of something
            else, such as a softmax or a LayerNorm; the text names the layer.

    Example::

        >>> import torch
        >>> from lc_callback.functional import slice_partition
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
        >>> with torch.no_grad():  # lines x = 0, y = 0 and x + y = 1
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        ...     _ = net[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        >>> found = slice_partition(net, torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), extent=(-2, 2, -2, 2))
        >>> found.n_regions, found.layer_names, float(found.areas.sum())
        (7, ['1'], 16.0)
    """
    found = cut_slice(
        model,
        points,
        extent=extent,
        rule=None if max_regions is None else WindowRule(max_regions),
        at=at,
        forward_fn=forward_fn,
        chunk_size=chunk_size,
        progress=progress,
    )
    if slopes:
        found.find_slopes(progress)
    return found.partition


@dataclass(frozen=True)
class WindowRule:
    """How a window is chosen that holds few enough regions.

    Attributes:
        max_regions: how many it may hold: a number, or ``"auto"``.
        shares: sides that are tried, in parts of the window that is asked for, in falling order.
        room: the whole window is to hold no more than a half of ``max_regions``, a smaller one than a quarter.
        centre: round which mixture of the points it shrinks, one weight each; ``None``: round its middle.
        side: in input units, of which a shrunk window has the share, in place of the window's own.

    Raises:
        ValueError: if ``max_regions`` is neither a positive integer nor ``"auto"``.
    """

    max_regions: int | str = "auto"
    shares: Sequence[float] = SHARES
    room: bool = False
    centre: tuple[float, float, float] | None = None
    side: float | None = None

    def __post_init__(self) -> None:
        if self.max_regions != "auto":
            positive_integer("max_regions", self.max_regions, "'auto'")

    def limit(self, affordable: int) -> int:
        """The number behind ``max_regions``."""
        return affordable if isinstance(self.max_regions, str) else int(self.max_regions)

    def most(self, affordable: int, share: float) -> int:
        """How many regions are allowed in the window of a share."""
        return max(1, self.limit(affordable) // ((2 if share == 1 else 4) if self.room else 1))


@dataclass(frozen=True)
class Slice:
    """A slice, and how its window was chosen.

    Attributes:
        partition: the regions.
        share: sides of its window, in parts of those of the window that was asked for.
        side: the longer side of the window that was asked for, in input units.
        affordable: what ``max_regions="auto"`` is for this network.
    """

    partition: SlicePartition
    share: float
    side: float
    affordable: int
    _slicer: _Slicer = field(repr=False)

    def find_slopes(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Set ``slope_norm`` of the partition. The model must not have changed."""
        self._slicer.progress = progress or _ignore_progress
        with untouched(self._slicer.model, self._slicer.forward_fn, dtype=torch.float64, grad=True):
            object.__setattr__(self.partition, "slope_norm", self._slicer.slope_norms(self.partition.centres))


def cut_slice(
    model: nn.Module,
    points: Any,
    *,
    extent: Sequence[float] | float | None = None,
    rule: WindowRule | None = None,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Slice:
    """As :func:`slice_partition`, with a rule for the window; its slopes are to be asked for."""
    slicer = _Slicer(model, points, max_pool="candidates", at=at, forward_fn=forward_fn)
    slicer.progress = progress or _ignore_progress
    with untouched(model, forward_fn, dtype=torch.float64):
        slicer.prepare(chunk_size)
        whole = slicer.plane.window(extent)
        affordable = affordable_regions(sum(slicer.sizes), slicer.n_outputs())
        share = 1.0
        if rule is None:
            slicer.cut(whole)
        else:
            centre = None if rule.centre is None else np.array(rule.centre) @ slicer.plane.points
            share = fitting_share(
                lambda share, most: slicer.cut(shrunk(whole, share, centre, rule.side), most),
                rule.shares,
                partial(rule.most, affordable),
            )
        outputs = slicer.outputs()
        offsets, loop = slicer.cells.loops()
        check_affine(slicer, outputs, offsets, loop)
        boundary = slicer.boundary(outputs)
        cells = slicer.cells
        found = SlicePartition(
            plane=slicer.plane,
            extent=slicer.extent,
            vertices=cells.vertices.copy(),
            outputs=outputs,
            decision_boundary=boundary,
            layer_names=slicer.names,
            counts=slicer.counts,
            slope_norm=None,
            euler=cells.euler,
            _offsets=offsets,
            _loop=loop,
            _edges=cells.edges.copy(),
            _made_by=cells.made_by.copy(),
        )
    return Slice(found, share, max(whole[1] - whole[0], whole[3] - whole[2]), affordable, slicer)


class _Reached(Exception):  # noqa: N818 (no error: the rest of the forward pass is not needed)
    pass


class _Slicer(Layers):
    """Cuts a window along the zero lines of the traced layers, one after another."""

    argument, remedy = "points", ""
    needs_layers = False  # an affine network is one region

    progress: Callable[[int, int], None]

    def prepare(self, chunk_size: int | None) -> None:
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        self.trace(torch.float64)
        self.plane = Plane.through(self.all_values())
        budget = _BUDGET.get(self.device.type, _BUDGET["cpu"])
        self.chunk = chunk_size or max(1, budget // max(1, self.bytes_per_sample))
        self.check_piecewise_affine(
            "so there are no regions to find. See `local_complexity_map` for a picture of any model."
        )
        self.set_frame(self.plane.directions.flatten(1).to(self.device), self.chunk)

    def n_outputs(self) -> int:
        """Numbers in the output for one point."""
        return self._forward(np.zeros((1, 2)), _ignore).shape[1]

    def cut(self, extent: Extent, most: int | None = None) -> tuple[int, int]:
        """Cut a window along all layers. Returns its regions, and the lines that cut it.

        Raises:
            TooManyRegions: as soon as there are more than ``most``.
        """
        self.extent, self.cells, self._most = extent, Subdivision(extent), most
        self.progress(0, _STAGES)
        followed = [position for position, axis in enumerate(self.axes) if axis is not None]
        self._ahead = {p: WinnerValues() if self._is_pool(p) else UnitValues() for p in followed}
        self._outputs = VertexRows()
        self.counts = np.zeros(len(self.names), np.int64)
        self._evaluate(0)
        for i, position in enumerate(followed):
            values = self._ahead.pop(position)
            before = len(self.cells.vertices)
            self._cut_along(position, values, (i / len(followed), 1 / len(followed)))
            if len(self.cells.vertices) > before:
                self._evaluate(before)
        return self.cells.n_faces, int(self.counts.sum())

    def _limit(self, more: int = 0) -> None:
        if self._most is not None and self.cells.n_faces + more > self._most:
            raise TooManyRegions(f"more than {self._most:,} regions")

    def _is_pool(self, position: int) -> bool:
        return self.sites[position].op in WINNERS

    def _evaluate(self, start: int) -> None:
        """Run the model at the vertices from this one on, and keep what the places ahead and the output have there."""
        n = len(self.cells.vertices)
        parts = -(-(n - start) // self.chunk)
        for part in (np.arange(start + i, n, parts) for i in range(parts)):  # each from all over the window

            def sink(at: int, knots: list[Knot], part: NDArray[np.int64] = part) -> None:
                if at in self._ahead:
                    self._ahead[at].add(part, knots)

            self._outputs.add(part, self._forward(self.cells.vertices[part], sink))
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
        layer = self.layer_of[position]
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

            def sink(at: int, knots: list[Knot], part: NDArray[np.int64] = part) -> None:
                if at == position:
                    rows.add(part, values.select(knots))
                    raise _Reached

            try:
                self._forward(self.cells.vertices[part], sink)
            except _Reached:
                continue
        return rows.table()

    def outputs(self, at: Floats | None = None) -> Floats:
        """The model's output ``(K, C)`` at coordinates, by default those of the vertices."""
        if at is None:
            return self._outputs.table()
        return torch.cat([self._forward(part, _ignore).cpu() for part in self._chunks(at)]).numpy()

    def _chunks(self, rows: NDArray[Any]) -> list[NDArray[Any]]:
        return np.array_split(rows, -(-len(rows) // self.chunk))

    def _forward(self, coordinates: Floats, sink: Callable[[int, list[Knot]], None]) -> Tensor:
        """The model's output ``(k, C)`` at coordinates; what its places have goes to the sink."""
        coefficients = torch.as_tensor(coordinates).to(self.frame)
        return _rows(self.follow_frame(torch.zeros(1, dtype=torch.long), coefficients, sink)).detach()

    def run_whole(self, coordinates: Floats, grad: bool = False) -> Tensor:
        """The output ``(k, C)`` at coordinates, from the model as it is, unobserved."""
        values = self.plane.to_input(coordinates).to(self.device)
        self._leaf = values.requires_grad_(grad)
        return _rows(self.output(torch.zeros(len(values), dtype=torch.long), self._leaf))

    def boundary(self, outputs: Floats) -> Floats:
        """Segments on which the largest output changes."""
        cells, table = self.cells.copy(), Table(outputs)
        if outputs.shape[1] == 1:
            cells.cut(outputs[:, 0], table, 0, (len(self.names), 0))
        else:
            cells.cut_maximum(table, range(outputs.shape[1]), len(self.names), 0)
        offsets, loop = cells.loops()
        mean = np.add.reduceat(table.values[loop], offsets[:-1]) / np.diff(offsets)[:, None]
        mean = mean if mean.shape[1] > 1 else np.concatenate([np.zeros_like(mean), mean, -mean], axis=1)
        top = (mean >= mean.max(1, keepdims=True) - 1e-12 * np.abs(outputs).max()).argmax(1)
        left, right = cells.edges[2:]
        kinks = (right >= 0) & (top[left] != top[right])  # the class may change on an edge that was there before
        start, end = cells.edges[:2, (cells.made_by[0] == len(self.names)) | kinks]
        return np.stack([cells.vertices[start], cells.vertices[end]], axis=1)

    def slope_norms(self, centres: Floats) -> Floats:
        """Frobenius norm of the Jacobian of the output at these coordinates."""
        norms = []
        parts = self._chunks(centres)
        for i, part in enumerate(parts):
            self.progress(i, len(parts))
            output = self.run_whole(part, grad=True)
            squares = torch.zeros(len(part), dtype=torch.float64, device=self.device)
            for c in range(output.shape[1]):
                (gradient,) = torch.autograd.grad(output[:, c].sum(), self._leaf, retain_graph=True)
                squares += gradient.flatten(1).square().sum(1)
            norms.append(squares.sqrt().cpu())
        return torch.cat(norms).numpy()


def _rows(output: Any) -> Tensor:
    output = main_output(output)
    if not output.ndim:
        raise ValueError("the model returns one number for a whole batch: pass `forward_fn=` that returns a row each.")
    return output.flatten(1) if output.ndim > 1 else output[:, None]


def _ignore_progress(done: int, total: int) -> None:
    """For slices that nobody waits for."""


def _ignore(position: int, knots: list[Knot]) -> None:
    """A sink for runs of which only the output counts."""


def toward_boundary(model: nn.Module, inputs: Any, forward_fn: Callable[..., Any] | None = None) -> Tensor | None:
    """A point of the decision boundary near to a point.

    Found by steps a little beyond where the affine map of the region has another class, until there is one, and by
    halving the last of them.

    Args:
        model: a classifier with logits ``(N, C)``, or ``(N, 1)`` for two classes.
        inputs: one point, ``(1, *shape)``, or a tuple or dict of such tensors, of which one is floating-point.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.

    Returns:
        ``(*shape)``; ``None`` if 50 steps do not lead there, or the output is no vector of logits.
    """
    space = Space(model, inputs, forward_fn=forward_fn)
    first = torch.zeros(1, dtype=torch.long)
    with untouched(model, forward_fn, dtype=torch.float64, grad=True):
        space.locate(torch.float64)
        x = inside = space.all_values()[:1].clone()
        own = None
        for _ in range(_STEPS):
            x = x.detach().requires_grad_(True)
            logits = _logits(space.output(first, x))
            if logits is None:
                return None
            own = int(logits.argmax()) if own is None else own
            margin = _margin(logits, own)
            if not margin > 0:
                break
            inside = x.detach()
            (gradient,) = torch.autograd.grad(margin, x)
            squared = gradient.square().sum()
            if not (squared > 0 and bool(squared.isfinite())):
                return None
            x = inside - _BEYOND * margin.detach() * gradient / squared
        else:
            return None
        outside = x.detach()
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            with torch.no_grad():
                logits = _logits(space.output(first, middle))
                if logits is None:
                    return None
                inside, outside = (middle, outside) if _margin(logits, own) > 0 else (inside, middle)
    return inside[0]


def _logits(output: Any) -> Tensor | None:
    """``(C,)`` of one point; a single one is the first of two, the other being 0. ``None`` if these are no logits."""
    logits = main_output(output)
    if logits.ndim > 2:
        return None
    return logits.flatten() if logits.numel() > 1 else torch.cat([logits.flatten(), logits.new_zeros(1)])


def _margin(logits: Tensor, own: int) -> Tensor:
    """By how much a class leads."""
    return logits[own] - torch.cat([logits[:own], logits[own + 1 :]]).max()
