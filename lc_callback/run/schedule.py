"""When to measure: schedules over optimizer steps and epochs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence

from lc_callback.suggestions import did_you_mean

__all__ = ["POINTS_PER_DECADE", "Schedule", "is_log_step"]

POINTS_PER_DECADE = 10

_POSSIBLE = "`schedule` must be 'log', a non-empty list of steps >= 0, or a function step -> bool"


def is_log_step(step: int, points_per_decade: int = POINTS_PER_DECADE) -> bool:
    """Whether ``step`` is 0 or one of the integers nearest to ``10 ** (k / points_per_decade)``.

    Needs no last step, and every integer occurs once.

    Example::

        >>> from lc_callback.run.schedule import is_log_step
        >>> [step for step in range(101) if is_log_step(step)]
        [0, 1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25, 32, 40, 50, 63, 79, 100]
    """
    if step <= 0:
        return step == 0
    k = round(points_per_decade * math.log10(step))
    return step == round(10 ** (k / points_per_decade))


class Schedule:
    """One of the three ways to say when a row is due.

    Args:
        schedule: ``"log"``, a list of steps, or ``step -> bool``. ``None`` is ``"log"`` unless another is given.
        every_n_train_steps: every ``n`` optimizer steps, step 0 included.
        every_n_epochs: at the end of every ``n``-th epoch, and at step 0.
        points_per_decade: of ``"log"``.

    Raises:
        ValueError: if more than one is given, a value is out of range, or a function does not take one step.
    """

    def __init__(
        self,
        schedule: str | Sequence[int] | Callable[[int], bool] | None = None,
        every_n_train_steps: int | None = None,
        every_n_epochs: int | None = None,
        points_per_decade: int = POINTS_PER_DECADE,
    ) -> None:
        given = {"schedule": schedule, "every_n_train_steps": every_n_train_steps, "every_n_epochs": every_n_epochs}
        named = {name: value for name, value in given.items() if value is not None}
        if len(named) > 1:
            text = ", ".join(f"`{name}={value!r}`" for name, value in named.items())
            raise ValueError(f"only one of `schedule`, `every_n_train_steps`, `every_n_epochs` may be given: {text}.")
        for name in ("every_n_train_steps", "every_n_epochs"):
            value = given[name]
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"`{name}` must be a positive integer, but got {value!r}.")
        self.every_n_epochs = every_n_epochs
        #: The argument with which it would be due half as often, where that is a matter of one number.
        self.half_as_often: str | None = None
        for name, n in (("every_n_train_steps", every_n_train_steps), ("every_n_epochs", every_n_epochs)):
            if n is not None:
                self.half_as_often = f"{name}={2 * n}"
        log = "log" if points_per_decade == POINTS_PER_DECADE else f"log, {points_per_decade} steps a decade"
        self.text = next((f"{name}={value!r}" for name, value in named.items()), f"schedule='{log}'")
        #: Whether the last step of the run gets a row whatever its number.
        self.closes = False
        #: The function, if it is one of the user's, which need not say the same in every process of a run.
        self.given = schedule if callable(schedule) else None
        self._is_due: Callable[[int], bool]
        if every_n_epochs is not None:
            self._is_due = _Steps([0])
        elif every_n_train_steps is not None:
            self._is_due = _Multiples(every_n_train_steps)
        elif schedule is None or schedule == "log":
            self._is_due, self.closes = _Log(points_per_decade), True
        elif callable(schedule):
            _check_takes_a_step(schedule)
            self._is_due = schedule
        else:
            self._is_due = _Steps(schedule)

    def due(self, after: int, step: int) -> bool:
        """Whether a row is due at ``step``, the last of the steps ``after + 1 .. step`` taken since the last look.

        One batch may take several steps (several optimizers): a scheduled step among them is not lost.
        """
        return any(self._is_due(s) for s in range(after + 1, step + 1))

    def due_after_epoch(self, n_epochs: int) -> bool:
        """Whether a row is due at the end of an epoch, the ``n_epochs``-th of the run."""
        return self.every_n_epochs is not None and n_epochs % self.every_n_epochs == 0

    def rows_between(self, after: int, last: int, steps_an_epoch: float) -> int | None:
        """How many rows are due at the steps ``after + 1 .. last``, the end of the run; ``None`` if nobody can know.

        Args:
            after: the step that was just taken.
            last: the last step of the run.
            steps_an_epoch: steps of one epoch; infinite if it has no end.
        """
        if self.given is not None:
            return None
        if last <= after:
            return 0
        if self.every_n_epochs is not None:
            each = self.every_n_epochs * steps_an_epoch
            return int(last / each + 1e-6) - int(after / each + 1e-6)
        n = self._is_due.between(after, last)  # type: ignore[attr-defined]
        return n + (self.closes and not self._is_due(last))


def _check_takes_a_step(schedule: Callable[..., object]) -> None:
    """Check the signature; a call could change what the function says later."""
    try:
        signature = inspect.signature(schedule)
    except (TypeError, ValueError):  # some built-in functions have none
        return
    try:
        signature.bind(0)
    except TypeError as error:
        raise ValueError(f"{_POSSIBLE}, but got {schedule!r} with the arguments {signature}: {error}.") from None


class _Multiples:
    def __init__(self, n: int) -> None:
        self.n = n

    def __call__(self, step: int) -> bool:
        return step % self.n == 0

    def between(self, after: int, last: int) -> int:
        return last // self.n - after // self.n


class _Log:
    def __init__(self, points_per_decade: int) -> None:
        self.points_per_decade = points_per_decade

    def __call__(self, step: int) -> bool:
        return is_log_step(step, self.points_per_decade)

    def between(self, after: int, last: int) -> int:
        most = math.ceil(self.points_per_decade * math.log10(last + 1)) if last > 0 else 0
        steps = {0} | {round(10 ** (k / self.points_per_decade)) for k in range(most + 1)}
        return sum(after < step <= last for step in steps)


class _Steps:
    def __init__(self, steps: object) -> None:
        if isinstance(steps, str) or not isinstance(steps, Sequence) or not steps:
            raise ValueError(f"{_POSSIBLE}, but got {steps!r}{did_you_mean(steps, ['log'])}")
        for step in steps:
            if isinstance(step, bool) or not isinstance(step, int) or step < 0:
                raise ValueError(f"{_POSSIBLE}, but the list holds {step!r}.")
        self.steps = frozenset(steps)

    def __call__(self, step: int) -> bool:
        return step in self.steps

    def between(self, after: int, last: int) -> int:
        return sum(after < step <= last for step in self.steps)
