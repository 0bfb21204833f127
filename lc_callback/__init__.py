"""Callbacks for PyTorch Lightning that measure the geometry of a network while it trains."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lc_callback.callbacks.comparison import compare_runs
    from lc_callback.callbacks.feature_rank import FeatureRankCallback
    from lc_callback.callbacks.local_complexity import LocalComplexityCallback
    from lc_callback.callbacks.neural_collapse import NeuralCollapseCallback
    from lc_callback.callbacks.partition import SplinePartitionCallback
    from lc_callback.callbacks.robustness import PGDRobustnessCallback
    from lc_callback.detection.phases import PhaseDetector, Transition, detect_phases

__version__ = "0.2.0"

__all__ = [
    "FeatureRankCallback",
    "LocalComplexityCallback",
    "NeuralCollapseCallback",
    "PGDRobustnessCallback",
    "PhaseDetector",
    "SplinePartitionCallback",
    "Transition",
    "__version__",
    "compare_runs",
    "detect_phases",
]

# Loaded when first asked for, so that `lc_callback.functional` needs torch only.
_HOMES = {
    "FeatureRankCallback": "lc_callback.callbacks.feature_rank",
    "LocalComplexityCallback": "lc_callback.callbacks.local_complexity",
    "NeuralCollapseCallback": "lc_callback.callbacks.neural_collapse",
    "PGDRobustnessCallback": "lc_callback.callbacks.robustness",
    "SplinePartitionCallback": "lc_callback.callbacks.partition",
    "PhaseDetector": "lc_callback.detection.phases",
    "compare_runs": "lc_callback.callbacks.comparison",
    "Transition": "lc_callback.detection.phases",
    "detect_phases": "lc_callback.detection.phases",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
