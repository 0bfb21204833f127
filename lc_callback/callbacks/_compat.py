"""What has to hold for both names under which Lightning is imported."""

from __future__ import annotations

import lightning.pytorch
import pytorch_lightning

__all__ = [
    "DDP_STRATEGIES",
    "EARLY_STOPPING",
    "FSDP_STRATEGIES",
    "MISCONFIGURATION",
    "MODEL_CHECKPOINT",
    "WEIGHT_AVERAGING_EPOCH",
    "Callback",
]

DDP_STRATEGIES = (lightning.pytorch.strategies.DDPStrategy, pytorch_lightning.strategies.DDPStrategy)
FSDP_STRATEGIES = (lightning.pytorch.strategies.FSDPStrategy, pytorch_lightning.strategies.FSDPStrategy)
EARLY_STOPPING = (lightning.pytorch.callbacks.EarlyStopping, pytorch_lightning.callbacks.EarlyStopping)
MISCONFIGURATION = (
    lightning.pytorch.utilities.exceptions.MisconfigurationException,
    pytorch_lightning.utilities.exceptions.MisconfigurationException,
)
MODEL_CHECKPOINT = (lightning.pytorch.callbacks.ModelCheckpoint, pytorch_lightning.callbacks.ModelCheckpoint)
# What takes one more epoch with averaged weights.
WEIGHT_AVERAGING_EPOCH = (
    lightning.pytorch.callbacks.StochasticWeightAveraging,
    pytorch_lightning.callbacks.StochasticWeightAveraging,
)


class Callback(lightning.pytorch.Callback, pytorch_lightning.Callback):  # type: ignore[misc]
    """Accepted by the Trainer of ``lightning.pytorch`` and of ``pytorch_lightning`` alike.

    These are separate copies of the same classes, and before 2.6 a Trainer refuses the other's callbacks. Installing
    ``lightning`` always installs both.
    """
