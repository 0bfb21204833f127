"""docs/versions.md: the table is that of its file, the lower bounds have passed, and no private name is missing."""

import ast
import re
from pathlib import Path

import pytest
import test_versions as tool
import yaml

import lc_callback

ROOT = Path(__file__).parent.parent
PACKAGE = Path(lc_callback.__file__).parent
PAGE = tool.PAGE.read_text()
ROWS = tool.read_rows()

# The table


def test_the_page_has_the_table_of_its_file():
    assert tool.placed(PAGE, tool.table(ROWS)) == PAGE
    assert all(f"| {row['name']} | {row['date']} |" in PAGE for row in ROWS.values())
    assert [*ROWS] == [name for name in tool.COMBINATIONS if name in ROWS]


def test_every_row_passed_with_the_versions_that_it_is_to_have():
    for name, row in ROWS.items():
        combination = tool.COMBINATIONS[name]
        assert (row["failed"], row["tests"]) == ("0", combination.tests)
        assert int(row["passed"]) > 100
        assert row["python"].startswith(combination.python)
        for pin in combination.pins:
            package, _, version = pin.partition("==")
            if package in tool.SHOWN:
                assert re.match(rf"{re.escape(version)}(\.0)*(\+\w+)?$", row[package]), f"{name}: {pin}"


def test_the_lower_bounds_are_versions_that_passed():
    assert "oldest" in ROWS
    pins = tool.COMBINATIONS["oldest"].pins
    assert {*tool.lower_bounds()} < {*pins}
    assert all("==" in pin for pin in pins)
    needed = re.search(r'requires-python = ">=(.*)"', (ROOT / "pyproject.toml").read_text())
    assert tool.COMBINATIONS["oldest"].python == needed[1]


def test_the_tests_that_are_named_exist():
    for paths in tool.TESTS.values():
        assert all((ROOT / path).exists() for path in paths)
    assert {each for one in tool.COMBINATIONS.values() for each in one.tests.split()} == {*tool.TESTS}


def test_torch_is_that_of_the_constraints_where_a_combination_has_none():
    (torch,) = re.findall(r"^torch==.*$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert tool.pins_of(tool.Combination(("torchmetrics==1.4.0",), "metrics")) == ("torchmetrics==1.4.0", torch)
    assert tool.pins_of(tool.Combination(("torch==2.4.1",), "metrics")) == ("torch==2.4.1",)


SUITE = '<testsuites><testsuite name="pytest" errors="{}" failures="{}" skipped="{}" tests="{}"/></testsuites>'


@pytest.mark.parametrize(
    ("found", "counted"),
    [((0, 0, 0, 7), ("7", "0", "0")), ((1, 2, 3, 10), ("4", "3", "3")), ((2, 0, 0, 2), ("0", "2", "0"))],
)
def test_tests_are_counted(found, counted):
    assert tuple(tool.counts(SUITE.format(*found)).values()) == counted


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A page and a file of rows of their own, and nothing is installed."""
    monkeypatch.setattr(tool, "PAGE", tmp_path / "versions.md")
    monkeypatch.setattr(tool, "ROWS", tmp_path / "versions.csv")
    tool.PAGE.write_text(f"before\n{tool.START}{tool.END}\nafter\n")
    failed = {"torch-2.4": "2"}

    def try_out(name):
        return dict.fromkeys(tool.FIELDS, "1") | {"name": name, "tests": "metrics", "failed": failed.get(name, "0")}

    monkeypatch.setattr(tool, "try_out", try_out)


@pytest.mark.usefixtures("elsewhere")
def test_single_combinations_are_run_and_the_others_stay():
    assert tool.main(["torch-2.14"]) == ""
    assert tool.main(["torch-2.4"]) == "torch-2.4: 2 failed"
    assert tool.main(["lightning-2.4"]) == ""
    assert [*tool.read_rows()] == ["lightning-2.4", "torch-2.14", "torch-2.4"]
    page = tool.PAGE.read_text()
    assert re.findall(r"^\| (\S+) \| 1", page, re.MULTILINE) == ["lightning-2.4", "torch-2.14", "torch-2.4"]
    assert "Not run yet: lightning-2.5, torchmetrics-1.4, " in page
    assert (page[:7], page[-6:]) == ("before\n", "after\n")
    assert tool.main(["--from-rows"]) == ""
    assert tool.PAGE.read_text() == page


@pytest.mark.usefixtures("elsewhere")
def test_a_python_that_is_not_here_is_told_and_its_row_stays(monkeypatch):
    tool.main(["python-3.12"])
    monkeypatch.setattr("shutil.which", lambda name: None)
    told = tool.main(["python-3.12", "torch-2.14"])
    assert told == "python-3.12: there is no python3.12 here, its row stays as it was"
    assert [*tool.read_rows()] == ["torch-2.14", "python-3.12"]


@pytest.mark.usefixtures("elsewhere")
def test_an_unknown_name_is_told_with_those_there_are(capsys):
    with pytest.raises(SystemExit):
        tool.main(["torch-1"])
    assert "no combination torch-1; there are lightning-2.4" in capsys.readouterr().err
    tool.PAGE.write_text("no place")
    with pytest.raises(ValueError, match="needs a place for the table"):
        tool.main(["--from-rows"])


# What the library stands on


def private_names():
    """Names with an underscore before them that the package uses and does not make itself."""
    used, own = {}, set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                own.add(node.name)
            elif isinstance(node, ast.Attribute):
                mine = isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
                own |= {node.attr} if mine else set()
                names = [node.attr]
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.ImportFrom) and not node.module.startswith("lc_callback"):
                names = [*node.module.split("."), *(alias.name for alias in node.names)]
            elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
                names = [node.args[1].value] if isinstance(node.args[1], ast.Constant) else []
            for name in names:
                if re.match("_[a-zA-Z]", name):
                    used.setdefault(name, path.relative_to(PACKAGE))
    return {name: path for name, path in used.items() if name not in own}


OF_PYTHON = {"_fields", "_getframe"}


def test_every_private_name_of_others_is_on_the_page():
    found = private_names()
    assert {"_data_source", "_lazy_clone", "_pytree", "_schema"} < {*found}
    missing = {name: str(path) for name, path in found.items() if not re.search(rf"\b{name}\b", PAGE)}
    assert {name: path for name, path in missing.items() if name not in OF_PYTHON} == {}


# The recipe of conda

CALLED_THERE = {"torch": "pytorch", "matplotlib": "matplotlib-base"}


def test_the_recipe_needs_what_the_package_needs():
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text())
    project = tool.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [f"python {project['requires-python']}"]
    for requirement in project["dependencies"]:
        name, _, bound = requirement.partition(">=")
        wanted.append(f"{CALLED_THERE.get(name, name)} >={bound}")
    assert recipe["requirements"]["run"] == wanted
    assert recipe["package"]["version"] == lc_callback.__version__
    (command,) = project["scripts"].items()
    assert recipe["build"]["python"]["entry_points"] == [" = ".join(command)]
    assert recipe["about"]["summary"] == project["description"]
