"""`bnfold bench`: measure how long a model takes before and after folding."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import IO, get_args

from bnfold._places import write_whole
from bnfold.cli._output import answer_result, check_output, progress
from bnfold.cli._source import Source, check_source, source_of
from bnfold.core.modes import ClipMode
from bnfold.errors import UsageError
from bnfold.formats import ModelKind

_CHART = "--chart"
_DESCRIPTION = """\
Measure how long a model takes before and after folding. Both are called in turn, and compared
round by round. Exit status 1 says that the folded one is slower: the whole 95% interval of the
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
        help="the original: a .onnx file; a .pt2 file, or package.module:factory",
    )
    parser.add_argument(
        "folded", metavar="B", nargs="?", help="the folded model (default: A, folded now)"
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME:]SHAPE[:DTYPE]",
        dest="inputs",
        help="example input of a factory's model, like 1x3x224x224, once per input;"
        " for ONNX, the shape of an input that the model leaves open, like image:1x3x224x224",
    )
    parser.add_argument(
        "--eval", action="store_true", dest="eval_mode", help="put a factory's model in eval mode"
    )
    parser.add_argument(
        "--clip",
        choices=get_args(ClipMode),
        default="auto",
        help="where A is folded now: whether an activation may get bounds per channel",
    )


def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=_counts, metavar="N,...", help="batch sizes, like 1,8")
    parser.add_argument("--threads", type=_counts, metavar="N,...", help="thread counts, like 1,2")
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
        type=float,
        default=3.0,
        metavar="S",
        help="how long to measure in each runtime and setting (default: 3)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="exactly so many rounds instead")


def run(arguments: argparse.Namespace) -> int:
    """Measure, print, draw. Returns 1 if the folded model is slower."""
    from bnfold.bench.call import bench

    if arguments.chart is not None:
        check_output(arguments.chart, suffix=".svg", force=arguments.force, option=_CHART)
    sources = _sources(arguments)
    runtimes = _runtimes(arguments, sources[0])  # says what is wrong before anything is loaded
    (original, inputs), *others = [source.open() for source in sources]
    folded = others[0][0] if others else None
    with progress("measuring") as step:
        result = bench(
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
        )
    if arguments.chart is not None:
        _write(arguments.chart, result.chart().encode())
    answer_result(result, as_json=arguments.json)
    return int(result.is_slower)


def _write(file: Path, content: bytes) -> None:
    def write(sink: IO[bytes]) -> None:
        sink.write(content)

    write_whole(file, write, option=_CHART)


# -------------------------------------------------------------------- options


def _counts(text: str) -> tuple[int, ...]:
    """`1,8` as numbers; argparse says which option was wrong."""
    return tuple(int(part) for part in text.split(","))


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


def _sources(arguments: argparse.Namespace) -> list[Source]:
    """The original, and the folded model if there is one: of one kind, with their options."""
    names = [arguments.source, *([arguments.folded] if arguments.folded else [])]
    sources = [source_of(name) for name in names]
    has_factory = any(source.kind is ModelKind.MODULE for source in sources)
    for number, source in enumerate(sources):
        if source.kind.suffix != sources[0].kind.suffix:
            what = {".pt2": "PyTorch", ".onnx": "ONNX", ".prototxt": "Caffe"}
            raise UsageError(
                f"{names[0]} is for {what[sources[0].kind.suffix]}, and {source.name} is not",
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
