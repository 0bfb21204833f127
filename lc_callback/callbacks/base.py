"""The base of the measuring callbacks: their common arguments, and the hooks of Lightning."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from lc_callback.callbacks._compat import Callback
from lc_callback.callbacks.arguments import check_arguments
from lc_callback.callbacks.conditions import Conditions
from lc_callback.callbacks.due_rows import DueRows
from lc_callback.callbacks.guard import Guard, guarded_hook, quiet_hook
from lc_callback.callbacks.keys import Keys
from lc_callback.callbacks.loop import Loop
from lc_callback.callbacks.network import Network, NetworkSource
from lc_callback.callbacks.peers import Peer
from lc_callback.callbacks.places import refuse_one_folder, refuse_twins
from lc_callback.callbacks.probe_source import ProbeSource
from lc_callback.callbacks.ranks import Ranks
from lc_callback.callbacks.reported import Reported
from lc_callback.callbacks.row_taker import RowTaker
from lc_callback.callbacks.row_writer import RowWriter
from lc_callback.callbacks.run_record import RunRecord
from lc_callback.callbacks.settings import recorded
from lc_callback.names import clean
from lc_callback.run.probes import Probes
from lc_callback.run.schedule import POINTS_PER_DECADE, Schedule

__all__ = ["Network", "ProbeCallback"]

T = TypeVar("T")


class ProbeCallback(Reported, Callback):  # type: ignore[misc]
    """Base of the measuring callbacks.

    A subclass defines :meth:`measure`, and may define the other methods of
    :class:`lc_callback.callbacks.measure_hooks.MeasureHooks`. It inherits fixed probes, the schedule, isolation from
    the training, one row for each step, history, checkpoint and resume, CSV, all loggers, ``trainer.callback_metrics``,
    the timeline of the run, and errors that end no run. Its constructor takes its own arguments, and ``**arguments``
    for those of this class.

    Args:
        n_probes: points drawn for each split.
        train_probes: ``None`` draws from the trainer's train dataset. A dataset or ``DataLoader`` is drawn from; a
            tensor, a pair ``(inputs, targets)`` or a mapping is taken whole.
        test_probes: likewise; ``None`` draws from the validation dataset, else the test dataset.
        random_probes: also measure points uniform within the range of the train probes.
        schedule: ``"log"`` (default: ten steps a decade, step 0 and the last step), a list of steps, or a function
            ``step -> bool``.
        every_n_train_steps: instead of ``schedule``, every ``n`` optimizer steps.
        every_n_epochs: instead of ``schedule``, at step 0 and after every ``n``-th epoch.
        seed: seed of all that is drawn.
        submodule: name of the module to measure, if not the whole LightningModule.
        forward_fn: what is called as ``forward_fn(module, inputs)`` in place of the module's forward: a function, its
            import path, or the name of a method of the module.
        target_fn: what is called as ``target_fn(batch)`` for the targets of a batch, if these are not simply its last
            part: a function, or its import path.
        log_key_prefix: put before every key, to tell several instances apart.
        raise_on_error: stop the run when a measurement fails, instead of warning and going on.
        detection: settings of the detector of transitions, by name.
        on_transition: ``["checkpoint"]`` saves a checkpoint at each transition that is found, named by it, where the
            Trainer's checkpoints go.
        stop_after: kind of transition at which the training is stopped, as ``EarlyStopping`` would.
        certainty: of the transitions that ``on_transition`` and ``stop_after`` act on: ``"firm"``, once later rows have
            confirmed them; or ``"tentative"``, all of them at once.
        custom_scalars: also write a layout for the tab of that name in TensorBoard, which has all curves of a kind in
            one chart. It replaces any other layout of the run.
        max_overhead: leave out rows while the callback has taken more than this part of the training time: 0.1 is
            10 %. The first row, the last one and the first in each third of a decade of steps are always taken.

    Example::

        >>> import torch
        >>> from lc_callback.callbacks import ProbeCallback
        >>> class OutputNorm(ProbeCallback):
        ...     group = "output_norm"
        ...     def measure(self, network, probes):
        ...         return {f"output_norm/{k}": network.module(p.inputs).norm().item() for k, p in probes.items()}
        >>> OutputNorm(every_n_epochs=1)
        OutputNorm(every_n_epochs=1, n_probes=64, seed=0)
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = recorded(cls.__init__)  # type: ignore[method-assign]

    @recorded
    def __init__(
        self,
        *,
        n_probes: int | str = 64,
        train_probes: Any = None,
        test_probes: Any = None,
        random_probes: bool = True,
        schedule: str | list[int] | Callable[[int], bool] | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        seed: int = 0,
        submodule: str | None = None,
        forward_fn: str | Callable[..., Any] | None = None,
        target_fn: str | Callable[..., Any] | None = None,
        log_key_prefix: str = "",
        raise_on_error: bool = False,
        detection: dict[str, float] | None = None,
        on_transition: list[str] | None = None,
        stop_after: str | None = None,
        certainty: str = "firm",
        custom_scalars: bool = False,
        max_overhead: float | None = None,
    ) -> None:
        super().__init__()
        self.check_n_probes(n_probes)
        flags = {"random_probes": random_probes, "raise_on_error": raise_on_error, "custom_scalars": custom_scalars}
        check_arguments(
            type(self).__name__,
            self.kinds,
            seed=seed,
            flags=flags,
            stop_after=stop_after,
            on_transition=on_transition,
            certainty=certainty,
            max_overhead=max_overhead,
            texts={"log_key_prefix": log_key_prefix, "submodule": submodule},
            functions={"forward_fn": forward_fn, "target_fn": target_fn},
        )
        self.detection = self.checked_detection(detection)
        per_decade = self.points_per_decade if schedule is None else POINTS_PER_DECADE
        self.schedule = Schedule(schedule, every_n_train_steps, every_n_epochs, per_decade)
        self.n_probes, self.seed, self.max_overhead = n_probes, seed, max_overhead
        self.train_probes, self.test_probes, self.random_probes = train_probes, test_probes, random_probes
        self.submodule, self.forward_fn, self.target_fn = submodule, forward_fn, target_fn
        self.log_key_prefix, self.raise_on_error = clean(log_key_prefix), raise_on_error
        self.on_transition, self.stop_after, self.certainty = on_transition, stop_after, certainty
        self.custom_scalars = custom_scalars
        #: Whether the weights are no longer those that are trained, so that the run has no more rows.
        self.is_closed = False
        self._arguments: dict[str, str]  # of the constructor, as text; kept by `recorded`
        self._loop = self._parts()

    def _parts(self) -> Loop:
        name = type(self).__name__ + (f"(log_key_prefix={self.log_key_prefix!r})" if self.log_key_prefix else "")
        keys, guard, ranks = Keys(self.log_key_prefix, self.group), Guard(name, self.raise_on_error), Ranks()
        conditions = Conditions(name, ranks, self.forward_fn, self.seed)
        self.peer = Peer(
            name,
            keys,
            guard,
            DueRows(name, guard, ranks, self.max_overhead),
            RowTaker(name, keys, guard, ranks, conditions),
            RunRecord(keys, guard, partial(self.find, settings=self.detection)),
            RowWriter(name, keys, guard, self),
        )
        source = ProbeSource(
            name,
            self.train_probes,
            self.test_probes,
            with_random=self.random_probes,
            splits=self.splits,
            seed=self.seed,
            target_fn=self.target_fn,
        )
        network = NetworkSource(name, self.submodule, self.forward_fn)
        return Loop(self, self.peer, network, source, ranks, conditions)

    # For a measure

    @property
    def all_probes(self) -> Mapping[str, Probes]:
        """All points of the run by split; empty outside a run."""
        return self._loop.source.probes

    def in_shares(self, network: Network, work: Callable[[int, int], T]) -> list[T]:
        """For :meth:`measure`, with :attr:`shares_points`: ``work(index, n)`` of each of the ``n`` processes.

        Under DDP these are the processes of the run, else the one there is. All measure the network of the first, and
        get the results of all, in the order of the ranks. Must be called equally often on all of them. If the forward
        itself needs the other processes, each does all of the work.
        """
        ranks = self._loop.ranks.measuring
        if not ranks.shares:
            return [work(0, 1)]
        ranks.equalise(network.module.buffers())  # each has its own running statistics of a BatchNorm
        return ranks.gather(lambda: work(ranks.rank, ranks.n))

    def decide(self, work: Callable[[], T]) -> T:
        """``work()`` of the first of the processes that measure together. Must be called on all of them."""
        return self._loop.ranks.measuring.decide(work)

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A function ``(done, total)`` that prints a line every few seconds, above the Trainer's progress bar."""
        return self._loop.conditions.progress(what)

    # Hooks

    @quiet_hook
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check what needs no network."""
        refuse_twins(self, trainer.callbacks)
        if stage == "fit":
            refuse_one_folder(_peers(trainer))

    @quiet_hook
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what can be checked without data; ``setup()`` and ``configure_model()`` of the module have run."""
        self._loop.network.of(pl_module)

    @quiet_hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the probes, try a measurement on two of them, and measure step 0."""
        self._loop.begin(trainer, pl_module, _peers(trainer), self._arguments)

    @guarded_hook
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure if a row is due after this batch's optimizer steps."""
        self._loop.after_batch(trainer, pl_module)

    @guarded_hook
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure a row that is due after the epoch, if the epoch ended before its last batch."""
        self._loop.after_epoch(trainer, pl_module)

    @guarded_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, and say so if the measurements took much of the run."""
        self._loop.end(trainer, pl_module)

    @guarded_hook
    def take_closing_row(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step of a training, unless that has been done."""
        self._loop.take_closing_row(trainer, pl_module)

    @quiet_hook
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """In ``trainer.validate()``: draw the probes and try a measurement."""
        if trainer.state.fn == "validate":
            self._loop.begin_evaluation(trainer, pl_module)

    @guarded_hook
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """In ``trainer.validate()``: measure once. The row is logged, and belongs to no history."""
        if trainer.state.fn == "validate":
            self._loop.end_evaluation(trainer, pl_module)

    @quiet_hook
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the probes and try a measurement."""
        self._loop.begin_evaluation(trainer, pl_module)

    @guarded_hook
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure once. The row is logged, and belongs to no history."""
        self._loop.end_evaluation(trainer, pl_module)

    @guarded_hook
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the probes."""
        self._loop.leave(trainer, pl_module, stage)

    # State

    @property
    def state_key(self) -> str:
        """Tells instances apart by ``log_key_prefix``."""
        asks = sys._getframe(1)
        if asks.f_code.co_name == "_validate_callbacks_list":  # of Lightning, whose error says nothing of the prefix
            refuse_twins(self, asks.f_locals.get("callbacks", []))
        return self._generate_state_key(log_key_prefix=self.log_key_prefix)

    @guarded_hook
    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Look at the weights, by which a later resume knows whether this is the run that the rows are of."""
        if self._loop.is_active:
            self.peer.record.look_at_weights(trainer, pl_module)

    @quiet_hook
    def state_dict(self) -> dict[str, Any]:
        """Plain Python types only: rows, fingerprints of the probes, and what the subclass adds."""
        return self.peer.record.state(self._arguments, self.extra_state)

    @quiet_hook
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint. A state that cannot be read costs the earlier rows and a warning."""
        self.peer.record.restore(state_dict, self.load_extra_state)


def _peers(trainer: Any) -> list[ProbeCallback]:
    return [callback for callback in trainer.callbacks if isinstance(callback, ProbeCallback)]
