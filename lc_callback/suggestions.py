"""What a user may have meant by a name that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

__all__ = ["did_you_mean"]


def did_you_mean(given: Any, possible: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: a question if one of those possible is near, else a full stop.

    Example::

        >>> from lc_callback.suggestions import did_you_mean
        >>> did_you_mean("PDG", ["PGD", "FGSM"]), did_you_mean("nothing", ["PGD"])
        ("; did you mean 'PGD'?", '.')
    """
    if not isinstance(given, str):
        return "."
    by_lower = {name.lower(): name for name in sorted(possible, reverse=True)}
    near = difflib.get_close_matches(given.lower(), by_lower, n=1)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else "."
