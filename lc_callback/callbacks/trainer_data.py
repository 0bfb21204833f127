"""The data that a Trainer would give the model: its datasets, and what happens to a batch on its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lightning.fabric.utilities import move_data_to_device

from lc_callback.isolation import fixed_rng

__all__ = ["find_loader", "transferred"]


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


def transferred(trainer: Any, split: str, batch: Any) -> Any:
    """``batch`` after the hooks that the user put round its way to the device, such as a normalisation there."""
    module, data, stage = trainer.lightning_module, trainer.datamodule, trainer.state.stage
    if split == "test" and stage == "train":
        trainer.validating = True  # as Lightning itself does when it prepares validation within fit
    try:
        for name in ("on_before_batch_transfer", "on_after_batch_transfer"):
            owner = data if data is not None and _overrides(data, name) else module
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
