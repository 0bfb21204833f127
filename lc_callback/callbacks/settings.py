"""The arguments that a callback was made with, as text: kept in checkpoints, and compared when a run is resumed."""

from __future__ import annotations

import functools
import inspect
import types
import zlib
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch

from lc_callback.suggestions import did_you_mean

__all__ = ["arguments_of", "changed_settings", "changes_in_words", "in_text", "recorded"]

# When rows are taken and what is done with them: other ones leave a curve as it is. Points have their own fingerprint.
_NOT_MEASURED = frozenset(
    {
        *("schedule", "every_n_train_steps", "every_n_epochs", "max_overhead", "raise_on_error", "log_key_prefix"),
        *("detection", "on_transition", "stop_after", "certainty", "custom_scalars", "histogram", "chunk_size"),
        *("train_probes", "test_probes"),
    }
)


def recorded(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that also keeps its arguments as text, in ``_arguments``; those of a base class, too."""
    if hasattr(init, "_records"):
        return init
    signature = inspect.signature(init)

    @functools.wraps(init)
    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        outer = vars(self).get("_arguments", {})
        try:
            bound = signature.bind(self, *args, **kwargs)
        except TypeError:
            passed_on = (
                type(self).without if outer else ()
            )  # a constructor that does not take these itself passes them on
            _refuse_unknown(type(self), {name: value for name, value in kwargs.items() if name not in passed_on})
            init(self, *args, **kwargs)  # raises the TypeError of Python
            return
        if not outer:
            _refuse_unknown(type(self), {name: None for name in kwargs if name in type(self).without})
        bound.apply_defaults()
        own: dict[str, Any] = {}
        for name, value in [*bound.arguments.items()][1:]:
            kind = signature.parameters[name].kind
            own.update(value if kind is inspect.Parameter.VAR_KEYWORD else {name: value})
        self._arguments = {name: in_text(value) for name, value in own.items() if name not in _NOT_MEASURED} | outer
        init(self, *args, **kwargs)

    made._records = True  # type: ignore[attr-defined]
    return made


def _refuse_unknown(cls: type[Any], given: Mapping[str, Any]) -> None:
    possible = arguments_of(cls)
    unknown = next((name for name in given if name not in possible), None)
    if unknown is not None:
        raise TypeError(f"{cls.__name__} has no argument {unknown!r}{did_you_mean(unknown, possible)}")


def arguments_of(cls: type[Any]) -> dict[str, inspect.Parameter]:
    """The arguments of a constructor, and those of its base classes that reach these by ``**arguments``.

    Example::

        >>> from lc_callback import FeatureRankCallback
        >>> from lc_callback.callbacks.settings import arguments_of
        >>> arguments_of(FeatureRankCallback)["n_probes"].default, "schedule" in arguments_of(FeatureRankCallback)
        (1024, True)
    """
    found: dict[str, inspect.Parameter] = {}
    for base in cls.__mro__:
        if "__init__" in vars(base) and hasattr(vars(base)["__init__"], "_records"):
            found = {**inspect.signature(vars(base)["__init__"]).parameters, **found}
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return {name: one for name, one in found.items() if one.kind not in several and name not in {"self", *cls.without}}


def in_text(value: Any) -> str:
    """A value as text that is the same in another process: no address in it, and no array as a whole."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        array = torch.as_tensor(value).detach().cpu().contiguous()
        if array.numel() == 1:
            return in_text(array.item())
        digest = zlib.crc32(array.flatten().view(torch.uint8).numpy().tobytes())
        return f"<{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)} {digest:08x}>"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{in_text(key)}: {in_text(item)}' for key, item in value.items())}}}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_text, value))}]"
    if isinstance(value, (str, bool, type(None))):
        return repr(value)
    if isinstance(value, np.generic):
        return in_text(value.item())
    if isinstance(value, Real):
        number = float(value)
        return repr(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
    if isinstance(value, functools.partial):
        return f"partial({', '.join(map(in_text, (value.func, *value.args, value.keywords)))})"
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType, types.MethodType)):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, torch.dtype):
        return repr(str(value).removeprefix("torch."))
    return f"<{type(value).__qualname__}>"


def changed_settings(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The settings that differ, such as "`radius` was 0.1 and is 1". Only arguments that both have are compared.

    Example::

        >>> from lc_callback.callbacks.settings import changed_settings
        >>> changed_settings({"radius": "0.1", "seed": "0"}, {"radius": "1", "seed": "0"})
        ['`radius` was 0.1 and is 1']
    """
    return [
        f"`{name}` was {before[name]} and is {value}"
        for name, value in now.items()
        if name in before and before[name] != value
    ]


def changes_in_words(points: Sequence[str], settings: Sequence[str]) -> str:
    """Say which points and settings of a resumed run differ from its checkpoint; empty if all are the same.

    Args:
        points: what has other points, such as ``"train"`` or ``"labels of the train"``.
        settings: those of :func:`changed_settings`.
    """
    listed = "; ".join(settings)
    if points:
        return (
            f"the {' and '.join(points)} probes are not those of the checkpoint, so the curve has a break here. Resume "
            "with the same data, `n_probes` and `seed` to go on measuring the same points."
            f"{f' Other settings: {listed}.' if settings else ''}"
        )
    if not settings:
        return ""
    return (
        f"resumed with other settings than those of the checkpoint: {listed}. Rows from here on do not compare with "
        "those before."
    )
