"""The callback that tracks the rank of each layer's features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Real
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor

from lc_callback.callbacks.base import Network, ProbeCallback
from lc_callback.checks import positive_integer
from lc_callback.detection.milestones import RANK_KINDS, RANK_SETTINGS, find_rank_turns
from lc_callback.detection.phases import check_phase_settings
from lc_callback.detection.transitions import Curves, Turn
from lc_callback.engine.network.modules import check_layers
from lc_callback.functional.feature_rank import FeatureRank, check_options, coarse_tolerance
from lc_callback.functional.linear_probe import linear_probe
from lc_callback.functional.weight_norm import weight_norms
from lc_callback.metrics import CentroidAlignment
from lc_callback.metrics import FeatureRank as RankMetric
from lc_callback.names import distinct
from lc_callback.run.probes import Probes
from lc_callback.run.timeline import Panel, spaced
from lc_callback.suggestions import did_you_mean

__all__ = ["FeatureRankCallback"]

_COLOURS = ("#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#365c8d", "#46327e", "#440154")  # first to last layer

_RESERVED = ("seconds", "events", "setup")  # what else stands behind `rank/`
_MOST_SHOWN = 5  # layers in one panel
_ALIGNED = 64  # train points whose alignment is measured


class FeatureRankCallback(ProbeCallback):
    r"""Track the rank of the features of each hidden layer of any model, and the norms of its weights.

    *Deep Grokking* (2024) finds that the rank of the features falls when a deep network starts to generalise. See
    :func:`lc_callback.functional.feature_ranks` for the definitions.

    Logged at ``step = trainer.global_step``, the number of updates applied; step 0 is the initialisation:

    - ``rank/<layer>``: numerical rank of the features, from 0 to the smaller of their width and number.
    - ``effective_rank/<layer>``, ``stable_rank/<layer>``: two ranks that need no threshold.
    - ``tunnel_length``: number of layers whose rank is below ``tunnel_fraction`` of their width. Left out, with a line
      in the text log, where there are too few points for a layer to reach that.
    - ``weight_norm/total``, ``weight_norm/<module>``: Euclidean norm of all parameters, and of each module's own.
    - ``alignment/train``: centroid alignment, the cosine between a point and the summed rows of the Jacobian there,
      mean over the first 64 points. Left out, with a warning, where no gradient reaches the inputs.
    - ``linear_probe/<layer>``: test accuracy of a ridge-regression head on the features, with ``linear_probe=True``.
    - ``rank/seconds``: what the row cost.
    - ``rank/events``: a text for each transition that is found, moved or withdrawn.

    Transitions of the rank of the last layer (:func:`lc_callback.detection.milestones.find_rank_turns`):
    ``rank_descent``, ``rank_rise``, ``second_rank_descent``. They are in ``callback.transitions``, in ``events.jsonl``
    in the log directory, and in the picture ``timeline``.

    ``trainer.validate()`` and ``trainer.test()`` have no train points unless ``train_probes=`` gives them: then the
    test points are measured, and logged as ``rank_test/<layer>`` and so on.

    Under DDP each process measures its share of the points, and all get the same row: that of one process but for
    rounding. The linear probe is fitted by each to all points.

    The spectra are in ``callback.history.arrays[step]["spectrum/<layer>"]``. Rows go to every logger of the Trainer, to
    ``trainer.callback_metrics``, to ``callback.history``, into checkpoints (with the spectra), and to
    ``rank/history.csv`` in the log directory.

    Args:
        layers: ``None`` takes what every executed non-linearity returns (of recurrent modules their output). A list of
            module names, patterns (``"blocks.*"``), class names (``"Linear"``) or types takes their outputs instead.
        split: whose features: ``"train"`` or ``"test"``.
        matrix: numerical rank of the ``"covariance"`` of the features (as in the paper) or of the ``"features"``.
        center: subtract the mean first.
        tol: tolerance; ``None`` is ``d * eps`` of the precision, with ``d`` the width: it does not grow with the number
            of points or positions.
        relative: the tolerance is relative to the largest singular value.
        precision: whose ``eps``: ``"float32"``, ``"float64"``, ... ; ``None`` is that of the computation.
        tunnel_fraction: of the width; the paper has 300 of 400.
        linear_probe: also fit a linear head on each layer at the train points and log its accuracy at the test points.
        alignment: also log the centroid alignment.
        histogram: also write the spectra (log10 of the share of the largest) to TensorBoard as histograms.
        max_width: wider layers are projected to this width at random; their key says so.
        n_probes: points for each split. The rank of a layer cannot exceed their number.
        chunk_size: points in one forward pass; by default what fits a memory budget.
        detection: settings of the detector by name, those of :func:`lc_callback.detect_phases`.
        arguments: those of :class:`lc_callback.callbacks.ProbeCallback`: which points, which steps, what of
            the model, and what is done at a transition.

    Raises:
        ValueError: for an argument out of range, on construction, or for a model or probes that cannot be measured,
            before the first step.
        MisconfigurationException: if there is nothing to draw from or to call, before the first step.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lc_callback import FeatureRankCallback
        >>> callback = FeatureRankCallback(every_n_epochs=10)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback
        FeatureRankCallback(matrix='covariance', center=True, split='train', every_n_epochs=10, n_probes=1024, seed=0)
    """

    group = "rank"
    without = ("random_probes",)
    kinds = RANK_KINDS
    shares_points = True
    late_keys = ("tunnel_length",)  # two points are too few for it
    detection_settings = RANK_SETTINGS

    def __init__(
        self,
        layers: list[str | type] | None = None,
        split: str = "train",
        matrix: str = "covariance",
        center: bool = True,
        tol: float | None = None,
        relative: bool = True,
        precision: str | None = None,
        tunnel_fraction: float = 0.75,
        linear_probe: bool = False,
        alignment: bool = True,
        histogram: bool = False,
        max_width: int = 4096,
        n_probes: int = 1024,
        chunk_size: int | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(n_probes=n_probes, random_probes=False, **arguments)
        if layers is not None:
            check_layers(layers)
        if split not in ("train", "test"):
            near = did_you_mean(split, ["train", "test"])
            raise ValueError(f"`split` must be 'train' or 'test', but got {split!r}{near}")
        dtype = getattr(torch, precision, None) if isinstance(precision, str) else precision
        if precision is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            near = did_you_mean(precision, ["float64", "float32", "bfloat16", "float16"])
            raise ValueError(
                f"`precision` must be 'float64', 'float32', 'bfloat16' or 'float16', not {precision!r}{near}"
            )
        check_options(matrix, tol, dtype)
        flags = {"center": center, "relative": relative, "linear_probe": linear_probe, "alignment": alignment}
        for name, flag in {**flags, "histogram": histogram}.items():
            if not isinstance(flag, bool):
                raise ValueError(f"`{name}` must be True or False, but got {flag!r}.")
        is_number = isinstance(tunnel_fraction, Real) and not isinstance(tunnel_fraction, bool)
        if not is_number or not 0 < tunnel_fraction <= 1:
            raise ValueError(f"`tunnel_fraction` must be above 0 and at most 1, but got {tunnel_fraction!r}.")
        positive_integer("max_width", max_width)
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        self.layers, self.split, self.matrix, self.center = layers, split, matrix, center
        self.tol, self.relative, self.precision, self._precision = tol, relative, precision, dtype
        self.tunnel_fraction, self.linear_probe, self.alignment = tunnel_fraction, linear_probe, alignment
        self.histograms, self.max_width, self.chunk_size = histogram, max_width, chunk_size
        self._aligned, self._sources, self._measured_split = alignment, "", split
        self._latest: dict[str, FeatureRank] = {}
        self._has_warned = False

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Find out whether gradients reach the inputs, and whether there are points for a linear probe."""
        self._sources = "; ".join(f"{split}: {len(some)} points ({some.source})" for split, some in probes.items())
        self._has_warned = False
        self._aligned = self.alignment and "train" in probes
        if self._aligned:
            try:
                self._alignment_metric(network).update(network.module, probes["train"].head(2).inputs)
            except Exception as error:
                self._aligned = False
                rank_zero_warn(
                    f"{type(self).__name__}: no `alignment/train`, for it cannot be computed ({error}). "
                    "`alignment=False` leaves it out silently."
                )
        if self.linear_probe and "test" not in probes:
            raise ValueError("`linear_probe=True` needs test points: pass `test_probes=`, or a validation dataset.")
        if self.linear_probe and "train" in probes:
            self._linear_probe(network, probes)

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float | Tensor]:
        """Ranks and spectra of each layer, norms, alignment and linear probes."""
        self._measured_split = self.split if self.split in probes else next(iter(probes))
        parts = self.in_shares(network, partial(self._measure_share, network, probes))
        ranks = self._rank_metric(network)
        ranks.join([part["rank"] for part in parts if "rank" in part])
        self._latest = ranks.ranks()
        self._warn_of_tolerance()
        # In an evaluation there may be no points of the split that was asked for: these ranks are others.
        other = "" if self._measured_split == self.split else f"_{self._measured_split}"
        values: dict[str, float | Tensor] = {}
        keys = dict(zip(self._latest, distinct(self._latest, _RESERVED), strict=True))
        for name, found in self._latest.items():
            layer = keys[name]
            values[f"rank{other}/{layer}"] = found.rank
            values[f"effective_rank{other}/{layer}"] = found.effective_rank
            values[f"stable_rank{other}/{layer}"] = found.stable_rank
            values[f"spectrum{other}/{layer}"] = found.spectrum
        if not self._short_of_points():
            below = [found.rank < self.tunnel_fraction * found.d for found in self._latest.values()]
            broken = any(math.isnan(found.rank) for found in self._latest.values())
            values[f"tunnel_length{other}"] = math.nan if broken else sum(below)
        values.update((f"weight_norm/{name}", norm) for name, norm in weight_norms(network.module).items())
        if self._aligned and "train" in probes:
            alignment = self._alignment_metric(network)
            alignment.join([part["alignment"] for part in parts if "alignment" in part])
            values["alignment/train"] = float(alignment.compute())
        if self.linear_probe and "train" in probes:
            accuracies = self._linear_probe(network, probes)
            values.update((f"linear_probe/{keys[name]}", accuracy) for name, accuracy in accuracies.items())
        return values

    def _measure_share(self, network: Network, probes: Mapping[str, Probes], index: int, of: int) -> dict[str, Any]:
        """What the metrics have seen of one share of the points, by metric; those that have seen none are left out."""
        seen = {}
        points = probes[self._measured_split].share(index, of)
        if len(points):
            ranks = self._rank_metric(network)
            ranks.update(network.module, points.inputs)
            seen["rank"] = ranks.seen()
        if self._aligned and "train" in probes:
            points = probes["train"].head(_ALIGNED).share(index, of)
            if len(points):
                alignment = self._alignment_metric(network)
                alignment.update(network.module, points.inputs)
                seen["alignment"] = alignment.seen()
        return seen

    def _rank_metric(self, network: Network) -> RankMetric:
        metric = RankMetric(
            layers=self.layers,
            matrix=self.matrix,
            center=self.center,
            tol=self.tol,
            relative=self.relative,
            precision=self._precision,
            max_width=self.max_width,
            seed=self.seed,
            forward_fn=network.forward_fn,
            chunk_size=self.chunk_size,
        )
        weight = next(network.module.parameters(), None)
        return metric if weight is None else metric.to(weight.device)  # where singular values are found

    def _alignment_metric(self, network: Network) -> CentroidAlignment:
        return CentroidAlignment(forward_fn=network.forward_fn)

    def _warn_of_tolerance(self) -> None:
        """Warn once a run: the trial before the first step has all layers, and their tolerance, already."""
        text = "" if self._has_warned else coarse_tolerance(self._latest, self.tol)
        if text:
            self._has_warned = True
            rank_zero_warn(f"{type(self).__name__}: {text}")

    @staticmethod
    def find(curves: Curves, settings: Mapping[str, float]) -> list[Turn]:
        """Where the rank of the last layer falls, rises, and falls again."""
        layers = _layers([*curves])
        return find_rank_turns(layers[-1], *curves[layers[-1]], settings) if layers else []

    @staticmethod
    def followed(keys: Sequence[str]) -> list[str]:
        """The rank of the last layer."""
        return _layers(keys)[-1:]

    @staticmethod
    def check_detection(settings: Mapping[str, float]) -> None:
        """As :func:`lc_callback.detect_phases` does."""
        check_phase_settings(settings)

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """Effective and, faint, numerical rank of the layers; of many, the last, the first and some between."""
        layers = [key.removeprefix("rank/") for key in _layers(keys)]
        n = min(len(layers), _MOST_SHOWN)
        shown = [layers[i * (len(layers) - 1) // max(1, n - 1)] for i in range(n - 1)] + layers[-1:]
        both = {layer: f"effective_rank/{layer}" for layer in shown if f"effective_rank/{layer}" in keys}
        lines = {layer: both.get(layer, f"rank/{layer}") for layer in shown}
        faint = {key: f"rank/{layer}" for layer, key in both.items()}
        panel = Panel(
            "feature rank",
            lines,
            spaced(_COLOURS, n),
            limits=(0, None),
            faint=faint,
            faint_name="numerical rank",
            strong=[*lines.values()][-1] if lines else "",
            caption=_caption(len(layers), n, "the points"),
        )
        return [panel] if lines else []

    def caption(self, panel: Panel) -> str:
        """The ranks, the layers and the points."""
        n_points = self.points_of(self.split)
        points = "the points" if n_points is None else f"{n_points:,} {self.split} points"
        layers = _layers([key.removeprefix(self.log_key_prefix) for key in self.history.keys])
        return _caption(len(layers), len(panel.lines), points)

    def histogram(self, key: str, array: Tensor) -> Tensor | None:
        """Log10 of the spectrum in units of its largest value, if histograms are asked for."""
        array = array[array > 0]
        return (array / array[0]).log10() if self.histograms and len(array) else None

    def _linear_probe(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        train, test = probes["train"], probes["test"]
        return linear_probe(
            network.module,
            (train.inputs, train.targets),
            (test.inputs, test.targets),
            layers=self.layers,
            max_width=self.max_width,
            seed=self.seed,
            forward_fn=network.forward_fn,
            chunk_size=self.chunk_size,
        )

    def _short_of_points(self) -> list[str]:
        """Layers whose rank could not reach the tunnel's limit for want of points."""
        latest = self._latest.items()
        return [name for name, f in latest if f.n - self.center < self.tunnel_fraction * f.d]

    def describe(self) -> str:
        """The layers, their widths and ranks at the last row."""
        if not self._latest:
            return ""
        centred = "centred" if self.center else "not centred"
        lines = [
            f"Rank of the {self.matrix} ({centred}) of what each layer returns, at the {self._measured_split} points. "
            f"{self._sources}",
            "",
            "| layer | width | rows | rank | effective rank | stable rank |",
            "|---|---:|---:|---:|---:|---:|",
        ]
        for name, f in self._latest.items():
            lines.append(f"| {name} | {f.d} | {f.n} | {f.rank} | {f.effective_rank:.4g} | {f.stable_rank:.4g} |")
        short = self._short_of_points()
        if short:
            lines += [
                "",
                f"No `tunnel_length`: {', '.join(short)} cannot reach a rank of {self.tunnel_fraction:g} of the width "
                "with so few points. Raise `n_probes`.",
            ]
        return "\n".join(lines)

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        own = {"layers": self.layers, "matrix": self.matrix, "center": self.center, "split": self.split}
        return {name: value for name, value in own.items() if value is not None} | super().settings()


def _caption(n_layers: int, n_shown: int, points: str) -> str:
    left_out = f" {n_shown} of {n_layers} hidden layers are drawn; all are in the rows." if n_shown < n_layers else ""
    last = " The last hidden layer is the thickest line." if n_shown > 1 else ""
    return f"Effective rank of the features of {points}; thin, with the markers: numerical rank.{last}{left_out}"


def _layers(keys: Sequence[str]) -> list[str]:
    """The keys of the ranks, in execution order."""
    return [key for key in keys if key.startswith("rank/") and key != "rank/seconds"]
