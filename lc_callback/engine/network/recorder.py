"""The pre-activations that meet non-linearities while a model runs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lc_callback.engine.network.channels import Channels
from lc_callback.engine.network.max_pools import MAX_POOLS, winners_of
from lc_callback.engine.network.module_watch import ModuleWatch
from lc_callback.engine.network.modules import module_paths
from lc_callback.engine.network.operations import OPERATIONS, Kink, kinks_of

__all__ = ["Recorder", "Site", "is_nonlinear", "known_operations"]


@dataclass(frozen=True)
class Site:
    """Where a pre-activation was met: module path, operation, and the number of the module's call in this forward."""

    path: str
    op: str
    call: int
    merge: str  # class of a recurrent module: its gates and time steps, all sites of one call, are one layer
    channels: int = -1  # axis of the features, where they are asked for


@dataclass
class _Entrance:
    """The module whose output is moved; what runs before that is not emitted."""

    module: nn.Module | None
    calls: int  # of it, to wait for
    move: Callable[[Tensor], Tensor] | None
    waiting: bool


class Recorder(ModuleWatch):
    """Emits every pre-activation while a model runs, and can move a module's output on the way.

    Nothing is attached to the model: operations are seen by a dispatch mode, module names by global hooks that exist
    only while the recorder is entered.

    Args:
        model: the module that is going to run inside the ``with`` block.
        consumer: called as ``consumer(site, kinks)`` for each non-linearity, before it is executed (max-pooling:
            after). It must reduce what it gets, for an in-place operation overwrites it next.
        outputs_of: count the outputs of these modules, with a kink at 0, instead of the pre-activations.
        max_pool: also emit the winners of max-pooling and other maxima; ``"candidates"``: what competes there,
            along a last axis, -inf beyond the border.
        results: emit what the non-linearities return instead of the pre-activations, and of a recurrent module
            its output.
        at: a module whose output is moved at one of its calls. What runs before that is not emitted.
        at_call: which of its calls, from 1.
        move: called with that output; returns what takes its place.
    """

    def __init__(
        self,
        model: nn.Module,
        consumer: Callable[[Site, list[Kink]], None],
        *,
        outputs_of: Sequence[nn.Module] | None = None,
        max_pool: bool | str = False,
        results: bool = False,
        at: nn.Module | None = None,
        at_call: int = 1,
        move: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self._consumer = consumer
        self._paths = module_paths(model)
        self._outputs_of = None if outputs_of is None else {id(module) for module in outputs_of}
        self._max_pool, self._results = max_pool, results
        self._channels = Channels() if results else None
        self._entrance = _Entrance(at, at_call, move, waiting=at is not None)
        self.emitted = 0
        self._stack = [Site("", "", 0, "")]
        self._calls = 0

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
        replaced, entrance = None, self._entrance
        if module is entrance.module:
            entrance.calls -= 1
        if module is entrance.module and entrance.waiting and entrance.calls <= 0:
            if not isinstance(output, Tensor):
                raise ValueError(f"`at={site.path!r}` must name a module that returns a tensor, not {_kind(output)}.")
            output = replaced = entrance.move(output) if entrance.move is not None else output
            entrance.waiting = False  # only now: moving the output is no part of the model
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
            self._emit(site, [(first, 0.0)])
        return replaced

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        op = _name(func)
        if op == "threshold" and args[1] == args[2]:  # as nn.Threshold(0, 0): no jump
            op = "clamp_min"
        has_kink = self._outputs_of is None and _has_kinks(op)
        has_kink = has_kink and isinstance(args[0], Tensor) and args[0].is_floating_point()
        before = self.emitted
        if has_kink and not self._results:
            self._emit(self._site(op), kinks_of(op, args, kwargs))
        result = self._execute(op, func, args, kwargs)
        if self._channels is not None:
            self._channels.executed(op, args, result)
        if has_kink and self._results and not self._stack[-1].merge:
            self._emit(self._site(op), [(result[0] if isinstance(result, tuple) else result, 0.0)])
        if self._outputs_of is None and self._max_pool and op in MAX_POOLS:
            winners = winners_of(op, result, args, kwargs, self._max_pool)
            self._emit(self._site(op), [(winner, None) for winner in winners])
        self._executed(op, result, followed=self.emitted > before)
        return result

    def _execute(self, op: str, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)

    def _site(self, op: str) -> Site:
        module = self._stack[-1]
        return Site(module.path, op, module.call, module.merge)  # `replace` takes three times as long

    def _executed(self, op: str, result: Any, followed: bool) -> None:
        """Called after each operation; ``followed``: it emitted something."""

    def _emit(self, site: Site, kinks: list[Kink]) -> None:
        if not self._entrance.waiting and kinks and kinks[0][0].numel():
            if self._channels is not None and kinks[0][0].ndim:
                site = replace(site, channels=self._channels.axis(kinks[0][0]))
            with _disable_current_modes():  # what the consumer computes is no part of the model
                self._consumer(site, kinks)
            self.emitted += 1


@functools.cache
def _name(func: Any) -> str:
    """Of an aten operation, without the underscore of its in-place form."""
    name: str = func._schema.name
    return name.removeprefix("aten::").rstrip("_")


def is_nonlinear(op: str) -> bool:
    """Whether an operation may have a kink, or chooses a winner."""
    return _has_kinks(op) or op in MAX_POOLS


def _has_kinks(op: str) -> bool:
    return op in OPERATIONS and OPERATIONS[op].kinks is not None


def known_operations() -> str:
    """The operations that are seen, for messages."""
    return ", ".join(sorted(name for name in OPERATIONS if _has_kinks(name) and not name.startswith("_")))


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
