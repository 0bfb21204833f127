"""An operation of another library is counted, replayed and differentiated by the one row that its owner adds."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor, nn

from lc_callback.engine.network.operations import OPERATIONS, Kind, Kink, Operation
from lc_callback.functional import local_complexity

NAME = "lc_callback_tests::two_slopes"


@torch.library.custom_op(NAME, mutates_args=())
def two_slopes(x: Tensor) -> Tensor:
    return 0.1 * x + 0.9 * x.clamp(-1, 1)


@two_slopes.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x)


class TwoSlopes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return two_slopes(x)


def slope(x: Tensor) -> Tensor:
    return torch.where(x.abs() < 1, 1.0, 0.1)


def kinks(x: Tensor) -> list[Kink]:
    return [(x, -1.0), (x, 1.0)]


@pytest.fixture
def _row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPERATIONS, NAME, Operation(Kind.PIECEWISE_AFFINE, kinks, slope))


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(6, 30), TwoSlopes(), nn.Linear(30, 30), TwoSlopes(), nn.Linear(30, 3))
    return nn.Sequential(*layers).double()


def by_hand(model: nn.Sequential, point: Tensor, directions: Tensor, radius: float) -> list[int]:
    """Units of each layer that have a vertex on either side of -1, or of 1."""
    z, counts = torch.cat([point + radius * directions, point - radius * directions]), []
    for layer in model:
        if isinstance(layer, TwoSlopes):
            switches = [(z > kink).any(0) & (z <= kink).any(0) for kink in (-1, 1)]
            counts.append(int((switches[0] | switches[1]).sum()))
        z = layer(z)
    return counts


@pytest.mark.usefixtures("_row")
@pytest.mark.parametrize(("method", "radius"), [("vertices", 0.05), ("vertices", 1.0), ("linear", 0.001)])
def test_both_kinks_count(method: str, radius: float) -> None:
    model, points = net(), torch.randn(40, 6, dtype=torch.float64)
    directions = torch.eye(6, dtype=torch.float64)[:4]
    found = local_complexity(model, points, radius=radius, directions=directions, method=method)
    assert found.counts.tolist() == [by_hand(model, point, directions, radius) for point in points]
    assert int(found.total.sum()) > 0


@pytest.mark.usefixtures("_row")
def test_it_is_replayed_and_has_a_derivative_rule() -> None:
    route = local_complexity(net(), torch.randn(5, 6, dtype=torch.float64), method="linear").route
    assert "no replay" not in route
    assert "no rules" not in route


def test_without_a_row_its_owner_is_told_how_to_add_one() -> None:
    """Alone, and before a ReLU, whose units are counted."""
    told = rf"'{NAME}': an operation of another library.*OPERATIONS\['{NAME}'\]"
    points = torch.randn(5, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match=f"no non-linearity was executed.*{told}"):
        local_complexity(net(), points)
    with pytest.warns(UserWarning, match=told):
        found = local_complexity(nn.Sequential(net(), nn.ReLU()), points)
    assert found.layer_sizes == [3]


@pytest.mark.parametrize("row", [Operation(Kind.SMOOTH), None], ids=["without kinks", "layers are named"])
def test_nothing_is_told_where_all_is_known(row: Operation | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if row is not None:
        monkeypatch.setitem(OPERATIONS, NAME, row)
    model = nn.Sequential(net(), nn.ReLU())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        layers = None if row else [nn.Linear]
        local_complexity(model, torch.randn(5, 6, dtype=torch.float64), layers=layers)


def test_the_row_is_true() -> None:
    """Between neighbours on one side of all kinks the difference is the slope: copy this for a row of your own."""
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    sides = torch.stack([z > kink for z, kink in kinks(x)])
    same = (sides[:, 1:] == sides[:, :-1]).all(0)
    torch.testing.assert_close((two_slopes(x).diff() / x.diff())[same], slope(x)[1:][same].double())
    assert int((~same).sum()) == 2
