"""The life cycle that all measuring callbacks share: set up, schedule, isolate, measure, record, detect, report."""

from __future__ import annotations

import importlib
import inspect
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeGuard, TypeVar

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from torch.utils._pytree import tree_leaves

from lc_callback.callbacks._compat import Callback
from lc_callback.callbacks.closing import ClosingRows
from lc_callback.callbacks.guard import (
    MeasurementError,
    guarded_hook,
    in_words,
    no_warning_is_an_error,
    numbers_in,
    plain_state,
    quiet_hook,
)
from lc_callback.callbacks.known_weights import KnownWeights
from lc_callback.callbacks.overhead import (
    SECONDS_TO_SAY,
    SHARE_TO_SAY,
    RunCost,
    check_max_overhead,
    ends_with,
    is_kept,
    wait_for_device,
)
from lc_callback.callbacks.places import folder_of, refuse_one_folder, refuse_one_key, refuse_twins
from lc_callback.callbacks.processes import Processes, check_weights_are_whole, communicates
from lc_callback.callbacks.row_report import RowReport
from lc_callback.callbacks.run_report import RunReport
from lc_callback.callbacks.settings import changed_settings, changes_in_words, recorded
from lc_callback.callbacks.stale_values import warn_of_stale_values
from lc_callback.callbacks.trainer_data import batches_in_an_epoch, find_loader, transferred
from lc_callback.callbacks.unseen_values import stand_in
from lc_callback.checks import positive_integer
from lc_callback.detection.outliers import layers_of_outliers, shares_in_columns
from lc_callback.detection.transitions import (
    FIRM,
    TENTATIVE,
    Curves,
    Detector,
    PhaseEvent,
    Transition,
    Turn,
    only_supported,
)
from lc_callback.engine.network.modules import find_module
from lc_callback.engine.network.points import call_model
from lc_callback.engine.network.signature import Signature, call_in_words
from lc_callback.isolation import untouched
from lc_callback.names import clean, distinct
from lc_callback.reporting.figure import WIDTH, draw
from lc_callback.reporting.loggers import log_text, say
from lc_callback.run.history import CsvFile, History
from lc_callback.run.probes import Probes, draw_probes, random_probes
from lc_callback.run.schedule import Schedule
from lc_callback.run.timeline import Panel, Part
from lc_callback.suggestions import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Network", "ProbeCallback"]

T = TypeVar("T")

_STATE_VERSION = 1
_FEW = 8  # probes under fast_dev_run
_PROGRESS_EVERY = 5.0  # seconds


@dataclass(frozen=True)
class Network:
    """What is measured: a module, and how it is called if not as ``module(inputs)``."""

    module: nn.Module
    forward_fn: Callable[..., Any] | None = None

    def __call__(self, inputs: Any) -> Any:
        """The output for the ``inputs`` of probes."""
        return call_model(self.module, inputs, self.forward_fn)


class ProbeCallback(Callback):
    """Base of the measuring callbacks.

    A subclass defines :meth:`measure`, and may define :meth:`prepare`, :meth:`describe`, :meth:`find`, :meth:`panels`,
    :meth:`extra_state` and :meth:`load_extra_state`. It inherits fixed probes, the schedule, isolation from the
    training, one row for each step, history, checkpoint and resume, CSV, all loggers, ``trainer.callback_metrics``, the
    timeline of the run, and errors that end no run.

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

    #: What the seconds are logged under, and the name of the folder of ``history.csv``.
    group: ClassVar[str] = "probe"
    #: The transitions that :meth:`find` can find.
    kinds: ClassVar[tuple[str, ...]] = ()
    #: Whether ``python -m lc_callback measure`` takes it without being asked.
    offline_by_default: ClassVar[bool] = True
    #: Whether fewer probes make a row cheaper.
    cost_grows_with_probes: ClassVar[bool] = True
    #: Whether :meth:`measure` shares out its points over the processes of a run, see :meth:`in_shares`.
    shares_points: ClassVar[bool] = False
    #: The splits that are drawn for a training.
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    #: Keys of a row that a trial on two points may lack.
    late_keys: ClassVar[tuple[str, ...]] = ()
    #: The settings of :meth:`find`, and their defaults.
    detection_settings: ClassVar[dict[str, float]] = {}

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
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            raise ValueError(f"`seed` must be an integer from 0 to 2**63 - 1, but got {seed!r}.")
        flags = {"random_probes": random_probes, "raise_on_error": raise_on_error, "custom_scalars": custom_scalars}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise ValueError(f"`{name}` must be True or False, but got {flag!r}.")
        if stop_after is not None and stop_after not in self.kinds:
            possible = f"one of {list(self.kinds)}" if self.kinds else "None, for it finds no transitions"
            near = did_you_mean(stop_after, self.kinds)
            raise ValueError(f"`stop_after` of {type(self).__name__} must be {possible}, but got {stop_after!r}{near}")
        if on_transition is not None and [*_listed(on_transition)] != ["checkpoint"]:
            raise ValueError(f"`on_transition` must be None or ['checkpoint'], but got {on_transition!r}.")
        if certainty not in (FIRM, TENTATIVE):
            raise ValueError(f"`certainty` must be {FIRM!r} or {TENTATIVE!r}, but got {certainty!r}.")
        check_max_overhead(max_overhead)
        self.max_overhead = max_overhead
        self.detection = self.checked_detection(detection)
        self.on_transition, self.stop_after, self.certainty = on_transition, stop_after, certainty
        self.custom_scalars = custom_scalars
        if not isinstance(log_key_prefix, str):
            raise ValueError(f"`log_key_prefix` must be a string, but got {log_key_prefix!r}.")
        if submodule is not None and not isinstance(submodule, str):
            raise ValueError(f"`submodule` must be the name of a module, but got {submodule!r}.")
        if forward_fn is not None and not (callable(forward_fn) or isinstance(forward_fn, str)):
            raise ValueError(f"`forward_fn` must be a function, an import path or a method name, not {forward_fn!r}.")
        if target_fn is not None and not (callable(target_fn) or isinstance(target_fn, str)):
            raise ValueError(f"`target_fn` must be a function or an import path, but got {target_fn!r}.")
        self.schedule = Schedule(schedule, every_n_train_steps, every_n_epochs)
        self.n_probes, self.seed = n_probes, seed
        self.train_probes, self.test_probes, self.random_probes = train_probes, test_probes, random_probes
        self.submodule, self.forward_fn, self.target_fn = submodule, forward_fn, target_fn
        self.log_key_prefix, self.raise_on_error = clean(log_key_prefix), raise_on_error
        #: The rows so far.
        self.history = History()
        self._probes: dict[str, Probes] = {}
        #: What was found, moved and withdrawn so far.
        self.events: list[PhaseEvent] = []
        self._detector = Detector(only_supported(partial(self.find, settings=self.detection)), log_key_prefix)
        self._detector_state: dict[str, Any] | None = None
        self._marks: dict[str, float] | None = None  # of the last look
        self._untold: list[PhaseEvent] = []
        self._has_measured = False
        self._run: RunReport | None = None  # in the last measuring callback of the Trainer
        self._fingerprints: dict[str, str] = {}
        self._arguments: dict[str, str]  # of the constructor, as text; kept by `recorded`
        self._old_arguments: dict[str, str] = {}  # of the checkpoint that is resumed
        self._weights = KnownWeights()  # by which this run is known again
        self._is_used = False  # in a run or an evaluation
        self._row_report = RowReport(self)
        self._renamed: set[str] = set()  # keys that are taken, of which a warning has been given
        self._model = ""  # what was measured, for the title of the timeline
        self._n_points: dict[str, int] = {}
        self._trial_keys: set[str] = set()  # of the numbers of a row, without prefix
        self._restored = False
        self._active = False
        self._processes = Processes()  # that measure a row together
        self._everyone = Processes()  # of the run
        self._epochs_differ = False  # each of them has its own number of batches
        self._csv: CsvFile | None = None
        self._folder: Path | None = None  # where files go, if there are to be any
        self._looked_at = -1  # the last step for which the schedule was asked
        self._tried = -1  # the last step that was measured, with or without success
        self._n_failed = 0  # rows of this run
        #: Whether the weights are no longer those that are trained, so that the run has no more rows.
        self.is_closed = False
        self._seconds, self._began = 0.0, 0.0
        self._cost: RunCost | None = None  # shared by the measuring callbacks of the Trainer
        self._left_out = -1  # the last step whose row was left out
        self._described, self._untold_setup = False, ""
        self._n_used = n_probes  # fewer where there are fewer to draw
        self._print: Callable[[str], None] | None = None

    # What a subclass defines

    @staticmethod
    def check_n_probes(n_probes: Any) -> None:
        """Raise a ValueError if ``n_probes`` is not what :meth:`choose_n_probes` takes."""
        positive_integer("n_probes", n_probes)

    def choose_n_probes(self, network: Network, few: Callable[[], Mapping[str, Probes]]) -> int:
        """How many points to draw for each split; ``few()`` draws two of each."""
        return int(self.n_probes)

    def prepare(self, network: Network, probes: Mapping[str, Probes]) -> None:
        """Called once with all probes before the first measurement of a run; errors stop the run before it starts."""

    def measure(self, network: Network, probes: Mapping[str, Probes]) -> Mapping[str, float | torch.Tensor]:
        """Measure one row.

        Called with the network in measuring conditions (see :func:`lc_callback.isolation.untouched`).

        Args:
            network: the module, and how to call it.
            probes: the splits by name: ``"train"``, ``"test"`` and ``"random"`` where there are such. ``"train"`` is
                missing only in ``trainer.validate()`` and ``trainer.test()``.

        Returns:
            Values by key. ``log_key_prefix`` is added by the base. A tensor of more than one value is kept in
            ``history.arrays``, not logged.
        """
        raise NotImplementedError(f"{type(self).__name__} must define `measure`.")

    def in_shares(self, network: Network, work: Callable[[int, int], T]) -> list[T]:
        """For :meth:`measure`, with :attr:`shares_points`: ``work(index, n)`` of each of the ``n`` processes.

        Under DDP these are the processes of the run, else the one there is. All measure the network of the first, and
        get the results of all, in the order of the ranks. Must be called equally often on all of them. If the forward
        itself needs the other processes, each does all of the work.
        """
        if not self._processes.shares:
            return [work(0, 1)]
        self._processes.equalise(network.module.buffers())  # each has its own running statistics of a BatchNorm
        return self._processes.gather(lambda: work(self._processes.rank, self._processes.n))

    def trial(self, network: Network, probes: Mapping[str, Probes]) -> Mapping[str, float | torch.Tensor]:
        """Called once before the training, with two points of each split; errors stop the run before it starts.

        Returns what :meth:`measure` would, of which only the keys count; by default it is called.
        """
        return self.measure(network, probes)

    def histogram(self, key: str, array: torch.Tensor) -> torch.Tensor | None:
        """What of an array goes to the loggers as a histogram; by default nothing."""

    @staticmethod
    def find(curves: Curves, settings: Mapping[str, float]) -> list[Turn]:
        """The transitions that all rows so far show; none by default.

        Args:
            curves: steps and values of each key, without the prefix.
            settings: one value for each of :attr:`detection_settings`.
        """
        return []

    @staticmethod
    def followed(keys: Sequence[str]) -> list[str]:
        """Of the keys (without prefix) of a row, those that :meth:`find` is about; none by default.

        Each gets a sentence in the summary of the run if no transition of it is known.
        """
        return []

    @staticmethod
    def check_detection(settings: Mapping[str, float]) -> None:
        """Raise a ValueError if a setting of :meth:`find` is out of range."""

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """How the timeline shows the keys (without prefix) of a row: by default all that are of :attr:`group`."""
        own = [key for key in keys if key.startswith(f"{cls.group}/") and not key.endswith("/seconds")]
        lines = {key.removeprefix(f"{cls.group}/"): key for key in own}
        return [Panel(cls.group, lines)] if lines else []

    def caption(self, panel: Panel) -> str:
        """What stands under a panel of :meth:`panels` (without prefix); by default what the panel brings along."""
        return panel.caption

    def recorded(self, step: int) -> None:
        """Called when the row of ``step``, just measured, is in the history."""

    def layer_shares(self, key: str, row: Mapping[str, float]) -> Mapping[str, float]:
        """The share of each layer in the value of a curve (without prefix) at a row, for the name of a lone row.

        By default the numbers ``lc_layer/train/<layer>`` of the row, for the curve ``lc/train``; empty if it has none.
        """
        return shares_in_columns(key, self._unprefixed(row))

    def marks(self, curves: Curves) -> dict[str, float]:
        """What to log with a row that depends on all rows so far, by key; by default nothing.

        Called when the detector looks at a row; the rows between its looks have the marks of the last one.
        """
        return {}

    def pictures(self) -> Mapping[str, Any]:
        """Pictures of the last row, as pixels ``(H, W, 3)`` by key; by default none. Kept as PNG files, too."""
        return {}

    def describe(self) -> str:
        """What is measured, as Markdown, written once behind the first row; nothing before that."""
        return ""

    def extra_state(self) -> dict[str, Any]:
        """What else belongs in a checkpoint: plain Python types only."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back :meth:`extra_state`."""

    def settings(self) -> dict[str, Any]:
        """Arguments for ``repr`` and the log."""
        schedule, _, value = self.schedule.text.partition("=")
        limit = {} if self.max_overhead is None else {"max_overhead": self.max_overhead}
        return {schedule: _Verbatim(value), "n_probes": self.n_probes, "seed": self.seed, **limit}

    def settings_used(self) -> dict[str, Any]:
        """:meth:`settings` as they are in use: numbers in place of ``"auto"``, and no more points than there are."""
        return {**self.settings(), "n_probes": self._n_used}

    # Hooks

    @quiet_hook
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Check what needs no network."""
        refuse_twins(self, trainer.callbacks)
        if stage == "fit":
            refuse_one_folder([callback for callback in trainer.callbacks if isinstance(callback, ProbeCallback)])

    @quiet_hook
    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Check what can be checked without data; ``setup()`` and ``configure_model()`` of the module have run."""
        self._network(pl_module)

    @quiet_hook
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the probes, try a measurement on two of them, and measure step 0."""
        self._active = not trainer.barebones
        if not self._active:
            return
        self._begin_history(trainer, pl_module)
        network = self._draw_probes(trainer, pl_module)
        if trainer.fast_dev_run:
            self._probes = {split: probes.head(_FEW) for split, probes in self._probes.items()}
        self._check_fingerprints()
        self._look_at_epochs(trainer)
        self._model = _model_name(pl_module, self.submodule, network.module)
        self._n_points = {split: len(probes) for split, probes in self._probes.items()}
        self._try_out(network, pl_module)
        root = Path(trainer.log_dir or trainer.default_root_dir)  # in all processes: the Trainer broadcasts it
        if trainer.is_global_zero and not trainer.fast_dev_run:
            self._open_files(trainer, root)
        peers = [callback for callback in trainer.callbacks if isinstance(callback, ProbeCallback)]
        self._run = None
        if peers[-1] is self:
            refuse_one_key(peers)
            self._run = RunReport(peers, trainer, self._guarded)
        step = trainer.global_step
        self._seconds, self._began, self._described, self._tried = 0.0, time.perf_counter(), False, -1
        self._left_out, self._n_failed, self.is_closed = -1, 0, False
        if len(self.history):  # resumed: `monitor=` must find its key before the next row is due
            self._publish(trainer, self.history.rows[-1])
        if step not in self.history and (trainer.fast_dev_run or self._due(step - 1, step)):
            self._row(trainer, pl_module)
        self._looked_at = step
        self._close_step(trainer)
        if self._run is not None:  # all others have had their trial
            ClosingRows.stand_first(trainer, peers)
            self._guarded("looking for monitors", lambda: warn_of_stale_values(trainer, pl_module, peers))
            cost = RunCost(peers, step, time.perf_counter())
            for peer in peers:
                peer._cost = cost

    def _open_files(self, trainer: Any, root: Path) -> None:
        folder = self._folder = root / folder_of(self)
        self._row_report = RowReport(self, folder)
        csv = self._csv = self._guarded("opening its CSV file", lambda: CsvFile(folder, self.history))
        if csv is None:
            return
        if csv.passed_over is not None:
            path, why = csv.passed_over
            rank_zero_warn(f"{self._name}: rows go to {csv.path}, for {path} is not the file of this run ({why}).")
        if not trainer.loggers:
            rank_zero_warn(f"{self._name}: the Trainer has no logger; rows go to {csv.path} only.")

    @guarded_hook
    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Measure if a row is due after this batch's optimizer steps."""
        if not self._active or self.is_closed or trainer.fast_dev_run:
            return
        step = trainer.global_step
        due = self._due(self._looked_at, step)
        due = self._due_after_epoch(trainer) or due  # every time: the others ask, too
        self._looked_at = step
        if due and step not in self.history and not self._leaves_out(trainer, step):
            self._row(trainer, pl_module)
        self._close_step(trainer)
        cost = self._cost
        if self._run is not None and cost is not None:  # the last of its peers
            self._guarded("looking at the time", lambda: cost.end_batch(trainer, time.perf_counter()))

    @guarded_hook
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure a row that is due after the epoch, if the epoch ended before its last batch."""
        step = trainer.global_step
        runs = self._active and not self.is_closed and not trainer.fast_dev_run
        due = runs and self.schedule.due_after_epoch(trainer.current_epoch + 1)
        if (
            due
            and not self._epochs_differ
            and step not in self.history
            and step != self._tried
            and not self._leaves_out(trainer, step)
        ):
            self._row(trainer, pl_module)
        self._close_step(trainer)

    @guarded_hook
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step, and say so if the measurements took much of the run."""
        if not self._active:
            return
        self.take_closing_row(trainer, pl_module)
        self._tell(self._guarded("looking for transitions", self._detector.finish))
        self._close_step(trainer, last=True)
        elapsed = time.perf_counter() - self._began
        if self._seconds > max(SECONDS_TO_SAY, SHARE_TO_SAY * elapsed):
            n_points = max(self._n_points.values(), default=self.n_probes)
            fewer = f"lower `n_probes` (now {n_points}), or " if self.cost_grows_with_probes else ""
            rank_zero_warn(
                f"{self._name} took {self._seconds:.0f} s, {self._seconds / elapsed:.0%} of the training: {fewer}"
                f"measure less often with `every_n_train_steps` or `schedule` (now {self.schedule.text})."
            )

    @guarded_hook
    def take_closing_row(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step of a training, unless that has been done."""
        step = trainer.global_step
        owes = self._left_out > max([*self.history.steps[-1:], self._tried])  # the last row is never left out
        missing = self._active and not self.is_closed and step not in self.history and step != self._tried
        if (self.schedule.closes or owes) and missing and not trainer.fast_dev_run:
            self._row(trainer, pl_module)

    @quiet_hook
    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """In ``trainer.validate()``: draw the probes and try a measurement."""
        if trainer.state.fn == "validate":
            self._begin_evaluation(trainer, pl_module)

    @guarded_hook
    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """In ``trainer.validate()``: measure once. The row is logged, and belongs to no history."""
        if trainer.state.fn == "validate":
            self._end_evaluation(trainer, pl_module)

    @quiet_hook
    def on_test_start(self, trainer: Any, pl_module: Any) -> None:
        """Draw the probes and try a measurement."""
        self._begin_evaluation(trainer, pl_module)

    @guarded_hook
    def on_test_end(self, trainer: Any, pl_module: Any) -> None:
        """Measure once. The row is logged, and belongs to no history."""
        self._end_evaluation(trainer, pl_module)

    @guarded_hook
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Let go of the probes."""
        if self._active and stage == "fit":
            self._weights.look(trainer, pl_module)  # as averaging may have left them
        self._probes, self._active, self._csv, self._run, self._folder = {}, False, None, None, None
        self._row_report = RowReport(self)
        self._cost = None
        self._processes, self._everyone = Processes(), Processes()

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
        if self._active:
            self._weights.look(trainer, pl_module)

    @quiet_hook
    def state_dict(self) -> dict[str, Any]:
        """Plain Python types only: rows, fingerprints of the probes, and what the subclass adds."""
        return {
            "version": _STATE_VERSION,
            "rows": self.history.state(),
            "arrays": self.history.state_of_arrays(),
            "fingerprints": dict(self._fingerprints),
            "settings": dict(self._arguments),
            "detector": self._detector.state(),
            "marks": self._marks,
            "events": [{**asdict(event)} for event in self.events],
            "extra": self._guarded("its extra state", lambda: self._plain_extra()) or {},
        }

    def _plain_extra(self) -> dict[str, Any]:
        extra = self.extra_state()
        if not isinstance(extra, Mapping):
            raise TypeError(f"expected a dict, but got {type(extra).__name__}")
        return dict(plain_state(extra))

    @quiet_hook
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint. A state that cannot be read costs the earlier rows and a warning."""
        try:
            if state_dict["version"] != _STATE_VERSION:
                raise ValueError(f"version {state_dict['version']}, this is version {_STATE_VERSION}")
            self.history.restore(state_dict["rows"], state_dict.get("arrays"))
            self._fingerprints = {str(key): str(value) for key, value in state_dict["fingerprints"].items()}
            self._old_arguments = {str(key): str(value) for key, value in state_dict.get("settings", {}).items()}
            events = [(event, event["transition"]) for event in state_dict.get("events", [])]
            self.events = [PhaseEvent(e["what"], e["at"], Transition(**transition)) for e, transition in events]
            self._detector_state, self._marks = state_dict.get("detector"), state_dict.get("marks")
            self.load_extra_state(dict(state_dict["extra"]))
            self._restored = True
        except Exception as error:
            self.history = History()
            self._fingerprints, self._old_arguments, self.events, self._detector_state = {}, {}, [], None
            self._warn_or_raise("its state in the checkpoint cannot be read, so the history starts anew", error)

    # Transitions

    @property
    def transitions(self) -> list[Transition]:
        """What is known of the run now, in the order of the steps."""
        return self._detector.transitions

    @classmethod
    def checked_detection(cls, given: Mapping[str, float] | None) -> dict[str, float]:
        """All settings of :meth:`find`: the defaults, and in their place those ``given``.

        Raises:
            ValueError: if one is unknown, no number, or out of range.
        """
        if given is not None and not isinstance(given, Mapping):
            raise ValueError(f"`detection` must be a dict of settings, but got {given!r}.")
        for name, value in (given or {}).items():
            if name not in cls.detection_settings:
                possible = f"possible are {sorted(cls.detection_settings)}" if cls.detection_settings else "it has none"
                near = did_you_mean(name, cls.detection_settings)
                raise ValueError(f"`detection` of {cls.__name__} has no setting {name!r}; {possible}{near}")
            if isinstance(value, bool) or not isinstance(value, Real):
                raise ValueError(f"`detection` has {name}={value!r}, which is no number.")
        settings = {**cls.detection_settings, **(given or {})}
        try:
            cls.check_detection(settings)
        except ValueError as error:
            raise ValueError(f"`detection`: {error}") from error
        return settings

    def logs(self, key: str) -> bool:
        """Whether the rows of this run have, or are going to have, a value under this key. For after the trial."""
        if not key.startswith(self.log_key_prefix):
            return False
        own = key.removeprefix(self.log_key_prefix)
        known = {*self._trial_keys, *self.late_keys, f"{self.group}/seconds"}
        return own in known or key in self.history.keys

    def remark(self) -> str:
        """What is to be said when the run ends, besides the transitions."""
        return ""

    def part(self) -> Part:
        """The rows so far, how to draw them, and what was found in them."""
        rows, prefix = self.history.rows, self.log_key_prefix
        keys = [key.removeprefix(prefix) for key in self.history.keys]
        panels = [replace(panel, caption=self.caption(panel)).prefixed(prefix) for panel in self.panels(keys)]
        curves = [key for panel in panels for key in panel.keys]
        made_by = layers_of_outliers(rows, curves, lambda key, row: self.layer_shares(key.removeprefix(prefix), row))
        followed = [prefix + key for key in self.followed(keys)]
        find = partial(self.find, settings=self.detection)
        settled = (followed, prefix, self.detection, find)
        return Part(rows, panels, self.transitions, *settled, model=self._model, made_by=made_by, group=self.group)

    def plot(self) -> tuple[Figure, Any]:
        """Draw the rows so far, with a line at each transition.

        Returns:
            The figure and its axes: one, or a list if there are several panels.
        """
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=(WIDTH, 4))
        axes = draw(figure, [self.part()])
        return figure, axes[0] if len(axes) == 1 else axes

    def points_text(self) -> str:
        """The points of a run, such as ``"64 train and 64 test points"``; ``"the points"`` before it."""
        texts = [f"{n:,} {split}" for split, n in self._n_points.items()]
        if not texts:
            return "the points"
        return f"{', '.join(texts[:-1])}{' and ' if len(texts) > 1 else ''}{texts[-1]} points"

    def _tell(self, events: list[PhaseEvent] | None) -> None:
        self.events += events or []
        self._untold += events or []

    def take_events(self) -> list[PhaseEvent]:
        """What was found since the last call."""
        events, self._untold = self._untold, []
        return events

    def take_measured(self) -> bool:
        """Whether a row was due since the last call."""
        measured, self._has_measured = self._has_measured, False
        return measured

    def _close_step(self, trainer: Any, last: bool = False) -> None:
        if self._active and self._run is not None:
            start = time.perf_counter()
            run = self._run
            self._guarded("closing the step", lambda: run.close_step(trainer, last))
            self._seconds += time.perf_counter() - start

    def take_setup(self) -> str:
        """What is measured and how, once it is known and until it is taken; else nothing."""
        text, self._untold_setup = self._untold_setup, ""
        return text

    def warn_of(self, what: str, error: Exception) -> None:
        """Warn, or raise with ``raise_on_error``, that ``what`` did not take what it was to show."""
        self._warn_or_raise(f"{what} did not take an entry of the timeline", error)

    def __repr__(self) -> str:
        try:
            text = self.describe()
            return f"{self._call(self.settings_used())}\n{text}" if text else self._call(self.settings())
        except Exception as error:  # a subclass may not know yet
            return f"<{type(self).__name__}, whose settings failed with {in_words(error)}>"

    def _call(self, settings: Mapping[str, Any]) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        return f"{type(self).__name__}({arguments})"

    # Set-up

    @property
    def _name(self) -> str:
        return type(self).__name__ + (f"(log_key_prefix={self.log_key_prefix!r})" if self.log_key_prefix else "")

    def _prefixed(self, key: str) -> str:
        return self.log_key_prefix + key

    def _begin_history(self, trainer: Any, pl_module: Any) -> None:
        """Keep the rows of the checkpoint, or of this run as far as it is known; those of another run go."""
        step = trainer.global_step
        is_other = step == 0 or not self._weights.knows(trainer, pl_module)
        if self._is_used and is_other and not self._restored:
            self.history, self._fingerprints, self.events, self._detector_state = History(), {}, [], None
            self._marks = None
            self._guarded("beginning anew", lambda: self.load_extra_state({}))
        if is_other or self._restored:
            self._weights = KnownWeights()
        self._weights.forget_after(step)
        self._weights.look(trainer, pl_module)
        n_rows = len(self.history)
        self.history.drop_after(step)
        self.events = [event for event in self.events if event.at <= step]
        self._untold, self._renamed = [], set()
        self._guarded("going on with its transitions", lambda: self._restore_detector(len(self.history) < n_rows))
        self._restored = False

    def _restore_detector(self, rows_dropped: bool) -> None:
        """Bring the detector to the last row of the history: from the checkpoint if that fits, else row by row."""
        rows = [(int(row["step"]), self._unprefixed(row)) for row in self.history.rows]
        state, self._detector_state = self._detector_state, None
        if state is not None and not rows_dropped:
            self._detector.restore(state, rows)
        elif rows_dropped or len(self._detector) != len(rows):
            self._marks = None
            self._detector.clear()
            self.events = [event for step, row in rows for event in self._detector.update(step, row)]

    def _unprefixed(self, row: Mapping[str, float]) -> dict[str, float]:
        return {key.removeprefix(self.log_key_prefix): value for key, value in row.items() if key != "step"}

    def _network(self, pl_module: Any) -> Network:
        module = pl_module if self.submodule is None else find_module(pl_module, "submodule", self.submodule)
        forward_fn = self.forward_fn
        if isinstance(forward_fn, str):
            forward_fn = _resolve(module, "forward_fn", forward_fn)
        if forward_fn is None and not _has_forward(module):
            raise MisconfigurationException(
                f"{self._name}: {type(module).__name__} has no forward to measure. Pass `submodule=` with the name of "
                f"the network inside it ({', '.join(name for name, _ in module.named_children()) or 'none found'}), or "
                "`forward_fn=`, a function (module, inputs) -> outputs."
            )
        return Network(module, forward_fn)

    def _draw_probes(self, trainer: Any, pl_module: Any) -> Network:
        """Draw the probes, the same for all processes. Returns the network they are for."""
        self._processes, self._everyone = Processes(), Processes.of_run(trainer)
        everyone, self._is_used = self._everyone, True

        def draw() -> tuple[Network, dict[str, Probes]]:
            network = self._network(pl_module)
            check_weights_are_whole(trainer, network.module, self._name)
            signature = Signature.of(network.module, network.forward_fn, partial(self._conditions, pl_module))
            drawn = partial(self._draw, trainer, signature)
            n = self.choose_n_probes(network, partial(drawn, 2))
            return network, drawn(min(n, _FEW) if trainer.fast_dev_run else n)

        network, probes = everyone.agree(draw)
        self._probes = everyone.alike(probes, _fingerprints)  # each may have its own part of the data
        self._n_used = max((len(points) for points in self._probes.values()), default=self.n_probes)
        self._processes = Processes.that_share(trainer) if self.shares_points else Processes()
        if everyone.n > 1 and any(everyone.gather(partial(self._communicates, network, pl_module))):
            self._processes = everyone
        return network

    def _communicates(self, network: Network, pl_module: Any) -> bool:
        """Whether the forward needs the other processes, which then have to run it equally often."""
        few = [probes.head(2).inputs for probes in self._probes.values()]
        if not few:
            return False
        with self._conditions(pl_module):
            return max(communicates(partial(network, inputs)) for inputs in few)  # and not any(), for all have to run

    def _named(self, draw: Callable[[], Probes]) -> Probes:
        """What ``draw`` returns; its errors name this callback."""
        try:
            return draw()
        except ValueError as error:
            raise ValueError(f"{self._name}: {error}") from error
        except Exception as error:
            raise MisconfigurationException(
                f"{self._name}: drawing points failed with {type(error).__name__}: {error}\nPass them as "
                "`train_probes=` and `test_probes=`, tensors or pairs (inputs, targets) as the model gets them."
            ) from error

    def _draw(self, trainer: Any, signature: Signature, n: int) -> dict[str, Probes]:
        probes: dict[str, Probes] = {}
        target_fn = self.target_fn
        if isinstance(target_fn, str):
            target_fn = _resolve(None, "target_fn", target_fn)
        for split, given, seed in (("train", self.train_probes, self.seed), ("test", self.test_probes, self.seed + 1)):
            if trainer.state.fn == "fit" and split not in self.splits:
                continue
            source = given if given is not None else find_loader(trainer, split)
            if source is not None:
                transform = partial(transferred, trainer, split, seed)
                trained_on = given is None and split == "train" and trainer.state.fn == "fit"
                n_batches = batches_in_an_epoch(trainer) if trained_on else None
                probes[split] = self._named(
                    partial(draw_probes, source, n, seed, signature, f"{split}_probes", transform, target_fn, n_batches)
                )
        if trainer.state.fn != "fit":  # what there is to measure, and nothing to complain about
            return probes
        if "train" not in probes:
            raise MisconfigurationException(
                f"{self._name}: the train dataloader has no dataset to draw from ({type(trainer.train_dataloader)}): "
                "pass `train_probes=`, a tensor, a pair (inputs, targets), a dataset or a DataLoader."
            )
        if "test" in self.splits and "test" not in probes:
            rank_zero_warn(
                f"{self._name}: found no validation or test dataset to draw from, so there is no test curve. "
                "Pass `test_probes=` to have one."
            )
        if self.random_probes:
            probes["random"] = random_probes(probes["train"], self.seed + 2)
        return probes

    def _check_fingerprints(self) -> None:
        """Warn of what is not as it was in the checkpoint: points, their labels, and arguments."""
        now = _fingerprints(self._probes)
        if "target_fn" in inspect.signature(type(self)).parameters:  # else it has no use for labels
            now |= {f"labels of the {split}": points.label_fingerprint() for split, points in self._probes.items()}
        other = [split for split in now if self._fingerprints.get(split, now[split]) != now[split]]
        text = changes_in_words(other, changed_settings(self._old_arguments, self._arguments))
        self._old_arguments, self._fingerprints = {}, now
        if text:
            rank_zero_warn(f"{self._name}: {text}")

    def _try_out(self, network: Network, pl_module: Any) -> None:
        """Measure two points and throw the result away: what is wrong in the set-up shows now."""
        few = {split: probes.head(2) for split, probes in self._probes.items()}

        def measure() -> None:
            with self._conditions(pl_module):
                self.prepare(network, self._probes)
                tried = self.trial(network, few)
                self._trial_keys = {
                    renamed.removeprefix(self.log_key_prefix)
                    for key, renamed in self._keys_of(tried).items()
                    if not _is_array(tried[key])
                }

        try:
            self._everyone.agree(measure)
        except Exception as error:
            if not all(
                self._everyone.gather(lambda: self._is_finite(network, few, pl_module))
            ):  # no fault of the set-up, and it may pass
                self._warn_or_raise("the weights or what they give are not finite, and no row can be taken", error)
                return
            if isinstance(error, ValueError) and _is_ours(error):  # it says what to do
                raise ValueError(f"{self._name}: {error}") from error
            calls = dict.fromkeys(call_in_words(probes.inputs) for probes in few.values())
            raise MisconfigurationException(
                f"{self._name}: a trial measurement before training failed with {type(error).__name__}: {error}\n"
                f"The network was called with {', or with '.join(calls)}. If its forward takes something else, pass "
                "it as `train_probes=` and `test_probes=`, or name what to call with `submodule=` or `forward_fn=`."
            ) from error

    def _is_finite(self, network: Network, few: Mapping[str, Probes], pl_module: Any) -> bool:
        """Whether the weights are, and what the network gives for a few points."""
        try:
            with self._conditions(pl_module):
                outputs = [network(probes.inputs) for probes in few.values()]
                leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
                own = [*network.module.parameters(), *network.module.buffers()]
                return all(bool(tensor.isfinite().all()) for tensor in [*own, *leaves])
        except Exception:  # that is another fault
            return True

    # Measuring

    def _due(self, after: int, step: int) -> bool:
        def ask() -> bool:
            return self.schedule.due(after, step)

        if self.schedule.given is not None:  # it may say something else in each process
            return bool(self._guarded("asking its schedule", lambda: self._processes.decide(ask)))
        return ask()

    def _due_after_epoch(self, trainer: Any) -> bool:
        """Whether this batch ends an epoch after which a row is due. The first process decides if epochs differ."""

        def ask() -> bool:
            return bool(trainer.is_last_batch) and self.schedule.due_after_epoch(trainer.current_epoch + 1)

        if self._epochs_differ:
            return bool(self._guarded("looking for the end of the epoch", lambda: self._everyone.decide(ask)))
        return ask()

    def _look_at_epochs(self, trainer: Any) -> None:
        """Find out whether an epoch ends at the same step in all processes, if rows depend on that."""
        self._epochs_differ = False
        if self.schedule.every_n_epochs is not None and self._everyone.n > 1:
            n = self._everyone.gather(lambda: trainer.num_training_batches)
            self._epochs_differ = len({*n}) > 1 or math.isinf(n[0])

    def _leaves_out(self, trainer: Any, step: int) -> bool:
        """Whether the row of a step is left out for ``max_overhead``. The first process decides for all."""
        if self.max_overhead is None or self._cost is None:
            return False
        if self._left_out != step:
            trained = self._cost.trained(time.perf_counter())
            last = self.history.steps[-1] if len(self.history) else None
            kept = is_kept(step, last, self._seconds, trained, self.max_overhead)
            kept = kept or bool(self._guarded("looking for the end", lambda: ends_with(trainer, self.schedule, step)))
            if trainer.world_size > 1:
                kept = trainer.strategy.broadcast(kept, 0)
            if kept:
                return False
            if self._left_out < 0:
                rank_zero_info(
                    f"{self._name} leaves out rows from step {step} on: it has taken {self._seconds:.0f} s, and the "
                    f"training {trained:.0f} s (max_overhead={self.max_overhead:g}). Three rows a decade remain."
                )
            self._left_out = step
        return True

    @property
    def seconds_taken(self) -> float:
        """What it has taken of the run so far."""
        return self._seconds

    @property
    def last_tried(self) -> int:
        """The last step that was measured, with or without success; -1 before the first."""
        return self._tried

    @property
    def n_points(self) -> int:
        """The points of the largest split of the run."""
        return max(map(len, self._probes.values()), default=0)

    @property
    def trial_keys(self) -> set[str]:
        """Keys of the numbers that the trial has shown, with the prefix."""
        return {self._prefixed(key) for key in self._trial_keys}

    @property
    def name(self) -> str:
        """Its class, and its prefix if it has one."""
        return self._name

    @contextmanager
    def _conditions(self, pl_module: Any) -> Any:
        """Measuring conditions, in which the module's own ``self.log`` calls go nowhere."""
        muted = ("log", "log_dict")
        own = {name: vars(pl_module)[name] for name in muted if name in vars(pl_module)}
        self._print = getattr(pl_module, "print", None)
        try:
            for name in muted:
                vars(pl_module)[name] = _ignore
            with untouched(pl_module, self.forward_fn, seed=self.seed):
                if not self._processes.shares:  # else a forward could run more often on one of them
                    self._processes.equalise(pl_module.buffers())
                yield
        finally:
            for name in muted:
                del vars(pl_module)[name]
            vars(pl_module).update(own)
            self._print = None

    def _row(self, trainer: Any, pl_module: Any) -> None:
        """Measure, record and report the row of the current step; whatever fails costs no more than that."""
        step = self._tried = trainer.global_step
        self._has_measured = True
        measured = self._measured(pl_module, step)
        if measured is None:
            self._n_failed += 1
            if not len(self.history):
                self._guarded("looking for monitors", lambda: stand_in(trainer, pl_module, self, self._n_failed))
            return
        values, arrays = measured
        start = time.perf_counter()
        found = self._guarded("looking for transitions", lambda: self._detector.update(step, self._unprefixed(values)))
        self._tell(found)
        if self._detector.looked_at == step or self._marks is None:
            self._marks = self._guarded("marking the row", lambda: numbers_in(self.marks(self._detector.curves))) or {}
        marks = {self._prefixed(key): value for key, value in self._marks.items()}
        values.update({key: value for key, value in marks.items() if key not in values and key != "step"})
        self._seconds += time.perf_counter() - start
        self._guarded(f"recording step {step}", lambda: self._record(step, values, arrays))
        self._weights.look(trainer, pl_module)
        self._publish(trainer, values)
        if not trainer.is_global_zero:
            return
        csv = self._csv
        if csv is not None:  # before anything else that may need room on the disk
            self._guarded(f"writing {csv.path} at step {step}", lambda: csv.append(self.history))
        self._report(trainer, values, arrays, step)

    def _record(self, step: int, values: Mapping[str, float], arrays: Mapping[str, torch.Tensor]) -> None:
        self.history.append(step, values, arrays)
        self.recorded(step)

    def _measured(self, pl_module: Any, step: int) -> tuple[dict[str, float], dict[str, torch.Tensor]] | None:
        """The numbers and arrays of one row, or ``None`` if that failed."""
        wait_for_device()
        start = time.perf_counter()

        def measure() -> tuple[dict[str, float], dict[str, torch.Tensor]]:
            with self._conditions(pl_module):
                found = self.measure(self._network(pl_module), self._probes)
            keys = self._keys_of(found)
            arrays = {keys[key]: value for key, value in found.items() if _is_array(value)}
            return {keys[key]: float(value) for key, value in found.items() if not _is_array(value)}, arrays

        measured = self._guarded(f"the measurement at step {step}", lambda: self._processes.agree(measure))
        seconds = time.perf_counter() - start
        self._seconds += seconds
        if measured is None:
            return None
        values, arrays = measured
        values[self._prefixed(f"{self.group}/seconds")] = seconds
        broken = [key for key, value in values.items() if value != value]
        if broken:
            rank_zero_warn(f"{self._name}: NaN at step {step} in {', '.join(broken)}: a value there is not finite.")
        return values, arrays

    def _keys_of(self, found: Mapping[str, Any]) -> dict[str, str]:
        """The keys of a row by what a measure called them: with the prefix, and none that the row has already."""
        given = [self._prefixed(key) for key in found]
        keys = dict(zip(found, distinct(given, ("step", self._prefixed(f"{self.group}/seconds"))), strict=True))
        new = {
            key: now
            for key, now, wanted in zip(keys, keys.values(), given, strict=True)
            if now != wanted and key not in self._renamed
        }
        if new:
            self._renamed |= {*new}
            told = ", ".join(f"{key!r} is {now!r}" for key, now in new.items())
            rank_zero_warn(f"{self._name}: keys that a row has already, or cannot have, get another name: {told}.")
        return keys

    def _begin_evaluation(self, trainer: Any, pl_module: Any) -> None:
        self._active = not trainer.barebones
        if not self._active:
            return
        network = self._draw_probes(trainer, pl_module)
        self._active = bool(self._probes)
        if self._active:
            self._try_out(network, pl_module)

    def _end_evaluation(self, trainer: Any, pl_module: Any) -> None:
        step = trainer.global_step
        measured = self._measured(pl_module, step) if self._active else None
        if measured is None:
            return
        self._publish(trainer, measured[0])
        if trainer.is_global_zero:
            self._report(trainer, *measured, step)

    def _publish(self, trainer: Any, values: Mapping[str, float]) -> None:
        def fill() -> None:
            trainer.callback_metrics.update(
                {key: torch.tensor(value) for key, value in values.items() if key != "step"}
            )

        self._guarded("filling `trainer.callback_metrics`", fill)

    def _report(self, trainer: Any, values: Mapping[str, float], arrays: Mapping[str, torch.Tensor], step: int) -> None:
        self._row_report.report(trainer, values, arrays, step)
        if self._described:
            return
        self._described = True
        text = self._guarded("describing itself", self.describe)
        if text:
            used = self._guarded("naming its settings", lambda: self._call(self.settings_used()))
            self._untold_setup = f"{used or self._name}\n{text}"
            if trainer.state.fn != "fit":  # a fit has one text of all callbacks
                say(self.take_setup())
            failed = f"did not take the row of step {step}"
            log_text(
                trainer,
                self._prefixed(f"{self.group}/setup"),
                text,
                step,
                lambda what, error: self._warn_or_raise(f"{what} {failed}", error),
            )

    @property
    def draws(self) -> bool:
        """Whether there are pictures at all."""
        return type(self).pictures is not ProbeCallback.pictures

    def progress(self, what: str) -> Callable[[int, int], None]:
        """A function ``(done, total)`` that prints a line every few seconds, above the Trainer's progress bar."""
        start = shown = time.perf_counter()

        def show(done: int, total: int) -> None:
            nonlocal shown
            now = time.perf_counter()
            if now - shown >= _PROGRESS_EVERY and done < total and self._print is not None:
                shown = now
                self._print(f"{self._name}: {what}, {done / total:.0%} after {now - start:.0f} s")

        return show

    def _guarded(self, what: str, function: Callable[[], Any]) -> Any:
        """Call ``function``; a failure costs its result (``None``) and a warning.

        What asks the process to end, ``KeyboardInterrupt`` and ``SystemExit``, passes.
        """
        with no_warning_is_an_error():
            try:
                return function()
            except MeasurementError:
                raise
            except Exception as error:
                self._warn_or_raise(f"{what} failed", error)
                return None

    def _warn_or_raise(self, what: str, error: Exception) -> None:
        if self.raise_on_error:
            raise MeasurementError(f"{self._name}: {what}: {in_words(error).partition(': ')[2]}") from error
        with no_warning_is_an_error():
            rank_zero_warn(f"{self._name}: {what} ({in_words(error)}). Training goes on.")


def _model_name(pl_module: Any, submodule: str | None, measured: nn.Module) -> str:
    """The class of the LightningModule, and what of it is measured, if not the whole."""
    name = type(getattr(pl_module, "_orig_mod", pl_module)).__name__
    part = type(getattr(measured, "_orig_mod", measured)).__name__
    return name if submodule is None else f"{name}: {submodule} ({part})"


def _is_array(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value of a row is more than one number, which is kept but not logged."""
    return isinstance(value, torch.Tensor) and value.numel() != 1


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


class _Verbatim(str):
    def __repr__(self) -> str:
        return str(self)


def _is_ours(error: Exception) -> bool:
    """Whether a check of this library raised ``error``, not the user's code under it."""
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    return raised is not None and Path(__file__).parents[1] in Path(raised.tb_frame.f_code.co_filename).parents


def _fingerprints(probes: Mapping[str, Probes]) -> dict[str, str]:
    return {split: points.fingerprint() for split, points in probes.items()}


def _ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for ``self.log`` while a measurement runs."""


def _has_forward(module: nn.Module) -> bool:
    """Whether a class of the module's own, not Lightning or torch, defines ``forward``."""
    if "forward" in vars(module):
        return True
    forward = type(module).forward
    return not (forward is nn.Module.forward or getattr(forward, "__qualname__", "") == "LightningModule.forward")


def _resolve(module: nn.Module | None, argument: str, name: str) -> Callable[..., Any]:
    """The function behind an import path or, if there is a module, behind the name of one of its methods."""
    method = getattr(type(module), name, None)
    if module is not None and callable(method):
        return method
    path, _, attribute = name.rpartition(".")
    try:
        function = getattr(importlib.import_module(path), attribute)
    except (ImportError, AttributeError, ValueError):
        function = None
    if not callable(function):
        neither = "not" if module is None else f"neither a method of {type(module).__name__} nor"
        near = did_you_mean(name, () if module is None else _methods(module))
        raise MisconfigurationException(f"`{argument}={name!r}` is {neither} the import path of a function{near}")
    return function


def _methods(module: nn.Module) -> list[str]:
    """Names of the methods that the user's own classes define."""
    own = [kind for kind in type(module).__mro__ if not kind.__module__.startswith(("torch.", "lightning", "pytorch_"))]
    return [name for kind in own for name, value in vars(kind).items() if callable(value)]
