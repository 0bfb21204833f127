"""TensorBoard with the Dynamics tab, in this process."""

from __future__ import annotations

import threading
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboard.backend import application
from tensorboard.data import server_ingester  # noqa: F401  the fast loader, where it is wanted
from tensorboard.plugins import base_plugin
from tensorboard.plugins.core import core_plugin
from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.test import Client

from lc_callback.tensorboard.plugin import DynamicsPlugin

PLUGIN = "/data/plugin/lc_dynamics"


def app(logdir: Path | str, path_prefix: str = "", **flags: Any) -> Any:
    """The WSGI application, with all logs read."""
    from tensorboard.backend.event_processing import data_ingester
    from tensorboard.data.ingester import DataIngester

    every = Namespace(
        logdir=str(logdir),
        logdir_spec="",
        path_prefix=path_prefix,
        purge_orphaned_data=True,
        reload_interval=0,
        reload_task="blocking",
        reload_multifile=False,
        reload_multifile_inactive_secs=86400,
        max_reload_threads=1,
        samples_per_plugin={},
        generic_data="auto",
        window_title="",
        event_file="",
        detect_file_replacement=None,
        **flags,
    )
    ingester: DataIngester = data_ingester.LocalDataIngester(every)
    ingester.start()
    loaders = [core_plugin.CorePluginLoader(), base_plugin.BasicLoader(DynamicsPlugin)]
    return application.TensorBoardWSGIApp(every, loaders, ingester.data_provider, assets_zip_provider=None)


def client(logdir: Path | str, **flags: Any) -> Client:
    return Client(app(logdir, **flags))


def _with_icon(answer: Any) -> Any:
    """The application, which has an empty icon for a browser that asks."""

    def with_icon(environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/favicon.ico":
            start_response("204 No Content", [])
            return []
        return answer(environ, start_response)

    return with_icon


class _Silent(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Nothing: a test reads what the page says."""


@contextmanager
def served(logdir: Path | str, **flags: Any) -> Iterator[str]:
    """The address of the tab, alone in a page, while TensorBoard runs in a thread."""
    answer = _with_icon(app(logdir, **flags))
    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=_Silent)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        prefix = flags.get("path_prefix", "")
        yield f"http://127.0.0.1:{server.port}{prefix}/data/plugin_entry.html?name=lc_dynamics"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
