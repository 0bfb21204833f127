"""The callback that tracks local complexity."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lc_callback.callbacks.base import Network, ProbeCallback
from lc_callback.callbacks.spread_monitor import SpreadMonitor
from lc_callback.checks import positive_integer
from lc_callback.detection.phases import PHASE_KINDS, PHASE_SETTINGS, check_phase_settings, find_phases, phase_of
from lc_callback.detection.transitions import Curves, Turn
from lc_callback.engine.network.space import input_spread, spread_behind
from lc_callback.functional.local_complexity import LocalComplexity, check_arguments, check_method, joined
from lc_callback.functional.point_sets import local_complexity_of_sets
from lc_callback.functional.radius import count_units, find_radius
from lc_callback.names import number_names
from lc_callback.run.probes import Probes
from lc_callback.run.seams import curve_at_one_radius, said_of
from lc_callback.run.timeline import Panel

__all__ = ["LocalComplexityCallback"]

# With n_probes="auto": at least so many points, at most so many, and as many as keep units x points below a number.
_FEWEST_PROBES, _MOST_PROBES, _MOST_UNITS = 64, 1024, 4_000_000
# The papers' green, orange and blue for train, test and random points, in shades that the colour-blind tell apart.
_COLOURS = ("#009E73", "#E69F00", "#0072B2")
_SPLITS = ("train", "test", "random")
_DENSITY_CAPTION = (
    "Units that switch per unit of radius as the radius goes to 0, mean over the same points: local complexity without "
    "a choice of radius."
)


class LocalComplexityCallback(ProbeCallback):
    r"""Track the local complexity of any model at fixed train, test and random points while it trains.

    Local complexity counts the units that switch inside a small neighbourhood of a point, a proxy for the density of
    linear regions there (*Deep Networks Always Grok and Here is Why*, ICML 2024, section 2). During training it falls,
    rises and falls again. See :func:`lc_callback.functional.local_complexity` for the definition.

    Logged at ``step = trainer.global_step``, the number of updates applied; step 0 is the initialisation:

    - ``lc/train``, ``lc/test``, ``lc/random``: mean over the points of the number of switching units, from 0 to the
      number of units. With several radii ``lc/train_r0.05`` and so on.
    - ``lc_ci99/train``, ...: half the width of the 99 % interval of that mean over the points.
    - ``lc_density/train``, ...: units that switch per unit of radius as the radius goes to 0, with the linear method.
    - ``lc_boundary/train``, ...: area of the boundaries where units switch per unit of volume, likewise; see
      :attr:`lc_callback.functional.LocalComplexity.boundary_density`.
    - ``lc_tv/train``: total variation: mean Frobenius norm of the Jacobian of the output at the first quarter of the
      points, at most 64, likewise; see :attr:`lc_callback.functional.LocalComplexity.total_variation`.
    - ``lc_radius``: the radius in use, if it is one.
    - ``lc_spread/train``: root-mean-square spread of the train points, where the output of a module is perturbed.
    - ``lc_layer/train/<layer>``: each layer's share at the train points, at the first radius; see ``per_layer``.
    - ``lc/phase``: 0 in the first descent, 1 in the ascent, 2 in the region migration, as known at the row.
    - ``lc/seconds``: what the row cost.
    - ``lc/events``: a text for each transition that is found, moved or withdrawn.

    Transitions of ``lc/train`` (of the first radius, if there are several) are found by
    :func:`lc_callback.detect_phases`: ``first_descent_end``, ``migration_start``, ``migration_end``. They are in
    ``callback.transitions``, in ``events.jsonl`` in the log directory, and in the picture ``timeline``.

    Rows go to every logger of the Trainer, to ``trainer.callback_metrics`` (so ``EarlyStopping(monitor="lc/train")``
    works), to ``callback.history``, into checkpoints, and to ``lc/history.csv`` in the log directory.

    Under DDP each process measures its share of the points, every ``n``-th of ``n`` processes, of the network of the
    first, and all get the same row; what fails on one costs the row on all. A ``forward`` must then not communicate.
    Under other strategies all processes measure all points; weights of which each has a part are put together for it.

    Args:
        radius: ``r`` in input units, a list of these, or ``"auto"``: the smallest radius that can be read with the
            points there are, 1, 2 or 5 times a power of ten, see :func:`lc_callback.functional.radius.find_radius`. It
            is found at the first row and kept, also in checkpoints. LC is comparable only at one radius: in a sweep,
            pass the number that is printed. Behind ``at`` it follows the spread of the train points there from row to
            row, since an embedding that shrinks while the next layer grows is the same function; a number stays as it
            is.
        n_directions: ``P``, directions of the frame. Inputs of fewer dimensions get as many as they have.
        n_probes: points for each split, or ``"auto"``: from 64 to 1,024 (the paper's), as many as keep units x points
            below 4 million.
        layers: ``None`` counts the pre-activation of every non-linearity that is executed. A list of module names,
            patterns (``"blocks.*"``), class names (``"Linear"``) or types counts the outputs of these modules instead.
        at: name of the module whose output is perturbed instead of the input. Tokens: the embedding that reads them.
        max_pool: also count the winners of max-pooling, ``amax``, ``max(dim)``, ``topk`` and ``sort`` that change.
        per_layer: log ``lc_layer`` for all splits and radii.
        chunk_size: vertices in one forward pass; by default what fits a memory budget, halved when out of memory.
        detection: settings of the detector by name, see :func:`lc_callback.detect_phases`: ``{"min_prominence": 0.1}``.
        method: ``"vertices"``, as the papers define it, or ``"linear"``, by the network's affine piece at each point,
            which costs little more than half and gives the density and all radii at once; see
            :func:`lc_callback.functional.local_complexity`. The two differ by less than 1 % at radii such as ``"auto"``
            gives, and by a third where the radius is of the order of the spread of the data. So ``"auto"`` is the
            linear method if the radius is ``"auto"``, neither ``layers`` nor ``max_pool`` is given, and both count the
            same when the radius is found; else the text of the run says what each counts.
        arguments: those of :class:`lc_callback.callbacks.ProbeCallback`: which points, which steps, what of
            the model, and what is done at a transition.

    Raises:
        ValueError: for an argument out of range, on construction, or for a model or probes that cannot be measured,
            before the first step.
        MisconfigurationException: if there is nothing to draw from or to call, before the first step.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lc_callback import LocalComplexityCallback
        >>> trainer = Trainer(callbacks=[LocalComplexityCallback()], logger=False, enable_checkpointing=False)
        >>> LocalComplexityCallback(radius=[0.05, 0.5], every_n_epochs=5)
        LocalComplexityCallback(radius=[0.05, 0.5], n_directions=25, every_n_epochs=5, n_probes='auto', seed=0)
    """

    group = "lc"
    kinds = PHASE_KINDS
    late_keys = ("lc/phase",)
    detection_settings = PHASE_SETTINGS
    shares_points = True
    without = ("target_fn",)

    def __init__(
        self,
        radius: float | list[float] | str = "auto",
        n_directions: int = 25,
        n_probes: int | str = "auto",
        layers: list[str | type] | None = None,
        at: str | None = None,
        max_pool: bool = False,
        per_layer: bool = False,
        chunk_size: int | None = None,
        method: str = "auto",
        **arguments: Any,
    ) -> None:
        super().__init__(n_probes=n_probes, target_fn=None, **arguments)
        if isinstance(radius, str) and radius != "auto":
            possible = "'auto', a positive number or a non-empty list of different ones"
            raise ValueError(f"`radius` must be {possible}, not {radius!r}.")
        positive_integer("n_directions", n_directions)  # the function takes None, too
        check_arguments(0.005 if radius == "auto" else radius, n_directions, layers, at, chunk_size)
        check_method(method, ("auto", "vertices", "linear"), layers, max_pool)
        for name, flag in (("max_pool", max_pool), ("per_layer", per_layer)):
            if not isinstance(flag, bool):
                raise ValueError(f"`{name}` must be True or False, but got {flag!r}.")
        self.radius, self.n_directions = radius, n_directions
        self.layers, self.at = layers, at
        self.max_pool, self.per_layer, self.chunk_size = max_pool, per_layer, chunk_size
        self.method = method
        self._auto_radius: float | None = None
        self._reason = ""  # why that one
        self._difference = ""  # why its units are counted by vertices, where the linear method differs
        self._radius_now: float | list[float] = 0.0  # of the row that is taken
        shown = " `lc_spread/train` has the spread at each row."
        self._space = SpreadMonitor("the radius", "local complexity", ("rises", "falls"), shown)
        self._directions, self._sources = n_directions, ""
        self._latest: dict[str, LocalComplexity] = {}
        self._layer_names: list[str] = []
        self._shares: dict[int, dict[str, list[float]]] = {}  # of each layer, by step and curve

    @classmethod
    def paper(cls, **arguments: Any) -> LocalComplexityCallback:
        """The settings of the ICML 2024 paper: r = 0.005, 25 directions, 1024 points of each split.

        ``arguments`` are added, or replace these. The paper's radius is for its data: standardised, or in [0, 1]. With
        1024 points a row costs 16 times that of the default.

        Example::

            >>> from lc_callback import LocalComplexityCallback
            >>> LocalComplexityCallback.paper(seed=1)
            LocalComplexityCallback(radius=0.005, n_directions=25, schedule='log', n_probes=1024, seed=1)
        """
        return cls(**{"radius": 0.005, "n_directions": 25, "n_probes": 1024, **arguments})

    @staticmethod
    def check_n_probes(n_probes: Any) -> None:
        """A positive integer, or ``"auto"``."""
        if n_probes != "auto":
            positive_integer("n_probes", n_probes, "'auto'")

    def choose_n_probes(self, network: Network, few: Callable[[], Mapping[str, Probes]]) -> int:
        """As many as the size of the network allows, if there is no number."""
        if self.n_probes != "auto":
            return super().choose_n_probes(network, few)
        points = next(iter(few().values()), None)
        if points is None:
            return _FEWEST_PROBES
        try:
            units = count_units(network.module, points.inputs, max_pool=self.max_pool, **self._counted(network))
        except Exception:  # what is wrong, the trial measurement says
            return _FEWEST_PROBES
        return max(_FEWEST_PROBES, min(_MOST_PROBES, _MOST_UNITS // units))

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Settle the radius and the number of directions, which depend on the train probes."""
        points = next(iter(probes.values()))  # of the train split, if there is one
        dim, _ = input_spread(network.module, points.inputs, at=self.at, forward_fn=network.forward_fn)
        self._directions = min(self.n_directions, dim)
        self._sources = "; ".join(
            f"{split}: {len(points)} points ({points.source})" for split, points in probes.items()
        )
        if self.radius == "auto" and self._auto_radius is None:
            decided = self.decide(partial(self._find_radius, network, points.inputs))
            self._auto_radius, self._reason, self._difference = decided

    def _counted(self, network: Network) -> dict[str, Any]:
        return {"layers": self.layers, "at": self.at, "forward_fn": network.forward_fn}

    def _find_radius(self, network: Network, inputs: Any) -> tuple[float, str, str]:
        how: dict[str, Any] = {"n_directions": self._directions, "seed": self.seed, "chunk_size": self.chunk_size}
        found = find_radius(network.module, inputs, **how, **self._counted(network))
        return found.radius, found.reason, found.difference

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        """Local complexity of each split."""
        spread = self._spread_now(network)
        self._radius_now = self._radius_at(spread)
        parts = self.in_shares(network, partial(self._measure_share, network, probes))
        values: dict[str, float] = {}
        of_layers: dict[str, float] = {}  # last, for they are many
        for split in probes:
            lc = self._latest[split] = joined([part[split] for part in parts])
            all_counts = lc.counts if _several(lc) else [lc.counts]
            for radius, suffix, counts in zip(_radii(lc), _suffixes(lc), all_counts, strict=True):
                one = replace(lc, counts=counts, radius=radius)
                values[f"lc/{split}{suffix}"] = one.mean
                if len(counts) > 1:
                    values[f"lc_ci99/{split}{suffix}"] = one.ci99
                if self.per_layer or (split == "train" and radius == _radii(lc)[0]):
                    shares = zip(lc.layer_names, one.layer_means, strict=True)
                    of_layers.update((f"lc_layer/{split}{suffix}/{name}", share) for name, share in shares)
            if lc.histogram is not None:
                values[f"lc_density/{split}"] = lc.density
                if lc.boundary_density is not None:
                    values[f"lc_boundary/{split}"] = lc.boundary_density
            if lc.total_variation is not None:
                values[f"lc_tv/{split}"] = lc.total_variation
        if not isinstance(self._radius_now, list):
            values["lc_radius"] = self._radius_now
        if spread is not None:
            values["lc_spread/train"] = spread
        return values | of_layers

    def _spread_now(self, network: Network) -> float | None:
        """The spread of all train points behind the module whose output is perturbed; ``None`` if there is none."""
        points = self.all_probes.get("train")
        if self.radius != "auto":
            return self._space.look(self.peer.name, network, points, self.at)
        found = points and spread_behind(network.module, points.inputs, at=self.at, forward_fn=network.forward_fn)
        if not found:
            return None
        self._space.first = self._space.first or found[1]
        return found[1]

    def _radius_at(self, spread: float | None) -> float | list[float]:
        """The radius in use, which follows the spread of the points if it was found."""
        if self._auto_radius is None or self.radius != "auto":
            return self.radius  # type: ignore[return-value]
        first = self._space.first
        return self._auto_radius * (spread / first if spread and first else 1.0)

    @property
    def _method(self) -> str:
        plain = self.radius == "auto" and self.layers is None and not self.max_pool and not self._difference
        return ("linear" if plain else "vertices") if self.method == "auto" else self.method

    def _measure_share(
        self, network: Network, probes: Mapping[str, Probes], index: int, of: int
    ) -> dict[str, LocalComplexity]:
        """Local complexity of each split at one share of its points."""
        return local_complexity_of_sets(
            self._method,
            network.module,
            {split: points.inputs for split, points in probes.items()},
            self._radius_now,
            self._directions,
            seed=self.seed,
            max_pool=self.max_pool,
            chunk_size=self.chunk_size,
            **self._counted(network),
            progress=lambda split: self.progress(f"lc/{split}"),
            share=(index, of),
        )

    @staticmethod
    def find(curves: Curves, settings: Mapping[str, float]) -> list[Turn]:
        """The phases of local complexity at the train points."""
        key = _followed(curves)
        return [] if key is None else said_of(find_phases(*curve_at_one_radius(curves, key), settings, key), curves)

    @staticmethod
    def followed(keys: Sequence[str]) -> list[str]:
        """Local complexity at the train points, of the first radius."""
        key = _followed(keys)
        return [] if key is None else [key]

    @staticmethod
    def check_detection(settings: Mapping[str, float]) -> None:
        """As :func:`lc_callback.detect_phases` does."""
        check_phase_settings(settings)

    def marks(self, curves: Curves) -> dict[str, float]:
        """The phase."""
        key = _followed(curves)
        if key is None:
            return {}
        return {"lc/phase": phase_of(*curve_at_one_radius(curves, key), self.detection, self.transitions)}

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """One for each radius, and below them the density."""
        panels = []
        for start, title in (("lc/", "local complexity"), ("lc_density/", "density of local complexity")):
            for suffix in [key.removeprefix(f"{start}train") for key in keys if key.startswith(f"{start}train")]:
                splits = [split for split in _SPLITS if f"{start}{split}{suffix}" in keys]
                lines = {split: f"{start}{split}{suffix}" for split in splits}
                bands = {f"lc/{split}{suffix}": f"lc_ci99/{split}{suffix}" for split in splits if start == "lc/"}
                label = title + suffix.replace("_r", ", r = ")
                radius = f"radius {suffix[2:]}" if suffix else "the radius"
                caption = _DENSITY_CAPTION if start == "lc_density/" else _caption(radius, "the points")
                panels.append(Panel(label, lines, _COLOURS, bands, (0, None), caption=caption))
        return panels

    def caption(self, panel: Panel) -> str:
        """The radius, the points, and what the band is."""
        first = next(iter(panel.lines.values()))
        if not first.startswith("lc/"):
            return panel.caption
        used = [row[key] for row in self.history.rows if (key := f"{self.log_key_prefix}lc_radius") in row]
        given = self._auto_radius if self.radius == "auto" else self.radius
        if "_r" in first:
            radius = f"radius {first.rpartition('_r')[2]}"
        elif used:
            radius = f"radius {used[-1]:.4g}" + (f" (at first {used[0]:.4g})" if used[0] != used[-1] else "")
        else:
            radius = "the radius" if given is None else f"radius {given:.3g}"
        at = next((latest.at for latest in self._latest.values()), self.at)
        return _caption(f"{radius}{'' if at is None else f' at the output of {at},'}", self.points_text())

    def recorded(self, step: int) -> None:
        """Keep the share of each layer in every curve."""
        if not self._latest:  # a subclass measures in a way of its own
            return
        shares = self._shares[step] = {}
        for split, lc in self._latest.items():
            for suffix, means in zip(_suffixes(lc), lc.layer_means if _several(lc) else [lc.layer_means], strict=True):
                shares[f"lc/{split}{suffix}"] = [float(share) for share in means]
        self._layer_names = [*next(iter(self._latest.values())).layer_names]

    def layer_shares(self, key: str, row: Mapping[str, float]) -> Mapping[str, float]:
        """The share of each layer."""
        shares = self._shares.get(int(row["step"]), {}).get(key, [])
        return dict(zip(self._layer_names, shares, strict=True)) if len(shares) == len(self._layer_names) else {}

    def describe(self) -> str:
        """The layers that are counted, their sizes, and what each contributes at the last row."""
        if not self._latest:
            return ""
        split, latest = next(iter(self._latest.items()))
        several = _several(latest)
        one = replace(latest, counts=latest.counts[0], radius=_radii(latest)[0]) if several else latest
        where = "the input" if latest.at is None else f"the output of `{latest.at}`"
        how = "by the affine piece of each point" if latest.histogram is not None else "by the vertices"
        how += f" ({self._difference})" if self._difference else ""
        radii = number_names(_radii(latest))
        lines = [
            f"Radius {', '.join(radii)} around {where}, {self._directions} directions, "
            f"counted {how}, computed in {str(latest.dtype).removeprefix('torch.')}. {self._sources}",
            *self._about_radius(latest),
            *(["", f"Route: {latest.route}."] if latest.route else []),
            "",
            f"| counted layer | units | switching at {split} points{f' (r = {radii[0]})' if several else ''} |",
            "|---|---:|---:|",
        ]
        for name, size, share in zip(one.layer_names, one.layer_sizes, one.layer_means, strict=True):
            lines.append(f"| {name} | {size} | {share:.4g} |")
        lines.append(f"| **sum** | {sum(one.layer_sizes)} | {one.mean:.4g} |")
        if latest.uncounted:
            lines += [
                "",
                f"Where the winner of {', '.join(latest.uncounted)} changes is not counted: `max_pool=True` counts it.",
            ]
        if one.mean < 1 and self.radius != "auto":
            lines += [
                "",
                f"Fewer than one unit switches in the mean at radius {one.radius:g}, so the curve is coarse: a larger "
                f"`radius`, such as {10 * one.radius:.2g}, or more `n_probes` shows more.",
            ]
        return "\n".join(lines)

    def _about_radius(self, latest: LocalComplexity) -> list[str]:
        """Why this radius, and what it is comparable with."""
        if self.radius != "auto":
            return []
        text = f"This radius is {self._reason}. Local complexity is comparable only at one radius"
        if latest.at is None:
            method = ", method='linear'" if latest.histogram is not None and self.method == "auto" else ""
            return ["", f"{text}: to compare runs, pass `radius={self._auto_radius:g}{method}` to each."]
        return ["", f"{text}. From here on it follows the spread of the train points behind `{latest.at}`."]

    def extra_state(self) -> dict[str, Any]:
        """The radius that ``"auto"`` stood for, since the weights move; and the shares of the layers at each row."""
        settled = {"auto_radius": self._auto_radius, "reason": self._reason, "difference": self._difference}
        settled["spread"] = self._space.first
        return {**settled, "layers": [*self._layer_names], "shares": {s: {**of} for s, of in self._shares.items()}}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back the radius and the shares."""
        self._layer_names = [str(name) for name in state.get("layers", [])]
        self._shares = {int(step): dict(of) for step, of in state.get("shares", {}).items()}
        self._auto_radius, self._reason = state.get("auto_radius"), state.get("reason", "that of the checkpoint")
        self._difference = str(state.get("difference", ""))
        self._space.begin(state.get("spread"))

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        own = {"radius": self.radius, "n_directions": self.n_directions, "layers": self.layers, "at": self.at}
        own["method"] = None if self.method == "auto" else self.method
        return {name: value for name, value in own.items() if value is not None} | super().settings()

    def settings_used(self) -> dict[str, Any]:
        """With the radius that was found, and as many directions as the space has."""
        latest = next(iter(self._latest.values()), None)
        radius = self.radius if latest is None else [float(name) for name in number_names(_radii(latest))]
        radius = radius[0] if isinstance(radius, list) and len(radius) == 1 else radius
        return super().settings_used() | {"radius": radius, "n_directions": self._directions}


def _caption(radius: str, points: str) -> str:
    return (
        f"Units that switch within {radius} of a point, mean over {points}. "
        "Band: 99\u00a0% interval of that mean over the points, not over seeds."
    )


def _followed(keys: Iterable[str]) -> str | None:
    """The curve whose phases are the run's: at the train points, of the first radius."""
    return next((key for key in keys if key.startswith("lc/train")), None)


def _several(lc: LocalComplexity) -> bool:
    return isinstance(lc.radius, list)


def _radii(lc: LocalComplexity) -> list[float]:
    return lc.radius if isinstance(lc.radius, list) else [lc.radius]


def _suffixes(lc: LocalComplexity) -> list[str]:
    """What tells the radii apart in a key."""
    return [f"_r{name}" for name in number_names(_radii(lc))] if _several(lc) else [""]
