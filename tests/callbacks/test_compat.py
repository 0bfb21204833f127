import ast
import copy
import csv
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from all_kinds import KINDS
from helpers import timeless
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassF1Score

import lc_callback
from lc_callback import (
    FeatureRankCallback,
    LocalComplexityCallback,
    NeuralCollapseCallback,
    PGDRobustnessCallback,
    SplinePartitionCallback,
)
from lc_callback.callbacks.settings import arguments_of
from lc_callback.functional import feature_ranks, local_complexity, robust_accuracy, slice_partition

pytestmark = pytest.mark.usefixtures("no_timeline")

PACKAGE = Path(lc_callback.__file__).parent


def data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(24, 4, generator=generator), torch.zeros(24, 1))


class Steps:
    """A network and its training, for the modules of both names of Lightning."""

    def __init__(self, width: int = 8):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return (self(batch[0]) - 1).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val", self(batch[0]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Lit(Steps, lightning.pytorch.LightningModule):
    pass


class OldLit(Steps, pytorch_lightning.LightningModule):
    pass


class Data(lightning.pytorch.LightningDataModule):
    def train_dataloader(self):
        return DataLoader(data(), batch_size=8)

    def val_dataloader(self):
        return DataLoader(data(), batch_size=8)


def two_logits(module, x):
    out = module.net(x)
    return torch.cat([-out, out], 1)


def classes(batch):
    return (batch[0][:, 0] > 0).long()


def fit(folder, *callbacks, pl=lightning.pytorch, module=None, **kwargs):
    settings = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[*callbacks], **settings, **kwargs)
    trainer.fit(module or Lit(), DataLoader(data(), batch_size=8), DataLoader(data(), batch_size=8))
    return trainer


def values(callback):
    return timeless(callback.history)


# LightningCLI

CONFIG = """
seed_everything: 0
model: {{width: 6}}
trainer:
  accelerator: cpu
  max_epochs: 3
  enable_progress_bar: false
  enable_model_summary: false
  default_root_dir: {folder}
  callbacks:
    - class_path: lc_callback.{name}
      init_args: {arguments}
"""


@pytest.fixture
def cli(tmp_path, monkeypatch):
    def run(*command):
        monkeypatch.setattr(sys, "argv", ["train.py", *command])
        trainer = LightningCLI(Lit, Data).trainer
        return next(callback for callback in trainer.callbacks if isinstance(callback, tuple(KINDS.values())))

    return run


@pytest.fixture
def from_file(cli, tmp_path):
    def run(arguments, name="LocalComplexityCallback"):
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.format(folder=tmp_path, arguments=arguments, name=name))
        return cli("fit", "--config", str(config))

    return run


RADII = "{radius: [0.05, 0.5], every_n_epochs: 1, per_layer: true, n_probes: 6}"
LAYERS = "{radius: auto, layers: [net.0, 'torch.nn.Linear'], schedule: [0, 2, 5], n_directions: 3, seed: 4}"


@pytest.mark.parametrize(
    ("arguments", "steps", "keys"),
    [
        ("{}", [0, 1, 2, 3, 4, 5, 6, 8, 9], {"lc/train", "lc/test", "lc/random"}),
        (RADII, [0, 3, 6, 9], {"lc/train_r0.05", "lc_layer/test_r0.5/net.1"}),
        (LAYERS, [0, 2, 5], {"lc/train"}),
        ("{radius: 0.1, every_n_train_steps: 4, log_key_prefix: a_}", [0, 4, 8], {"a_lc/train"}),
    ],
    ids=["defaults", "radii_and_epochs", "layers_and_steps", "prefix"],
)
def test_a_yaml_file_names_every_argument(from_file, arguments, steps, keys):
    callback = from_file(arguments)
    assert callback.history.steps == steps
    assert keys <= set(callback.history.keys)


# Every argument but the points, which a file cannot hold.
SHARED = f"""
  n_probes: 6
  train_probes: null
  test_probes: null
  every_n_train_steps: null
  every_n_epochs: null
  seed: 4
  chunk_size: 5
  submodule: null
  forward_fn: {__name__}.two_logits
  target_fn: {__name__}.classes
  log_key_prefix: y_
  raise_on_error: true
  detection: {{}}
  on_transition: [checkpoint]
  stop_after: null
  certainty: tentative
  custom_scalars: true
  max_overhead: 1000.0
  schedule: [0, 2, 5]
"""
FILES = {
    PGDRobustnessCallback: """
  eps: [0.1, 0.4]
  attack: PGD
  alpha: 0.1
  steps: 3
  bounds: [-5.0, 5.0]
  eps_unit: std
  attack_args: {random_start: false}
  raw: true
  at: net.0
  task: multiclass
  metric: {class_path: torchmetrics.classification.MulticlassF1Score, init_args: {num_classes: 2}}
""",
    NeuralCollapseCallback: """
  layer: net.0
""",
    FeatureRankCallback: """
  layers: [net.0, 'torch.nn.ReLU']
  split: test
  matrix: features
  center: false
  tol: 0.01
  relative: false
  precision: bfloat16
  tunnel_fraction: 0.5
  linear_probe: true
  alignment: false
  histogram: true
  max_width: 4
""",
    SplinePartitionCallback: """
  near: 0.25
  window: 0.9
  at: net.0
  max_regions: 900
""",
}


def in_file(kind):
    shared = [line for line in SHARED.splitlines() if line.strip().split(":")[0] in arguments_of(kind)]
    return [line.strip() for line in [*FILES[kind].splitlines(), *shared] if line]


IN_PYTHON = {
    PGDRobustnessCallback: {
        "eps": [0.1, 0.4],
        "alpha": 0.1,
        "steps": 3,
        "bounds": (-5.0, 5.0),
        "eps_unit": "std",
        "attack_args": {"random_start": False},
        "raw": True,
        "at": "net.0",
        "task": "multiclass",
        "metric": MulticlassF1Score(num_classes=2),
    },
    NeuralCollapseCallback: {"layer": "net.0"},
    FeatureRankCallback: {
        "layers": ["net.0", nn.ReLU],
        "split": "test",
        "matrix": "features",
        "center": False,
        "tol": 0.01,
        "relative": False,
        "precision": "bfloat16",
        "tunnel_fraction": 0.5,
        "linear_probe": True,
        "alignment": False,
        "histogram": True,
        "max_width": 4,
    },
    SplinePartitionCallback: {"near": 0.25, "window": 0.9, "at": "net.0", "max_regions": 900},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_a_yaml_file_names_every_argument_of_the_others(from_file, tmp_path, kind):
    lines = in_file(kind)
    assert {line.split(":")[0] for line in lines} == {*arguments_of(kind)}
    from_yaml = from_file("{" + ", ".join(lines) + "}", kind.__name__)
    shared = {"n_probes": 6, "seed": 4, "chunk_size": 5, "log_key_prefix": "y_", "schedule": [0, 2, 5]}
    from_script = kind(**IN_PYTHON[kind], **shared, forward_fn=two_logits, target_fn=classes)
    fit(tmp_path / "script", from_script, module=Lit(6))
    assert from_yaml.history.steps == [0, 2, 5]
    assert values(from_yaml)[0] == values(from_script)[0]
    assert [*from_yaml.history.arrays.get(0, ())] == [*from_script.history.arrays.get(0, ())]
    assert from_yaml.raise_on_error is True


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        (PGDRobustnessCallback, ["y_clean_acc/test", "y_robust_acc/test_eps0.4", "y_robust_acc_raw/test_eps0.1"]),
        (FeatureRankCallback, ["y_rank/net.0_proj4", "y_linear_probe/net.1_proj4", "y_weight_norm/total"]),
        (NeuralCollapseCallback, ["y_nc/nc1_train", "y_nc/nc4_test"]),
        (SplinePartitionCallback, ["y_partition/n_regions", "y_partition/n_regions_near_probes"]),
    ],
)
def test_keys_of_a_yaml_file(from_file, kind, keys):
    callback = from_file("{" + ", ".join(in_file(kind)) + "}", kind.__name__)
    assert [key for key in keys if key not in callback.history.keys] == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("PGDRobustnessCallback", "{eps: -1.0}", "`eps` must be a number >= 0"),
        ("FeatureRankCallback", "{matrix: gram}", "`matrix` must be one of"),
        ("SplinePartitionCallback", "{near: 2.0}", "`near` must be above 0"),
    ],
)
def test_a_wrong_value_for_the_others_is_named(from_file, name, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_file(arguments, name)


def test_a_yaml_file_gives_what_a_script_gives(from_file, tmp_path):
    callback = from_file(RADII)
    from_script = LocalComplexityCallback([0.05, 0.5], every_n_epochs=1, per_layer=True, n_probes=6)
    fit(tmp_path, from_script, module=Lit(6))
    assert values(callback)[0] == values(from_script)[0]


def test_layers_from_a_yaml_file_are_those_counted(from_file):
    assert from_file(LAYERS)._latest["train"].layer_names == ["net.0", "net.2"]


def test_the_saved_config_of_a_run_can_be_run_again(from_file, cli, tmp_path):
    callback = from_file(LAYERS)
    (saved,) = (tmp_path / "lightning_logs").glob("*/config.yaml")
    assert values(cli("fit", "--config", str(saved))) == values(callback)


def test_a_wrong_value_in_a_yaml_file_is_named(from_file):
    with pytest.raises(ValueError, match="`radius` must be a positive number"):
        from_file("{radius: -1.0}")


def test_help_lists_every_argument_with_its_text(cli, capsys):
    with pytest.raises(SystemExit) as stop:
        cli("fit", "--trainer.callbacks.help=lc_callback.LocalComplexityCallback")
    assert stop.value.code in (0, None)
    text = capsys.readouterr().out
    for name in ("radius", "n_directions", "schedule", "every_n_epochs", "train_probes", "forward_fn"):
        assert f".{name}" in text
    assert "directions of the frame" in text


# Pickle


def test_pickle_before_and_after_a_run(tmp_path):
    callback = LocalComplexityCallback([0.05, 0.5], n_directions=3, n_probes=6, schedule=[0, 3], per_layer=True)
    copied = pickle.loads(pickle.dumps(callback))
    fit(tmp_path / "a", callback)
    fit(tmp_path / "b", copied)
    assert values(copied) == values(callback) != []
    after = pickle.loads(pickle.dumps(callback))
    assert repr(after) == repr(callback)
    assert after.history.rows == callback.history.rows
    assert str(after.state_dict()) == str(callback.state_dict())


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda callback: pickle.loads(pickle.dumps(callback))])
@pytest.mark.parametrize("kind", FILES, ids=lambda kind: kind.__name__)
def test_copies_of_the_others_before_and_after_a_run(tmp_path, kind, duplicate):
    shared = {"n_probes": 6, "schedule": [0, 3], "forward_fn": two_logits, "target_fn": classes}
    callback = kind(**IN_PYTHON[kind], **shared)
    copied = duplicate(callback)
    fit(tmp_path / "a", callback)
    fit(tmp_path / "b", copied)
    assert values(copied) == values(callback) != []
    after = duplicate(callback)
    assert repr(after) == repr(callback)
    assert after.history.rows == callback.history.rows
    assert str(after.state_dict()) == str(callback.state_dict())
    assert after.state_dict() is not callback.state_dict()


# Both names of Lightning


@pytest.mark.parametrize(
    ("pl", "module"), [(lightning.pytorch, Lit), (pytorch_lightning, OldLit)], ids=["lightning", "pytorch_lightning"]
)
def test_both_names_of_lightning(tmp_path, pl, module):
    callback = LocalComplexityCallback(0.3, n_directions=3, n_probes=24, schedule=[0, 6])
    trainer = fit(tmp_path, callback, pl=pl, module=module())
    assert callback.history.steps == [0, 6]
    expected = local_complexity(module().net, data().tensors[0], radius=0.3, n_directions=3).mean
    assert callback.history["lc/train"][0] == pytest.approx(expected) != 0
    assert trainer.callback_metrics["lc/train"].item() == pytest.approx(callback.history["lc/train"][-1])
    assert trainer.checkpoint_callback.best_model_path  # and its state went into a checkpoint
    again = LocalComplexityCallback(0.3, n_directions=3, n_probes=24, schedule=[0, 6])
    states = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["callbacks"]
    again.load_state_dict(states[callback.state_key])
    assert again.history.rows == callback.history.rows


@pytest.mark.parametrize(
    ("pl", "module"), [(lightning.pytorch, Lit), (pytorch_lightning, OldLit)], ids=["lightning", "pytorch_lightning"]
)
def test_both_names_of_lightning_take_the_others(tmp_path, pl, module):
    arguments = {"n_probes": 24, "schedule": [0, 6]}
    robustness = PGDRobustnessCallback(0.4, steps=3, forward_fn=two_logits, target_fn=classes, **arguments)
    rank, slices = FeatureRankCallback(**arguments), SplinePartitionCallback(**arguments)
    trainer = fit(tmp_path, robustness, rank, slices, pl=pl, module=module())
    x = data().tensors[0]
    result = robust_accuracy(module(), x, classes((x,)), eps=0.4, steps=3, forward_fn=two_logits)
    assert robustness.history["clean_acc/train"][0] == pytest.approx(result.clean_acc)
    assert robustness.history["robust_acc/test_eps0.4"][0] == pytest.approx(result.robust_acc[0.4])
    assert rank.history["rank/net.1"][0] == feature_ranks(module(), x)["net.1"].rank
    assert slices.history["partition/n_regions"][0] == slice_partition(module(), slices._three).n_regions > 3
    states = torch.load(trainer.checkpoint_callback.best_model_path, weights_only=True)["callbacks"]
    for callback in (robustness, rank, slices):
        again = type(callback)()
        assert callback.history.steps == [0, 6]
        again.load_state_dict(states[callback.state_key])
        assert again.history.rows == callback.history.rows
        assert str(again.history.arrays) == str(callback.history.arrays)
        key = callback.history.keys[0]
        assert trainer.callback_metrics[key].item() == pytest.approx(callback.history[key][-1])


# Floors


@pytest.mark.slow
def test_the_measures_need_no_lightning():
    code = (
        "import sys, lc_callback, lc_callback.functional as f, torch\n"
        "assert f.local_complexity(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()), torch.ones(1, 2),"
        " n_directions=2).layer_sizes == [3]\n"
        "print(sorted(m for m in sys.modules if 'lightning' in m or m == 'torchmetrics'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


# Several processes

DDP = """
import sys

sys.path[:0] = {tests!r}
from test_compat import all_four, fit, values

callbacks = all_four()
trainer = fit({folder!r}, *callbacks, strategy="ddp", devices=2, num_nodes=1)
for callback in callbacks:
    print(f"rows {{trainer.global_rank}} {{callback.group}} {{values(callback)}}", flush=True)
"""


def all_four():
    arguments = {"n_probes": 9, "schedule": [0, 4]}
    return [
        LocalComplexityCallback(0.3, n_directions=3, per_layer=True, **arguments),
        PGDRobustnessCallback(0.4, steps=2, forward_fn=two_logits, target_fn=classes, **arguments),
        FeatureRankCallback(**arguments),
        SplinePartitionCallback(**arguments),
    ]


@pytest.mark.slow
def test_two_processes_measure_what_one_does_and_write_once(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(DDP.format(tests=[str(p) for p in Path(__file__).parents[:2]], folder=str(tmp_path / "two")))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=1800
    )
    assert done.returncode == 0, done.stderr
    rows = {}
    for line in done.stdout.splitlines():
        if line.startswith("rows "):
            rank, group, text = line.removeprefix("rows ").split(" ", 2)
            rows[rank, group] = ast.literal_eval(text)
    alone = all_four()
    fit(tmp_path / "one", *alone)
    for callback in alone:
        group = callback.group
        assert rows["0", group] == rows["1", group]
        assert [row["step"] for row in rows["0", group]] == [0, 4]
        near = dict if group == "lc" else partial(pytest.approx, rel=1e-9)  # sums of parts are rounded elsewhere
        assert rows["0", group][0] == near(values(callback)[0])
        (file,) = (tmp_path / "two").rglob(f"{group}/history*.csv")
        with file.open() as lines:
            written = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(lines)]
        assert timeless(written) == rows["0", group]
