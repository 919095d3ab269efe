"""Run a net in a real Caffe that is not part of this environment.

PYCAFFE names the folder that holds the package `caffe`, PYCAFFE_PYTHON the interpreter that it was
built for (this one by default). PyPI's brocolli-caffe 9.0.2 is the source of a Caffe that builds
with today's compilers; docs/benchmarks/caffe_models.md says how.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_WORKER = Path(__file__).with_name("pycaffe_worker.py")


class PycaffeError(RuntimeError):
    """Caffe could not run a net; the message is the end of what it said."""


def run_pycaffe(
    prototxt: Path, weights: Path | None, inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[np.float32]]:
    """All blobs of a net after one forward pass."""
    folder = os.environ.get("PYCAFFE")
    if not folder:
        raise SystemExit("set PYCAFFE to the folder that holds the package caffe")
    python = os.environ.get("PYCAFFE_PYTHON", sys.executable)
    environment = {**os.environ, "PYTHONPATH": folder, "GLOG_minloglevel": "2"}
    with tempfile.TemporaryDirectory() as scratch:
        given, got = Path(scratch, "in.npz"), Path(scratch, "out.npz")
        np.savez(given, **inputs)
        command = [python, _WORKER, prototxt, weights or "-", given, got]
        done = subprocess.run(
            [str(part) for part in command], env=environment, capture_output=True, text=True
        )
        if done.returncode:
            raise PycaffeError("\n".join(done.stderr.strip().splitlines()[-8:]))
        with np.load(got) as blobs:
            return {name: blobs[name] for name in blobs.files}
