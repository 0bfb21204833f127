"""What a model keeps, and all of it put back: weights, attributes, containers, arrays, hooks and closures."""

from __future__ import annotations

import array
import collections
import functools
import itertools
import random
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from lc_callback.isolation.kept_objects import (
    COUNTING,
    class_variables,
    copied_iterator,
    is_of_a_user,
    is_ours_to_keep,
    methods_of,
    names_of,
    slots_of,
)
from lc_callback.isolation.refill import (
    address,
    delete_slot,
    has_given_back,
    refill_array,
    refill_deque,
    refill_dict,
    refill_list,
    refill_set,
    rewrite,
    set_cell,
    set_class_variables,
    set_global,
    set_slot,
)

__all__ = ["copied", "generator_state", "restored"]

_MOST_OBJECTS = 10_000  # besides modules and their own dicts
_MOST_ITEMS = 1_000  # of one container that are looked into: a list of a million file names is data
_MOST_BYTES = 2**28  # of arrays, which cannot be copied lazily
_SMALL = 2**16  # bytes that a tensor has if it is copied at once

_LEAVES = {int, float, complex, bool, str, bytes, type(None), type, range, slice, property, staticmethod, classmethod}
_LEAVES |= {torch.dtype, torch.device, torch.Size, types.ModuleType, types.BuiltinFunctionType, types.CodeType}
_DICTS = {dict, collections.OrderedDict}
_HOOKS_OF_ALL_MODULES = [
    hooks
    for name, hooks in vars(torch_module).items()
    if name.startswith("_global_") and name.endswith("_hooks") and isinstance(hooks, dict)
]


@contextmanager
def restored(*roots: object) -> Iterator[bool]:
    """Afterwards ``roots`` keep what they kept before, down to the bits, also after an exception.

    Looked after are the attributes and slots of objects and of their classes, lists, dicts, sets, deques, tensors,
    NumPy arrays, random generators, and what functions remember: closures, defaults, attributes, and the variables of
    files that they name. All of it is found by following references, hooks and bound methods included. Each object
    stays itself: a list that was appended to is the same list, a tensor that was written to the same tensor.

    Left alone are objects of torch, Lightning and the standard library, of loggers, and those that hold a lock or a
    thread, for others may write to them meanwhile; iterators that cannot be copied; arrays beyond 256 MB in all; what
    is further off than 10,000 objects, or behind the first 1,000 items of a container; and what is not in Python:
    files, a memory inside an extension.

    Large tensors are copied on write, by torch: what is only read costs no memory.

    Yields whether some of the tensors were made in inference mode; these are left alone, too.
    """
    snapshot = _Snapshot(roots)
    try:
        yield snapshot.has_inference_tensors
    finally:
        snapshot.restore()


def copied(tensor: Tensor) -> Tensor:
    """A detached copy of an ordinary tensor. Where torch can, the memory is shared until one of the two is written."""
    source = tensor.data
    if source.device.type in ("cpu", "cuda"):
        with suppress(AttributeError, RuntimeError):  # a torch without it; a sparse tensor, for example
            return source._lazy_clone()  # type: ignore[no-any-return, operator]
    return source.clone()


def generator_state(value: object) -> tuple[Callable[[Any], Any], Any] | None:
    """``(restore, state)`` of a random generator; ``None`` for anything else."""
    if isinstance(value, torch.Generator):
        return value.set_state, value.get_state()
    if isinstance(value, random.Random):
        return value.setstate, value.getstate()
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.random.RandomState):
        return value.set_state, value.get_state()
    if numpy is not None and isinstance(value, numpy.random.Generator):
        return functools.partial(setattr, value.bit_generator, "state"), value.bit_generator.state
    return None


class _Snapshot:
    """What the roots keep now. References lead from one object to the next, the nearest first."""

    def __init__(self, roots: tuple[object, ...]) -> None:
        self._undo: list[tuple[Callable[..., Any], tuple[Any, ...]]] = []
        self._empty: list[dict[Any, Any]] = []  # most of the dicts of a module: its hooks
        self._kinds: list[tuple[Any, type]] = []
        self.slots_of: dict[type, list[types.MemberDescriptorType]] = {}
        self._seen: set[int] = set()
        self._seen_classes: set[int] = set()
        self._queue: collections.deque[Any] = collections.deque()
        self._bytes_left = _MOST_BYTES
        self.has_inference_tensors = False
        for hooks in _HOOKS_OF_ALL_MODULES:
            self._look_at_all(hooks.values())
        modules = [module for root in roots if isinstance(root, nn.Module) for module in root.modules()]
        self._seen.update(map(id, modules))
        for module in modules:
            self._keep_object(module)
        self._look_at_all(roots)
        for _ in range(_MOST_OBJECTS):
            if not self._queue:
                break
            with suppress(Exception):  # an object of somebody else's may raise anything; then it is left alone
                self._keep(self._queue.popleft())

    def restore(self) -> None:
        """Put everything back; an error comes when all else is done."""
        errors = []
        self._undo += [(refill_dict, (value, {})) for value in self._empty if value]
        self._undo += [(setattr, (value, "__class__", kind)) for value, kind in self._kinds if type(value) is not kind]
        for function, arguments in reversed(self._undo):
            try:
                function(*arguments)
            except Exception as error:  # an object of somebody else's may raise anything
                errors.append(error)
        if errors:
            raise errors[0]

    # Looking

    def _look_at(self, value: Any) -> None:
        if type(value) in _LEAVES or id(value) in self._seen:
            return
        self._seen.add(id(value))
        if issubclass(type(value), Tensor):  # a dead proxy does not say what it is an instance of
            self._keep_tensor(value)
        else:
            self._queue.append(value)

    def _look_at_all(self, values: Iterable[Any]) -> None:
        for value in itertools.islice(values, _MOST_ITEMS):
            self._look_at(value)

    def _keep(self, value: Any) -> None:
        if isinstance(value, dict):
            self._keep_dict(value)
        elif isinstance(value, (list, bytearray, array.array)):
            self._undo.append((refill_list, (value, value[:])))
            self._look_at_all(value)
        elif isinstance(value, (tuple, frozenset)):
            self._look_at_all(value)
        elif isinstance(value, set):
            self._undo.append((refill_set, (value, set(value))))
            self._look_at_all(value)
        elif isinstance(value, collections.deque):
            items = list(value)
            self._undo.append((refill_deque, (value, items)))
            self._look_at_all(items)
        elif isinstance(value, types.MethodType):
            self._look_at(value.__func__)
            self._look_at(value.__self__)
        elif isinstance(value, types.FunctionType):
            self._keep_function(value)
        elif isinstance(value, functools.partial):
            self._look_at_all((value.func, *value.args, *value.keywords.values()))
        elif isinstance(value, types.CellType):
            self._keep_cell(value)
        else:
            state = generator_state(value)
            if state is not None:
                self._undo.append((state[0], state[1:]))
            elif type(value).__module__ == "numpy" and hasattr(value, "flags"):
                self._keep_array(value)
        if is_ours_to_keep(value):
            self._keep_object(value)

    # Keeping

    def _keep_dict(self, value: dict[Any, Any], registered: bool = False) -> None:
        if value:
            kept = value.copy() if type(value) is dict else dict(value.items())
            self._undo.append((refill_dict, (value, kept)))
            for tensor in kept.values() if registered else ():
                if tensor is not None and id(tensor) not in self._seen:
                    self._seen.add(id(tensor))
                    self._keep_tensor(tensor, small=0)  # a copy of it is written to
            self._look_at_all(kept.values())
        else:
            self._empty.append(value)

    def _keep_object(self, value: Any) -> None:
        """Attributes and slots, and those of its class."""
        kind = type(value)
        self._kinds.append((value, kind))
        for member in self._slots_of(kind):
            self._keep_slot(member, value)
        own = getattr(value, "__dict__", None)
        if not isinstance(own, dict):
            return
        kept = own.copy()
        self._undo.append((refill_dict, (own, kept)))
        is_module = isinstance(value, nn.Module)
        for name, attribute in kept.items():
            attribute_kind = type(attribute)
            if attribute_kind in _LEAVES:
                continue
            if is_module and attribute_kind in _DICTS:
                if attribute:
                    self._keep_dict(attribute, registered=name in ("_parameters", "_buffers"))
                else:
                    self._empty.append(attribute)
            elif attribute_kind in COUNTING or attribute_kind is itertools.cycle:
                with suppress(AttributeError, TypeError, ValueError):  # from Python 3.14 on they cannot be copied
                    own[name] = copied_iterator(attribute)
            else:
                self._look_at(attribute)

    def _slots_of(self, kind: type) -> list[types.MemberDescriptorType]:
        """The slots of a class, which is kept with its bases when it is met first."""
        if kind not in self.slots_of:
            self.slots_of[kind] = slots_of(kind)
            bases = [base for base in kind.__mro__ if is_of_a_user(base)]
            self._look_at_all(methods_of(kind) if bases else ())
            for base in bases:
                if id(base) not in self._seen_classes:
                    self._keep_class(base)
        return self.slots_of[kind]

    def _keep_slot(self, member: Any, owner: Any) -> None:
        try:
            value = member.__get__(owner)
        except AttributeError:  # empty
            self._undo.append((delete_slot, (member, owner)))
        else:
            self._undo.append((set_slot, (member, owner, value)))
            self._look_at(value)

    def _keep_class(self, kind: type) -> None:
        """Class variables, such as a counter or a cache of all instances."""
        self._seen_classes.add(id(kind))
        data = class_variables(kind)
        self._undo.append((set_class_variables, (kind, data)))
        self._look_at_all(data.values())

    def _keep_function(self, function: types.FunctionType) -> None:
        """What it remembers from call to call."""
        self._look_at_all(function.__closure__ or ())
        self._look_at_all(function.__defaults__ or ())
        self._look_at_all((function.__kwdefaults__ or {}).values())
        if not is_of_a_user(function):
            return
        self._keep_dict(function.__dict__)
        names = names_of(function.__code__)
        self._keep_variables(function.__globals__, names)
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType) and is_of_a_user(value):
                self._keep_variables(vars(value), names)

    def _keep_variables(self, variables: dict[str, Any], names: Iterable[str]) -> None:
        """Those of a file that a function names, and what it calls there."""
        for name in names:
            if name not in variables:
                continue
            value = variables[name]
            if isinstance(value, types.FunctionType):
                if value.__globals__ is variables:
                    self._look_at(value)
            elif isinstance(value, type):
                if is_of_a_user(value) and id(value) not in self._seen_classes:
                    self._keep_class(value)
            elif not isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
                self._undo.append((set_global, (variables, name, value)))
                self._look_at(value)

    def _keep_cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # empty
            return
        self._undo.append((set_cell, (cell, value)))
        self._look_at(value)

    def _keep_array(self, values: Any) -> None:
        if values.flags.writeable and values.nbytes <= self._bytes_left:
            self._bytes_left -= values.nbytes
            self._undo.append((refill_array, (values, values.copy())))
        if values.dtype == object:
            self._look_at_all(values.flat)

    def _keep_tensor(self, tensor: Tensor, small: int = _SMALL) -> None:
        with suppress(Exception):  # it has no memory, or is of a transform, or of somebody else's kind
            self._keep_dict(vars(tensor))
            before = tensor.data
            # Sharded ones and those of another kind look after themselves; some have given their memory back.
            self.has_inference_tensors |= before.is_inference()
            if type(before) is not Tensor or before.is_meta or before.is_inference():
                return
            memory = before
            if before.layout is torch.strided:
                if has_given_back(before) or not self._has_room_for(before):
                    return
                if not before.is_contiguous() or before.is_quantized:
                    memory = torch.empty(0, dtype=torch.uint8, device=before.device).set_(before.untyped_storage())
            # A write to lazily copied memory moves it, away from the arrays that somebody made of a small tensor.
            may_have_arrays = memory.layout is torch.strided and memory.device.type == "cpu"
            kept = memory.clone() if may_have_arrays and memory.nbytes <= small else copied(memory)
            self._undo.append((rewrite, (tensor, before, memory, kept, tensor.requires_grad)))

    def _has_room_for(self, tensor: Tensor) -> bool:
        """Whether it may be copied: memory that is not torch's own, such as an array's, is copied at once."""
        if tensor.nbytes <= 2**20:
            return True
        nothing = tensor.as_strided((0,), (1,))
        if address(copied(nothing)) == address(nothing):
            return True
        self._bytes_left -= tensor.nbytes
        return self._bytes_left >= 0


# Putting back. Methods of the built-in types are called, not those that a subclass put in their place.
