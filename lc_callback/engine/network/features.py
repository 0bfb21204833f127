"""The features of the layers of a model, as rows, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.checks import positive_integer
from lc_callback.engine.chunks import FEATURES
from lc_callback.engine.network.layers import TracedLayers
from lc_callback.engine.network.modules import select_modules
from lc_callback.engine.network.space import Space, compute_dtype
from lc_callback.isolation import untouched

__all__ = ["Features"]

_BLOCK = 1024  # rows of a random projection that exist at a time


class Features:
    """The features of each layer of a model at points: what the non-linearities return.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict (keywords).
        layers: ``None`` takes every non-linearity that is executed; a list of module names, ``fnmatch`` patterns, class
            names or types takes the outputs of these modules instead.
        max_width: wider layers are projected to this width by a seeded Gaussian matrix; their name then ends in
            ``_proj<max_width>``.
        seed: seed of the projection.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.

    Attributes:
        dtype: floating-point type of the features.
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
        self._space = Space(model, inputs, forward_fn=forward_fn)
        self._outputs_of = None if layers is None else select_modules(model, layers)
        self._max_width, self._seed = max_width, seed
        self.dtype = compute_dtype(model, inputs)

    def stream(self, consumer: Callable[[str, Tensor], None], chunk_size: int | None = None) -> None:
        """Call ``consumer(name, rows)`` for each layer and batch of points, in execution order.

        ``rows (n, positions, d)``: a feature map of a convolution has its channels as ``d``, a sequence its last axis.
        """
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        space = self._space
        with untouched(space.model, space.forward_fn, dtype=self.dtype):
            space.locate(self.dtype, perturbed=False)
            layers = TracedLayers(space, outputs_of=self._outputs_of, results=True)
            chunk = chunk_size or FEATURES.samples(space.device, layers.bytes_per_sample)

            def receive(position: int, knots: list[Any]) -> None:
                name, values = layers.names[layers.layer_of[position]], knots[0][0]
                rows = values.reshape(len(values), 1, -1) if values.ndim < 3 else _rows(layers, position, values)
                if rows.shape[-1] > self._max_width:
                    name, rows = f"{name}_proj{self._max_width}", self._narrow(rows)
                consumer(name, rows)

            for points in torch.arange(space.points.n).split(chunk):
                layers.follow(points, None, receive)

    def _narrow(self, rows: Tensor) -> Tensor:
        narrow = rows.new_zeros(*rows.shape[:-1], self._max_width)
        generator = torch.Generator().manual_seed(self._seed)
        for part in rows.split(_BLOCK, dim=-1):
            block = torch.randn(part.shape[-1], self._max_width, generator=generator) / self._max_width**0.5
            narrow += part @ block.to(rows)
        return narrow


def _rows(layers: TracedLayers, position: int, values: Tensor) -> Tensor:
    """``(n, positions, d)``."""
    batch, channels = layers.axes[position], layers.channels[position]
    assert batch is not None
    if channels != batch.axis:  # else they are one axis, of which nothing is known
        front = channels + (channels < batch.axis) + (batch.per_sample > 1)
        values = values.movedim(front, -1)
    return values.flatten(1, -2)
