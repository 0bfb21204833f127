"""Local complexity: how many units switch inside a small neighbourhood of a point."""

from __future__ import annotations

import functools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.functional.batch_axis import BatchAxis, find_batch_axis
from lc_callback.functional.frame import cross_polytope_frame
from lc_callback.functional.knots import (
    Knot,
    Recorder,
    Site,
    Tracer,
    check_layers,
    find_module,
    first_called,
    known_operations,
    module_paths,
    select_modules,
)
from lc_callback.functional.points import Points, call_model
from lc_callback.isolation import untouched

__all__ = ["LocalComplexity", "local_complexity"]

# Bytes that the largest tensor of one forward pass may take; a few such live at a time. Small is fast on a CPU.
_BUDGET = {"cpu": 8 * 2**20, "cuda": 512 * 2**20}
# The vertices are computed in float64 where a coordinate's step r/sqrt(D) is fewer units in the last place than this.
_FEWEST_ULP = 16
# Relative change of a pre-activation, when a sample is added to the batch, that rounding does not explain.
_MIXING = 1e-3
_Z99 = 2.5758293035489004


@dataclass(frozen=True)
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
    """

    counts: Tensor
    layer_names: list[str]
    layer_sizes: list[int]
    radius: float | list[float]
    at: str | None
    dtype: torch.dtype

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
        return sem * _Z99

    @property
    def layer_means(self) -> list[Any]:
        """Mean of ``counts`` over the points, for each layer; with several radii a list ``(R,)`` of such lists."""
        counts = self.counts.double().masked_fill(self.counts < 0, math.nan)
        return counts.mean(-2).tolist()

    def _per_radius(self, value: Tensor) -> Any:
        return value if isinstance(self.radius, list) else float(value)


def local_complexity(
    model: nn.Module,
    inputs: Any,
    *,
    radius: float | Sequence[float] = 0.005,
    n_directions: int = 25,
    directions: Tensor | None = None,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    at: str | None = None,
    method: str = "vertices",
    max_pool: bool = False,
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
        n_directions: ``P``, from 1 to the dimension of the perturbed space.
        directions: ``(P, *shape)`` or ``(P, D)``, used as given instead of a random frame.
        seed: seed of the frame, see :func:`cross_polytope_frame`.
        layers: ``None`` counts the pre-activation of every non-linearity that is executed, module or function, in
            execution order. A list of module names, ``fnmatch`` patterns, class names or types counts the *outputs* of
            these modules instead: ``[nn.Linear]`` is what the authors' code counts for an MLP, logits included.
        at: name of the module whose output (batch first) is perturbed instead of the input, at its first call. If no
            input is floating-point, this is the first ``nn.Embedding`` that is executed.
        method: ``"vertices"``.
        max_pool: also count the max-pooling outputs whose winning input changes.
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
    """
    radii = check_arguments(radius, n_directions, layers, at, chunk_size)
    if not isinstance(model, nn.Module):
        raise ValueError(f"`model` must be a torch.nn.Module, but got {type(model).__name__}.")
    if method != "vertices":
        raise ValueError(f"`method` must be 'vertices', but got {method!r}.")
    outputs_of = None if layers is None else select_modules(model, layers)
    measurement = _Measurement(model, inputs, forward_fn, outputs_of, max_pool, at)
    dtype = _compute_dtype(model, inputs)
    while True:
        with untouched(model, dtype=dtype):
            measurement.trace(dtype)
            if dtype is not torch.float64 and measurement.drowns(min(radii)):
                warnings.warn(
                    f"`radius={min(radii):g}` is a step of {min(radii) / measurement.dim**0.5:.1e} per coordinate, "
                    f"within {_FEWEST_ULP} roundings of the largest input: computing in float64.",
                    stacklevel=2,
                )
                dtype = torch.float64
                continue
            frame = _frame(measurement.shape, n_directions, directions, seed, dtype, measurement.device)
            counts = measurement.count(radii, frame, chunk_size, progress)
        break
    several = not isinstance(radius, Real)
    return LocalComplexity(
        counts=counts if several else counts[0],
        layer_names=measurement.names,
        layer_sizes=measurement.sizes,
        radius=radii if several else radii[0],
        at=measurement.at,
        dtype=dtype,
    )


class _Measurement:
    """One model and one set of points: traced on a few samples to learn its layers, then counted chunk by chunk."""

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        forward_fn: Callable[..., Any] | None,
        outputs_of: list[nn.Module] | None,
        max_pool: bool,
        at: str | None,
    ) -> None:
        self.model, self.inputs, self.forward_fn = model, inputs, forward_fn
        self.outputs_of, self.max_pool, self.at = outputs_of, max_pool, at
        self.at_module = None if at is None else find_module(model, "at", at)
        tensors = [*model.parameters(), *model.buffers(), *tree_leaves(inputs)]
        self.device = next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))

    # Tracing: what is there to count?

    def locate(self, dtype: torch.dtype) -> None:
        """Find what is perturbed: the input, or the output of a module."""
        self.dtype = dtype
        self.points = Points(self.inputs, dtype, self.device)
        self.shape, self.largest = self.points.shape, self.points.largest()
        if self.at_module is None and not self.points.moving:
            self.at_module = first_called(self.model, nn.Embedding, lambda: self._run(self._first(2)))
            if self.at_module is None:
                raise ValueError(
                    "`inputs` holds no floating-point tensor to perturb, and no nn.Embedding was executed: convert the "
                    "inputs to float, or name with `at=` the module whose output is to be perturbed."
                )
            self.at = module_paths(self.model)[id(self.at_module)]

    def perturbed_values(self, dtype: torch.dtype, batch: int = 64) -> Iterator[Tensor]:
        """What is perturbed, in batches ``(n, D)`` of float64 on the CPU."""
        self.locate(dtype)
        for points in torch.arange(self.points.n).split(batch):
            inputs = self.points.batch(points, None)
            seen: list[Tensor] = []
            if self.at_module is None:
                seen = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            else:
                with Recorder(self.model, _drop, at=self.at_module, move=functools.partial(_keep, seen)):
                    self._run(inputs)
                if not seen:
                    raise ValueError(f"`at={self.at!r}` names a module that was not executed.")
            yield torch.cat([leaf.reshape(len(leaf), -1).double().cpu() for leaf in seen], dim=1)

    def trace(self, dtype: torch.dtype) -> None:
        """Learn the layers, their sizes, and where in each pre-activation the samples are."""
        self.locate(dtype)
        of_two, before = self._traced(2)
        of_three, tracer = self._traced(3)
        growth = zip(tracer.output_bytes, before.output_bytes, strict=False)  # weights pass through operations too
        self.bytes_per_sample = max((three - two for three, two in growth), default=0)
        if len(of_two) != len(of_three):
            raise ValueError(
                f"`model` executed {len(of_two)} non-linearities for two samples but {len(of_three)} for three: "
                "units cannot be followed. Name the modules to count with `layers=`."
            )
        self.axes: list[BatchAxis | None] = []
        self.layer_of: list[int] = []
        bases: list[str] = []
        calls: dict[int, int] = {}
        self.sizes: list[int] = []
        for position, ((site, two), (_, three)) in enumerate(zip(of_two, of_three, strict=True)):
            axis = None if position in tracer.links else self._batch_axis(site, two[0][0], three[0][0])
            self.axes.append(axis)
            if axis is None:  # shapes the output only, or depends on the weights only
                self.layer_of.append(-1)
                continue
            if not (site.merge and site.call in calls):
                calls[site.call] = len(bases)
                bases.append(site.path or site.op)
                self.sizes.append(0)
            layer = calls[site.call]
            self.layer_of.append(layer)
            self.sizes[layer] += two[0][0].numel() // 2
        if not bases:
            raise ValueError(self._nothing_found())
        self.names = _numbered(bases)

    def _first(self, copies: int) -> Any:
        return self.points.batch(torch.zeros(1, dtype=torch.long), None, copies)

    def _traced(self, n: int) -> tuple[list[tuple[Site, list[Knot]]], Tracer]:
        seen: list[tuple[Site, list[Knot]]] = []

        def keep(site: Site, knots: list[Knot]) -> None:
            seen.append((site, [(z.clone(), knot) for z, knot in knots]))

        # Samples that differ although they are one point: else the order of a folded axis could not be told.
        inputs = self._first(n)
        if self.at_module is None:
            inputs = self.points.batch(torch.zeros(1, dtype=torch.long), self._nudges(n))
        tracer = Tracer(self.model, keep, **self._recording(functools.partial(self._nudge_output, n)))
        with tracer:
            output = self._run(inputs)
        tracer.find_links(output)
        return seen, tracer

    def _nudges(self, n: int) -> Tensor:
        dim = math.prod(self.shape)
        direction = cross_polytope_frame(dim, 1, seed=1, dtype=self.dtype, device=self.device)
        # The third is no mean of the others: it shows where a mean over the samples is subtracted.
        steps = torch.tensor([1.0, -1.0, 3.0], dtype=self.dtype, device=self.device)[:n, None]
        return steps * direction * 0.01 * (self.largest or 1.0) * dim**0.5

    def _nudge_output(self, n: int, output: Tensor) -> Tensor:
        if output.ndim < 2 or len(output) != n:
            raise ValueError(
                f"`at={self.at!r}` must name a module whose output has the batch first, but for {n} samples it returns "
                f"shape {tuple(output.shape)}."
            )
        self.shape, self.largest = tuple(output.shape[1:]), float(torch.nan_to_num(output.float()).abs().max())
        return output + self._nudges(n).view(output.shape)

    def _batch_axis(self, site: Site, two: Tensor, three: Tensor) -> BatchAxis | None:
        name = site.path or site.op
        if two.is_floating_point() and torch.finfo(two.dtype).bits < 32:
            raise ValueError(
                f"the pre-activation of {name!r} is computed in {two.dtype}, too coarse to count in: remove the cast "
                "or autocast from the model's forward, or leave this layer out with `layers=`."
            )
        try:
            found = find_batch_axis(two, three)
        except ValueError as reason:
            raise self._cannot_follow(site, reason) from None
        if found is None:
            return None
        axis, difference = found
        if difference > _MIXING:  # no figure in the text, so that it is shown once for each layer
            warnings.warn(
                f"the pre-activation of {name!r} at one point depends on the other points of the batch, or is random "
                "in eval mode: its count says little about the point.",
                stacklevel=4,
            )
        return axis

    def _cannot_follow(self, site: Site, reason: Exception) -> ValueError:
        return ValueError(
            f"the units of {site.path or site.op!r} cannot be told from the samples: {reason}. Name the modules to "
            "count with `layers=`, leaving this one out."
        )

    def _nothing_found(self) -> str:
        if self.outputs_of is not None:
            return f"`layers` names modules that were not executed{self._after_at()} in {type(self.model).__name__}."
        return (
            f"no non-linearity was executed{self._after_at()} in the forward of {type(self.model).__name__}: looked "
            f"for {known_operations()} on values that depend on the input. Name the modules whose outputs are to be "
            "counted with `layers=`, for instance `layers=[torch.nn.Linear]`."
        )

    def _after_at(self) -> str:
        return "" if self.at is None else f" after {self.at!r}, whose output is perturbed,"

    # Counting

    @property
    def dim(self) -> int:
        return math.prod(self.shape)

    def drowns(self, radius: float) -> bool:
        """Whether a coordinate's step is within rounding of the coordinates."""
        return radius / self.dim**0.5 < _FEWEST_ULP * torch.finfo(self.dtype).eps * self.largest

    def count(
        self,
        radii: list[float],
        frame: Tensor,
        chunk_size: int | None,
        progress: Callable[[int, int], None] | None,
    ) -> Tensor:
        """``(R, N, L)`` counts for all points, on the CPU."""
        n, n_vertices = self.points.n, 2 * len(frame)
        chunk = chunk_size or max(1, _BUDGET.get(self.device.type, _BUDGET["cpu"]) // max(1, self.bytes_per_sample))
        counts = torch.zeros(len(radii), n, len(self.names), dtype=torch.int64, device=self.device)
        for row, radius in enumerate(radii):
            offsets = torch.cat([radius * frame, -radius * frame])
            start = 0
            while start < n:
                points = torch.arange(start, min(n, start + max(1, chunk // n_vertices)))
                try:
                    counts[row, start : start + len(points)] = self._count_points(points, offsets, chunk)
                except Exception as error:
                    if chunk == 1 or not is_out_of_memory(error):
                        raise
                    smaller = max(1, min(chunk, len(points) * n_vertices) // 2)
                else:
                    start += len(points)
                    if progress is not None:
                        progress(row * n + start, len(radii) * n)
                    continue
                chunk = smaller  # here the exception, and what its frames held, is gone
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
        return counts.cpu()

    def _count_points(self, points: Tensor, offsets: Tensor, chunk: int) -> Tensor:
        """``(n, L)`` counts of a few points, with at most ``chunk`` vertices in one forward pass."""
        tallies = [_Tally() for _ in self.axes]
        for part in offsets.split(chunk):
            position = 0

            def tally(site: Site, knots: list[Knot], n: int = len(points), k: int = len(part)) -> None:
                nonlocal position
                axis = self.axes[position] if position < len(self.axes) else None
                if axis is not None:
                    try:
                        fronts = {id(z): axis.to_front(z, n * k).unflatten(0, (n, k)) for z, _ in knots}
                    except ValueError as reason:
                        raise self._cannot_follow(site, reason) from None
                    tallies[position].add([(fronts[id(z)], knot) for z, knot in knots])
                position += 1

            def move(output: Tensor, n: int = len(points), part: Tensor = part) -> Tensor:
                moved = output.unflatten(0, (n, len(part))) + part.view(len(part), *output.shape[1:])
                return moved.flatten(0, 1)

            with Recorder(self.model, tally, **self._recording(move)):
                self._run(self.points.batch(points, part if self.at_module is None else None, len(part)))
            if position != len(self.axes):
                raise ValueError(f"`model` executed {position} non-linearities here but {len(self.axes)} when traced.")
        counts = torch.zeros(len(points), len(self.names), dtype=torch.int64, device=self.device)
        broken = torch.zeros_like(counts, dtype=torch.bool)
        for layer, tallied in zip(self.layer_of, tallies, strict=True):
            if layer >= 0:
                counts[:, layer] += tallied.crossed()
                broken[:, layer] |= tallied.broken()
        return counts.masked_fill(broken, -1)

    def _recording(self, move: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        return {"outputs_of": self.outputs_of, "max_pool": self.max_pool, "at": self.at_module, "move": move}

    def _run(self, inputs: Any) -> Any:
        return call_model(self.model, inputs, self.forward_fn)


def _drop(site: Site, knots: list[Knot]) -> None:
    """A sink for runs in which nothing is counted."""


def _keep(seen: list[Tensor], output: Tensor) -> Tensor:
    seen.append(output)
    return output


class _Tally:
    """Over the vertices of ``n`` points, which units of one pre-activation are on both sides of a knot."""

    def __init__(self) -> None:
        self._extremes: list[tuple[Tensor, Tensor, float | None]] = []

    def add(self, knots: list[Knot]) -> None:
        """Add vertices: tensors of shape ``(n, k, ...)``.

        Only the largest and smallest value of each unit are kept: NaN and infinity survive in these, and two passes
        over the values took less than comparing them one by one.
        """
        extremes: list[tuple[Tensor, Tensor, float | None]] = []
        for position, (z, knot) in enumerate(knots):
            if position and z is knots[position - 1][0]:  # several knots of the same values
                extremes.append((*extremes[-1][:2], knot))
            else:
                extremes.append((z.amax(1), z.amin(1), knot))
        if self._extremes:  # more vertices of the same points
            pairs = zip(self._extremes, extremes, strict=True)
            extremes = [(a.maximum(c), b.minimum(d), knot) for (a, b, knot), (c, d, _) in pairs]
        self._extremes = extremes

    def crossed(self) -> Tensor:
        """``(n,)``: the number of units with vertices above a knot and vertices not above it."""
        either = [high != low if knot is None else (high > knot) & (low <= knot) for high, low, knot in self._extremes]
        return torch.stack(either).any(0).flatten(1).sum(1)

    def broken(self) -> Tensor:
        """``(n,)``: whether a value was not finite."""
        finite = [high.isfinite() & low.isfinite() for high, low, _ in self._extremes]
        return ~torch.stack(finite).all(0).flatten(1).all(1)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that memory, of the host or the device, did not suffice."""
    if isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, RuntimeError) and any(text in str(error) for text in texts)


def _numbered(names: list[str]) -> list[str]:
    """Names made unique: ``#1``, ``#2``, ... behind those that occur more than once."""
    often, seen = Counter(names), Counter[str]()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}#{seen[name]}" if often[name] > 1 else name)
    return unique


def _compute_dtype(model: nn.Module, inputs: Any) -> torch.dtype:
    """The widest floating-point type of the parameters (if none: of the inputs), at least float32."""
    tensors: list[Tensor] = [*model.parameters()] or [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _frame(
    shape: tuple[int, ...],
    n_directions: int,
    directions: Tensor | None,
    seed: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """``(P, D)`` directions, drawn or given."""
    dim = math.prod(shape)
    if directions is None:
        return cross_polytope_frame(shape, n_directions, seed=seed, dtype=dtype, device=device).flatten(1)
    if not isinstance(directions, Tensor) or directions.ndim < 2 or not len(directions) or directions[0].numel() != dim:
        raise ValueError(
            f"`directions` must be a tensor (P, {', '.join(map(str, shape))}) or (P, {dim}), but got "
            f"{tuple(directions.shape) if isinstance(directions, Tensor) else type(directions).__name__}."
        )
    if not directions.isfinite().all():
        raise ValueError("`directions` must be finite, but holds NaN or infinity.")
    return directions.detach().flatten(1).to(dtype=dtype, device=device)


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
    for name, value in (("n_directions", n_directions), ("chunk_size", chunk_size)):
        if name == "chunk_size" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
            raise ValueError(f"`{name}` must be a positive integer, but got {value!r}.")
    if layers is not None:
        check_layers(layers)
    if at is not None and not isinstance(at, str):
        raise ValueError(f"`at` must be the name of a module, but got {at!r}.")
    return [float(r) for r in radii]


def input_spread(
    model: nn.Module, inputs: Any, *, at: str | None = None, forward_fn: Callable[..., Any] | None = None
) -> tuple[int, float]:
    """Dimension ``D`` of the space that is perturbed, and the root-mean-square spread of the points in it.

    The spread is the square root of the variance over the points (of each coordinate), averaged over coordinates.

    Args:
        model: as in :func:`local_complexity`.
        inputs: as in :func:`local_complexity`.
        at: as in :func:`local_complexity`.
        forward_fn: as in :func:`local_complexity`.
    """
    measurement = _Measurement(model, inputs, forward_fn, None, False, at)
    with untouched(model, dtype=_compute_dtype(model, inputs)):
        values = measurement.perturbed_values(_compute_dtype(model, inputs))
        n, sums, squares = 0, torch.zeros(()), torch.zeros(())
        for batch in values:
            n += len(batch)
            sums, squares = sums + batch.sum(0), squares + batch.square().sum(0)
        variance = squares / n - (sums / n).square()
    return variance.numel(), float(variance.clamp(min=0).mean().sqrt())
