"""The features of the layers of a model, as rows, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.chunks import FEATURES
from lc_callback.engine.network.layers import Layers
from lc_callback.engine.network.space import compute_dtype
from lc_callback.isolation import untouched

__all__ = ["Features"]

_BLOCK = 1024  # rows of a random projection that exist at a time


class Features(Layers):
    """The features of each layer of a model at points: what the non-linearities return.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict (keywords).
        layers: as for :class:`Layers`.
        max_width: wider layers are projected to this width by a seeded Gaussian matrix; their name then ends in
            ``_proj<max_width>``.
        seed: seed of the projection.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        layers: Sequence[str | type] | None = None,
        max_width: int = 4096,
        seed: int = 0,
        forward_fn: Callable[..., Any] | None = None,
    ) -> None:
        positive_integer("max_width", max_width)
        super().__init__(model, inputs, layers=layers, results=True, forward_fn=forward_fn)
        self._max_width, self._seed = max_width, seed

    def stream(self, sink: Callable[[str, Tensor], None], chunk_size: int | None = None) -> None:
        """Call ``sink(name, rows)`` for each layer and batch of points, in execution order.

        ``rows (n, positions, d)``: a feature map of a convolution has its channels as ``d``, a sequence its last axis.
        """
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        dtype = compute_dtype(self.model, self.inputs)
        with untouched(self.model, self.forward_fn, dtype=dtype):
            self.trace(dtype)
            chunk = chunk_size or FEATURES.samples(self.device, self.bytes_per_sample)

            def receive(position: int, knots: list[Any]) -> None:
                name, values = self.names[self.layer_of[position]], knots[0][0]
                rows = values.reshape(len(values), 1, -1) if values.ndim < 3 else self._rows(position, values)
                if rows.shape[-1] > self._max_width:
                    name, rows = f"{name}_proj{self._max_width}", self._narrow(rows)
                sink(name, rows)

            for points in torch.arange(self.points.n).split(chunk):
                self.follow(points, None, receive)

    def _rows(self, position: int, values: Tensor) -> Tensor:
        batch, channels = self.axes[position], self.channels[position]
        assert batch is not None
        if channels != batch.axis:  # else they are one axis, of which nothing is known
            front = channels + (channels < batch.axis) + (batch.per_sample > 1)
            values = values.movedim(front, -1)
        return values.flatten(1, -2)

    def _narrow(self, rows: Tensor) -> Tensor:
        narrow = rows.new_zeros(*rows.shape[:-1], self._max_width)
        generator = torch.Generator().manual_seed(self._seed)
        for part in rows.split(_BLOCK, dim=-1):
            block = torch.randn(part.shape[-1], self._max_width, generator=generator) / self._max_width**0.5
            narrow += part @ block.to(rows)
        return narrow
