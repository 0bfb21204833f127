"""The experiments under ``examples/``: every YAML file trains, and what reads data reads it right."""

import ast
import gzip
import pickle
import re
import struct
import subprocess
import sys
from pathlib import Path

import data
import digits_grokking
import models
import no_arguments
import numpy as np
import pytest
import torch
import without_lightning
from lightning.pytorch import Trainer, seed_everything
from PIL import Image
from torch import nn
from train import Classifier, main

from lc_callback.functional import local_complexity

EXAMPLES = Path(data.__file__).parent
YAMLS = sorted(EXAMPLES.glob("*.yaml"))

# Data of the formats of MNIST, CIFAR-10 and Imagenette


def idx(values):
    return struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape) + values.tobytes()


def mnist_arrays(n, seed):
    rng = np.random.default_rng(seed)
    images, labels = rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n, dtype=np.uint8) % 10
    images[0], images[1] = 0, 255  # all of the range
    return images, labels


def write_mnist(root, name="MNIST", first=0):
    folder = root / name / "raw"
    folder.mkdir(parents=True)
    for split, n, seed in (("train", 1000, first), ("t10k", 30, first + 1)):
        images, labels = mnist_arrays(n, seed)
        (folder / f"{split}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))


def cifar_arrays(seed):
    return np.random.default_rng(seed).integers(0, 256, (8, 3, 32, 32), np.uint8), [(seed + i) % 10 for i in range(8)]


def write_cifar(root):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    for seed, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        images, labels = cifar_arrays(seed)
        batch = {b"batch_label": name.encode(), b"labels": labels, b"data": images.reshape(8, -1)}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def write_imagenette(root):
    for split, n in (("train", 3), ("val", 2)):
        for label in range(10):
            folder = root / "imagenette2-160" / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for i in range(n):
                # Of one colour for each class, with red ends that the cut in the middle leaves out; one is grey.
                image = Image.new("RGB", (80, 40), (255, 0, 0))
                image.paste((20 * label, 100, 200), (18, 0, 62, 40))
                image.convert("L" if i == 1 else "RGB").save(folder / f"{i}.JPEG", quality=95)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_mnist(folder)
    write_mnist(folder, "FashionMNIST", first=2)
    write_cifar(folder)
    write_imagenette(folder)
    return folder


# Every file

SMALL = ("--lc.n_probes=3", "--robustness.n_probes=3", "--robustness.steps=2", "--rank.n_probes=12")


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """What the command line does with the file of that name; logs go to ``tmp_path``."""

    def run(name, *arguments, steps=3):
        config, log = EXAMPLES / f"{name}.yaml", f"--trainer.logger.init_args.save_dir={tmp_path}"
        fixed = (f"--config={config}", "--trainer.accelerator=cpu", f"--trainer.max_steps={steps}", log)
        monkeypatch.setattr(sys, "argv", ["train.py", "fit", *fixed, *arguments])
        return main()

    return run


def smaller(path, root):
    """Arguments that make a file's run a matter of a second, where it is not."""
    text = path.read_text()
    arguments = [*SMALL]
    if "root: data" in text:
        arguments += [f"--data.root={root}", "--data.batch_size=4", "--trainer.enable_checkpointing=false"]
    if "Imagenette" in text:
        arguments += ["--data.size=32", "--model.network.width=8", "--robustness.eps=[0.1]"]
    if "AutoAttack" in text:
        arguments += ["--trainer.callbacks.init_args.n_probes=2", "--trainer.callbacks.init_args.schedule=[0,3]"]
    return arguments


@pytest.mark.slow
@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_file_trains_three_steps(path, root, fit, tmp_path):
    cli = fit(path.stem, *smaller(path, root))
    assert cli.trainer.global_step == 3
    (log,) = (tmp_path / path.stem).iterdir()
    assert (log / "config.yaml").exists()
    lc, robustness, rank = (
        next(callback for callback in cli.trainer.callbacks if callback.group == group)
        for group in ("lc", "robust_acc", "rank")
    )
    for callback in (lc, robustness, rank):
        assert (log / callback.group / "history.csv").exists()
        assert callback.history.steps[-1] == 3
    for callback in (lc, rank):
        assert callback.history.steps == [0, 1, 2, 3]
        changes = [len({*callback.history[key]}) > 1 for key in callback.history.keys if "seconds" not in key]
        assert any(changes), f"{callback.group}: no number moves while the network trains"
    assert 0 <= cli.trainer.callback_metrics["test_acc"] <= 1
    assert torch.isfinite(cli.trainer.callback_metrics["train_loss"])
    for found in (lc, robustness, rank):
        assert all(np.isfinite(found.history[key]).all() for key in found.history.keys)


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_file_names_its_figure_and_stands_in_the_table(path):
    comment = "".join(line for line in path.read_text().splitlines() if line.startswith("#"))
    assert re.search(r"[Ff]igure|[Tt]able", comment)
    assert f"`{path.name}`" in (EXAMPLES / "README.md").read_text()
    assert f"name: {path.stem}}}" in path.read_text()  # of the folder of its logs


@pytest.mark.slow
def test_the_digits_are_those_of_the_demo(fit):
    cli = fit("digits_mlp", *SMALL, "--seed_everything=3", "--model.network.init_scale=2", steps=5)
    seed_everything(3)
    module = digits_grokking.DigitsMLP(2.0)
    train, _ = digits_grokking.digits()
    plain = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(max_steps=5, **plain).fit(module, digits_grokking.batches(train, 200, 5))
    ours, theirs = list(cli.model.parameters()), list(module.parameters())
    assert len(ours) == len(theirs) == 8
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.slow
def test_a_command_changes_the_optimizer_the_loss_and_a_callback(fit):
    optimizer = ("--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.5", "--model.optimizer.momentum=0.9")
    cli = fit("digits_mlp", *SMALL, *optimizer, "--model.loss=cross_entropy", "--lc.radius=0.5")
    (sgd,) = cli.trainer.optimizers
    assert isinstance(sgd, torch.optim.SGD)
    assert (sgd.defaults["lr"], sgd.defaults["momentum"]) == (0.5, 0.9)
    assert cli.model.loss == "cross_entropy"
    assert next(callback for callback in cli.trainer.callbacks if callback.group == "lc").radius == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("shown", [True, False])
def test_the_progress_bar_is_slow_or_away(shown, fit):
    cli = fit("digits_mlp", *SMALL, f"--trainer.enable_progress_bar={str(shown).lower()}")
    bar = cli.trainer.progress_bar_callback
    assert bar.refresh_rate == 500 if shown else bar is None


@pytest.mark.slow
def test_the_penalty_is_part_of_the_loss_and_logged(fit):
    with_, without = (
        fit("digits_region_penalty", *SMALL, f"--model.penalty.init_args.weight={weight}") for weight in (1.0, 0.0)
    )
    assert with_.trainer.callback_metrics["region_penalty"] > 0.1
    assert without.trainer.callback_metrics["region_penalty"] == 0
    assert with_.trainer.callback_metrics["train_loss"] == without.trainer.callback_metrics["train_loss"]  # the first
    assert with_.trainer.callback_metrics["lc/train"] != without.trainer.callback_metrics["lc/train"]


@pytest.mark.slow
def test_the_saved_config_runs_it_again(fit, monkeypatch):
    first = fit("digits_mlp", *SMALL, "--seed_everything=3")
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", f"--config={Path(first.trainer.log_dir, 'config.yaml')}"])
    again = main()
    assert again.trainer.log_dir != first.trainer.log_dir
    pairs = zip(first.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert again.trainer.callback_metrics["lc/train"] == first.trainer.callback_metrics["lc/train"]


# Missing data


@pytest.mark.slow
def test_without_the_data_one_line_says_where_it_goes(tmp_path):
    command = [sys.executable, EXAMPLES / "train.py", "fit", f"--config={EXAMPLES / 'mnist_mlp.yaml'}"]
    environment = {"PYTHONPATH": str(EXAMPLES.parent), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=1800, env=environment)
    assert done.returncode == 1
    lines = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("Seed set to")]
    (line,) = lines
    assert line.startswith("error: `root` 'data' holds no MNIST: put train-images-idx3-ubyte")
    assert f"into {Path('data', 'MNIST', 'raw')}" in line
    assert "pip install torchvision" in line
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("kind", "write", "removed"),
    [
        (data.MNIST, write_mnist, "MNIST/raw/t10k-labels-idx1-ubyte.gz"),
        (
            data.FashionMNIST,
            lambda root: write_mnist(root, "FashionMNIST"),
            "FashionMNIST/raw/t10k-labels-idx1-ubyte.gz",
        ),
        (data.CIFAR10, write_cifar, "cifar-10-batches-py/test_batch"),
        (data.Imagenette, write_imagenette, "imagenette2-160/val"),
    ],
)
def test_one_missing_file_is_missed(kind, write, removed, tmp_path):
    write(tmp_path)
    kind(root=str(tmp_path)).prepare_data()
    (tmp_path / removed).rename(tmp_path / "elsewhere")
    with pytest.raises(data.MissingDataError, match=kind.__name__) as error:
        kind(root=str(tmp_path)).prepare_data()
    assert str(tmp_path / Path(removed).parts[0]) in str(error.value)
    assert Path(removed).name.removesuffix(".gz") in str(error.value)
    assert "\n" not in str(error.value)


# What the data modules give


def loaded(module):
    module.setup("fit")
    return module.train, module.test


@pytest.mark.parametrize(("kind", "seed"), [(data.MNIST, 0), (data.FashionMNIST, 2)])
def test_mnist_is_read_as_it_was_written(kind, seed, root):
    train, test = loaded(kind(str(root)))
    for dataset, (images, labels) in ((train, mnist_arrays(1000, seed)), (test, mnist_arrays(30, seed + 1))):
        x, y = dataset.tensors
        assert x.shape == (len(images), 1, 28, 28)
        assert x.dtype == torch.float32
        order = np.lexsort(images.reshape(len(images), -1).T), torch.tensor(np.lexsort(x.flatten(1).numpy().T))
        assert np.array_equal((x[order[1], 0] * 255).round().numpy(), images[order[0]])
        assert np.array_equal(y[order[1]].numpy(), labels[order[0]])
    assert torch.equal(test.tensors[1], torch.arange(30) % 10)  # in their order, for nothing is drawn from it


def test_mnist_subsets_are_nested_and_drawn_by_seed(root):
    few, many = (loaded(data.MNIST(str(root), n_train=n))[0] for n in (20, 50))
    other = loaded(data.MNIST(str(root), n_train=20, seed=1))[0]
    assert torch.equal(few.tensors[0], many.tensors[0][:20])
    assert not torch.equal(few.tensors[0], other.tensors[0])
    with pytest.raises(ValueError, match=r"`n_train` must be from 1 to 1000.*got 1001"):
        loaded(data.MNIST(str(root), n_train=1001))


@pytest.mark.parametrize("pool", [2, 4, 5, 28])
def test_mnist_is_pooled_by_means(pool, root):
    (whole, labels), (x, y) = (loaded(data.MNIST(str(root), pool=n))[0].tensors for n in (1, pool))
    n = 28 // pool
    blocks = whole[:, :, : n * pool, : n * pool].unflatten(3, (n, pool)).unflatten(2, (n, pool))
    torch.testing.assert_close(x, blocks.mean((3, 5)))
    assert torch.equal(y, labels)


@pytest.mark.parametrize("pool", [0, 29])
def test_pools_larger_than_an_image_are_refused(pool):
    with pytest.raises(ValueError, match=f"`pool` must be from 1 to 28.*got {pool}"):
        data.MNIST(pool=pool)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>", "not a file of the MNIST format"), (idx(np.zeros((2, 3), np.uint8))[:-1], "6 values, but holds 5")],
    ids=["a web page", "cut off"],
)
def test_a_broken_download_is_named(content, message, tmp_path):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        data.read_idx(path)
    assert str(path) in str(error.value)


def test_cifar_is_read_as_it_was_written(root):
    train, test = loaded(data.CIFAR10(str(root)))
    assert (len(train), len(test)) == (40, 8)
    images, labels = cifar_arrays(2)  # of the third file
    x, y = train[list(range(16, 24))]
    assert y.tolist() == labels
    mean, std = (np.array(v).reshape(3, 1, 1) for v in ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))
    assert np.allclose(x.numpy(), (images / 255 - mean) / std, atol=1e-5)
    assert torch.equal(train[16][0], x[0])  # one sample is as one of several
    assert torch.tensor(labels[:3]).equal(torch.stack([train[i][1] for i in (16, 17, 18)]))


def test_imagenette_is_cut_out_of_the_middle_and_labelled_by_folder(root):
    train, test = loaded(data.Imagenette(str(root), size=20))
    assert (len(train), len(test)) == (30, 20)
    x, y = train.tensors
    assert x.shape == (30, 3, 20, 20)
    assert y.tolist() == [label for label in range(10) for _ in range(3)]
    for label in range(10):
        colour = torch.tensor([20 * label, 100, 200])
        assert (x[3 * label].float().mean((1, 2)) - colour).abs().max() < 5
        assert x[3 * label + 1].float().std(0).max() < 3  # grey
    standardised = (x[0] / 255 - torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).reshape(3, 1, 1)
    assert torch.allclose(train[0][0], standardised)


def test_sizes_of_the_digits_are_nested_and_share_their_test():
    small, test = loaded(data.Digits(100))
    large, same = loaded(data.Digits(1097))
    assert torch.equal(small.tensors[0], large.tensors[0][:100])
    assert torch.equal(test.tensors[0], same.tensors[0])
    everything = torch.cat([large.tensors[0], same.tensors[0]]).flatten(1)
    assert len(everything) == 1797
    assert len(everything.unique(dim=0)) == 1797  # no test image is trained on
    for n in (0, 1098):
        with pytest.raises(ValueError, match=f"`n_train` must be from 1 to 1097.*got {n}"):
            data.Digits(n)


@pytest.mark.parametrize("kind", ["digits", "mnist"])
def test_random_labels_are_random_and_only_for_training(kind, root):
    def both(**arguments):
        return loaded(data.Digits(800, **arguments) if kind == "digits" else data.MNIST(str(root), 800, **arguments))

    (train, test), (true_train, true_test) = both(random_labels=True), both()
    assert torch.equal(train.tensors[0], true_train.tensors[0])
    assert torch.equal(test.tensors[1], true_test.tensors[1])
    agree = (train.tensors[1] == true_train.tensors[1]).float().mean()
    assert 0.05 < agree < 0.15  # one in ten by chance
    assert torch.equal(train.tensors[1], both(random_labels=True)[0].tensors[1])
    assert not torch.equal(train.tensors[1], both(random_labels=True, seed=1)[0].tensors[1])


def test_sums_are_right_and_each_pair_is_in_one_split():
    train, test = loaded(data.ModularAddition(7, 0.4))
    tokens, sums = (torch.cat(parts) for parts in zip(train.tensors, test.tensors, strict=True))
    assert len(train) == 20
    assert torch.equal((tokens[:, 0] + tokens[:, 1]) % 7, sums)
    assert (tokens[:, 2] == 7).all()
    assert len(tokens.unique(dim=0)) == 49
    assert not torch.equal(loaded(data.ModularAddition(7, 0.4, seed=1))[0].tensors[0], train.tensors[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: data.Digits(batch_size=0), "`batch_size` must be at least 1, but got 0"),
        (lambda: data.ModularAddition(1), "`modulus` must be at least 2, but got 1"),
        (lambda: data.ModularAddition(train_fraction=1.0), "`train_fraction` must be between 0 and 1, but got 1.0"),
        (lambda: data.Imagenette(size=0), "`size` must be at least 1, but got 0"),
    ],
)
def test_a_wrong_argument_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_runs_are_counted_in_steps(fit):
    with pytest.raises(ValueError, match=r"`trainer\.max_steps` must be at least 1, but got -1"):
        fit("digits_mlp", "--trainer.max_epochs=2", steps=-1)


@pytest.mark.slow
def test_a_run_has_as_many_batches_as_steps(fit):
    cli = fit("digits_mlp", *SMALL, "--data.batch_size=7", steps=4)
    batches = [*cli.datamodule.train_dataloader()]
    assert [len(x) for x, _ in batches] == [7] * 4


# Networks


def linear_layers(network):
    return [layer for layer in network.modules() if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("depth", [1, 2, 6])
def test_depth_counts_the_linear_layers(depth):
    network = models.MLP(inputs=6, width=5, depth=depth, outputs=3)
    layers = linear_layers(network)
    assert [layer.in_features for layer in layers] == [6, *[5] * (depth - 1)]
    assert layers[-1].out_features == 3
    assert sum(isinstance(layer, nn.ReLU) for layer in network) == depth - 1


def test_init_scale_is_a_factor_on_all_parameters():
    def drawn(**arguments):
        torch.manual_seed(0)
        return list(models.MLP(width=5, batch_norm=True, **arguments).parameters())

    assert all(torch.equal(a, 6 * b) for a, b in zip(drawn(init_scale=6), drawn(), strict=True))


@pytest.mark.parametrize(("init", "variance"), [("xavier", 2 / 600), ("kaiming", 2 / 300), ("orthogonal", 1 / 300)])
def test_init_schemes(init, variance):
    torch.manual_seed(0)
    hidden = linear_layers(models.MLP(width=300, init=init))[1]
    assert hidden.weight.var().item() == pytest.approx(variance, rel=0.03)
    assert not hidden.bias.any()
    if init == "orthogonal":
        assert torch.allclose(hidden.weight @ hidden.weight.T, torch.eye(300), atol=1e-4)


@pytest.mark.parametrize(
    ("network", "shape", "n_layers"),
    [
        (lambda norm: models.MLP(batch_norm=norm), (1, 8, 8), 3),
        (lambda norm: models.SmallCNN(4, batch_norm=norm), (1, 8, 8), 6),
        (lambda norm: models.PreActResNet18(1, width=2, batch_norm=norm), (1, 8, 8), 16),
        (lambda norm: models.ResNet18(2, batch_norm=norm), (3, 32, 32), 17),
    ],
    ids=["MLP", "SmallCNN", "PreActResNet18", "ResNet18"],
)
def test_layers_with_and_without_batch_norm(network, shape, n_layers):
    for norm in (False, True):
        torch.manual_seed(0)
        module = network(norm).eval()
        norms = [m for m in module.modules() if isinstance(m, (nn.BatchNorm1d, nn.BatchNorm2d))]
        assert bool(norms) == norm
        x = torch.rand(2, *shape)
        assert module(x).shape == (2, 10)
        assert len(local_complexity(module, x, radius=0.1, n_directions=2).layer_names) == n_layers


def test_the_transformer_reads_all_three_positions():
    torch.manual_seed(0)
    network = models.ModularTransformer(5, width=8, heads=2)
    tokens = torch.tensor([[1, 2, 5], [3, 2, 5], [1, 4, 5], [2, 1, 5]])
    logits = network(tokens)
    assert logits.shape == (4, 5)
    assert (logits[1:] - logits[0]).abs().amax(1).min() > 1e-4  # also where only the order differs
    lc = local_complexity(network, tokens, radius=0.05, n_directions=4)
    assert lc.layer_sizes == [32]


def test_the_transformer_attends_as_written_out():
    torch.manual_seed(0)
    network = models.ModularTransformer(5, width=8, heads=2)
    tokens = torch.tensor([[1, 2, 5], [3, 0, 5]])
    for row, logits in zip(tokens, network(tokens), strict=True):
        x = network.embedding.weight[row] + network.position
        heads = []
        for h in (slice(0, 4), slice(4, 8)):
            q, k, v = (x @ layer.weight.T[:, h] for layer in (network.query, network.key, network.value))
            heads.append(torch.softmax(q[-1] @ k.T / 2, 0) @ v)
        last = x[-1] + network.out(torch.cat(heads))
        assert torch.allclose(network.head(last + network.mlp(last)), logits, atol=1e-5)


@pytest.mark.parametrize("loss", ["mse", "cross_entropy"])
def test_losses(loss):
    logits, y = torch.tensor([[2.0, 0.0, 1.0], [0.0, 3.0, 0.0]]), torch.tensor([0, 2])
    module = Classifier(nn.Identity(), loss=loss)
    module.log = lambda *args, **kwargs: None
    expected = {
        "mse": (1 + 0 + 1 + 0 + 9 + 1) / 6,
        "cross_entropy": -(torch.log_softmax(logits, 1)[0, 0] + torch.log_softmax(logits, 1)[1, 2]) / 2,
    }
    assert module.training_step((logits, y), 0).item() == pytest.approx(float(expected[loss]))


@pytest.mark.slow
def test_the_demo_ends_with_its_picture_what_it_shows_and_where_to_look(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["digits_grokking.py", "--steps", "8", "--output", str(tmp_path)])
    digits_grokking.main()
    picture, sentence, command = capsys.readouterr().out.splitlines()[-3:]
    assert Path(picture.removeprefix("The picture: ")).is_file()
    assert sentence.startswith("It shows: ")
    assert "Local complexity at the train points" in sentence
    assert command == f"All curves, in the tab Dynamics of TensorBoard: tensorboard --logdir {tmp_path}"


@pytest.mark.slow
@pytest.mark.parametrize("run", ["digits", "sums", "cnn"])
def test_runs_without_arguments_draw_a_timeline(run, tmp_path, monkeypatch):
    images = torch.utils.data.TensorDataset(torch.rand(40, 1, 28, 28), torch.arange(40) % 10)
    monkeypatch.setitem(no_arguments.RUNS, "cnn", (no_arguments.MnistCNN, lambda root: (images, images), 8, 1))
    monkeypatch.setattr("sys.argv", ["no_arguments.py", run, "--steps", "1", "--output", str(tmp_path)])
    no_arguments.main()
    folder = tmp_path / f"{run}_seed0" / "version_0"
    assert {"timeline.png", "lc", "robust_acc", "rank"} <= {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("loop", ["plain", "fabric"])
def test_metrics_without_lightning(loop, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["without_lightning.py", loop, "--steps", "3"])
    without_lightning.main()
    rows = [ast.literal_eval(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert {"lc", "clean_acc", "robust_acc_eps0.1", "rank/3", "nc1", "nc4"} <= {*rows[0]}
    assert len({row["lc"] for row in rows}) > 1
    assert all(np.isfinite([*row.values()]).all() for row in rows)
