"""Caffe on the command line; see `_kinds` for what each function is."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._kinds import caffe_files, folded_beside
from bnfold.cli._verify import verify_fold
from bnfold.errors import (
    ExampleInputError,
    MissingExtraError,
    UnsupportedModelError,
    UsageError,
)
from bnfold.network import op_counts

if TYPE_CHECKING:
    from bnfold.frontends.caffe.caffemodel import Caffemodel
    from bnfold.frontends.caffe.fold import Folded
    from bnfold.frontends.caffe.prototxt import Document
    from bnfold.report import FoldReport
    from bnfold.verify.result import VerifyResult
    from bnfold.verify.runner import InputSpec, Runner

SUFFIX = ".prototxt"


@dataclass(frozen=True, slots=True)
class Source:
    """A network and its weights."""

    document: Document
    weights: Caffemodel


def check_options(arguments: argparse.Namespace) -> None:
    """No example inputs, no modes; both outputs have to be free."""
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
    return folded_beside(Path(arguments.source), SUFFIX)


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

    return fold_read(
        source.document,
        source.weights,
        clip=arguments.clip,
        phase=arguments.phase,
        storage=arguments.storage,
    )


def verify(source: Source, folded: Folded, arguments: argparse.Namespace) -> VerifyResult | str:
    """Run both; in float64 what is left is the rounding of the new weights."""
    try:
        from bnfold.frontends.caffe.runner import folded_runner, net_runner
    except MissingExtraError as error:
        return f"{error.problem}, and it is what runs Caffe's layers here"
    net = folded.decided.net
    name = net.name or source.document.name
    try:
        original = net_runner(net, name)
        return verify_fold(original, folded_runner(folded, f"the folded {name}"))
    except (UnsupportedModelError, ExampleInputError) as error:
        return error.problem


def runner(source: Source, like: Sequence[InputSpec] | None) -> Runner:
    """What runs it."""
    from bnfold.frontends.caffe.runner import read_runner

    return read_runner(source.document, source.weights)


def ops(
    source: Source, folded: Folded | None, report: FoldReport
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    """Layers by type."""
    if folded is None:
        counts = op_counts(report.network.before) if report.network else {}
        return counts, counts
    layers, removed = folded.decided.net.layers, folded.decided.new.removed
    before = Counter(layer.type for layer in layers)
    return before, before - Counter(layer.type for layer in removed)


def files_read(source: Source, arguments: argparse.Namespace) -> list[Path]:
    """The network and its weights."""
    return list(_files(arguments))


def files_written(folded: Folded, output: Path) -> list[Path]:
    """The same of the folded network."""
    from bnfold.frontends.caffe.fold import weights_beside

    return [output, weights_beside(output)]


def release(folded: object) -> None:
    """There is nothing outside of memory."""


def write(folded: Folded, output: Path, arguments: argparse.Namespace) -> None:
    """Two files: network and weights."""
    from bnfold.frontends.caffe.fold import weights_beside

    folded.write(output, weights_beside(output))


def _files(arguments: argparse.Namespace) -> tuple[Path, Path]:
    """The network, and the weights that were named or lie beside it."""
    network, beside = caffe_files(arguments.source)
    return network, beside if arguments.weights is None else Path(arguments.weights)
