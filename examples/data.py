"""The data of the experiments, in memory, in random batches.

The digits are inside scikit-learn, and sums are made here. MNIST, CIFAR-10 and Imagenette are read from their own
files, in the folders where torchvision puts them; torchvision itself is only one way to get them there.
"""

from __future__ import annotations

import gzip
import math
import pickle
import struct
from abc import abstractmethod
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset


class MissingDataError(FileNotFoundError):
    """Files that are not where they should be; the text is one line that says which, and how to get them."""


def batches(dataset: TensorDataset, batch_size: int, n_batches: int) -> DataLoader:
    """Random batches, indexed by lists: collating 200 single samples would take longer than a small network's step."""
    sampler = RandomSampler(dataset, replacement=True, num_samples=batch_size * n_batches)
    return DataLoader(dataset, sampler=BatchSampler(sampler, batch_size, drop_last=False), batch_size=None)


class InMemory(LightningDataModule):
    """Base: ``train`` and ``test`` are datasets that can be indexed by lists.

    One epoch is the whole run: batches are drawn with replacement, ``trainer.max_steps`` of them.
    """

    def __init__(self, batch_size: int) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be at least 1, but got {batch_size}.")
        self.batch_size = batch_size

    @abstractmethod
    def load(self) -> tuple[TensorDataset, TensorDataset]:
        """The train and the test samples."""

    def setup(self, stage: str) -> None:
        self.train, self.test = self.load()

    def train_dataloader(self) -> DataLoader:
        steps = self.trainer.max_steps if self.trainer else 1
        if steps < 1:
            raise ValueError(f"`trainer.max_steps` must be at least 1, but got {steps}: the runs are counted in steps.")
        return batches(self.train, self.batch_size, steps)

    def val_dataloader(self) -> DataLoader:
        """The test samples: the callbacks draw their test points from here."""
        return DataLoader(self.test, self.batch_size)


class Digits(InMemory):
    """The 1797 handwritten digits of scikit-learn, images ``(1, 8, 8)`` in [0, 1].

    Args:
        n_train: training samples, at most 1097. Each set holds the smaller ones; the 700 test samples are the same.
        random_labels: draw all labels of the training samples at random.
        batch_size: samples in a batch.
        seed: of the split and of the random labels. With 0 the split is that of ``digits_grokking.py``.
    """

    def __init__(self, n_train: int = 500, random_labels: bool = False, batch_size: int = 200, seed: int = 0) -> None:
        super().__init__(batch_size)
        if not 1 <= n_train <= 1097:
            raise ValueError(f"`n_train` must be from 1 to 1097, which leaves 700 test samples, but got {n_train}.")
        self.n_train, self.random_labels, self.seed = n_train, random_labels, seed

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        images, labels = load_digits(return_X_y=True)
        generator = torch.Generator().manual_seed(self.seed)
        order = torch.randperm(len(images), generator=generator)
        x = torch.tensor(images, dtype=torch.float32)[order].reshape(-1, 1, 8, 8) / 16
        y = torch.tensor(labels)[order]
        test = slice(500, 1200)
        rest = torch.cat([torch.arange(500), torch.arange(1200, 1797)])[: self.n_train]
        y_train = torch.randint(10, (self.n_train,), generator=generator) if self.random_labels else y[rest]
        return TensorDataset(x[rest], y_train), TensorDataset(x[test], y[test])


class ModularAddition(InMemory):
    """All sums ``a + b mod p``: tokens ``(a, b, p)``, where ``p`` stands for ``=``, and the sum as class.

    Args:
        modulus: ``p``.
        train_fraction: share of the p^2 pairs that is trained on; the others are the test.
        batch_size: samples in a batch.
        seed: of the split.
    """

    def __init__(self, modulus: int = 97, train_fraction: float = 0.3, batch_size: int = 512, seed: int = 0) -> None:
        super().__init__(batch_size)
        if modulus < 2:
            raise ValueError(f"`modulus` must be at least 2, but got {modulus}.")
        if not 0 < train_fraction < 1:
            raise ValueError(f"`train_fraction` must be between 0 and 1, but got {train_fraction}.")
        self.modulus, self.train_fraction, self.seed = modulus, train_fraction, seed

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        p = self.modulus
        pairs = torch.cartesian_prod(torch.arange(p), torch.arange(p))
        tokens = torch.cat([pairs, torch.full((len(pairs), 1), p)], 1)
        order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(self.seed))
        n_train = math.ceil(self.train_fraction * len(pairs))
        train, test = order[:n_train], order[n_train:]
        sums = pairs.sum(1) % p
        return TensorDataset(tokens[train], sums[train]), TensorDataset(tokens[test], sums[test])


class Pixels(TensorDataset):
    """Images kept as bytes ``(N, C, H, W)``, a quarter of the memory, and given as floats, standardised by channel."""

    def __init__(self, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(images, labels)
        self.mean, self.std = (torch.tensor(values).reshape(-1, 1, 1) for values in (mean, std))

    def __getitem__(self, index: int | list[int]) -> tuple[Tensor, ...]:
        images, labels = super().__getitem__(index)
        return (images / 255 - self.mean) / self.std, labels


class MNIST(InMemory):
    """MNIST, images ``(1, 28, 28)`` in [0, 1], from ``root/MNIST/raw``.

    Attributes:
        name: of the folder in ``root``.

    Args:
        root: folder of data sets.
        n_train: training samples, drawn once by ``seed``; all if ``None``. Each set holds the smaller ones.
        random_labels: draw all labels of the training samples at random.
        batch_size: samples in a batch.
        seed: of the choice and of the random labels.
        pool: pixels in each direction that become one, their mean: images of ``28 // pool`` pixels in each direction.
    """

    name = "MNIST"

    def __init__(
        self,
        root: str = "data",
        n_train: int | None = None,
        random_labels: bool = False,
        batch_size: int = 200,
        seed: int = 0,
        pool: int = 1,
    ) -> None:
        super().__init__(batch_size)
        if not 1 <= pool <= 28:
            raise ValueError(f"`pool` must be from 1 to 28, the pixels of an image in each direction, but got {pool}.")
        self.root, self.n_train, self.random_labels, self.seed = root, n_train, random_labels, seed
        self.pool = pool

    def file(self, name: str) -> Path:
        """The file of that name, packed or not."""
        path = Path(self.root) / self.name / "raw" / f"{name}-ubyte"
        packed = path.with_name(f"{path.name}.gz")
        if not (path.exists() or packed.exists()):
            raise _missing(self.name, f"{path.name} or {packed.name}, one of four files,", path.parent, self.root)
        return path if path.exists() else packed

    def prepare_data(self) -> None:
        for split, kind in product(("train", "t10k"), ("images-idx3", "labels-idx1")):
            self.file(f"{split}-{kind}")

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        train, test = (
            (
                F.avg_pool2d(read_idx(self.file(f"{split}-images-idx3")).unsqueeze(1) / 255, self.pool),
                read_idx(self.file(f"{split}-labels-idx1")).long(),
            )
            for split in ("train", "t10k")
        )
        x, y = train
        n_train = len(x) if self.n_train is None else self.n_train
        if not 1 <= n_train <= len(x):
            raise ValueError(f"`n_train` must be from 1 to {len(x)}, the training images there are, but got {n_train}.")
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(x), generator=generator)[:n_train]
        y_train = torch.randint(10, (n_train,), generator=generator) if self.random_labels else y[chosen]
        return TensorDataset(x[chosen], y_train), TensorDataset(*test)


class FashionMNIST(MNIST):
    """Fashion-MNIST, clothes in the format of :class:`MNIST`, from ``root/FashionMNIST/raw``."""

    name = "FashionMNIST"


class CIFAR10(InMemory):
    """CIFAR-10, images ``(3, 32, 32)`` standardised by channel, from ``root/cifar-10-batches-py``.

    The batches are pickles, which can run any code when they are opened: take them from a source you trust.

    Args:
        root: folder of data sets.
        batch_size: samples in a batch.
    """

    def __init__(self, root: str = "data", batch_size: int = 256) -> None:
        super().__init__(batch_size)
        self.root = root
        self.folder = Path(root) / "cifar-10-batches-py"
        self.train_files = [self.folder / f"data_batch_{i}" for i in range(1, 6)]
        self.test_files = [self.folder / "test_batch"]

    def prepare_data(self) -> None:
        for path in self.train_files + self.test_files:
            if not path.exists():
                raise _missing("CIFAR10", f"{path.name}, one of six files,", self.folder, self.root)

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        train, test = (
            Pixels(*read_cifar(files), (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
            for files in (self.train_files, self.test_files)
        )
        return train, test


class Imagenette(InMemory):
    """Imagenette, ten classes of ImageNet, standardised by channel, from ``root/imagenette2-160``.

    Args:
        root: folder of data sets.
        size: side of the square that is cut out of the middle of each image, after its shorter side got that length.
        batch_size: samples in a batch.
    """

    def __init__(self, root: str = "data", size: int = 128, batch_size: int = 128) -> None:
        super().__init__(batch_size)
        if size < 1:
            raise ValueError(f"`size` must be at least 1, but got {size}.")
        self.root, self.size = root, size
        self.folder = Path(root) / "imagenette2-160"

    def prepare_data(self) -> None:
        for split in ("train", "val"):
            if not any((self.folder / split).glob("*/*.JPEG")):
                raise _missing(
                    "Imagenette", f"{split}/, with a folder of .JPEG files for each class,", self.folder, self.root
                )

    def load(self) -> tuple[TensorDataset, TensorDataset]:
        train, test = (
            Pixels(*read_folder(self.folder / split, self.size), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
            for split in ("train", "val")
        )
        return train, test


_DOWNLOADS = {
    "MNIST": "MNIST({root!r}, download=True)",
    "FashionMNIST": "FashionMNIST({root!r}, download=True)",
    "CIFAR10": "CIFAR10({root!r}, download=True)",
    "Imagenette": "Imagenette({root!r}, 'train', '160px', download=True)",
}


def _missing(name: str, what: str, folder: Path, root: str) -> MissingDataError:
    download = _DOWNLOADS[name].format(root=root)
    return MissingDataError(
        f"`root` {root!r} holds no {name}: put {what} into {folder}, or let torchvision download it: "
        f'pip install torchvision && python -c "import torchvision; torchvision.datasets.{download}"'
    )


def read_idx(path: Path) -> Tensor:
    """The bytes of a file of the MNIST format, packed with gzip or not, in their shape."""
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    # Two zeros, 8 for unsigned bytes, the number of axes; then the length of each, big-endian; then the values.
    if content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is not a file of the MNIST format (IDX of unsigned bytes): download it again.")
    axes = content[3]
    shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != math.prod(shape):
        raise ValueError(f"{path} should hold {math.prod(shape)} values, but holds {len(values)}: download it again.")
    return torch.tensor(values).reshape(shape)


def read_cifar(paths: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, 32, 32)`` and labels of files of the CIFAR-10 format."""
    images, labels = [], []
    for path in paths:
        with path.open("rb") as file:
            batch = pickle.load(file, encoding="bytes")  # written by Python 2
        images.append(torch.tensor(batch[b"data"]).reshape(-1, 3, 32, 32))
        labels += batch[b"labels"]
    return torch.cat(images), torch.tensor(labels)


def read_folder(folder: Path, size: int) -> tuple[Tensor, Tensor]:
    """Images ``(N, 3, size, size)`` and labels of a folder with one folder of JPEG files for each class."""
    images, labels = [], []
    for label, of_class in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(of_class.glob("*.JPEG")):
            with Image.open(path) as image:
                images.append(torch.tensor(np.asarray(_square(image.convert("RGB"), size))).permute(2, 0, 1))
            labels.append(label)
    return torch.stack(images), torch.tensor(labels)


def _square(image: Image.Image, size: int) -> Image.Image:
    """The middle of an image whose shorter side has been brought to ``size``."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
