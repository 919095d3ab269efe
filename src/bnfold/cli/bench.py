"""`bnfold bench`: measure how long a model takes before and after folding."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

from bnfold._output_files import write_whole
from bnfold.cli._numbers import count, counts, finite
from bnfold.cli._options import add_clip_option, add_input_options
from bnfold.cli._output import answer, answer_result, check_output, progress
from bnfold.cli._source import Source, check_source, source_of
from bnfold.cli._stream import spooled
from bnfold.errors import UsageError
from bnfold.formats import ModelKind

if TYPE_CHECKING:
    from bnfold.bench.result import BenchResult
    from bnfold.bench.rows import BenchRow

_CHART = "--chart"
_DESCRIPTION = """\
Measure how long a model takes before and after folding. Both are called in turn, and compared
round by round. Each row is printed as soon as it is measured; Ctrl-C ends with the table of those
that were. Exit status 1 says that the folded one is slower: the whole 95% interval of the
ratio lies above 1, and the ratio is above 1.01."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    parser.description = _DESCRIPTION
    _add_models(parser)
    _add_settings(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument(_CHART, type=Path, metavar="FILE", help="write a bar chart, an .svg")
    parser.add_argument("--force", action="store_true", help="overwrite an existing chart")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)


def _add_models(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="A",
        help="the original: a .onnx file; a .pt2 file, or package.module:factory; - for stdin",
    )
    parser.add_argument(
        "folded", metavar="B", nargs="?", help="the folded model (default: A, folded now)"
    )
    add_input_options(parser)
    add_clip_option(
        parser, "where A is folded now: whether an activation may get bounds per channel"
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch", type=counts("samples"), metavar="N,...", help="batch sizes, like 1,8"
    )
    parser.add_argument(
        "--threads", type=counts("threads"), metavar="N,...", help="thread counts, like 1,2"
    )
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1")
    parser.add_argument(
        "--dtype", type=_names, metavar="NAME,...", help="PyTorch: float32, bfloat16, float16"
    )
    parser.add_argument("--channels-last", action="store_true", help="PyTorch: in channels_last")
    parser.add_argument("--compile", action="store_true", help="PyTorch: in torch.compile as well")
    parser.add_argument(
        "--cuda-graph", action="store_true", help="PyTorch: as a replayed CUDA graph as well"
    )
    parser.add_argument(
        "--fx", action="store_true", help="PyTorch: what torch.fx makes of a module as well"
    )
    parser.add_argument(
        "--optimised",
        action="store_true",
        help="ONNX: with ONNX Runtime's own optimisations as well",
    )
    parser.add_argument(
        "--seconds",
        type=finite,
        default=3.0,
        metavar="S",
        help="how long to measure in each runtime and setting (default: 3)",
    )
    parser.add_argument(
        "--rounds", type=count("rounds"), metavar="N", help="exactly so many rounds instead"
    )


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw. Returns 1 if the folded model is slower."""
    if arguments.chart is not None:
        check_output(arguments.chart, suffix=".svg", force=arguments.force, option=_CHART)
    kept: list[BenchResult] = []
    names = [arguments.source, *([arguments.folded] if arguments.folded else [])]
    with spooled(names) as place:
        return _run(arguments, _sources(arguments, names, place), kept)


def _run(arguments: argparse.Namespace, sources: Sequence[Source], kept: list[BenchResult]) -> int:
    runtimes = _runtimes(arguments, sources[0])  # says what is wrong before anything is loaded
    varied = _varied(arguments, runtimes)
    try:
        result = _measure(arguments, sources, runtimes, varied, kept)
    except KeyboardInterrupt:
        if kept:
            note = "interrupted; these were measured until then"
            _show(arguments, replace(kept[-1], notes=(*kept[-1].notes, note)), varied)
        raise
    _show(arguments, result, varied)
    return int(result.is_slower)


def _measure(
    arguments: argparse.Namespace,
    sources: Sequence[Source],
    runtimes: Sequence[str],
    varied: Sequence[str],
    kept: list[BenchResult],
) -> BenchResult:
    """The result; until then, `kept` has what there is of it, and its new rows are printed."""
    from bnfold.bench.call import bench

    (original, inputs), *others = [source.open() for source in sources]
    folded = others[0][0] if others else None

    def on_result(result: BenchResult) -> None:
        new = result.rows[len(kept[-1].rows) if kept else 0 :]
        kept.append(result)
        if varied and not arguments.json:
            answer("\n".join(_line(row, varied) for row in new))

    with progress("measuring") as step:
        return bench(
            original,
            folded,
            inputs,
            against=("torch.fx",) if arguments.fx else (),
            runtimes=runtimes,
            device=arguments.device,
            dtype=arguments.dtype,
            layout="channels_last" if arguments.channels_last else None,
            batch=arguments.batch,
            threads=arguments.threads,
            seconds=arguments.seconds,
            rounds=arguments.rounds,
            clip=arguments.clip,
            progress=step,
            found=on_result,
        )


def _show(arguments: argparse.Namespace, result: BenchResult, varied: Sequence[str]) -> None:
    if arguments.chart is not None:
        _write(arguments.chart, result.chart().encode())
    if varied and not arguments.json:
        answer("")
    answer_result(result, as_json=arguments.json)


def _varied(arguments: argparse.Namespace, runtimes: Sequence[str]) -> list[str]:
    """Which parts of a setting have several values, so that there is more than one to wait for."""
    asked = {
        "runtime": runtimes,
        "dtype": arguments.dtype,
        "batch": arguments.batch,
        "threads": arguments.threads,
    }
    return [name for name, values in asked.items() if values and len(values) > 1]


def _line(row: BenchRow, varied: Sequence[str]) -> str:
    """`batch 8, threads 1: folded 12.34 ms, 0.912`"""
    words = [f"{name} {getattr(row, name)}" for name in varied if name in ("batch", "threads")]
    names = [getattr(row, name) for name in varied if name in ("runtime", "dtype")]
    ratio = f", {row.ratio:.3f}" if row.outcome else ""
    return f"{', '.join([*names, *words])}: {row.variant} {row.median * 1e3:.4g} ms{ratio}"


def _write(file: Path, content: bytes) -> None:
    def write(sink: IO[bytes]) -> None:
        sink.write(content)

    write_whole(file, write, option=_CHART)


# -------------------------------------------------------------------- options


def _names(text: str) -> tuple[str, ...]:
    """`float32,bfloat16` as names."""
    return tuple(part.strip() for part in text.split(","))


def _runtimes(arguments: argparse.Namespace, source: Source) -> tuple[str, ...]:
    is_onnx = source.kind is ModelKind.ONNX_FILE
    for option, is_given, is_for_onnx in (
        ("--compile", arguments.compile, False),
        ("--cuda-graph", arguments.cuda_graph, False),
        ("--fx", arguments.fx, False),
        ("--optimised", arguments.optimised, True),
    ):
        if is_given and is_for_onnx != is_onnx:
            kind = "ONNX" if is_for_onnx else "PyTorch"
            raise UsageError(f"{option} is for {kind} models", "leave it out")
    if is_onnx:
        return ("onnxruntime", *(["onnxruntime optimised"] if arguments.optimised else []))
    compiled = ["compile"] if arguments.compile else []
    return ("eager", *compiled, *(["cuda graph"] if arguments.cuda_graph else []))


def _sources(
    arguments: argparse.Namespace, names: Sequence[str], place: Path | None
) -> list[Source]:
    """The original, and the folded model if there is one: of one kind, with their options."""
    sources = [source_of(name, place=place) for name in names]
    has_factory = any(source.kind is ModelKind.MODULE for source in sources)
    for number, source in enumerate(sources):
        if source.kind.suffix != sources[0].kind.suffix:
            what = {".pt2": "PyTorch", ".onnx": "ONNX", ".prototxt": "Caffe"}
            raise UsageError(
                f"{sources[0].name} is for {what[sources[0].kind.suffix]},"
                f" and {source.name} is not",
                "name two of one kind",
            )
        is_module = source.kind is ModelKind.MODULE
        takes_inputs = is_module or not has_factory
        sources[number] = replace(
            source,
            inputs=arguments.inputs if takes_inputs else (),
            eval_mode=arguments.eval_mode and takes_inputs,
        )
        check_source(sources[number])
    return sources
