"""Measures of one's own, for `trainer.callbacks` of a file: `class_path: measures.LocalRank`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lc_callback.callbacks import ProbeCallback
from lc_callback.isolation import untouched


class LocalRank(ProbeCallback):
    r"""Track the rank of the Jacobian of the last hidden layer's features with respect to the input.

    The dimension of what a network sees near a point: *On the Local Complexity of Linear Regions in Deep ReLU Networks*
    (Patel and Montúfar, ICML 2025) says that networks with features of low dimension have a low local complexity. The
    features are what enters the last ``nn.Linear``. Exact, by autograd in float32; 0.25 s a row for 64 points of an MLP
    784-200-200-200-10.

    Logged, as means over the training points:

    - ``local_rank/train``: singular values above ``tol`` times the largest.
    - ``local_rank/effective_train``: exponential of the entropy of the singular values over their sum (Roy and
      Vetterli, 2007), from 1; 0 where the Jacobian is 0.

    Args:
        tol: of the numerical rank, between 0 and 1; not below 1e-5, which rounding leaves.
        n_probes: training points.
        random_probes: whether it is measured at random points too.
        arguments: those of :class:`lc_callback.callbacks.ProbeCallback`.

    Raises:
        ValueError: for an argument out of range; without an ``nn.Linear`` behind what depends on the input.
    """

    group = "local_rank"
    splits = ("train",)

    def __init__(self, tol: float = 0.01, n_probes: int = 64, random_probes: bool = False, **arguments: Any) -> None:
        super().__init__(n_probes=n_probes, random_probes=random_probes, **arguments)
        if not 1e-5 <= tol < 1:
            raise ValueError(f"`tol` must be at least 1e-5 and below 1, but got {tol!r}.")
        self.tol = tol

    def measure(self, network: Any, probes: Mapping[str, Any]) -> dict[str, float]:
        """Both ranks."""
        values = {}
        for split, points in probes.items():
            spectra = jacobian_spectra(network.module, points.inputs)
            values[f"local_rank/{split}"] = float(numerical_rank(spectra, self.tol).mean())
            values[f"local_rank/effective_{split}"] = float(effective_rank(spectra).mean())
        return values


def jacobian_spectra(model: nn.Module, points: Tensor, chunk_size: int = 16) -> Tensor:
    """``(N, min(F, D))`` singular values, in descending order, of the Jacobian of the ``F`` features at each point.

    Args:
        model: of which the last ``nn.Linear`` reads the features.
        points: ``(N, *shape)``.
        chunk_size: points at once.
    """
    linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"{type(model).__name__} has no nn.Linear, of which the input could be the features.")
    seen: list[Tensor] = []
    spectra = []
    with untouched(model, dtype=torch.float32, grad=True), torch.enable_grad():
        handle = linear[-1].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten(1)))
        try:
            for some in points.split(chunk_size):
                seen.clear()
                x = some.to(linear[-1].weight).detach().requires_grad_()
                model(x)
                units = seen[-1].shape[1]
                each = torch.eye(units, dtype=x.dtype, device=x.device)[:, None].expand(units, len(x), units)
                jacobian = torch.autograd.grad(seen[-1], x, each, is_grads_batched=True)[0].flatten(2).transpose(0, 1)
                small = jacobian if units <= jacobian.shape[2] else jacobian.transpose(1, 2)
                small = small.double()  # for the squares
                squares = torch.linalg.eigvalsh(small @ small.transpose(1, 2)).flip(1)
                spectra.append(squares.clamp(min=0).sqrt().detach().cpu())
        finally:
            handle.remove()
    return torch.cat(spectra)


def numerical_rank(spectra: Tensor, tol: float) -> Tensor:
    """``(N,)``: how many singular values of each row are above ``tol`` times the first."""
    return (spectra > tol * spectra[:, :1]).sum(1).double()


def effective_rank(spectra: Tensor) -> Tensor:
    """``(N,)``: exponential of the entropy of each row over its sum; 0 for a row of zeros."""
    share = spectra / spectra.sum(1, keepdim=True).clamp(min=torch.finfo(spectra.dtype).tiny)
    return torch.special.entr(share).sum(1).exp() * (spectra[:, 0] > 0)
