"""Every command answers into a pipe that nobody reads, and without a stdout, as to anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from tests.conformance.three_frontends import node, onnx_model, weights_of

NODES = [
    node("c", "conv", "data", channels=3, out=4, kernel=3, pad=1),
    node("b", "bn", "c", channels=4),
    node("r", "relu", "b"),
]
ANSWERS = [
    ["--help"],
    ["inspect", "net.onnx"],
    ["inspect", "net.onnx", "net.onnx"],
    ["fold", "net.onnx", "-o", "folded.onnx"],
    ["fold", "net.onnx", "more.onnx", "--output-dir", "all"],
    ["verify", "net.onnx", "net.onnx"],
    ["verify", "net.onnx", "net.onnx", "--json"],
    ["bench", "net.onnx", "--rounds", "2"],
    ["bench", "net.onnx", "--rounds", "2", "--json"],
    ["bench", "net.onnx", "--rounds", "2", "--chart", "chart.svg"],
]
"""Each way in which the command answers."""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    for name in ("net.onnx", "more.onnx"):
        onnx.save(onnx_model(NODES, weights_of(NODES), (2, 3, 6, 6)), name)
    return [sys.executable, "-m", "bnfold"]


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_a_reader_that_has_gone_away(command: list[str], words: list[str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run([*command, *words], stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert_has_answered(words, done)


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
def test_there_is_no_stdout(command: list[str], words: list[str]) -> None:
    """`bnfold ... >&-`"""
    closed = ["/bin/sh", "-c", 'exec "$0" "$@" >&-', *command, *words]
    assert_has_answered(words, subprocess.run(closed, stderr=subprocess.PIPE, text=True))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
@pytest.mark.parametrize("words", [ANSWERS[5], ANSWERS[7]], ids=" ".join)
def test_a_stdout_that_takes_no_more(command: list[str], words: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*command, *words], stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2, done.stderr
    assert "could not be printed" in done.stderr
    assert "Traceback" not in done.stderr


def assert_has_answered(words: list[str], done: subprocess.CompletedProcess[str]) -> None:
    """No complaint, and the status of what was found; of `bench`, that is a matter of time."""
    assert done.returncode in ((0, 1) if words[0] == "bench" else (0,)), done.stderr
    for complaint in ("Traceback", "BrokenPipe", "Exception ignored"):
        assert complaint not in done.stderr
