"""What a measuring callback defines: its measure, and how the rest of a run shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar

import torch

from lc_callback.callbacks.network import Network
from lc_callback.checks import positive_integer
from lc_callback.detection.transitions import Curves, Turn
from lc_callback.run.key_panels import panels_of_keys
from lc_callback.run.probes import Probes
from lc_callback.run.schedule import POINTS_PER_DECADE
from lc_callback.run.timeline import Panel
from lc_callback.suggestions import did_you_mean

__all__ = ["MeasureHooks"]


class MeasureHooks:
    """The methods that a subclass of :class:`lc_callback.callbacks.ProbeCallback` may define.

    Only :meth:`measure` has to be. Keys are without ``log_key_prefix`` everywhere.
    """

    #: What the seconds are logged under, and the name of the folder of ``history.csv``.
    group: ClassVar[str] = "probe"
    #: The transitions that :meth:`find` can find.
    kinds: ClassVar[tuple[str, ...]] = ()
    #: Whether ``python -m lc_callback measure`` runs it by default.
    offline_by_default: ClassVar[bool] = True
    #: Whether fewer probes make a row cheaper.
    cost_grows_with_probes: ClassVar[bool] = True
    #: Whether :meth:`measure` shares out its points over the processes of a run, see
    #: :meth:`lc_callback.callbacks.ProbeCallback.in_shares`.
    shares_points: ClassVar[bool] = False
    #: Arguments of :class:`lc_callback.callbacks.ProbeCallback` that it has no use for, and does not take.
    without: ClassVar[tuple[str, ...]] = ()
    #: The splits that are drawn for a training.
    splits: ClassVar[tuple[str, ...]] = ("train", "test")
    #: Rows in a decade of steps, with the default schedule.
    points_per_decade: ClassVar[int] = POINTS_PER_DECADE
    #: Keys of a row that a trial on two points may lack.
    late_keys: ClassVar[tuple[str, ...]] = ()
    #: The settings of :meth:`find`, and their defaults.
    detection_settings: ClassVar[dict[str, float]] = {}

    n_probes: int | str

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

    def trial(self, network: Network, probes: Mapping[str, Probes]) -> Mapping[str, float | torch.Tensor]:
        """Called once before the training, with two points of each split; errors stop the run before it starts.

        Returns the keys that :meth:`measure` gives; their values do not count. By default it calls :meth:`measure`.
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
        """The keys of a row in which :meth:`find` looks for transitions; none by default.

        Each gets a sentence in the summary of the run if no transition of it is known.
        """
        return []

    @staticmethod
    def check_detection(settings: Mapping[str, float]) -> None:
        """Raise a ValueError if a setting of :meth:`find` is out of range."""

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

    @classmethod
    def panels(cls, keys: Sequence[str]) -> list[Panel]:
        """How the timeline shows the keys of a row: by default those of :attr:`group` in one panel."""
        return panels_of_keys(cls.group, keys)

    def caption(self, panel: Panel) -> str:
        """What stands under a panel of :meth:`panels`; by default what the panel brings along."""
        return panel.caption

    def recorded(self, step: int) -> None:
        """Called when the row of ``step``, just measured, is in the history."""

    def marks(self, curves: Curves) -> dict[str, float]:
        """What to log with a row that depends on all rows so far, by key; by default nothing.

        Called when the detector looks at a row; the rows between its looks have the marks of the last one.
        """
        return {}

    def pictures(self) -> Mapping[str, Any]:
        """Pictures of the last row, as pixels ``(H, W, 3)`` by key; by default none. Kept as PNG files, too."""
        return {}

    @property
    def draws(self) -> bool:
        """Whether there are pictures at all."""
        return type(self).pictures is not MeasureHooks.pictures

    def film(self, folder: Path) -> Mapping[str, Any]:
        """Pictures of the whole run, made from the files in its folder when it is over; by default none."""
        return {}

    def describe(self) -> str:
        """What is measured, as Markdown. It is written once, after the first row, and empty before that."""
        return ""

    def remark(self) -> str:
        """What is to be said when the run ends, besides the transitions."""
        return ""

    def extra_state(self) -> dict[str, Any]:
        """What else belongs in a checkpoint: plain Python types only."""
        return {}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back :meth:`extra_state`."""
