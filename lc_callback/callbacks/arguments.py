"""The checks of the arguments that all measuring callbacks have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lc_callback.callbacks.overhead import check_max_overhead
from lc_callback.detection.transitions import FIRM, TENTATIVE
from lc_callback.suggestions import did_you_mean

__all__ = ["check_arguments"]


def check_arguments(
    name: str,
    kinds: Sequence[str],
    *,
    seed: Any,
    flags: Mapping[str, Any],
    stop_after: Any,
    on_transition: Any,
    certainty: Any,
    max_overhead: Any,
    texts: Mapping[str, Any],
    functions: Mapping[str, Any],
) -> None:
    """Check arguments of the callback of this ``name``, which can find transitions of these ``kinds``.

    Raises:
        ValueError: naming the argument, the value and what is possible.
    """
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise ValueError(f"`seed` must be an integer from 0 to 2**63 - 1, but got {seed!r}.")
    for argument, flag in flags.items():
        if not isinstance(flag, bool):
            raise ValueError(f"`{argument}` must be True or False, but got {flag!r}.")
    if stop_after is not None and stop_after not in kinds:
        possible = f"one of {list(kinds)}" if kinds else "None, for it finds no transitions"
        near = did_you_mean(stop_after, kinds)
        raise ValueError(f"`stop_after` of {name} must be {possible}, but got {stop_after!r}{near}")
    listed = on_transition if isinstance(on_transition, (list, tuple)) else ()
    if on_transition is not None and [*listed] != ["checkpoint"]:
        raise ValueError(f"`on_transition` must be None or ['checkpoint'], but got {on_transition!r}.")
    if certainty not in (FIRM, TENTATIVE):
        raise ValueError(f"`certainty` must be {FIRM!r} or {TENTATIVE!r}, but got {certainty!r}.")
    check_max_overhead(max_overhead)
    prefix, submodule = texts["log_key_prefix"], texts["submodule"]
    if not isinstance(prefix, str):
        raise ValueError(f"`log_key_prefix` must be a string, but got {prefix!r}.")
    if submodule is not None and not isinstance(submodule, str):
        raise ValueError(f"`submodule` must be the name of a module, but got {submodule!r}.")
    for argument, function in functions.items():
        if function is not None and not (callable(function) or isinstance(function, str)):
            possible = "a function, an import path or a method name" if argument == "forward_fn" else ""
            wrong = f"{possible}, not" if possible else "a function or an import path, but got"
            raise ValueError(f"`{argument}` must be {wrong} {function!r}.")
