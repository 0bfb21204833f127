"""Passes over recorded operations before they are replayed: fewer of them, faster ones, less memory."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.fusion import fuse_conv_bn_weights

from lc_callback.engine.network.layers import OUTPUT_PLACE
from lc_callback.engine.network.max_pools import MAX_POOLS
from lc_callback.engine.replay import cpu_kernels
from lc_callback.engine.replay.recording import EMIT, MOVE, OUTPUT, Recording, Slot, Step, place

__all__ = ["folded", "mark_dead", "needed", "specialise_kernels", "with_steps_to_output"]

_PAIRS = {"add", "sub", "mul", "div"}  # operations of two tensors that may give a pre-activation


def needed(steps: list[Step], recording: Recording, given: int | None) -> list[Step]:
    """The steps that lead to an emitted tensor; ``given`` is the memory of a tensor that is given, not computed."""
    wanted: set[int] = set()
    kept = []
    for step in reversed(steps):
        results = {recording.memory[number] for number in step.tensors}
        leads_on = bool((results | set(recording.writes(step))) & wanted)
        if step.position < 0 and not leads_on and step.op != OUTPUT:
            continue
        step.unused = not leads_on and step.op not in (*MAX_POOLS, OUTPUT)
        kept.append(step)
        wanted.update(recording.memory[number] for number in step.operands)
        if step.op == MOVE and given is not None:
            wanted.discard(given)
    return kept[::-1]


def with_steps_to_output(
    steps: list[Step], to_units: list[Step], recording: Recording, given: int | None
) -> list[Step]:
    """The steps to emitted tensors, which are ``to_units``, and those to the output."""
    before = {id(step): step.unused for step in to_units}
    end = Step(OUTPUT, None, [Slot(recording.output)], {}, position=OUTPUT_PLACE)
    longer = needed([*steps, end], recording, given)
    for step in longer:
        step.for_output = before.get(id(step), True) and not step.unused
    return longer


def folded(steps: list[Step], recording: Recording) -> list[Step]:
    """The steps, with each batch normalisation made a part of its convolution, if nothing else reads that one."""
    readers = Counter(recording.memory[number] for step in steps for number in step.operands)
    made_by = {step.outputs[0]: step for step in steps if step.op == "convolution"}
    kept = []
    for step in steps:
        operand = step.args[0] if step.op == "native_batch_norm" else None
        if isinstance(operand, Slot) and readers[recording.memory[operand.index]] == 1 and step.args[5] is False:
            convolution = made_by.get(operand.index)
            if convolution is not None and _fold_into(convolution, step, recording):
                continue
        kept.append(step)
    return kept


def _fold_into(convolution: Step, norm: Step, recording: Recording) -> bool:
    """Fold a normalisation into its convolution if weights and statistics are known. Returns whether they are."""
    constants = [_constant(spec, recording) for spec in (*convolution.args[1:3], *norm.args[1:5])]
    if Slot in map(type, constants) or convolution.args[6]:
        return False
    weight, bias, scale, shift, mean, variance = constants
    fused = fuse_conv_bn_weights(weight, bias, mean, variance, norm.args[7], scale, shift)
    convolution.args = [convolution.args[0], *(part.detach() for part in fused), *convolution.args[3:]]
    convolution.outputs = norm.outputs[:1]
    return True


def specialise_kernels(step: Step, recording: Recording, views: bool) -> None:
    """Replace a product with known weights by a faster kernel, if there is one.

    The result of the faster kernel may have another layout, in which a view may need a copy. ``views`` says that
    nothing writes to views, so that they may become copies.
    """
    if views and step.op == "view" and step.func is torch.ops.aten.view.default:
        step.func = torch.ops.aten.reshape.default
    if step.op == "squeeze" and not step.kwargs and not step.func._schema.is_mutable:
        _name_axes(step, recording)
    if step.op == "addmm" and len(step.args) == 3 and not step.kwargs:
        weight = _constant(step.args[2], recording)
        if isinstance(weight, Tensor) and weight.device.type == "cpu" and weight.dtype is torch.float32:
            step.func = _biased_product
    elif step.op == "convolution" and isinstance(step.args[0], Slot) and not step.args[6]:
        weight = _constant(step.args[1], recording)
        if cpu_kernels.is_used(weight) and weight.ndim == 4:
            stride, padding, dilation, groups = (step.args[place] for place in (3, 4, 5, 8))
            layout = cpu_kernels.packed(weight, stride, padding, dilation, groups)
            step.func, step.args = cpu_kernels.convolution, [step.args[0], layout, *step.args[2:]]


def _name_axes(step: Step, recording: Recording) -> None:
    """Squeeze the axes that are squeezed for three samples, and not that of the samples if there is only one."""
    operand = step.args[0]
    shape = (recording.tensors[operand.index] if isinstance(operand, Slot) else operand).shape
    given = step.args[1] if len(step.args) > 1 else [*range(len(shape))]
    axes = [axis for axis in (given if isinstance(given, list) else [given]) if shape[axis] == 1]
    step.func, step.args = torch.ops.aten.squeeze.dims, [operand, axes]


def _biased_product(bias: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    return torch.mm(x, weight).add_(bias)  # faster: addmm copies the bias first


def _constant(spec: Any, recording: Recording) -> Any:
    """The value of an argument that is the same in every pass, else its slot."""
    return recording.known.get(spec.index, spec) if isinstance(spec, Slot) else spec


def mark_dead(steps: list[Step], recording: Recording) -> None:
    """Note for each step which tensors are dead after it, and whether it may overwrite its operand."""
    in_memory: dict[int, list[int]] = {}
    for number, memory in enumerate(recording.memory):
        in_memory.setdefault(memory, []).append(number)
    kept = {recording.memory[number] for number in [*range(recording.inputs), *recording.known]}
    later: set[int] = set()
    for step in reversed(steps):
        read = {recording.memory[number] for number in [*step.tensors, *step.operands]}
        step.dead_after = [number for memory in read - later - kept for number in in_memory[memory]]
        if step.op in _PAIRS or (step.op not in (*MAX_POOLS, EMIT) and step.position >= 0):
            step.overwrites = _overwriting(step, recording, later | kept)
        later |= read


def _overwriting(step: Step, recording: Recording, read: set[int]) -> Any:
    """The in-place form of a step, if nothing else reads its first operand: neither later nor in this step."""
    first, tensors = step.args[0], recording.tensors
    if not isinstance(first, Slot) or step.operands.count(first.index) > 1:
        return None
    operand, result = tensors[first.index], tensors[step.outputs[0]]
    others = [recording.memory[number] for number in step.operands if number != first.index]
    if recording.memory[first.index] in (*read, *others) or place(operand)[2:] != place(result)[2:]:
        return None
    return _in_place(step.func) if torch.ops.aten.is_non_overlapping_and_dense(operand) else None


def _in_place(func: Any) -> Any:
    """The in-place form of an operation, if there is one."""
    packet = getattr(torch.ops.aten, func._schema.name.removeprefix("aten::") + "_", None)
    form = getattr(packet, func._overloadname, None)
    names = [argument.name for argument in func._schema.arguments]
    return form if form is not None and [a.name for a in form._schema.arguments] == names else None
