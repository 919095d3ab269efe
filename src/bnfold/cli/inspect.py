"""`bnfold inspect`: say what a fold would do."""

from __future__ import annotations

import argparse

from bnfold import api
from bnfold.cli._options import add_common_options
from bnfold.cli._output import answer_json, answer_table
from bnfold.cli._source import check_options, open_source


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    text = "say what folding would remove and keep, and why; nothing is changed or written"
    parser = commands.add_parser("inspect", help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_common_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Returns 1 under --strict if anything would be kept."""
    check_options(arguments.source, arguments.inputs, eval_mode=arguments.eval_mode)
    source = open_source(arguments.source, arguments.inputs, eval_mode=arguments.eval_mode)
    report = api.inspect(source.model, source.args, clip=arguments.clip)
    if arguments.json:
        answer_json(report.to_dict())
    else:
        answer_table(report)
    return int(arguments.strict and report.kept > 0)
