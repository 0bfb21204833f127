"""The callback that tracks neural collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from lc_callback.callbacks.base import Network, ProbeCallback
from lc_callback.checks import positive_integer
from lc_callback.metrics import NeuralCollapse
from lc_callback.run.probes import Probes
from lc_callback.run.timeline import Panel

__all__ = ["NeuralCollapseCallback"]

_SPLITS = ("train", "test")
_COLOURS = ("#009E73", "#E69F00")
_OTHERS = {
    "nc2_norms": "NC2, norms",
    "nc2_angles": "NC2, angles",
    "nc2_simplex": "NC2, simplex",
    "nc3": "NC3, head",
    "nc4": "NC4, nearest mean",
}
_FEW = 10  # points of a class


class NeuralCollapseCallback(ProbeCallback):
    r"""Track the neural collapse of any classifier's last features while it trains (Papyan, Han, Donoho 2020).

    See :func:`lc_callback.functional.neural_collapse` for the definitions, and ``docs/neural_collapse.md`` for how to
    read them.

    Logged at ``step = trainer.global_step``, the number of updates applied; step 0 is the initialisation. Each has the
    split behind its name, ``nc/nc1_train`` and ``nc/nc1_test``:

    - ``nc/nc1_...``: variability within the classes over that between them, from 0. Falls to 0.
    - ``nc/nc2_norms_...``: coefficient of variation of the norms of the centred class means, from 0. Falls to 0.
    - ``nc/nc2_angles_...``: standard deviation of the cosines between them, from 0. Falls to 0.
    - ``nc/nc2_simplex_...``: mean deviation of these cosines from ``-1 / (C - 1)``, from 0. Falls to 0.
    - ``nc/nc3_...``: distance of the head's weights from the class means, from 0 to 2. Falls to 0. Left out without a
      linear head on these features.
    - ``nc/nc4_...``: share of the points for which the model decides for the nearest class mean. Rises to 1.
    - ``nc/seconds``: what the row cost.

    Rows go to every logger of the Trainer, to ``trainer.callback_metrics``, to ``callback.history``, into checkpoints,
    and to ``nc/history.csv`` in the log directory. ``trainer.validate()`` and ``trainer.test()`` log one row.

    Under DDP each process measures its share of the points. All get the same row, that of one process but for rounding.

    Args:
        layer: name of the module whose output are the features; positions are averaged. ``None``: what enters the last
            ``nn.Linear`` that makes outputs of the shape of the logits.
        n_probes: points for each split. With fewer than 10 of each class NC1 is too small, for they lie near the mean
            that they make.
        chunk_size: points in one forward pass.
        arguments: those of :class:`lc_callback.callbacks.ProbeCallback`.

    Raises:
        ValueError: for an argument out of range, on construction; for targets that are no classes, points of one class,
            or features that are not found, before the first step.
        MisconfigurationException: if there is nothing to draw from or to call, before the first step.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lc_callback import NeuralCollapseCallback
        >>> callback = NeuralCollapseCallback(every_n_epochs=10)
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback
        NeuralCollapseCallback(every_n_epochs=10, n_probes=1024, seed=0)
    """

    group = "nc"
    without = (
        "random_probes",
        *("detection", "on_transition", "stop_after", "certainty", "custom_scalars"),  # it finds no transitions
    )
    offline_by_default = False
    shares_points = True

    def __init__(
        self, layer: str | None = None, n_probes: int = 1024, chunk_size: int | None = None, **arguments: Any
    ) -> None:
        super().__init__(
            n_probes=n_probes,
            random_probes=False,
            detection=None,
            on_transition=None,
            stop_after=None,
            certainty="firm",
            custom_scalars=False,
            **arguments,
        )
        if layer is not None and not isinstance(layer, str):
            raise ValueError(f"`layer` must be the name of a module, but got {layer!r}.")
        if chunk_size is not None:
            positive_integer("chunk_size", chunk_size)
        self.layer, self.chunk_size = layer, chunk_size
        self._setup, self._keys = "", list[str]()  # what is measured, and the keys of a row

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Look for features and classes of all points."""
        lines, self._keys = [], []
        for split, points in probes.items():
            try:
                seen = self._seen_by(network, points)
                self._keys += self._values(split, seen)
            except ValueError as error:
                raise ValueError(f"{split} probes: {error}") from error
            n_classes = len(set(seen.classes[0].tolist()))
            few = "; fewer than 10 of a class make NC1 too small" if len(points) < _FEW * n_classes else ""
            lines.append(f"{split}: {len(points)} points of {n_classes} classes ({points.source}){few}")
            self._setup = f"Neural collapse of {seen.source}, {seen.features[0].shape[1]} features. {'; '.join(lines)}"

    def trial(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        """The keys of a row. Two points may be of one class, and :meth:`prepare` has measured all."""
        return dict.fromkeys(self._keys, math.nan)

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        """Neural collapse of each split."""
        parts = self.in_shares(network, partial(self._measure_share, network, probes))
        values: dict[str, float] = {}
        for split in probes:
            collapse = self._metric(network)
            collapse.join([part[split] for part in parts if part[split] is not None])
            values.update(self._values(split, collapse))
        return values

    def _measure_share(self, network: Network, probes: Mapping[str, Probes], index: int, of: int) -> dict[str, Any]:
        """What the metric has seen of one share of the points of each split; ``None`` if there are none."""
        shares = {split: points.share(index, of) for split, points in probes.items()}
        return {split: self._seen_by(network, own).seen() if len(own) else None for split, own in shares.items()}

    def _seen_by(self, network: Network, points: Probes) -> NeuralCollapse:
        collapse = self._metric(network)
        collapse.update(network.module, points.inputs, points.targets)
        return collapse

    def _values(self, split: str, collapse: NeuralCollapse) -> dict[str, float]:
        """The values of a split by key; no NC3 without a head."""
        found = collapse.compute().items()
        has_head = int(collapse.n_weights) > 0
        return {f"nc/{name}_{split}": float(value) for name, value in found if name != "nc3" or has_head}

    def _metric(self, network: Network) -> NeuralCollapse:
        return NeuralCollapse(layer=self.layer, forward_fn=network.forward_fn, chunk_size=self.chunk_size)

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """NC1 of both splits, and below it the other measures at the train points."""
        first = {split: f"nc/nc1_{split}" for split in _SPLITS if f"nc/nc1_{split}" in keys}
        split = next(iter(first), "train")
        others = {text: f"nc/{name}_{split}" for name, text in _OTHERS.items() if f"nc/{name}_{split}" in keys}
        caption = "Variability of the last features within the classes over that between them; 0 is collapsed."
        below = f"Geometry of the class means at the {split} points: all fall to 0 with the collapse, NC4 rises to 1."
        panels = [Panel("NC1", first, _COLOURS, limits=(0, None), caption=caption)]
        panels.append(Panel("NC2 to NC4", others, limits=(0, None), caption=below))
        return [panel for panel in panels if panel.lines]

    def describe(self) -> str:
        """The features, the points and their classes."""
        return self._setup

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        own = {} if self.layer is None else {"layer": self.layer}
        return {**own, **super().settings()}
