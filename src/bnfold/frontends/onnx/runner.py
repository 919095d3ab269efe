"""Run ONNX models for a verification: in ONNX Runtime as they are, and in float64 (`run_exact`).

Tensors inside are known by their names, which a fold keeps. ONNX Runtime's own optimisations are
off, so that it computes what the file says. It reads a model from its file where there is one:
external data stays there.
"""

from __future__ import annotations

import filecmp
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import onnx
from onnx import ModelProto

from bnfold._threads import limited
from bnfold.core.fitting import Stays, stay_as_well
from bnfold.core.modes import ClipMode, MergeMode
from bnfold.core.rescaling import Rescalings
from bnfold.errors import BnfoldError, ExampleInputError, MissingExtraError
from bnfold.frontends.onnx.analysis import Pins, analyse
from bnfold.frontends.onnx.fold import prepare
from bnfold.frontends.onnx.folding import Folding
from bnfold.frontends.onnx.narrow import HALF, narrow_names
from bnfold.frontends.onnx.nodes import read_network
from bnfold.frontends.onnx.read import OnnxModel, inner_graphs, read_file, read_proto
from bnfold.frontends.onnx.run_graph import RunGraph
from bnfold.frontends.onnx.run_inputs import fits, other_shapes, spec_of
from bnfold.frontends.onnx.run_outputs import to_outputs
from bnfold.frontends.onnx.run_rounding import moved, weight_names
from bnfold.frontends.onnx.shapes import choose_inputs
from bnfold.frontends.onnx.tensor_data import TensorData
from bnfold.frontends.onnx.tensors import FLOATS, numpy_dtype, to_array
from bnfold.frontends.onnx.write import to_proto
from bnfold.verify.runner import (
    Array,
    Evaluation,
    InputSpec,
    NotExactError,
    NotRunnableError,
    Output,
    Rounded,
    Watch,
)
from bnfold.verify.verdict import unit

if TYPE_CHECKING:
    from bnfold.frontends.onnx.run_numpy import NumpyModel

_MOVED = frozenset((onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16))


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
    known: Sequence[Rescalings] | None = None
    """How folds of it store its tensors, where the caller knows."""

    other_shapes: Sequence[Sequence[tuple[int, ...]]] = ()
    may_have_state: bool = False
    threads: int = 0
    """Of ONNX Runtime; 0 for as many as it likes."""
    is_stopped: bool = False
    running: list[Any] = field(default_factory=list)
    """ONNX Runtime's options of each run, which may end it."""

    def stop(self) -> None:
        """Runs in other threads raise at their next node, as do those that begin."""
        self.is_stopped = True
        for options in tuple(self.running):
            options.terminate = True

    def rounded(self, original: object) -> Rounded | None:
        """Initializers of its own in 16 bits, those that are only stored in them first."""
        known = _halves(original.model) if isinstance(original, OnnxRunner) else {}
        own = {
            name: half
            for name, half in _halves(self.model).items()
            if name not in known or not _is_same_tensor(half, known[name])
        }
        if not own:
            return None
        with suppress(BnfoldError):
            analysis = analyse(self.model, self.pins)
            for name in narrow_names(analysis.network, analysis.shapes.dtypes):
                if name in own:
                    return _rounded(own[name], is_only_stored=True)
        return _rounded(next(iter(own.values())), is_only_stored=False)

    def is_same_as(self, other: object) -> bool:
        """Whether two files have the same content, and none outside of them."""
        if not isinstance(other, OnnxRunner) or self.path is None or other.path is None:
            return False
        if self.model.external or other.model.external:
            return False
        return filecmp.cmp(self.path, other.path, shallow=False)

    def not_taken(self, error: Exception | None) -> ExampleInputError:
        """In the runtime's words; the shapes of inputs that are left open may be to blame."""
        step = "compare models that ONNX Runtime takes"
        for spec in self.specs:
            if spec.declared is None or None in spec.declared:
                axes = "x".join(map(str, spec.shape))
                step = (
                    f"give other shapes for the axes that the model leaves open:"
                    f" inputs={{{spec.name!r}: {tuple(spec.shape)}}}, or --input {spec.name}:{axes}"
                )
                break
        return ExampleInputError(self.name, error, step)

    def own(self) -> Evaluation:
        """In ONNX Runtime. Raises NotRunnableError."""
        return self._session()

    def reordered(self) -> Evaluation:
        """As ONNX Runtime optimises it, which fuses and reorders. Raises NotRunnableError."""
        return self._session(optimised=True)

    def _session(self, *, optimised: bool = False, draw: int | None = None) -> _Session:
        """The model loaded, for a draw with its weights moved. Raises NotRunnableError."""
        try:
            import onnxruntime
        except ImportError as error:
            raise NotRunnableError("onnxruntime is not installed") from error
        self.runtimes = {**self.runtimes, "onnxruntime": onnxruntime.__version__}
        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
        )
        options.log_severity_level = 4
        if self.threads or limited():
            options.intra_op_num_threads = self.threads or limited()
        weights = {} if draw is None else self._moved(draw)
        for name, weight in weights.items():
            options.add_initializer(name, weight)
        source = str(self.path) if self.path is not None else self._serialized()
        try:
            session = onnxruntime.InferenceSession(
                source, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # whatever the runtime raises: it has no kernels for this model
            raise NotRunnableError(f"ONNX Runtime cannot load it ({_first_line(error)})") from error
        return _Session(session, self, weights, onnxruntime.RunOptions)

    def _moved(self, draw: int) -> dict[str, Any]:
        """ONNX Runtime's values of the weights, by name."""
        from onnxruntime import OrtValue

        names = weight_names(read_network(self.model.name, self.model.proto))
        given = {info.name for info in self.model.proto.graph.input}
        return {
            tensor.name: OrtValue.ortvalue_from_numpy(
                moved(tensor.name, to_array(tensor, self.model.tensor_data.get(tensor.name)), draw)
            )
            for tensor in self.model.proto.graph.initializer
            if tensor.name in names - given and tensor.data_type in _MOVED
        }

    def exact(self) -> Evaluation:
        """In float64. Raises NotExactError."""
        try:
            from bnfold.frontends.onnx.run_exact import ExactModel
        except MissingExtraError as error:
            raise NotExactError("PyTorch, which does the arithmetic, is not installed") from error
        return ExactModel(self.model)

    def side_by_side(self) -> NumpyModel:
        """By NumPy, if the model is one of float32. Raises NotExactError."""
        from bnfold.frontends.onnx.run_numpy import NumpyModel

        dtypes = {t.data_type for t in self.model.proto.graph.initializer} & FLOATS
        if dtypes - {onnx.TensorProto.FLOAT} or {spec.dtype for spec in self.specs} != {"float32"}:
            raise NotExactError("it is not one of float32 alone")
        return NumpyModel(self.model, lambda: self.is_stopped)

    def narrowest(self, inputs: Sequence[Array]) -> str:
        """As the types of its values say; those of constants do not count."""
        with suppress(BnfoldError):
            dtypes = analyse(self.model, self.pins).shapes.dtypes
            live = RunGraph(self.model).live
            floats = {dtype for name, dtype in dtypes.items() if name in live} & FLOATS
            return max((numpy_dtype(kind).name for kind in floats), key=unit, default="")
        return ""

    def rescalings(self, folded: object) -> Sequence[Rescalings]:
        """What `fold` would do, under each clip mode; none where it refuses the model.

        The shapes that it is run on are those of the fold, or nobody gave the fold any.
        """
        if self.known is not None:
            return self.known
        same = self._nodes() & (folded._nodes() if isinstance(folded, OnnxRunner) else set())
        left = {name for name, _ in same}
        ways = (self.pins, None) if self._leaves_sizes_open() else (self.pins,)
        return [rescalings for pins in ways for rescalings in self._rescalings(pins, left)]

    def _leaves_sizes_open(self) -> bool:
        """Whether the inputs' shapes are what they are because they are run on."""
        if not self.pins:
            return False
        network = read_network(self.model.name, self.model.proto)
        declared, pinned = (choose_inputs(network, pins) for pins in (None, self.pins))
        return declared.count > 1 or declared.choices != pinned.choices

    def _nodes(self) -> set[tuple[str, str]]:
        """Name and operator of each."""
        network = read_network(self.model.name, self.model.proto)
        return {(node.name, node.op) for node in network.nodes}

    def _rescalings(self, pins: Pins, left: Collection[str]) -> Sequence[Rescalings]:
        rescalings = []
        with suppress(BnfoldError):
            for clip in get_args(ClipMode):
                for merge in get_args(MergeMode):
                    folding = self._folded(pins, clip, merge, {})
                    rescalings.append(folding.rescalings)
                    stays = stay_as_well(left, folding.gone)
                    if stays:
                        kept = self._folded(pins, clip, merge, stays)
                        rescalings.append(kept.rescalings)
                    if not folding.report.merged:
                        break
        return rescalings

    def _folded(self, pins: Pins, clip: ClipMode, merge: MergeMode, stays: Stays) -> Folding:
        model = self.model.copy()  # bodies and functions are folded in it
        folding = prepare(model, pins, clip=clip, merge=merge, stays=stays)
        if {tensor.data_type for tensor in model.proto.graph.initializer} & HALF:
            folding.check()  # where weights may overflow, which changes the plan
        return folding

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
    runner: OnnxRunner
    weights: Mapping[str, Any]
    """What the session reads where it lies, and so has to live as long."""
    make_options: Callable[[], Any]

    def run(
        self, inputs: Sequence[Array], watch: Watch | None = None, *, draw: int | None = None
    ) -> list[Output]:
        """See `Evaluation`."""
        if draw is not None:
            return self.runner._session(draw=draw).run(inputs)
        feeds = {spec.name: array for spec, array in zip(self.runner.specs, inputs, strict=True)}
        options = self.make_options()
        self.runner.running.append(options)
        options.terminate = self.runner.is_stopped  # `stop` may have come in between
        try:
            results = self.session.run(None, feeds, options)
        finally:
            self.runner.running.remove(options)
        names = [output.name for output in self.session.get_outputs()]
        named = zip(names, results, strict=True)
        return [output for name, result in named for output in to_outputs(name, result)]


_Half = tuple[onnx.TensorProto, TensorData | None]


def _halves(model: OnnxModel) -> dict[str, _Half]:
    """The initializers in 16 bits, of bodies too, and where their content lies."""
    graphs = [model.proto.graph]
    for graph in graphs:  # which grows
        graphs += [g for node in graph.node for a in node.attribute for g in inner_graphs(a)]
    return {
        tensor.name: (tensor, model.tensor_data.get(tensor.name))
        for graph in reversed(graphs)
        for tensor in graph.initializer
        if tensor.data_type in HALF
    }


def _rounded(half: _Half, *, is_only_stored: bool) -> Rounded:
    dtype = numpy_dtype(half[0].data_type).name
    return Rounded(dtype, is_only_stored=is_only_stored)


def _is_same_tensor(first: _Half, second: _Half) -> bool:
    if first[0].data_type != second[0].data_type or first[0].dims != second[0].dims:
        return False
    return to_array(*first).tobytes() == to_array(*second).tobytes()


def file_runner(
    path: Path,
    pins: Pins = None,
    *,
    name: str | None = None,
    like: Sequence[InputSpec] | None = None,
    model: OnnxModel | None = None,
) -> OnnxRunner:
    """A runner of a file; the other model's inputs say what this one leaves open.

    `model` is what is in the file, where it was read already, and not edited since.

    Raises ModelUnreadableError, UsageError.
    """
    return _runner(read_file(path) if model is None else model, path, name or str(path), pins, like)


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
            if fits(network, input_name, spec)
        }
    shapes = choose_inputs(network, pins).choices[0]
    specs = [spec_of(network, input_name, shapes.get(input_name)) for input_name in names]
    others = other_shapes(network, specs)
    return OnnxRunner(model, path, name, pins, tuple(specs), other_shapes=others)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
