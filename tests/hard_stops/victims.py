"""Folders with a model whose fold takes a while to write, and what may be found in them later.

    onnx         model.onnx                      -> out.onnx
    onnx-data    model.onnx, model.onnx.data     -> out.onnx, out.onnx.data
    caffe        net.prototxt, net.caffemodel    -> out.prototxt, out.caffemodel
    pt2          model.pt2                       -> out.pt2

Of two files, the last is the one that makes them a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import onnx

from tests.frontends.caffe.build import blob, layer
from tests.frontends.onnx.support import Sketch

OLD = b"what was here before"


class State(Enum):
    """What a stopped run leaves at the place of its output."""

    OLD = "as before"
    NONE = "no model, the old one is set aside"
    NEW = "the whole new model"


@dataclass(slots=True)
class Victim:
    """A model to fold in a folder of its own."""

    kind: str
    folder: Path
    source: str
    outputs: tuple[str, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    """Hashes of all input files."""
    expected: dict[str, str] = field(default_factory=dict)
    """Hashes of the output files that an undisturbed run writes."""

    def arguments(self, *, check: bool = False) -> list[str]:
        """What to call the command with."""
        output = str(self.folder / self.outputs[-1])
        more = [] if check else ["--no-check"]
        return ["fold", str(self.folder / self.source), "-o", output, "--force", *more]

    def learn(self) -> None:
        """Remember what an undisturbed run has written."""
        self.expected = {name: hash_of(self.folder / name) for name in self.outputs}

    def reset(self, *, is_old_there: bool) -> None:
        """Only the inputs, and old outputs if they are wanted."""
        for path in self.folder.iterdir():
            if path.name in self.inputs:
                continue
            if path.is_dir():
                for inner in path.iterdir():
                    inner.unlink()
                path.rmdir()
            else:
                path.unlink()
        if is_old_there:
            for name in self.outputs:
                (self.folder / name).write_bytes(OLD + name.encode())

    def leftovers(self) -> list[Path]:
        """What is neither input nor output."""
        known = {*self.inputs, *self.outputs}
        return [path for path in self.folder.iterdir() if path.name not in known]

    def state(self, *, was_old_there: bool) -> State:
        """What is there now. Raises AssertionError for anything that must never be."""
        for name, expected in self.inputs.items():
            assert hash_of(self.folder / name) == expected, f"the input {name} has changed"
        old = {name: hash_bytes(OLD + name.encode()) for name in self.outputs}
        found = {
            name: hash_of(self.folder / name) if (self.folder / name).exists() else None
            for name in self.outputs
        }
        if found == self.expected:
            return State.NEW
        if found == (old if was_old_there else dict.fromkeys(self.outputs)):
            return State.OLD
        *parts, model = self.outputs
        assert parts and found[model] is None, f"half a model, or two halves: {found}"
        for name in parts:
            assert found[name] in (None, old[name], self.expected[name]), f"{name} is half"
        if was_old_there:
            aside = {hash_of(path) for path in self.leftovers() if path.is_file()}
            assert old[model] in aside, "the old model is lost"
        return State.NONE


def hash_of(path: Path) -> str:
    return hash_bytes(path.read_bytes())


def hash_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make(kind: str, folder: Path, *, width: int = 256) -> Victim:
    """A victim with a weight of 9 * width * width numbers."""
    victim = _MAKERS[kind](folder, width)
    victim.inputs = {path.name: hash_of(path) for path in folder.iterdir()}
    return victim


def _network(width: int) -> onnx.ModelProto:
    s = Sketch(1, 3, 8, 8)
    s.conv(3, width, name="first")
    s.bn(width, name="bn1")
    s.node("Relu")
    s.conv(width, width, name="second")
    s.bn(width, name="bn2")
    return s.model()


def _onnx(folder: Path, width: int) -> Victim:
    onnx.save(_network(width), folder / "model.onnx")
    return Victim("onnx", folder, "model.onnx", ("out.onnx",))


def _onnx_data(folder: Path, width: int) -> Victim:
    onnx.save(
        _network(width),
        folder / "model.onnx",
        save_as_external_data=True,
        location="model.onnx.data",
        size_threshold=0,
    )
    return Victim("onnx-data", folder, "model.onnx", ("out.onnx.data", "out.onnx"))


_TEXT = """
input: "data"
input_shape {{ dim: 1 dim: 3 dim: 8 dim: 8 }}
layer {{ name: "first" type: "Convolution" bottom: "data" top: "first"
  convolution_param {{ num_output: {width} kernel_size: 3 bias_term: false }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "first" top: "first" }}
layer {{ name: "relu" type: "ReLU" bottom: "first" top: "first" }}
layer {{ name: "second" type: "Convolution" bottom: "first" top: "second"
  convolution_param {{ num_output: {width} kernel_size: 3 bias_term: false }} }}
layer {{ name: "bn2" type: "BatchNorm" bottom: "second" top: "second" }}
"""


def _caffe(folder: Path, width: int) -> Victim:
    rng = np.random.default_rng(0)

    def statistics() -> list[bytes]:
        return [blob(rng.uniform(0.5, 2.0, width)) for _ in range(2)] + [blob(np.ones(1))]

    (folder / "net.prototxt").write_text(_TEXT.format(width=width))
    (folder / "net.caffemodel").write_bytes(
        layer("first", "Convolution", blob(rng.normal(size=(width, 3, 3, 3))))
        + layer("bn", "BatchNorm", *statistics())
        + layer("second", "Convolution", blob(rng.normal(size=(width, width, 3, 3))))
        + layer("bn2", "BatchNorm", *statistics())
    )
    return Victim("caffe", folder, "net.prototxt", ("out.caffemodel", "out.prototxt"))


def _pt2(folder: Path, width: int) -> Victim:
    import torch
    from torch import nn

    torch.manual_seed(0)
    layers = [nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    layers += [nn.Conv2d(width, width, 3), nn.BatchNorm2d(width)]
    for module in layers:
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 2.0)
            module.running_mean.normal_()
    model = nn.Sequential(*layers).eval()
    torch.export.save(torch.export.export(model, (torch.randn(1, 3, 8, 8),)), folder / "model.pt2")
    return Victim("pt2", folder, "model.pt2", ("out.pt2",))


_MAKERS: dict[str, Callable[[Path, int], Victim]] = {
    "onnx": _onnx,
    "onnx-data": _onnx_data,
    "caffe": _caffe,
    "pt2": _pt2,
}
KINDS = tuple(_MAKERS)
