"""Make the notebook ``examples/digits.ipynb`` of the page ``docs/get_started.md``, run it, and keep what comes out.

    python tools/make_notebook.py    # about a minute on one core; the picture of the page is of this run, too

The page is the source: its text becomes cells of text, its blocks of Python cells of code. tests/test_notebook.py fails
where the two differ.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import nbformat
from make_gallery import keep_picture
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

HERE = Path(__file__).parent.parent
PAGE = HERE / "docs" / "get_started.md"
NOTEBOOK = HERE / "examples" / "digits.ipynb"


def notebook_of(page: str) -> nbformat.NotebookNode:
    """The cells of a page in ``docs/``, not run; its links lead from ``examples/`` to where they led."""
    cells = []
    for i, part in enumerate(re.split(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)):
        text = part.strip()
        if text:
            make = new_code_cell if i % 2 else new_markdown_cell
            source = text if i % 2 else re.sub(r"\]\((?!\w+:)([^)]+)\)", r"](../docs/\1)", text)
            cells.append(make(source, id=f"cell-{len(cells)}"))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return new_notebook(cells=cells, metadata={"kernelspec": kernel, "language_info": {"name": "python"}})


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """From top to bottom in that folder. The console, which has paths of a machine, is left out."""
    NotebookClient(notebook, timeout=1800, record_timing=False, resources={"metadata": {"path": folder}}).execute()
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]


if __name__ == "__main__":
    notebook = notebook_of(PAGE.read_text())
    with tempfile.TemporaryDirectory() as folder:
        run(notebook, Path(folder))
        keep_picture(Path(folder) / "lightning_logs" / "version_0" / "timeline.png", PAGE.with_suffix(".png"))
    nbformat.write(notebook, NOTEBOOK)
