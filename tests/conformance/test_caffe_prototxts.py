"""Real network definitions with made-up weights, in double precision: a fold changes no number.

The statistics of the weights are near those of what the layers see, as after training, so that
values neither vanish nor explode over hundreds of layers, and every branch counts. The images are
smaller than the files say, which takes less time and shows the same.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import bnfold
from bnfold.frontends.caffe.run import run_net
from tests.conformance.caffe_models import SHARED
from tests.frontends.caffe.made_up import make_up
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.random_nets import assert_is_legal
from tests.frontends.caffe.wire import caffemodel
from tests.tolerances import EXACT

IMAGE = (1, 3, 128, 128)
CIFAR = (1, 3, 32, 32)
NETWORKS = {
    # name: input, removed, kept
    "shicai__MobileNet-Caffe__mobilenet_deploy": (IMAGE, 54, 0),
    "shicai__MobileNet-Caffe__mobilenet_v2_deploy": (IMAGE, 106, 0),
    "farmingyard__ShuffleNet__shufflenet_1x_g3_deploy": (IMAGE, 98, 0),
    "binLearning__caffe_toolkit__ResNet-v2__resnet_v2_164_deploy": (CIFAR, 278, 54),
    "binLearning__caffe_toolkit__WRN__wrn_28_10_deploy": (CIFAR, 44, 12),
    "TimoSaemann__ENet__prototxts__enet_deploy_final": ((1, 3, 64, 128), 2, 1),
    "eric612__MobileNet-YOLO__models__tusimple__mobilenet_yolov3_lite_train": (IMAGE, 38, 0),
    "dog-qiuqiu__MobileNet-Yolo__darknet2caffe__sample__MobileNetV2-YOLOv3-Nano-voc": (
        (1, 3, 96, 96),
        114,
        0,
    ),
}


@pytest.mark.parametrize("name", list(NETWORKS))
def test_it_computes_the_same(tmp_path: Path, name: str) -> None:
    file = SHARED / "prototxts" / f"{name}.prototxt"
    if not file.exists():
        pytest.skip("the folder shared/caffe is not beside this checkout")
    shape, removed, kept = NETWORKS[name]
    network, folded = tmp_path / "network.prototxt", tmp_path / "folded.prototxt"
    text = _resized(file.read_text(encoding="utf-8"), shape)
    network.write_text(text, encoding="utf-8")
    net = parse(text)
    inputs = {"data": np.random.default_rng(0).normal(size=shape).astype(np.float32)}
    weights = network.with_suffix(".caffemodel")
    made = make_up(net, inputs)
    weights.write_bytes(caffemodel(made.weights, double=True))
    report = bnfold.fold((network, weights), phase="test", output=folded).report
    assert (report.removed, report.kept) == (removed, kept)
    if net.texts("input") or "Input" in text:
        assert_is_legal(parse(folded.read_text(encoding="utf-8")))
    expected = run_net(network, weights, inputs)
    actual = run_net(folded, folded.with_suffix(".caffemodel"), inputs)
    assert list(actual) == list(expected) != []
    for key, wanted in expected.items():
        scale = np.abs(wanted).max()
        assert np.isfinite(scale) and scale > 0
        assert np.abs(actual[key] - wanted).max() <= EXACT * scale, key


def _resized(text: str, shape: tuple[int, ...]) -> str:
    """The text with other rows and columns of its input."""
    sizes = iter(shape[2:])
    head, tail = text[:600], text[600:]
    return re.sub(r"(dim:\s*)(\d{2,})", lambda m: f"{m[1]}{next(sizes)}", head, count=2) + tail
