"""Run the examples of the gallery, and keep what each of them shows: docs/gallery/NAME.png and NAME.txt.

    python tools/make_gallery.py                    # all of them, some minutes on one core
    python tools/make_gallery.py cnn tabular
    python tools/make_gallery.py --root ../data     # the folder with MNIST/raw

The pages in docs/gallery/ include the script, the picture and the sentences as they are in these files, so the site is
built offline, in seconds, and nobody who builds it waits for eight trainings. The picture holds a digest of its script:
tests/test_gallery.py fails if a script has changed since it ran.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

HERE = Path(__file__).parent.parent
SCRIPTS = {path.stem: path for path in sorted((HERE / "examples" / "gallery").glob("*.py"))}
PAGES = HERE / "docs" / "gallery"


def digest(script: Path) -> str:
    """That of a script, as its picture holds it."""
    return hashlib.sha256(script.read_bytes()).hexdigest()


def last_words(console: str) -> str:
    """What the callbacks say when the training is over.

    Raises:
        ValueError: if it did not come to its end.
    """
    _, stopped, words = console.partition("`Trainer.fit` stopped: ")
    if not stopped:
        raise ValueError(f"The training did not come to its end:\n{console}")
    return words.partition("\n")[2].strip() + "\n"


def keep_picture(source: Path, target: Path, script: str = "") -> None:
    """A timeline in 256 colours, a quarter of its size; with the digest of the script that made it."""
    about = PngInfo()
    if script:
        about.add_text("script", script)
    with Image.open(source) as picture:
        coverage, plain = Image.Quantize.MAXCOVERAGE, Image.Dither.NONE  # thin lines keep their colours
        flat = picture.convert("RGB").quantize(256, method=coverage, kmeans=1, dither=plain)
        flat.save(target, optimize=True, pnginfo=about)


def figures(rows: Path) -> str:
    """How well local complexity can be read: the 99 % half-width at step 0, and how far the curve goes."""
    with rows.open() as file:
        table = [(float(row["lc/train"]), float(row["lc_ci99/train"])) for row in csv.DictReader(file)]
    (first, width), values = table[0], [value for value, _ in table]
    median = sorted(width for _, width in table)[len(table) // 2]
    way = (max(values) - min(values)) / median
    return f"lc/train {first:.3g} at step 0, half-width {width / first:.3f} of it, range {way:.0f} half-widths"


def make(name: str, root: Path, folder: Path) -> str:
    """Run one example in ``folder``, write its two files, and return a line about it."""
    start = time.perf_counter()
    arguments = [str(root.resolve())] if "sys.argv" in SCRIPTS[name].read_text() else []
    paths = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    run = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPTS[name]), *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    words = last_words(run.stderr + run.stdout if run.returncode else run.stderr)
    log = folder / re.findall(r"^picture: (.*)/timeline.png$", run.stdout, re.MULTILINE)[-1]
    PAGES.mkdir(exist_ok=True)
    keep_picture(log / "timeline.png", PAGES / f"{name}.png", digest(SCRIPTS[name]))
    (PAGES / f"{name}.txt").write_text(words)
    return f"{name}: {time.perf_counter() - start:.0f} s; {figures(log / 'lc' / 'history.csv')}"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description="Run the examples of the gallery and keep what they show")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of {', '.join(SCRIPTS)}")
    parser.add_argument("--root", type=Path, default=Path("data"), help="folder with MNIST/raw")
    args = parser.parse_args()
    if unknown := set(args.names) - set(SCRIPTS):
        parser.error(f"no such example: {', '.join(sorted(unknown))}; there are {', '.join(SCRIPTS)}")
    failed = []
    for name in args.names or SCRIPTS:
        with tempfile.TemporaryDirectory() as folder:
            try:
                print(make(name, args.root, Path(folder)), flush=True)
            except ValueError as error:
                failed.append(f"{name}: {error}")
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
