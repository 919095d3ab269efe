"""Small files that ask for much: memory that nobody has, work without end, code to be run.

Each is folded in a process of its own, which may use 3 GB of address space (PyTorch needs most of
that to be loaded at all) and a minute; the answer is a fold or a refusal.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from bnfold.cli._archive import load_program
from bnfold.cli._program_json import NotPlainError, check_json
from bnfold.errors import ModelUnreadableError
from tests.cli.test_caffe_hostile import GOOD, TEXT
from tests.frontends.caffe.wire import chunk, varint
from tests.frontends.onnx.support import Sketch
from tests.hard_stops.stepping import environment

OK, UNREADABLE = 0, 3

_LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
from bnfold.cli import main
codes = [main(["inspect", path]) for path in sys.argv[1:]]
print(codes, file=sys.stderr)
"""


def codes(*paths: Path) -> list[int]:
    """The exit status for each file, all in one process."""
    done = subprocess.run(
        [sys.executable, "-c", _LIMITED, *map(str, paths)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    *_, last = done.stderr.splitlines()
    return list(json.loads(last))


# -------------------------------------------------------------------- ONNX


def _big(add: Callable[[Sketch], object], *shape: int) -> onnx.ModelProto:
    """A convolution, something large, a BatchNorm."""
    s = Sketch(*shape or (1, 4, 6, 6))
    s.conv(4, 4)
    add(s)
    s.bn(4)
    return s.model()


def _constant(op: str, *operands: list[int]) -> Callable[[Sketch], object]:
    """A constant that is computed, and added."""

    def add(s: Sketch) -> None:
        at = s.at
        names = [s.constant(f"c{n}", np.array(one)) for n, one in enumerate(operands)]
        s.node("Add", at, s.node(op, *names))

    return add


def _outer(s: Sketch) -> None:
    at = s.at
    tall = s.node("ConstantOfShape", s.constant("tall", np.array([1 << 20, 1])))
    wide = s.node("ConstantOfShape", s.constant("wide", np.array([1, 1 << 20])))
    s.node("Mul", at, s.node("Add", tall, wide))


def _functions(depth: int, *, is_cycle: bool) -> onnx.ModelProto:
    """Each function calls the next one twice; the last is a Relu, or the first again."""
    model = _big(lambda s: s.nodes.append(helper.make_node("f0", [s.at], ["z"], domain="own")))
    for n in range(depth):
        step = f"f{(n + 1) % depth}"
        body = [helper.make_node(step, [a], [b], domain="own") for a, b in ("va", "ar")]
        if n == depth - 1 and not is_cycle:
            body = [helper.make_node("Relu", ["v"], ["r"])]
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        model.functions.append(helper.make_function("own", f"f{n}", ["v"], ["r"], body, opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    return model


def _claim(dims: list[int]) -> onnx.ModelProto:
    model = _big(lambda s: None)
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


BOMBS: dict[str, Callable[[], onnx.ModelProto]] = {
    "constant of shape": lambda: _big(_constant("ConstantOfShape", [1 << 40, 1 << 20])),
    "tile": lambda: _big(_constant("Tile", [[1]], [1 << 31, 1 << 31])),
    "expand": lambda: _big(_constant("Expand", [1], [1 << 31, 1 << 31])),
    "range": lambda: _big(_constant("Range", 0, 1 << 40, 1)),  # type: ignore[arg-type]
    "broadcast": lambda: _big(_outer),
    "flatten": lambda: _big(lambda s: s.node("Flatten"), 1, 4, 1 << 15, 1 << 15),
    "tiled activation": lambda: _big(
        lambda s: s.node("Tile", s.at, s.constant("r", np.array([1, 1, 1 << 14, 1 << 14])))
    ),
    "padding": lambda: _big(
        lambda s: s.node("Pad", s.at, s.constant("p", np.array([0, 0, 0, 0, 0, 0, 1 << 40, 1])))
    ),
    "blocks": lambda: _big(lambda s: s.node("DepthToSpace", blocksize=1 << 40)),
    "kernel": lambda: _big(lambda s: s.node("MaxPool", kernel_shape=[1 << 40] * 2)),
    "input": lambda: _big(lambda s: None, 1, 4, 1 << 62, 1 << 62),
    "axes": lambda: _big(
        lambda s: s.node("Reshape", s.at, s.constant("t", np.ones(500, np.int64)))
    ),
    "functions of functions": lambda: _functions(40, is_cycle=False),
    "functions in a cycle": lambda: _functions(2, is_cycle=True),
    "a function that calls itself": lambda: _functions(1, is_cycle=True),
}


def test_small_onnx_files_that_ask_for_much(tmp_path: Path) -> None:
    paths = []
    for number, make in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{number}.onnx")
        paths[-1].write_bytes(make().SerializeToString())
    found = dict(zip(BOMBS, codes(*paths), strict=True))
    assert set(found.values()) == {OK}, found


def test_shapes_that_are_claimed(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    for dims in ([1 << 40, 1 << 20], [1 << 62, 4], [(1 << 63) - 1] * 3):
        path.write_bytes(_claim(dims).SerializeToString())
        assert codes(path) == [UNREADABLE]


def test_subgraphs_in_subgraphs(tmp_path: Path) -> None:
    """Protobuf itself stops at 100 levels; written by hand, because it would not write them."""
    graph = b""
    for _ in range(400):
        attribute = chunk(1, b"then_branch") + varint(20 << 3) + varint(5) + chunk(6, graph)
        graph = chunk(1, chunk(4, b"If") + chunk(5, attribute))
    path = tmp_path / "model.onnx"
    path.write_bytes(varint(1 << 3) + varint(8) + chunk(7, graph))
    assert codes(path) == [UNREADABLE]


# -------------------------------------------------------------------- Caffe

_LARGE = {
    "pad": ("kernel_size: 3", "kernel_size: 3 pad: 99999999999999"),
    "more bits than there are": ("kernel_size: 3", "kernel_size: 3 pad: 99999999999999999999"),
    "outputs": ("num_output: 4", "num_output: 2147483648"),
    "kernel": ("kernel_size: 3", "kernel_size: 2147483648"),
    "stride": ("kernel_size: 3", "kernel_size: 3 stride: 9223372036854775807"),
    "groups": ("kernel_size: 3", "kernel_size: 3 group: 2147483648"),
    "input": ("dim: 6 dim: 6", "dim: 2147483647 dim: 2147483647"),
    "a million words": ("layer {", "x: 1 " * 340_000 + "layer {"),
}


def test_small_prototxts_that_ask_for_much(tmp_path: Path) -> None:
    paths = []
    for number, (old, new) in enumerate(_LARGE.values()):
        paths.append(tmp_path / f"{number}.prototxt")
        paths[-1].write_text(TEXT.replace(old, new, 1))
        paths[-1].with_suffix(".caffemodel").write_bytes(GOOD)
    found = dict(zip(_LARGE, codes(*paths), strict=True))
    assert set(found.values()) <= {OK, UNREADABLE}, found
    assert found["a million words"] == UNREADABLE


def test_a_caffemodel_of_empty_layers(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(TEXT)
    path.with_suffix(".caffemodel").write_bytes(chunk(100, b"") * 200_001 + GOOD)
    assert codes(path) == [UNREADABLE]


# -------------------------------------------------------------------- .pt2


def _archive(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/archive_format", b"pt2")
        for name, content in members.items():
            archive.writestr(f"net/{name}", content)
    return buffer.getvalue()


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.pt2"
    path.write_bytes(_archive(weights=bytes(1 << 26)))
    with pytest.raises(ModelUnreadableError, match="claim to unpack to 67"):
        load_program(path)


@pytest.mark.parametrize(
    "text",
    ["9**9**9", "9**99999999", "((((9**8)**8)**8)**8)**8", "Pow(9, 99999999)", "1 << 99999999"],
)
def test_powers_of_numbers_are_not_computed(text: str) -> None:
    with pytest.raises(NotPlainError, match="a large power"):
        check_json({"expr_str": text}, "model")


def test_powers_that_shapes_have_pass() -> None:
    for text in ("s77**2", "Pow(s77, -1)", "2*s77**2 + 3*s78**2"):
        check_json({"expr_str": text}, "model")


# -------------------------------------------------------------------- statistics


@pytest.mark.parametrize("variance", [-1.0, -2e-5, np.nan, -np.inf])
def test_statistics_that_no_training_makes(variance: float) -> None:
    import bnfold
    from bnfold.core.reasons import Reason

    model = _big(lambda s: None)
    var = next(t for t in model.graph.initializer if t.name == "bn_v")
    array = numpy_helper.to_array(var).copy()
    array[1] = variance
    var.CopyFrom(numpy_helper.from_array(array, "bn_v"))
    folded, report = bnfold.fold(model)
    (item,) = report.items
    assert item.reason is Reason.BAD_STATISTICS
    assert [node.op_type for node in folded.graph.node] == ["Conv", "BatchNormalization"]
