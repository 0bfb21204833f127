"""Callbacks whose rows follow made-up curves of the step, so that a short run has every transition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from helpers import Classifier, loader, make_trainer, points

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.callbacks import run_report
from lc_callback.detection.transitions import PhaseEvent
from lc_callback.run.timeline import read_events

STEPS = 100  # of a run that has all transitions
Curve = Callable[[int], float]


def curve(*corners: tuple[int, float]) -> Curve:
    """Through ``(step, value)``, straight in between on a logarithmic axis of steps."""
    steps, values = zip(*corners, strict=True)
    nodes = np.log10(np.array(steps) + 1)
    return lambda step: float(np.interp(np.log10(step + 1), nodes, values))


def three_phases(later: int = 0) -> Curve:
    return curve((0, 100), (4 + later, 20), (15 + later, 80), (40 + later, 8), (1000, 7))


THREE_PHASES = ["first_descent_end", "migration_start", "migration_end"]  # it rises straight from its minimum

# Stays on a floor before it rises.
WITH_FLOOR = curve((0, 100), (4, 20), (12, 22), (30, 80), (60, 8), (1000, 7))

# Seems to migrate, rises again, then migrates.
HESITATES = curve((0, 100), (4, 20), (10, 60), (18, 30), (35, 90), (70, 10), (1000, 8))


class MadeUp:
    """Put before a measuring callback: ``curves`` in place of what is measured."""

    curves: Mapping[str, Curve] = {}
    really = False  # measured all the same, for the other keys

    def measure(self, network: Any, probes: Any) -> dict[str, Any]:
        values = {key: value(network.module.global_step) for key, value in self.curves.items()}
        if not self.really:
            return values
        measured = super().measure(network, probes)
        return {**measured, **{key: value for key, value in values.items() if key in measured}}


class MadeUpComplexity(MadeUp, LocalComplexityCallback):
    curves = {"lc/train": three_phases(), "lc/test": three_phases(1), "lc/random": three_phases(2)}


class MadeUpRobustness(MadeUp, PGDRobustnessCallback):
    curves = {
        "clean_acc/train": curve((0, 0.1), (5, 1.0), (1000, 1.0)),
        "clean_acc/test": curve((0, 0.1), (4, 0.4), (12, 0.4), (30, 0.9), (1000, 0.9)),
        "robust_acc/test_eps0.1": curve((0, 0.0), (20, 0.0), (60, 0.6), (1000, 0.6)),
    }


class MadeUpRank(MadeUp, FeatureRankCallback):
    curves = {
        "rank/net.1": curve((0, 16), (1000, 15)),
        "rank/net.3": curve((0, 16), (5, 16), (10, 4), (14, 4), (30, 12), (80, 3), (1000, 3)),
    }


MADE_UP = {"lc": MadeUpComplexity, "robustness": MadeUpRobustness, "rank": MadeUpRank}


def made_up(kind: str = "lc", curves: Mapping[str, Curve] | None = None, really: bool = False, **arguments: Any) -> Any:
    few = {
        "n_probes": 4,
        "test_probes": points(seed=1),
        "certainty": "tentative",  # so that what acts does so at once
        **({"eps": 0.1} if kind == "robustness" else {}),
    }
    callback = MADE_UP[kind](**{**few, **arguments})
    callback.curves, callback.really = {**callback.curves, **(curves or {})}, really
    return callback


def all_three(**arguments: Any) -> list[Any]:
    return [made_up(kind, **arguments) for kind in MADE_UP]


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.01)


def fit(folder: Any, *callbacks: Any, module: Any = None, resume: Any = None, **arguments: Any) -> pl.Trainer:
    """One epoch of a hundred batches."""
    trainer = make_trainer(folder, *callbacks, **{"max_steps": STEPS, **arguments})
    torch.manual_seed(0)
    module = Classifier(optimizer=adam) if module is None else module
    trainer.fit(module, loader(points(4 * STEPS), batch_size=4), ckpt_path=resume)
    return trainer


def leave_out_pictures(monkeypatch: Any) -> None:
    """Nearly all of the time of such a run goes into them."""
    white = np.full((1, 1, 3), 255, np.uint8)
    monkeypatch.setattr(run_report, "image", lambda parts: (white, b"white"))


def found(callback: Any) -> list[PhaseEvent]:
    return [event for event in callback.events if event.what == "found"]


def kinds(callback: Any) -> list[str]:
    return [transition.kind for transition in callback.transitions]


def events_file(folder: Path) -> list[PhaseEvent]:
    return read_events(folder / "events.jsonl")


def told(*callbacks: Any) -> list[str]:
    """All events, in no order."""
    return sorted(str(event) for callback in callbacks for event in callback.events)
