"""Damaged and hostile Caffe files at the command: exit code 3 or a right fold, nothing half."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bnfold.cli import main
from tests.frontends.caffe.made_up import make_up
from tests.frontends.caffe.plain_text import parse
from tests.frontends.caffe.wire import blob, caffemodel, chunk, varint

TEXT = """name: "net"
input: "data"
input_shape { dim: 1 dim: 3 dim: 6 dim: 6 }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 bias_term: false }
}
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer {
  name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 2 }
}
"""
OK, UNREADABLE = 0, 3


def weights() -> dict[str, tuple[str, list[np.ndarray]]]:
    inputs = {"data": np.random.default_rng(0).normal(size=(1, 3, 6, 6)).astype(np.float32)}
    return make_up(parse(TEXT), inputs).weights


WEIGHTS = weights()
GOOD = caffemodel(WEIGHTS)


def command(folder: Path, text: bytes, model: bytes) -> int:
    """The command's exit code. All files or none are there, and the inputs are as they were."""
    network, stored = folder / "net.prototxt", folder / "net.caffemodel"
    network.write_bytes(text)
    stored.write_bytes(model)
    target = folder / "out" / "folded.prototxt"
    target.parent.mkdir(exist_ok=True)
    code = main(["fold", str(network), str(stored), "-o", str(target), "--force"])
    assert network.read_bytes() == text
    assert stored.read_bytes() == model
    written = sorted(path.name for path in target.parent.iterdir())
    assert written == (["folded.caffemodel", "folded.prototxt"] if code == OK else [])
    for path in target.parent.iterdir():
        path.unlink()
    return code


def test_the_files_themselves_fold(tmp_path: Path) -> None:
    assert command(tmp_path, TEXT.encode(), GOOD) == OK


BAD_WEIGHTS: dict[str, Callable[[], bytes]] = {
    "no caffemodel": lambda: TEXT.encode(),
    "empty": lambda: b"",
    "HDF5": lambda: b"\x89HDF\r\n\x1a\n" + bytes(64),
    "a length past the end": lambda: GOOD[:-1],
    "a claim of 4 GB": lambda: GOOD + varint(100 << 3 | 2) + varint(1 << 32),
    "a claim of 2^63 bytes": lambda: GOOD + varint(100 << 3 | 2) + varint(1 << 63),
    "an endless number": lambda: GOOD + b"\xff" * 64,
    "groups without end": lambda: GOOD + b"\x0b" * 100_000,
    "field 0": lambda: GOOD + b"\x00\x00",
    "wire type 7": lambda: GOOD + b"\x0f\x00",
    "weights of another network": lambda: caffemodel({"other": WEIGHTS["conv"]}),
    "a blob is missing": lambda: _with("fc", WEIGHTS["fc"][1][:1]),
    "a blob too many": lambda: _with("conv", WEIGHTS["conv"][1] * 2),
    "a wrong shape": lambda: _with("conv", [np.zeros((4, 3, 2, 2), np.float32)]),
    "a transposed shape": lambda: _with("fc", [WEIGHTS["fc"][1][0].T, WEIGHTS["fc"][1][1]]),
    "statistics of fewer channels": lambda: _with(
        "bn", [np.ones(n, np.float32) for n in (3, 3, 1)]
    ),
    "a scale of more channels": lambda: _with("scale", [np.ones(5, np.float32)] * 2),
    "a shape without values": lambda: _raw("conv", chunk(7, chunk(1, bytes([4, 3, 3, 3])))),
    "values without a shape": lambda: _raw("conv", chunk(5, bytes(4 * 108))),
    "a shape of 2^62 x 2^62": lambda: _raw("conv", chunk(7, chunk(1, varint(1 << 62) * 2))),
    "a negative size": lambda: _raw("conv", chunk(7, chunk(1, varint((1 << 64) - 1)))),
    "a thousand axes": lambda: _raw("conv", chunk(7, chunk(1, b"\x01" * 1000))),
    "half a value": lambda: _raw("conv", blob(WEIGHTS["conv"][1][0]) + chunk(5, b"\x00\x00")),
}


def _with(name: str, blobs: list[np.ndarray]) -> bytes:
    return caffemodel({**WEIGHTS, name: (WEIGHTS[name][0], blobs)})


def _raw(name: str, content: bytes) -> bytes:
    """The layer of this name with one blob of these bytes."""
    rest = {key: value for key, value in WEIGHTS.items() if key != name}
    layer = chunk(1, name.encode()) + chunk(2, b"Convolution") + chunk(7, content)
    return caffemodel(rest) + chunk(100, layer)


@pytest.mark.parametrize("make", BAD_WEIGHTS.values(), ids=list(BAD_WEIGHTS))
def test_bad_weights_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Callable[[], bytes]
) -> None:
    assert command(tmp_path, TEXT.encode(), make()) == UNREADABLE
    said = capsys.readouterr().err
    assert "net.caffemodel" in said
    assert "Next: " in said


def test_a_batch_norm_that_lacks_an_array_is_of_an_unknown_kind_and_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(tmp_path, TEXT.encode(), _with("bn", WEIGHTS["bn"][1][:2])) == OK
    assert "its arrays are not those of a BatchNorm" in capsys.readouterr().out


BAD_TEXTS = {
    "no prototxt": b"\x00\x01\x02",
    "an open brace": TEXT.encode() + b"layer {",
    "a brace too many": TEXT.encode() + b"}",
    "a string without its end": TEXT.encode() + b'name: "net',
    "a number that is none": TEXT.replace("dim: 3", "dim: 3x").encode(),
    "a bottom that nobody makes": TEXT.replace('bottom: "data"', 'bottom: "dat"').encode(),
    "a flag that is none": TEXT.replace("bias_term: false", "bias_term: maybe").encode(),
    "a size that is none": TEXT.replace("num_output: 4", "num_output: four").encode(),
    "more outputs than weights": TEXT.replace("num_output: 4", "num_output: 5").encode(),
    "another kernel": TEXT.replace("kernel_size: 3", "kernel_size: 5").encode(),
    "another input": TEXT.replace("dim: 6", "dim: 9").encode(),
    "a bias that is not stored": TEXT.replace("bias_term: false", "").encode(),
    "deep nesting": TEXT.encode() + b"a {" * 100_000,
    "layer is no message": TEXT.encode() + b"layer: 3",
}


@pytest.mark.parametrize("text", BAD_TEXTS.values(), ids=list(BAD_TEXTS))
def test_bad_texts_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: bytes
) -> None:
    assert command(tmp_path, text, GOOD) == UNREADABLE
    said = capsys.readouterr().err
    assert "net.prototxt" in said or "net.caffemodel" in said
    assert "Next: " in said


def test_a_truncated_caffemodel_is_refused(tmp_path: Path) -> None:
    """Wherever it ends: but for a cut between two layers, which only makes layers missing."""
    codes = {cut: command(tmp_path, TEXT.encode(), GOOD[:cut]) for cut in range(0, len(GOOD), 13)}
    assert set(codes.values()) <= {OK, UNREADABLE}
    assert sum(code == OK for code in codes.values()) <= 2


@pytest.mark.parametrize("seed", range(30))
def test_flipped_bytes_never_break_the_command(tmp_path: Path, seed: int) -> None:
    """A flipped weight is a weight, a flipped length is refused: nothing is a bug (code 70)."""
    rng = np.random.default_rng(seed)
    for _ in range(3):
        damaged = bytearray(GOOD)
        for at in rng.integers(0, len(GOOD), rng.integers(1, 4)):
            damaged[at] = rng.integers(0, 256)
        assert command(tmp_path, TEXT.encode(), bytes(damaged)) in (OK, UNREADABLE)


@pytest.mark.parametrize("seed", range(30))
def test_damaged_texts_never_break_the_command(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(3):
        text = bytearray(TEXT.encode())
        at, length = int(rng.integers(0, len(text))), int(rng.integers(0, 6))
        text[at : at + length] = rng.choice(
            np.frombuffer(b"{}[]<>:,;\"'#0123456789-.eaxt \n\xff", np.uint8), rng.integers(0, 4)
        ).tobytes()
        assert command(tmp_path, bytes(text), GOOD) in (OK, UNREADABLE)
