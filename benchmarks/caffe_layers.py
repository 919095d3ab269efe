"""Each layer that the runner knows against a real Caffe, on small nets with made-up weights.

    PYCAFFE=<folder with the package caffe> python -m benchmarks.caffe_layers [--record] [NAME ...]

`--record` writes what Caffe computed to tests/golden/caffe_layers.npz, where the tests find it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.pycaffe import PycaffeError, run_pycaffe
from bnfold.frontends.caffe.run_layers import execute
from tests.frontends.caffe.made_up import MadeUp, make_up, run_layers
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.wire import caffemodel

_LIST = Path(__file__).with_name("caffe_layers.txt")
_GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "caffe_layers.npz"
_TOLERANCE = 1e-6
_STEP = 1 / 16
"""Inputs and weights are multiples of it: exact in float16, so they take little room."""
Arrays = dict[str, NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class SmallNet:
    """A line of caffe_layers.txt."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs."""
    text: str
    """The prototxt without its inputs."""

    @classmethod
    def parse(cls, line: str) -> SmallNet:
        """Name, inputs, type, tops and options, with bars between."""
        name, inputs, kind, tops, options = (part.strip() for part in line.split("|"))
        shapes = {}
        for one in inputs.split(","):
            key, sizes = one.split()
            shapes[key] = tuple(int(size) for size in sizes.split("x"))
        wires = [f'bottom: "{key}"' for key in shapes] + [f'top: "{top}"' for top in tops.split()]
        text = f'layer {{ name: "layer" type: "{kind}" {" ".join(wires)} {options} }}\n'
        return cls(name, shapes, text)

    @property
    def prototxt(self) -> str:
        """The whole text."""
        heads = (
            f'input: "{key}" input_shape {{ {" ".join(f"dim: {n}" for n in shape)} }}\n'
            for key, shape in self.shapes.items()
        )
        return "".join(heads) + self.text


def small_nets() -> list[SmallNet]:
    """All lines of the list."""
    lines = _LIST.read_text(encoding="utf-8").splitlines()
    return [SmallNet.parse(line) for line in lines if line and not line.startswith("#")]


def main() -> int:
    """Compare, print, and record if asked. Returns 1 if any net differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("names", nargs="*")
    arguments = parser.parse_args()
    golden: dict[str, NDArray[Any]] = {}
    failed = 0
    for net in small_nets():
        if arguments.names and net.name not in arguments.names:
            continue
        inputs = _inputs(net)
        made = make_up(parse(net.text), inputs, seed=len(net.text))
        for _, blobs in made.weights.values():
            blobs[:] = [_coarse(blob) for blob in blobs]
        real = _real(net, made, inputs)
        difference = real if isinstance(real, str) else _difference(net, made, inputs, real)
        print(f"{net.name:40} {difference}", flush=True)
        failed += isinstance(difference, str) or difference > _TOLERANCE
        if not isinstance(real, str):
            golden.update(_keys(net, made, inputs, real))
    if arguments.record:
        _GOLDEN.parent.mkdir(exist_ok=True)
        np.savez_compressed(_GOLDEN, **golden)
    return int(failed > 0)


def _inputs(net: SmallNet) -> Arrays:
    rng = np.random.default_rng(len(net.text))
    return {key: _coarse(rng.normal(size=shape)) for key, shape in net.shapes.items()}


def _coarse(values: NDArray[Any]) -> NDArray[np.float32]:
    return np.asarray(np.round(values / _STEP) * _STEP, dtype=np.float32)


def _real(net: SmallNet, made: MadeUp, inputs: Arrays) -> Arrays | str:
    if made.unknown:
        return "did not run"
    with tempfile.TemporaryDirectory() as folder:
        prototxt, weights = Path(folder, "net.prototxt"), Path(folder, "net.caffemodel")
        prototxt.write_text(net.prototxt)
        weights.write_bytes(caffemodel(made.weights))
        try:
            return run_pycaffe(prototxt, weights, inputs)
        except PycaffeError as error:
            return str(error)


def _difference(net: SmallNet, made: MadeUp, inputs: Arrays, real: Arrays) -> float | str:
    execution = execute(
        run_layers(parse(net.text), made.weights, torch.float64),
        {key: torch.tensor(x).double() for key, x in inputs.items()},
    )
    worst = 0.0
    for key, tensor in execution.outputs.items():
        expected, actual = real[key], tensor.numpy()
        if expected.shape != actual.shape:
            return f"{key}: {actual.shape}, in Caffe {expected.shape}"
        same = (expected == actual) | (np.isnan(expected) & np.isnan(actual))
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=0) or 1.0
        worst = max(worst, float(np.where(same, 0, np.abs(expected - actual)).max() / scale))
    return worst if execution.outputs else "no outputs"


def _keys(net: SmallNet, made: MadeUp, inputs: Arrays, real: Arrays) -> dict[str, NDArray[Any]]:
    """Entries of the record: 'net/in/blob', 'net/weight/number', 'net/out/blob'."""
    blobs = [blob for _, blobs in made.weights.values() for blob in blobs]
    outputs = {key: blob for key, blob in real.items() if key not in inputs}
    return {
        **{f"{net.name}/in/{key}": x.astype(np.float16) for key, x in inputs.items()},
        **{f"{net.name}/weight/{n}": blob.astype(np.float16) for n, blob in enumerate(blobs)},
        **{f"{net.name}/out/{key}": blob for key, blob in outputs.items()},
    }


if __name__ == "__main__":
    sys.exit(main())
