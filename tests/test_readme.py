"""The README stays one screen and a half, and what it and its neighbours say of the package is so."""

import re
from pathlib import Path

import lc_callback

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_it_is_short():
    lines = README.splitlines()
    assert len(lines) <= 120
    assert max(len(line) for line in lines) <= 120


def test_each_promise_names_tests_that_exist():
    promises = README.split("## Three promises")[1].split("\n## ")[0]
    each = promises.split("\n- ")[1:]
    assert len(each) == 3
    for promise in each:
        links = re.findall(r"\]\((tests/\S+\.py)\)", promise)
        assert links
        assert all("def test_" in (ROOT / link).read_text() for link in links)


def test_the_version_is_the_same_everywhere():
    version = re.escape(lc_callback.__version__)
    assert re.search(rf"version = {{{version}}}", README)
    assert re.search(rf"^version: {version}$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert re.search(rf"^## \[{version}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    for page in ("README.md", "docs/install.md"):
        assert set(re.findall(r"lc_callback-([\d.]+)-py3", (ROOT / page).read_text())) <= {lc_callback.__version__}
