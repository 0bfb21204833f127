"""The affine part of a model before its first non-linearity. It runs once for each point, not for each vertex."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lc_callback.engine.network.layout import memory_of, memory_order, permuted, reduced, restored
from lc_callback.engine.network.modules import Reached, output_of
from lc_callback.engine.network.operations import Kink
from lc_callback.engine.network.recorder import Recorder, Site
from lc_callback.engine.network.space import Space

__all__ = ["Prefix", "modules_before_kinks", "prefix_behind"]


@dataclass
class _Moves:
    """The changes ``(k, 1, *shape)`` of an output, one for each row of coefficients ``(k, B)`` of the frame."""

    coefficients: Tensor
    changes: Tensor

    @functools.cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """``(1, *shape)``: the largest and the smallest change."""
        return reduced(self.changes, lambda z: z.amax(0)), reduced(self.changes, lambda z: z.amin(0))


@dataclass
class Prefix:
    """A place where points that move along a frame can enter a model, because everything before it is affine.

    Attributes:
        space: of the points.
        module: the module at that place; its output replaces the points.
        steps: ``(B, *shape)``: the change of that output along each direction of the frame.
    """

    space: Space
    module: nn.Module
    steps: Tensor
    held: tuple[Tensor, Tensor] | None = None  # points, and the outputs there
    moves: _Moves | None = None  # the last ones
    # The last values, their version, and the base and moves of which they are sums.
    entered: tuple[Tensor, int, Tensor, _Moves] | None = None

    def values(self, points: Tensor, coefficients: Tensor) -> Tensor:
        """``(k * n, *shape)``: the values that enter for the points ``(n,)``, moved by each row of ``(k, B)``."""
        base = self.at(points)
        moves = self._moves(base, coefficients)
        values = (base + moves.changes).flatten(0, 1)
        self.entered = None if values.is_inference() else (values, values._version, base, moves)
        return values

    def outermost(self, z: Tensor, shape: tuple[int, int]) -> Tensor | None:
        """``(2, n, ...)``: the largest and smallest of ``z (k * n, ...)`` over ``k``, if ``z`` is what entered last.

        The values need not be read: each is a sum of the same base and a change, and rounding keeps the order of the
        changes.
        """
        if self.entered is None:
            return None
        values, version, base, moves = self.entered
        if values is not z or values._version != version or (len(moves.changes), len(base)) != shape:
            return None
        return torch.stack([base + end for end in moves.ends])

    def moved(self, base: Tensor, coefficients: Tensor) -> Tensor:
        """``(k, 1, *shape)``: the changes of the output ``base`` by these moves."""
        return self._moves(base, coefficients).changes

    def _moves(self, base: Tensor, coefficients: Tensor) -> _Moves:
        if self.moves is None or self.moves.coefficients is not coefficients:
            order = memory_order(base, 1)
            steps = permuted(self.steps, order)
            changes = (coefficients @ steps.flatten(1)).view(-1, *steps.shape[1:])
            self.moves = _Moves(coefficients, restored(changes, order).unsqueeze(1))
        return self.moves

    def hold(self, points: Tensor, most: int) -> None:
        """Compute and keep the outputs at these points, at most ``most`` points in one pass."""
        self.held = None
        parts = [self.at(some) for some in points.split(most)]
        self.held = points, torch.cat(parts) if len(parts) > 1 else parts[0]

    def at(self, points: Tensor) -> Tensor:
        """The outputs at these points. They are computed, unless they are kept from :meth:`hold`."""
        if self.held is not None and memory_of(self.held[0]) == memory_of(points):
            start = points.storage_offset() - self.held[0].storage_offset()
            if 0 <= start <= len(self.held[0]) - len(points):
                return self.held[1][start : start + len(points)]
        return output_of(self.module, lambda: self.space.run(self.space.points.batch(points, None)))


def prefix_behind(module: nn.Module, space: Space, frame: Tensor, most: int) -> Prefix:
    """The :class:`Prefix` behind a module that computes an affine map; at most ``most`` samples in one pass.

    Raises:
        Exception: of any kind, if the module does not return one tensor of the same shape for each point.
    """
    scale = (space.largest or 1.0) * space.dim**0.5  # as large as the points, so that rounding loses least
    first = torch.zeros(1, dtype=torch.long)
    offsets = torch.cat([torch.zeros_like(frame[:1]), scale * frame])
    batches = (space.points.batch(first, part) for part in offsets.split(most))
    outputs = [output_of(module, functools.partial(space.run, batch)) for batch in batches]
    origin, moved = torch.cat(outputs).split([1, len(frame)])
    return Prefix(space, module, (moved - origin) / scale)


def modules_before_kinks(space: Space) -> list[nn.Module]:
    """The modules that return something before the first non-linearity, the latest first."""
    returned: dict[nn.Module, None] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and module in known:
            returned[module] = None

    def stop(site: Site, kinks: list[Kink]) -> None:
        reached.append(site)
        raise Reached

    reached: list[Site] = []
    known = set(space.model.modules())
    handle = register_module_forward_hook(note)
    try:
        with Recorder(space.model, stop, max_pool=True):
            space.run(space.points.batch(torch.zeros(1, dtype=torch.long), None))
    except Exception:
        if not reached:
            raise
    finally:
        handle.remove()
    return [*reversed(returned)] if reached else []
