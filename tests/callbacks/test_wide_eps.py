"""An eps that reaches all of the domain is most likely meant in other units, and is warned of once, before training."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from lc_callback import PGDRobustnessCallback
from tests.helpers import Classifier, loader, make_trainer, points

pytestmark = pytest.mark.usefixtures("no_timeline")


def unit_cube(n: int = 32, scale: float = 1.0) -> TensorDataset:
    x, y = points(n).tensors
    x = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    return TensorDataset(scale * x, y)


@pytest.mark.parametrize(
    ("arguments", "data", "is_warned"),
    [
        ({"eps": 8}, unit_cube(), True),
        ({"eps": [0.03, 2]}, unit_cube(), True),
        ({"eps": 8, "bounds": (0, 1)}, unit_cube(), True),
        ({"eps": 8, "attack": "FGSM"}, unit_cube(), True),
        ({"eps": [0.03, 0.3]}, unit_cube(), False),
        ({"eps": 8}, unit_cube(scale=255), False),
        ({"eps": 2, "attack": "PGDL2"}, unit_cube(), False),
        ({"eps": 8, "bounds": (-float("inf"), float("inf"))}, unit_cube(), False),
        ({"eps": 0.5, "eps_unit": "std"}, unit_cube(), False),
        ({"eps": 6, "eps_unit": "std"}, unit_cube(), True),
    ],
)
def test_an_eps_as_wide_as_the_domain(
    tmp_path: Path, arguments: dict[str, Any], data: TensorDataset, is_warned: bool
) -> None:
    callback = PGDRobustnessCallback(n_probes=8, steps=2, **arguments)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        make_trainer(tmp_path, callback, max_steps=1).fit(Classifier(), loader(data), loader(data))
    told = [str(one.message) for one in seen if "reaches all of the domain" in str(one.message)]
    assert len(told) == is_warned
    assert all("`eps=" in text and "255" in text for text in told)
    assert len(callback.history) == 2
