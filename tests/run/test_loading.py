"""Which samples are read, and that reading them leaves no trace."""

import copy
import functools
import os
import random
import zipfile

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    get_worker_info,
)

from lc_callback.run import loading
from lc_callback.run.loading import read_samples

N = 20
WAYS = ["worker", "copy"]


@pytest.fixture
def way(request, monkeypatch):
    """Where processes are forked, and where they are not."""
    if request.param == "copy":
        monkeypatch.setattr(loading, "_start_method", lambda loader: None)
    return request.param


def read(source, n=100, seed=0, n_batches=None):
    return read_samples(source, n, seed, "train_probes", n_batches)[0]


class Items(Dataset):
    """Sample i is (i, i); nothing is known of its kind."""

    def __len__(self):
        return N

    def __getitem__(self, i):
        return torch.tensor(float(i)), int(i)


class Sizes(Items):
    """Indexed by pairs of index and size."""

    def __getitem__(self, key):
        i, size = key
        return torch.full((size,), float(i)), i


class OfList(Sampler):
    """Gives what it is given."""

    def __init__(self, keys):
        self.keys = keys

    def __iter__(self):
        return iter(self.keys)

    def __len__(self):
        return len(self.keys)


class Endless(Sampler):
    """Without a length, and without an end."""

    def __iter__(self):
        while True:
            yield 2 * random.randrange(N // 2)


class ByValue(Sampler):
    """Reads the data set to sort it."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __iter__(self):
        return iter(sorted(range(len(self.dataset)), key=lambda i: -self.dataset[i][1])[:4])

    def __len__(self):
        return 4


def batches(sampler, size=3):
    return BatchSampler(sampler, size, drop_last=False)


def shared(kind, rank, *arguments, **options):
    return kind(*arguments, num_replicas=4, rank=rank, **options)


ALL = range(N)
EVEN = range(0, N, 2)
# A loader, and the indices that it can give.
SAMPLERS = {
    "in order": (lambda d: DataLoader(d, 3), ALL),
    "shuffled": (lambda d: DataLoader(d, 3, shuffle=True), ALL),
    "shuffled by a generator": (
        lambda d: DataLoader(d, 3, shuffle=True, generator=torch.Generator().manual_seed(4)),
        ALL,
    ),
    "a part": (lambda d: DataLoader(d, 3, sampler=SubsetRandomSampler(range(0, N, 2))), EVEN),
    "a part in batches": (lambda d: DataLoader(d, batch_sampler=batches(SubsetRandomSampler([1, 5, 6]))), [1, 5, 6]),
    "weights of zero": (
        lambda d: DataLoader(d, 3, sampler=WeightedRandomSampler([1.0, 0.0] * (N // 2), 200)),
        EVEN,
    ),
    "with replacement": (lambda d: DataLoader(d, 3, sampler=RandomSampler(d, True, 2000)), ALL),
    "subset of a subset": (lambda d: DataLoader(Subset(Subset(d, range(0, N, 2)), [0, 3]), 3), [0, 6]),
    "concatenated": (lambda d: DataLoader(ConcatDataset([Subset(d, [7]), Subset(d, [9])]), 3), [7, 9]),
    "of a kind of its own": (lambda d: DataLoader(d, 3, sampler=OfList([3, 1, 3])), [1, 3]),
    "batches of a kind of its own": (lambda d: DataLoader(d, batch_sampler=OfList([[3, 1], [8]])), [1, 3, 8]),
    "tensors as keys": (lambda d: DataLoader(d, 3, sampler=OfList([*torch.tensor([4, 2])])), [2, 4]),
    "numpy integers as keys": (lambda d: DataLoader(d, 3, sampler=OfList([*np.array([4, 2, 4])])), [2, 4]),
    "endless": (lambda d: DataLoader(d, 3, sampler=Endless()), EVEN),
    "that reads the data": (lambda d: DataLoader(d, 3, sampler=ByValue(d)), range(N - 4, N)),
    "by lists": (
        lambda d: DataLoader(ByLists(), sampler=batches(SubsetRandomSampler([1, 5, 6])), batch_size=None),
        [1, 5, 6],
    ),
    "of the first of four processes": (lambda d: DataLoader(d, 3, sampler=shared(DistributedSampler, 0, d)), ALL),
    "of the last of four processes": (lambda d: DataLoader(d, 3, sampler=shared(DistributedSampler, 3, d)), ALL),
    "without repetition": (lambda d: DataLoader(d, 3, sampler=shared(UnrepeatedDistributedSampler, 1, d)), ALL),
    "a part for each process": (
        lambda d: DataLoader(d, 3, sampler=shared(DistributedSamplerWrapper, 2, SubsetRandomSampler([1, 5, 6, 8]))),
        [1, 5, 6, 8],
    ),
}


class ByLists(Items):
    def __getitem__(self, keys):
        return torch.tensor(keys).float(), torch.tensor(keys)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name == "endless" else ()) for name in SAMPLERS]
)
def test_what_the_loader_can_give_is_read(name, way):
    make, expected = SAMPLERS[name]
    values, indices = read(make(Items()))
    assert values.tolist() == indices.tolist() == [*expected]
    few = read(make(Items()), n=2, seed=3)[1].tolist()
    assert few == read(make(Items()), n=2, seed=3)[1].tolist()
    assert len({*few}) == 2
    assert {*few} <= {*expected}


def test_seeds_choose_the_samples():
    loader = DataLoader(Items(), 3, sampler=SubsetRandomSampler(range(0, N, 2)))
    assert len({tuple(read(loader, n=2, seed=seed)[1].tolist()) for seed in range(4)}) > 1


def test_every_process_reads_the_same_samples_whatever_its_share():
    for shuffle in (False, True):
        found = {
            tuple(
                read(DataLoader(Items(), 3, sampler=shared(DistributedSampler, r, Items(), shuffle=shuffle)), 5, 0, 1)[
                    1
                ]
            )
            for r in range(4)
        }
        assert len({tuple(map(int, indices)) for indices in found}) == 1


@pytest.mark.parametrize(
    ("options", "n_batches", "expected"),
    [
        ({}, 1, [0, 1, 2]),
        ({}, 2, [0, 1, 2, 3, 4, 5]),
        ({"batch_size": None}, 2, [0, 1]),
        ({"batch_size": None, "sampler": batches(SequentialSampler(range(N)))}, 1, [0, 1, 2]),
        ({"batch_sampler": OfList([[5, 6], [7]])}, 1, [5, 6]),
        ({"sampler": OfList([5, 6, 7, 8])}, 1, [5, 6, 7]),
        ({"sampler": shared(DistributedSampler, 1, range(N), shuffle=False)}, 1, [*range(12)]),
    ],
)
def test_batches_that_are_left_out_are_not_read(options, n_batches, expected):
    dataset = ByLists() if options.get("batch_size", 1) is None and "sampler" in options else Items()
    if options == {"batch_size": None}:
        dataset = [(torch.tensor([float(i)]), torch.tensor([i])) for i in ALL]
    size = {} if {"batch_size", "batch_sampler"} & {*options} else {"batch_size": 3}
    found = read(DataLoader(dataset, **size, **options), n_batches=n_batches)[1].tolist()
    assert sorted(found) == expected


def test_another_batch_in_each_epoch_is_read():
    found = read(DataLoader(Items(), 3, shuffle=True), n=9, n_batches=1)[1].tolist()
    assert len({*found}) == 9


@pytest.mark.parametrize("batch_size", [3, None])
def test_the_first_batches_of_a_stream_are_read(batch_size):
    class Stream(IterableDataset):
        def __iter__(self):
            yield from (torch.tensor([float(i)] if batch_size is None else float(i)) for i in range(N))

    found = read(DataLoader(Stream(), batch_size), n_batches=2)
    assert found.tolist() == [*range(6 if batch_size else 2)]


def test_the_sampler_of_tuples_reads_what_they_say():
    loader = DataLoader(Sizes(), 3, sampler=OfList([(i, 4) for i in (5, 2, 5)]))
    assert read(loader)[0].tolist() == [[2.0] * 4, [5.0] * 4]


# Without a trace


def noise(generator):
    return torch.tensor(generator.normal()).float()


class WithGenerator(Items):
    """Adds noise that `make` gives, out of a generator which it keeps somewhere."""

    def __init__(self, make, many=0):
        self.more = {i: {"box": [0, 1]} for i in range(many)}
        self.generator = np.random.default_rng(0)
        self.noise = make(self.generator)

    def __getitem__(self, i):
        return super().__getitem__(i)[0] + self.noise(), i


class Slots:
    __slots__ = ("generator",)

    def __init__(self, generator):
        self.generator = generator

    def __call__(self):
        return noise(self.generator)


class Method:
    def __init__(self, generator):
        self.generator = generator

    def draw(self):
        return noise(self.generator)


def by_default(generator):
    def draw(generator=generator):
        return noise(generator)

    return draw


KEPT = {
    "closure": lambda g: lambda: noise(g),
    "partial": lambda g: functools.partial(noise, g),
    "partial of a keyword": lambda g: functools.partial(noise, generator=g),
    "default": by_default,
    "slots": Slots,
    "method": lambda g: Method(g).draw,
    "closure of a closure": lambda g: (lambda inner: lambda: inner())(lambda: noise(g)),
}


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("many", [0, 20_000])
@pytest.mark.parametrize("name", KEPT)
def test_generators_stay_where_they_are(name, many, way):
    if way == "copy" and many:
        pytest.skip("a copy has a generator of its own, or shares it with a function")
    dataset = WithGenerator(KEPT[name], many)
    before = copy.deepcopy(dataset.generator.bit_generator.state)
    assert not torch.equal(read(DataLoader(dataset, 3), 4)[0], torch.arange(4.0))
    assert dataset.generator.bit_generator.state == before


class Counting(Items):
    """Whatever an item may change."""

    def __init__(self):
        self.calls, self.cache, self.log, self.array, self.file = 0, {}, [], np.zeros(3), None

    def __getitem__(self, i):
        self.calls += 1
        self.cache[int(i)] = i
        self.log.append(i)
        self.array += 1
        self.file = self.file or open(os.devnull)  # noqa: SIM115
        return super().__getitem__(i)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, 3), lambda d: DataLoader(Subset(d, [1, 2]), 3)])
def test_the_data_set_is_as_it_was(wrap, way):
    dataset = Counting()
    read(wrap(dataset))
    assert (dataset.calls, dataset.cache, dataset.log, dataset.array.sum(), dataset.file) == (0, {}, [], 0, None)


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_samplers_and_collate_functions_are_as_they_were(way):
    class Counted(OfList):
        asked = 0

        def __iter__(self):
            self.asked += 1
            return super().__iter__()

    class Collate:
        asked = 0

        def __call__(self, samples):
            self.asked += 1
            return torch.tensor([i for _, i in samples])

    sampler, collate = Counted([1, 2]), Collate()
    assert read(DataLoader(Items(), 3, sampler=sampler, collate_fn=collate)).tolist() == [1, 2]
    assert (sampler.asked, collate.asked) == (0, 0)


@pytest.mark.parametrize("how", ["zip", "text", "raw"])
def test_places_in_open_files_are_what_they_were(how, tmp_path):
    """A forked process shares them."""
    path = tmp_path / "data"
    if how == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for i in range(N):
                archive.writestr(str(i), bytes([i]) * 20_000)
    else:
        path.write_bytes(b"".join(bytes([i]) * 20_000 for i in range(N)))
    handle = zipfile.ZipFile(path) if how == "zip" else path.open("rb", buffering=0 if how == "raw" else -1)

    class Opened(Items):
        def __getitem__(self, i):
            if how != "zip":
                handle.seek(20_000 * i)
            content = handle.read(str(i)) if how == "zip" else handle.read(20_000)
            return torch.tensor(list(content[:2])), i

    dataset = Opened()
    number = handle.fp.fileno() if how == "zip" else handle.fileno()
    dataset[3]
    place = os.lseek(number, 0, os.SEEK_CUR)
    assert read(DataLoader(dataset, 3))[0][:, 0].tolist() == [*ALL]
    assert os.lseek(number, 0, os.SEEK_CUR) == place
    assert [dataset[i][0][0].item() for i in (4, 5, 0)] == [4, 5, 0]
    handle.close()


# As the loader's workers do it


class Opened(Items):
    values = None

    def __getitem__(self, i):
        return torch.tensor(self.values[i]), i


def open_it(worker):
    get_worker_info().dataset.values = [10.0 * i for i in range(N)]


def test_the_users_function_prepares_the_worker():
    values, indices = read(DataLoader(Opened(), 3, num_workers=2, worker_init_fn=open_it))
    assert torch.equal(values, 10.0 * indices)


def test_a_function_for_workers_is_not_called_where_there_are_none():
    with pytest.raises(ValueError, match="`train_probes`: no points can be drawn from Opened"):
        read(DataLoader(Opened(), 3, worker_init_fn=open_it))


@pytest.mark.parametrize("context", ["spawn", "forkserver"])
def test_workers_start_as_those_of_the_loader(context):
    assert loading._start_method(DataLoader(Items(), 3, num_workers=1, multiprocessing_context=context)) == context


def test_no_process_starts_where_a_script_might_run_again(monkeypatch):
    monkeypatch.setattr(loading.multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert loading._start_method(DataLoader(Items(), 3)) is None
    assert loading._start_method(Items()) is None
    assert loading._start_method(DataLoader(Items(), 3, num_workers=1)) == "spawn"


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_augmentations_are_fixed_by_the_seed(way):
    class Noisy(Items):
        def __getitem__(self, i):
            return torch.tensor([torch.rand(()), np.random.rand(), random.random()])

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one = read(DataLoader(Noisy(), 3, shuffle=True), 4)
    torch.rand(3), np.random.rand(3), random.random()
    assert torch.equal(read(DataLoader(Noisy(), 3, shuffle=True), 4), one)
    assert not torch.isin(read(DataLoader(Noisy(), 3), 4, seed=1), one).any()
    torch.set_rng_state(before[0])
    random.setstate(before[2])


def test_a_loaders_collate_function_pads_all_samples_alike():
    class Ragged(Items):
        def __getitem__(self, i):
            return torch.ones(i + 1)

    pad = functools.partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
    assert read(DataLoader(Ragged(), 3, collate_fn=pad)).shape == (N, N)


def test_the_data_set_of_tensors_is_read_as_it_is(monkeypatch):
    monkeypatch.setattr(loading, "DataLoader", None)  # no worker
    dataset = TensorDataset(torch.arange(N))
    assert read(DataLoader(Subset(dataset, [3, 4]), 3, shuffle=True))[0].tolist() == [3, 4]


# Refused


class Broken(Items):
    def __getitem__(self, i):
        if i == 7:
            raise OSError("item 7 is unreadable")
        return super().__getitem__(i)


class Locked(Items):
    """Works in one process only, and cannot be copied."""

    def __init__(self):
        self.owner, self.lock = os.getpid(), open(os.devnull)  # noqa: SIM115

    def __getitem__(self, i):
        if os.getpid() != self.owner:
            raise RuntimeError("another process")
        return super().__getitem__(i)


def fails(samples):
    raise LookupError("no such column")


class Failing(Sampler):
    def __iter__(self):
        raise ArithmeticError("no order")

    def __len__(self):
        return 3


class BrokenStream(IterableDataset):
    def __iter__(self):
        yield torch.zeros(1)
        raise OSError("the line is down")


REFUSED = {
    "an unreadable item": (lambda: DataLoader(Broken(), 3), "OSError: item 7 is unreadable"),
    "an unreadable item of a worker": (lambda: DataLoader(Broken(), 3, num_workers=2), "OSError: item 7 is unreadable"),
    "bound to its process": (lambda: DataLoader(Locked(), 3), "RuntimeError: another process"),
    "a collate function": (
        lambda: DataLoader(Items(), 3, collate_fn=fails),
        "LookupError: 'no such column'|no such column",
    ),
    "a sampler": (lambda: DataLoader(Items(), 3, sampler=Failing()), "ArithmeticError: no order"),
    "a stream": (lambda: DataLoader(BrokenStream(), 3), "OSError: the line is down"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_is_refused_by_name(name):
    make, why = REFUSED[name]
    with pytest.raises(ValueError, match=rf"^`train_probes`: no points .*({why}).* as `train_probes=`\.$"):
        read(make())
