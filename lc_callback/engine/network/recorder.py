"""Knots: which operations have kinks, where these are, and the pre-activations that meet them while a model runs."""

from __future__ import annotations

import fnmatch
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.channels import Channels
from lc_callback.engine.network.guards import Guards, is_guard
from lc_callback.engine.network.masked_rows import MaskedRows, choosers, picks
from lc_callback.engine.network.max_pools import WINNERS, winners_of
from lc_callback.engine.network.operations import OPERATIONS, Kind, Knot, is_a, knots_of
from lc_callback.engine.network.points import main_output
from lc_callback.engine.network.signs import Signs
from lc_callback.suggestions import did_you_mean

__all__ = [
    "Recorder",
    "Site",
    "Tracer",
    "bends",
    "check_layers",
    "find_module",
    "known_operations",
    "memory_of",
    "memory_order",
    "module_paths",
    "permuted",
    "reduced",
    "relative",
    "restored",
    "select_modules",
    "surely_finite",
    "viewed",
]

# Operations of these namespaces round what they get.
_ROUNDING_NAMESPACES = {"quantized", "quantized_decomposed", "torchao"}
# These decide by values, but not between two numbers next to each other: whether one is missing, say.
_BUT_FOR_POINTS = {"eq", "ne", "isnan", "isinf", "logical_not", "logical_and", "logical_or", "logical_xor"}
# What gives values to the model's Python code without an operation.
_VALUE_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__}


@dataclass(frozen=True)
class Site:
    """Where a pre-activation was met: module path, operation, and the number of the module's call in this forward."""

    path: str
    op: str
    call: int
    merge: str  # class of a recurrent module: its gates and time steps, all sites of one call, are one layer
    channels: int = -1  # axis of the features, where they are asked for


class Recorder(TorchDispatchMode):
    """Hands over every pre-activation while a model runs, and can move a module's output on the way.

    Nothing is attached to the model: operations are seen by a dispatch mode, module names by global hooks that exist
    only while the recorder is entered.

    Args:
        model: the module that is going to run inside the ``with`` block.
        sink: called as ``sink(site, knots)`` for each non-linearity, before it is executed (max-pooling: after). It
            must reduce what it gets, for an in-place operation overwrites it next.
        outputs_of: count the outputs of these modules, with a knot at 0, instead of the pre-activations.
        max_pool: also hand over the winners of max-pooling and other maxima; ``"candidates"``: what competes there,
            along a last axis, -inf beyond the border.
        results: hand over what the non-linearities return instead of the pre-activations, and of a recurrent module
            its output.
        at: a module whose output is moved at one of its calls. What runs before that is not handed over.
        at_call: which of its calls, from 1.
        move: called with that output; returns what takes its place.
    """

    def __init__(
        self,
        model: nn.Module,
        sink: Callable[[Site, list[Knot]], None],
        *,
        outputs_of: Sequence[nn.Module] | None = None,
        max_pool: bool | str = False,
        results: bool = False,
        at: nn.Module | None = None,
        at_call: int = 1,
        move: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._sink = sink
        self._paths = module_paths(model)
        self._outputs_of = None if outputs_of is None else {id(module) for module in outputs_of}
        self._max_pool, self._results = max_pool, results
        self._channels = Channels() if results else None
        self._at, self._move = at, move
        self._waiting = at is not None
        self._calls_to_wait_for = at_call
        self.handed_over = 0
        self._stack = [Site("", "", 0, "")]
        self._calls = 0
        self._hooks = ExitStack()

    def __enter__(self) -> Recorder:
        for handle in (
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ):
            self._hooks.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.close()
        super().__exit__(*exc)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        path = self._paths.get(id(module))
        if path is not None:
            self._calls += 1
            merge = type(module).__name__ if isinstance(module, nn.RNNBase) else ""
            self._stack.append(Site(path or merge, "", self._calls, merge))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        if id(module) not in self._paths:
            return None
        site = self._stack.pop()
        if output is None:  # also what an exception leaves
            return None
        replaced = None
        if module is self._at:
            self._calls_to_wait_for -= 1
        if module is self._at and self._waiting and self._calls_to_wait_for <= 0:
            if not isinstance(output, Tensor):
                raise ValueError(f"`at={site.path!r}` must name a module that returns a tensor, not {_kind(output)}.")
            output = replaced = self._move(output) if self._move is not None else output
            self._waiting = False  # only now: what moves the output is no part of the model
        recurrent = self._results and self._outputs_of is None and site.merge
        if recurrent or (self._outputs_of is not None and id(module) in self._outputs_of):
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if not isinstance(first, Tensor) and recurrent:
                raise ValueError(
                    f"{site.path!r} returns no tensor but {_kind(first)}: name the modules to follow with `layers=`, "
                    "leaving this one out, or pass `forward_fn=` that does not pack the sequences."
                )
            if not isinstance(first, Tensor):
                raise ValueError(f"`layers` names {site.path!r}, which returns no tensor but {_kind(output)}.")
            self._hand_over(site, [(first, 0.0)])
        return replaced

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = _name(func)
        if op == "threshold" and args[1] == args[2]:  # as nn.Threshold(0, 0): no jump
            op = "clamp_min"
        knotted = self._outputs_of is None and _has_kinks(op)
        knotted = knotted and isinstance(args[0], Tensor) and args[0].is_floating_point()
        before = self.handed_over
        if knotted and not self._results:
            self._hand_over(self._site(op), knots_of(op, args, kwargs))
        result = self._execute(op, func, args, kwargs)
        if self._channels is not None:
            self._channels.executed(op, args, result)
        if knotted and self._results and not self._stack[-1].merge:
            self._hand_over(self._site(op), [(result[0] if isinstance(result, tuple) else result, 0.0)])
        if self._outputs_of is None and self._max_pool and op in WINNERS:
            winners = winners_of(op, result, args, kwargs, self._max_pool)
            self._hand_over(self._site(op), [(winner, None) for winner in winners])
        self._executed(op, result, followed=self.handed_over > before)
        return result

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _site(self, op: str) -> Site:
        return replace(self._stack[-1], op=op)

    def _executed(self, op: str, result: Any, followed: bool) -> None:
        """Called after each operation; ``followed``: it was handed over."""

    def _hand_over(self, site: Site, knots: list[Knot]) -> None:
        if not self._waiting and knots and knots[0][0].numel():
            if self._channels is not None and knots[0][0].ndim:
                site = replace(site, channels=self._channels.axis(knots[0][0]))
            with _disable_current_modes():  # what the sink computes is no part of the model
                self._sink(site, knots)
            self.handed_over += 1


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
        memories = [_memory_or_none(value) for value in [*args, first]]
        self._signs.executed(op, func._schema.is_mutable, args, kwargs, memories, first)
        if self._follows(op, func, [args, kwargs], result):
            self._note_decision(op, func, args, result)
            self._note_maximum(op, args, result)
            if picks(op, func, args) and self._has_followed(choosers(args)):
                self.masked_rows.executed(args, _memories(result), result)
        if self.masked_rows:
            self.masked_rows.passed(op, _memories(args[:1]), _memories([args, kwargs]), _memories(result), result)
        if self._largest:
            for memory in _memories(args) & self._largest.keys():
                del self._largest[memory]
        self._is_guard = is_guard(op, args, kwargs)
        if self._guards:
            self._guards.read(op, args, [_memories(arg) for arg in args], _memories(result), result)
        if self._squashed:
            self._read |= (_memories(args) - _memories(result)) & self._squashed.keys()
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
            self.masked_rows.met(site.path or site.op, _memories([z for z, _ in knots]))
        if all(knot is not None and knot >= 0 and not self._signs(_memory_or_none(z))[0] for z, knot in knots):
            self.never_above.add(self.handed_over)
        super()._hand_over(site, knots)
        self.jumps += self._jumps_since
        self._jumps_since.clear()

    def _executed(self, op: str, result: Any, followed: bool) -> None:
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                self.output_bytes.append(tensor.numel() * tensor.element_size())
        if followed and op in WINNERS and not isinstance(result, Tensor):
            self._largest.update(dict.fromkeys(_memories(result[0]), (self.handed_over - 1, result[0])))
        if followed and self._is_guard:
            self._guards.add(self.handed_over - 1, _memories(result), result)
        if followed and is_a(op, Kind.SQUASHING):
            squashed = result[0] if isinstance(result, tuple) else result
            self._squashed.update(dict.fromkeys(_memories(squashed), (self.handed_over - 1, squashed)))

    def find_links(self, output: Any) -> None:
        """Set ``guards``, ``decisions``, and ``links``: positions of the squashing functions that made ``output``.

        What is returned beside the main output, and read on the way to it, is a layer.
        """
        returned = _memories(output)
        self.guards = self._guards.found(returned)
        self.decisions = {position for memory, (position, _) in self._largest.items() if memory not in returned}
        self._largest.clear()
        with suppress(ValueError):  # it has none
            returned -= self._read - _memories(main_output(output))
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
        return bool(_memories(tensors) & self._known.keys())

    def add(self, tensors: Any) -> None:
        """These do."""
        for leaf in tree_leaves(tensors):
            self._known.update(dict.fromkeys(_memories(leaf), leaf))

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


_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)


def memory_of(tensor: Tensor) -> int:
    """Which memory a tensor is in, as long as that is alive; of a sparse one, that of its values."""
    return _dense(tensor).untyped_storage()._cdata


def _dense(tensor: Tensor) -> Tensor:
    """What holds the values of a tensor: of a sparse one its values."""
    if tensor.layout is torch.sparse_coo:
        return tensor._values()
    return tensor.values() if tensor.layout in _COMPRESSED else tensor


def _memories(tree: Any) -> set[int]:
    """Of all tensors in it."""
    return {memory for leaf in tree_leaves(tree) if (memory := _memory_or_none(leaf)) is not None}


def _memory_or_none(value: Any) -> int | None:
    if isinstance(value, Tensor):
        with suppress(RuntimeError):  # it has none
            return memory_of(value)
    return None


@functools.cache
def _name(func: Any) -> str:
    """Of an aten operation, without the underscore of its in-place form."""
    name: str = func._schema.name
    return name.removeprefix("aten::").rstrip("_")


def bends(op: str) -> bool:
    """Whether an operation may have a kink."""
    return _has_kinks(op) or op in WINNERS


def _has_kinks(op: str) -> bool:
    return op in OPERATIONS and OPERATIONS[op].kinks is not None


def relative(z: Tensor, knot: float | None) -> Tensor:
    """A pre-activation relative to a knot."""
    return z - knot if knot else z


def surely_finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite, if that is quickly known: a sum takes a third of the time of a maximum."""
    return tensor.device.type == "cpu" and math.isfinite(float(tensor.sum()))  # a GPU would wait


def memory_order(tensor: Tensor, first: int) -> list[int]:
    """The axes, those from the ``first`` on as they are in the memory."""
    return [*range(first), *sorted(range(first, tensor.ndim), key=tensor.stride, reverse=True)]


def permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """The tensor with its axes in this order: itself, if they are, for a view takes time."""
    return tensor if order == [*range(tensor.ndim)] else tensor.permute(order)


def restored(tensor: Tensor, order: list[int]) -> Tensor:
    """What :func:`permuted` took, from what it returned."""
    return permuted(tensor, [order.index(axis) for axis in range(len(order))])


def reduced(z: Tensor, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    """What ``reduce`` makes of ``(k, n, ...)``, ``(n, ...)``, read in the order of the memory."""
    order = memory_order(z, 2)
    return restored(reduce(permuted(z, order)), [axis - 1 for axis in order[1:]])


def viewed(knots: list[Knot], view: Callable[[Tensor], Tensor]) -> list[Knot]:
    """The knots with views of their tensors: one, where several are of the same tensor."""
    views: list[Knot] = []
    for i, (z, knot) in enumerate(knots):
        views.append((views[-1][0] if i and z is knots[i - 1][0] else view(z), knot))
    return views


def module_paths(model: nn.Module) -> dict[int, str]:
    """Path of each module by its ``id``, without the ``_orig_mod`` of compiled modules."""
    paths = {}
    for path, module in model.named_modules():
        paths[id(module)] = ".".join(part for part in path.split(".") if part != "_orig_mod")
    return paths


def select_modules(model: nn.Module, layers: Sequence[str | type]) -> list[nn.Module]:
    """The modules that ``layers`` names: paths, ``fnmatch`` patterns of paths, class names, or types.

    Raises:
        ValueError: if an entry matches no module, or is neither a string nor a type.
    """
    check_layers(layers)
    paths = module_paths(model)
    modules = {id(module): module for module in model.modules()}
    selected: dict[int, nn.Module] = {}
    for entry in layers:
        if isinstance(entry, type):
            found = [key for key, module in modules.items() if isinstance(module, entry)]
        else:
            found = [key for key, path in paths.items() if path and fnmatch.fnmatchcase(path, entry)]
            found = found or [key for key, module in modules.items() if entry in _class_names(module)]
        if not found:
            raise ValueError(
                f"`layers` entry {entry!r} matches no module{_near(entry, model, paths)} {_available(paths)}"
            )
        selected.update((key, modules[key]) for key in found)
    return list(selected.values())


def _near(entry: Any, model: nn.Module, paths: Mapping[int, str]) -> str:
    return did_you_mean(entry, {*paths.values()}.union(*map(_class_names, model.modules())))


def check_layers(layers: Any) -> None:
    """Raise ``ValueError`` unless ``layers`` is a list of strings and module types."""
    possible = "`layers` must be a non-empty list of module names, patterns, class names or module types"
    if isinstance(layers, (str, type)) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"{possible}, such as ['blocks.*'] or [torch.nn.Linear], but got {layers!r}.")
    for entry in layers:
        if not (isinstance(entry, str) or (isinstance(entry, type) and issubclass(entry, nn.Module))):
            raise ValueError(f"{possible}, but it holds {entry!r}.")


def find_module(model: nn.Module, argument: str, path: str) -> nn.Module:
    """The module called ``path``.

    Raises:
        ValueError: naming ``argument`` and the modules there are.
    """
    paths = module_paths(model)
    for module in model.modules():
        if path and paths[id(module)] == path:
            return module
    raise ValueError(
        f"`{argument}={path!r}` is not the name of a module{did_you_mean(path, paths.values())} {_available(paths)}"
    )


def known_operations() -> str:
    """The operations that are seen, for messages."""
    return ", ".join(sorted(name for name in OPERATIONS if _has_kinks(name) and not name.startswith("_")))


def _class_names(module: nn.Module) -> set[str]:
    kind = type(module)
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    if kind.__module__.startswith("torch.nn."):
        names.add(f"torch.nn.{kind.__qualname__}")
    return names | {kind.__qualname__}


def _available(paths: dict[int, str], most: int = 30) -> str:
    names = [path for path in paths.values() if path]
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return f"Modules: {', '.join(names[:most]) or '(none)'}{more}."


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
