"""Chromium, if there is one, and the page that the tests of a module share."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from browser import Tab, opened

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
def one_page(chromium: Any) -> Iterator[Tab]:
    with opened(chromium) as found:
        yield found


@pytest.fixture
def visit(one_page: Tab) -> Iterator[Callable[[str], Tab]]:
    """Opens the tab at an address, in a page that tests share."""
    yield one_page.visit
    one_page.page.evaluate("localStorage.clear()")
