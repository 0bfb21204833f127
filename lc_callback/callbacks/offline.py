"""The rows of a run that never had the callbacks, from its checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lc_callback.callbacks._compat import MISCONFIGURATION
from lc_callback.callbacks.base import ProbeCallback
from lc_callback.callbacks.checkpoints import load_module, steps_of

__all__ = ["LOADERS", "measure_checkpoints"]

#: What ``--data`` may be, for errors.
LOADERS = "a LightningDataModule, or a function that returns one or a pair of DataLoaders (train, test)"


class _Run:
    """Stands in for the Trainer of a run that is over: it has what the callbacks ask for."""

    barebones = fast_dev_run = is_last_batch = should_stop = False
    testing = predicting = sanity_checking = False
    is_global_zero = True
    current_epoch, world_size = 0, 1
    max_steps = max_epochs = -1
    checkpoint_callback = strategy = None
    lr_scheduler_configs = ()

    def __init__(self, callbacks: Sequence[ProbeCallback], data: Any, output: Path) -> None:
        self.callbacks, self.datamodule = [*callbacks], data
        self.loggers = [TensorBoardLogger(output, name="", version="")]
        self.log_dir = self.default_root_dir = str(output)
        self.state = SimpleNamespace(fn="fit", stage="train")
        self.callback_metrics: dict[str, Any] = {}
        self.global_step = 0
        self.lightning_module: Any = None
        self.train_dataloader = self.val_dataloaders = self.test_dataloaders = None

    @property
    def training(self) -> bool:
        return self.state.stage == "train"

    @property
    def validating(self) -> bool:
        return self.state.stage == "validate"

    @validating.setter
    def validating(self, value: bool) -> None:
        self.state.stage = "validate" if value else "train"

    def load(self, module: Any, step: int) -> None:
        self.lightning_module, self.global_step = module, step
        module.trainer = self


def measure_checkpoints(
    checkpoints: Path,
    model: type[Any],
    data: Any,
    callbacks: Mapping[type[ProbeCallback], Mapping[str, Any]],
    output: Path,
    *,
    model_args: Mapping[str, Any] | None = None,
    device: str = "cpu",
) -> list[ProbeCallback]:
    """Measure every checkpoint in a folder as the callbacks would have done during the run.

    Args:
        checkpoints: folder with the ``*.ckpt`` of one run. Of several at one step the first is taken.
        model: the LightningModule class.
        data: a LightningDataModule, a pair of loaders (train, test), or ``None`` if the model has its own dataloaders.
        callbacks: arguments of each callback. The schedule is given by the checkpoints.
        output: where rows, events, the timeline and the TensorBoard files go.
        model_args: arguments of ``model`` that its checkpoints do not hold.
        device: where the model is measured.

    Returns:
        The callbacks, with their history and transitions.

    Raises:
        ValueError: if there are no checkpoints, or an argument of a callback makes no sense here.
        MisconfigurationException: if there is no train loader.
    """
    steps = steps_of(checkpoints)
    made = []
    for kind, arguments in callbacks.items():
        refused = {
            "schedule",
            "every_n_train_steps",
            "every_n_epochs",
            "on_transition",
            "stop_after",
            "certainty",
            "max_overhead",
        } & {*arguments}
        if refused:
            raise ValueError(f"{kind.__name__}: {sorted(refused)} make no sense for checkpoints of a run that is over.")
        made.append(kind(**{"raise_on_error": True, **arguments, "schedule": [*steps]}))
    loaders = data if isinstance(data, (tuple, list)) else None
    run = _Run(made, data if loaders is None else None, output)
    for number, (step, path) in enumerate(steps.items()):
        module = load_module(model, path, model_args or {}, device)
        run.load(module.to(device), step)
        if number:
            module.setup("fit")
        else:
            _connect(run, loaders)
        for callback in made:
            if not number:
                callback.setup(run, module, "fit")
                callback.on_fit_start(run, module)
        for callback in made:
            if number:
                callback.on_train_batch_end(run, module, None, None, 0)
            else:
                callback.on_train_start(run, module)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* of the training: lower ")  # there is none
        for callback in made:
            callback.on_train_end(run, module)
    for callback in made:
        callback.teardown(run, module, "fit")
    run.loggers[0].finalize("success")
    return made


def _connect(run: _Run, loaders: Sequence[Any] | None) -> None:
    """Set data and model up as ``Trainer.fit`` does."""
    sources = [source for source in (run.datamodule, run.lightning_module) if source is not None]
    for source in sources:
        source.trainer = run
        source.prepare_data()
    for source in sources:
        source.setup("fit")
    if loaders is not None:
        run.train_dataloader, run.val_dataloaders = loaders
        return
    try:
        run.train_dataloader = sources[0].train_dataloader()
    except MISCONFIGURATION as error:
        raise MisconfigurationException(
            f"{type(sources[0]).__name__} has no `train_dataloader`: give with `--data` the import path of {LOADERS}."
        ) from error
    try:
        run.val_dataloaders = sources[0].val_dataloader()
    except Exception:  # it has none: then the callbacks look for test data, and say so if there is none
        run.val_dataloaders = None
