"""The window that holds few enough regions, and what shows that a difference is no rounding in a small one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from lc_callback.engine.slices.window import (
    SHARES,
    TooManyRegions,
    affordable_regions,
    expected_regions,
    fitting_share,
    shrunk,
)
from lc_callback.functional import slice_partition


def net(width: int = 40, seed: int = 0, middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(seed)
    inner = [middle] if middle is not None else []
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 12), nn.ReLU(), *inner, nn.Linear(12, 3))


POINTS = torch.tensor([[0.0, 0, 0, 0], [1.0, 0.2, 0, 0], [0, 1.0, 0.5, 0]])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most", [1, 5, 40, 150, 10**6])
def test_no_more_regions_than_allowed_and_as_large_a_window_as_can_be(most: int, seed: int) -> None:
    whole = slice_partition(net(seed=seed), POINTS, extent=4.0)
    found = slice_partition(net(seed=seed), POINTS, extent=4.0, max_regions=most)
    assert found.n_regions <= most
    share = (found.extent[1] - found.extent[0]) / (whole.extent[1] - whole.extent[0])
    (chosen,) = [one for one in SHARES if abs(one / share - 1) < 1e-9]
    assert np.isclose(sum(found.extent[:2]), sum(whole.extent[:2]))
    again = slice_partition(net(seed=seed), POINTS, extent=found.extent)
    assert again.n_regions == found.n_regions
    assert np.allclose(np.sort(again.areas), np.sort(found.areas))
    if chosen < 1:
        larger = SHARES[SHARES.index(chosen) - 1]
        assert slice_partition(net(seed=seed), POINTS, extent=4.0 * larger).n_regions > most / 2


def test_auto_is_the_same_everywhere_and_leaves_small_slices_alone() -> None:
    whole = slice_partition(net(), POINTS)
    assert slice_partition(net(), POINTS, max_regions="auto").extent == whole.extent
    assert affordable_regions(600, 10) == 10**9 // 6600
    assert affordable_regions(10, 2) == 200_000
    assert affordable_regions(10**7, 1000) == 200


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "some"])
def test_a_bad_limit_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`max_regions` must be 'auto' or a positive integer, but got"):
        slice_partition(net(), POINTS, max_regions=value)


def test_lines_that_meet_in_one_point_are_an_error_that_says_so() -> None:
    star = nn.Sequential(nn.Linear(4, 50, bias=False), nn.ReLU(), nn.Linear(50, 2))
    with pytest.raises(ValueError, match=r"meet in one point.*`max_regions=`"):
        slice_partition(
            star, torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0]]), extent=(-1, 1, -1, 1), max_regions=20
        )


def test_progress_is_told() -> None:
    reported: list[tuple[int, int]] = []
    slice_partition(net(), POINTS, slopes=True, progress=lambda *both: reported.append(both))
    assert reported[0][0] == 0
    assert len({total for _, total in reported}) == 2  # the cutting and the slopes
    assert all(0 <= done <= total for done, total in reported)


def test_regions_grow_with_the_window_as_lines_do() -> None:
    assert expected_regions(1, 0, 100) == 1
    assert expected_regions(11, 10, 5) == 51  # parallel lines
    assert expected_regions(1 + 10 + 45, 10, 2) == 1 + 20 + 180


@pytest.mark.parametrize("lines", [0, 3, 40, 4000, 10**5])
@pytest.mark.parametrize("most", [1, 100, 10**4])
def test_the_largest_window_that_fits_is_found_without_cutting_much(lines: int, most: int) -> None:
    regions = []

    def cut(share: float, limit: int) -> tuple[int, int]:
        n = int(1 + lines * share + lines**2 * share**2 / 5)
        regions.append(min(n, limit))
        if n > limit:
            raise TooManyRegions
        return n, int(lines * share)

    chosen = fitting_share(cut, SHARES, lambda share: most)
    assert 1 + lines * chosen + lines**2 * chosen**2 / 5 <= most + 1
    larger = [share for share in SHARES if share > chosen][-1:]
    assert all(1 + lines * share + lines**2 * share**2 / 5 > most for share in larger)
    assert sum(regions) <= 4 * most + 200 * len(SHARES)


def test_windows_of_one_size() -> None:
    assert shrunk((0, 4, 0, 2), 1.0, np.array([1.0, 1.0]), 9.0) == (0, 4, 0, 2)
    assert shrunk((0, 4, 0, 2), 0.5, None) == (1, 3, 0.5, 1.5)
    assert shrunk((0, 4, 0, 2), 0.5, np.array([3.0, 1.0]), 2.0) == (2.5, 3.5, 0.5, 1.5)


class Coarse(nn.Module):
    """Affine, in float32 whatever comes in."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x.float() * 1.1 + 0.3).to(x.dtype)


@pytest.mark.parametrize("extent", [1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize(
    "middle", [nn.LayerNorm(12), nn.Softmax(-1), nn.Sequential(nn.LayerNorm(12), nn.Linear(12, 12))]
)
def test_what_bends_is_found_in_small_windows_too(middle: nn.Module, extent: float) -> None:
    with pytest.raises(ValueError, match=r"something else in it is nonlinear.*first '4(\.0)?' \((LayerNorm|Softmax)\)"):
        slice_partition(net(300, middle=middle), POINTS, extent=extent)


@pytest.mark.parametrize("extent", [1.0, 1e-1, 1e-2, 1e-3])
@pytest.mark.parametrize("seed", range(3))
def test_rounding_is_no_bending(extent: float, seed: int) -> None:
    assert slice_partition(net(200, seed, Coarse()), POINTS, extent=extent).euler == 1
