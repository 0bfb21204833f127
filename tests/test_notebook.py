"""The notebook ``examples/digits.ipynb`` is the page *Get started*, runs, and still says what it says."""

import runpy
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "digits.ipynb"
PAGE = ROOT / "docs" / "get_started.md"


@pytest.fixture
def tool(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    return runpy.run_path(str(ROOT / "tools" / "make_notebook.py"))


def cells(notebook):
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def printed(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.get("name") != "stderr" for output in outputs)  # paths of a machine, for instance
    return "".join(output.text for output in outputs if output.output_type == "stream"), [
        output for output in outputs if "image/png" in output.get("data", {})
    ]


def test_the_notebook_has_the_text_and_the_code_of_the_page(tool):
    stored = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(stored)
    assert cells(stored) == cells(tool["notebook_of"](PAGE.read_text())), "run tools/make_notebook.py"
    assert [cell.execution_count for cell in stored.cells if cell.cell_type == "code"] == [1, 2, 3]


def test_a_page_becomes_cells(tool):
    page = "# A\n\n[b](b.md#c), [host](https://host/b), ![d](d.png)\n\n```python\nx = 1\n\nx\n```\n\n```sh\nls\n```\n"
    assert cells(tool["notebook_of"](page)) == [
        ("markdown", "# A\n\n[b](../docs/b.md#c), [host](https://host/b), ![d](../docs/d.png)"),
        ("code", "x = 1\n\nx"),
        ("markdown", "```sh\nls\n```"),
    ]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tool, tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored, pictures = printed(notebook)
    tool["run"](notebook, tmp_path)
    text, drawn = printed(notebook)
    assert len(drawn) == len(pictures) == 1
    for kind in ("first_descent_end", "interpolation", "generalization", "robustness_onset"):
        assert kind in text
        assert kind in stored
    assert (tmp_path / "lightning_logs" / "version_0" / "timeline.png").exists()
