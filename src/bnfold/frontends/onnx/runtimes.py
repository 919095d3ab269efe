"""Run an ONNX model for a measurement: in ONNX Runtime, without and with its own optimisations.

The threads of a session stop spinning when its run is over: otherwise those of one variant would
take time from the next.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bnfold._named_shapes import check_named
from bnfold.bench.machine import cores
from bnfold.bench.settings import CONTIGUOUS, Setting, Wishes, check
from bnfold.bench.timing import Timed, on_clock
from bnfold.errors import MissingExtraError, ModelUnreadableError, UsageError

PLAIN = "onnxruntime"
OPTIMISED = "onnxruntime optimised"
RUNTIMES = (PLAIN, OPTIMISED)

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"

_DTYPES = {
    "tensor(float16)": "float16",
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(bool)": "bool",
}
_SEED = 0
_BEYOND = 2
"""Integer inputs are below this: small enough to be an index into anything."""

Shapes = Mapping[str, Sequence[int]]


class OnnxSubject:
    """Models with the same inputs; see `bnfold.bench.settings.Subject`."""

    def __init__(
        self,
        models: Mapping[str, Any],
        shapes: Shapes | None,
        *,
        runtimes: Sequence[str],
        wishes: Wishes,
    ) -> None:
        check_named(shapes)
        self._ort = _onnxruntime()
        self.runtimes = tuple(runtimes)
        self.variants = tuple(models)
        self._models = {name: _loadable(model) for name, model in models.items()}
        self._shapes = {name: tuple(shape) for name, shape in (shapes or {}).items()}
        self._check(wishes)
        self._inputs = self._read_inputs()
        self.settings = wishes.settings(
            dtype=next(
                (dtype for _, dtype, _ in self._inputs if "float" in dtype), self._inputs[0][1]
            ),
            layout=CONTIGUOUS,
            batch=self._batch(),
            threads=cores(),
        )

    @contextmanager
    def enter(self, setting: Setting) -> Iterator[None]:
        """A session has its threads to itself."""
        yield

    def timed(self, variant: str, runtime: str, setting: Setting) -> Timed:
        """A session of its own for each variant."""
        session = self._session(self._models[variant], runtime, setting)
        feeds = self._feeds(setting)
        if setting.device == "cpu":
            return on_clock(partial(session.run, None, feeds))
        return on_clock(_bound(self._ort, session, feeds, setting))

    def not_taken(self, variant: str, runtime: str, error: Exception) -> None:
        """Inputs are drawn here."""

    def describe(self) -> tuple[dict[str, str], dict[str, str]]:
        """ONNX Runtime; the GPU is not known by name here."""
        return {}, {"onnxruntime": str(self._ort.__version__)}

    # ---------------------------------------------------------------- what can be run

    def _check(self, wishes: Wishes) -> None:
        check(wishes, dict.fromkeys(_DTYPES.values()))
        for runtime in self.runtimes:
            if runtime not in RUNTIMES:
                raise UsageError(
                    f"ONNX models have no runtime {runtime!r}",
                    f"use some of {', '.join(RUNTIMES)}",
                )
        if wishes.dtypes is not None or wishes.layouts is not None:
            raise UsageError(
                "dtype and layout of an ONNX model are in the file",
                "leave them out, or convert the model first",
            )
        if wishes.device == "cpu":
            return
        if wishes.device.partition(":")[0] != "cuda":
            raise UsageError(f"there is no device {wishes.device!r}", "use 'cpu' or 'cuda'")
        if _CUDA not in self._ort.get_available_providers():
            raise UsageError(
                f"onnxruntime {self._ort.__version__} has no CUDA here",
                "install onnxruntime-gpu, or use device='cpu' (--device cpu)",
            )

    def _read_inputs(self) -> tuple[tuple[str, str, tuple[int | None, ...]], ...]:
        """Name, dtype and shape of each input; None where the shape is open."""
        setting = Setting("cpu", "", CONTIGUOUS, 1, 1)
        first = next(iter(self._models.values()))
        inputs = []
        for info in self._session(first, PLAIN, setting).get_inputs():
            if info.type not in _DTYPES:
                raise UsageError(
                    f"the input {info.name!r} is a {info.type}, which is not made up here",
                    "measure a model whose inputs are arrays of numbers",
                )
            sizes = tuple(size if isinstance(size, int) else None for size in info.shape or ())
            inputs.append((info.name, _DTYPES[info.type], sizes))
        unknown = set(self._shapes) - {name for name, _, _ in inputs}
        if unknown:
            raise UsageError(
                f"there is no input {sorted(unknown)[0]!r}",
                f"the inputs are {', '.join(name for name, _, _ in inputs)}",
            )
        return tuple(inputs)

    def _batch(self) -> int:
        name, _, sizes = self._inputs[0]
        given = self._shapes.get(name)
        if given:
            return given[0]
        return (sizes[0] or 1) if sizes else 1

    # ---------------------------------------------------------------- making ready

    def _session(self, model: str | bytes, runtime: str, setting: Setting) -> Any:
        ort = self._ort
        options = ort.SessionOptions()
        levels = ort.GraphOptimizationLevel
        options.graph_optimization_level = (
            levels.ORT_ENABLE_ALL if runtime == OPTIMISED else levels.ORT_DISABLE_ALL
        )
        options.intra_op_num_threads = setting.threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4
        providers: list[Any] = [_CPU]
        if setting.device != "cpu":
            number = int(setting.device.partition(":")[2] or 0)
            providers = [(_CUDA, {"device_id": number}), _CPU]
        try:
            return ort.InferenceSession(model, options, providers=providers)
        except Exception as error:  # onnxruntime has an exception for each of its states
            lines = str(error).strip().splitlines()
            raise ModelUnreadableError(
                model if isinstance(model, str) else "the model",
                f"ONNX Runtime cannot load it: {lines[0] if lines else type(error).__name__}",
                "check the model with onnx.checker.check_model",
            ) from error

    def _feeds(self, setting: Setting) -> dict[str, NDArray[Any]]:
        rng = np.random.default_rng(_SEED)
        feeds: dict[str, NDArray[Any]] = {}
        own = self._batch()
        for name, dtype, sizes in self._inputs:
            shape = self._shape(name, sizes, own, setting.batch)
            if "float" in dtype:
                feeds[name] = rng.standard_normal(shape).astype(dtype)
            else:
                feeds[name] = rng.integers(0, _BEYOND, shape).astype(dtype)
        return feeds

    def _shape(
        self, name: str, sizes: tuple[int | None, ...], own: int, batch: int
    ) -> tuple[int, ...]:
        given = self._shapes.get(name, sizes)
        if len(given) != len(sizes):
            raise UsageError(
                f"the input {name!r} has {len(sizes)} axes, not {len(given)}",
                "give the length of each axis",
            )
        if sizes and given[0] in (None, own):
            if sizes[0] not in (None, batch):
                raise UsageError(
                    f"the input {name!r} has a fixed batch of {sizes[0]}, not {batch}",
                    "export the model with an open (dynamic) batch axis, or leave --batch out",
                )
            given = (batch, *given[1:])
        for axis, size in enumerate(given):
            if size is None:
                example = "x".join(str(length or 224) for length in given)
                raise UsageError(
                    f"axis {axis} of the input {name!r} is open",
                    f"give its shape: inputs={{{name!r}: ...}}, or --input {name}:{example}",
                )
        return tuple(int(size) for size in given if size is not None)


def _onnxruntime() -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnx", "onnxruntime") from error
    return onnxruntime


def _loadable(model: Any) -> str | bytes:
    """What a session takes: a path, or the content of a file."""
    if isinstance(model, str | os.PathLike):
        path = Path(model)
        if not path.is_file():
            raise ModelUnreadableError(str(path), "no such file", "name an .onnx file")
        return str(path)
    if not hasattr(model, "SerializeToString"):
        import onnx_ir

        model = onnx_ir.to_proto(model)
    content: bytes = model.SerializeToString()
    return content


def _bound(
    ort: Any, session: Any, feeds: Mapping[str, NDArray[Any]], setting: Setting
) -> Callable[[], None]:
    """A run whose inputs and outputs stay on the GPU, and that waits until it is over."""
    number = int(setting.device.partition(":")[2] or 0)
    binding = session.io_binding()
    for name, feed in feeds.items():
        binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(feed, "cuda", number))
    for output in session.get_outputs():
        binding.bind_output(output.name, "cuda", number)

    def call() -> None:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()

    return call
