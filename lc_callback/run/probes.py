"""What is measured: fixed points, drawn once from tensors, datasets and loaders without disturbing these."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import IterableDataset

from lc_callback.engine.network.points import is_names
from lc_callback.engine.network.signature import Signature, as_tensor
from lc_callback.isolation import fixed_rng
from lc_callback.run.loading import read_samples

__all__ = ["Probes", "draw_probes", "random_probes"]


@dataclass(frozen=True)
class Probes:
    """Fixed points of one split, on the CPU.

    Attributes:
        inputs: what the model is called with: a tensor ``(N, ...)``, a tuple (positional) or a dict (keywords).
        targets: what came with them, or ``None``.
        source: where they are from, for people.
    """

    inputs: Any
    targets: Any
    source: str

    def __repr__(self) -> str:
        leaves = [leaf for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor)]
        shapes = ", ".join(f"{str(leaf.dtype).removeprefix('torch.')} {tuple(leaf.shape)}" for leaf in leaves)
        return f"Probes({len(self)} points, {shapes}, source={self.source!r})"

    def __len__(self) -> int:
        return next(len(leaf) for leaf in tree_leaves(self.inputs) if isinstance(leaf, Tensor))

    def head(self, n: int) -> Probes:
        """The first ``n`` points."""
        return self._cut(slice(n))

    def share(self, index: int, of: int) -> Probes:
        """The points ``index``, ``index + of``, ...: what one of several processes takes."""
        return self._cut(slice(index, None, of))

    def _cut(self, rows: slice) -> Probes:
        def cut(leaf: Any) -> Any:
            each = (isinstance(leaf, Tensor) and leaf.ndim) or (is_names(leaf) and len(leaf) == len(self))
            return leaf[rows] if each else leaf

        inputs, targets = (tree_map(cut, tree, is_leaf=is_names) for tree in (self.inputs, self.targets))
        return replace(self, inputs=inputs, targets=targets)

    def fingerprint(self) -> str:
        """SHA-256 of the inputs."""
        return _digest(self.inputs)

    def label_fingerprint(self) -> str:
        """SHA-256 of the targets."""
        return _digest(self.targets, in_words=_kind)


def _kind(value: Any) -> str:
    """What is the same in another process; the text of an object may have its address in it."""
    return repr(value) if isinstance(value, (str, bytes, int, float, type(None))) else type(value).__qualname__


def _digest(tree: Any, in_words: Callable[[Any], str] = repr) -> str:
    digest = hashlib.sha256()
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            digest.update(f"{leaf.dtype}{tuple(leaf.shape)}".encode())
            digest.update(leaf.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        else:
            digest.update(in_words(leaf).encode())
    return digest.hexdigest()


def draw_probes(
    source: Any,
    n: int,
    seed: int,
    signature: Signature,
    argument: str,
    transform: Callable[[Any], Any] | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    n_batches: int | None = None,
) -> Probes:
    """Draw fixed points from ``source``.

    Tensors, pairs ``(inputs, targets)`` and mappings are taken whole. From a dataset or a loader ``n`` samples are
    drawn among those that its sampler gives, and joined with its ``collate_fn``, as :func:`read_samples` says: no
    sampler, worker, random stream, file or other state of the run moves. Of an iterable dataset a copy is iterated for
    its first ``n`` samples.

    Args:
        source: tensor, pair, mapping, map-style or iterable dataset, or ``DataLoader``.
        n: number of points to draw from a dataset or loader; fewer if it holds fewer.
        seed: seed of the choice, and of the random augmentations that the dataset applies.
        signature: which part of a sample the model takes.
        argument: what ``source`` is called in messages.
        transform: what else happens to a batch of a dataset or loader before the model gets it.
        target_fn: what gives the targets of a batch, where these are not what the signature leaves over.
        n_batches: how many batches of a loader are used in an epoch; ``None``: all.

    Raises:
        ValueError: if ``source`` is none of these, is empty, holds values that are not finite, or is a pair of
            different lengths; or if ``target_fn`` raises.
    """
    batch, text = _batch_of(source, n, seed, argument, n_batches)
    if transform is not None and not isinstance(source, (Tensor, Mapping, tuple, list)):
        with fixed_rng(seed):
            batch = transform(batch)
    inputs, targets = signature.split(batch)
    if target_fn is not None:
        with fixed_rng(seed):
            try:
                targets = target_fn(batch)
            except Exception as error:
                raise ValueError(
                    f"`target_fn` failed on `{argument}` ({text}) with {type(error).__name__}: {error}. It is called "
                    f"with a whole batch, here a {type(batch).__name__}, and returns its classes."
                ) from error
    inputs = tree_map(as_tensor, inputs)
    tensors = [leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)]
    sizes = {len(leaf) if leaf.ndim else 0 for leaf in tensors}
    if len(sizes) != 1 or 0 in sizes:
        shapes = [tuple(leaf.shape) for leaf in tensors] or f"no tensor in {type(batch).__name__}"
        raise ValueError(
            f"`{argument}` ({text}) must give tensors with the same number of samples (at least 1) along the first "
            f"axis, but gave {shapes}: pass a tensor, or a pair (inputs, targets)."
        )
    for leaf in tensors:
        if leaf.is_floating_point() and not leaf.isfinite().all():
            raise ValueError(
                f"`{argument}` ({text}) holds NaN or infinite inputs: no count could be trusted. Pass clean points."
            )
    targets = tree_map(as_tensor, targets)
    if text == "pair" and isinstance(targets, Tensor) and targets.ndim and len(targets) not in sizes:
        raise ValueError(
            f"`{argument}` is a pair of {len(tensors[0])} inputs and {len(targets)} targets: pass as many targets as "
            "inputs."
        )
    return Probes(inputs, targets, text)


def _batch_of(source: Any, n: int, seed: int, argument: str, n_batches: int | None) -> tuple[Any, str]:
    if isinstance(source, Tensor):
        return (source,), f"tensor {tuple(source.shape)}"
    if isinstance(source, Mapping):
        return source, "mapping"
    if isinstance(source, (tuple, list)):
        if len(source) != 2:
            raise ValueError(f"`{argument}` must be a pair (inputs, targets), but got {len(source)} entries.")
        return tuple(source), "pair"
    dataset: Any = getattr(source, "dataset", None) if hasattr(source, "collate_fn") else source
    indexed = hasattr(dataset, "__getitem__") and (hasattr(dataset, "__len__") or dataset is not source)
    if isinstance(dataset, str) or not (isinstance(dataset, IterableDataset) or indexed):
        raise ValueError(
            f"`{argument}` must be a tensor, a pair (inputs, targets), a mapping, a dataset or a DataLoader, "
            f"but got {repr(source) if isinstance(source, str) else type(source).__name__}."
        )
    return read_samples(source, n, seed, argument, n_batches)


def random_probes(like: Probes, seed: int) -> Probes:
    """Points uniform within the range of the points ``like``, feature by feature.

    Integers are uniform integers in their range (tokens), but booleans and tensors of zeros and ones (masks) are kept.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dtype == torch.bool:
            return leaf
        low, high = leaf.amin(0), leaf.amax(0)
        if leaf.is_floating_point():
            uniform = torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
            return (low + (high - low) * uniform).to(leaf.dtype)
        if low.min() >= 0 and high.max() <= 1:
            return leaf
        uniform = torch.rand(leaf.shape, generator=generator, dtype=torch.float64)
        return (low + ((high - low + 1) * uniform).floor()).to(leaf.dtype)

    return Probes(tree_map(draw, like.inputs), None, "uniform within the range of the train probes")
