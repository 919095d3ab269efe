"""The same network gives the same decisions in PyTorch, ONNX and Caffe.

Caffe has no activation with bounds per channel, so the others are asked for clip="never". One
BatchNorm of the others is a BatchNorm and a Scale in Caffe: it is gone if both are; and if it
cannot go, the one that is left carries the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import bnfold
from bnfold.core.reasons import Reason
from bnfold.frontends.caffe.run import run_net
from bnfold.outcomes import Item, Kept
from bnfold.report import FoldReport
from tests.conformance.three_frontends import (
    INPUT,
    Network,
    Node,
    caffe_files,
    node,
    onnx_model,
    outputs_of,
    weights_of,
)

ort = pytest.importorskip("onnxruntime")

SHAPE = (2, 4, 9, 9)


def conv(name: str, source: str, channels: int = 4, out: int = 4, **sizes: int) -> Node:
    sizes = {"kernel": 3, **sizes}
    return node(name, "conv", source, channels=channels, out=out, **sizes)


def bn(name: str, source: str, channels: int = 4, **sizes: int) -> Node:
    return node(name, "bn", source, channels=channels, **sizes)


NETWORKS: dict[str, list[Node]] = {
    # must stay
    "batch norm of the input, before padding": [bn("bn", INPUT), conv("c", "bn", pad=1)],
    "before a padded convolution, behind a sigmoid": [
        conv("c1", INPUT),
        node("s", "sigmoid", "c1"),
        bn("bn", "s"),
        conv("c2", "bn", pad=1),
    ],
    "between two sigmoids": [
        node("s1", "sigmoid", INPUT),
        bn("bn", "s1"),
        node("s2", "sigmoid", "bn"),
    ],
    "two readers, one of them a sigmoid": [
        node("s", "sigmoid", INPUT),
        bn("bn", "s"),
        conv("c", "bn"),
        node("t", "sigmoid", "bn"),
    ],
    "behind an average that counts its padding": [
        conv("c1", INPUT, pad=1),
        node("p", "mean", "c1", kernel=3, stride=2, pad=1),
        bn("bn", "p"),
        conv("c2", "bn", pad=1),
    ],
    "pre-activation: the ReLU has no room": [
        conv("stem", INPUT, pad=1),
        bn("bn1", "stem"),
        node("r1", "relu", "bn1"),
        conv("c1", "r1", pad=1),
        bn("bn2", "c1"),
        node("r2", "relu", "bn2"),
        conv("c2", "r2", pad=1),
        node("sum", "add", "stem", "c2"),
        bn("bn3", "sum"),
        node("r3", "relu", "bn3"),
        conv("c3", "r3", pad=1),
        node("sum2", "add", "sum", "c3"),
    ],
    "residual stream of a sigmoid": [
        node("s", "sigmoid", INPUT),
        bn("bn", "s"),
        conv("c", "bn", pad=1),
        node("sum", "add", "bn", "c"),
    ],
    "behind a maximum, gammas of both signs, before a ReLU": [
        conv("c1", INPUT, pad=1),
        node("p", "max", "c1", kernel=3, stride=2, pad=1),
        bn("bn", "p"),
        node("r", "relu", "bn"),
        conv("c2", "r", pad=1),
    ],
    "behind a concatenation with the input": [
        conv("c", INPUT, pad=1),
        node("cat", "concat", "c", INPUT),
        bn("bn", "cat", 8),
        node("r", "relu", "bn"),
    ],
    # may go
    "convolution, batch norm, ReLU": [
        conv("c1", INPUT, bias=0, pad=1),
        bn("bn1", "c1"),
        node("r1", "relu", "bn1"),
        conv("c2", "r1", 4, 6, pad=1),
        bn("bn2", "c2", 6),
        node("r2", "relu", "bn2"),
    ],
    "residual": [
        conv("c1", INPUT, pad=1),
        bn("bn1", "c1"),
        node("r1", "relu", "bn1"),
        conv("c2", "r1", pad=1),
        bn("bn2", "c2"),
        conv("c3", INPUT, kernel=1),
        bn("bn3", "c3"),
        node("sum", "add", "bn2", "bn3"),
        node("r2", "relu", "sum"),
    ],
    "concatenation": [
        conv("c1", INPUT, 4, 3, pad=1),
        conv("c2", INPUT, 4, 5, kernel=1),
        node("cat", "concat", "c1", "c2"),
        bn("bn", "cat", 8),
        node("r", "relu", "bn"),
    ],
    "depthwise": [
        conv("c1", INPUT, 4, 6, kernel=1, bias=0),
        bn("bn1", "c1", 6),
        node("r1", "relu", "bn1"),
        conv("c2", "r1", 6, 6, group=6, pad=1, bias=0),
        bn("bn2", "c2", 6),
        node("r2", "relu", "bn2"),
        conv("c3", "r2", 6, 4, kernel=1, bias=0),
        bn("bn3", "c3"),
    ],
    "deconvolution": [
        node("d1", "deconv", INPUT, channels=4, out=6, kernel=4, stride=2, pad=1),
        bn("bn1", "d1", 6),
        node("r1", "relu", "bn1"),
        node("d2", "deconv", "r1", channels=6, out=4, kernel=2, stride=2, group=2, bias=0),
        bn("bn2", "d2", 4),
    ],
    "behind a maximum with padding": [
        conv("c1", INPUT, pad=1),
        node("p", "max", "c1", kernel=3, stride=2, pad=1),
        bn("bn", "p", negative=0),
        node("r", "relu", "bn"),
        conv("c2", "r", pad=1),
    ],
    "behind a maximum, before a convolution": [
        node("s", "sigmoid", INPUT),
        node("p", "max", "s", kernel=3, stride=2, pad=1),
        bn("bn", "p"),
        conv("c2", "bn"),
    ],
    "behind an average with padding, before a convolution": [
        conv("c1", INPUT, pad=1),
        node("p", "mean", "c1", kernel=3, stride=2, pad=1),
        bn("bn", "p"),
        conv("c2", "bn"),
    ],
    "linear": [
        conv("c1", INPUT, pad=1),
        bn("bn1", "c1"),
        node("r1", "relu", "bn1"),
        node("gap", "global mean", "r1"),
        node("flat", "flatten", "gap"),
        node("fc1", "linear", "flat", channels=4, out=5, bias=0),
        bn("bn2", "fc1", 5, image=0),
        node("r2", "relu", "bn2"),
        node("fc2", "linear", "r2", channels=5, out=3),
    ],
    "three in a row": [
        conv("c", INPUT),
        bn("bn1", "c"),
        bn("bn2", "bn1"),
        bn("bn3", "bn2"),
        node("s", "sigmoid", "bn3"),
    ],
    "a tensor and its batch norm": [
        node("s", "sigmoid", INPUT),
        bn("bn", "s"),
        node("sum", "add", "s", "bn"),
        conv("c", "sum"),
    ],
    "a batch norm beside a depthwise convolution": [
        node("s", "sigmoid", INPUT),
        bn("bn", "s"),
        conv("c1", "s", group=4, pad=1),
        bn("bn1", "c1"),
        node("sum", "add", "bn1", "bn"),
        node("t", "sigmoid", "sum"),
        conv("c2", "t"),
    ],
    "dense block": [
        conv("c0", INPUT, pad=1),
        conv("c1", "c0", pad=1),
        node("cat1", "concat", "c0", "c1"),
        bn("bn1", "cat1", 8),
        conv("c2", "bn1", 8, 4, kernel=1),
        node("cat2", "concat", "cat1", "c2"),
        bn("bn2", "cat2", 12),
        conv("c3", "bn2", 12, 4, kernel=1),
    ],
}
MUST_STAY = list(NETWORKS)[:9]

networks = pytest.mark.parametrize("name", list(NETWORKS))
Decision = tuple[str, str, str]
"""Outcome, reason, blocker."""


def decision(item: Item, outputs: list[str]) -> Decision:
    outcome = item.outcome
    if not isinstance(outcome, Kept):
        return ("removed", "", "")
    # An activation needs bounds: in the one case they are not wanted, in the other there is no room
    # for them.
    reason = Reason.ACTIVATION if outcome.reason is Reason.CLIP_COST else outcome.reason
    return ("kept", str(reason), _layer(outcome.blocker or "", outputs))


def _layer(blocker: str, outputs: list[str]) -> str:
    """PyTorch says 'avg_pool2d in p' and 'output [0]' where the others have names of nodes."""
    numbered = re.fullmatch(r"output \[(\d+)\]", blocker)
    return outputs[int(numbered[1])] if numbered else blocker.rpartition(" in ")[2]


def decisions(report: FoldReport, outputs: list[str]) -> dict[str, Decision]:
    """By name; of a BatchNorm and its Scale in Caffe, the one that is left counts."""
    found: dict[str, Decision] = {}
    for item in report.items:
        name = item.name.removesuffix("/scale")
        one = decision(item, outputs)
        if found.get(name, one)[0] == "kept":
            one = found.get(name, one)
        found[name] = one
    return found


def fold_all(nodes: list[Node], folder: Path) -> dict[str, FoldReport]:
    weights = weights_of(nodes)
    files = caffe_files(nodes, weights, SHAPE, folder)
    data = torch.zeros(SHAPE)
    return {
        "torch": bnfold.fold(Network(nodes, weights), data, clip="never", merge="never").report,
        "onnx": bnfold.fold(onnx_model(nodes, weights, SHAPE), clip="never", merge="never").report,
        "caffe": bnfold.fold(files, output=folder / "folded.prototxt", merge="never").report,
    }


@networks
def test_the_decisions_are_the_same(name: str, tmp_path: Path) -> None:
    reports = fold_all(NETWORKS[name], tmp_path)
    outputs = outputs_of(NETWORKS[name])
    found = {frontend: decisions(report, outputs) for frontend, report in reports.items()}
    assert found["torch"] == found["onnx"]
    # Where a BatchNorm and its Scale are between two obstacles, either may be named.
    pairs = {kind: {n: one[:2] for n, one in found[kind].items()} for kind in ("torch", "caffe")}
    assert pairs["torch"] == pairs["caffe"]
    names = {one.name for one in NETWORKS[name] if one.kind == "bn"}
    assert set(found["torch"]) == names
    has_kept = any(outcome == "kept" for outcome, *_ in found["torch"].values())
    assert has_kept == (name in MUST_STAY)


@networks
def test_the_three_are_one_network(name: str, tmp_path: Path) -> None:
    nodes = NETWORKS[name]
    weights = weights_of(nodes)
    data = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    names = outputs_of(nodes)
    with torch.no_grad():
        made = Network(nodes, weights).double()(torch.tensor(data).double())
    expected = {key: value.numpy() for key, value in zip(names, made, strict=True)}
    model = onnx_model(nodes, weights, SHAPE)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    in_onnx = dict(zip(names, session.run(names, {INPUT: data}), strict=True))
    in_caffe = run_net(*caffe_files(nodes, weights, SHAPE, tmp_path), {INPUT: data})
    for key, wanted in expected.items():
        scale = np.abs(wanted).max()
        assert np.abs(in_onnx[key] - wanted).max() <= 1e-5 * scale
        assert np.abs(in_caffe[key] - wanted).max() <= 1e-6 * scale  # eps is a float32 there
