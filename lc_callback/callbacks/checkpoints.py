"""Reading the checkpoints of a run, and fitting their weights to a model."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

__all__ = ["allowing", "load_module", "steps_of"]

_COMPILED = "_orig_mod."  # which `torch.compile` puts into the names of weights
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def allowing(classes: Iterable[Any]) -> AbstractContextManager[Any]:
    """Inside, checkpoints may hold objects of these classes, too. Those of a script are found under their old name."""
    known: list[Any] = [*classes]
    if _can_list():
        known += [(one, f"__main__.{one.__qualname__}") for one in known]
    if hasattr(torch.serialization, "safe_globals"):
        return torch.serialization.safe_globals(known)
    torch.serialization.add_safe_globals(known)  # torch 2.4
    return nullcontext()


def _can_list() -> bool:
    """Whether torch can tell what a checkpoint holds: from version 2.6 on."""
    return hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")


def steps_of(folder: Path) -> dict[int, Path]:
    """The ``*.ckpt`` of a folder by step; of several at one step the first.

    Raises:
        ValueError: if one cannot be read, or there is none.
    """
    found: dict[int, Path] = {}
    for path in sorted(folder.glob("*.ckpt")):
        step = _read(path).get("global_step")
        if step is None:
            raise ValueError(f"{path} has no `global_step`: it is no checkpoint of Lightning.")
        found.setdefault(int(step), path)
    if not found:
        raise ValueError(f"there is no *.ckpt in {folder}.")
    return dict(sorted(found.items()))


def _read(path: Path) -> Any:
    try:
        read = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        names = _refused(path)
        if not names:
            raise ValueError(f"{path} cannot be read as a checkpoint of Lightning ({_in_short(error)}).") from error
        raise ValueError(
            f"{path} holds objects of {', '.join(names)}, which are not loaded without being asked, for a checkpoint "
            f"can run any code. If you trust it: `--allow {' '.join(names)}`, each by the path it is imported from."
        ) from error
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint of Lightning ({_in_short(error)}).") from error
    if not isinstance(read, Mapping):
        raise ValueError(f"{path} holds a {type(read).__name__}: it is no checkpoint of Lightning.")
    return read


def _refused(path: Path) -> list[str]:
    """The classes and functions in a checkpoint that torch does not load without being asked."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path)) if _can_list() else []
    except Exception:  # an older format
        return []


def _in_short(error: Exception) -> str:
    """The first line, without codes for colours."""
    return f"{type(error).__name__}: {_COLOURS.sub('', str(error))}".partition("\n")[0]


def load_module(model: type[Any], path: Path, arguments: Mapping[str, Any], device: str) -> Any:
    """The model with the weights of a checkpoint, also where only one of the two was compiled.

    Raises:
        ValueError: if they do not fit, or the model needs other arguments.
    """
    options: dict[str, Any] = {"map_location": device, **arguments}
    try:
        try:
            return model.load_from_checkpoint(path, **options)
        except RuntimeError:
            module = model.load_from_checkpoint(path, strict=False, **options)
            given = _read(path)["state_dict"]
            names = {name.replace(_COMPILED, ""): name for name in module.state_dict()}
            if {*names} != {name.replace(_COMPILED, "") for name in given}:
                raise
            module.load_state_dict({names[name.replace(_COMPILED, "")]: weight for name, weight in given.items()})
            return module
    except (RuntimeError, TypeError, AttributeError, pickle.UnpicklingError) as error:
        why = " ".join(_COLOURS.sub("", str(error)).split())
        raise ValueError(f"{path} does not fit {model.__name__}, or needs other model arguments: {why}") from error
