"""Measuring conditions: the model leaves no trace in the training, and its own logging goes nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lc_callback.callbacks.clock import read_clock
from lc_callback.callbacks.ranks import Ranks
from lc_callback.isolation import untouched

__all__ = ["Conditions"]

_PROGRESS_EVERY = 5.0  # seconds
_MUTED = ("log", "log_dict")


class Conditions:
    """The conditions under which one callback measures.

    Args:
        name: of the callback, for lines of progress.
        ranks: the processes that measure together.
        forward_fn: of the callback; it may keep state of its own.
        seed: of the random numbers that a forward draws.
    """

    def __init__(self, name: str, ranks: Ranks, forward_fn: str | Callable[..., Any] | None, seed: int) -> None:
        self._name, self._ranks, self._forward_fn, self._seed = name, ranks, forward_fn, seed
        self._print: Callable[[str], None] | None = None

    @contextmanager
    def of(self, pl_module: Any) -> Iterator[None]:
        """A context manager; see :func:`lc_callback.isolation.untouched`."""
        own = {name: vars(pl_module)[name] for name in _MUTED if name in vars(pl_module)}
        self._print = getattr(pl_module, "print", None)
        try:
            for name in _MUTED:
                vars(pl_module)[name] = _ignore
            with untouched(pl_module, self._forward_fn, seed=self._seed):
                if not self._ranks.measuring.shares:  # else a forward could run more often on one of them
                    self._ranks.measuring.equalise(pl_module.buffers())
                yield
        finally:
            for name in _MUTED:
                del vars(pl_module)[name]
            vars(pl_module).update(own)
            self._print = None

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A function ``(done, total)`` that prints a line every few seconds, above the Trainer's progress bar."""
        start = shown = read_clock()

        def show(done: int, total: int) -> None:
            nonlocal shown
            now = read_clock()
            if now - shown >= _PROGRESS_EVERY and done < total and self._print is not None:
                shown = now
                self._print(f"{self._name}: {what}, {done / total:.0%} after {now - start:.0f} s")

        return show


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``self.log`` while a measurement runs."""
