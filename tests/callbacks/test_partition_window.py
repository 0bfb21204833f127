"""Slices of networks with too many regions, of networks that cannot be sliced, and of weights that are not finite."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from helpers import CLASSES, DIM, Classifier, loader, make_trainer, our_warnings, points, timeless
from torch import nn

from lc_callback import SplinePartitionCallback
from lc_callback.engine.slices.window import SHARES

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]
INFO = "lightning.pytorch.utilities.rank_zero"


def conv(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        *(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.MaxPool2d((2, 1)), nn.Flatten(), nn.Linear(3 * width, CLASSES)),
    )


def wide(middle: nn.Module) -> nn.Sequential:
    """So many regions that the window shrinks."""
    return nn.Sequential(nn.Linear(DIM, 300), nn.ReLU(), nn.Linear(300, 16), middle, nn.Linear(16, CLASSES))


def fit(folder: Path, callback: Any, net: Any = conv, **arguments: Any) -> Classifier:
    pl.seed_everything(0)
    module = Classifier(net() if callable(net) and not isinstance(net, nn.Module) else net)
    make_trainer(folder, callback, **{"max_epochs": 2, **arguments}).fit(module, loader(points()))
    return module


def limited(**arguments: Any) -> SplinePartitionCallback:
    return SplinePartitionCallback(**{"schedule": [0, 3, 6], "max_regions": 400, **arguments})


@pytest.mark.slow
def test_rows_of_a_network_with_too_many_regions_are_of_one_smaller_window(tmp_path: Path) -> None:
    callback = limited()
    fit(tmp_path, callback)
    rows = callback.history.rows
    assert [row["step"] for row in rows] == [0, 3, 6]
    windows = {row["partition/window"] for row in rows}
    assert len(windows) == 1
    assert windows < {*SHARES[1:]}
    assert rows[0]["partition/n_regions"] <= 100  # a quarter, so that there is room for more
    for row, found in zip(rows[-1:], callback._slices, strict=False):
        side = found.extent[1] - found.extent[0]
        assert row["partition/n_regions"] == row["partition/n_regions_near_probes"] == found.n_regions <= 400
        assert row["partition/density"] == pytest.approx(found.n_regions / side**2)
    first, second = callback._slices
    assert rows[-1]["partition/n_regions_near_boundary"] == second.n_regions
    assert first.extent[1] - first.extent[0] == pytest.approx(second.extent[1] - second.extent[0])
    assert "max_regions=400" in callback.describe()
    assert "max_regions=400" in repr(callback)


@pytest.mark.parametrize("max_regions", ["auto", None, 10**6])
def test_a_window_that_fits_stays_as_it_was(max_regions: Any, tmp_path: Path) -> None:
    callback = SplinePartitionCallback(schedule=[0], max_regions=max_regions)
    fit(tmp_path, callback, None)
    assert {"partition/window", "partition/density"}.isdisjoint(callback.history.keys)
    assert "partition/density" not in str(callback.panels(callback.history.keys))


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_window_of_the_checkpoint(tmp_path: Path) -> None:
    whole, first, second = limited(), limited(), limited()
    fit(tmp_path / "whole", whole)
    pl.seed_everything(0)
    trainer = make_trainer(tmp_path / "part", first, max_epochs=1)
    trainer.fit(Classifier(conv()), loader(points()))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer = make_trainer(tmp_path / "part", second, max_epochs=2)
    trainer.fit(Classifier(conv()), loader(points()), ckpt_path=tmp_path / "half.ckpt")
    assert timeless(second.history) == timeless(whole.history)


class Growing(nn.Module):
    """Its kinks come into the window after some calls in training."""

    def __init__(self, to: float = 30.0) -> None:
        super().__init__()
        self.inner, self.outer, self.to = nn.Linear(DIM, 60), nn.Linear(60, CLASSES), to
        self.register_buffer("factor", torch.tensor(0.0))
        nn.init.constant_(self.inner.bias, 5.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.factor.fill_(self.to)
        return self.outer(torch.relu(self.factor * (self.inner(x) - 5) + 5))


def test_a_row_with_more_regions_shrinks_the_window_and_says_so(tmp_path: Path) -> None:
    callback = limited(max_regions=100)
    with our_warnings("SplinePartitionCallback") as warned:
        fit(tmp_path, callback, Growing)
    (text,) = [text for text in warned if "the window shrinks from" in text]
    assert "`max_regions=100`" in text
    before, *after = callback.history.rows
    assert "partition/window" not in before
    assert all(row["partition/n_regions"] <= 100 for row in after)
    assert {row["partition/window"] for row in after} == {callback._share} < {*SHARES[1:]}
    assert f"`window={callback._share:g}`" in text


def test_the_cost_is_told_before_the_first_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, INFO):
        fit(tmp_path, limited(schedule=[0]))
    texts = [record.getMessage() for record in caplog.records]
    (at,) = [i for i, text in enumerate(texts) if "regions in each of two slices" in text]
    assert "s a row. In the window that is asked for there are about" in texts[at]
    assert "`max_regions=400`" in texts[at]
    assert at < next(i for i, text in enumerate(texts) if "Slice through" in text)


def test_a_long_row_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lc_callback.callbacks.conditions._PROGRESS_EVERY", 0.0)
    said: list[str] = []
    monkeypatch.setattr(Classifier, "print", lambda self, text: said.append(text), raising=False)
    fit(tmp_path, limited(schedule=[0]))
    for what in ("cutting the first slice", "cutting the second slice", "slopes of the first slice"):
        assert any(what in text for text in said), what


class Sign(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.sign(x)


class Chosen(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.1 * x)


class Gate(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * x.softmax(-1)


@pytest.mark.parametrize("schedule", [[0], [3]])
@pytest.mark.parametrize(
    ("middle", "named"),
    [
        (nn.GELU(), r"'gelu' at 'net\.3'"),
        (nn.Hardshrink(), r"'hardshrink' at 'net\.3' jumps"),
        (nn.LayerNorm(16), r"first 'net\.3' \(LayerNorm\)"),
        (nn.Softmax(-1), r"first 'net\.3' \(Softmax\)"),
        (nn.Sequential(nn.Unflatten(1, (4, 4)), nn.GroupNorm(2, 4), nn.Flatten()), r"first 'net\.3\.1' \(GroupNorm\)"),
        (Sign(), r"first 'net\.3' \(Sign\)"),
        (Chosen(), r"first 'net\.3' \(Chosen\)"),
        (Gate(), r"first 'net\.3' \(Gate\)"),
    ],
)
def test_the_layer_that_is_not_piecewise_affine_is_named(
    middle: nn.Module, named: str, schedule: list[int], tmp_path: Path
) -> None:
    callback = limited(max_regions=3000, schedule=schedule)
    module = Classifier(wide(middle))
    with pytest.raises(ValueError, match=named):
        make_trainer(tmp_path, callback, max_epochs=1).fit(module, loader(points()))
    assert module.steps_taken == 0


def broken(net: nn.Module, value: float) -> nn.Module:
    for parameter in net.parameters():
        nn.init.constant_(parameter, value)
    return net


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan, 1e30])
@pytest.mark.parametrize("resumed", [False, True])
def test_weights_that_are_not_finite_cost_rows_and_not_the_run(value: float, resumed: bool, tmp_path: Path) -> None:
    checkpoint = None
    if resumed:
        trainer = make_trainer(tmp_path, limited(schedule=[0]), max_epochs=1)
        module = Classifier()
        trainer.fit(module, loader(points()))
        broken(module, value)
        trainer.save_checkpoint(checkpoint := tmp_path / "last.ckpt")
    callback = limited(schedule=[0, 3, 6])
    module = Classifier() if resumed else Classifier(broken(conv(), value))
    trainer = make_trainer(tmp_path, callback, max_epochs=2)
    with our_warnings("SplinePartitionCallback") as warned:
        trainer.fit(module, loader(points()), ckpt_path=checkpoint)
    assert trainer.global_step == 6
    assert [step for step in callback.history.steps if step > 0] == []
    assert any("Training goes on" in text for text in warned)


@pytest.mark.parametrize("value", [0, -3, 2.5, True, "all"])
def test_a_bad_limit_is_named(value: Any) -> None:
    with pytest.raises(ValueError, match=r"`max_regions` must be 'auto' or a positive integer, but got"):
        SplinePartitionCallback(max_regions=value)


def test_a_checkpoint_of_another_window_is_no_reason_to_shrink() -> None:
    callback, other = limited(), limited(window=0.5)
    callback._share = 0.2
    other.load_extra_state(callback.extra_state())
    assert other._share == 1.0
    again = limited()
    again.load_extra_state(callback.extra_state())
    assert again._share == 0.2
    again.load_extra_state({})  # written before there was a limit
    assert again._share == 1.0
