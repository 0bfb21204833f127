"""One page that shows what the Dynamics tab shows, without a server: code, style, rows and pictures in one file."""

from __future__ import annotations

import base64
import html
import json
import re
from pathlib import Path
from typing import Any

from lc_callback.tensorboard.folders import LocalFolders
from lc_callback.tensorboard.reader import Reader

__all__ = ["bundled", "write_page"]

_STATIC = Path(__file__).parent / "static"
_MOST_PICTURES = 8 * 2**20  # bytes of all pictures; of more, every second one, or fewer
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; "
    "base-uri 'none'; form-action 'none'"
)
_IMPORT = re.compile(r'^import \{([^}]*)\} from "\./(\w+)\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export ((?:async )?(?:function|class|const) (\w+))", re.MULTILINE)
_EXPORT_LIST = re.compile(r"^export \{([^}]*)\};\n", re.MULTILINE)


def write_page(folder: Path, path: Path, title: str = "") -> int:
    """Write a page with the runs in a folder, and those below it.

    Args:
        folder: log directory of a run, or of several.
        path: of the page.
        title: above all; by default the name of the folder.

    Returns:
        The number of runs.

    Raises:
        ValueError: if there is no run.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give the log directory of a run, or of several.")
    data = _data(folder)
    runs = json.loads(data["runs"])["runs"]
    if not runs:
        raise ValueError(f"{folder} has no run: neither an event file of TensorBoard nor a history.csv of a callback.")
    heading = title or folder.resolve().name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(_page(heading, data), encoding="utf-8")
    return len(runs)


def _data(folder: Path) -> dict[str, str]:
    """What the server of the tab answers, each as JSON."""
    from tensorboard.context import RequestContext

    ctx = RequestContext()
    folders = LocalFolders({"": folder})
    reader = Reader(_provider(folder), folders)
    answer = reader.runs(ctx, "", folders.runs())
    runs = json.loads(answer)
    names = [run["name"] for run in runs["runs"]]
    pictures = {name: json.loads(reader.pictures(ctx, "", name)) for name in names}
    _embed(reader, ctx, pictures)
    return {
        "runs": answer,
        "series": reader.series(ctx, "", names, runs["tags"]),
        "events": reader.events(ctx, "", names),
        "pictures": json.dumps(pictures),
    }


def _provider(folder: Path) -> Any:
    """TensorBoard's data of a folder, read in this process."""
    from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
    from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder))
    multiplexer.Reload()
    return MultiplexerDataProvider(multiplexer, str(folder))


def _embed(reader: Reader, ctx: Any, pictures: dict[str, Any]) -> None:
    """Put the pictures themselves in place of their addresses, of too many only some."""
    found = []
    for run, answer in pictures.items():
        answer["films"] = []
        for one in answer["pictures"]:
            picture = reader.blob(ctx, one["blob"]) if "blob" in one else reader.picture(ctx, "", run, one["file"])
            if picture is not None:
                found.append((run, one, picture))
        answer["pictures"] = []
    every = -(-sum(len(content) for _, _, (content, _) in found) // _MOST_PICTURES) or 1
    for i, (run, one, (content, mime)) in enumerate(found):
        if (len(found) - 1 - i) % every == 0:
            data = f"data:{mime};base64,{base64.b64encode(content).decode()}"
            pictures[run]["pictures"].append({"series": one["series"], "step": one["step"], "data": data})


def _page(title: str, data: dict[str, str]) -> str:
    parts = ",".join(f'"{name}":{text}' for name, text in {"title": json.dumps(title), **data}.items())
    # In a script element `<` could begin its end, whatever stands between quotes.
    safe = f"{{{parts}}}".replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    style = (_STATIC / "style.css").read_text("utf-8")
    return (
        "<!DOCTYPE html>\n"
        f'<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>\n{style}</style>\n</head>\n<body>\n"
        f'<script type="application/json" id="data">{safe}</script>\n'
        f"<script>\n{bundled('page')}\n"
        '$page.render(JSON.parse(document.getElementById("data").textContent));\n'
        "</script>\n</body>\n</html>\n"
    )


def bundled(entry: str) -> str:
    """A module of the tab and all that it imports as one script, each module an object ``$name``.

    The modules keep to a few forms of ``import`` and ``export``, so that this needs no tool.

    Example::

        >>> from lc_callback.tensorboard.page import bundled
        >>> code = bundled("format")
        >>> code.startswith("const $format = (() => {"), "export" in code
        (True, False)
    """
    done: dict[str, str] = {}
    _bundle(entry, done)
    return "\n".join(done.values())


def _bundle(name: str, done: dict[str, str]) -> None:
    code = (_STATIC / f"{name}.js").read_text("utf-8")
    for _, needed in _IMPORT.findall(code):
        if needed not in done:
            _bundle(needed, done)
    names = [f"{one}" for _, one in _EXPORT.findall(code)]
    names += [_renamed(listed, inner_first=False) for found in _EXPORT_LIST.findall(code) for listed in _listed(found)]
    code = _IMPORT.sub(lambda found: f"const {{ {_renamings(found[1])} }} = ${found[2]};\n", code)
    code = _EXPORT_LIST.sub("", _EXPORT.sub(r"\1", code))
    done[name] = f"const ${name} = (() => {{\n{code}return {{ {', '.join(names)} }};\n}})();"


def _renamings(listed: str) -> str:
    return ", ".join(_renamed(one, inner_first=True) for one in _listed(listed))


def _listed(text: str) -> list[str]:
    return [one.strip() for one in text.split(",") if one.strip()]


def _renamed(one: str, inner_first: bool) -> str:
    """``a as b`` as the part of an object that is taken apart, ``a: b``, or made, ``b: a``."""
    inner, _, outer = one.partition(" as ")
    return inner if not outer else f"{inner}: {outer}" if inner_first else f"{outer}: {inner}"
