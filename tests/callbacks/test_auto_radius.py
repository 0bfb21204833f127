"""What LocalComplexityCallback finds by itself: the radius, the space it follows, and the number of points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import DIM, Classifier, Tokens, loader, make_trainer, our_warnings
from torch import nn
from torch.utils.data import TensorDataset

from lc_callback import LocalComplexityCallback
from lc_callback.functional import local_complexity
from lc_callback.functional.radius import find_radius

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]


def vectors(n: int = 600, seed: int = 0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(n, DIM, generator=generator), torch.arange(n) % 3)


def tokens() -> TensorDataset:
    return TensorDataset(torch.arange(24).view(8, 3) % 9, torch.arange(8) % 3)


def wide(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in zip((DIM, *widths), (*widths, 3), strict=True):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def fit(folder: Path, callback: Any, module: Any, data: Any = None, **arguments: Any) -> Any:
    data = vectors() if data is None else data
    trainer = make_trainer(folder, callback, **{"max_steps": 3, **arguments})
    trainer.fit(module, loader(data), loader(data))
    return trainer


def test_the_radius_is_found_kept_logged_and_explained(tmp_path: Path) -> None:
    callback, data = LocalComplexityCallback(), vectors(100)
    module = Classifier(wide(200, 200))
    expected = find_radius(module.net, data.tensors[0], n_directions=DIM)
    fit(tmp_path, callback, module, data)
    assert callback.history["lc_radius"] == [expected.radius] * 4
    counted = local_complexity(module.net, data.tensors[0], radius=expected.radius, n_directions=DIM, method="linear")
    assert callback.history["lc/train"][-1] == counted.mean  # all points, the weights of the last row
    text = callback.describe()
    assert f"This radius is {expected.reason}." in text
    assert f"to compare runs, pass `radius={expected.radius:g}, method='linear'` to each" in text


@pytest.mark.parametrize(
    ("arguments", "logged"), [({"radius": 0.3}, [0.3]), ({"radius": [0.1, 0.3]}, None), ({"radius": [0.1]}, None)]
)
def test_a_radius_that_is_given_is_logged_as_it_is(arguments: Any, logged: Any, tmp_path: Path) -> None:
    callback = LocalComplexityCallback(**arguments, n_probes=8)
    fit(tmp_path, callback, Classifier(), max_steps=1)
    assert ("lc_radius" in callback.history.keys) is (logged is not None)
    if logged:
        assert callback.history["lc_radius"] == logged * 2
    assert "This radius is" not in callback.describe()


class Pairs(nn.Module):
    """Each unit behind a ReLU sees two others, so that affine pieces say too much."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight, self.last = nn.Linear(DIM, 400), nn.Parameter(torch.randn(2, 400)), nn.Linear(400, 3)

    def forward(self, x: torch.Tensor) -> Any:
        hidden = torch.relu(self.first(x))
        return self.last(torch.relu(self.weight[0] * hidden + self.weight[1] * hidden.roll(1, -1)))


@pytest.mark.parametrize(("method", "counts"), [("auto", "vertices"), ("linear", "linear"), ("vertices", "vertices")])
def test_where_the_methods_differ_the_vertices_count(method: str, counts: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    callback, data = LocalComplexityCallback(method=method), vectors(100)
    module = Classifier(Pairs())
    found = find_radius(module.net, data.tensors[0], n_directions=DIM)
    assert found.difference
    trainer = fit(tmp_path, callback, module, data)
    settings: dict[str, Any] = {"radius": found.radius, "n_directions": DIM, "method": counts}
    assert callback.history["lc/train"][-1] == local_complexity(module.net, data.tensors[0], **settings).mean
    assert ("lc_density/train" in callback.history.keys) is (counts == "linear")
    text = callback.describe()
    assert f"({found.difference})" in text
    assert ("counted by the vertices" in text) is (counts == "vertices")
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    second = LocalComplexityCallback(method=method)
    again = make_trainer(tmp_path / "b", second, max_steps=6)
    again.fit(module, loader(data), loader(data), ckpt_path=tmp_path / "three.ckpt")
    assert ("lc_density/train" in second.history.keys) is (counts == "linear")
    assert len(second.history["lc/train"]) == 7
    assert second.describe().splitlines()[0] == callback.describe().splitlines()[0]


class Shrinking(Classifier):
    """Its embedding shrinks and the next layer grows, so it stays the same function."""

    def __init__(self) -> None:
        super().__init__(Tokens().net)
        self.automatic_optimization = False

    def training_step(self, batch: Any, index: int) -> None:
        self.optimizers().step()  # counts a step; there is no gradient, so it changes nothing
        with torch.no_grad():
            self.net[0].weight /= 2
            next(layer for layer in self.net if isinstance(layer, nn.Linear)).weight *= 2


@pytest.mark.parametrize("radius", ["auto", 0.05])
def test_behind_an_embedding_a_found_radius_follows_the_spread(radius: Any, tmp_path: Path) -> None:
    callback = LocalComplexityCallback(radius=radius, n_directions=4, every_n_train_steps=1, method="linear")
    with our_warnings() as warned:
        fit(tmp_path, callback, Shrinking(), tokens(), max_steps=4)
    spread, radii, lc = (callback.history[key] for key in ("lc_spread/train", "lc_radius", "lc/train"))
    assert spread == pytest.approx([spread[0] / 2**step for step in range(5)])
    follows = radius == "auto"
    assert radii == pytest.approx([radii[0] / 2**step if follows else radius for step in range(5)])
    assert (lc == pytest.approx([lc[0]] * 5)) is follows  # the same function has the same curve
    assert any("is trained" in text for text in warned) is not follows


def test_a_resumed_run_keeps_radius_and_reason(tmp_path: Path) -> None:
    first, second = LocalComplexityCallback(), LocalComplexityCallback()
    trainer = fit(tmp_path / "a", first, Classifier(wide(50)))
    trainer.save_checkpoint(tmp_path / "three.ckpt")
    module = Classifier(wide(50))
    again = make_trainer(tmp_path / "b", second, max_steps=6)
    again.fit(module, loader(vectors()), loader(vectors()), ckpt_path=tmp_path / "three.ckpt")
    assert second.history["lc_radius"] == [first.history["lc_radius"][0]] * 7
    assert [line for line in second.describe().splitlines() if line.startswith("This radius")] == [
        line for line in first.describe().splitlines() if line.startswith("This radius")
    ]


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ((16,), 1024),
        ((20_000,), 200),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (((4000, 4000), 500), ((62_000,), 64), ((100_000,), 64))
        ),
    ],
)
def test_as_many_points_as_the_network_allows(widths: Any, expected: int, tmp_path: Path) -> None:
    callback = LocalComplexityCallback(schedule=[0], n_directions=1)
    fit(tmp_path, callback, Classifier(wide(*widths)), vectors(expected + 100), max_steps=1)
    sizes = {split: f"{split}: {expected} points" in callback.describe() for split in ("train", "test", "random")}
    assert sizes == dict.fromkeys(sizes, True)


def test_points_are_those_of_the_number(tmp_path: Path) -> None:
    found, given = LocalComplexityCallback(0.1), LocalComplexityCallback(0.1, n_probes=1024)
    for callback in (found, given):
        torch.manual_seed(0)
        fit(tmp_path, callback, Classifier(), vectors(1100))
    assert found.history["lc/train"] == given.history["lc/train"]
    assert found.state_dict()["fingerprints"] == given.state_dict()["fingerprints"]


def test_points_that_are_given_are_taken_whole(tmp_path: Path) -> None:
    callback = LocalComplexityCallback(0.1, train_probes=torch.randn(1100, DIM), test_probes=torch.randn(30, DIM))
    fit(tmp_path, callback, Classifier())
    assert "train: 1100 points" in callback.describe()
    assert "test: 30 points" in callback.describe()
