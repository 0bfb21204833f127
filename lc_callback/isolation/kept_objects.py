"""What of a model is looked at for a snapshot: the objects of a user, and what they hold."""

from __future__ import annotations

import copy
import functools
import itertools
import sys
import types
import warnings
from typing import Any

from torch import nn

__all__ = [
    "COUNTING",
    "class_variables",
    "copied_iterator",
    "is_of_a_user",
    "is_ours_to_keep",
    "methods_of",
    "names_of",
    "slots_of",
]

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


COUNTING = {type(iter([])), type(iter(())), type(iter(range(0))), itertools.count}


def is_ours_to_keep(value: Any) -> bool:
    """Whether the attributes of ``value`` are state that the model alone writes to."""
    if isinstance(value, nn.Module):
        return True
    if isinstance(value, (type, types.FunctionType, types.MethodType)):
        return False
    if any(base.__module__.startswith("lc_callback.") for base in type(value).__mro__):  # it records the measurement
        return False
    if not (is_of_a_user(type(value)) or type(value).__module__.startswith("torch.distributions.")):
        return False
    held = [*getattr(value, "__dict__", {}).values()]
    return not any(type(attribute).__module__.partition(".")[0] in _OF_THREADS for attribute in held)


def is_of_a_user(thing: Any) -> bool:
    """Whether a class, function or module is not of a library that keeps its own state."""
    file = thing.__name__ if isinstance(thing, types.ModuleType) else getattr(thing, "__module__", "builtins")
    return str(file).partition(".")[0] not in _FOREIGN


def slots_of(kind: type) -> list[types.MemberDescriptorType]:
    """The ``__slots__`` of a class and its bases."""
    found = []
    for base in kind.__mro__[:-1]:  # without object
        slots = vars(base).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            member = vars(base).get(name if not name.startswith("__") else f"_{base.__name__.lstrip('_')}{name}")
            if isinstance(member, types.MemberDescriptorType):
                found.append(member)
    return found


def methods_of(kind: type) -> list[types.FunctionType]:
    """What a measurement runs of a class: its forward or hook, and by name what that calls."""
    methods: list[types.FunctionType] = []
    names = ["forward", "__call__", "on_before_batch_transfer", "on_after_batch_transfer"]
    known = {*names}
    for name in names:  # which grows
        for base in kind.__mro__:
            if name in vars(base):
                method = getattr(vars(base)[name], "__func__", getattr(vars(base)[name], "fget", vars(base)[name]))
                while isinstance(method, types.FunctionType) and is_of_a_user(method):
                    methods.append(method)
                    new = [other for other in names_of(method.__code__) if other not in known]
                    known.update(new)
                    names += new
                    method = getattr(method, "__wrapped__", None)  # what is behind a decorator
    return methods


@functools.lru_cache(maxsize=1_000)
def names_of(code: types.CodeType) -> tuple[str, ...]:
    """The names that a function takes from elsewhere, those in its inner functions included."""
    inner = (
        names for constant in code.co_consts if isinstance(constant, types.CodeType) for names in names_of(constant)
    )
    return tuple(dict.fromkeys((*code.co_names, *inner)))


def copied_iterator(iterator: Any) -> Any:
    """A copy that goes on where ``iterator`` is; the same object where this would take the data behind it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such copies are going to end
        if type(iterator) is not itertools.cycle:
            return copy.copy(iterator)
        reduced: Any = iterator.__reduce__()
        (inner,), (seen, is_round) = reduced[1:]
        if type(inner) not in COUNTING:
            return iterator
        twin: Any = itertools.cycle(copy.copy(inner))
        twin.__setstate__(([*seen], is_round))
        return twin


def class_variables(kind: type) -> dict[str, Any]:
    """What a class itself holds, besides its functions."""
    hidden = (types.FunctionType, property, staticmethod, classmethod, types.MemberDescriptorType)
    return {
        name: value
        for name, value in vars(kind).items()
        if not (name.startswith("__") or name == "_abc_impl" or isinstance(value, hidden))
    }
