"""The points of a callback: drawn once for a run, the same in all its processes, and compared with a checkpoint's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lc_callback.callbacks.network import function_of
from lc_callback.callbacks.trainer_data import batches_in_an_epoch, find_loader, transferred
from lc_callback.engine.network.signature import Signature
from lc_callback.run.probes import Probes, draw_probes, random_probes

__all__ = ["ProbeSource", "fingerprints"]


class ProbeSource:
    """Draws the points, and keeps them for one run.

    Args:
        name: of the callback, for errors.
        train: argument ``train_probes`` of the callback; ``None`` draws from the Trainer's loader.
        test: likewise.
        with_random: whether to draw points within the range of the train points, too.
        splits: those that are drawn for a training.
        seed: of all that is drawn.
        target_fn: argument of the callback.

    Attributes:
        probes: the points by split; empty outside a run.
        sizes: how many a training has of each, still known after it.
    """

    def __init__(
        self,
        name: str,
        train: Any,
        test: Any,
        *,
        with_random: bool,
        splits: Sequence[str],
        seed: int,
        target_fn: str | Callable[..., Any] | None,
    ) -> None:
        self._name, self._given, self._splits = name, {"train": train, "test": test}, splits
        self._with_random, self._seed, self._target_fn = with_random, seed, target_fn
        self.probes: dict[str, Probes] = {}
        self.sizes: dict[str, int] = {}

    def draw(self, trainer: Any, signature: Signature, n: int) -> dict[str, Probes]:
        """``n`` points of each split, at most.

        Raises:
            ValueError: if an argument holds no such points.
            MisconfigurationException: if there is nothing to draw from, or drawing fails.
        """
        training = trainer.state.fn == "fit"
        drawn: dict[str, Probes] = {}
        for split, seed in (("train", self._seed), ("test", self._seed + 1)):
            if not training or split in self._splits:
                drawn |= self._drawn(trainer, signature, split, seed, n)
        if not training:  # an evaluation measures what there is
            return drawn
        if "train" not in drawn:
            raise MisconfigurationException(
                f"{self._name}: the train dataloader has no dataset to draw from ({type(trainer.train_dataloader)}): "
                "pass `train_probes=`, a tensor, a pair (inputs, targets), a dataset or a DataLoader."
            )
        if "test" in self._splits and "test" not in drawn:
            rank_zero_warn(
                f"{self._name}: found no validation or test dataset to draw from, so there is no test curve. "
                "Pass `test_probes=` to have one."
            )
        if self._with_random:
            drawn["random"] = random_probes(drawn["train"], self._seed + 2)
        return drawn

    def _drawn(self, trainer: Any, signature: Signature, split: str, seed: int, n: int) -> dict[str, Probes]:
        given, target_fn = self._given[split], self._target_fn
        if isinstance(target_fn, str):
            target_fn = function_of("target_fn", target_fn)
        source = given if given is not None else find_loader(trainer, split)
        if source is None:
            return {}
        transform = partial(transferred, trainer, split, seed)
        trained_on = given is None and split == "train" and trainer.state.fn == "fit"
        n_batches = batches_in_an_epoch(trainer) if trained_on else None
        try:
            return {split: draw_probes(source, n, seed, signature, f"{split}_probes", transform, target_fn, n_batches)}
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from error
        except Exception as error:
            raise MisconfigurationException(
                f"{self._name}: drawing points failed with {type(error).__name__}: {error}\nPass them as "
                "`train_probes=` and `test_probes=`, tensors or pairs (inputs, targets) as the model gets them."
            ) from error

    def count(self) -> None:
        """Note how many points the training has."""
        self.sizes = {split: len(points) for split, points in self.probes.items()}

    @property
    def largest(self) -> int:
        """The points of the largest split; 0 before a run."""
        return max(self.sizes.values(), default=0)

    def few(self) -> dict[str, Probes]:
        """Two points of each split."""
        return {split: points.head(2) for split, points in self.probes.items()}

    def marks(self, *, labels: bool) -> dict[str, str]:
        """Fingerprints of the points, and of their ``labels``, by what is printed of them."""
        found = fingerprints(self.probes)
        if labels:
            found |= {f"labels of the {split}": points.label_fingerprint() for split, points in self.probes.items()}
        return found

    def in_words(self) -> str:
        """Such as ``"64 train and 64 test points"``; ``"the points"`` before a run."""
        texts = [f"{n:,} {split}" for split, n in self.sizes.items()]
        if not texts:
            return "the points"
        return f"{', '.join(texts[:-1])}{' and ' if len(texts) > 1 else ''}{texts[-1]} points"

    def let_go(self) -> None:
        """The run is over."""
        self.probes = {}


def fingerprints(probes: Mapping[str, Probes]) -> dict[str, str]:
    """Of the points of each split."""
    return {split: points.fingerprint() for split, points in probes.items()}
