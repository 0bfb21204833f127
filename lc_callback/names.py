"""Names that stay apart: of layers, radii and whatever else becomes part of a key."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

__all__ = ["clean", "distinct", "number_names"]


def clean(name: str) -> str:
    r"""A name without what CSV files and loggers cannot hold: control characters and halves of characters.

    Example::

        >>> from lc_callback.names import clean
        >>> clean("layer\x00 one")
        'layer_ one'
    """
    return re.sub(r"[\x00-\x1f\x7f\ud800-\udfff]", "_", name)


def distinct(names: Iterable[str], reserved: Collection[str] = ()) -> list[str]:
    """The names, cleaned; one that is reserved or was there before gets a number.

    Example::

        >>> from lc_callback.names import distinct
        >>> distinct(["total", "net", "net"], reserved=["total"])
        ['total_1', 'net', 'net_1']
    """
    given = [clean(name) for name in names]
    taken = {*reserved}
    apart = []
    for name in given:
        free, number = name, 0
        while free in taken or (number and free in given):
            number += 1
            free = f"{name}_{number}"
        taken.add(free)
        apart.append(free)
    return apart


def number_names(values: Sequence[float]) -> list[str]:
    """Numbers in six digits, or in as many as tell them apart.

    Example::

        >>> from lc_callback.names import number_names
        >>> number_names([0.1, 0.5]), number_names([0.1, 0.10000001])
        (['0.1', '0.5'], ['0.1', '0.10000001'])
    """
    names: list[str] = []
    for digits in range(6, 18):
        names = [f"{value:.{digits}g}" for value in values]
        if len({*names}) == len({*values}):
            break
    return names
