"""The tab of the Dynamics plugin in a browser, for the tests that look at it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SIZE = {"width": 1300, "height": 1000}
SEEDS = ["grok_seed0/version_0", "grok_seed1/version_0", "grok_seed2/version_0"]


LC, ACCURACY = "lc::", "accuracy:"


# Counts what is being fetched, keeps what the page does every 15 seconds, and knows whether it is as it was: `isQuiet`
# since it was last waited for, `isAsNew` since it was made.
WATCH = """(() => {
    window.pending = 0;
    const fetched = window.fetch;
    window.fetch = (...args) => {
        window.isQuiet = false;
        window.pending += 1;
        return fetched(...args).finally(() => setTimeout(() => (window.pending -= 1)));
    };
    const every = window.setInterval;
    window.setInterval = (action, time) => (time === 15000 ? ((window.lookForNew = action), 0) : every(action, time));
    const stir = () => (window.isQuiet = false);
    const touch = () => (window.isQuiet = window.isAsNew = false);
    for (const name of ["pointermove", "pointerdown", "click", "keydown", "input", "change", "resize"])
        window.addEventListener(name, touch, true);
    window.addEventListener("scroll", stir, true);
    new MutationObserver(stir).observe(document, { attributes: true, childList: true, subtree: true });
})()"""


# As after a reload with these settings kept, but the modules are there already.
ANEW = """async (kept) => {
    localStorage.clear();
    if (kept !== null) localStorage.setItem("lc_dynamics", kept);
    for (const old of document.querySelectorAll(".app, link[rel=stylesheet]")) old.remove();
    const { render } = await import(new URL("./static/index.js", document.baseURI));
    await render();
}"""


SETTLED = """async () => {
    const frame = () => new Promise((done) => requestAnimationFrame(() => setTimeout(done)));
    for (let quiet = 0; quiet < 3; ) {
        await frame();
        quiet = window.pending ? 0 : quiet + 1;
    }
    window.isQuiet = true;
}"""


# Whether a card is drawn and in sight, and nothing has happened since the page was last waited for.
IS_SHOWN = """(panel) => {
    const card = [...document.querySelectorAll("section.card")].find((one) => one.dataset.panel === panel);
    if (!window.isQuiet || card?.dataset.state !== "ready") return false;
    const { top, bottom } = card.getBoundingClientRect();
    return top >= 0 && bottom <= window.innerHeight;
}"""


class Tab:
    """The tab in a page, and what went wrong there."""

    def __init__(self, page: Any, url: str = "") -> None:
        self.page, self.url = page, url
        self.made: tuple[str, str | None] | None = None
        self.errors: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda said: said.type == "error" and self.errors.append(said.text))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))
        page.add_init_script(WATCH)
        if url:
            self.open()

    def open(self) -> None:
        self.page.goto(self.url)
        self.wait()

    def visit(self, url: str, logs: str, kept: str | None = None) -> Tab:
        """The tab at an address, with these logs, as new but for the settings that were kept (JSON)."""
        if self.page.url != url:
            self.url = url
            self.open()
        if self.made != (logs, kept) or not self.page.evaluate("window.isAsNew"):
            self.page.set_viewport_size(SIZE)
            self.page.mouse.move(1, 1)
            self.page.evaluate(ANEW, kept)
            self.wait()
            self.page.evaluate("window.isAsNew = true")
            self.made = logs, kept
        self.page.evaluate("window.scrollTo(0, 0)")
        self.settle()
        return self

    def wait(self) -> None:
        """Wait until the first curve is drawn, and all that is in sight."""
        self.page.wait_for_selector("section.card path.line", state="attached")
        self.settle()

    def settle(self) -> None:
        """Wait until nothing is loaded and all is drawn."""
        self.page.evaluate(SETTLED)

    def choose(self, label: str, value: str) -> None:
        self.page.locator(f".toolbar label.field:has(> span:text-is('{label}')) select").select_option(value)
        self.settle()

    def card(self, panel: str) -> Any:
        return self.page.locator(f"section.card[data-panel={json.dumps(panel)}]")

    def show(self, panel: str) -> Any:
        card = self.card(panel)
        if self.page.evaluate(IS_SHOWN, panel):
            return card
        for _ in range(50):  # what is drawn above may push it away again
            card.scroll_into_view_if_needed()
            self.settle()
            if card.get_attribute("data-state") == "ready":
                return card
        raise AssertionError(f"{panel} does not stay in view")

    def all(self, panel: str, selector: str, attribute: str) -> list[str]:
        nodes = self.show(panel).locator(selector)
        return nodes.evaluate_all("(nodes, name) => nodes.map((node) => node.getAttribute(name))", attribute)

    def hover(self, panel: str, share: float) -> None:
        """Move the pointer to a place in the chart, as a share of its width."""
        box = self.show(panel).locator("svg.chart .target").first.bounding_box()
        self.page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.7 * box["height"])
        self.settle()

    def cursor(self, panel: str) -> float | None:
        found = self.card(panel).locator(".cursor line")
        return float(found.get_attribute("x1")) if found.count() else None

    def tick(self, panel: str, value: int) -> float:
        return float(self.card(panel).locator(f'.axis.x .tick[data-value="{value}"]').get_attribute("x1"))

    def export(self, panel: str, kind: str) -> bytes:
        card = self.show(panel)
        card.locator(".menu summary").click()
        with self.page.expect_download() as download:
            card.locator(f"[data-export={kind}]").click()
        return Path(download.value.path()).read_bytes()

    def only(self, run: str) -> None:
        """Show this run alone."""
        self.page.locator(".run-tools button", has_text="none").click()
        self.settle()
        self.page.locator(f".run[data-run={json.dumps(run)}] input").check()
        self.settle()


@contextmanager
def opened(chromium: Any, url: str = "", **options: Any) -> Iterator[Tab]:
    context = chromium.new_context(viewport=SIZE, **options)
    context.set_default_timeout(60_000)
    try:
        yield Tab(context.new_page(), url)
    finally:
        context.close()
