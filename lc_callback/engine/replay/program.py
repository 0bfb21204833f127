"""Recorded operations, ready to be repeated."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.max_pools import WINNERS, winners_of
from lc_callback.engine.network.operations import Knot, knots_of
from lc_callback.engine.replay.passes import folded, mark_dead, needed, specialise_kernels
from lc_callback.engine.replay.recording import EMIT, MOVE, NotRepeatable, Recording, Size, Slot, Step, leaves

__all__ = ["ReplayProgram"]


class ReplayProgram:
    """Those steps of a recording that lead to a pre-activation, ready to be executed.

    Args:
        recording: what the model executes.
        entry: number of a tensor that is given instead of computed, and how many steps there are before it is used.

    Raises:
        NotRepeatable: if the inputs are read besides what is given.
    """

    def __init__(self, recording: Recording, entry: tuple[int, int] | None = None) -> None:
        self._values: list[Any] = [recording.known.get(number) for number in range(len(recording.tensors))]
        steps = list(recording.steps)
        if entry is not None:
            steps.insert(entry[1], Step(MOVE, None, [None], {}, outputs=[entry[0]]))
        # Copies, for another program may need more of them.
        own = [copy.copy(step) for step in steps if step is not None]
        self.steps = needed(own, recording, None if entry is None else recording.memory[entry[0]])
        read = {number for step in self.steps for number in step.operands}
        if entry is not None and any(number in read for number in range(recording.inputs)):
            raise NotRepeatable("the inputs are read again")
        written = {memory for step in self.steps for memory in recording.writes(step)}
        #: Whether what is written to has several names.
        self.writes_to_views = any(recording.memory.count(memory) > 1 for memory in written)
        self.steps = folded(self.steps, recording)
        mark_dead(self.steps, recording)
        for step in self.steps:
            specialise_kernels(step, recording, views=not self.writes_to_views)
            step.reads = _reads(step)
        kept = {number for step in self.steps if not step.unused for number in step.tensors}
        sizes = [recording.growth[number] for number in kept]
        #: Of the largest tensor that is computed, and in the mean.
        self.bytes_per_sample, self.mean_bytes = max(sizes, default=1), sum(sizes) / max(1, len(sizes))

    def start(self, inputs: list[Any]) -> list[Any]:
        """What is known before the first step, by number; ``inputs`` are the model's."""
        values = self._values.copy()
        values[: len(inputs)] = inputs
        return values

    def arguments(self, step: Step, values: list[Any], samples: int) -> tuple[list[Any], dict[str, Any]]:
        """Of a step, given what came before by its number."""
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
            elif step.op == EMIT:
                receive(step.position, [(args[0], 0.0)])
            elif met and not pools:
                receive(step.position, knots_of(step.op, args, kwargs))
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
            del args, kwargs, result  # here the last of what is not needed any more goes
            for number in step.dead_after:
                values[number] = None


def _reads(step: Step) -> list[tuple[int, int]] | None:
    """Which arguments are tensors to fill in, if nothing else is."""
    others = [argument for argument in step.args if type(argument) is not Slot]
    if any(type(leaf) in (Slot, Size) for leaf in leaves([others, step.kwargs])):
        return None
    return [(place, argument.index) for place, argument in enumerate(step.args) if type(argument) is Slot]
