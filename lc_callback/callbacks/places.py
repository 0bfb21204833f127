"""Where each callback of a Trainer puts its files and keys, and that no two take the same place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lc_callback.callbacks.peers import Measuring

__all__ = ["refuse_one_folder", "refuse_one_key", "refuse_twins"]


def refuse_twins(callback: Measuring, callbacks: Sequence[Any]) -> None:
    """Raise a MisconfigurationException if another instance among these would write the same keys and files."""
    same = [c for c in callbacks if type(c) is type(callback) and c.log_key_prefix == callback.log_key_prefix]
    if len(same) > 1:
        raise MisconfigurationException(
            f"the Trainer has {len(same)} callbacks {type(callback).__name__} with `log_key_prefix="
            f"{callback.log_key_prefix!r}`: give each its own `log_key_prefix`, such as 'other/', which tells apart "
            "their keys, files and states in checkpoints (`callback.state_key` must be unique)."
        )


def refuse_one_folder(callbacks: Sequence[Measuring]) -> None:
    """Raise a MisconfigurationException if the files of two callbacks would go to one folder."""
    owners: dict[str, Measuring] = {}
    for callback in callbacks:
        folder = callback.peer.keys.folder
        other = owners.setdefault(folder, callback)
        if other is not callback:
            raise MisconfigurationException(
                f"the files of {_in_words(other)} and of {_in_words(callback)} would go to one folder, "
                f"{folder!r}: give one of them another `log_key_prefix`, such as 'other/', or `group`."
            )


def refuse_one_key(callbacks: Sequence[Measuring]) -> None:
    """Raise a MisconfigurationException if two callbacks log under one key, as their trials have shown."""
    owners: dict[str, Measuring] = {}
    for callback in callbacks:
        for key in sorted(callback.peer.rows.trial_keys):
            other = owners.setdefault(key, callback)
            if other is not callback:
                raise MisconfigurationException(
                    f"{_in_words(other)} and {_in_words(callback)} both log {key!r}: give one of them another "
                    "`log_key_prefix`, such as 'other/'."
                )


def _in_words(callback: Measuring) -> str:
    return f"{type(callback).__name__}(log_key_prefix={callback.log_key_prefix!r})"
