"""Local complexity at several sets of points of one network, which is traced once for all."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lc_callback.engine.counting.counter import share_of
from lc_callback.engine.counting.task import TraceEachSet
from lc_callback.engine.network.points import Points
from lc_callback.functional.local_complexity import LocalComplexity, counting_task, wrapped

__all__ = ["local_complexity_of_sets"]

Progress = Callable[[int, int], None]


def local_complexity_of_sets(
    method: str,
    model: nn.Module,
    sets: Mapping[str, Any],
    radius: float | Sequence[float],
    n_directions: int,
    *,
    seed: int = 0,
    layers: Sequence[str | type] | None = None,
    max_pool: bool = False,
    at: str | None = None,
    forward_fn: Callable[..., Any] | None = None,
    chunk_size: int | None = None,
    progress: Callable[[str], Progress | None] | None = None,
    share: tuple[int, int] = (0, 1),
) -> dict[str, LocalComplexity]:
    """As :func:`local_complexity` of each set of points, from one trace of the model.

    Sets that differ in structure (the shape of a point, its type, what is no tensor) are traced one by one, and so are
    all sets where the model looks at values in Python, or where points have names: each may go its own way.

    Args:
        method: ``"vertices"`` or ``"linear"``; arguments as of :func:`local_complexity`, and checked.
        model: any torch module.
        sets: the points of each set, by its name.
        radius: one or several.
        n_directions: of the frame, which is the same for all sets.
        seed: of the frame.
        layers: as of :func:`local_complexity`, and so are the next ones.
        max_pool: likewise.
        at: likewise.
        forward_fn: likewise.
        chunk_size: likewise.
        progress: called with the name of a set, returns what is called as ``(done, total)`` there.
        share: ``(index, of)``: of each set only the points of :func:`share_of`; what has to be decided is decided from
            all points.

    Returns:
        The local complexity of each set, in the order of ``sets``; ``jacobian_norm`` of the first set only.
    """
    found: dict[str, LocalComplexity] = {}

    def count(names: Sequence[str]) -> None:
        first, *others = (sets[name] for name in names)
        task = counting_task(
            method,
            model,
            first,
            others=others,
            layers=layers,
            max_pool=max_pool,
            at=at,
            forward_fn=forward_fn,
        )
        smallest = min(radius) if isinstance(radius, Sequence) else radius
        with task.ready(smallest, n_directions, seed=seed, chunk_size=chunk_size) as counter:
            for index, name in enumerate(names):
                points = share_of(counter.sets[index].n, *share)
                report = None if progress is None else progress(name)
                counts = counter.count_set(index, radius, report, points, with_output=name == next(iter(sets)))
                found[name] = wrapped(counts)

    for names in _alike(sets):
        try:
            count(names)
        except TraceEachSet:
            for name in names:
                count([name])
    return {name: found[name] for name in sets}


def _alike(sets: Mapping[str, Any]) -> list[list[str]]:
    """The names of the sets that can be traced together."""
    groups: list[tuple[Points, list[str]]] = []
    for name, inputs in sets.items():
        points = Points(inputs, torch.float32, torch.device("cpu"))
        for other, names in groups:
            if not points.named and _same(points.structure, other.structure):
                names.append(name)
                break
        else:
            groups.append((points, [name]))
    return [names for _, names in groups]


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether all that is equal; what cannot be compared is not."""
    return len(one) == len(other) and all(map(_equal, one, other))


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:  # an object of the user's
        return False
