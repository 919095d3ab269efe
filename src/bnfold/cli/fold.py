"""`bnfold fold`: fold a model, verify that it computes the same, and write the folded one.

What depends on the kind of model is in one file per kind; see `_kinds`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnfold.cli._kinds import kind_for
from bnfold.cli._options import add_common_options
from bnfold.cli._output import answer, answer_json, answer_table, check_output, say
from bnfold.cli._report import add_report_option, check_report, write_report
from bnfold.cli._verify import is_doubtful
from bnfold.report import FoldReport
from bnfold.verify.result import VerifyResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_common_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="where to write (default: model.folded.onnx beside model.onnx)",
    )
    add_report_option(parser)
    parser.add_argument("--force", action="store_true", help="overwrite an existing output")
    parser.add_argument("--dry-run", action="store_true", help="fold and verify, write nothing")
    parser.add_argument(
        "--no-verify",
        "--no-check",
        action="store_false",
        dest="verify",
        help="do not run the original and the folded model to see that they compute the same",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fold, verify, write, print.

    With --strict it returns 1 and writes nothing if any is kept, or the two are not proven equal.
    """
    kind = kind_for(arguments.source)
    kind.check_options(arguments)
    output = None if arguments.dry_run else arguments.output or kind.default_output(arguments)
    if output is not None:
        check_output(output, suffix=kind.SUFFIX, force=arguments.force)
    check_report(arguments)
    source = kind.open_source(arguments)
    folded, report = kind.fold(source, arguments)
    is_refused = arguments.strict and report.kept > 0
    try:
        found = kind.verify(source, folded, arguments) if arguments.verify else "--no-verify"
        in_doubt = is_doubtful(arguments.source, found)
        is_refused = is_refused or (arguments.strict and in_doubt)
        if output is not None and not is_refused:
            kind.write(folded, output, arguments)
        else:
            output = None
        write_report(arguments, report, source, verified=found, folded=folded, output=output)
    finally:
        kind.release(folded)
    if arguments.json:
        answer_json(_document(report, output, found))
    else:
        answer_table(report)
        answer(_closing(output, found))
    if is_refused:
        why = f"{report.kept} kept" if report.kept else "not proven equal"
        say(f"{why}, so nothing was written (--strict)")
    return int(is_refused)


def _document(report: FoldReport, output: Path | None, found: VerifyResult | str) -> dict[str, Any]:
    document: dict[str, Any] = {
        **report.to_dict(),
        "output": None if output is None else str(output),
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


def _closing(output: Path | None, found: VerifyResult | str) -> str:
    if isinstance(found, VerifyResult):
        verified = found.summary
    elif found.startswith("--"):
        verified = f"nothing was verified ({found})"
    else:
        verified = f"nothing was verified: {found}"
    return f"{verified}\n{'nothing written' if output is None else f'written: {output}'}"
