"""The floors of the house: imports run one way, and nothing happens on the stairs."""

import ast
from pathlib import Path

import pytest

import jaxgmm

pytestmark = pytest.mark.quick

HOUSE = Path(jaxgmm.__file__).parent
# From the ground up. What shares a floor does not know each other.
FLOORS = [
    ["kernels"],
    ["arrays"],
    ["execution", "covariances"],
    ["mixtures"],
    ["operations", "steps"],
    ["files"],
    ["solvers"],
    ["fits"],
    ["plot", "command_line", "sklearn"],
]
HEIGHT = {folder: height for height, floor in enumerate(FLOORS) for folder in floor}


def imports_of(file: Path) -> set[str]:
    """The modules of the house that a file imports, also within functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return {name for name in found if name.startswith("jaxgmm.")}


def test_every_folder_is_a_floor():
    folders = {folder.name for folder in HOUSE.iterdir() if (folder / "__init__.py").exists()}
    assert folders == set(HEIGHT)
    assert {file.name for file in HOUSE.glob("*.py")} == {"__init__.py", "__main__.py"}


@pytest.mark.parametrize("folder", HEIGHT)
def test_imports_run_one_way(folder):
    for file in (HOUSE / folder).glob("*.py"):
        others = {name.split(".")[1] for name in imports_of(file)} - {folder}
        # The command line says which version of the package it is.
        others -= {"__version__"} if folder == "command_line" else set()
        assert all(HEIGHT.get(other, 99) < HEIGHT[folder] for other in others), file


def test_no_circles():
    """Within a floor, too: rooms can be read one after the other."""
    files = {
        ".".join(["jaxgmm", *file.relative_to(HOUSE).with_suffix("").parts]): file
        for file in HOUSE.glob("*/*.py")
    }
    left = {name: imports_of(file) & set(files) - {name} for name, file in files.items()}
    while left:
        ready = {name for name, needed in left.items() if not needed & set(left)}
        assert ready, f"these import each other: {sorted(left)}"
        left = {name: needed for name, needed in left.items() if name not in ready}


def named_in_tests_of_kind(tree: ast.AST) -> set[str]:
    """The names that `isinstance`, `type(...) is` and class patterns compare with."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.MatchClass):
            found.add(ast.unparse(node.cls))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "isinstance":
            found |= {ast.unparse(name) for name in ast.walk(node.args[1]) if hasattr(name, "ctx")}
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            found |= {ast.unparse(name) for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found


def test_only_covariances_know_how_they_are_stored():
    """All others ask them: a further storage touches no other floor."""
    storages = {"Full", "Diagonal", "Spherical"}
    asking = {
        str(file.relative_to(HOUSE))
        for file in HOUSE.glob("*/*.py")
        if named_in_tests_of_kind(ast.parse(file.read_text())) & storages
    }
    assert {name.split("/")[0] for name in asking} == {"covariances"}


def test_a_floor_only_says_what_is_there():
    """Its `__init__` has the names of its rooms, and imports nothing."""
    for folder in set(HEIGHT) - {"plot", "command_line", "sklearn"}:
        tree = ast.parse((HOUSE / folder / "__init__.py").read_text())
        assert len(tree.body) == 1
        text = ast.get_docstring(tree)
        rooms = {file.stem for file in (HOUSE / folder).glob("*.py")} - {"__init__"}
        assert {room for room in rooms if f"`{room}`" not in text} == set(), folder


def test_no_folder_has_the_name_of_a_public_function():
    assert not set(HEIGHT) & set(jaxgmm.__all__)
