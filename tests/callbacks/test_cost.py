"""What a user hears of long measurements: lines while one runs, a warning at the end of a run."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import Classifier, loader, make_trainer, points

from lc_callback import LocalComplexityCallback
from lc_callback.callbacks import clock, loop


class Clock:
    """Seconds that pass by themselves: ``tick`` at each look."""

    def __init__(self, tick: float) -> None:
        self.now, self.tick = 0.0, tick

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now


def run(folder: Any, monkeypatch: Any, tick: float) -> tuple[list[str], LocalComplexityCallback]:
    """Train with that clock; returns the lines printed through the module, above the progress bar."""
    lines: list[str] = []

    class Printing(Classifier):
        def print(self, *args: Any, **kwargs: Any) -> None:
            lines.append(" ".join(map(str, args)))

    monkeypatch.setattr(clock, "time", Clock(tick))
    callback = LocalComplexityCallback(n_probes=8, n_directions=3, chunk_size=6, schedule=[0, 2])
    make_trainer(folder, callback, max_steps=4).fit(Printing(), loader(), loader(points(seed=1)))
    return lines, callback


def test_a_long_measurement_says_how_far_it_is(tmp_path: Any, monkeypatch: Any) -> None:
    with pytest.warns(UserWarning, match="of the training"):
        lines, callback = run(tmp_path, monkeypatch, tick=2.0)  # one point, one look: a line every third point
    assert [line for line in lines if "lc/train" in line][-2:] == [
        "LocalComplexityCallback: lc/train, 38% after 6 s",
        "LocalComplexityCallback: lc/train, 75% after 12 s",
    ]
    assert callback.history.steps == [0, 2]


def test_a_short_one_says_nothing(tmp_path: Any, monkeypatch: Any, recwarn: Any) -> None:
    lines, _ = run(tmp_path, monkeypatch, tick=0.01)
    assert lines == []
    assert not [w for w in recwarn if "of the training" in str(w.message)]


def test_a_run_that_spent_much_on_it_is_told_what_to_change(tmp_path: Any, monkeypatch: Any) -> None:
    with pytest.warns(UserWarning, match="of the training") as caught:
        run(tmp_path, monkeypatch, tick=1.0)
    (text,) = [str(w.message) for w in caught if "of the training" in str(w.message)]
    assert "`n_probes` (now 8)" in text
    assert "`schedule` (now schedule=[0, 2])" in text


def test_a_run_that_spent_little_on_it_is_not(tmp_path: Any, monkeypatch: Any, recwarn: Any) -> None:
    monkeypatch.setattr(loop, "SHARE_TO_SAY", 1.0)
    run(tmp_path, monkeypatch, tick=1.0)
    assert not [w for w in recwarn if "of the training" in str(w.message)]
