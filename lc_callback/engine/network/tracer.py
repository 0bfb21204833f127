"""A recorder that also notes what has to be known of a model only once."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.guards import Guards, is_guard
from lc_callback.engine.network.layout import memories_of, memory_or_none
from lc_callback.engine.network.masked_rows import MaskedRows, choosers, picks
from lc_callback.engine.network.max_pools import WINNERS
from lc_callback.engine.network.operations import Kind, Knot, is_a
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.recorder import Recorder, Site
from lc_callback.engine.network.signs import Signs

__all__ = ["Tracer"]


# Operations of these namespaces round what they get.
_ROUNDING_NAMESPACES = {"quantized", "quantized_decomposed", "torchao"}
# These decide by values, but not between two numbers next to each other: whether one is missing, say.
_BUT_FOR_POINTS = {"eq", "ne", "isnan", "isinf", "logical_not", "logical_and", "logical_or", "logical_xor"}
# What gives values to the model's Python code without an operation.
_VALUE_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Tracer(Recorder):
    """A recorder that also notes what is needed once: memory, and which non-linearity only shapes the output.

    Attributes:
        reads_values: whether the model's Python code got values of a tensor, as for an ``if``.
        jumps: operations before the last pre-activation that are constant but for jumps, and the number of values they
            returned.
        choices: operations before the first one that decide by values, likewise.
        casts: floating-point types to which values were rounded, likewise.
        guards: positions, among what was handed over, of bounds that only keep a divisor from zero.
        never_above: positions, likewise, of what is never above zero, such as ``-relu(x)``.
        decisions: positions, likewise, of maxima of which the model takes the index only.
        masked_rows: pre-activations of rows that were picked by values.
        maxima: operations that choose a winner which is not handed over, and the number of values they returned.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reads_values = False
        self.jumps: list[tuple[str, int]] = []
        self.choices: list[tuple[str, int]] = []
        self.casts: list[tuple[torch.dtype, int]] = []
        self.output_bytes: list[int] = []
        self.links: set[int] = set()
        self.guards: set[int] = set()
        self.decisions: set[int] = set()
        self.maxima: list[tuple[str, int]] = []
        self.never_above: set[int] = set()
        self._signs = Signs()
        self.masked_rows = MaskedRows()
        self._guards, self._is_guard = Guards(), False
        self._largest: dict[int, tuple[int, Tensor]] = {}  # values of maxima that nothing has read, by memory
        self._following: _Offspring | None = None  # what comes of what is perturbed
        self._of_inputs: _Offspring | None = None  # what comes of any input, or is drawn
        self._jumps_since: list[tuple[str, int]] = []  # the last pre-activation
        self._squashed: dict[int, tuple[int, Tensor]] = {}  # by memory
        self._read: set[int] = set()  # by something that is no view

    def __enter__(self) -> Recorder:
        self._hooks.enter_context(_ValueReads(self))
        return super().__enter__()

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            self.read_values([args, kwargs])
        result = super()._execute(op, func, args, kwargs)
        if self._of_inputs is not None:
            drawn = torch.Tag.nondeterministic_seeded in func.tags
            self._of_inputs.executed(op, func, [args, kwargs], result, drawn)
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        memories = [memory_or_none(value) for value in [*args, first]]
        self._signs.executed(op, func._schema.is_mutable, args, kwargs, memories, first)
        if self._follows(op, func, [args, kwargs], result):
            self._note_decision(op, func, args, result)
            self._note_maximum(op, args, result)
            if picks(op, func, args) and self._has_followed(choosers(args)):
                self.masked_rows.executed(args, memories_of(result), result)
        if self.masked_rows:
            self.masked_rows.passed(op, memories_of(args[:1]), memories_of([args, kwargs]), memories_of(result), result)
        if self._largest:
            for memory in memories_of(args) & self._largest.keys():
                del self._largest[memory]
        self._is_guard = is_guard(op, args, kwargs)
        if self._guards:
            self._guards.read(op, args, [memories_of(arg) for arg in args], memories_of(result), result)
        if self._squashed:
            self._read |= (memories_of(args) - memories_of(result)) & self._squashed.keys()
        return result

    def watch(self, moving: Any, inputs: Any) -> None:
        """Note decisions only by what comes of ``moving``, and of what is moved on the way; reads by what of inputs."""
        self._following, self._of_inputs = _Offspring(moving), _Offspring(inputs)

    def read_values(self, tensors: Any) -> None:
        """Note that the model's Python code gets values of these: constants are the same for all samples."""
        self.reads_values = self.reads_values or self._of_inputs is None or self._of_inputs.has(tensors)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        replaced = super()._leave_module(module, args, output)
        for known in (self._following, self._of_inputs):
            if replaced is not None and known is not None:
                known.add(replaced)
        return replaced

    def _follows(self, op: str, func: Any, args: Any, result: Any) -> bool:
        """Whether an operation has to do with what is watched; so has then what it returns."""
        if self._following is None or self.reads_values:  # what Python makes of values cannot be followed
            return True
        return self._following.executed(op, func, args, result)

    def _has_followed(self, tensors: Any) -> bool:
        """Whether tensors have to do with what is watched, or may have."""
        return self._following is None or self.reads_values or self._following.has(tensors)

    def _note_maximum(self, op: str, args: Any, result: Any) -> None:
        """Whether the winner of a maximum was found, but not handed over."""
        if op in WINNERS and not self._max_pool and self._outputs_of is None and not self._waiting:
            values = result if isinstance(result, Tensor) else result[0]
            if values.is_floating_point() and values.ndim:
                self.maxima.append((op, values.numel()))

    def _note_decision(self, op: str, func: Any, args: Any, result: Any) -> None:
        """Whether values were compared, rounded or made into integers."""
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        if not (isinstance(first, Tensor) and args and isinstance(args[0], Tensor) and args[0].is_floating_point()):
            return
        if op == "_to_copy" and _is_coarser(first.dtype, args[0].dtype):
            self.casts.append((first.dtype, first.numel()))
        decides = first.dtype is torch.bool or not (first.is_floating_point() or first.is_complex())
        if (decides or op == "nan_to_num") and not self.handed_over:
            self.choices.append((op, first.numel()))
        to_bool = op == "_to_copy" and first.dtype is torch.bool
        rounds = is_a(op, Kind.JUMP) or func.namespace in _ROUNDING_NAMESPACES
        if rounds or (decides and not to_bool and op not in _BUT_FOR_POINTS):
            self._jumps_since.append((op, first.numel()))

    def _hand_over(self, site: Site, knots: list[Knot]) -> None:
        if self.masked_rows and not self._waiting:  # also where no row was picked
            self.masked_rows.met(site.path or site.op, memories_of([z for z, _ in knots]))
        if all(knot is not None and knot >= 0 and not self._signs(memory_or_none(z))[0] for z, knot in knots):
            self.never_above.add(self.handed_over)
        super()._hand_over(site, knots)
        self.jumps += self._jumps_since
        self._jumps_since.clear()

    def _executed(self, op: str, result: Any, followed: bool) -> None:
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.output_bytes.append(tensor.numel() * tensor.element_size())
        if followed and op in WINNERS and not isinstance(result, Tensor):
            self._largest.update(dict.fromkeys(memories_of(result[0]), (self.handed_over - 1, result[0])))
        if followed and self._is_guard:
            self._guards.add(self.handed_over - 1, memories_of(result), result)
        if followed and is_a(op, Kind.SQUASHING):
            squashed = result[0] if isinstance(result, tuple) else result
            self._squashed.update(dict.fromkeys(memories_of(squashed), (self.handed_over - 1, squashed)))

    def find_links(self, output: Any) -> None:
        """Set ``guards``, ``decisions``, and ``links``: positions of the squashing functions that made ``output``.

        What is returned beside the main output, and read on the way to it, is a layer.
        """
        returned = memories_of(output)
        self.guards = self._guards.found(returned)
        self.decisions = {position for memory, (position, _) in self._largest.items() if memory not in returned}
        self._largest.clear()
        with suppress(ValueError):  # it has none
            returned -= self._read - memories_of(main_output(output))
        self.links = {position for memory, (position, _) in self._squashed.items() if memory in returned}
        self._squashed.clear()


def _is_coarser(one: torch.dtype, other: torch.dtype) -> bool:
    return one.is_floating_point and torch.finfo(one).eps > torch.finfo(other).eps


class _Offspring:
    """What comes of some tensors. They are known by their memory, which is kept alive."""

    def __init__(self, tensors: Any) -> None:
        self._known: dict[int, Tensor] = {}
        self.add(tensors)

    def has(self, tensors: Any) -> bool:
        """Whether one of these comes of them."""
        return bool(memories_of(tensors) & self._known.keys())

    def add(self, tensors: Any) -> None:
        """These do."""
        for leaf in tree_leaves(tensors):
            self._known.update(dict.fromkeys(memories_of(leaf), leaf))

    def executed(self, op: str, func: Any, args: Any, result: Any, always: bool = False) -> bool:
        """Whether the result of an operation does; ``always``: whatever it gets."""
        shaped = op.endswith("_like") or op.startswith("new_")  # only the shape is read
        if not always and (shaped or not self.has(args)):
            return False
        self.add(args if result is None and func._schema.is_mutable else result)
        return True


class _ValueReads(TorchFunctionMode):
    """Notes what gives values to the model's Python code and is no operation."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VALUE_READERS:
            self._tracer.read_values(args)
        return func(*args, **(kwargs or {}))
