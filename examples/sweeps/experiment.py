"""An experiment: variants of a run over seeds, and what to say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps import runs
from sweeps.columns import (
    LC,
    PGD,
    TEST,
    TRAIN,
    Measure,
    Rows,
    half_rise,
    highest,
    last,
    phase,
    step_of_highest,
)
from sweeps.runs import Run

Curves = str | Mapping[str, str]

STANDARD_KEYS = {
    "lc": [LC, "lc/random"],
    "robust_acc": [TRAIN, TEST, PGD],
    "rank": [r"rank/.*\d=last"],
}
LC_COLUMNS: dict[str, Measure] = {
    "first descent ends": phase("first_descent_end"),
    "highest LC": highest(LC),
    "at": step_of_highest(LC),
    "migration starts": phase("migration_start"),
    "last LC": last(LC),
}
STANDARD_COLUMNS = {
    **LC_COLUMNS,
    "test acc., half": half_rise(TEST),
    "test acc.": last(TEST),
    "PGD(0.1), half": half_rise(PGD),
    "PGD(0.1)": last(PGD),
}
STANDARD_PANELS = {"LC, train points": LC, "test accuracy": TEST, "accuracy, PGD(0.1)": PGD}


@dataclass(frozen=True)
class Experiment:
    """Variants of a run, and what to say of them.

    Args:
        config: name of the YAML file, without its suffix.
        variants: arguments of ``train.py`` for each, by the name in table and legend.
        steps: of each run.
        seeds: number of seeds, from 0.
        few: variants that take longer, and how many seeds they have.
        keys: what of the rows is kept, by callback. A pattern with ``=last`` is the last of the keys that match.
        columns: of the table.
        panels: of the picture: by label a key, which is drawn for each variant, or several keys by name.
        note: of the rows of all runs, a sentence below the table.
        is_timeline: the picture is the timeline of the one variant, with the transitions of the mean over its seeds.
    """

    config: str
    variants: Mapping[str, str]
    steps: int
    seeds: int = 5
    few: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, Sequence[str]] = field(default_factory=lambda: STANDARD_KEYS)
    columns: Mapping[str, Measure] = field(default_factory=lambda: STANDARD_COLUMNS)
    panels: Mapping[str, Curves] = field(default_factory=lambda: STANDARD_PANELS)
    is_timeline: bool = False
    note: Callable[[Mapping[str, Mapping[int, Rows]]], str] | None = None

    def runs(self) -> Iterable[tuple[str, int, Run]]:
        for name, arguments in self.variants.items():
            for seed in range(self.few.get(name, self.seeds)):
                yield name, seed, Run(self.config, arguments, seed, self.steps, runs.RUNS)


def varied(setting: str, name: str, *values: object, default: object = None, base: str = "") -> dict[str, str]:
    """Variants of one setting; with its default it is the run of ``base``, which experiments share."""
    return {name.format(value): base if value == default else f"--{setting} {value}" for value in values}
