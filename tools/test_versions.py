"""Try the library with other versions of what it stands on. The table is that of docs/versions.md.

    python tools/test_versions.py                  # all combinations, one after the other
    python tools/test_versions.py torch-2.4 oldest # these; the rows of the others stay as they are
    python tools/test_versions.py --from-rows      # the table again, from docs/versions.csv

Each combination is installed in an environment of its own, ``venv/versions-NAME``, which stays if a test fails. What it
does not name is the newest that fits; torch is that of ``constraints.txt``. Needs nothing but Python 3.11, and for the
combinations of other Pythons ``python3.10``, ``python3.12`` and ``python3.13`` on the path.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import tomllib

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "versions.md"
ROWS = PAGE.with_suffix(".csv")
START, END = "<!-- versions -->\n", "<!-- end of versions -->"
#: What the tests need beside the library.
TOOLS = ("pytest", "hypothesis", "scikit-learn", "jsonargparse[signatures]")
#: The packages whose versions a row tells.
SHOWN = ("torch", "lightning", "torchmetrics", "tensorboard", "numpy")
FIELDS = ("name", "date", "python", *SHOWN, "tests", "passed", "failed", "skipped", "minutes")

#: What of the tests is run, by name: some minutes each. What is marked slow is left out.
TESTS: Mapping[str, tuple[str, ...]] = {
    "measures": (
        "tests/functional/test_local_complexity.py",
        "tests/functional/test_feature_rank.py",
        "tests/isolation/test_isolation.py",
    ),
    "attacks": ("tests/functional/test_robustness.py",),
    "callbacks": tuple(
        f"tests/callbacks/test_{name}.py" for name in ("checkpoints", "closing_row", "compat", "rows", "transfer_hooks")
    ),
    "metrics": ("tests/metrics", "tests/callbacks/test_robustness_rows.py"),
    "tensorboard": (
        *(f"tests/tensorboard/test_{name}.py" for name in ("plugin", "report", "summary")),
        "tests/reporting/test_loggers.py",
    ),
}


def lower_bounds() -> tuple[str, ...]:
    """The oldest versions that pyproject.toml admits, as pins."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    return tuple(requirement.replace(">=", "==") for requirement in needed)


@dataclass(frozen=True)
class Combination:
    """What is installed, and what is run.

    Args:
        pins: requirements of pip.
        tests: names of entries of ``TESTS``.
        python: such as ``"3.12"``; the one that runs this script by default.
    """

    pins: tuple[str, ...]
    tests: str
    python: str = ""

    @property
    def interpreter(self) -> str | None:
        """Its path; ``None`` if it is not here."""
        return shutil.which(f"python{self.python}") if self.python else sys.executable


def _lightning(version: str) -> tuple[str, str]:
    return f"lightning=={version}", f"pytorch-lightning=={version}"


COMBINATIONS = {
    "lightning-2.4": Combination(_lightning("2.4.0"), "callbacks"),
    "lightning-2.5": Combination(_lightning("2.5.6"), "callbacks"),
    "torchmetrics-1.4": Combination(("torchmetrics==1.4.0",), "metrics"),
    "tensorboard-2.20": Combination(("tensorboard==2.20.0", "setuptools<82"), "tensorboard"),
    "torch-2.14": Combination(("torch==2.14.1", *_lightning("2.4.0")), "measures"),
    "torch-2.4": Combination(("torch==2.4.1", "numpy<2.3"), "measures attacks"),
    "oldest": Combination((*lower_bounds(), _lightning("2.4.0")[1]), "measures", python="3.10"),
    "python-3.12": Combination(("torch==2.14.1",), "measures", python="3.12"),
    "python-3.13": Combination(("torch==2.14.1",), "measures", python="3.13"),
}

Row = dict[str, str]


def pins_of(combination: Combination) -> tuple[str, ...]:
    """With torch of ``constraints.txt``, if it has none of its own."""
    if any(re.match(r"torch\W", pin) for pin in combination.pins):
        return combination.pins
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return (*combination.pins, *(line for line in lines if line.startswith("torch==")))


def try_out(name: str) -> Row:
    """Install the combination and run its tests."""
    combination, folder = COMBINATIONS[name], ROOT / "venv" / f"versions-{name}"
    python = folder / "bin" / "python"
    subprocess.run([str(combination.interpreter), "-m", "venv", "--clear", folder], check=True)
    install = [python, "-m", "pip", "install", "--quiet", "--no-compile"]
    subprocess.run([*install, *pins_of(combination), *TOOLS, "-e", f"{ROOT}[attacks]"], check=True)
    subprocess.run([*install, "--no-deps", "torchattacks==3.5.1"], check=True)  # its pins break Lightning
    results, start = folder / "results.xml", time.perf_counter()
    paths = [path for each in combination.tests.split() for path in TESTS[each]]
    options = ["-q", "--disable-warnings", "-m", "not slow", f"--junitxml={results}"]
    subprocess.run([python, "-m", "pytest", *options, *paths], cwd=ROOT)
    counted = counts(results.read_text(encoding="utf-8"))
    versions = subprocess.run(
        [python, "-c", f"import json, platform, importlib.metadata as of; print(json.dumps([platform.python_version(), "
         f"*map(of.version, {SHOWN})]))"],
        check=True, capture_output=True, text=True,
    )  # fmt: skip
    row = dict(zip(("python", *SHOWN), json.loads(versions.stdout), strict=True))
    row |= {"name": name, "date": datetime.date.today().isoformat(), "tests": combination.tests, **counted}
    row["minutes"] = f"{(time.perf_counter() - start) / 60:.1f}"
    if counted["failed"] == "0":
        shutil.rmtree(folder)  # torch alone is several GB
    return row


def counts(results: str) -> Row:
    """Of the file that pytest writes; what could not be collected has failed."""
    suite = next(ElementTree.fromstring(results).iter("testsuite"))
    total, skipped = (int(suite.get(key, 0)) for key in ("tests", "skipped"))
    failed = sum(int(suite.get(key, 0)) for key in ("failures", "errors"))
    return {"passed": str(total - failed - skipped), "failed": str(failed), "skipped": str(skipped)}


def read_rows() -> dict[str, Row]:
    """By the name of the combination; those that there are no more are left out."""
    if not ROWS.exists():
        return {}
    with ROWS.open(newline="", encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file) if row["name"] in COMBINATIONS}


def write_rows(rows: Mapping[str, Row]) -> None:
    """In the order of ``COMBINATIONS``."""
    with ROWS.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in COMBINATIONS if name in rows)


def table(rows: Mapping[str, Row]) -> str:
    """Markdown: the rows, what the names of tests stand for, and which combinations have no row yet."""
    titles = {"name": "combination", "lightning": "Lightning", "tensorboard": "TensorBoard", "numpy": "NumPy"}
    lines = ["| " + " | ".join(titles.get(key, key) for key in FIELDS) + " |", "|---" * len(FIELDS) + "|"]
    lines += ["| " + " | ".join(row[key] for key in FIELDS) + " |" for row in rows.values()]
    used = {each for row in rows.values() for each in row["tests"].split()}
    lines.append("")
    lines += [f"- {name}: {', '.join(f'`{path}`' for path in paths)}" for name, paths in TESTS.items() if name in used]
    missing = [name for name in COMBINATIONS if name not in rows]
    lines += ["", f"Not run yet: {', '.join(missing)}."] if missing else []
    return "\n".join(lines)


def placed(page: str, text: str) -> str:
    """The page with this text between its marks."""
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{PAGE.name} needs a place for the table, from {START.strip()} to {END}.")
    return f"{before}{start}{text}\n{end}{after}"


def main(arguments: Sequence[str] | None = None) -> str:
    """The command; what did not pass, in words."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(COMBINATIONS)}; default: all")
    parser.add_argument("--from-rows", action="store_true", help="try nothing: the table of docs/versions.csv")
    args = parser.parse_args(arguments)
    unknown = [name for name in args.names if name not in COMBINATIONS]
    if unknown:
        parser.error(f"no combination {', '.join(unknown)}; there are {', '.join(COMBINATIONS)}")
    wrong = []
    for name in () if args.from_rows else args.names or COMBINATIONS:
        if COMBINATIONS[name].interpreter is None:
            wrong.append(f"{name}: there is no python{COMBINATIONS[name].python} here, its row stays as it was")
            continue
        row = try_out(name)
        write_rows(read_rows() | {name: row})
        if row["failed"] != "0":
            wrong.append(f"{name}: {row['failed']} failed")
    PAGE.write_text(placed(PAGE.read_text(encoding="utf-8"), table(read_rows())), encoding="utf-8")
    return "\n".join(wrong)


if __name__ == "__main__":
    sys.exit(main() or 0)
