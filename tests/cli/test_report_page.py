"""`--report`: refused before any work, written whole, with the hashes of what took part."""

from __future__ import annotations

import hashlib
from pathlib import Path

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
