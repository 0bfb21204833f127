"""Counting the units that switch, for points and radii, chunk by chunk."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.engine.chunks import default_chunk, fitting
from lc_callback.engine.counting.result import SwitchCounts
from lc_callback.engine.counting.vertices import Tally
from lc_callback.engine.network.frame import cross_polytope_frame
from lc_callback.engine.network.layers import Layers
from lc_callback.engine.network.layout import viewed
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.points import Points, ends_of
from lc_callback.engine.network.space import compute_dtype
from lc_callback.engine.replay.prefix import output_of
from lc_callback.engine.replay.program import ReplayProgram
from lc_callback.isolation import untouched

__all__ = ["FEWEST_ULP", "SwitchCounter", "TraceEachSet", "frame_directions", "share_of", "tell"]

_N_DIRECTIONS = 25  # of the paper; a space of fewer dimensions has not so many
_CACHE = 2 * 2**20  # bytes of a tensor in the mean, for each thread of a CPU
_WORTHWHILE = 128  # samples, fewer of which are not worth a forward pass
_KEPT = 16 * 2**20  # bytes of what is kept of several chunks, and counted at once
#: The vertices are computed in float64 where a coordinate's step r/sqrt(D) is fewer units in the last place than this.
FEWEST_ULP = 16


def share_of(n: int, index: int, of: int) -> Tensor:
    """The indices of every ``of``-th of ``n`` points, from the ``index``-th on: none, if there are not so many."""
    return torch.arange(min(index, n), n, of)


class TraceEachSet(Exception):  # noqa: N818 (no error: there is another way)
    """The way through the model depends on values, so that one trace does not hold for several sets of points."""


class SwitchCounter(Layers):
    """Counts the switching units of traced layers, chunk by chunk.

    Args:
        model: as for :class:`Layers`, and so are ``inputs`` and ``named``.
        others: further sets of points, alike in structure: the same layers, frame and route serve all. What is decided
            from points is decided from all sets.
    """

    writes_down = True
    histogram: Any = None  # of critical radii, where these are known
    besides = 0  # samples of a point besides those of the frame

    def __init__(self, model: nn.Module, inputs: Any, *, others: Sequence[Any] = (), **named: Any) -> None:
        super().__init__(model, inputs, **named)
        self._others = others

    @property
    def n(self) -> int:
        """Number of points."""
        return self.points.n

    def locate(self, dtype: torch.dtype, *, perturbed: bool = True) -> None:
        """Find what is perturbed. Of several sets, the first and last point of each stand for all."""
        super().locate(dtype, perturbed=perturbed)
        self.sets = [self.points]
        if self._others:
            self.sets += [Points(inputs, dtype, self.device, self.argument) for inputs in self._others]
            self.largest = max(points.largest() for points in self.sets)
            self.points = Points(ends_of(self.sets), dtype, self.device, self.argument)

    def trace(self, dtype: torch.dtype) -> None:
        """Learn the layers, from the first point; how large the points are is known from all sets."""
        super().trace(dtype)
        if self._others and self.at_module is not None:
            inputs = self.points.batch(torch.arange(self.points.n), None)
            behind = output_of(self.at_module, lambda: self.run(inputs))
            self.largest = max(self.largest, float(torch.nan_to_num(behind.float()).abs().max()))

    def measure(
        self,
        radius: float | Sequence[float],
        n_directions: int | None,
        directions: Tensor | None,
        seed: int,
        chunk_size: int | None,
        progress: Callable[[int, int], None] | None,
        dtype: torch.dtype | None = None,
        points: Tensor | None = None,
    ) -> SwitchCounts:
        """Local complexity at the points, by default in the precision that the radius takes. Arguments as checked.

        With ``points`` at those of these indices only; what has to be decided is decided from all.
        """
        smallest = min(radius) if isinstance(radius, Sequence) else radius
        with self.ready(smallest, n_directions, directions, seed, chunk_size, dtype) as counter:
            return counter.count_set(0, radius, progress, points)

    def ready(
        self,
        radius: float,
        n_directions: int | None,
        directions: Tensor | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> AbstractContextManager[SwitchCounter]:
        """Measuring conditions, with the layers traced, the frame drawn and the route chosen.

        Inside, :meth:`count_set` may be called for any set and any radius that is not below ``radius``.

        Returns:
            A context manager that gives what counts: this, or what takes its place.
        """
        dtype = dtype or compute_dtype(self.model, self.inputs)
        with ExitStack() as stack:
            stack.enter_context(untouched(self.model, self.forward_fn, dtype=dtype))
            self.trace(dtype)
            if dtype is not torch.float64 and self.drowns(radius, dtype):
                warnings.warn(
                    f"`radius={radius:g}` is a step of {radius / self.dim**0.5:.1e} per coordinate, "
                    f"within {FEWEST_ULP} roundings of the largest input: computing in float64.",
                    stacklevel=3,
                )
                dtype = torch.float64
                stack.close()
                stack.enter_context(untouched(self.model, self.forward_fn, dtype=dtype))
                self.trace(dtype)
            if self.coarsest is not dtype and self.drowns(radius, self.coarsest):
                warnings.warn(
                    f"`radius={radius:g}` is a step of {radius / self.dim**0.5:.1e} per coordinate, and the forward of "
                    f"{type(self.model).__name__} rounds to {self.coarsest} on the way, so that counts are too low: "
                    "take a larger radius, or remove the cast.",
                    stacklevel=3,
                )
            if self.reads_values:
                if self._others:
                    raise TraceEachSet
                warnings.warn(
                    f"the forward of {type(self.model).__name__} looks at values in Python (an `if`, `bool()`, "
                    "`item()`): where it then goes is decided for a whole batch, so counts may depend on which "
                    "samples are in one, and on `chunk_size`.",
                    stacklevel=3,
                )
            frame = frame_directions(self.shape, n_directions, directions, seed, dtype, self.device)
            self._chunk = chunk_size or default_chunk(self.device, self.bytes_per_sample)
            self.set_frame(frame, self._chunk)
            if self.tape is not None and chunk_size is None:
                self._chunk = self._chunk_of(self.tape)
            return _Ready(self, stack.pop_all())

    def count_set(
        self,
        index: int,
        radius: float | Sequence[float],
        progress: Callable[[int, int], None] | None = None,
        points: Tensor | None = None,
    ) -> SwitchCounts:
        """Local complexity at one of the sets of points, when :meth:`ready`; with ``points`` at these indices only."""
        several = isinstance(radius, Sequence)
        radii = [float(r) for r in (radius if isinstance(radius, Sequence) else [radius])]
        self._enter_set(self.sets[index])
        points = torch.arange(self.n) if points is None else points
        counts = self.count(radii, points, self._chunk, progress)
        return SwitchCounts(
            counts=counts if several else counts[0],
            layer_names=self.names,
            layer_sizes=self.sizes,
            radius=radii if several else radii[0],
            at=self.at,
            dtype=self.dtype,
            histogram=self.histogram,
            uncounted=tuple(self.uncounted),
        )

    @property
    def verified(self) -> Tensor:
        """The first and the last point of each set."""
        return torch.arange(self.points.n) if self._others else super().verified

    def _enter_set(self, points: Points) -> None:
        points.channels_last = self.points.channels_last  # as the route was chosen
        self.points = points

    def _chunk_of(self, tape: ReplayProgram) -> int:
        """As many samples as stay in the cache from one operation to the next, if these are not too few."""
        most = default_chunk(self.device, tape.bytes_per_sample)
        if self.device.type != "cpu":
            return most
        fit = int(_CACHE * torch.get_num_threads() // max(1.0, tape.mean_bytes))
        return min(most, max(2 * self.n_directions, _WORTHWHILE, fit))

    def set_frame(self, frame: Tensor, most: int) -> None:
        """Take the ``(P, D)`` directions of the frame."""
        self.n_directions = len(frame)
        super().set_frame(frame, most)

    def starts(self, points: Tensor) -> Tensor:
        """From where the moves lead to the vertices of these points."""
        return points

    def follow_vertices(self, points: Tensor, vertices: Tensor, sink: Callable[[int, list[Knot]], None]) -> None:
        """Run the model at vertices ``(k, P)`` of the frames of the points ``(n,)``, in units of the directions."""
        self.follow_frame(points, vertices, sink)

    def drowns(self, radius: float, dtype: torch.dtype) -> bool:
        """Whether a coordinate's step is within rounding of the coordinates."""
        return radius / self.dim**0.5 < FEWEST_ULP * torch.finfo(dtype).eps * self.largest

    def count(
        self,
        radii: list[float],
        points: Tensor,
        chunk: int,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """``(R, n, L)`` counts for these points, on the CPU, with at most so many vertices in one forward pass."""
        counts = torch.zeros(len(radii), self.n, len(self.names), dtype=torch.int64, device=self.device)
        for row, radius in enumerate(radii):
            told = functools.partial(tell, progress, row * len(points), len(radii) * len(points))
            chunk = self._sweep(counts[row], points, self._vertices(radius), chunk, told)
        return counts.cpu()[:, points]  # the one time that a GPU is waited for

    def _vertices(self, radius: float) -> Tensor:
        """``(2P, P)`` coefficients of the frame."""
        steps = self._steps(radius)
        return torch.cat([steps, -steps])

    def _steps(self, length: float) -> Tensor:
        """``(P, P)`` coefficients of a step of this length along each direction."""
        return length * torch.eye(self.n_directions, dtype=self.frame.dtype, device=self.frame.device)

    def _sweep(
        self,
        counts: Tensor,
        points: Tensor,
        vertices: Tensor,
        chunk: int,
        told: Callable[[int], None],
    ) -> int:
        """Write the counts of these points to ``counts (N, L)``. Returns how many vertices fit a forward pass."""
        start, of_point = 0, len(vertices) + self.besides
        kept = _KEPT // max(1, 2 * sum(self.sizes) * self.dtype.itemsize)

        def per_pass(chunk: int) -> int:
            return max(1, chunk // of_point)

        def count(chunk: int) -> int:
            some = points[start : start + max(per_pass(chunk), kept)]
            if self.prefix is not None:
                self.prefix.hold(self, self.starts(some), chunk)
            parts = vertices.split(max(1, chunk - self.besides))
            found = self._count_points(some, parts, per_pass(chunk), functools.partial(_tell_from, told, start))
            counts[some.to(counts.device, non_blocking=True)] = found
            return len(some)

        while start < len(points):
            done, chunk = fitting(count, chunk, lambda chunk: per_pass(chunk) * of_point)
            start += done
        return chunk

    def _count_points(
        self, points: Tensor, parts: Sequence[Tensor], at_once: int, told: Callable[[int], None]
    ) -> Tensor:
        """``(n, L)`` counts of points, so many in one forward pass, and of their vertices one of these parts.

        -1 where a value was not finite.
        """
        tallies = [self.tallies(len(points)) for _ in self.axes]
        for start in range(0, len(points), at_once):
            rows = slice(start, min(start + at_once, len(points)))
            for part in parts:
                sink = functools.partial(self._tally, tallies, rows, len(part), part is parts[0])
                self.follow_vertices(points[rows], part, sink)
            told(rows.stop)
        counts = torch.zeros(len(self.names), len(points), dtype=torch.int64, device=self.device)
        broken = torch.zeros_like(counts, dtype=torch.bool)
        for layer, tallied in zip(self.layer_of, tallies, strict=True):
            if layer >= 0:
                counts[layer] += tallied.crossed()
                broken[layer] |= tallied.broken()
        return counts.masked_fill(broken, -1).T

    def tallies(self, n: int) -> Tally:
        """What keeps count of one place at ``n`` points."""
        return Tally(n)

    def _tally(self, tallies: list[Tally], rows: slice, k: int, first: bool, position: int, knots: list[Knot]) -> None:
        shape = k, rows.stop - rows.start

        def by_vertex(z: Tensor) -> Tensor:
            outermost = None if self.prefix is None else self.prefix.outermost(z, shape)
            return z.unflatten(0, shape) if outermost is None else outermost

        tallies[position].add(viewed(knots, by_vertex), rows, first)


class _Ready(AbstractContextManager["SwitchCounter"]):
    """What counts, and the measuring conditions that end with it.

    No generator: a ``StopIteration`` of the user's forward would come out of it as another error.
    """

    def __init__(self, counter: SwitchCounter, conditions: ExitStack) -> None:
        self._counter, self._conditions = counter, conditions

    def __enter__(self) -> SwitchCounter:
        return self._counter

    def __exit__(self, *error: Any) -> bool | None:
        return self._conditions.__exit__(*error)


def frame_directions(
    shape: tuple[int, ...],
    n_directions: int | None,
    directions: Tensor | None,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``(P, D)`` directions, drawn or given."""
    dim = math.prod(shape)
    if directions is None:
        n_directions = min(_N_DIRECTIONS, dim) if n_directions is None else n_directions
        return cross_polytope_frame(shape, n_directions, seed=seed, dtype=dtype, device=device).flatten(1)
    if not isinstance(directions, Tensor) or directions.ndim < 2 or not len(directions) or directions[0].numel() != dim:
        raise ValueError(
            f"`directions` must be a tensor (P, {', '.join(map(str, shape))}) or (P, {dim}), but got "
            f"{tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__}."
        )
    if not directions.isfinite().all():
        raise ValueError("`directions` must be finite, but holds NaN or infinity.")
    return directions.detach().flatten(1).to(dtype=dtype, device=device)


def _tell_from(told: Callable[[int], None], before: int, done: int) -> None:
    told(before + done)


def tell(progress: Callable[[int, int], None] | None, before: int, total: int, done: int) -> None:
    """Report progress: ``before`` were done before the ``done`` of this part, of ``total``."""
    if progress is not None:
        progress(before + done, total)
