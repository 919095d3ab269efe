"""`--report`: refused before any work, written whole, with the hashes of what took part."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bnfold.cli import main


@pytest.fixture
def program(tmp_path: Path) -> Path:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(model, (torch.rand(1, 3, 8, 8),)), path)
    return path


@pytest.mark.parametrize("command", ["fold", "inspect"])
@pytest.mark.parametrize("name", ["page.txt", "missing/page.html", "there.html", "folder.html"])
def test_a_page_that_cannot_be_written_is_refused_first(
    program: Path, command: str, name: str
) -> None:
    (program.parent / "there.html").write_text("mine")
    (program.parent / "folder.html").mkdir()
    before = sorted(program.parent.iterdir())
    assert main([command, str(program), "--report", str(program.parent / name)]) == 2
    assert sorted(program.parent.iterdir()) == before
    assert (program.parent / "there.html").read_text() == "mine"


def test_fold_writes_the_page_beside_its_output(program: Path) -> None:
    target, output = program.parent / "page.html", program.parent / "out.pt2"
    assert main(["fold", str(program), "-o", str(output), "--report", str(target)]) == 0
    html = target.read_text()
    for path in (program, output):
        assert hashlib.sha256(path.read_bytes()).hexdigest() in html
    assert str(program.parent) not in html
    assert 'id="before"' in html


def test_inspect_overwrites_when_told_to(program: Path) -> None:
    target = program.parent / "page.html"
    target.write_text("old")
    assert main(["inspect", str(program), "--report", str(target), "--force"]) == 0
    assert "net.pt2" in target.read_text()


def test_the_page_counts_what_the_summary_counts(
    program: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, output = program.parent / "page.html", program.parent / "out.pt2"
    arguments = ["fold", str(program), "-o", str(output), "--report", str(target), "--json"]
    assert main(arguments) == 0
    document = json.loads(capsys.readouterr().out)
    found = re.search(r'id="data">(.*?)</script>', target.read_text())
    assert found is not None
    data = json.loads(found[1])
    assert data["ops"] == document["ops"] and document["ops"]["before"]
    assert data["bytes"] == document["bytes"] == program.stat().st_size
    assert data["bytes_written"] == output.stat().st_size
    assert data["report"]["network"] == document["network"] is not None


def test_an_onnx_page_counts_the_nodes_of_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network = tmp_path / "net.onnx"
    onnx.save(with_identity(), network)
    target = tmp_path / "page.html"
    assert main(["fold", str(network), "--report", str(target), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["ops"]["before"] == {"Identity": 1, "Conv": 1, "BatchNormalization": 1}
    assert "<dd>3 \N{RIGHTWARDS ARROW} 2</dd>" in target.read_text()


def with_identity() -> onnx.ModelProto:
    """Identity, Conv, BatchNormalization: the drawing knows no Identity, the file does."""
    ones = np.ones(2, np.float32)
    arrays = {
        "w": np.ones((2, 2, 1, 1), np.float32),
        "s": 2 * ones,
        "b": ones,
        "m": ones,
        "v": ones,
    }
    nodes = [
        onnx.helper.make_node("Identity", ["x"], ["i"]),
        onnx.helper.make_node("Conv", ["i", "w"], ["c"]),
        onnx.helper.make_node("BatchNormalization", ["c", "s", "b", "m", "v"], ["y"]),
    ]
    shape = [1, 2, 4, 4]
    graph = onnx.helper.make_graph(
        nodes,
        "net",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, shape)],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
