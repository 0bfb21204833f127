import builtins
import csv
import math

import numpy as np
import pytest
import torch

from lc_callback.run.history import CsvFile, History


def history_of(*rows):
    history = History()
    for step, values in rows:
        history.append(step, values)
    return history


def read(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


ROWS = [(0, {"lc/train": 12.0, "lc/test": 3.5}), (10, {"lc/train": 8.5, "lc/test": math.nan}), (20, {"lc/train": 7.0})]


def test_rows_are_kept_in_order():
    history = history_of(*ROWS)
    assert history.steps == [0, 10, 20]
    assert history.keys == ["lc/train", "lc/test"]
    assert history["lc/train"] == [12.0, 8.5, 7.0]
    assert history["lc/test"][0] == 3.5
    assert [math.isnan(value) for value in history["lc/test"]] == [False, True, True]
    assert len(history) == 3
    assert 10 in history
    assert 11 not in history
    assert [row["step"] for row in history] == [0, 10, 20]


def test_an_unknown_key_is_named():
    with pytest.raises(KeyError, match="'lc/random' is not among"):
        history_of(*ROWS)["lc/random"]


@pytest.mark.parametrize("step", [10, 9, 0])
def test_steps_must_increase(step):
    history = history_of(*ROWS[:2])
    with pytest.raises(ValueError, match=f"row {step} after row 10"):
        history.append(step, {"lc/train": 1.0})
    assert history.steps == [0, 10]


def test_the_state_is_plain_and_comes_back():
    history = history_of((np.int64(0), {"lc/train": np.float32(1.5), "lc/test": torch.tensor(2.5)}), ROWS[1])
    state = history.state()
    assert {type(value) for row in state for value in row.values()} == {int, float}
    restored = History()
    restored.restore(state)
    assert repr(restored.rows) == repr(history.rows)
    state[0]["lc/train"] = 99.0
    assert history["lc/train"][0] == restored["lc/train"][0] == 1.5  # copies


@pytest.mark.parametrize(
    "state", [None, "rows", {"lc/train": 1.0}, [{"lc/train": 1.0}], [3], [{"step": 5}, {"step": 5}]]
)
def test_a_broken_state_changes_nothing(state):
    history = history_of(*ROWS)
    with pytest.raises(ValueError, match="row"):
        history.restore(state)
    assert history.steps == [0, 10, 20]


def test_rows_that_will_be_taken_again_are_dropped():
    history = history_of(*ROWS)
    history.drop_after(10)
    assert history.steps == [0, 10]
    history.append(11, {"lc/train": 1.0})
    history.drop_after(-1)
    assert history.steps == []


# Arrays


def spectra(*steps):
    history = History()
    for step in steps:
        history.append(step, {"rank": 2.0}, {"spectrum": torch.full((3,), step + 0.5, dtype=torch.float64)})
    return history


def test_arrays_are_kept_by_step_and_key_in_single_precision():
    history = spectra(0, 4)
    history.append(9, {"rank": 1.0})
    assert history.steps == [0, 4, 9]
    assert [*history.arrays] == [0, 4]  # only where there are such
    assert history.arrays[4]["spectrum"].tolist() == [4.5, 4.5, 4.5]
    assert history.arrays[4]["spectrum"].dtype == torch.float32
    assert history.keys == ["rank"]


def test_arrays_are_detached_from_the_graph():
    history = History()
    history.append(0, {}, {"weights": torch.ones(2, requires_grad=True) * 2})
    assert not history.arrays[0]["weights"].requires_grad


def test_arrays_go_with_their_rows():
    history = spectra(0, 4, 8)
    history.drop_after(7)
    assert history.steps == [*history.arrays] == [0, 4]


def test_arrays_come_back_from_a_checkpoint(tmp_path):
    history = spectra(0, 4)
    torch.save({"rows": history.state(), "arrays": history.state_of_arrays()}, tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    restored = History()
    restored.restore(state["rows"], state["arrays"])
    assert restored.rows == history.rows
    assert {step: arrays["spectrum"].tolist() for step, arrays in restored.arrays.items()} == {
        0: [0.5, 0.5, 0.5],
        4: [4.5, 4.5, 4.5],
    }
    history.state_of_arrays()[0]["spectrum"] = None
    assert history.arrays[0]["spectrum"] is not None  # a copy


def test_rows_that_cannot_be_read_keep_the_arrays_too():
    history = spectra(0, 4)
    with pytest.raises(ValueError, match="not a row"):
        history.restore([3], {7: {}})
    assert [*history.arrays] == [0, 4]


# CSV


def written(folder, rows):
    history = History()
    file = CsvFile(folder, history)
    for step, values in rows:
        history.append(step, values)
        file.append(history)
    return file, history


def test_every_row_is_on_disk_when_append_returns(tmp_path):
    history = History()
    file = CsvFile(tmp_path / "deep" / "lc", history)
    assert not file.path.exists()  # nothing to show yet
    for n, (step, values) in enumerate(ROWS):
        history.append(step, values)
        file.append(history)
        assert len(read(file.path)) == n + 1
    assert file.path == tmp_path / "deep" / "lc" / "history.csv"
    assert file.path.read_text(encoding="utf-8") == "step,lc/train,lc/test\n0,12.0,3.5\n10,8.5,nan\n20,7.0,\n"


def test_numbers_survive_exactly(tmp_path):
    value = 0.1 + 0.2
    file, _ = written(tmp_path, [(0, {"lc/train": value}), (1, {"lc/train": 1e-300})])
    assert [float(row["lc/train"]) for row in read(file.path)] == [value, 1e-300]


def test_a_new_column_reaches_back(tmp_path):
    file, _ = written(tmp_path, [*ROWS, (30, {"lc/train": 6.0, "a, b": 1.0})])
    rows = read(file.path)
    assert list(rows[0]) == ["step", "lc/train", "lc/test", "a, b"]
    assert [row["a, b"] for row in rows] == ["", "", "", "1.0"]
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_vanished_is_written_whole(tmp_path):
    file, history = written(tmp_path, ROWS[:2])
    file.path.unlink()
    history.append(*ROWS[2])
    file.append(history)
    assert [row["step"] for row in read(file.path)] == ["0", "10", "20"]


def test_another_run_is_never_overwritten(tmp_path):
    first, _ = written(tmp_path, ROWS)
    before = first.path.read_bytes()
    second, _ = written(tmp_path, ROWS)  # the same rows do not make it the same run
    third, _ = written(tmp_path, [(0, {"lc/train": 1.0})])
    assert [file.path.name for file in (first, second, third)] == ["history.csv", "history_1.csv", "history_2.csv"]
    assert first.path.read_bytes() == second.path.read_bytes() == before


def test_another_run_that_is_resumed_is_never_overwritten(tmp_path):
    first, _ = written(tmp_path, ROWS)
    before = first.path.read_bytes()
    other = history_of((0, {"lc/train": 99.0, "lc/test": 1.0}))
    resumed = CsvFile(tmp_path, other)
    assert resumed.path.name == "history_1.csv"
    assert [row["lc/train"] for row in read(resumed.path)] == ["99.0"]
    assert first.path.read_bytes() == before


def test_a_resumed_run_goes_on_in_its_own_file(tmp_path):
    written(tmp_path, [(0, {"lc/train": 99.0})])
    own, history = written(tmp_path, [*ROWS, (30, {"lc/train": 5.0, "lc/test": 1.0})])
    assert own.path.name == "history_1.csv"
    history.drop_after(10)  # the checkpoint was older than the file
    resumed = CsvFile(tmp_path, history)
    assert resumed.path == own.path
    assert [row["step"] for row in read(own.path)] == ["0", "10"]
    history.append(15, {"lc/train": 4.0, "lc/test": 1.0})
    resumed.append(history)
    assert [row["step"] for row in read(own.path)] == ["0", "10", "15"]


@pytest.mark.parametrize("torn", ["2", "20,7.", '20,"7', "20,7.0,", "20,7.0,\n3"])
def test_a_torn_last_line_is_healed_on_resume(tmp_path, torn):
    file, history = written(tmp_path, ROWS[:2])
    with file.path.open("a", encoding="utf-8") as text:
        text.write(torn)
    resumed = CsvFile(tmp_path, history)
    history.append(*ROWS[2])
    resumed.append(history)
    assert resumed.path == file.path
    assert file.path.read_text(encoding="utf-8") == "step,lc/train,lc/test\n0,12.0,3.5\n10,8.5,nan\n20,7.0,\n"


class Full:
    """A disk that is full after a few characters."""

    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.file.close()

    def write(self, text):
        self.file.write(text[:4])
        raise OSError("No space left on device")


def test_a_line_torn_by_a_full_disk_is_healed_by_the_next_row(tmp_path, monkeypatch):
    file, history = written(tmp_path, ROWS[:1])
    history.append(*ROWS[1])
    path = type(file.path)
    with monkeypatch.context() as patch:
        patch.setattr(path, "open", lambda self, *args, **kwargs: Full(builtins.open(self, *args, **kwargs)))  # noqa: SIM115
        with pytest.raises(OSError, match="No space left"):
            file.append(history)
    assert file.path.read_text(encoding="utf-8").endswith("\n10,8")
    history.append(*ROWS[2])
    file.append(history)
    assert [row["step"] for row in read(file.path)] == ["0", "10", "20"]


def test_a_new_column_that_could_not_be_written_is_not_forgotten(tmp_path, monkeypatch):
    file, history = written(tmp_path, [(0, {"lc/train": 1.0})])
    before = file.path.read_bytes()
    history.append(1, {"lc/train": 2.0, "lc/test": 3.0})
    with monkeypatch.context() as patch:
        patch.setattr(type(file.path), "replace", lambda *args: (_ for _ in ()).throw(OSError("read-only")))
        with pytest.raises(OSError, match="read-only"):
            file.append(history)
    assert file.path.read_bytes() == before
    history.append(2, {"lc/train": 3.0, "lc/test": 4.0})
    file.append(history)
    assert [row["lc/test"] for row in read(file.path)] == ["", "3.0", "4.0"]
