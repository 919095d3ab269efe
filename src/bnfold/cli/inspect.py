"""`bnfold inspect`: say what a fold would do."""

from __future__ import annotations

import argparse

from bnfold.cli._kinds import kind_for
from bnfold.cli._options import add_common_options
from bnfold.cli._output import answer_json, answer_summary, progress
from bnfold.cli._report import add_report_option, check_report, write_report
from bnfold.cli._summary import Ending


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_common_options(parser)
    add_report_option(parser)
    parser.add_argument("--table", action="store_true", help="list every step, not just the kept")
    parser.add_argument("--force", action="store_true", help="overwrite an existing report")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Returns 1 under --strict if anything would be kept."""
    kind = kind_for(arguments.source)
    kind.check_options(arguments)
    check_report(arguments)
    with progress(f"inspecting {arguments.source}"):
        source = kind.open_source(arguments)
        report = kind.inspect(source, arguments)
    write_report(arguments, report, read=kind.files_read(source, arguments))
    if arguments.json:
        answer_json(report.to_dict())
    else:
        answer_summary(Ending(report), table=arguments.table)
    return int(arguments.strict and report.kept > 0)
