"""Run an experiment of docs/results.md over its variants and seeds, then make its rows, its table and its picture.

    python examples/sweep.py depth                 # runs what is missing in lightning_logs/sweeps, two at a time
    python examples/sweep.py depth --from-rows     # table and picture again, from docs/results/depth.csv
    python examples/sweep.py mnist --data data     # all experiments on MNIST, which is in data/MNIST/raw
    python examples/sweep.py mnist --data data --smoke  # 200 steps of each, into lightning_logs/smoke
    python examples/sweep.py --list

A run is one of ``train.py`` with the arguments named in ``sweeps/``. Experiments share runs, and a run that was stopped
goes on from its last checkpoint. Start one sweep at a time.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from tempfile import TemporaryDirectory

from sweeps import runs
from sweeps.columns import Measure, Row, Rows, curve
from sweeps.digits import DIGITS
from sweeps.experiment import Curves, Experiment
from sweeps.mnist import DEFINED, REPORTED

from lc_callback import compare_runs
from lc_callback.detection.transitions import Transition
from lc_callback.reporting.figure import save
from lc_callback.run.timeline import Panel, RunCurves

RESULTS = Path(__file__).parent.parent / "docs" / "results"
SMOKE = Path(__file__).parent.parent / "lightning_logs" / "smoke"
SMOKE_STEPS = 200
FEW_PROBES = "--lc.n_probes 32 --robustness.n_probes 32 --rank.n_probes 128"
FEW_ROWS = " ".join(f"--{callback}.schedule [0,1,4,9,25,50,99,200]" for callback in ("lc", "robustness", "rank"))
EXPERIMENTS = DIGITS | REPORTED | DEFINED
#: Keys of the files of which :func:`lc_callback.compare_runs` knows the curves.
GROUPS_OF_KEYS = {"lc": ("lc",), "robust_acc": ("clean_acc/", "robust_acc/"), "rank": ("rank/", "effective_rank/")}
GROUPS = {"digits": [*DIGITS], "mnist": [name for name in (*REPORTED, *DEFINED) if name.startswith("mnist_")]}

#: Rows of each seed of each variant.
Results = dict[str, dict[int, Rows]]

# Rows, table, picture


def write_rows(path: Path, results: Results) -> None:
    every = (row for seeds in results.values() for rows in seeds.values() for row in rows)
    keys = list(dict.fromkeys(key for row in every for key in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["variant", "seed", *keys])
        for variant, seeds in results.items():
            for seed, rows in seeds.items():
                for row in rows:
                    values = (f"{row[key]:.{9 if key == 'step' else 5}g}" if key in row else "" for key in keys)
                    writer.writerow([variant, seed, *values])


def read_results(path: Path) -> Results:
    results: Results = {}
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seeds = results.setdefault(row.pop("variant"), {})
            rows = seeds.setdefault(int(row.pop("seed")), [])
            rows.append({key: float(value) for key, value in row.items() if value})
    return results


def table(results: Results, columns: Mapping[str, Measure]) -> str:
    """Markdown: of each column the median over the seeds, the lowest and the highest; what is not there is latest."""
    lines = ["| | seeds | " + " | ".join(columns) + " |", "|---|---:|" + "---|" * len(columns)]
    for variant, seeds in results.items():
        cells = [_cell([measure(rows) for rows in seeds.values()]) for measure in columns.values()]
        lines.append(f"| {variant} | {len(seeds)} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(values: Sequence[float | None]) -> str:
    ordered = sorted(math.inf if value is None else value for value in values)
    low, middle, high = (_number(value) for value in (ordered[0], median(ordered), ordered[-1]))
    return middle if low == high else f"{middle} [{low}, {high}]"


def _number(value: float) -> str:
    if math.isinf(value):
        return "none"
    return f"{value:,.0f}" if value >= 999.5 else f"{value:.3g}"


def picture(path: Path, results: Results, panels: Mapping[str, Curves]) -> None:
    """The timelines of all variants over each other: means over the seeds, with their standard deviations."""
    drawn, joined = [], dict[float, Row]()
    for label, curves in panels.items():
        named = {"": curves} if isinstance(curves, str) else curves
        keys = {}
        for variant, seeds in results.items():
            for name, key in named.items():
                line = ", ".join(filter(None, [name, variant if len(results) > 1 or not name else ""]))
                keys[line] = f"{label} {line}"
                _join(joined, seeds.values(), key, keys[line])
        drawn.append(_panel(label, keys, named.values()))
    save([RunCurves([joined[step] for step in sorted(joined)], drawn, [])], path)


def timeline(path: Path, seeds: Mapping[int, Rows], panels: Mapping[str, Curves]) -> None:
    """The timeline of the mean over the seeds, with its transitions, by the noise that the seeds' differences tell."""
    joined: dict[float, Row] = {}
    for curves in panels.values():
        for key in [curves] if isinstance(curves, str) else curves.values():
            _join(joined, seeds.values(), key, key)
    drawn = []
    for label, curves in panels.items():
        lines = {label: curves} if isinstance(curves, str) else dict(curves)
        drawn.append(_panel(label, lines, lines.values()))
    several = f"Means over {len(seeds)} seeds. Bands: one standard deviation over them."
    drawn[-1] = replace(drawn[-1], caption=several if len(seeds) > 1 else "One seed.")
    save([RunCurves([joined[step] for step in sorted(joined)], drawn, transitions_of_mean(seeds))], path)


def transitions_of_mean(seeds: Mapping[int, Rows]) -> list[Transition]:
    """What :func:`lc_callback.compare_runs` finds in the mean curves, where it is firm."""
    with TemporaryDirectory() as folder:
        for seed, rows in seeds.items():
            for group, prefixes in GROUPS_OF_KEYS.items():
                own = [{key: row[key] for key in row if key == "step" or key.startswith(prefixes)} for row in rows]
                told = [row | {f"{group}/seconds": 0.0} for row in own]  # by which a file's measure is known
                write_history(Path(folder) / f"seed_{seed}" / group / "history.csv", told)
        (group,) = compare_runs([*Path(folder).iterdir()]).groups
    return [found.of_mean for found in group.found if found.of_mean is not None and found.of_mean.is_firm]


def write_history(path: Path, rows: Rows) -> None:
    """A file of rows, as a callback writes it."""
    keys = [*dict.fromkeys(key for row in rows for key in row)]
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, keys, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _join(joined: dict[float, Row], seeds: Iterable[Rows], key: str, name: str) -> None:
    """Add the mean of a curve over the seeds, and its standard deviation, to rows by their step."""
    for step, values in _common(seeds, key).items():
        spread = stdev(values) if len(values) > 1 else 0.0
        joined.setdefault(step, {"step": step}).update({name: mean(values), f"{name} sd": spread})


def _panel(label: str, lines: Mapping[str, str], keys: Iterable[str]) -> Panel:
    """A panel of means with their bands, from 0; of accuracies to 1."""
    limits = (0, 1) if all("acc" in key for key in keys) else (0, None)
    return Panel(label, lines, bands={key: f"{key} sd" for key in lines.values()}, limits=limits)


def _common(seeds: Iterable[Rows], key: str) -> dict[float, list[float]]:
    """The values of all seeds, at the steps that all have."""
    curves = [{float(step): float(value) for step, value in zip(*curve(rows, key), strict=True)} for rows in seeds]
    return {step: [of_seed[step] for of_seed in curves] for step in set.intersection(*map(set, curves))}


def report(name: str) -> None:
    """Table and picture of the rows in docs/results; the table goes where docs/results.md has the experiment's name."""
    experiment, results = EXPERIMENTS[name], read_results(RESULTS / f"{name}.csv")
    if experiment.is_timeline:
        (seeds,) = results.values()
        timeline(RESULTS / f"{name}.png", seeds, experiment.panels)
    else:
        picture(RESULTS / f"{name}.png", results, experiment.panels)
    text = said(name, results)
    print(f"{text}\n")
    page = RESULTS.with_suffix(".md")
    page.write_text(placed(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


def said(name: str, results: Results) -> str:
    """The table of an experiment, its note, and what it cost."""
    experiment = EXPERIMENTS[name]
    note = [] if experiment.note is None else [experiment.note(results)]
    return "\n\n".join([table(results, experiment.columns), *note, cost(name, results)])


def placed(page: str, name: str, text: str) -> str:
    """The page with this text between the marks of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
    page, n = re.subn(f"{start}.*?{end}", lambda _: f"{start}{text}\n{end}", page, flags=re.DOTALL)
    if n != 1:
        raise ValueError(f"docs/results.md has {n} places for {name}; it needs one, from {start.strip()} to {end}.")
    return page


def cost(name: str, results: Results) -> str:
    """What made these numbers, and how long a run took."""
    seconds = [rows[0]["seconds"] for seeds in results.values() for rows in seeds.values()]
    n = "1 run" if len(seconds) == 1 else f"{len(seconds)} runs"
    minutes = " to ".join(dict.fromkeys(f"{some / 60:.1f}" for some in (min(seconds), max(seconds))))
    each = " each" if len(seconds) > 1 else ""
    return (
        f"`python examples/sweep.py {name}`: {n} of {EXPERIMENTS[name].steps:,} steps or more, "
        f"{minutes} minutes{each}, two at a time on two cores."
    )


def train_missing(named: Mapping[str, Experiment], jobs: int, data: str | None, kept: Mapping[str, Results]) -> None:
    """Take the runs that are not there, the longest first, but those whose rows are kept."""
    missing = [
        replace(run, data=data)
        for name, experiment in named.items()
        for variant, seed, run in experiment.runs()
        if run.seconds is None and seed not in kept[name].get(variant, {})
    ]
    longest = {run.folder: run for run in sorted(missing, key=lambda run: run.steps)}
    runs.train_all(sorted(longest.values(), key=lambda run: -run.steps), jobs)


def smoke(named: Mapping[str, Experiment], jobs: int, data: str | None) -> None:
    """Take a few steps of the first seed of each variant, with few rows of few points, and print their tables."""
    short = {
        name: {
            variant: replace(
                run, arguments=f"{run.arguments} {FEW_PROBES} {FEW_ROWS}", steps=SMOKE_STEPS, runs=SMOKE, data=data
            )
            for variant, seed, run in experiment.runs()
            if seed == 0
        }
        for name, experiment in named.items()
    }
    runs.train_all([*{run.folder: run for each in short.values() for run in each.values()}.values()], jobs)
    for name, variants in short.items():
        experiment = named[name]
        print(
            f"{name}\n{table({v: {0: run.rows(experiment.keys)} for v, run in variants.items()}, experiment.columns)}\n"
        )


def collected(name: str, kept: Results) -> Results:
    """The rows of all runs of an experiment: those that are kept, and else those of the run's folder."""
    results: Results = {}
    for variant, seed, run in EXPERIMENTS[name].runs():
        rows = kept.get(variant, {}).get(seed)
        results.setdefault(variant, {})[seed] = run.rows(EXPERIMENTS[name].keys) if rows is None else rows
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of experiments, or {' or '.join(GROUPS)}")
    parser.add_argument("--list", action="store_true", help="the experiments and their runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--data", metavar="ROOT", help="the folder of data sets, such as that of MNIST/raw")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--from-rows", action="store_true", help="do not train: table and picture of docs/results")
    what.add_argument("--missing", action="store_true", help="train only the runs of which docs/results has no rows")
    what.add_argument("--smoke", action="store_true", help=f"take {SMOKE_STEPS} steps of each, and change no page")
    args = parser.parse_args()
    names = [name for given in args.names for name in GROUPS.get(given, [given])]
    unknown = [name for name in names if name not in EXPERIMENTS]
    if unknown or not (names or args.list):
        known = ", ".join([*GROUPS, *EXPERIMENTS])
        parser.error(f"no experiment {', '.join(unknown) or 'named'}; there are {known}")
    if args.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment.config}.yaml, {experiment.steps:,} steps, {'; '.join(experiment.variants)}")
    named = {name: EXPERIMENTS[name] for name in names}
    if args.smoke:
        smoke(named, args.jobs, args.data)
        return
    if not args.from_rows:
        paths = {name: RESULTS / f"{name}.csv" for name in names}
        kept = {name: read_results(path) if args.missing and path.exists() else {} for name, path in paths.items()}
        train_missing(named, args.jobs, args.data, kept)
        for name, path in paths.items():
            write_rows(path, collected(name, kept[name]))
    for name in names:
        report(name)


if __name__ == "__main__":
    main()
