"""Local complexity on a grid of a 2-D slice of input space, for any model."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.counting.grid import GridVertices, middles
from lc_callback.engine.counting.task import CountingTask
from lc_callback.engine.slices.plane import Plane, extent_text
from lc_callback.engine.slices.window import Extent
from lc_callback.functional.local_complexity import check_arguments, wrapped
from lc_callback.suggestions import did_you_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["LocalComplexityMap", "local_complexity_map"]

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class LocalComplexityMap:
    """Local complexity on a grid of ``H x W`` cells, measured at the middle of each.

    Attributes:
        values: ``(H, W)``: local complexity, rows from low to high v. NaN where a pre-activation was not finite.
        layer_values: ``(L, H, W)``: what each layer contributes, if it was asked for.
        layer_names: the ``L`` layers in execution order.
        layer_sizes: units of each layer.
        plane: where the slice is.
        extent: ``(u0, u1, v0, v1)``, the window in plane coordinates.
        radius: of the frame, in input units.
        at: name of the module whose output spans the plane, ``None`` for the input.
        dtype: floating-point type of the computation.
    """

    values: Floats
    layer_values: Floats | None
    layer_names: list[str]
    layer_sizes: list[int]
    plane: Plane
    extent: Extent
    radius: float
    at: str | None
    dtype: torch.dtype

    def __repr__(self) -> str:
        height, width = self.values.shape
        finite = self.values[np.isfinite(self.values)]
        low, mean, high = (finite.min(), finite.mean(), finite.max()) if finite.size else 3 * (np.nan,)
        return (
            f"LocalComplexityMap({height} x {width} cells, from {low:.4g} to {high:.4g}, mean={mean:.4g}, "
            f"radius={self.radius:g}, {extent_text(self.extent)}, {len(self.layer_names)} layers)"
        )

    @property
    def uv(self) -> Floats:
        """``(H, W, 2)``: plane coordinates of the middles of the cells."""
        return middles(self.extent, *self.values.shape)

    def to_input(self, uv: Any) -> Tensor:
        """The inputs ``(K, *shape)`` at plane coordinates ``(K, 2)``."""
        return self.plane.to_input(uv)

    def plot(self, ax: Axes | None = None, *, layer: str | None = None) -> tuple[Figure, Axes]:
        """Draw the map, or that of one layer, with a colour bar and the points that span the plane.

        Raises:
            ValueError: if there is no such layer, or the layers were not asked for.
        """
        from matplotlib import pyplot

        if layer is not None and (self.layer_values is None or layer not in self.layer_names):
            have = "were not kept: pass `per_layer=True`" if self.layer_values is None else f"are {self.layer_names}"
            raise ValueError(
                f"`layer={layer!r}` cannot be drawn: the layers {have}{did_you_mean(layer, self.layer_names)}"
            )
        values = self.values
        if layer is not None and self.layer_values is not None:
            values = self.layer_values[self.layer_names.index(layer)]
        if ax is None:
            _, ax = pyplot.subplots(figsize=(7, 6), layout="constrained")
        figure = cast("Figure", ax.figure)
        image = ax.imshow(values, origin="lower", extent=self.extent)
        figure.colorbar(image, ax=ax, label="local complexity" if layer is None else f"local complexity of {layer}")
        ax.plot(*self.plane.points.T, "o", color="white", markeredgecolor="black")
        ax.set(xlim=self.extent[:2], ylim=self.extent[2:], aspect="equal", xlabel="u", ylabel="v")
        return figure, ax


def local_complexity_map(
    model: nn.Module,
    points: Any,
    *,
    extent: Sequence[float] | float | None = None,
    resolution: int | tuple[int, int] = 64,
    radius: float = 0.005,
    n_directions: int | None = None,
    directions: Tensor | None = None,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    at: str | None = None,
    max_pool: bool = False,
    forward_fn: Callable[..., Any] | None = None,
    per_layer: bool = False,
    chunk_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocalComplexityMap:
    """Measure local complexity on a grid of the plane through three points.

    These are the maps of *Deep Networks Always Grok and Here is Why* (ICML 2024): of a plane of the input in figure 25,
    of the token embedding in figures 11, 19 and 20. Where :func:`slice_partition` needs a piecewise affine network,
    this takes any: each value is what :func:`local_complexity` counts at that point of the plane, with the same
    definition, precision and care for the model. A small ``radius`` shows the edges of the regions one by one, if the
    cells are narrow enough to meet them; a large one shows their density, blurred. With 25 random directions of ``D``
    dimensions the frame reaches about ``2.2 r / sqrt(D)`` along an edge's normal.

    The directions are those of the whole space, so an edge that passes beside the plane counts as well. Only what meets
    the plane counts with ``directions=found.plane.directions`` of another map (or :class:`SlicePartition`) of it.

    Args:
        model: any torch module.
        points: ``(3, *input_shape)``, or a tuple or dict of such tensors. The first is the origin, the others give the
            directions, orthonormalised, so plane coordinates are in input units. Of integer inputs (tokens) those of
            the first point are held.
        extent: ``(u0, u1, v0, v1)``, the window in plane coordinates; by default the points' bounding square with a
            margin of a fifth.
        resolution: cells along each side, or ``(H, W)``.
        radius: ``r`` > 0 in input units.
        n_directions: ``P``, from 1 to the dimension of the space; ``None`` is 25, or all there are if fewer.
        directions: ``(P, *shape)`` or ``(P, D)``, used as given instead of a random frame.
        seed: seed of the frame.
        layers: what is counted, see :func:`local_complexity`, and so are ``max_pool`` and ``forward_fn``.
        at: name of the module whose output (batch first) spans the plane instead of the input. If no input is
            floating-point, this is the first ``nn.Embedding`` that is executed.
        max_pool: also count the max-pooling outputs whose winning input changes.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        per_layer: also keep what each layer contributes.
        chunk_size: vertices in one forward pass; by default as many as fit a memory budget. Halved when out of memory.
        progress: called as ``progress(done, total)`` with numbers of cells after each chunk.

    Returns:
        :class:`LocalComplexityMap` with ``values (H, W)``.

    Raises:
        ValueError: for an argument out of range, if the points are not three or are on one line, and what
            :func:`local_complexity` raises.

    Example::

        >>> import torch
        >>> from lc_callback.functional import local_complexity_map
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.GELU(), torch.nn.Linear(2, 1))
        >>> with torch.no_grad():  # lines x = 0 and y = 0
        ...     _ = net[0].weight.copy_(torch.eye(2))
        ...     _ = net[0].bias.zero_()
        >>> corners = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> found = local_complexity_map(
        ...     net, corners, extent=(-1, 2, -1, 2), resolution=3, radius=0.8, directions=torch.eye(2)
        ... )
        >>> found.values  # at -0.5, 0.5 and 1.5
        array([[2., 2., 1.],
               [2., 2., 1.],
               [1., 1., 0.]])
        >>> found.extent, found.layer_names
        ((-1.0, 2.0, -1.0, 2.0), ['1'])
    """
    if isinstance(radius, Sequence):
        raise ValueError(f"`radius` must be one positive number, but got {radius!r}.")
    check_arguments(radius, n_directions, layers, at, chunk_size)
    sides = tuple(resolution) if isinstance(resolution, Sequence) else (resolution, resolution)
    if len(sides) != 2:
        raise ValueError(f"`resolution` must be a positive integer or a pair (H, W) of them, but got {resolution!r}.")
    for side in sides:
        positive_integer("resolution", side)
    strategy = functools.partial(GridVertices, extent=extent, sides=sides)
    task = CountingTask(strategy, model, points, layers=layers, max_pool=max_pool, at=at, forward_fn=forward_fn)
    with task.ready(radius, n_directions, directions, seed, chunk_size) as counter:
        lc = wrapped(counter.count_set(0, radius, progress))
    grid = cast("GridVertices", counter.strategy)
    by_layer = lc.counts.T.reshape(-1, *sides).numpy()
    return LocalComplexityMap(
        values=lc.total.double().reshape(sides).numpy(),
        layer_values=np.where(by_layer < 0, np.nan, by_layer) if per_layer else None,
        layer_names=lc.layer_names,
        layer_sizes=lc.layer_sizes,
        plane=grid.plane,
        extent=grid.window,
        radius=float(radius),
        at=lc.at,
        dtype=lc.dtype,
    )
