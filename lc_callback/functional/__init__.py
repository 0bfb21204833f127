"""The measures as plain functions of a torch module: no Lightning, no trainer, no state."""

from lc_callback.engine.network.frame import cross_polytope_frame
from lc_callback.functional.alignment import CentroidAlignment, centroid_alignment
from lc_callback.functional.complexity_map import LocalComplexityMap, local_complexity_map
from lc_callback.functional.deformation import FrameDeformation, frame_deformation
from lc_callback.functional.feature_rank import FeatureCovariance, FeatureRank, feature_rank, feature_ranks
from lc_callback.functional.linear_probe import linear_probe
from lc_callback.functional.local_complexity import LocalComplexity, local_complexity
from lc_callback.functional.neural_collapse import NeuralCollapse, neural_collapse
from lc_callback.functional.partition import SlicePartition, slice_partition
from lc_callback.functional.robustness import RobustAccuracy, robust_accuracy
from lc_callback.functional.weight_norm import weight_norms

__all__ = [
    "CentroidAlignment",
    "FeatureCovariance",
    "FeatureRank",
    "FrameDeformation",
    "LocalComplexity",
    "LocalComplexityMap",
    "NeuralCollapse",
    "RobustAccuracy",
    "SlicePartition",
    "centroid_alignment",
    "cross_polytope_frame",
    "feature_rank",
    "feature_ranks",
    "frame_deformation",
    "linear_probe",
    "local_complexity",
    "local_complexity_map",
    "neural_collapse",
    "robust_accuracy",
    "slice_partition",
    "weight_norms",
]
