"""The exact partition of a 2-D slice of input space into the regions on which a network is affine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.network.space import Space
from lc_callback.engine.slices.affine_check import check_affine
from lc_callback.engine.slices.boundary import boundary_segments, toward_boundary
from lc_callback.engine.slices.plane import Plane, extent_text
from lc_callback.engine.slices.slicer import Slicer
from lc_callback.engine.slices.window import SHARES, Extent, affordable_regions, fitting_share, shrunk
from lc_callback.isolation import untouched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Plane", "Slice", "SlicePartition", "WindowRule", "cut_slice", "slice_partition", "toward_boundary"]

Floats = NDArray[np.float64]

_THIN_FROM = 5000  # regions


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
    _slicer: Slicer = field(repr=False)

    def find_slopes(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Set ``slope_norm`` of the partition. The model must not have changed."""
        self._slicer.progress = progress or _ignore_progress
        with untouched(self._slicer.space.model, self._slicer.space.forward_fn, dtype=torch.float64, grad=True):
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
    space = Space(model, points, at=at, forward_fn=forward_fn, argument="points")
    with untouched(model, forward_fn, dtype=torch.float64):
        slicer = Slicer(space, chunk_size, progress or _ignore_progress)
        whole = slicer.plane.window(extent)
        affordable = affordable_regions(sum(slicer.layers.sizes), slicer.n_outputs())
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
        cells = slicer.cells
        boundary = boundary_segments(cells, outputs, len(slicer.layers.names))
        found = SlicePartition(
            plane=slicer.plane,
            extent=slicer.extent,
            vertices=cells.vertices.copy(),
            outputs=outputs,
            decision_boundary=boundary,
            layer_names=slicer.layers.names,
            counts=slicer.counts,
            slope_norm=None,
            euler=cells.euler,
            _offsets=offsets,
            _loop=loop,
            _edges=cells.edges.copy(),
            _made_by=cells.made_by.copy(),
        )
    return Slice(found, share, max(whole[1] - whole[0], whole[3] - whole[2]), affordable, slicer)


def _ignore_progress(done: int, total: int) -> None:
    """For slices that nobody waits for."""
