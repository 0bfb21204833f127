"""The processes of a run: sharing out the work of a measurement, and staying together when it fails on one of them."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lc_callback.callbacks._compat import DDP_STRATEGIES, FSDP_STRATEGIES

__all__ = ["RankError", "RankGroup", "Ranks", "check_weights_are_whole", "communicates"]

T = TypeVar("T")


class RankError(RuntimeError):
    """What failed, and on which ranks. Raised on all of them.

    Attributes:
        everywhere: whether it failed on all; the error of this rank is the cause then.
    """

    def __init__(self, errors: dict[int, str], everywhere: bool) -> None:
        super().__init__("; ".join(f"rank {rank}: {text}" for rank, text in errors.items()))
        self.everywhere = everywhere


class RankGroup:
    """``n`` processes that make the same calls in the same order, this one being ``rank``. One alone needs no others.

    Calls may be nested. They start with what may fail on one rank only, and end with one exchange: a rank that fails
    before an exchange tells the others at that one, whether or not it is the one it was to make.

    Args:
        rank: which of them this is.
        n: how many there are.
        shares: whether each measures a part of the points. Otherwise each measures all, for a forward that needs the
            other processes has to run equally often on each.
    """

    def __init__(self, rank: int = 0, n: int = 1, *, shares: bool = True) -> None:
        self.rank, self.n, self.shares = rank, n, shares

    @classmethod
    def of_run(cls, trainer: Any) -> RankGroup:
        """All processes of a run, which do the same, if they can talk to each other; else this one alone."""
        talk = torch.distributed.is_available() and torch.distributed.is_initialized()
        if trainer.world_size == 1 or not talk or torch.distributed.get_world_size() != trainer.world_size:
            return cls()
        return cls(trainer.global_rank, trainer.world_size, shares=False)

    @classmethod
    def that_share(cls, trainer: Any) -> RankGroup:
        """The processes of a run, if each has the whole model and a forward that needs no other; else this one alone.

        That is DDP, but not what inherits from it under another name, such as DeepSpeed, and not where weights differ
        between the steps at which they are averaged.
        """
        if trainer.world_size == 1:
            return cls()
        strategy = trainer.strategy
        local = isinstance(strategy, DDP_STRATEGIES) and getattr(strategy, "strategy_name", "ddp").startswith("ddp")
        if not local or getattr(strategy, "_model_averaging_period", None) is not None:
            return cls()
        return cls(trainer.global_rank, trainer.world_size)

    def gather(self, work: Callable[[], T]) -> list[T]:
        """``work()`` of each process, in the order of the ranks, on each.

        Raises:
            RankError: on all ranks, if it failed on one.
        """
        if self.n == 1:
            return [work()]
        own: Exception | None = None
        mine: tuple[Any, str | None]
        try:
            mine = work(), None
        except RankError:  # the others know
            raise
        except Exception as error:
            traceback.clear_frames(error.__traceback__)  # it may be memory that is short
            own, mine = error, (None, f"{type(error).__name__}: {error}")
        every: list[Any] = [None] * self.n  # objects: results or errors, and parts of different sizes
        torch.distributed.all_gather_object(every, mine)
        errors = {rank: text for rank, (_, text) in enumerate(every) if text is not None}
        if errors:
            raise RankError(errors, everywhere=len(errors) == self.n) from own
        return [result for result, _ in every]

    def agree(self, work: Callable[[], T]) -> T:
        """``work()`` of this process, once it has succeeded on all.

        Raises:
            RankError: on all ranks, if it failed on some. If it failed on all, each raises its own error.
        """
        done: list[T] = []
        try:
            self.gather(lambda: done.append(work()))
        except RankError as error:
            if error.everywhere and error.__cause__ is not None:
                raise error.__cause__ from None
            raise
        return done[0]

    def decide(self, work: Callable[[], T]) -> T:
        """``work()`` of the first process. The others do it too, and whether they can does not matter."""
        if self.n == 1:
            return work()
        try:
            outcome: list[Any] = [(work(), None)]
        except Exception as error:
            outcome = [(None, {0: f"{type(error).__name__}: {error}"})]
        torch.distributed.broadcast_object_list(outcome, src=0)  # by all, for the others wait for it
        result, errors = outcome[0]
        if errors:
            raise RankError(errors, everywhere=False)
        return result

    def alike(self, value: T, key: Callable[[T], object]) -> T:
        """``value``, but that of the first process where its key differs between processes."""
        if self.n == 1:
            return value
        keys = self.gather(lambda: key(value))
        return value if all(other == keys[0] for other in keys) else self.decide(lambda: value)

    def equalise(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.n == 1:
            return
        self.gather(lambda: None)  # all have come so far
        own = list(tensors)
        firsts = self.decide(lambda: [tensor.cpu() for tensor in own])
        for tensor, first in zip(own, firsts, strict=True):
            tensor.copy_(first)


def communicates(forward: Callable[[], object]) -> bool:
    """Whether a forward talks to other processes. All have to call this; a forward that fails does not."""
    with _Watch() as watch:
        try:
            forward()
        except Exception:  # what is wrong, the trial measurement says
            return watch.has_talked
    return watch.has_talked


class _Watch(TorchDispatchMode):
    """Sees the collective operations of torch, below all functions that lead to them."""

    has_talked = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.has_talked |= "c10d" in func.namespace
        return func(*args, **(kwargs or {}))


def check_weights_are_whole(trainer: Any, module: nn.Module, name: str) -> None:
    """Check that each process can call the module by itself, for the callback of this name.

    Raises:
        MisconfigurationException: if each has a part of the weights, which only the strategy can put together.
    """
    strategy = trainer.strategy
    own = any(base.__name__ == "FullyShardedDataParallel" for part in module.modules() for base in type(part).__mro__)
    if isinstance(strategy, FSDP_STRATEGIES) or own or any(map(_is_part, module.parameters())):
        raise MisconfigurationException(
            f"{name}: the strategy {type(strategy).__name__} gives each process a part of the weights, and a network "
            "that is not whole cannot be measured. Use strategy='ddp', ModelParallelStrategy with `fully_shard` in "
            "`configure_model`, or DeepSpeed up to stage 2; or measure the checkpoints of the run, once they are "
            "whole, with `python -m lc_callback measure`."
        )


def _is_part(parameter: nn.Parameter) -> bool:
    """Whether this is a part that FSDP has flattened, or that DeepSpeed has taken away (stage 3)."""
    return type(parameter).__name__ == "FlatParameter" or any(
        hasattr(parameter, mark) for mark in ("_is_flat_param", "ds_id")
    )


class Ranks:
    """The processes of one run, as a callback sees them.

    Attributes:
        everyone: all processes of the run.
        measuring: those that measure a row together.
    """

    def __init__(self) -> None:
        self.everyone, self.measuring = RankGroup(), RankGroup()

    def begin(self, trainer: Any) -> None:
        """A run begins; who measures together is found later."""
        self.everyone, self.measuring = RankGroup.of_run(trainer), RankGroup()

    def end(self) -> None:
        """The run is over."""
        self.everyone, self.measuring = RankGroup(), RankGroup()
