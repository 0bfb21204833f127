"""Taking one row: a measurement under the right conditions, whose failure costs the row and a warning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import torch
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch.utils._pytree import tree_leaves

from lc_callback.callbacks.clock import read_clock
from lc_callback.callbacks.conditions import Conditions
from lc_callback.callbacks.guard import Guard
from lc_callback.callbacks.keys import Keys
from lc_callback.callbacks.network import Network
from lc_callback.callbacks.overhead import wait_for_device
from lc_callback.callbacks.ranks import Ranks
from lc_callback.engine.network.signature import call_in_words, example_of_call
from lc_callback.names import distinct
from lc_callback.run.probes import Probes

__all__ = ["Row", "RowTaker"]

Found = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """What one measurement gave, by key as it is logged.

    Attributes:
        step: of the row.
        values: its numbers.
        arrays: tensors of more than one number, which are kept but not logged.
    """

    step: int
    values: dict[str, float]
    arrays: dict[str, torch.Tensor]


class RowTaker:
    """Takes the rows of one callback.

    Args:
        name: of the callback.
        keys: of the callback.
        guard: what a failure costs.
        ranks: the processes that measure together.
        conditions: under which it measures.

    Attributes:
        seconds: what the rows have taken of the run so far.
        tried: the last step that was measured, with or without success; -1 before the first.
        n_failed: rows of this run that failed.
        trial_keys: keys of the numbers of a row, as logged.
    """

    def __init__(self, name: str, keys: Keys, guard: Guard, ranks: Ranks, conditions: Conditions) -> None:
        self._name, self._keys, self._guard, self._ranks, self._conditions = name, keys, guard, ranks, conditions
        self._renamed: set[str] = set()  # keys that are taken, of which a warning has been given
        self._has_tried = False
        self.trial_keys: set[str] = set()
        self.seconds, self.tried, self.n_failed = 0.0, -1, 0

    def begin(self) -> None:
        """A run begins."""
        self._renamed = set()
        self.seconds, self.tried, self.n_failed = 0.0, -1, 0

    def take_tried(self) -> bool:
        """Whether a row was due since the last call."""
        tried, self._has_tried = self._has_tried, False
        return tried

    def take(self, pl_module: Any, step: int, measure: Callable[[], Found]) -> Row | None:
        """The row of a step; ``None`` if it failed."""
        self.tried, self._has_tried = step, True
        row = self.evaluate(pl_module, step, measure)
        self.n_failed += row is None
        return row

    def evaluate(self, pl_module: Any, step: int, measure: Callable[[], Found]) -> Row | None:
        """As :meth:`take`, for a row that belongs to no run."""
        wait_for_device()
        start = read_clock()

        def whole() -> Row:
            with self._conditions.of(pl_module):
                found = measure()
            keys = self._keys_of(found)
            arrays = {keys[key]: value for key, value in found.items() if _is_array(value)}
            numbers = {keys[key]: float(value) for key, value in found.items() if not _is_array(value)}
            return Row(step, numbers, arrays)

        row: Row | None = self._guard.attempt(
            f"the measurement at step {step}", lambda: self._ranks.measuring.agree(whole)
        )
        seconds = read_clock() - start
        self.seconds += seconds
        if row is None:
            return None
        row.values[self._keys.in_group("seconds")] = seconds
        broken = [key for key, value in row.values.items() if value != value]
        if broken:
            rank_zero_warn(f"{self._name}: NaN at step {step} in {', '.join(broken)}: a value there is not finite.")
        return row

    def _keys_of(self, found: Found) -> dict[str, str]:
        """Map the keys of a measure to those of the row: add the prefix, and rename what the row has already."""
        given = [self._keys.full(key) for key in found]
        keys = dict(zip(found, distinct(given, ("step", self._keys.in_group("seconds"))), strict=True))
        new = {
            key: now
            for key, now, wanted in zip(keys, keys.values(), given, strict=True)
            if now != wanted and key not in self._renamed
        }
        if new:
            self._renamed |= {*new}
            changes = ", ".join(f"{key!r} is {now!r}" for key, now in new.items())
            rank_zero_warn(f"{self._name}: keys that a row has already, or cannot have, get another name: {changes}.")
        return keys

    def try_out(
        self, pl_module: Any, network: Network, few: Mapping[str, Probes], prepare: Callable[[], None], trial: Any
    ) -> None:
        """Measure two points and throw the result away: what is wrong in the set-up shows now.

        Args:
            pl_module: the LightningModule.
            network: the network in it.
            few: two points of each split.
            prepare: called first, under measuring conditions.
            trial: called as ``trial(network, few)`` for what a row would give.

        Raises:
            ValueError: if an argument is wrong.
            MisconfigurationException: if the measurement fails.
        """

        def measure() -> None:
            with self._conditions.of(pl_module):
                prepare()
                tried = trial(network, few)
                self.trial_keys = {
                    renamed for key, renamed in self._keys_of(tried).items() if not _is_array(tried[key])
                }

        try:
            self._ranks.everyone.agree(measure)
        except Exception as error:
            finite = self._ranks.everyone.gather(lambda: self._is_finite(network, few, pl_module))
            if not all(finite):  # no fault of the set-up, and it may pass
                self._guard.failed("the weights or what they give are not finite, and no row can be taken", error)
                return
            if isinstance(error, ValueError) and _is_ours(error):  # it says what to do
                raise ValueError(f"{self._name}: {error}") from error
            calls = dict.fromkeys(call_in_words(probes.inputs) for probes in few.values())
            name = next((name for name, each in pl_module.named_modules() if each is network.module), "")
            example = next(filter(None, (example_of_call(probes.inputs, name) for probes in few.values())), "")
            raise MisconfigurationException(
                f"{self._name}: a trial measurement before training failed with {type(error).__name__}: {error}\n"
                f"The network was called with {', or with '.join(calls)}. If its forward takes something else, pass "
                "it as `train_probes=` and `test_probes=`, or name what to call with `submodule=` or `forward_fn=`"
                f"{example and f', such as `{example}`'}."
            ) from error

    def _is_finite(self, network: Network, few: Mapping[str, Probes], pl_module: Any) -> bool:
        """Whether the weights are finite, and so is what the network gives for a few points."""
        try:
            with self._conditions.of(pl_module):
                outputs = [network(probes.inputs) for probes in few.values()]
                leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, torch.Tensor)]
                own = [*network.module.parameters(), *network.module.buffers()]
                return all(bool(tensor.isfinite().all()) for tensor in [*own, *leaves])
        except Exception:  # another fault, which the trial measurement reports
            return True


def _is_array(value: Any) -> TypeGuard[torch.Tensor]:
    """Whether a value of a row is more than one number, which is kept but not logged."""
    return isinstance(value, torch.Tensor) and value.numel() != 1


def _is_ours(error: Exception) -> bool:
    """Whether a check of this library raised ``error``, not the user's code under it."""
    raised = error.__traceback__
    while raised is not None and raised.tb_next is not None:
        raised = raised.tb_next
    return raised is not None and Path(__file__).parents[1] in Path(raised.tb_frame.f_code.co_filename).parents
