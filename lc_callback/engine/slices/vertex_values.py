"""Values of the units of one layer at the vertices of a subdivision, as far as they are worth keeping."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lc_callback.engine.network.operations import Kink

__all__ = ["UnitValues", "VertexRows", "WinnerValues"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_NEAR = 0.25  # of its range: units whose zero line is this near to the vertices seen so far are kept


class VertexRows:
    """A table ``(V, M)`` whose rows come in parts, in any order."""

    def __init__(self) -> None:
        self._parts: list[tuple[Ints, Tensor]] = []

    @property
    def n_bytes(self) -> int:
        """Bytes of memory that it takes."""
        return sum(rows.numel() * rows.element_size() for _, rows in self._parts)

    def add(self, vertices: Ints, rows: Tensor) -> None:
        """Add rows of these vertices."""
        self._parts.append((vertices, rows.cpu()))

    def narrow(self, columns: Tensor) -> None:
        """Keep only these columns, ``(M,)`` booleans."""
        self._parts = [(vertices, rows[:, columns.cpu()]) for vertices, rows in self._parts]

    def table(self) -> Floats:
        """``(V, M)``. If a row came twice, the later one counts."""
        n = 1 + max(int(vertices.max()) for vertices, _ in self._parts)
        found = np.empty((n, *self._parts[0][1].shape[1:]))
        for vertices, rows in self._parts:
            found[vertices] = rows.numpy()
        return found


class UnitValues:
    """Values of the units of one layer, minus their kinks, at the vertices.

    When memory runs short, only units stay that change sign on the vertices so far, or nearly do. Of all others the
    smallest and the largest value are kept, which show when such a unit is needed after all.
    """

    def __init__(self) -> None:
        self._rows, self._kept = VertexRows(), torch.empty(0, dtype=torch.bool)
        self._low = self._high = torch.empty(0)
        self._n_units = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of what is kept."""
        return self._rows.n_bytes

    def add(self, vertices: Ints, kinks: list[Kink]) -> None:
        """Add vertices with the values ``(k, ...)`` that the model has there."""
        z = self._columns(kinks)
        if not len(self._kept):
            self._n_units = z.shape[1] // len(kinks)
            self._kept = z.new_ones(z.shape[1], dtype=torch.bool)
        self._note(z)
        self._rows.add(vertices, z if self._kept.all() else z[:, self._kept])

    def active(self) -> Tensor:
        """The columns that are zero somewhere between the vertices."""
        return (self._low < 0) & (self._high > 0)

    def narrow(self) -> None:
        """Keep only what is likely to be needed."""
        self._keep(self._kept & (self.active() | self._near()))

    def drop(self) -> None:
        """Keep nothing."""
        self._keep(torch.zeros_like(self._kept))

    def complete(self) -> bool:
        """Whether the active columns were kept at all vertices."""
        return bool((self._kept | ~self.active()).all())

    def units(self) -> list[int]:
        """Numbers of the active units; a unit comes once for each of its active kinks."""
        return (self.active().nonzero().flatten() % self._n_units).tolist()

    def select(self, kinks: list[Kink]) -> Tensor:
        """The active columns of these values."""
        return self._columns(kinks)[:, self.active()]

    def table(self) -> Floats:
        """``(V, M)``, the active columns, provided that all were kept."""
        self._keep(self.active())
        return self._rows.table()

    def _keep(self, columns: Tensor) -> None:
        self._rows.narrow(columns[self._kept])
        self._kept = columns

    # What competes

    def _columns(self, kinks: list[Kink]) -> Tensor:
        return torch.cat([z.flatten(1) - (kink or 0.0) for z, kink in kinks], dim=1)

    def _note(self, z: Tensor) -> None:
        first = not len(self._low)
        low, high = z.amin(0), z.amax(0)
        self._low, self._high = (low, high) if first else (self._low.minimum(low), self._high.maximum(high))

    def _near(self) -> Tensor:
        return torch.minimum(self._low.abs(), self._high.abs()) < _NEAR * (self._high - self._low)


class WinnerValues(UnitValues):
    """The values ``(V, M, K)`` that compete in the windows of one max-pooling layer, at the vertices."""

    def __init__(self) -> None:
        super().__init__()
        self._winner = torch.empty(0, dtype=torch.long)
        self._changed = torch.empty(0, dtype=torch.bool)

    def active(self) -> Tensor:
        """The windows that have several winners."""
        return self._changed

    def _columns(self, kinks: list[Kink]) -> Tensor:
        return kinks[0][0].flatten(1, -2)

    def _note(self, z: Tensor) -> None:
        top = z.argmax(-1)
        if not len(self._winner):
            self._winner, self._changed = top[0], torch.zeros_like(top[0], dtype=torch.bool)
        self._changed = self._changed | (top != self._winner).any(0)

    def _near(self) -> Tensor:
        return self._changed
