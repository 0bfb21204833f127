"""The operations of a model, recorded, so that they can be executed again without its Python code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import memory_of
from lc_callback.engine.network.max_pools import WINNERS
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.recorder import Site, is_nonlinear
from lc_callback.engine.network.tracer import Tracer

__all__ = ["EMIT", "MOVE", "NotRepeatable", "OperationRecorder", "Recording", "Size", "Slot", "Step", "leaves", "place"]

# What gives values to the model's Python code, or has a shape that depends on them.
_UNREPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NotRepeatable(Exception):  # noqa: N818 (no error: the model runs as it is)
    """What was executed depends on more than the samples."""


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
    """An operation; without one, a tensor that is handed over, or the place where the samples are moved."""

    op: str
    func: Any
    args: Any
    kwargs: Any
    outputs: list[int] = field(default_factory=list)  # -1: no tensor
    position: int = -1  # of what is handed over
    dead_after: list[int] = field(default_factory=list)  # tensors that nothing reads later
    overwrites: Any = None  # the operation's in-place form, where nothing reads its operand later
    unused: bool = False  # handed over, but nothing needs the result
    reads: list[tuple[int, int]] | None = None  # places among the arguments and tensors, if these are all to fill in

    @property
    def tensors(self) -> list[int]:
        """What it returns."""
        return [number for number in self.outputs if number >= 0]

    @functools.cached_property
    def operands(self) -> list[int]:
        """What it reads."""
        return [leaf.index for leaf in leaves([self.args, self.kwargs]) if type(leaf) is Slot]


MOVE, EMIT = "(move)", "(emit)"
_PLAIN = {int, float, bool, type(None)}


class OperationRecorder(Tracer):
    """A tracer that also writes down each operation.

    Args:
        inputs: what the model is going to be called with.
        arguments: as for :class:`Tracer`, and so is ``recording``.

    Attributes:
        steps: the operations; ``None`` if not all that the model does can be told from them.
        tensors: by number; kept alive until :meth:`let_go`, so that no memory is used twice.
        sizes: of the tensors, in bytes.
        inputs: how many of them are the model's inputs.
        returned: what each module returned at its first call, by its number, and how many steps there were before; as
            far as nothing had bent.
    """

    def __init__(self, inputs: Any, *arguments: Any, **recording: Any) -> None:
        super().__init__(*arguments, **recording)
        self.steps: list[Step] | None = []
        self.tensors: list[Tensor] = []
        self.sizes: list[int] = []
        self.returned: dict[nn.Module, tuple[int, int]] = {}
        self._numbers: dict[Any, int] = {}
        self._met, self._bent = -1, False
        for leaf in tree_leaves(inputs):
            if isinstance(leaf, Tensor):
                self._number(leaf)
        self.inputs = len(self.tensors)
        move = self._move
        if move is not None:
            self._move = lambda output: self._moved(move, output)

    def _moved(self, move: Callable[[Tensor], Tensor], output: Tensor) -> Tensor:
        with _disable_current_modes():  # what moves the samples is no part of the model
            moved = move(output)
        if self.steps is not None:
            step = Step(MOVE, None, [self._spec(output)], {}, [self._number(moved)])
            self.steps.append(step)
        return moved

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        affine = self.steps is not None and not self._bent and id(module) in self._paths
        if affine and isinstance(output, Tensor) and output.is_floating_point():
            self.returned.setdefault(module, (self._number(output), len(self.steps or ())))
        return super()._leave_module(module, args, output)

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        self._bent = self._bent or is_nonlinear(op)
        repeatable = func.namespace == "aten" and not _UNREPEATABLE & set(func.tags)
        if self.steps is None or not repeatable:
            self.steps = None
            return super()._execute(op, func, args, kwargs)
        step = Step(op, func, self._spec(args), self._spec(kwargs), position=self._met)
        self._met = -1
        result = super()._execute(op, func, args, kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            step.outputs.append(self._number(tensor) if isinstance(tensor, Tensor) else -1)
        self.steps.append(step)
        return result

    def _hand_over(self, site: Site, knots: list[Knot]) -> None:
        before = self.handed_over
        super()._hand_over(site, knots)
        if self.handed_over == before or self.steps is None:
            return
        if self._outputs_of is not None:
            self.steps.append(Step(EMIT, None, [self._spec(knots[0][0])], {}, position=before))
        elif site.op in WINNERS:
            self.steps[-1].position = before
        else:
            self._met = before

    def _number(self, tensor: Tensor) -> int:
        key = place(tensor)
        if key not in self._numbers:
            self._numbers[key] = len(self.tensors)
            self.tensors.append(tensor)
            self.sizes.append(tensor.numel() * tensor.element_size())
        return self._numbers[key]

    def let_go(self) -> None:
        """Of the tensors. What was written down can still be compared with another pass."""
        self.tensors.clear()

    def _spec(self, value: Any) -> Any:
        if type(value) in _PLAIN:
            return value
        if isinstance(value, Tensor):
            number = self._numbers.get(place(value))
            return value if number is None else Slot(number)
        if isinstance(value, (list, tuple)):
            return [item if type(item) in _PLAIN else self._spec(item) for item in value]
        return {name: self._spec(item) for name, item in value.items()} if isinstance(value, dict) else value


class Recording:
    """What a model was seen to execute with two samples, and then with three, for any number of samples.

    Args:
        two: the recorder of the pass with two samples.
        three: of the pass with three.

    Attributes:
        steps: the operations; ``None`` in place of those that depend on the weights alone.
        known: the results of these, by number.
        memory: in which each tensor is.
        tensors: of the pass with three samples, of which the first ``inputs`` are the model's.
        growth: bytes of each tensor for a sample.
        returned: as of :class:`OperationRecorder`.

    Raises:
        NotRepeatable: if the passes differ in more than the number of samples, if values reached the model's Python
            code, or if it writes to what outlasts the pass.
    """

    def __init__(self, two: OperationRecorder, three: OperationRecorder) -> None:
        if two.steps is None or three.steps is None:
            raise NotRepeatable
        if len(two.steps) != len(three.steps) or len(two.sizes) != len(three.sizes):
            raise NotRepeatable
        self.tensors, self.inputs, self.returned = three.tensors, three.inputs, three.returned
        self.memory = [memory_of(tensor) for tensor in three.tensors]
        self.growth = [larger - smaller for larger, smaller in zip(three.sizes, two.sizes, strict=True)]
        self.known: dict[int, Tensor] = {}
        self.steps: list[Step | None] = []
        written = {memory for step in three.steps for memory in self.writes(step)}
        for one, other in zip(two.steps, three.steps, strict=True):
            if (one.op, one.func, one.outputs, one.position) != (other.op, other.func, other.outputs, other.position):
                raise NotRepeatable
            step = replace(other, args=_merged(one.args, other.args), kwargs=_merged(one.kwargs, other.kwargs))
            self.steps.append(None if self._fold(step, written) else step)

    def writes(self, step: Step) -> list[int]:
        """The memory that a step writes to."""
        if step.func is None or not step.func._schema.is_mutable:
            return []
        found = []
        for place, argument in enumerate(step.func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = step.args[place] if place < len(step.args) else step.kwargs.get(argument.name)
                for leaf in leaves(value):
                    if isinstance(leaf, Tensor):
                        raise NotRepeatable
                    if isinstance(leaf, Slot):
                        found.append(self.memory[leaf.index])
        return found

    def _fold(self, step: Step, written: set[int]) -> bool:
        """Whether a step is the same in each pass; then its results are known from now on."""
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
    """What holds for two samples and for three."""
    if isinstance(two, Tensor) and isinstance(three, Tensor):
        if two is three or (two.shape == three.shape and two.dtype == three.dtype and torch.equal(two, three)):
            return three
        raise NotRepeatable
    if type(two) is not type(three):
        raise NotRepeatable
    if isinstance(two, list) and len(two) == len(three):
        return [_merged(*pair) for pair in zip(two, three, strict=True)]
    if isinstance(two, dict) and two.keys() == three.keys():
        return {name: _merged(two[name], three[name]) for name in three}
    if two == three:
        return three
    if type(two) is int and 3 * two == 2 * three:
        return Size(three - two)
    raise NotRepeatable


def leaves(spec: Any) -> list[Any]:
    """What is not nested, in any order."""
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
    """Memory, offset, shape, strides and type: what two names of the same tensor have in common."""
    if tensor.layout is not torch.strided:
        return memory_of(tensor), tensor.layout, tuple(tensor.shape), (), tensor.dtype
    return memory_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype
