"""Reading samples that a loader can give, without touching the loader or the data set of the run."""

from __future__ import annotations

import copy
import itertools
import multiprocessing
import operator
import os
import pickle
import random
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    Subset,
    TensorDataset,
    default_collate,
)
from torch.utils.data.sampler import RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler

from lc_callback.isolation import fixed_rng

try:
    import fcntl
except ImportError:  # not on Windows, where no process is forked
    fcntl = None  # type: ignore[assignment]

__all__ = ["read_samples"]

_PASSES = 100  # over a sampler that gives few samples at a time
_TORCHS = (BatchSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)


def read_samples(source: Any, n: int, seed: int, argument: str, n_batches: int | None = None) -> tuple[Any, str]:
    """Up to ``n`` samples of a data set or a loader, joined to one batch as the loader joins them.

    The samples are among those that the loader's sampler gives. They are read by a worker of torch's ``DataLoader``
    where processes are forked, or where the loader has workers itself; else, and from iterable data sets, from a copy.

    Args:
        source: a map-style or iterable data set, or a loader of one.
        n: how many.
        seed: of the choice, and of what the data set draws.
        argument: what ``source`` is called in messages.
        n_batches: how many batches of the loader are used in an epoch; ``None``: all.

    Returns:
        The batch, and where it is from, for people.

    Raises:
        ValueError: if there are none, or they cannot be read in either way.
    """
    plan = _Plan.of(source)
    if isinstance(plan.dataset, IterableDataset):
        return _first(plan, n, seed, argument, n_batches), f"first samples of {plan.name}"
    keys = _keys(plan, n, seed, argument, n_batches)
    if not keys:
        raise ValueError(f"`{argument}` is an empty {plan.name}: pass a dataset with at least one sample.")
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    if plan.whole_batches:
        requests = [keys[i] for i in order]
        joined = plan.read(requests, seed, argument, lambda batches: _join(batches, n))
        return joined, f"{plan.name}, {len(keys)} batches"
    chosen = [keys[i] for i in sorted(order[:n])]
    return plan.read([chosen], seed, argument, next), f"{len(chosen)} of {len(keys)} samples of {plan.name}"


@dataclass(frozen=True)
class _Plan:
    """A data set, and how a loader reads it.

    Attributes:
        dataset: of the run.
        collate: joins samples to a batch.
        loader: what reads it, if there is one.
        whole_batches: whether each item is a batch already.
        by_list: whether the data set is indexed by lists of indices.
    """

    dataset: Any
    collate: Callable[..., Any]
    loader: Any
    whole_batches: bool
    by_list: bool

    @classmethod
    def of(cls, source: Any) -> _Plan:
        if not hasattr(source, "collate_fn"):
            return cls(source, default_collate, None, False, False)
        unbatched = source.batch_size is None and source.batch_sampler is None
        by_list = unbatched and isinstance(source.sampler, BatchSampler)
        return cls(source.dataset, source.collate_fn, source, unbatched and not by_list, by_list)

    @property
    def name(self) -> str:
        return type(self.dataset).__name__

    @property
    def stream(self) -> Any:
        """What gives the keys of samples or, with automatic batches, lists of them."""
        if self.loader is None:
            return SequentialSampler(self.dataset)
        return self.loader.sampler if self.loader.batch_sampler is None else self.loader.batch_sampler

    @property
    def workers(self) -> int:
        return getattr(self.loader, "num_workers", 0)

    def read(self, requests: list[Any], seed: int, argument: str, use: Callable[[Iterator[Any]], Any]) -> Any:
        """Read the batches of these keys, or lists of keys. Returns what ``use`` makes of them."""
        if _is_plain(self.dataset) and self.collate is default_collate:  # to read it leaves no trace
            with fixed_rng(seed):
                return use(self._batches(self.dataset, self.collate, requests))

        def in_a_copy() -> Any:
            dataset, collate = copy.deepcopy((self.dataset, self.collate))
            with fixed_rng(seed, dataset, collate):
                return use(self._batches(dataset, collate, requests))

        method = _start_method(self.loader)
        if method is None:
            return _first_that_works(self.name, argument, in_a_copy)
        return _first_that_works(self.name, argument, lambda: self._from_worker(method, requests, seed, use), in_a_copy)

    def _batches(self, dataset: Any, collate: Callable[..., Any], requests: list[Any]) -> Iterator[Any]:
        for request in requests:
            if self.whole_batches or self.by_list:
                yield collate(dataset[request])
            elif hasattr(dataset, "__getitems__"):
                yield collate(dataset.__getitems__(request))
            else:
                yield collate([dataset[key] for key in request])

    def _from_worker(self, method: Any, requests: list[Any], seed: int, use: Callable[[Iterator[Any]], Any]) -> Any:
        samplers: dict[str, Any] = {"batch_sampler": requests}
        if self.whole_batches or self.by_list:
            samplers = {"batch_size": None, "sampler": requests}
        init = self.loader.worker_init_fn if self.workers else None  # else training does not call it
        with _worker(self.dataset, method, seed, init, collate_fn=_Packed(self.collate), **samplers) as batches:
            return use(batches)


# Which samples


def _keys(plan: _Plan, n: int, seed: int, argument: str, n_batches: int | None) -> list[Any]:
    """The keys of the samples that the loader gives, each once, in their order."""
    stream = plan.stream
    request = _Request(stream, n, plan.whole_batches, n_batches)
    if plan.loader is None or _is_of_torch(stream):
        return request.of(_copied(stream, plan.dataset), seed)
    method = _start_method(plan.loader)

    def in_a_copy() -> list[Any]:
        return request.of(_copied(stream, plan.dataset), seed)

    def in_a_worker() -> Any:  # it may read the data set, as one that sorts by length
        with _worker(_Asked(request, seed), method, seed, batch_size=None, collate_fn=_unchanged) as answers:
            return next(answers)

    ways = (in_a_copy,) if method is None else (in_a_worker, in_a_copy)
    return _first_that_works(f"the sampler of {plan.name}", argument, *ways)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Request:
    """Asks a sampler which keys it gives. If there is a copy of it, ``stream`` is not used."""

    stream: Any
    n: int
    whole_batches: bool
    n_batches: int | None

    def of(self, stream: Any, seed: int) -> list[Any]:
        """The keys that ``stream`` gives. Nothing else uses it after this."""
        found: dict[Any, Any] = {}
        with fixed_rng(seed, stream):
            per_step = _as_one_process(stream)
            most = _length(stream) if self.n_batches is None else self.n_batches * per_step
            patience = 1 if self.n_batches is None else 10  # a few batches of another order in each pass
            barren = 0
            for _ in range(_PASSES):
                before = len(found)
                for entry in itertools.islice(iter(stream), most):
                    for key in entry if not self.whole_batches and isinstance(entry, (list, tuple)) else [entry]:
                        found.setdefault(_identity(key), key)
                barren = barren + 1 if len(found) == before else 0
                if len(found) >= self.n or barren == patience:
                    break
        try:
            return [found[key] for key in sorted(found)]
        except TypeError:  # keys of several kinds
            return [*found.values()]


class _Asked(IterableDataset[Any]):
    """The answer of a sampler, as data."""

    def __init__(self, request: _Request, seed: int) -> None:
        self._request, self._seed = request, seed

    def __iter__(self) -> Iterator[Any]:
        yield pickle.dumps(self._request.of(self._request.stream, self._seed))


def _copied(stream: Any, dataset: Any) -> Any:
    """A copy of a sampler, of the same data set."""
    memo: dict[int, Any] = {id(dataset): dataset}
    for part in (stream, getattr(stream, "sampler", None)):
        generator = getattr(part, "generator", None)
        if isinstance(generator, torch.Generator):  # of which older versions of torch make no copy
            memo[id(generator)] = torch.Generator(generator.device)
            memo[id(generator)].set_state(generator.get_state())
    return copy.deepcopy(stream, memo)


def _is_of_torch(stream: Any) -> bool:
    """Whether it is known to leave the data set alone."""
    inner = getattr(stream, "sampler", None)
    known = type(stream) in _TORCHS or type(stream) is DistributedSampler
    return known and (type(stream) is not BatchSampler or _is_of_torch(inner))


def _as_one_process(stream: Any) -> int:
    """Let a sampler that gives a process its share give all. Returns how many processes there were."""
    for part in (stream, getattr(stream, "sampler", None)):
        if isinstance(part, DistributedSampler):
            n, part.num_replicas, part.rank = part.num_replicas, 1, 0
            part.num_samples = part.total_size
            return n
    return 1


def _length(stream: Any) -> int | None:
    """How many entries a pass has at most; one without a length may never end."""
    try:
        return len(stream)
    except TypeError:
        return 1_000_000


def _identity(key: Any) -> Any:
    """What tells a key from others, however it is written."""
    if isinstance(key, (list, tuple)):
        return tuple(map(_identity, key))
    try:
        return operator.index(key)
    except TypeError:
        return key if isinstance(key, str) else repr(key)


# Reading them


def _first_that_works(name: str, argument: str, *ways: Callable[[], Any]) -> Any:
    errors = []
    for way in ways:
        try:
            return way()
        except Exception as error:  # of any kind: it is the user's data set that reads
            errors.append(error)
    also = f"in a process of its own ({_in_short(errors[0])}), nor from " if len(errors) > 1 else "from "
    raise ValueError(
        f"`{argument}`: no points can be drawn from {name}: it cannot be read {also}a copy ({_in_short(errors[-1])}), "
        f"and that of the training is not touched. Pass a tensor or a pair (inputs, targets) as `{argument}=`."
    ) from errors[0]


def _in_short(error: Exception) -> str:
    """The error itself in one line, without the traceback that a worker puts into it."""
    kind = type(error).__name__
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not str(error).startswith("Caught "):
        return f"{kind}: {lines[0] if lines else ''}"
    return next((line for line in reversed(lines) if line.startswith(kind)), lines[-1])


def _is_plain(dataset: Any) -> bool:
    """Whether to read it moves and opens nothing: tensors and lists."""
    if type(dataset) is Subset:
        return _is_plain(dataset.dataset)
    if type(dataset) is ConcatDataset:
        return all(map(_is_plain, dataset.datasets))
    return type(dataset) in (TensorDataset, list, tuple)


def _start_method(loader: Any) -> Any:
    """How to start a worker; ``None`` where a script without a main guard might run again."""
    context = getattr(loader, "multiprocessing_context", None)
    method = context.get_start_method() if context is not None else multiprocessing.get_start_method(allow_none=True)
    method = method or multiprocessing.get_all_start_methods()[0]  # the default, which stays open
    return method if method == "fork" or getattr(loader, "num_workers", 0) else None


@contextmanager
def _worker(dataset: Any, method: Any, seed: int, init: Any = None, **arguments: Any) -> Iterator[Iterator[Any]]:
    """What a worker of torch's own ``DataLoader`` gives, unpacked."""
    with fixed_rng(seed), _same_places_in_files(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)  # of Python, where there are threads
        loader = DataLoader(
            dataset,
            num_workers=1,
            worker_init_fn=_Seeded(seed, init),
            generator=torch.Generator().manual_seed(seed),
            multiprocessing_context=method,
            **arguments,
        )
        packed: Any = iter(loader)
        try:
            yield map(pickle.loads, packed)
        finally:
            packed._shutdown_workers()  # it may read ahead


def _unchanged(item: Any) -> Any:
    return item


class _Packed:
    """Joins samples in the worker, and sends bytes: shared memory may be short."""

    def __init__(self, collate: Callable[..., Any]) -> None:
        self._collate = collate

    def __call__(self, samples: Any) -> bytes:
        return pickle.dumps(self._collate(samples))


class _Seeded:
    """Seeds a worker, and lets the user's own function do what it does."""

    def __init__(self, seed: int, init: Callable[[int], Any] | None) -> None:
        self._seed, self._init = seed, init

    def __call__(self, worker: int) -> None:
        random.seed(self._seed)
        torch.manual_seed(self._seed)
        if "numpy" in sys.modules:
            sys.modules["numpy"].random.seed(self._seed % 2**32)
        if self._init is not None:
            self._init(worker)


@contextmanager
def _same_places_in_files() -> Iterator[None]:
    """A forked process moves the place in files that are open here; put it back where they are only read."""
    places: dict[int, int] = {}
    for name in os.listdir("/proc/self/fd") if fcntl is not None and os.path.isdir("/proc/self/fd") else ():
        try:
            if fcntl.fcntl(int(name), fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
                places[int(name)] = os.lseek(int(name), 0, os.SEEK_CUR)
        except OSError:  # closed, or no file
            continue
    try:
        yield
    finally:
        for number, place in places.items():
            try:
                if os.lseek(number, 0, os.SEEK_CUR) != place:
                    os.lseek(number, place, os.SEEK_SET)
            except OSError:
                continue


def _first(plan: _Plan, n: int, seed: int, argument: str, n_batches: int | None) -> Any:
    """The first samples of an iterable data set."""
    try:
        dataset, collate = copy.deepcopy((plan.dataset, plan.collate))  # iterating the original could take samples away
    except Exception as error:
        raise ValueError(
            f"`{argument}`: {plan.name} cannot be copied ({error}), and iterating it might take samples away from the "
            "training. Pass a tensor or a pair (inputs, targets)."
        ) from error
    unbatched = plan.loader is not None and plan.loader.batch_size is None
    per_batch = None if plan.loader is None or unbatched else plan.loader.batch_size

    def read() -> Any:
        with fixed_rng(seed, dataset, collate):
            if unbatched:
                return _join((collate(item) for item in itertools.islice(iter(dataset), n_batches)), n)
            most = n if n_batches is None or per_batch is None else min(n, n_batches * per_batch)
            samples = list(itertools.islice(iter(dataset), most))
            return collate(samples) if samples else None

    batch = _first_that_works(plan.name, argument, read)
    if batch is None:
        raise ValueError(f"`{argument}` is an empty {plan.name}.")
    return batch


def _join(batches: Iterable[Any], n: int) -> Any:
    """Concatenate batches until there are ``n`` samples."""
    taken: list[Any] = []
    total = 0
    for batch in batches:
        taken.append(batch)
        total += next(len(leaf) for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
        if total >= n:
            break
    if not taken:
        return None
    joined = tree_map(lambda *leaves: torch.cat(leaves) if isinstance(leaves[0], Tensor) else leaves[0], *taken)
    return tree_map(lambda leaf: leaf[:n] if isinstance(leaf, Tensor) else leaf, joined)
