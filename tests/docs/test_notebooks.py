"""The notebooks run, print what is stored in them, and show something where they say so.

Cells are run as a kernel runs them: in one namespace, and their last expression is shown.
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vision import load_vision

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))

every_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)


def cells(notebook: Path) -> list[dict[str, Any]]:
    """Its cells of code."""
    document = json.loads(notebook.read_text(encoding="utf-8"))
    return [cell for cell in document["cells"] if cell["cell_type"] == "code"]


def text(lines: str | list[str]) -> str:
    """Notebooks hold a text as its lines."""
    return lines if isinstance(lines, str) else "".join(lines)


def run(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last expression."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    shown = None
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return out.getvalue(), shown


def stored(cell: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """What is stored as printed, and as shown."""
    streams = [o for o in cell["outputs"] if o["output_type"] == "stream"]
    shown = [o["data"] for o in cell["outputs"] if o["output_type"] == "execute_result"]
    return "".join(text(output["text"]) for output in streams), shown[0] if shown else None


@every_notebook
def test_it_runs_and_prints_what_is_stored(
    notebook: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_vision()
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, cell in enumerate(cells(notebook)):
        printed, shown = run(text(cell["source"]), names)
        before, held = stored(cell)
        assert (number, printed) == (number, before)
        assert (shown is None) == (held is None), number
        if held is not None:
            assert shown._repr_html_().startswith(text(held["text/html"])[:20])


@every_notebook
def test_all_cells_were_run_in_order_and_none_failed(notebook: Path) -> None:
    numbers = [cell["execution_count"] for cell in cells(notebook)]
    assert numbers == list(range(1, len(numbers) + 1))
    kinds = {output["output_type"] for cell in cells(notebook) for output in cell["outputs"]}
    assert kinds == {"stream", "execute_result"}


@every_notebook
def test_its_links_lead_somewhere_and_it_is_linked(notebook: Path) -> None:
    document = notebook.read_text(encoding="utf-8")
    targets = re.findall(r"\]\((\.\./[^)#]+)", document)
    assert len(targets) > 2
    assert [target for target in targets if not (notebook.parent / target).is_file()] == []
    for page in ("README.md", "docs/index.md", "mkdocs.yml"):
        assert f"notebooks/{notebook.name}" in (ROOT / page).read_text(encoding="utf-8")


def test_there_is_one() -> None:
    assert [notebook.name for notebook in NOTEBOOKS] == ["first-fold.ipynb"]


@pytest.mark.parametrize(
    ("code", "printed", "shown"),
    [
        ("x = 1\nprint(x)\nx + 1", "1\n", 2),
        ("print('a')", "a\n", None),
        ("y = 3", "", None),
        ("", "", None),
    ],
)
def test_cells_are_run_as_a_kernel_does(code: str, printed: str, shown: object) -> None:
    assert run(code, {}) == (printed, shown)
