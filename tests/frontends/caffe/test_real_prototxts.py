"""Real networks with made-up weights: they fold, as far as they can, into networks Caffe takes.

The numbers of networks like these are compared elsewhere: on random networks, on small ones, and on
trained ones. Here it is the texts that are real: 69 files of 30 authors.
"""

from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from bnfold.frontends.caffe.caffemodel import read_caffemodel
from bnfold.frontends.caffe.geometry import CONVOLUTIONS
from bnfold.frontends.caffe.net import Layer, Net
from bnfold.frontends.caffe.prototxt import read_text
from bnfold.frontends.caffe.read import is_for_training, read_net
from bnfold.frontends.caffe.shapes import infer
from tests.frontends.caffe.shared import PROTOTXTS, needs_shared
from tests.frontends.caffe.support import Pair, assert_caffe_takes_it, fold, kept, pair

ALL = {
    "mobilenet_deploy": 54,
    "mobilenet_v2_deploy": 106,
    "ResNet-50-deploy": 106,
    "ResNet-101-deploy": 208,
    "open_nsfw": 106,
    "SE-ResNet-50": 106,
    "SENet__models__SE-BN-Inception": 138,
    "shufflenet_1x_g3": 98,
    "MobileNet-SSD__deploy": 70,
    "SqNxt-23": 222,
    "retinaface__model__mnet25": 94,
    "segnet_basic": 8,
    "tsn_bn_inception_rgb_deploy": 69,
    "resnet_50__train_val_dummydata": 106,
}
"""Files of which every BatchNorm, BN and Scale goes, and how many those are."""
PART = {
    "resnet_v2_164": {"Scale": 54},
    "resnet_v2_1001": {"Scale": 333},
    "wrn_28_10": {"Scale": 12},
    "SnailTyan__caffe-model-zoo__SE-BN-Inception": {"BatchNorm": 69, "Scale": 69},
}
"""Files of which something stays: for a ReLU, which has no bounds, or for batch statistics."""


DATA = b'input: "data" input_shape { dim: 1 dim: 3 dim: 224 dim: 224 }\n'
"""For files whose data comes from a layer of the other phase."""


def made_up(net: Net) -> dict[str, list[NDArray[np.float32]]]:
    """Random arrays for all layers whose shapes are known."""
    arrays: dict[str, list[NDArray[np.float32]]] = {}
    for layer in net.layers:
        shapes = _shapes(net, layer)
        if shapes is not None:
            arrays[layer.name] = [_array(layer, shape) for shape in shapes]
    return arrays


NUMBERS = np.random.default_rng(0).normal(size=99_991).astype(np.float32)


def _array(layer: Layer, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Statistics are positive, factors have both signs."""
    numbers = np.abs(NUMBERS) + 0.1 if layer.type in ("BatchNorm", "BN") else NUMBERS
    return np.resize(numbers[zlib.crc32(layer.name.encode()) % 50_000 :], shape)


def _shapes(net: Net, layer: Layer) -> list[tuple[int, ...]] | None:
    shape = net.values[layer.inputs[0]].shape if layer.inputs else None
    first = next((one for one in net.layers if one.type == "Convolution"), None)
    if shape is None and layer is first:
        shape = (None, None, None, None)  # behind a data layer of a fork
    if shape is None or len(shape) < 2:
        return None
    channels = shape[1] or 3  # of a database, which holds images
    if layer.type == "BatchNorm":
        five = layer.options.part("batch_norm_param").has("scale_filler", "scale_bias")
        return [(channels,), (channels,), (1,), *([(channels,)] * 2 if five else [])]
    if layer.type == "BN":
        inference = layer.options.part("bn_param").text("bn_mode") == "INFERENCE"
        return [(1, channels, 1, 1)] * (2 if inference else 4)
    if layer.type == "Scale" and len(layer.bottoms) == 1:
        options = layer.options.part("scale_param")
        return [(channels,)] * (1 + options.flag("bias_term", default=False))
    if layer.type == "InnerProduct":
        options = layer.options.part("inner_product_param")
        if None in shape[1:]:
            return None
        out, elements = options.integer("num_output", 0), math.prod(n or 0 for n in shape[1:])
        if out * elements > 5_000_000:
            return None
        return [(out, elements), (out,)][: 1 + options.flag("bias_term", default=True)]
    if layer.type in CONVOLUTIONS or layer.type == "Deconvolution":
        options = layer.options.part("convolution_param")
        out, group = options.integer("num_output", 0), options.integer("group", 1)
        if layer.type == "ConvolutionDepthwise":
            group = channels
        size = options.integers("kernel_size")
        one = options.integer("kernel_h", 0) or size[0]
        kernel = (one, options.integer("kernel_w", 0) or size[-1])
        first = (
            (channels, out // group) if layer.type == "Deconvolution" else (out, channels // group)
        )
        return [(*first, *kernel), (out,)][: 1 + options.flag("bias_term", default=True)]
    return None


def folded(path: Path) -> tuple[Pair, Pair, dict[str, str], int]:
    text = path.read_bytes()
    document = read_text(text, path.name)
    net = read_net(document, read_caffemodel(b"", "none"))
    if any(note.startswith("data is made by no layer") for note in net.notes):
        net = read_net(read_text(DATA + text, path.name), read_caffemodel(b"", "none"))
    while True:
        infer(net)
        arrays = made_up(net)
        before = Pair(text, pair("", arrays, form="packed").weights)
        is_known = len(arrays) == len(net.weights.layers) or "Video" not in path.read_text("latin1")
        if is_known:
            break
        # The weights of the first layer tell the shapes behind it.
        net = read_net(net.document, read_caffemodel(before.weights, "made up"))
    phase = "test" if is_for_training(document) else None
    after, report = fold(before, phase=phase, merge="never")
    return before, after, kept(report), report.total


@needs_shared
@pytest.mark.parametrize("path", PROTOTXTS, ids=lambda path: path.stem[-40:])
def test_a_real_network_folds(path: Path) -> None:
    before, after, stays, total = folded(path)
    assert len(before.names) - len(after.names) == total - len(stays)
    assert_caffe_takes_it(after)
    expected = next((count for name, count in ALL.items() if name in path.name), None)
    if expected is not None:
        assert (total, stays) == (expected, {})
    kinds = dict(zip(before.names, before.types(), strict=True))
    for name, counts in PART.items():
        if name in path.name:
            assert {k: [kinds[n] for n in stays].count(k) for k in counts} == counts


@needs_shared
def test_the_expectations_are_of_files_that_are_there() -> None:
    names = [path.name for path in PROTOTXTS]
    for part in (*ALL, *PART):
        assert any(part in name for name in names), part


@needs_shared
@pytest.mark.parametrize("name", ["mobilenet_deploy", "mobilenet_v2_deploy"])
def test_the_networks_of_the_article(name: str) -> None:
    """MobileNet: Convolution + BatchNorm + Scale is one Convolution with a bias each."""
    (path,) = [one for one in PROTOTXTS if one.stem.endswith(name)]
    before, after, stays, _ = folded(path)
    assert stays == {}
    left = [
        name
        for name, kind in zip(before.names, before.types(), strict=True)
        if kind not in ("BatchNorm", "Scale")
    ]
    assert after.names == left
    assert b"bias_term: false" not in after.text
    for layer, blobs in after.stored().items():
        old = before.stored()[layer]
        assert blobs[0].shape == old[0].shape
        assert blobs[1].shape == (len(old[0]),)
