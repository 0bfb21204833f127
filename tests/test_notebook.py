"""The notebook under ``examples/`` runs from top to bottom, and still says what it says."""

import shutil
from pathlib import Path

import data
import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(data.__file__).with_name("digits.ipynb")


def printed(notebook):
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert all(output.get("name") != "stderr" for output in outputs)  # paths of a machine, for instance
    return "".join(output.text for output in outputs if output.output_type == "stream"), [
        output for output in outputs if "image/png" in output.get("data", {})
    ]


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    for path in NOTEBOOK.parent.glob("*.py"):  # runs are logged beside it
        shutil.copy(path, tmp_path)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    stored, pictures = printed(notebook)
    for cell in notebook.cells:
        cell.outputs = []
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": tmp_path}}).execute()
    text, drawn = printed(notebook)
    assert len(drawn) == len(pictures) == 1
    kinds = ["first_descent_end", "migration_start", "interpolation", "generalization", "robustness_onset"]
    for kind in kinds:
        assert kind in text
        assert kind in stored
    steps = {
        line.split()[1]: line.split()[0] for line in text.splitlines() if line[:6].strip().replace(",", "").isdigit()
    }
    before, after = (int(steps[kind].replace(",", "")) for kind in ("generalization", "migration_start"))
    assert before < after  # as its last text says
