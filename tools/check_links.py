"""Check that all links of a built site lead to a file, and to a place in it; pictures too. Other hosts are not asked.

    python tools/check_links.py docs/_build/html

Sphinx checks what it resolves itself. What it does not resolve may still become a link, to nowhere.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the places in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.places = {""}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """One element."""
        given = {name: value or "" for name, value in attrs}
        self.places.add(given.get("id", ""))
        if tag in ("a", "img", "script", "link"):
            self.links.add(given.get("href") or given.get("src") or "")


def dead_links(root: Path) -> list[str]:
    """Each link that leads nowhere, with its page."""
    pages = {path.resolve(): Page(path) for path in sorted(root.rglob("*.html"))}
    found = []
    for path, page in pages.items():
        for link in sorted(page.links):
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            there = target.is_file() and unquote(parts.fragment) in getattr(pages.get(target), "places", {""})
            if not there:
                found.append(f"{path.relative_to(root.resolve())}: {link}")
    if not pages:
        found.append(f"{root}: no page")
    return found


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]))
    sys.exit("\n".join(["Links to nowhere:", *found]) if found else 0)
