"""What the feature-rank callback logs, and that its arguments reach the measure."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from helpers import CLASSES, DIM, Classifier, RowLogger, loader, make_trainer, our_warnings, points, tiny
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from lc_callback import FeatureRankCallback
from lc_callback.functional import centroid_alignment, feature_rank, feature_ranks, linear_probe

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("no_timeline")]

N, WIDTH = 24, 16
LAYERS = ["net.1", "net.3"]
RANKS = [f"{key}/{layer}" for layer in LAYERS for key in ("rank", "effective_rank", "stable_rank")]
NORMS = [f"weight_norm/{name}" for name in ("total", "net.0", "net.2", "net.4")]


def small(**arguments: Any) -> FeatureRankCallback:
    return tiny("rank", **{"n_probes": N, "every_n_train_steps": 1, **arguments})


def first_module() -> Classifier:
    torch.manual_seed(0)
    return Classifier()


def fit(folder: Any, *callbacks: Any, module: Any = None, **arguments: Any) -> RowLogger:
    rows = RowLogger()
    trainer = make_trainer(folder, *callbacks, **{"logger": rows, "max_steps": 2, **arguments})
    trainer.fit(module or first_module(), loader(), loader(points(N, seed=1)))
    return rows


def features(layer: str, seed: int = 0) -> torch.Tensor:
    """Of the module at step 0."""
    with torch.no_grad():
        return first_module().net[: int(layer.removeprefix("net.")) + 1](points(N, seed=seed)[:][0])


# Keys


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [*RANKS, "tunnel_length", *NORMS, "alignment/train"]),
        ({"alignment": False}, [*RANKS, "tunnel_length", *NORMS]),
        (
            {"linear_probe": True},
            [*RANKS, "tunnel_length", *NORMS, "alignment/train", *(f"linear_probe/{layer}" for layer in LAYERS)],
        ),
        ({"split": "test", "alignment": False}, [*RANKS, "tunnel_length", *NORMS]),
        (
            {"layers": ["net.3"], "alignment": False},
            ["rank/net.3", "effective_rank/net.3", "stable_rank/net.3", "tunnel_length", *NORMS],
        ),
        ({"submodule": "net", "alignment": False, "layers": ["1"], "n_probes": 4}, None),
    ],
)
def test_keys_are_those_of_the_docstring(arguments: Any, expected: list[str] | None, tmp_path: Any) -> None:
    if expected is None:
        norms = [f"weight_norm/{name}" for name in ("total", "0", "2", "4")]
        expected = ["rank/1", "effective_rank/1", "stable_rank/1", *norms]
    callback = small(**arguments)
    rows = fit(tmp_path, callback)
    ours = [metrics for _, metrics in rows.calls if "rank/seconds" in metrics]
    assert [list(metrics) for metrics in ours] == 3 * [[*expected, "rank/seconds"]]
    assert ours == [{key: value for key, value in row.items() if key != "step"} for row in callback.history]
    layers = [key.removeprefix("rank/") for key in expected if key.startswith("rank/")]
    assert [[*arrays] for arrays in callback.history.arrays.values()] == 3 * [[f"spectrum/{name}" for name in layers]]
    assert (tmp_path / "rank" / "history.csv").exists()


def test_a_prefix_is_before_every_key_and_every_spectrum(tmp_path: Any) -> None:
    callback = small(log_key_prefix="deep/")
    fit(tmp_path, callback)
    assert all(key.startswith("deep/") for key in callback.history.keys)
    assert [*callback.history.arrays[0]] == [f"deep/spectrum/{layer}" for layer in LAYERS]


def test_wide_layers_say_that_they_are_projected(tmp_path: Any) -> None:
    callback = small(max_width=8, layers=["net.1", "net.4"], seed=5, linear_probe=True)
    fit(tmp_path, callback)
    row = callback.history.rows[0]
    ranked = [key for key in row if key.startswith(("rank/net", "linear_probe/"))]
    assert ranked == ["rank/net.1_proj8", "rank/net.4", "linear_probe/net.1_proj8", "linear_probe/net.4"]
    inputs = points(N)[:][0]
    expected = feature_ranks(first_module(), inputs, layers=["net.1", "net.4"], max_width=8, seed=5)
    assert torch.equal(callback.history.arrays[0]["spectrum/net.1_proj8"], expected["net.1_proj8"].spectrum.float())
    assert "| net.1_proj8 | 8 |" in callback.describe()


# Values


OPTIONS = [
    {},
    {"matrix": "features"},
    {"center": False},
    {"tol": 0.05},
    {"tol": 0.05, "relative": False},
    {"precision": "bfloat16"},
    {"precision": "float64"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize(("split", "seed"), [("train", 0), ("test", 1)])
def test_ranks_are_those_of_the_features(options: Any, split: str, seed: int, tmp_path: Any) -> None:
    callback = small(split=split, **options)
    fit(tmp_path, callback, max_steps=1)
    row, arrays = callback.history.rows[0], callback.history.arrays[0]
    if "precision" in options:
        options = {**options, "precision": getattr(torch, options["precision"])}
    for layer in LAYERS:
        expected = feature_rank(features(layer, seed), **options)
        assert row[f"rank/{layer}"] == expected.rank
        assert row[f"effective_rank/{layer}"] == pytest.approx(expected.effective_rank)
        assert row[f"stable_rank/{layer}"] == pytest.approx(expected.stable_rank)
        assert arrays[f"spectrum/{layer}"].dtype == torch.float32
        largest = float(expected.spectrum[0])
        assert arrays[f"spectrum/{layer}"].tolist() == pytest.approx(expected.spectrum.tolist(), abs=1e-5 * largest)


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize(("precision", "n_warnings"), [(None, 0), ("float64", 0), ("bfloat16", 1)])
def test_a_coarse_tolerance_is_warned_of_once_a_run(precision: Any, n_warnings: int, tmp_path: Any) -> None:
    callback = small(precision=precision)
    for _ in range(2):  # a second run of the same callback says it again
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            fit(tmp_path, callback, max_steps=5)
        texts = [str(w.message) for w in seen if "leaves out" in str(w.message)]
        assert len(texts) == n_warnings
        assert all("net.1, net.3" in text and text.startswith("FeatureRankCallback: ") for text in texts)


def test_the_options_do_differ(tmp_path: Any) -> None:
    found = [feature_rank(features("net.1"), matrix=matrix, tol=0.05).rank for matrix in ("covariance", "features")]
    assert found[0] < found[1] < WIDTH


def test_the_tunnel_is_as_long_as_the_layers_of_low_rank(tmp_path: Any) -> None:
    ranks = {layer: feature_rank(features(layer), tol=0.02).rank for layer in LAYERS}
    low, high = sorted(ranks.values())
    assert low < high
    for fraction, expected in (((low + high) / 2 / WIDTH, 1), (low / WIDTH, 0), ((high + 0.5) / WIDTH, 2)):
        callback = small(tol=0.02, tunnel_fraction=fraction)
        fit(tmp_path, callback, max_steps=1)
        assert callback.history["tunnel_length"][0] == expected


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        ({"n_probes": 12}, True),
        ({"n_probes": 13}, False),  # 12 of 16 is 0.75
        ({"n_probes": 12, "center": False}, False),
        ({"n_probes": 12, "tunnel_fraction": 0.5}, False),
    ],
)
def test_no_tunnel_length_where_no_rank_could_reach_the_limit(arguments: Any, left_out: bool, tmp_path: Any) -> None:
    callback = small(**arguments)
    fit(tmp_path, callback)
    assert ("tunnel_length" in callback.history.keys) is not left_out
    text = "No `tunnel_length`: net.1, net.3 cannot reach a rank of 0.75 of the width"
    assert (text in callback.describe()) is left_out
    assert ("Raise `n_probes`" in callback.describe()) is left_out


def test_norms_are_those_of_the_weights(tmp_path: Any) -> None:
    callback = small()
    fit(tmp_path, callback)
    net = first_module().net
    for name in ("0", "2", "4"):
        layer = net.get_submodule(name)
        expected = math.sqrt(sum(p.detach().square().sum().item() for p in layer.parameters()))
        assert callback.history[f"weight_norm/net.{name}"][0] == pytest.approx(expected)
    total = math.sqrt(sum(p.detach().square().sum().item() for p in net.parameters()))
    assert callback.history["weight_norm/total"][0] == pytest.approx(total) != callback.history["weight_norm/total"][1]


# Alignment


def test_alignment_is_that_of_the_train_points(tmp_path: Any) -> None:
    callback = small(split="test")
    fit(tmp_path, callback)
    expected = centroid_alignment(first_module(), points(N)[:][0]).mean
    assert callback.history["alignment/train"][0] == pytest.approx(expected) != 0


class Unguided(Classifier):
    """Its forward lets no gradient through to the inputs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.set_grad_enabled(self.training):
            return super().forward(x)


@pytest.mark.parametrize("asked", [True, False])
def test_no_alignment_where_no_gradient_reaches_the_inputs(asked: bool, tmp_path: Any) -> None:
    callback = small(alignment=asked)
    with our_warnings() as warned:
        fit(tmp_path, callback, module=Unguided())
    assert callback.history.steps == [0, 1, 2]
    assert "alignment/train" not in callback.history.keys
    assert len(warned) == asked
    for text in warned:
        assert "no `alignment/train`" in text
        assert "no gradient flows" in text
        assert "`alignment=False` leaves it out silently" in text


# Linear probes


def test_linear_probes_are_scored_at_the_test_points(tmp_path: Any) -> None:
    callback = small(linear_probe=True)
    fit(tmp_path, callback)
    expected = linear_probe(first_module(), points(N)[:], points(N, seed=1)[:])
    assert {layer: callback.history[f"linear_probe/{layer}"][0] for layer in LAYERS} == expected
    assert all(0 <= value <= 1 for value in expected.values())


def test_linear_probes_need_test_points(tmp_path: Any) -> None:
    module = first_module()
    with pytest.raises(ValueError, match=r"`linear_probe=True` needs test points: pass `test_probes=`"):
        make_trainer(tmp_path, small(linear_probe=True), max_steps=1).fit(module, loader())
    assert module.steps_taken == 0


def tenths(batch: Any) -> Any:
    return batch[1] / 10


def largest(batch: Any) -> Any:
    return batch[0][:, :CLASSES].argmax(1)


def test_linear_probes_need_classes(tmp_path: Any) -> None:
    module = first_module()
    with pytest.raises(ValueError, match=r"FeatureRankCallback: .*torch.float32.*`target_fn=`"):
        fit(tmp_path, small(linear_probe=True, target_fn=tenths), module=module)
    assert module.steps_taken == 0
    fit(tmp_path, small(target_fn=tenths), module=module)  # nobody else does
    assert module.steps_taken == 2


@pytest.mark.parametrize("target_fn", [largest, f"{__name__}.largest"], ids=["function", "path"])
def test_target_fn_gives_the_classes(target_fn: Any, tmp_path: Any) -> None:
    callback = small(linear_probe=True, target_fn=target_fn)
    fit(tmp_path, callback)
    train, test = (points(N, seed=seed)[:] for seed in (0, 1))
    expected = linear_probe(first_module(), (train[0], largest(train)), (test[0], largest(test)))
    assert {layer: callback.history[f"linear_probe/{layer}"][0] for layer in LAYERS} == expected


# Where rows go


@pytest.mark.parametrize("asked", [True, False])
def test_tensorboard_reads_rows_text_and_histograms_back(asked: bool, tmp_path: Any) -> None:
    callback, logger = small(histogram=asked), TensorBoardLogger(tmp_path, "runs")
    fit(tmp_path, callback, logger=logger)
    events = EventAccumulator(logger.log_dir, size_guidance={"histograms": 0})
    events.Reload()
    for key in (*RANKS, *NORMS, "alignment/train", "tunnel_length"):
        written = [(event.step, event.value) for event in events.Scalars(key)]
        assert written == [(row["step"], pytest.approx(row[key])) for row in callback.history]
    (text,) = events.Tensors("rank/setup/text_summary")
    assert f"| net.1 | {WIDTH} | {N} | " in text.tensor_proto.string_val[0].decode()
    tags = [f"spectrum/{layer}" for layer in LAYERS]
    assert events.Tags()["histograms"] == (tags if asked else [])
    for tag in tags if asked else ():
        assert [event.step for event in events.Histograms(tag)] == [0, 1, 2]
        for event in events.Histograms(tag):
            spectrum = callback.history.arrays[event.step][tag]
            positive = spectrum[spectrum > 0]
            drawn = event.histogram_value
            assert drawn.num == len(positive)
            assert (drawn.min, drawn.max) == pytest.approx(((positive[-1] / positive[0]).log10().item(), 0.0))


def test_dead_layers_have_rank_zero(tmp_path: Any) -> None:
    module = first_module()
    nn.init.constant_(module.net[2].bias, -1e6)
    callback = small(histogram=True, linear_probe=True)
    with our_warnings() as warned:
        fit(tmp_path, callback, module=module, logger=TensorBoardLogger(tmp_path, "runs"))
    row = callback.history.rows[0]
    assert (row["rank/net.3"], row["effective_rank/net.3"], row["stable_rank/net.3"]) == (0, 0, 0)
    assert row["rank/net.1"] > 0
    assert warned == []


def test_points_are_rows_and_positions_too(tmp_path: Any) -> None:
    net = nn.Sequential(nn.Unflatten(1, (1, DIM)), nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, CLASSES))
    callback = small()
    fit(tmp_path, callback, module=Classifier(net))
    assert f"| net.2 | 4 | {4 * N} | " in callback.describe()
