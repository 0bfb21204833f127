"""The layers of a model: what its non-linearities take or return, traced once and then followed batch by batch."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.batch_axis import BatchAxis, find_batch_axis
from lc_callback.engine.network.frame import cross_polytope_frame
from lc_callback.engine.network.layout import viewed
from lc_callback.engine.network.modules import select_modules
from lc_callback.engine.network.operations import Kind, Knot, is_a
from lc_callback.engine.network.recorder import Recorder, Site, known_operations
from lc_callback.engine.network.space import Space
from lc_callback.engine.network.tracer import Tracer
from lc_callback.engine.replay.prefix import Prefix, find_prefix, pre_activations, same, some_moves
from lc_callback.engine.replay.program import ReplayProgram
from lc_callback.engine.replay.recording import OperationRecorder, Recording

__all__ = ["Layers"]

T = TypeVar("T")
# What a model is called with, how many samples that makes, and how to record it.
Moved = tuple[Any, int, dict[str, Any]]

# Relative change of a value, when a sample is added to the batch, that rounding does not explain.
_MIXING = 1e-3


class Layers(Space):
    """The layers of a model at ``N`` points, in execution order.

    Args:
        model: as for :class:`Space`, and so are ``inputs``, ``at`` and ``forward_fn``.
        layers: ``None`` follows every non-linearity that is executed; a list of module names, ``fnmatch`` patterns,
            class names or types follows the outputs of these modules instead.
        max_pool: also follow the winners of max-pooling, or (``"candidates"``) what competes there.
        results: follow what the non-linearities return, instead of their pre-activations, at the points themselves;
            nothing is perturbed.

    Attributes:
        names: of the layers: module paths, ``#1``, ``#2``, ... if used repeatedly. Set by :meth:`trace`, as the others.
        sizes: units of each layer.
        sites: the places where the model was seen to take them; each belongs to the layer ``layer_of``.
        bytes_per_sample: of the largest tensor of a forward pass.
        reads_values: whether the model's Python code looks at values, so that batches may go different ways.
        jumps: operations that are constant but for jumps, such as ``sign``.
    """

    remedy = " Name the modules to follow with `layers=`, leaving this one out."
    needs_layers = True  # else a model without non-linearities is no error
    has_rules = False  # whether derivatives may be taken operation by operation
    writes_down = False  # whether to repeat operations instead of running the model; then there is no output

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        layers: Sequence[str | type] | None = None,
        max_pool: bool | str = False,
        results: bool = False,
        at: str | None = None,
        forward_fn: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(model, inputs, at=at, forward_fn=forward_fn)
        self.outputs_of = None if layers is None else select_modules(model, layers)
        self.max_pool, self.results = max_pool, results
        self.frame: Tensor
        self.prefix: Prefix | None = None
        self.tape: ReplayProgram | None = None
        self.by_rules = False  # derivatives are taken operation by operation
        self._recorded: Recording | None = None
        self.here: BatchAxis | None = None  # where the samples are in what was handed over last
        self._values = "feature" if results else "pre-activation"

    def trace(self, dtype: torch.dtype) -> None:
        """Learn the layers, their sizes, and where in each pre-activation the samples are."""
        self.locate(dtype, perturbed=not self.results)
        of_two, before = self._traced(2)
        of_three, tracer = self._traced(3)
        self._recorded = None
        if isinstance(before, OperationRecorder) and isinstance(tracer, OperationRecorder) and not self.points.named:
            with contextlib.suppress(Exception):  # whatever it is, the model itself can run
                self._recorded = Recording(before, tracer)
        self.reads_values = tracer.reads_values
        self.jumps = _of_samples(before.jumps, tracer.jumps)
        #: What rounds most: a model may compute in float32 whatever its own type is.
        self.coarsest = max(
            [dtype, *_of_samples(before.casts, tracer.casts)], key=lambda each: float(torch.finfo(each).eps)
        )
        self._chooses = bool(_of_samples(before.choices, tracer.choices))
        growth = zip(tracer.output_bytes, before.output_bytes, strict=False)  # weights pass through operations too
        self.bytes_per_sample = max((three - two for three, two in growth), default=0)
        self._check_rows(before.masked_rows.layers ^ tracer.masked_rows.layers)
        if len(of_two) != len(of_three):
            raise ValueError(
                f"`model` executed {len(of_two)} non-linearities for two samples but {len(of_three)} for three: "
                f"units cannot be followed.{self.remedy}"
            )
        #: Operations of which the winners are not counted, since ``max_pool`` is off.
        self.uncounted = _of_samples(before.maxima, tracer.maxima)
        self.never_above = tracer.never_above
        self.sites = [site for site, _ in of_two]
        self.axes: list[BatchAxis | None] = []
        self.channels: list[int] = []
        self.layer_of: list[int] = []
        bases: list[str] = []
        calls: dict[int, int] = {}
        self.sizes: list[int] = []
        unused = tracer.links | tracer.guards | tracer.decisions
        for position, ((site, two), (_, three)) in enumerate(zip(of_two, of_three, strict=True)):
            axis = None if position in unused else self._batch_axis(site, two[0][0], three[0][0])
            self.axes.append(axis)
            self.channels.append(site.channels)
            if axis is None:  # shapes the output or keeps a divisor from zero only, or depends on the weights only
                self.layer_of.append(-1)
                continue
            if not (site.merge and site.call in calls):
                calls[site.call] = len(bases)
                bases.append(site.path or site.op)
                self.sizes.append(0)
            layer = calls[site.call]
            self.layer_of.append(layer)
            self.sizes[layer] += two[0][0].numel() // 2
        if not bases and self.needs_layers:
            raise ValueError(self._nothing_found())
        self.names = _numbered(bases)

    def _traced(self, n: int) -> tuple[list[tuple[Site, list[Knot]]], Tracer]:
        seen: list[tuple[Site, list[Knot]]] = []

        def keep(site: Site, knots: list[Knot]) -> None:
            seen.append((site, [(z.clone(), knot) for z, knot in knots]))

        first = torch.zeros(1, dtype=torch.long)
        if self.results:
            inputs = self.points.batch(torch.arange(n) % self.points.n, None)
        elif self.at_module is not None:
            inputs = self.points.batch(first, None, n)
        else:  # samples that differ although they are one point: else the order of a folded axis could not be told
            inputs = self.points.batch(first, self._nudges(n))
        recording = self._recording(functools.partial(self._nudge_output, n))
        tracer: Tracer
        if self.writes_down:
            tracer = OperationRecorder(inputs, self.model, keep, **recording)
        else:
            tracer = Tracer(self.model, keep, **recording)
        leaves = tree_leaves(inputs)
        moving = leaves if self.at_module is None or self.results else []
        tracer.watch([leaf for leaf in moving if isinstance(leaf, Tensor) and leaf.is_floating_point()], leaves)
        with tracer:
            output = self.run(inputs)
        tracer.find_links(output)
        if n == 2 and isinstance(tracer, OperationRecorder):
            tracer.let_go()
        return seen, tracer

    def _nudges(self, n: int) -> Tensor:
        dim = self.dim
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
                f"the {self._values} of {name!r} is computed in {two.dtype}, too coarse to measure: remove the cast "
                f"or autocast from the model's forward.{self.remedy}"
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
                f"the {self._values} of {name!r} at one point depends on the other points of the batch, or is random "
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
                f"`torch.where(mask, f(h), h)` does.{self.remedy}"
            )

    def _cannot_follow(self, site: Site, reason: Exception) -> ValueError:
        return ValueError(
            f"the units of {site.path or site.op!r} cannot be told from the samples: {reason}.{self.remedy}"
        )

    def _nothing_found(self) -> str:
        if self.outputs_of is not None:
            return f"`layers` names modules that were not executed{self._after_at()} in {type(self.model).__name__}."
        winners = (
            f", or count the winners of {', '.join(self.uncounted)} with `max_pool=True`" if self.uncounted else ""
        )
        return (
            f"no non-linearity was executed{self._after_at()} in the forward of {type(self.model).__name__}: looked "
            f"for {known_operations()} on values that depend on the input. Name the modules whose outputs are to be "
            f"followed with `layers=`, for instance `layers=[torch.nn.Linear]`{winners}."
        )

    def _after_at(self) -> str:
        return "" if self.at is None else f" after {self.at!r}, whose output is perturbed,"

    def check_piecewise_affine(self, why: str) -> None:
        """Raise an error that ends with ``why``, if one of the non-linearities is smooth or jumps."""
        for site, axis in zip(self.sites, self.axes, strict=True):
            if axis is not None and is_a(site.op, Kind.SMOOTH, Kind.SQUASHING, Kind.BROKEN):
                kind = "jumps" if is_a(site.op, Kind.BROKEN) else "is not piecewise affine"
                raise ValueError(f"{(site.merge or site.op)!r} at {site.path or 'the top'!r} {kind}, {why}")

    # Following

    def follow(
        self,
        points: Tensor,
        offsets: Tensor | None,
        sink: Callable[[int, list[Knot]], None],
    ) -> Any:
        """Run the model on the points ``(n,)``, each moved by the ``(k, D)`` offsets. Returns its output.

        ``sink(position, knots)`` is called for each place that was traced and depends on the samples, with tensors
        whose first axis is the ``k * n`` samples: all points, moved by the first offset, then by the next one.
        """
        return self._followed(*self._moved(points, offsets), sink)

    def follow_frame(self, points: Tensor, coefficients: Tensor, sink: Callable[[int, list[Knot]], None]) -> Any:
        """As :meth:`follow`, with moves by ``coefficients (k, B)`` of the directions of ``frame``.

        Without the output, if it was written down.
        """
        # One sample alone is laid out in several ways at once, so it can take another way than two and three did.
        repeats = self.tape is not None and len(points) * len(coefficients) > 1
        if self.prefix is None:
            moved = self._moved(points, coefficients @ self.frame)
            return self._repeated(*moved, sink) if repeats else self._followed(*moved, sink)
        values = self.prefix.values(self, points, coefficients)
        recording = self._recording(lambda output: values) | {"at": self.prefix.module}
        if not repeats:
            return self._followed(self.points.batch(points[:1], None), len(values), recording, sink)
        return self._repeated(None, len(values), recording, sink)

    def _moved(self, points: Tensor, offsets: Tensor | None) -> Moved:
        n, k = len(points), 1 if offsets is None else len(offsets)

        def move(output: Tensor) -> Tensor:
            assert offsets is not None
            moved = output.unflatten(0, (k, n)) + offsets.view(k, 1, *output.shape[1:])
            return moved.flatten(0, 1)

        inputs = self.points.batch(points, offsets if self.at_module is None else None, k)
        return inputs, n * k, self._recording(move)

    def set_frame(self, frame: Tensor, most: int) -> None:
        """Take ``(B, D)`` directions for :meth:`follow_frame`, and find how to get there with least effort.

        At most so many samples are in one forward pass. Points that integers or masks belong to, that are moved inside
        the model, or at the values of which it looks, or by which it decides, go through all of it.
        """
        self.frame = frame
        whole = self.at_module is not None or not self.points.alone or self.reads_values or self._chooses
        self._plainly()
        if whole and self._recorded is None:
            return
        moves = some_moves(self, frame)
        gives = functools.partial(self._gives, self.observed(moves, most), moves, most)
        # What is likely, with one pass to confirm it, and else one by one.
        self.by_rules = self.has_rules
        if not whole and self._recorded is not None:
            self.points.channels_last = self._has_images()
            self.prefix = find_prefix(self, lambda: True, most, repeats=True)
        if self.prefix is None:
            self.tape = self.repeating(None)
        if self.tape is None or not gives():
            self._plainly()
            self._find_each(whole, gives, most)
        self._recorded = None

    def _plainly(self) -> None:
        """Follow by running the model on all samples."""
        self.prefix, self.tape, self.by_rules, self.points.channels_last = None, None, False, False

    def _find_each(self, whole: bool, gives: Callable[[], bool], most: int) -> None:
        """As far as each of the shorter ways gives the same."""
        self.tape = self.repeating(None)
        if self.tape is not None and not gives():
            self.tape = None
        if not whole:
            self.points.channels_last = self._has_images()
            self.points.channels_last = self.points.channels_last and gives()
            self.prefix = find_prefix(self, gives, most, repeats=self.tape is not None)
        self.by_rules = self.has_rules
        self.by_rules = self.by_rules and gives()

    @property
    def verified(self) -> Tensor:
        """The points at which a shortcut is compared with the model itself."""
        return torch.tensor([0, self.points.n - 1]).unique()

    def observed(self, moves: Tensor, most: int) -> list[Tensor]:
        """What has to stay the same, by whichever way: all pre-activations at a few points, moved along the frame."""
        return pre_activations(self, moves, most)

    def repeating(self, module: nn.Module | None) -> ReplayProgram | None:
        """What the model was seen to execute, behind what ``module`` returns; ``None`` if it cannot be repeated."""
        if self._recorded is None:
            return None
        try:
            return ReplayProgram(self._recorded, entry=None if module is None else self._recorded.returned[module])
        except Exception:  # whatever it is, the model itself can run
            return None

    @property
    def returned(self) -> list[nn.Module]:
        """The modules that were seen to return something before anything bent, the latest first."""
        return [] if self._recorded is None else [*reversed(self._recorded.returned)]

    def _gives(self, expected: list[Tensor], moves: Tensor, most: int) -> bool:
        """Whether :meth:`follow_frame` gives what it did."""
        try:
            return same(expected, self.observed(moves, most))
        except Exception:  # what comes later does not take it, and says so in its own way
            return False

    def _has_images(self) -> bool:
        """Whether there may be images, and convolutions that are faster if the channels of these come last."""
        cpu = self.device.type == "cpu" and self.dtype is torch.float32
        return cpu and any(isinstance(module, nn.Conv2d) for module in self.model.modules())

    def _followed(
        self, inputs: Any, samples: int, recording: dict[str, Any], sink: Callable[[int, list[Knot]], None]
    ) -> Any:
        """Run the model on ``inputs``, of which so many ``samples`` arrive at each place."""
        position = 0
        hand_over = self._receiver(samples, sink)

        def receive(site: Site, knots: list[Knot]) -> None:
            nonlocal position
            if position < len(self.axes):
                hand_over(position, knots)
            position += 1

        with self._recorder(receive, recording):
            output = self.run(inputs)
        if position != len(self.axes):
            raise ValueError(f"`model` executed {position} non-linearities here but {len(self.axes)} when traced.")
        return output

    def _repeated(
        self, inputs: Any, samples: int, recording: dict[str, Any], sink: Callable[[int, list[Knot]], None]
    ) -> None:
        """As :meth:`_followed`, from what was written down."""
        assert self.tape is not None
        self.tape.run(inputs, samples, recording["move"], self._receiver(samples, sink), self._execute, self.max_pool)

    def _receiver(self, samples: int, sink: Callable[[int, list[Knot]], None]) -> Callable[[int, list[Knot]], None]:
        """Calls ``sink`` with the samples first."""

        def receive(position: int, knots: list[Knot]) -> None:
            axis = self.here = self.axes[position]
            if axis is None:
                return
            try:
                fronts = viewed(knots, lambda z: axis.to_front(z, samples))
            except ValueError as reason:
                raise self._cannot_follow(self.sites[position], reason) from None
            sink(position, fronts)

        return receive

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        """Execute an operation that was written down and may have a kink."""
        return func(*args, **kwargs)

    def _recorder(self, receive: Callable[[Site, list[Knot]], None], recording: dict[str, Any]) -> Recorder:
        return Recorder(self.model, receive, **recording)

    def _recording(self, move: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        at = {} if self.results else {"at": self.at_module, "at_call": self.at_call, "move": move}
        return {"outputs_of": self.outputs_of, "max_pool": self.max_pool, "results": self.results, **at}


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
