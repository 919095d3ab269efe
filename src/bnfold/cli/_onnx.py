"""ONNX on the command line; see `_kinds` for what each function is.

The comparison runs the files themselves in ONNX Runtime: the original, and the folded model where
it lies until it is moved into its place.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bnfold._kinds import folded_beside
from bnfold._places import is_same_file
from bnfold.cli._compare import Difference, Output, check_equal
from bnfold.cli._options import refuse_weights
from bnfold.cli._output import progress, say
from bnfold.errors import UsageError
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from bnfold.frontends.onnx.read import OnnxModel
    from bnfold.frontends.onnx.write import Staged

SUFFIX = ".onnx"

_SEED = 0
_BEYOND = 2
"""Integer inputs are below this: small enough to be an index into anything."""


@dataclass(slots=True)
class Source:
    """A model, and the shapes that the user gave."""

    path: Path
    model: OnnxModel
    pins: dict[str, tuple[int, ...]]


@dataclass(slots=True, weakref_slot=True)
class Folded:
    """A folded model on the disk; its files vanish with it, unless they are moved away."""

    staged: Staged
    shapes: dict[str, tuple[int, ...]]
    """Of the inputs, as the model was analysed."""


def check_options(arguments: argparse.Namespace) -> None:
    """--eval is for factories, WEIGHTS for Caffe."""
    refuse_weights(arguments)
    if arguments.eval_mode:
        raise UsageError("--eval is for package.module:factory", "leave it out")
    for text in arguments.inputs:
        _parse(text)
    output = arguments.output if "output" in arguments else None
    if output is not None and is_same_file(output, Path(arguments.source)):
        raise UsageError(f"{output} is the model itself", "name another output with -o")


def default_output(arguments: argparse.Namespace) -> Path:
    """Beside the model."""
    return folded_beside(Path(arguments.source)).with_suffix(SUFFIX)


def open_source(arguments: argparse.Namespace) -> Source:
    """Read the model, but not its large tensors."""
    from bnfold.frontends import onnx  # noqa: F401  # says which extra is missing, if onnx is
    from bnfold.frontends.onnx.read import read_file

    path = Path(arguments.source)
    model = read_file(path)
    return Source(path, model, input_shapes(arguments.inputs, model))


def inspect(source: Source, arguments: argparse.Namespace) -> FoldReport:
    """The report."""
    from bnfold.frontends.onnx.fold import prepare

    folding = prepare(source.model, source.pins, clip=arguments.clip)
    folding.check()
    return folding.report


def fold(source: Source, arguments: argparse.Namespace) -> tuple[Folded, FoldReport]:
    """The folded model, complete on the disk but not yet in its place, and the report."""
    from bnfold.frontends.onnx.fold import check_data_target, check_name, prepare

    if not arguments.dry_run:
        target = arguments.output or default_output(arguments)
        check_name(target)
        check_data_target(source.model, target, force=arguments.force)
    folding = prepare(source.model, source.pins, clip=arguments.clip)
    stack = ExitStack()
    try:
        if arguments.dry_run:
            output = Path(f"model{SUFFIX}")
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            output = arguments.output or default_output(arguments)
            folder = output.parent
        with progress(f"writing {output}") as step:
            staged = stack.enter_context(folding.staged(output, folder, step))
        folded = Folded(staged, folding.shapes.choices[0])
    except BaseException:
        stack.close()
        raise
    weakref.finalize(folded, stack.close)
    return folded, folding.report


def compare(source: Source, folded: Folded, arguments: argparse.Namespace) -> Difference | str:
    """Run both in ONNX Runtime, with its own optimisations off."""
    try:
        import onnxruntime as ort
    except ImportError:
        say('onnxruntime is not installed: run: python -m pip install "bnfold[onnx]"')
        return "onnxruntime is not installed"
    for path in (source.path, folded.staged.model):
        if not _is_text(path):
            return f"ONNX Runtime opens no file whose path is no UTF-8: {path}"
    feeds = _feeds(source.model, folded.shapes)
    if isinstance(feeds, str):
        say(f"{source.path} was not run: {feeds}")
        return feeds
    try:
        expected = _run(ort, source.path, feeds)
    except Exception as error:  # what the runtime cannot run says nothing about the fold
        reason = f"ONNX Runtime cannot run the original: {_first_line(error)}"
        say(f"{reason}; give the shapes of its inputs with --input if that is why")
        return reason
    dtypes = frozenset(_dtype_name(t.data_type) for t in source.model.proto.graph.initializer)
    moved = {name: _nudged(feed) for name, feed in feeds.items()}
    return check_equal(
        str(source.path),
        lambda: expected,
        lambda: _run(ort, folded.staged.model, feeds),
        dtypes,
        nudged=lambda: _run(ort, source.path, moved),
    )


def write(folded: Folded, output: Path, arguments: argparse.Namespace) -> None:
    """Move the files into their place."""
    folded.staged.move_to(output, force=arguments.force)


# -------------------------------------------------------------------- inputs


def _parse(text: str) -> tuple[str, tuple[int, ...]]:
    """`name:1x3x224x224`, or a shape alone; names may hold colons themselves."""
    match = re.fullmatch(r"(?:(.+):)?([1-9][0-9]*(?:x[1-9][0-9]*)*)", text, re.ASCII)
    if match is None:
        raise UsageError(
            f"--input {text} is no shape of an input", "write it like image:1x3x224x224"
        )
    return match[1] or "", tuple(int(size) for size in match[2].split("x"))


def input_shapes(texts: list[str], model: OnnxModel) -> dict[str, tuple[int, ...]]:
    """Every `--input` under the name of its input."""
    graph = model.proto.graph
    given = {tensor.name for tensor in graph.initializer}
    names = [info.name for info in graph.input if info.name not in given]
    pins = {}
    for text in texts:
        name, shape = _parse(text)
        if not name and len(names) != 1:
            raise UsageError(
                f"--input {text}: which of the inputs {', '.join(names)}?",
                f"write it like {names[0] if names else 'name'}:{text}",
            )
        pins[name or names[0]] = shape
    return pins


def _feeds(model: OnnxModel, shapes: dict[str, tuple[int, ...]]) -> dict[str, NDArray[Any]] | str:
    """Random inputs of the shapes that the model was analysed with; or why there are none."""
    from bnfold.frontends.onnx.tensors import numpy_dtype

    rng = np.random.default_rng(_SEED)
    given = {tensor.name for tensor in model.proto.graph.initializer}
    feeds: dict[str, NDArray[Any]] = {}
    for info in model.proto.graph.input:
        if info.name in given:
            continue
        kind = info.type.tensor_type.elem_type
        shape = shapes.get(info.name)
        if shape is None or not kind:
            return f"the shape of its input {info.name!r} is not known; give it with --input"
        try:
            dtype = numpy_dtype(kind)
        except KeyError:
            return f"its input {info.name!r} has a dtype that is not known"
        if dtype.kind == "f":
            feeds[info.name] = rng.standard_normal(shape).astype(dtype)
        elif dtype.kind in "iub":
            feeds[info.name] = rng.integers(0, _BEYOND, shape).astype(dtype)
        else:
            return f"its input {info.name!r} is no plain array of numbers"
    return feeds


# -------------------------------------------------------------------- running


def _run(ort: Any, path: Path, feeds: dict[str, NDArray[Any]]) -> list[Output]:
    """One run; the session goes with it, so that two large models are never loaded at once."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs = session.run(None, feeds)
    return [Output(array, str(array.dtype)) for array in outputs if isinstance(array, np.ndarray)]


def _is_text(path: Path) -> bool:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def _nudged(feed: NDArray[Any]) -> NDArray[Any]:
    """Every number moved to the next larger one."""
    if feed.dtype not in (np.float16, np.float32, np.float64):
        return feed
    return np.asarray(np.nextafter(feed, np.inf, dtype=feed.dtype))


def _dtype_name(data_type: int) -> str:
    from bnfold.frontends.onnx.tensors import numpy_dtype

    try:
        return str(numpy_dtype(data_type))
    except KeyError:
        return "unknown"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
