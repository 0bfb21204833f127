"""The plugin that TensorBoard loads: addresses, and what answers at them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend import http_util
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from lc_callback.tensorboard.folders import LocalFolders
from lc_callback.tensorboard.names import PLUGIN_NAME
from lc_callback.tensorboard.reader import Reader

__all__ = ["DynamicsPlugin"]

_STATIC = Path(__file__).parent / "static"
# By hand: some systems have other ideas of `.js`.
_MIME_TYPES = {".js": "text/javascript", ".css": "text/css", ".LICENSE": "text/plain"}
_MOST_RUNS, _MOST_TAGS = 300, 300  # of one request

Answer = Callable[[Any, str, wrappers.Request], "str | tuple[bytes, str] | None"]


class DynamicsPlugin(base_plugin.TBPlugin):
    """The tab **Dynamics**.

    Args:
        context: as TensorBoard passes it.
    """

    plugin_name = PLUGIN_NAME

    def __init__(self, context: base_plugin.TBContext) -> None:
        flags = context.flags
        spec = getattr(flags, "logdir_spec", None)
        samples = getattr(flags, "samples_per_plugin", None) or {}
        folders = LocalFolders.of_flags(context.logdir, spec)
        self._reader = Reader(context.data_provider, folders, samples.get("scalars", 1000))

    def get_plugin_apps(self) -> dict[str, Any]:
        """What answers at which address."""
        reader = self._reader
        answers: dict[str, Answer] = {
            "/runs": lambda ctx, eid, request: reader.runs(ctx, eid),
            "/series": lambda ctx, eid, request: reader.series(
                ctx, eid, _several(request, "run", _MOST_RUNS), _several(request, "tag", _MOST_TAGS), _is_set(request)
            ),
            "/events": lambda ctx, eid, request: reader.events(ctx, eid, _several(request, "run", _MOST_RUNS)),
            "/heat": lambda ctx, eid, request: reader.heat(ctx, eid, _one(request, "run"), _one(request, "prefix")),
            "/pictures": lambda ctx, eid, request: reader.pictures(ctx, eid, _one(request, "run")),
            "/picture": lambda ctx, eid, request: (
                reader.blob(ctx, request.args["blob"])
                if "blob" in request.args
                else reader.picture(ctx, eid, _one(request, "run"), _one(request, "file"))
            ),
        }
        apps: dict[str, Any] = {path: _app(answer) for path, answer in answers.items()}
        apps["/static/*"] = _serve_static
        return apps

    def is_active(self) -> bool:
        """Whether a run has tags of this library. TensorBoard asks if no run has a summary of the plugin."""
        try:
            from tensorboard.context import RequestContext

            return self._reader.has_ours(RequestContext(), "")
        except Exception:  # of whatever the provider is: an error here would be logged at each look
            return False

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        """The module that draws the tab, and its name."""
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="Dynamics")


def _app(answer: Answer) -> Any:
    @functools.wraps(answer)
    @wrappers.Request.application
    def serve(request: wrappers.Request) -> wrappers.Response:
        if request.method not in ("GET", "HEAD"):
            return http_util.Respond(request, "Only GET.", "text/plain", code=405)
        context, experiment = plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)
        try:
            found = answer(context, experiment, request)
        except ValueError as error:
            return http_util.Respond(request, str(error), "text/plain", code=400)
        if found is None:
            return http_util.Respond(request, "There is no such picture.", "text/plain", code=404)
        if isinstance(found, str):
            return http_util.Respond(request, found, "application/json")
        content, mime = found
        return http_util.Respond(request, content, mime, expires=60)

    return serve


@wrappers.Request.application
def _serve_static(request: wrappers.Request) -> wrappers.Response:
    name = request.path.rpartition("/")[2]
    mime = _MIME_TYPES.get(Path(name).suffix)
    if mime is None or name not in _static_files():
        return http_util.Respond(request, "There is no such file.", "text/plain", code=404)
    return http_util.Respond(request, (_STATIC / name).read_text("utf-8"), mime)


@functools.cache
def _static_files() -> frozenset[str]:
    return frozenset(path.name for path in _STATIC.iterdir())


def _one(request: wrappers.Request, name: str) -> str:
    found = request.args.getlist(name)
    if len(found) != 1:
        raise ValueError(f"`{name}` must be given once, but was given {len(found)} times.")
    return found[0]


def _several(request: wrappers.Request, name: str, most: int) -> list[str]:
    found = list(dict.fromkeys(request.args.getlist(name)))
    if not 0 < len(found) <= most:
        raise ValueError(f"`{name}` must be given 1 to {most} times, but was given {len(found)} times.")
    return found


def _is_set(request: wrappers.Request) -> bool:
    return request.args.get("wall") == "1"
