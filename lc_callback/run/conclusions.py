"""What a run showed, in sentences: did it grok, did it become robust, what did the geometry do.

Curves and transitions in, sentences out. Every number in them is one of the curves or of the transitions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lc_callback.detection.milestones import (
    ACCURACY_SETTINGS,
    Rise,
    Smoothed,
    attacked_keys,
    loss_of,
    rise_of,
    unconfirmed_generalization,
)
from lc_callback.detection.movements import FEWEST, Course, Floats, course_of, number
from lc_callback.detection.transitions import Curves, Transition, Turn, supported

__all__ = ["PHRASES", "Followed", "curve_sentences", "headline"]

#: What a transition says happened, as the end of a sentence.
PHRASES = {
    "first_descent_end": "the first descent ended",
    "ascent_start": "local complexity began to rise",
    "migration_start": "region migration began",
    "migration_end": "region migration ended",
    "interpolation": "the training points were interpolated",
    "generalization": "test accuracy had made most of its rise",
    "delayed_generalization": "test accuracy had made most of its rise, late",
    "robustness_onset": "accuracy under attack had made half of its rise",
    "delayed_robustness": "accuracy under attack had made half of its rise, late",
    "robustness_loss": "accuracy under attack had lost a third of its peak",
    "multi_stage_generalization": "a second surge of test accuracy began",
    "rank_descent": "the feature rank began to fall",
    "rank_rise": "the feature rank began to rise",
    "second_rank_descent": "the feature rank began to fall again",
}

_TRAIN, _TEST = "clean_acc/train", "clean_acc/test"
_FALLEN = 0.05  # below its peak, from which accuracy under attack is said to have come down
_MOST_EPS = 2  # that a sentence lists
_ALREADY = 0.9  # of the level at train points that test accuracy is at from the start, to be called generalisation
_MEMORISED = 0.5  # of the rise at train points that the rise at test points must be, to be called generalisation


@dataclass(frozen=True)
class Followed:
    """What one measure follows, and what it found.

    Attributes:
        curves: those that its markers are about, by key without prefix, without values that are not finite.
        missing: keys of those that have no finite value.
        transitions: what is known; their curves are without prefix, too.
        settings: of its detector.
        find: what rows up to some step show; ``None`` if that is not known.
        name: to tell it from another of its kind, such as its prefix.
        made_by: the layer that made a row which stands out, by curve and step.
        beside: the key and the curve that is drawn boldly where a followed one is drawn faintly.
    """

    curves: Curves
    transitions: Sequence[Transition]
    settings: Mapping[str, float]
    missing: Sequence[str] = ()
    find: Callable[[Curves], Sequence[Turn]] | None = None
    name: str = ""
    made_by: Mapping[tuple[str, int], str] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, tuple[Floats, Floats]]] = field(default_factory=dict)

    @cached_property
    def turns(self) -> Sequence[Turn]:
        """What all rows show, known or not."""
        return self.find(self.curves) if self.find is not None and self.curves else []

    def known(self, kind: str, curve: str = "") -> Transition | None:
        """The settled transition of this kind, and of this curve if one is given."""
        return next((t for t in self.transitions if t.is_settled and t.kind == kind and curve in ("", t.curve)), None)

    def likely(self, kind: str, curve: str = "") -> Transition | None:
        """The same, whether it is settled or not."""
        return next((t for t in self.transitions if t.kind == kind and curve in ("", t.curve)), None)

    @cached_property
    def early(self) -> list[Turn]:
        """What the curves show, but too early for a transition."""
        late = {turn.name for turn in supported(self.turns, self.curves)}
        return [turn for turn in self.turns if turn.name not in late]

    def early_kind(self, kind: str) -> Turn | None:
        """The one of this kind that is too early for a transition."""
        return next((turn for turn in self.early if turn.kind == kind), None)


def headline(seen: Sequence[Followed]) -> str:
    """One or two sentences: did it grok, did it become robust or lose it, what did the geometry do."""
    accuracies = [_named(one, f"{_grokking(one)}{_robustness(one)}") for one in seen if _of(one, "clean_acc/")]
    geometry = [_named(one, _complexity(one)) for one in seen if _of(one, "lc/")]
    geometry += [_named(one, _rank(one)) for one in seen if _of(one, "rank/")]
    if not (accuracies or geometry):
        return ""
    first = "; ".join(accuracies) or "Accuracy was not measured, so whether it grokked is not known"
    return " ".join(f"{_capital(said)}." for said in (first, "; ".join(geometry)) if said)


def curve_sentences(seen: Sequence[Followed]) -> list[str]:
    """One sentence for each curve that has no settled transition, and one for each transition that is not settled."""
    said = []
    for one in seen:
        for key in one.missing:
            said.append(_of_curve(one, key, "has no finite value"))
        for key in one.curves:
            if not any(t.curve == key and t.is_settled for t in one.transitions):
                course, but_for = _calm_course(one, key)
                moved = f"{course.text()}{but_for}{_beside(one, key)}"
                said.append(_of_curve(one, key, f"{moved}{_verdict(one, key, course)}{_early(one, key)}"))
        for t in one.transitions:
            if not t.is_settled and not t.kind.startswith("delayed"):
                what = f"{phrase_of(t.kind, t.curve)} at step {t.step:,} (`{t.curve}`)"
                if t.is_firm:
                    said.append(_named(one, f"Only the last rows show that {what}: more rows have to confirm it"))
                else:
                    said.append(_named(one, f"Perhaps {what}, but noise alone might look like this"))
    return [f"{sentence}." for sentence in said]


def phrase_of(kind: str, curve: str) -> str:
    """What happened, such as ``"region migration began"``; with the budget, if it was under attack."""
    text = PHRASES.get(kind, kind.replace("_", " "))
    eps = curve.partition("_eps")[2]
    return text.replace("under attack", f"under attack (eps {eps})") if eps else text


# Did it grok


def _grokking(seen: Followed) -> str:
    """The verdict, and the steps that it rests on."""
    measured = [key for key in (_TRAIN, _TEST) if key in seen.curves]
    if not measured:
        return "accuracy has no finite value, so whether it grokked is not known"
    rows = max(len(seen.curves[key][0]) for key in measured)
    if rows < FEWEST:
        ends = [f"{_label(key)} {number(seen.curves[key][1][-1])}" for key in measured]
        few = "one row is" if rows == 1 else f"{rows} rows are"
        return f"{few} too few to say whether it grokked: at the last row, {_and(ends)}"
    if _TEST not in seen.curves:
        why = "test accuracy has no finite value" if _TEST in seen.missing else "test accuracy was not measured"
        return f"{why}, so whether it generalised is not known: {_fitted(seen)}"
    lost = _lost(seen)
    if lost:
        return f"it generalised, and lost it: {lost}, {_fitted(seen)}"
    generalised = seen.known("generalization")
    return _not_generalised(seen) if generalised is None else _generalised(seen, generalised.step)


def _generalised(seen: Followed, at: int) -> str:
    reached = _reached(seen, Smoothed(*seen.curves[_TEST]).level, at)
    if _TRAIN not in seen.curves:
        return f"it generalised: {reached}; without accuracy at train points no delay can be told"
    if seen.early_kind("interpolation") is not None:
        return f"it generalised after it interpolated: {_fitted(seen)}, {reached}"
    fitted, since = _fitted(seen), _interpolated_since(seen)
    if seen.known("delayed_generalization") is not None:
        train = rise_of(seen.curves, _TRAIN, _setting(seen, "plateau"), _setting(seen, "min_rise"))
        if since is None or (since >= at and train is not None):
            since = _step(train) if train is not None else at
            fitted = f"train accuracy had made {_share(seen)} of its rise by step {since:,}"
        return f"it grokked: {fitted}, {reached}, {_factor(since, at)} times later in steps"
    if since is None or since > at:
        return f"it generalised without delay: {reached}, {'before ' if since is not None else ''}{fitted}"
    if since == at:
        return f"it generalised without delay: {fitted}, and {reached}"
    least = f"less than the {_setting(seen, 'delay'):g} times that count as grokking"
    if seen.likely("delayed_generalization") is not None:
        least = f"which may be the {_setting(seen, 'delay'):g} times that count as grokking"
        return f"it generalised, and perhaps grokked: {fitted}, {reached}, {_factor(since, at)} times later, {least}"
    return f"it generalised without grokking: {fitted}, {reached}, {_factor(since, at)} times later in steps, {least}"


def _reached(seen: Followed, level: float, at: int) -> str:
    """The milestone as what it is: a share of the rise."""
    return f"test accuracy had made {_share(seen)} of its rise to {number(level)} by step {at:,}"


def _share(seen: Followed) -> str:
    return f"{100 * _setting(seen, 'plateau'):.3g}%"


def _lost(seen: Followed) -> str:
    """How far test accuracy fell from a height that was generalisation."""
    loss = loss_of(seen.curves, _TEST, _setting(seen, "min_rise"))
    train = Smoothed(*seen.curves[_TRAIN]).values.max() if _TRAIN in seen.curves else 0.0
    if loss is None or loss.peak < _MEMORISED * train:
        return ""
    return f"test accuracy fell from {number(loss.peak)} at step {loss.peak_step:,} to {number(loss.level)}"


def _interpolated_since(seen: Followed) -> int | None:
    """Step at which the training points were interpolated, and train accuracy was on its plateau."""
    known = seen.known("interpolation")
    train = rise_of(seen.curves, _TRAIN, _setting(seen, "plateau"), _setting(seen, "min_rise"))
    if known is None:
        return None
    return known.step if train is None else max(known.step, _step(train))


def _not_generalised(seen: Followed) -> str:
    fitted = _fitted(seen)
    course = course_of(*seen.curves[_TEST], _accuracy_settings(seen))
    last = f"{number(_last(seen, _TEST))} at the last row"
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
    if _TRAIN not in seen.curves:
        return f"no generalization is seen: {moved}; without accuracy at train points no delay can be told"
    if _is_fitted(seen) and not course.legs and course.first >= _ALREADY * Smoothed(*seen.curves[_TRAIN]).level:
        return f"it generalised from the start: {moved}, {fitted}"
    if _is_fitted(seen):
        return f"it memorised, and has not generalised so far: {fitted}, {moved}"
    train = course_of(*seen.curves[_TRAIN], _accuracy_settings(seen))
    if not (train.legs or course.legs):
        return f"accuracy does not move: train accuracy stays {train.between}, test accuracy {course.between}"
    if course.last >= _ALREADY * train.last:
        ends = " and ".join(number(_last(seen, key)) for key in (_TEST, _TRAIN))
        return f"test accuracy keeps up with train accuracy ({ends}), {fitted}"
    return f"it has not generalised so far: {fitted}, {moved}"


def _fitted(seen: Followed) -> str:
    """Whether and when the training points were interpolated."""
    if _TRAIN not in seen.curves:
        return "accuracy at train points was not measured"
    known, last = seen.known("interpolation"), Smoothed(*seen.curves[_TRAIN]).level
    early = seen.early_kind("interpolation")
    new = seen.likely("interpolation")
    if known is not None:
        said = f"the training points were interpolated at step {known.step:,}"
    elif early is not None:
        first = seen.curves[_TRAIN][0][0] >= early.step
        said = f"the training points were interpolated {'from the start' if first else f'by step {early.step:,}'}"
    elif new is not None:
        why = "which only the last rows show" if new.is_firm else "but noise leaves doubt"
        return f"the training points seem to be interpolated at step {new.step:,}, {why}"
    else:
        return f"the training points are not interpolated ({number(_last(seen, _TRAIN))} at the last row)"
    is_lost = last < 0.9 * _setting(seen, "interpolation")
    return f"{said}, but are no longer ({number(_last(seen, _TRAIN))} at the last row)" if is_lost else said


def _is_fitted(seen: Followed) -> bool:
    """Whether the training points are interpolated, and still are at the end."""
    if seen.known("interpolation") is None and seen.early_kind("interpolation") is None:
        return False
    return Smoothed(*seen.curves[_TRAIN]).level >= 0.9 * _setting(seen, "interpolation")


# Did it become robust


def _robustness(seen: Followed) -> str:
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
            peak = loss_of(seen.curves, key, _setting(seen, "min_rise"))
            since = f"{number(peak.peak)} at step {peak.peak_step:,}" if peak is not None else number(course.high)
            lost.append(f"from {since} to {number(_last(seen, key))} (eps {eps})")
        elif onset is not None:
            last = float(seen.curves[key][1][-1])
            fell = course.high - last > _FALLEN
            gained[eps] = _Gain(course.high if fell else course.last, onset.step, last if fell else None)
            delayed += [eps] if _firm(seen, "delayed_robustness", key) is not None else []
        else:
            others[eps] = course
    late = f", late{f' at eps {_and(delayed)}' if len(delayed) < len(gained) else ''}" if delayed else ""
    said = [
        f"it became more robust{late}: accuracy under attack rose to {_gains(gained)}" if gained else "",
        f"it lost robustness: accuracy under attack fell {_and(lost)}" if lost else "",
        f"accuracy under attack {_unmarked(others)}" if others else "",
    ]
    return "".join(f"; {one}" for one in said if one)


def _firm(seen: Followed, kind: str, key: str) -> Transition | None:
    """The transition if it is firm; the sentence says where the curve is now, so it may be provisional."""
    found = seen.likely(kind, key)
    return found if found is not None and found.is_firm else None


@dataclass(frozen=True)
class _Gain:
    """Where an accuracy under attack rose to, when half of that was made, and where it is if it came down since."""

    height: float
    half: int
    last: float | None

    @property
    def now(self) -> str:
        """Where it came down to."""
        return "" if self.last is None else f", {number(self.last)} at the last row"


def _gains(gained: Mapping[str, _Gain]) -> str:
    """Where accuracies under attack rose to and are; of many, the range."""
    if len(gained) <= _MOST_EPS:
        return _and(
            [f"{number(g.height)} (eps {eps}, half of the rise by step {g.half:,}{g.now})" for eps, g in gained.items()]
        )
    steps = [gain.half for gain in gained.values()]
    span = " to ".join(f"{at:,}" for at in sorted({min(steps), max(steps)}))
    said = f"{_range({eps: gain.height for eps, gain in gained.items()})}, half of the rise by step {span}"
    if all(gain.last is None for gain in gained.values()):
        return said
    lasts = {eps: gain.height if gain.last is None else gain.last for eps, gain in gained.items()}
    return f"{said}, and is {_range(lasts)} at the last row"


def _unmarked(courses: Mapping[str, Course]) -> str:
    """What accuracies under attack do that have no marker; of many, where they are."""
    if len(courses) <= _MOST_EPS:
        return _and([f"{c.brief() if c.legs else f'stays {c.between}'} (eps {eps})" for eps, c in courses.items()])
    return f"is {_range({eps: course.end for eps, course in courses.items()})} at the last row"


def _range(values: Mapping[str, float]) -> str:
    """The least and the greatest, each with its eps."""
    low, high = min(values, key=lambda eps: values[eps]), max(values, key=lambda eps: values[eps])
    if number(values[low]) == number(values[high]):
        return f"{number(values[low])} (eps {', '.join(values)})"
    return f"between {number(values[low])} (eps {low}) and {number(values[high])} (eps {high})"


# What did the geometry do


def _complexity(seen: Followed) -> str:
    if not seen.curves:
        return "local complexity has no finite value"
    key = next(iter(seen.curves))
    course, but_for = _calm_course(seen, key)
    start, end = seen.known("migration_start", key), seen.known("migration_end", key)
    what = _label(key).replace("LC", "local complexity")
    if start is None:
        said = course.text() if seen.transitions else course.brief()
        return f"{what} {said}{but_for}{_verdict(seen, key, course)}"
    ended = "" if end is None else f" and ended at step {end.step:,}"
    return f"{what} {course.text()}{but_for}: region migration began at step {start.step:,}{ended}"


def _calm_course(seen: Followed, key: str) -> tuple[Course, str]:
    """The course of a curve but for the rows at which a layer spikes, and these in words."""
    steps, values = seen.curves[key]
    layers = [seen.made_by.get((key, int(step)), "") for step in steps]
    calm = np.array([not layer for layer in layers])
    if calm.all() or calm.sum() < FEWEST or not _is_far(values[~calm], values[calm]):
        return course_of(steps, values, seen.settings), ""
    course, n = course_of(steps[calm], values[calm], seen.settings), int((~calm).sum())
    names = _and([layer if " " in layer else f"`{layer}`" for layer in dict.fromkeys(filter(None, layers))])
    farthest = int(np.abs(values - np.median(values[calm])).argmax())
    if n == 1:
        return course, f", but for {number(values[farthest])} at step {int(steps[farthest]):,} ({names})"
    extreme = f"{number(values[farthest])} at step {int(steps[farthest]):,}"
    return course, f", but for spikes at {n} of {len(steps)} rows ({names}; the farthest is {extreme})"


def _is_far(spikes: Floats, calm: Floats) -> bool:
    """Whether one of the spikes is farther outside than all other values are apart, as where the timeline cuts it."""
    return bool(np.maximum(spikes - calm.max(), calm.min() - spikes).max() > np.ptp(calm))


def _rank(seen: Followed) -> str:
    said = []
    for key, curve in seen.curves.items():
        course = course_of(*curve, seen.settings)
        said.append(f"{_label(key)} {course.text() if seen.transitions else course.brief()}{_beside(seen, key)}")
    return "; ".join(said) or "the feature rank has no finite value"


def _beside(seen: Followed, key: str) -> str:
    """The course of the curve that is drawn boldly where this one is faint."""
    if key not in seen.beside:
        return ""
    other, curve = seen.beside[key]
    course = course_of(*curve, seen.settings)
    return "" if course.is_short else f" (its {other.partition('/')[0].replace('_', ' ')} {course.text()})"


def _verdict(seen: Followed, key: str, course: Course) -> str:
    """What the course of a curve means, that has no transition of its own to say it."""
    if course.is_short:
        return ""
    if key.startswith("lc/") and course.legs:
        if course.legs[-1].rises:
            fell_between = sum(leg.rises for leg in course.legs) > 1
            return "" if fell_between else ", and has not fallen: no migration yet"
        return "" if len(course.legs) > 1 else ", and has not risen: no ascent yet"
    if key == _TRAIN and not any(turn.kind == "interpolation" for turn in seen.turns):
        return f": not interpolated, which takes {_setting(seen, 'interpolation'):g}"
    if key == _TEST and not any(turn.kind == "generalization" for turn in seen.turns):
        train, rise = (
            rise_of(seen.curves, split, _setting(seen, "plateau"), _setting(seen, "min_rise"))
            for split in (_TRAIN, _TEST)
        )
        if train is not None and rise is not None and rise.height < _MEMORISED * train.height:
            return f", less than half of the rise at the train points, {number(train.base)} to {number(train.level)}"
    return ""


def _early(seen: Followed, key: str) -> str:
    """What a curve shows too early for a transition, in parentheses."""
    early = [turn for turn in seen.early if turn.curve == key and not turn.kind.startswith("delayed")]
    begins = seen.curves[key][0][0]
    what = _and(
        [
            f"{phrase_of(turn.kind, key)} {f'at step {turn.step:,}' if turn.step > begins else 'from the start'}"
            for turn in early
        ]
    )
    return f" (too early for a marker: {what})" if early else ""


# Words


def _last(seen: Followed, key: str) -> float:
    """The value of the last row."""
    return float(seen.curves[key][1][-1])


def _label(key: str) -> str:
    """What a reader calls a curve."""
    group, _, rest = key.partition("/")
    split, _, radius = rest.partition("_r")
    if group == "lc":
        return f"LC at the {split} points" + (f" (r = {radius})" if radius else "")
    if group == "clean_acc":
        return f"{rest} accuracy"
    if group == "robust_acc":
        split, _, eps = rest.partition("_eps")
        return f"accuracy under attack (eps {eps})" + ("" if split == "test" else f" at the {split} points")
    return f"the {group.replace('_', ' ')} of `{rest}`" if group in ("rank", "effective_rank") else f"`{key}`"


def _of_curve(seen: Followed, key: str, what: str) -> str:
    return _named(seen, f"{_capital(_label(key))} {what}")


def _named(seen: Followed, text: str) -> str:
    return f"`{seen.name}`: {text}" if seen.name else text


def _of(seen: Followed, start: str) -> bool:
    return any(key.startswith(start) for key in (*seen.curves, *seen.missing))


def _and(parts: Sequence[str]) -> str:
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _factor(earlier: int, later: int) -> str:
    return f"{(later + 1) / (earlier + 1):.2g}"


def _step(rise: Rise) -> int:
    return round(10**rise.x - 1)


def _setting(seen: Followed, name: str) -> float:
    return seen.settings.get(name, ACCURACY_SETTINGS[name])


def _accuracy_settings(seen: Followed) -> dict[str, float]:
    return {"min_rise": _setting(seen, "min_rise")}
