"""onnx_ir.Model in, onnx_ir.Model out.

The model goes through a ModelProto that refers to external tensors without loading them. In the
result, tensors that did not change are the very objects of the original; changed ones are computed
when somebody asks for them.
"""

from __future__ import annotations

from typing import Any

import onnx_ir

from bnfold.frontends.onnx.bulk import Bulk, ComputedBulk, FileBulk, ScaledBulk
from bnfold.frontends.onnx.read import OnnxModel, read_proto
from bnfold.frontends.onnx.tensors import numpy_dtype


def read_model(model: onnx_ir.Model) -> OnnxModel:
    """The model as the other kinds are read."""
    kept = {
        name: value.const_value
        for name, value in model.graph.initializers.items()
        if isinstance(value.const_value, onnx_ir.ExternalTensor)
    }
    try:
        for name in kept:
            model.graph.initializers[name].const_value = _empty(kept[name])
        proto = onnx_ir.to_proto(model)
    finally:
        for name, tensor in kept.items():
            model.graph.initializers[name].const_value = tensor
    return read_proto(proto, {name: _bulk(tensor) for name, tensor in kept.items()})


def _empty(tensor: onnx_ir.ExternalTensor) -> Any:
    """The same tensor without its data, which to_proto would refer to by a relative path."""
    import onnx

    proto = onnx.TensorProto(name=tensor.name or "", data_type=int(tensor.dtype))
    proto.dims.extend(int(str(length)) for length in tensor.shape)
    return onnx_ir.serde.TensorProtoTensor(proto)


def _bulk(tensor: onnx_ir.ExternalTensor) -> Bulk:
    from pathlib import Path

    return FileBulk(Path(tensor.path), tensor.offset or 0, tensor.length or tensor.nbytes)


def folded_like(model: onnx_ir.Model, folded: OnnxModel) -> onnx_ir.Model:
    """What the model was folded to, as a model of its kind."""
    result = onnx_ir.from_proto(folded.proto)
    originals = model.graph.initializers
    for name, value in result.graph.initializers.items():
        bulk = folded.bulk.get(name)
        if bulk is None:
            continue
        if isinstance(bulk, ComputedBulk | ScaledBulk):
            value.const_value = _lazy(name, value.const_value, bulk)
        else:
            value.const_value = originals[name].const_value
    return result


def _lazy(name: str, tensor: Any, bulk: ComputedBulk | ScaledBulk) -> onnx_ir.LazyTensor:
    dtype = tensor.dtype

    def compute() -> Any:
        array = bulk.read().view(numpy_dtype(int(dtype))).reshape(tensor.shape.numpy())
        return onnx_ir.Tensor(array, dtype=dtype, name=name)

    return onnx_ir.LazyTensor(compute, dtype=dtype, shape=tensor.shape, name=name)
