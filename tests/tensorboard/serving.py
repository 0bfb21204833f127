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


class Server:
    """Answers for TensorBoard with the Dynamics tab, of one log directory or another."""

    def __init__(self) -> None:
        self.port = 0
        self._apps: dict[Any, Any] = {}

    def show(self, logdir: Path | str, **flags: Any) -> str:
        """From now on these logs. Gives the address of the tab, alone in a page."""
        key = str(logdir), *flags.items()
        if key not in self._apps:
            self._apps[key] = app(logdir, **flags)
        self._app = self._apps[key]
        return f"http://127.0.0.1:{self.port}{flags.get('path_prefix', '')}/data/plugin_entry.html?name=lc_dynamics"

    def __call__(self, environ: Any, start_response: Any) -> Any:
        if environ["PATH_INFO"] == "/favicon.ico":  # a browser asks for it
            start_response("204 No Content", [])
            return []
        return self._app(environ, start_response)


class _Silent(WSGIRequestHandler):
    def log(self, *args: Any) -> None:
        """Nothing: a test reads what the page says."""


@contextmanager
def serving() -> Iterator[Server]:
    """A server in a thread."""
    answer = Server()
    server = make_server("127.0.0.1", 0, answer, threaded=True, request_handler=_Silent)
    answer.port = server.port
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield answer
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
