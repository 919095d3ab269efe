"""`-` is what came on stdin, for every command; and a signal that comes early is quiet."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import onnx
import pytest

import bnfold
from bnfold.cli import main
from tests.hard_stops import forks
from tests.verify.test_quick import network


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network()
    onnx.save(model, "a.onnx")
    onnx.save(bnfold.fold(model).model, "b.onnx")


def reads(path: str) -> None:
    """From now on stdin is that file."""
    os.dup2(os.open(path, os.O_RDONLY), 0)
    sys.stdin = os.fdopen(0, closefd=False)
    os.chdir(Path(path).parent)


def command(*words: str, stdin: str | bytes = "a.onnx") -> subprocess.CompletedProcess[str]:
    """In a process of its own, which has imported what it needs."""
    content = Path(stdin).read_bytes() if isinstance(stdin, str) else stdin
    place = Path("given").resolve()
    place.write_bytes(content)
    done = forks.run(reads, (str(place),), list(words))
    place.unlink()
    return without_complaint(done)


def without_complaint(done: subprocess.CompletedProcess[str]) -> subprocess.CompletedProcess[str]:
    assert "Traceback" not in done.stderr
    assert tempfile.gettempdir() not in done.stdout + done.stderr
    return done


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("verify", "a.onnx", "a.onnx", "-"), "3 words name 3"),
        (("verify", "-", "-"), "stdin holds one model"),
        (("bench", "-", "-"), "stdin holds one model"),
        (("inspect", "-", "-"), "stdin holds one model"),
        (("fold", "-", "--output-dir", "x"), "has no name in --output-dir"),
        (("fold", "a.onnx", "-o", "-", "--output-dir", "x"), "no name in --output-dir"),
    ],
)
def test_what_means_nothing(models, capfd, words, text):
    """Said before anything is read, so in this process."""
    assert main(words) == 2
    said = capfd.readouterr()
    assert said.out == ""
    assert text in said.err
    assert not Path("x").exists()


@pytest.mark.parametrize(
    "words",
    [("inspect", "-"), ("verify", "-", "b.onnx"), ("verify", "b.onnx", "-"), ("bench", "-")],
)
@pytest.mark.parametrize("content", [b"", b"no model", b"\x1c\0\0\0TFL3"])
def test_what_is_no_model(models, words, content):
    done = command(*words, stdin=content)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith("bnfold: error: stdin")


def test_a_terminal_holds_no_model():
    leader, follower = os.openpty()
    done = subprocess.run(
        [sys.executable, "-m", "bnfold", "inspect", "-"], stdin=follower, capture_output=True
    )
    os.close(leader)
    os.close(follower)
    assert done.returncode == 2
    assert b"stdin is a terminal" in done.stderr


def test_from_a_pipe(models):
    words = [sys.executable, "-m", "bnfold", "inspect", "-"]
    with subprocess.Popen(["cat", "a.onnx"], stdout=subprocess.PIPE) as writer:
        done = subprocess.run(words, stdin=writer.stdout, capture_output=True, text=True)
    assert without_complaint(done).stdout.startswith("3 of 3")


def test_inspect(models):
    told = "3 of 3 BatchNormalization would be removed\n2 ops would be merged into 1 Conv\n"
    assert command("inspect", "-").stdout.startswith(f"{told}\nopset 17")
    assert json.loads(command("inspect", "-", "--json").stdout)["removed"] == 3
    assert command("inspect", "b.onnx", "-").stdout.split()[:2] == ["b.onnx", "stdin"]


def test_the_page_is_about_stdin(models):
    for words in (("inspect", "-"), ("fold", "-", "-o", "c.onnx")):
        done = command(*words, "--report", "page.html", "--force")
        assert done.returncode == 0
        assert "<title>stdin" in Path("page.html").read_text()


@pytest.mark.parametrize(
    ("words", "stdin"), [(("-", "b.onnx"), "a.onnx"), (("a.onnx", "-"), "b.onnx")]
)
def test_verify(models, words, stdin):
    done = command("verify", *words, "--json", stdin=stdin)
    assert done.returncode == 0
    assert json.loads(done.stdout)["equal"]
    other = onnx.load(stdin)
    other.graph.initializer[0].raw_data = bytes(len(other.graph.initializer[0].raw_data))
    done = command("verify", *words, stdin=other.SerializeToString())
    assert done.returncode == 1
    assert done.stdout.startswith("not equal")


def test_verify_with_the_shape_of_an_input(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network("N", 3, "H", "W")
    onnx.save(model, "a.onnx")
    onnx.save(bnfold.fold(model).model, "b.onnx")
    assert command("verify", "-", "b.onnx", "--input", "1x3x40x40").returncode == 0


@pytest.mark.parametrize("words", [("-",), ("-", "b.onnx"), ("b.onnx", "-")])
def test_bench(models, words):
    done = command("bench", *words, "--rounds", "3", "--json")
    assert done.returncode in (0, 1)
    assert json.loads(done.stdout)["rows"]


def test_an_interrupt_while_modules_are_imported_is_quiet(tmp_path):
    for module in ("numpy", "bnfold.cli.fold"):
        start = (
            "import sys, importlib.abc, os, signal\n"
            "class Finder(importlib.abc.MetaPathFinder):\n"
            "    def find_spec(self, name, path, target=None):\n"
            f"        if name == {module!r}: os.kill(os.getpid(), signal.SIGINT)\n"
            "sys.meta_path.insert(0, Finder())\n"
            "from bnfold.__main__ import run\n"
            "sys.argv = ['bnfold', 'fold', 'a.onnx']\n"
            "sys.exit(run())\n"
        )
        Path(tmp_path, "a.onnx").write_bytes(network().SerializeToString())
        done = subprocess.run(
            [sys.executable, "-c", start], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 130
        assert "Traceback" not in done.stderr
