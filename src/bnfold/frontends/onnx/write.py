"""Write a model: one stream of bytes, large tensors straight from where they are.

    model.onnx         the message; tensors that were in it before
    model.onnx.data    the external data, if there was any before, if it is asked for, or if the
                       message would not fit into the 2 GB of a protobuf message

Both are written under other names first and moved into place when they are complete, the folder
then holds both or neither.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from onnx import ModelProto, TensorProto

from bnfold._output_files import Syncing, part_beside, put_in_place
from bnfold.errors import UsageError
from bnfold.frontends.onnx import wire
from bnfold.frontends.onnx.read import OnnxModel
from bnfold.frontends.onnx.tensor_data import TensorData

_LIMIT = (1 << 31) - (1 << 20)
"""Bytes of the largest message, with a margin."""
_PAGE = 1 << 12
"""Large external tensors start at multiples of this: runtimes map them into memory."""

_WORTH_ASKING = 1 << 22
"""Bytes from which on room for a file is asked for in one piece."""


def to_proto(model: OnnxModel) -> ModelProto:
    """The whole model in memory."""
    proto = ModelProto()
    proto.ParseFromString(b"".join(_in_memory(model)))
    return proto


def _in_memory(model: OnnxModel) -> Iterator[bytes]:
    for piece in _pieces(model, model.tensor_data):
        yield bytes(piece) if isinstance(piece, bytes | memoryview) else piece.read().tobytes()


def _pieces(
    model: OnnxModel, tensor_data: dict[str, TensorData]
) -> Iterator[wire.Buffer | TensorData]:
    numbers = {
        number: tensor_data[tensor.name]
        for number, tensor in enumerate(model.proto.graph.initializer)
        if tensor.name in tensor_data
    }
    return wire.assemble(model.proto.SerializeToString(), numbers)


class Staged:
    """A model that is written, but not yet in its place."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = folder
        self.name = name
        self.has_data = False
        self.replaces = False
        """Whether something is at its place already."""
        self.syncing: list[Syncing] = []
        """What has to be over before it is moved there."""

    @property
    def model(self) -> Path:
        """Where the message is."""
        return self.folder / self.name

    @property
    def data(self) -> Path:
        """Where the external data is, if there is any."""
        return self.folder / data_name(self.name)

    def move_to(self, output: Path, *, force: bool) -> None:
        """Put both files in their places. Raises UsageError."""
        target = output.with_name(data_name(output.name))
        if self.has_data and target.exists() and not force:
            raise UsageError(
                f"{target}, where the external data of the output belongs, exists and is not"
                " overwritten",
                "choose another output, or add --force",
            )
        with _explained(output):
            data = [(self.data, target)] if self.has_data else []
            for file in self.syncing:
                file.wait()
            put_in_place(*data, (self.model, output))
        self.discard()  # here, where an interrupt is heard, and not when nobody needs this any more

    def discard(self) -> None:
        """Leave nothing behind; there may be nothing any more."""
        for path in self.folder.glob("*"):
            path.unlink(missing_ok=True)
        with suppress(FileNotFoundError):  # stopped before it was there
            self.folder.rmdir()


def data_name(name: str) -> str:
    """What the external data of a model is called."""
    return f"{name}.data"


@contextmanager
def staged(
    model: OnnxModel,
    output: Path,
    folder: Path,
    step: Callable[[float], None],
    *,
    has_data: bool = False,
) -> Iterator[Staged]:
    """Write a model into a folder of its own inside `folder`, to be moved or discarded.

    `step` is told which part of the tensors is written; with `has_data` all go beside the message.

    Raises UsageError where it cannot be written, and what computing the tensors raises.
    """
    stage = Staged(part_beside(folder / output.name), output.name)
    stage.replaces = os.path.lexists(output)
    try:
        with _explained(output):
            stage.folder.mkdir()
            _write(model, stage, step, has_data=has_data)
        yield stage
    finally:
        stage.discard()


@contextmanager
def _explained(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(
            f"{output} could not be written: {error.strerror or error}",
            "choose another place with -o",
        ) from error


def _write(
    model: OnnxModel, stage: Staged, step: Callable[[float], None], *, has_data: bool
) -> None:
    inner = dict(model.tensor_data)
    # In the order of the file: a set has another one in each process.
    outer = {name: inner.pop(name) for name in model.tensor_data if name in model.external}
    size = model.proto.ByteSize() + sum(data.nbytes for data in inner.values())
    if has_data or size > _LIMIT:
        outer |= inner
        inner = {}
    tensors = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    done, total = 0, sum(data.nbytes for data in model.tensor_data.values()) or 1
    if outer:
        stage.has_data = True
        room = sum(data.nbytes + _PAGE for data in outer.values())
        with _complete(stage.data, stage, room) as file:
            for name, data in outer.items():
                _write_external(file, tensors[name], data, data_name(stage.name))
                done += data.nbytes
                step(done / total)
    with _complete(stage.model, stage, sum(data.nbytes for data in inner.values())) as file:
        for piece in _pieces(model, inner):
            if isinstance(piece, bytes | memoryview):
                file.write(piece)
                continue
            piece.write_to(file)
            done += piece.nbytes
            step(done / total)
    for name in outer:
        tensors[name].ClearField("data_location")
        del tensors[name].external_data[:]


def _write_external(file: IO[bytes], tensor: TensorProto, data: TensorData, place: str) -> None:
    if data.nbytes >= _PAGE:
        file.write(b"\0" * (-file.tell() % _PAGE))
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": place, "offset": file.tell(), "length": data.nbytes}
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    data.write_to(file)


@contextmanager
def _complete(path: Path, stage: Staged, room: int) -> Iterator[IO[bytes]]:
    """A new file, on its way to the disk: it is there before it gets its name.

    `room` is about how many bytes it will have. That much is set aside at once: a full disk shows
    before the work is done, and writing costs a third less.
    """
    with path.open("xb") as file:
        if room >= _WORTH_ASKING:
            _set_aside(file, room)
        yield file
        file.truncate()
        stage.syncing.append(Syncing(file, replaces=stage.replaces))


def _set_aside(file: IO[bytes], room: int) -> None:
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        os.posix_fallocate(file.fileno(), 0, room)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise  # the rest says that this file system does not know how
