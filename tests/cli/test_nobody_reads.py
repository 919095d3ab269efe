"""Every command answers into a pipe that nobody reads, and without a stdout, as to anybody else."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from tests.conformance.three_frontends import node, onnx_model, weights_of
from tests.hard_stops import forks

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


PLAIN = ANSWERS[:4]
"""In a process from its beginning to its end; the others in one that has imported what it needs."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("net.onnx", "more.onnx"):
        onnx.save(onnx_model(NODES, weights_of(NODES), (2, 3, 6, 6)), name)
    return tmp_path


def gone(folder: str) -> None:
    """stdout is a pipe that nobody reads any more."""
    reading, writing = os.pipe()
    os.close(reading)
    os.dup2(writing, 1)
    os.chdir(folder)


def closed(folder: str) -> None:
    """`bnfold ... >&-`: Python has no stdout then."""
    os.close(1)
    sys.stdout = None
    os.chdir(folder)


def full(folder: str) -> None:
    """stdout is a device that takes nothing."""
    os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
    os.chdir(folder)


@pytest.mark.parametrize("words", ANSWERS, ids=" ".join)
@pytest.mark.parametrize("stdout", [gone, closed], ids=lambda change: change.__name__)
def test_an_answer_that_nobody_reads(folder: Path, stdout: Callable[[str], None], words: list[str]):
    assert_has_answered(words, forks.run(stdout, (str(folder),), words))


@pytest.mark.parametrize("words", PLAIN, ids=" ".join)
@pytest.mark.parametrize("stdout", ["gone", "closed"])
def test_a_whole_process(folder: Path, stdout: str, words: list[str]) -> None:
    """What Python says at its end about a stdout that is gone would be seen here."""
    command = [sys.executable, "-m", "bnfold", *words]
    if stdout == "closed":
        command = ["/bin/sh", "-c", 'exec "$0" "$@" >&-', *command]
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "wb") as pipe:
        done = subprocess.run(command, stdout=pipe, stderr=subprocess.PIPE, text=True)
    assert_has_answered(words, done)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no device that is full")
@pytest.mark.parametrize("words", [ANSWERS[5], ANSWERS[7]], ids=" ".join)
def test_a_stdout_that_takes_no_more(folder: Path, words: list[str]) -> None:
    done = forks.run(full, (str(folder),), words)
    assert done.returncode == 2, done.stderr
    assert "could not be printed" in done.stderr
    assert "Traceback" not in done.stderr


def assert_has_answered(words: list[str], done: subprocess.CompletedProcess[str]) -> None:
    """No complaint, and the status of what was found; of `bench`, that is a matter of time."""
    assert done.returncode in ((0, 1) if words[0] == "bench" else (0,)), done.stderr
    for complaint in ("Traceback", "BrokenPipe", "Exception ignored"):
        assert complaint not in done.stderr
