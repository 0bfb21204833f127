"""The keys of one callback: with its prefix wherever others see them, without it in its own code."""

from __future__ import annotations

from collections.abc import Mapping

from lc_callback.run.files import safe_name

__all__ = ["Keys"]


class Keys:
    """Puts a prefix before keys, and takes it off.

    Args:
        prefix: ``log_key_prefix`` of the callback.
        group: of its measure, such as ``"lc"``.

    Example::

        >>> from lc_callback.callbacks.keys import Keys
        >>> keys = Keys("a/", "lc")
        >>> keys.full("lc/train"), keys.own("a/lc/train"), keys.in_group("seconds"), keys.folder
        ('a/lc/train', 'lc/train', 'a/lc/seconds', 'a_lc')
    """

    def __init__(self, prefix: str, group: str) -> None:
        self.prefix, self.group = prefix, group

    def full(self, key: str) -> str:
        """The key as it is logged."""
        return self.prefix + key

    def own(self, key: str) -> str:
        """The key of a row as the measure calls it."""
        return key.removeprefix(self.prefix)

    def own_row(self, row: Mapping[str, float]) -> dict[str, float]:
        """The values of a row, as the measure calls them."""
        return {self.own(key): value for key, value in row.items() if key != "step"}

    def in_group(self, name: str) -> str:
        """The key as it is logged of something that belongs to the whole group, such as ``"seconds"``."""
        return self.full(f"{self.group}/{name}")

    @property
    def folder(self) -> str:
        """Name of the folder of its files, in the log directory."""
        return safe_name(self.full(self.group))
