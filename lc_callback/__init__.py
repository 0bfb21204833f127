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

# All but the callbacks.
_HOMES = {
    "PhaseDetector": "lc_callback.detection.phases",
    "Transition": "lc_callback.detection.phases",
    "compare_runs": "lc_callback.callbacks.comparison",
    "detect_phases": "lc_callback.detection.phases",
}


def __getattr__(name: str) -> Any:
    """Loaded when first asked for, so that `lc_callback.functional` needs torch only."""
    if name in __all__:
        return getattr(importlib.import_module(_HOMES.get(name, "lc_callback.callbacks")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
