"""What one measure follows and found, and the words that all sentences about it share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lc_callback.detection.milestones import (
    ACCURACY_SETTINGS,
)
from lc_callback.detection.movements import Floats
from lc_callback.detection.transitions import Curves, Transition, Turn, supported

__all__ = [
    "MEMORISED",
    "PHRASES",
    "TEST",
    "TRAIN",
    "Followed",
    "and_list",
    "capitalised",
    "label_of",
    "last_value",
    "named",
    "of_curve",
    "phrase_of",
    "setting_of",
]

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


TRAIN, TEST = "clean_acc/train", "clean_acc/test"


MEMORISED = 0.5  # of the rise at train points that the rise at test points must be, to be called generalisation


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
        scaled: of a curve whose radius changed, the step from which on it is scaled to what was before.
        layers: what each layer has of a curve, by its key and by step, as far as that is known.
    """

    curves: Curves
    transitions: Sequence[Transition]
    settings: Mapping[str, float]
    missing: Sequence[str] = ()
    find: Callable[[Curves], Sequence[Turn]] | None = None
    name: str = ""
    made_by: Mapping[tuple[str, int], str] = field(default_factory=dict)
    beside: Mapping[str, tuple[str, tuple[Floats, Floats]]] = field(default_factory=dict)
    scaled: Mapping[str, int] = field(default_factory=dict)
    layers: Mapping[str, Mapping[int, Mapping[str, float]]] = field(default_factory=dict)

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


def phrase_of(kind: str, curve: str) -> str:
    """What happened, such as ``"region migration began"``; with the budget, if it was under attack."""
    text = PHRASES.get(kind, kind.replace("_", " "))
    eps = curve.partition("_eps")[2]
    return text.replace("under attack", f"under attack (eps {eps})") if eps else text


def last_value(seen: Followed, key: str) -> float:
    """The value of the last row."""
    return float(seen.curves[key][1][-1])


def label_of(key: str) -> str:
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


def of_curve(seen: Followed, key: str, what: str) -> str:
    """A sentence about a curve."""
    return named(seen, f"{capitalised(label_of(key))} {what}")


def named(seen: Followed, text: str) -> str:
    """A sentence, with the name of the callback in front if there are several."""
    return f"`{seen.name}`: {text}" if seen.name else text


def and_list(parts: Sequence[str]) -> str:
    """Such as ``"a, b and c"``."""
    return "".join(parts) if len(parts) < 2 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capitalised(text: str) -> str:
    """With a capital in front."""
    return text[:1].upper() + text[1:]


def setting_of(seen: Followed, name: str) -> float:
    """A setting of the detector of accuracies."""
    return seen.settings.get(name, ACCURACY_SETTINGS[name])
