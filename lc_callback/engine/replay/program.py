"""Recorded operations, ready to be replayed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.max_pools import MAX_POOLS, winners_of
from lc_callback.engine.network.operations import Kink, kinks_of
from lc_callback.engine.replay.passes import folded, mark_dead, needed, specialise_kernels, with_steps_to_output
from lc_callback.engine.replay.recording import EMIT, MOVE, OUTPUT, NotRepeatable, Recording, Size, Slot, Step, leaves

__all__ = ["ReplayProgram"]


class ReplayProgram:
    """The steps of a recording that lead to a pre-activation, ready to be replayed.

    Args:
        recording: what the model executes.
        entry: the number of a tensor that is given instead of computed, and how many steps come before it.
        with_output: also take the steps that lead to the output, if they compute no larger tensor than the others.

    Attributes:
        steps: what is executed.
        with_output: whether the steps lead to the output.

    Raises:
        NotRepeatable: if other steps read the inputs.
    """

    def __init__(
        self, recording: Recording, entry: tuple[int, int] | None = None, *, with_output: bool = False
    ) -> None:
        self._values: list[Any] = [recording.known.get(number) for number in range(len(recording.tensors))]
        steps = list(recording.steps)
        if entry is not None:
            steps.insert(entry[1], Step(MOVE, None, [None], {}, outputs=[entry[0]]))
        # Copies, for another program may need more of them.
        own = [copy.copy(step) for step in steps if step is not None]
        given = None if entry is None else recording.memory[entry[0]]
        self.steps = needed(own, recording, given)
        if entry is not None and _reads_inputs(self.steps, recording):
            raise NotRepeatable("the inputs are read again")
        #: Whether steps write to memory that several tensors share.
        self.writes_to_views = _writes_to_views(self.steps, recording)
        self.with_output = False
        if with_output and recording.output >= 0:
            largest = max(_sizes(self.steps, recording))
            longer = with_steps_to_output(own, self.steps, recording, given)
            larger, again = (
                max(_sizes(longer, recording)) > largest,
                entry is not None and _reads_inputs(longer, recording),
            )
            self.with_output = not larger and not again and not _writes_to_views(longer, recording)
            self.steps = longer if self.with_output else _to_units(longer)
        self.steps = folded(self.steps, recording)
        mark_dead(self.steps, recording)
        for step in self.steps:
            specialise_kernels(step, recording, views=not self.writes_to_views)
            step.reads = _reads(step)

        self._steps_to_units = _to_units(self.steps)
        sizes = _sizes(self._steps_to_units, recording)
        #: For each sample, of the largest tensor that is computed, and in the mean.
        self.bytes_per_sample, self.mean_bytes = max(sizes), sum(sizes) / len(sizes)

    def steps_to(self, output: bool) -> list[Step]:
        """What is executed: all steps to the output, or only those to pre-activations."""
        return self.steps if output and self.with_output else self._steps_to_units

    def start(self, inputs: list[Any]) -> list[Any]:
        """The values known before the first step, by number; ``inputs`` are those of the model."""
        values = self._values.copy()
        values[: len(inputs)] = inputs
        return values

    def arguments(self, step: Step, values: list[Any], samples: int) -> tuple[list[Any], dict[str, Any]]:
        """The arguments of a step; ``values`` are the results of the steps before, by number."""
        if step.reads is not None:
            args = step.args.copy()
            for place, number in step.reads:
                args[place] = values[number]
            return args, step.kwargs

        def fill(spec: Any) -> Any:
            kind = type(spec)
            if kind is Slot:
                return values[spec.index]
            if kind is Size:
                return spec.rate * samples
            return [*map(fill, spec)] if kind is list else spec

        return fill(step.args), {name: fill(value) for name, value in step.kwargs.items()}

    def run(
        self,
        inputs: Any,
        samples: int,
        move: Callable[[Any], Tensor],
        receive: Callable[[int, list[Kink]], None],
        execute: Callable[[str, Any, Any, Any], Any],
        max_pool: bool | str,
        *,
        with_output: bool = False,
    ) -> None:
        """Execute the steps to pre-activations, and to the output.

        Args:
            inputs: the inputs of the model.
            samples: their number.
            move: called with the output of the module at which the samples are moved, or with ``None`` if the program
                does not compute that output.
            receive: called with the number of each pre-activation, and its kinks.
            execute: called for each operation that may have a kink.
            max_pool: as for :class:`Recorder`.
            with_output: whether the output is needed too.
        """
        values = self.start([leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)])
        for step in self.steps_to(with_output):
            args, kwargs = self.arguments(step, values, samples)
            met, pools = step.position >= 0, step.op in MAX_POOLS
            result: Any = ()
            if step.op == MOVE:
                result = move(*args)
            elif step.op in (EMIT, OUTPUT):
                receive(step.position, [(args[0], 0.0)])
            elif met and not pools:
                receive(step.position, kinks_of(step.op, args, kwargs))
                if not step.unused:
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
            del args, kwargs, result  # so that dead tensors are freed here
            for number in step.dead_after:
                values[number] = None


def _sizes(steps: list[Step], recording: Recording) -> list[int]:
    """Bytes for a sample of each tensor that is computed; a single 1 if none is."""
    computed = {number for step in steps if not step.unused for number in step.tensors}
    return [recording.growth[number] for number in computed] or [1]


def _to_units(steps: list[Step]) -> list[Step]:
    """The steps that lead to pre-activations."""
    units = [step for step in steps if step.position >= 0 or not step.for_output]
    return [replace(step, unused=True) if step.for_output else step for step in units]


def _reads_inputs(steps: list[Step], recording: Recording) -> bool:
    return any(number < recording.inputs for step in steps for number in step.operands)


def _writes_to_views(steps: list[Step], recording: Recording) -> bool:
    written = {memory for step in steps for memory in recording.writes(step)}
    return any(recording.memory.count(memory) > 1 for memory in written)


def _reads(step: Step) -> list[tuple[int, int]] | None:
    """Place and number of each argument that is a tensor; ``None`` if a list or a keyword holds tensors too."""
    others = [argument for argument in step.args if type(argument) is not Slot]
    if any(type(leaf) in (Slot, Size) for leaf in leaves([others, step.kwargs])):
        return None
    return [(place, argument.index) for place, argument in enumerate(step.args) if type(argument) is Slot]
