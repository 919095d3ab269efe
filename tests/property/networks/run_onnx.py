"""Run the ONNX models of random networks in float64, whatever their dtype, on PyTorch's kernels.

ONNX Runtime has no float64 kernels for convolutions and the reference evaluator is slow and, for
some ops, wrong (see tests/conformance/onnx_run.py). The ops are those that `build_onnx` writes and
those that a fold may put in their place. That this runs what ONNX Runtime runs, is checked there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional

Values = dict[str, Any]


class UnknownOpError(Exception):
    """The model has an op that is not here."""


def run_onnx(model: onnx.ModelProto, feed: Mapping[str, Any]) -> dict[str, Any]:
    """The outputs by name, in float64."""
    values: Values = {"": None}
    for tensor in model.graph.initializer:
        values[tensor.name] = _tensor(numpy_helper.to_array(tensor))
    values.update({name: _tensor(np.asarray(array)) for name, array in feed.items()})
    with torch.no_grad():
        for node in model.graph.node:
            attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
            run = _OPS.get(node.op_type)
            if run is None or node.domain not in ("", "ai.onnx"):
                raise UnknownOpError(f"{node.domain} {node.op_type}")
            made = run(attributes, *(values[name] for name in node.input))
            parts = made if isinstance(made, tuple) else (made,)
            values.update(zip(node.output, parts, strict=False))
    return {output.name: values[output.name].numpy() for output in model.graph.output}


def _tensor(array: Any) -> Tensor:
    # A scalar comes out of astype as a NumPy number.
    wide = array.astype(np.float64) if array.dtype.kind == "f" else array
    return torch.from_numpy(np.array(wide))


def _conv(a: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    pads = a.get("pads", [0] * 2 * rank)
    before, after = pads[:rank], pads[rank:]
    amounts = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    run = (functional.conv1d, functional.conv2d, functional.conv3d)[rank - 1]
    options = {"stride": a.get("strides", 1), "dilation": a.get("dilations", 1)}
    return run(functional.pad(x, amounts), w, b, groups=a.get("group", 1), **options)


def _conv_transpose(a: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    rank = x.dim() - 2
    pads = a.get("pads", [0] * 2 * rank)
    kernels = (
        functional.conv_transpose1d,
        functional.conv_transpose2d,
        functional.conv_transpose3d,
    )
    # An output padding may be as large as the pads only where it is applied behind them.
    more = a.get("output_padding", [0] * rank)
    y = kernels[rank - 1](
        x, w, None, a.get("strides", 1), 0, 0, a.get("group", 1), a.get("dilations", 1)
    )
    ends = [extra - pad for extra, pad in zip(more, pads[rank:], strict=True)]
    y = functional.pad(y, [n for pair in zip(reversed(pads[:rank]), reversed(ends), strict=True)
                           for n in (-pair[0], pair[1])])  # fmt: skip
    return y if b is None else y + b.reshape(-1, *[1] * rank)


def _gemm(a: dict[str, Any], x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
    x = x.T if a.get("transA") else x
    w = w.T if a.get("transB") else w
    product = a.get("alpha", 1.0) * (x @ w)
    return product if b is None else product + a.get("beta", 1.0) * b


def _batch_norm(a: dict[str, Any], x: Tensor, *constants: Tensor) -> Tensor:
    shape = (1, -1, *[1] * (x.dim() - 2))
    gamma, beta, mean, variance = (c.reshape(shape) for c in constants)
    return gamma * (x - mean) / (variance + a["epsilon"]).sqrt() + beta


def _pool(a: dict[str, Any], x: Tensor, *, mean: bool) -> Tensor:
    rank = x.dim() - 2
    pads = a.get("pads", [0] * 2 * rank)
    assert pads[:rank] == pads[rank:]
    window = (a["kernel_shape"], a.get("strides", [1] * rank), pads[:rank])
    ceil = bool(a.get("ceil_mode"))
    if not mean:
        run = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)[rank - 1]
        return run(x, *window, ceil_mode=ceil)
    run = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)[rank - 1]
    return run(x, *window, ceil, bool(a.get("count_include_pad")))


def _resize(a: dict[str, Any], x: Tensor, _roi: Any, scales: Tensor) -> Tensor:
    assert scales.tolist() == [1.0, 1.0, 2.0, 2.0]
    mode = {b"nearest": "nearest", b"linear": "bilinear"}[a["mode"]]
    return functional.interpolate(x, scale_factor=2, mode=mode)


def _pad(a: dict[str, Any], x: Tensor, pads: Tensor, value: Tensor | None = None) -> Tensor:
    rank = x.dim()
    listed = pads.tolist()
    assert not any(listed[:2]) and not any(listed[rank : rank + 2])
    pairs = zip(reversed(listed[2:rank]), reversed(listed[rank + 2 :]), strict=True)
    amounts = [n for pair in pairs for n in pair]
    mode = a.get("mode", b"constant").decode()
    if mode == "constant":
        return functional.pad(x, amounts, value=0.0 if value is None else float(value))
    names = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    return functional.pad(x, amounts, names[mode])


def _slice(a: dict[str, Any], x: Tensor, start: Tensor, stop: Tensor, axes: Tensor) -> Tensor:
    index = [slice(None)] * x.dim()
    for first, last, axis in zip(start.tolist(), stop.tolist(), axes.tolist(), strict=True):
        index[axis] = slice(first, last)
    return x[tuple(index)]


def _split(a: dict[str, Any], x: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
    return tuple(x.split(sizes.tolist(), a["axis"]))


def _reshape(a: dict[str, Any], x: Tensor, target: Tensor) -> Tensor:
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(target.tolist())]
    return x.reshape(sizes)


def _clip(a: dict[str, Any], x: Tensor, low: Any = None, high: Any = None) -> Tensor:
    x = x if low is None else torch.maximum(x, low)
    return x if high is None else torch.minimum(x, high)


def _chain(function: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    def run(a: dict[str, Any], first: Tensor, *others: Tensor) -> Tensor:
        for other in others:
            first = function(first, other)
        return first

    return run


def _over_space(x: Tensor) -> list[int]:
    return list(range(2, x.dim()))


def _prelu(a: dict[str, Any], x: Tensor, slope: Tensor) -> Tensor:
    return torch.where(x < 0, slope * x, x)


def _constant(a: dict[str, Any]) -> Tensor:
    return _tensor(numpy_helper.to_array(a["value"]))


_OPS: dict[str, Callable[..., Any]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "MatMul": lambda a, x, w: x @ w,
    "BatchNormalization": _batch_norm,
    "Add": lambda a, x, y: x + y,
    "Sub": lambda a, x, y: x - y,
    "Mul": lambda a, x, y: x * y,
    "Div": lambda a, x, y: x / y,
    "Neg": lambda a, x: -x,
    "Sum": _chain(torch.add),
    "Max": _chain(torch.maximum),
    "Min": _chain(torch.minimum),
    "Relu": lambda a, x: x.relu(),
    "Clip": _clip,
    "LeakyRelu": lambda a, x: functional.leaky_relu(x, a["alpha"]),
    "PRelu": _prelu,
    "Abs": lambda a, x: x.abs(),
    "Sign": lambda a, x: x.sign(),
    "Sigmoid": lambda a, x: x.sigmoid(),
    "Tanh": lambda a, x: x.tanh(),
    "Softmax": lambda a, x: x.softmax(a["axis"]),
    "MaxPool": lambda a, x: _pool(a, x, mean=False),
    "AveragePool": lambda a, x: _pool(a, x, mean=True),
    "GlobalMaxPool": lambda a, x: x.amax(_over_space(x), keepdim=True),
    "GlobalAveragePool": lambda a, x: x.mean(_over_space(x), keepdim=True),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "Split": _split,
    "Slice": _slice,
    "Unsqueeze": lambda a, x, axis: x.unsqueeze(int(axis)),
    "ReduceSum": lambda a, x, axis: x.sum(int(axis), keepdim=bool(a["keepdims"])),
    "Reshape": _reshape,
    "Flatten": lambda a, x: x.flatten(1),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "DepthToSpace": lambda a, x: functional.pixel_shuffle(x, a["blocksize"]),
    "Resize": _resize,
    "Pad": _pad,
    "Identity": lambda a, x: x,
    "Dropout": lambda a, x, *_: x,
    "Constant": _constant,
}
