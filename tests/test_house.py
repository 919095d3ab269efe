"""The house: files do not import each other in a circle, and the core knows no framework.

Imports inside of functions and for type checkers count: they hide a circle, and do not end it.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import pytest

import bnfold

SOURCE = Path(bnfold.__file__).parent
CALLS = ("bnfold.bench.call",)
"""What a user calls; this one takes torch.fx along."""
FRAMEWORKS = re.compile(r"torch|onnx|caffe|tensorflow|keras|protobuf", re.IGNORECASE)


def imports(tree: ast.AST, package: str) -> Iterator[tuple[str, str]]:
    """All (module, name) that are imported anywhere; the name is "" for `import module`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level]
            parts = [*above, node.module] if node.level else [node.module]
            yield from ((".".join(filter(None, parts)), alias.name) for alias in node.names)


def arrows(root: Path) -> dict[str, set[str]]:
    """Per module of a package, the modules of the package that it imports."""
    files = {_module(root, path): path for path in root.rglob("*.py")}
    found: dict[str, set[str]] = {}
    for module, path in files.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        found[module] = set()
        for source, name in imports(ast.parse(path.read_text("utf-8")), package):
            inner = f"{source}.{name}"
            found[module].add(inner if inner in files else source)
        found[module] &= files.keys() - {module}
    return found


def _module(root: Path, path: Path) -> str:
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def circles(graph: Mapping[str, Collection[str]]) -> list[list[str]]:
    """The largest groups of modules that all reach each other."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {
        tuple(sorted(other for other in reached[module] if module in reached[other]))
        for module in graph
    }
    return [list(group) for group in sorted(groups) if group]


def _reached(graph: Mapping[str, Collection[str]], start: str) -> set[str]:
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += graph[module]
    return seen


def write(root: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        path = root / "house" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return root / "house"


@pytest.mark.parametrize(
    "hall",
    [
        "import house.room\n",
        "from house import room\n",
        "from house.room import door\n",
        "from . import room\n",
        "from .room import door\n",
        "def enter():\n    from house.room import door\n",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from house.room import door\n",
    ],
)
def test_a_circle_is_found_however_it_is_imported(tmp_path: Path, hall: str) -> None:
    files = {"__init__.py": "", "hall.py": hall, "room.py": "from house.hall import floor\n"}
    assert circles(arrows(write(tmp_path, files))) == [["house.hall", "house.room"]]


def test_one_way_is_no_circle(tmp_path: Path) -> None:
    files = {"__init__.py": "", "hall.py": "import house.room\n", "room.py": "import sys\n"}
    assert circles(arrows(write(tmp_path, files))) == []


def test_a_package_counts_as_its_own_file(tmp_path: Path) -> None:
    files = {"__init__.py": "from house.hall import floor\n", "hall.py": "import house\n"}
    assert circles(arrows(write(tmp_path, files))) == [["house", "house.hall"]]


def test_no_circles() -> None:
    assert len(arrows(SOURCE)) > 100
    assert circles(arrows(SOURCE)) == []


def test_the_core_imports_numpy_and_itself() -> None:
    for path in (SOURCE / "core").rglob("*.py"):
        for module, _ in imports(ast.parse(path.read_text("utf-8")), "bnfold.core"):
            top = module.partition(".")[0]
            is_own = module == "bnfold.core" or module.startswith("bnfold.core.")
            assert is_own or top == "numpy" or top in sys.stdlib_module_names, (path, module)


def test_the_core_has_no_word_of_a_framework() -> None:
    for path in (SOURCE / "core").rglob("*.py"):
        found = FRAMEWORKS.search(path.read_text("utf-8"))
        assert found is None, (path, found)


def test_the_page_of_the_house_names_every_folder_and_no_other() -> None:
    page = Path(__file__).parents[1] / "docs" / "design" / "0007-the-house.md"
    rooms = page.read_text("utf-8").split("## ")[1]
    names = {
        name
        for line in rooms.splitlines()
        if (room := re.match(r" {4}(\w.*?)( {2}|$)", line))
        for name in room[1].split(", ")
    }
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders and folders <= names
    for name in names:
        path = SOURCE.joinpath(*name.split("."))
        assert path.is_dir() or path.with_suffix(".py").is_file(), name
    frontends = {path.name for path in (SOURCE / "frontends").iterdir() if path.is_dir()}
    assert all(name in rooms for name in frontends - {"__pycache__"})


def test_who_may_import_whom() -> None:
    """docs/design/0007-the-house.md: frontends stand beside each other, what is shown above."""
    frontends = {"bnfold.frontends.torch", "bnfold.frontends.onnx", "bnfold.frontends.caffe"}
    for module, imported in arrows(SOURCE).items():
        own = ".".join(module.split(".")[:3])
        for other in imported:
            its = ".".join(other.split(".")[:3])
            if own in frontends:
                assert its not in frontends - {own}, (module, other)
                assert not other.startswith(("bnfold.cli", "bnfold.api", "bnfold.page")), module
            if module.startswith(("bnfold.verify.", "bnfold.bench.", "bnfold.page.")):
                assert its not in frontends or module in CALLS, (module, other)
                assert not other.startswith("bnfold.cli"), (module, other)


def hidden_tests(tree: ast.AST) -> list[str]:
    """Tests inside of functions, which nobody collects."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    inner = [node for outer in functions for node in ast.walk(outer) if node is not outer]
    kinds = ast.FunctionDef | ast.ClassDef
    return [node.name for node in inner if isinstance(node, kinds) and is_test(node.name)]


def is_test(name: str) -> bool:
    return name.startswith(("test_", "Test"))


def test_a_hidden_test_is_found() -> None:
    hidden = "def test_one():\n    def test_two(self): ...\n    class TestThree: ..."
    seen = "class TestFour:\n    def test_five(self):\n        def helper(): ..."
    assert hidden_tests(ast.parse(hidden)) == ["test_two", "TestThree"]
    assert not hidden_tests(ast.parse(seen))


def test_every_test_is_collected() -> None:
    files = [*Path(__file__).parent.rglob("test_*.py")]
    assert len(files) > 100
    for path in files:
        found = hidden_tests(ast.parse(path.read_text("utf-8")))
        assert not found, (path, found)
