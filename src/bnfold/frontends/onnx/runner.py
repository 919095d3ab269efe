"""Run ONNX models for a verification: in ONNX Runtime as they are, and in float64 (`run_exact`).

Tensors inside are known by their names, which a fold keeps. ONNX Runtime's own optimisations are
off, so that it computes what the file says. It reads a model from its file where there is one:
external data stays there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from bnfold.core.plan import Plan
from bnfold.core.stored import Storage, Stored
from bnfold.errors import BnfoldError, MissingExtraError, UsageError
from bnfold.frontends.onnx.fold import Pins, prepare
from bnfold.frontends.onnx.lift import Lifted
from bnfold.frontends.onnx.nodes import Network, read_network
from bnfold.frontends.onnx.read import OnnxModel, read_file, read_proto
from bnfold.frontends.onnx.shapes import choose_inputs
from bnfold.frontends.onnx.tensors import FLOATS, numpy_dtype
from bnfold.frontends.onnx.write import to_proto
from bnfold.verify.runner import (
    Array,
    Evaluation,
    InputSpec,
    NotExactError,
    NotRunnableError,
    Output,
    Watch,
)

_CLIPS = ("auto", "always", "never")
_HALF = frozenset((onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16))


@dataclass(slots=True)
class OnnxRunner:
    """A model, or the path of one; see `verify.runner.Runner`."""

    model: OnnxModel
    path: Path | None
    name: str
    pins: Pins
    specs: Sequence[InputSpec]
    runtimes: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    kind: str = "onnx"
    known: Sequence[Mapping[str, Stored]] | None = None
    """How folds of it store its tensors, where the caller knows."""

    @contextmanager
    def own(self) -> Iterator[Evaluation]:
        """In ONNX Runtime. Raises NotRunnableError."""
        try:
            import onnxruntime
        except ImportError as error:
            raise NotRunnableError("onnxruntime is not installed") from error
        self.runtimes = {**self.runtimes, "onnxruntime": onnxruntime.__version__}
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        source = str(self.path) if self.path is not None else self._serialized()
        try:
            session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever the runtime raises: it has no kernels for this model
            raise NotRunnableError(f"ONNX Runtime cannot load it ({_first_line(error)})") from error
        yield _Session(session, self.specs)

    @contextmanager
    def exact(self) -> Iterator[Evaluation]:
        """In float64. Raises NotExactError."""
        try:
            from bnfold.frontends.onnx.run_exact import ExactModel
        except MissingExtraError as error:
            raise NotExactError("PyTorch, which does the arithmetic, is not installed") from error
        yield ExactModel(self.model)

    def storages(self) -> Sequence[Mapping[str, Stored]]:
        """What `fold` would do, under each clip mode; none where it refuses the model."""
        if self.known is not None:
            return self.known
        found = []
        kinds = {tensor.data_type for tensor in self.model.proto.graph.initializer}
        with suppress(BnfoldError):
            for clip in _CLIPS:
                folding = prepare(self.model, self.pins, clip=clip)  # type: ignore[arg-type]
                if kinds & _HALF:  # where weights may overflow, which changes the plan
                    folding.check()
                found.append(storage(folding.lifted, folding.plan))
        return found

    def _serialized(self) -> bytes:
        try:
            content: bytes = to_proto(self.model).SerializeToString()
        except Exception as error:  # protobuf's, beyond 2 GB
            raise NotRunnableError("a model of more than 2 GB in memory cannot be run") from error
        return content


@dataclass(frozen=True, slots=True)
class _Session:
    """ONNX Runtime with a model loaded."""

    session: Any
    specs: Sequence[InputSpec]

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        feeds = {spec.name: array for spec, array in zip(self.specs, inputs, strict=True)}
        results = self.session.run(None, feeds)
        names = [output.name for output in self.session.get_outputs()]
        return [
            Output(name, array, str(array.dtype))
            for name, array in zip(names, results, strict=True)
            if isinstance(array, np.ndarray)
        ]


def file_runner(
    path: Path,
    pins: Pins = None,
    *,
    name: str | None = None,
    like: Sequence[InputSpec] | None = None,
) -> OnnxRunner:
    """A runner of a file; the other model's inputs say what this one leaves open.

    Raises ModelUnreadableError, UsageError.
    """
    return _runner(read_file(path), path, name or str(path), pins, like)


def model_runner(
    model: Any, pins: Pins, name: str, *, like: Sequence[InputSpec] | None = None
) -> OnnxRunner:
    """A runner of a ModelProto or an onnx_ir.Model."""
    if isinstance(model, ModelProto):
        return _runner(read_proto(model), None, name, pins, like)
    from bnfold.frontends.onnx import ir

    return _runner(ir.read_model(model), None, name, pins, like)


def _runner(
    model: OnnxModel,
    path: Path | None,
    name: str,
    pins: Pins,
    like: Sequence[InputSpec] | None,
) -> OnnxRunner:
    network = read_network(name, model.proto)
    given = {tensor.name for tensor in model.proto.graph.initializer}
    names = [input_name for input_name in network.inputs if input_name not in given]
    if not pins and like is not None and len(like) == len(names):
        pins = {
            input_name: spec.shape
            for input_name, spec in zip(names, like, strict=True)
            if _fits(network, input_name, spec)
        }
    shapes = choose_inputs(network, pins).choices[0]
    specs = [_spec(network, input_name, shapes.get(input_name)) for input_name in names]
    return OnnxRunner(model, path, name, pins, tuple(specs))


def _fits(network: Network, name: str, spec: InputSpec) -> bool:
    """Whether the model may take an input of that shape; where not, a later check says so."""
    tensor = network.inputs[name].tensor_type
    if not tensor.HasField("shape"):
        return True
    dims = tensor.shape.dim
    return len(dims) == len(spec.shape) and all(
        dim.dim_value in (0, -1, size) for dim, size in zip(dims, spec.shape, strict=True)
    )


def _spec(network: Network, name: str, shape: tuple[int, ...] | None) -> InputSpec:
    tensor = network.inputs[name].tensor_type
    step = "give its shape with --input NAME:SHAPE, or inputs={name: shape}"
    if shape is None or not tensor.elem_type:
        raise UsageError(f"the shape of the input {name!r} is not known", step)
    try:
        dtype = numpy_dtype(tensor.elem_type)
    except KeyError as error:
        raise UsageError(f"the input {name!r} has a dtype that is not known", step) from error
    if dtype.kind not in "fiub" and tensor.elem_type not in FLOATS:
        raise UsageError(
            f"the input {name!r} is no plain array of numbers", "verify models of numbers"
        )
    declared = None
    if tensor.HasField("shape"):
        declared = tuple(dim.dim_value or None for dim in tensor.shape.dim)
    return InputSpec(name, tuple(shape), dtype.name, None, declared)


def storage(lifted: Lifted, plan: Plan) -> dict[str, Stored]:
    """How a plan stores each value, by its name."""
    stored = Storage(plan)
    return {name: stored.of(tensor) for name, tensor in lifted.tensors.items()}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
