"""No value is lost for the name of a layer, a radius or an eps, and no name stops a file or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from all_kinds import KINDS, tiny
from helpers import CLASSES, DIM, Classifier, loader, make_trainer, our_warnings, points, timeless
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lc_callback.__main__ import main
from lc_callback.functional import weight_norms
from lc_callback.names import clean, distinct, number_names
from lc_callback.run.files import safe_name
from lc_callback.run.timeline import read_rows

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn")]


def net(*names: str) -> nn.Sequential:
    """A layer and a ReLU of each name."""
    whole = nn.Sequential()
    for i, name in enumerate(names):
        whole.add_module(f"layer{i}", nn.Linear(DIM, DIM))
        whole.add_module(name, nn.ReLU())
    whole.add_module("head", nn.Linear(DIM, CLASSES))
    return whole


def fit(folder: Path, *callbacks: Any, module: Any, **arguments: Any) -> Any:
    trainer = make_trainer(folder, *callbacks, max_steps=1, limit_val_batches=0, **arguments)
    torch.manual_seed(0)
    trainer.fit(module, loader(), loader(points(seed=1)))
    return trainer


def test_modules_called_total_keep_their_norm() -> None:
    module = nn.Module()
    module.total, module.total_1 = nn.Linear(2, 2), nn.Linear(3, 3)
    norms = weight_norms(module)
    assert [*norms] == ["total", "total_2", "total_1"]
    assert norms["total"] ** 2 == pytest.approx(norms["total_1"] ** 2 + norms["total_2"] ** 2)
    assert norms["total_1"] ** 2 == pytest.approx(sum(float(p.square().sum()) for p in module.total_1.parameters()))


class Total(Classifier):
    """Its own modules have the names of our values."""

    def __init__(self, *names: str) -> None:
        super().__init__(nn.Identity())
        self.names = names
        for name in names:
            self.add_module(name, nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU()))
        self.head = nn.Linear(DIM, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for name in self.names:
            x = getattr(self, name)(x)
        return self.head(x)


@pytest.mark.parametrize(
    "names", [["total"], ["seconds"], ["total", "seconds", "events", "total_1"], ["step", "random"]]
)
@pytest.mark.parametrize("kind", ["lc", "rank"])
def test_layers_with_the_names_of_our_values(kind: str, names: list[str], tmp_path: Path) -> None:
    own = {"lc": {"per_layer": True, "radius": 1.0}, "rank": {"layers": [f"{name}.1" for name in names]}}
    callback = tiny(kind, schedule=[0], **own[kind])
    fit(tmp_path, callback, module=Total(*names))
    row = callback.history.rows[0]
    groups = {"lc": ["lc_layer/train"], "rank": ["rank", "effective_rank", "stable_rank"]}
    for group in groups[kind]:
        assert [key for key in row if key.startswith(f"{group}/") and ".1" in key] == [f"{group}/{n}.1" for n in names]
    assert read_rows(tmp_path / KINDS[kind].group / "history.csv") == [row]


@pytest.mark.parametrize("names", [["seconds"], ["events", "setup"], ["seconds", "seconds_1"], ["total"]])
def test_ranks_of_layers_with_the_names_of_our_values(names: list[str], tmp_path: Path) -> None:
    module = Classifier(net(*names))
    callback = tiny("rank", schedule=[0], submodule="net", alignment=False)
    fit(tmp_path, callback, module=module, logger=TensorBoardLogger(tmp_path, name="", version=""))
    (row,) = timeless(callback.history)
    for group in ("rank", "effective_rank", "stable_rank"):
        keys = [key for key in row if key.startswith(f"{group}/")]
        assert len(keys) == len(names)
        assert not {*keys} & {"rank/seconds", "rank/events", "rank/setup"}
    assert len([key for key in row if key.startswith("weight_norm/")]) == len(names) + 2
    layers = [key.removeprefix("rank/") for key in row if key.startswith("rank/")]
    assert {*callback.history.arrays[0]} == {f"spectrum/{layer}" for layer in layers}
    assert {*callback.part().panels[0].lines} == {*layers}


CLOSE = [
    [0.1, 0.10000001],
    [0.1, 0.1 + 1e-9, 0.1 + 2e-9],
    [1.0, 1 + 2**-40],
    [5.0, 5e-9, 5.0000001],
    [1e-3, 1.0000001e-3],
]


@pytest.mark.parametrize("numbers", CLOSE)
@pytest.mark.parametrize("kind", ["lc", "robustness"])
def test_numbers_that_are_close_have_a_key_each(kind: str, numbers: list[float], tmp_path: Path) -> None:
    callback = tiny(kind, schedule=[0], **({"radius": numbers} if kind == "lc" else {"eps": numbers}))
    fit(tmp_path, callback, module=Classifier())
    start = {"lc": "lc/train_r", "robustness": "robust_acc/train_eps"}[kind]
    found = [float(key.removeprefix(start)) for key in callback.history.keys if key.startswith(start)]
    if kind == "robustness":
        found = [float(key.rpartition("_eps")[2]) for key in callback.history.keys if key.startswith("robust_acc/t")]
    assert found == pytest.approx(numbers, rel=1e-15) or len({*found}) == len(numbers)
    assert len(found) == len(numbers)
    assert repr(callback)


ODD = [
    "a$b$",
    "$",
    "\\frac{$x",
    "a\0b",
    "x" * 300,
    "line\nbreak",
    'quote"comma,',
    "\ud800half",
    "%s {0}",
    "_^&#~",
    "漢字",
    "a/b",
]


@pytest.mark.parametrize("kind", ["lc", "rank"])
def test_odd_names_of_layers_stop_nothing(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {"lc": {"per_layer": True, "radius": 1.0}, "rank": {"alignment": False, "histogram": True}}
    callback = tiny(kind, submodule="net", schedule=[0, 1], **own[kind])
    loggers = [TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path, name="", version="")]
    with our_warnings(KINDS[kind].__name__) as warned:
        fit(tmp_path, callback, module=Classifier(net(*ODD)), logger=loggers)
    assert [text for text in warned if "Training goes on" in text] == []
    group = {"lc": "lc_layer/train/", "rank": "rank/"}[kind]
    keys = [key for key in callback.history.keys if key.startswith(group) and "seconds" not in key]
    assert len(keys) == len(ODD)
    assert read_rows(tmp_path / callback.group / "history.csv") == callback.history.rows
    assert (tmp_path / "timeline.png").stat().st_size > 1000
    main(["report", str(tmp_path)])
    assert "figure: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "prefix", ["a$b$/", "\\x/", "a\0b/", "x" * 300, "line\nbreak ", "\ud800/", "漢" * 100, "a/b/c/"]
)
def test_odd_prefixes_stop_nothing(prefix: str, tmp_path: Path) -> None:
    callback = tiny("lc", log_key_prefix=prefix, schedule=[0, 1], radius=1.0)
    with our_warnings("LocalComplexityCallback") as warned:
        fit(tmp_path, callback, module=Classifier(), logger=TensorBoardLogger(tmp_path, name="", version=""))
    assert [text for text in warned if "Training goes on" in text] == []
    (path,) = tmp_path.rglob("history.csv")
    assert path.parent.parent == tmp_path
    assert [row["step"] for row in read_rows(path)] == [0, 1]
    assert (tmp_path / "timeline.png").stat().st_size > 1000


@pytest.mark.parametrize("text", [*ODD, "../../up", "a" * 119, "a" * 120, "a" * 121, "漢" * 40, "漢" * 41, " "])
def test_safe_names_are_names_of_files(text: str, tmp_path: Path) -> None:
    name = safe_name(text)
    (tmp_path / f"{name}_000000001.png.part").write_text("")
    assert [path.name for path in tmp_path.iterdir()] == [f"{name}_000000001.png.part"]
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("names", "reserved", "apart"),
    [
        (["a", "b"], [], ["a", "b"]),
        (["a", "a", "a"], [], ["a", "a_1", "a_2"]),
        (["a", "a_1", "a"], [], ["a", "a_1", "a_2"]),
        (["a", "a", "a_1"], [], ["a", "a_2", "a_1"]),
        (["total"], ["total", "total_1"], ["total_2"]),
        (["a\0", "a\n"], [], ["a_", "a__1"]),
        ([], ["a"], []),
    ],
)
def test_distinct(names: list[str], reserved: list[str], apart: list[str]) -> None:
    assert distinct(names, reserved) == apart


def test_clean_and_number_names() -> None:
    assert [clean(text) for text in ("a\tb", "a b", "ü$\\", "")] == ["a_b", "a b", "ü$\\", ""]
    assert number_names([0.03, 0.1]) == ["0.03", "0.1"]
    assert number_names([1 / 3]) == ["0.333333"]
    assert number_names([1 / 3, 0.333333]) == ["0.3333333", "0.333333"]
    assert number_names([1.0, 1 + 2**-52]) == ["1", "1.0000000000000002"]
