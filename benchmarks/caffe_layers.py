"""Each layer that the runner knows against a real Caffe, on small nets with made-up weights.

    PYCAFFE=<folder with the package caffe> python -m benchmarks.caffe_layers

PYCAFFE_PYTHON names the interpreter that pycaffe was built for, if it is another one.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.caffe_nets import NETS
from benchmarks.pycaffe import PycaffeError, run_pycaffe
from bnfold.frontends.caffe.run_layers import execute
from tests.frontends.caffe.made_up import make_up, run_layers
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.wire import caffemodel


def main() -> int:
    worst = 0.0
    wanted = sys.argv[1:]
    for name, (shapes, text) in NETS.items():
        if wanted and name not in wanted:
            continue
        difference = check(name, shapes, text)
        print(f"{name:40} {difference}", flush=True)
        worst = max(worst, difference if isinstance(difference, float) else np.inf)
    return int(worst > 1e-5)


def check(name: str, shapes: dict[str, tuple[int, ...]], text: str) -> float | str:
    rng = np.random.default_rng(len(text))
    inputs = {key: rng.normal(size=shape).astype(np.float32) for key, shape in shapes.items()}
    net = parse(text)
    made = make_up(net, inputs, seed=len(text))
    if made.unknown:
        return f"did not run: {made.unknown}"
    with tempfile.TemporaryDirectory() as folder:
        prototxt, weights = Path(folder, "net.prototxt"), Path(folder, "net.caffemodel")
        heads = "".join(
            f'input: "{key}" input_shape {{ {" ".join(f"dim: {n}" for n in shape)} }}\n'
            for key, shape in shapes.items()
        )
        prototxt.write_text(heads + text)
        weights.write_bytes(caffemodel(made.weights))
        try:
            actual = run_pycaffe(prototxt, weights, inputs)
        except PycaffeError as error:
            return str(error)
    execution = execute(
        run_layers(net, made.weights, torch.float64),
        {key: torch.tensor(x).double() for key, x in inputs.items()},
    )
    differences = [0.0]
    for key, expected in execution.outputs.items():
        real = actual[key]
        if real.shape != tuple(expected.shape):
            return f"{key}: {tuple(expected.shape)}, in Caffe {real.shape}"
        e = expected.numpy()
        same = (e == real) | (np.isnan(e) & np.isnan(real))
        gap = np.where(same, 0, np.abs(e - real)).max(initial=0)
        differences.append(float(gap / (np.abs(e[np.isfinite(e)]).max(initial=0) or 1)))
    if not execution.outputs:
        return "no outputs"
    return max(differences)


if __name__ == "__main__":
    sys.exit(main())
