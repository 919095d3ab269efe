"""Very deep and very wide Caffe networks: no recursion, no time that grows with the square."""

from __future__ import annotations

import numpy as np

from tests.frontends import deep
from tests.frontends.caffe.support import Pair, assert_equal, fold, pair

HEAD = 'input: "data"\ninput_shape { dim: 1 dim: 2 dim: 1 dim: 1 }\n'


class Net:
    """Writes layers; each reads the last top unless told."""

    def __init__(self) -> None:
        self.parts = [HEAD]
        self.arrays: dict[str, list[np.ndarray]] = {}
        self.at = "data"

    def layer(self, kind: str, name: str, extra: str = "", *, bottoms=None, blobs=()) -> None:
        read = " ".join(f'bottom: "{one}"' for one in bottoms or [self.at])
        self.parts.append(
            f'layer {{ name: "{name}" type: "{kind}" {read} top: "{name}" {extra} }}\n'
        )
        if blobs:
            self.arrays[name] = list(blobs)
        self.at = name

    def conv(self, kernel, name: str, group: int = 1) -> None:
        extra = (
            f"convolution_param {{ num_output: {len(kernel)} kernel_size: 1"
            f" group: {group} bias_term: false }}"
        )
        self.layer("Convolution", name, extra, blobs=[kernel])

    def norm(self, norm: deep.Norm, name: str) -> None:
        one = np.ones(1)
        self.layer(
            "BatchNorm",
            name,
            f"batch_norm_param {{ eps: {norm.eps} }}",
            blobs=[norm.mean, norm.var, one],
        )
        extra = "scale_param { bias_term: true }"
        self.layer("Scale", f"{name}_scale", extra, blobs=[norm.gamma, norm.beta])

    def relu(self, name: str) -> None:
        self.layer("ReLU", name)

    def pair(self) -> Pair:
        return pair("".join(self.parts), self.arrays)


def assert_folds(net: Net) -> None:
    model = net.pair()
    folded, report = fold(model, clip="never")
    assert report.kept == 0
    assert not {"BatchNorm", "Scale"} & set(folded.types())
    data = np.array([0.7, 1.3]).reshape(1, 2, 1, 1)
    assert_equal(model, folded, {"data": data}, tolerance=deep.TOLERANCE)


def test_a_chain_of_two_thousand_layers():
    """A convolution, a BatchNorm, a Scale and a ReLU each."""
    net = Net()
    for index, block in enumerate(deep.chain()):
        net.conv(block.kernel, f"conv{index}", group=2)
        net.norm(block.norm, f"bn{index}")
        net.relu(f"relu{index}")
    assert_folds(net)


def test_branches_through_two_thousand_layers():
    """x + BN(conv(x))"""
    net = Net()
    for index, block in enumerate(deep.branches()):
        stream = net.at
        norm = deep.Norm(
            block.norm.gamma / 50, block.norm.beta / 50, block.norm.mean, block.norm.var
        )
        net.conv(block.kernel, f"conv{index}")
        net.norm(norm, f"bn{index}")
        net.layer("Eltwise", f"sum{index}", bottoms=[stream, net.at])
    assert_folds(net)


def test_a_hundred_thousand_channels():
    first, second, last = deep.wide()
    net = Net()
    net.conv(first.kernel, "first")
    net.norm(first.norm, "one")
    net.relu("relu1")
    net.conv(second.kernel, "second", group=deep.WIDE)
    net.norm(second.norm, "two")
    net.relu("relu2")
    net.conv(last, "last")
    assert_folds(net)
