"""The callback that tracks clean and adversarial accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torchmetrics import Metric

from lc_callback.callbacks.base import Network, ProbeCallback
from lc_callback.callbacks.spread_monitor import SpreadMonitor
from lc_callback.detection.milestones import (
    ACCURACY_KINDS,
    ACCURACY_SETTINGS,
    attacked_keys,
    check_accuracy_settings,
    find_accuracy_milestones,
)
from lc_callback.detection.transitions import Curves, Turn
from lc_callback.engine.adversarial.domain import find_bounds, usable_spread
from lc_callback.engine.network.space import input_points, input_spread, spread_behind
from lc_callback.functional.robustness import check_arguments
from lc_callback.metrics import RobustAccuracy
from lc_callback.names import number_names
from lc_callback.run.probes import Probes
from lc_callback.run.timeline import Panel, spaced

__all__ = ["PGDRobustnessCallback"]

_COLOURS = {"train": "#009E73", "test": "#E69F00"}
_ROBUST_COLOURS = ("#d98cb3", "#a34a8c", "#3f1a5c")  # from the smallest eps to the largest


class _Accuracy(RobustAccuracy):
    """One whose warnings are those of the callback."""

    def _tell(self, note: str) -> None:
        """The callback says it once."""


@dataclass(frozen=True)
class _Part:
    """What one process has measured: the states of each metric, a warning, and the unit of eps behind a module."""

    seen: dict[str, Any]
    note: str
    spread: float | None


class PGDRobustnessCallback(ProbeCallback):
    r"""Track clean accuracy, and accuracy under adversarial attack, of any classifier while it trains.

    *Deep Networks Always Grok and Here is Why* (ICML 2024, section 1) finds that long after a network has generalised
    it can become robust to PGD (**delayed robustness**). See :func:`lc_callback.functional.robust_accuracy` for the
    attacks, and for the normalisation of the logits that tells this from vanishing gradients.

    Logged at ``step = trainer.global_step``, the number of updates applied; step 0 is the initialisation:

    - ``clean_acc/train``, ``clean_acc/test``: share of the points that are classified correctly, from 0 to 1; of
      several labels or pixels each counts by itself. With ``metric=`` the value of that metric.
    - ``robust_acc/test_eps0.03``, ...: the share of the test points that are classified correctly both as they are and
      as the attack with this ``eps`` leaves them. Without test points: ``robust_acc/train_eps0.03``.
    - ``robust_acc_raw/test_eps0.03``, ...: the same for an attack on the raw logits, with ``raw=True``.
    - ``robust_acc/spread``: root-mean-square spread of the train points where the output of a module is attacked: the
      unit of ``eps`` at this row, unless ``eps_unit="input"``.
    - ``robust_acc/seconds``: what the row cost.
    - ``robust_acc/events``: a text for each transition that is found, moved or withdrawn.

    Transitions (:func:`lc_callback.detection.milestones.find_accuracy_milestones`): ``interpolation``,
    ``generalization``, ``delayed_generalization``, ``multi_stage_generalization``, and for each eps
    ``robustness_onset`` and ``delayed_robustness``. They are in ``callback.transitions``, in ``events.jsonl`` in the
    log directory, and in the picture ``timeline``.

    Under DDP each process attacks its share of the points, and all get the same row. Rounding may make it differ from
    the row of one process, so that an attack succeeds at one point more or less. Attacks other than ``"PGD"`` draw
    random numbers for all points at once, so each process attacks all points.

    Rows go to every logger of the Trainer, to ``trainer.callback_metrics`` (so
    ``ModelCheckpoint(monitor="robust_acc/test_eps0.03", mode="max")`` works), to ``callback.history``, into
    checkpoints, and to ``robust_acc/history.csv`` in the log directory. ``trainer.validate()`` and ``trainer.test()``
    log one row.

    Args:
        eps: radius of the attack, or several.
        attack: name of an attack of torchattacks (``"PGD"``, ``"PGDL2"``, ``"APGD"``, ``"AutoAttack"``, ``"Square"``,
            ...; all but ``"PGD"`` need the extra ``attacks``), or a function ``attack(model, x, y) -> x_adv``.
        alpha: step size, in the unit of ``eps``; ``None`` is ``2.5 * eps / steps``.
        steps: iterations of the attack.
        bounds: domain ``(low, high)`` of the inputs, scalars or per feature. ``None`` is (0, 1) for points that fill
            exactly that, else the range of each feature over all points, said in the text log; with ``at`` no bounds.
        eps_unit: ``"input"``: ``eps`` and ``alpha`` are in units of what is attacked. ``"std"``: they are multiples of
            the root-mean-square spread of the train points there (of the test points in an evaluation without train
            points). ``"auto"`` is ``"input"`` for inputs and ``"std"`` behind a module (``at``, tokens). Behind a
            module the spread is measured at each row, because an embedding that shrinks while the next layer grows is
            the same function. With ``"input"`` the numbers stay as they are; one warning says if the spread has changed
            by a factor of 2.
        attack_args: further arguments of the attack, such as ``{"norm": "L2"}``.
        raw: also log the accuracy under the attack on raw logits, which vanishing gradients can mislead.
        at: name of the module whose output is attacked instead of the input. Tokens: the embedding that reads them.
        n_probes: points for each split.
        chunk_size: points in one forward and backward pass; by default what fits a memory budget, halved when out of
            memory.
        task: ``"multiclass"`` for logits ``(N, C)`` or ``(N, C, H, W)``, ``"binary"`` for one logit for each point,
            ``"multilabel"`` for one for each label. ``"auto"`` finds out from outputs and targets of all points, see
            :func:`lc_callback.functional.robust_accuracy`.
        metric: a metric of torchmetrics for classifiers that takes the place of accuracy, such as
            ``torchmetrics.classification.MulticlassF1Score(num_classes=10)``; its ``ignore_index`` is respected.
        detection: settings of the detector by name, of
            :func:`lc_callback.detection.milestones.find_accuracy_milestones`: ``{"interpolation": 0.95}``.
        arguments: those of :class:`lc_callback.callbacks.ProbeCallback`: which points, which steps, what of
            the model, and what is done at a transition.

    Raises:
        ValueError: for an argument out of range, on construction; for targets that do not fit the outputs, or points
            outside the bounds, before the first step.
        MisconfigurationException: if there is nothing to draw from or to call, before the first step.

    Example::

        >>> from lightning.pytorch import Trainer
        >>> from lc_callback import PGDRobustnessCallback
        >>> callback = PGDRobustnessCallback(eps=[0.03, 0.1])
        >>> trainer = Trainer(callbacks=[callback], logger=False, enable_checkpointing=False)
        >>> callback
        PGDRobustnessCallback(eps=[0.03, 0.1], attack='PGD', steps=10, schedule='log', n_probes=256, seed=0)
    """

    group = "robust_acc"
    without = ("random_probes",)
    kinds = ACCURACY_KINDS
    detection_settings = ACCURACY_SETTINGS
    shares_points = True

    def __init__(
        self,
        eps: float | list[float] = (0.03, 0.1),  # type: ignore[assignment]
        attack: str | Callable[..., Any] = "PGD",
        alpha: float | None = None,
        steps: int = 10,
        bounds: Any = None,
        eps_unit: str = "auto",
        attack_args: dict[str, Any] | None = None,
        raw: bool = False,
        at: str | None = None,
        n_probes: int = 256,
        chunk_size: int | None = None,
        task: str = "auto",
        metric: Metric | None = None,
        **arguments: Any,
    ) -> None:
        super().__init__(n_probes=n_probes, random_probes=False, **arguments)
        self._radii = check_arguments(
            eps=eps,
            attack=attack,
            alpha=alpha,
            steps=steps,
            bounds=bounds,
            eps_unit=eps_unit,
            attack_args=attack_args,
            at=at,
            chunk_size=chunk_size,
            task=task,
            metric=metric,
        )
        if not isinstance(raw, bool):
            raise ValueError(f"`raw` must be True or False, but got {raw!r}.")
        self.eps = list(eps) if isinstance(eps, tuple) else eps
        self.attack, self.alpha, self.steps, self.attack_args = attack, alpha, steps, attack_args
        self.bounds, self.eps_unit, self.raw, self.at, self.chunk_size = bounds, eps_unit, raw, at, chunk_size
        self.task, self.metric, self._task = task, metric, task
        self._domain, self._domain_text, self._unit, self._sources = bounds, "", 1.0, ""
        self._note, self._has_warned = "", False  # about outputs that are no logits
        self._behind = False  # a module whose output is attacked
        self._first_unit: float | None = None  # what the train points of the run settled
        self._first_bounds: torch.Tensor | None = None
        self._space = SpreadMonitor("eps", "accuracy under attack", ("falls", "rises"))

    @classmethod
    def paper(cls, **arguments: Any) -> PGDRobustnessCallback:
        """The attack of the ICML 2024 paper: six eps from 0.03 to 0.20, steps of 1/64, 10 of them; 1024 points.

        ``arguments`` are added, or replace these; for MNIST the paper takes ``steps=100``.

        Example::

            >>> from lc_callback import PGDRobustnessCallback
            >>> PGDRobustnessCallback.paper(steps=100).eps
            [0.03, 0.06, 0.1, 0.13, 0.16, 0.2]
        """
        eps = [0.03, 0.06, 0.10, 0.13, 0.16, 0.20]
        return cls(**{"eps": eps, "alpha": 1 / 64, "steps": 10, "n_probes": 1024, **arguments})

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Settle domain and unit, which depend on the probes, and check the targets of all of them."""
        self._note, self._has_warned = "", False
        arguments: dict[str, Any] = {"at": self.at, "forward_fn": network.forward_fn}
        first = next(iter(probes.values()))  # of the train split, if there is one
        spread = spread_behind(network.module, first.inputs, **arguments)
        self._behind = spread is not None
        if spread is not None:
            self._unit = 1.0 if self.eps_unit == "input" else usable_spread(spread[1])
        elif self.eps_unit == "std":
            self._unit = self._first_unit or usable_spread(input_spread(network.module, first.inputs, **arguments)[1])
        else:
            self._unit = 1.0
        self._domain, self._domain_text = self.bounds, f"{self.bounds}"
        if self.bounds is None:
            points = [input_points(network.module, split.inputs, **arguments) for split in probes.values()]
            seen = [some for some in points if some is not None]
            shapes = {some.shape[1:] for some in seen}
            self._domain_text = "the observed range of each feature in each split" if seen else "none"
            if len(shapes) == 1:
                if self._first_bounds is not None and self._first_bounds.shape[1:] in shapes:
                    seen.append(self._first_bounds.to(seen[0]))
                low, high, self._domain_text = find_bounds(torch.cat(seen))
                self._domain = low, high
        self._task = self._find_task(network, probes)
        self._warn_of_outputs()
        self._warn_of_wide_eps()
        self._sources = "; ".join(f"{split}: {len(some)} points ({some.source})" for split, some in probes.items())
        if "train" in probes:
            self._first_unit = self._unit if self.eps_unit == "std" and not self._behind else None
            if self.bounds is None and self._domain is not None and self._first_bounds is None:
                self._first_bounds = torch.stack(self._domain)

    def _find_task(self, network: Network, probes: Mapping[str, Probes]) -> str:
        """The task that all points show; the targets of all are looked at."""
        tasks = []
        for split, points in probes.items():
            accuracy = self._accuracy(network, [0.0], task=self.task)
            try:
                accuracy.update(network.module, points.inputs, points.targets)
            except ValueError as error:
                raise ValueError(f"{split} probes: {error}") from error
            self._note = self._note or accuracy.note
            tasks.append(accuracy.task)
        # Targets of several labels look like classes where each point of a split happens to have one label.
        return "multilabel" if "multilabel" in tasks else tasks[0]

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> dict[str, float]:
        """Clean accuracy of each split, and robust accuracy of the test split."""
        attacked = "test" if "test" in probes else "train"
        parts = self.in_shares(network, partial(self._measure_share, network, probes, attacked))
        self._note = self._note or next((part.note for part in parts if part.note), "")
        values: dict[str, float] = {}
        for name, group in {**dict.fromkeys(probes, "robust_acc"), "raw": "robust_acc_raw"}.items():
            if name not in parts[0].seen:
                continue
            accuracy = self._accuracy(network, self._radii if name in (attacked, "raw") else [0.0])
            accuracy.join([part.seen[name] for part in parts])
            clean, *robust = map(float, accuracy.compute().values())
            if name != "raw":
                values[f"clean_acc/{name}"] = clean
            if name in (attacked, "raw"):
                robust = robust if math.isfinite(self._unit) else [math.nan] * len(self._radii)
                keys = [f"{group}/{attacked}_eps{eps}" for eps in number_names(self._radii)]
                values.update(zip(keys, robust, strict=True))
        spread = parts[0].spread
        return values if spread is None else {**values, "robust_acc/spread": spread}

    def _measure_share(
        self, network: Network, probes: Mapping[str, Probes], attacked: str, index: int, of: int
    ) -> _Part:
        """What the metrics see of one share of the points of each split, and that for an attack on raw logits."""
        spread = self._spread_of_row(network)  # here, for all processes measure the same network now
        metrics = {name: self._accuracy(network, self._radii if name == attacked else [0.0]) for name in probes}
        if self.raw:
            metrics["raw"] = self._accuracy(network, self._radii, normalize_logits=False)
        for name, accuracy in metrics.items():
            points = probes[attacked if name == "raw" else name]
            accuracy.update(network.module, points.inputs, points.targets, share=(index, of))
        note = next((accuracy.note for accuracy in metrics.values() if accuracy.note), "")
        return _Part({name: accuracy.seen() for name, accuracy in metrics.items()}, note, spread)

    def recorded(self, step: int) -> None:
        """Say that the model returns probabilities, if only this row has shown it."""
        self._warn_of_outputs()

    def _warn_of_outputs(self) -> None:
        if self._note and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(f"{self.peer.name}: {self._note}")

    def _warn_of_wide_eps(self) -> None:
        """Warn if the attack may turn any point into any other of the domain."""
        if self._domain is None or self._behind or "L2" in f"{self._attack_name()} {self.attack_args}".upper():
            return
        low, high = (torch.as_tensor(bound) for bound in self._domain)
        width, most = float((high - low).max()), max(self._radii)
        if most * self._unit >= width:
            rank_zero_warn(
                f"{self.peer.name}: `eps={most:g}` reaches all of the domain, which is {width / self._unit:.3g} wide: "
                "any point may become any other. If it is meant in steps of 8-bit images, pass it divided by 255."
            )

    def _spread_of_row(self, network: Network) -> float | None:
        """The spread behind a module, which is the unit of eps at this row; ``None`` if inputs are attacked."""
        if not self._behind:
            return None
        # Of all points, also where a measurement is tried out with a few.
        train = self.all_probes.get("train")
        if self.eps_unit == "input" and train is not None:
            return self._space.look(self.peer.name, network, train, self.at)
        points = train or next(iter(self.all_probes.values()))
        found = spread_behind(network.module, points.inputs, at=self.at, forward_fn=network.forward_fn)
        assert found is not None
        if self.eps_unit != "input":
            self._unit = usable_spread(found[1])
        return found[1]

    def _accuracy(self, network: Network, radii: list[float], **others: Any) -> _Accuracy:
        """The metric for these eps. With a unit that is not finite no eps is, and what is left is clean accuracy."""
        unit = self._unit if math.isfinite(self._unit) else 1.0
        arguments: dict[str, Any] = {
            "attack": self.attack,
            "alpha": None if self.alpha is None else self.alpha * unit,
            "steps": self.steps,
            "eps_unit": "input",
            "bounds": self._domain,
            "seed": self.seed,
            "attack_args": self.attack_args,
            "at": self.at,
            "forward_fn": network.forward_fn,
            "chunk_size": self.chunk_size,
            "task": self._task,
            "metric": self.metric,
        }
        eps = [radius * unit for radius in radii] if math.isfinite(self._unit) else [0.0]
        return _Accuracy(eps, **{**arguments, **others})

    @staticmethod
    def find(curves: Curves, settings: Mapping[str, float]) -> list[Turn]:
        """Interpolation, generalization and robustness."""
        return find_accuracy_milestones(curves, settings)

    @staticmethod
    def followed(keys: Sequence[str]) -> list[str]:
        """Clean accuracies, and accuracy under each attack."""
        return [*(key for key in keys if key.startswith("clean_acc/")), *attacked_keys(keys)]

    @staticmethod
    def check_detection(settings: Mapping[str, float]) -> None:
        """Raise a ValueError if one is out of range."""
        check_accuracy_settings(settings)

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """Clean accuracies, and accuracy under each attack."""
        clean = {key.partition("/")[2]: key for key in keys if key.startswith("clean_acc/")}
        robust = {key.partition("/")[2].replace("_eps", ", eps "): key for key in attacked_keys(keys)}
        colours = [_COLOURS[name] for name in clean] + spaced(_ROBUST_COLOURS, len(robust))
        caption = "Share of the points that are classified correctly; with eps as they are and under attack."
        return [Panel("accuracy", clean | robust, colours, limits=(0, 1), caption=caption)] if clean else []

    def caption(self, panel: Panel) -> str:
        """The points, the attack, and the unit of eps."""
        if self.points_of("train") is None:
            return panel.caption
        inside = self.at is not None or self._domain_text == "none"
        where = f" on the output of {self.at or 'the embedding that reads the tokens'}" if inside else ""
        if self.eps_unit == "std" or (self.eps_unit == "auto" and inside):
            unit = f"spreads of the {'points there, at each row' if inside else 'train points'}"
        else:
            unit = "units of that output" if inside else "units of the input"
        what = f"Share of {self.points_text()} classified correctly"
        if self.metric is not None:
            what = f"{type(self.metric).__name__} of {self.points_text()}"
        return (
            f"{what}; with eps: as they are and under "
            f"{self._attack_name()} of {self.steps} steps{where}; eps in {unit}."
        )

    def describe(self) -> str:
        """The attack, its budget and its domain."""
        if not self._sources:
            return ""
        unit = ""
        if self._behind and self.eps_unit != "input":
            unit = f" times the spread of the points there at each row, now {self._unit:.4g}"
        elif self.eps_unit == "std":
            unit = f" times the spread of the points, {self._unit:.4g}"
        step = "2.5 eps / steps" if self.alpha is None else f"{self.alpha:g}"
        where = "output of the embedding that reads the tokens" if self._domain_text == "none" else "inputs"
        where = where if self.at is None else f"output of `{self.at}`"
        return (
            f"Attack {self._attack_name()} on the {where}, eps {', '.join(number_names(self._radii))}{unit}, "
            f"{self.steps} steps of {step}, logits normalised. Judged by {self._judge_name()}. "
            f"Bounds: {self._domain_text}. {self._sources}"
        )

    def _attack_name(self) -> str:
        return self.attack if isinstance(self.attack, str) else getattr(self.attack, "__name__", "own function")

    def _judge_name(self) -> str:
        name = "accuracy" if self.metric is None else type(self.metric).__name__
        return f"{name}, {self._task} task"

    def extra_state(self) -> dict[str, Any]:
        """Unit and domain that the points settled: a resumed run goes on with them, and an evaluation repeats them."""
        return {"unit": self._first_unit, "bounds": self._first_bounds, "spread": self._space.first}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back unit and domain."""
        self._first_unit, self._first_bounds = state.get("unit"), state.get("bounds")
        self._space.begin(state.get("spread"))

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        own = {"eps": self.eps, "attack": self.attack, "alpha": self.alpha, "steps": self.steps, "at": self.at}
        own["eps_unit"] = None if self.eps_unit == "auto" else self.eps_unit
        return {name: value for name, value in own.items() if value is not None} | super().settings()
