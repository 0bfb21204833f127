"""Sentences about accuracy: did it grok, did it become robust."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lc_callback.detection.milestones import (
    ACCURACY_SETTINGS,
    Rise,
    Smoothed,
    attacked_keys,
    loss_of,
    rise_of,
    unconfirmed_generalization,
)
from lc_callback.detection.movements import FEWEST, Course, Leg, course_of, number
from lc_callback.detection.transitions import Transition
from lc_callback.run.followed import (
    MEMORISED,
    TEST,
    TRAIN,
    Followed,
    and_list,
    label_of,
    last_value,
    setting_of,
)

__all__ = ["grokking", "robustness"]

_FALLEN = 0.05  # below its peak, from which accuracy under attack is said to have come down


_LEFT = 2 / 3  # of a peak, at most, where accuracy under attack is said to have fallen before it rose


_MOST_EPS = 2  # that a sentence lists


_ALREADY = 0.9  # of the level at train points that test accuracy is at from the start, to be called generalisation


def grokking(seen: Followed) -> str:
    """The verdict, and the steps that it rests on."""
    measured = [key for key in (TRAIN, TEST) if key in seen.curves]
    if not measured:
        return "accuracy has no finite value, so whether it grokked is not known"
    rows = max(len(seen.curves[key][0]) for key in measured)
    if rows < FEWEST:
        ends = [f"{label_of(key)} {number(seen.curves[key][1][-1])}" for key in measured]
        few = "one row is" if rows == 1 else f"{rows} rows are"
        return f"{few} too few to say whether it grokked: at the last row, {and_list(ends)}"
    if TEST not in seen.curves:
        why = "test accuracy has no finite value" if TEST in seen.missing else "test accuracy was not measured"
        return f"{why}, so whether it generalised is not known: {_fitted(seen)}"
    lost = _lost(seen)
    if lost:
        return f"it generalised, and lost it: {lost}, {_fitted(seen)}"
    generalised = seen.known("generalization")
    return _not_generalised(seen) if generalised is None else _generalised(seen, generalised.step)


def _generalised(seen: Followed, at: int) -> str:
    reached = _reached(seen, Smoothed(*seen.curves[TEST]).level, at)
    if TRAIN not in seen.curves:
        return f"it generalised: {reached}; without accuracy at train points it is not known whether this was late"
    if seen.early_kind("interpolation") is not None:
        return f"it generalised after it interpolated: {_fitted(seen)}, {reached}"
    fitted, since = _fitted(seen), _interpolated_since(seen)
    if seen.known("delayed_generalization") is not None:
        train = rise_of(seen.curves, TRAIN, setting_of(seen, "plateau"), setting_of(seen, "min_rise"))
        if since is None or (since >= at and train is not None):
            since = _step(train) if train is not None else at
            fitted = f"train accuracy had made {_share(seen)} of its rise by step {since:,}"
        return f"it grokked: {fitted}, {reached}, {_factor(since, at)} times later in steps"
    if since is None or since > at:
        return f"it generalised without delay: {reached}, {'before ' if since is not None else ''}{fitted}"
    if since == at:
        return f"it generalised without delay: {fitted}, and {reached}"
    least = f"less than the {setting_of(seen, 'delay'):g} times that count as grokking"
    if seen.likely("delayed_generalization") is not None:
        least = f"which may be the {setting_of(seen, 'delay'):g} times that count as grokking"
        return f"it generalised, and perhaps grokked: {fitted}, {reached}, {_factor(since, at)} times later, {least}"
    return f"it generalised without grokking: {fitted}, {reached}, {_factor(since, at)} times later in steps, {least}"


def _reached(seen: Followed, level: float, at: int) -> str:
    """The milestone as what it is: a share of the rise."""
    return f"test accuracy had made {_share(seen)} of its rise to {number(level)} by step {at:,}"


def _share(seen: Followed) -> str:
    return f"{100 * setting_of(seen, 'plateau'):.3g}%"


def _lost(seen: Followed) -> str:
    """How far test accuracy fell from a height that was generalisation."""
    loss = loss_of(seen.curves, TEST, setting_of(seen, "min_rise"))
    train = Smoothed(*seen.curves[TRAIN]).values.max() if TRAIN in seen.curves else 0.0
    if loss is None or loss.peak < MEMORISED * train:
        return ""
    return f"test accuracy fell from {number(loss.peak)} at step {loss.peak_step:,} to {number(loss.level)}"


def _interpolated_since(seen: Followed) -> int | None:
    """Step at which the training points were interpolated, and train accuracy was on its plateau."""
    known = seen.known("interpolation")
    train = rise_of(seen.curves, TRAIN, setting_of(seen, "plateau"), setting_of(seen, "min_rise"))
    if known is None:
        return None
    return known.step if train is None else max(known.step, _step(train))


def _not_generalised(seen: Followed) -> str:
    fitted = _fitted(seen)
    course = course_of(*seen.curves[TEST], _accuracy_settings(seen))
    last = f"{number(last_value(seen, TEST))} at the last row"
    early = seen.early_kind("generalization")
    if early is not None:
        reached = f"test accuracy had made {_share(seen)} of its rise by step {early.step:,}"
        return f"it generalised at once: {reached} ({last}), {fitted}"
    new = seen.likely("generalization")
    if new is not None:
        what = "grokked" if seen.likely("delayed_generalization") is not None else "generalised"
        why = "only the last rows show it" if new.is_firm else "noise leaves doubt"
        reached = _reached(seen, course.last, new.step)
        return f"it seems to have {what}, but {why}: {fitted}, {reached}"
    why = unconfirmed_generalization(seen.curves, {**ACCURACY_SETTINGS, **seen.settings})
    if why:
        return f"it has not generalised for good so far: {why}; {fitted}"
    moved = f"test accuracy {course.brief() if course.legs else f'stays {course.between}'}"
    if TRAIN not in seen.curves:
        return f"no generalization is seen: {moved}; accuracy at train points is not known"
    if _is_fitted(seen) and not course.legs and course.first >= _ALREADY * Smoothed(*seen.curves[TRAIN]).level:
        return f"it generalised from the start: {moved}, {fitted}"
    if _is_fitted(seen) and course.legs and course.last >= _ALREADY * Smoothed(*seen.curves[TRAIN]).level:
        return f"it generalised, too early or too noisily for a marker: {moved}, {fitted}"
    if _is_fitted(seen):
        return f"it memorised, and has not generalised so far: {fitted}, {moved}"
    train = course_of(*seen.curves[TRAIN], _accuracy_settings(seen))
    if not (train.legs or course.legs):
        return f"accuracy does not move: train accuracy stays {train.between}, test accuracy {course.between}"
    if course.last >= _ALREADY * train.last:
        ends = " and ".join(number(last_value(seen, key)) for key in (TEST, TRAIN))
        return f"test accuracy keeps up with train accuracy ({ends}), {fitted}"
    return f"it has not generalised so far: {fitted}, {moved}"


def _fitted(seen: Followed) -> str:
    """Whether and when the training points were interpolated."""
    if TRAIN not in seen.curves:
        return "accuracy at train points was not measured"
    known, last = seen.known("interpolation"), Smoothed(*seen.curves[TRAIN]).level
    early = seen.early_kind("interpolation")
    new = seen.likely("interpolation")
    if known is not None:
        said = f"the training points were interpolated at step {known.step:,}"
    elif early is not None:
        first = seen.curves[TRAIN][0][0] >= early.step
        said = f"the training points were interpolated {'from the start' if first else f'by step {early.step:,}'}"
    elif new is not None:
        why = "which only the last rows show" if new.is_firm else "but noise leaves doubt"
        return f"the training points seem to be interpolated at step {new.step:,}, {why}"
    else:
        return f"the training points are not interpolated ({number(last_value(seen, TRAIN))} at the last row)"
    is_lost = last < 0.9 * setting_of(seen, "interpolation")
    return f"{said}, but are no longer ({number(last_value(seen, TRAIN))} at the last row)" if is_lost else said


def _is_fitted(seen: Followed) -> bool:
    """Whether the training points are interpolated, and still are at the end."""
    if seen.known("interpolation") is None and seen.early_kind("interpolation") is None:
        return False
    return Smoothed(*seen.curves[TRAIN]).level >= 0.9 * setting_of(seen, "interpolation")


def robustness(seen: Followed) -> str:
    """What became of each accuracy under attack, as a continuation of a sentence."""
    gained: dict[str, _Gain] = {}
    delayed: list[str] = []
    lost: list[str] = []
    others: dict[str, Course] = {}
    for key in attacked_keys(seen.curves):
        eps = key.partition("_eps")[2]
        course = course_of(*seen.curves[key], _accuracy_settings(seen))
        onset, loss = (_firm(seen, kind, key) for kind in ("robustness_onset", "robustness_loss"))
        if course.is_short:
            continue
        if loss is not None:
            peak = loss_of(seen.curves, key, setting_of(seen, "min_rise"))
            since = f"{number(peak.peak)} at step {peak.peak_step:,}" if peak is not None else number(course.high)
            lost.append(f"from {since} to {number(last_value(seen, key))} (eps {eps})")
        elif onset is not None:
            last = float(seen.curves[key][1][-1])
            fell = course.high - last > _FALLEN
            fall = _fall_before(course, onset.step)
            gained[eps] = _Gain(course.high if fell else course.last, onset.step, last if fell else None, fall)
            delayed += [eps] if _firm(seen, "delayed_robustness", key) is not None else []
        else:
            others[eps] = course
    late = f", late{f' at eps {and_list(delayed)}' if len(delayed) < len(gained) else ''}" if delayed else ""
    said = [
        f"it became more robust{late}: accuracy under attack rose to {_gains(gained)}" if gained else "",
        f"it lost robustness: accuracy under attack fell {and_list(lost)}" if lost else "",
        f"accuracy under attack {_unmarked(others)}" if others else "",
    ]
    return "".join(f"; {one}" for one in said if one)


def _firm(seen: Followed, kind: str, key: str) -> Transition | None:
    """The transition if it is firm; the sentence says where the curve is now, so it may be provisional."""
    found = seen.likely(kind, key)
    return found if found is not None and found.is_firm else None


@dataclass(frozen=True)
class _Gain:
    """Where an accuracy under attack rose to, when half of that was made.

    Attributes:
        height, half: the value it rose to, and the step.
        last: where it is, if it came down since.
        fall: what it lost before it rose.
    """

    height: float
    half: int
    last: float | None
    fall: Leg | None

    @property
    def now(self) -> str:
        """Where it came down to."""
        return "" if self.last is None else f", {number(self.last)} at the last row"

    @property
    def after(self) -> str:
        """What it had before."""
        fall = self.fall
        return "" if fall is None else f", after a fall from {number(fall.start)} to {number(fall.end)}"


def _fall_before(course: Course, step: int) -> Leg | None:
    """The fall from the highest peak before a step that took a good part of it."""
    falls = [leg for leg in course.legs if not leg.rises and leg.ends <= step and leg.end <= _LEFT * leg.start]
    return max(falls, key=lambda leg: leg.start, default=None)


def _gains(gained: Mapping[str, _Gain]) -> str:
    """Where accuracies under attack rose to and are; of many, the range."""
    if len(gained) <= _MOST_EPS:
        return and_list(
            [
                f"{number(gain.height)} (eps {eps}, half of the rise by step {gain.half:,}{gain.after}{gain.now})"
                for eps, gain in gained.items()
            ]
        )
    steps = [gain.half for gain in gained.values()]
    span = " to ".join(f"{at:,}" for at in sorted({min(steps), max(steps)}))
    said = f"{_range({eps: gain.height for eps, gain in gained.items()})}, half of the rise by step {span}"
    fallen = {eps: gain.fall.start for eps, gain in gained.items() if gain.fall is not None}
    if fallen:
        most = max(fallen, key=lambda eps: fallen[eps])
        said += f"{gained[most].after} (eps {most})"
    if all(gain.last is None for gain in gained.values()):
        return said
    lasts = {eps: gain.height if gain.last is None else gain.last for eps, gain in gained.items()}
    return f"{said}, and is {_range(lasts)} at the last row"


def _unmarked(courses: Mapping[str, Course]) -> str:
    """What accuracies under attack do that have no marker; of many, where they are."""
    if len(courses) <= _MOST_EPS:
        return and_list([f"{_moved(course)} (eps {eps})" for eps, course in courses.items()])
    return f"is {_range({eps: course.end for eps, course in courses.items()})} at the last row"


def _moved(course: Course) -> str:
    """What a curve does, and where it is if that is no longer where its last movement led."""
    if not course.legs:
        return f"stays {course.between}"
    is_elsewhere = abs(course.legs[-1].end - course.end) > _FALLEN
    return f"{course.brief()}{f', {number(course.end)} at the last row' if is_elsewhere else ''}"


def _range(values: Mapping[str, float]) -> str:
    """The least and the greatest, each with its eps."""
    low, high = min(values, key=lambda eps: values[eps]), max(values, key=lambda eps: values[eps])
    if number(values[low]) == number(values[high]):
        return f"{number(values[low])} (eps {', '.join(values)})"
    return f"between {number(values[low])} (eps {low}) and {number(values[high])} (eps {high})"


def _factor(earlier: int, later: int) -> str:
    return f"{(later + 1) / (earlier + 1):.2g}"


def _step(rise: Rise) -> int:
    return round(10**rise.x - 1)


def _accuracy_settings(seen: Followed) -> dict[str, float]:
    return {"min_rise": setting_of(seen, "min_rise")}
