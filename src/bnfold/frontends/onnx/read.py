"""Read a model: a small message that protobuf parses, and where the large tensors lie.

External data is never loaded here; its places are checked, so that a damaged or hostile file is
refused before any work is done: the data must lie in the model's own folder.
https://onnx.ai/onnx/repo-docs/ExternalData.html
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from google.protobuf.message import DecodeError
from onnx import AttributeProto, GraphProto, ModelProto, TensorProto

from bnfold.errors import ModelUnreadableError, UnsupportedModelError
from bnfold.frontends.onnx import wire
from bnfold.frontends.onnx.tensor_data import FileData, MemoryData, TensorData
from bnfold.frontends.onnx.tensors import byte_count, element_count, typed_count

_LARGE = 4096
"""Tensors of fewer bytes stay in the message: shapes and statistics are read anyway."""
_ANEW = "export the model again, or check that it was copied whole"


@dataclass(frozen=True, slots=True)
class Outside:
    """What the body of a control flow operator sees of the graph around it."""

    pinned: frozenset[str]
    """Constants; they are initializers here, and not the body's to edit."""
    taken: set[str]
    """All names that are given to something there."""
    shapes: tuple[dict[str, tuple[int, ...]], ...]
    """Shapes of the other values that the body reads, per choice of the open dimensions."""


@dataclass(slots=True)
class OnnxModel:
    """A model as it was read; `proto` is ours to edit."""

    name: str
    """How to call it in messages: its path."""
    proto: ModelProto
    """Without the content of large initializers."""
    tensor_data: dict[str, TensorData] = field(default_factory=dict)
    """That content, by the initializer's name."""
    external: set[str] = field(default_factory=set)
    """Names of the initializers whose data lies in another file."""
    outside: Outside | None = None
    """Set where this is the body of a control flow operator, taken for a model of its own."""

    def copy(self) -> OnnxModel:
        """One that is edited without this one; the content of large initializers is shared."""
        proto = ModelProto()
        proto.CopyFrom(self.proto)
        return replace(
            self, proto=proto, tensor_data=dict(self.tensor_data), external=set(self.external)
        )

    def drop_initializers(self, names: Collection[str]) -> None:
        """Take out the initializers of these names, with their data."""
        initializers = self.proto.graph.initializer
        for position in reversed(range(len(initializers))):
            name = initializers[position].name
            if name in names:
                del initializers[position]
                self.tensor_data.pop(name, None)
                self.external.discard(name)


def read_file(path: Path) -> OnnxModel:
    """The model in a file. Raises ModelUnreadableError."""
    name = str(path)
    step = "name an .onnx file"
    try:
        if path.is_dir():
            raise ModelUnreadableError(name, "a folder", step)
        if not path.exists():
            raise ModelUnreadableError(name, "no such file", step)
        if not path.is_file():  # a pipe would be waited for
            raise ModelUnreadableError(name, "no file", step)
        if path.stat().st_size == 0:
            raise ModelUnreadableError(name, "the file is empty", _ANEW)
        with path.open("rb") as file:  # the map lives as long as somebody looks at it
            view = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        split = _split(name, memoryview(view))
    except OSError as error:
        raise ModelUnreadableError(name, error.strerror or str(error), step) from error
    model = OnnxModel(name, _parse(name, split.skeleton))
    initializers = model.proto.graph.initializer
    for number, (offset, length) in split.spans.items():
        model.tensor_data[initializers[number].name] = FileData(path, offset, length)
    _check(model)
    _find_external(model, path.parent)
    return model


def read_proto(proto: ModelProto, elsewhere: Mapping[str, TensorData] | None = None) -> OnnxModel:
    """The same for a model in memory, which is left alone.

    `elsewhere` says where the data of initializers is that have none in the message.
    """
    name = "the model"
    try:
        content = proto.SerializeToString()
    except Exception as error:  # protobuf raises ValueError or EncodeError, by version
        raise UnsupportedModelError(
            "the model does not fit into one protobuf message of 2 GB",
            "save it with external data (onnx.save(..., save_as_external_data=True)) and fold"
            " the file",
        ) from error
    view = memoryview(content)
    split = _split(name, view)
    model = OnnxModel(name, _parse(name, split.skeleton))
    for number, (offset, length) in split.spans.items():
        tensor = model.proto.graph.initializer[number]
        model.tensor_data[tensor.name] = MemoryData(view[offset : offset + length])
    model.tensor_data.update(elsewhere or {})
    model.external.update(elsewhere or ())
    _check(model)
    _find_external(model, None)
    return model


def files_of(model: Any, source: OnnxModel) -> Sequence[Path]:
    """What a model was read from: the message, and where its external data lies."""
    if not isinstance(model, Path):
        return ()
    parts = source.tensor_data.values()
    paths = {part.path for part in parts if isinstance(part, FileData)} - {model}
    return (model, *sorted(paths))


def _split(name: str, view: memoryview) -> wire.Split:
    try:
        return wire.split(view, _LARGE)
    except wire.WireError as error:
        raise ModelUnreadableError(
            name, f"not an ONNX model, or one that is cut off ({error})", _ANEW
        ) from error


def _parse(name: str, skeleton: bytes) -> ModelProto:
    proto = ModelProto()
    try:
        proto.ParseFromString(skeleton)
    except DecodeError as error:
        raise ModelUnreadableError(
            name, "not an ONNX model, or one that is cut off or damaged", _ANEW
        ) from error
    if not proto.HasField("graph") or not proto.ir_version:
        raise ModelUnreadableError(name, "not an ONNX model: it has no graph", _ANEW)
    return proto


def _check(model: OnnxModel) -> None:
    """Names must be text and say what they mean, and tensors hold what they say."""
    graph = model.proto.graph
    for text in _texts(model.proto):
        if not isinstance(text, str):  # what protobuf makes of a string that is no UTF-8
            raise ModelUnreadableError(model.name, f"a name in it is no text: {text!r}", _ANEW)
    tensors = (*graph.initializer, *(sparse.values for sparse in graph.sparse_initializer))
    for what, names in (
        ("initializers", [tensor.name for tensor in tensors]),
        ("inputs", [info.name for info in graph.input]),
    ):
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ModelUnreadableError(model.name, f"two {what} are called {twice[0]!r}", _ANEW)
    for tensor in graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            _check_size(model, tensor)


def _check_size(model: OnnxModel, tensor: TensorProto) -> None:
    data = model.tensor_data.get(tensor.name)
    held = data.nbytes if data is not None else len(tensor.raw_data)
    wanted = byte_count(tensor)
    if wanted < 0 or any(length < 0 for length in tensor.dims):
        if any(length < 0 for length in tensor.dims):
            raise ModelUnreadableError(
                model.name, f"initializer {tensor.name!r} has a negative dimension", _ANEW
            )
        return
    if not held and not tensor.HasField("raw_data"):
        if typed_count(tensor) == element_count(tensor):
            return
        held = typed_count(tensor)
        wanted = element_count(tensor)
    if held != wanted:
        raise ModelUnreadableError(
            model.name,
            f"initializer {tensor.name!r} holds {held} bytes or numbers,"
            f" and its shape and dtype ask for {wanted}",
            _ANEW,
        )


def _texts(proto: ModelProto) -> Iterator[object]:
    """Everything that is used as a name."""
    graphs = [proto.graph]
    nodes = [node for function in proto.functions for node in function.node]
    yield from (opset.domain for opset in proto.opset_import)
    for note in proto.graph.quantization_annotation:
        yield note.tensor_name
        yield from (entry.value for entry in note.quant_parameter_tensor_names)
    for training in proto.training_info:
        graphs += [training.initialization, training.algorithm]
        for binding in (*training.initialization_binding, *training.update_binding):
            yield from (binding.key, binding.value)
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            for info in (*graph.input, *graph.output, *graph.value_info):
                yield info.name
                if info.type.WhichOneof("value") == "tensor_type":
                    yield from (dim.dim_param for dim in info.type.tensor_type.shape.dim)
            yield from (tensor.name for tensor in graph.initializer)
            yield from (sparse.values.name for sparse in graph.sparse_initializer)
            nodes += graph.node
        while nodes:
            node = nodes.pop()
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            for attribute in node.attribute:
                yield attribute.name
                graphs += inner_graphs(attribute)


# -------------------------------------------------------------------- external data


def _find_external(model: OnnxModel, folder: Path | None) -> None:
    for tensor in model.proto.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        model.tensor_data[tensor.name] = _external(model.name, tensor, folder)
        model.external.add(tensor.name)
        _forget_place(tensor)
    for tensor in _inner_tensors(model.proto):
        if tensor.data_location == TensorProto.EXTERNAL:
            tensor.raw_data = _external(model.name, tensor, folder).read().tobytes()
            _forget_place(tensor)


def _forget_place(tensor: TensorProto) -> None:
    """Where the data lies is `tensor_data`'s to say from here on."""
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _external(name: str, tensor: TensorProto, folder: Path | None) -> FileData:
    if folder is None:
        raise UnsupportedModelError(
            f"the model keeps {tensor.name!r} in another file, and does not say in which folder",
            "pass the path of the .onnx file, or load the model with its external data",
        )
    entries = {entry.key: entry.value for entry in tensor.external_data}
    place = entries.get("location", "")
    path = _inside(name, tensor.name, folder, place)
    wanted = byte_count(tensor)
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", wanted))
    except ValueError as error:
        raise _outside(name, tensor.name, "offset or length is no number") from error
    if not path.is_file():
        raise _outside(name, tensor.name, f"there is no file {place} beside the model")
    if offset < 0 or length != wanted:
        raise _outside(
            name, tensor.name, f"{length} bytes are said to be there, {wanted} are needed"
        )
    size = path.stat().st_size
    if offset + length > size:
        raise _outside(
            name, tensor.name, f"{place} ends at byte {size}, before byte {offset + length}"
        )
    return FileData(path, offset, length)


def _inside(name: str, tensor: str, folder: Path, place: str) -> Path:
    """The file, if it lies in the folder: models come from strangers."""
    parts = PurePosixPath(place.replace("\\", "/"))
    absolute = parts.is_absolute() or PureWindowsPath(place).is_absolute()
    if not place or absolute or ".." in parts.parts or PureWindowsPath(place).drive:
        raise _outside(name, tensor, f"its place {place!r} is not inside the model's folder")
    path = folder / place
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError, ValueError):
        inside = False
    if not inside:
        raise _outside(name, tensor, f"its place {place!r} leads out of the model's folder")
    return path


def _outside(name: str, tensor: str, detail: str) -> ModelUnreadableError:
    return ModelUnreadableError(
        name,
        f"the external data of {tensor!r} cannot be used: {detail}",
        "put the data file beside the model, under the name that the model gives it",
    )


def _inner_tensors(proto: ModelProto) -> Iterator[TensorProto]:
    """All tensors but the initializers of the main graph."""
    attributes = [attribute for node in proto.graph.node for attribute in node.attribute]
    attributes += [a for f in proto.functions for node in f.node for a in node.attribute]
    for sparse in proto.graph.sparse_initializer:
        yield sparse.values
        yield sparse.indices
    for training in proto.training_info:
        for graph in (training.initialization, training.algorithm):
            yield from graph.initializer
            attributes += [a for node in graph.node for a in node.attribute]
    while attributes:
        attribute = attributes.pop()
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t
        yield from attribute.tensors
        for graph in inner_graphs(attribute):
            yield from graph.initializer
            attributes += [a for node in graph.node for a in node.attribute]


def inner_graphs(attribute: Any) -> list[GraphProto]:
    """The subgraphs of an attribute."""
    if attribute.type == AttributeProto.GRAPH:
        return [attribute.g]
    if attribute.type == AttributeProto.GRAPHS:
        return list(attribute.graphs)
    return []
