"""What a user sees at the prompt and in the console: reprs, tables, the version, errors that know what was meant."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys
from typing import Any

import pytest
import torch
from helpers import KINDS, Classifier, loader, make_trainer, mlp, our_warnings, points, tiny
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

import lc_callback
from lc_callback import FeatureRankCallback, LocalComplexityCallback, PGDRobustnessCallback, SplinePartitionCallback
from lc_callback import functional as F
from lc_callback.detection.phases import PHASE_SETTINGS, check_phase_settings
from lc_callback.detection.transitions import Transition
from lc_callback.run.history import History
from lc_callback.run.probes import Probes
from lc_callback.suggestions import did_you_mean

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

X, Y = points(24)[:]
R = {"radius": 0.1, "n_directions": 3}
SPLINES = SplinePartitionCallback


def set_up(**arguments: Any) -> None:
    LocalComplexityCallback(**arguments).on_fit_start(make_trainer("."), Classifier())


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return mlp()


# Reprs


def history(n_rows: int, n_keys: int) -> History:
    found = History()
    for step in range(n_rows):
        found.append(step, {f"key/{i}": step / 3 + i for i in range(n_keys) if step or i != 1})
    return found


RESULTS = {
    "lc": (
        lambda: F.local_complexity(net(), X, **R),
        ["mean=", " ± ", "radius=0.1, 24 points, 32 units in 2"],
    ),
    "lc of radii": (
        lambda: F.local_complexity(net(), X, **{**R, "radius": [0.1, 0.5]}),
        ["mean=[", " ± ", "radius=[0.1, 0.5]"],
    ),
    "lc of a point": (lambda: F.local_complexity(net(), X[:1], **R), ["± nan", "1 points"]),
    "bracket": (
        lambda: F.local_complexity(net(), X, **R, bracket=True),
        ["LocalComplexity(mean="],
    ),
    "robustness": (lambda: F.robust_accuracy(net(), X, Y, eps=[0.1, 0.2]), ["clean_acc=0.", "robust_acc={0.1: 0"]),
    "attacked": (lambda: F.robust_accuracy(net(), X, Y, eps=0.1, return_adversarial=True), ["adversarial of 1 eps"]),
    "rank": (lambda: F.feature_rank(torch.eye(30)), ["rank=29, effective_rank=", "stable_rank=", "n=30, d=30"]),
    "ranks": (lambda: F.feature_ranks(net(), X), ["'1': FeatureRank(rank=", "'3': FeatureRank(rank="]),
    "covariance": (lambda: F.FeatureCovariance(), ["FeatureCovariance(n=0, d=None)"]),
    "alignment": (lambda: F.centroid_alignment(net(), X), ["CentroidAlignment(mean=", "24 points"]),
    "deformation": (
        lambda: F.frame_deformation(net(), X, **R),
        ["radius=0.1, 24 points, 2 layers"],
    ),
    "deformations": (
        lambda: F.frame_deformation(net(), X, **{**R, "radius": [0.1, 1.0]}),
        ["mean last diameter=["],
    ),
    "slice": (lambda: F.slice_partition(net(), X[:3]), [" regions by ", "units of 2 layers, extent=("]),
    "plane": (lambda: F.slice_partition(net(), X[:3]).plane, ["inputs of shape (6,)", "points at ("]),
    "map": (
        lambda: F.local_complexity_map(net(), X[:3], **R, resolution=4),
        ["4 x 4 cells, from ", "mean=", "radius=0.1,"],
    ),
    "probes": (lambda: Probes(X, Y, "here"), ["24 points, float32 (24, 6), source='here'"]),
    "probes of a dict": (lambda: Probes({"a": X, "b": Y}, Y, "here"), ["float32 (24, 6), int64 (24,)"]),
    "transition": (
        lambda: Transition("rank_descent", 50, 79, 12.345678, 3.0, "a long reason", "rank/net.3"),
        ["Transition('rank_descent', step=50, curve='rank/net.3', value=12.35)"],
    ),
    "transition of no curve": (lambda: Transition("x", 5, 7, 1.0, 1.0, ""), ["Transition('x', step=5, value=1)"]),
}


@pytest.mark.parametrize("name", RESULTS)
def test_a_result_is_one_short_line(name: str) -> None:
    make, parts = RESULTS[name]
    text = repr(make())
    assert "\n" not in text
    assert len(text) < 200
    assert "tensor(" not in text
    assert "array(" not in text
    for part in parts:
        assert part in text


def test_every_result_of_the_public_functions_has_a_short_repr() -> None:
    kinds = [kind for kind in vars(F).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
    assert len(kinds) >= 6
    assert all("__repr__" in vars(kind) and kind.__repr__.__qualname__ == f"{kind.__name__}.__repr__" for kind in kinds)
    # a dataclass's own is made in `dataclasses`, and wrapped
    assert not any(hasattr(kind.__repr__, "__wrapped__") for kind in kinds)


@pytest.mark.parametrize(
    ("n_rows", "n_keys", "n_lines"),
    [(0, 0, 1), (1, 1, 3), (4, 3, 6), (10, 3, 12), (11, 3, 13), (1000, 3, 13), (1000, 50, 14)],
)
def test_a_history_is_a_small_table(n_rows: int, n_keys: int, n_lines: int) -> None:
    lines = repr(history(n_rows, n_keys)).split("\n")
    assert len(lines) == n_lines
    assert max(map(len, lines)) < 120
    assert lines[0] == f"History({n_rows} rows, {n_keys} keys)"
    if n_rows:
        assert lines[1].split()[:2] == ["step", "key/0"]
        assert lines[-1 if n_keys < 7 else -2].split()[0] == str(n_rows - 1)


# pandas


def test_rows_as_a_data_frame() -> None:
    pandas = pytest.importorskip("pandas")
    frame = history(3, 2).to_pandas()
    assert (frame.index.name, frame.index.tolist(), frame.columns.tolist()) == ("step", [0, 1, 2], ["key/0", "key/1"])
    assert frame["key/1"].isna().tolist() == [True, False, False]
    assert isinstance(History().to_pandas(), pandas.DataFrame)


def test_without_pandas_the_error_says_what_to_install(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="`pip install pandas`"):
        history(3, 2).to_pandas()


@pytest.mark.slow
def test_the_command_line_has_a_version() -> None:
    run = subprocess.run([sys.executable, "-m", "lc_callback", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == f"lc_callback {lc_callback.__version__}"


# Names that were meant


@pytest.mark.parametrize(
    ("given", "possible", "end"),
    [
        ("PDG", ["PGD", "FGSM", "PGDL2"], "; did you mean 'PGD'?"),
        ("pgd", ["PGD", "PGDL2"], "; did you mean 'PGD'?"),
        ("lineal", ["vertices", "linear"], "; did you mean 'linear'?"),
        ("nothing", ["PGD"], "."),
        (3, ["PGD"], "."),
        (None, ["PGD"], "."),
        ("x", [], "."),
    ],
)
def test_what_was_meant(given: Any, possible: list[str], end: str) -> None:
    assert did_you_mean(given, possible) == end


WRONG = {
    "attack": (lambda: PGDRobustnessCallback(attack="PDG"), "PGD"),
    "attack in lower case": (lambda: PGDRobustnessCallback(attack="pgd"), "PGD"),
    "attack of the function": (lambda: F.robust_accuracy(net(), X, Y, eps=0.1, attack="PDG"), "PGD"),
    "attack_args": (lambda: PGDRobustnessCallback(attack_args={"random_strat": True}), "random_start"),
    "eps_unit": (lambda: PGDRobustnessCallback(eps_unit="sdt"), "std"),
    "method": (lambda: LocalComplexityCallback(method="lienar"), "linear"),
    "method of the function": (lambda: F.local_complexity(net(), X, method="vertexes"), "vertices"),
    "matrix": (lambda: FeatureRankCallback(matrix="covarience"), "covariance"),
    "split": (lambda: FeatureRankCallback(split="tran"), "train"),
    "precision": (lambda: FeatureRankCallback(precision="floa64"), "float64"),
    "schedule": (lambda: LocalComplexityCallback(schedule="lgo"), "log"),
    "detection": (lambda: LocalComplexityCallback(detection={"min_prominense": 0.1}), "min_prominence"),
    "detection of ranks": (lambda: FeatureRankCallback(detection={"flattness": 0.1}), "flatness"),
    "settings of the phases": (lambda: check_phase_settings({**PHASE_SETTINGS, "flattness": 0.1}), "flatness"),
    "stop_after": (lambda: LocalComplexityCallback(stop_after="migration_strat"), "migration_start"),
    "stop_after robustness": (
        lambda: PGDRobustnessCallback(stop_after="delayed_generalisation"),
        "delayed_generalization",
    ),
    "layers": (lambda: F.feature_ranks(nn.Sequential(net()), X, layers=["0.l"]), None),
    "layers by class": (lambda: F.feature_ranks(net(), X, layers=["Linaer"]), "Linear"),
    "at": (lambda: F.local_complexity(Classifier(), X, n_directions=3, at="nte.1"), "net.1"),
    "submodule": (
        lambda: set_up(submodule="nett"),
        "net",
    ),
    "forward_fn": (
        lambda: set_up(forward_fn="fourward"),
        "forward",
    ),
    "key": (lambda: history(2, 2)["kye/1"], "key/1"),
    "layer of a map": (
        lambda: F.local_complexity_map(net(), X[:3], **R, resolution=2, per_layer=True).plot(layer="l"),
        None,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_knows_what_was_meant(name: str) -> None:
    make, meant = WRONG[name]
    with pytest.raises((ValueError, KeyError, MisconfigurationException)) as error:
        make()
    if meant is not None:
        assert f"did you mean '{meant}'?" in str(error.value)


# The console of a run


def console(monkeypatch: Any) -> list[str]:
    said: list[str] = []
    for module in ("row_writer", "run_report"):
        monkeypatch.setattr(importlib.import_module(f"lc_callback.callbacks.{module}"), "say", said.append)
    return said


@pytest.mark.parametrize("kinds", [["lc"], ["rank"], ["lc", "robustness"], ["lc", "robustness", "rank"]], ids=str)
def test_one_text_says_how_all_measure(kinds: list[str], tmp_path: Any, monkeypatch: Any) -> None:
    said = console(monkeypatch)
    ours = [tiny(kind, n_probes=100, **({"n_directions": 25} if kind == "lc" else {})) for kind in kinds]
    trainer = make_trainer(tmp_path, *ours, max_steps=5)
    trainer.fit(Classifier(), loader(), loader(points(seed=1)))
    [text] = [text for text in said if "Measured in this run" in text]
    for kind in KINDS:
        [line] = [line for line in text.split("\n") if line.startswith(KINDS[kind].__name__)] or [""]
        assert bool(line) == (kind in kinds)
        assert not line or "n_probes=24" in line  # there are no more
    if "lc" in kinds:
        [line] = [line for line in text.split("\n") if line.startswith("LocalComplexityCallback")]
        assert "n_directions=6" in line
        assert "auto" not in line
        assert ", 6 directions" in text
        assert repr(ours[0]).startswith(line.rstrip())


def test_callbacks_that_begin_later_are_told_later(tmp_path: Any, monkeypatch: Any) -> None:
    said = console(monkeypatch)
    ours = [tiny("lc"), tiny("rank", schedule=[2])]
    make_trainer(tmp_path, *ours, max_steps=3).fit(Classifier(), loader())
    texts = [text for text in said if "Measured in this run" in text]
    assert [("LocalComplexityCallback(" in text, "FeatureRankCallback(" in text) for text in texts] == [
        (True, False),
        (False, True),
    ]


def test_an_evaluation_says_how_it_measures(tmp_path: Any, monkeypatch: Any) -> None:
    said = console(monkeypatch)
    make_trainer(tmp_path, tiny("lc")).validate(Classifier(), loader(), verbose=False)
    assert sum("LocalComplexityCallback(" in text for text in said) == 1


@pytest.mark.parametrize("prefix", ["", "deep/"])
def test_without_a_logger_the_file_is_named_that_is_written(prefix: str, tmp_path: Any) -> None:
    for name in ("history.csv", "history_1.csv", "history_2.csv"):
        with our_warnings() as texts:
            make_trainer(tmp_path, tiny("lc", log_key_prefix=prefix), max_steps=1).fit(Classifier(), loader())
        [text] = [text for text in texts if "no logger" in text]
        path = tmp_path / f"{prefix}lc".replace("/", "_") / name
        assert str(path) in text
        assert path.exists()


@pytest.mark.parametrize("kind", [*KINDS.values(), SPLINES])
@pytest.mark.parametrize("prefix", ["", "deep/"])
def test_two_of_a_kind_need_a_prefix(kind: Any, prefix: str, tmp_path: Any) -> None:
    twins = [kind(log_key_prefix=prefix), kind(log_key_prefix=prefix, every_n_epochs=1)]
    with pytest.raises(MisconfigurationException, match=f"2 callbacks {kind.__name__} .*`log_key_prefix`, such as"):
        make_trainer(tmp_path, *twins)
    make_trainer(tmp_path, twins[0], kind(log_key_prefix="other/"))


def test_two_of_a_kind_from_the_model_need_a_prefix(tmp_path: Any) -> None:
    class Model(Classifier):
        def configure_callbacks(self) -> Any:
            return [tiny("lc"), tiny("lc")]

    with pytest.raises(MisconfigurationException, match="2 callbacks LocalComplexityCallback"):
        make_trainer(tmp_path, max_steps=1).fit(Model(), loader())


def test_kinds_may_share_a_prefix(tmp_path: Any) -> None:
    make_trainer(tmp_path, tiny("lc"), tiny("rank"), tiny("robustness"))
