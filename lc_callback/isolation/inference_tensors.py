"""Tensors that were made in inference mode: a measurement works on copies, for autograd refuses them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

__all__ = ["without_inference_tensors"]

# What belongs to these is no state of a model: a module knows its Trainer, which knows everything.
_FOREIGN = ("torch.", "lightning.", "lightning_fabric.", "pytorch_lightning.", "numpy.", "builtins")
_MOST = 10_000  # objects


@contextmanager
def without_inference_tensors(model: nn.Module) -> Iterator[None]:
    """Inside, ordinary copies stand in for the inference tensors that modules keep as attributes.

    Also in lists, tuples, dicts and objects of the user's. ``trainer.test()`` runs in inference mode, so what its hooks
    compute (prototypes, class means, a memory) are such tensors. Buffers and parameters are not looked at.
    """
    with ExitStack() as stack:
        walk = _Walk(stack.callback)
        for module in model.modules():
            walk.through(vars(module))
        yield


class _Walk:
    def __init__(self, on_exit: Callable[..., Any]) -> None:
        self._on_exit = on_exit
        self._copies: dict[int, Any] = {}  # a tensor that two modules share stays shared
        self._seen: set[int] = set()

    def through(self, store: dict[str, Any]) -> None:
        """Put copies into the attributes of one object."""
        for name, value in [*store.items()]:
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            copy = self._ordinary(value)
            if copy is not value:
                self._on_exit(store.__setitem__, name, value)
                store[name] = copy

    def _ordinary(self, value: Any) -> Any:
        """The value, or a copy of it if there are inference tensors in it."""
        if isinstance(value, Tensor):
            if not value.is_inference():
                return value
            return self._copies.setdefault(id(value), value.detach().clone())
        if isinstance(value, (nn.Module, str, bytes, int, float, type)) or value is None:
            return value
        if id(value) in self._copies:
            return self._copies[id(value)]
        if id(value) in self._seen or len(self._seen) > _MOST:
            return value
        self._seen.add(id(value))
        found = self._of_container(value)
        self._copies[id(value)] = found
        return found

    def _of_container(self, value: Any) -> Any:
        if isinstance(value, dict):
            inner = {key: self._ordinary(item) for key, item in value.items()}
            if all(inner[key] is item for key, item in value.items()):
                return value
            copy = value.copy()
            copy.update(inner)
            return copy
        if isinstance(value, (list, tuple)):
            items = [self._ordinary(item) for item in value[:_MOST]]
            if all(new is old for new, old in zip(items, value, strict=False)):
                return value
            items += value[_MOST:]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        kind = type(value).__module__ + "."
        if isinstance(getattr(value, "__dict__", None), dict) and not kind.startswith(_FOREIGN):
            self.through(vars(value))
        return value
