"""An upper bound of local complexity that holds on the whole neighbourhood, not only at its vertices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from lc_callback.engine.chunks import BOUNDS
from lc_callback.engine.network.layers import Execution, TracedLayers
from lc_callback.engine.network.max_pools import MAX_POOLS, MINIMA
from lc_callback.engine.network.operations import Kind, Kink, is_a
from lc_callback.engine.network.recorder import Recorder
from lc_callback.engine.network.space import Space

__all__ = ["UpperBound"]

_SYMBOLS = 32  # at first
_ROUNDING = 1e-12  # of a layer's largest value
_OFF = 1e-7  # of how far the values of a layer move


class UpperBound:
    r"""Bounds the units that switch anywhere in the convex hull of the frame of a point.

    A zonotope goes through the network: every value is :math:`c + \sum_p a_p g_p + \sum_k b_k e_k`, with
    :math:`\|a\|_1 \le 1` for the directions of the frame and :math:`|b_k| \le 1`. An affine map maps the terms one by
    one, so the model itself carries them, as a batch of the samples :math:`c`, :math:`c + g_p` and :math:`c + e_k`.
    The non-linearity of a unit that may switch is replaced by the line through its ends, and how far it is from that
    line is a new symbol :math:`b_k` (Singh et al., *Fast and Effective Robustness Certification*, NeurIPS 2018).
    Samples of symbols that are not in use yet are copies of :math:`c`. The last sample is a mean of all
    others: where it does not arrive as one, the network is not affine between its non-linearities.

    Args:
        space: of the points, located in float64.

    Raises:
        ValueError: if the network is not piecewise affine.
    """

    def __init__(self, space: Space) -> None:
        self._layers = TracedLayers(space, max_pool="candidates", hint="")
        self._layers.check_piecewise_affine("so there is no bracket.")

    @property
    def pools(self) -> list[bool]:
        """Which layers are max-pooling."""
        places = zip(self._layers.layer_of, self._layers.sites, strict=True)
        pools = {layer for layer, site in places if site.op in MAX_POOLS}
        return [layer in pools for layer in range(len(self._layers.names))]

    def count(self, radii: list[float], frame: Tensor) -> Tensor:
        """``(R, N, L)`` upper bounds, ``-1`` where a pre-activation was not finite."""
        layers, space = self._layers, self._layers.space
        most = max(_SYMBOLS, BOUNDS.of(space.device) // max(1, layers.bytes_per_sample) - len(frame) - 2)
        symbols = _SYMBOLS
        counts = torch.empty(len(radii), space.points.n, len(layers.names), dtype=torch.int64)
        for row, radius in enumerate(radii):
            for point in range(space.points.n):
                zonotope = _Zonotope(layers, point, radius * frame, symbols)
                while zonotope.exhausted and symbols < most:
                    symbols = min(4 * symbols, most)
                    zonotope = _Zonotope(layers, point, radius * frame, symbols)
                counts[row, point] = torch.tensor(zonotope.counts)
        return counts


class _Zonotope:
    """What the units of each layer may reach, from one point with a number of symbols.

    Attributes:
        counts: units of each layer that may switch, -1 where a pre-activation was not finite.
        exhausted: whether the symbols did not suffice; then all units of later places are counted.
        operand: of the operation that runs.
        becomes: what its result is replaced by; ``None`` leaves it as it is.
    """

    def __init__(self, layers: TracedLayers, point: int, frame: Tensor, symbols: int) -> None:
        self._layers = layers
        self.operand: Any = None
        self.becomes: Callable[[Any, Callable[[Tensor], Tensor]], None] | None = None
        self._n_directions, self._n_symbols, self._n_used = len(frame), symbols, 0
        self.counts = [0] * len(layers.names)
        weights = torch.rand(
            1 + len(frame) + symbols, generator=torch.Generator().manual_seed(0), dtype=torch.float64
        ).to(layers.space.device)
        self._weights = weights / weights.sum()
        self.exhausted = False
        offsets = torch.cat([torch.zeros_like(frame[:1]), frame, frame.new_zeros(symbols, frame.shape[1])])
        moves = torch.cat([offsets, self._weights[None] @ offsets])
        layers.follow(torch.tensor([point]), moves, self._note, _Relaxation(self))

    # At each non-linearity

    def _note(self, position: int, kinks: list[Kink]) -> None:
        """Before an operation (max-pooling: after): count, and say in ``becomes`` what its result is replaced by."""
        z, kink = kinks[0]
        layer, units = self._layers.layer_of[position], z[0].numel() if kink is not None else z[0, ..., 0].numel()
        if z.isnan().any() or (z == torch.inf).any() or (kink is not None and (z == -torch.inf).any()):
            self.counts[layer] = -1
        elif self.exhausted:
            self.counts[layer] += units
        elif kink is None:
            self._note_winners(position, z.flatten(1, -2))
        else:
            self._note_pieces(position, [(z.flatten(1).clone(), kink or 0.0) for z, kink in kinks])

    def _note_pieces(self, position: int, kinks: list[tuple[Tensor, float]]) -> None:
        """An elementwise non-linearity: a line from end to end of what each unit may reach."""
        is_min_max = is_a(self._layers.sites[position].op, Kind.BINARY_MIN_MAX)
        if is_min_max:  # the larger of x and y is y plus the larger of x - y and 0
            operand, x = None, kinks[0][0]
            places = [torch.zeros_like(x[0])]
        else:
            operand = self.operand.clone()  # the operation may work in place
            x = self._front(position, operand).flatten(1).clone()
            offsets = [x - z + kink for z, kink in kinks]
            if any((offset - offset[0]).abs().max() > _OFF * x.abs().max() for offset in offsets):
                raise self._not_affine(position)  # a bound that depends on the input
            places = [offset[0] for offset in offsets]
        reach, rounding = self._reach(position, x)
        low, high = x[0] - reach - rounding, x[0] + reach + rounding
        active = torch.stack([(low <= place) & (place < high) for place in places]).any(0) & (reach > 0)
        self.counts[self._layers.layer_of[position]] += int(active.sum())
        at = torch.stack([low, high, *(place.clamp(low, high) for place in places)])

        def becomes(result: Tensor, apply: Callable[[Tensor], Tensor]) -> None:
            new = self._front(position, result).flatten(1).clone()
            if operand is None:
                values = apply(at)
                rest = (new - apply(x))[:, active]
            else:
                front = self._front(position, operand)
                front[: len(at)] = at.view(len(at), *front.shape[1:])
                values, rest = self._front(position, apply(operand)).flatten(1)[: len(at)], torch.zeros(())
            slope = ((values[1] - values[0]) / (high - low))[active]
            beside = values[:, active] - slope * at[:, active]
            most, least = beside.amax(0), beside.amin(0)
            new[:, active] = rest.to(x) + slope * x[:, active] + (most + least) / 2
            self._replace(position, result, new, active, (most - least) / 2)

        self.becomes = becomes

    def _note_winners(self, position: int, z: Tensor) -> None:
        """Maxima ``(S, W, K)``: the winner at the point, and by how much another may be larger."""
        winner = z[0].argmax(-1)
        largest = z.gather(-1, winner.expand(len(z), -1)[..., None])
        border = z[0] == -torch.inf
        lead = (z - largest).masked_fill(border, 0.0)
        reach, rounding = self._reach(position, lead.flatten(1))
        reach = reach.view_as(border)
        ahead = (lead[0] + reach + rounding).masked_fill(border | (reach == 0), 0.0).amax(-1).clamp(min=0)
        active = ahead > 0
        self.counts[self._layers.layer_of[position]] += int(active.sum())
        sign = -1 if self._layers.sites[position].op in MINIMA else 1

        def becomes(result: Any, apply: Callable[[Tensor], Tensor]) -> None:
            values = result if isinstance(result, Tensor) else result[0]
            new = self._front(position, values).flatten(1).clone()
            new[:, active] = (sign * (largest[..., 0] + ahead / 2))[:, active]
            self._replace(position, values, new, active, ahead[active] / 2)

        self.becomes = becomes

    def _front(self, position: int, tensor: Tensor) -> Tensor:
        axis = self._layers.axes[position]
        assert axis is not None
        return axis.to_front(tensor, len(self._weights) + 1)

    def _reach(self, position: int, x: Tensor) -> tuple[Tensor, float]:
        """How far units ``(S, U)`` may move from where they are at the point, and the rounding of their layer."""
        moved = x[1 : 1 + self._n_directions + self._n_used] - x[0]
        reach = moved[: self._n_directions].abs().amax(0) + moved[self._n_directions :].abs().sum(0)
        size = float((x[0].abs() + reach).max())
        off = float((x[-1] - self._weights @ x[:-1]).abs().max())
        if off > _OFF * float(reach.max()) + _ROUNDING * size:
            raise self._not_affine(position)
        return reach, _ROUNDING * size

    def _replace(self, position: int, result: Tensor, new: Tensor, active: Tensor, beside: Tensor) -> None:
        """Write ``new (S, U)`` to a result, with a new symbol for each active unit that is ``beside`` its line."""
        units = active.nonzero().flatten()[beside > 0]
        symbols = 1 + self._n_directions + self._n_used + torch.arange(len(units), device=units.device)
        self._n_used += len(units)
        self.exhausted = self._n_used > self._n_symbols
        if not self.exhausted:
            new[symbols, units] += beside[beside > 0]
            new[-1] = self._weights @ new[:-1]
            front = self._front(position, result)
            front.copy_(new.view(front.shape))

    def _not_affine(self, position: int) -> ValueError:
        site = self._layers.sites[position]
        return ValueError(
            f"`bracket=True` needs a network that is affine between its non-linearities, but before {site.op!r} at "
            f"{site.path or 'the top'!r} something else is nonlinear, such as a softmax, a LayerNorm or a product."
        )


class _Relaxation(Execution):
    """Puts lines in place of non-linearities."""

    def __init__(self, zonotope: _Zonotope) -> None:
        super().__init__()
        self._zonotope = zonotope

    def recorder(self, model: nn.Module, receive: Callable[..., None], options: dict[str, Any]) -> Recorder:
        """What observes the model."""
        return _Relaxing(self._zonotope, model, receive, **options)


class _Relaxing(Recorder):
    """A recorder that does what :class:`_Relaxation` says."""

    def __init__(self, zonotope: _Zonotope, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._zonotope = zonotope

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        zonotope, others = self._zonotope, kwargs or {}
        zonotope.operand, zonotope.becomes = args[0] if args else None, None
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if zonotope.becomes is not None:
            is_min_max = is_a(func._schema.name.removeprefix("aten::"), Kind.BINARY_MIN_MAX)
            with _disable_current_modes():
                zonotope.becomes(
                    result, lambda x: func(x, torch.zeros_like(x)) if is_min_max else func(x, *args[1:], **others)
                )
        return result
