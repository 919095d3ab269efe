"""Fold one model, whatever its kind: read, fold, verify, write; what is said of it comes back."""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bnfold.cli._kinds import kind_for
from bnfold.cli._output import check_output, progress
from bnfold.cli._report import check_report, write_report
from bnfold.cli._summary import Ending
from bnfold.cli._verify import is_doubtful
from bnfold.verify.result import VerifyResult


@dataclass(frozen=True, slots=True)
class Done:
    """What became of one model."""

    ending: Ending
    document: dict[str, Any]
    """The same as JSON."""
    is_refused: bool
    """Whether nothing was written, because something was kept under --strict."""


def fold_one(arguments: argparse.Namespace) -> Done:
    """Fold, verify and write one model; nothing is printed but remarks and progress."""
    start = time.monotonic()
    kind = kind_for(arguments.source)
    kind.check_options(arguments)
    output = None if arguments.dry_run else arguments.output or kind.default_output(arguments)
    if output is not None:
        check_output(output, suffix=kind.SUFFIX, force=arguments.force)
    check_report(arguments)
    with progress(f"folding {arguments.source}"):
        source = kind.open_source(arguments)
        folded, report = kind.fold(source, arguments)
    is_refused = arguments.strict and report.kept > 0
    read = kind.files_read(source, arguments)
    try:
        with progress(f"verifying {arguments.source}"):
            found = kind.verify(source, folded, arguments) if arguments.verify else "--no-verify"
        in_doubt = is_doubtful(arguments.source, found)
        is_refused = is_refused or (arguments.strict and in_doubt)
        before, after = kind.ops(source, folded, report)
        held = sum(path.stat().st_size for path in read) if read else None
        if output is not None and not is_refused:
            kind.write(folded, output, arguments)
        else:
            output = None
        written = [] if output is None else kind.files_written(folded, output)
        write_report(arguments, report, read=read, written=written, verified=found)
    finally:
        kind.release(folded)
    ending = Ending(
        report,
        before,
        after,
        held,
        tuple((path, path.stat().st_size) for path in written),
        _verdict(found),
        time.monotonic() - start,
    )
    return Done(ending, _document(ending, output, found), is_refused)


def _document(ending: Ending, output: Path | None, found: VerifyResult | str) -> dict[str, Any]:
    document: dict[str, Any] = {
        **ending.report.to_dict(),
        "output": None if output is None else str(output),
        "files": [{"path": str(path), "bytes": count} for path, count in ending.files],
        "bytes": ending.read,
        "ops": {"before": dict(ending.before), "after": dict(ending.after)},
        "seconds": round(ending.seconds or 0.0, 3),
        "difference": None,
        "verify": None,
    }
    if isinstance(found, VerifyResult):
        result = found.to_dict()
        document["verify"] = result
        document["difference"] = {
            "absolute": max((o["max_absolute"] for o in result["outputs"]), default=0.0),
            "relative": max((o["max_relative"] for o in result["outputs"]), default=0.0),
        }
    return document


def _verdict(found: VerifyResult | str) -> str:
    if isinstance(found, VerifyResult):
        return f"{found.summary} ({found.scope})" if found.scope else found.summary
    return f"nothing was verified{'' if found.startswith('--') else ':'} " + (
        f"({found})" if found.startswith("--") else found
    )
