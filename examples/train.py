"""Train one of the experiments, each of which is a YAML file beside this one.

    python examples/train.py fit --config examples/digits_mlp.yaml
    python examples/train.py fit --config examples/digits_mlp.yaml --seed_everything 1 --model.network.init_scale 6
    python examples/train.py fit --help

Curves, `timeline.png`, the rows as CSV and the settings of the run as `config.yaml` are in `lightning_logs/`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from data import MissingDataError
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, OptimizerCallable
from penalties import RegionPenalty
from torch import Tensor, nn
from torch.nn import functional as F

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback


class Classifier(LightningModule):
    """Any network, trained to classify.

    Args:
        network: inputs to logits ``(N, C)``.
        optimizer: what is called with the parameters.
        loss: ``"mse"`` on one-hot labels, as the papers do for MNIST, or ``"cross_entropy"``.
        penalty: a term of the loss for regions near the training points.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        loss: Literal["mse", "cross_entropy"] = "mse",
        penalty: RegionPenalty | None = None,
    ) -> None:
        super().__init__()
        self.network, self.optimizer, self.loss, self.penalty = network, optimizer, loss, penalty

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        logits = self(x)
        if self.loss == "mse":
            loss = F.mse_loss(logits, F.one_hot(y, logits.shape[1]).to(logits.dtype))
        else:
            loss = F.cross_entropy(logits, y)
        terms = {"train_loss": loss}
        if self.penalty is not None:
            terms["region_penalty"] = self.penalty(self.network, x)
        # A call of `log` takes a tenth of a step. That of the first batch is for runs shorter than the interval.
        if not batch_idx or (batch_idx + 1) % (self.trainer.log_every_n_steps or 1) == 0:
            self.log_dict(terms)
        return sum(terms.values())

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Accuracy on the whole test set: at the end, for the run is one epoch."""
        x, y = batch
        self.log("test_acc", (self(x).argmax(1) == y).float().mean(), batch_size=len(y))

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        if hasattr(optimizer, "first_step") and optimizer_closure is not None:
            optimizer_closure()  # SAM of pytorch_optimizer expects gradients, and calls the closure for the second ones
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer(self.parameters())


class CLI(LightningCLI):
    """LightningCLI with the three callbacks under short names, so that a command can change one argument of them."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(LocalComplexityCallback, "lc")
        parser.add_lightning_class_args(PGDRobustnessCallback, "robustness")
        parser.add_lightning_class_args(FeatureRankCallback, "rank")
        parser.add_argument("--threads", type=int | None, default=None, help="of torch; by default one for each core")

    def before_instantiate_classes(self) -> None:
        threads = self._get(self.config, "threads")
        if threads is not None:
            torch.set_num_threads(threads)

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        self.datamodule.prepare_data()  # missing data is reported before the Trainer speaks of devices
        trainer = super().instantiate_trainer(**kwargs)
        # A line for each of thousands of short steps would take longer than they do.
        trainer.callbacks = [TQDMProgressBar(500) if isinstance(c, TQDMProgressBar) else c for c in trainer.callbacks]
        return trainer


def main() -> CLI:
    warnings.filterwarnings("ignore", ".*does not have many workers.*")  # batches come from memory
    try:
        return CLI(
            Classifier,
            LightningDataModule,
            subclass_mode_data=True,
            trainer_defaults={"enable_checkpointing": False, "enable_model_summary": False},
        )
    except MissingDataError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
