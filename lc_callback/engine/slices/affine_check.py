"""Checks that a network is affine in the regions that were found, and names the first module that is not."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lc_callback.engine.network.modules import module_paths
from lc_callback.engine.network.space import Space
from lc_callback.engine.slices.subdivision import Subdivision

__all__ = ["check_affine"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_CHECKED = 256  # regions
_AFFINE = 1e-6  # of the output's largest value: errors of a model that computes in float32
_ROUNDING = 1e-11  # of the output's largest value: errors of float64
# In a region 4 times smaller a smooth network is 16 times nearer to affine, but rounding errors are as large as before.
# A difference that falls to less than an eighth comes of a smooth network.
_SMALLER, _SMOOTH = 4, 8.0
_ENOUGH = 2  # values: fewer do not show it


class Sliced(Protocol):
    """A network as a function of plane coordinates."""

    space: Space

    def outputs(self, coordinates: Floats) -> Floats:
        """The output ``(K, C)`` at plane coordinates ``(K, 2)``."""
        ...

    def run_whole(self, coordinates: Floats) -> Tensor:
        """The same, from one forward pass of the model itself."""
        ...


def check_affine(sliced: Sliced, cells: Subdivision, outputs: Floats, offsets: Ints, loop: Ints) -> None:
    """Check that the network is affine in each of the largest regions.

    A difference from affine is more than rounding if it is large or, in small windows, if it falls with the square of
    the region's size.

    Args:
        sliced: the network.
        cells: the regions.
        outputs: ``(V, C)``, of the network at the vertices.
        offsets: ``(R + 1,)``, where each region begins in ``loop``.
        loop: the vertices of each region, one region after another.

    Raises:
        ValueError: if the network is not affine there, naming the first module that is not; or if its output is not
            finite.
    """
    if not np.isfinite(outputs).all():
        raise ValueError("the network's output is not finite everywhere in the window: look at its weights.")
    weights = 1 + np.arange(len(loop)) * 0.618 % 1  # uneven, because at the centre a product can look affine
    weights = (weights / np.repeat(np.add.reduceat(weights, offsets[:-1]), np.diff(offsets)))[:, None]
    corners = cells.vertices[loop]
    mean = np.add.reduceat(weights * outputs[loop], offsets[:-1])
    centres = np.add.reduceat(weights * corners, offsets[:-1])
    low, high = np.minimum.reduceat(corners, offsets[:-1]), np.maximum.reduceat(corners, offsets[:-1])
    some = np.argsort(-(high - low).max(1))[:_CHECKED] if len(mean) > _CHECKED else np.arange(len(mean))
    at_centres = sliced.outputs(centres[some])
    difference = np.abs(at_centres - mean[some])
    scale = max(1e-300, float(np.abs(outputs).max()))
    worst = int(some[difference.max(1).argmax()])
    if difference.max() <= _AFFINE * scale:
        if difference.max() <= _ROUNDING * scale or difference.size < _ENOUGH:
            return
        places = np.concatenate([np.arange(offsets[region], offsets[region + 1]) for region in some])
        middle = np.repeat(centres[some], np.diff(offsets)[some], axis=0)
        nearer = sliced.outputs(middle + (corners[places] - middle) / _SMALLER)
        starts = np.concatenate([[0], np.diff(offsets)[some].cumsum()[:-1]])
        smaller = np.abs(at_centres - np.add.reduceat(weights[places] * nearer, starts))
        if np.linalg.norm(difference) <= _SMOOTH * np.linalg.norm(smaller):
            return
    own = slice(offsets[worst], offsets[worst + 1])
    raise ValueError(
        f"the network is not affine between its non-linearities (by {difference.max():.2g} in the middle of a region): "
        "something else in it is nonlinear, such as a softmax, a LayerNorm, a product or a comparison"
        f"{_first_not_affine(sliced, corners[own], weights[own], centres[worst])}. See `local_complexity_map` for a "
        "picture of any model."
    )


def _first_not_affine(sliced: Sliced, corners: Floats, weights: Floats, centre: Floats) -> str:
    """The first module whose output is not affine in a region, as the end of a sentence."""
    seen: list[tuple[nn.Module, float]] = []
    share = torch.as_tensor(weights[:, 0])

    def note(module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(output, Tensor) and output.is_floating_point() and output.ndim and len(output) == len(share) + 1:
            values = output.detach().double().cpu().flatten(1)
            off = (values[-1] - share @ values[:-1]).abs().max() / values.abs().max().clamp_min(1e-300)
            seen.append((module, float(off)))

    paths = module_paths(sliced.space.model)
    modules = [module for module in sliced.space.model.modules() if id(module) in paths]
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        sliced.run_whole(np.concatenate([corners, centre[None]]))
    finally:
        for handle in handles:
            handle.remove()
    most = max((off for _, off in seen), default=0.0)
    for module, off in seen:  # a module returns before the one that holds it
        if off > max(_ROUNDING, most * 1e-3):
            path = paths[id(module)]
            named = f"{path!r} ({type(module).__name__})" if path else f"the forward of {type(module).__name__}"
            return f", first {named}"
    return ""
