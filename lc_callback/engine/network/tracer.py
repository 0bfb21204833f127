"""A recorder that also notes what has to be known of a model only once."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lc_callback.engine.network.decisions import Decisions
from lc_callback.engine.network.guards import Guards, is_guard
from lc_callback.engine.network.layout import memories_of, memory_or_none
from lc_callback.engine.network.lineage import Lineage
from lc_callback.engine.network.masked_rows import MaskedRows, choosers, picks
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.network.outlets import Outlets
from lc_callback.engine.network.plateaus import Plateaus
from lc_callback.engine.network.recorder import Recorder, Site
from lc_callback.engine.network.signs import Signs

__all__ = ["Tracer"]

# What gives values to the model's Python code without an operation.
_VALUE_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


class Tracer(Recorder):
    """A recorder that also notes what is needed once: memory, and which non-linearity only shapes the output.

    Attributes:
        reads_values: whether the model's Python code got values of a tensor, as for an ``if``.
        decisions: operations that decide by values.
        output_bytes: of each tensor that an operation returned.
        never_crossing: positions, among what was emitted, of what stays on one side of its kinks: ``-relu(x)``.
        flat_at_kinks: positions of what is flat right at a kink, such as ``hardtanh(hardtanh(x))``.
        masked_rows: pre-activations of rows that were picked by values.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reads_values = False
        self.output_bytes: list[int] = []
        self.decisions = Decisions()
        self.never_crossing: set[int] = set()
        self.flat_at_kinks: set[int] = set()
        self.masked_rows = MaskedRows()
        self._moving: Lineage | None = None  # what comes of what is perturbed
        self._of_inputs: Lineage | None = None  # what comes of any input, or is drawn
        self._outlets, self._signs, self._plateaus = Outlets(), Signs(), Plateaus()
        self._guards, self._is_guard = Guards(), False

    def __enter__(self) -> Tracer:
        self._hooks.enter_context(_ValueReads(self))
        return super().__enter__()

    def watch(self, moving: Any, inputs: Any) -> None:
        """Note decisions only by what comes of ``moving``, and of what is moved on the way; reads by what of inputs."""
        self._moving, self._of_inputs = Lineage(moving), Lineage(inputs)

    def read_values(self, tensors: Any) -> None:
        """Note that the model's Python code gets values of these: constants are the same for all samples."""
        self.reads_values = self.reads_values or self._of_inputs is None or self._of_inputs.has(tensors)

    def unused(self, output: Any) -> set[int]:
        """Positions of what is no layer, when the model has returned this output.

        These are squashing functions that made the output, bounds that only keep a divisor from zero, and maxima of
        which the model takes the index only.
        """
        return self._guards.found(memories_of(output)) | self._outlets.found(output)

    def let_go(self) -> None:
        """Release what is needed only until the next pass."""

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        replaced = super()._leave_module(module, args, output)
        for lineage in (self._moving, self._of_inputs):
            if replaced is not None and lineage is not None:
                lineage.add(replaced)
        return replaced

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        if torch.Tag.data_dependent_output in func.tags:
            self.read_values([args, kwargs])
        result = super()._execute(op, func, args, kwargs)
        read = memories_of([args, kwargs])
        written = [args, kwargs] if result is None and func._schema.is_mutable else result
        if self._of_inputs is not None:
            self._of_inputs.executed(op, read, written, torch.Tag.nondeterministic_seeded in func.tags)
        first = result[0] if isinstance(result, (tuple, list)) and result else result
        memories = [memory_or_none(value) for value in [*args, first]]
        for known in (self._signs, self._plateaus):
            known.executed(op, func, args, kwargs, memories, first)
        # What Python makes of values cannot be followed.
        if self.reads_values or self._moving is None or self._moving.executed(op, read, written):
            self._note(op, func, args, result)
        if self.masked_rows:
            self.masked_rows.passed(op, memories_of(args[:1]), read, memories_of(result), result)
        self._is_guard = is_guard(op, args, kwargs)
        if self._guards:
            self._guards.read(op, args, [memories_of(arg) for arg in args], memories_of(result), result)
        self._outlets.read(args, result)
        return result

    def _note(self, op: str, func: Any, args: Any, result: Any) -> None:
        """Note what an operation decides that reads what moves."""
        self.decisions.executed(op, func, args, result, is_first=not self.emitted)
        if not self._max_pool and self._outputs_of is None and not self._entrance.waiting:
            self.decisions.chosen(op, result)
        if picks(op, func, args) and self._may_move(choosers(args)):
            self.masked_rows.executed(args, memories_of(result), result)

    def _may_move(self, tensors: Any) -> bool:
        """Whether one of these comes of what moves, as far as is known."""
        return self.reads_values or self._moving is None or self._moving.has(tensors)

    def _emit(self, site: Site, kinks: list[Kink]) -> None:
        if self.masked_rows and not self._entrance.waiting:  # also where no row was picked
            self.masked_rows.met(site.path or site.op, memories_of([z for z, _ in kinks]))
        place = self.emitted
        super()._emit(site, kinks)
        self.decisions.emitted()
        if self.emitted == place:  # nothing is perturbed yet, or there are no units
            return
        if not any(kink is None or self._signs(memory_or_none(z)).crosses(kink) for z, kink in kinks):
            self.never_crossing.add(place)
        elif any(self._plateaus.meets(memory_or_none(z), kink) for z, kink in kinks):
            self.flat_at_kinks.add(place)

    def _executed(self, op: str, result: Any, followed: bool) -> None:
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.output_bytes.append(tensor.numel() * tensor.element_size())
        if not followed:
            return
        if self._is_guard:
            self._guards.add(self.emitted - 1, memories_of(result), result)
        self._outlets.emitted(op, self.emitted - 1, result)


class _ValueReads(TorchFunctionMode):
    """Notes what gives values to the model's Python code and is no operation."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _VALUE_READERS:
            self._tracer.read_values(args)
        return func(*args, **(kwargs or {}))
