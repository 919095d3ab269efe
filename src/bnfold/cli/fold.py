"""`bnfold fold`: fold models, verify that they compute the same, and write the folded ones.

What depends on the kind of model is in one file per kind; see `_kinds`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from bnfold._kinds import renamed
from bnfold._output_files import make_folder
from bnfold.cli._edit import add_edit_options
from bnfold.cli._fold import Done, fold_one
from bnfold.cli._numbers import count
from bnfold.cli._options import add_common_options, add_sources
from bnfold.cli._output import answer_json, answer_summary, say, send
from bnfold.cli._report import add_report_option
from bnfold.cli._source import source_of
from bnfold.cli._sources import check_many, models
from bnfold.cli._stream import STREAM, spooled
from bnfold.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_sources(parser)
    add_common_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: model.folded.onnx beside model.onnx)",
    )
    add_report_option(parser)
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="FOLDER",
        help="where to write, under the same names (default: beside each model)",
    )
    parser.add_argument(
        "--jobs",
        type=count("processes"),
        default=1,
        metavar="N",
        help="how many of several models to fold at once, each in a process (default: 1)",
    )
    parser.add_argument(
        "--external-data",
        action="store_true",
        help="ONNX: write the weights into a file of their own, model.onnx.data beside model.onnx"
        " (default: where they were, or where the model is too large)",
    )
    parser.add_argument("--table", action="store_true", help="list every step, not just the kept")
    parser.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    parser.add_argument("--force", action="store_true", help="overwrite an existing output")
    parser.add_argument("--dry-run", action="store_true", help="fold and verify, write nothing")
    parser.add_argument(
        "--no-verify",
        "--no-check",
        action="store_false",
        dest="verify",
        help="do not run the original and the folded model to see that they compute the same",
    )
    add_edit_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fold, verify, write, print.

    With --strict it returns 1 and writes nothing if any is kept, or the two are not proven equal.
    """
    named = models(arguments.sources)
    if len(named) > 1:
        check_many(named, output=arguments.output, folder=arguments.output_dir)
        if arguments.report is not None:
            raise UsageError("--report is a page about one model", "fold them one by one")
        from bnfold.cli._many import fold_many  # brings processes, which one model needs not

        return fold_many(arguments, named)
    [model] = named
    arguments.source, arguments.weights = model.source, model.weights
    if STREAM in (model.source, str(arguments.output)):
        return _stream(arguments)
    if arguments.output_dir is not None:
        if arguments.output is not None:
            raise UsageError("-o and --output-dir both say where to write", "leave one out")
        suffix = source_of(model.source).kind.suffix
        arguments.output = renamed(arguments.output_dir / model.place, suffix)
        make_folder(arguments.output.parent)
    done = fold_one(arguments)
    if arguments.json:
        answer_json(done.document)
    elif not arguments.quiet:
        answer_summary(done.ending, table=arguments.table)
    return _status(done)


def _status(done: Done) -> int:
    if done.is_refused:
        kept = done.ending.report.kept
        why = f"{kept} kept" if kept else "not proven equal"
        say(f"{why}, so nothing was written (--strict)")
    return int(done.is_refused)


def _stream(arguments: argparse.Namespace) -> int:
    """Read the model from stdin, or write it to stdout, or both; nothing else goes to stdout."""
    if arguments.output_dir is not None:
        raise UsageError("what goes through a pipe has no name in --output-dir", "use -o FILE")
    to_stdout = str(arguments.output or STREAM) == STREAM
    if to_stdout and arguments.json:
        raise UsageError("stdout holds the model, so that --json has no place", "use -o FILE")
    if to_stdout and arguments.external_data:
        raise UsageError("external data is a second file, which no pipe holds", "use -o FILE")
    if to_stdout and sys.stdout is None:
        raise UsageError("stdout is closed, and takes no model", "use -o FILE")
    if to_stdout and sys.stdout.isatty() and not arguments.dry_run:
        raise UsageError("stdout is a terminal, which shows no model", "use -o FILE, or a pipe")
    with spooled([arguments.source]) as arguments.place, ExitStack() as stack:
        if to_stdout:
            suffix = source_of(arguments.source, place=arguments.place).kind.suffix
            if suffix == ".prototxt":
                raise UsageError("a Caffe network is two files, which no pipe holds", "use -o FILE")
            folder = stack.enter_context(tempfile.TemporaryDirectory())
            arguments.output = Path(folder) / f"folded{suffix}"
        done = fold_one(arguments)
        if arguments.json:
            answer_json(done.document)
        elif not to_stdout and not arguments.quiet:
            answer_summary(done.ending, table=arguments.table)
        elif not arguments.quiet:
            say(f"{done.ending.report.summary}; {done.ending.verdict}")
        if to_stdout and done.ending.files:
            if len(done.ending.files) > 1:
                raise UsageError("the model has external data, which no pipe holds", "use -o FILE")
            send(done.ending.files[0][0])
    return _status(done)
