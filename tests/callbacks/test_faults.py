"""What goes wrong while a run is under way costs a row and a warning, never the run."""

from __future__ import annotations

import errno
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from all_kinds import KINDS, ROWS, is_ours, tiny
from helpers import (
    DIM,
    Calls,
    Classifier,
    RowLogger,
    loader,
    make_trainer,
    our_warnings,
    points,
    timeless,
)
from PIL import Image
from torch import nn

from lc_callback import LocalComplexityCallback
from lc_callback.callbacks import partition
from lc_callback.run.history import CsvFile

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.usefixtures("undrawn")]

STEPS = 8
EVERY = list(range(STEPS + 1))


class AtStep(pl.Callback):
    """Does something to the module after the given steps, before the callback under test looks."""

    def __init__(self, steps: Sequence[int], action: Callable[[Any], None]) -> None:
        self.steps, self.action = steps, action

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step in self.steps:
            self.action(pl_module)


class Fragile(Classifier):
    """Raises ``error()`` when it is measured after the steps ``at``, for more than ``most`` samples at once."""

    def __init__(self, at: Sequence[int], error: Callable[[], BaseException], most: int = 0) -> None:
        super().__init__()
        self.at, self.error, self.most = at, error, most
        self.raised = Calls()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training and self.global_step in self.at and len(x) > self.most:
            self.raised.append(len(x))
            raise self.error()
        return super().forward(x)


class BrokenLogger(RowLogger):
    """Raises at our rows of the steps ``at``, when asked for ``what``."""

    def __init__(self, what: str, at: Sequence[int]) -> None:
        super().__init__()
        self.what, self.at, self.step = what, at, -1

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.step = step if any(map(is_ours, metrics)) else -1
        self._break("log_metrics")
        super().log_metrics(metrics, step)

    def save(self) -> None:
        self._break("save")

    @property
    def experiment(self) -> Any:
        self._break("experiment")
        return self

    def add_text(self, *args: Any) -> None:
        self._break("add_text")

    def add_histogram(self, *args: Any) -> None:
        self._break("add_histogram")

    def add_image(self, *args: Any, **kwargs: Any) -> None:
        self._break("add_image")

    def _break(self, what: str) -> None:
        if what == self.what and self.step in self.at:
            self.step = -1  # Lightning saves again when a run fails
            raise ConnectionError(f"{what} is down")


def break_at(steps: Sequence[int]) -> Callable[[int], bool]:
    def schedule(step: int) -> bool:
        if step in steps:
            raise LookupError("no such step")
        return True

    return schedule


def put_nan(module: Any) -> None:
    with torch.no_grad():
        module.net[2].weight[0, 0] = math.nan


def widen(module: Any) -> None:
    module.net = nn.Sequential(nn.Linear(DIM, 5), nn.Tanh(), nn.Linear(5, 3))


def bend(module: Any) -> None:
    module.net[3] = nn.Tanh()


def drop_named_layer(module: Any) -> None:
    module.net = nn.Sequential(nn.Linear(DIM, 3))  # not what is optimized, but it has a gradient


def detach(module: Any) -> None:
    forward = module.net.forward
    module.net.forward = lambda x: forward(x if module.training and module.net.training else x.detach())


def narrow(module: Any) -> None:
    module.net = nn.Sequential(*module.net, nn.Linear(3, 1))


def attack_until(step: int, at: str) -> Callable[..., torch.Tensor]:
    """An attack that fails from its row of ``step`` on: it is called in the trial, then once in each row."""
    calls = []

    def attack(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if len(x) == 2:
            calls.clear()
        calls.append(len(x))
        if calls.count(4) > step and at == "raises":
            raise ArithmeticError("no attack")
        return x if calls.count(4) <= step else x + 9 if at == "leaves" else None

    return attack


def return_a_dict(module: Any) -> None:
    last = module.net[4]
    forward = last.forward
    last.forward = lambda x: forward(x) if last.training else {"logits": forward(x)}


@dataclass
class Fault:
    """What breaks, which steps' rows it costs, and what the warning of each says."""

    lost: Sequence[int]
    says: str
    module: Callable[[], Classifier] = Classifier
    before: Callable[[], pl.Callback] = pl.Callback
    logger: Callable[[], Any] = RowLogger
    callback: dict[str, Any] = field(default_factory=dict)
    kept: bool = False  # the row is measured and only did not reach the logger, or not whole


FAULTS = {
    "forward": Fault([3, 5], "RuntimeError: lost", lambda: Fragile([3, 5], lambda: RuntimeError("lost"))),
    "forward_at_the_last_step": Fault([8], "OSError: lost", lambda: Fragile([8], lambda: OSError("lost"))),
    "assertion": Fault([1], "AssertionError: lost", lambda: Fragile([1], lambda: AssertionError("lost"))),
    "stop_iteration": Fault([2], "StopIteration: lost", lambda: Fragile([2], lambda: StopIteration("lost"))),
    "key_error": Fault([3], "KeyError: 'lost'", lambda: Fragile([3], lambda: KeyError("lost"))),
    "recursion": Fault([1, 8], "RecursionError: deep", lambda: Fragile([1, 8], lambda: RecursionError("deep"))),
    "memory": Fault([2, 4], "MemoryError: no", lambda: Fragile([2, 4], lambda: MemoryError("no"))),
    "cuda_memory": Fault([2], "OutOfMemory", lambda: Fragile([2], lambda: torch.cuda.OutOfMemoryError("full"))),
    "log_metrics": Fault([3, 4], "log_metrics is down", logger=lambda: BrokenLogger("log_metrics", [3, 4]), kept=True),
    "save": Fault([6], "save is down", logger=lambda: BrokenLogger("save", [6]), kept=True),
    "experiment": Fault([0], "experiment is down", logger=lambda: BrokenLogger("experiment", [0]), kept=True),
    "add_text": Fault([0], "add_text is down", logger=lambda: BrokenLogger("add_text", [0]), kept=True),
    "schedule": Fault([4, 7], "LookupError", callback={"schedule": break_at([4, 7])}),
    "layer_is_gone": Fault(
        [6, 7, 8],
        "`layers` entry 'net.1' matches no module",
        before=lambda: AtStep([6], drop_named_layer),
        callback={"layers": ["net.1"]},
    ),
    "no_non_linearity_left": Fault([7, 8], "no non-linearity", before=lambda: AtStep([7], drop_named_layer)),
    "returns_a_dict": Fault(
        [7, 8],
        "returns no tensor but a dict",
        before=lambda: AtStep([7], return_a_dict),
        callback={"layers": ["net.4"]},
    ),
    "network_is_gone": Fault(
        [7, 8],
        "`submodule='net.3'` is not the name of a module",
        before=lambda: AtStep([7], drop_named_layer),
        callback={"submodule": "net.3", "train_probes": torch.randn(4, 16), "test_probes": torch.randn(4, 16)},
    ),
}


OF_ROBUSTNESS = {
    "attack_raises": Fault([6, 7, 8], "ArithmeticError: no attack", callback={"attack": attack_until(6, "raises")}),
    "attack_leaves_its_budget": Fault(
        [7, 8], "more than eps", callback={"attack": attack_until(7, "leaves"), "bounds": (-20, 20)}
    ),
    "attack_gives_nothing": Fault([8], "must return a tensor", callback={"attack": attack_until(8, "nothing")}),
    "no_gradient_any_more": Fault([7, 8], "no gradient flows", before=lambda: AtStep([7], detach)),
    "no_logits_any_more": Fault([8], "returns shape (4, 1)", before=lambda: AtStep([8], narrow)),
}
OF_RANK = {
    "layer_is_gone": FAULTS["layer_is_gone"],
    "no_non_linearity_left": FAULTS["no_non_linearity_left"],
    "no_gradient_any_more": Fault([7, 8], "no gradient flows", before=lambda: AtStep([7], detach)),
    "histogram": Fault(
        [3, 5],
        "add_histogram is down",
        logger=lambda: BrokenLogger("add_histogram", [3, 5]),
        callback={"histogram": True},
        kept=True,
    ),
}
OF_PARTITION = {
    "bends_by_now": Fault([7, 8], "'tanh' at 'net.3' is not piecewise affine", before=lambda: AtStep([7], bend)),
    "nan_weights": Fault([6, 7, 8], "not finite everywhere in the window", before=lambda: AtStep([6], put_nan)),
    "no_gradient_any_more": Fault([7, 8], "require grad", before=lambda: AtStep([7], detach)),
    "add_image": Fault([0, 5], "add_image is down", logger=lambda: BrokenLogger("add_image", [0, 5]), kept=True),
}
FOR_ALL = [
    *(
        "forward",
        "forward_at_the_last_step",
        "assertion",
        "stop_iteration",
        "key_error",
        "recursion",
        "memory",
        "cuda_memory",
    ),
    *("log_metrics", "save", "experiment", "add_text", "schedule"),
]
ALL = {
    **{("lc", name): fault for name, fault in FAULTS.items()},
    **{(kind, name): FAULTS[name] for kind in KINDS if kind != "lc" for name in FOR_ALL},
    **{("robustness", name): fault for name, fault in OF_ROBUSTNESS.items()},
    **{("rank", name): fault for name, fault in OF_RANK.items()},
    **{("partition", name): fault for name, fault in OF_PARTITION.items()},
}


def run(fault: Fault, folder: Path, kind: str = "lc", **arguments: Any) -> tuple[pl.Trainer, Any]:
    own = {} if kind == "partition" else {"test_probes": points(seed=1)}
    own |= {"radius": 1.0} if kind == "lc" else {}
    options = {**own, "schedule": lambda step: True, **fault.callback, **arguments}
    callback = tiny(kind, **options)
    trainer = make_trainer(folder, fault.before(), callback, logger=fault.logger(), max_steps=STEPS)
    torch.manual_seed(0)
    trainer.fit(fault.module(), loader())
    return trainer, callback


# All kinds share the code that goes on without the row, or stops the run. The first kind has all faults, the others
# have each third of these.
LEFT_OUT = {(kind, name) for kind in KINDS if kind != "lc" for name in {*FOR_ALL} - {*FOR_ALL[::3]}}
QUICK = [one for one in ALL if one not in LEFT_OUT]
MOST_SLOW = [pytest.param(*one, marks=() if one in QUICK[::3] else pytest.mark.slow) for one in ALL]


@pytest.mark.usefixtures("no_timeline")
@pytest.mark.parametrize(("kind", "name"), MOST_SLOW)
def test_a_fault_costs_its_row_and_one_warning(kind: str, name: str, tmp_path: Path) -> None:
    fault = ALL[kind, name]
    with our_warnings(KINDS[kind].__name__) as warned:
        trainer, callback = run(fault, tmp_path, kind)
    assert trainer.state.finished
    assert trainer.global_step == STEPS
    assert callback.history.steps == [step for step in EVERY if fault.kept or step not in fault.lost]
    assert len(warned) == len(fault.lost)
    assert all(fault.says in text and "Training goes on." in text for text in warned)
    if fault.says != "LookupError" and fault.lost != [0]:
        assert [step for step in EVERY if any(f"step {step} " in text for text in warned)] == list(fault.lost)
    assert isinstance(trainer.logger, RowLogger)
    if fault.kept and "log_metrics" in fault.says:
        assert trainer.logger.steps(ROWS[kind].key) == [step for step in EVERY if step not in fault.lost]
    else:
        assert trainer.logger.steps(ROWS[kind].key) == callback.history.steps


@pytest.mark.usefixtures("no_timeline")
@pytest.mark.parametrize(("kind", "name"), MOST_SLOW)
def test_raise_on_error_stops_the_run(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=f"{KINDS[kind].__name__}: ") as caught:
        run(ALL[kind, name], tmp_path, kind, raise_on_error=True)
    assert caught.value.__cause__ is not None


def no_picture(slices: Any) -> Any:
    raise ZeroDivisionError("no picture")


def test_a_drawing_that_fails_costs_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "draw_slices", no_picture)
    with our_warnings("SplinePartitionCallback") as warned:
        trainer, callback = run(Fault([], ""), tmp_path, "partition")
    assert trainer.state.finished
    assert callback.history.steps == trainer.logger.steps(ROWS["partition"].key) == EVERY
    assert [f"drawing step {step} failed (ZeroDivisionError" in text for step, text in enumerate(warned)] == [True] * 9


def test_a_disk_that_is_full_for_a_while_costs_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = Image.Image.save

    def half(self: Image.Image, path: Any, *args: Any, **kwargs: Any) -> None:
        if getattr(path, "name", "").startswith("slice_000000004.png"):
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, *args, **kwargs)

    monkeypatch.setattr(Image.Image, "save", half)
    with our_warnings("SplinePartitionCallback") as warned:
        trainer, callback = run(Fault([], ""), tmp_path, "partition")
    assert trainer.state.finished
    assert callback.history.steps == EVERY
    assert ["000004.png failed" in text and "No space left" in text for text in warned] == [True]
    with Image.open(tmp_path / "partition" / "film.gif") as film:
        assert film.n_frames == len(EVERY) - 1


def test_a_film_that_fails_costs_the_film(tmp_path: Path) -> None:
    (tmp_path / "partition" / "film.gif").mkdir(parents=True)
    with our_warnings("SplinePartitionCallback") as warned:
        trainer, callback = run(Fault([], ""), tmp_path, "partition")
    assert trainer.state.finished
    assert callback.history.steps == EVERY
    assert ["making the film failed" in text and "Training goes on." in text for text in warned] == [True]


def test_a_lost_row_at_the_end_is_not_tried_twice(tmp_path: Path) -> None:
    fault = Fault([8], "", lambda: Fragile([8], lambda: RuntimeError("lost")), callback={"schedule": "log"})
    with our_warnings() as warned:
        run(fault, tmp_path)
    assert len(warned) == 1


def test_nan_weights_give_nan_rows_and_one_warning_each(tmp_path: Path) -> None:
    with our_warnings() as warned:
        trainer, callback = run(Fault([], "", before=lambda: AtStep([6], put_nan)), tmp_path)
    assert trainer.state.finished
    assert callback.history.steps == EVERY
    assert [math.isnan(value) for value in callback.history["lc/train"]] == [step >= 6 for step in EVERY]
    assert [math.isnan(value) for value in callback.history["lc/random"]] == [step >= 6 for step in EVERY]
    assert [f"NaN at step {step} in lc/train" in text for step, text in zip([6, 7, 8], warned, strict=True)] == [
        True
    ] * 3


def test_nan_weights_give_nan_accuracies_under_attack(tmp_path: Path) -> None:
    with our_warnings() as warned:
        trainer, callback = run(Fault([], "", before=lambda: AtStep([6], put_nan)), tmp_path, "robustness", raw=True)
    assert trainer.state.finished
    assert callback.history.steps == EVERY
    keys = [key for key in callback.history.keys if key != "robust_acc/seconds"]
    assert keys == ["clean_acc/train", "clean_acc/test", "robust_acc/test_eps0.1", "robust_acc_raw/test_eps0.1"]
    for key in keys:
        assert [math.isnan(value) for value in callback.history[key]] == [step >= 6 for step in EVERY]
    assert len(warned) == 3
    assert all(f"NaN at step {step} in {', '.join(keys)}" in text for step, text in zip([6, 7, 8], warned, strict=True))


def test_nan_weights_give_nan_ranks_behind_them(tmp_path: Path) -> None:
    with our_warnings() as warned:
        fault = Fault([], "", before=lambda: AtStep([6], put_nan))
        trainer, callback = run(fault, tmp_path, "rank", n_probes=16, linear_probe=True, histogram=True)
    assert trainer.state.finished
    assert callback.history.steps == EVERY
    names = ("rank/net.3", "effective_rank/net.3", "stable_rank/net.3", "linear_probe/net.3", "weight_norm/net.2")
    for key in (*names, "weight_norm/total", "tunnel_length", "alignment/train"):
        assert [math.isnan(value) for value in callback.history[key]] == [step >= 6 for step in EVERY], key
    first = [step for step in EVERY if math.isnan(callback.history["rank/net.1"][step])]
    assert first == [7, 8]  # the first layer is still whole after the step that broke the second
    assert [f"NaN at step {step} in rank/net." in text for step, text in zip([6, 7, 8], warned, strict=True)] == [
        True
    ] * 3


@pytest.mark.parametrize("kind", ["robustness", "rank"])
def test_memory_that_does_not_suffice_for_all_points(kind: str, tmp_path: Path) -> None:
    """An attack halves its chunk, and gives the same row; ranks cost one pass a chunk from the start."""
    arguments = {"n_probes": 8, "eps": [0.1, 0.5], "raw": True} if kind == "robustness" else {"chunk_size": 2}
    plenty = run(Fault([], ""), tmp_path, kind, **arguments)[1].history
    most = 3 if kind == "robustness" else 4

    def scarce() -> Fragile:
        return Fragile(range(1, STEPS), lambda: MemoryError("no"), most=most)

    with our_warnings() as warned:
        _, callback = run(Fault([], "", scarce), tmp_path, kind, **arguments)
    assert warned == []
    assert timeless(callback.history) == timeless(plenty)


def test_memory_that_suffices_after_halving_costs_nothing(tmp_path: Path) -> None:
    plenty = run(Fault([], ""), tmp_path)[1].history
    modules: list[Fragile] = []

    def scarce() -> Fragile:
        modules.append(Fragile(range(1, STEPS), lambda: MemoryError("no"), most=3))
        return modules[0]

    with our_warnings() as warned:
        _, callback = run(Fault([], "", scarce), tmp_path)
    assert len(modules[0].raised) >= STEPS - 1
    assert warned == []
    assert callback.history["lc/train"] == plenty["lc/train"]
    assert callback.history["lc/random"] == plenty["lc/random"]


def test_a_model_that_grows_is_measured_as_it_is(tmp_path: Path) -> None:
    fault = Fault([], "", before=lambda: AtStep([5], widen), callback={"per_layer": True})
    with our_warnings() as warned:
        trainer, callback = run(fault, tmp_path)
    assert trainer.state.finished
    assert warned == []
    assert callback.history.steps == EVERY
    assert [math.isnan(value) for value in callback.history["lc_layer/train/net.3"]] == [step >= 5 for step in EVERY]
    assert callback.history.rows[5]["lc_layer/train/net.1"] <= 5


def test_a_full_disk_costs_no_line_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = CsvFile._text

    def half(self: CsvFile, rows: Any) -> str:
        full = 3 <= rows[-1]["step"] <= 4
        if full:
            with self.path.open("a") as file:
                file.write(whole(self, rows)[:5])
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(self, rows)

    monkeypatch.setattr(CsvFile, "_text", half)
    with our_warnings() as warned:
        trainer, callback = run(Fault([3, 4], ""), tmp_path)
    assert trainer.state.finished
    assert ["No space left" in text and f"step {step} " in text for step, text in zip([3, 4], warned, strict=True)]
    lines = (tmp_path / "lc" / "history.csv").read_text().splitlines()
    assert [int(line.split(",")[0]) for line in lines[1:]] == EVERY == callback.history.steps


def test_callback_metrics_that_cannot_be_filled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = pl.Trainer.callback_metrics

    def metrics(self: pl.Trainer) -> Any:
        if self.global_step == 4:
            raise KeyError("broken metric")
        return real.fget(self)

    monkeypatch.setattr(pl.Trainer, "callback_metrics", property(metrics))
    with our_warnings() as warned:
        trainer, callback = run(Fault([4], ""), tmp_path)
    assert trainer.state.finished
    assert callback.history.steps == EVERY == trainer.logger.steps()
    assert len(warned) == 1
    assert "broken metric" in warned[0]


def test_one_broken_logger_does_not_keep_rows_from_the_others(tmp_path: Path) -> None:
    fine = RowLogger()
    fault = Fault([3], "", logger=lambda: [BrokenLogger("log_metrics", [3]), fine])
    with our_warnings() as warned:
        run(fault, tmp_path)
    assert len(warned) == 1
    assert fine.steps() == EVERY


def test_a_description_that_fails_costs_the_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LocalComplexityCallback, "describe", lambda self: 1 / 0 if len(self.history) else "")
    with our_warnings() as warned:
        trainer, callback = run(Fault([], ""), tmp_path)
    assert trainer.state.finished
    assert callback.history.steps == EVERY
    assert len(warned) == 1
    assert "ZeroDivisionError" in warned[0]


def test_keyboard_interrupt_passes_through(tmp_path: Path) -> None:
    fault = Fault([3], "", lambda: Fragile([3], KeyboardInterrupt))
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run(fault, tmp_path)
