"""Rows that stand out of a curve: alone, far from all their neighbours, or since one layer spikes there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

__all__ = [
    "layer_key",
    "layers_at",
    "layers_of_lone_rows",
    "layers_of_outliers",
    "layers_of_spikes",
    "lone_rows",
    "responsible_layer",
    "shares_in_columns",
]

_LONGEST = 2  # rows in succession; three are a movement of the curve
_NEIGHBOURS = 3  # rows on each side; of a first or last row twice as many
_FAR, _FAR_AT_END = 6.0, 10.0  # times the movement of the neighbours; a first or last row has them on one side only
_FEWEST = 6  # rows of a curve, of which one can be called lone
_SHARE = 0.2  # of the rows at most; a curve with more of them is a spiky curve
_SPIKE = 3.0  # times what it has next to it, that a layer has at a spike
_LONGEST_SPIKE = 5  # rows in succession: half a decade of the log schedule
_MOST_SPIKES = 0.4  # of the rows at most; with more of them the spikes are the curve

Row = Mapping[str, float]


def lone_rows(values: Sequence[float]) -> list[int]:
    """Indices of the rows, alone or two in succession, that stand far from the rows before and after.

    Far means: beyond the nearer neighbours by more than six times what these differ from each other and from the rows
    next to them, and by more than six times what one row of the curve usually differs from the next. A steep curve, a
    step, and a peak of three rows have no lone rows. Rows that are not finite are passed over.

    Example::

        >>> from lc_callback.detection.outliers import lone_rows
        >>> lone_rows([6.0, 6.3, 6.2, 149.8, 8.4, 8.1, 7.9])
        [3]
        >>> lone_rows([1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0])
        []
    """
    finite = [i for i, value in enumerate(values) if math.isfinite(value)]
    if len(finite) < _FEWEST:
        return []
    found: set[int] = set()
    usual = float(np.quantile(np.abs(np.diff([values[i] for i in finite])), 0.4, method="lower"))  # not of lone rows
    for sign in (1.0, -1.0):
        signed = [sign * values[i] for i in finite]
        for n in range(1, _LONGEST + 1):
            for start in range(len(signed) - n + 1):
                if _stands_alone(signed, start, start + n, usual):
                    found.update(range(start, start + n))
    if len(found) > max(_LONGEST, _SHARE * len(finite)):
        return []
    return [finite[i] for i in sorted(found)]


def _stands_alone(values: Sequence[float], start: int, stop: int, usual: float) -> bool:
    """Whether these rows lie above all others near them by far, for a curve that usually moves so much in a row."""
    at_end = start == 0 or stop == len(values)
    n = 2 * _NEIGHBOURS if at_end else _NEIGHBOURS
    before, after = values[max(0, start - n) : start][::-1], values[stop : stop + n]
    nearest = [side[0] for side in (before, after) if side]
    above = min(values[start:stop]) - max(nearest)
    if above <= 0:
        return False
    if at_end:
        inner = before or after
        return above > _FAR_AT_END * max(usual, max(inner) - min(inner))
    # Of the rows on a side one may be lone itself, so the closer one counts.
    moves = [min((abs(side[0] - other) for other in side[1:]), default=0.0) for side in (before, after)]
    return above > _FAR * max(usual, *moves, abs(before[0] - after[0]))


def layers_of_outliers(
    rows: Sequence[Row], keys: Sequence[str], shares: Callable[[str, Row], Mapping[str, float]]
) -> dict[tuple[str, int], str]:
    """The layer that made each row that stands out, alone or by a spike of that layer: by curve and step."""
    return layers_of_spikes(rows, keys, shares) | layers_of_lone_rows(rows, keys, shares)


def layers_of_lone_rows(
    rows: Sequence[Row], keys: Sequence[str], shares: Callable[[str, Row], Mapping[str, float]]
) -> dict[tuple[str, int], str]:
    """The layer that made each lone row, by curve and step, as far as that is known.

    Args:
        rows: in the order of their steps.
        keys: of the curves.
        shares: the share of each layer in the value of a curve at a row; empty if it is not known.
    """
    found = {}
    for key in keys:
        own = [row for row in rows if key in row]
        lone = lone_rows([row[key] for row in own])
        for i in lone:
            around = [j for j in range(max(0, i - _NEIGHBOURS - 1), i + _NEIGHBOURS + 2) if j not in lone]
            neighbours = [shares(key, own[j]) for j in around if j < len(own)]
            layer = responsible_layer(shares(key, own[i]), neighbours)
            if layer:
                found[key, int(own[i]["step"])] = layer
    return found


def layers_of_spikes(
    rows: Sequence[Row], keys: Sequence[str], shares: Callable[[str, Row], Mapping[str, float]]
) -> dict[tuple[str, int], str]:
    """The layer that spikes at a row, by curve and step: also where rows around it are no calmer.

    A layer spikes at up to five rows in succession where it has three times what it has at the rows next to them, and
    half of the row or more comes of that. A channel of a convolution that is near 0 on a patch which all images share
    switches at all places with it at once, and may stay there for some rows. Where more than two rows of five would be
    spikes there are none.

    Args:
        rows: in the order of their steps.
        keys: of the curves.
        shares: the share of each layer in the value of a curve at a row; empty if it is not known.
    """
    found: dict[tuple[str, int], str] = {}
    for key in keys:
        own = [row for row in rows if math.isfinite(row.get(key, math.nan))]
        known = [shares(key, row) for row in own]
        if len(own) < _FEWEST or not all(known):
            continue
        spikes = {}
        for layer in known[0]:
            own_shares = [of_row.get(layer, 0.0) for of_row in known]
            for n in range(1, _LONGEST_SPIKE + 1):
                for start in range(1, len(own) - n):
                    usual, spike = max(own_shares[start - 1], own_shares[start + n]), range(start, start + n)
                    if all(own_shares[i] > _SPIKE * usual and own_shares[i] - usual >= own[i][key] / 2 for i in spike):
                        spikes.update({(key, int(own[i]["step"])): layer for i in spike})
        if len(spikes) <= _MOST_SPIKES * len(own):
            found |= spikes
    return found


def responsible_layer(shares: Mapping[str, float], neighbours: Sequence[Mapping[str, float]]) -> str:
    """The layer that differs most from what it is at the neighbours; ``"several layers"`` if it made less than half.

    Example::

        >>> from lc_callback.detection.outliers import responsible_layer
        >>> responsible_layer({"net.0": 4.0, "net.2": 145.8}, [{"net.0": 3.9, "net.2": 2.1}])
        'net.2'
    """
    usual = {
        name: float(np.median(known)) if (known := [other[name] for other in neighbours if name in other]) else 0.0
        for name in shares
    }
    differences = {name: share - usual[name] for name, share in shares.items() if math.isfinite(share - usual[name])}
    total = sum(differences.values())
    sign = math.copysign(1.0, total)
    if not total:
        return ""
    most = max(differences, key=lambda name: sign * differences[name])
    return most if sign * differences[most] >= 0.5 * abs(total) else "several layers"


def layer_key(key: str) -> str:
    """Where the layers of a curve are: ``lc_layer/train`` for ``lc/train``."""
    group, _, split = key.rpartition("/")
    return f"{group}_layer/{split}"


def shares_in_columns(key: str, row: Row) -> dict[str, float]:
    """The layers of a curve, where each has a column: ``lc_layer/train/net.0`` and so on for ``lc/train``."""
    start = f"{layer_key(key)}/"
    return {name.removeprefix(start): value for name, value in row.items() if name.startswith(start)}


def layers_at(rows: Sequence[Row], key: str) -> dict[int, dict[str, float]]:
    """The same at each step at which the layers have columns."""
    return {int(row["step"]): layers for row in rows if (layers := shares_in_columns(key, row))}
