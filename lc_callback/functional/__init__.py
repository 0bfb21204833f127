"""The measures as plain functions of a torch module: no Lightning, no trainer, no state."""

from lc_callback.functional.feature_rank import FeatureCovariance, FeatureRank, feature_rank
from lc_callback.functional.frame import cross_polytope_frame
from lc_callback.functional.local_complexity import LocalComplexity, local_complexity

__all__ = [
    "FeatureCovariance",
    "FeatureRank",
    "LocalComplexity",
    "cross_polytope_frame",
    "feature_rank",
    "local_complexity",
]
