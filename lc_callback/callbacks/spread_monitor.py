"""Watching how wide the points lie where they are perturbed, if what comes before that is trained as well."""

from __future__ import annotations

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lc_callback.callbacks.network import Network
from lc_callback.engine.network.space import spread_behind
from lc_callback.run.probes import Probes

__all__ = ["SpreadMonitor"]

_MUCH = 2.0  # factor from which a change of the spread is reported


class SpreadMonitor:
    """The spread of the points at the output of a module, such as an embedding, from the first row on.

    A radius stays as it is while an embedding shrinks to a part of what it was, and then reaches farther in it.

    Args:
        length: what stays as it is.
        curve: what changes with the spread.
        then: where that goes if the spread falls, and if it rises.
        shown: a sentence on where the spread is shown.

    Attributes:
        first: the spread at the first row.
    """

    def __init__(self, length: str, curve: str, then: tuple[str, str], shown: str = "") -> None:
        self._length, self._curve, self._then, self._shown = length, curve, then, shown
        self.first: float | None = None
        self._told = False

    def begin(self, first: float | None) -> None:
        """A run begins, or goes on after a first row with this spread."""
        self.first, self._told = first, False

    def look(self, name: str, network: Network, points: Probes | None, at: str | None) -> float | None:
        """The spread of the points; ``None`` if inputs are perturbed, or there are none.

        Warns in the ``name`` of a callback, once, if it changed much.
        """
        if points is None:
            return None
        found = spread_behind(network.module, points.inputs, at=at, forward_fn=network.forward_fn)
        if found is None:
            return None
        at, spread = found
        if self.first is None:
            self.first = spread
        elif not self._told and (spread <= self.first / _MUCH or spread >= self.first * _MUCH):
            self._told = True
            rank_zero_warn(
                f"{name}: the output of {at!r} is trained: the spread of the train points there is {spread:.3g}, and "
                f"was {self.first:.3g} at the first row, while {self._length} stays as it is, so {self._curve} "
                f"{self._then[spread > self.first]} for that alone.{self._shown}"
            )
        return spread
