"""What is measured: a module of the LightningModule, and how it is called."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lc_callback.engine.network.modules import find_module
from lc_callback.engine.network.points import call_model
from lc_callback.suggestions import did_you_mean

__all__ = ["Network", "NetworkSource", "function_of"]


@dataclass(frozen=True)
class Network:
    """What is measured: a module, and how it is called if not as ``module(inputs)``."""

    module: nn.Module
    forward_fn: Callable[..., Any] | None = None

    def __call__(self, inputs: Any) -> Any:
        """The output for the ``inputs`` of probes."""
        return call_model(self.module, inputs, self.forward_fn)


class NetworkSource:
    """Finds the network in a LightningModule, which may be built by its ``setup()`` or ``configure_model()``.

    Args:
        name: of the callback, for errors.
        submodule: name of the module to measure; ``None``: the whole LightningModule.
        forward_fn: a function, its import path, or the name of a method of the module.
    """

    def __init__(self, name: str, submodule: str | None, forward_fn: str | Callable[..., Any] | None) -> None:
        self._name, self._submodule, self._forward_fn = name, submodule, forward_fn
        #: The class of the LightningModule of the run, and what of it is measured: for the title of the timeline.
        self.title = ""

    def of(self, pl_module: Any) -> Network:
        """The network of a LightningModule.

        Raises:
            ValueError: if there is no such submodule.
            MisconfigurationException: if ``forward_fn`` names no function, or there is nothing to call.
        """
        module = pl_module if self._submodule is None else find_module(pl_module, "submodule", self._submodule)
        forward_fn = self._forward_fn
        if isinstance(forward_fn, str):
            forward_fn = function_of("forward_fn", forward_fn, module)
        if forward_fn is None and not _has_forward(module):
            raise MisconfigurationException(
                f"{self._name}: {type(module).__name__} has no forward to measure. Pass `submodule=` with the name of "
                f"the network inside it ({', '.join(name for name, _ in module.named_children()) or 'none found'}), or "
                "`forward_fn=`, a function (module, inputs) -> outputs."
            )
        return Network(module, forward_fn)

    def entitle(self, pl_module: Any, network: Network) -> None:
        """Set the title."""
        whole, part = (type(getattr(one, "_orig_mod", one)).__name__ for one in (pl_module, network.module))
        self.title = whole if self._submodule is None else f"{whole}: {self._submodule} ({part})"


def function_of(argument: str, name: str, module: nn.Module | None = None) -> Callable[..., Any]:
    """The function behind an import path or, if there is a module, behind the name of one of its methods.

    Raises:
        MisconfigurationException: if it is neither; it names the argument and what may have been meant.
    """
    method = getattr(type(module), name, None)
    if module is not None and callable(method):
        return method
    path, _, attribute = name.rpartition(".")
    try:
        function = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError):
        function = None
    if not callable(function):
        neither = "not" if module is None else f"neither a method of {type(module).__name__} nor"
        near = did_you_mean(name, () if module is None else _methods(module))
        raise MisconfigurationException(f"`{argument}={name!r}` is {neither} the import path of a function{near}")
    return function


def _has_forward(module: nn.Module) -> bool:
    """Whether a class of the module's own, not Lightning or torch, defines ``forward``."""
    if "forward" in vars(module):
        return True
    forward = type(module).forward
    return not (forward is nn.Module.forward or getattr(forward, "__qualname__", "") == "LightningModule.forward")


def _methods(module: nn.Module) -> list[str]:
    """Names of the methods that the user's own classes define."""
    own = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "lightning", "pytorch_"))]
    return [name for kind in own for name, value in vars(kind).items() if callable(value)]
