"""Caffe on the command line; see `_kinds` for what each function is."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._kinds import folded_beside
from bnfold.cli._compare import Difference, Output, check_equal
from bnfold.cli._output import say
from bnfold.errors import MissingExtraError, UsageError
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from torch import Tensor

    from bnfold.frontends.caffe.caffemodel import Caffemodel
    from bnfold.frontends.caffe.fold import Folded
    from bnfold.frontends.caffe.prototxt import Document

SUFFIX = ".prototxt"


@dataclass(frozen=True, slots=True)
class Source:
    """A network and its weights."""

    document: Document
    weights: Caffemodel


def check_options(arguments: argparse.Namespace) -> None:
    """The network comes first; no example inputs, no modes; both outputs have to be free."""
    if Path(arguments.source).suffix.lower() != SUFFIX:
        raise UsageError(
            f"{arguments.source} holds weights only",
            "name the network first: bnfold fold deploy.prototxt net.caffemodel",
        )
    if arguments.inputs or arguments.eval_mode:
        raise UsageError(
            f"--input and --eval mean nothing for {arguments.source}",
            "leave them out: a prototxt says its shapes, and has phases instead of modes",
        )
    if not hasattr(arguments, "output") or arguments.dry_run:
        return
    from bnfold.frontends.caffe.fold import check_target

    target = arguments.output or default_output(arguments)
    check_target(target, _files(arguments), force=arguments.force)


def default_output(arguments: argparse.Namespace) -> Path:
    """Beside the network."""
    return folded_beside(Path(arguments.source))


def open_source(arguments: argparse.Namespace) -> Source:
    """Read the network and its weights."""
    from bnfold.frontends.caffe.fold import read_files

    return Source(*read_files(*_files(arguments)))


def inspect(source: Source, arguments: argparse.Namespace) -> FoldReport:
    """The report."""
    return fold(source, arguments)[1]


def fold(source: Source, arguments: argparse.Namespace) -> tuple[Folded, FoldReport]:
    """The folded network."""
    from bnfold.frontends.caffe.fold import fold_read

    return fold_read(source.document, source.weights, clip=arguments.clip, phase=arguments.phase)


def compare(source: Source, folded: Folded, arguments: argparse.Namespace) -> Difference | str:
    """Run both in float64; what is left is the rounding of the new weights."""
    from bnfold.frontends.caffe.caffemodel import read_caffemodel
    from bnfold.frontends.caffe.net import read_net
    from bnfold.frontends.caffe.prototxt import read_text
    from bnfold.frontends.caffe.shapes import infer

    try:
        from bnfold.frontends.caffe.run import example_inputs, run
    except MissingExtraError as error:
        return f"{error.problem}, and it is what runs Caffe's layers here"
    net = folded.decided.net
    inputs = example_inputs(net)
    try:
        before = run(net, inputs)
    except ValueError as error:
        return f"{net.name} could not be run on inputs of the sizes that it names: {error}"
    if not before.values:
        return f"no output of {net.name} depends on layers that bnfold can run"
    if before.left_out:
        say(f"not run, and what they read is compared instead: {', '.join(before.left_out)}")
    weights = read_caffemodel(b"".join(folded.weights()), source.weights.name)
    rewritten = read_net(read_text(folded.text, source.document.name), weights)
    infer(rewritten)

    def after() -> list[Output]:
        values = run(rewritten, inputs).values
        if list(values) != list(before.values):
            raise ValueError(f"its outputs are {list(values)}, not {list(before.values)}")
        return _outputs(values)

    dtypes = frozenset(str(blob.dtype) for layer in weights.layers for blob in layer.blobs)
    return check_equal(net.name, lambda: _outputs(before.values), after, dtypes)


def _outputs(values: Mapping[str, Tensor]) -> list[Output]:
    return [Output(value.numpy(), "float32") for value in values.values()]


def write(folded: Folded, output: Path, arguments: argparse.Namespace) -> None:
    """Two files: network and weights."""
    from bnfold.frontends.caffe.fold import weights_beside

    folded.write(output, weights_beside(output))


def _files(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The network, and the weights that were named or lie beside it."""
    network = Path(arguments.source)
    if arguments.weights is None:
        return network, network.with_suffix(".caffemodel")
    return network, Path(arguments.weights)
