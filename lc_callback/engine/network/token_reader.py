"""Which module reads the tokens of a model: the embedding whose indices come from an integer input."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import memory_of
from lc_callback.engine.network.module_watch import ModuleWatch

__all__ = ["find_token_reader"]

_LOOKUPS = {"embedding", "_embedding_bag", "_embedding_bag_forward_only"}
# What these return is integer, but no token: positions, lengths, ranks, or something that only has the same shape.
_COUNTS = {"cumsum", "sum", "count_nonzero", "argsort", "argmax", "argmin", "nonzero"}
_COUNTS |= {f"{kind}_like" for kind in ("zeros", "ones", "full", "empty", "rand", "randint")}
_COUNTS |= {f"new_{kind}" for kind in ("zeros", "ones", "full", "empty")}
_SMALL = 10  # a table this many times smaller than the largest holds segments or languages, not tokens


@dataclass
class _Read:
    """One lookup of integers that come from the inputs."""

    module: nn.Module
    call: int  # which call of the module, from 1
    sources: frozenset[int]  # numbers of the inputs that the indices come from
    rows: int  # of the table


def find_token_reader(
    model: nn.Module, inputs: Any, samples: Any, run: Callable[[], Any]
) -> tuple[nn.Module, int] | None:
    """The module that reads the tokens, and which of its calls does, from 1; ``None`` if no embedding is executed.

    Args:
        model: the module that ``run()`` calls.
        inputs: what ``run()`` calls it with.
        samples: the same structure with all points, which show what is a token: not what counts up, is a mask of zeros
            and ones, or is the same for all points.
        run: calls the model.
    """
    with _Lookups(model, tree_leaves(inputs)) as lookups:
        run()
    reads = lookups.reads
    if not reads:  # what reads the inputs may not be seen, as code outside of torch
        return (lookups.embeddings[0], 1) if lookups.embeddings else None
    leaves = tree_leaves(samples)
    telling = [read for read in reads if any(_are_tokens(leaves[source]) for source in read.sources)] or reads
    largest = max(read.rows for read in telling)
    first = next(read for read in telling if read.rows * _SMALL >= largest)
    return first.module, first.call


def _are_tokens(values: Tensor) -> bool:
    if bool((values >= 0).all() and (values <= 1).all()):
        return False
    if len(values) > 1 and bool((values == values[:1]).all()):
        return False
    steps = values.diff(dim=-1) if values.ndim > 1 else values.new_zeros(0)
    return steps.numel() == 0 or float((steps == 1).double().mean()) < 0.5  # else it counts positions


class _Lookups(ModuleWatch):
    """Follows integers from the inputs of a model to the tables in which they are looked up."""

    def __init__(self, model: nn.Module, leaves: list[Any]) -> None:
        super().__init__()
        self.reads: list[_Read] = []
        self.embeddings: list[nn.Module] = []  # that were called
        self._root = model
        self._modules = {id(module) for module in model.modules()}
        self._calls: dict[int, int] = {}
        self._stack: list[nn.Module] = []
        self._pending: dict[int, tuple[_Read, tuple[int, ...]]] = {}  # in a module that is no nn.Embedding
        self._alive: list[Tensor] = []  # so that no memory is used again
        self._sources: dict[int, frozenset[int]] = {}  # by memory, which views share
        for number, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor) and _is_integer(leaf):
                self._note(leaf, frozenset([number]))

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        if id(module) in self._modules:
            self._stack.append(module)
            self._calls[id(module)] = self._calls.get(id(module), 0) + 1
            if isinstance(module, nn.Embedding):
                self.embeddings.append(module)

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        if id(module) not in self._modules:
            return
        self._stack.pop()
        read, shape = self._pending.pop(id(module), (None, ()))
        if read is not None and isinstance(output, Tensor) and tuple(output.shape) == shape:
            self.reads.append(read)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op, kwargs = func._schema.name.removeprefix("aten::").rstrip("_"), kwargs or {}
        result = func(*args, **kwargs)
        sources = frozenset[int]().union(*map(self._sources_of, tree_leaves((args, kwargs))))
        if sources and op not in _COUNTS:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and _is_integer(leaf):
                    self._note(leaf, sources)
        if op in _LOOKUPS and self._stack:
            self._looked_up(args[0], self._sources_of(args[1]), result)
        return result

    def _looked_up(self, table: Tensor, sources: frozenset[int], result: Any) -> None:
        module = self._stack[-1]
        if not sources or id(module) in self._pending:
            return
        read = _Read(module, self._calls[id(module)], sources, len(table))
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
            self.reads.append(read)
        elif module is not self._root:  # an embedding of another kind, if it returns what it has looked up
            self._pending[id(module)] = read, tuple(result.shape) if isinstance(result, Tensor) else ()

    def _note(self, tensor: Tensor, sources: frozenset[int]) -> None:
        with suppress(RuntimeError, NotImplementedError):  # sparse ones have no memory of their own
            self._alive.append(tensor)
            self._sources[memory_of(tensor)] = sources | self._sources_of(tensor)

    def _sources_of(self, leaf: Any) -> frozenset[int]:
        if not self._sources or not isinstance(leaf, Tensor) or not _is_integer(leaf):
            return frozenset()
        with suppress(RuntimeError, NotImplementedError):
            return self._sources.get(memory_of(leaf), frozenset())
        return frozenset()


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype is torch.bool)
