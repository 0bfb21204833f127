"""Build the wheel and the source distribution, and try each by itself in an empty environment.

    python tools/check_dist.py              # writes dist/
    python tools/check_dist.py --only wheel

Needs ``build``. Each is installed with the versions of ``constraints.txt``, in a folder that has nothing of the
repository. Then ``pip check`` must be content, all public names must be there, the command must answer, TensorBoard
must find the plugin and its files, a small model must be measured and trained on with a callback, and an attack of
torchattacks must run once it is installed as the error says.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
#: What the source distribution must have beside the package, so that tests and site can be made from it.
IN_SOURCE = (
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md", "constraints.txt"),
    *("docs/conf.py", "docs/index.md", "docs/results/depth.csv", "docs/no_arguments_sums.png", "setup.cfg"),
    *("examples/digits.ipynb", "examples/mnist_mlp.yaml", "tests/test_docs.py", "benchmarks/README.md"),
)
#: What no wheel may miss.
IN_WHEEL = ("lc_callback/py.typed", "lc_callback/tensorboard/static/index.js", "lc_callback/tensorboard/static/d3.js")
TRY = """
from importlib.metadata import entry_points
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

import lc_callback, lc_callback.callbacks, lc_callback.functional, lc_callback.metrics
assert "site-packages" in lc_callback.__file__, lc_callback.__file__
for package in (lc_callback, lc_callback.callbacks, lc_callback.functional, lc_callback.metrics):
    for name in package.__all__:
        getattr(package, name)
(plugin,) = (point.load() for point in entry_points(group="tensorboard_plugins") if point.name == "lc_dynamics")
static = Path(lc_callback.__file__).parent / "tensorboard" / "static"
assert (static / "index.js").stat().st_size > 0
net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
assert lc_callback.functional.local_complexity(net, torch.rand(16, 4), radius=0.5).counts.shape == (16, 1)
rank = lc_callback.FeatureRankCallback(layers=["layer"])
trainer = Trainer(max_steps=3, callbacks=[rank], enable_progress_bar=False, accelerator="cpu")
trainer.fit(BoringModel())
assert rank.history.steps == [0, 1, 2, 3]
"""
#: What the error of an attack that is not there says to do, and that it is there then.
ATTACKS = (("lc_callback[attacks]",), ("--no-deps", "torchattacks"))
TRY_ATTACKS = """
import torch
from lc_callback.functional import robust_accuracy
net = torch.nn.Linear(4, 2)
assert 0 <= robust_accuracy(net, torch.rand(8, 4), torch.arange(8) % 2, eps=0.1, attack="PGDL2").robust_acc[0.1] <= 1
"""


def run(*command: object, cwd: Path = ROOT) -> str:
    """What the command prints; an error with all of it if it fails."""
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(words)} failed:\n{done.stdout}")
    return done.stdout


def build(folder: Path) -> dict[str, Path]:
    """The two files by kind."""
    for old in folder.glob("lc_callback-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", folder)
    (wheel,), (source,) = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return {"wheel": wheel, "source": source}


def check_contents(files: dict[str, Path]) -> None:
    """The wheel has the package and nothing else; the source distribution has what tests and site need."""
    with zipfile.ZipFile(files["wheel"]) as wheel:
        names = wheel.namelist()
    odd = [name for name in names if not name.startswith("lc_callback") or name.startswith("lc_callback/tests")]
    kinds = {Path(name).suffix for name in names if name.startswith("lc_callback/")}
    missing = [name for name in IN_WHEEL if name not in names]
    if odd or missing or not kinds <= {".py", ".js", ".css", ".typed", ".LICENSE"}:
        sys.exit(f"{files['wheel'].name}: misses {missing}, and has {odd} and files of the kinds {sorted(kinds)}")
    with tarfile.open(files["source"]) as source:
        inside = {name.partition("/")[2] for name in source.getnames()}
    missing = [name for name in IN_SOURCE if name not in inside]
    surplus = [name for name in inside if "_build" in name or "__pycache__" in name or name.startswith("venv")]
    if missing or surplus:
        sys.exit(f"{files['source'].name}: misses {missing}, and has {surplus}")


def try_alone(file: Path, version: str) -> None:
    """Install the file in an empty environment, and use it there."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        install = (python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt")
        run(*install, file, cwd=folder)
        run(python, "-m", "pip", "check", cwd=folder)
        for command in ((python.with_name("lc-callback"),), (python, "-m", "lc_callback")):
            said = run(*command, "--version", cwd=folder).strip()
            if said != f"lc_callback {version}":
                sys.exit(f"{file.name}: {command} --version says {said!r}")
        run(python, "-c", TRY, cwd=folder)
        for words in ATTACKS:
            run(*install, *words, cwd=folder)
        run(python, "-c", TRY_ATTACKS, cwd=folder)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["wheel", "source"], help="try this one")
    parser.add_argument("--output", type=Path, default=ROOT / "dist", help="default: dist")
    args = parser.parse_args()
    files = build(args.output)
    check_contents(files)
    for kind, file in files.items():
        if args.only in (None, kind):
            try_alone(file, file.name.split("-")[1].removesuffix(".tar.gz"))
            print(f"{file.name}: installs and works by itself ({file.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
