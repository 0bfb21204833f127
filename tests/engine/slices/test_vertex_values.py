import numpy as np
import pytest
import torch

from lc_callback.engine.slices.vertex_values import UnitValues, VertexRows, WinnerValues


def test_rows_come_in_any_order():
    rows = VertexRows()
    rows.add(np.array([2, 0]), torch.tensor([[2.0, 20.0], [0.0, 0.0]]))
    rows.add(np.array([1]), torch.tensor([[1.0, 10.0]]))
    assert rows.n_bytes == 6 * 4
    rows.narrow(torch.tensor([False, True]))
    np.testing.assert_array_equal(rows.table(), [[0.0], [10.0], [20.0]])


# Columns: crosses, positive, negative, nearly crosses, touches zero.
SEEN = torch.tensor([[1.0, 5.0, -5.0, 0.1, 0.0], [-1.0, 5.5, -5.5, 1.1, 2.0]], dtype=torch.float64)


def test_units_that_change_sign_are_active():
    values = UnitValues()
    values.add(np.array([0, 1]), [(SEEN, 0.0)])
    assert values.units() == [0]
    assert values.complete()
    np.testing.assert_array_equal(values.table(), [[1.0], [-1.0]])


def test_each_kink_is_a_column():
    values = UnitValues()
    values.add(np.array([0, 1]), [(SEEN, 0.0), (SEEN, 5.2)])
    assert values.units() == [0, 1]
    np.testing.assert_allclose(values.table(), [[1.0, -0.2], [-1.0, 0.3]])


def test_narrow_keeps_what_is_near_and_notices_what_is_missing():
    values = UnitValues()
    values.add(np.array([0, 1]), [(SEEN, 0.0)])
    values.narrow()
    assert values.n_bytes == 2 * 3 * 8
    values.add(np.array([2]), [(torch.tensor([[1.0, 5.0, -5.0, -0.1, 1.0]], dtype=torch.float64), 0.0)])
    assert values.complete()
    assert values.units() == [0, 3]
    late = torch.tensor([[1.0, -0.1, -5.0, 1.0, 1.0]], dtype=torch.float64)
    values.add(np.array([3]), [(late, 0.0)])
    assert not values.complete()
    assert values.units() == [0, 1, 3]
    np.testing.assert_array_equal(values.select([(late, 0.0)]), [[1.0, -0.1, 1.0]])


@pytest.mark.parametrize("make", [UnitValues, WinnerValues])
def test_drop_keeps_nothing_and_knows_what_is_missing(make):
    values = make()
    z = torch.tensor([[[1.0, 0.0], [3.0, 4.0]], [[-1.0, 2.0], [5.0, 6.0]]], dtype=torch.float64)
    values.add(np.array([0, 1]), [(z, 0.0)])
    values.drop()
    assert values.n_bytes == 0
    assert values.units() == [0]
    assert not values.complete()


def test_windows_with_several_winners_are_active():
    values = WinnerValues()
    first = torch.tensor([[[1.0, 2.0], [5.0, 3.0]], [[0.0, 2.0], [9.0, 1.0]]], dtype=torch.float64)
    values.add(np.array([0, 1]), [(first, None)])
    assert values.units() == []
    values.narrow()
    second = torch.tensor([[[1.0, 2.0], [1.0, 3.0]]], dtype=torch.float64)
    values.add(np.array([2]), [(second, None)])
    assert values.units() == [1]
    assert not values.complete()
    np.testing.assert_array_equal(values.select([(second, None)]), [[[1.0, 3.0]]])
