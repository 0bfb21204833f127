"""Milestones of accuracies and feature ranks: interpolated, generalised, became robust or lost it, rank fell."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

from lc_callback.detection.certainty import Moved, graded
from lc_callback.detection.monotone import rising
from lc_callback.detection.noisy_fit import Noise
from lc_callback.detection.phases import PHASE_SETTINGS, changes, first_steep, least_change, significant
from lc_callback.detection.piecewise import binned, bins_of, fit
from lc_callback.detection.transitions import FIRM, TENTATIVE, Curves, Turn
from lc_callback.suggestions import did_you_mean

__all__ = [
    "ACCURACY_KINDS",
    "ACCURACY_SETTINGS",
    "RANK_KINDS",
    "RANK_SETTINGS",
    "check_accuracy_settings",
    "find_accuracy_milestones",
    "find_rank_turns",
    "unconfirmed_generalization",
]

Floats = NDArray[np.float64]

ACCURACY_KINDS = (
    "interpolation",
    "generalization",
    "delayed_generalization",
    "robustness_onset",
    "delayed_robustness",
    "robustness_loss",
    "multi_stage_generalization",
)
RANK_KINDS = ("rank_descent", "rank_rise", "second_rank_descent")

#: What :func:`find_accuracy_milestones` takes as settings.
ACCURACY_SETTINGS = {"interpolation": 0.99, "min_rise": 0.1, "plateau": 0.9, "delay": 5.0}

#: What :func:`find_rank_turns` takes as settings: ranks that move by 8 of 177 tell something, and have little noise.
RANK_SETTINGS = {**PHASE_SETTINGS, "min_prominence": 0.08, "min_change": 0.04}

_FEWEST = 8  # rows, below which nothing is said
_NOISE_FACTOR = 4.0  # standard deviations of a row that a rise must be
_SLACK = 0.2  # of the rise, by which noise may lead back below, at most
_FEWEST_BINS = 4
_DOUBT = 2.0  # standard deviations of a row by which the threshold may have been missed
_SHARP = 0.7  # decades, of which the interval of a firm milestone has at most so many
_A_ROW = 0.1  # decades
_HALF = 0.5
_LATE = 0.2  # decades whose median is the level
_LONG_ENOUGH = 0.3  # decades that a plateau must last, and that must lie between two surges
_CAUGHT_UP = 0.9  # of the level at train points, from which there is no more to wait for
_LOST = 0.28  # of its highest value that accuracy under attack must lose: a third, but for noise
_FOLLOWS = 0.5  # of the rise at train points that the rise at test points must be, to be called generalisation


@dataclass(frozen=True)
class Loss:
    """How far a curve fell from its highest value, and where the part that counts was lost for good."""

    x: float
    value: float
    peak: float
    peak_step: int
    level: float
    low: float  # decades, between which noise may have moved the place
    high: float
    noise: float  # standard deviation of a row

    @property
    def certainty(self) -> str:
        """Firm if noise leaves little doubt that a third is lost, and where."""
        is_lost = self.peak - self.level >= 2 * _NOISE_FACTOR * self.noise
        return FIRM if is_lost and self.high - self.low <= _SHARP else TENTATIVE

    @property
    def share(self) -> float:
        """Of the highest value."""
        return 1 - self.level / self.peak


@dataclass(frozen=True)
class Rise:
    """How far a curve rose, and where it reached a share of that for good."""

    x: float
    value: float
    base: float
    level: float
    lasts: float  # decades from there to the last row
    low: float  # decades, between which noise may have moved the place
    high: float
    noise: float  # standard deviation of a row

    @property
    def is_firm(self) -> bool:
        """Whether noise leaves little doubt where it is."""
        return self.high - self.low <= _SHARP

    @property
    def height(self) -> float:
        """From the lowest value to the level."""
        return self.level - self.base


def find_accuracy_milestones(curves: Curves, settings: Mapping[str, float]) -> list[Turn]:
    r"""What accuracies at train points, test points and test points under attack show so far.

    All on a logarithmic axis of steps, without lone outliers (running median of three rows). The level of a curve is
    its median over the last 0.2 decades, its rise that minus its lowest value before it first got there (at least four
    standard deviations of its noise). *For good* means on the rising curve that is nearest to it: but for noise, and
    for dips that have fewer rows than the height that they interrupt.

    - ``interpolation``: ``clean_acc/train`` is at least ``interpolation`` in two rows; the first of these.
    - ``generalization``: ``clean_acc/test`` has made the share ``plateau`` of its rise for good, 0.3 decades ago or
      more, and that rise is at least half of the rise of ``clean_acc/train``: a network that memorises has a plateau,
      too, and has not generalised. If ``clean_acc/train`` is on its plateau for 0.3 decades, and the level of
      ``clean_acc/test`` is at least 0.9 of that, it need not last.
    - ``delayed_generalization``: at ``generalization``, if ``clean_acc/train`` made that share at least a factor of
      ``delay`` earlier in steps.
    - ``robustness_loss``: ``robust_acc/test_eps...`` has lost 28 % of its highest value (a third, but for noise; in the
      running median of five rows) for good, 0.2 decades ago or more: at least ``min_rise``, and after a rise of at
      least that, or where the clean accuracies stood at 0.9 of their own highest values. What an untrained network
      answers by chance is no robustness.
    - ``robustness_onset``: ``robust_acc/test_eps...`` has made half of its rise for good, and has no loss.
    - ``delayed_robustness``: there, if ``clean_acc/test`` made half of its own rise at least a factor of ``delay``
      earlier.
    - ``multi_stage_generalization``: where a second surge of ``clean_acc/test`` begins, one that leads above the first
      one's level after at least 0.3 decades in which the curve did not rise.

    Args:
        curves: by key.
        settings: ``interpolation``; ``min_rise``, below which a curve has not risen; ``plateau``; ``delay``.
    """
    found: list[Turn] = []

    def add(kind: str, rise: Rise, curve: str, reason: str, is_sure: bool = True) -> None:
        certainty = FIRM if rise.is_firm and is_sure else TENTATIVE
        noise = f"noise of {rise.noise:.2g}"
        found.append(Turn(kind, rise.x, rise.value, rise.height, reason, curve, certainty, rise.low, rise.high, noise))

    def is_late(earlier: Rise, later: Rise) -> bool:
        return later.x - earlier.x >= math.log10(settings["delay"]) + _A_ROW

    def risen(key: str, share: float) -> Rise | None:
        return rise_of(curves, key, share, settings["min_rise"])

    found += _interpolation(curves, settings["interpolation"])
    plateau = settings["plateau"]
    train, test = risen("clean_acc/train", plateau), risen("clean_acc/test", plateau)
    if test is not None and _generalised(train, test):
        reason = f"rose from {test.base:.3g} to {test.level:.3g}, and has made {plateau:.0%} of that for good"
        add("generalization", test, "clean_acc/test", reason)
        if train is not None and _factor(train, test) >= settings["delay"]:
            reason = f"{plateau:.0%} of its rise {_factor(train, test):.3g} times later in steps than clean_acc/train"
            add("delayed_generalization", test, "clean_acc/test", reason, is_late(train, test))
    for key in attacked_keys(curves):
        loss = loss_of(curves, key, settings["min_rise"])
        if loss is not None:
            reason = f"fell from {loss.peak:.3g} at step {loss.peak_step:,} to {loss.level:.3g}, {loss.share:.0%} of it"
            lost = loss.peak - loss.level
            place = loss.certainty, loss.low, loss.high, f"noise of {loss.noise:.2g}"
            found.append(Turn("robustness_loss", loss.x, loss.value, lost, reason, key, *place))
            continue
        onset = risen(key, 0.5)
        if onset is None:
            continue
        reason = f"rose from {onset.base:.3g} to {onset.level:.3g}, and has made half of that for good"
        add("robustness_onset", onset, key, reason)
        clean = clean_key(key)
        first = risen(clean, 0.5)
        if first is not None and _factor(first, onset) >= settings["delay"]:
            reason = f"half of its rise {_factor(first, onset):.3g} times later in steps than {clean}"
            add("delayed_robustness", onset, key, reason, is_late(first, onset))
    if "clean_acc/test" in curves:
        found += _second_surge(*curves["clean_acc/test"], settings["min_rise"], "clean_acc/test")
    return found


def unconfirmed_generalization(curves: Curves, settings: Mapping[str, float]) -> str:
    """Why :func:`find_accuracy_milestones` has no ``generalization``, though test accuracy rose; else nothing."""
    if "clean_acc/test" not in curves:
        return ""
    train, test = (
        rise_of(curves, key, settings["plateau"], settings["min_rise"]) for key in ("clean_acc/train", "clean_acc/test")
    )
    to_follow = _FOLLOWS * train.height if train is not None else settings["min_rise"]
    if test is None:
        values = curves["clean_acc/test"][1]
        top = int(values.argmax())
        base = values[: top + 1].min()
        if values[top] - base < to_follow:
            return ""
        if len(values) >= _FEWEST_BINS and Smoothed(*curves["clean_acc/test"]).level - base >= to_follow:
            return ""  # it is up there still: the rise is within the first rows, or noise hides its place
        return f"test accuracy was {values[top]:.3g} once, but has not risen for good: {values[-1]:.3g} at the last row"
    if _generalised(train, test) or test.height < to_follow:
        return ""
    return (
        f"test accuracy rose from {test.base:.3g} to {test.level:.3g}, most of it by step {round(10**test.x - 1):,}, "
        f"but that has to last for a factor of {10**_LONG_ENOUGH:.2g} in steps, and has for {10**test.lasts:.3g}"
    )


def check_accuracy_settings(settings: Mapping[str, float]) -> dict[str, float]:
    """The settings of :func:`find_accuracy_milestones`, if they are in range.

    Raises:
        ValueError: if one is not, or is unknown.
    """
    unknown = sorted({*settings} - {*ACCURACY_SETTINGS})
    if unknown:
        near = did_you_mean(unknown[0], ACCURACY_SETTINGS)
        raise ValueError(f"unknown settings {unknown}; possible are {sorted(ACCURACY_SETTINGS)}{near}")
    for name in ("interpolation", "min_rise"):
        if not 0 < settings[name] <= 1:
            raise ValueError(f"`{name}` must be above 0 and at most 1, but got {settings[name]!r}.")
    if not 0 < settings["plateau"] < 1:
        raise ValueError(f"`plateau` must be above 0 and below 1, but got {settings['plateau']!r}.")
    if not settings["delay"] > 1:
        raise ValueError(f"`delay` must be above 1, but got {settings['delay']!r}.")
    return dict(settings)


def find_rank_turns(
    curve: str, steps: Floats, values: Floats, settings: Mapping[str, float], noise: Noise | None = None
) -> list[Turn]:
    """Where the rank of a layer begins to fall, to rise again, and to fall again.

    Read off the fit of :func:`lc_callback.detection.phases.detect_phases`, whose settings apply: ``rank_descent`` is
    the beginning of the first significant fall, ``rank_rise`` that of the first significant rise after it, and
    ``second_rank_descent`` that of the fall after that (*Deep Grokking*, 2024, figure 1: rank double descent). A
    movement begins with its first piece that is steeper than ``flatness`` times its steepest.
    """
    found = fit(steps, values)
    if found is None:
        return []
    tolerance, v = significant(found, settings), found.values
    read = partial(_read_rank, flatness=settings["flatness"])
    turns = []
    for kind, (begin, start, end) in _rank_moves(
        found.nodes, v, lambda i, j: abs(v[i] - v[j]) >= tolerance, settings["flatness"]
    ).items():
        change = float(abs(v[end] - v[start]))
        reason = (
            f"{'rises' if kind == 'rank_rise' else 'falls'} by {change:.3g}, from {v[start]:.3g} to {v[end]:.3g} on "
            f"the fitted curve, steeply from here; significant is {tolerance:.3g}"
        )
        turns.append(Turn(kind, float(found.nodes[begin]), float(v[begin]), change, reason, curve))
    return graded(turns, found, steps, values, read, least_change(found, settings), noise)


def _rank_moves(nodes: Floats, v: Floats, moved: Moved, flatness: float) -> dict[str, tuple[int, int, int]]:
    """Of each kind the nodes where the movement is steep, where it begins, and where it ends."""
    moves = changes(v, moved)
    if moves and v[moves[0][1]] > v[moves[0][0]]:
        moves = moves[1:]
    slopes = np.diff(v) / np.diff(nodes)
    return {
        kind: (start + first_steep(slopes[start:end], flatness), start, end)
        for kind, (start, end) in zip(RANK_KINDS, moves, strict=False)
    }


def _read_rank(nodes: Floats, v: Floats, moved: Moved, flatness: float) -> dict[str, int]:
    return {kind: begin for kind, (begin, _, _) in _rank_moves(nodes, v, moved, flatness).items()}


def _interpolation(curves: Curves, level: float) -> list[Turn]:
    steps, values = curves.get("clean_acc/train", (np.empty(0), np.empty(0)))
    reached = np.flatnonzero((values >= level) & (np.append(values[1:], level) >= level))
    if not len(reached):
        return []
    x, value = float(np.log10(steps[reached[0]] + 1)), float(values[reached[0]])
    reason = f"reached {value:.4g}, at least {level:g}"
    at = int(reached[0])
    before, first, last = (float(np.log10(steps[i] + 1)) for i in (max(0, at - 1), 0, -1))
    place = max(before - _A_ROW, first), min(x + _A_ROW, last)
    certainty = FIRM if np.median(values[at:]) >= level else TENTATIVE
    return [Turn("interpolation", x, value, value - float(values[0]), reason, "clean_acc/train", certainty, *place)]


class Smoothed:
    """A curve without lone outliers, and what is said about all of it.

    Args:
        steps: ``(N,)``, at least three.
        values: ``(N,)``, finite.
    """

    def __init__(self, steps: Floats, values: Floats) -> None:
        self.steps, self.x = steps, np.log10(steps + 1)
        middle = np.median([values[:-2], values[1:-1], values[2:]], axis=0)
        #: Running median of three rows, ``(N,)``.
        self.values: Floats = np.concatenate([middle[:1], middle, middle[-1:]])
        late = np.maximum(self.x >= self.x[-1] - _LATE, np.arange(len(self.x)) >= len(self.x) - 3)
        #: Median of the last 0.2 decades.
        self.level = float(np.median(values[late]))
        #: Standard deviation of a row.
        self.noise = 1.48 * float(np.median(np.abs(np.diff(values, n=2)))) / math.sqrt(6)

    def smallest_change(self, least: float) -> float:
        """What a change must be, so that it is none of the noise."""
        return max(least, _NOISE_FACTOR * self.noise)


def rise_of(curves: Curves, key: str, share: float, min_rise: float) -> Rise | None:
    """The rise of a curve if it is at least ``min_rise``, and where ``share`` of it was made for good."""
    if key not in curves or len(curves[key][0]) < _FEWEST:
        return None
    x, values = binned(*curves[key])
    if len(x) < _FEWEST_BINS:
        return None
    curve = Smoothed(10**x - 1, values)
    smooth, level = curve.values, curve.level
    there = int(np.argmax(smooth >= level)) if (smooth >= level).any() else len(smooth)
    base = float(smooth[: there + 1].min())
    if level - base < curve.smallest_change(min_rise):
        return None
    gained = rising(smooth)
    plateau = float(np.median(gained[gained >= (base + level) / 2]))
    level = min(level, max(plateau, level - _DOUBT * curve.noise))  # the last rows may be high by chance
    # Of a plateau half of the rows are below their level, so near to it noise must not count as not being there.
    threshold = base + share * (level - base) - (curve.noise if share > _HALF else 0.0)
    first = int(np.argmax((gained >= threshold) & (smooth >= threshold)))
    doubt = _DOUBT * curve.noise
    early = int(np.argmax(gained >= threshold - doubt))
    late = int(np.argmax(gained >= min(threshold + doubt, level)))
    low, high = x[max(0, min(early, first) - 1)] - _A_ROW, x[max(late, first)] + _A_ROW
    at = _first_row(*curves[key], 10 ** x[max(0, first - 1) : first + 1] - 1, threshold)
    low, high = float(max(low, x[0])), float(min(high, x[-1]))
    return Rise(at, float(smooth[first]), base, level, float(x[-1] - at), min(low, at), max(high, at), curve.noise)


def _first_row(steps: Floats, values: Floats, means: Floats, threshold: float) -> float:
    """``log10(step + 1)`` of the row from which most are above, among those of the bins that have these mean steps."""
    bins, those = bins_of(steps), bins_of(means)
    rows = np.flatnonzero((bins >= those[0]) & (bins <= those[-1]))
    above = values[rows] >= threshold
    wrong = np.cumsum(above) - above + np.cumsum(~above[::-1])[::-1]  # rows, if it began at each of them
    return float(np.log10(steps[rows[int(wrong.argmin())]] + 1))


def attacked_keys(keys: Iterable[str]) -> list[str]:
    """The keys of accuracies under attack."""
    return [key for key in keys if key.startswith("robust_acc/") and "_eps" in key]


def clean_key(attacked: str) -> str:
    """Key of the accuracy without the attack."""
    return attacked.replace("robust_acc", "clean_acc").partition("_eps")[0]


def loss_of(curves: Curves, key: str, min_rise: float) -> Loss | None:
    """What an accuracy has lost for good of its highest value, if that is about a third."""
    if len(curves[key][0]) < _FEWEST:
        return None
    curve = Smoothed(*curves[key])
    each = curves[key][1].tolist()
    wide = [median(each[max(0, i - 2) : i + 3]) for i in range(len(each))]  # a peak is no lone row
    smooth, level = np.array(wide), curve.level
    top = int(smooth.argmax())
    peak = float(smooth[top])
    bound, least = (1 - _LOST) * peak, curve.smallest_change(min_rise)
    if level > bound or peak - level < least:
        return None
    if peak - smooth[: top + 1].min() < least and not _trained_by(curves, curve.steps[top]):
        return None
    above = np.flatnonzero(smooth > bound + min(2 * curve.noise, _SLACK * (peak - level)))
    below = np.flatnonzero(smooth <= bound)
    below = below[below > above[-1]]
    if not len(below) or curve.x[-1] - curve.x[below[0]] < _LATE:
        return None
    first, doubt = int(below[0]), _DOUBT * curve.noise
    fallen = np.arange(len(smooth)) > top
    early = int(np.argmax(fallen & (smooth <= bound + doubt)))
    late = np.flatnonzero(smooth > max(bound - doubt, level + curve.noise))
    low = max(curve.x[max(0, early - 1)] - _A_ROW, curve.x[0])
    high = min(curve.x[min(max(int(late[-1]) + 1, first), len(smooth) - 1)] + _A_ROW, curve.x[-1])
    place = float(low), float(high), curve.noise
    return Loss(float(curve.x[first]), float(smooth[first]), peak, round(curve.steps[top]), level, *place)


def _trained_by(curves: Curves, step: float) -> bool:
    """Whether the clean accuracies of this step are near their highest values."""
    clean = [
        Smoothed(*curves[key]) for key in curves if key.startswith("clean_acc/") and len(curves[key][0]) >= _FEWEST
    ]
    return all((some.values[some.steps <= step][-1:] >= _CAUGHT_UP * some.values.max()).any() for some in clean)


def _generalised(train: Rise | None, test: Rise) -> bool:
    """Whether the test points are on their plateau, and this is no memorising network's."""
    if train is None:
        return test.lasts >= _LONG_ENOUGH
    caught_up = train.lasts >= _LONG_ENOUGH and test.level >= _CAUGHT_UP * train.level
    return (caught_up or test.lasts >= _LONG_ENOUGH) and test.height >= _FOLLOWS * train.height


def _factor(earlier: Rise, later: Rise) -> float:
    return 10 ** (later.x - earlier.x)


def _second_surge(steps: Floats, values: Floats, min_rise: float, curve: str) -> list[Turn]:
    found = fit(steps, values)
    if found is None:
        return []
    tolerance, v, x = max(min_rise, PHASE_SETTINGS["noise_factor"] * found.sigma), found.values, found.nodes
    surges = _surges(x, v, lambda i, j: abs(v[i] - v[j]) >= tolerance)
    if surges is None:
        return []
    first_end, start, end = surges
    apart = 10 ** (x[start] - x[first_end])
    reason = (
        f"rose to {v[first_end]:.3g}, then no more for a factor of {apart:.3g} in steps, then to {v[end]:.3g}, "
        f"on the fitted curve; significant is {tolerance:.3g}"
    )
    height = float(v[end] - v[start])
    turn = Turn("multi_stage_generalization", float(x[start]), float(v[start]), height, reason, curve)
    return graded([turn], found, steps, values, _read_surge, min_rise)


def _surges(x: Floats, v: Floats, moved: Moved) -> tuple[int, int, int] | None:
    """The nodes where a first surge ends, and where a second one that leads higher begins and ends."""
    slopes = np.diff(v) / np.diff(x)
    rising = slopes > PHASE_SETTINGS["flatness"] * max(float(slopes.max()), 0.0)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], rising, [False]]).astype(int)))
    surges = [(i, j) for i, j in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True) if moved(i, j)]
    for (_, first_end), (start, end) in pairwise(surges):
        highest = int(np.argmax(v[: first_end + 1]))
        if x[start] - x[first_end] >= _LONG_ENOUGH and v[end] > v[highest] and moved(highest, end):
            return first_end, start, end
    return None


def _read_surge(nodes: Floats, v: Floats, moved: Moved) -> dict[str, int]:
    surges = _surges(nodes, v, moved)
    return {} if surges is None else {"multi_stage_generalization": surges[1]}
