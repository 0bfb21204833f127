"""``python -m lc_callback``: the timeline of a finished run, several runs compared, and the rows of checkpoints."""

from __future__ import annotations

import argparse
import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from lc_callback import __version__
from lc_callback.callbacks import MEASURES
from lc_callback.callbacks.checkpoints import allowing
from lc_callback.callbacks.comparison import compare_runs
from lc_callback.callbacks.offline import LOADERS, measure_checkpoints
from lc_callback.reporting.figure import WIDTH, save
from lc_callback.reporting.run_dir import read_run
from lc_callback.run.timeline import run_summary
from lc_callback.tensorboard.page import write_page

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command of these arguments; by default those of the process."""
    parser = _parser()
    args = parser.parse_args(arguments)
    try:
        {"report": _report, "compare": _compare, "measure": _measure}[args.command](args)
    except (ValueError, TypeError, MisconfigurationException, OSError) as error:
        parser.exit(2, f"error: {' '.join(str(error).split())}\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m lc_callback", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lc_callback {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    report = commands.add_parser(
        "report", help="say what a finished run showed, draw its timeline, and list its transitions"
    )
    report.add_argument("run_dir", type=Path, help="log directory of the run, with lc/history.csv and so on")
    report.add_argument(
        "--output",
        type=Path,
        help="picture (.png, .pdf, .svg) or page (.html) to write, of one run or all below; default: report.png",
    )
    report.add_argument("--title", default="", help="of the picture; default: the model")
    report.add_argument(
        "--width", type=float, default=WIDTH, help="of the picture in inches, such as 3.3 for a column (default: 10)"
    )
    report.add_argument(
        "--detection",
        nargs="+",
        metavar="NAME=VALUE",
        help="find the transitions anew with these settings, such as min_prominence=0.1 or interpolation=0.95",
    )
    compare = commands.add_parser(
        "compare", help="the mean curves of several runs, and where each transition is in how many of them"
    )
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="log directories")
    compare.add_argument(
        "--pattern",
        metavar="GLOB",
        help="names, or ends of names, that tell the runs of one group apart; default: seed*, version_*, run_*",
    )
    compare.add_argument(
        "--output",
        type=Path,
        nargs="+",
        default=[Path("compare.png")],
        help="picture (.png, .pdf, .svg) and tables (.csv, .md, .tex) to write; default: compare.png",
    )
    compare.add_argument(
        "--width", type=float, help="of the picture in inches, such as 6.8 for a page; default: 5 for each group"
    )
    compare.add_argument(
        "--detection", nargs="+", metavar="NAME=VALUE", help="find the transitions anew with these settings"
    )
    measure = commands.add_parser("measure", help="measure the checkpoints of a run that never had the callbacks")
    measure.add_argument("--checkpoints", type=Path, required=True, help="folder with the *.ckpt of one run")
    measure.add_argument("--model", required=True, help="import path of the LightningModule")
    measure.add_argument("--data", help=f"import path of {LOADERS}, if the model has no loaders")
    for name in ("model", "data"):
        measure.add_argument(
            f"--{name}-args", nargs="+", default=[], metavar="NAME=VALUE", help=f"arguments of the {name}"
        )
    measure.add_argument("--output", type=Path, default=Path("lc_measured"), help="default: ./lc_measured")
    measure.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="CLASS",
        help="import paths of classes whose objects the checkpoints may hold, such as package.Config",
    )
    measure.add_argument("--seed", type=int, help="seed_everything before the data are made")
    measure.add_argument("--device", default="cpu", help="where to measure, such as cuda")
    for kind in MEASURES:
        measure.add_argument(
            f"--{kind.group}",
            nargs="*",
            metavar="NAME=VALUE",
            help=f"measure with {kind.__name__} and these arguments"
            + ("; by default all of these" if kind.offline_by_default else ""),
        )
    return parser


def _report(args: argparse.Namespace) -> None:
    detection = None if args.detection is None else _pairs(args.detection, "--detection")
    path = args.output or args.run_dir / "report.png"
    if path.suffix.lower() == ".html":
        if detection is not None:
            raise ValueError("--detection needs a picture, such as --output run.png: a page shows what the run found.")
        n_runs = write_page(args.run_dir, path, args.title)
        print(f"page with {n_runs} run{'s' if n_runs > 1 else ''}: {path}")
        return
    try:
        parts = read_run(args.run_dir, MEASURES, detection)
        save(parts, path, args.title, args.width)
        text = run_summary(parts)
    except (ValueError, OSError):
        raise
    except Exception as error:  # of whatever is in the files
        raise ValueError(f"{args.run_dir} cannot be reported on ({type(error).__name__}: {error}).") from error
    print(f"{text}\n\nfigure: {path}")


def _compare(args: argparse.Namespace) -> None:
    detection = None if args.detection is None else _pairs(args.detection, "--detection")
    comparison = compare_runs(args.runs, pattern=args.pattern, detection=detection)
    for path in args.output:
        comparison.save(path, args.width)
    print(f"{comparison.table()}\nwritten: {', '.join(map(str, args.output))}")
    if len(args.runs) > 1 and all(len(group.runs) == 1 for group in comparison.groups):
        print("Each group has one run. To pool runs, say with `--pattern` what tells them apart, such as '*_s*'.")


def _measure(args: argparse.Namespace) -> None:
    sys.path.insert(0, str(Path.cwd()))  # as for a script of the user's own
    asked = {kind: getattr(args, kind.group) for kind in MEASURES if getattr(args, kind.group) is not None}
    callbacks = {kind: _pairs(given, f"--{kind.group}") for kind, given in asked.items()} or {
        kind: {} for kind in MEASURES if kind.offline_by_default
    }
    model = _imported(args.model, "--model")
    if args.seed is not None:
        seed_everything(args.seed)
    data = _data(args.data, _pairs(args.data_args, "--data-args")) if args.data else None
    model_args = _pairs(args.model_args, "--model-args")
    with allowing(_imported(path, "--allow") for path in args.allow):
        made = measure_checkpoints(
            args.checkpoints, model, data, callbacks, args.output, model_args=model_args, device=args.device
        )
    print(f"\n{run_summary([callback.part() for callback in made])}\n")
    print(f"figure: {args.output / 'timeline.png'}\ncurves: tensorboard --logdir {args.output}")


def _data(path: str, arguments: dict[str, Any]) -> Any:
    """A datamodule, or a pair of loaders."""
    source = _imported(path, "--data")
    if not callable(source):
        raise ValueError(f"--data {path!r} is {_in_words(source)}: give the import path of {LOADERS}.")
    data = source(**arguments)
    is_pair = isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(one, DataLoader) for one in data)
    if not is_pair and not hasattr(data, "train_dataloader"):
        raise ValueError(f"--data {path!r} returns {_in_words(data)}: give the import path of {LOADERS}.")
    return data


def _in_words(data: Any) -> str:
    """Such as ``"a dict of DataLoader, DataLoader"``."""
    text = "None" if data is None else f"a {type(data).__name__}"
    if not isinstance(data, (tuple, list, dict)):
        return text
    kinds = [type(part).__name__ for part in (data.values() if isinstance(data, dict) else data)]
    return f"{text} of {', '.join([*kinds[:4], *(['...'] if len(kinds) > 4 else [])]) or 'nothing'}"


def _pairs(texts: Sequence[str], option: str) -> dict[str, Any]:
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ValueError(f"{option} takes NAME=VALUE, but got {text!r}.")
        try:
            pairs[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            pairs[name] = value
    return pairs


def _imported(path: str, option: str) -> Any:
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{option} {path!r} cannot be imported ({error}): give package.module.Class.") from error


if __name__ == "__main__":
    main()
