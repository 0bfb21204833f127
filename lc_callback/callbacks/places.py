"""Where each callback of a Trainer puts its files and keys, and that no two take the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lc_callback.run.files import safe_name

if TYPE_CHECKING:
    from lc_callback.callbacks.base import ProbeCallback

__all__ = ["folder_of", "refuse_one_folder", "refuse_one_key", "refuse_twins"]


def folder_of(callback: ProbeCallback) -> str:
    """Name of the folder of a callback's files, in the log directory."""
    return safe_name(callback.log_key_prefix + callback.group)


def refuse_twins(callback: ProbeCallback, callbacks: Sequence[Any]) -> None:
    """Raise a MisconfigurationException if another instance among these would write the same keys and files."""
    same = [c for c in callbacks if type(c) is type(callback) and c.log_key_prefix == callback.log_key_prefix]
    if len(same) > 1:
        raise MisconfigurationException(
            f"the Trainer has {len(same)} callbacks {type(callback).__name__} with `log_key_prefix="
            f"{callback.log_key_prefix!r}`: give each its own `log_key_prefix`, such as 'other/', which tells apart "
            "their keys, files and states in checkpoints (`callback.state_key` must be unique)."
        )


def refuse_one_folder(callbacks: Sequence[ProbeCallback]) -> None:
    """Raise a MisconfigurationException if the files of two callbacks would go to one folder."""
    owners: dict[str, ProbeCallback] = {}
    for callback in callbacks:
        other = owners.setdefault(folder_of(callback), callback)
        if other is not callback:
            raise MisconfigurationException(
                f"the files of {_in_words(other)} and of {_in_words(callback)} would go to one folder, "
                f"{folder_of(callback)!r}: give one of them another `log_key_prefix`, such as 'other/', or `group`."
            )


def refuse_one_key(callbacks: Sequence[ProbeCallback]) -> None:
    """Raise a MisconfigurationException if two callbacks log under one key, as their trials have shown."""
    owners: dict[str, ProbeCallback] = {}
    for callback in callbacks:
        for key in sorted(callback.trial_keys):
            other = owners.setdefault(key, callback)
            if other is not callback:
                raise MisconfigurationException(
                    f"{_in_words(other)} and {_in_words(callback)} both log {key!r}: give one of them another "
                    "`log_key_prefix`, such as 'other/'."
                )


def _in_words(callback: ProbeCallback) -> str:
    return f"{type(callback).__name__}(log_key_prefix={callback.log_key_prefix!r})"
