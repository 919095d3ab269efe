"""The same networks in the dtypes that models are kept in: what they lose by a fold is rounding.

float32 and float16 results are compared with the float64 network. A fold may cost digits, but not
many: the error may be `TOLERANCE` of the output's largest value, or `OWN` times what the network
loses by itself in that dtype, where it is badly conditioned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime
import torch
from onnx import TensorProto

import bnfold
from bnfold.core.modes import ClipMode
from tests.property.networks.build_onnx import onnx_model
from tests.property.networks.build_torch import Model, run_torch, torch_inputs
from tests.property.networks.check import WrongResultError, decisions, reference
from tests.property.networks.description import Network

TOLERANCE = {torch.float32: 1e-3, torch.float16: 0.1}
OWN = 100.0


def check_torch_in(network: Network, clip: ClipMode, dtype: torch.dtype) -> bool:
    """The module in a smaller dtype; False if there is nothing to compare."""
    expected = reference(network)
    if expected is None or "sign" in network.kinds:
        return False
    model = Model(network).to(dtype)
    own = run_torch(model, network, dtype=dtype)
    if not all(value.isfinite().all() for value in own.values()):
        return False
    folded, _ = bnfold.fold(model, torch_inputs(network, dtype), clip=clip)
    made = run_torch(folded, network, dtype=dtype)
    for name, value in made.items():
        assert value.dtype == dtype
        _compare(expected[name], own[name].double().numpy(), value.double().numpy(), dtype, name)
    return True


def check_onnx_runtime(network: Network, clip: ClipMode) -> bool:
    """The model in float32 in ONNX Runtime, as it is and folded; decisions as in float64."""
    expected = reference(network)
    if expected is None or "sign" in network.kinds:
        return False
    model = onnx_model(network, TensorProto.FLOAT)
    feed = {name: array.astype(np.float32) for name, array in network.feed().items()}
    own = run_in_runtime(model.SerializeToString(), feed)
    folded, report = bnfold.fold(model, clip=clip)
    double = bnfold.inspect(onnx_model(network), clip=clip)
    assert decisions(report) == decisions(double)
    made = run_in_runtime(folded.SerializeToString(), feed)
    if not all(np.isfinite(value).all() for value in own.values()):
        return False
    for name, value in made.items():
        _compare(expected[name], own[name], own[name], torch.float32, f"{name}, as built")
        _compare(expected[name], own[name], value, torch.float32, name)
    return True


def run_in_runtime(content: bytes, feed: dict[str, Any]) -> dict[str, Any]:
    """ONNX Runtime on one thread, without optimisations of its own."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    taken = {value.name: feed[value.name] for value in session.get_inputs()}
    return dict(zip(names, session.run(names, taken), strict=True))


def _compare(expected: Any, own: Any, made: Any, dtype: torch.dtype, name: str) -> None:
    size = max(float(np.abs(expected).max(initial=0.0)), 1e-3)
    lost = float(np.abs(own - expected).max(initial=0.0)) / size
    error = float(np.abs(made - expected).max(initial=0.0)) / size
    allowed = TOLERANCE[dtype] + (OWN * lost if made is not own else 0.0)
    if not error <= allowed:
        raise WrongResultError(f"{dtype}: {name} is off by {error:.2g}, {lost:.2g} unfolded")
