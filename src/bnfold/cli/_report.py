"""`--report page.html`: the report as a page, with the hashes of what was read and written.

The path is checked before any work is done, and the page appears whole or not at all.
"""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bnfold._output_files import write_whole
from bnfold.cli._output import check_output, say
from bnfold.cli._stream import NAME
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.cli._summary import Ending

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
    ending: Ending,
    *,
    read: Sequence[Path] = (),
    verified: object = None,
) -> Path | None:
    """Write the page, if one is asked for, with what the summary says. Raises UsageError."""
    target: Path | None = arguments.report
    if target is None:
        return None
    from bnfold.verify.result import VerifyResult

    report, written = ending.report, [path for path, _ in ending.files]
    for path in (*read, *written):
        if path.resolve() == target.resolve():  # external data may be called anything
            raise UsageError(f"{target} is a file of the model", f"choose another with {_OPTION}")
    hashes = {f"read: {path.name}": _sha256(path) for path in read}
    hashes |= {f"written: {path.name}": _sha256(path) for path in written}
    if isinstance(verified, VerifyResult):
        report = replace(report, verdict=verified)
    page = report.to_html(
        title=NAME if arguments.place is not None else Path(arguments.source).name,
        hashes=hashes,
        ops=(ending.before, ending.after) if ending.before else None,
        sizes=None if ending.read is None else (ending.read, ending.written if written else None),
    )
    write_whole(target, lambda file: file.write(page.encode()), option=_OPTION)
    say(f"report: {target}")
    return target


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
