"""What a model keeps, and all of it put back: weights, attributes, containers, arrays, hooks and closures."""

from __future__ import annotations

import array
import collections
import copy
import functools
import itertools
import random
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

__all__ = ["copied", "generator_state", "restored"]

_MOST_OBJECTS = 10_000  # besides modules and their own dicts
_MOST_ITEMS = 1_000  # of one container that are looked into: a list of a million file names is data
_MOST_BYTES = 2**28  # of arrays, which cannot be copied lazily
_SMALL = 2**16  # bytes that a tensor has if it is copied at once

# Their objects are no state of a model, or other threads write to them: a module knows its Trainer and its logger.
_FOREIGN = (
    {*sys.stdlib_module_names, "torch", "numpy", "lightning", "lightning_fabric", "lightning_utilities"}
    | {"pytorch_lightning", "lc_callback", "pytest", "_pytest"}
    | {
        "aim",
        "clearml",
        "comet_ml",
        "litlogger",
        "mlflow",
        "neptune",
        "swanlab",
        "tensorboard",
        "tensorboardX",
        "wandb",
    }
) - {"argparse", "collections", "types", "weakref"}
_OF_THREADS = {"_queue", "_thread", "asyncio", "concurrent", "multiprocessing", "queue", "threading"}
_LEAVES = {int, float, complex, bool, str, bytes, type(None), type, range, slice, property, staticmethod, classmethod}
_LEAVES |= {torch.dtype, torch.device, torch.Size, types.ModuleType, types.BuiltinFunctionType, types.CodeType}
_DICTS = {dict, collections.OrderedDict}
_COUNTING = {type(iter([])), type(iter(())), type(iter(range(0))), itertools.count}
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
        with suppress(RuntimeError):  # sparse, for example
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
        self._slots: dict[type, list[types.MemberDescriptorType]] = {}
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
        self._undo += [(_refill_dict, (value, {})) for value in self._empty if value]
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
            self._undo.append((_refill_list, (value, value[:])))
            self._look_at_all(value)
        elif isinstance(value, (tuple, frozenset)):
            self._look_at_all(value)
        elif isinstance(value, set):
            self._undo.append((_refill_set, (value, set(value))))
            self._look_at_all(value)
        elif isinstance(value, collections.deque):
            items = list(value)
            self._undo.append((_refill_deque, (value, items)))
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
        if _is_ours_to_keep(value):
            self._keep_object(value)

    # Keeping

    def _keep_dict(self, value: dict[Any, Any], registered: bool = False) -> None:
        if value:
            kept = value.copy() if type(value) is dict else dict(value.items())
            self._undo.append((_refill_dict, (value, kept)))
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
        self._undo.append((_refill_dict, (own, kept)))
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
            elif attribute_kind in _COUNTING or attribute_kind is itertools.cycle:
                with suppress(AttributeError, TypeError, ValueError):  # from Python 3.14 on they cannot be copied
                    own[name] = _copied_iterator(attribute)
            else:
                self._look_at(attribute)

    def _slots_of(self, kind: type) -> list[types.MemberDescriptorType]:
        """The slots of a class, which is kept with its bases when it is met first."""
        if kind not in self._slots:
            self._slots[kind] = _slots(kind)
            bases = [base for base in kind.__mro__ if _is_of_a_user(base)]
            self._look_at_all(_methods(kind) if bases else ())
            for base in bases:
                if id(base) not in self._seen_classes:
                    self._keep_class(base)
        return self._slots[kind]

    def _keep_slot(self, member: Any, owner: Any) -> None:
        try:
            value = member.__get__(owner)
        except AttributeError:  # empty
            self._undo.append((_delete_slot, (member, owner)))
        else:
            self._undo.append((_set_slot, (member, owner, value)))
            self._look_at(value)

    def _keep_class(self, kind: type) -> None:
        """Class variables, such as a counter or a cache of all instances."""
        self._seen_classes.add(id(kind))
        data = _class_variables(kind)
        self._undo.append((_set_class_variables, (kind, data)))
        self._look_at_all(data.values())

    def _keep_function(self, function: types.FunctionType) -> None:
        """What it remembers from call to call."""
        self._look_at_all(function.__closure__ or ())
        self._look_at_all(function.__defaults__ or ())
        self._look_at_all((function.__kwdefaults__ or {}).values())
        if not _is_of_a_user(function):
            return
        self._keep_dict(function.__dict__)
        names = _names(function.__code__)
        self._keep_variables(function.__globals__, names)
        for name in names:
            value = function.__globals__.get(name)
            if isinstance(value, types.ModuleType) and _is_of_a_user(value):
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
                if _is_of_a_user(value) and id(value) not in self._seen_classes:
                    self._keep_class(value)
            elif not isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
                self._undo.append((_set_global, (variables, name, value)))
                self._look_at(value)

    def _keep_cell(self, cell: types.CellType) -> None:
        try:
            value = cell.cell_contents
        except ValueError:  # empty
            return
        self._undo.append((_set_cell, (cell, value)))
        self._look_at(value)

    def _keep_array(self, values: Any) -> None:
        if values.flags.writeable and values.nbytes <= self._bytes_left:
            self._bytes_left -= values.nbytes
            self._undo.append((_refill_array, (values, values.copy())))
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
                if _has_given_back(before) or not self._has_room_for(before):
                    return
                if not before.is_contiguous() or before.is_quantized:
                    memory = torch.empty(0, dtype=torch.uint8, device=before.device).set_(before.untyped_storage())
            # A write to lazily copied memory moves it, away from the arrays that somebody made of a small tensor.
            may_have_arrays = memory.layout is torch.strided and memory.device.type == "cpu"
            kept = memory.clone() if may_have_arrays and memory.nbytes <= small else copied(memory)
            self._undo.append((_rewrite, (tensor, before, memory, kept, tensor.requires_grad)))

    def _has_room_for(self, tensor: Tensor) -> bool:
        """Whether it may be copied: memory that is not torch's own, such as an array's, is copied at once."""
        if tensor.nbytes <= 2**20:
            return True
        nothing = tensor.as_strided((0,), (1,))
        if _address(copied(nothing)) == _address(nothing):
            return True
        self._bytes_left -= tensor.nbytes
        return self._bytes_left >= 0


def _is_ours_to_keep(value: Any) -> bool:
    """Whether the attributes of ``value`` are state that the model alone writes to."""
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, (type, types.FunctionType, types.MethodType)):
        return False
    if any(base.__module__.startswith("lc_callback.") for base in type(value).__mro__):  # it records the measurement
        return False
    if not (_is_of_a_user(type(value)) or type(value).__module__.startswith("torch.distributions.")):
        return False
    held = [*getattr(value, "__dict__", {}).values()]
    return not any(type(attribute).__module__.partition(".")[0] in _OF_THREADS for attribute in held)


def _is_of_a_user(thing: Any) -> bool:
    file = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", "builtins")
    return str(file).partition(".")[0] not in _FOREIGN


def _slots(kind: type) -> list[types.MemberDescriptorType]:
    found = []
    for base in kind.__mro__[:-1]:  # without object
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = vars(base).get(name if not name.startswith("__") else f"_{base.__name__.lstrip('_')}{name}")
            if isinstance(member, types.MemberDescriptorType):
                found.append(member)
    return found


def _methods(kind: type) -> list[types.FunctionType]:
    """What a measurement runs of a class: its forward or hook, and by name what that calls."""
    methods: list[types.FunctionType] = []
    names = ["forward", "__call__", "on_before_batch_transfer", "on_after_batch_transfer"]
    known = {*names}
    for name in names:  # which grows
        for base in kind.__mro__:
            if name in vars(base):
                method = getattr(vars(base)[name], "__func__", getattr(vars(base)[name], "fget", vars(base)[name]))
                while isinstance(method, types.FunctionType) and _is_of_a_user(method):
                    methods.append(method)
                    new = [other for other in _names(method.__code__) if other not in known]
                    known.update(new)
                    names += new
                    method = getattr(method, "__wrapped__", None)  # what is behind a decorator
    return methods


@functools.lru_cache(maxsize=1_000)
def _names(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function takes from elsewhere, those in its inner functions included."""
    inner = (names for constant in code.co_consts if isinstance(constant, types.CodeType) for names in _names(constant))
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def _copied_iterator(iterator: Any) -> Any:
    """A copy that goes on where ``iterator`` is; the same object where this would take the data behind it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such copies are going to end
        if type(iterator) is not itertools.cycle:
            return copy.copy(iterator)
        reduced: Any = iterator.__reduce__()
        (inner,), (seen, is_round) = reduced[1:]
        if type(inner) not in _COUNTING:
            return iterator
        twin: Any = itertools.cycle(copy.copy(inner))
        twin.__setstate__(([*seen], is_round))
        return twin


def _class_variables(kind: type) -> dict[str, Any]:
    hidden = (types.FunctionType, property, staticmethod, classmethod, types.MemberDescriptorType)
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("__") or name == "_abc_impl" or isinstance(value, hidden))
    }


def _address(tensor: Tensor) -> int:
    """Where its memory begins, without counting as a write as ``data_ptr()`` does."""
    return torch._C._data_address(tensor)  # type: ignore[attr-defined, no-any-return]


# Putting back. Methods of the built-in types are called, not those that a subclass put in their place.


def _refill_dict(value: dict[Any, Any], kept: dict[Any, Any]) -> None:
    same = len(value) == len(kept) and all(map(is_, value, kept)) and all(map(is_, value.values(), kept.values()))
    if same:
        return
    own: Any = collections.OrderedDict if isinstance(value, collections.OrderedDict) else dict
    own.clear(value)
    for key, item in kept.items():
        own.__setitem__(value, key, item)


def _refill_list(value: Any, kept: Any) -> None:
    own: Any = next(kind for kind in (list, bytearray, array.array) if isinstance(value, kind))
    own.__setitem__(value, slice(None), kept)


def _refill_set(value: set[Any], kept: set[Any]) -> None:
    if len(value) != len(kept) or value != kept:
        set.clear(value)
        set.update(value, kept)


def _refill_deque(value: collections.deque[Any], kept: list[Any]) -> None:
    if len(value) != len(kept) or not all(map(is_, value, kept)):
        collections.deque.clear(value)
        collections.deque.extend(value, kept)


def _refill_array(values: Any, kept: Any) -> None:
    if values.shape != kept.shape:
        values.resize(kept.shape, refcheck=False)
    values[...] = kept


def _rewrite(tensor: Tensor, before: Tensor, memory: Tensor, kept: Tensor, requires_grad: bool) -> None:
    """Make ``tensor`` the view that it was ``before``, and put into its ``memory`` what is ``kept`` of that."""
    with torch.inference_mode(False), torch.no_grad():
        if before.layout is torch.sparse_coo:
            tensor.data = kept
        elif before.layout is not torch.strided:  # these do not take it
            tensor.data.copy_(kept)
        else:
            if not _is_the_same_view(tensor.data, before):
                tensor.data = before
            if _address(memory) != _address(kept) and not _has_given_back(memory):  # one of them was written
                memory.copy_(kept)
        if tensor.is_leaf and tensor.requires_grad != requires_grad:
            tensor.requires_grad_(requires_grad)


def _has_given_back(tensor: Tensor) -> bool:
    """Whether its memory went back to the system, as that of weights which other processes keep."""
    return tensor.numel() > 0 and tensor.untyped_storage().nbytes() == 0


def _is_the_same_view(one: Tensor, other: Tensor) -> bool:
    if one.layout is not torch.strided or other.layout is not torch.strided:
        return False
    same_memory = one.untyped_storage()._cdata == other.untyped_storage()._cdata
    same_memory = same_memory and one.dtype == other.dtype and one.shape == other.shape
    return same_memory and one.stride() == other.stride() and one.storage_offset() == other.storage_offset()


def _set_slot(member: Any, owner: Any, value: Any) -> None:
    member.__set__(owner, value)


def _delete_slot(member: Any, owner: Any) -> None:
    with suppress(AttributeError):
        member.__delete__(owner)


def _set_class_variables(kind: type, kept: dict[str, Any]) -> None:
    now = _class_variables(kind)
    for name in now.keys() - kept.keys():
        type.__delattr__(kind, name)
    for name, value in kept.items():
        if name not in now or now[name] is not value:
            type.__setattr__(kind, name, value)


def _set_global(variables: dict[str, Any], name: str, value: Any) -> None:
    if name not in variables or variables[name] is not value:
        variables[name] = value


def _set_cell(cell: types.CellType, value: Any) -> None:
    cell.cell_contents = value
