"""The Lightning callbacks: each its arguments and its measure, on the life cycle of :class:`ProbeCallback`."""

from lc_callback.callbacks.base import Network, ProbeCallback
from lc_callback.callbacks.feature_rank import FeatureRankCallback
from lc_callback.callbacks.local_complexity import LocalComplexityCallback
from lc_callback.callbacks.neural_collapse import NeuralCollapseCallback
from lc_callback.callbacks.partition import SplinePartitionCallback
from lc_callback.callbacks.robustness import PGDRobustnessCallback

__all__ = [
    "MEASURES",
    "FeatureRankCallback",
    "LocalComplexityCallback",
    "Network",
    "NeuralCollapseCallback",
    "PGDRobustnessCallback",
    "ProbeCallback",
    "SplinePartitionCallback",
]

#: All that ``python -m lc_callback`` knows, in the order of the timeline.
MEASURES: list[type[ProbeCallback]] = [
    LocalComplexityCallback,
    PGDRobustnessCallback,
    FeatureRankCallback,
    SplinePartitionCallback,
    NeuralCollapseCallback,
]
