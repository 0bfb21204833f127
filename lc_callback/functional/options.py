"""Arguments that a metric or a callback passes on to a function: their defaults are those of the function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

__all__ = ["defaults_of"]


def defaults_of(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments of a function that have a default, by name.

    Example::

        >>> from lc_callback.functional import centroid_alignment
        >>> from lc_callback.functional.options import defaults_of
        >>> defaults_of(centroid_alignment)
        {'at': None, 'forward_fn': None, 'chunk_size': 64}
    """
    parameters = inspect.signature(function).parameters.values()
    keywords = (parameter for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY)
    return {parameter.name: parameter.default for parameter in keywords if parameter.default is not parameter.empty}
