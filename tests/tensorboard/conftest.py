"""Chromium, if there is one, and the page that the tests of a module share."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import SEEDS, Tab, opened
from logs import Log, write_run
from serving import Server, serving

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


# Of a module: while it is open, playwright has an event loop in this thread, which other tests could not have.
@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without windows. Where there is none, the tests say so."""
    if importlib.util.find_spec("playwright") is None:
        pytest.skip("the page of the Dynamics tab is not tested: `pip install playwright`")
    if CHROMIUM is None:
        pytest.skip("the page of the Dynamics tab is not tested: install Chromium, such as `apt-get install chromium`")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def one_page(chromium: Any) -> Iterator[Tab]:
    with opened(chromium) as found:
        yield found


@pytest.fixture
def visit(one_page: Tab, server: Server) -> Iterator[Callable[..., Tab]]:
    """Opens the tab with a log directory, in a page and of a server that tests share.

    It is as new, but for the settings that were kept (JSON). After each test: nothing was said on the console, and
    nothing was asked of another host.
    """
    one_page.errors.clear()
    one_page.requests.clear()

    def visit(logs: Path, kept: str | None = None, **flags: Any) -> Tab:
        return one_page.visit(server.show(logs, **flags), str(logs), kept)

    yield visit
    one_page.settle()
    origin = f"http://127.0.0.1:{server.port}/"
    assert one_page.errors == []
    assert [one for one in one_page.requests if not one.startswith((origin, "blob:", "data:"))] == []


@pytest.fixture(scope="module")
def logs(tmp_path_factory: Any) -> Path:
    """Three seeds, and a run of somebody who does not have this library."""
    folder = tmp_path_factory.mktemp("logs")
    for seed, run in enumerate(SEEDS):
        write_run(folder / run, seed=seed, late=1 + 0.1 * seed, pictures=4 if seed == 0 else 0)
    (folder / SEEDS[0] / "partition" / "film.gif").write_bytes(b"GIF89a, as far as anybody asks")
    with Log(folder / "plain") as log:
        log.scalars("loss", range(1, 300), [1 / step for step in range(1, 300)])
    return folder


@pytest.fixture
def tab(visit: Callable[..., Tab], logs: Path) -> Tab:
    """All runs, as new."""
    return visit(logs)


@pytest.fixture
def seed0(visit: Callable[..., Tab], logs: Path) -> Tab:
    """The first seed alone, as new."""
    return visit(logs, json.dumps({"shown": {run: run == SEEDS[0] for run in [*SEEDS, "plain"]}}))


@pytest.fixture
def groups(visit: Callable[..., Tab], logs: Path) -> Tab:
    """The runs as groups, as new."""
    return visit(logs, json.dumps({"mode": "mean"}))
