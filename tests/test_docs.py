"""Every block of the README and of the site runs, and every command on them has arguments that exist."""

import re
import runpy
import shlex
from pathlib import Path

import lightning.pytorch
import pytest

import lc_callback
import lc_callback.callbacks
import lc_callback.functional
import lc_callback.metrics
from lc_callback.__main__ import _parser, main

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
START = DOCS / "get_started.md"
PAGES = sorted(
    path for path in (*DOCS.rglob("*.md"), *ROOT.glob("*.md"), *ROOT.glob("*/README.md")) if "_build" not in path.parts
)
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`((?:python -m lc_callback|python examples/|lc-callback)[^`]* --?[^`]*)`")
STEPS = 10  # that a block may train


def name(path):
    return str(path.relative_to(ROOT))


def blocks(path, language):
    """Each block with its first line in the file."""
    text = path.read_text()
    return [(text[: found.start(2)].count("\n"), found[2]) for found in BLOCK.finditer(text) if found[1] == language]


def run(path, line, code, names):
    exec(compile("\n" * line + code, str(path), "exec"), names)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Trainers that stop after a few steps and write to a folder of their own."""
    made = lightning.pytorch.Trainer.__init__

    def init(self, *args, **kwargs):
        shorter = {"max_steps": min(kwargs.pop("max_steps", STEPS), STEPS), "enable_progress_bar": False}
        made(self, *args, **{"accelerator": "cpu", "enable_model_summary": False, **kwargs, **shorter})

    monkeypatch.setattr(lightning.pytorch.Trainer, "__init__", init)
    monkeypatch.setattr("matplotlib.pyplot.show", lambda: None)
    monkeypatch.chdir(tmp_path)


ELSEWHERE = ["metrics.md"]  # tests/test_metrics_page.py runs its code, with a stand-in for transformers
WITH_PYTHON = [path for path in PAGES if blocks(path, "python") and path.name not in ELSEWHERE]


LONG = ["seeds.md", "tokens.md"]


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=pytest.mark.slow if path.name in LONG else ()) for path in WITH_PYTHON],
    ids=map(name, WITH_PYTHON),
)
def test_the_blocks_of_a_page_run_one_after_the_other(path, small):
    names = {"__name__": "page"}
    if path != START:  # the snippets go on from there, as docs/index.md says
        run(START, *blocks(START, "python")[0], names)
        names["model"] = names["DigitsMLP"]()
    for line, code in blocks(path, "python"):
        run(path, line, code, names)


def test_blocks_are_found_and_an_error_in_one_is_seen(tmp_path):
    assert len(WITH_PYTHON) > 15
    page = tmp_path / "page.md"
    page.write_text("a\n\n```python\nx = 1\n```\n\n```sh\nls\n```\n\n```python\nassert x == 2\n```\n")
    names = {}
    run(page, *blocks(page, "python")[0], names)
    with pytest.raises(AssertionError) as caught:
        run(page, *blocks(page, "python")[1], names)
    assert caught.traceback[-1].lineno + 1 == 12


@pytest.mark.slow
def test_get_started_says_what_comes_out(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "page"}
    for line, code in blocks(START, "python"):
        run(START, line, code, names)
    found = [each for part in ("complexity", "robustness", "rank") for each in names[part].transitions]
    quoted = re.findall(r"^(\w+) at step ([\d,]+) \((\d+) to (\d+)\) \((\S+)\)", START.read_text(), re.MULTILINE)
    assert len(quoted) == 4
    for kind, _, earliest, latest, curve in quoted:
        steps = [each.step for each in found if (each.kind, each.curve) == (kind, curve)]
        assert len(steps) == 1, f"{kind} of {curve}"
        assert int(earliest) <= steps[0] <= int(latest)


def test_old_checkpoints_are_measured_as_told(small, tmp_path, monkeypatch, capsys):
    page = DOCS / "checkpoints.md"
    (tmp_path / "digits.py").write_text(blocks(page, "python")[0][1])
    runpy.run_path("digits.py", run_name="__main__")
    monkeypatch.syspath_prepend(tmp_path)
    command = next(line for _, code in blocks(page, "sh") for line in code.splitlines() if "digits.Net" in line)
    main(shlex.split(command)[3:])
    assert "Local complexity at the train points" in capsys.readouterr().out
    rows = (tmp_path / "lc_measured" / "lc" / "history.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:]] == ["1", "2", "3", "5", "8", "10"]  # the last by Lightning itself
    assert (tmp_path / "lc_measured" / "timeline.png").exists()


def commands():
    """Commands of the shell in blocks, and those of ours in the text that have options, each with its page."""
    for path in PAGES:
        for _, code in blocks(path, "sh"):
            for line in code.replace("\\\n", " ").splitlines():
                for part in re.split(r"&&", line.split(" #")[0]):
                    if part.strip() and not part.lstrip().startswith("#"):
                        yield path, part.strip()
        if path.name != "CHANGELOG.md":
            for part in INLINE.findall(path.read_text()):
                yield path, part


def defined(pattern, path):
    return set(re.findall(pattern, (ROOT / path).read_text(), re.MULTILINE))


OTHERS = ("python3 -m venv ", "tensorboard --logdir ", ". venv/", "python -m build", "python -m pytest", "apt-get ")
OTHERS += ("pip install build", "pip install dist/lc_callback-", "python digits.py")


def parses(arguments):
    try:
        _parser().parse_args(arguments)
    except SystemExit as end:  # of --help, or of an error
        return not end.code
    return True


def check_command(text):
    """An assertion for each part of a command that has to exist."""
    words = shlex.split(text)
    if words[:3] == ["python", "-m", "lc_callback"] or words[0] == "lc-callback":
        assert parses(words[1:] if words[0] == "lc-callback" else words[3:]), text
    elif words[0] == "python" and words[1].startswith(("examples/", "benchmarks/", "tools/")):
        script = ROOT / words[1]
        assert script.exists(), text
        assert all((ROOT / word).exists() for word in words[2:] if word.endswith(".yaml")), text
        options = {word.split("=")[0] for word in words[2:] if word.startswith("--")}
        known = {option for option in options if f'"{option}"' in script.read_text()}
        assert script.name == "train.py" or options == known, text
    elif words[0] == "make":
        assert {word for word in words[1:] if "=" not in word} <= defined(r"^([\w-]+):", "Makefile"), text
    elif words[:2] == ["pip", "install"] and ("-e" in words or "." in words or "torchattacks" in text):
        extras = {extra for found in re.findall(r"\[([\w,]+)\]", text) for extra in found.split(",")}
        assert extras <= defined(r"^(\w+) = \[", "pyproject.toml"), text
        assert "-c" not in words or (ROOT / words[words.index("-c") + 1]).exists(), text
    else:
        assert text.startswith(OTHERS), text


def test_commands_have_arguments_that_exist():
    found = list(commands())
    assert sum("lc_callback report" in text for _, text in found) >= 4
    for _, text in found:
        check_command(text)


@pytest.mark.parametrize(
    "text",
    [
        "python -m lc_callback report runs --no-such-option",
        "lc-callback no-such-command",
        "python examples/no_such_script.py",
        "python examples/digits_grokking.py --no-such-option",
        "python examples/train.py fit --config examples/no_such_file.yaml",
        "make no-such-target",
        'pip install -e ".[no_such_extra]"',
        "no-such-program",
    ],
)
def test_a_command_that_does_not_exist_is_seen(text, capsys):
    with pytest.raises(AssertionError):
        check_command(text)


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files(path):
    text = BLOCK.sub("", path.read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file = target.split("#")[0]
        if file and "://" not in file:
            assert (path.parent / file).exists(), target


def test_links_of_the_built_site_that_lead_nowhere_are_seen(tmp_path):
    dead_links = runpy.run_path(str(ROOT / "tools" / "check_links.py"))["dead_links"]
    assert dead_links(tmp_path) == [f"{tmp_path}: no page"]
    (tmp_path / "api").mkdir()
    (tmp_path / "api" / "b.html").write_text('<p id="here">b</p><a href="../a.html#there">a</a><img src="no.png">')
    links = (
        "api/b.html",
        "api/b.html#here",
        "#there",
        "api/b.html#gone",
        "c.html",
        "https://host/x.html#y",
        "api/",
        "#gone",
    )
    (tmp_path / "a.html").write_text('<h1 id="there"></h1>' + "".join(f'<a href="{link}">a</a>' for link in links))
    assert dead_links(tmp_path) == [
        *(f"a.html: {link}" for link in ("#gone", "api/", "api/b.html#gone", "c.html")),
        "api/b.html: no.png",
    ]


def test_the_reference_has_every_public_name():
    documented = set()
    for path in (DOCS / "api").glob("*.md"):
        module = ""
        for kind, value in re.findall(r"^\.\. (currentmodule|autoclass|autofunction):: (\S+)", path.read_text(), re.M):
            if kind == "currentmodule":
                module = value
            else:
                documented.add(value if value.startswith("lc_callback.") else f"{module}.{value}")
    for package in (lc_callback, lc_callback.functional, lc_callback.metrics, lc_callback.callbacks):
        for public in set(package.__all__) - {"__version__", "MEASURES"}:
            names = {f"{package.__name__}.{public}", f"lc_callback.{public}"}
            assert names & documented, f"{package.__name__}.{public} is not in docs/api"
