"""`on_before_batch_transfer` and `on_after_batch_transfer` with a memory: the training is what it would be."""

import numpy as np
import pytest
import torch
from helpers import DIM, KINDS, Classifier, loader, make_trainer, points, tiny
from lightning.pytorch import LightningDataModule
from torch import nn

from lc_callback.engine.network.signature import Signature
from lc_callback.run.probes import draw_probes


class Kept:
    """What a hook may keep, and how it changes the batch by it."""

    def keep(self):
        self.generator = torch.Generator().manual_seed(5)
        self.numpy = np.random.default_rng(5)
        self.calls, self.counted, self.lengths, self.array = 0, {"n": 0}, [], np.zeros(1)
        self.mean = torch.zeros(DIM)

    def by_generator(self, x):
        return x + torch.randn(x.shape, generator=self.generator)

    def by_numpy(self, x):
        return x + torch.from_numpy(self.numpy.normal(size=x.shape)).float()

    def by_stream(self, x):
        return x + torch.randn(x.shape)

    def by_counter(self, x):
        self.calls += 1
        return x / self.calls

    def by_dict(self, x):
        self.counted["n"] += 1
        return x / self.counted["n"]

    def by_list(self, x):
        self.lengths.append(len(x))
        return x / len(self.lengths)

    def by_array(self, x):
        self.array += 1
        return x / float(self.array[0])

    def by_tensor(self, x):
        self.mean.mul_(0.9).add_(x.mean(0))
        return x - self.mean

    def by_new_attribute(self, x):
        self.shift = getattr(self, "shift", 0.0) + 1
        return x + self.shift


class Module(Kept, Classifier):
    def __init__(self, way):
        super().__init__()
        self.keep()
        self.way = way
        self.register_buffer("moving", torch.zeros(DIM))
        self.norm = nn.BatchNorm1d(DIM)

    def by_buffer(self, x):
        self.moving = 0.9 * self.moving + x.mean(0)
        return x - self.moving

    def by_norm(self, x):
        return self.norm(x).detach()


class Before(Module):
    def on_before_batch_transfer(self, batch, dataloader_idx):
        return getattr(self, self.way)(batch[0]), batch[1]


class After(Module):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return getattr(self, self.way)(batch[0]), batch[1]


class Data(Kept, LightningDataModule):
    def __init__(self, way):
        super().__init__()
        self.keep()
        self.way = way

    def train_dataloader(self):
        return loader()

    def val_dataloader(self):
        return loader(points(16, 1))

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return getattr(self, self.way)(batch[0]), batch[1]


OF_ALL = [name for name in vars(Kept) if name.startswith("by_")]
IN_LATER = ("by_dict", "by_list", "by_array", "by_tensor")  # of a module: what a forward writes there is set back
OF_MODULES = [name for name in OF_ALL if name not in IN_LATER] + ["by_buffer", "by_norm"]
CASES = [(kind, way) for kind in (Before, After) for way in OF_MODULES] + [(Data, way) for way in OF_ALL]


def trained(make, way, folder, *callbacks):
    torch.manual_seed(0)
    data = Data(way) if make is Data else None
    module = Classifier() if data is not None else make(way)
    trainer = make_trainer(folder, *callbacks, max_steps=4)
    if data is None:
        trainer.fit(module, loader(), loader(points(16, 1)))
    else:
        trainer.fit(module, datamodule=data)
    return module.state_dict()


@pytest.mark.parametrize(("make", "way"), CASES, ids=[f"{make.__name__}-{way}" for make, way in CASES])
def test_a_hook_with_a_memory_leaves_the_training_alone(make, way, tmp_path):
    callback = tiny("rank")
    given, alone = trained(make, way, tmp_path, callback), trained(make, way, tmp_path)
    assert callback.history.steps[:2] == [0, 1]
    assert [key for key in alone if not torch.equal(given[key], alone[key])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_points_are_those_of_a_hook_called_once(kind, tmp_path):
    class Mode(Classifier):
        def on_after_batch_transfer(self, batch, dataloader_idx):
            return batch[0] + (100 if self.training else 0), batch[1]

    callback = tiny(kind)
    make_trainer(tmp_path, callback, max_steps=1).fit(Mode(), loader(), loader(points(16, 1)))
    one = Signature(lambda x: x)
    expected = draw_probes(points(), 4, 0, one, "x", lambda batch: (batch[0] + 100, batch[1]))
    plain = draw_probes(points(16, 1), 4, 1, one, "x")
    found = callback.state_dict()["fingerprints"]
    assert found["train"] == expected.fingerprint()  # what is done in training is done with train points
    if kind != "rank":
        assert found["test"] == plain.fingerprint()


class Failing(Classifier):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch["x"]


def test_a_hook_that_fails_is_named(tmp_path):
    trainer = make_trainer(tmp_path, tiny("lc"), max_steps=1)
    with pytest.raises(
        Exception, match=r"^LocalComplexityCallback: drawing points failed .*TypeError(.|\n)*`train_probes="
    ):
        trainer.fit(Failing(), loader())


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_read_names_callback_and_argument(kind, tmp_path):
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, i):
            raise OSError("unreadable")

    module = Classifier()
    with pytest.raises(ValueError, match=rf"^{KINDS[kind].__name__}: `train_probes`: no points .*unreadable"):
        make_trainer(tmp_path, tiny(kind), max_steps=1).fit(module, loader(Broken()))
    assert module.steps_taken == 0


@pytest.mark.parametrize(
    ("options", "shuffle", "trained_on"),
    [
        ({"overfit_batches": 1}, True, 8),
        ({"overfit_batches": 0.34}, True, 8),
        ({"overfit_batches": 2}, False, 16),
        ({"limit_train_batches": 1}, False, 8),
        ({"limit_train_batches": 0.7}, False, 16),
        ({"fast_dev_run": 1}, False, 8),
    ],
)
def test_points_are_among_those_that_are_trained_on(options, shuffle, trained_on, tmp_path):
    inputs = torch.arange(24.0)[:, None].expand(-1, DIM)
    dataset = torch.utils.data.TensorDataset(inputs, torch.arange(24) % 3)
    seen = {}

    class Watching(Classifier):
        def training_step(self, batch, batch_idx):
            seen.setdefault("trained", set()).update(batch[0][:, 0].tolist())
            return super().training_step(batch, batch_idx)

    callback = tiny("rank", n_probes=24, schedule=[0])
    measure = callback.measure
    callback.measure = lambda network, probes: (
        seen.update(measured=probes["train"].inputs[:, 0].tolist()) or measure(network, probes)
    )
    trainer = make_trainer(tmp_path, callback, max_epochs=2, **options)
    trainer.fit(Watching(), loader(dataset, shuffle=shuffle))
    assert len(seen["trained"]) == trained_on
    assert {*seen["measured"]} <= seen["trained"]
    assert len(seen["measured"]) == trained_on
