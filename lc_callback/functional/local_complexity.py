"""Local complexity: how many units switch inside a small neighbourhood of a point."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.functional.bracket import UpperBound
from lc_callback.functional.checks import is_out_of_memory, positive_integer
from lc_callback.functional.forward_mode import Dual, NoRule, differentiate
from lc_callback.functional.frame import cross_polytope_frame
from lc_callback.functional.knots import (
    Recorder,
    check_layers,
    memory_order,
    permuted,
    reduced,
    relative,
    surely_finite,
    viewed,
)
from lc_callback.functional.layers import Layers
from lc_callback.functional.operations import Knot
from lc_callback.functional.points import Points, ends_of
from lc_callback.functional.prefix import output_of
from lc_callback.functional.space import compute_dtype
from lc_callback.functional.suggestions import did_you_mean
from lc_callback.functional.tangents import AffineRecorder, execute_affine, is_hidden
from lc_callback.functional.tape import Tape
from lc_callback.isolation import untouched

__all__ = [
    "Counter",
    "HasJumps",
    "LinearCounter",
    "LocalComplexity",
    "Tally",
    "TraceEachSet",
    "check_arguments",
    "check_method",
    "counter_of",
    "critical_radii",
    "default_chunk",
    "frame_directions",
    "joined",
    "local_complexity",
    "share_of",
]

# Bytes that the largest tensor of one forward pass may take; a few such live at a time. Small is fast on a CPU, but a
# pass of less than a few samples is slow: for these it may take more.
_BUDGET = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
_N_DIRECTIONS = 25  # of the paper; a space of fewer dimensions has not so many
_FEW, _AT_MOST = 32, 96 * 2**20
_CACHE = 2 * 2**20  # bytes of a tensor in the mean, for each thread of a CPU
_WORTHWHILE = 128  # samples, fewer of which are not worth a forward pass
_KEPT = 16 * 2**20  # bytes of what is kept of several chunks, and counted at once
# The vertices are computed in float64 where a coordinate's step r/sqrt(D) is fewer units in the last place than this.
_FEWEST_ULP = 16
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_DROPPED = 18  # bits of a critical radius as float32, which leaves 32 bins for a factor of two, of 3 % at most
_BINS = 2 ** (31 - _DROPPED)
_INFINITE = 0x7F800000 >> _DROPPED  # and behind that there are those that are no number
Z99 = 2.5758293035489004


@dataclass(frozen=True, eq=False)
class LocalComplexity:
    """Local complexity at ``N`` points, by layer.

    With several radii ``counts``, ``total``, ``mean`` and ``sem`` have a leading axis ``R``.

    Attributes:
        counts: ``(N, L)`` int64: units of each layer that switch inside the frame of each point. -1 where a
            pre-activation was not finite.
        layer_names: the ``L`` layers in execution order: module paths, ``#1``, ``#2``, ... if used repeatedly.
        layer_sizes: units of each layer.
        radius: the radius, or the list of radii.
        at: name of the module whose output was perturbed, ``None`` for the input.
        dtype: floating-point type of the computation.
        upper: as ``counts``, with ``bracket=True``: as many units at most switch anywhere in the hull of the frame.
        histogram: with ``method="linear"``: numbers of units, over all points and layers, by the leading 13 bits behind
            the sign of the critical radius as float32: the exponent, and 32 bins for a factor of two.
        uncounted: operations that choose a winner, such as max-pooling, which ``max_pool=True`` would count.
    """

    counts: Tensor
    layer_names: list[str]
    layer_sizes: list[int]
    radius: float | list[float]
    at: str | None
    dtype: torch.dtype
    upper: Tensor | None = None
    histogram: Tensor | None = None
    uncounted: Sequence[str] = ()

    @property
    def total(self) -> Tensor:
        """``(N,)``: switching units of all layers, ``counts.sum(-1)``; NaN where a pre-activation was not finite."""
        total, broken = self.counts.sum(-1), (self.counts < 0).any(-1)
        return total.double().masked_fill(broken, math.nan) if broken.any() else total

    @property
    def mean(self) -> Any:
        """Mean of ``total`` over the points: float, with several radii a float64 tensor ``(R,)``."""
        return self._per_radius(self.total.double().mean(-1))

    @property
    def sem(self) -> Any:
        """Standard error of ``mean`` over the points, NaN for a single point."""
        total = self.total.double()
        n = total.shape[-1]
        return self._per_radius(total.std(-1) / n**0.5 if n > 1 else torch.full(total.shape[:-1], math.nan))

    @property
    def ci99(self) -> Any:
        """Half the width of the 99 % interval of ``mean`` over the points (normal approximation)."""
        sem = self.sem
        return sem * Z99

    @property
    def layer_means(self) -> list[Any]:
        """Mean of ``counts`` over the points, for each layer; with several radii a list ``(R,)`` of such lists."""
        counts = self.counts.double().masked_fill(self.counts < 0, math.nan)
        return counts.mean(-2).tolist()

    def critical_radius(self, share: float) -> float:
        """The radius at which this share of the units, over points and layers, has switched, within 1.6 %.

        NaN if a pre-activation was not finite.

        Raises:
            ValueError: without ``method="linear"``, or if ``share`` is not above 0 and at most 1.
        """
        if self.histogram is None:
            raise ValueError("critical radii need `method='linear'`.")
        if (self.counts < 0).any():
            return math.nan
        if not 0 < share <= 1:
            raise ValueError(f"`share` must be above 0 and at most 1, but got {share!r}.")
        return _radius_of(self.histogram, share * float(self.histogram.sum()))

    @property
    def density(self) -> float:
        """Switching units of a point per unit of radius, as the radius goes to 0.

        This is one divided by the radius within which one unit switches at a point in the mean, but at most a tenth of
        all units: the slope of local complexity on its first bit, for which no radius has to be chosen. Within 1.6 %.
        NaN if a pre-activation was not finite; infinite if so many units are exactly on their kink, as those are which
        see nothing but zeros.

        Raises:
            ValueError: without ``method="linear"``.
        """
        units = sum(self.layer_sizes)
        each = min(1.0, units / 10)
        radius = self.critical_radius(each / units)
        return each / radius if radius else math.inf

    def __repr__(self) -> str:
        several = isinstance(self.radius, list)
        means, halves = (self.mean.tolist(), self.ci99.tolist()) if several else ([self.mean], [self.ci99])
        mean = ", ".join(f"{mean:.4g} ± {half:.2g}" for mean, half in zip(means, halves, strict=True))
        radius = (
            f"[{', '.join(f'{r:g}' for r in self.radius)}]" if isinstance(self.radius, list) else f"{self.radius:g}"
        )
        return (
            f"LocalComplexity(mean={f'[{mean}]' if several else mean} (99 %), radius={radius}, "
            f"{self.counts.shape[-2]} points, {sum(self.layer_sizes)} units in {len(self.layer_sizes)} layers)"
        )

    def _per_radius(self, value: Tensor) -> Any:
        return value if isinstance(self.radius, list) else float(value)


def local_complexity(
    model: nn.Module,
    inputs: Any,
    *,
    radius: float | Sequence[float] = 0.005,
    n_directions: int | None = None,
    directions: Tensor | None = None,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    at: str | None = None,
    method: str = "vertices",
    max_pool: bool = False,
    bracket: bool = False,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LocalComplexity:
    r"""Count the units that switch inside a cross-polytope around each point.

    For a point :math:`x`, orthonormal directions :math:`v_1 \dots v_P` and a radius :math:`r`, the frame is the
    :math:`2P` vertices :math:`x \pm r v_p`. With :math:`z_i(u)` the pre-activation of unit :math:`i` at vertex
    :math:`u`,

    .. math::
        LC(x) = \sum_\text{layers} \sum_i 1[\, z_i(u) > 0 \text{ for some vertices and} \le 0 \text{ for others}\,]

    (*Deep Networks Always Grok and Here is Why*, ICML 2024, section 2 and equation 6; the sum over layers as in the
    authors' code). Each unit counts at most once; every channel and position of a feature map is a unit.

    The model is measured in eval mode, in float32 or better, without autocast, and left exactly as it was: modes,
    buffers, gradients and random states. Half-precision parameters are measured as float32 copies. Where
    :math:`r/\sqrt{D}` is within a few units in the last place of the inputs all moves to float64, with a warning.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords). The
            floating-point ones are perturbed (several as one product space); integer and boolean ones are held.
        radius: ``r`` > 0 in input units, or several radii.
        n_directions: ``P``, from 1 to the dimension of the perturbed space; ``None`` is 25, or all there are if fewer.
        directions: ``(P, *shape)`` or ``(P, D)``, used as given instead of a random frame.
        seed: seed of the frame, see :func:`cross_polytope_frame`.
        layers: ``None`` counts the pre-activation of every non-linearity that is executed, module or function, in
            execution order. A list of module names, ``fnmatch`` patterns, class names or types counts the *outputs* of
            these modules instead: ``[nn.Linear]`` is what the authors' code counts for an MLP, logits included.
        at: name of the module whose output (batch first) is perturbed instead of the input, at its first call. If no
            input is floating-point, this is the first ``nn.Embedding`` that is executed.
        method: ``"vertices"``, or ``"linear"``: at each point the network is replaced by its own affine piece. A unit
            has the *critical radius* :math:`\rho_i = |z_i(x)| / \max_p |dz_i(x)[v_p]|` and counts where this is at most
            ``r``, so all radii come from one pass of :math:`P + 1` samples, and ``critical_radius`` and ``density`` are
            known. Derivatives are exact where all operations are affine, have kinks or pool; with others (a LayerNorm,
            a softmax, a GELU) they are taken from steps of about a thousandth of the largest coordinate of a typical
            point. A model that jumps before its last layer (``torch.sign``, ``round``, a cast to integers, ``>``, ...)
            is counted by vertices instead, with a warning.
        max_pool: also count the winners that change: of each output of max-pooling, ``amax``, ``max(dim)`` and others,
            each candidate of ``topk``, and each cut between neighbours in the order of ``sort``.
        bracket: also bound the units that switch anywhere in the convex hull of the frame: ``counts`` are not more than
            these, for a unit that differs between vertices switches between them, and ``upper`` not fewer, for it is
            what bounds on all values in the hull do not exclude (to rounding; Singh et al., *Fast and Effective
            Robustness Certification*, NeurIPS 2018). In float64, for continuous piecewise affine networks, at a cost
            for each point of as many samples as the frame has directions and units that may switch.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        chunk_size: vertices in one forward pass; by default as many as fit a memory budget. Halved when out of memory.
        progress: called as ``progress(done, total)`` with numbers of points after each chunk.

    Returns:
        :class:`LocalComplexity` with ``counts (N, L)``, or ``(R, N, L)`` for several radii.

    Raises:
        ValueError: for an argument out of range, if no non-linearity was seen, or if a pre-activation cannot be
            assigned to the samples. The message says what to pass instead.

    Example::

        >>> import torch
        >>> from lc_callback.functional import local_complexity
        >>> net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
        >>> with torch.no_grad():  # lines x = 0, y = 0 and x + y = 1
        ...     _ = net[0].weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]))
        ...     _ = net[0].bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        >>> lc = local_complexity(net, torch.tensor([[0.0, 0.0], [5.0, 5.0]]), radius=0.1, n_directions=2)
        >>> lc.total
        tensor([2, 0])
        >>> lc.mean, lc.layer_names, lc.layer_sizes
        (1.0, ['1'], [3])

        >>> lc = local_complexity(net, torch.tensor([[0.4, 0.4]]), radius=0.35, n_directions=2, bracket=True)
        >>> lc.total, lc.upper.sum(-1)  # no other unit switches between the vertices
        (tensor([1]), tensor([1]))
    """
    radii = check_arguments(radius, n_directions, layers, at, chunk_size)
    check_method(method, ("vertices", "linear"), layers, max_pool, bracket)
    if bracket and layers is not None:
        raise ValueError("`bracket=True` bounds the pre-activations of non-linearities: leave `layers` out.")
    counter = counter_of(method, model, inputs, layers=layers, max_pool=max_pool, at=at, forward_fn=forward_fn)
    if not bracket:
        return counter.measure(radius, n_directions, directions, seed, chunk_size, progress)
    dtype = torch.float64
    found = counter.measure(radius, n_directions, directions, seed, chunk_size, progress, dtype)
    bound = UpperBound(model, inputs, max_pool="candidates", at=at, forward_fn=forward_fn)
    with untouched(model, forward_fn, dtype=dtype):
        bound.trace(dtype)
        bound.check_piecewise_affine("so there is no bracket.")
        upper = bound.count(radii, counter.frame)
    upper = upper[..., [max_pool or not pool for pool in bound.pools]]
    if upper.shape[-1] != len(found.layer_names):
        raise ValueError(
            "`bracket=True` has no bound for the winners of `topk`, `sort` and others: leave `max_pool` out."
        )
    return replace(found, upper=upper if isinstance(radius, Sequence) else upper[0])


def share_of(n: int, index: int, of: int) -> Tensor:
    """The indices of every ``of``-th of ``n`` points, from the ``index``-th on: none, if there are not so many."""
    return torch.arange(min(index, n), n, of)


def joined(parts: Sequence[LocalComplexity]) -> LocalComplexity:
    """Local complexity at all points, from that at each :func:`share_of` them, in the order of these."""
    n = sum(part.counts.shape[-2] for part in parts)
    counts = parts[0].counts.new_empty(*parts[0].counts.shape[:-2], n, len(parts[0].layer_names))
    for index, part in enumerate(parts):
        counts[..., share_of(n, index, len(parts)), :] = part.counts
    histograms = [part.histogram for part in parts if part.histogram is not None]
    return replace(parts[0], counts=counts, histogram=sum(histograms[1:], histograms[0]) if histograms else None)


class TraceEachSet(Exception):  # noqa: N818 (no error: there is another way)
    """The way through the model depends on values, so that one trace does not hold for several sets of points."""


class Counter(Layers):
    """Counts the switching units of traced layers, chunk by chunk.

    Args:
        model: as for :class:`Layers`, and so are ``inputs`` and ``named``.
        others: further sets of points, alike in structure: the same layers, frame and route serve all. What is decided
            from points is decided from all sets.
    """

    writes_down = True
    histogram: Any = None  # of critical radii, where these are known
    besides = 0  # samples of a point besides those of the frame
    only_extremes = True  # whether the largest and smallest value at the vertices are all that a tally looks at

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
    ) -> LocalComplexity:
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
    ) -> AbstractContextManager[Counter]:
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
                    f"within {_FEWEST_ULP} roundings of the largest input: computing in float64.",
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
    ) -> LocalComplexity:
        """Local complexity at one of the sets of points, when :meth:`ready`; with ``points`` at these indices only."""
        several = isinstance(radius, Sequence)
        radii = [float(r) for r in (radius if isinstance(radius, Sequence) else [radius])]
        self._enter_set(self.sets[index])
        points = torch.arange(self.n) if points is None else points
        counts = self.count(radii, points, self._chunk, progress)
        return LocalComplexity(
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

    def _chunk_of(self, tape: Tape) -> int:
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
        return radius / self.dim**0.5 < _FEWEST_ULP * torch.finfo(dtype).eps * self.largest

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
            told = functools.partial(_tell, progress, row * len(points), len(radii) * len(points))
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
        parts = vertices.split(max(1, chunk - self.besides))
        kept = _KEPT // max(1, 2 * sum(self.sizes) * self.dtype.itemsize)
        while start < len(points):
            at_once = max(1, chunk // of_point)
            some = points[start : start + max(at_once, kept)]
            try:
                if self.prefix is not None:
                    self.prefix.hold(self, self.starts(some), chunk)
                found = self._count_points(some, parts, at_once, functools.partial(_tell_from, told, start))
                counts[some.to(counts.device, non_blocking=True)] = found
            except Exception as error:
                if chunk == 1 or not is_out_of_memory(error):
                    raise
                smaller = max(1, min(chunk, at_once * of_point) // 2)
            else:
                start += len(some)
                continue
            # Here the exception, and what its frames held, is gone.
            chunk, parts = smaller, vertices.split(max(1, smaller - self.besides))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
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
            outermost = self.prefix.outermost(z, shape) if self.prefix is not None and self.only_extremes else None
            return z.unflatten(0, shape) if outermost is None else outermost

        tallies[position].add(viewed(knots, by_vertex), rows, first)


class _Ready(AbstractContextManager["Counter"]):
    """What counts, and the measuring conditions that end with it.

    No generator: a ``StopIteration`` of the user's forward would come out of it as another error.
    """

    def __init__(self, counter: Counter, conditions: ExitStack) -> None:
        self._counter, self._conditions = counter, conditions

    def __enter__(self) -> Counter:
        return self._counter

    def __exit__(self, *error: Any) -> bool | None:
        return self._conditions.__exit__(*error)


class HasJumps(Exception):  # noqa: N818 (no error: there is another method)
    """The model jumps, so its affine pieces do not tell where its units switch."""


# For each unit of ``(n, ...)`` points, its value, a knot, and how far it gets along the directions.
Reach = tuple[Tensor, float | None, Tensor]


class LinearCounter(Counter):
    """Counts by critical radii, for all radii at once: the samples of a point are itself and one for each direction."""

    block = (0, 0)
    besides = 1
    has_rules = True

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._scratch = torch.empty(0)
        self._samples = torch.empty(0), torch.empty(0)  # directions, and what they are together with the point itself

    def ready(self, *arguments: Any, **named: Any) -> AbstractContextManager[Counter]:
        """As for vertices, and by these if the model has no affine pieces that tell what it does nearby."""
        try:
            return super().ready(*arguments, **named)
        except HasJumps as jumps:
            warnings.warn(
                f"the model jumps ({jumps}), and its affine pieces do not tell where: counting by vertices instead "
                "of `method='linear'`.",
                stacklevel=3,
            )
        by_vertices = Counter(self.model, self.inputs, others=self._others, at=self.at, forward_fn=self.forward_fn)
        return by_vertices.ready(*arguments, **named)

    def trace(self, dtype: torch.dtype) -> None:
        """As for vertices."""
        super().trace(dtype)
        if self.jumps:
            raise HasJumps(", ".join(self.jumps))
        if torch.finfo(self.coarsest).bits < 32:
            raise HasJumps(f"rounding to {self.coarsest}")

    def _recorder(self, receive: Callable[..., None], recording: dict[str, Any]) -> Recorder:
        return AffineRecorder(self, self.model, receive, **recording)

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        return execute_affine(self, op, func, args, kwargs)

    def observed(self, moves: Tensor, most: int) -> list[Tensor]:
        """Where a few points are, and how far they get along one direction."""
        found: list[Tensor] = []

        def keep(position: int, reaches: list[Reach]) -> None:
            for z, knot, reach in reaches:
                found.extend((z - (knot or 0.0), reach))

        for points in self.verified.split(max(1, min(most // 2, 2))):
            self._follow_directions(points, moves[:1], keep)
        return found

    def follow_frame(self, points: Tensor, coefficients: Tensor, sink: Callable[[int, list[Knot]], None]) -> Any:
        """As for vertices; the first of the ``coefficients`` is 0."""
        self.block = len(coefficients), len(points)
        return super().follow_frame(points, coefficients, sink)

    def count(
        self,
        radii: list[float],
        points: Tensor,
        chunk: int,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """As for vertices."""
        self._radii, self._step = radii, 1.0 if self.by_rules else self._small()
        self.histogram = torch.zeros(_BINS, dtype=torch.int64, device=self.device)
        # What moves by as good as nothing has a critical radius too large for any other unit.
        far = torch.tensor((self.largest or 1.0) / (2 * torch.finfo(self.dtype).eps), dtype=torch.float32)
        self._never = min(_INFINITE, int(far.view(torch.int32)) >> _DROPPED)
        counts = torch.zeros(self.n, len(radii), len(self.names), dtype=torch.int64, device=self.device)
        told = functools.partial(_tell, progress, 0, len(points))
        self._sweep(counts, points, self._steps(self._step), chunk, told)
        self.histogram = self.histogram.cpu()
        return counts.transpose(0, 1).cpu()[:, points]

    def _small(self) -> float:
        """A step that is small at most points: one that lies far out must not make it large for all."""
        eps = torch.finfo(self.coarsest).eps
        size = self.points.typical() if self.at_module is None else 0.0
        return (size or self.largest or 1.0) * max(3 * eps**0.5, 2 * _FEWEST_ULP * eps * self.dim**0.5)

    def _count_points(
        self, points: Tensor, parts: Sequence[Tensor], at_once: int, told: Callable[[int], None]
    ) -> Tensor:
        """``(n, R, L)`` counts of points."""
        reached = [_Reaches(len(points)) for _ in self.axes]
        for start in range(0, len(points), at_once):
            rows = slice(start, min(start + at_once, len(points)))
            for part in parts:
                sink = functools.partial(self._note, reached, rows, part is parts[0])
                self._follow_directions(points[rows], part, sink)
            told(rows.stop)
        counts = torch.zeros(len(points), len(self._radii), len(self.names), dtype=torch.int64, device=self.device)
        broken = torch.zeros_like(counts[:, 0], dtype=torch.bool)
        histogram = torch.zeros_like(self.histogram)
        for layer, place in zip(self.layer_of, reached, strict=True):
            if layer >= 0:
                broken[:, layer] |= place.broken()
                histogram += self._add(counts[:, :, layer], place.by_unit())
        histogram[_INFINITE] += histogram[self._never : _INFINITE].sum()
        histogram[self._never : _INFINITE] = 0
        self.histogram += histogram
        return counts.masked_fill_(broken[:, None], -1)

    def _note(self, reached: list[_Reaches], rows: slice, first: bool, position: int, reaches: list[Reach]) -> None:
        if position in self.never_above:  # beyond the kink before it the affine piece would rise
            reaches = [(z, knot, 0 * reach) for z, knot, reach in reaches]
        reached[position].add(reaches, rows, first)

    def _follow_directions(self, points: Tensor, directions: Tensor, sink: Callable[[int, list[Reach]], None]) -> None:
        """Call ``sink`` with what is reached along ``(k, B)`` directions from the points ``(n,)``."""
        if not self.by_rules:

            def differ(position: int, knots: list[Knot]) -> None:
                reaches: list[Reach] = []
                for i, (z, knot) in enumerate(viewed(knots, lambda z: z.unflatten(0, self.block))):
                    repeated = i > 0 and knots[i - 1][0] is knots[i][0]
                    reach = reaches[-1][2] if repeated else self._largest_step(z)
                    if i == 0 and position > 0:
                        hidden = is_hidden(relative(z[0], knot), reach)
                        reach = _settled(z[0], knot, reach, hidden)
                    reaches.append((z[0], knot, reach))
                sink(position, reaches)

            if self._samples[0] is not directions:
                self._samples = directions, torch.cat([torch.zeros_like(directions[:1]), directions])
            self.follow_frame(points, self._samples[1], differ)
            return

        def receive(position: int, knots: list[Knot], dual: Dual) -> None:
            axis = self.axes[position]
            if axis is not None:
                at = viewed(knots, lambda z: axis.to_front(z, len(points)))
                reach = axis.to_front(dual.steepest(), len(points))
                if dual.hidden is not None:
                    reach = _settled(*at[0], reach, axis.to_front(dual.hidden, len(points)))
                sink(position, [(z, knot, reach) for z, knot in at])

        if self.tape is None or self.tape.writes_to_views:
            raise NoRule
        differentiate(self.tape, *self._duals(points, directions), receive, self._room)

    def _duals(self, points: Tensor, directions: Tensor) -> tuple[Any, int, Callable[[Any], Dual]]:
        """What moves: the inputs, how many points these are, and what takes the place of a module's output."""
        if self.prefix is not None:
            base = self.prefix.at(self, points)
            dual = Dual(base.clone(), self.prefix.moved(base, directions))  # what comes next may work in place
            return None, len(points), lambda output: dual
        offsets = directions @ self.frame
        leaves = tree_leaves(self.points.batch(points, None))
        if self.at_module is None:
            parts = iter(self.points.parts(offsets))
            for place, leaf in enumerate(leaves):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    leaves[place] = Dual(leaf, next(parts).unsqueeze(1))

        def move(output: Tensor) -> Dual:
            return Dual(output, offsets.view(-1, 1, *output.shape[1:]))

        return leaves, len(points), move

    def _largest_step(self, z: Tensor) -> Tensor:
        """How far ``(k, n, ...)`` are from the first of ``k`` at most; NaN where one is."""

        def largest(z: Tensor) -> Tensor:
            return torch.sub(z, z[:1], out=self._room(z, z.numel()).view(z.shape)).abs_().amax(0)

        return reduced(z, largest)

    def _room(self, like: Tensor, size: int) -> Tensor:
        """Memory for so many values, which is kept, for new memory is slow."""
        if self._scratch.numel() < size or self._scratch.dtype != like.dtype:
            self._scratch = like.new_empty(size)
        return self._scratch[:size]

    def _add(self, counts: Tensor, found: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Add the units of one place to ``counts (n, R)``. Returns their histogram. ``found`` is overwritten."""
        keys = _critical_keys(found, self._step)
        radii, within = keys.view(self.dtype), torch.empty_like(keys, dtype=self.dtype)
        for row, radius in enumerate(self._radii):  # as numbers of 0 and 1, for booleans take five times as long
            counts[:, row] += _total(torch.le(radii, radius, out=within))
        bins = keys if keys.dtype is torch.int32 else keys.view(torch.float64).float().view(torch.int32)
        bins = (bins >> _DROPPED).bitwise_and_(_BINS - 1).flatten()
        if bins.device.type == "cpu":
            return torch.bincount(bins, minlength=_BINS)
        bins = bins.long()  # bincount would wait for the device
        return torch.zeros_like(self.histogram).scatter_add_(0, bins, bins.new_ones(1).expand_as(bins))


def critical_radii(found: list[tuple[Tensor, Tensor]], step: float) -> Tensor:
    """``(n, units)`` critical radii, from values relative to each kink, which are overwritten, and the reach of a step.

    NaN where a value is not finite.
    """
    return _critical_keys(found, step).view(found[0][0].dtype)


def _critical_keys(found: list[tuple[Tensor, Tensor]], step: float) -> Tensor:
    if step != 1.0:
        found = [(at, reach / step) for at, reach in found]
    return functools.reduce(torch.minimum, [_critical(at, slope) for at, slope in found])


def _settled(z: Tensor, knot: float | None, reach: Tensor, hidden: Tensor | None) -> Tensor:
    """How far units get: nowhere, if they are 0 because of others and above by rounding; see ``relu_slope``."""
    return reach if hidden is None else reach.masked_fill(hidden & (z > (knot or 0.0)), 0.0)


def _critical(at: Tensor, slope: Tensor) -> Tensor:
    """The bits of critical radii as integers, which are in the same order. ``at`` is overwritten.

    One more for negative units, which at that radius itself are still on their side: zero is not above zero. NaN comes
    last, but for one of which all bits are set, as torch's maximum returns it: that is the least integer.
    """
    bits = at.div_(slope).view(_INTEGERS[at.dtype])
    sign = bits >> (8 * bits.itemsize - 1)
    return bits.bitwise_and_(torch.iinfo(bits.dtype).max).sub_(sign)


def _total(ones: Tensor) -> Tensor:
    """``(n,)``: how many of ``(n, m)`` are 1, where the others are 0."""
    exact = torch.finfo(ones.dtype).eps * ones.shape[1] <= 2
    return ones.sum(1, dtype=ones.dtype if exact else torch.float64).long()


def _radius_of(histogram: Tensor, rank: float) -> float:
    """The critical radius with so many smaller ones."""
    below = histogram.cumsum(0)
    place = int((below < rank).sum())
    if place >= _INFINITE:
        return math.inf
    if not place:  # zero, or as good as
        return 0.0
    edges = (torch.tensor([place, place + 1], dtype=torch.int32) << _DROPPED).view(torch.float32)
    return float(edges.double().mean())


def _tell_from(told: Callable[[int], None], before: int, done: int) -> None:
    told(before + done)


def _tell(progress: Callable[[int, int], None] | None, before: int, total: int, done: int) -> None:
    if progress is not None:
        progress(before + done, total)


class _Reaches:
    """Of ``n`` points, where each unit of one place is relative to its knots, and how far it gets."""

    def __init__(self, n: int) -> None:
        self._n = n
        self._found: list[tuple[Tensor, Tensor]] = []
        self._order: list[int] = []  # of the axes

    def add(self, reaches: list[Reach], rows: slice, first: bool) -> None:
        """Add directions from the points in these rows. ``first``: none was before."""
        self._order = self._order or memory_order(reaches[0][0], 1)
        for i, (z, knot, reach) in enumerate(reaches):
            ordered, reach = permuted(z, self._order), permuted(reach, self._order)
            if len(self._found) == i:
                shape = self._n, *ordered.shape[1:]
                self._found.append((z.new_empty(shape), z.new_empty(shape)))
            at, farthest = (each[rows] for each in self._found[i])
            if first:
                torch.sub(ordered, knot or 0.0, out=at)
                farthest.copy_(reach)
            else:
                torch.maximum(farthest, reach, out=farthest)

    def broken(self) -> Tensor:
        """``(n,)``: whether a value was not finite."""
        if all(surely_finite(each) for pair in self._found for each in pair):
            return torch.zeros(self._n, dtype=torch.bool, device=self._found[0][0].device)
        ends = [(at.amax(1), at.amin(1), farthest.amax(1)) for at, farthest in self.by_unit()]
        return ~functools.reduce(torch.bitwise_and, [end.isfinite() for each in ends for end in each])

    def by_unit(self) -> list[tuple[Tensor, Tensor]]:
        """For each knot ``(n, units)`` of both."""
        return [(at.flatten(1), farthest.flatten(1)) for at, farthest in self._found]


class Tally:
    """Over the vertices of ``n`` points, which units of one place are on both sides of a knot.

    Only the largest and smallest value of each unit are kept: NaN if one is.
    """

    def __init__(self, n: int) -> None:
        self.n = n
        self._extremes: list[tuple[Tensor, Tensor, float | None]] = []
        self.order: list[int] = []  # of the axes, as they are in the memory

    def add(self, knots: list[Knot], rows: slice, first: bool) -> None:
        """Add vertices of the points in these rows: tensors of shape ``(k, rows, ...)``. ``first``: none was before."""
        self.order = self.order or memory_order(knots[0][0], 2)
        for position, (z, knot) in enumerate(knots):
            ordered, repeated = permuted(z, self.order), position and z is knots[position - 1][0]
            if len(self._extremes) == position:
                shape = self.n, *ordered.shape[2:]
                new = self._extremes[-1][:2] if repeated else (z.new_empty(shape), z.new_empty(shape))
                self._extremes.append((*new, knot))
            if repeated:  # several knots of the same values
                continue
            high, low = (extreme[rows] for extreme in self._extremes[position][:2])
            if first:
                torch.amax(ordered, 0, out=high)
                torch.amin(ordered, 0, out=low)
            else:
                torch.maximum(high, ordered.amax(0), out=high)
                torch.minimum(low, ordered.amin(0), out=low)

    def crossed(self) -> Tensor:
        """``(n,)``: the number of units with vertices above a knot and vertices not above it."""
        high, low, knot = self._extremes[0]
        if len(self._extremes) == 1 and knot is not None:  # as numbers of 0 and 1, for booleans take four times as long
            room = torch.empty_like(high)
            most, least = (_total(torch.gt(end, knot, out=room).flatten(1)) for end in (high, low))
            return most - least
        return self.switching().count_nonzero(1)

    def switching(self) -> Tensor:
        """``(n, units)``: whether a unit has vertices above a knot and vertices not above it."""
        either = [high != low if knot is None else (high > knot) & (low <= knot) for high, low, knot in self._extremes]
        return functools.reduce(torch.bitwise_or, either).flatten(1)

    def broken(self) -> Tensor:
        """``(n,)``: whether a value was not finite."""
        ends = [(high.flatten(1).amax(1), low.flatten(1).amin(1)) for high, low, _ in self._extremes]
        return ~functools.reduce(torch.bitwise_and, [high.isfinite() & low.isfinite() for high, low in ends])


def counter_of(
    method: str,
    model: nn.Module,
    inputs: Any,
    *,
    layers: Sequence[str | type] | None,
    max_pool: bool,
    at: str | None,
    forward_fn: Callable[..., Any] | None,
    others: Sequence[Any] = (),
) -> Counter:
    """What counts by this method. Arguments as of :func:`local_complexity` and :class:`Counter`, and checked."""
    if method == "linear":
        return LinearCounter(model, inputs, others=others, at=at, forward_fn=forward_fn)
    return Counter(model, inputs, others=others, layers=layers, max_pool=max_pool, at=at, forward_fn=forward_fn)


def default_chunk(device: torch.device, bytes_per_sample: int) -> int:
    """As many samples in one forward pass as fit the memory budget, at least 1."""
    budget, each = _BUDGET.get(device.type, _BUDGET["cpu"]), max(1, bytes_per_sample)
    return max(1, budget // each, min(_FEW, _AT_MOST // each))


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


def check_method(method: Any, possible: Sequence[str], layers: Any, max_pool: bool, bracket: bool = False) -> None:
    """Check that a method is one of those possible, and goes with what is counted.

    Raises:
        ValueError: naming the argument, the value and what is possible.
    """
    if method not in possible:
        raise ValueError(
            f"`method` must be {' or '.join(map(repr, possible))}, but got {method!r}{did_you_mean(method, possible)}"
        )
    if method == "linear" and (layers is not None or max_pool or bracket):
        raise ValueError("`method='linear'` follows all non-linearities: leave `layers`, `max_pool` and `bracket` out.")


def check_arguments(radius: Any, n_directions: Any, layers: Any, at: Any, chunk_size: Any) -> list[float]:
    """Check what can be checked without model and points. Returns the list of radii.

    Raises:
        ValueError: naming the argument, the value and what is possible.
    """
    several = isinstance(radius, Sequence) and not isinstance(radius, str)
    radii = list(radius) if several else [radius]
    numbers = all(isinstance(r, Real) and not isinstance(r, bool) for r in radii)
    if not radii or not numbers or not all(0 < r < math.inf for r in radii) or len(set(radii)) < len(radii):
        raise ValueError(f"`radius` must be a positive number or a non-empty list of different ones, not {radius!r}.")
    if n_directions is not None:
        positive_integer("n_directions", n_directions)
    if chunk_size is not None:
        positive_integer("chunk_size", chunk_size)
    if layers is not None:
        check_layers(layers)
    if at is not None and not isinstance(at, str):
        raise ValueError(f"`at` must be the name of a module, but got {at!r}.")
    return [float(r) for r in radii]
