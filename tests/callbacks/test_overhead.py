"""What measuring costs is said early and kept low, by a clock that stands still unless a test moves it."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import pytest
from helpers import Classifier, loader, make_trainer, points

from lc_callback import (
    FeatureRankCallback,
    LocalComplexityCallback,
    PGDRobustnessCallback,
    SplinePartitionCallback,
)
from lc_callback.callbacks import ProbeCallback
from lc_callback.callbacks import clock as clock_of_callbacks
from lc_callback.callbacks.overhead import Forecast, forecast_text, is_kept, third_of_decade
from lc_callback.run.schedule import Schedule, is_log_step

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning"),  # without a logger, and much of the training
    pytest.mark.usefixtures("no_timeline"),
]

# The decision


@pytest.mark.parametrize(
    ("step", "third"),
    [(0, -1), (1, 0), (2, 0), (3, 1), (4, 1), (5, 2), (9, 2), (10, 3), (21, 3), (22, 4), (46, 4), (47, 5), (99, 5)]
    + [(10**k, 3 * k) for k in range(10)]
    + [(10**k - 1, 3 * k - 1) for k in range(1, 10)],
)
def test_thirds_of_a_decade(step: int, third: int) -> None:
    assert third_of_decade(step) == third


@pytest.mark.parametrize(
    ("step", "last_kept", "measured", "trained", "limit", "kept"),
    [
        (0, None, 0.0, 0.0, 0.1, True),  # the first
        (500, None, 1e9, 1.0, 0.1, True),  # the first of a run that goes on
        (1, 0, 5.0, 0.0, 0.1, True),
        (2, 1, 5.0, 1.0, 0.1, False),
        (3, 1, 5.0, 1.0, 0.1, True),
        (40, 32, 1.0, 10.0, 0.1, True),  # just as much as it may
        (40, 32, 1.001, 10.0, 0.1, False),
        (40, 32, 1.001, 10.0, 0.2, True),
        (40, 32, 30.0, 10.0, 3.5, True),
        (50, 40, 99.0, 10.0, 0.1, True),  # a new third
        (100, 50, 99.0, 10.0, 0.1, True),
        (101, 100, 0.0, 0.0, 0.1, True),
    ],
)
def test_the_decision(
    step: int, last_kept: int | None, measured: float, trained: float, limit: float, kept: bool
) -> None:
    assert is_kept(step, last_kept, measured, trained, limit) is kept


@pytest.mark.parametrize("due", [is_log_step, lambda step: step % 7 == 0, lambda step: step % 1 == 0])
def test_three_rows_a_decade_remain_whatever_they_cost(due: Any) -> None:
    kept: list[int] = []
    for step in range(100_000):
        if due(step) and is_kept(step, kept[-1] if kept else None, 1e9, 1.0, 0.1):
            kept.append(step)
    assert kept[0] == 0
    for decade in (1, 2, 3, 4):
        inside = [step for step in kept if 10**decade <= step < 10 ** (decade + 1)]
        assert [third_of_decade(step) for step in inside] == [3 * decade, 3 * decade + 1, 3 * decade + 2]


# Rows that are to come


@pytest.mark.parametrize("last", [0, 1, 2, 9, 10, 11, 99, 100, 101, 999, 1000, 1001, 1259])
@pytest.mark.parametrize(
    ("schedule", "twin"),
    [
        (Schedule(), is_log_step),
        (Schedule(points_per_decade=3), lambda step: is_log_step(step, 3)),
        (Schedule(every_n_train_steps=7), lambda step: step % 7 == 0),
        (Schedule([0, 5, 17, 400, 5000]), lambda step: step in (0, 5, 17, 400, 5000)),
        (Schedule(every_n_epochs=2), lambda step: step % 10 == 0),
    ],
    ids=["log", "log 3", "every n", "list", "epochs"],
)
def test_rows_between_are_those_that_are_due(schedule: Schedule, twin: Any, last: int) -> None:
    for after in (0, 1, 4, 10, 98, 100, 1000):
        expected = sum(twin(step) or (schedule.closes and step == last) for step in range(after + 1, last + 1))
        assert schedule.rows_between(after, last, steps_an_epoch=5) == expected


def test_nobody_knows_what_a_function_will_say() -> None:
    def never(step: int) -> bool:
        raise AssertionError("asked")

    assert Schedule(never).rows_between(3, 100, 10) is None


# What is said


def test_a_line_names_the_callbacks_and_what_halves_them() -> None:
    text = forecast_text([Forecast("A", 10.0, "halved by x"), Forecast("B", 30.0, "halved by y")], 60.0)
    assert text is not None
    assert "about 40% of this run, 40 s beside 60 s of training" in text
    assert "B 30%, halved by y; A 10%, halved by x" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("seconds", "training", "said"),
    [(20.0, 80.0, False), (20.1, 80.0, True), (4.9, 0.1, False), (5.1, 0.1, True), (0.0, 0.0, False)],
)
def test_little_is_not_said(seconds: float, training: float, said: bool) -> None:
    assert (forecast_text([Forecast("A", seconds, "")], training) is not None) is said


# A run


class Clock:
    """Seconds that pass only where a test lets them."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: Any) -> Clock:
    found = Clock()
    monkeypatch.setattr(clock_of_callbacks, "time", found)
    return found


class Costly(ProbeCallback):
    """Takes its time."""

    group = "costly"

    def __init__(self, clock: Clock, cost: float, **arguments: Any) -> None:
        super().__init__(**{"random_probes": False, "n_probes": 8, **arguments})
        self.clock, self.cost, self.calls = clock, cost, 0

    def measure(self, network: Any, probes: Any) -> dict[str, float]:
        self.calls += 1
        self.clock.now += self.cost
        return {"costly/value": 1.0}


class Training(pl.Callback):
    """Lets time pass: a second for a batch, more for the first ones."""

    def __init__(self, clock: Clock, first: float = 1.0) -> None:
        self.clock, self.first = clock, first

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.clock.now += self.first if trainer.fit_loop.epoch_loop.total_batch_idx < 2 else 1.0


def fit(folder: Any, *callbacks: Any, **arguments: Any) -> None:
    data = loader(points(24)), loader(points(8, seed=1))  # three batches an epoch
    make_trainer(folder, *callbacks, **{"max_steps": 60, **arguments}).fit(Classifier(), *data)


def said(caplog: Any, part: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if part in record.getMessage()]


@pytest.fixture(autouse=True)
def heard(caplog: Any, monkeypatch: Any) -> None:
    for name in ("lightning.pytorch", "lightning"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    caplog.set_level(logging.INFO)


THIRDS = [0, 1, 3, 5, 10, 22, 47]


@pytest.mark.parametrize(
    ("schedule", "cost", "expected"),
    [
        ({"every_n_train_steps": 1}, 1000.0, [*THIRDS, 60]),
        ({"every_n_train_steps": 1}, 0.0, [*range(61)]),
        ({"every_n_train_steps": 7}, 1000.0, [0, 7, 14, 28, 49, 56]),  # 56 is the last that is due
        ({}, 1000.0, [0, 1, 3, 5, 10, 25, 50, 60]),
        ({"schedule": [0, 11, 12, 13, 14]}, 1000.0, [0, 11, 14]),
        ({"schedule": [4, 30, 31, 99]}, 1000.0, [4, 30, 31]),  # the last that comes to pass
        ({"schedule": lambda step: step > 40}, 1000.0, [41, 47, 60]),
        ({"every_n_epochs": 1}, 1000.0, [0, 3, 6, 12, 24, 48, 60]),
    ],
    ids=["every", "every, cheap", "every 7", "log", "list", "list beyond the end", "function", "epochs"],
)
def test_rows_are_left_out(schedule: Any, cost: float, expected: list[int], clock: Clock, tmp_path: Any) -> None:
    callback = Costly(clock, cost, max_overhead=0.1, **schedule)
    fit(tmp_path, Training(clock), callback)
    assert callback.history.steps == expected


@pytest.mark.parametrize("length", [{"max_steps": 60}, {"max_steps": -1, "max_epochs": 20}])
def test_the_share_is_kept(length: Any, clock: Clock, tmp_path: Any) -> None:
    """A row of 2 s, steps of 1 s: half of the time is a row in 4 steps, once there are that many."""
    callback = Costly(clock, 2.0, max_overhead=0.5, every_n_train_steps=1)
    fit(tmp_path, Training(clock), callback, **length)
    late = [step for step in callback.history.steps if 30 < step < 60]
    assert 6 <= len(late) <= 8
    assert callback.history.steps[-1] == 60
    assert len(callback.history) * 2.0 <= 0.5 * 60 + 2 * 2.0


def test_a_run_that_is_stopped_has_its_last_row(clock: Clock, tmp_path: Any) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 17

    callback = Costly(clock, 1000.0, max_overhead=0.1, every_n_train_steps=1)
    fit(tmp_path, Training(clock), callback, Stops(), max_steps=-1, max_epochs=-1)
    assert callback.history.steps[-1] >= 17
    assert callback.history.steps[:-1] == THIRDS[:5]


def test_without_the_argument_nothing_is_left_out(clock: Clock, tmp_path: Any) -> None:
    callback = Costly(clock, 1000.0, every_n_train_steps=1)
    fit(tmp_path, Training(clock), callback, max_steps=5)
    assert callback.history.steps == [0, 1, 2, 3, 4, 5]


def test_time_of_another_callback_is_no_training(clock: Clock, tmp_path: Any) -> None:
    """Nor is it of this one's share."""
    cheap = Costly(clock, 0.01, max_overhead=0.1, every_n_train_steps=1, log_key_prefix="a/")
    costly = Costly(clock, 1000.0, every_n_train_steps=1, log_key_prefix="b/")
    fit(tmp_path, Training(clock), cheap, costly, max_steps=30)
    assert len(cheap.history) == len(costly.history) == 31
    cheap, costly = (Costly(clock, c, max_overhead=0.1, log_key_prefix=str(c)) for c in (1.0, 1000.0))
    fit(tmp_path, Training(clock), costly, cheap)
    assert costly.history.steps == [0, 1, 3, 5, 10, 25, 50, 60]
    assert len(cheap.history) <= 14


def test_a_row_that_is_left_out_is_said_once(clock: Clock, tmp_path: Any, caplog: Any) -> None:
    callback = Costly(clock, 3.0, max_overhead=0.1, every_n_train_steps=1)
    for _ in range(2):
        caplog.clear()
        fit(tmp_path, Training(clock), callback)
        (text,) = said(caplog, "leaves out rows from")
        assert (
            "Costly leaves out rows from step 2 on: it has taken 6 s, and the training 2 s (max_overhead=0.1)" in text
        )
        callback.history.restore([], {})


def test_the_first_process_decides_for_all(clock: Clock) -> None:
    callback = Costly(clock, 1000.0, max_overhead=0.1)
    due = callback.peer.due
    due.cost = SimpleNamespace(trained=lambda now: 1.0)  # type: ignore[assignment]
    callback.history.append(0, {"costly/value": 1.0}, {})
    asked: list[Any] = []

    def broadcast(value: bool, src: int) -> bool:
        asked.append((value, src))
        return len(asked) > 1

    loops = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=0))
    trainer = SimpleNamespace(world_size=2, strategy=SimpleNamespace(broadcast=broadcast), fit_loop=loops, callbacks=[])
    trainer.max_steps, trainer.max_epochs, trainer.num_training_batches = 99, -1, 3

    def leaves_out(step: int) -> bool:
        trainer.global_step = step
        return due.leaves_out(trainer, callback.schedule, callback.peer.rows, callback.history)

    assert leaves_out(1) is True  # which this process would have kept
    assert leaves_out(1) is True  # a second look at the same step asks nobody
    assert leaves_out(2) is False
    assert asked == [(True, 0), (True, 0)]


@pytest.mark.parametrize("value", [0, -0.1, math.nan, math.inf, "10 %", True, [0.1]])
@pytest.mark.parametrize(
    "kind", [LocalComplexityCallback, PGDRobustnessCallback, FeatureRankCallback, SplinePartitionCallback]
)
def test_what_is_no_share_is_refused(kind: Any, value: Any) -> None:
    with pytest.raises(ValueError, match=r"`max_overhead` must be None or a positive number, .* but got"):
        kind(max_overhead=value)
    assert "max_overhead=0.1" in repr(kind(max_overhead=0.1))
    assert "max_overhead" not in repr(kind())


# The forecast


@pytest.mark.parametrize(
    ("arguments", "length", "expected"),
    [
        ({"every_n_train_steps": 1}, {"max_steps": 100}, "101 s beside 100 s"),
        ({"every_n_train_steps": 2}, {"max_steps": 100}, "51 s beside 100 s"),
        ({"every_n_train_steps": 2}, {"max_steps": -1, "max_epochs": 30}, "46 s beside 90 s"),
        ({"every_n_epochs": 1}, {"max_steps": -1, "max_epochs": 30}, "31 s beside 90 s"),
        ({"every_n_train_steps": 1}, {"max_steps": 50, "accumulate_grad_batches": 3}, "51 s beside 50 s"),
        ({"schedule": [0, *range(1, 90, 2)]}, {"max_steps": 100}, "46 s beside 100 s"),
        ({}, {"max_steps": 50}, "16 s beside 50 s"),
        ({}, {"max_steps": 100_000}, None),  # 52 rows
        ({"every_n_train_steps": 1, "max_overhead": 0.5}, {"max_steps": 100}, "50 s beside 100 s"),
        ({"every_n_train_steps": 1, "max_overhead": 0.1}, {"max_steps": 1000}, None),
        ({"schedule": lambda step: step % 2 == 0}, {"max_steps": 100}, None),
        ({"every_n_train_steps": 1}, {"max_steps": -1, "max_epochs": -1, "stop": True}, None),
        ({"every_n_train_steps": 1}, {"max_steps": 19}, None),  # over before it is known
    ],
)
def test_what_is_foreseen(
    arguments: Any, length: dict[str, Any], expected: str | None, clock: Clock, tmp_path: Any, caplog: Any
) -> None:
    class Stops(pl.Callback):
        def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 30

    callback = Costly(clock, 1.0, **arguments)
    fit(tmp_path, Training(clock), callback, Stops(), **{k: v for k, v in length.items() if k != "stop"})
    texts = said(caplog, "of this run")
    assert len(texts) == (expected is not None)
    if expected is not None and length.get("accumulate_grad_batches") is None:
        assert expected in texts[0]


def test_one_line_for_all_callbacks(clock: Clock, tmp_path: Any, caplog: Any) -> None:
    every = [
        Costly(clock, cost, every_n_train_steps=1, log_key_prefix=prefix)
        for cost, prefix in ((1.0, "a/"), (0.01, "b/"), (2.0, "c/"))
    ]
    fit(tmp_path, Training(clock, first=50.0), *every, max_steps=100)
    (text,) = said(caplog, "of this run")
    assert "'c/') 4" in text  # 202 of 101 + 1 + 202 + 198 s
    assert text.index("'c/'") < text.index("'a/'")
    assert "'b/'" not in text  # hardly anything
    assert text.count("halved by `n_probes=4`") == 2


def test_slow_first_steps_are_no_measure_of_the_others(clock: Clock, tmp_path: Any, caplog: Any) -> None:
    fit(tmp_path, Training(clock, first=100.0), Costly(clock, 1.0, every_n_train_steps=1), max_steps=200)
    (text,) = said(caplog, "of this run")
    assert "201 s beside 398 s" not in text
    assert "3 min beside 7 min" in text  # 201 s, 2 x 100 + 198 s


def test_a_limit_of_time_is_an_end(clock: Clock, tmp_path: Any, caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("lightning.pytorch.callbacks.Timer.time_remaining", lambda self, stage="train": 80.0)
    monkeypatch.setattr("lightning.pytorch.callbacks.Timer._check_time_remaining", lambda self, trainer: None)
    callback = Costly(clock, 1.0, every_n_train_steps=1)
    fit(
        tmp_path, Training(clock), callback, max_steps=1000, max_time="01:00:00:00", limit_train_batches=3, max_epochs=9
    )
    (text,) = said(caplog, "of this run")
    assert "28 s beside 27 s" in text  # nine epochs come first
    caplog.clear()
    fit(tmp_path, Training(clock), Costly(clock, 1.0, every_n_train_steps=1), max_steps=110, max_time="01:00:00:00")
    (text,) = said(caplog, "of this run")
    assert "101 s beside 100 s" in text


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({}, "halved by `n_probes=4`"),
        ({"n_probes": 1}, "halved by `every_n_train_steps=2`"),
        ({"train_probes": points(6)[:][0]}, "halved by half as many `train_probes`"),
        ({"train_probes": points(6)}, "halved by `n_probes=4`"),
    ],
)
def test_what_halves_it(arguments: Any, hint: str, clock: Clock, tmp_path: Any, caplog: Any) -> None:
    fit(tmp_path, Training(clock), Costly(clock, 1.0, every_n_train_steps=1, **arguments), max_steps=100)
    (text,) = said(caplog, "of this run")
    assert hint in text


@pytest.mark.parametrize(
    ("schedule", "hint"),
    [
        ({"every_n_train_steps": 3}, "halved by `every_n_train_steps=6`"),
        ({"every_n_epochs": 1}, "halved by `every_n_epochs=2`"),
        ({"schedule": [*range(0, 60, 2)]}, "halved by a `schedule` of half as many steps"),
    ],
)
def test_what_halves_it_where_probes_do_not(schedule: Any, hint: str, clock: Clock, tmp_path: Any, caplog: Any) -> None:
    class Fixed(Costly):
        cost_grows_with_probes = False

    fit(tmp_path, Training(clock), Fixed(clock, 2.0, **schedule))
    (text,) = said(caplog, "of this run")
    assert hint in text
