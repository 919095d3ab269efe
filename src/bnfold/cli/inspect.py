"""`bnfold inspect`: say what a fold would do."""

from __future__ import annotations

import argparse
from dataclasses import replace

from bnfold.cli._edit import add_edit_options, edited
from bnfold.cli._options import add_common_options, add_sources
from bnfold.cli._output import answer, answer_json, answer_summary, columns, progress
from bnfold.cli._report import add_report_option, check_report, write_report
from bnfold.cli._source import asked_source, request_of
from bnfold.cli._sources import Model, models
from bnfold.cli._stream import spooled
from bnfold.cli._summary import Ending, side_by_side
from bnfold.errors import UsageError
from bnfold.frontend import Look


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its options."""
    add_sources(parser)
    add_common_options(parser)
    add_report_option(parser)
    parser.add_argument("--table", action="store_true", help="list every step, not just the kept")
    parser.add_argument("--force", action="store_true", help="overwrite an existing report")
    add_edit_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the report. Returns 1 under --strict if anything would be kept."""
    check_report(arguments)
    named = models(arguments.sources)
    if len(named) > 1 and arguments.report is not None:
        raise UsageError("--report is a page about one model", "inspect them one by one")
    with spooled([model.source for model in named]) as arguments.place:
        seen = [_look(arguments, model) for model in named]
    names, looks, endings = zip(*seen, strict=True)
    if arguments.json and len(looks) == 1:
        answer_json(looks[0].report.to_dict())
    elif arguments.json:
        pairs = zip(names, looks, strict=True)
        models_ = [{"source": name, **look.report.to_dict()} for name, look in pairs]
        answer_json({"schema": "bnfold.reports/1", "models": models_})
    elif len(looks) == 1:
        answer_summary(endings[0], table=arguments.table)
    else:
        answer(side_by_side(names, looks, columns()))
    return int(arguments.strict and any(look.report.kept for look in looks))


def _look(arguments: argparse.Namespace, model: Model) -> tuple[str, Look, Ending]:
    """What the model is called, what is known of it, and what is said of it alone."""
    own = {"source": model.source, "weights": model.weights}
    options = argparse.Namespace(**{**vars(arguments), **own})
    source = asked_source(options)
    with edited(source, options) as edit:
        with progress(f"inspecting {source.name}"):
            given, inputs = edit.source.open()
            seen = edit.source.frontend.inspect(given, request_of(options, inputs))
        seen = replace(seen, report=edit.noted(seen.report))
    files = edit.files or seen.files or source.files
    held = sum(path.stat().st_size for path in files) if files else None
    ending = Ending(seen.report, *seen.counts, read=held, facts=seen.facts)
    write_report(options, ending, read=files)
    return source.name, seen, ending
