"""onnx_ir.Model in, onnx_ir.Model out.

The model goes through a ModelProto that holds no large initializer: where those lie in a file they
are read from there, and those that some code makes (`LazyTensor`, a PyTorch tensor) are asked when
they are needed, one at a time. In the result, tensors that did not change are the very objects of
the original; changed ones are computed when somebody asks for them. What lies inside of attributes
and of subgraphs is small as a rule, and is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir
from numpy.typing import NDArray
from onnx import TensorProto

from bnfold.frontends.onnx.read import OnnxModel, read_proto
from bnfold.frontends.onnx.tensor_data import ComputedData, FileData, TensorData
from bnfold.frontends.onnx.tensors import numpy_dtype

_LARGE = 4096
"""Bytes from which on a tensor that some code makes is not put into the message."""


def read_model(model: onnx_ir.Model) -> OnnxModel:
    """The model as the other kinds are read; it is left as it was."""
    with ExitStack() as stack:
        tensor_data = stack.enter_context(_without_large(model.graph))
        graphs: list[onnx_ir.Graph | onnx_ir.Function] = [model.graph, *model.functions.values()]
        for graph in graphs:
            for node in onnx_ir.traversal.RecursiveGraphIterator(graph):
                stack.enter_context(_loaded_inside(node))
        proto = onnx_ir.to_proto(model)
    return read_proto(proto, tensor_data)


@contextmanager
def _without_large(graph: onnx_ir.Graph) -> Iterator[dict[str, TensorData]]:
    """Initializers have no content meanwhile where it is large; where it is to be had."""
    held: dict[str, Any] = {}
    try:
        for name, value in graph.initializers.items():
            if _is_large(value.const_value):
                held[name] = value.const_value
                value.const_value = _empty(held[name])
        yield {name: _data_of(tensor) for name, tensor in held.items()}
    finally:
        for name, tensor in held.items():
            graph.initializers[name].const_value = tensor


def _is_large(tensor: Any) -> bool:
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return True
    is_in_memory = isinstance(tensor, onnx_ir.serde.TensorProtoTensor)
    has_bytes = tensor is not None and tensor.dtype != onnx_ir.DataType.STRING
    return has_bytes and not is_in_memory and bool(tensor.nbytes >= _LARGE)


def _empty(tensor: Any, content: bytes = b"") -> Any:
    """The same tensor with other content, or none: to_proto would load it, or refer to its file by
    some path."""
    proto = TensorProto(name=tensor.name or "", data_type=int(tensor.dtype), raw_data=content)
    proto.dims.extend(int(str(length)) for length in tensor.shape)
    if not content:
        proto.ClearField("raw_data")
    return onnx_ir.serde.TensorProtoTensor(proto)


def _data_of(tensor: Any) -> TensorData:
    if isinstance(tensor, onnx_ir.ExternalTensor):
        return FileData(Path(tensor.path), tensor.offset or 0, tensor.length or tensor.nbytes)
    return ComputedData(tensor.nbytes, partial(_bytes, tensor))


def _bytes(tensor: Any) -> NDArray[np.uint8]:
    return np.frombuffer(tensor.tobytes(), np.uint8)


@contextmanager
def _loaded_inside(node: onnx_ir.Node) -> Iterator[None]:
    """Tensors of a node's attributes and subgraphs that lie in files are in memory meanwhile."""
    undo: list[Callable[[], object]] = []
    try:
        for name, attribute in list(node.attributes.items()):
            if isinstance(attribute.value, onnx_ir.ExternalTensor):
                undo.append(partial(node.attributes.__setitem__, name, attribute))
                node.attributes[name] = onnx_ir.AttrTensor(name, _loaded(attribute.value))
            for graph in _graphs(attribute):
                for value in graph.initializers.values():
                    if isinstance(value.const_value, onnx_ir.ExternalTensor):
                        undo.append(partial(setattr, value, "const_value", value.const_value))
                        value.const_value = _loaded(value.const_value)
        yield
    finally:
        for step in undo:
            step()


def _graphs(attribute: Any) -> Sequence[onnx_ir.Graph]:
    if attribute.type == onnx_ir.AttributeType.GRAPH:
        return [attribute.value]
    return list(attribute.value) if attribute.type == onnx_ir.AttributeType.GRAPHS else []


def _loaded(tensor: onnx_ir.ExternalTensor) -> Any:
    return _empty(tensor, tensor.tobytes())


# -------------------------------------------------------------------- and back


def folded_like(
    model: onnx_ir.Model, folded: OnnxModel, before: Mapping[str, TensorData]
) -> onnx_ir.Model:
    """What the model was folded to, as a model of its kind; `before` is its own tensor data."""
    result = onnx_ir.from_proto(folded.proto)
    originals = model.graph.initializers
    for name, value in result.graph.initializers.items():
        data = folded.tensor_data.get(name)
        if data is None:
            continue
        if data is before.get(name):
            value.const_value = originals[name].const_value
        else:
            value.const_value = _lazy(name, value.const_value, data)
    return result


def _lazy(name: str, tensor: Any, data: TensorData) -> onnx_ir.LazyTensor:
    dtype = tensor.dtype

    def compute() -> Any:
        array = data.read().view(numpy_dtype(int(dtype))).reshape(tensor.shape.numpy())
        return onnx_ir.Tensor(array, dtype=dtype, name=name)

    return onnx_ir.LazyTensor(compute, dtype=dtype, shape=tensor.shape, name=name)
