"""A large ONNX model with external data, made a tensor at a time, and folded from disk to disk.

The network is a chain of blocks: 3 x 3 convolution, BatchNorm, ReLU, every second one with a
shortcut around it; all weights change in the fold. Peak memory is given as a part of the data, time
as a multiple of a plain copy of the same file, taken in turn. The copy is `shutil.copyfile`, which
lets the kernel copy (sendfile on Linux). Twice: into the page cache, where nobody waits for the
disk, and with what was written flushed to it, which is what limits a copy of this size.

The host of a virtual machine takes idle memory back, and whoever writes to it first pays for
getting it again: up to 5 s for this file, for the copy as for the fold. So before each run a
process takes as much memory as the run will fill, and gives it back.

    make(folder, gigabytes)     writes model.onnx and model.onnx.data
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks.process import measure
from benchmarks.timing import Ratio, Times, median, ratio

_CHANNELS = 1024
_KERNEL = 3
_BYTES_PER_BLOCK = 4 * _CHANNELS * _CHANNELS * _KERNEL**2


@dataclass(frozen=True, slots=True)
class Large:
    """What folding it took."""

    data_bytes: int
    batch_norms: int
    seconds: dict[str, float]
    """Medians: fold and copy, into the page cache and with the written data flushed to the disk."""
    ratio: Ratio
    """fold / copy, both into the page cache"""
    ratio_flushed: Ratio
    """The same, both flushed."""
    resident: int
    """Peak, file pages among it, bytes."""
    anonymous: int
    """Peak without file pages, bytes."""


def measure_large(gigabytes: float, rounds: int, folder: Path | None = None) -> Large:
    """Make the model, then copy and fold it in turn."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        place = Path(name)
        model = make(place, gigabytes)
        data = place / "model.onnx.data"
        output, copy = place / "out.onnx", place / "copy.data"
        fold = ["bnfold", "fold", str(model), "-o", str(output), "--no-check", "--force"]
        written = {"fold": f"{output}.data", "copy": str(copy)}
        actions = {"fold": _FOLD.format(arguments=fold[1:]), "copy": _COPY.format(data, copy)}
        times: Times = {}
        resident = anonymous = 0
        for number in range(rounds + 1):
            for name, action in actions.items():
                for flush in ("", _FLUSH.format(written[name])):
                    script = action + flush if flush else _CACHED + action
                    get_memory_ready(data.stat().st_size)
                    cost = measure([sys.executable, "-c", script])
                    if name == "fold":
                        _check(output)
                        output.unlink()
                        resident = max(resident, cost.resident)
                        anonymous = max(anonymous, cost.anonymous)
                    Path(written[name]).unlink()
                    if number:  # the first round warms the page cache
                        key = f"{name}, flushed" if flush else name
                        times.setdefault(key, []).append(cost.seconds)
        return Large(
            data_bytes=data.stat().st_size,
            batch_norms=sum(n.op_type == "BatchNormalization" for n in _graph(model).node),
            seconds={key: median(seconds) for key, seconds in times.items()},
            ratio=ratio(times, "fold", "copy"),
            ratio_flushed=ratio(times, "fold, flushed", "copy, flushed"),
            resident=resident,
            anonymous=anonymous,
        )


def get_memory_ready(size: int) -> None:
    """See to it that this much free memory, and some, is with this machine."""
    os.sync()
    subprocess.run([sys.executable, "-c", f"b'1' * {int(1.3 * size)}"], check=True)


_FOLD = """
from bnfold.cli import main
assert main({arguments!r}) == 0
"""
_COPY = """
import shutil
shutil.copyfile('{0}', '{1}')
"""
_CACHED = """
import os
os.fsync = os.fdatasync = lambda file: None
"""
"""In the page cache when it ends: nobody waits for the disk."""
_FLUSH = """
import os
os.fsync(os.open({0!r}, os.O_RDWR))
"""
"""On the disk when it ends, whether or not who wrote it waited for that."""


def _graph(path: Path) -> onnx.GraphProto:
    return onnx.load(path, load_external_data=False).graph


def _check(output: Path) -> None:
    assert not [n for n in _graph(output).node if n.op_type == "BatchNormalization"]


def make(folder: Path, gigabytes: float) -> Path:
    """Write the model; its external data is at least that large."""
    blocks = int(gigabytes * 1e9 / _BYTES_PER_BLOCK) + 1
    generator = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []
    stream = "x"
    with (folder / "model.onnx.data").open("wb") as file:
        for number in range(blocks):
            weight = _block_weight(generator, number)
            tensors.append(_external(f"w{number}", weight, file.tell()))
            file.write(weight.tobytes())
            tensors += _statistics(generator, number)
            stream = _block(nodes, number, stream)
    image = ["batch", _CHANNELS, 8, 8]
    graph = helper.make_graph(
        nodes,
        "large",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, image)],
        [helper.make_tensor_value_info(stream, TensorProto.FLOAT, image)],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def _block(nodes: list[onnx.NodeProto], number: int, stream: str) -> str:
    conv, norm, relu, add = (f"{kind}{number}" for kind in ("conv", "bn", "relu", "add"))
    statistics = [f"{key}{number}" for key in ("gamma", "beta", "mean", "var")]
    nodes.append(
        helper.make_node("Conv", [stream, f"w{number}"], [conv], name=conv, pads=[1, 1, 1, 1])
    )
    nodes.append(helper.make_node("BatchNormalization", [conv, *statistics], [norm], name=norm))
    if number % 2:
        nodes.append(helper.make_node("Add", [norm, stream], [add], name=add))
        norm = add
    nodes.append(helper.make_node("Relu", [norm], [relu], name=relu))
    return relu


_POOL: list[NDArray[np.float32]] = []


def _block_weight(generator: np.random.Generator, number: int) -> NDArray[np.float32]:
    """Random once, then rolled: drawing gigabytes would take longer than the benchmark."""
    if not _POOL:
        shape = (_CHANNELS, _CHANNELS, _KERNEL, _KERNEL)
        drawn = generator.standard_normal(shape, dtype=np.float32)
        _POOL.append(drawn * np.float32((_CHANNELS * _KERNEL**2) ** -0.5))
    return np.roll(_POOL[0], number, axis=0)


def _external(name: str, weight: NDArray[np.float32], offset: int) -> onnx.TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape)
    tensor.data_location = TensorProto.EXTERNAL
    place = {"location": "model.onnx.data", "offset": offset, "length": weight.nbytes}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def _statistics(generator: np.random.Generator, number: int) -> list[onnx.TensorProto]:
    gamma = generator.uniform(0.5, 1.5, _CHANNELS) * generator.choice([-1, 1], _CHANNELS)
    drawn = {
        "gamma": gamma,
        "beta": generator.normal(0, 0.3, _CHANNELS),
        "mean": generator.normal(0, 0.3, _CHANNELS),
        "var": generator.uniform(0.5, 2.0, _CHANNELS),
    }
    return [
        numpy_helper.from_array(values.astype(np.float32), f"{key}{number}")
        for key, values in drawn.items()
    ]


def free_bytes(folder: Path | None) -> int:
    """Room on the disk of the folder."""
    return shutil.disk_usage(folder or tempfile.gettempdir()).free
