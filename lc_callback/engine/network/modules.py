"""The modules of a model, by path, pattern, class name or type."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from lc_callback.suggestions import did_you_mean

__all__ = ["Reached", "check_layers", "find_module", "module_paths", "output_of", "select_modules"]


class Reached(Exception):  # noqa: N818 (no error: the rest of the forward pass is not needed)
    """Ends a forward pass that has shown what it was run for."""


def module_paths(model: nn.Module) -> dict[int, str]:
    """Path of each module by its ``id``, without the ``_orig_mod`` of compiled modules."""
    paths = {}
    for path, module in model.named_modules():
        paths[id(module)] = ".".join(part for part in path.split(".") if part != "_orig_mod")
    return paths


def output_of(module: nn.Module, run: Callable[[], Any]) -> Tensor:
    """What a module returns at its first call; nothing is run after it."""
    found: list[Tensor] = []

    def stop(called: nn.Module, args: Any, output: Any) -> None:
        if called is module:
            found.append(output)
            raise Reached

    handle = register_module_forward_hook(stop)
    try:
        run()
    except Exception:  # TorchScript makes its own of ours
        if not found:
            raise
    finally:
        handle.remove()
    if not found:
        raise ValueError(f"`model` did not run its {type(module).__name__} here, but did when traced.")
    return found[0]


def select_modules(model: nn.Module, layers: Sequence[str | type]) -> list[nn.Module]:
    """The modules that ``layers`` names: paths, ``fnmatch`` patterns of paths, class names, or types.

    Raises:
        ValueError: if an entry matches no module, or is neither a string nor a type.
    """
    check_layers(layers)
    paths = module_paths(model)
    modules = {id(module): module for module in model.modules()}
    selected: dict[int, nn.Module] = {}
    for entry in layers:
        if isinstance(entry, type):
            found = [key for key, module in modules.items() if isinstance(module, entry)]
        else:
            found = [key for key, path in paths.items() if path and fnmatch.fnmatchcase(path, entry)]
            found = found or [key for key, module in modules.items() if entry in _class_names(module)]
        if not found:
            raise ValueError(
                f"`layers` entry {entry!r} matches no module{_near(entry, model, paths)} {_available(paths)}"
            )
        selected.update((key, modules[key]) for key in found)
    return list(selected.values())


def _near(entry: Any, model: nn.Module, paths: Mapping[int, str]) -> str:
    return did_you_mean(entry, {*paths.values()}.union(*map(_class_names, model.modules())))


def check_layers(layers: Any) -> None:
    """Raise ``ValueError`` unless ``layers`` is a list of strings and module types."""
    possible = "`layers` must be a non-empty list of module names, patterns, class names or module types"
    if isinstance(layers, (str, type)) or not isinstance(layers, Sequence) or not layers:
        raise ValueError(f"{possible}, such as ['blocks.*'] or [torch.nn.Linear], but got {layers!r}.")
    for entry in layers:
        if not (isinstance(entry, str) or (isinstance(entry, type) and issubclass(entry, nn.Module))):
            raise ValueError(f"{possible}, but it holds {entry!r}.")


def find_module(model: nn.Module, argument: str, path: str) -> nn.Module:
    """The module called ``path``.

    Raises:
        ValueError: naming ``argument`` and the modules there are.
    """
    paths = module_paths(model)
    for module in model.modules():
        if path and paths[id(module)] == path:
            return module
    raise ValueError(
        f"`{argument}={path!r}` is not the name of a module{did_you_mean(path, paths.values())} {_available(paths)}"
    )


def _class_names(module: nn.Module) -> set[str]:
    kind = type(module)
    names = {f"{base.__module__}.{base.__qualname__}" for base in kind.__mro__}
    if kind.__module__.startswith("torch.nn."):
        names.add(f"torch.nn.{kind.__qualname__}")
    return names | {kind.__qualname__}


def _available(paths: dict[int, str], most: int = 30) -> str:
    names = [path for path in paths.values() if path]
    more = f", ... ({len(names)} in all)" if len(names) > most else ""
    return f"Modules: {', '.join(names[:most]) or '(none)'}{more}."
