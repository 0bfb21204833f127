"""The affine part of a model before its first non-linearity, which need not run for every vertex."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lc_callback.engine.network.layout import memory_of, memory_order, permuted, reduced, restored
from lc_callback.engine.network.modules import Reached, output_of
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.recorder import Recorder, Site
from lc_callback.engine.network.space import Space

__all__ = ["Prefix", "modules_before_kinks", "prefix_behind"]


@dataclass
class _Moves:
    """What an output changes by, ``(k, 1, *shape)``, for each of ``(k, B)`` parts of the frame."""

    coefficients: Tensor
    changes: Tensor

    @functools.cached_property
    def ends(self) -> tuple[Tensor, Tensor]:
        """``(1, *shape)``: the largest and the smallest change."""
        return reduced(self.changes, lambda z: z.amax(0)), reduced(self.changes, lambda z: z.amin(0))


@dataclass
class Prefix:
    """Where points that move along a frame can enter a model, since what comes before is affine.

    Attributes:
        space: of the points.
        module: what runs there; its output takes the place of the points.
        steps: ``(B, *shape)``: what that output changes by along each direction of the frame.
    """

    space: Space
    module: nn.Module
    steps: Tensor
    held: tuple[Tensor, Tensor] | None = None  # points, and the outputs there
    moves: _Moves | None = None  # the last
    entered: tuple[Tensor, int, Tensor, _Moves] | None = None  # the last values, their version, and what they sum up

    def values(self, points: Tensor, coefficients: Tensor) -> Tensor:
        """``(k * n, *shape)``: what enters for the points ``(n,)``, moved by each of ``(k, B)`` parts of the frame."""
        base = self.at(points)
        moves = self._moves(base, coefficients)
        values = (base + moves.changes).flatten(0, 1)
        self.entered = None if values.is_inference() else (values, values._version, base, moves)
        return values

    def outermost(self, z: Tensor, shape: tuple[int, int]) -> Tensor | None:
        """``(2, n, ...)``: the largest and smallest of ``(k * n, ...)`` over ``k``, if this is what entered last.

        Without a look at it: rounding keeps the order of the sums of a number and others.
        """
        if self.entered is None:
            return None
        values, version, base, moves = self.entered
        if values is not z or values._version != version or (len(moves.changes), len(base)) != shape:
            return None
        return torch.stack([base + end for end in moves.ends])

    def moved(self, base: Tensor, coefficients: Tensor) -> Tensor:
        """``(k, 1, *shape)``: by how much these moves change the output ``base``."""
        return self._moves(base, coefficients).changes

    def _moves(self, base: Tensor, coefficients: Tensor) -> _Moves:
        if self.moves is None or self.moves.coefficients is not coefficients:
            order = memory_order(base, 1)
            steps = permuted(self.steps, order)
            changes = (coefficients @ steps.flatten(1)).view(-1, *steps.shape[1:])
            self.moves = _Moves(coefficients, restored(changes, order).unsqueeze(1))
        return self.moves

    def hold(self, points: Tensor, most: int) -> None:
        """Compute the outputs at these points already, of at most so many at once."""
        self.held = None
        parts = [self.at(some) for some in points.split(most)]
        self.held = points, torch.cat(parts) if len(parts) > 1 else parts[0]

    def at(self, points: Tensor) -> Tensor:
        """The outputs at these points, or a part of what is held if the points are a part of those."""
        if self.held is not None and memory_of(self.held[0]) == memory_of(points):
            start = points.storage_offset() - self.held[0].storage_offset()
            if 0 <= start <= len(self.held[0]) - len(points):
                return self.held[1][start : start + len(points)]
        return output_of(self.module, lambda: self.space.run(self.space.points.batch(points, None)))


def prefix_behind(module: nn.Module, space: Space, frame: Tensor, most: int) -> Prefix:
    """Where points enter behind a module, if what it computes is affine; with so many samples in a pass at most.

    Raises:
        Exception: of any kind, if the module does not return one tensor of the same shape for each point.
    """
    scale = (space.largest or 1.0) * space.dim**0.5  # as large as the points: then the least is lost by rounding
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

    def stop(site: Site, knots: list[Knot]) -> None:
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
