"""What the timeline of a run says of itself: model, captions, and the layer of a lone row; also from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.nn import functional as F

from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback
from lc_callback.callbacks import MEASURES, ProbeCallback
from lc_callback.reporting.figure import save
from lc_callback.reporting.run_dir import read_run
from tests.helpers import Classifier, loader, make_trainer, points

LIMITS = {"n_probes": 8, "schedule": [0, 1, 2, 3, 4, 5, 6, 7]}
SPIKE = 4


class Jumpy(Classifier):
    """The second layer has its kinks near the points at one step only. It learns nothing."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.net[0](x) + 1)
        return self.net[4](F.relu(self.net[2](hidden) + (0 if self.is_at(SPIKE) else 100)))

    def is_at(self, step: int) -> bool:
        return self._trainer is not None and self.trainer.global_step == step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def run(tmp_path: Path, model: Any, *callbacks: ProbeCallback) -> Path:
    logger = CSVLogger(tmp_path, name="", version="")
    make_trainer(tmp_path, *callbacks, max_steps=7, logger=logger).fit(model, loader(points(32)), loader(points(32)))
    return tmp_path


def captions(callback: ProbeCallback) -> list[str]:
    return [panel.caption for panel in callback.part().panels]


def test_captions_have_what_the_run_settled(tmp_path: Path) -> None:
    lc, rank = LocalComplexityCallback(method="linear", radius=0.3, **LIMITS), FeatureRankCallback(**LIMITS)
    attack = PGDRobustnessCallback(eps=[0.1], steps=3, eps_unit="std", **LIMITS)
    run(tmp_path, Classifier(), lc, attack, rank)
    complexity, density = captions(lc)
    assert "radius 0.3 of a point" in complexity
    assert "8 train, 8 test and 8 random points" in complexity
    assert "99\u00a0% interval of that mean over the points, not over seeds" in complexity
    assert "per unit of radius" in density
    (accuracy,) = captions(attack)
    assert "8 train and 8 test points" in accuracy
    assert "PGD of 3 steps; eps in spreads of the train points" in accuracy
    assert "8 train points" in captions(rank)[0]
    assert {callback.part().model for callback in (lc, attack, rank)} == {"Classifier"}


def test_before_a_run_captions_are_general() -> None:
    for kind in (LocalComplexityCallback, PGDRobustnessCallback, FeatureRankCallback):
        callback = kind()
        callback.history.append(0, {"lc/train": 1.0, "clean_acc/train": 1.0, "rank/a": 1.0, "effective_rank/a": 1.0})
        (caption,) = captions(callback)
        assert "the points" in caption
        assert callback.part().model == ""


def test_the_radius_is_that_of_the_rows_if_they_have_it() -> None:
    callback = LocalComplexityCallback(radius=0.3, log_key_prefix="deep/")
    callback.history.append(0, {"deep/lc/train": 1.0, "deep/lc_radius": 0.2})
    assert "radius 0.2 of a point" in captions(callback)[0]
    callback.history.append(1, {"deep/lc/train": 1.0, "deep/lc_radius": 0.1})
    assert "radius 0.1 (at first 0.2) of a point" in captions(callback)[0]


def test_a_submodule_is_in_the_title(tmp_path: Path) -> None:
    callback = LocalComplexityCallback(submodule="net", **LIMITS)
    run(tmp_path, Classifier(), callback)
    assert callback.part().model == "Classifier: net (Sequential)"


@pytest.mark.parametrize("radius", [0.3, [0.3, 0.6]])
@pytest.mark.parametrize("prefix", ["", "deep/"])
def test_the_share_of_each_layer_is_kept_and_in_checkpoints(tmp_path: Path, radius: Any, prefix: str) -> None:
    callback = LocalComplexityCallback(radius=radius, log_key_prefix=prefix, **LIMITS)
    run(tmp_path, Classifier(), callback)
    again = LocalComplexityCallback(radius=radius, log_key_prefix=prefix)
    again.load_state_dict(callback.state_dict())
    for row in callback.history.rows:
        curves = [key.removeprefix(prefix) for key in row if key.startswith(f"{prefix}lc/")]
        for key in {*curves} - {"lc/seconds", "lc/phase"}:
            shares = callback.layer_shares(key, row)
            assert [*shares] == ["net.1", "net.3"]
            assert sum(shares.values()) == pytest.approx(row[prefix + key])
            assert again.layer_shares(key, row) == shares
    assert callback.history.arrays == {}


def test_an_evaluation_leaves_the_shares_alone(tmp_path: Path) -> None:
    callback = LocalComplexityCallback(radius=0.3, **LIMITS)
    trainer = make_trainer(tmp_path, callback, max_steps=2)
    model = Classifier()
    trainer.fit(model, loader(points(32)), loader(points(32)))
    before = [callback.layer_shares("lc/train", row) for row in callback.history.rows]
    trainer.validate(model, loader(points(32, 1)))
    assert [callback.layer_shares("lc/train", row) for row in callback.history.rows] == before


def test_a_lone_row_names_its_layer_in_the_run_and_from_its_files(tmp_path: Path) -> None:
    plain = LocalComplexityCallback(radius=1.0, method="vertices", **LIMITS)
    columns = LocalComplexityCallback(radius=1.0, method="vertices", per_layer=True, log_key_prefix="c/", **LIMITS)
    folder = run(tmp_path, Jumpy(), plain, columns)
    parts = [plain.part(), columns.part()]
    layer = [*plain.layer_shares("lc/train", plain.history.rows[0])][1]
    assert parts[0].made_by == {(f"lc/{split}", SPIKE): layer for split in ("train", "test", "random")}
    read = read_run(folder, MEASURES)
    for part, again in zip(parts, read, strict=True):
        assert again.made_by == part.made_by
        assert again.model == part.model == "Jumpy"
        assert [panel.caption for panel in again.panels] == [panel.caption for panel in part.panels]
    other = folder / "other.svg"
    save(read, other)
    assert f"at step {SPIKE} ({layer})" in other.read_text()


@pytest.mark.parametrize("picture", ["missing", "broken", "another's"])
def test_without_the_picture_of_the_run_its_files_are_drawn_all_the_same(tmp_path: Path, picture: str) -> None:
    plain = LocalComplexityCallback(radius=1.0, method="vertices", **LIMITS)
    columns = LocalComplexityCallback(radius=1.0, method="vertices", per_layer=True, log_key_prefix="c/", **LIMITS)
    folder = run(tmp_path, Jumpy(), plain, columns)
    path = folder / "timeline.png"
    path.unlink()
    if picture == "broken":
        path.write_bytes(b"\x89PNG\r\n\x1a\nno")
    if picture == "another's":
        from PIL import Image

        Image.new("RGB", (4, 4)).save(path)
    of_plain, of_columns = read_run(folder, MEASURES)
    assert {*of_plain.made_by} == {("lc/train", SPIKE)}
    assert {*of_columns.made_by} == {(f"c/lc/{split}", SPIKE) for split in ("train", "test", "random")}
    assert "the radius of a point, mean over the points" in of_plain.panels[0].caption
    save([of_columns, of_plain], folder / "again.png")
