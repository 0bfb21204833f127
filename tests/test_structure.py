"""The rule for imports and the sizes of files and classes, see docs: arrows only run downward, never in a circle."""

import ast
import functools
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lc_callback"

# Stairs of floors. A module imports from its own floor and from those below it on its stair.
BASE = ("checks", "isolation", "names", "suggestions")
MEASURES = [BASE, ("engine.chunks",), ("engine.network",), ("engine.replay",)]
MEASURES += [("engine.counting", "engine.slices", "engine.adversarial"), ("functional",), ("metrics",)]
RUNS = [BASE, ("detection",), ("run",), ("reporting",), ("callbacks",)]
PLUGIN = [("tensorboard",)]
# From one stair to the other.
ACROSS = {
    "run": ("engine.network",),
    "reporting": ("functional", "tensorboard"),
    "callbacks": ("engine", "functional", "metrics"),
}
# The package itself and its command may import all.
ENTRANCES = ("", "__main__")
# What these floors must not import, nor anything that they import.
ALONE = {"detection": ("torch", "lightning"), "tensorboard": ("torch", "lightning")}

MOST_LINES, MOST_ATTRIBUTES, MOST_METHODS = 450, 25, 30


@functools.cache
def modules() -> dict[str, Path]:
    """The files of the package by their name in it: ``engine.network.layers``, ``""`` for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


@functools.cache
def imported(name: str) -> frozenset[str]:
    """All that a module imports, also in functions and for type checkers; what is ours begins with a dot."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name} imports relatively"
            whole = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if _ours(each) in modules() else node.module for each in whole}
    return frozenset("." + _ours(each) if each.split(".")[0] == "lc_callback" else each for each in found)


def _ours(name: str) -> str:
    return name.removeprefix("lc_callback").removeprefix(".")


def own_imports(name: str) -> set[str]:
    return {each[1:] for each in imported(name) if each.startswith(".")}


def is_in(name: str, places: tuple[str, ...]) -> bool:
    return any(name == place or name.startswith(place + ".") for place in places)


def may_import(name: str, other: str) -> bool:
    if name in ENTRANCES:
        return True
    across = next((places for floor, places in ACROSS.items() if is_in(name, (floor,))), ())
    if is_in(other, across):
        return True
    for stair in (MEASURES, RUNS, PLUGIN):
        for floor, places in enumerate(stair):
            if is_in(name, places):
                return any(is_in(other, below) for below in stair[: floor + 1])
    raise AssertionError(f"{name} stands on no floor: add it to one")


def test_arrows_only_run_downward():
    wrong = {(name, other) for name in modules() for other in own_imports(name) if not may_import(name, other)}
    assert not wrong


@functools.cache
def reached(name: str) -> set[str]:
    """What a module imports, and what that imports in turn."""
    found, rest = set(), [name]
    while rest:
        new = own_imports(rest.pop()) - found
        found |= new
        rest += new
    return found


def test_nothing_imports_in_a_circle():
    in_circles = {name for name in modules() if name in reached(name)}
    assert not in_circles


@pytest.mark.parametrize("floor", ALONE)
def test_some_floors_do_without(floor):
    own = {name for name in modules() if is_in(name, (floor,))}
    for name in own.union(*map(reached, own)):
        assert not {each for each in imported(name) if each.split(".")[0] in ALONE[floor]}, name


def test_a_file_is_short():
    long = {name for name, path in modules().items() if len(path.read_text().splitlines()) > MOST_LINES}
    assert not long


@functools.cache
def classes() -> dict[str, tuple[set[str], set[str]]]:
    """Attributes and methods that each class ``module:Class`` defines itself."""
    found = {}
    for name in modules():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.ClassDef):
                methods = {each.name for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)}
                found[f"{name}:{node.name}"] = (attributes(node), methods)
    return found


def attributes(node: ast.ClassDef) -> set[str]:
    """What is assigned to ``self``, and the fields of a dataclass."""
    fields = {
        each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)
    }
    stored = (each for each in ast.walk(node) if isinstance(each, ast.Attribute) and isinstance(each.ctx, ast.Store))
    return fields | {each.attr for each in stored if isinstance(each.value, ast.Name) and each.value.id == "self"}


def test_a_class_is_small():
    sizes = {name: (len(own), len(methods)) for name, (own, methods) in classes().items()}
    large = {name: size for name, size in sizes.items() if size[0] > MOST_ATTRIBUTES or size[1] > MOST_METHODS}
    assert not large


def test_no_test_module_imports_another():
    """What they share is in ``networks.py``, ``helpers.py`` and the like, so that each can be read and run alone."""
    paths = sorted((ROOT / "tests").rglob("test_*.py"))
    names = {path.stem for path in paths}
    assert len(names) == len(paths)
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            found = {alias.name for alias in node.names} if isinstance(node, ast.Import) else set()
            found |= {node.module} if isinstance(node, ast.ImportFrom) else set()
            assert not found & names, path
