"""Counting the units that switch, for points and radii, chunk by chunk."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lc_callback.engine.chunks import default_chunk, fitting
from lc_callback.engine.counting.result import SwitchCounts
from lc_callback.engine.counting.strategy import Strategy, Sweep, output_points
from lc_callback.engine.network.layers import TracedLayers
from lc_callback.engine.network.points import Points
from lc_callback.engine.replay.program import ReplayProgram
from lc_callback.engine.replay.recording import NotRepeatable, Recording
from lc_callback.engine.replay.route import Route

__all__ = ["SwitchCounter", "share_of"]

_CACHE = 2 * 2**20  # bytes of a tensor in the mean, for each thread of a CPU
_WORTHWHILE = 128  # samples, fewer of which are not worth a forward pass
_KEPT = 16 * 2**20  # bytes of what is kept of several chunks, and counted at once

Progress = Callable[[int, int], None]


def share_of(n: int, index: int, of: int) -> Tensor:
    """The indices of every ``of``-th of ``n`` points, from the ``index``-th on: none, if there are not so many."""
    return torch.arange(min(index, n), n, of)


class SwitchCounter:
    """Counts the switching units of traced layers, chunk by chunk.

    To be made in measuring conditions, and used in them.

    Args:
        layers: of which the units are counted.
        strategy: how units that switch are found.
        sets: the sets of points. With several, those of ``layers`` are the first and last point of each.
        directions: ``(P, D)``, of the neighbourhood.
        recording: what the model executes, or why that is not known.
        chunk_size: vertices in one forward pass; ``None``: as many as fit a memory budget.

    Attributes:
        route: how points are followed.
        chunk: vertices in one forward pass.
    """

    def __init__(
        self,
        layers: TracedLayers,
        strategy: Strategy,
        sets: Sequence[Points],
        directions: Tensor,
        recording: Recording | NotRepeatable,
        chunk_size: int | None,
    ) -> None:
        self.layers, self.strategy, self.sets = layers, strategy, sets
        self.n_directions = len(directions)
        self.chunk = chunk_size or default_chunk(layers.space.device, layers.bytes_per_sample)
        n = layers.space.points.n
        verified = torch.arange(n) if len(sets) > 1 else torch.tensor([0, n - 1]).unique()
        self.route = Route(layers, strategy.frame(directions), self.chunk, strategy, verified, recording)
        if self.route.program is not None and chunk_size is None:
            self.chunk = self._chunk_of(self.route.program)

    @property
    def n(self) -> int:
        """Number of points of the set that was counted last."""
        return self.strategy.n

    def count_set(
        self,
        index: int,
        radius: float | Sequence[float],
        progress: Progress | None = None,
        points: Tensor | None = None,
        with_output: bool = True,
    ) -> SwitchCounts:
        """Count at one of the sets of points; with ``points`` at those of these indices only.

        ``with_output``: also take the Jacobian of the output at the first points, where it can be followed.
        """
        several = isinstance(radius, Sequence)
        radii = [float(r) for r in (radius if isinstance(radius, Sequence) else [radius])]
        self._enter(self.sets[index])
        points = torch.arange(self.n) if points is None else points
        counts, histogram, norms = self._count(radii, points, progress, with_output)
        layers = self.layers
        return SwitchCounts(
            counts=counts if several else counts[0],
            layer_names=layers.names,
            layer_sizes=layers.sizes,
            radius=radii if several else radii[0],
            at=layers.space.at,
            dtype=layers.space.dtype,
            histogram=histogram,
            jacobian_norm=norms,
            dim=layers.space.dim,
            n_directions=self.n_directions,
            uncounted=tuple(layers.uncounted),
            route=self.route.explain(),
        )

    def _enter(self, points: Points) -> None:
        points.channels_last = self.route.way.channels_last
        self.layers.space.points = points

    def _chunk_of(self, program: ReplayProgram) -> int:
        """As many samples as stay in the cache from one operation to the next, if these are not too few."""
        device = self.layers.space.device
        most = default_chunk(device, program.bytes_per_sample)
        if device.type != "cpu":
            return most
        fit = int(_CACHE * torch.get_num_threads() // max(1.0, program.mean_bytes))
        return min(most, max(2 * self.n_directions, _WORTHWHILE, fit))

    def _count(
        self, radii: list[float], points: Tensor, progress: Progress | None, with_output: bool
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """``(R, n, L)`` counts for these points, on the CPU.

        Also the histogram of critical radii, and norms of the Jacobian at the first points, where they are known.
        """
        shape = self.n, len(radii), len(self.layers.names)
        counts = torch.zeros(shape, dtype=torch.int64, device=self.layers.space.device)
        sweeps = self.strategy.sweeps(self.route, radii, self.n_directions)
        for sweep in [] if with_output else sweeps:
            sweep.squares = None
        chunk, total = self.chunk, len(sweeps) * len(points)
        for number, sweep in enumerate(sweeps):
            before = number * len(points)

            def report(done: int, before: int = before) -> None:
                if progress is not None:
                    progress(before + done, total)

            chunk = self._sweep(counts[:, sweep.radii], points, sweep, chunk, report)
        histogram = sweeps[0].histogram
        # The one time that a GPU is waited for.
        counts = counts.transpose(0, 1).cpu()[:, points]
        squares = sweeps[0].squares
        if squares is not None:  # of all directions of the space, of which the frame has some
            first = points < output_points(self.n)
            squares = squares.cpu()[points[first]] * self.layers.space.dim / self.n_directions
            squares[(counts[0, first] < 0).any(-1)] = torch.nan
        return counts, None if histogram is None else histogram.cpu(), None if squares is None else squares.sqrt()

    def _sweep(self, counts: Tensor, points: Tensor, sweep: Sweep, chunk: int, report: Callable[[int], None]) -> int:
        """Write the counts of these points to ``counts (N, r, L)``. Returns how many vertices fit a forward pass."""
        start, of_point = 0, len(sweep.coefficients) + self.strategy.besides
        kept = _KEPT // max(1, 2 * sum(self.layers.sizes) * self.layers.space.dtype.itemsize)

        def per_pass(chunk: int) -> int:
            return max(1, chunk // of_point)

        def count(chunk: int) -> int:
            some = points[start : start + max(per_pass(chunk), kept)]
            self.route.hold(self.strategy.starts(some), chunk)
            found = self._count_points(some, sweep, per_pass(chunk), chunk, lambda done: report(start + done))
            counts[some.to(counts.device, non_blocking=True)] = found
            return len(some)

        while start < len(points):
            done, chunk = fitting(count, chunk, lambda chunk: per_pass(chunk) * of_point)
            start += done
        return chunk

    def _count_points(
        self, points: Tensor, sweep: Sweep, at_once: int, chunk: int, report: Callable[[int], None]
    ) -> Tensor:
        """``(n, r, L)`` counts of points, so many in one forward pass, and at most so many samples. -1: not finite."""
        parts = sweep.coefficients.split(max(1, chunk - self.strategy.besides))
        collector = sweep.collector(len(points))
        for rows in self._passes(points, sweep, at_once):
            for part in parts:
                collector.add(points[rows], rows, part, part is parts[0])
            report(rows.stop)
        return collector.counts()

    def _passes(self, points: Tensor, sweep: Sweep, at_once: int) -> list[slice]:
        """The rows of each forward pass: of several, the output is followed at all points of one or at none of them."""
        if len(points) <= at_once:
            return [slice(0, len(points))]
        first = 0 if sweep.squares is None else int((points < output_points(self.n)).sum())
        starts = [*range(0, first, at_once), *range(first, len(points), at_once)]
        return [*map(slice, starts, [*starts[1:], len(points)])]
