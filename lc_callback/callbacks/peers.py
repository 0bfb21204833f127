"""What the measuring callbacks of a Trainer, and the reports about all of them, know of each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from lc_callback.callbacks.due_rows import DueRows
from lc_callback.callbacks.guard import Guard
from lc_callback.callbacks.keys import Keys
from lc_callback.callbacks.row_taker import RowTaker
from lc_callback.callbacks.row_writer import RowWriter
from lc_callback.callbacks.run_record import RunRecord
from lc_callback.run.schedule import Schedule
from lc_callback.run.timeline import RunCurves

__all__ = ["Measuring", "Peer"]


@dataclass(frozen=True)
class Peer:
    """The parts of one measuring callback.

    Attributes:
        name: its class, and its prefix if it has one.
        keys: of its rows.
        guard: what a failure costs.
        due: which steps have a row.
        rows: takes them.
        record: keeps them.
        writer: writes them.
    """

    name: str
    keys: Keys
    guard: Guard
    due: DueRows
    rows: RowTaker
    record: RunRecord
    writer: RowWriter


class Measuring(Protocol):
    """A measuring callback, as its peers see it."""

    group: ClassVar[str]
    kinds: ClassVar[tuple[str, ...]]
    log_key_prefix: str
    schedule: Schedule
    max_overhead: float | None
    on_transition: list[str] | None
    stop_after: str | None
    certainty: str
    custom_scalars: bool
    is_closed: bool

    @property
    def peer(self) -> Peer:
        """Its parts."""

    def part(self) -> RunCurves:
        """The rows so far, how to draw them, and what was found in them."""

    def remark(self) -> str:
        """What is to be said when the run ends, besides the transitions."""

    def logs(self, key: str) -> bool:
        """Whether the rows of this run have a value under this key."""

    def take_closing_row(self, trainer: Any, pl_module: Any) -> None:
        """Measure the last step of a training, unless that has been done."""

    def half_the_cost(self) -> str:
        """Which argument halves the time that it takes, and what it is to be."""
