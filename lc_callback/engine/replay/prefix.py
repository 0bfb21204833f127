"""The affine part of a model before its first non-linearity, which need not run for every vertex."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.layout import memory_of, memory_order, permuted, reduced, restored
from lc_callback.engine.network.operations import Knot
from lc_callback.engine.network.recorder import Recorder, Site

if TYPE_CHECKING:
    from lc_callback.engine.network.layers import Layers

__all__ = ["Prefix", "find_prefix", "pre_activations", "same", "some_moves"]

_TRIED = 3  # modules
_AT_ONCE = 3  # points that are compared in one forward pass: as many as a trace has, so memory suffices
_ROUNDING = 2**12  # units in the last place of a layer's largest value


class _Reached(Exception):  # noqa: N818 (no error: the rest of the forward pass is not needed)
    pass


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
        module: what runs there; its output takes the place of the points.
        steps: ``(B, *shape)``: what that output changes by along each direction of the frame.
    """

    module: nn.Module
    steps: Tensor
    held: tuple[Tensor, Tensor] | None = None  # points, and the outputs there
    moves: _Moves | None = None  # the last
    entered: tuple[Tensor, int, Tensor, _Moves] | None = None  # the last values, their version, and what they sum up

    def values(self, layers: Layers, points: Tensor, coefficients: Tensor) -> Tensor:
        """``(k * n, *shape)``: what enters for the points ``(n,)``, moved by each of ``(k, B)`` parts of the frame."""
        base = self.at(layers, points)
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

    def hold(self, layers: Layers, points: Tensor, most: int) -> None:
        """Compute the outputs at these points already, of at most so many at once."""
        self.held = None
        parts = [self.at(layers, some) for some in points.split(most)]
        self.held = points, torch.cat(parts) if len(parts) > 1 else parts[0]

    def at(self, layers: Layers, points: Tensor) -> Tensor:
        """The outputs at these points, or a part of what is held if the points are a part of those."""
        if self.held is not None and memory_of(self.held[0]) == memory_of(points):
            start = points.storage_offset() - self.held[0].storage_offset()
            if 0 <= start <= len(self.held[0]) - len(points):
                return self.held[1][start : start + len(points)]
        return output_of(self.module, lambda: layers.run(layers.points.batch(points, None)))


def output_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a module returns at its first call; nothing is run after it."""
    found: list[Tensor] = []

    def stop(called: nn.Module, args: Any, output: Any) -> None:
        if called is module:
            found.append(output)
            raise _Reached

    handle = register_module_forward_hook(stop)
    try:
        run()
    except Exception:  # TorchScript makes its own of ours
        if not found:
            raise
    finally:
        handle.remove()
    if not found:
        raise ValueError(f"`model` did not run its {type(module).__name__} here, but did when traced.")
    return found[0]


def find_prefix(layers: Layers, gives_the_same: Callable[[], bool], most: int, repeats: bool) -> Prefix | None:
    """The latest module that does, if there is one; found with at most so many samples in one forward pass.

    A model may use its input again later on, or compute something else before its first non-linearity: whether a module
    does is tried out, by ``gives_the_same()`` with the prefix in place, and if it ``repeats`` with a tape.
    """
    scale = (layers.largest or 1.0) * layers.dim**0.5
    whole = layers.tape
    for module in _before_the_first_knot(layers, repeats)[:_TRIED]:
        layers.tape = layers.repeating(module) if repeats else None
        if repeats and layers.tape is None:  # what comes later needs more
            continue
        try:
            layers.prefix = Prefix(module, _steps(layers, module, layers.frame, scale, most))
        except Exception:  # more than one tensor, say
            continue
        if gives_the_same():
            return layers.prefix
    layers.prefix, layers.tape = None, whole
    return None


def some_moves(layers: Layers, frame: Tensor) -> Tensor:
    """``(2, B)`` coefficients of moves as large as the points."""
    scale = (layers.largest or 1.0) * (layers.dim / len(frame)) ** 0.5
    return torch.randn(2, len(frame), generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(frame) * scale


def _steps(layers: Layers, module: nn.Module, frame: Tensor, scale: float, most: int) -> Tensor:
    """From moves as large as the points: then the least is lost by rounding."""
    first = torch.zeros(1, dtype=torch.long)
    offsets = torch.cat([torch.zeros_like(frame[:1]), scale * frame])
    batches = (layers.points.batch(first, part) for part in offsets.split(most))
    outputs = [output_of(module, functools.partial(layers.run, batch)) for batch in batches]
    origin, moved = torch.cat(outputs).split([1, len(frame)])
    return (moved - origin) / scale


def _before_the_first_knot(layers: Layers, repeats: bool) -> list[nn.Module]:
    """The modules that return something before the first non-linearity, the latest first."""
    if repeats:
        return layers.returned
    returned: dict[nn.Module, None] = {}

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and module in known:
            returned[module] = None

    def stop(site: Site, knots: list[Knot]) -> None:
        reached.append(site)
        raise _Reached

    reached: list[Site] = []
    known = set(layers.model.modules())
    handle = register_module_forward_hook(note)
    try:
        with Recorder(layers.model, stop, max_pool=True):
            layers.run(layers.points.batch(torch.zeros(1, dtype=torch.long), None))
    except Exception:
        if not reached:
            raise
    finally:
        handle.remove()
    return [*reversed(returned)] if reached else []


def pre_activations(layers: Layers, coefficients: Tensor, most: int) -> list[Tensor]:
    """Of all places at some points, and the output if it is needed; at most so many samples in one forward pass."""
    seen: list[Tensor] = []

    def keep(position: int, knots: list[Knot]) -> None:
        seen.append(knots[0][0].clone())

    points = layers.verified
    # Two samples, if ever there are several: a model may ask its input for their number.
    moves = coefficients[: min(most, max(1, 3 - len(points)))]
    for some in points.tensor_split(-(-len(points) // min(most, _AT_ONCE))):
        returned = layers.follow_frame(some, moves, keep)
        if not layers.writes_down:
            seen += [leaf.clone() for leaf in tree_leaves(returned) if isinstance(leaf, Tensor)]
    return seen


def same(expected: list[Tensor], found: list[Tensor]) -> bool:
    """Whether these are equal, but for rounding."""
    return len(expected) == len(found) and all(map(_same, expected, found))


def _same(one: Tensor, other: Tensor) -> bool:
    tolerance = _ROUNDING * torch.finfo(one.dtype).eps if one.is_floating_point() else 0
    if one.shape == other.shape and float((one - other).abs().max()) <= tolerance * float(one.abs().max()) < torch.inf:
        return True
    finite = one.abs() < torch.inf  # beyond the border of max-pooling there is -inf
    size = one.abs().where(finite, 0).max()
    near = (one - other).where(finite, 0).abs() <= tolerance * size
    return bool(torch.equal(one.isnan(), other.isnan()) and near.all())
