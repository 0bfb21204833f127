"""Several processes: they share out the points of local complexity under DDP, and agree when one of them fails."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CLASSES, DIM, Classifier, loader, make_trainer, our_warnings, points, timeless
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import (
    DDPStrategy,
    DeepSpeedStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    XLAStrategy,
)
from torch import distributed, nn
from torchmetrics.classification import MulticlassF1Score

import lc_callback
from lc_callback import (
    FeatureRankCallback,
    LocalComplexityCallback,
    NeuralCollapseCallback,
    PGDRobustnessCallback,
    SplinePartitionCallback,
)
from lc_callback.callbacks import clock
from lc_callback.callbacks.ranks import RankGroup
from lc_callback.engine.adversarial import attacked
from lc_callback.engine.counting.counter import SwitchCounter
from lc_callback.functional import local_complexity

N_PROBES, STEPS = 9, 6
RADII = [0.1, 0.5]


def rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def lc(kind: type[LocalComplexityCallback] = LocalComplexityCallback, **arguments: Any) -> Any:
    few = {"radius": 0.5, "n_directions": 3, "n_probes": N_PROBES, "test_probes": points(seed=1), "schedule": [0, 4]}
    return kind(**{**few, **arguments})


def fit(
    folder: Any,
    own: dict[str, Any],
    *callbacks: Any,
    module: Any = Classifier,
    data: Any = None,
    val_data: Any = None,
    resume: Any = None,
    **arguments: Any,
) -> Any:
    """A short training, in which all processes get the same batches, so that its weights are those of one process."""
    settings = {"max_steps": STEPS, "use_distributed_sampler": False, **own, **arguments}
    trainer = make_trainer(folder, *callbacks, **settings)
    torch.manual_seed(0)
    trainer.fit(module(), loader(data), None if val_data is None else loader(val_data), ckpt_path=resume)
    return trainer


def rows(callback: Any) -> list[dict[str, Any]]:
    return timeless(callback.history.rows)


def lost(warned: list[str]) -> list[str]:
    return [text for text in warned if text.endswith("Training goes on.")]


class Swept:
    """The points at which counts are taken inside the block, but those of the trial measurement."""

    def __enter__(self) -> list[int]:
        self.count, found = SwitchCounter._count_points, []

        def counting(counter: Any, points: Any, *args: Any, **kwargs: Any) -> Any:
            if counter.n > 2:
                found.extend(points.tolist())
            return self.count(counter, points, *args, **kwargs)

        SwitchCounter._count_points = counting
        return found

    def __exit__(self, *args: Any) -> None:
        SwitchCounter._count_points = self.count


# What each process does


def complete(folder: Path, own: dict[str, Any]) -> Any:
    callback = lc(radius=RADII, per_layer=True)
    with Swept() as swept:
        trainer = fit(folder, own, callback)
    weights = [parameter.tolist() for parameter in trainer.lightning_module.parameters()]
    return {"rows": rows(callback), "swept": swept, "weights": weights, "states": torch.get_rng_state().tolist()}


def without(folder: Path, own: dict[str, Any]) -> Any:
    trainer = fit(folder, own)
    weights = [parameter.tolist() for parameter in trainer.lightning_module.parameters()]
    return {"weights": weights, "states": torch.get_rng_state().tolist()}


def resumed(folder: Path, own: dict[str, Any]) -> Any:
    callback = lc(radius="auto")  # and so counted by the linear method
    fit(folder / "first", own, lc(radius="auto"), max_steps=2).save_checkpoint(folder / "first.ckpt")
    fit(folder, own, callback, resume=folder / "first.ckpt")
    return rows(callback)


class Failing(LocalComplexityCallback):
    """The last rank fails before the counts of one row, and at those of another; the first after those of a third."""

    def measure(self, network: Any, probes: Any) -> Any:
        step = network.module.global_step
        if step == 1 and rank() == distributed.get_world_size() - 1:
            raise OSError("before")
        values = super().measure(network, probes)
        if step == 3 and rank() == 0:
            raise OSError("after")
        return values

    def _measure_share(self, network: Any, probes: Any, index: int, of: int) -> Any:
        if network.module.global_step == 2 and index == of - 1:
            raise torch.cuda.OutOfMemoryError("within")
        return super()._measure_share(network, probes, index, of)


def failing(folder: Path, own: dict[str, Any]) -> Any:
    callback = lc(Failing, every_n_train_steps=1, schedule=None)
    with our_warnings("Failing") as warned:
        trainer = fit(folder, own, callback)
    return {"rows": rows(callback), "warned": lost(warned), "last": trainer.global_step}


SHARING: dict[str, tuple[Any, dict[str, Any]]] = {
    "robustness": (PGDRobustnessCallback, {"eps": [0.1, 0.5], "raw": True, "steps": 3}),
    "FGSM": (PGDRobustnessCallback, {"eps": [0.1, 0.5], "attack": "FGSM", "log_key_prefix": "fgsm_"}),
    "f1": (PGDRobustnessCallback, {"eps": 0.5, "metric": MulticlassF1Score(CLASSES), "log_key_prefix": "f1_"}),
    "rank": (FeatureRankCallback, {"linear_probe": True}),
    "collapse": (NeuralCollapseCallback, {}),
}


ALONE = ("robustness", "rank", "collapse")


def sharing(name: str, **arguments: Any) -> Any:
    kind, own = SHARING[name]
    few = {"n_probes": N_PROBES, "test_probes": points(seed=1), "schedule": [0, 4]}
    return kind(**{**few, **own, **arguments})


class Attacked:
    """The numbers of points that PGD attacks inside the block, but in the trial measurement."""

    def __enter__(self) -> list[int]:
        self.attack, found = attacked.pgd_until_fallen, []

        def attacking(logits: Any, seen: Any, enter: Any, leave: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            found.append(len(x))
            return self.attack(logits, seen, enter, leave, x, *args, **kwargs)

        attacked.pgd_until_fallen = attacking
        return found

    def __exit__(self, *args: Any) -> None:
        attacked.pgd_until_fallen = self.attack


def shared(folder: Path, own: dict[str, Any]) -> Any:
    """Rows of all other measures; and how many points are attacked, by a budget that turns none."""
    callbacks = {name: sharing(name) for name in SHARING}
    fit(folder, own, *callbacks.values())
    found = {name: rows(callback) for name, callback in callbacks.items()}
    with Attacked() as n_attacked:
        fit(folder / "attacked", own, sharing("robustness", eps=1e-6, raw=False, schedule=[STEPS]))
    return {"rows": found, "attacked": n_attacked[-1]}


def few_for_all(folder: Path, own: dict[str, Any]) -> Any:
    """As many points as do not go up in shares, of two classes."""
    inputs, _ = points().tensors
    two = torch.tensor([0, 1])
    few = {"train_probes": (inputs[:2], two), "test_probes": (inputs[2:4], two)}
    callbacks = {name: sharing(name, **few) for name in ALONE}
    fit(folder, own, *callbacks.values(), max_steps=1)
    return {name: rows(callback) for name, callback in callbacks.items()}


def failing_shares(folder: Path, own: dict[str, Any]) -> Any:
    """The last rank fails in its share of one row."""
    said = {}
    for name in ALONE:
        callback = sharing(name, schedule=[0, 1, 2])
        whole = type(callback)._measure_share

        def fails(self: Any, network: Any, *args: Any, whole: Any = whole) -> Any:
            if network.module.global_step == 1 and rank() == distributed.get_world_size() - 1:
                raise OSError("within")
            return whole(self, network, *args)

        callback.__class__ = type(type(callback).__name__, (type(callback),), {"_measure_share": fails})
        with our_warnings(type(callback).__name__) as warned:
            fit(folder / name, own, callback, max_steps=2)
        said[name] = {"steps": callback.history.steps, "warned": lost(warned)}
    return said


def schedules(folder: Path, own: dict[str, Any]) -> Any:
    def schedule(step: int) -> bool:
        if (rank(), step) in [(1, 2), (0, 5)]:
            raise OSError(f"step {step}")
        return step % 2 == rank() % 2

    callback = lc(schedule=schedule)
    with our_warnings() as warned:
        trainer = fit(folder, own, callback)
    return {"rows": rows(callback), "warned": lost(warned), "last": trainer.global_step}


def few_points(folder: Path, own: dict[str, Any]) -> Any:
    callback = lc(train_probes=points().tensors[0][:2], test_probes=points().tensors[0][:1])
    fit(folder, own, callback, fast_dev_run=True)
    return rows(callback)


class FailsToDraw(LocalComplexityCallback):
    def choose_n_probes(self, *args: Any) -> int:
        if rank() == 1:
            raise OSError("no such file")
        return super().choose_n_probes(*args)


class FailsToPrepare(LocalComplexityCallback):
    def prepare(self, *args: Any) -> None:
        if rank() == 1:
            raise OSError("no memory")


def refused(folder: Path, own: dict[str, Any]) -> Any:
    said = []
    for callback in (lc(FailsToDraw), lc(FailsToPrepare), lc(layers=["nowhere"])):
        try:
            fit(folder, own, callback)
        except Exception as error:
            said.append([type(error).__name__, str(error)])
    return said


def own_data(folder: Path, own: dict[str, Any]) -> Any:
    """Each rank has other data, and another number of them."""
    callback = lc(test_probes=points(5 + rank(), seed=rank()).tensors[0])
    fit(folder, own, callback, data=points(32 - 8 * rank(), seed=rank()), max_steps=1)
    return rows(callback)


def batch_norm(folder: Path, own: dict[str, Any]) -> Any:
    """Each rank has other batches, and so other running statistics."""
    inputs = points(N_PROBES, seed=2).tensors[0]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(DIM, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    callback = lc(train_probes=inputs, random_probes=False, schedule=[STEPS])
    fit(folder, own, callback, module=lambda: Classifier(net), data=points(96), use_distributed_sampler=True)
    alone = local_complexity(net, inputs, radius=0.5, n_directions=3).mean
    return {"row": callback.history["lc/train"], "alone": alone, "statistics": net[1].running_mean.tolist()}


def validated(folder: Path, own: dict[str, Any]) -> Any:
    callback = lc()
    trainer = make_trainer(folder, callback, **own)
    torch.manual_seed(0)
    with Swept() as swept:
        trainer.validate(Classifier(), loader(), verbose=False)
    values = {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith("lc/")}
    return {"rows": timeless([values]), "swept": swept}


class Clock:
    """Stands still, but for what moves it."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def left_out(folder: Path, own: dict[str, Any]) -> Any:
    """Only the clock of the first rank says that rows take long; those of the others, that they take nothing."""
    ticks, module = Clock(), clock.time

    class Slow(LocalComplexityCallback):
        def measure(self, *args: Any) -> Any:
            ticks.now += 1000.0 * (rank() == 0)
            return super().measure(*args)

    class SlowRank(FeatureRankCallback):
        def measure(self, *args: Any) -> Any:
            ticks.now += 1000.0 * (rank() == 0)
            return super().measure(*args)

    limited = {"schedule": None, "every_n_train_steps": 1, "max_overhead": 0.1}
    callbacks = lc(Slow, **limited), SlowRank(n_probes=N_PROBES, **limited)
    clock.time = ticks
    try:
        fit(folder, own, *callbacks, max_steps=12)
    finally:
        clock.time = module
    return [callback.history.steps for callback in callbacks]


class InLayers(Classifier):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import fully_shard

        for layer in self.net[::2]:
            fully_shard(layer)
        fully_shard(self.net)


class InHalfPrecision(Classifier):
    def configure_model(self) -> None:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        fully_shard(self.net, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))


class InTensors(Classifier):
    def configure_model(self) -> None:
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

        plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        parallelize_module(self.net, self.device_mesh["tensor_parallel"], plan)


def sharded(folder: Path, own: dict[str, Any]) -> Any:
    callback = lc(radius=RADII, per_layer=True)
    with Swept() as swept:
        trainer = fit(folder, {**own, "strategy": ModelParallelStrategy(2, 1)}, callback, module=InLayers)
    plain = fit(folder, {**own, "strategy": ModelParallelStrategy(2, 1)}, module=InLayers)
    both = [[p.full_tensor().tolist() for p in t.lightning_module.parameters()] for t in (trainer, plain)]
    return {"rows": rows(callback), "swept": swept, "weights": both[0], "plain": both[1]}


def first_row(folder: Path, own: dict[str, Any], module: Any) -> Any:
    """In double precision, for the smallest radius needs it, and after a forward of Lightning's sanity check."""
    callbacks = lc(radius=[1e-6, 0.5], schedule=[0]), FeatureRankCallback(n_probes=N_PROBES, schedule=[0])
    sanity = {"num_sanity_val_steps": 1, "val_data": points(seed=1)}
    fit(folder, own, *callbacks, module=module, max_steps=1, **sanity)
    return [rows(callback) for callback in callbacks]


def communicating(how: str) -> Callable[[], Any]:
    """A module whose forward waits for all other processes, and whose statistics differ between them."""

    class Communicating(Classifier):
        def __init__(self) -> None:
            super().__init__(nn.Sequential(nn.Linear(DIM, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)))

        def forward(self, x: Any) -> Any:
            z = self.net(x)
            if not distributed.is_initialized():
                return z
            if how == "all_reduce":
                distributed.all_reduce(torch.zeros(1))
            elif how == "without waiting":
                distributed.all_reduce(torch.zeros(1), async_op=True).wait()
            elif how == "all_gather":  # as a contrastive loss does
                parts = [torch.empty_like(z) for _ in range(distributed.get_world_size())]
                distributed.all_gather(parts, z.detach())
            elif how == "barrier":
                self.trainer.strategy.barrier()
            elif how == "of Lightning":
                self.all_gather(z.mean())
            else:
                distributed.all_gather_object([None] * distributed.get_world_size(), 0)
            return z

    return Communicating


FORWARDS = ["all_reduce", "without waiting", "all_gather", "barrier", "of Lightning", "objects"]


def collective(folder: Path, own: dict[str, Any]) -> Any:
    """As many points as do not go up in shares; an attack that stops at points that have fallen; other statistics."""
    found = {}
    for how in FORWARDS if own["devices"] == 2 else FORWARDS[2:3]:
        few = {"schedule": [0, 2], "n_probes": 3, "test_probes": points(seed=1)}
        callbacks = lc(**few), FeatureRankCallback(**few), PGDRobustnessCallback(eps=[0.1, 0.5], **few)
        data = {"data": points(96), "use_distributed_sampler": True, "max_steps": 3}
        with Swept() as swept:
            fit(folder, own, *callbacks, module=communicating(how), **data)
        found[how] = {"rows": [rows(callback) for callback in callbacks], "swept": len(swept)}
    return found


def epochs(folder: Path, own: dict[str, Any]) -> Any:
    """The epochs of each process have another length: 4 batches in the first, 3 in the second, ..."""
    callbacks = lc(schedule=None, every_n_epochs=1), FeatureRankCallback(n_probes=N_PROBES, every_n_epochs=1)
    data = {"data": points(8 * max(4 - rank(), 1)), "max_steps": 9, "max_epochs": None}
    fit(folder, own, *callbacks, **data)
    return [callback.history.steps for callback in callbacks]


SET_UP = ("choose_n_probes", "prepare", "trial")


def fails_alone(folder: Path, own: dict[str, Any]) -> Any:
    """One process fails in the set-up, and not where points are shared."""
    said = []
    for kind, method in itertools.product((FeatureRankCallback, PGDRobustnessCallback), SET_UP):

        def failing(self: Any, *args: Any, method: str = method, kind: Any = kind) -> Any:
            if rank() == 1:
                raise OSError(f"no {method}")
            return getattr(kind, method)(self, *args)

        try:
            fit(folder, own, type(kind.__name__, (kind,), {method: failing})(n_probes=N_PROBES, schedule=[0]))
        except Exception as error:
            said.append([method, f"{error}"])
    return said


class Parted(DDPStrategy, FSDPStrategy):
    """Stands in for a strategy that needs a GPU."""

    strategy_name = "fsdp"


def parted(folder: Path, own: dict[str, Any]) -> Any:
    said = []
    for callback in (lc(), FeatureRankCallback(), PGDRobustnessCallback(), SplinePartitionCallback()):
        try:
            fit(folder, {**own, "strategy": Parted(process_group_backend="gloo")}, callback)
        except Exception as error:
            said.append(f"{error}")
    return said


RUNS: list[Callable[..., Any]] = [complete, without, resumed, failing, schedules, few_points, refused]
RUNS += [shared, few_for_all, failing_shares]
RUNS += [own_data, batch_norm, validated, left_out, collective, epochs, fails_alone, parted]


def all_runs(folder: str, n: int) -> None:
    """What each of ``n`` processes does."""
    own = {"strategy": "ddp", "devices": n, "num_nodes": 1}
    done = {run.__name__: run(Path(folder, run.__name__), own) for run in RUNS}
    if n == 2:
        done["sharded"] = sharded(Path(folder, "sharded"), own)
        for module, sizes in ((InHalfPrecision, (2, 1)), (InTensors, (1, 2))):
            parallel = {**own, "strategy": ModelParallelStrategy(*sizes)}
            done[module.__name__] = first_row(Path(folder, module.__name__), parallel, module)
    Path(folder, f"rank{rank()}.json").write_text(json.dumps(done))


PROGRAM = """
import sys

sys.path[:0] = {tests!r}
import torch

torch.set_num_threads(1)
from test_ranks import all_runs

all_runs({folder!r}, {n})
"""


def launched(folder: Path, n: int) -> list[dict[str, Any]]:
    tests = [str(path) for path in Path(__file__).parents[:2]]
    script = folder / "run.py"
    script.write_text(PROGRAM.format(tests=tests, folder=str(folder), n=n))
    root = Path(lc_callback.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=root, timeout=1800
    )  # if it hangs
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank{index}.json").read_text()) for index in range(n)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    return {n: tmp_path_factory.mktemp(f"processes{n}") for n in (1, 2, 4)}


class Launched(dict[int, list[dict[str, Any]]]):
    """What each rank has to say, by number of processes, which run when they are first asked for."""

    def __init__(self, folders: dict[int, Path]) -> None:
        super().__init__()
        self.folders = folders

    def __missing__(self, n: int) -> list[dict[str, Any]]:
        self[n] = launched(self.folders[n], n)
        return self[n]


@pytest.fixture(scope="module")
def ranks(folders: dict[int, Path]) -> Launched:
    return Launched(folders)


@pytest.fixture(scope="module")
def alone(folders: dict[int, Path]) -> dict[str, Any]:
    """What one process has to say."""
    runs = (complete, resumed, few_points, own_data, validated, shared, few_for_all)
    return {run.__name__: run(folders[1] / run.__name__, {}) for run in runs}


# Under DDP


def several(test: Any) -> Any:
    return pytest.mark.slow(pytest.mark.parametrize("n", [2, 4])(test))


@several
def test_the_rows_are_those_of_one_process(n: int, ranks: Any, alone: Any) -> None:
    assert [row["step"] for row in alone["complete"]["rows"]] == [0, 4]
    assert {"lc/train_r0.1", "lc/random_r0.5", "lc_layer/test_r0.5/net.3"} < alone["complete"]["rows"][0].keys()
    for own in ranks[n]:
        assert own["complete"]["weights"] == alone["complete"]["weights"]
        assert own["complete"]["rows"] == alone["complete"]["rows"]


@several
def test_each_process_sweeps_its_share(n: int, ranks: Any) -> None:
    for index, own in enumerate(ranks[n]):
        share = list(range(index, N_PROBES, n))
        assert own["complete"]["swept"] == 3 * len(RADII) * 2 * share  # splits, radii, rows


def assert_near(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same rows, but for rounding."""
    assert [[*row] for row in found] == [[*row] for row in expected]
    for row, other in zip(found, expected, strict=True):
        assert row == {key: pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True) for key, value in other.items()}


@several
@pytest.mark.parametrize("name", SHARING)
def test_other_measures_have_the_rows_of_one_process_too(name: str, n: int, ranks: Any, alone: Any) -> None:
    expected = alone["shared"]["rows"][name]
    assert [row["step"] for row in expected] == [0, 4]
    for own in ranks[n]:
        assert own["shared"]["rows"][name] == ranks[n][0]["shared"]["rows"][name]
        assert_near(own["shared"]["rows"][name], expected)


@several
def test_each_process_attacks_its_share(n: int, ranks: Any, alone: Any) -> None:
    whole = alone["shared"]["attacked"]
    shares = [own["shared"]["attacked"] for own in ranks[n]]
    assert sum(shares) == whole >= 4
    assert max(shares) <= -(-N_PROBES // n)


@several
@pytest.mark.parametrize("name", ALONE)
def test_other_measures_of_fewer_points_than_processes(name: str, n: int, ranks: Any, alone: Any) -> None:
    for own in ranks[n]:
        assert_near(own["few_for_all"][name], alone["few_for_all"][name])
    assert len(alone["few_for_all"][name]) == 1


@several
@pytest.mark.parametrize("name", ALONE)
def test_a_failure_in_a_share_costs_the_row_on_all(name: str, n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert own["failing_shares"][name]["steps"] == [0, 2]
    (text,) = ranks[n][0]["failing_shares"][name]["warned"]
    assert f"rank {n - 1}: OSError: within" in text


@several
def test_the_first_process_decides_which_rows_are_left_out(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert own["left_out"] == 2 * [[0, 1, 3, 5, 10, 12]]


@several
def test_the_training_is_untouched(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert own["complete"]["weights"] == own["without"]["weights"]
        assert own["complete"]["states"] == own["without"]["states"]


@several
def test_one_file_is_written(n: int, ranks: Any, folders: Any) -> None:
    (file,) = (folders[n] / "complete").rglob("history*.csv")
    assert [line.split(",")[0] for line in file.read_text().splitlines()] == ["step", "0", "4"]


@several
def test_a_resumed_run_has_the_rows_of_one_process(n: int, ranks: Any, alone: Any) -> None:
    assert [row["step"] for row in alone["resumed"] if row["lc_density/train"] > 0] == [0, 4]
    for own in ranks[n]:
        assert own["resumed"] == alone["resumed"]


@several
def test_a_failure_on_one_costs_the_row_on_all(n: int, ranks: Any, tmp_path: Path) -> None:
    callback = lc(every_n_train_steps=1, schedule=None)
    fit(tmp_path, {}, callback)
    expected = [row for row in rows(callback) if row["step"] not in (1, 2, 3)]
    assert [row["step"] for row in expected] == [0, 4, 5, 6]
    for own in ranks[n]:
        assert own["failing"]["last"] == STEPS
        assert own["failing"]["rows"] == expected
    warned = ranks[n][0]["failing"]["warned"]
    said = [(1, n - 1, "OSError: before"), (2, n - 1, "OutOfMemoryError: within"), (3, 0, "OSError: after")]
    assert len(warned) == len(said)
    for text, (step, failed, why) in zip(warned, said, strict=True):
        assert f"the measurement at step {step} failed" in text
        assert f"rank {failed}: {why}" in text


@several
def test_the_first_decides_what_a_function_schedules(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert [row["step"] for row in own["schedules"]["rows"]] == [0, 2, 4, 6]
        assert own["schedules"]["last"] == STEPS
    (warned,) = ranks[n][0]["schedules"]["warned"]
    assert "asking its schedule failed" in warned
    assert "step 5" in warned


@several
def test_fewer_points_than_processes(n: int, ranks: Any, alone: Any) -> None:
    assert [row["lc/train"] > 0 for row in alone["few_points"]] == [True]
    for own in ranks[n]:
        assert own["few_points"] == alone["few_points"]


@several
def test_a_failure_of_one_at_the_start_stops_all(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        (first, drawing), (second, trial), everywhere = own["refused"]
        assert (first, drawing) == ("RankError", "rank 1: OSError: no such file")
        assert second == "MisconfigurationException"
        assert "a trial measurement before training failed with RankError: rank 1: OSError: no memory" in trial
        assert everywhere[0] == "ValueError"
        assert everywhere[1].startswith("LocalComplexityCallback: `layers` entry 'nowhere' matches no module.")


@several
def test_all_measure_the_points_of_the_first(n: int, ranks: Any, alone: Any) -> None:
    assert [row["step"] for row in alone["own_data"]] == [0]
    assert alone["own_data"][0]["lc/train"] > 1
    for own in ranks[n]:
        assert own["own_data"] == alone["own_data"]


@several
def test_all_measure_the_statistics_of_the_first(n: int, ranks: Any) -> None:
    done = [own["batch_norm"] for own in ranks[n]]
    assert len({str(own["statistics"]) for own in done}) == n  # and have their own after it
    assert len({own["alone"] for own in done}) > 1  # or nothing would be shown
    for own in done:
        assert own["row"] == [done[0]["alone"]]


@several
def test_a_validation_is_shared_too(n: int, ranks: Any, alone: Any) -> None:
    assert alone["validated"]["rows"][0].keys() == {"lc/test"}
    for index, own in enumerate(ranks[n]):
        assert own["validated"]["rows"] == alone["validated"]["rows"]
        assert own["validated"]["swept"] == list(range(index, N_PROBES, n))


@several
def test_the_first_decides_where_epochs_end(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert own["epochs"] == 2 * [[0, 4, 8]]


@several
def test_a_failure_of_one_in_the_set_up_stops_all(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert [method for method, _ in own["fails_alone"]] == 2 * [*SET_UP]
        for method, text in own["fails_alone"]:
            assert f"rank 1: OSError: no {method}" in text or f"rank 1: MisconfigurationException: {text}" in text


# Where the forward is collective


@pytest.mark.slow
@pytest.mark.parametrize(("n", "how"), [*((2, how) for how in FORWARDS), (4, "all_gather")])
def test_a_forward_that_communicates_runs_equally_often_on_all(n: int, how: str, ranks: Any) -> None:
    first, *others = [own["collective"][how] for own in ranks[n]]
    assert [[row["step"] for row in table] for table in first["rows"]] == 3 * [[0, 2]]
    assert first["swept"] == 3 * 2 * 3  # splits, rows, and all points on each
    for other in others:
        assert other == first


@pytest.mark.slow
def test_sharded_weights_give_the_rows_of_one_process(ranks: Any, alone: Any) -> None:
    for own in ranks[2]:
        assert own["sharded"]["rows"] == alone["complete"]["rows"]
        assert own["sharded"]["swept"] == alone["complete"]["swept"]  # all points on each rank


@pytest.mark.slow
def test_sharded_weights_are_trained_as_without(ranks: Any) -> None:
    for own in ranks[2]:
        assert own["sharded"]["weights"] == own["sharded"]["plain"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["InHalfPrecision", "InTensors"])
def test_whole_weights_are_measured_however_they_are_parted(kind: str, ranks: Any, tmp_path: Path) -> None:
    expected = first_row(tmp_path, {}, Classifier)
    assert expected[0][0]["lc/train_r0.5"] > 1
    assert "weight_norm/net.2" in expected[1][0]
    for own in ranks[2]:
        for got, wanted in zip(own[kind], expected, strict=True):
            assert got == wanted


def taken_away(module: nn.Module) -> None:
    for number, parameter in enumerate(module.parameters()):  # as DeepSpeed does in stage 3
        parameter.ds_id = number


def flattened(module: nn.Module) -> None:
    module.net[0].weight._is_flat_param = True


def wrapped(module: nn.Module) -> None:
    kind = type("FullyShardedDataParallel", (nn.Sequential,), {})
    module.net = kind(*module.net)


WORDS = r"a part of the weights.*strategy='ddp'.*ModelParallelStrategy.*stage 2.*python -m lc_callback measure"


@several
def test_a_strategy_that_parts_the_weights_is_refused_on_all(n: int, ranks: Any) -> None:
    for own in ranks[n]:
        assert len(own["parted"]) == 4
        for text in own["parted"]:
            assert re.match(rf"\w+Callback: the strategy Parted .*{WORDS}", text)


@pytest.mark.parametrize("callback", [LocalComplexityCallback, PGDRobustnessCallback, FeatureRankCallback])
@pytest.mark.parametrize("part", [taken_away, flattened, wrapped])
def test_parted_weights_are_refused_before_the_first_step(part: Any, callback: Any, tmp_path: Path) -> None:
    module = Classifier()
    part(module)
    trainer = make_trainer(tmp_path, callback(), max_steps=1)
    with pytest.raises(MisconfigurationException, match=rf"^{callback.__name__}: .*{WORDS}"):
        trainer.fit(module, loader())
    assert trainer.global_step == 0


class Trainer:
    """What is asked of one."""

    def __init__(self, strategy: Any, world_size: int = 3) -> None:
        self.strategy, self.world_size, self.global_rank = strategy, world_size, 1


class Named(DDPStrategy):
    strategy_name = "ddp_of_mine"


@pytest.mark.parametrize("kind", [DDPStrategy, Named])
def test_ranks_with_whole_models_share(kind: Any) -> None:
    processes = RankGroup.that_share(Trainer(kind()))
    assert (processes.rank, processes.n) == (1, 3)


def test_ranks_share_under_the_other_name_of_lightning() -> None:
    from pytorch_lightning.strategies import DDPStrategy as OldStrategy

    assert RankGroup.that_share(Trainer(OldStrategy())).n == 3


@pytest.mark.parametrize("kind", [FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy, XLAStrategy])
def test_ranks_with_parts_of_a_model_do_not_share(kind: Any) -> None:
    assert RankGroup.that_share(Trainer(kind.__new__(kind))).n == 1  # without what these import


def test_ranks_whose_weights_differ_do_not_share() -> None:
    assert RankGroup.that_share(Trainer(DDPStrategy(model_averaging_period=4))).n == 1


def test_one_process_shares_with_nobody() -> None:
    assert RankGroup.that_share(Trainer(DDPStrategy(), world_size=1)).n == 1
