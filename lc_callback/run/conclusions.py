"""What a run showed, in sentences: did it grok, did it become robust, what did the geometry do.

Curves and transitions in, sentences out. Every number in them is one of the curves or of the transitions.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lc_callback.detection.milestones import (
    rise_of,
)
from lc_callback.detection.movements import FEWEST, Course, Floats, course_of, number
from lc_callback.run.accuracy_sentences import grokking, robustness
from lc_callback.run.followed import (
    MEMORISED,
    PHRASES,
    TEST,
    TRAIN,
    Followed,
    and_list,
    capitalised,
    label_of,
    named,
    of_curve,
    phrase_of,
    setting_of,
)
from lc_callback.run.seams import scaled_from

__all__ = ["PHRASES", "Followed", "curve_sentences", "headline"]

_MOST = 0.8  # of a rise, by one layer, from which on it is named


def headline(seen: Sequence[Followed]) -> str:
    """One or two sentences: did it grok, did it become robust or lose it, what did the geometry do."""
    accuracies = [named(one, f"{grokking(one)}{robustness(one)}") for one in seen if _of(one, "clean_acc/")]
    geometry = [named(one, _complexity(one)) for one in seen if _of(one, "lc/")]
    geometry += [named(one, _rank(one)) for one in seen if _of(one, "rank/")]
    if not (accuracies or geometry):
        return ""
    first = "; ".join(accuracies) or "Accuracy was not measured, so whether it grokked is not known"
    return " ".join(f"{capitalised(said)}." for said in (first, "; ".join(geometry)) if said)


def curve_sentences(seen: Sequence[Followed]) -> list[str]:
    """One sentence for each curve that has no settled transition, and one for each transition that is not settled."""
    said = []
    for one in seen:
        for key in one.missing:
            said.append(of_curve(one, key, "has no finite value"))
        for key in one.curves:
            if not any(t.curve == key and t.is_settled for t in one.transitions):
                course, but_for = _calm_course(one, key)
                moved = f"{course.text()}{but_for}{_scaled(one, key)}{_beside(one, key)}"
                said.append(of_curve(one, key, f"{moved}{_verdict(one, key, course)}{_early(one, key)}"))
        for t in one.transitions:
            if not t.is_settled and not t.kind.startswith("delayed"):
                what = f"{phrase_of(t.kind, t.curve)} at step {t.step:,} (`{t.curve}`)"
                if t.is_firm:
                    said.append(named(one, f"Only the last rows show that {what}: more rows have to confirm it"))
                else:
                    said.append(named(one, f"Perhaps {what}, but noise alone might look like this"))
    return [f"{sentence}." for sentence in said]


# Did it grok


# Did it become robust


# What did the geometry do


def _complexity(seen: Followed) -> str:
    if not seen.curves:
        return "local complexity has no finite value"
    key = next(iter(seen.curves))
    course, but_for = _calm_course(seen, key)
    but_for += _scaled(seen, key) or _by_layer(seen, key, course)
    start, end = seen.known("migration_start", key), seen.known("migration_end", key)
    what = label_of(key).replace("LC", "local complexity")
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
    names = and_list([layer if " " in layer else f"`{layer}`" for layer in dict.fromkeys(filter(None, layers))])
    farthest = int(np.abs(values - np.median(values[calm])).argmax())
    if n == 1:
        return course, f", but for {number(values[farthest])} at step {int(steps[farthest]):,} ({names})"
    extreme = f"{number(values[farthest])} at step {int(steps[farthest]):,}"
    return course, f", but for spikes at {n} of {len(steps)} rows ({names}; the farthest is {extreme})"


def _is_far(spikes: Floats, calm: Floats) -> bool:
    """Whether one of the spikes is farther outside than all other values are apart, as where the timeline cuts it."""
    return bool(np.maximum(spikes - calm.max(), calm.min() - spikes).max() > np.ptp(calm))


def _by_layer(seen: Followed, key: str, course: Course) -> str:
    """The layer that makes most of the largest rise, in parentheses, if one of several does."""
    layers, before = seen.layers.get(key, {}), int(seen.curves[key][0][0])
    said, largest = "", 0.0
    for leg in course.legs:
        if leg.end - leg.start > largest and leg.ends in layers and len(layers.get(before, ())) > 1:
            said, largest = "", leg.end - leg.start
            rises = {name: value - layers[before].get(name, 0.0) for name, value in layers[leg.ends].items()}
            name = max(rises, key=lambda name: rises[name])
            if rises[name] >= _MOST * largest:
                share = min(rises[name] / largest, 1)
                said = f" ({share:.0%} of the rise in `{name}`)"
        before = leg.ends
    return said


def _scaled(seen: Followed, key: str) -> str:
    """Where the radius changed, in parentheses."""
    step = seen.scaled.get(key)
    return "" if step is None else f" ({scaled_from(step)})"


def _rank(seen: Followed) -> str:
    said = []
    for key, curve in seen.curves.items():
        course = course_of(*curve, seen.settings)
        said.append(f"{label_of(key)} {course.text() if seen.transitions else course.brief()}{_beside(seen, key)}")
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
    if key == TRAIN and not any(turn.kind == "interpolation" for turn in seen.turns):
        return f": not interpolated, which takes {setting_of(seen, 'interpolation'):g}"
    if key == TEST and not any(turn.kind == "generalization" for turn in seen.turns):
        train, rise = (
            rise_of(seen.curves, split, setting_of(seen, "plateau"), setting_of(seen, "min_rise"))
            for split in (TRAIN, TEST)
        )
        if train is not None and rise is not None and rise.height < MEMORISED * train.height:
            return f", less than half of the rise at the train points, {number(train.base)} to {number(train.level)}"
    return ""


def _early(seen: Followed, key: str) -> str:
    """What a curve shows too early for a transition, in parentheses."""
    early = [turn for turn in seen.early if turn.curve == key and not turn.kind.startswith("delayed")]
    begins = seen.curves[key][0][0]
    what = and_list(
        [
            f"{phrase_of(turn.kind, key)} {f'at step {turn.step:,}' if turn.step > begins else 'from the start'}"
            for turn in early
        ]
    )
    return f" (too early for a marker: {what})" if early else ""


# Words


def _of(seen: Followed, start: str) -> bool:
    return any(key.startswith(start) for key in (*seen.curves, *seen.missing))
