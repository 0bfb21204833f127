"""The operations of a model written down, so that they can be executed again without its Python code."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.max_pools import WINNERS, winners_of
from lc_callback.engine.network.operations import Knot, knots_of
from lc_callback.engine.network.recorder import Site, Tracer, bends, memory_of
from lc_callback.engine.replay import cpu_kernels

__all__ = ["HAND_OVER", "MOVE", "Script", "Tape", "Taper"]

# What gives values to the model's Python code, or has a shape that depends on them.
_UNREPEATABLE = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}


class NotRepeatable(Exception):  # noqa: N818 (no error: the model runs as it is)
    """What was executed depends on more than the samples."""


@dataclass(frozen=True)
class _Slot:
    """The tensor of this number."""

    index: int


@dataclass(frozen=True)
class _Size:
    """An integer that is proportional to the number of samples."""

    rate: int


@dataclass
class _Step:
    """An operation; without one, a tensor that is handed over, or the place where the samples are moved."""

    op: str
    func: Any
    args: Any
    kwargs: Any
    outputs: list[int] = field(default_factory=list)  # -1: no tensor
    position: int = -1  # of what is handed over
    spent: list[int] = field(default_factory=list)  # tensors that nothing reads later
    overwrites: Any = None  # the operation's in-place form, where nothing reads its operand later
    idle: bool = False  # handed over, but nothing needs the result
    reads: list[tuple[int, int]] | None = None  # places among the arguments and tensors, if these are all to fill in

    @property
    def tensors(self) -> list[int]:
        """What it returns."""
        return [number for number in self.outputs if number >= 0]

    @functools.cached_property
    def operands(self) -> list[int]:
        """What it reads."""
        return [leaf.index for leaf in _leaves([self.args, self.kwargs]) if type(leaf) is _Slot]


MOVE, HAND_OVER = "(move)", "(hand over)"
_PLAIN = {int, float, bool, type(None)}
_PAIRS = {"add", "sub", "mul", "div"}  # of which a pre-activation may be made


class Taper(Tracer):
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
        self.steps: list[_Step] | None = []
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
            step = _Step(MOVE, None, [self._spec(output)], {}, [self._number(moved)])
            self.steps.append(step)
        return moved

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        affine = self.steps is not None and not self._bent and id(module) in self._paths
        if affine and isinstance(output, Tensor) and output.is_floating_point():
            self.returned.setdefault(module, (self._number(output), len(self.steps or ())))
        return super()._leave_module(module, args, output)

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        self._bent = self._bent or bends(op)
        repeatable = func.namespace == "aten" and not _UNREPEATABLE & set(func.tags)
        if self.steps is None or not repeatable:
            self.steps = None
            return super()._execute(op, func, args, kwargs)
        step = _Step(op, func, self._spec(args), self._spec(kwargs), position=self._met)
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
            self.steps.append(_Step(HAND_OVER, None, [self._spec(knots[0][0])], {}, position=before))
        elif site.op in WINNERS:
            self.steps[-1].position = before
        else:
            self._met = before

    def _number(self, tensor: Tensor) -> int:
        key = _place(tensor)
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
            number = self._numbers.get(_place(value))
            return value if number is None else _Slot(number)
        if isinstance(value, (list, tuple)):
            return [item if type(item) in _PLAIN else self._spec(item) for item in value]
        return {name: self._spec(item) for name, item in value.items()} if isinstance(value, dict) else value


class Script:
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
        returned: as of :class:`Taper`.

    Raises:
        NotRepeatable: if the passes differ in more than the number of samples, if values reached the model's Python
            code, or if it writes to what outlasts the pass.
    """

    def __init__(self, two: Taper, three: Taper) -> None:
        if two.steps is None or three.steps is None:
            raise NotRepeatable
        if len(two.steps) != len(three.steps) or len(two.sizes) != len(three.sizes):
            raise NotRepeatable
        self.tensors, self.inputs, self.returned = three.tensors, three.inputs, three.returned
        self.memory = [memory_of(tensor) for tensor in three.tensors]
        self.growth = [larger - smaller for larger, smaller in zip(three.sizes, two.sizes, strict=True)]
        self.known: dict[int, Tensor] = {}
        self.steps: list[_Step | None] = []
        written = {memory for step in three.steps for memory in self.writes(step)}
        for one, other in zip(two.steps, three.steps, strict=True):
            if (one.op, one.func, one.outputs, one.position) != (other.op, other.func, other.outputs, other.position):
                raise NotRepeatable
            step = replace(other, args=_merged(one.args, other.args), kwargs=_merged(one.kwargs, other.kwargs))
            self.steps.append(None if self._fold(step, written) else step)

    def writes(self, step: _Step) -> list[int]:
        """The memory that a step writes to."""
        if step.func is None or not step.func._schema.is_mutable:
            return []
        found = []
        for place, argument in enumerate(step.func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                value = step.args[place] if place < len(step.args) else step.kwargs.get(argument.name)
                for leaf in _leaves(value):
                    if isinstance(leaf, Tensor):
                        raise NotRepeatable
                    if isinstance(leaf, _Slot):
                        found.append(self.memory[leaf.index])
        return found

    def _fold(self, step: _Step, written: set[int]) -> bool:
        """Whether a step is the same in each pass; then its results are known from now on."""
        if step.func is None or step.position >= 0 or not all(number in self.known for number in step.operands):
            return False
        if torch.Tag.nondeterministic_seeded in step.func.tags:
            return False
        if any(type(leaf) is _Size for leaf in _leaves([step.args, step.kwargs])):
            return False
        memories = {self.memory[number] for number in [*step.tensors, *step.operands]}
        if memories & written:
            return False
        self.known.update((number, self.tensors[number]) for number in step.tensors)
        return True


class Tape:
    """Those steps of a script that lead to a pre-activation, ready to be executed.

    Args:
        script: what the model executes.
        entry: number of a tensor that is given instead of computed, and how many steps there are before it is used.

    Raises:
        NotRepeatable: if the inputs are read besides what is given.
    """

    def __init__(self, script: Script, entry: tuple[int, int] | None = None) -> None:
        self._values: list[Any] = [script.known.get(number) for number in range(len(script.tensors))]
        steps = list(script.steps)
        if entry is not None:
            steps.insert(entry[1], _Step(MOVE, None, [None], {}, [entry[0]]))
        # Copies, for another tape may need more of them.
        own = [copy.copy(step) for step in steps if step is not None]
        self.steps = _needed(own, script, None if entry is None else script.memory[entry[0]])
        read = {number for step in self.steps for number in step.operands}
        if entry is not None and any(number in read for number in range(script.inputs)):
            raise NotRepeatable
        written = {memory for step in self.steps for memory in script.writes(step)}
        #: Whether what is written to has several names.
        self.writes_to_views = any(script.memory.count(memory) > 1 for memory in written)
        self.steps = _folded(self.steps, script)
        _mark_spent(self.steps, script)
        for step in self.steps:
            _quicken(step, script, views=not self.writes_to_views)
            step.reads = _reads(step)
        kept = {number for step in self.steps if not step.idle for number in step.tensors}
        sizes = [script.growth[number] for number in kept]
        #: Of the largest tensor that is computed, and in the mean.
        self.bytes_per_sample, self.mean_bytes = max(sizes, default=1), sum(sizes) / max(1, len(sizes))

    def start(self, inputs: list[Any]) -> list[Any]:
        """What is known before the first step, by number; ``inputs`` are the model's."""
        values = self._values.copy()
        values[: len(inputs)] = inputs
        return values

    def arguments(self, step: _Step, values: list[Any], samples: int) -> tuple[list[Any], dict[str, Any]]:
        """Of a step, given what came before by its number."""
        if step.reads is not None:
            args = step.args.copy()
            for place, number in step.reads:
                args[place] = values[number]
            return args, step.kwargs

        def fill(spec: Any) -> Any:
            kind = type(spec)
            if kind is _Slot:
                return values[spec.index]
            if kind is _Size:
                return spec.rate * samples
            return [*map(fill, spec)] if kind is list else spec

        return fill(step.args), {name: fill(value) for name, value in step.kwargs.items()}

    def run(
        self,
        inputs: Any,
        samples: int,
        move: Callable[[Any], Tensor],
        receive: Callable[[int, list[Knot]], None],
        execute: Callable[[str, Any, Any, Any], Any],
        max_pool: bool | str,
    ) -> None:
        """Execute what leads to a pre-activation.

        Args:
            inputs: what the model would be called with.
            samples: their number.
            move: called with the output of the module where the samples are moved; ``None`` if it is not needed.
            receive: called with the number of each pre-activation, and its knots.
            execute: called for each operation that may have a kink.
            max_pool: as for :class:`Recorder`.
        """
        values = self.start([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)])
        for step in self.steps:
            args, kwargs = self.arguments(step, values, samples)
            met, pools = step.position >= 0, step.op in WINNERS
            result: Any = ()
            if step.op == MOVE:
                result = move(*args)
            elif step.op == HAND_OVER:
                receive(step.position, [(args[0], 0.0)])
            elif met and not pools:
                receive(step.position, knots_of(step.op, args, kwargs))
                if not step.idle:
                    result = execute(step.op, step.overwrites or step.func, args, kwargs)
            elif pools:
                result = execute(step.op, step.func, args, kwargs)
                if met:
                    receive(step.position, [(w, None) for w in winners_of(step.op, result, args, kwargs, max_pool)])
            else:
                result = (step.overwrites or step.func)(*args, **kwargs)
            if isinstance(result, Tensor):
                values[step.outputs[0]] = result
            else:
                for number, tensor in zip(step.outputs, result, strict=False):
                    if number >= 0:
                        values[number] = tensor
            del args, kwargs, result  # here the last of what is not needed any more goes
            for number in step.spent:
                values[number] = None


def _reads(step: _Step) -> list[tuple[int, int]] | None:
    """Which arguments are tensors to fill in, if nothing else is."""
    others = [argument for argument in step.args if type(argument) is not _Slot]
    if any(type(leaf) in (_Slot, _Size) for leaf in _leaves([others, step.kwargs])):
        return None
    return [(place, argument.index) for place, argument in enumerate(step.args) if type(argument) is _Slot]


def _needed(steps: list[_Step], script: Script, given: int | None) -> list[_Step]:
    """The steps that lead to something that is handed over, if a memory is given instead of computed."""
    needed: set[int] = set()
    kept = []
    for step in reversed(steps):
        results = {script.memory[number] for number in step.tensors}
        leads_on = bool((results | set(script.writes(step))) & needed)
        if step.position < 0 and not leads_on:
            continue
        step.idle = not leads_on and step.op not in WINNERS
        kept.append(step)
        needed.update(script.memory[number] for number in step.operands)
        if step.op == MOVE and given is not None:
            needed.discard(given)
    return kept[::-1]


def _folded(steps: list[_Step], script: Script) -> list[_Step]:
    """With those batch normalisations that only scale what a convolution returns as a part of it."""
    readers = Counter(script.memory[number] for step in steps for number in step.operands)
    made_by = {step.outputs[0]: step for step in steps if step.op == "convolution"}
    kept = []
    for step in steps:
        operand = step.args[0] if step.op == "native_batch_norm" else None
        if isinstance(operand, _Slot) and readers[script.memory[operand.index]] == 1 and step.args[5] is False:
            convolution = made_by.get(operand.index)
            if convolution is not None and _fold_into(convolution, step, script):
                continue
        kept.append(step)
    return kept


def _fold_into(convolution: _Step, norm: _Step, script: Script) -> bool:
    """Whether weights and statistics are known, and the convolution does both from now on."""
    constants = [_constant(spec, script) for spec in (*convolution.args[1:3], *norm.args[1:5])]
    if _Slot in map(type, constants) or convolution.args[6]:
        return False
    weight, bias, scale, shift, mean, variance = constants
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.args[7], scale, shift)
    convolution.args = [convolution.args[0], *(part.detach() for part in fused), *convolution.args[3:]]
    convolution.outputs = norm.outputs[:1]
    return True


def _quicken(step: _Step, script: Script, views: bool) -> None:
    """A product with known weights by other means, where these are faster.

    It may be laid out otherwise: where nothing is written to ``views``, these may be copies.
    """
    if views and step.op == "view" and step.func is torch.ops.aten.view.default:
        step.func = torch.ops.aten.reshape.default
    if step.op == "addmm" and len(step.args) == 3 and not step.kwargs:
        weight = _constant(step.args[2], script)
        if isinstance(weight, Tensor) and weight.device.type == "cpu" and weight.dtype is torch.float32:
            step.func = _biased_product
    elif step.op == "convolution" and isinstance(step.args[0], _Slot) and not step.args[6]:
        weight = _constant(step.args[1], script)
        if cpu_kernels.is_used(weight) and weight.ndim == 4:
            stride, padding, dilation, groups = (step.args[place] for place in (3, 4, 5, 8))
            layout = cpu_kernels.packed(weight, stride, padding, dilation, groups)
            step.func, step.args = cpu_kernels.convolution, [step.args[0], layout, *step.args[2:]]


def _biased_product(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight).add_(bias)  # addmm copies the bias first


def _constant(spec: Any, script: Script) -> Any:
    """What an argument is in every pass; a slot where this is not known."""
    return script.known.get(spec.index, spec) if isinstance(spec, _Slot) else spec


def _mark_spent(steps: list[_Step], script: Script) -> None:
    """Note after which step each tensor is not needed any more, and which step may overwrite its operand."""
    in_memory: dict[int, list[int]] = {}
    for number, memory in enumerate(script.memory):
        in_memory.setdefault(memory, []).append(number)
    kept = {script.memory[number] for number in [*range(script.inputs), *script.known]}
    later: set[int] = set()
    for step in reversed(steps):
        read = {script.memory[number] for number in [*step.tensors, *step.operands]}
        step.spent = [number for memory in read - later - kept for number in in_memory[memory]]
        if step.op in _PAIRS or (step.op not in (*WINNERS, HAND_OVER) and step.position >= 0):
            step.overwrites = _overwriting(step, script, later | kept)
        later |= read


def _overwriting(step: _Step, script: Script, read: set[int]) -> Any:
    """The in-place form of a step, if nothing else reads its first operand: neither later nor in this step."""
    first, tensors = step.args[0], script.tensors
    if not isinstance(first, _Slot) or step.operands.count(first.index) > 1:
        return None
    operand, result = tensors[first.index], tensors[step.outputs[0]]
    others = [script.memory[number] for number in step.operands if number != first.index]
    if script.memory[first.index] in (*read, *others) or _place(operand)[2:] != _place(result)[2:]:
        return None
    return _in_place(step.func) if torch.ops.aten.is_non_overlapping_and_dense(operand) else None


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
        return _Size(three - two)
    raise NotRepeatable


def _leaves(spec: Any) -> list[Any]:
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


def _place(tensor: Tensor) -> Any:
    if tensor.layout is not torch.strided:
        return memory_of(tensor), tensor.layout, tuple(tensor.shape), (), tensor.dtype
    return memory_of(tensor), tensor.storage_offset(), tuple(tensor.shape), tensor.stride(), tensor.dtype


def _in_place(func: Any) -> Any:
    """The form of an operation that overwrites its first operand, if there is one."""
    packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::") + "_", None)
    form = getattr(packet, func._overloadname, None)
    names = [argument.name for argument in func._schema.arguments]
    return form if form is not None and [a.name for a in form._schema.arguments] == names else None
