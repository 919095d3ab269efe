"""Whether siblings are worth merging: ops of one tensor whose outputs stay apart, in ONNX Runtime.

    convolutions    k convolutions of one tensor with one geometry, their outputs concatenated,
                    with a ReLU behind the concat or each, against what a fold makes of them
    matrices        the same of matrices
    linears         q, k and v, three matrices of one tensor, against one and a Split behind it

Both forms run in turn in one process, on one thread, by its processor time; a ratio is that of the
one op to the several, the median over all rounds. Below 1 the one op is faster.

    python -m benchmarks.siblings
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

import bnfold
from benchmarks.markdown import table
from benchmarks.merging import OnProcessor
from bnfold.bench.run import samples
from bnfold.bench.settings import Wishes
from bnfold.bench.timing import Budget, ratio
from bnfold.frontends.onnx.runtimes import OPTIMISED, PLAIN, OnnxSubject


@dataclass(frozen=True, slots=True)
class Convolutions:
    """Convolutions of one tensor, concatenated."""

    channels: int
    outputs: Sequence[int]
    """Of each convolution."""
    kernel: int
    size: int
    """Height and width."""
    each: bool = False
    """Whether each has a ReLU of its own."""
    is_transposed: bool = False

    def __str__(self) -> str:
        filters = " + ".join(map(str, self.outputs))
        geometry = f"{self.kernel}x{self.kernel}, {self.channels} -> {filters}"
        kind = "transposed " if self.is_transposed else ""
        more = ", a ReLU each" if self.each else ""
        return f"{kind}{geometry} at {self.size}x{self.size}{more}"

    def several(self) -> onnx.ModelProto:
        """As they are."""
        weights = self._weights()
        nodes = [self._conv(f"w{i}", f"y{i}") for i in range(len(weights))]
        parts = [f"y{i}" for i in range(len(weights))]
        if self.each:
            nodes += [helper.make_node("Relu", [part], [f"{part}_relu"]) for part in parts]
            parts = [f"{part}_relu" for part in parts]
        nodes.append(helper.make_node("Concat", parts, ["joined"], axis=1))
        return self._model(nodes, {f"w{i}": weight for i, weight in enumerate(weights)})

    def one(self) -> onnx.ModelProto:
        """All filters in one."""
        return _folded(self.several())

    def _weights(self) -> list[np.ndarray]:
        taps = (self.kernel, self.kernel)
        pairs = [
            (self.channels, o) if self.is_transposed else (o, self.channels) for o in self.outputs
        ]
        return [_normal((*pair, *taps)) for pair in pairs]

    def _conv(self, weight: str, output: str) -> onnx.NodeProto:
        pads = [self.kernel // 2] * 4
        op = "ConvTranspose" if self.is_transposed else "Conv"
        return helper.make_node(op, ["x", weight], [output], pads=pads)

    def _model(
        self, nodes: list[onnx.NodeProto], weights: dict[str, np.ndarray]
    ) -> onnx.ModelProto:
        # What follows in a network: an activation of all channels.
        nodes = [*nodes, helper.make_node("Relu", ["joined"], ["y"])]
        return _model(nodes, weights, (1, self.channels, self.size, self.size), ["y"])


@dataclass(frozen=True, slots=True)
class Matrices:
    """Matrices of one tensor, concatenated."""

    width: int
    outputs: Sequence[int]
    """Of each matrix."""
    tokens: int

    def __str__(self) -> str:
        columns = " + ".join(map(str, self.outputs))
        return f"matrices, {self.width} -> {columns}, of {self.tokens} tokens"

    def several(self) -> onnx.ModelProto:
        """As they are."""
        weights = {f"w{i}": _normal((self.width, o)) for i, o in enumerate(self.outputs)}
        parts = [f"y{i}" for i in range(len(weights))]
        pairs = zip(weights, parts, strict=True)
        nodes = [helper.make_node("MatMul", ["x", weight], [part]) for weight, part in pairs]
        nodes.append(helper.make_node("Concat", parts, ["joined"], axis=2))
        nodes.append(helper.make_node("Relu", ["joined"], ["y"]))
        return _model(nodes, weights, (1, self.tokens, self.width), ["y"])

    def one(self) -> onnx.ModelProto:
        """All columns in one."""
        return _folded(self.several())


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    folded, report = bnfold.fold(model)
    assert report.merged, "these are not merged"
    return folded


@dataclass(frozen=True, slots=True)
class Linears:
    """q, k and v."""

    width: int
    tokens: int

    def __str__(self) -> str:
        return f"q, k, v of {self.tokens} tokens of {self.width}"

    def several(self) -> onnx.ModelProto:
        """Three matrices."""
        weights = {f"w{i}": _normal((self.width, self.width)) for i in range(3)}
        weights |= {f"b{i}": _normal((self.width,)) for i in range(3)}
        nodes = []
        for i, name in enumerate("qkv"):
            nodes.append(helper.make_node("MatMul", ["x", f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Add", [f"m{i}", f"b{i}"], [name]))
        return _model(nodes, weights, (1, self.tokens, self.width), list("qkv"))

    def one(self) -> onnx.ModelProto:
        """One matrix and a Split."""
        weights = {"w": _normal((self.width, 3 * self.width)), "b": _normal((3 * self.width,))}
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["m", "b"], ["all"]),
            helper.make_node("Split", ["all"], list("qkv"), axis=2, num_outputs=3),
        ]
        return _model(nodes, weights, (1, self.tokens, self.width), list("qkv"))


Case = Convolutions | Matrices | Linears

CASES: tuple[Case, ...] = (
    Convolutions(16, (64, 64), kernel=1, size=56),
    Convolutions(64, (64, 64), kernel=1, size=28),
    Convolutions(192, (64, 96, 16), kernel=1, size=28),
    Convolutions(256, (64, 64), kernel=1, size=28),
    Convolutions(512, (160, 112, 24, 64), kernel=1, size=14),
    Convolutions(768, (192, 192, 192), kernel=1, size=17),
    Convolutions(832, (256, 160, 32), kernel=1, size=7),
    Convolutions(64, (64, 64), kernel=3, size=28),
    Convolutions(32, (32, 32), kernel=3, size=56),
    Convolutions(128, (64, 64, 64), kernel=3, size=14),
    Convolutions(64, (64, 64), kernel=1, size=28, each=True),
    Convolutions(256, (64, 64), kernel=1, size=28, each=True),
    Convolutions(64, (64, 64), kernel=3, size=28, each=True),
    Convolutions(64, (32, 32), kernel=3, size=14, is_transposed=True),
    Matrices(192, (192, 192), tokens=50),
    Matrices(384, (96, 96), tokens=197),
    Linears(192, 50),
    Linears(384, 50),
    Linears(384, 197),
    Linears(768, 50),
    Linears(768, 197),
)


def _normal(shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _model(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: tuple[int, ...],
    outputs: list[str],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "siblings",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def measure(case: Case, budget: Budget, loads: int) -> Iterator[str]:
    """The ratio with optimisations on, then off."""
    with tempfile.TemporaryDirectory() as folder:
        files = {"original": Path(folder) / "several.onnx", "folded": Path(folder) / "one.onnx"}
        onnx.save(case.several(), files["original"])
        onnx.save(case.one(), files["folded"])
        for runtime in (OPTIMISED, PLAIN):
            wishes = Wishes(threads=(1,))
            subject = OnProcessor(OnnxSubject(files, None, runtimes=(runtime,), wishes=wishes))
            found = [s.seconds for _ in range(loads) for s in samples(subject, budget, [])]
            several, one = (
                np.concatenate([seconds[name] for seconds in found])
                for name in ("original", "folded")
            )
            yield f"{1e3 * float(np.median(several)):.3f}"
            yield str(ratio(one, several))


def main(arguments: list[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Whether siblings are worth merging.")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case and loading")
    parser.add_argument("--loads", type=int, default=5)
    options = parser.parse_args(arguments)
    budget = Budget(seconds=options.seconds)
    header = ["several ops", "optimised: several, ms", "one / several"]
    header += ["off: several, ms", "one / several"]
    body = []
    for case in CASES:
        body.append([str(case), *measure(case, budget, options.loads)])
        print(body[-1], file=sys.stderr, flush=True)
    print(table(header, body))
    return 0


if __name__ == "__main__":
    sys.exit(main())
