"""Run an experiment of docs/results.md over its variants and seeds, then make its rows, its table and its picture.

    python examples/sweep.py depth                 # runs what is missing in lightning_logs/sweeps, two at a time
    python examples/sweep.py depth --from-rows     # table and picture again, from docs/results/depth.csv
    python examples/sweep.py --list

A run is one of ``train.py`` with the arguments named here. Sweeps share runs, and a run that was stopped begins anew.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import math
import multiprocessing
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
import yaml

from lc_callback.detection.milestones import ACCURACY_SETTINGS, RANK_SETTINGS, find_accuracy_milestones, find_rank_turns
from lc_callback.detection.phases import detect_phases
from lc_callback.detection.transitions import Transition, Turn
from lc_callback.reporting.figure import save
from lc_callback.run.timeline import Panel, RunCurves, read_rows

EXAMPLES = Path(__file__).parent
RESULTS = EXAMPLES.parent / "docs" / "results"
RUNS = EXAMPLES.parent / "lightning_logs" / "sweeps"

Row = dict[str, float]
Rows = list[Row]
#: Rows of each seed of each variant.
Results = dict[str, dict[int, Rows]]
Measure = Callable[[Rows], float | None]
Curves = str | Mapping[str, str]

LC, TEST, TRAIN = "lc/train", "clean_acc/test", "clean_acc/train"
PGD, WEAK_PGD, RAW = "robust_acc/test_eps0.1", "robust_acc/test_eps0.03", "robust_acc_raw/test_eps0.1"
PENALTY = "--model.penalty RegionPenalty --model.penalty.weight 1e-4 --model.penalty.n_points 25"


# What a table says of one run


def last(key: str) -> Measure:
    """Median of the last three values."""
    return lambda rows: median(values[-3:]) if len(values := curve(rows, key)[1]) else None


def at_end(key: str) -> Measure:
    """The last value."""
    return lambda rows: float(values[-1]) if len(values := curve(rows, key)[1]) else None


def highest(key: str) -> Measure:
    return lambda rows: float(curve(rows, key)[1].max())


def half_rise(key: str) -> Measure:
    """The step at which an accuracy has made half of its rise for good, as ``robustness_onset`` is defined."""

    def of(rows: Rows) -> float | None:
        curves = {"robust_acc/test_eps0": curve(rows, key)}  # which is what a clean accuracy is
        return _step_of("robustness_onset", find_accuracy_milestones(curves, ACCURACY_SETTINGS))

    return of


def reaches(key: str, level: float) -> Measure:
    """The first of two rows in succession that are at least ``level``."""

    def of(rows: Rows) -> float | None:
        steps, values = curve(rows, key)
        there = np.flatnonzero((values[:-1] >= level) & (values[1:] >= level))
        return float(steps[there[0]]) if len(there) else None

    return of


def phase(kind: str) -> Measure:
    """The step of a transition of local complexity at training points."""
    return lambda rows: _step_of(kind, _phases(*(tuple(axis) for axis in curve(rows, LC))))


@functools.cache  # a table asks for several kinds, and experiments share runs
def _phases(steps: Sequence[float], values: Sequence[float]) -> list[Transition]:
    return detect_phases([int(step) for step in steps], values)


def _step_of(kind: str, found: Iterable[Turn | Transition]) -> int | None:
    return next((one.step for one in found if one.kind == kind), None)


def step_of_highest(key: str) -> Measure:
    def of(rows: Rows) -> float:
        steps, values = curve(rows, key)
        return float(steps[values.argmax()])

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


# Experiments

STANDARD_KEYS = {
    "lc": [LC, "lc/test", "lc/random"],
    "robust_acc": [TRAIN, TEST, WEAK_PGD, PGD],
    "rank": [r"rank/.*\d=last", "weight_norm/total"],
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
    """

    config: str
    variants: Mapping[str, str]
    steps: int
    seeds: int = 5
    few: Mapping[str, int] = field(default_factory=dict)
    keys: Mapping[str, Sequence[str]] = field(default_factory=lambda: STANDARD_KEYS)
    columns: Mapping[str, Measure] = field(default_factory=lambda: STANDARD_COLUMNS)
    panels: Mapping[str, Curves] = field(default_factory=lambda: STANDARD_PANELS)

    def runs(self) -> Iterable[tuple[str, int, Run]]:
        for name, arguments in self.variants.items():
            for seed in range(self.few.get(name, self.seeds)):
                yield name, seed, Run(self.config, arguments, seed, self.steps)


def varied(setting: str, name: str, *values: object, default: object = None) -> dict[str, str]:
    """Variants of one setting; that of the YAML file needs no argument, so that experiments share its runs."""
    return {name.format(value): "" if value == default else f"--{setting} {value}" for value in values}


def short(variants: Mapping[str, str], config: str = "digits_mlp", **arguments: Any) -> Experiment:
    """Runs that see the migration of the MLP begin (2,512 to 4,467 with the standard initialisation), on 200 points."""
    cheaper = {name: f"--lc.n_probes 200 {text}".strip() for name, text in variants.items()}
    return Experiment(config, cheaper, 10_000, **arguments)


EXPERIMENTS = {
    "scale": Experiment("digits_mlp", varied("model.network.init_scale", "scale {}", 1, 2, 4, 6, 8, default=1), 32_000),
    "depth": short(varied("model.network.depth", "depth {}", 2, 4, 6, default=4)),
    "width": short(varied("model.network.width", "width {}", 20, 200, 500, default=200)),
    "batch": short(varied("data.batch_size", "batch {}", 16, 50, 200, 500, default=200)),
    "weight_decay": short(varied("model.optimizer.weight_decay", "decay {}", "0", "1e-4", "0.1", "1", default="0.1")),
    "optimizer": short(
        {
            "AdamW": "",
            "SAM (AdamW)": "--model.optimizer pytorch_optimizer.SAM --model.optimizer.base_optimizer torch.optim.AdamW "
            "--model.optimizer.dict_kwargs.lr 0.001 --model.optimizer.dict_kwargs.weight_decay 0.1 "
            "--model.optimizer.dict_kwargs.fused true",
            "SGD, momentum 0.9": "--model.optimizer torch.optim.SGD --model.optimizer.lr 0.1 "
            "--model.optimizer.momentum 0.9 --model.optimizer.weight_decay 0.001",
        }
    ),
    "init": short(varied("model.network.init", "{}", "torch", "kaiming", "orthogonal", default="torch")),
    "random_labels": short(
        varied("data.n_train", "{} images", 125, 1000),
        "digits_random_labels",
        columns={
            **LC_COLUMNS,
            "at random points": last("lc/random"),
            "train acc., half": half_rise(TRAIN),
            "train acc.": last(TRAIN),
        },
        panels={"LC, train points": LC, "LC, random points": "lc/random", "train accuracy": TRAIN},
    ),
    "data_size": short(varied("data.n_train", "{} images", 125, 500, 1000, default=500)),
    "batchnorm": short({"without": "", "BatchNorm": "--model.network.batch_norm true"}),
    "batchnorm_scale6": Experiment(
        "digits_mlp",
        {
            "without": "--model.network.init_scale 6",
            "BatchNorm": "--model.network.init_scale 6 --model.network.batch_norm true",
        },
        32_000,
    ),
    "causal": Experiment(
        "digits_mlp",
        {
            "no penalty": "--model.network.init_scale 6",
            "pushed away": f"--model.network.init_scale 6 {PENALTY} --model.penalty.target 0",
            "held": f"--model.network.init_scale 6 {PENALTY} --model.penalty.target 9 --model.penalty.hold true",
        },
        25_119,
        seeds=3,
        columns={
            "highest LC": highest(LC),
            "last LC": last(LC),
            "last LC, test points": last("lc/test"),
            "test acc., half": half_rise(TEST),
            "test acc.": last(TEST),
            "PGD(0.03), half": half_rise(WEAK_PGD),
            "PGD(0.03)": last(WEAK_PGD),
            "PGD(0.1), half": half_rise(PGD),
            "PGD(0.1) reaches 0.3": reaches(PGD, 0.3),
            "PGD(0.1), highest": highest(PGD),
            "PGD(0.1)": last(PGD),
        },
        panels={
            "LC, train points": LC,
            "LC, test points": "lc/test",
            "test accuracy": TEST,
            "accuracy, PGD(0.1)": PGD,
        },
    ),
    "cnn": Experiment("digits_cnn", {"CNN": "", "CNN, BatchNorm": "--model.network.batch_norm true"}, 10_000),
    "resnet": Experiment("digits_resnet", {"ResNet-18": ""}, 10_000),
    "modular": Experiment(
        "modular_addition",
        {"40 % of the pairs": ""},
        10_000,
        seeds=3,
        keys={
            "lc": [LC, "lc/test"],
            "robust_acc": [TRAIN, TEST, "robust_acc/.*_eps.*"],
            "rank": [r"rank/.*\d=last", "weight_norm/total"],
        },
        columns={
            "train acc., half": half_rise(TRAIN),
            "test acc., half": half_rise(TEST),
            "highest LC": highest(LC),
            "at": step_of_highest(LC),
            "migration starts": phase("migration_start"),
            "last LC": last(LC),
            "PGD(0.03), half": half_rise("robust_acc/test_eps0.03"),
            "PGD(0.03)": last("robust_acc/test_eps0.03"),
            "PGD(0.1), half": half_rise("robust_acc/test_eps0.1"),
            "PGD(0.1)": last("robust_acc/test_eps0.1"),
        },
        panels={
            "LC": {"train": LC, "test": "lc/test"},
            "accuracy": {
                "train": TRAIN,
                "test": TEST,
                "PGD(0.03)": "robust_acc/test_eps0.03",
                "PGD(0.1)": "robust_acc/test_eps0.1",
            },
        },
    ),
    "deep_grokking": Experiment(
        "deep_grokking",
        {
            **varied("model.network.depth", "depth {}", 4, 8, 12),
            "depth 4, 500 images": "--model.network.depth 4 --data.n_train 500",
        },
        12_000,
        few={"depth 12": 3},
        keys={
            "lc": [LC],
            "robust_acc": [TRAIN, TEST, PGD],
            "rank": [r"rank/.*\d", r"rank/.*\d=last", r"linear_probe/.*\d=last", "tunnel_length", "weight_norm/total"],
        },
        columns={
            "train acc., half": half_rise(TRAIN),
            "test acc., half": half_rise(TEST),
            "second surge": second_surge,
            "test acc.": last(TEST),
            "rank falls": rank_turn("rank_descent"),
            "falls again": rank_turn("second_rank_descent"),
            "tunnel": last("tunnel_length"),
            "rank there": at_half_rise("rank/last"),
            "norm there": at_half_rise("weight_norm/total", relative=True),
        },
        panels={
            "rank, last hidden layer": "rank/last",
            "weight norm": "weight_norm/total",
            "train accuracy": TRAIN,
            "test accuracy": TEST,
            "linear probe, last hidden layer": "linear_probe/last",
        },
    ),
    "robustness_real": Experiment(
        "robustness_real",
        {"no weight decay": ""},
        32_000,
        seeds=3,
        keys={
            "lc": [LC],
            "robust_acc": [TRAIN, TEST, "robust_acc(_raw)?/.*_eps.*"],
            "autoattack_robust_acc": ["autoattack/robust_acc(_raw)?/.*_eps.*"],
        },
        columns={
            "test acc.": at_end(TEST),
            "PGD(0.1), raw": at_end(RAW),
            "PGD(0.1)": at_end(PGD),
            "AutoAttack(0.1), raw": at_end(f"autoattack/{RAW}"),
            "AutoAttack(0.1)": at_end(f"autoattack/{PGD}"),
            "PGD(0.1), highest": highest(PGD),
            "raw, half": half_rise(RAW),
            "highest LC": highest(LC),
            "last LC": last(LC),
        },
        panels={
            "LC": {"train": LC},
            "accuracy": {
                "test": TEST,
                "PGD(0.1), raw logits": RAW,
                "PGD(0.1)": PGD,
                "AutoAttack(0.1)": f"autoattack/{PGD}",
            },
        },
    ),
}


# Runs


@dataclass(frozen=True)
class Run:
    """One run of ``train.py``. Its folder is named after its arguments, so that experiments share it."""

    config: str
    arguments: str
    seed: int
    steps: int

    @property
    def folder(self) -> Path:
        name = re.sub(r"--(?:[\w.]+\.)?(\w+) ", r"\1=", self.arguments).replace(" ", ",")
        return RUNS / self.config / (name or "default") / f"seed_{self.seed}"

    @property
    def settings(self) -> Any:
        """What the YAML file says now."""
        return yaml.safe_load((EXAMPLES / f"{self.config}.yaml").read_text(encoding="utf-8"))

    @property
    def seconds(self) -> float | None:
        """Wall time of the run that is there; ``None`` if there is none as long with these settings."""
        path = self.folder / "done.json"
        if not path.exists():
            return None
        done = json.loads(path.read_text(encoding="utf-8"))
        return done["seconds"] if done["steps"] >= self.steps and done["settings"] == self.settings else None

    def take(self) -> None:
        """Train, in this process, unless another one has meanwhile. The folder has its name when the run is over."""
        from train import main

        if self.seconds is not None:
            return
        settings, start = self.settings, time.perf_counter()
        folder = self.folder.with_name(f"{self.folder.name}.unfinished_{os.getpid()}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        where = {"save_dir": folder.parent, "name": "", "version": folder.name}
        sys.argv = [
            *("train.py", "fit", f"--config={EXAMPLES / self.config}.yaml", f"--seed_everything={self.seed}"),
            f"--trainer.max_steps={self.steps}",
            *(f"--{callback}.raise_on_error=true" for callback in ("lc", "robustness", "rank")),
            *(f"--trainer.logger.init_args.{key}={value}" for key, value in where.items()),
            *self.arguments.split(),
        ]
        with (folder / "output.txt").open("w") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                main()
            except BaseException:
                traceback.print_exc(file=file)
                raise
        done = {"steps": self.steps, "seconds": round(time.perf_counter() - start, 1), "settings": settings}
        (folder / "done.json").write_text(json.dumps(done), encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        folder.rename(self.folder)

    def rows(self, keys: Mapping[str, Sequence[str]]) -> Rows:
        """Of all callbacks, joined by step, to the last step of the experiment."""
        joined: dict[float, Row] = {}
        for group, wanted in keys.items():
            for row in read_rows(self.folder / group / "history.csv"):
                if row["step"] <= self.steps:
                    joined.setdefault(row["step"], {"step": row["step"]}).update(_chosen(row, wanted))
        rows = [joined[step] for step in sorted(joined)]
        rows[0]["seconds"] = self.seconds
        return rows


def _chosen(row: Row, wanted: Sequence[str]) -> Row:
    chosen = {}
    for key in wanted:
        if key.endswith("=last"):
            matching = [name for name in row if re.fullmatch(key.removesuffix("=last"), name)]
            if matching:
                chosen[f"{key.partition('/')[0]}/last"] = row[matching[-1]]
        else:
            chosen |= {name: value for name, value in row.items() if re.fullmatch(key, name)}
    return chosen


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Take these runs, in processes of their own."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    waiting = {pool.submit(run.take): run for run in runs}
    try:
        for n, future in enumerate(as_completed(waiting), start=1):
            run = waiting[future]
            if future.exception():
                raise RuntimeError(f"{run} failed") from future.exception()
            print(f"{n} of {len(runs)}: {run.folder.relative_to(RUNS)}, {run.seconds:.0f} s", flush=True)
    except BaseException:  # the others would train to the end, whatever the user wants
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()


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
                for step, values in _common(seeds.values(), key).items():
                    spread = stdev(values) if len(values) > 1 else 0.0
                    row = {keys[line]: mean(values), f"{keys[line]} sd": spread}
                    joined.setdefault(step, {"step": step}).update(row)
        limits = (0, 1) if all("acc" in key for key in named.values()) else (0, None)
        drawn.append(Panel(label, keys, bands={key: f"{key} sd" for key in keys.values()}, limits=limits))
    save([RunCurves([joined[step] for step in sorted(joined)], drawn, [])], path)


def _common(seeds: Iterable[Rows], key: str) -> dict[float, list[float]]:
    """The values of all seeds, at the steps that all have."""
    curves = [{float(step): float(value) for step, value in zip(*curve(rows, key), strict=True)} for rows in seeds]
    return {step: [of_seed[step] for of_seed in curves] for step in set.intersection(*map(set, curves))}


def report(name: str) -> None:
    """Table and picture of the rows in docs/results; the table goes where docs/results.md has the experiment's name."""
    experiment, results = EXPERIMENTS[name], read_results(RESULTS / f"{name}.csv")
    picture(RESULTS / f"{name}.png", results, experiment.panels)
    text = f"{table(results, experiment.columns)}\n\n{cost(name, results)}"
    print(f"{text}\n")
    page = RESULTS.with_suffix(".md")
    page.write_text(placed(page.read_text(encoding="utf-8"), name, text), encoding="utf-8")


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
    return (
        f"`python examples/sweep.py {name}`: {len(seconds)} runs of {EXPERIMENTS[name].steps:,} steps or more, "
        f"{min(seconds) / 60:.1f} to {max(seconds) / 60:.1f} minutes each, two at a time on two cores."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="of experiments")
    parser.add_argument("--list", action="store_true", help="the experiments and their runs")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, of one thread each")
    parser.add_argument("--from-rows", action="store_true", help="do not train: table and picture of docs/results")
    args = parser.parse_args()
    unknown = [name for name in args.names if name not in EXPERIMENTS]
    if unknown or not (args.names or args.list):
        parser.error(f"no experiment {', '.join(unknown) or 'named'}; there are {', '.join(EXPERIMENTS)}")
    if args.list:
        for name, experiment in EXPERIMENTS.items():
            print(f"{name}: {experiment.config}.yaml, {experiment.steps:,} steps, {'; '.join(experiment.variants)}")
    if not args.from_rows:
        missing = [run for name in args.names for _, _, run in EXPERIMENTS[name].runs() if run.seconds is None]
        longest = {run.folder: run for run in sorted(missing, key=lambda run: run.steps)}
        train_all(list(longest.values()), args.jobs)
    for name in args.names:
        experiment = EXPERIMENTS[name]
        if not args.from_rows:
            results: Results = {}
            for variant, seed, run in experiment.runs():
                results.setdefault(variant, {})[seed] = run.rows(experiment.keys)
            write_rows(RESULTS / f"{name}.csv", results)
        report(name)


if __name__ == "__main__":
    main()
