"""Runs of ``train.py`` in folders that are named after their arguments, so that experiments share them."""

from __future__ import annotations

import json
import multiprocessing
import re
import shutil
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lc_callback.run.timeline import read_rows
from sweeps.columns import Row, Rows

EXAMPLES = Path(__file__).parent.parent
RUNS = EXAMPLES.parent / "lightning_logs" / "sweeps"
STEPS_BETWEEN_CHECKPOINTS = 2500


@dataclass(frozen=True)
class Run:
    """One run of ``train.py``.

    Args:
        config: name of the YAML file, without its suffix.
        arguments: of ``train.py``.
        seed: of initialisation, batches and probes.
        steps: of training.
        runs: the folder of all runs.
        data: the folder of data sets, where the YAML file names one.
    """

    config: str
    arguments: str
    seed: int
    steps: int
    runs: Path
    data: str | None = None

    @property
    def folder(self) -> Path:
        name = re.sub(r"--(?:[\w.]+\.)?(\w+)(?: |\+=)", r"\1=", self.arguments).replace(" ", ",")
        return self.runs / self.config / (name or "default") / f"seed_{self.seed}"

    @property
    def unfinished(self) -> Path:
        """The folder until the run is over."""
        return self.folder.with_name(f"{self.folder.name}.unfinished")

    @property
    def settings(self) -> Any:
        """What the YAML file says now."""
        return yaml.safe_load((EXAMPLES / f"{self.config}.yaml").read_text(encoding="utf-8"))

    @property
    def seconds(self) -> float | None:
        """Wall time of the run that is there; ``None`` if there is none as long with these settings."""
        path = self.folder / "done.json"
        if not path.exists():
            return None
        done = json.loads(path.read_text(encoding="utf-8"))
        return done["seconds"] if done["steps"] >= self.steps and done["settings"] == self.settings else None

    def take(self) -> None:
        """Train, in this process. A run that was stopped goes on from its last checkpoint, of the same settings."""
        from train import main

        if self.seconds is not None:
            return
        begun, start = self._begun(), time.time()
        self._note("begun", begun | {"start": start})
        sys.argv = self._command()
        with (self.unfinished / "output.txt").open("a") as file, redirect_stdout(file), redirect_stderr(file):
            try:
                main()
            except BaseException:
                traceback.print_exc(file=file)
                raise
        seconds = round(begun["spent"] + time.time() - start, 1)
        self._note("done", {"steps": self.steps, "seconds": seconds, "settings": begun["settings"]})
        shutil.rmtree(self._checkpoint.parent, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        self.unfinished.rename(self.folder)

    @property
    def _checkpoint(self) -> Path:
        return self.unfinished / "checkpoints" / "last.ckpt"

    def _begun(self) -> dict[str, Any]:
        """With what settings the run that is there began, and the seconds to its checkpoint; else an empty folder."""
        path, checkpoint = self.unfinished / "begun.json", self._checkpoint
        anew = {"steps": self.steps, "settings": self.settings, "spent": 0.0}
        if path.exists() and checkpoint.exists():
            begun = json.loads(path.read_text(encoding="utf-8"))
            if all(begun[key] == anew[key] for key in ("steps", "settings")):
                (self.unfinished / "config.yaml").unlink(missing_ok=True)  # Lightning would not write it again
                return anew | {"spent": begun["spent"] + checkpoint.stat().st_mtime - begun["start"]}
        shutil.rmtree(self.unfinished, ignore_errors=True)
        self.unfinished.mkdir(parents=True)
        return anew

    def _note(self, name: str, content: Mapping[str, Any]) -> None:
        (self.unfinished / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")

    def _command(self) -> list[str]:
        folder, checkpoint = self.unfinished, self._checkpoint
        where = {"save_dir": folder.parent, "name": "", "version": folder.name}
        saved = {"dirpath": checkpoint.parent, "filename": checkpoint.stem, "enable_version_counter": "false"}
        saved["every_n_train_steps"] = str(STEPS_BETWEEN_CHECKPOINTS)
        command = [
            *("train.py", "fit", f"--config={EXAMPLES / self.config}.yaml", f"--seed_everything={self.seed}"),
            f"--trainer.max_steps={self.steps}",
            *(f"--{callback}.raise_on_error=true" for callback in ("lc", "robustness", "rank")),
            *(f"--trainer.logger.init_args.{key}={value}" for key, value in where.items()),
            *self.arguments.split(),
            *("--trainer.enable_checkpointing=true", "--trainer.callbacks+=ModelCheckpoint"),
            *(f"--trainer.callbacks.{key}={value}" for key, value in saved.items()),
        ]
        if self.data is not None and "root" in self.settings["data"]["init_args"]:
            command.append(f"--data.init_args.root={self.data}")
        return [*command, f"--ckpt_path={checkpoint}"] if checkpoint.exists() else command

    def rows(self, keys: Mapping[str, Sequence[str]]) -> Rows:
        """Of all callbacks, joined by step, to the last step of the experiment."""
        joined: dict[float, Row] = {}
        for group, wanted in keys.items():
            for row in read_rows(self.folder / group / "history.csv"):
                if row["step"] <= self.steps:
                    joined.setdefault(row["step"], {"step": row["step"]}).update(chosen(row, wanted))
        rows = [joined[step] for step in sorted(joined)]
        rows[0]["seconds"] = self.seconds
        return rows


def chosen(row: Row, wanted: Sequence[str]) -> Row:
    """What is kept of a row: a pattern with ``=last`` is the last of the keys that match."""
    kept = {}
    for key in wanted:
        if key.endswith("=last"):
            matching = [name for name in row if re.fullmatch(key.removesuffix("=last"), name)]
            if matching:
                kept[f"{key.partition('/')[0]}/last"] = row[matching[-1]]
        else:
            kept |= {name: value for name, value in row.items() if re.fullmatch(key, name)}
    return kept


def train_all(runs: Sequence[Run], jobs: int) -> None:
    """Take these runs, in processes of their own."""
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    waiting = {pool.submit(run.take): run for run in runs}
    try:
        for n, future in enumerate(as_completed(waiting), start=1):
            run = waiting[future]
            if future.exception():
                raise RuntimeError(f"{run} failed") from future.exception()
            print(f"{n} of {len(runs)}: {run.folder.relative_to(run.runs)}, {run.seconds:.0f} s", flush=True)
    except BaseException:  # the others would train to the end, whatever the user wants
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    pool.shutdown()
