"""A verification that goes on in threads ends soon when nobody waits for it any longer."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import onnx
import pytest

from bnfold.frontends.onnx.runner import model_runner
from bnfold.verify.quick import run_ahead
from bnfold.verify.runner import Lane, NotExactError
from tests.frontends.onnx.support import Sketch


def heavy(side: int = 1024) -> onnx.ModelProto:
    """Many nodes that take their time each."""
    s = Sketch(1, 3, side, side)
    s.conv(3, 64, name="c", pads=[1, 1, 1, 1])
    for at in range(24):
        s.conv(64, 64, name=f"c{at}", pads=[1, 1, 1, 1])
        s.bn(64, name=f"b{at}")
    return s.model()


def test_threads_end():
    before = set(threading.enumerate())
    quick = run_ahead(model_runner(heavy(), None, "original"))
    assert quick is not None
    quick.look_inside([])
    mine = set(threading.enumerate()) - before
    assert mine
    quick.stop()
    for thread in mine:
        thread.join(60)
        assert not thread.is_alive()
    assert quick.before.get() is None
    assert quick.inside is not None and quick.inside.get() is None


def test_what_begins_after_that():
    runner = model_runner(heavy(16), None, "original")
    quick = run_ahead(runner)
    inputs = list(quick.inputs[0])
    runner.stop()
    quick.before.get()  # which may still be at its last node
    with pytest.raises(NotExactError, match="stopped"):
        runner.side_by_side().run(inputs, [Lane("float64")])
    evaluation = runner.own()
    with pytest.raises(Exception, match="terminate"):
        evaluation.run(inputs)
    assert not runner.running


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_command_ends(tmp_path, number, status):
    """While all that is left to do is to wait for threads."""
    onnx.save(heavy(), tmp_path / "net.onnx")
    words = """
import os, signal, sys
from bnfold.cli import main
from bnfold.frontends.onnx import door
whole = door.FoldedFile.judged_quickly
def judged(folded):
    os.kill(os.getpid(), int(sys.argv[1]))
    return whole(folded)
door.FoldedFile.judged_quickly = judged
sys.exit(main(["fold", "net.onnx"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", words, str(int(number))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "bnfold: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
