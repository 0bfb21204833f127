"""The space in which a model is probed: its floating-point inputs, or the output of one of its modules."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._pytree import tree_leaves

from lc_callback.engine.network.modules import find_module, module_paths
from lc_callback.engine.network.points import Points, call_model
from lc_callback.engine.network.recorder import Recorder
from lc_callback.engine.network.token_reader import find_token_reader
from lc_callback.isolation import untouched

__all__ = ["Space", "compute_dtype", "input_points", "input_spread", "largest_of", "spread_behind"]


class Space:
    """``N`` points of the space that is perturbed, and the model as a function of it.

    Args:
        model: any torch module.
        inputs: ``(N, ...)`` tensor, a tuple of tensors (positional arguments) or a dict of tensors (keywords). The
            floating-point ones span the space; integer and boolean ones are held.
        at: name of the module whose output (batch first) is perturbed instead of the input, at its first call;
            ``"name#2"`` is its second call. If no input is floating-point, this is the embedding that reads the tokens.
        forward_fn: what is called as ``forward_fn(model, *inputs)`` instead of ``model(*inputs)``.
        argument: what a user calls the inputs, for errors.

    Raises:
        ValueError: if ``model`` is no module or ``at`` names none.
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        at: str | None = None,
        forward_fn: Callable[..., Any] | None = None,
        argument: str = "inputs",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ValueError(f"`model` must be a torch.nn.Module, but got {type(model).__name__}.")
        self.model, self.inputs, self.forward_fn, self.at = model, inputs, forward_fn, at
        self.argument = argument
        self.at_module: nn.Module | None = None
        self.at_call = 1
        if at is not None:
            self.at_module, self.at_call = _module_and_call(model, at)
        self._writes: bool | None = None  # whether the forward writes to what it gets
        tensors = itertools.chain(model.parameters(), model.buffers(), tree_leaves(inputs))
        self.device = next((t.device for t in tensors if isinstance(t, Tensor)), torch.device("cpu"))

    def locate(self, dtype: torch.dtype, *, perturbed: bool = True) -> None:
        """Find what is perturbed, once the model is in measuring conditions.

        Raises:
            ValueError: if ``inputs`` are no points, or, with ``perturbed``, nothing in them can be.
        """
        self.dtype = dtype
        self.points = Points(self.inputs, dtype, self.device, self.argument)
        self.shape, self.largest = self.points.shape, self.points.largest()
        if perturbed and self.at_module is None and not self.points.moving:
            self._find_token_reader()

    def _find_token_reader(self) -> None:
        first = self.points.batch(torch.zeros(1, dtype=torch.long), None, 2)
        samples = self.points.batch(torch.arange(self.points.n), None)
        nothing = f"`{self.argument}` holds no floating-point tensor to perturb"
        try:
            reader = find_token_reader(self.model, first, samples, lambda: self.run(first))
        except RuntimeError as error:  # as of bytes in a linear layer
            raise ValueError(
                f"{nothing}, and the model fails on what it holds ({error}): convert the inputs to float."
            ) from error
        if reader is None:
            raise ValueError(
                f"{nothing}, and no nn.Embedding was executed: convert the inputs to float, or name with `at=` the "
                "module whose output is to be perturbed."
            )
        self.at_module, self.at_call = reader
        self.at = module_paths(self.model)[id(self.at_module)] + (f"#{self.at_call}" if self.at_call > 1 else "")

    @property
    def dim(self) -> int:
        """Dimension ``D`` of the space."""
        return math.prod(self.shape)

    def stands_at(self, output: Tensor) -> None:
        """Note what the module returns of which the output is perturbed: the shape of a point, and how large it is."""
        self.shape, self.largest = tuple(output.shape[1:]), largest_of(output)

    def reaches(self, largest: float) -> None:
        """Note that values as large as this belong to the space."""
        self.largest = max(self.largest, largest)

    def run(self, inputs: Any) -> Any:
        """The model's output for ``inputs``."""
        return call_model(self.model, inputs, self.forward_fn)

    def values(self, batch: int = 64) -> Iterator[Tensor]:
        """The points themselves, in batches ``(n, *shape)`` of one tensor, ``(n, D)`` where there are several."""
        for points in torch.arange(self.points.n).split(batch):
            inputs = self.points.batch(points, None)
            if self.at_module is None:
                moving = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
                yield (
                    moving[0]
                    if len(moving) == 1
                    else torch.cat([leaf.reshape(len(leaf), -1) for leaf in moving], dim=1)
                )
                continue
            seen: list[Tensor] = []
            move = functools.partial(_keep, seen)
            with Recorder(self.model, _drop, at=self.at_module, at_call=self.at_call, move=move):
                self.run(inputs)
            if not seen:
                raise ValueError(f"`at={self.at!r}` names a module that was not executed.")
            if seen[0].ndim < 2 or len(seen[0]) != len(points):
                raise ValueError(
                    f"`at={self.at!r}` must name a module whose output has the batch first, but for {len(points)} "
                    f"samples it returns shape {tuple(seen[0].shape)}."
                )
            self.shape = tuple(seen[0].shape[1:])
            yield seen[0]

    def all_values(self) -> Tensor:
        """The points themselves, ``(N, *shape)``. Not to be written to: this may be the tensor that was given."""
        moving = self.points.moving
        if self.at_module is None and len(moving) == 1:
            return moving[0].detach().to(device=self.device, dtype=self.dtype)
        return torch.cat(list(self.values()))

    def output(self, points: Tensor, values: Tensor) -> Any:
        """The model's output at the points ``(n,)`` of this set, moved to ``values (n, *shape)``; differentiable."""
        if self._writes is False:
            return self._output(points, values)
        copy = values.clone()  # the forward may work in place: the first one shows whether it does
        version = copy._version
        output = self._output(points, copy)
        self._writes = copy._version != version
        return output

    def _output(self, points: Tensor, values: Tensor) -> Any:
        if self.at_module is None:
            return self.run(self.points.moved(points, values))
        calls = 0

        def replace(module: nn.Module, args: Any, output: Any) -> Any:
            nonlocal calls
            calls += module is self.at_module
            return values if module is self.at_module and calls == self.at_call else None

        handle = register_module_forward_hook(replace)
        try:
            return self.run(self.points.batch(points, None))
        finally:
            handle.remove()


def largest_of(values: Tensor) -> float:
    """The largest absolute value that is finite."""
    return float(torch.nan_to_num(values.float()).abs().max())


def _module_and_call(model: nn.Module, at: str) -> tuple[nn.Module, int]:
    """The module that ``at`` names, and which of its calls: ``"name"`` or ``"name#2"``."""
    name, _, call = at.rpartition("#")
    counted = name and call.isdecimal() and int(call) > 0
    return find_module(model, "at", name if counted else at), int(call) if counted else 1


def _drop(site: Any, kinks: Any) -> None:
    """A consumer that ignores what it gets."""


def _keep(seen: list[Tensor], output: Tensor) -> Tensor:
    seen.append(output.clone())  # the next operation may work in place
    return output


def compute_dtype(model: nn.Module, inputs: Any) -> torch.dtype:
    """The widest floating-point type of the parameters (if none: of the inputs), at least float32."""
    tensors: list[Tensor] = [*model.parameters()] or [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    dtype = torch.float32
    for tensor in tensors:
        if tensor.is_floating_point():
            dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def input_spread(
    model: nn.Module, inputs: Any, *, at: str | None = None, forward_fn: Callable[..., Any] | None = None
) -> tuple[int, float]:
    """Dimension ``D`` of the space that is perturbed, and the root-mean-square spread of the points in it.

    The spread is the square root of the variance over the points (of each coordinate), averaged over coordinates.
    Arguments as of :class:`Space`.
    """
    space, dtype = Space(model, inputs, at=at, forward_fn=forward_fn), compute_dtype(model, inputs)
    with untouched(model, forward_fn, dtype=dtype):
        space.locate(dtype)
        return _dimension_and_spread(space)


def spread_behind(
    model: nn.Module, inputs: Any, *, at: str | None = None, forward_fn: Callable[..., Any] | None = None
) -> tuple[str, float] | None:
    """The module whose output is perturbed, and the spread of the points there; ``None`` if these are inputs.

    Arguments as of :class:`Space`, spread as of :func:`input_spread`.
    """
    space, dtype = Space(model, inputs, at=at, forward_fn=forward_fn), compute_dtype(model, inputs)
    with untouched(model, forward_fn, dtype=dtype):
        space.locate(dtype)
        return None if space.at is None else (space.at, _dimension_and_spread(space)[1])


def _dimension_and_spread(space: Space) -> tuple[int, float]:
    n, sums, squares = 0, torch.zeros(()), torch.zeros(())
    for values in space.values():
        batch = values.reshape(len(values), -1).double().cpu()
        n += len(batch)
        sums, squares = sums + batch.sum(0), squares + batch.square().sum(0)
    variance = squares / n - (sums / n).square()
    return variance.numel(), float(variance.clamp(min=0).mean().sqrt())


def input_points(
    model: nn.Module, inputs: Any, *, at: str | None = None, forward_fn: Callable[..., Any] | None = None
) -> Tensor | None:
    """The points ``(N, *shape)`` that are perturbed, on the CPU; ``None`` if these are outputs of a module.

    Arguments as of :class:`Space`.
    """
    space, dtype = Space(model, inputs, at=at, forward_fn=forward_fn), compute_dtype(model, inputs)
    with untouched(model, forward_fn, dtype=dtype):
        space.locate(dtype)
        return space.all_values().cpu() if space.at_module is None else None
