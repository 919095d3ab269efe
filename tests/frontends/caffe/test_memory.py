"""Blobs that share memory: what works in place behind them must overwrite nothing.

In Caffe the tops of Flatten, Reshape, Split, a Concat of one and a Slice into one are the memory
of their bottom. A BatchNorm that does not work in place makes fresh memory; without it, an
activation that works in place would write into what a later layer reads.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.errors import UnsupportedModelError
from bnfold.frontends.caffe.run import run_net
from tests.frontends.caffe.made_up import make_up
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.wire import caffemodel

INPUT = 'input: "data" input_shape { dim: 2 dim: 3 dim: 5 dim: 5 }\n'
CONV = """layer { name: "conv" type: "Convolution" bottom: "data" top: "x"
  convolution_param { num_output: 4 kernel_size: 2 } }
"""
LATER = """layer { name: "later" type: "Convolution" bottom: "x" top: "y"
  convolution_param { num_output: 2 kernel_size: 2 } }
"""
SHARED = {
    "flatten": 'type: "Flatten" bottom: "x" top: "f" flatten_param { axis: 2 }',
    "reshape": """type: "Reshape" bottom: "x" top: "f"
        reshape_param { shape { dim: 0 dim: 0 dim: -1 dim: 1 } }""",
    "split": 'type: "Split" bottom: "x" top: "f" top: "unused"',
    "concat of one": 'type: "Concat" bottom: "x" top: "f"',
    "slice into one": 'type: "Slice" bottom: "x" top: "f"',
}
shared = pytest.mark.parametrize("layer", SHARED.values(), ids=list(SHARED))


def assert_same(folder: Path, text: str) -> int:
    """Fold and compare in shared memory; returns how many steps went."""
    net = parse(text)
    inputs = {"data": np.random.default_rng(1).normal(size=(2, 3, 5, 5)).astype(np.float32)}
    source, target = folder / "net.prototxt", folder / "folded.prototxt"
    source.write_text(text)
    weights = source.with_suffix(".caffemodel")
    weights.write_bytes(caffemodel(make_up(net, inputs).weights, double=True))
    _, report = bnfold.fold((source, weights), output=target, force=True)
    expected = run_net(source, weights, inputs)
    actual = run_net(target, target.with_suffix(".caffemodel"), inputs)
    assert list(actual) == list(expected)
    for name, wanted in expected.items():
        assert actual[name] == pytest.approx(wanted, rel=1e-10, abs=1e-10), name
    return report.removed


@shared
def test_the_activation_behind_must_not_write_into_what_a_later_layer_reads(
    tmp_path: Path, layer: str
) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "f" top: "g" }\n'
    relu = 'layer { name: "relu" type: "ReLU" bottom: "g" top: "g" }\n'
    text = f'{INPUT}{CONV}layer {{ name: "f" {layer} }}\n{norm}{relu}{LATER}'
    assert_same(tmp_path, text)


@shared
def test_nor_into_an_output_of_the_network(tmp_path: Path, layer: str) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "f" top: "g" }\n'
    sigmoid = 'layer { name: "sigmoid" type: "Sigmoid" bottom: "g" top: "g" }\n'
    split = 'layer { name: "both" type: "Split" bottom: "x0" top: "x" top: "out" }\n'
    conv = CONV.replace('top: "x"', 'top: "x0"')
    text = f'{INPUT}{conv}{split}layer {{ name: "f" {layer} }}\n{norm}{sigmoid}'
    assert_same(tmp_path, text)


@shared
def test_a_network_that_overwrites_what_it_reads_later_is_not_misread(
    tmp_path: Path, layer: str
) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "f" top: "f" }\n'
    text = f'{INPUT}{CONV}layer {{ name: "f" {layer} }}\n{norm}{LATER}'
    try:
        assert_same(tmp_path, text)
    except UnsupportedModelError as error:
        assert "bn" in str(error)


@shared
def test_where_nobody_reads_it_later_the_batch_norm_goes(tmp_path: Path, layer: str) -> None:
    norm = 'layer { name: "bn" type: "BatchNorm" bottom: "f" top: "g" }\n'
    relu = 'layer { name: "relu" type: "ReLU" bottom: "g" top: "g" }\n'
    layer = layer.replace(' top: "unused"', "")
    text = f'{INPUT}{CONV}layer {{ name: "f" {layer} }}\n{norm}{relu}'
    assert assert_same(tmp_path, text) == 1
