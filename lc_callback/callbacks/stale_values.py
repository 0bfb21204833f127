"""Finds, before the first step, what monitors a key of ours and looks at it more often than rows are taken."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lc_callback.callbacks._compat import EARLY_STOPPING, MODEL_CHECKPOINT
from lc_callback.callbacks.peers import Measuring
from lc_callback.run.schedule import Schedule

__all__ = ["monitors_of", "warn_of_stale_values"]

_BATCHES = 200_000  # so far ahead the run is looked through
_LOOKS = 50  # after which the rhythm of a monitor is known
_ASSUMED = 100  # batches of an epoch whose length nobody knows


@dataclass(frozen=True)
class _Moment:
    """The end of a batch of the run that is ahead: updates applied, and where in the run it is."""

    step: int
    has_stepped: bool
    epoch: int
    batch: int
    total: int
    is_last: bool  # of its epoch


@dataclass(frozen=True)
class _Monitor:
    """What looks at a key, and after which batches.

    Attributes:
        mode: ``"min"`` or ``"max"``, what it takes for better.
        limit: the value beyond which it stops the training.
    """

    name: str
    key: str
    looks_at: Callable[[_Moment], bool]
    mode: str
    limit: float | None = None


def warn_of_stale_values(trainer: Any, pl_module: Any, callbacks: Sequence[Measuring]) -> None:
    """Warn once of all monitors that would see one and the same value of ours several times.

    Between two rows ``trainer.callback_metrics`` keeps the value of the first. ``EarlyStopping`` and
    ``ReduceLROnPlateau`` count each look at it as one without improvement.
    """
    if trainer.fast_dev_run:
        return
    monitors = monitors_of(trainer, pl_module)
    found = [
        _sentence(trainer, pl_module, monitor, callback)
        for monitor in monitors
        for callback in callbacks
        if callback.logs(monitor.key)
    ]
    if any(found):
        rank_zero_warn("\n".join(text for text in found if text))


def _sentence(trainer: Any, pl_module: Any, monitor: _Monitor, callback: Measuring) -> str:
    schedule = callback.schedule
    if schedule.given is not None:  # to ask a function of the user's ahead could change what it says later
        return (
            f"{callback.peer.name}: {monitor.name} sees an old value whenever it looks and `schedule` has asked for no "
            "row since it last looked. Nobody can say beforehand when this function does: make sure that it does so "
            "often enough, or set `every_n_epochs=1` in its place."
        )
    stale, looks = _look_ahead(trainer, pl_module, monitor, schedule)
    if stale is None:
        return ""
    if all(look.is_last for look in looks):
        n = math.gcd(*(look.epoch + 1 for look in looks))
        often, hint = f"after every {f'{n} epochs' if n > 1 else 'epoch'}", f"every_n_epochs={n}"
    else:
        n = max(1, math.gcd(*(look.step for look in looks)))
        often, hint = f"after every {f'{n} steps' if n > 1 else 'step'} at most", f"every_n_train_steps={n}"
    return (
        f"{callback.peer.name}: {monitor.name} looks {often}, but with {schedule.text} there is no new row at step "
        f"{stale.step:,}, and so on: it takes the old value for one that does not improve. Set `{hint}` in "
        f"{type(callback).__name__} to have a row whenever it looks."
    )


def _look_ahead(
    trainer: Any, pl_module: Any, monitor: _Monitor, schedule: Schedule
) -> tuple[_Moment | None, list[_Moment]]:
    """The first look without a row since the look before, and the looks until then and some after that."""
    stale, looks = None, []
    step = trainer.global_step
    is_fresh = schedule.due(step - 1, step)
    for now in _moments(trainer, pl_module, schedule):
        if stale is None and not is_fresh:
            is_fresh = schedule.due(step, now.step) or (now.is_last and schedule.due_after_epoch(now.epoch + 1))
        step = now.step
        if monitor.looks_at(now):
            looks.append(now)
            stale = now if stale is None and not is_fresh else stale
            is_fresh = False
        if stale is not None and len(looks) >= _LOOKS:
            break
    return stale, looks


def _moments(trainer: Any, pl_module: Any, schedule: Schedule) -> Iterator[_Moment]:
    n_batches = trainer.num_training_batches
    if math.isinf(n_batches):  # then steps cannot be compared with epochs
        if schedule.every_n_epochs is None:
            return
        n_batches = _ASSUMED
    by_hand = not pl_module.automatic_optimization
    each = max(1, len(trainer.optimizers)) if by_hand else 1
    accumulated = 1 if by_hand else trainer.accumulate_grad_batches
    step, epoch = trainer.global_step, trainer.current_epoch
    for total in range(_BATCHES if n_batches else 0):
        ahead, batch = divmod(total, n_batches)
        if (trainer.max_epochs or -1) >= 0 and epoch + ahead >= trainer.max_epochs:
            return
        is_last = batch == n_batches - 1
        has_stepped = is_last or (batch + 1) % accumulated == 0
        step += each if has_stepped else 0
        yield _Moment(step, has_stepped, epoch + ahead, batch, epoch * n_batches + total, is_last)
        if 0 <= trainer.max_steps <= step:
            return


def monitors_of(trainer: Any, pl_module: Any) -> list[_Monitor]:
    """All callbacks and schedulers of a run that look at a metric."""
    found = []

    def at_epochs(after_training: bool | None, n: int = 1) -> Callable[[_Moment], bool]:
        if after_training is None:
            after_training = trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1
            after_training = after_training or not trainer.enable_validation
        looks = (lambda now: now.is_last) if after_training else (lambda now: _validates(trainer, now))
        return lambda now: (now.epoch + 1) % n == 0 and looks(now)

    for callback in trainer.callbacks:
        name = f"`{type(callback).__name__}(monitor={getattr(callback, 'monitor', None)!r})`"
        if isinstance(callback, EARLY_STOPPING):
            after_training = getattr(callback, "_check_on_train_epoch_end", None)
            looks = at_epochs(bool(after_training))
            limit = getattr(callback, "divergence_threshold", None)
            found.append(_Monitor(name, callback.monitor, looks, callback.mode, limit))
        elif isinstance(callback, MODEL_CHECKPOINT) and callback.monitor is not None and callback.save_top_k != 0:
            n_steps, n_epochs = callback._every_n_train_steps, callback._every_n_epochs
            if n_steps:
                found.append(_Monitor(name, callback.monitor, _at_steps(n_steps), callback.mode))
            if n_epochs:
                after_training = callback._save_on_train_epoch_end
                found.append(_Monitor(name, callback.monitor, at_epochs(after_training, n_epochs), callback.mode))
    for config in trainer.lr_scheduler_configs if pl_module.automatic_optimization else []:
        if config.reduce_on_plateau and config.monitor is not None:
            name = f"`{type(config.scheduler).__name__}` with `monitor={config.monitor!r}`"
            looks = _at_updates(config.interval, config.frequency)
            found.append(_Monitor(name, config.monitor, looks, getattr(config.scheduler, "mode", "min")))
    return found


def _at_steps(n: int) -> Callable[[_Moment], bool]:
    return lambda now: now.has_stepped and now.step % n == 0


def _at_updates(interval: str, frequency: int) -> Callable[[_Moment], bool]:
    """When Lightning updates a scheduler that follows a metric."""
    if interval == "epoch":
        return lambda now: now.is_last and (now.epoch + 1) % frequency == 0
    return lambda now: now.has_stepped and (now.batch + 1) % frequency == 0


def _validates(trainer: Any, now: _Moment) -> bool:
    n_epochs, n_batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or n_batches is None or (n_epochs and (now.epoch + 1) % n_epochs):
        return False
    if math.isinf(n_batches):
        return now.is_last
    return ((now.total if n_epochs is None else now.batch) + 1) % n_batches == 0
