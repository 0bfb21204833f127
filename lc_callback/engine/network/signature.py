"""Which part of a batch a model takes, and how it is called with it."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from lc_callback.engine.network.layout import memory_of
from lc_callback.engine.network.points import Points, call_model
from lc_callback.engine.network.space import compute_dtype
from lc_callback.isolation import untouched

__all__ = ["Signature", "as_tensor", "call_in_words", "example_of_call"]

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
# What Python says of an argument, and what a dict says of a key.
_UNEXPECTED = re.compile(r"unexpected keyword argument '(\w+)'")
_QUOTED = re.compile(r"'(\w+)'")

# Calls the model with a few samples. Returns what it raised, and the tensors that it did not read.
_Attempt = Callable[[Any], tuple[Exception | None, list[Tensor]]]


class Signature:
    """What a forward takes, and so which part of a batch it gets.

    A mapping goes in as keywords where the parameters name its keys, else as one argument without the targets. Of a
    tuple or list, the first ``k`` entries go in where the forward has ``k >= 2`` required parameters, else the first
    entry. What is left over, or stands under a key such as ``labels``, is the target.

    ``**kwargs`` take all keys but the targets, and ``*args`` as many entries as are needed. Where the parameters leave
    it open, the model is called with two samples: a key that it refuses or does not read is left out, and a target that
    it asks for goes in.
    """

    def __init__(self, forward: Callable[..., Any], skip: int = 0, attempt: _Attempt | None = None) -> None:
        self._attempt = attempt
        self.optional: set[str] = set()
        self.names: list[str] = []
        self.required = 1
        self.most: float = float("inf")  # positional arguments
        self.any_keyword = self.any_number = False
        try:
            parameters = list(inspect.signature(forward).parameters.values())[skip:]
        except (TypeError, ValueError):  # a builtin or an extension
            return
        named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        self.names = [p.name for p in named]
        self.optional = {p.name for p in named if p.default is not p.empty}
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        self.required = sum(p.default is p.empty for p in positional)
        self.any_keyword = any(p.kind is p.VAR_KEYWORD for p in parameters)
        self.any_number = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        self.most = float("inf") if self.any_number else len(positional)

    @classmethod
    def of(
        cls,
        module: nn.Module,
        forward_fn: Callable[..., Any] | None,
        conditions: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> Signature:
        """The signature of ``forward_fn(module, ...)`` or, without it, of the module's forward.

        Args:
            module: what is called.
            forward_fn: how, if not as ``module(...)``.
            conditions: entered around a call that finds out what the parameters leave open.
        """

        def attempt(inputs: Any) -> tuple[Exception | None, list[Tensor]]:
            try:
                with conditions():
                    return None, _unread(module, forward_fn, inputs)
            except Exception as error:  # of any kind: it is the user's code that is called
                return error, []

        if forward_fn is not None:
            return cls(forward_fn, skip=1, attempt=attempt)
        return cls(getattr(module, "_orig_mod", module).forward, attempt=attempt)

    def split(self, batch: Any) -> tuple[Any, Any]:
        """``(inputs, targets)`` of a batch."""
        if isinstance(batch, Mapping):
            return self._split_mapping(batch)
        if isinstance(batch, (tuple, list)) and batch:
            k = self._how_many(batch)
            inputs = tuple(batch[:k]) if k > 1 else batch[0]
            target = batch[k] if len(batch) > k else None
            if isinstance(inputs, Mapping):
                inputs, _ = self.split(inputs)
            if isinstance(inputs, (tuple, list)) and k == 1 and len(inputs) > self.most:
                return (inputs,), target
            return (tuple(inputs) if isinstance(inputs, list) else inputs), target
        return batch, None

    def _how_many(self, batch: Any) -> int:
        """How many entries of a batch go in."""
        k = self.required if self.required >= 2 and len(batch) >= self.required else 1
        if isinstance(batch[0], (tuple, list, Mapping)):
            return 1
        if self.any_number and self._attempt is not None:
            for more in range(k, len(batch) + 1):
                if self._attempt(tree_map(as_tensor, tuple(batch[:more])))[0] is None:
                    return more
        return k

    def _split_mapping(self, batch: Mapping[Any, Any]) -> tuple[Any, Any]:
        target = next((batch[key] for key in _TARGET_KEYS if key in batch), None)
        wanted = [name for name in self.names if name not in _TARGET_KEYS or name not in self.optional]
        keywords = {key: batch[key] for key in wanted if key in batch}
        # A target in the one argument would be taken for an input, and perturbed.
        rest = {key: value for key, value in batch.items() if key not in _TARGET_KEYS}
        missing = any(name not in batch and name not in self.optional for name in self.names)
        if self.any_keyword and not missing and all(isinstance(key, str) for key in batch):
            found, error = self._settled({**rest, **keywords}, batch, lambda found: found)
            if error is None or not (self.any_number and self._runs((rest,))):
                return found, target
        elif keywords:
            return keywords, target
        return (self._settled(rest, batch, lambda found: (found,))[0],), target

    def _runs(self, inputs: Any) -> bool:
        return self._attempt is not None and self._attempt(tree_map(as_tensor, inputs))[0] is None

    def _settled(
        self, keywords: dict[Any, Any], batch: Mapping[Any, Any], call: Callable[[dict[Any, Any]], Any]
    ) -> tuple[dict[Any, Any], Exception | None]:
        """What of the batch the model takes, beginning with ``keywords``, and its error if it does not run.

        Args:
            keywords: what to begin with.
            batch: what there is.
            call: makes inputs of a part of the batch.
        """
        error: Exception | None = None
        if self._attempt is None:
            return keywords, error
        for _ in range(len(batch)):
            found = tree_map(as_tensor, keywords)
            error, unread = self._attempt(call(found))
            if error is None:
                moving = {key for key in found if key not in self.names and _is_one_of(found[key], unread)}
                fewer = {key: value for key, value in keywords.items() if key not in moving}
                return (fewer if moving and fewer and self._runs(call(fewer)) else keywords), None
            refused, asked = _named_in(error)
            if refused in keywords:
                keywords = {key: value for key, value in keywords.items() if key != refused}
            elif asked in batch and asked not in keywords and not _is_floating(batch[asked]):
                keywords = {**keywords, asked: batch[asked]}
            else:
                break
        return keywords, error


def _named_in(error: Exception) -> tuple[str | None, str | None]:
    """The argument that an error refuses, and the one that it asks for."""
    text = str(error)
    if isinstance(error, TypeError):
        refused, asked = _UNEXPECTED.search(text), _QUOTED.search(text) if "missing" in text else None
        return (refused and refused[1]), (asked and asked[1])
    return None, (str(error.args[0]) if isinstance(error, KeyError) and error.args else None)


def _is_floating(value: Any) -> bool:
    value = as_tensor(value)
    return isinstance(value, Tensor) and value.is_floating_point()


def _is_one_of(value: Any, tensors: list[Tensor]) -> bool:
    return any(value is tensor for tensor in tensors)


def _unread(module: nn.Module, forward_fn: Callable[..., Any] | None, inputs: Any) -> list[Tensor]:
    """Call the model with two samples. Returns the floating-point tensors of ``inputs`` that no operation reads."""
    parameter = next(module.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = compute_dtype(module, inputs)
    with untouched(module, forward_fn, dtype=dtype, seed=0):
        points = Points(inputs, dtype, device)
        few = points.batch(torch.arange(min(2, points.n)), None)
        moving = [leaf for leaf in tree_leaves(few) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        with _MemoryRead() as read:
            output = call_model(module, few, forward_fn)
        read.note(output)
    return [given for given, leaf in zip(points.moving, moving, strict=True) if memory_of(leaf) not in read.memories]


class _MemoryRead(TorchDispatchMode):
    """Notes which memory the operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.memories: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.note((args, kwargs))
        return func(*args, **(kwargs or {}))

    def note(self, tree: Any) -> None:
        for leaf in tree_leaves(tree):
            if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
                self.memories.add(memory_of(leaf))


def as_tensor(leaf: Any) -> Any:
    """Arrays as tensors, tensors detached and on the CPU, anything else as it is."""
    if isinstance(leaf, Tensor):
        return leaf.detach().cpu()
    if hasattr(leaf, "__array__") and not isinstance(leaf, (list, tuple, str)):
        return torch.as_tensor(leaf)
    return leaf


def call_in_words(inputs: Any) -> str:
    """How a model is called with ``inputs``, for messages."""
    if isinstance(inputs, Mapping):
        return f"the keywords {_entries(inputs)}"
    if isinstance(inputs, (tuple, list)) and len(inputs) != 1:
        return f"{len(inputs)} arguments: {', '.join(map(_in_words, inputs))}"
    return f"one argument, {_in_words(inputs[0] if isinstance(inputs, (tuple, list)) else inputs)}"


def example_of_call(inputs: Any, module: str) -> str:
    """A function that passes one entry of a dict to a module of this name, for messages; empty if there is no dict."""
    batch = inputs[0] if isinstance(inputs, (tuple, list)) and len(inputs) == 1 else inputs
    entries = batch.items() if isinstance(batch, Mapping) else ()
    tensors = {key: value for key, value in entries if isinstance(value, Tensor)}
    if not tensors:
        return ""
    key = next((key for key, value in tensors.items() if value.is_floating_point()), next(iter(tensors)))
    called = f"module.{module}" if module else "module"
    return f"forward_fn=lambda module, batch: {called}(batch[{key!r}])"


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a {value.dtype} tensor {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} of {_entries(value)}"
    if isinstance(value, (tuple, list)) and not all(isinstance(item, str) for item in value):
        return f"a {type(value).__name__} of {', '.join(map(_in_words, value))}"
    return f"a {type(value).__name__}"


def _entries(mapping: Mapping[Any, Any]) -> str:
    return ", ".join(f"{key}={_in_words(value)}" for key, value in mapping.items())
