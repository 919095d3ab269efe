"""What a type checker knows of a fold: the class that comes back, and which options are for what.

mypy reads the snippet as a user's module would be read, in strict mode, against the annotations
that are shipped.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from mypy import api as mypy

ROOT = Path(__file__).parents[1]
CACHE = ".mypy_cache"

HEAD = """\
from pathlib import Path
from typing import Any

import onnx
import onnx_ir
import torch
from torch import nn
from torch.export import ExportedProgram

import bnfold
import bnfold.onnx


class Net(nn.Sequential):
    depth = 3


net, x = Net(), torch.rand(1)
program = torch.export.export(net, (x,))
proto, ir, anything = onnx.ModelProto(), onnx_ir.load("a.onnx"), eval("net")
"""

KNOWN = {
    "bnfold.fold(net, x)": "FoldResult[Net]",
    "bnfold.fold(net, x).model.depth": "int",
    "bnfold.fold(net, (x, x), keep=['a'], entry=['b'], also=[x])[0]": "Net",
    "bnfold.fold(nn.ReLU(), {'input': x}, inplace=True)[0]": "ReLU",
    "bnfold.fold(program)[0]": "ExportedProgram",
    "bnfold.fold(program, clip='never', verify=False).model.module()": "GraphModule",
    "bnfold.fold(proto, {'x': (1, 3)})[0]": "ModelProto",
    "bnfold.fold(ir)[0].graph": "Graph",
    "bnfold.fold('a.onnx')[0]": "Path",
    "bnfold.fold(Path('a.onnx'), output='b.onnx', force=True).model.name": "str",
    "bnfold.fold('a.prototxt', phase='test')[0]": "Path",
    "bnfold.fold(('a.prototxt', Path('a.caffemodel')))[0]": "Path",
    "bnfold.fold(net, x)[1]": "FoldReport",
    "bnfold.fold(anything, x)[1]": "FoldReport",
    "bnfold.onnx.FoldPass()(ir).modified": "bool",
    "bnfold.onnx.FoldPass().call(ir).report": "FoldReport",
}
"""Expressions, and what their type ends with."""

FINE = [
    "folded, report = bnfold.fold(net, x); print(folded.depth, report.removed)",
    "base: bnfold.FoldResult[nn.Module] = bnfold.fold(net, x)",
    "plain: tuple[Net, bnfold.FoldReport] = bnfold.fold(net, x)",
    "def either(model: Path | onnx.ModelProto) -> Any: return bnfold.fold(model).model",
]
"""Statements that a checker has nothing to say about."""

WRONG = {
    "bnfold.fold(3)": "call-overload|type-var",
    "bnfold.fold(net)": "call-overload",
    "bnfold.fold(net, x, phase='test')": "call-overload",
    "bnfold.fold(net, x, output='b.onnx')": "call-overload",
    "bnfold.fold(program, keep=['a'])": "call-overload",
    "bnfold.fold('a.onnx', inplace=True)": "call-overload",
    "bnfold.fold(ir, x)": "call-overload",
    "bnfold.fold('a.prototxt', phase='train')": "call-overload",
    "bnfold.fold(net, x, clip='often')": "call-overload",
    "bnfold.fold(net, x).model.depth.width": "attr-defined",
    "bnfold.onnx.FoldPass(clip='often')": "arg-type",
}
"""Expressions, and the code of the error."""


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[str]]:
    """What mypy says about each line of a file with all of the above."""
    lines = [
        *HEAD.splitlines(),
        *(f"reveal_type({expression})" for expression in KNOWN),
        *FINE,
        *WRONG,
    ]
    folder = tmp_path_factory.mktemp("typed")
    (folder / "snippet.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # The project's own configuration, so that its cache serves here, too.
    config = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(ROOT / CACHE)]
    style = ["--hide-error-context", "--no-pretty", "--no-color-output"]
    out, err, _ = mypy.run([*config, *style, str(folder / "snippet.py")])
    assert not err, err
    found: dict[int, list[str]] = {}
    for line in out.splitlines():
        match = re.search(r"snippet\.py:(\d+): (.*)", line)
        if match:
            found.setdefault(int(match[1]), []).append(match[2])
    return found


FIRST = len(HEAD.splitlines()) + 1


def test_the_head_is_fine(said: dict[int, list[str]]) -> None:
    assert [text for line, text in said.items() if line < FIRST] == []


@pytest.mark.parametrize("number", range(len(KNOWN)), ids=list(KNOWN))
def test_known(number: int, said: dict[int, list[str]]) -> None:
    (text,) = said[FIRST + number]
    revealed = re.fullmatch(r'note: Revealed type is "(.*)"', text)
    assert revealed, text
    tuples = re.sub(r"tuple\[.*, fallback=(.*)\]", r"\1", revealed[1])
    assert re.sub(r"\w+\.", "", tuples) == list(KNOWN.values())[number]


@pytest.mark.parametrize("number", range(len(FINE)), ids=FINE)
def test_fine(number: int, said: dict[int, list[str]]) -> None:
    assert said.get(FIRST + len(KNOWN) + number) is None


@pytest.mark.parametrize("number", range(len(WRONG)), ids=list(WRONG))
def test_wrong(number: int, said: dict[int, list[str]]) -> None:
    texts = said.get(FIRST + len(KNOWN) + len(FINE) + number, [])
    errors = [text for text in texts if text.startswith("error")]
    codes = list(WRONG.values())[number]
    assert errors
    assert re.search(rf"\[({codes})\]$", errors[0]), errors
