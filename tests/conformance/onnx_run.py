"""Run small ONNX models: in ONNX Runtime as they are, and exactly, in float64.

ONNX Runtime runs with its own optimisations off, so that it computes what the file says. It has no
float64 kernels for convolutions and poolings, so exact numbers come from the reference evaluator
that the onnx package has. Where that one is wrong (seen in onnx 1.23) it gets an op of ours:

    ConvTranspose        groups are not honoured where each has one channel
    BatchNormalization   opset 9 to 13: always normalises with the statistics of the batch
    Pad                  negative amounts raise
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.core.interpreter import convolve_transposed

Array = NDArray[Any]
Feed = dict[str, Array]


def session(model: onnx.ModelProto | str) -> onnxruntime.InferenceSession:
    """ONNX Runtime on one thread, all graph optimisations off."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    source = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(model: onnx.ModelProto | str, feed: Mapping[str, Array]) -> list[Array]:
    """What ONNX Runtime computes."""
    return [np.asarray(value) for value in session(model).run(None, dict(feed))]


def run_exactly(model: onnx.ModelProto, feed: Mapping[str, Array]) -> list[Array]:
    """What the model means, for a float64 model; float inputs are widened."""
    wide = {
        name: value.astype(np.float64) if value.dtype.kind == "f" else value
        for name, value in feed.items()
    }
    with np.errstate(invalid="ignore", divide="ignore"):
        evaluator = ReferenceEvaluator(model, new_ops=_OURS)
        return [np.asarray(value) for value in evaluator.run(None, wide)]


def random_feed(
    model: onnx.ModelProto, sizes: Mapping[str, int] | None = None, seed: int = 1
) -> Feed:
    """Normal numbers for every input without a default; symbolic dimensions from `sizes`, or 2."""
    random = np.random.default_rng(seed)
    defaults = {tensor.name for tensor in model.graph.initializer}
    feed = {}
    for value in model.graph.input:
        if value.name in defaults:
            continue
        kind = value.type.tensor_type
        shape = [d.dim_value or (sizes or {}).get(d.dim_param, 2) for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype == np.bool_:
            feed[value.name] = np.array(random.integers(0, 2, shape), dtype=dtype)
        elif dtype.kind in "iu":
            feed[value.name] = np.array(random.integers(0, 3, shape), dtype=dtype)
        else:
            feed[value.name] = (1.5 * random.standard_normal(shape) + 0.3).astype(dtype)
    return feed


def feeds(model: onnx.ModelProto, sizes: Mapping[str, int] | None = None) -> list[Feed]:
    """Two random feeds, with both answers to what is yes or no; where the caller may override
    initializers, one that does so as well."""
    found = [random_feed(model, sizes, seed) for seed in (1, 2)]
    for name, value in found[0].items():
        if value.dtype == np.bool_:
            found[1][name] = np.asarray(~value)
    names = {value.name for value in model.graph.input}
    if model.ir_version >= 4:  # before that, initializers are inputs by form alone
        defaults = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        others = {
            name: (1.5 * value[..., ::-1]).astype(value.dtype)
            for name, value in defaults.items()
            if name in names
        }
        if others:
            found.append({**found[0], **others})
    return found


def error(expected: list[Array], actual: list[Array]) -> float:
    """The largest max|a - b| / max|a| over the outputs; infinite where they cannot be compared."""
    if len(expected) != len(actual):
        return float("inf")
    return max((_error(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)


def _error(expected: Array, actual: Array) -> float:
    if expected.shape != actual.shape:
        return float("inf")
    if expected.dtype.kind not in "f":
        return 0.0 if np.array_equal(expected, actual) else float("inf")
    old, new = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(old)
    if not np.array_equal(old[~finite], new[~finite], equal_nan=True):
        return float("inf")
    if not np.isfinite(new[finite]).all():
        return float("inf")
    largest = np.abs(old[finite]).max(initial=0.0)
    return float(np.abs(old[finite] - new[finite]).max(initial=0.0) / max(largest, 1e-300))


# ---------------------------------------------------------------- ops of ours


class ConvTranspose(OpRun):  # type: ignore[misc]
    """Groups, one stride, one dilation and symmetric padding."""

    op_domain = ""

    def _run(self, x: Any, w: Any, b: Any = None, **attributes: Any) -> tuple[Any]:
        strides, dilations = attributes.get("strides"), attributes.get("dilations")
        pads = attributes.get("pads")
        auto_pad = attributes.get("auto_pad")
        assert auto_pad in (None, "NOTSET")
        assert not attributes.get("output_padding") and not attributes.get("output_shape")
        stride, dilation, pad = (
            values[0] if values is not None and len(values) else default
            for values, default in ((strides, 1), (dilations, 1), (pads, 0))
        )
        y = convolve_transposed(x, w, stride, pad, dilation, attributes.get("group") or 1)
        if b is not None:
            y = y + b.reshape(1, -1, *(1,) * (x.ndim - 2))
        return (y,)


class BatchNormalization(OpRun):  # type: ignore[misc]
    """At inference; with spatial=0 the statistics have the shape of one image."""

    op_domain = ""

    def _run(
        self, x: Any, gamma: Any, beta: Any, mean: Any, var: Any, **attributes: Any
    ) -> tuple[Any]:
        assert not attributes.get("training_mode")
        epsilon = attributes.get("epsilon")
        shape = (1, *gamma.shape, *(1,) * (x.ndim - 1 - gamma.ndim))
        gamma, beta, mean, var = (v.reshape(shape) for v in (gamma, beta, mean, var))
        deviation = np.sqrt(var + np.float32(1e-5 if epsilon is None else epsilon))
        return (gamma * (x - mean) / deviation + beta,)


class Pad(OpRun):  # type: ignore[misc]
    """Negative amounts crop first."""

    op_domain = ""

    def _run(self, x: Any, pads: Any = None, *rest: Any, **attributes: Any) -> tuple[Any]:
        pads = attributes.get("pads") if pads is None else pads
        constant = rest[0] if rest and rest[0] is not None else attributes.get("value") or 0
        axes = range(x.ndim) if len(rest) < 2 or rest[1] is None else rest[1].tolist()
        before, after = np.zeros(x.ndim, dtype=np.int64), np.zeros(x.ndim, dtype=np.int64)
        for at, axis in enumerate(axes):
            before[axis], after[axis] = pads[at], pads[at + len(pads) // 2]
        crop = tuple(
            slice(max(0, -b), n - max(0, -a))
            for b, a, n in zip(before, after, x.shape, strict=True)
        )
        amounts = list(zip(np.maximum(before, 0), np.maximum(after, 0), strict=True))
        mode = attributes.get("mode") or "constant"
        if mode == "constant":
            return (np.pad(x[crop], amounts, constant_values=constant),)
        return (np.pad(x[crop], amounts, mode=mode),)


_OURS = [ConvTranspose, BatchNormalization, Pad]
