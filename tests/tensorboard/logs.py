"""Small logs that the tests of the Dynamics tab share: event files, and the files of run folders."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from lc_callback.tensorboard.summary import events_summary

STEPS = [0, *(round(10 ** (k / 10)) for k in range(0, 41, 2))]
START = 1_700_000_000.0  # seconds; one step takes one


class Log:
    """The event file of one run; use it in a ``with``."""

    def __init__(self, folder: Path) -> None:
        self._writer = EventFileWriter(str(folder))

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *args: object) -> None:
        self._writer.close()

    def scalars(self, tag: str, steps: Sequence[int], values: Sequence[float]) -> None:
        for step, value in zip(steps, values, strict=True):
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            self._writer.add_event(Event(wall_time=START + step, step=step, summary=summary))

    def events(self, events: Sequence[Mapping[str, Any]], step: int) -> None:
        self._writer.add_event(Event(wall_time=START + step, step=step, summary=events_summary(events)))

    def image(self, tag: str, step: int) -> None:
        image = Summary.Image(height=4, width=4, colorspace=3, encoded_image_string=png(step % 255))
        summary = Summary(value=[Summary.Value(tag=tag, image=image)])
        self._writer.add_event(Event(wall_time=START + step, step=step, summary=summary))

    def raw(self, event: Event) -> None:
        self._writer.add_event(event)


def curves(seed: int = 0, late: float = 1.0) -> dict[str, np.ndarray]:
    """Curves of a run that groks: three phases, and accuracies that come one after the other."""
    noise = np.random.default_rng(seed)
    x = np.log10(np.array(STEPS) + 1.0)

    def rise(at: float) -> np.ndarray:
        return 1 / (1 + np.exp(-8 * (x - at)))

    lc = 12 - 6 * rise(0.7) + 9 * rise(2.0) - 10 * rise(3.3) + noise.normal(0, 0.1, len(x))
    found = {
        "lc/train": lc,
        "lc_ci99/train": np.full(len(x), 0.5),
        "lc/test": lc + 0.5,
        "lc_ci99/test": np.full(len(x), 0.4),
        "lc_radius": np.full(len(x), 0.05),
        "lc/phase": np.select([x < 1.2, x < 2.7], [0.0, 1.0], 2.0),
        "lc/seconds": np.full(len(x), 0.02),
    }
    found |= {f"lc_layer/train/net.{i}": lc / 3 + (i - 1) * rise(2.0) for i in (1, 3, 10)}
    accuracies = {
        "clean_acc/train": 0.1 + 0.9 * rise(1.5),
        "clean_acc/test": 0.1 + 0.85 * rise(2.5 * late),
        "robust_acc/test_eps0.03": 0.8 * rise(3.0 * late),
    }
    ranks = {f"rank/net.{i}": np.round(60 - 20 * rise(2.6) * i / 5) for i in (1, 3, 5)}
    return found | accuracies | ranks | {"own/measure": x**2, "own/seconds": np.full(len(x), 0.01)}


def event(what: str = "found", kind: str = "migration_start", **fields: Any) -> dict[str, Any]:
    return {
        "at": 4000,
        "what": what,
        "kind": kind,
        "step": 501,
        "detected_at": 1000,
        "value": 12.5,
        "prominence": 3.0,
        "reason": "rose by 9 to 14, then fell by 10",
        "curve": "lc/train",
        "certainty": "firm",
        "earliest": 398,
        "latest": 631,
        "noise": "noise of 0.1",
        "provisional": False,
        **fields,
    }


def transitions(late: float = 1.0) -> list[dict[str, Any]]:
    """Events of such a run: four that stay, one of them tentative, and one that is withdrawn."""
    grokked = round(10 ** (2.5 * late))
    spike = {"step": 3, "earliest": 2, "latest": 4, "certainty": "tentative"}
    return [
        event(kind="migration_start", at=20, **spike),
        event("withdrawn", "migration_start", at=40, **spike),
        event(kind="first_descent_end", at=60, step=16, earliest=10, latest=25, detected_at=60),
        event("found", "migration_start", at=1000, step=600, provisional=True),
        event("moved", "migration_start"),
        event(
            kind="delayed_generalization",
            curve="clean_acc/test",
            step=grokked,
            earliest=round(0.8 * grokked),
            latest=round(1.3 * grokked),
        ),
        event(
            kind="rank_descent",
            curve="rank/net.5",
            certainty="tentative",
            step=250,
            earliest=200,
            latest=316,
            provisional=True,
        ),
    ]


def write_run(
    folder: Path, *, seed: int = 0, late: float = 1.0, local: bool = True, events: bool = True, pictures: int = 0
) -> Path:
    """A run as the callbacks write it: event file, and with ``local`` the files beside it."""
    found, told = curves(seed, late), transitions(late) if events else []
    folder.mkdir(parents=True, exist_ok=True)
    with Log(folder) as log:
        for tag, values in found.items():
            log.scalars(tag, STEPS, values)
        log.scalars("epoch", STEPS, [step // 10 for step in STEPS])
        log.scalars("loss", range(200), [1 / (1 + step) for step in range(200)])
        if told:
            log.events(told[:2], 50)
            log.events(told, 4000)
        for step in STEPS[:pictures]:
            log.image("partition/slice", step)
    if local:
        groups = {
            "lc": [k for k in found if k.startswith("lc")],
            "robust_acc": [k for k in found if "_acc/" in k],
            "rank": [k for k in found if k.startswith("rank")],
            "own": [k for k in found if k.startswith("own")],
        }
        for group, keys in groups.items():
            write_csv(folder / group / "history.csv", {key: found[key] for key in keys})
        if told:
            (folder / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in told))
        for step in STEPS[:pictures]:
            write_png(folder / "partition" / f"slice_{step:09d}.png", step % 255)
    return folder


def write_csv(path: Path, columns: Mapping[str, Sequence[float]], steps: Sequence[int] = STEPS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["step", *columns])
        writer.writerows(
            [step, *map(repr, map(float, row))] for step, *row in zip(steps, *columns.values(), strict=True)
        )


def write_png(path: Path, grey: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(grey))


def png(grey: int) -> bytes:
    """Four by four pixels of one grey."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + bytes([grey] * 12) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
