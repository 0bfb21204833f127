"""Several runs beside each other, from their log directories."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lc_callback.callbacks import MEASURES
from lc_callback.reporting.comparison import Comparison, compare

__all__ = ["compare_runs"]


def compare_runs(
    runs: Sequence[Path | str] | Mapping[str, Sequence[Path | str]],
    *,
    pattern: str | None = None,
    detection: Mapping[str, float] | None = None,
) -> Comparison:
    """Compare runs: the mean curve of each group with its spread, and where each transition is in how many runs.

    From three runs on, the differences between the runs give the noise of the mean curve, and its transitions are found
    with that. So five seeds show what noise hides in one.

    Args:
        runs: log directories, each with ``lc/history.csv`` and so on. Runs whose paths differ in a ``seed*``,
            ``version_*`` or ``run_*`` only are one group. Or the directories by the name of their group.
        pattern: what tells the runs of one group apart instead, such as ``"trial-*"``: a folder's name or its end.
        detection: settings of the detectors, such as ``{"min_prominence": 0.1}``: all transitions are found anew.

    Returns:
        ``.groups`` with curves and transitions, ``.table("markdown" | "csv" | "latex")``, ``.plot()`` for the figure
        and its axes, ``.save(path)`` for a picture or a table.

    Raises:
        ValueError: if there is no run, one is given twice, or one has no rows.

    Example::

        >>> from lc_callback import compare_runs
        >>> compare_runs({"none": []})
        Traceback (most recent call last):
        ValueError: `runs` must have at least one log directory in each group.
    """
    return compare(runs, MEASURES, pattern, detection)
