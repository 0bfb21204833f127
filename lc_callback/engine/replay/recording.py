"""The operations of a model, recorded, so that they can be executed again without its Python code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import memory_of
from lc_callback.engine.network.max_pools import MAX_POOLS
from lc_callback.engine.network.operations import OPERATIONS, Kink
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.recorder import Site, is_nonlinear
from lc_callback.engine.network.tracer import Tracer

__all__ = [
    "EMIT",
    "MOVE",
    "OUTPUT",
    "NotRepeatable",
    "OperationLog",
    "OperationRecorder",
    "Recording",
    "Size",
    "Slot",
    "Step",
    "TwoPasses",
    "leaves",
    "place",
]


class NotRepeatable(Exception):  # noqa: N818 (no error: the model runs as it is)
    """The operations cannot be replayed: they depend on more than the samples. The text says why."""


class _DiffersError(Exception):
    """An argument differs between two passes."""


@dataclass(frozen=True)
class Slot:
    """The tensor of this number."""

    index: int


@dataclass(frozen=True)
class Size:
    """An integer that is proportional to the number of samples."""

    rate: int


@dataclass
class Step:
    """An operation. Without one: an emitted tensor, the output, or the place where the samples are moved."""

    op: str
    func: Any
    args: Any
    kwargs: Any
    path: str = ""  # of the module that executed it
    outputs: list[int] = field(default_factory=list)  # -1: no tensor
    position: int = -1  # of the tensor that is emitted
    dead_after: list[int] = field(default_factory=list)  # numbers of the tensors that no later step reads
    overwrites: Any = None  # the operation's in-place form, where nothing reads its operand later
    unused: bool = False  # its operand is emitted, but its result is not needed
    for_output: bool = False  # only the output of the model needs its result
    reads: list[tuple[int, int]] | None = (
        None  # place and number of each tensor among the arguments, if no list or keyword holds one
    )

    @property
    def tensors(self) -> list[int]:
        """Numbers of the tensors that it returns."""
        return [number for number in self.outputs if number >= 0]

    @functools.cached_property
    def operands(self) -> list[int]:
        """Numbers of the tensors that it reads."""
        return [leaf.index for leaf in leaves([self.args, self.kwargs]) if type(leaf) is Slot]


MOVE, EMIT, OUTPUT = "(move)", "(emit)", "(output)"
# What users call, if torch executes it as an operation of another name.
_CALLERS = {"bmm": ("einsum", "matmul"), "_local_scalar_dense": ("item", "float", "if"), "equal": ("torch.equal",)}
_ATTENTIONS = ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention")
_CALLERS |= {f"_scaled_dot_product_{kernel}": ("scaled_dot_product_attention",) for kernel in _ATTENTIONS}
_PLAIN = {int, float, bool, type(None)}


def in_words(step: Step) -> str:
    """The name of an operation, and the module in which it runs."""
    return _in_words(step.op, step.path)


def _in_words(op: str, path: str) -> str:
    callers = f" (of `{'`, `'.join(_CALLERS[op])}`)" if op in _CALLERS else ""
    return f"`{op}`{callers}" + (f" in {path!r}" if path else "")


class OperationLog:
    """The operations of one forward pass, and the tensors that they read and return, by number.

    Attributes:
        steps: the operations; ``None`` if the model does more than they show.
        why_not: the reason, if ``steps`` is ``None``.
        tensors: by number. They are kept alive until they are cleared, so that no memory is used twice.
        sizes: bytes of each tensor.
        inputs: how many of the tensors are inputs of the model.
        returned: for each module, the number of the tensor that its first call returned, and how many steps came before
            that; only modules before the first non-linearity.
        output: the number of the model's output; -1 if it is no tensor.
        emitted: the position of the tensor that was emitted last, until its operation is recorded; else -1.
        is_affine: whether there was no non-linearity so far.
    """

    def __init__(self, inputs: Any) -> None:
        self.steps: list[Step] | None = []
        self.why_not = ""
        self.tensors: list[Tensor] = []
        self.sizes: list[int] = []
        self.returned: dict[nn.Module, tuple[int, int]] = {}
        self.output = -1
        self.emitted, self.is_affine = -1, True
        self._numbers: dict[Any, int] = {}
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self.number(leaf)
        self.inputs = len(self.tensors)

    def number(self, tensor: Tensor) -> int:
        """The number of a tensor. A new tensor gets a new number."""
        key = place(tensor)
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            self.tensors.append(tensor)
            self.sizes.append(tensor.numel() * tensor.element_size())
        return self._numbers[key]

    def spec(self, value: Any) -> Any:
        """An argument, with a :class:`Slot` in place of each tensor that has a number."""
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            number = self._numbers.get(place(value))
            return value if number is None else Slot(number)
        if isinstance(value, (list, tuple)):
            return [item if type(item) in _PLAIN else self.spec(item) for item in value]
        return {name: self.spec(item) for name, item in value.items()} if isinstance(value, dict) else value


class OperationRecorder(Tracer):
    """A tracer that also records each operation.

    Args:
        inputs: the inputs with which the model is going to be called.
        arguments: as for :class:`Tracer`, and so are ``options``.

    Attributes:
        log: the operations so far.
    """

    def __init__(self, inputs: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.log = OperationLog(inputs)
        move = self._entrance.move
        if move is not None:
            self._entrance.move = lambda output: self._moved(move, output)

    def unused(self, output: Any) -> set[int]:
        """As of :class:`Tracer`; notes which tensor is the output."""
        with suppress(ValueError):  # there is none
            found = self.log.spec(main_output(output))
            self.log.output = found.index if type(found) is Slot else -1
        return super().unused(output)

    def let_go(self) -> None:
        """Release the tensors. The log can still be compared with that of another pass."""
        self.log.tensors.clear()

    def _moved(self, move: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
        with _disable_current_modes():  # moving the samples is no part of the model
            moved = move(output)
        log = self.log
        if log.steps is not None:
            log.steps.append(Step(MOVE, None, [log.spec(output)], {}, outputs=[log.number(moved)]))
        return moved

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        log = self.log
        affine = log.steps is not None and log.is_affine and id(module) in self._paths
        if affine and isinstance(output, Tensor) and output.is_floating_point():
            log.returned.setdefault(module, (log.number(output), len(log.steps or ())))
        return super()._leave_module(module, args, output)

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        log, path = self.log, self._stack[-1].path
        log.is_affine = log.is_affine and not is_nonlinear(op)
        if log.steps is not None and (reason := _why_unrepeatable(func)):
            log.steps, log.why_not = None, _in_words(op, path) + reason
        if log.steps is None:
            return super()._execute(op, func, args, kwargs)
        step = Step(op, func, log.spec(args), log.spec(kwargs), path, position=log.emitted)
        log.emitted = -1
        result = super()._execute(op, func, args, kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            step.outputs.append(log.number(tensor) if isinstance(tensor, Tensor) else -1)
        log.steps.append(step)
        return result

    def _emit(self, site: Site, kinks: list[Kink]) -> None:
        before, log = self.emitted, self.log
        super()._emit(site, kinks)
        if self.emitted == before or log.steps is None:
            return
        if self._outputs_of is not None:
            log.steps.append(Step(EMIT, None, [log.spec(kinks[0][0])], {}, position=before))
        elif site.op in MAX_POOLS:
            log.steps[-1].position = before
        else:
            log.emitted = before


def _why_unrepeatable(func: Any) -> str:
    """Why an operation cannot be repeated, as the end of a sentence; empty if it can."""
    if func.namespace != "aten" and func._schema.name not in OPERATIONS:
        return f" is an operation of {func.namespace!r}, not of torch itself"
    if torch.Tag.data_dependent_output in func.tags:
        return " gives values to the model's Python code"
    return " returns a shape that depends on values" if torch.Tag.dynamic_output_shape in func.tags else ""


class TwoPasses:
    """Makes the recorders of the two passes by which a model is traced."""

    def __init__(self) -> None:
        self._passes: list[OperationRecorder] = []

    def __call__(self, inputs: Any, *arguments: Any, **options: Any) -> OperationRecorder:
        """As :class:`OperationRecorder`."""
        self._passes.append(OperationRecorder(inputs, *arguments, **options))
        return self._passes[-1]

    def recording(self) -> Recording:
        """The recording of both passes.

        Raises:
            NotRepeatable: as of :class:`Recording`.
        """
        return Recording(*(each.log for each in self._passes))


class Recording:
    """What a model executes for any number of samples, found from a pass with two samples and one with three.

    Args:
        two: the log of the pass with two samples.
        three: of the pass with three, whose steps become those of the recording.

    Attributes:
        steps: the operations; ``None`` in place of those that depend on the weights alone.
        known: the results of these, by number.
        memory: the memory of each tensor.
        tensors: those of the pass with three samples; the first ``inputs`` of them are inputs of the model.
        growth: bytes of each tensor for one sample.
        output: the number of the model's output; -1 if it is no tensor.
        returned: as of :class:`OperationLog`.

    Raises:
        NotRepeatable: if the passes differ in more than the number of samples, if values reached the Python code of the
            model, or if it writes to a tensor that outlasts the pass.
    """

    def __init__(self, two: OperationLog, three: OperationLog) -> None:
        if two.steps is None or three.steps is None:
            raise NotRepeatable(two.why_not or three.why_not)
        if len(two.steps) != len(three.steps) or len(two.sizes) != len(three.sizes):
            raise NotRepeatable("it executes more or fewer operations for two samples than for three")
        self.tensors, self.inputs, self.returned = three.tensors, three.inputs, three.returned
        self.memory = [memory_of(tensor) for tensor in three.tensors]
        self.output = three.output if two.output == three.output else -1
        self.growth = [larger - smaller for larger, smaller in zip(three.sizes, two.sizes, strict=True)]
        self.known: dict[int, Tensor] = {}
        self.steps: list[Step | None] = []
        written = {memory for step in three.steps for memory in self.writes(step)}
        for one, other in zip(two.steps, three.steps, strict=True):
            if (one.op, one.func, one.outputs, one.position) != (other.op, other.func, other.outputs, other.position):
                raise NotRepeatable(f"it executes {in_words(one)} for two samples, {in_words(other)} for three")
            try:
                other.args, other.kwargs = _merged(one.args, other.args), _merged(one.kwargs, other.kwargs)
            except _DiffersError:
                raise NotRepeatable(f"what {in_words(one)} gets depends on more than the samples") from None
            self.steps.append(None if self._fold(other, written) else other)

    def writes(self, step: Step) -> list[int]:
        """The memories that a step writes to."""
        if step.func is None or not step.func._schema.is_mutable:
            return []
        found = []
        for place, argument in enumerate(step.func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = step.args[place] if place < len(step.args) else step.kwargs.get(argument.name)
                for leaf in leaves(value):
                    if isinstance(leaf, Tensor):
                        raise NotRepeatable(f"{in_words(step)} writes to a tensor that outlasts the forward pass")
                    if isinstance(leaf, Slot):
                        found.append(self.memory[leaf.index])
        return found

    def _fold(self, step: Step, written: set[int]) -> bool:
        """Whether a step gives the same in every pass. If it does, its results are kept as known."""
        if step.func is None or step.position >= 0 or not all(number in self.known for number in step.operands):
            return False
        if torch.Tag.nondeterministic_seeded in step.func.tags:
            return False
        if any(type(leaf) is Size for leaf in leaves([step.args, step.kwargs])):
            return False
        memories = {self.memory[number] for number in [*step.tensors, *step.operands]}
        if memories & written:
            return False
        self.known.update((number, self.tensors[number]) for number in step.tensors)
        return True


def _merged(two: Any, three: Any) -> Any:
    """An argument for any number of samples, from what it was for two and for three."""
    if isinstance(two, Tensor) and isinstance(three, Tensor):
        if two is three or (two.shape == three.shape and two.dtype == three.dtype and torch.equal(two, three)):
            return three
        raise _DiffersError
    if type(two) is not type(three):
        raise _DiffersError
    if isinstance(two, list) and len(two) == len(three):
        return [_merged(*pair) for pair in zip(two, three, strict=True)]
    if isinstance(two, dict) and two.keys() == three.keys():
        return {name: _merged(two[name], three[name]) for name in three}
    if two == three:
        return three
    if type(two) is int and 3 * two == 2 * three:
        return Size(three - two)
    raise _DiffersError


def leaves(spec: Any) -> list[Any]:
    """All items of nested lists and dicts, in any order."""
    found, rest = [], [spec]
    while rest:
        item = rest.pop()
        kind = type(item)
        if kind is list:
            rest += item
        elif kind is dict:
            rest += item.values()
        else:
            found.append(item)
    return found


def place(tensor: Tensor) -> Any:
    """Memory, offset, shape, strides and type: two names of the same tensor have all of them in common."""
    if tensor.layout is not torch.strided:
        return memory_of(tensor), tensor.layout, tuple(tensor.shape), (), tensor.dtype
    return memory_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
