"""What a run writes for the Dynamics tab: all its events so far, each time there is a new one."""

import json
from pathlib import Path

import pytest
from helpers import our_warnings
from lightning.pytorch.loggers import TensorBoardLogger
from made_up import all_three, fit, leave_out_pictures, made_up
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lc_callback.reporting import adapters
from lc_callback.tensorboard.names import EVENTS_TAG, PLUGIN_NAME


@pytest.fixture(autouse=True, scope="module")
def no_pictures():
    with pytest.MonkeyPatch.context() as monkeypatch:
        leave_out_pictures(monkeypatch)
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory, no_pictures):
    """A run from its beginning to its end."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder, *all_three(), logger=TensorBoardLogger(folder))


def read(trainer):
    """The steps of the summaries, and the events of each."""
    files = EventAccumulator(str(trainer.log_dir), size_guidance={"tensors": 0}).Reload()
    assert files.SummaryMetadata(EVENTS_TAG).plugin_data.plugin_name == PLUGIN_NAME
    written = files.Tensors(EVENTS_TAG)
    return [one.step for one in written], [json.loads(one.tensor_proto.string_val[0])["events"] for one in written]


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def test_each_summary_has_all_events_so_far(whole):
    steps, written = read(whole)
    expected = lines(Path(whole.log_dir))
    assert expected
    assert written[-1] == expected
    assert all(so_far == expected[: len(so_far)] for so_far in written)
    assert [so_far[-1]["at"] for so_far in written] == steps


def test_a_resumed_run_writes_the_events_before_its_checkpoint_too(tmp_path, whole):
    first = fit(tmp_path, *all_three(), logger=TensorBoardLogger(tmp_path, version="a"), max_steps=60)
    first.save_checkpoint(tmp_path / "at_60.ckpt")
    resumed = fit(
        tmp_path, *all_three(), logger=TensorBoardLogger(tmp_path, version="b"), resume=tmp_path / "at_60.ckpt"
    )
    ends = [{(e["kind"], e["curve"], e["step"]) for e in read(trainer)[1][-1]} for trainer in (resumed, whole)]
    assert ends[0] == ends[1]


def test_a_summary_that_cannot_be_written_costs_a_warning_and_no_run(tmp_path, monkeypatch):
    def broken(events):
        raise OSError("no room")

    monkeypatch.setattr(adapters, "events_summary", broken)
    with our_warnings("Made") as said:
        trainer = fit(tmp_path, made_up(), logger=TensorBoardLogger(tmp_path))
    assert trainer.global_step == 100
    assert any("no room" in text for text in said)


def test_a_writer_that_is_not_torchs_is_left_alone():
    class Writer:
        file_writer = None

        def add_text(self, *args):
            """As tensorboardX has it."""

    class Logger:
        experiment = Writer()

    adapters.adapter_of(Logger()).events([], 3)
    assert not hasattr(Logger.experiment, "written")
