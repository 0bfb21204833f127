import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler, Subset
from torch.utils.data import TensorDataset as Pairs

from lc_callback import LocalComplexityCallback
from lc_callback.engine.network.signature import Signature
from lc_callback.run.probes import Probes, draw_probes, random_probes

ONE = Signature(lambda x: x)


def draw(source, n=4, seed=0, signature=ONE, transform=None):
    return draw_probes(source, n, seed, signature, "train_probes", transform)


def pairs(n=20, offset=0):
    """Sample i is (3 equal numbers i, target 10 i)."""
    i = torch.arange(offset, offset + n)
    return Pairs(i[:, None].float().expand(-1, 3), 10 * i)


def indices(probes):
    """Which samples of `pairs` were drawn; their targets must be theirs."""
    drawn = probes.inputs[:, 0]
    assert torch.equal(probes.inputs, drawn[:, None].expand(-1, 3))
    assert torch.equal(probes.targets, 10 * drawn.long())
    return drawn.long().tolist()


class Once(Sampler):
    """Must not be asked here, for it cannot be asked twice."""

    def __init__(self):
        self.keys = iter(range(20))

    def __iter__(self):
        yield from self.keys

    def __len__(self):
        return 20


class ForbiddenLoader(DataLoader):
    def __iter__(self):
        raise AssertionError("iterated")


# Drawing by index


@pytest.mark.parametrize(
    "source",
    [
        pairs(),
        DataLoader(pairs(), batch_size=3, shuffle=True),
        DataLoader(pairs(), batch_sampler=BatchSampler(SequentialSampler(pairs()), 3, False)),
        DataLoader(pairs(), sampler=BatchSampler(SequentialSampler(pairs()), 3, False), batch_size=None),
        ForbiddenLoader(pairs(), batch_size=3, shuffle=True),
        DataLoader(pairs(), sampler=Once()),
    ],
    ids=["dataset", "loader", "batch_sampler", "by_list", "forbidden_loader", "sampler_of_its_own"],
)
def test_the_same_samples_are_drawn_however_the_dataset_comes(source):
    drawn = indices(draw(source))
    assert drawn == indices(draw(pairs()))
    assert len(set(drawn)) == 4
    assert drawn != [0, 1, 2, 3]


def test_a_subset_is_drawn_from_its_own_samples():
    assert set(indices(draw(Subset(pairs(), [3, 5, 7, 11, 13]), n=4))) < {3, 5, 7, 11, 13}


def test_more_probes_than_samples_take_each_sample_once():
    probes = draw(pairs(), n=100)
    assert indices(probes) == list(range(20))
    assert len(probes) == 20


def test_seeds_choose_the_samples():
    assert indices(draw(pairs(), seed=3)) == indices(draw(pairs(), seed=3))
    assert len({tuple(indices(draw(pairs(), seed=seed))) for seed in range(10)}) > 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_neither_start_nor_change_the_samples(num_workers):
    loader = DataLoader(pairs(), num_workers=num_workers, persistent_workers=num_workers > 0)
    assert indices(draw(loader)) == indices(draw(pairs()))
    assert loader._iterator is None


def test_samples_are_joined_by_the_loaders_collate_fn():
    ragged = [torch.ones(length) for length in (1, 2, 3)]
    loader = DataLoader(
        ragged, collate_fn=lambda batch: (nn.utils.rnn.pad_sequence(batch, batch_first=True), len(batch))
    )
    probes = draw(loader, n=3)
    assert probes.inputs.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert probes.targets == 3


def test_a_loader_of_whole_batches_gives_samples():
    batches = [(torch.full((4, 3), float(i)), torch.full((4,), 10 * i)) for i in range(5)]
    probes = draw(DataLoader(batches, batch_size=None), n=6)
    assert len(indices(probes)) == 6
    assert len(set(indices(probes))) == 2


# Taken whole


def test_a_tensor_is_taken_whole():
    x = torch.randn(30, 2)
    probes = draw(x, n=4)
    assert torch.equal(probes.inputs, x)
    assert probes.targets is None


def test_a_pair_is_taken_whole():
    x, y = torch.randn(30, 2), torch.arange(30)
    probes = draw((x, y), n=4)
    assert torch.equal(probes.inputs, x)
    assert torch.equal(probes.targets, y)


def test_a_mapping_is_taken_whole():
    x, y = torch.randn(30, 2), torch.arange(30)
    probes = draw({"x": x, "label": y}, n=4)
    assert probes.inputs.keys() == {"x"}
    assert torch.equal(probes.inputs["x"], x)
    assert torch.equal(probes.targets, y)


def test_arrays_become_tensors():
    assert torch.equal(draw((np.ones((3, 2)), np.zeros(3))).inputs, torch.ones(3, 2, dtype=torch.float64))


def test_probes_are_detached_copies_on_the_cpu():
    x = torch.randn(3, 2, requires_grad=True)
    assert not draw(x * 2).inputs.requires_grad


# Iterable datasets


class Stream(IterableDataset):
    """Each sample once: a second iteration goes on where the first stopped."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        while self.position < 20:
            self.position += 1
            yield pairs()[self.position - 1]


class BatchStream(Stream):
    def __iter__(self):
        for x, y in super().__iter__():
            yield x.expand(4, -1), y.expand(4)


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: DataLoader(s, batch_size=3)], ids=["dataset", "loader"])
def test_a_stream_gives_its_first_samples_and_is_not_consumed(wrap):
    stream = Stream()
    assert indices(draw(wrap(stream))) == [0, 1, 2, 3]
    assert stream.position == 0
    assert indices(draw(wrap(stream), n=100)) == list(range(20))


def test_a_stream_of_batches_gives_its_first_samples():
    assert indices(draw(DataLoader(BatchStream(), batch_size=None), n=6)) == [0, 0, 0, 0, 1, 1]


def test_a_stream_that_cannot_be_copied_is_refused():
    stream = Stream()
    stream.source = (i for i in range(3))
    with pytest.raises(ValueError, match="`train_probes`: Stream cannot be copied"):
        draw(stream)


# Random streams


class Noisy(Dataset):
    """Augments with every generator there is."""

    def __init__(self):
        self.torch_generator = torch.Generator().manual_seed(0)
        self.transforms = [SimpleNamespace(rng=np.random.default_rng(0), old=np.random.RandomState(0))]
        self.named = {"python": random.Random(0)}

    def __len__(self):
        return 20

    def __getitem__(self, i):
        own = self.transforms[0]
        drawn = [torch.rand(()), torch.rand((), generator=self.torch_generator), np.random.rand(), random.random()]
        return torch.tensor([*drawn, own.rng.random(), own.old.rand(), self.named["python"].random()])


def states(dataset):
    own = dataset.transforms[0]
    arrays = [
        torch.get_rng_state(),
        dataset.torch_generator.get_state(),
        np.random.get_state()[1],
        own.old.get_state()[1],
    ]
    rest = [
        np.random.get_state()[2],
        random.getstate(),
        dataset.named["python"].getstate(),
        own.rng.bit_generator.state,
    ]
    return [torch.as_tensor(a.astype(np.int64) if isinstance(a, np.ndarray) else a).tolist() for a in arrays], rest


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, shuffle=True, num_workers=2)])
def test_no_random_stream_moves(wrap):
    dataset = Noisy()
    before = copy.deepcopy(states(dataset))
    probes = draw(wrap(dataset))
    assert states(dataset) == before
    dataset[0]
    assert states(dataset) != before  # so a draw would have shown
    assert len(probes.inputs[:, 0].unique()) == 4


def test_augmentations_are_fixed_by_the_seed_whatever_was_drawn_before():
    one = draw(Noisy())
    torch.rand(7)
    np.random.rand(7)
    random.random()
    assert torch.equal(draw(Noisy()).inputs, one.inputs)
    assert not torch.isin(draw(Noisy(), seed=1).inputs[:, 0], one.inputs[:, 0]).any()


def test_a_random_transform_draws_from_the_seed_and_leaves_the_streams():
    before = torch.get_rng_state()
    noisy = [draw(pairs(), transform=lambda batch: (batch[0] + torch.rand(4, 3), batch[1])).inputs for _ in range(2)]
    assert torch.equal(*noisy)
    assert not torch.equal(noisy[0], draw(pairs()).inputs)
    assert torch.equal(torch.get_rng_state(), before)


# Targets of one's own


def test_target_fn_sees_the_whole_batch_as_the_model_gets_it():
    seen = []

    def classes(batch):
        seen.append(batch)
        return batch[1] // 10 % 2

    def double(batch):
        return 2 * batch[0], batch[1]

    probes = draw_probes(pairs(), 5, 0, ONE, "train_probes", double, classes)
    ((inputs, targets),) = seen
    assert torch.equal(inputs, probes.inputs)
    assert inputs[:, 0].tolist() == [2 * t / 10 for t in targets.tolist()]
    assert probes.targets.tolist() == [t // 10 % 2 for t in targets.tolist()]


@pytest.mark.parametrize(
    "source", [torch.eye(3), (torch.eye(3), torch.zeros(3)), {"x": torch.eye(3)}], ids=["tensor", "pair", "mapping"]
)
def test_target_fn_gives_targets_to_what_is_taken_whole(source):
    probes = draw_probes(source, 5, 0, ONE, "train_probes", None, lambda batch: torch.arange(3))
    assert probes.targets.tolist() == [0, 1, 2]
    assert probes.head(2).targets.tolist() == [0, 1]


def test_target_fn_draws_from_the_seed_and_leaves_the_streams():
    before = torch.get_rng_state()
    targets = [
        draw_probes(pairs(), 5, seed, ONE, "train_probes", None, lambda batch: torch.randint(0, 999, (5,))).targets
        for seed in (0, 0, 1)
    ]
    assert torch.equal(targets[0], targets[1])
    assert not torch.equal(targets[0], targets[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_a_target_fn_that_raises_is_named():
    message = r"`target_fn` failed on `test_probes` \(.*TensorDataset\) with KeyError: 'label'.* here a list"
    with pytest.raises(ValueError, match=message):
        draw_probes(pairs(), 5, 0, ONE, "test_probes", None, lambda batch: {}["label"])


# Refused


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (pairs(0), "`train_probes` is an empty TensorDataset"),
        (torch.zeros(0, 3), r"`train_probes` \(tensor \(0, 3\)\) must give tensors .*at least 1"),
        (torch.tensor(1.0), r"at least 1"),
        (torch.tensor([[1.0, torch.nan]]), "`train_probes` .* holds NaN or infinite"),
        (torch.tensor([[1.0, torch.inf]]), "`train_probes` .* holds NaN or infinite"),
        (([1.0], [2.0], [3.0]), r"`train_probes` must be a pair .* got 3 entries"),
        (3, "`train_probes` must be a tensor, a pair .* but got int"),
        (["one", "two"], "no tensor"),
        (DataLoader(["a", "b"]), "no tensor"),
    ],
)
def test_sources_without_points_are_refused_by_name(source, message):
    with pytest.raises(ValueError, match=message):
        draw(source)


def test_inputs_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match=r"same number of samples .*\(3, 2\), \(4, 2\)"):
        draw((torch.zeros(3, 2), torch.zeros(4, 2)), signature=Signature(lambda a, b: a))


# Random probes


def probes_of(inputs):
    return Probes(inputs, torch.zeros(8), "here")


def test_random_points_fill_the_range_of_each_feature():
    low, high = torch.tensor([0.0, -5.0, 3.0]), torch.tensor([1.0, 5.0, 3.0])
    like = probes_of(low + (high - low) * torch.linspace(0, 1, 2000)[:, None])
    drawn = random_probes(like, 0)
    assert drawn.inputs.shape == (2000, 3)
    assert (low <= drawn.inputs).all()
    assert (drawn.inputs <= high).all()
    fractions = (drawn.inputs[:, :2] - low[:2]) / (high - low)[:2]
    histogram = torch.histc(fractions, 4, 0, 1) / fractions.numel()
    torch.testing.assert_close(histogram, torch.full((4,), 0.25), atol=0.03, rtol=0)
    assert (drawn.inputs[:, 2] == 3).all()
    assert drawn.targets is None


def test_random_points_are_fixed_by_the_seed_and_leave_the_streams():
    like, before = probes_of(torch.arange(8.0)[:, None]), torch.get_rng_state()
    one, again, other = random_probes(like, 0), random_probes(like, 0), random_probes(like, 1)
    assert torch.equal(one.inputs, again.inputs)
    assert not torch.equal(one.inputs, other.inputs)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "mask", [torch.eye(8, dtype=torch.bool), torch.eye(8, dtype=torch.long), torch.zeros(8, 8, dtype=torch.uint8)]
)
def test_random_points_keep_masks(mask):
    drawn = random_probes(probes_of({"x": torch.rand(8, 2), "attention_mask": mask}), 0)
    assert drawn.inputs["attention_mask"] is mask


def test_random_tokens_are_tokens():
    tokens = torch.randint(2, 9, (500, 4))
    drawn = random_probes(probes_of((tokens, torch.rand(500, 2))), 0).inputs[0]
    assert drawn.dtype == torch.long
    assert drawn.unique().tolist() == tokens.unique().tolist()
    assert torch.bincount(drawn.flatten()).max() < 2 * 2000 / 7  # uniform, ends included
    assert not torch.equal(drawn, tokens)


# Probes


def test_head_cuts_all_parts_alike():
    probes = Probes({"x": torch.arange(5.0)[:, None], "n": 7}, torch.arange(5), "here").head(2)
    assert probes.inputs["x"].tolist() == [[0], [1]]
    assert probes.inputs["n"] == 7
    assert probes.targets.tolist() == [0, 1]


def test_fingerprints_tell_values_types_and_shapes():
    x = torch.arange(6.0)
    variants = [x, x + 1, x.double(), x.view(2, 3), x.view(3, 2), (x, x), (x, "text")]
    prints = [Probes(v, None, "").fingerprint() for v in variants]
    assert len(set(prints)) == len(variants)
    assert Probes(x.clone(), torch.ones(6), "elsewhere").fingerprint() == prints[0]
    strided = torch.stack([x, x], 1)[:, 0]
    assert Probes(strided, None, "").fingerprint() == prints[0]
    assert len(Probes(x.bfloat16(), None, "").fingerprint()) == 64


# Which part of a batch the model gets

A, B, C, D = (torch.full((2, 1), float(i)) for i in range(4))


def hugging_face(input_ids=None, attention_mask=None, labels=None, return_dict=True): ...


def starred(*args, **kwargs): ...


@pytest.mark.parametrize(
    ("forward", "batch", "inputs", "targets"),
    [
        (lambda x: x, A, A, None),
        (lambda x: x, (A, B), A, B),
        (lambda x: x, [A, B], A, B),
        (lambda x: x, [A], A, None),
        (lambda x: x, (A, B, C), A, B),
        (lambda x, mask=None: x, (A, B), A, B),
        (lambda x1, x2: x1, (A, B, C), (A, B), C),
        (lambda x1, x2: x1, (A, B), (A, B), None),
        (lambda x1, x2, x3: x1, (A, B), A, B),
        (lambda x1, x2: x1, ((A, B), C), (A, B), C),
        (lambda x1, x2: x1, ([A, B], C), (A, B), C),
        (lambda image: image, {"image": A, "label": B, "id": C}, {"image": A}, B),
        (lambda a, b: a, {"b": B, "a": A, "target": C}, {"a": A, "b": B}, C),
        (lambda batch: batch, {"image": A, "y": B}, ({"image": A},), B),
        (lambda a: a, ({"a": A, "b": B}, C), {"a": A}, C),
        (
            hugging_face,
            {"input_ids": A, "attention_mask": B, "labels": C, "idx": D},
            {"input_ids": A, "attention_mask": B},
            C,
        ),
        (lambda x, labels: x, {"x": A, "labels": B}, {"x": A, "labels": B}, B),
        (starred, (A, B), A, B),
        (starred, {"x": A, "label": B}, {"x": A}, B),
        (lambda *batch: batch, {"x": A, "label": B}, ({"x": A},), B),
        (lambda pair: pair, ((A, B), C), ((A, B),), C),
        (int, (A, B), A, B),
    ],
)
def test_the_model_gets_its_part_of_a_batch(forward, batch, inputs, targets):
    got = Signature(forward).split(batch)
    assert str(got) == str((inputs, targets))  # constants, so the text tells them


def test_signature_of_a_module_a_function_and_a_compiled_module():
    module = nn.Bilinear(1, 1, 1)
    assert Signature.of(module, None).required == 2
    assert Signature.of(module, lambda module, x: x).required == 1
    assert Signature.of(torch.compile(module, backend="eager"), None).required == 2


# Drawn in a run


class Lit(LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, batch_idx):
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        pass

    def test_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def fit(folder, train, val=None, *, callback=None, module=None, max_steps=2, ckpt_path=None, **kwargs):
    callback = callback or LocalComplexityCallback(n_probes=5, n_directions=3)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=max_steps,
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=folder,
        callbacks=[callback],
    )
    trainer.fit(module or Lit(), train, val, ckpt_path=ckpt_path, **kwargs)
    return callback, trainer


def fingerprints(callback):
    return callback.state_dict()["fingerprints"]


def loader(n=20, offset=0, **kwargs):
    return DataLoader(pairs(n, offset), batch_size=4, **kwargs)


def test_a_run_draws_train_test_and_random_points(tmp_path):
    train, test = draw(pairs(), n=5, seed=0), draw(pairs(20, 50), n=5, seed=1)
    callback, _ = fit(tmp_path, loader(shuffle=True), loader(20, 50))
    expected = {"train": train, "test": test, "random": random_probes(train, 2)}
    assert fingerprints(callback) == {split: probes.fingerprint() for split, probes in expected.items()}


class WithoutValidation(Lit):
    validation_step = LightningModule.validation_step


def test_a_validation_loader_that_lightning_leaves_alone_gives_test_points(tmp_path):
    callback, trainer = fit(tmp_path, loader(shuffle=True), loader(20, 50), module=WithoutValidation())
    assert trainer.val_dataloaders is None
    assert fingerprints(callback)["test"] == draw(pairs(20, 50), n=5, seed=1).fingerprint()


def test_the_first_of_several_validation_loaders_is_taken(tmp_path):
    callback, _ = fit(tmp_path, loader(), [loader(20, 50), loader(20, 80)])
    assert fingerprints(callback)["test"] == draw(pairs(20, 50), n=5, seed=1).fingerprint()
    callback, _ = fit(tmp_path, loader(), {"b": loader(20, 80), "a": loader(20, 50)})
    assert fingerprints(callback)["test"] == draw(pairs(20, 80), n=5, seed=1).fingerprint()


class WithoutVal(LightningDataModule):
    def setup(self, stage):
        self.train_data, self.test_data = pairs(), pairs(20, 50)

    def train_dataloader(self):
        return DataLoader(self.train_data, batch_size=4)

    def test_dataloader(self):
        return DataLoader(self.test_data, batch_size=4)


def test_a_datamodule_without_validation_gives_its_test_points(tmp_path):
    callback, _ = fit(tmp_path, None, datamodule=WithoutVal())
    assert fingerprints(callback)["test"] == draw(pairs(20, 50), n=5, seed=1).fingerprint()


def test_without_any_test_data_there_is_no_test_curve_but_a_warning(tmp_path):
    with pytest.warns(UserWarning, match="found no validation or test dataset"):
        callback, _ = fit(tmp_path, loader())
    assert fingerprints(callback).keys() == {"train", "random"}


class Counted(Sampler):
    """Counts how often it is asked."""

    def __init__(self):
        self.asked = 0

    def __iter__(self):
        self.asked += 1
        return iter(range(20))

    def __len__(self):
        return 20


def test_a_run_asks_the_users_sampler_no_more_often(tmp_path):
    sampler = Counted()
    fit(tmp_path, DataLoader(pairs(), batch_size=4, sampler=sampler), loader())
    assert sampler.asked == 1


class Normalised(Lit):
    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch[0] / 100, batch[1]


def test_batches_are_drawn_as_the_model_gets_them(tmp_path):
    callback, _ = fit(tmp_path, loader(), loader(20, 50), module=Normalised())
    expected = draw(pairs(), n=5, transform=lambda batch: (batch[0] / 100, batch[1]))
    assert fingerprints(callback)["train"] == expected.fingerprint()


def test_a_resumed_run_measures_the_same_points(tmp_path, recwarn):
    first, trainer = fit(tmp_path, loader(shuffle=True), loader(20, 50))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    again = LocalComplexityCallback(n_probes=5, n_directions=3)
    fit(tmp_path, loader(shuffle=True), loader(20, 50), callback=again, max_steps=4, ckpt_path=tmp_path / "last.ckpt")
    assert fingerprints(again) == fingerprints(first)
    assert again.history.rows[: len(first.history)] == first.history.rows
    assert not [w for w in recwarn if "probes are not those" in str(w.message)]


def test_a_resume_with_other_data_warns(tmp_path):
    _, trainer = fit(tmp_path, loader(), loader(20, 50))
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    with pytest.warns(UserWarning, match="the test probes are not those of the checkpoint"):
        fit(tmp_path, loader(), loader(20, 60), max_steps=4, ckpt_path=tmp_path / "last.ckpt")


def test_the_first_points_have_the_first_names() -> None:
    probes = Probes({"x": torch.arange(4.0), "name": ["a", "b", "c", "d"], "kinds": ["one", "two"]}, None, "")
    few = probes.head(3).inputs
    assert (len(few["x"]), few["name"], few["kinds"]) == (3, ["a", "b", "c"], ["one", "two"])
