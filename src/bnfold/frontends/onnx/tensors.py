"""Tensors as arrays, and arrays as tensors: dtypes, sizes, decoding."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from bnfold.frontends.onnx.tensor_data import TensorData

FLOATS = frozenset(
    (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16)
)
"""The dtypes whose values can be stored rescaled."""

_HALF_BYTES = frozenset(getattr(TensorProto, name, -1) for name in ("INT4", "UINT4", "FLOAT4E2M1"))
_QUARTER_BYTES = frozenset(getattr(TensorProto, name, -1) for name in ("INT2", "UINT2"))


def byte_count(tensor: TensorProto) -> int:
    """How many bytes a tensor's raw data has."""
    count = element_count(tensor)
    if tensor.data_type in _HALF_BYTES:
        return (count + 1) // 2
    if tensor.data_type in _QUARTER_BYTES:
        return (count + 3) // 4
    try:
        return count * numpy_dtype(tensor.data_type).itemsize
    except KeyError:  # strings, and what is newer than the onnx package
        return -1


def element_count(tensor: TensorProto) -> int:
    """How many numbers a tensor says it has."""
    return math.prod(int(length) for length in tensor.dims)


def typed_count(tensor: TensorProto) -> int:
    """How many numbers lie in the fields for single types; small ones share one entry."""
    count = max(
        *(len(tensor.float_data), len(tensor.int32_data), len(tensor.int64_data)),
        *(len(tensor.double_data), len(tensor.uint64_data), len(tensor.string_data)),
    )
    if tensor.data_type in (TensorProto.COMPLEX64, TensorProto.COMPLEX128):
        return count // 2
    packed = (
        2 if tensor.data_type in _HALF_BYTES else 4 if tensor.data_type in _QUARTER_BYTES else 1
    )
    entries = element_count(tensor)
    return entries if packed > 1 and count == -(-entries // packed) else count


def numpy_dtype(data_type: int) -> np.dtype[Any]:
    """The dtype that holds an ONNX element type. Raises KeyError for an unknown one."""
    return np.dtype(helper.tensor_dtype_to_np_dtype(data_type))


def to_array(tensor: TensorProto, data: TensorData | None) -> NDArray[Any]:
    """The content of a tensor; not to be written to."""
    if data is None:
        return numpy_helper.to_array(tensor)
    if tensor.data_type in _HALF_BYTES or tensor.data_type in _QUARTER_BYTES:
        whole = TensorProto()
        whole.CopyFrom(tensor)
        whole.raw_data = data.read().tobytes()
        return numpy_helper.to_array(whole)
    dtype = numpy_dtype(tensor.data_type).newbyteorder("<")
    return data.read().view(dtype).reshape(tuple(tensor.dims))


def clear_content(tensor: TensorProto) -> None:
    """Remove the data of a tensor, wherever the message keeps it."""
    for name in (
        *("raw_data", "float_data", "int32_data", "int64_data", "double_data"),
        *("uint64_data", "string_data", "external_data", "data_location"),
    ):
        tensor.ClearField(name)  # type: ignore[arg-type]
