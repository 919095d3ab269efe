"""`bnfold verify A B`: run both on the same inputs and say whether they compute the same.

0 equal    1 not equal, or not proven    2 inputs or outputs do not match    3 not readable
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold.cli._numbers import count, numbers, whole
from bnfold.cli._options import add_answer_options, add_input_options
from bnfold.cli._output import answer_result, progress
from bnfold.cli._source import Source, check_source, source_of
from bnfold.cli._sources import models
from bnfold.cli._stream import spooled
from bnfold.errors import UsageError
from bnfold.formats import ModelKind

if TYPE_CHECKING:
    from bnfold.verify.runner import InputSpec, Runner


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    for name, what in (("original", "the original"), ("folded", "what was made of it")):
        parser.add_argument(
            name,
            metavar=name.upper(),
            help=f"{what}: a .onnx, .pt2 or .prototxt file, or package.module:factory; - for stdin",
        )
    # `deploy.prototxt net.caffemodel` is one model for `fold`, so people name it so here, too.
    parser.add_argument("more", nargs="*", default=[], help=argparse.SUPPRESS)
    parser.add_argument(
        "--weights",
        nargs=2,
        metavar=("ORIGINAL", "FOLDED"),
        help="the .caffemodel of each .prototxt (default: those beside them with the same stem)",
    )
    add_input_options(parser)
    parser.add_argument(
        "--data", metavar="FILE", help="your own inputs: an .npz or .npy, or a folder of images"
    )
    parser.add_argument(
        "--mean", type=numbers, metavar="R,G,B", help="subtracted from pixels between 0 and 1"
    )
    parser.add_argument("--std", type=numbers, metavar="R,G,B", help="what they are divided by")
    parser.add_argument(
        "--samples",
        type=count("samples"),
        metavar="N",
        help="how many inputs to run on (default: 2)",
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the random inputs (default: 0)")
    parser.add_argument(
        "--no-layers",
        action="store_false",
        dest="layers",
        help="compare outputs only, not the tensors inside",
    )
    add_answer_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Verify and print. Returns 1 if the two are not equal, or not proven to be."""
    from bnfold.verify.api import Comparison

    if arguments.more:
        _pair_up(arguments)
    names = (arguments.original, arguments.folded)
    # its options are called as the fields are
    named = {option.name: getattr(arguments, option.name) for option in fields(Comparison)}
    comparison = Comparison(**named)  # says what is wrong before anything is loaded
    with spooled(names) as place, progress(f"verifying {arguments.folded}"):
        original, folded = _runners(arguments, place)
        result = comparison.either_way(original, folded)
    answer_result(result, as_json=arguments.json)
    return int(not result.equal)


def _pair_up(arguments: argparse.Namespace) -> None:
    """Of three or four words, those that are the weights of a network. Raises UsageError."""
    words = [arguments.original, arguments.folded, *arguments.more]
    found = models(words)
    if len(found) != 2 or arguments.weights:
        raise UsageError(
            f"verify compares two models, and {len(words)} words name {len(found)}",
            "name two; a .caffemodel goes behind its .prototxt, or both behind --weights",
        )
    original, folded = found
    arguments.original, arguments.folded = original.source, folded.source
    arguments.weights = [original.weights, folded.weights]


def _runners(arguments: argparse.Namespace, place: Path | None) -> tuple[Runner, Runner]:
    """A runner of each; one learns from the other what it leaves open."""
    from bnfold.verify.api import is_fixed_elsewhere

    names = (arguments.original, arguments.folded)
    weights = arguments.weights or (None, None)
    pairs = zip(names, weights, strict=True)
    first, second = (_source(arguments, name, held, place) for name, held in pairs)
    if arguments.weights and not (first.is_caffe or second.is_caffe):
        raise UsageError("--weights is for .prototxt files, and there is none", "leave it out")
    original = _runner(first, None)
    folded = _runner(second, original.specs)
    if not arguments.inputs and is_fixed_elsewhere(original, folded):
        original = _runner(first, folded.specs)
    return original, folded


def _source(
    arguments: argparse.Namespace, name: str, weights: str | None, place: Path | None
) -> Source:
    """One of the two, with the options that mean something for its kind."""
    source = source_of(name, place=place)
    is_module = source.kind is ModelKind.MODULE
    source = replace(
        source,
        weights=weights if source.is_caffe else None,
        inputs=arguments.inputs if is_module or source.kind is ModelKind.ONNX_FILE else (),
        eval_mode=arguments.eval_mode and is_module,
    )
    check_source(source)
    return source


def _runner(source: Source, like: Sequence[InputSpec] | None) -> Runner:
    frontend = source.frontend
    model, inputs = source.open()
    return frontend.runner(model, source.name, inputs, like)
