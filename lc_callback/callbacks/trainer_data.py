"""The data that a Trainer would give the model: its datasets, and what happens to a batch on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities import move_data_to_device

from lc_callback.isolation import fixed_rng, untouched

__all__ = ["batches_in_an_epoch", "find_loader", "transferred"]


def find_loader(trainer: Any, split: str) -> Any:
    """The loader that the split's probes are drawn from, or ``None``."""
    if split == "train":
        loader = trainer.train_dataloader
        return loader if hasattr(loader, "dataset") else None
    loader = _one(trainer.test_dataloaders if trainer.state.fn == "test" else trainer.val_dataloaders)
    if loader is None:
        loader = _unused_val_loader(trainer)
    sources = (trainer.datamodule, trainer.lightning_module)
    hooks = [getattr(source, f"{kind}_dataloader", None) for kind in ("val", "test") for source in sources]
    for hook in hooks if loader is None else ():
        try:  # not set up for testing, or not defined at all: then there is none
            with fixed_rng(None, trainer.datamodule):
                loader = _one(hook()) if hook is not None else None
        except Exception:
            loader = None
        if loader is not None:
            break
    return loader


def _unused_val_loader(trainer: Any) -> Any:
    """What ``fit(val_dataloaders=...)`` was given: without a ``validation_step`` Lightning leaves it alone."""
    try:
        return _one(trainer.fit_loop.epoch_loop.val_loop._data_source.instance)
    except AttributeError:  # no public way to ask for it
        return None


def batches_in_an_epoch(trainer: Any) -> int | None:
    """How many batches of the train loader an epoch has; ``None``: all of them."""
    n = getattr(trainer, "num_training_batches", float("inf"))  # overfit_batches and limit_train_batches included
    try:
        most: float = len(trainer.train_dataloader)
    except TypeError:  # it has no length
        most = float("inf")
    return int(n) if n < most else None


def transferred(trainer: Any, split: str, seed: int, batch: Any) -> Any:
    """``batch`` after the hooks that the user put round its way to the device, such as a normalisation there.

    They leave no trace, on the module and on the datamodule as little as a forward.
    """
    module, data, stage = trainer.lightning_module, trainer.datamodule, trainer.state.stage
    names = ("on_before_batch_transfer", "on_after_batch_transfer")
    owners = {name: data if data is not None and _overrides(data, name) else module for name in names}
    if not any(_overrides(owner, name) for name, owner in owners.items()):
        return batch
    training = split == "train" and stage == "train"
    flags = {part: training and part.training for part in module.modules()}
    if split == "test" and stage == "train":
        trainer.validating = True  # as Lightning itself does when it prepares validation within fit
    try:
        asked = data if any(owner is data for owner in owners.values()) else None
        with untouched(module, asked, seed=seed):
            for part, flag in flags.items():
                part.training = flag  # what is only done in training is done with train points
            for name, owner in owners.items():
                if _overrides(owner, name):
                    if name == "on_after_batch_transfer":
                        batch = move_data_to_device(batch, module.device)
                    batch = getattr(owner, name)(batch, 0)
    finally:
        trainer.state.stage = stage
    return batch


def _overrides(owner: Any, name: str) -> bool:
    return getattr(getattr(type(owner), name, None), "__qualname__", "DataHooks").split(".")[0] != "DataHooks"


def _one(loaders: Any) -> Any:
    """The first loader of a list or dict of loaders."""
    if isinstance(loaders, Mapping):
        loaders = list(loaders.values())
    if isinstance(loaders, Sequence):
        loaders = loaders[0] if loaders else None
    return loaders if hasattr(loaders, "dataset") else None
