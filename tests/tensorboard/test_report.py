"""The page without a server: the same picture in one file, which asks nobody for anything."""

import json
import re

import pytest
from browser import LC, SEEDS, opened
from logs import STEPS, Log, event, write_csv, write_run

from lc_callback.__main__ import main
from lc_callback.tensorboard.page import bundled, write_page

EVIL = "</script><script>window.hacked=1</script><!--"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for seed, run in enumerate(SEEDS):
        write_run(folder / run, seed=seed, pictures=3 if seed == 0 else 0)
    path = folder.parent / "page" / "all.html"
    assert write_page(folder, path, "three seeds") == 3
    return path


def test_the_page_shows_what_the_tab_shows(chromium, page):
    with opened(chromium, page.as_uri()) as tab:
        tab.only(SEEDS[0])
        assert tab.page.locator("h1").inner_text() == "three seeds"
        assert tab.all(LC, "rect.phase", "data-phase") == ["first descent", "ascent", "region migration"]
        assert tab.all(LC, "path.line", "data-tag") == ["lc/train", "lc/test"]
        assert tab.all("tag:loss", "path.line", "data-run") == [SEEDS[0]]
        heat = tab.show("heat:local complexity by layer")
        assert heat.locator("text.layer").all_text_contents() == ["net.1", "net.3", "net.10"]
        assert tab.show("pictures").locator("output").inner_text() == f"step {STEPS[2]}"
        assert (
            tab.card("pictures").locator("img").evaluate("(image) => image.decode().then(() => image.naturalWidth)")
            == 4
        )
        tab.choose("curves", "mean")
        assert tab.export(LC, "svg").startswith(b"<svg")
        assert tab.errors == []
        assert {re.split(r"[:/]", one)[0] for one in tab.requests} <= {"file", "blob", "data"}
        assert [one for one in tab.requests if one.startswith("file")] == [page.as_uri()]


def test_nothing_in_a_run_can_end_the_script(chromium, tmp_path):
    folder = write_run(tmp_path / "runs" / "run")
    with Log(folder) as log:
        log.scalars(EVIL, [0, 1], [1.0, 2.0])
    (folder / "events.jsonl").write_text(json.dumps(event(reason=EVIL)) + "\n")
    write_page(tmp_path / "runs", tmp_path / "page.html", EVIL)
    with opened(chromium, (tmp_path / "page.html").as_uri()) as tab:
        assert tab.page.evaluate("window.hacked === undefined")
        assert tab.page.locator("h1").inner_text() == EVIL
        assert tab.show(f"tag:{EVIL}").locator("path.line").count() == 1
        assert tab.errors == []


def test_a_folder_with_files_of_callbacks_only_is_enough(tmp_path, capsys):
    write_csv(tmp_path / "run" / "lc" / "history.csv", {"lc/train": [1, 2, 3]}, [0, 1, 10])
    main(["report", str(tmp_path / "run"), "--output", str(tmp_path / "run.html")])
    assert capsys.readouterr().out == f"page with 1 run: {tmp_path / 'run.html'}\n"
    data = re.search(r'id="data">(.*?)</script>', (tmp_path / "run.html").read_text())[1]
    told = json.loads(data)
    assert [one["values"] for one in told["series"]["series"]] == [[1, 2, 3]]
    assert [run["name"] for run in told["runs"]["runs"]] == ["."]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["nothing"], "is no folder"),
        (["."], "has no run"),
        ([".", "--detection", "min_prominence=0.1"], "--detection needs a picture"),
    ],
)
def test_what_cannot_be_shown_is_told(tmp_path, monkeypatch, capsys, arguments, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["report", *arguments, "--output", "page.html"])
    assert text in capsys.readouterr().err


def test_every_module_is_bundled_once_and_no_form_of_import_is_left():
    code = bundled("page")
    assert not re.search(r"^\s*(import|export)\b", code, re.MULTILINE)
    names = re.findall(r"^const \$(\w+) = ", code, re.MULTILINE)
    assert len(names) == len({*names}) > 10
    assert "</script" not in code


def test_of_many_pictures_some_are_left_out_but_never_the_last(tmp_path, monkeypatch):
    monkeypatch.setattr("lc_callback.tensorboard.page._MOST_PICTURES", 300)
    write_run(tmp_path / "run", pictures=10)
    write_page(tmp_path / "run", tmp_path / "page.html")
    data = json.loads(re.search(r'id="data">(.*?)</script>', (tmp_path / "page.html").read_text())[1])
    steps = [one["step"] for one in data["pictures"]["."]["pictures"]]
    assert 0 < len(steps) < 10
    assert steps[-1] == STEPS[9]
