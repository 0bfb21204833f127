"""Seeing the operations and the modules of a model that runs, with nothing attached to it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["ModuleWatch"]

Watch = TypeVar("Watch", bound="ModuleWatch")


class ModuleWatch(TorchDispatchMode):
    """A dispatch mode that also sees modules begin and end, by global hooks that exist only while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._hooks = ExitStack()

    def __enter__(self: Watch) -> Watch:
        for handle in (
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
        ):
            self._hooks.callback(handle.remove)
        super().__enter__()
        return self

    def __exit__(self, *exc: Any) -> None:
        self._hooks.close()
        super().__exit__(*exc)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        """A module is called; it need not be one of the model."""
        raise NotImplementedError

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> Any:
        """It has returned. What this returns, if not ``None``, takes the place of the output."""
        raise NotImplementedError
