"""The layers of a model: what its non-linearities take or return, traced once and then followed batch by batch."""

from __future__ import annotations

import functools
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.batch_axis import BatchAxis, find_batch_axis
from lc_callback.engine.network.frame import cross_polytope_frame
from lc_callback.engine.network.layout import viewed
from lc_callback.engine.network.operations import Kind, Kink, is_a
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.recorder import Recorder, Site, known_operations
from lc_callback.engine.network.space import Space
from lc_callback.engine.network.tracer import Tracer

__all__ = ["OUTPUT_PLACE", "Consumer", "Execution", "MakeTracer", "Samples", "TracedLayers", "plain_tracer"]

T = TypeVar("T")
#: Called with the number of a place and its kinks.
Consumer = Callable[[int, list[Kink]], None]
#: Makes a tracer, given what the model is going to be called with, the model, what receives, and keywords.
MakeTracer = Callable[..., Tracer]

#: The number of the place of the model's output, where that is followed.
OUTPUT_PLACE = -1

# Relative change of a value, when a sample is added to the batch, that rounding does not explain.
_MIXING = 1e-3


@dataclass(frozen=True)
class Samples:
    """What a model is called with.

    Attributes:
        inputs: of the model.
        n: how many samples arrive at each place.
        options: keywords of the recorder, such as what moves the output of a module.
    """

    inputs: Any
    n: int
    options: dict[str, Any]


class Execution:
    """How the operations of a model are executed while it is followed: as they are.

    Attributes:
        here: where the samples are in what was emitted last.
    """

    def __init__(self) -> None:
        self.here: BatchAxis | None = None

    def recorder(self, model: nn.Module, receive: Callable[..., None], options: dict[str, Any]) -> Recorder:
        """What observes the model."""
        return Recorder(model, receive, **options)

    def execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute a recorded operation that may have a kink."""
        return func(*args, **kwargs)


def plain_tracer(inputs: Any, *arguments: Any, **options: Any) -> Tracer:
    """A tracer that only traces."""
    return Tracer(*arguments, **options)


class TracedLayers:
    """The layers of a model at ``N`` points, in execution order.

    Make it in measuring conditions, after :meth:`Space.locate`.

    Args:
        space: the points, and the model as a function of them.
        outputs_of: ``None`` follows every non-linearity that is executed; modules: their outputs instead.
        max_pool: also follow the winners of max-pooling, or (``"candidates"``) what competes there.
        results: follow what the non-linearities return, instead of their pre-activations, at the points themselves;
            nothing is perturbed.
        tracer: makes what observes the model, once with two samples and once with three.
        hint: what a user can do about a layer that cannot be followed.
        required: whether a model without non-linearities is an error.

    Attributes:
        names: of the layers: module paths, ``#1``, ``#2``, ... if used repeatedly.
        sizes: units of each layer.
        sites: the places where the model was seen to take them.
        axes: where the samples are in what is emitted at each place; ``None`` if it does not depend on them.
        channels: the axis of the features at each place, where they are asked for.
        layer_of: the layer of each place, -1 for none.
        bytes_per_sample: of the largest tensor of a forward pass.
        reads_values: whether the model's Python code looks at values, so that batches may go different ways.
        decides: whether operations before the first non-linearity decide by values.
        jumps: operations that are constant but for jumps, such as ``sign``.
        coarsest: the floating-point type that rounds most: a model may compute in float32 whatever its own type is.
        uncounted: operations of which the winners are not counted, since ``max_pool`` is off.
        unknown: operations of other libraries that have no row in the table of operations.
        pools_rows: whether all max-pooling has one sample in each row of its first axis.
        never_crossing: places of what is always on one side of its kinks, such as ``-relu(x)`` and ``abs(x)``.
        flat_at_kinks: layers that get values which are flat right at a kink, as the second of two ``hardtanh``.
        output_axis: where the samples are in what the model returns; ``None`` if that cannot be followed.
    """

    def __init__(
        self,
        space: Space,
        *,
        outputs_of: list[nn.Module] | None = None,
        max_pool: bool | str = False,
        results: bool = False,
        tracer: MakeTracer = plain_tracer,
        hint: str = " Name the modules to follow with `layers=`, leaving this one out.",
        required: bool = True,
    ) -> None:
        self.space, self.outputs_of, self.max_pool, self.results = space, outputs_of, max_pool, results
        self._hint = hint
        of_two, before, _, fewer = self._traced(2, tracer)
        of_three, after, unused, more = self._traced(3, tracer)
        self.output_axis = _axis_of_output(fewer, more)
        self.reads_values = after.reads_values
        two, three = before.decisions, after.decisions
        self.decides = bool(_of_samples(two.choices, three.choices))
        self.jumps = _of_samples(two.jumps, three.jumps)
        self.uncounted = _of_samples(two.maxima, three.maxima)
        self.unknown = _of_samples(two.unknown, three.unknown)
        self.pools_rows = {2, *two.pooled} == {2} and {3, *three.pooled} == {3}
        casts = _of_samples(two.casts, three.casts)
        self.coarsest: torch.dtype = max([space.dtype, *casts], key=lambda each: float(torch.finfo(each).eps))
        growth = zip(after.output_bytes, before.output_bytes, strict=False)  # weights pass through operations too
        self.bytes_per_sample: int = max((larger - smaller for larger, smaller in growth), default=0)
        self.never_crossing = after.never_crossing
        self._check_rows(before.masked_rows.layers ^ after.masked_rows.layers)
        if len(of_two) != len(of_three):
            raise ValueError(
                f"`model` executed {len(of_two)} non-linearities for two samples but {len(of_three)} for three: "
                f"units cannot be followed.{self._hint}"
            )
        self.sites = [site for site, _ in of_two]
        self.channels = [site.channels for site in self.sites]
        self.axes: list[BatchAxis | None] = []
        for position, ((site, fewer), (_, more)) in enumerate(zip(of_two, of_three, strict=True)):
            self.axes.append(None if position in unused else self._batch_axis(site, fewer[0][0], more[0][0]))
        flat = [self.sites[place] for place in sorted(after.flat_at_kinks) if self.axes[place] is not None]
        self.flat_at_kinks = [site.path or site.op for site in flat]
        self.layer_of, bases = self._layers()
        if not bases and required:
            raise ValueError(self._nothing_found())
        if self.unknown and outputs_of is None:
            warnings.warn(self._row_missing(), stacklevel=4)
        self.names = _numbered(bases)
        self.sizes = [0] * len(bases)
        for layer, (_, kinks) in zip(self.layer_of, of_two, strict=True):
            if layer >= 0:
                self.sizes[layer] += kinks[0][0].numel() // 2

    def _traced(self, n: int, make: MakeTracer) -> tuple[list[tuple[Site, list[Kink]]], Tracer, set[int], Any]:
        seen: list[tuple[Site, list[Kink]]] = []

        def keep(site: Site, kinks: list[Kink]) -> None:
            seen.append((site, [(z.clone(), kink) for z, kink in kinks]))

        space, first = self.space, torch.zeros(1, dtype=torch.long)
        if self.results:
            inputs = space.points.batch(self._in_order(torch.arange(n)) % space.points.n, None)
        elif space.at_module is not None:
            inputs = space.points.batch(first, None, n)
        else:  # samples that differ, though they are one point: else the order of a folded axis would not show
            inputs = space.points.batch(first, self._nudges(n))
        tracer = make(inputs, space.model, keep, **self.options(functools.partial(self._nudge_output, n)))
        leaves = tree_leaves(inputs)
        moving = leaves if space.at_module is None or self.results else []
        tracer.watch([leaf for leaf in moving if isinstance(leaf, Tensor) and leaf.is_floating_point()], leaves)
        with tracer:
            output = space.run(inputs)
        unused = tracer.unused(output)
        if n == 2:
            tracer.let_go()
        return seen, tracer, unused, output

    def _nudges(self, n: int) -> Tensor:
        space = self.space
        direction = cross_polytope_frame(space.dim, 1, seed=1, dtype=space.dtype, device=space.device)
        # The third is no mean of the others: it shows where a mean over the samples is subtracted.
        steps = self._in_order(torch.tensor([1.0, -1.0, 3.0], dtype=space.dtype, device=space.device)[:n])
        return steps[:, None] * direction * 0.01 * (space.largest or 1.0) * space.dim**0.5

    @staticmethod
    def _in_order(samples: Tensor) -> Tensor:
        """``[a, b]`` as it is, ``[a, b, c]`` the last first: see :func:`find_batch_axis`."""
        return samples.flip(0) if len(samples) == 3 else samples

    def _nudge_output(self, n: int, output: Tensor) -> Tensor:
        if output.ndim < 2 or len(output) != n:
            raise ValueError(
                f"`at={self.space.at!r}` must name a module whose output has the batch first, but for {n} samples it "
                f"returns shape {tuple(output.shape)}."
            )
        self.space.stands_at(output)
        return output + self._nudges(n).view(output.shape)

    def _layers(self) -> tuple[list[int], list[str]]:
        """The layer of each place, and what the layers are called. All places of one recurrent call are one layer."""
        layer_of: list[int] = []
        bases: list[str] = []
        calls: dict[int, int] = {}
        for site, axis in zip(self.sites, self.axes, strict=True):
            if axis is None:  # shapes the output or keeps a divisor from zero only, or depends on the weights only
                layer_of.append(-1)
                continue
            if not (site.merge and site.call in calls):
                calls[site.call] = len(bases)
                bases.append(site.path or site.op)
            layer_of.append(calls[site.call])
        return layer_of, bases

    def _batch_axis(self, site: Site, two: Tensor, three: Tensor) -> BatchAxis | None:
        name, values = site.path or site.op, "feature" if self.results else "pre-activation"
        if two.is_floating_point() and torch.finfo(two.dtype).bits < 32:
            raise ValueError(
                f"the {values} of {name!r} is computed in {two.dtype}, too coarse to measure: remove the cast "
                f"or autocast from the model's forward.{self._hint}"
            )
        try:
            folded = (axis for axis in reversed(self.axes) if axis is not None and axis.per_sample > 1)
            found = find_batch_axis(two, three, next((axis.sample_first for axis in folded), True))
        except ValueError as reason:
            raise self._cannot_follow(site, reason) from None
        if found is None:
            return None
        axis, difference = found
        if difference > _MIXING:  # no figure in the text, so that it is shown once for each layer
            warnings.warn(
                f"the {values} of {name!r} at one point depends on the other points of the batch, or is random "
                "in eval mode: it says little about the point.",
                stacklevel=4,
            )
        return axis

    def _check_rows(self, masked: set[tuple[str, int]]) -> None:
        """Raise an error if pre-activations are of rows that are picked by values, as many as there are samples."""
        for name in sorted({name for name, _ in masked}):
            raise ValueError(
                f"which samples or positions reach {name!r} depends on values (`h[mask]`, `nonzero`), so its units "
                f"cannot be followed from one sample to the next. Let all of them through and choose afterwards, as "
                f"`torch.where(mask, f(h), h)` does.{self._hint}"
            )

    def _cannot_follow(self, site: Site, reason: Exception) -> ValueError:
        return ValueError(
            f"the units of {site.path or site.op!r} cannot be separated from the samples: {reason}.{self._hint}"
        )

    def _row_missing(self) -> str:
        names = ", ".join(map(repr, self.unknown))
        return (
            f"{names}: an operation of another library, of which nothing is known. If it is an activation, its units "
            f"are left out: add its row, `lc_callback.engine.network.operations.OPERATIONS[{self.unknown[0]!r}] = "
            "Operation(...)`; without kinks, `Operation(Kind.SMOOTH)`."
        )

    def _nothing_found(self) -> str:
        model = type(self.space.model).__name__
        after = "" if self.space.at is None else f" after {self.space.at!r}, whose output is perturbed,"
        if self.outputs_of is not None:
            return f"`layers` names modules that were not executed{after} in {model}."
        winners = (
            f", or count the winners of {', '.join(self.uncounted)} with `max_pool=True`" if self.uncounted else ""
        )
        unknown = f" {self._row_missing()}" if self.unknown else ""
        return (
            f"no non-linearity was executed{after} in the forward of {model}: looked "
            f"for {known_operations()} on values that depend on the input. Name the modules whose outputs are to be "
            f"followed with `layers=`, for instance `layers=[torch.nn.Linear]`{winners}.{unknown}"
        )

    def check_piecewise_affine(self, why: str) -> None:
        """Raise an error that ends with ``why``, if one of the non-linearities is smooth or jumps."""
        for site, axis in zip(self.sites, self.axes, strict=True):
            if axis is not None and is_a(site.op, Kind.SMOOTH, Kind.SQUASHING, Kind.BROKEN):
                kind = "jumps" if is_a(site.op, Kind.BROKEN) else "is not piecewise affine"
                raise ValueError(f"{(site.merge or site.op)!r} at {site.path or 'the top'!r} {kind}, {why}")

    # Following

    def follow(
        self, points: Tensor, offsets: Tensor | None, consumer: Consumer, execution: Execution | None = None
    ) -> Any:
        """Run the model on the points ``(n,)``, each moved by the ``(k, D)`` offsets. Returns its output.

        ``consumer(position, kinks)`` is called for each place that was traced and depends on the samples, with tensors
        whose first axis is the ``k * n`` samples: all points, moved by the first offset, then by the next one.
        """
        return self.run(self.moved(points, offsets), consumer, execution or Execution())

    def moved(self, points: Tensor, offsets: Tensor | None) -> Samples:
        """The points ``(n,)``, each moved by the ``(k, D)`` offsets."""
        n, k, at_inputs = len(points), 1 if offsets is None else len(offsets), self.space.at_module is None

        def move(output: Tensor) -> Tensor:
            assert offsets is not None
            moved = output.unflatten(0, (k, n)) + offsets.view(k, 1, *output.shape[1:])
            return moved.flatten(0, 1)

        inputs = self.space.points.batch(points, offsets if at_inputs else None, k)
        return Samples(inputs, n * k, self.options(move))

    def run(self, samples: Samples, consumer: Consumer, execution: Execution, with_output: bool = False) -> Any:
        """Run the model on these samples. Returns its output; ``consumer`` is called as by :meth:`follow`.

        ``with_output``: also with the output, as the place :data:`OUTPUT_PLACE`.
        """
        position = 0
        emit = self.emitter(samples.n, consumer, execution)

        def receive(site: Site, kinks: list[Kink]) -> None:
            nonlocal position
            if position < len(self.axes):
                emit(position, kinks)
            position += 1

        with execution.recorder(self.space.model, receive, samples.options):
            output = self.space.run(samples.inputs)
        if position != len(self.axes):
            raise ValueError(f"`model` executed {position} non-linearities here but {len(self.axes)} when traced.")
        if with_output:
            emit(OUTPUT_PLACE, [(main_output(output), 0.0)])
        return output

    def emitter(self, n: int, consumer: Consumer, execution: Execution) -> Consumer:
        """Calls ``consumer`` with the ``n`` samples first, and notes for the execution where they were."""

        def receive(position: int, kinks: list[Kink]) -> None:
            axis = execution.here = self.axis_of(position)
            if axis is None:
                return
            try:
                fronts = viewed(kinks, lambda z: axis.to_front(z, n))
            except ValueError as reason:
                if position == OUTPUT_PLACE:  # no unit: the counts need not fail
                    return
                raise self._cannot_follow(self.sites[position], reason) from None
            consumer(position, fronts)

        return receive

    def axis_of(self, position: int) -> BatchAxis | None:
        """Where the samples are at a place; ``None`` if it does not depend on them."""
        return self.output_axis if position == OUTPUT_PLACE else self.axes[position]

    def options(self, move: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Keywords of a recorder, by which the samples are moved where the space is perturbed."""
        at = {} if self.results else {"at": self.space.at_module, "at_call": self.space.at_call, "move": move}
        return {"outputs_of": self.outputs_of, "max_pool": self.max_pool, "results": self.results, **at}


def _axis_of_output(of_two: Any, of_three: Any) -> BatchAxis | None:
    """Where the samples are in what a model returned for two and for three of them; ``None`` if that is not known."""
    try:
        two, three = main_output(of_two), main_output(of_three)
        if torch.finfo(two.dtype).bits < 32:
            return None
        if two.ndim and len(two) == 2 and len(three) == 3 and two.shape[1:] == three.shape[1:]:
            return BatchAxis(0)
        found = find_batch_axis(two, three)
    except ValueError:
        return None
    return None if found is None else found[0]


def _of_samples(two: list[tuple[T, int]], three: list[tuple[T, int]]) -> list[T]:
    """The operations that return more for three samples than for two."""
    return sorted({op for (op, fewer), (_, more) in zip(two, three, strict=False) if more > fewer}, key=str)


def _numbered(names: list[str]) -> list[str]:
    """Names made unique: ``#1``, ``#2``, ... behind those that occur more than once."""
    often, seen = Counter(names), Counter[str]()
    unique = []
    for name in names:
        seen[name] += 1
        unique.append(f"{name}#{seen[name]}" if often[name] > 1 else name)
    return unique
