"""Convolutions by oneDNN, as compiled models call it: the layout of the weights is made once.

These operations of torch are not documented. If they are missing, the operation of the model itself runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["convolution", "is_used", "packed"]


def is_used(weight: Any) -> bool:
    """Whether convolutions with this weight can use oneDNN."""
    if not isinstance(weight, Tensor) or weight.device.type != "cpu" or weight.dtype is not torch.float32:
        return False
    if not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    backend: Any = torch.backends.mkldnn
    return backend.is_available() and bool(getattr(backend, "enabled", True))


def packed(weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int) -> Tensor:
    """The weights ``(O, I, H, W)`` of a convolution, in a layout that oneDNN chooses."""
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    found: Tensor = reorder(weight.to_mkldnn(), padding, stride, dilation, groups, None)
    return found


def convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, *rest: Any
) -> Tensor:
    """As ``aten::convolution``, with ``packed`` weights; not transposed."""
    found: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, rest[-1], "none", [], ""
    )
    return found
