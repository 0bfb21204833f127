"""What the tables of docs/results.md say of one run, read off its rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median

import numpy as np
from scipy.stats import spearmanr

from lc_callback.detection.milestones import ACCURACY_SETTINGS, RANK_SETTINGS, find_accuracy_milestones, find_rank_turns
from lc_callback.detection.phases import detect_phases
from lc_callback.detection.transitions import Transition, Turn

Row = dict[str, float]
Rows = list[Row]
Measure = Callable[[Rows], float | None]

LC, TEST, TRAIN = "lc/train", "clean_acc/test", "clean_acc/train"
PGD, WEAK_PGD, RAW = "robust_acc/test_eps0.1", "robust_acc/test_eps0.03", "robust_acc_raw/test_eps0.1"


def last(key: str) -> Measure:
    """Median of the last three values."""
    return lambda rows: median(values[-3:]) if len(values := curve(rows, key)[1]) else None


def at_end(key: str) -> Measure:
    """The last value."""
    return lambda rows: float(values[-1]) if len(values := curve(rows, key)[1]) else None


def at_start(key: str) -> Measure:
    """The first value."""
    return lambda rows: float(values[0]) if len(values := curve(rows, key)[1]) else None


def highest(key: str, since: float = 0) -> Measure:
    """The highest value from a step on."""
    return lambda rows: max(
        (float(v) for step, v in zip(*curve(rows, key), strict=True) if step >= since), default=None
    )


def lowest(key: str, until: float) -> Measure:
    """The lowest value up to a step."""
    return lambda rows: min(
        (float(v) for step, v in zip(*curve(rows, key), strict=True) if step <= until), default=None
    )


def half_rise(key: str) -> Measure:
    """The step at which an accuracy has made half of its rise for good, as ``robustness_onset`` is defined."""

    def of(rows: Rows) -> float | None:
        curves = {"robust_acc/test_eps0": curve(rows, key)}  # which is what a clean accuracy is
        return _step_of("robustness_onset", find_accuracy_milestones(curves, ACCURACY_SETTINGS))

    return of


def milestone(kind: str, *keys: str) -> Measure:
    """The step of a milestone in these accuracies, of the last of them, with the settings of the callbacks."""

    def of(rows: Rows) -> float | None:
        found = find_accuracy_milestones({key: curve(rows, key) for key in keys}, ACCURACY_SETTINGS)
        return _step_of(kind, (one for one in found if one.curve == keys[-1]))

    return of


def falls_to(key: str, level: float) -> Measure:
    """The first of two rows in succession that are at most ``level``."""
    return _first_of_two(key, lambda values: values <= level)


def reaches(key: str, level: float) -> Measure:
    """The first of two rows in succession that are at least ``level``."""
    return _first_of_two(key, lambda values: values >= level)


def _first_of_two(key: str, holds: Callable[[np.ndarray], np.ndarray]) -> Measure:
    def of(rows: Rows) -> float | None:
        steps, values = curve(rows, key)
        there = np.flatnonzero(holds(values[:-1]) & holds(values[1:]))
        return float(steps[there[0]]) if len(there) else None

    return of


def largest_ratio(key: str, other: str) -> Measure:
    """The largest of ``key / other`` in one row."""
    return lambda rows: max((row[key] / row[other] for row in rows if {key, other} <= {*row}), default=None)


def same_order(key: str, other: str, since: float = 0) -> Measure:
    """Spearman's rank correlation of two curves, from -1 to 1, over the rows from a step on."""

    def of(rows: Rows) -> float | None:
        pairs = [(row[key], row[other]) for row in rows if row["step"] >= since and {key, other} <= {*row}]
        return float(spearmanr(*zip(*pairs, strict=True)).statistic) if len(pairs) > 2 else None

    return of


def phase(kind: str) -> Measure:
    """The step of a transition of local complexity at training points."""
    return lambda rows: _step_of(kind, _phases(*(tuple(axis) for axis in curve(rows, LC))))


@functools.cache  # a table asks for several kinds, and experiments share runs
def _phases(steps: Sequence[float], values: Sequence[float]) -> list[Transition]:
    return detect_phases([int(step) for step in steps], values)


def _step_of(kind: str, found: Iterable[Turn | Transition]) -> int | None:
    return next((one.step for one in found if one.kind == kind), None)


def step_of_highest(key: str, since: float = 0) -> Measure:
    """Where the highest value from a step on is."""

    def of(rows: Rows) -> float:
        steps, values = curve(rows, key)
        late = steps >= since
        return float(steps[late][values[late].argmax()])

    return of


def second_surge(rows: Rows) -> float | None:
    """The step at which a second surge of test accuracy begins."""
    return _step_of(
        "multi_stage_generalization", find_accuracy_milestones({TEST: curve(rows, TEST)}, ACCURACY_SETTINGS)
    )


def rank_turn(kind: str) -> Measure:
    """The step of a transition of the rank of the last layer."""
    return lambda rows: _step_of(kind, find_rank_turns("rank/last", *curve(rows, "rank/last"), RANK_SETTINGS))


def at_half_rise(key: str, relative: bool = False) -> Measure:
    """The value where test accuracy has made half of its rise; relative to that of the first row."""

    def of(rows: Rows) -> float | None:
        step = half_rise(TEST)(rows)
        value = next((row.get(key) for row in rows if row["step"] == step), None)
        return value / rows[0][key] if relative and value is not None else value

    return of


def curve(rows: Rows, key: str) -> tuple[np.ndarray, np.ndarray]:
    kept = [(row["step"], row[key]) for row in rows if math.isfinite(row.get(key, math.nan))]
    steps, values = np.array(kept, float).reshape(-1, 2).T
    return steps, values


def agreement(
    first: Measure, second: Measure, names: tuple[str, str]
) -> Callable[[Mapping[str, Mapping[int, Rows]]], str]:
    """How two steps go together over all runs that have both: a sentence with Spearman's correlation and its interval.

    The 95 % interval is that of 2,000 bootstrap samples of the runs.
    """

    def of(results: Mapping[str, Mapping[int, Rows]]) -> str:
        steps = [(first(rows), second(rows)) for seeds in results.values() for rows in seeds.values()]
        both = np.array([pair for pair in steps if None not in pair], float)
        alone = [sum(pair[i] is not None and pair[1 - i] is None for pair in steps) for i in (0, 1)]
        before = int((both[:, 0] < both[:, 1]).sum())
        rng = np.random.default_rng(0)
        drawn = [both[rng.integers(len(both), size=len(both))] for _ in range(2000)]
        varied = [pair for pair in drawn if len({*pair[:, 0]}) > 1 and len({*pair[:, 1]}) > 1]
        low, high = np.quantile([spearmanr(*pair.T).statistic for pair in varied], [0.025, 0.975])
        rho = spearmanr(*both.T).statistic
        return (
            f"Of {len(steps)} runs {len(both)} have both; in {before} of these {names[0]} is first. {alone[0]} have "
            f"only {names[0]}, {alone[1]} only {names[1]}. Rank correlation of both steps over the runs: {rho:.2f} "
            f"(95 % interval {low:.2f} to {high:.2f}, bootstrap over the runs)."
        )

    return of


def by_step(named: Mapping[str, str], of: str) -> Callable[[Mapping[str, Mapping[int, Rows]]], str]:
    """Markdown: the values of some curves at the steps at which ``of`` was measured, of the first run."""

    def said(results: Mapping[str, Mapping[int, Rows]]) -> str:
        rows = [row for row in next(iter(next(iter(results.values())).values())) if of in row]
        lines = [f"| step | {' | '.join(named)} |", "|---:|" + "---:|" * len(named)]
        cells = [[f"{row['step']:,.0f}", *(f"{row[key]:.3g}" for key in named.values())] for row in rows]
        return "\n".join([*lines, *(f"| {' | '.join(some)} |" for some in cells)])

    return said
