"""`bnfold fold`: fold a model, run both on the example inputs, and write the folded one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bnfold import api
from bnfold.cli._compare import Difference, check_equal
from bnfold.cli._options import add_common_options
from bnfold.cli._output import answer, answer_json, answer_table, check_output, say, write_whole
from bnfold.cli._source import Source, check_options, is_factory, open_source
from bnfold.errors import UnsupportedModelError, UsageError
from bnfold.report import FoldReport

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Register the command."""
    text = "remove every BatchNorm that can go exactly, check the result, and write it"
    parser = commands.add_parser("fold", help=text, description=f"{text[0].upper()}{text[1:]}.")
    add_common_options(parser)
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE.pt2",
        help="where to write (default: model.folded.pt2 beside model.pt2)",
    )
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
    check_options(arguments.source, arguments.inputs, eval_mode=arguments.eval_mode)
    output = None if arguments.dry_run else _output(arguments.source, arguments.output)
    if output is not None:
        check_output(output, force=arguments.force)
    source = open_source(arguments.source, arguments.inputs, eval_mode=arguments.eval_mode)
    model, report = api.fold(source.model, source.args, clip=arguments.clip)
    program = _as_program(source, model)
    difference = _check(source, program) if arguments.check else None
    is_refused = arguments.strict and report.kept > 0
    if output is not None and not is_refused:
        _write(output, program)
    else:
        output = None
    if arguments.json:
        answer_json(_document(report, output, difference))
    else:
        answer_table(report)
        answer(_closing(output, difference, is_checked=arguments.check))
    if is_refused:
        say(f"{report.kept} kept, so nothing was written (--strict)")
    return int(is_refused)


def _output(source: str, output: Path | None) -> Path:
    if output is not None:
        return output
    if is_factory(source):
        raise UsageError(
            f"{source} is no file that an output could lie beside", "say where with -o folded.pt2"
        )
    return Path(source).with_suffix(".folded.pt2")


def _as_program(source: Source, model: Any) -> ExportedProgram:
    """The folded model as it will be written."""
    import torch

    if isinstance(model, torch.export.ExportedProgram):
        return model
    try:
        return torch.export.export(model, source.args or (), source.kwargs)
    except Exception as error:  # torch.export raises what tracing a model's code may raise
        text = str(error).strip().splitlines()
        raise UnsupportedModelError(
            f"{source.name} was folded, but torch.export cannot capture it:"
            f" {text[0] if text else type(error).__name__}".rstrip("."),
            "fold it in Python, with bnfold.fold, which needs no export",
        ) from error


def _check(source: Source, program: ExportedProgram) -> Difference | None:
    """Compare what came in with what will be written."""
    import torch

    if source.args is None:
        say(f"{source.name} carries no example inputs: nothing was run, nothing was compared")
        return None
    original = source.model
    runnable = original if isinstance(original, torch.nn.Module) else original.module()
    dtypes = frozenset(tensor.dtype for tensor in runnable.state_dict().values())
    return check_equal(
        source.name,
        runnable,
        program.module(),
        source.args,
        source.kwargs,
        dtypes,
    )


def _write(output: Path, program: ExportedProgram) -> None:
    import torch

    write_whole(output, lambda file: torch.export.save(program, file))


def _document(
    report: FoldReport, output: Path | None, difference: Difference | None
) -> dict[str, Any]:
    return {
        **report.to_dict(),
        "output": None if output is None else str(output),
        "difference": None if difference is None else difference.to_dict(),
    }


def _closing(output: Path | None, difference: Difference | None, *, is_checked: bool) -> str:
    if difference is not None:
        checked = f"{difference}, on the example inputs"
    elif is_checked:
        checked = "nothing was compared: the program carries no example inputs"
    else:
        checked = "nothing was compared (--no-check)"
    return f"{checked}\n{'nothing written' if output is None else f'written: {output}'}"
