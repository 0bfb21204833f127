"""The norm of the weights, of each layer and of all."""

from __future__ import annotations

import math

import torch
from torch import nn

from lc_callback.engine.network.modules import module_paths
from lc_callback.names import distinct

__all__ = ["weight_norms"]


def weight_norms(model: nn.Module) -> dict[str, float]:
    """Euclidean norm of the parameters of each module that owns some, and of all parameters (``"total"``).

    Weights and biases of a module are taken together. A parameter that several modules share counts for each of them,
    but once in the total. A module that is called ``total`` is ``"total_1"``. The total is what *Deep Grokking* (2024,
    figure 5) compares feature ranks with.

    Example::

        >>> import torch
        >>> from lc_callback.functional import weight_norms
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 1, bias=False), torch.nn.Linear(1, 9, bias=False))
        >>> for parameter in net.parameters():
        ...     _ = torch.nn.init.ones_(parameter)
        >>> {name: round(norm, 4) for name, norm in weight_norms(net).items()}
        {'total': 3.6056, '0': 2.0, '1': 3.0}
    """
    squares: dict[int, float] = {}
    norms, paths = {}, module_paths(model)
    with torch.no_grad():
        for module in model.modules():
            own = [p for p in module._parameters.values() if p is not None]
            for parameter in own:
                if id(parameter) not in squares:
                    squares[id(parameter)] = float(parameter.abs().double().square().sum())
            if own:
                norms[paths[id(module)] or type(module).__name__] = math.sqrt(sum(squares[id(p)] for p in own))
    names = distinct(norms, reserved=["total"])
    return {"total": math.sqrt(sum(squares.values())), **dict(zip(names, norms.values(), strict=True))}
