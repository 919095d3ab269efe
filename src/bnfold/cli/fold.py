"""`bnfold fold`: fold a model, run both to compare them, and write the folded one.

What depends on the kind of model is in one file per kind; see `_kinds`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from bnfold.cli._compare import Difference
from bnfold.cli._kinds import kind_for
from bnfold.cli._options import add_common_options
from bnfold.cli._output import answer, answer_json, answer_table, check_output, say
from bnfold.cli._report import add_report_option, check_report, write_report
from bnfold.report import FoldReport


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    text = "remove every BatchNorm that can go exactly, check the result, and write it"
    parser = commands.add_parser("fold", help=text, description=f"{text[0].upper()}{text[1:]}.")
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
    parser.add_argument("--dry-run", action="store_true", help="fold and check, write nothing")
    parser.add_argument(
        "--no-check",
        action="store_false",
        dest="check",
        help="do not run the original and the folded model to compare them",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Fold, check, write, print. Returns 1, and writes nothing, if --strict and any is kept."""
    kind = kind_for(arguments.source)
    kind.check_options(arguments)
    output = None if arguments.dry_run else arguments.output or kind.default_output(arguments)
    if output is not None:
        check_output(output, suffix=kind.SUFFIX, force=arguments.force)
    check_report(arguments)
    source = kind.open_source(arguments)
    folded, report = kind.fold(source, arguments)
    compared = kind.compare(source, folded, arguments) if arguments.check else "--no-check"
    is_refused = arguments.strict and report.kept > 0
    if output is not None and not is_refused:
        kind.write(folded, output, arguments)
    else:
        output = None
    write_report(arguments, report, source, verified=compared, folded=folded, output=output)
    if arguments.json:
        answer_json(_document(report, output, compared))
    else:
        answer_table(report)
        answer(_closing(output, compared))
    if is_refused:
        say(f"{report.kept} kept, so nothing was written (--strict)")
    return int(is_refused)


def _document(
    report: FoldReport, output: Path | None, compared: Difference | str
) -> dict[str, Any]:
    return {
        **report.to_dict(),
        "output": None if output is None else str(output),
        "difference": compared.to_dict() if isinstance(compared, Difference) else None,
    }


def _closing(output: Path | None, compared: Difference | str) -> str:
    if isinstance(compared, Difference):
        checked = f"{compared}, on the example inputs"
    elif compared.startswith("--"):
        checked = f"nothing was compared ({compared})"
    else:
        checked = f"nothing was compared: {compared}"
    return f"{checked}\n{'nothing written' if output is None else f'written: {output}'}"
