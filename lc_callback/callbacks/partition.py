"""The callback that draws the exact partition on slices of input space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lc_callback.callbacks.base import Network, ProbeCallback
from lc_callback.callbacks.clock import read_clock
from lc_callback.checks import positive_integer
from lc_callback.engine.slices.window import SHARES, TooManyRegions, expected_regions
from lc_callback.functional.partition import Slice, SlicePartition, WindowRule, cut_slice, toward_boundary
from lc_callback.reporting.film import draw_slices, film
from lc_callback.run.probes import Probes
from lc_callback.run.timeline import Panel

__all__ = ["SplinePartitionCallback"]

_SECONDS_TO_WARN = 10.0  # for a row
_NEAR_FIRST, _AT_LAST = (0.9, 0.05, 0.05), (0.0, 0.0, 1.0)  # middles of shrunk windows, as mixtures of the points
_TRIAL = 200  # regions of the slices that are tried before the training


class SplinePartitionCallback(ProbeCallback):
    r"""Draw the exact linear regions of a network on two slices of input space while it trains.

    The pictures of *Deep Networks Always Grok and Here is Why* (ICML 2024, figures 2 and 7), see
    :func:`lc_callback.functional.slice_partition`: regions shaded by the norm of their slope, the decision boundary in
    red, the points marked. One slice goes through three fixed train points, of different classes where there are such;
    the other through two of them and the decision boundary nearest to the first.

    Logged at ``step = trainer.global_step``, the number of updates applied; step 0 is the initialisation:

    - ``partition/n_regions``: regions in the window of the first slice.
    - ``partition/n_regions_near_probes``: those with their centre within ``near`` times the window's side of one of the
      three points, as far as the window holds these.
    - ``partition/n_regions_near_boundary``: the same round the points of the decision boundary nearest to them; left
      out where the window holds no boundary. The discs are of one size, so the two can be compared: region migration
      is the first falling and the second rising.
    - ``partition/slice``: the picture, as an image in TensorBoard, and as ``partition/slice_<step>.png`` in the log
      directory; at the end ``partition/film.png``, a strip of some of them, and ``partition/film.gif``, all of them.
    - ``partition/seconds``: what the row cost.

    A convolutional network has millions of regions in such a window. So the window shrinks at the first row, to a half,
    a fifth, a tenth, ... of its sides, until each slice holds at most a quarter of ``max_regions`` (the whole window: a
    half). Then it stays as it is, so that rows can be compared. If a later row would hold more than ``max_regions``,
    the window shrinks again, with a warning. The middle of a shrunk window is near the first point: nine tenths of that
    point and a twentieth of each of the other two. At the point itself the kinks of many units meet if an image is
    blank somewhere. The window of the second slice has the same size, and its middle is on the decision boundary. The
    regions near the probes and near the boundary are then all those of these two windows, and the row also has

    - ``partition/window``: its side, in the unit of ``window=``. Rows without it have the window that was asked for.
    - ``partition/density``: regions in a square of side 1 in input units: also rows of different windows can be
      compared by it.

    Before the training, slices of at most 200 regions show what a row will cost, and the first row is cut to see that
    the network is piecewise affine: an error names the layer that is not.

    Args:
        near: radius of the discs, in parts of the window's side.
        window: side of the window, in parts of the square that holds the three points with a margin of a fifth. The
            number of regions grows with its square, and the cost with that number: a region costs about one forward
            pass and, for its slope, one backward pass for each output, in float64.
        at: name of the module whose output is sliced instead of the input. Tokens: the embedding that reads them.
        n_probes: points among which the three are found.
        schedule: ``None`` is three steps a decade, step 0 and the last step; ``"log"`` ten; a list of steps, or a
            function ``step -> bool``.
        chunk_size: points in one forward pass; by default what fits a memory budget.
        max_regions: how many regions a slice may hold. ``"auto"``: from 200 to 200,000, as many as keep regions x units
            x (1 + outputs) below 1e9, which takes about a minute on one core; the same on every machine. ``None``: the
            window never shrinks.
        arguments: those of :class:`lc_callback.callbacks.ProbeCallback` about points, steps and the model.

    Raises:
        ValueError: for an argument out of range, on construction, or for a network that is not piecewise affine, before
            the first step.
        MisconfigurationException: if there is nothing to draw from or to call, before the first step.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lc_callback import SplinePartitionCallback
        >>> callback = SplinePartitionCallback(schedule=[0, 100, 1000])
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback
        SplinePartitionCallback(near=0.1, schedule=[0, 100, 1000], n_probes=64, seed=0)
    """

    group = "partition"
    offline_by_default = False  # not every network is piecewise affine
    splits = ("train",)
    points_per_decade = 3
    without = (
        *("test_probes", "random_probes"),
        *("detection", "on_transition", "stop_after", "certainty", "custom_scalars"),  # it finds no transitions
    )
    cost_grows_with_probes = False

    def __init__(
        self,
        near: float = 0.1,
        window: float = 1.0,
        at: str | None = None,
        n_probes: int = 64,
        chunk_size: int | None = None,
        max_regions: int | str | None = "auto",
        **arguments: Any,
    ) -> None:
        super().__init__(
            n_probes=n_probes,
            test_probes=None,
            random_probes=False,
            detection=None,
            on_transition=None,
            stop_after=None,
            certainty="firm",
            custom_scalars=False,
            **arguments,
        )
        if isinstance(near, bool) or not isinstance(near, (int, float)) or not 0 < near <= 0.5:
            raise ValueError(f"`near` must be above 0 and at most 0.5, but got {near!r}.")
        if isinstance(window, bool) or not isinstance(window, (int, float)) or not 0 < window < math.inf:
            raise ValueError(f"`window` must be a positive number, but got {window!r}.")
        if at is not None and not isinstance(at, str):
            raise ValueError(f"`at` must be the name of a module, but got {at!r}.")
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        if max_regions is not None:
            WindowRule(max_regions)
        self.near, self.window, self.at, self.chunk_size = near, window, at, chunk_size
        self.max_regions = max_regions
        self._share = 1.0  # of the window that was asked for, at the last row
        self._warned = False
        self._three: Any = None
        self._slices: list[SlicePartition] = []
        self._source = ""

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Choose the three points."""
        points = next(iter(probes.values()))
        chosen = _different(points)
        if len(chosen) < 3:
            raise ValueError(
                f"a slice needs three points, but `train_probes` gives {len(points)}, of which {len(chosen)} differ: "
                "pass more of them."
            )
        self._three = tree_map(partial(_take, chosen), points.inputs)
        self._source = f"train points {chosen} of {len(points)} ({points.source})"

    def trial(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float | Tensor]:
        """Say what a row will cost, by slices of few regions, and cut those of a row: what is not affine shows now."""
        share = 0.0
        with suppress(TooManyRegions):  # a row may hold more
            share = self._estimate(network)
        if share < 1:
            self._cut_both(network)
        keys = ("n_regions", "n_regions_near_probes", "n_regions_near_boundary")
        return dict.fromkeys((f"partition/{key}" for key in keys), math.nan)

    def _estimate(self, network: Network) -> float:
        """Cut small slices, and say what a row will cost. Returns the share of the window that was cut."""
        began = read_clock()

        def begin(done: int, total: int) -> None:
            nonlocal began
            if not done:  # a window that holds more is no part of the cost
                began = read_clock()

        rule = WindowRule(_TRIAL, centre=_NEAR_FIRST)
        first = self._cut(network, self._three, rule, begin)
        first.find_slopes()
        seconds = (read_clock() - began) / first.partition.n_regions
        second = self._toward_boundary(network)
        if second is not None:
            self._cut(network, second, replace(rule, centre=_AT_LAST))
        self._announce(first, seconds, 1 if second is None else 2)
        return first.share

    def _announce(self, small: Slice, seconds: float, n_slices: int) -> None:
        """Say what a row will cost, given a small slice and the seconds for one of its regions."""

        def expected(share: float) -> float:
            lines = int(small.partition.counts.sum())
            return expected_regions(small.partition.n_regions, lines, share / small.share)

        rule = self._rule()
        share = 1.0
        if rule is not None:
            fitting = (one for one in rule.shares if expected(one) <= rule.most(small.affordable, one))
            share = next(fitting, rule.shares[-1])
        shrinks = "" if share == 1 else f" with windows of {self.window * share:g} of the square of the points"
        slices = "one slice" if n_slices == 1 else "each of two slices"
        text = f"about {_rough(expected(share))} regions in {slices}{shrinks}, "
        text += f"{_rough(expected(share) * seconds * n_slices)} s a row"
        if share < 1 and rule is not None:
            text += (
                f". In the window that is asked for there are about {_rough(expected(1.0))}, more than "
                f"`max_regions={self.max_regions!r}` ({rule.limit(small.affordable):,}) leaves room for"
            )
        rank_zero_info(f"{type(self).__name__}: {text}.")

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        """Regions of the first slice, and how many of them are near the points and near the decision boundary."""
        began = read_clock()
        slices = self._cut_both(network)
        for cut, which in zip(slices, ("first", "second"), strict=False):
            cut.find_slopes(self.progress(f"slopes of the {which} slice"))
        self._keep_window(slices[0].share)
        self._slices = [cut.partition for cut in slices]
        self._warn_of_cost(read_clock() - began)
        return self._values()

    def _cut_both(self, network: Network) -> list[Slice]:
        """The slices of a row, in windows of one size, without their slopes; one where there is no boundary."""
        rule = self._rule()
        one = self._cut(network, self._three, rule, self.progress("cutting the first slice"))
        around = self._toward_boundary(network)
        other = None
        if around is not None:
            beside = rule and replace(rule, shares=SHARES[SHARES.index(one.share) :], centre=_AT_LAST, side=one.side)
            other = self._cut(network, around, beside, self.progress("cutting the second slice"))
        if rule is not None and other is not None and other.share < one.share:  # windows of one size
            rule = replace(rule, shares=SHARES[SHARES.index(other.share) :], room=False)
            one = self._cut(network, self._three, rule, self.progress("cutting the first slice, smaller"))
        return [one] if other is None else [one, other]

    def _rule(self) -> WindowRule | None:
        """At the first row, any window, with room for more regions; later, no larger one than before."""
        if self.max_regions is None:
            return None
        if not len(self.history):
            return WindowRule(self.max_regions, centre=_NEAR_FIRST, room=True)
        return WindowRule(self.max_regions, SHARES[SHARES.index(self._share) :], centre=_NEAR_FIRST)

    def _cut(self, network: Network, points: Any, rule: WindowRule | None, progress: Any = None) -> Slice:
        return cut_slice(
            network.module,
            points,
            extent=self.window,
            rule=rule,
            at=self.at,
            forward_fn=network.forward_fn,
            chunk_size=self.chunk_size,
            progress=progress,
        )

    def _keep_window(self, share: float) -> None:
        if len(self.history) and share < self._share:
            rank_zero_warn(
                f"{type(self).__name__}: more than `max_regions={self.max_regions!r}`, so the window shrinks from "
                f"{self.window * self._share:g} to {self.window * share:g} of the square of the points. Numbers of "
                "regions before and after this row are of different windows: compare `partition/density`, or "
                f"`n_regions` divided by the square of the window. `window={self.window * share:g}` from the start "
                "makes all rows comparable."
            )
        self._share = share

    def _values(self) -> dict[str, float]:
        first, last = self._slices[0], self._slices[-1]
        side = first.extent[1] - first.extent[0]
        radius = self.near * side
        values: dict[str, float] = {"partition/n_regions": first.n_regions}
        if self._share < 1:
            values["partition/window"] = self.window * self._share
            values["partition/density"] = first.n_regions / side**2
            values["partition/n_regions_near_probes"] = first.n_regions
            if last is not first:
                values["partition/n_regions_near_boundary"] = last.n_regions
            return values
        shown = [point for point in first.plane.points if _is_inside(point, first.extent)]
        if shown:
            values["partition/n_regions_near_probes"] = _within(first.centres, np.stack(shown), radius)
        if len(first.decision_boundary):
            nearest = np.stack([_nearest(point, first.decision_boundary) for point in first.plane.points])
            values["partition/n_regions_near_boundary"] = _within(first.centres, nearest, radius)
        return values

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """The numbers of regions; below them the density, where the window shrank."""
        lines = {key: key for key in keys if key.startswith("partition/n_regions")}
        panels = [Panel(cls.group, lines)] if lines else []
        if "partition/density" in keys:
            panels.append(Panel("regions per unit square", {"partition/density": "partition/density"}))
        return panels

    def extra_state(self) -> dict[str, Any]:
        """The window that the rows so far have."""
        return {"window": self.window, "share": self._share}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with it, unless another was asked for."""
        share = float(state.get("share", 1.0))
        self._share = share if share in SHARES and state.get("window") == self.window else 1.0

    def _warn_of_cost(self, seconds: float) -> None:
        if seconds > _SECONDS_TO_WARN and not self._warned:
            self._warned = True
            regions = " and ".join(f"{one.n_regions:,}" for one in self._slices)
            rank_zero_warn(
                f"{type(self).__name__}: slices of {regions} regions took {seconds:.0f} s without their drawing. A "
                f"smaller `window=` (now {self.window * self._share:g}) has fewer, by its square; `max_regions=` "
                "limits them; `schedule=` makes fewer slices."
            )

    def _toward_boundary(self, network: Network) -> Any:
        """Two of the points, and the boundary nearest to the first; ``None`` where that cannot be told."""
        leaves = [leaf for leaf in tree_leaves(self._three) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        if self.at is not None or len(leaves) != 1:
            return None
        nearest = toward_boundary(network.module, tree_map(partial(_take, [0]), self._three), network.forward_fn)
        if nearest is None:
            return None
        three = torch.stack([leaves[0][0], leaves[0][1], nearest.to(leaves[0])])
        return tree_map(lambda leaf: three if leaf is leaves[0] else leaf, self._three)

    def pictures(self) -> dict[str, Any]:
        """The slices of the last row."""
        if not self._slices:
            return {}
        shrunk = {"titles": ("near the first point", "round the nearest boundary")} if self._share < 1 else {}
        return {"partition/slice": draw_slices(self._slices, **shrunk)}

    def film(self, folder: Path) -> dict[str, Any]:
        """The pictures of all rows, put together."""
        shots = [(step, folder / _file(step)) for step in self.history.steps if (folder / _file(step)).exists()]
        return {"partition/film": film(shots, folder / "film.png", folder / "film.gif")} if shots else {}

    def describe(self) -> str:
        """The points, the window, and the layers."""
        if not self._slices:
            return ""
        first = self._slices[0]
        side = first.extent[1] - first.extent[0]
        shrunk = ""
        if self._share < 1:
            shrunk = (
                f" The window is {self._share:g} of the one that was asked for, near the first point, so that a "
                f"slice holds no more than `max_regions={self.max_regions!r}`."
            )
        return (
            f"Slice through {self._source}; window of side {side:.4g}, {first.n_regions} regions by the units of "
            f"{', '.join(first.layer_names)}. Near is within {self.near * side:.4g}.{shrunk}"
        )

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        own = {"near": self.near, "window": None if self.window == 1 else self.window, "at": self.at}
        own = {name: value for name, value in own.items() if value is not None}
        limit = {} if self.max_regions == "auto" else {"max_regions": self.max_regions}
        return own | limit | super().settings()


def _different(points: Probes) -> list[int]:
    """The first three points that differ, of different classes where there are such."""
    if isinstance(points.targets, Tensor) and points.targets.ndim == 1 and not points.targets.is_floating_point():
        first = {int(target): index for index, target in reversed([*enumerate(points.targets.tolist())])}
        if len(first) >= 3:
            return sorted(first.values())[:3]
    leaves = [leaf for leaf in tree_leaves(points.inputs) if isinstance(leaf, Tensor) and leaf.ndim]
    chosen: list[int] = []
    for index in range(len(points)):
        if len(chosen) < 3 and not any(all(leaf[index].equal(leaf[i]) for leaf in leaves) for i in chosen):
            chosen.append(index)
    return chosen


def _take(indices: Sequence[int], leaf: Any) -> Any:
    return leaf[list(indices)] if isinstance(leaf, Tensor) and leaf.ndim else leaf


def _rough(value: float) -> str:
    """With two digits."""
    return f"{float(f'{value:.1e}'):,.0f}" if value >= 1 else f"{value:.1g}"


def _within(centres: np.ndarray, points: np.ndarray, radius: float) -> int:
    """How many centres are near one of the points."""
    distances = np.linalg.norm(centres[:, None] - points, axis=-1)
    return int((distances.min(1) <= radius).sum())


def _is_inside(point: np.ndarray, extent: Sequence[float]) -> bool:
    return bool(extent[0] <= point[0] <= extent[1] and extent[2] <= point[1] <= extent[3])


def _nearest(point: np.ndarray, segments: np.ndarray) -> np.ndarray:
    """The point on segments ``(S, 2, 2)`` nearest to a point."""
    start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
    length = np.maximum((along * along).sum(1), 1e-300)
    share = np.clip(((point - start) * along).sum(1) / length, 0, 1)
    feet = start + share[:, None] * along
    return feet[np.argmin(np.linalg.norm(feet - point, axis=1))]


def _file(step: int) -> str:
    return f"slice_{step:09d}.png"
