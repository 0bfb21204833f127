"""Each row of the table of operations is complete, and says what the operation does."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lc_callback.engine.network.operations import OPERATIONS, Kind, has_slope, is_zero_below, kinks_of, slope_of

ATEN: Any = torch.ops.aten
# Arguments after the first, where an operation needs some.
ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "prelu": (torch.tensor([0.3], dtype=torch.float64),),
    "_prelu_kernel": (torch.tensor([0.3], dtype=torch.float64),),
    "rrelu_with_noise": (torch.zeros(4001, dtype=torch.float64),),
    "clamp": (-0.7, 1.2),
    "clamp_min": (0.4,),
    "clamp_max": (0.4,),
    "threshold": (0.4, 0.0),
    **dict.fromkeys(("maximum", "minimum", "fmax", "fmin"), (torch.full((4001,), 0.3, dtype=torch.float64),)),
}
WITH_SLOPE = [op for op in OPERATIONS if has_slope(op)]


def x() -> torch.Tensor:
    return torch.linspace(-8, 8, 4001, dtype=torch.float64)


def value(op: str) -> torch.Tensor:
    result = getattr(ATEN, op)(x(), *ARGUMENTS.get(op, ()))
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_row_is_complete(op: str) -> None:
    row = OPERATIONS[op]
    assert hasattr(ATEN, op), "the name of an operation of aten"
    has_kinks = row.kind not in (Kind.JUMP, Kind.MAX_POOLING, Kind.SELECTION)
    assert (row.kinks is not None) == has_kinks
    assert (row.slope is not None) == (row.kind in (Kind.PIECEWISE_AFFINE, Kind.BINARY_MIN_MAX, Kind.BROKEN))
    assert row.slope is not None or not row.is_zero_below


@pytest.mark.parametrize("op", WITH_SLOPE)
def test_the_slope_is_the_derivative_and_changes_at_the_kinks_only(op: str) -> None:
    """Between two neighbours on the same side of all kinks the difference is the slope."""
    arguments = ARGUMENTS.get(op, ())
    step = x().diff()
    slope = slope_of(op, (x(), *arguments), {}).to(torch.float64).expand_as(x())
    sides = torch.stack([torch.sign(z - (kink or 0.0)) for z, kink in kinks_of(op, (x(), *arguments), {})])
    same = (sides[:, 1:] == sides[:, :-1]).all(0) & (sides[:, 1:] != 0).all(0)
    assert same.sum() > 3900
    torch.testing.assert_close((value(op).diff() / step)[same], slope[1:][same], atol=1e-8, rtol=0)
    kinks = (sides[:, 1:] != sides[:, :-1]).any(0)
    assert (slope.diff()[~kinks] == 0).all()
    assert len(slope.unique()) > 1, "a kink is where the slope changes"


@pytest.mark.parametrize("op", [op for op in WITH_SLOPE if is_zero_below(op)])
def test_what_is_zero_below_is_flat_on_one_side_of_its_first_kink(op: str) -> None:
    arguments = ARGUMENTS.get(op, ())
    z, kink = kinks_of(op, (x(), *arguments), {})[0]
    slope = slope_of(op, (x(), *arguments), {}).to(torch.float64)
    below, above = slope[z < (kink or 0.0)], slope[z > (kink or 0.0)]
    assert (below == 0).all() or (above == 0).all()


@pytest.mark.parametrize("op", [op for op, row in OPERATIONS.items() if row.kind is Kind.BROKEN])
def test_what_is_broken_jumps(op: str) -> None:
    assert value(op).diff().abs().max() > 0.3


@pytest.mark.parametrize("op", [op for op, row in OPERATIONS.items() if row.kind in (Kind.SMOOTH, Kind.SQUASHING)])
def test_what_is_smooth_is_not_affine_in_pieces(op: str) -> None:
    curved = getattr(ATEN, op)(torch.linspace(-2, 2, 4002, dtype=torch.float64))
    curved = curved[0] if isinstance(curved, tuple) else curved
    assert (curved.diff().diff().abs() > 1e-12).double().mean() > 0.4
