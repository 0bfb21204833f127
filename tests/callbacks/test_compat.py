import ast
import csv
import pickle
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lc_callback
from lc_callback import LocalComplexityCallback
from lc_callback.functional import local_complexity

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


def fit(folder, callback, *, pl=lightning.pytorch, module=None, **kwargs):
    settings = {"max_epochs": 2, "accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False}
    trainer = pl.Trainer(default_root_dir=folder, callbacks=[callback], **settings, **kwargs)
    trainer.fit(module or Lit(), DataLoader(data(), batch_size=8), DataLoader(data(), batch_size=8))
    return trainer


def values(callback):
    """Rows without what the clock said."""
    return [{key: value for key, value in row.items() if key != "lc/seconds"} for row in callback.history]


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
    - class_path: lc_callback.LocalComplexityCallback
      init_args: {arguments}
"""


@pytest.fixture
def cli(tmp_path, monkeypatch):
    def run(*command):
        monkeypatch.setattr(sys, "argv", ["train.py", *command])
        trainer = LightningCLI(Lit, Data).trainer
        return next(callback for callback in trainer.callbacks if isinstance(callback, LocalComplexityCallback))

    return run


@pytest.fixture
def from_file(cli, tmp_path):
    def run(arguments):
        config = tmp_path / "config.yaml"
        config.write_text(CONFIG.format(folder=tmp_path, arguments=arguments))
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


# Floors


def test_the_measures_need_no_lightning():
    code = (
        "import sys, lc_callback, lc_callback.functional as f, torch\n"
        "assert f.local_complexity(torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU()), torch.ones(1, 2),"
        " n_directions=2).layer_sizes == [3]\n"
        "print(sorted(m for m in sys.modules if 'lightning' in m or m == 'torchmetrics'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=PACKAGE.parent)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def imported(path):
    """Modules that a file imports, wherever in it; relative imports resolved."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = [*package[: len(package) - node.level + 1]] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def test_arrows_only_run_downward():
    ground = ("lc_callback.functional", "lc_callback.isolation")
    files = [*sorted((PACKAGE / "functional").glob("**/*.py")), PACKAGE / "isolation.py"]
    assert len(files) > 5
    names = {(path.name, name) for path in files for name in imported(path)}
    assert ("local_complexity.py", "lc_callback.isolation.untouched") in names
    for path, name in names:
        assert not name.startswith("lc_callback") or name.startswith(ground), f"{path} imports {name}"
        assert "lightning" not in name, f"{path} imports {name}"


# Several processes

DDP = """
import sys

sys.path.insert(0, {tests!r})
from test_compat import Lit, LocalComplexityCallback, fit, values

callback = LocalComplexityCallback(0.3, n_directions=3, n_probes=9, schedule=[0, 4], per_layer=True)
trainer = fit({folder!r}, callback, strategy="ddp", devices=2, num_nodes=1)
print(f"rows {{trainer.global_rank}} {{values(callback)}}", flush=True)
"""


def test_two_processes_measure_what_one_does_and_write_once(tmp_path):
    script = tmp_path / "ddp.py"
    script.write_text(DDP.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "two")))
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=PACKAGE.parent, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = {}
    for line in done.stdout.splitlines():
        if line.startswith("rows "):
            rank, text = line.removeprefix("rows ").split(" ", 1)
            rows[rank] = ast.literal_eval(text)
    alone = LocalComplexityCallback(0.3, n_directions=3, n_probes=9, schedule=[0, 4], per_layer=True)
    fit(tmp_path / "one", alone)
    assert rows["0"] == rows["1"]
    assert [row["step"] for row in rows["0"]] == [0, 4]
    assert rows["0"][0] == values(alone)[0]

    (file,) = (tmp_path / "two").rglob("history*.csv")
    with file.open() as lines:
        written = [{k: float(v) for k, v in row.items() if k != "lc/seconds"} for row in csv.DictReader(lines)]
    assert written == rows["0"]
