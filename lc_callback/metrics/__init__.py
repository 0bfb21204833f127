"""The measures as :class:`torchmetrics.Metric`: ``update(model, inputs[, targets])`` batch by batch, ``compute()``.

They need neither Lightning nor a Trainer: Fabric, the Trainer of transformers or a plain loop call them. Their states
are summed or concatenated over processes, as those of any metric of torchmetrics.
"""

from lc_callback.metrics.alignment import CentroidAlignment
from lc_callback.metrics.feature_rank import FeatureRank
from lc_callback.metrics.local_complexity import LocalComplexity
from lc_callback.metrics.neural_collapse import NeuralCollapse
from lc_callback.metrics.robustness import RobustAccuracy

__all__ = ["CentroidAlignment", "FeatureRank", "LocalComplexity", "NeuralCollapse", "RobustAccuracy"]
