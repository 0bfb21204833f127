"""What the tab shows, as JSON: from run folders on this machine, else from TensorBoard's data provider."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lc_callback.tensorboard.compact import Floats, Grids, json_numbers, json_object, json_steps
from lc_callback.tensorboard.events import events_of_lines, events_of_summary
from lc_callback.tensorboard.folders import Column, LocalFolders
from lc_callback.tensorboard.names import PLUGIN_NAME

__all__ = ["Reader", "natural"]

_SECONDS_KEPT = 2.0  # of a list of series, which takes a while to make
_MOST_POINTS = 10_000  # of one series that are asked for
_KEPT = 1000  # points of a scalar that TensorBoard keeps by default
_MOST_LAYERS, _MOST_COLUMNS = 400, 500  # of a heat map; of more, neighbours share a row
_MOST_REMOTE_LAYERS = 2000
# At the ends of tags, with or without a prefix: a run of this library.
_OURS = re.compile(r"(?:lc/train|lc/test|lc/random|(?:lc|robust_acc|rank|partition|nc)/seconds|lc/phase)$")
_PICTURE_TAGS = re.compile(r"partition/(?!film)")


class Reader:
    """Reads runs for the tab.

    Args:
        provider: TensorBoard's data provider; ``None`` if there is none.
        folders: the run folders on this machine.
        n_kept: points of a scalar that TensorBoard keeps; 0 for all.
    """

    def __init__(self, provider: Any, folders: LocalFolders, n_kept: int = _KEPT) -> None:
        self._provider, self._folders, self._n_kept = provider, folders, n_kept
        self._listing: tuple[float, str, dict[str, dict[str, Any]]] | None = None
        self._lock = Lock()
        self._has_ours = False

    def has_ours(self, ctx: Any, experiment: str) -> bool:
        """Whether there is a run with tags of this library, be it of a version without summaries of its own."""
        if not self._has_ours:
            listing = self._scalars(ctx, experiment)
            self._has_ours = any(_OURS.search(tag) for tags in listing.values() for tag in tags)
        return self._has_ours

    def runs(self, ctx: Any, experiment: str, others: Iterable[str] = ()) -> str:
        """All runs with their tags, and a version that changes whenever there is something new.

        ``others`` are runs that TensorBoard does not know, for they have no event file.
        """
        listing = self._scalars(ctx, experiment)
        version = hashlib.sha1(usedforsecurity=False)
        numbers: dict[str, int] = {}
        sets: dict[tuple[int, ...], int] = {}
        runs = []
        for run in sorted({*listing, *others, *self._other_runs(ctx, experiment)}, key=natural):
            files = self._folders.overview(run)
            local = dict.fromkeys(files.keys)
            remote = listing.get(run, {})
            ordered = [*local, *(tag for tag in remote if tag not in local)]
            tags = tuple(numbers.setdefault(tag, len(numbers)) for tag in ordered)
            newest = max((series.max_wall_time for series in remote.values()), default=0.0)
            last = max([files.last, *(series.max_step for series in remote.values())])
            version.update(repr((run, len(tags), newest, files.stamp)).encode())
            runs.append(
                {
                    "name": run,
                    "set": sets.setdefault(tags, len(sets)),
                    "local": bool(local),
                    "last": int(last),
                    "notes": files.notes,
                }
            )
        return json.dumps({"version": version.hexdigest()[:16], "tags": [*numbers], "sets": [*sets], "runs": runs})

    def series(self, ctx: Any, experiment: str, runs: Sequence[str], tags: Sequence[str], wall: bool = False) -> str:
        """The values of tags in runs, with the seconds of their steps if ``wall``."""
        grids, found, problems = Grids(), [], []
        local = {run: self._folders.columns(run, tags) for run in runs}
        missing = [run for run in runs if len(local[run]) < len(tags)]
        try:
            remote = self._read(ctx, experiment, runs if wall else missing, tags)
        except Exception as error:  # of whatever the provider is
            remote = {}
            problems.append(f"TensorBoard's data could not be read ({type(error).__name__})")
        for run in runs:
            clock = _clock(remote.get(run, {}))
            for tag in tags:
                if tag in local[run]:
                    steps, values = local[run][tag]
                    sampled = False
                elif tag in remote.get(run, {}):
                    steps, values, _ = remote[run][tag]
                    sampled = self._is_sampled(steps)
                else:
                    continue
                times = None if clock is None or not wall or not len(steps) else np.interp(steps, *clock)
                found.append(
                    json_object(
                        run=json.dumps(run),
                        tag=json.dumps(tag),
                        grid=str(grids.number_of(steps, times)),
                        values=json_numbers(values),
                        sampled="true" if sampled else "false",
                    )
                )
        return json_object(series=f"[{','.join(found)}]", grids=grids.json(), problems=json.dumps(problems))

    def events(self, ctx: Any, experiment: str, runs: Sequence[str]) -> str:
        """The events of each run: of its ``events.jsonl``, else of its last summary."""
        found = {run: events_of_lines(text) for run in runs if (text := self._folders.events(run)) is not None}
        others = [run for run in runs if run not in found]
        if others and self._provider is not None:
            with suppress(Exception):  # of whatever the provider is; the runs then have no events
                found |= {
                    run: events_of_summary(text) for run, text in self._summaries(ctx, experiment, others).items()
                }
        return json.dumps({run: {"events": events, "unread": unread} for run, (events, unread) in found.items()})

    def heat(self, ctx: Any, experiment: str, run: str, prefix: str) -> str:
        """Layers x steps of the tags with a prefix. Of very many layers, neighbours are averaged."""
        local = [key for key in self._folders.keys(run) if _is_layer(key, prefix)]
        columns: dict[str, Column] = self._folders.columns(run, local)
        if not columns:
            listed = self._scalars(ctx, experiment).get(run, {})
            tags = sorted((tag for tag in listed if _is_layer(tag, prefix)), key=natural)
            tags = [tags[i] for i in _spread(len(tags), _MOST_REMOTE_LAYERS)]
            remote = self._read(ctx, experiment, [run], tags).get(run, {})
            columns = {tag: remote[tag][:2] for tag in tags if tag in remote}
        steps = np.unique(np.concatenate([column[0] for column in columns.values()] or [np.empty(0)]))
        steps = steps[_spread(len(steps), _MOST_COLUMNS)]
        names, rows = [], []
        for layers in _shared(list(columns), _MOST_LAYERS):
            grid = np.full((len(layers), len(steps)), np.nan)
            for i, layer in enumerate(layers):
                at, values = columns[layer]
                places = np.searchsorted(steps, at)
                fits = (places < len(steps)) & (steps[np.minimum(places, len(steps) - 1)] == at) if len(steps) else []
                grid[i, places[fits]] = values[fits]
            names.append(layers[0].removeprefix(prefix) + (f" and {len(layers) - 1} more" if len(layers) > 1 else ""))
            rows.append(json_numbers(_means(grid)))
        return json_object(
            layers=json.dumps(names), n=str(len(columns)), steps=json_steps(steps), values=f"[{','.join(rows)}]"
        )

    def pictures(self, ctx: Any, experiment: str, run: str) -> str:
        """The pictures of slices: those in the run's folder, else those that TensorBoard kept."""
        pictures, films = self._folders.pictures(run), self._folders.films(run)
        sampled = False
        if not pictures and self._provider is not None:
            try:
                pictures = self._kept_pictures(ctx, experiment, run)
                sampled = len(pictures) >= 10
            except Exception:  # of whatever the provider is
                pictures = []
        return json.dumps({"pictures": pictures, "films": films, "sampled": sampled})

    def picture(self, ctx: Any, experiment: str, run: str, file: str) -> tuple[bytes, str] | None:
        """Content and MIME type of a picture in the folder of a run."""
        return self._folders.picture(run, file)

    def blob(self, ctx: Any, key: str) -> tuple[bytes, str] | None:
        """Content and MIME type of a picture that TensorBoard kept."""
        if self._provider is None or not re.fullmatch(r"[A-Za-z0-9._~=-]+", key):
            return None
        try:
            data = self._provider.read_blob(ctx, blob_key=key)
        except Exception:  # of whatever the provider is: there is no such picture
            return None
        kinds = {b"\x89PNG": "image/png", b"GIF8": "image/gif", b"\xff\xd8\xff": "image/jpeg"}
        return next(((data, kind) for magic, kind in kinds.items() if data.startswith(magic)), None)

    # The provider

    def _scalars(self, ctx: Any, experiment: str) -> dict[str, dict[str, Any]]:
        """Of each run the scalars by tag. Kept for a moment."""
        if self._provider is None:
            return {}
        with self._lock:
            now = time.monotonic()
            if self._listing and self._listing[1] == experiment and now - self._listing[0] < _SECONDS_KEPT:
                return self._listing[2]
            found = self._provider.list_scalars(ctx, experiment_id=experiment, plugin_name="scalars")
            listing = {run: dict(tags) for run, tags in (found or {}).items()}
            self._listing = time.monotonic(), experiment, listing
            return listing

    def _other_runs(self, ctx: Any, experiment: str) -> Iterable[str]:
        """Runs that have events but no scalars."""
        if self._provider is None:
            return ()
        return (self._provider.list_tensors(ctx, experiment_id=experiment, plugin_name=PLUGIN_NAME) or {}).keys()

    def _read(
        self, ctx: Any, experiment: str, runs: Sequence[str], tags: Sequence[str]
    ) -> dict[str, dict[str, tuple[Floats, Floats, Floats]]]:
        """Steps, values and wall times of tags in runs, each step once, the last of those that are there twice."""
        if self._provider is None or not runs or not tags:
            return {}
        from tensorboard.data.provider import RunTagFilter

        found = self._provider.read_scalars(
            ctx,
            experiment_id=experiment,
            plugin_name="scalars",
            downsample=_MOST_POINTS,
            run_tag_filter=RunTagFilter(runs=runs, tags=tags),
        )
        return {run: {tag: _arrays(points) for tag, points in of.items()} for run, of in (found or {}).items()}

    def _summaries(self, ctx: Any, experiment: str, runs: Sequence[str]) -> dict[str, bytes | str]:
        from tensorboard.data.provider import RunTagFilter

        found = self._provider.read_tensors(
            ctx,
            experiment_id=experiment,
            plugin_name=PLUGIN_NAME,
            downsample=_KEPT,
            run_tag_filter=RunTagFilter(runs=runs),
        )
        last: dict[str, bytes | str] = {}
        for run, tags in (found or {}).items():
            points = [point for of_tag in tags.values() for point in of_tag]
            if points:
                text = max(points, key=lambda point: (point.step, point.wall_time)).numpy.reshape(-1)[:1].tolist()
                last[run] = text[0] if text and isinstance(text[0], (bytes, str)) else b""
        return last

    def _kept_pictures(self, ctx: Any, experiment: str, run: str) -> list[dict[str, Any]]:
        from tensorboard.data.provider import RunTagFilter

        asked = {"experiment_id": experiment, "plugin_name": "images"}
        filter_runs = RunTagFilter(runs=[run])
        listed = self._provider.list_blob_sequences(ctx, **asked, run_tag_filter=filter_runs) or {}
        tags = [tag for tag in listed.get(run, {}) if _PICTURE_TAGS.search(tag)]
        if not tags:
            return []
        wanted = RunTagFilter(runs=[run], tags=tags)
        found = self._provider.read_blob_sequences(ctx, **asked, downsample=_KEPT, run_tag_filter=wanted) or {}
        return [
            {"series": tag, "step": int(point.step), "blob": point.values[2].blob_key}
            for tag, points in found.get(run, {}).items()
            for point in points
            if len(point.values) > 2  # the first two are width and height
        ]

    def _is_sampled(self, steps: Floats) -> bool:
        """Whether TensorBoard may have left out points: it has as many as it keeps, and not at equal distances."""
        return bool(0 < self._n_kept <= len(steps) and np.ptp(np.diff(steps)) > 0)


def natural(text: str) -> list[tuple[int, int, str]]:
    """Key of an order in which ``net.10`` comes after ``net.9``.

    Example::

        >>> from lc_callback.tensorboard.reader import natural
        >>> sorted(["net.10", "net.9", "net"], key=natural)
        ['net', 'net.9', 'net.10']
    """
    parts = re.split(r"([0-9]+)", text)
    return [(1, int(part[:300]), part) if i % 2 else (0, 0, part) for i, part in enumerate(parts)]


def _arrays(points: Sequence[Any]) -> tuple[Floats, Floats, Floats]:
    data = np.array([(p.step, p.value, p.wall_time) for p in points], np.float64).reshape(-1, 3)
    data = data[data[:, 0] >= 0]
    if len(data) > 1 and not (np.diff(data[:, 0]) > 0).all():
        data = data[np.argsort(data[:, 0], kind="stable")]
        data = data[np.append(np.diff(data[:, 0]) > 0, True)]
    return data[:, 0], data[:, 1], data[:, 2]


def _clock(tags: Mapping[str, tuple[Floats, Floats, Floats]]) -> tuple[Floats, Floats] | None:
    """Steps and wall times of the series of a run with the most points."""
    best = max(tags.values(), key=lambda column: len(column[0]), default=None)
    return None if best is None or not len(best[0]) else (best[0], best[2])


def _is_layer(tag: str, prefix: str) -> bool:
    return tag.startswith(prefix) and len(tag) > len(prefix) and tag[len(prefix) :] not in ("seconds", "total")


def _spread(n: int, most: int) -> NDArray[np.int64]:
    """At most ``most`` indices of ``n``, from the first to the last."""
    return np.arange(n) if n <= most else np.unique(np.linspace(0, n - 1, most).round().astype(np.int64))


def _shared(names: list[str], most: int) -> list[list[str]]:
    """The names in at most ``most`` rows of neighbours."""
    each = -(-len(names) // most) if names else 1
    return [names[i : i + each] for i in range(0, len(names), each)]


def _means(grid: Floats) -> Floats:
    """Means of columns, of those that are there; an infinite value stays."""
    n = (~np.isnan(grid)).sum(0)
    total = np.nansum(grid, 0) if len(grid) > 1 else grid[0]
    return np.where(n > 0, total / np.maximum(n, 1), np.nan)
