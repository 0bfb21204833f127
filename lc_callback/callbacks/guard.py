"""A measurement that fails costs its result and gives a warning. It never ends the run."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

__all__ = [
    "Guard",
    "MeasurementError",
    "guarded_hook",
    "in_words",
    "no_warning_is_an_error",
    "numbers_in",
    "plain_state",
    "quiet_hook",
]

Hook = TypeVar("Hook", bound=Callable[..., Any])
_PLAIN = (str, int, float, bool, bytes, type(None))


class MeasurementError(RuntimeError):
    """Raised with ``raise_on_error=True``; nothing else that a measurement raises ends a run."""


class no_warning_is_an_error(AbstractContextManager[None]):  # noqa: N801  # used as contextlib's are
    """Inside, a warning that the user's filters turn into an error is only shown.

    A training that never warns must not end because a measurement warns. This is a class, because a generator turns a
    StopIteration into a RuntimeError.
    """

    _caught: warnings.catch_warnings[None] | None = None

    def __enter__(self) -> None:
        if any(entry[0] == "error" for entry in warnings.filters):
            self._caught = warnings.catch_warnings()
            self._caught.__enter__()
            warnings.filters[:] = [  # type: ignore[index]
                ("always" if entry[0] == "error" else entry[0], *entry[1:]) for entry in warnings.filters
            ]

    def __exit__(self, *error: Any) -> None:
        if self._caught is not None:
            self._caught.__exit__(*error)


class Guard:
    """Calls functions for a callback once a run has begun, and turns their failures into warnings.

    Args:
        name: of the callback, for the text.
        raises: whether a failure stops the run, with a :class:`MeasurementError`, instead of costing a warning.
    """

    def __init__(self, name: str, raises: bool) -> None:
        self._name, self._raises = name, raises

    def attempt(self, what: str, function: Callable[[], Any]) -> Any:
        """Call ``function``; a failure costs its result (``None``) and a warning.

        What asks the process to end, ``KeyboardInterrupt`` and ``SystemExit``, passes.
        """
        with no_warning_is_an_error():
            try:
                return function()
            except MeasurementError:
                raise
            except Exception as error:
                self.failed(f"{what} failed", error)
                return None

    def failed(self, what: str, error: Exception) -> None:
        """Say that ``what`` went wrong."""
        if self._raises:
            raise MeasurementError(f"{self._name}: {what}: {in_words(error).partition(': ')[2]}") from error
        with no_warning_is_an_error():
            rank_zero_warn(f"{self._name}: {what} ({in_words(error)}). Training goes on.")


def quiet_hook(hook: Hook) -> Hook:
    """A hook in which no warning is an error."""

    @functools.wraps(hook)
    def called(*args: Any, **kwargs: Any) -> Any:
        with no_warning_is_an_error():
            return hook(*args, **kwargs)

    return called  # type: ignore[return-value]


def guarded_hook(hook: Hook) -> Hook:
    """A hook of a run that has begun. An error that its parts have not caught becomes a warning, too."""

    @functools.wraps(hook)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        with no_warning_is_an_error():
            try:
                return hook(self, *args, **kwargs)
            except MeasurementError:
                raise
            except Exception as error:
                self.peer.guard.failed(f"`{hook.__name__}` failed", error)
                return None

    return called  # type: ignore[return-value]


def in_words(error: BaseException) -> str:
    """Kind and text of an error, some of which cannot say their text."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return f"{type(error).__name__}, which has no text"


def numbers_in(found: Any) -> dict[str, float]:
    """What a method of the user's own returned, as numbers by key.

    Raises:
        TypeError: if it is anything else.
    """
    if not isinstance(found, Mapping):
        raise TypeError(f"expected a mapping of keys to numbers, but got {type(found).__name__}")
    numbers = {}
    for key, value in found.items():
        try:
            numbers[_text(key)] = float(value)
        except (TypeError, ValueError) as error:
            raise TypeError(f"{key!r} is {value!r}, which is no number") from error
    return numbers


def _text(key: Any) -> str:
    if not isinstance(key, str):
        raise TypeError(f"the key {key!r} is no string")
    return key


def plain_state(value: Any, where: str = "") -> Any:
    """A copy of a state for a checkpoint: plain Python types and tensors, which every ``torch.load`` reads.

    Raises:
        TypeError: if something else is in it.
    """
    from torch import Tensor

    if isinstance(value, Mapping):
        return {plain_state(key, where): plain_state(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [plain_state(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Tensor):
        return value.detach()
    if hasattr(value, "dtype") and hasattr(value, "item") and getattr(value, "ndim", 1) == 0:  # a number of NumPy
        return value.item()
    if type(value) not in _PLAIN:
        raise TypeError(f"`extra_state`{where} is a {type(value).__name__}, no plain Python type and no tensor")
    return value
