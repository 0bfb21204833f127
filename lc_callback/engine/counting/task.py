"""What is to be counted, checked at once and made ready in measuring conditions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lc_callback.engine.counting.counter import Progress, SwitchCounter
from lc_callback.engine.counting.critical_radius import CriticalRadii
from lc_callback.engine.counting.result import SwitchCounts
from lc_callback.engine.counting.strategy import FEWEST_ULP, MakeStrategy, NeedsVertices, Strategy
from lc_callback.engine.counting.vertices import Vertices
from lc_callback.engine.network.frame import frame_directions
from lc_callback.engine.network.layers import MakeTracer, TracedLayers, plain_tracer
from lc_callback.engine.network.modules import output_of, select_modules
from lc_callback.engine.network.points import Points, ends_of
from lc_callback.engine.network.space import Space, compute_dtype, largest_of
from lc_callback.engine.replay.recording import NotRepeatable, Recording, TwoPasses
from lc_callback.isolation import untouched

__all__ = ["CountingTask", "TraceEachSet"]


class TraceEachSet(Exception):  # noqa: N818 (no error: there is another way)
    """The way through the model depends on values, so that one trace does not hold for several sets of points."""


class CountingTask:
    """Units that switch around points of a model.

    Args:
        strategy: makes what finds the units, given the traced layers.
        model: as for :class:`Space`, and so are ``inputs``, ``at`` and ``forward_fn``.
        inputs: the points.
        others: further sets of points, alike in structure: the same layers, frame and route serve all. What is decided
            from points is decided from all sets.
        layers: ``None`` follows every non-linearity that is executed; a list of module names, ``fnmatch`` patterns,
            class names or types follows the outputs of these modules instead.
        max_pool: also count the winners that change.
        at: name of the module whose output is perturbed.
        forward_fn: what is called instead of the model.
        fallback: takes the place of ``strategy`` where that raises :class:`NeedsVertices`; ``None``: it is raised.
        records: whether to look for a way to replay the model's operations.

    Raises:
        ValueError: if ``model`` is no module, or ``at`` or ``layers`` name none.
    """

    def __init__(
        self,
        strategy: MakeStrategy,
        model: nn.Module,
        inputs: Any,
        *,
        others: Sequence[Any] = (),
        layers: Sequence[str | type] | None = None,
        max_pool: bool = False,
        at: str | None = None,
        forward_fn: Callable[..., Any] | None = None,
        fallback: MakeStrategy | None = None,
        records: bool = True,
    ) -> None:
        Space(model, inputs, at=at, forward_fn=forward_fn)
        self._strategy, self._fallback, self._records = strategy, fallback, records
        self._model, self._inputs, self._others = model, inputs, others
        self._where: dict[str, Any] = {"at": at, "forward_fn": forward_fn}
        self._outputs_of = None if layers is None else select_modules(model, layers)
        self._max_pool = max_pool

    @classmethod
    def by(cls, method: str, model: nn.Module, inputs: Any, **named: Any) -> CountingTask:
        """By ``"vertices"``, or by ``"linear"``: by critical radii, where the model does not jump."""
        if method == "linear":
            return cls(CriticalRadii, model, inputs, fallback=Vertices, **named)
        return cls(Vertices, model, inputs, **named)

    def measure(
        self,
        radius: float | Sequence[float],
        n_directions: int | None,
        directions: Tensor | None = None,
        seed: int = 0,
        chunk_size: int | None = None,
        progress: Progress | None = None,
        points: Tensor | None = None,
    ) -> SwitchCounts:
        """Count at the points of the first set, by default in the precision that the radius takes.

        With ``points`` at those of these indices only; what has to be decided is decided from all.
        """
        smallest = min(radius) if isinstance(radius, Sequence) else radius
        with self.ready(smallest, n_directions, directions, seed, chunk_size) as counter:
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

        Inside, any set may be counted, with any radius that is not below ``radius``.
        """
        try:
            return self._ready(radius, n_directions, directions, seed, chunk_size, dtype)
        except NeedsVertices as reason:
            if self._fallback is None:
                raise
            warnings.warn(
                f"the model {reason}, and its affine pieces do not tell where: counting by vertices instead "
                "of `method='linear'`.",
                stacklevel=3,
            )
        other = CountingTask(self._fallback, self._model, self._inputs, others=self._others, **self._where)
        return other.ready(radius, n_directions, directions, seed, chunk_size, dtype)

    def _ready(
        self,
        radius: float,
        n_directions: int | None,
        directions: Tensor | None,
        seed: int,
        chunk_size: int | None,
        dtype: torch.dtype | None,
    ) -> AbstractContextManager[SwitchCounter]:
        with ExitStack() as stack:
            traced = self._traced(stack, dtype or compute_dtype(self._model, self._inputs))
            space = traced.layers.space
            if space.dtype is not torch.float64 and _drowns(radius, space, space.dtype):
                warnings.warn(
                    f"`radius={radius:g}` is a step of {radius / space.dim**0.5:.1e} per coordinate, "
                    f"within {FEWEST_ULP} roundings of the largest input: computing in float64.",
                    stacklevel=4,
                )
                stack.close()
                traced = self._traced(stack, torch.float64)
                space = traced.layers.space
            self._warn(radius, traced.layers)
            frame = frame_directions(space.shape, n_directions, directions, seed, space.dtype, space.device)
            recording = self._recording(traced.passes, space)
            counter = SwitchCounter(traced.layers, traced.strategy, traced.sets, frame, recording, chunk_size)
            return _Ready(counter, stack.pop_all())

    def _traced(self, conditions: ExitStack, dtype: torch.dtype) -> _Traced:
        """Enter measuring conditions and trace the model, from the first point."""
        forward_fn = self._where["forward_fn"]
        conditions.enter_context(untouched(self._model, forward_fn, dtype=dtype))
        space = Space(self._model, self._inputs, **self._where)
        space.locate(dtype)
        sets = [space.points]
        if self._others:  # the first and last point of each set stand for all
            sets += [Points(inputs, dtype, space.device, space.argument) for inputs in self._others]
            space.largest = max(points.largest() for points in sets)
            space.points = Points(ends_of(sets), dtype, space.device, space.argument)
        passes = TwoPasses()
        tracer: MakeTracer = passes if self._records else plain_tracer
        layers = TracedLayers(space, outputs_of=self._outputs_of, max_pool=self._max_pool, tracer=tracer)
        if self._others and space.at_module is not None:
            inputs = space.points.batch(torch.arange(space.points.n), None)
            space.reaches(largest_of(output_of(space.at_module, lambda: space.run(inputs))))
        return _Traced(layers, self._strategy(layers), sets, passes)

    def _recording(self, passes: TwoPasses, space: Space) -> Recording | NotRepeatable:
        """What the model executes, or why that is not known."""
        if not self._records:
            return NotRepeatable("no recording was asked for")
        if space.points.named:
            return NotRepeatable("the points have names, which no operation takes")
        try:
            return passes.recording()
        except NotRepeatable as reason:
            return reason
        except Exception as error:  # whatever it is, the model itself can run
            return NotRepeatable(f"{type(error).__name__}: {error}")

    def _warn(self, radius: float, layers: TracedLayers) -> None:
        """Warn of what may make counts wrong.

        Raises:
            TraceEachSet: if one trace does not hold for all sets.
        """
        space, name = layers.space, type(self._model).__name__
        if layers.coarsest is not space.dtype and _drowns(radius, space, layers.coarsest):
            warnings.warn(
                f"`radius={radius:g}` is a step of {radius / space.dim**0.5:.1e} per coordinate, and the forward of "
                f"{name} rounds to {layers.coarsest} on the way, so that counts are too low: "
                "take a larger radius, or remove the cast.",
                stacklevel=5,
            )
        if layers.reads_values:
            if self._others:
                raise TraceEachSet
            warnings.warn(
                f"the forward of {name} looks at values in Python (an `if`, `bool()`, "
                "`item()`): where it then goes is decided for a whole batch, so counts may depend on which "
                "samples are in one, and on `chunk_size`.",
                stacklevel=5,
            )


class _Traced(NamedTuple):
    """What is known of a model after its trace."""

    layers: TracedLayers
    strategy: Strategy
    sets: list[Points]
    passes: TwoPasses


def _drowns(radius: float, space: Space, dtype: torch.dtype) -> bool:
    """Whether a coordinate's step is within rounding of the coordinates."""
    return radius / space.dim**0.5 < FEWEST_ULP * torch.finfo(dtype).eps * space.largest


class _Ready(AbstractContextManager[SwitchCounter]):
    """A counter, and the measuring conditions that end with it.

    No generator: a ``StopIteration`` of the user's forward would come out of it as another error.
    """

    def __init__(self, counter: SwitchCounter, conditions: ExitStack) -> None:
        self._counter, self._conditions = counter, conditions

    def __enter__(self) -> SwitchCounter:
        return self._counter

    def __exit__(self, *error: Any) -> bool | None:
        return self._conditions.__exit__(*error)
