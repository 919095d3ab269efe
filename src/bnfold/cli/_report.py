"""`--report page.html`: the report as a page, with the hashes of what was read and written.

The path is checked before any work is done, and the page appears whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold.cli._output import check_output, say, write_whole
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.report import FoldReport

SUFFIX = ".html"
_OPTION = "--report"


def add_report_option(parser: argparse.ArgumentParser) -> None:
    """Where the page goes."""
    parser.add_argument(
        _OPTION,
        type=Path,
        metavar="FILE",
        help="write the report as a page, too: one .html file that loads nothing",
    )


def check_report(arguments: argparse.Namespace) -> None:
    """Raise UsageError if the page cannot go there."""
    if arguments.report is not None:
        check_output(arguments.report, suffix=SUFFIX, force=arguments.force, option=_OPTION)


def write_report(
    arguments: argparse.Namespace,
    report: FoldReport,
    source: Any,
    *,
    verified: object = None,
    folded: Any = None,
    output: Path | None = None,
) -> None:
    """Write the page, if one is asked for. Raises UsageError."""
    target: Path | None = arguments.report
    if target is None:
        return
    from bnfold.verify.result import VerifyResult

    read, written = list(_read(arguments, source)), list(_written(output, folded))
    for path in (*read, *written):
        if path.resolve() == target.resolve():  # external data may be called anything
            raise UsageError(f"{target} is a file of the model", f"choose another with {_OPTION}")
    hashes = {f"read: {path.name}": _sha256(path) for path in read}
    hashes |= {f"written: {path.name}": _sha256(path) for path in written}
    if isinstance(verified, VerifyResult):
        report = replace(report, verdict=verified)
    page = report.to_html(title=Path(arguments.source).name, hashes=hashes)
    write_whole(target, lambda file: file.write(page.encode()), option=_OPTION)
    say(f"report: {target}")


def _read(arguments: argparse.Namespace, source: Any) -> Iterator[Path]:
    """The files that the model was read from; a factory has none."""
    path = Path(arguments.source)
    if not path.is_file():
        return
    yield path
    if path.suffix.lower() == ".prototxt":
        yield (
            path.with_suffix(".caffemodel")
            if arguments.weights is None
            else Path(arguments.weights)
        )
    if path.suffix.lower() == ".onnx":
        from bnfold.frontends.onnx.bulk import FileBulk

        bulk = source.model.bulk.values()
        yield from sorted({part.path for part in bulk if isinstance(part, FileBulk)} - {path})


def _written(output: Path | None, folded: Any) -> Iterator[Path]:
    if output is None:
        return
    yield output
    if output.suffix == ".prototxt":
        yield output.with_suffix(".caffemodel")
    if getattr(getattr(folded, "staged", None), "has_data", False):
        from bnfold.frontends.onnx.write import data_name

        yield output.with_name(data_name(output.name))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
