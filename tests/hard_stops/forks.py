"""The command in processes of their own that need not import it again.

A server, started once, has imported what the command uses; each run is a fork of it. It runs
nothing itself and starts no thread, so a fork of it is what a process is that has just imported.
"""

from __future__ import annotations

import atexit
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

_IMPORTED = (
    "bnfold.cli.bench",
    "bnfold.cli.fold",
    "bnfold.cli.inspect",
    "bnfold.cli.verify",
    "bnfold.frontends.caffe.door",
    "bnfold.frontends.onnx.door",
    "bnfold.frontends.onnx.run_exact",
    "onnxruntime",
)


def run(
    first: Callable[..., None], values: tuple[Any, ...], arguments: list[str]
) -> subprocess.CompletedProcess[str]:
    """Call a function of a module with values, then the command."""
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    pickle.dump((first, values, arguments), server.stdin)
    server.stdin.flush()
    status, out, err = pickle.load(server.stdout)
    return subprocess.CompletedProcess(arguments, status, out, err)


@cache
def _server() -> subprocess.Popen[bytes]:
    places = [str(Path.cwd()), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "tests.hard_stops.forks"]
    server = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
    atexit.register(server.kill)
    return server


def _serve() -> None:
    for module in _IMPORTED:
        import_module(module)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while requests.peek(1):
        request = pickle.load(requests)
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _run(*request, out.fileno(), err.fileno())
            _, status = os.waitpid(child, 0)
            texts = [os.pread(file.fileno(), 1 << 20, 0).decode() for file in (out, err)]
        pickle.dump((os.waitstatus_to_exitcode(status), *texts), answers)
        answers.flush()


def _run(
    first: Callable[..., None], values: tuple[Any, ...], arguments: list[str], out: int, err: int
) -> None:
    """As `python -m bnfold` ends, without what a process does at its end for others."""
    from bnfold.cli import main

    os.dup2(out, 1)
    os.dup2(err, 2)
    status = 70
    try:
        first(*values)
        status = main(arguments)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            if sys.stdout is not None:
                sys.stdout.flush()
        except OSError:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    _serve()
