"""The gallery: each example runs, and each page shows what is kept of the run of its script."""

import re
import runpy
from pathlib import Path

import lightning.pytorch
import pytest
import torch
from PIL import Image

from lc_callback.callbacks import ProbeCallback

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("*.py"))
DOCS = ROOT / "docs"
STEPS = 1
KEPT = 100_000  # bytes of a picture
TOOL = runpy.run_path(str(ROOT / "tools" / "make_gallery.py"))


def stem(path):
    return path.stem


def page_of(script):
    return (DOCS / "gallery" / f"{script.stem}.md").read_text()


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Trainers that stop after a few steps, in a folder of their own; ten images in place of MNIST."""
    made = lightning.pytorch.Trainer.__init__

    def init(self, *args, max_steps, **kwargs):
        made(self, *args, max_steps=STEPS, enable_model_summary=False, **kwargs)

    monkeypatch.setattr(lightning.pytorch.Trainer, "__init__", init)
    monkeypatch.chdir(tmp_path)


def run(script, monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", [str(script), *arguments])
    return runpy.run_path(str(script), run_name="__main__")


LONG = {"vit", "resnet", "cnn"}
RUNS = [pytest.param(script, marks=pytest.mark.slow) if script.stem in LONG else script for script in SCRIPTS]


@pytest.mark.parametrize("script", RUNS, ids=stem)
def test_an_example_runs_and_draws_its_timeline(script, small, monkeypatch, tmp_path, capsys):
    if script.stem == "mnist_mlp":
        images = torch.utils.data.TensorDataset(torch.rand(10, 1, 28, 28), torch.arange(10))
        monkeypatch.setattr("data.MNIST.load", lambda self: (images, images))
    names = run(script, monkeypatch)
    picture = Path(capsys.readouterr().out.strip().removeprefix("picture: "))
    assert picture.resolve().is_relative_to(tmp_path.resolve())
    assert picture.is_file()
    ours = [callback for callback in names["callbacks"] if isinstance(callback, ProbeCallback)]
    assert len(ours) >= 2
    for callback in ours:
        assert callback.history.steps == [*range(STEPS + 1)]
    keys = ours[0].history.keys
    assert {"lc/train", "lc/test", "lc/random"} <= {*keys}


def test_missing_images_of_mnist_are_said_in_one_line(monkeypatch, tmp_path):
    with pytest.raises(SystemExit) as end:
        run(ROOT / "examples" / "gallery" / "mnist_mlp.py", monkeypatch, str(tmp_path))
    assert str(end.value).startswith("MNIST is not there. `root`")
    assert "\n" not in str(end.value)


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_an_example_is_short_and_takes_the_callbacks_as_they_are(script):
    text = script.read_text()
    assert 30 <= len(text.splitlines()) <= 70
    assert f"python examples/gallery/{script.name}" in text
    given = re.findall(r"(?:Complexity|Robustness|Rank)Callback\((.*?)\)", text)
    assert len(given) >= 2
    assert sum(map(bool, given)) <= 1  # the one argument that the example is about


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_a_page_shows_what_its_script_gave(script):
    page = page_of(script)
    assert f"literalinclude}} ../../examples/gallery/{script.name}\n" in page
    assert f"literalinclude}} {script.stem}.txt\n" in page
    assert f"]({script.stem}.png)" in page
    with Image.open(DOCS / "gallery" / f"{script.stem}.png") as picture:
        assert picture.info["script"] == TOOL["digest"](script), f"run tools/make_gallery.py {script.stem}"
    assert (DOCS / "gallery" / f"{script.stem}.png").stat().st_size < KEPT
    index = (DOCS / "gallery.md").read_text()
    assert f"gallery/{script.stem}.png" in index
    assert f"gallery/{script.stem}.md" in index
    assert re.search(rf"^gallery/{script.stem}$", index, re.MULTILINE)


@pytest.mark.parametrize("script", SCRIPTS, ids=stem)
def test_the_steps_that_a_page_names_are_in_what_the_run_said(script):
    said = (DOCS / "gallery" / f"{script.stem}.txt").read_text()
    for step in re.findall(r"step ([\d,]*\d)", page_of(script)):
        assert re.search(rf"(?<![\d,]){step}(?![\d,]*\d)", said), step


def test_there_are_eight_and_no_page_without_a_script():
    assert len(SCRIPTS) == 8
    kept = {path.stem for path in (DOCS / "gallery").iterdir()}
    assert kept == {script.stem for script in SCRIPTS}


def test_what_a_run_says_at_its_end_is_kept():
    console = "Measured in this run:\n\n`Trainer.fit` stopped: `max_steps=2` reached.\nIt grokked.\nLC rose.\n"
    assert TOOL["last_words"](console) == "It grokked.\nLC rose.\n"
    with pytest.raises(ValueError, match="did not come to its end:\nTraceback"):
        TOOL["last_words"]("Traceback")


def test_how_well_a_curve_can_be_read(tmp_path):
    rows = tmp_path / "history.csv"
    rows.write_text("step,lc/train,lc_ci99/train\n0,4.0,0.2\n1,6.0,0.3\n2,10.0,0.4\n")
    assert TOOL["figures"](rows) == "lc/train 4 at step 0, half-width 0.050 of it, range 20 half-widths"
