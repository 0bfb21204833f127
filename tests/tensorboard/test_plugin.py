"""The server side of the Dynamics tab: what it answers, and what it makes of damage and malice."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from urllib.parse import urlencode

import numpy as np
import pytest
from logs import STEPS, Log, curves, event, transitions, write_csv, write_run
from serving import PLUGIN, client
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary

from lc_callback.tensorboard import folders, reader
from lc_callback.tensorboard.folders import LocalFolders
from lc_callback.tensorboard.names import EVENTS_TAG
from lc_callback.tensorboard.plugin import DynamicsPlugin
from lc_callback.tensorboard.summary import events_summary


def ask(logs, path, /, status=200, **params):
    """The answer at a path of the plugin, as JSON, of a log directory or a client."""
    asked = logs if hasattr(logs, "get") else client(logs)
    answer = asked.get(f"{PLUGIN}/{path}?{urlencode(params, doseq=True)}")
    assert answer.status_code == status, answer.get_data(as_text=True)
    return json.loads(answer.get_data()) if answer.mimetype == "application/json" else answer


def series(logs, runs, tags, **params):
    """Steps and values of each run and tag, and the whole answer."""
    told = ask(logs, "series", run=runs, tag=tags, **params)
    return {(one["run"], one["tag"]): (told["grids"][one["grid"]]["steps"], one) for one in told["series"]}, told


# Loading


def test_the_module_of_the_entry_point_brings_in_neither_torch_nor_lightning_nor_the_rest():
    code = (
        "import sys, lc_callback.tensorboard.plugin, lc_callback.tensorboard.summary\n"
        "assert lc_callback.__version__\n"
        "heavy = {'torch', 'lightning', 'matplotlib'} & {name.split('.')[0] for name in sys.modules}\n"
        "ours = [n for n in sys.modules if n.startswith('lc_callback.') and 'tensorboard' not in n]\n"
        "print(heavy or '', ours or '')"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == ""


def test_tensorboard_finds_it_by_its_entry_point(tmp_path):
    found = [one for one in entry_points(group="tensorboard_plugins") if one.name == "lc_dynamics"]
    if found:  # where the library is installed, as in the suite
        assert found[0].load() is DynamicsPlugin
    write_run(tmp_path / "run")
    listing = client(tmp_path).get("/data/plugins_listing").json["lc_dynamics"]
    assert listing["enabled"]
    assert listing["tab_name"] == "Dynamics"
    assert listing["loading_mechanism"]["module_path"].endswith("/static/index.js")


def test_pyproject_declares_the_entry_point_and_the_static_files():
    text = (folders.Path(__file__).parents[2] / "pyproject.toml").read_text()
    module, _, name = "lc_callback.tensorboard.plugin:DynamicsPlugin".partition(":")
    assert f'lc_dynamics = "{module}:{name}"' in text
    assert '"lc_callback.tensorboard" = ["static/*"]' in text
    assert (DynamicsPlugin.__module__, DynamicsPlugin.__name__) == (module, name)


@pytest.mark.parametrize(("events", "shown"), [(True, True), (False, False)])
def test_its_own_summary_makes_the_tab_appear(tmp_path, events, shown):
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0, 1], [1.0, 0.5])
        if events:
            log.events(transitions(), 1)
    assert client(tmp_path).get("/data/plugins_listing").json["lc_dynamics"]["enabled"] is shown


def test_tags_make_the_tab_appear_for_runs_of_earlier_versions(tmp_path):
    write_run(tmp_path / "run", local=False, events=False)
    assert client(tmp_path).get("/data/plugins_listing").json["lc_dynamics"]["enabled"]


# Runs and series


def test_runs_have_their_tags_in_the_order_of_their_rows(tmp_path):
    write_run(tmp_path / "a_seed0" / "version_0")
    write_run(tmp_path / "remote", local=False)
    told = ask(tmp_path, "runs")
    tags = {run["name"]: [told["tags"][i] for i in told["sets"][run["set"]]] for run in told["runs"]}
    assert [run["local"] for run in told["runs"]] == [True, False]
    assert {*tags["remote"]} == {*tags["a_seed0/version_0"]} == {*curves(), "epoch", "loss"}
    layers = [tag for tag in tags["a_seed0/version_0"] if tag.startswith("lc_layer")]
    assert layers == [f"lc_layer/train/net.{i}" for i in (1, 3, 10)]


def test_the_last_step_is_that_of_the_rows_or_of_tensorboard(tmp_path):
    for name, of_rows, of_tensorboard in (("rows", 5000, 0), ("tensorboard", 10, 70)):
        write_csv(tmp_path / name / "lc" / "history.csv", {"lc/train": [1.0, 2.0]}, [0, of_rows])
        with Log(tmp_path / name) as log:
            log.scalars("loss", [of_tensorboard], [1.0])
    assert {run["name"]: run["last"] for run in ask(tmp_path, "runs")["runs"]} == {"rows": 5000, "tensorboard": 70}


def test_the_version_changes_with_a_row_and_not_without(tmp_path):
    folder = write_run(tmp_path / "run")
    asked = client(tmp_path)
    first, again = ask(asked, "runs")["version"], ask(asked, "runs")["version"]
    with (folder / "lc" / "history.csv").open("a") as file:
        file.write("20000" + ",1.0" * sum(key.startswith("lc") for key in curves()) + "\n")
    assert first == again != ask(asked, "runs")["version"]


def test_values_come_from_the_rows_and_others_from_tensorboard(tmp_path):
    folder = write_run(tmp_path / "run")
    write_csv(folder / "lc" / "history.csv", {"lc/train": [7.0, 8.0]}, [0, 3])
    found, _ = series(tmp_path, ["run"], ["lc/train", "lc/test", "loss"])
    assert found["run", "lc/train"][0] == [0, 3]
    assert found["run", "lc/train"][1]["values"] == [7, 8]
    assert found["run", "lc/test"][0] == STEPS
    assert len(found["run", "loss"][0]) == 200


def test_series_of_one_grid_share_it(tmp_path):
    write_run(tmp_path / "run")
    _, told = series(tmp_path, ["run"], ["lc/train", "lc/test", "clean_acc/test"])
    assert len(told["grids"]) == 1


def test_wall_times_are_those_of_the_same_steps(tmp_path):
    write_run(tmp_path / "run")
    _, told = series(tmp_path, ["run"], ["lc/train"], wall=1)
    (grid,) = told["grids"]
    assert np.allclose(np.diff(grid["wall"]), np.diff(grid["steps"]))


@pytest.mark.parametrize(("steps", "sampled"), [(range(1000), False), ([*range(999), 5000], True), (range(9), False)])
def test_what_tensorboard_thinned_out_is_called_sampled(tmp_path, steps, sampled):
    with Log(tmp_path / "run") as log:
        log.scalars("loss", steps, [0.0] * len(steps))
    found, _ = series(tmp_path, ["run"], ["loss"])
    assert found["run", "loss"][1]["sampled"] is sampled


def test_a_step_that_is_logged_twice_counts_once_with_its_last_value(tmp_path):
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0, 5, 9, 5, 9, 12], [1.0, 2.0, 3.0, 20.0, 30.0, 4.0])
    found, _ = series(tmp_path, ["run"], ["loss"])
    steps, one = found["run", "loss"]
    assert steps == [0, 5, 9, 12]
    assert one["values"] == [1, 20, 30, 4]


# Events


def test_events_are_those_of_the_file_or_of_the_last_summary(tmp_path):
    write_run(tmp_path / "here")
    write_run(tmp_path / "far", local=False)
    told = ask(tmp_path, "events", run=["here", "far", "none"])
    assert {*told} == {"here", "far"}
    assert told["here"]["events"] == told["far"]["events"]
    assert len(told["far"]["events"]) == len(transitions())
    assert told["here"]["unread"] == 0


DAMAGED = {
    "half a line": json.dumps(event())[:40],
    "no object": "[1, 2]",
    "nested": "[" * 100_000,
    "no kind": json.dumps({**event(), "kind": None}),
    "an unknown event": json.dumps({**event(), "what": "<script>"}),
    "a step that is text": json.dumps({**event(), "step": "5"}),
    "a negative step": json.dumps(event(step=-1)),
    "an infinite step": json.dumps(event(step=float("inf"))),
    "a huge step": json.dumps(event(step=10**400)),
    "a step that is true": json.dumps(event(step=True)),
    "bytes": "\udcff\udcfe",
}


@pytest.fixture(scope="module")
def damaged_events(tmp_path_factory):
    """A client of a log directory with a run for each kind of damage."""
    logs = tmp_path_factory.mktemp("damaged_events")
    for name, line in DAMAGED.items():
        write_csv(logs / name / "lc" / "history.csv", {"lc/train": [1.0]}, [0])
        text = json.dumps(event()) + "\n" + line + "\n" + json.dumps(event(step=9)) + "\n"
        (logs / name / "events.jsonl").write_bytes(text.encode(errors="surrogateescape"))
    return client(logs)


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_left_out_and_counted(damaged_events, name):
    told = ask(damaged_events, "events", run=name)[name]
    assert [one["step"] for one in told["events"]] == [501, 9]
    assert told["unread"] == 1


def test_a_damaged_summary_costs_that_run_its_events_only(tmp_path):
    good = write_run(tmp_path / "good", local=False)
    for name, text in {
        "half": b'{"events": [{"wh',
        "list": b"[1]",
        "other": b'{"events": 5}',
        "bytes": b"\xff",
    }.items():
        with Log(tmp_path / name) as log:
            summary = events_summary([])
            summary.value[0].tensor.string_val[0] = text
            log.raw(Event(step=1, wall_time=1.0, summary=summary))
    told = ask(tmp_path, "events", run=["good", "half", "list", "other", "bytes"])
    assert len(told["good"]["events"]) == len(transitions())
    assert all(told[name] == {"events": [], "unread": 1} for name in ("half", "list", "other", "bytes"))
    assert good.name in {run["name"] for run in ask(tmp_path, "runs")["runs"]}


def test_events_of_version_0_1_are_not_graded(tmp_path):
    folder = write_run(tmp_path / "run")
    old = {key: event()[key] for key in ("at", "what", "kind", "step", "detected_at", "value", "reason", "curve")}
    (folder / "events.jsonl").write_text(json.dumps(old) + "\n")
    (told,) = ask(tmp_path, "events", run="run")["run"]["events"]
    assert told["certainty"] == "not graded"
    assert told["earliest"] is None


def test_a_summary_has_at_most_400_events_and_the_last_ones():
    summary = events_summary([event(step=i) for i in range(1000)])
    steps = [one["step"] for one in json.loads(summary.value[0].tensor.string_val[0])["events"]]
    assert steps == [*range(600, 1000)]
    assert summary.value[0].tag == EVENTS_TAG


# Heat maps and pictures


@pytest.mark.parametrize("local", [True, False])
def test_a_heat_map_has_layers_in_natural_order_and_their_values(tmp_path, local):
    write_run(tmp_path / "run", local=local)
    told = ask(tmp_path, "heat", run="run", prefix="lc_layer/train/")
    assert told["layers"] == ["net.1", "net.3", "net.10"]
    assert told["steps"] == STEPS
    assert np.allclose(told["values"], [curves()[f"lc_layer/train/net.{i}"] for i in (1, 3, 10)], rtol=1e-5)


def test_ten_thousand_layers_share_rows(tmp_path):
    columns = {f"lc_layer/train/net.{i}": [i, float("nan")] for i in range(10_000)}
    write_csv(tmp_path / "run" / "lc" / "history.csv", columns, [0, 10])
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0], [1.0])
    asked = client(tmp_path)
    assert len(ask(asked, "runs")["tags"]) == 10_001
    told = ask(asked, "heat", run="run", prefix="lc_layer/train/")
    assert told["n"] == 10_000
    assert len(told["layers"]) == len(told["values"]) == 400
    assert told["layers"][1] == "net.25 and 24 more"
    assert told["values"][0] == [12, "nan"]


def test_seconds_and_the_total_are_no_layers(tmp_path):
    columns = {"rank/a": [1], "rank/b": [2], "rank/seconds": [3], "rank/total": [4]}
    write_csv(tmp_path / "run" / "rank" / "history.csv", columns, [0])
    with Log(tmp_path / "run") as log:
        log.scalars("loss", [0], [1.0])
    assert ask(tmp_path, "heat", run="run", prefix="rank/")["layers"] == ["a", "b"]


def test_pictures_are_those_of_the_folder(tmp_path):
    folder = write_run(tmp_path / "run", pictures=3)
    (folder / "partition" / "film.gif").write_bytes(b"GIF89a")
    (folder / "partition" / "film.png").write_bytes(b"no slice")
    asked = client(tmp_path)
    told = ask(asked, "pictures", run="run")
    assert [one["step"] for one in told["pictures"]] == STEPS[:3]
    assert told["films"] == ["partition/film.gif"]
    answer = ask(asked, "picture", run="run", file=told["pictures"][1]["file"])
    assert answer.mimetype == "image/png"
    assert answer.get_data() == (folder / "partition" / "slice_000000001.png").read_bytes()


def test_without_a_folder_pictures_are_those_that_tensorboard_kept(tmp_path):
    write_run(tmp_path / "run", local=False, pictures=3)
    asked = client(tmp_path)
    told = ask(asked, "pictures", run="run")["pictures"]
    assert [one["step"] for one in told] == STEPS[:3]
    assert ask(asked, "picture", blob=told[0]["blob"]).mimetype == "image/png"
    ask(asked, "picture", status=404, blob="nothing")


# Malice


def with_secret(folder):
    """A log directory, and beside it what must not be read."""
    outside = write_run(folder / "outside", pictures=1)
    write_run(folder / "logs" / "run", pictures=1)
    return folder / "logs", outside


@pytest.fixture
def secret(tmp_path):
    return with_secret(tmp_path)


@pytest.fixture(scope="module")
def beside_secret(tmp_path_factory):
    """A client of such a log directory."""
    return client(with_secret(tmp_path_factory.mktemp("secret"))[0])


@pytest.mark.parametrize(
    "file",
    [
        "../../outside/partition/slice_000000000.png",
        "../partition/slice_000000000.png",
        "partition/../../outside/partition/slice_000000000.png",
        "..\\partition\\slice_000000000.png",
        "lc/history.csv",
        "partition/slice_000000000.png\0",
        "partition/\0/slice_000000000.png",
        "/etc/passwd",
        "partition//slice_000000000.png",
        "./slice_000000000.png",
        "events.jsonl",
        "",
    ],
)
def test_no_file_but_a_picture_is_served(beside_secret, file):
    ask(beside_secret, "picture", status=404, run="run", file=file)


@pytest.mark.parametrize("run", ["../outside", "run/../../outside", "/", "..", "\0", "run/..", "x" * 5000, "~", "."])
def test_no_run_outside_is_read(beside_secret, run):
    ask(beside_secret, "picture", status=404, run=run, file="partition/slice_000000000.png")
    assert ask(beside_secret, "pictures", run=run)["pictures"] == []
    assert ask(beside_secret, "events", run=run) == {}
    assert ask(beside_secret, "series", run=run, tag="lc/train")["series"] == []


@pytest.mark.parametrize("kind", ["run", "folder", "file"])
def test_links_that_lead_outside_are_not_followed(secret, kind):
    logs, outside = secret
    run = logs / "linked"
    if kind == "run":
        run.symlink_to(outside)
    else:
        run.mkdir()
        target = run / "partition"
        if kind == "folder":
            target.symlink_to(outside / "partition")
            (run / "lc").symlink_to(outside / "lc")
        else:
            for name in ("partition/slice_000000000.png", "lc/history.csv", "events.jsonl"):
                (run / name).parent.mkdir(exist_ok=True)
                (run / name).symlink_to(outside / name)
    found = LocalFolders({"": logs})
    assert found.picture("linked", "partition/slice_000000000.png") is None
    assert (found.keys("linked"), found.events("linked"), found.pictures("linked")) == ([], None, [])
    assert found.picture("run", "partition/slice_000000000.png") is not None


def test_links_inside_the_log_directory_are_followed(secret):
    logs, _ = secret
    (logs / "latest").symlink_to(logs / "run")
    assert "lc/train" in LocalFolders({"": logs}).keys("latest")


def test_a_circle_of_links_ends(secret):
    logs, _ = secret
    (logs / "one").symlink_to(logs / "two")
    (logs / "two").symlink_to(logs / "one")
    assert LocalFolders({"": logs}).keys("one") == []


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    (tmp_path / "run" / "lc").mkdir(parents=True)
    os.mkfifo(tmp_path / "run" / "lc" / "history.csv")
    os.mkfifo(tmp_path / "run" / "events.jsonl")
    found = LocalFolders({"": tmp_path})
    assert (found.keys("run"), found.events("run")) == ([], None)


def test_a_huge_file_is_not_read_and_its_curves_are_those_of_tensorboard(tmp_path):
    folder = write_run(tmp_path / "run")
    with (folder / "lc" / "history.csv").open("r+b") as file:
        file.truncate(2**30)  # a gigabyte, of which the disk has a few bytes
    asked = client(tmp_path)
    (run,) = ask(asked, "runs")["runs"]
    assert run["notes"] == ["lc/history.csv is not read (1,024 MB): the curves are TensorBoard's"]
    found, _ = series(asked, ["run"], ["lc/train"])
    assert found["run", "lc/train"][0] == STEPS


CSVS = {
    "empty": (b"", []),
    "no step": (b"a,b\n1,2\n", []),
    "bytes": (b"\xff\xfe\x00\x01\n\n\n", []),
    "torn": (b"step,lc/train\n0,1.0\n10,2.0\n20,3", [0, 10]),
    "cells": (b"step,lc/train\n0,1.0\n5\n6,1,2\n10,2.0\n", [0, 10]),
    "text": (b"step,lc/train\n0,1.0\nfive,2\n7,<b>\n10,2.0\n", [0, 10]),
    "backwards": (b"step,lc/train\n0,1.0\n10,2.0\n3,1\n10,5\n-4,1\n", [0, 10]),
    "infinite": (b"step,lc/train\n0,1.0\ninf,2.0\nnan,1\n1e300,1\n10,inf\n", [0, 10]),
    "quotes": (b'step,lc/train\n0,1.0\n"7,2\n10,3\n', [0]),
    "twice": (b"step,lc/train,lc/train\n0,1.0,2.0\n10,1,1\n", [0, 10]),
}


@pytest.fixture(scope="module")
def damaged_rows(tmp_path_factory):
    """A client of a log directory with a run for each kind of damage, and a good one."""
    logs = tmp_path_factory.mktemp("damaged_rows")
    write_run(logs / "other")
    for name, (content, _) in CSVS.items():
        path = logs / name / "lc" / "history.csv"
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    return client(logs)


@pytest.mark.parametrize("name", CSVS)
def test_damaged_rows_are_left_out(damaged_rows, name):
    steps = CSVS[name][1]
    found, _ = series(damaged_rows, [name, "other"], ["lc/train"])
    assert found["other", "lc/train"][0] == STEPS
    assert (found[(name, "lc/train")][0] if steps else []) == steps
    assert steps or (name, "lc/train") not in found


def test_what_is_not_finite_is_told_as_text(tmp_path):
    values = [1.0, float("nan"), float("inf"), float("-inf"), 1e300]
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": values}, range(5))
    found, _ = series(tmp_path, ["run"], ["lc/train"])
    assert found["run", "lc/train"][1]["values"] == [1, "nan", "inf", "-inf", 1e300]


NAMES = [
    "<img src=x onerror=alert(1)>",
    "a b",
    "quote'\"",
    "dots..",
    "ünï/çode",
    "%2e%2e",
    "a&run=b",
    "#hash",
    "new\nline",
]


@pytest.fixture(scope="module")
def odd_names(tmp_path_factory):
    """A client of a log directory with a run of each name, which has a tag of that name."""
    logs = tmp_path_factory.mktemp("odd_names")
    for name in NAMES:
        with Log(logs / name) as log:
            log.scalars(name, [0, 1], [1.0, 2.0])
    return client(logs)


@pytest.mark.parametrize("name", NAMES)
def test_any_name_of_a_run_and_a_tag_is_told_as_it_is(odd_names, name):
    assert name in [run["name"] for run in ask(odd_names, "runs")["runs"]]
    found, _ = series(odd_names, [name], [name])
    assert found[name, name][1]["values"] == [1, 2]


def test_a_run_that_is_deleted_leaves_the_others(tmp_path):
    folder, _ = write_run(tmp_path / "gone"), write_run(tmp_path / "other")
    asked = client(tmp_path)
    ask(asked, "runs")
    for path in sorted(folder.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    folder.rmdir()
    found, told = series(asked, ["gone", "other"], ["lc/train"])
    assert found["other", "lc/train"][0] == STEPS
    assert told["problems"] == []
    assert "other" in ask(asked, "events", run=["gone", "other"])


class Broken:
    """A provider that fails at all that it is asked."""

    def __getattr__(self, name):
        raise RuntimeError("no connection")


def test_a_provider_that_fails_costs_its_series_only(tmp_path):
    write_run(tmp_path / "run", pictures=1)
    made = reader.Reader(Broken(), LocalFolders({"": tmp_path}))
    told = json.loads(made.series(None, "", ["run"], ["lc/train", "loss"]))
    assert [one["tag"] for one in told["series"]] == ["lc/train"]
    assert told["problems"] == ["TensorBoard's data could not be read (RuntimeError)"]
    assert json.loads(made.events(None, "", ["run", "other"])).keys() == {"run"}
    assert json.loads(made.pictures(None, "", "other"))["pictures"] == []


@pytest.mark.parametrize(
    ("path", "params", "text"),
    [
        ("series", {"tag": "a"}, "`run` must be given 1 to 300 times"),
        ("series", {"run": "a"}, "`tag` must be given 1 to 300 times"),
        ("series", {"run": [f"{i}" for i in range(301)], "tag": "a"}, "but was given 301 times"),
        ("heat", {"run": "a"}, "`prefix` must be given once"),
        ("pictures", {}, "`run` must be given once"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(odd_names, path, params, text):
    assert text in ask(odd_names, path, status=400, **params).get_data(as_text=True)


@pytest.mark.parametrize("name", ["../plugin.py", "..%2fplugin.py", "nothing.js", "", "d3.LICENSE/", "__init__.py"])
def test_only_static_files_are_served(odd_names, name):
    assert odd_names.get(f"{PLUGIN}/static/{name}").status_code == 404


def test_static_files_have_their_types(tmp_path):
    asked = client(tmp_path)
    types = {name: asked.get(f"{PLUGIN}/static/{name}").mimetype for name in ("d3.js", "d3.LICENSE")}
    assert types == {"d3.js": "text/javascript", "d3.LICENSE": "text/plain"}


@pytest.mark.parametrize(
    ("flags", "roots"),
    [
        (("/a", None), {"": "/a"}),
        (("gs://bucket/logs", ""), {}),
        ((None, "x:/a,/b"), {"x": "/a", "": "/b"}),
        (("", ""), {}),
    ],
)
def test_log_directories_are_those_of_the_flags(flags, roots):
    assert {name: str(path) for name, path in LocalFolders.of_flags(*flags)._roots.items()} == roots


def test_a_prefix_of_logdir_spec_is_no_part_of_the_path(tmp_path):
    write_run(tmp_path / "run")
    assert "lc/train" in LocalFolders({"mine": tmp_path}).keys("mine/run")


def test_a_scalar_that_is_no_number_breaks_nothing(tmp_path):
    with Log(tmp_path / "run") as log:
        log.raw(Event(step=-5, wall_time=1.0, summary=Summary(value=[Summary.Value(tag="loss", simple_value=1.0)])))
        log.scalars("loss", [0, 1], [float("nan"), 2.0])
    found, _ = series(tmp_path, ["run"], ["loss"])
    assert found["run", "loss"][1]["values"] == ["nan", 2]
