"""Fold one model, whatever its kind: read, fold, verify, write; what is said of it comes back."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from bnfold._output_files import is_same_file
from bnfold.cli._edit import Edited, check_edit, edited
from bnfold.cli._output import check_output, progress
from bnfold.cli._report import check_report, write_report
from bnfold.cli._source import Source, asked_source, request_of
from bnfold.cli._summary import Ending
from bnfold.cli._verify import compare, is_doubtful
from bnfold.errors import UsageError
from bnfold.formats import ModelKind
from bnfold.frontend import Folded
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
    source = asked_source(arguments)
    if arguments.external_data and source.kind is not ModelKind.ONNX_FILE:
        raise UsageError(
            f"--external-data is for .onnx files, and {source.name} is none", "leave it out"
        )
    output = None if arguments.dry_run else arguments.output or source.default_output()
    if output is not None:
        if any(is_same_file(output, path) for path in source.files):
            raise UsageError(f"{output} is the model itself", "name another output with -o")
        option = "-o" if arguments.output_dir is None else "--output-dir"
        check_output(output, suffix=source.kind.suffix, force=arguments.force, option=option)
    check_report(arguments)
    with edited(source, arguments, output) as edit:
        if arguments.verify:
            check_edit(edit)
        ending, is_refused, verified = _fold(edit, arguments, output)
    ending = replace(ending, seconds=time.monotonic() - start)
    output = output if ending.files else None
    return Done(ending, _document(ending, output, verified), is_refused)


def _fold(
    edit: Edited, arguments: argparse.Namespace, output: Path | None
) -> tuple[Ending, bool, VerifyResult | str]:
    """Fold, verify and write what was edited; whether it was refused, and what was found."""
    source = edit.source
    folded, verified = _folded(source, arguments, output)
    try:
        report = edit.noted(folded.report)
        in_doubt = is_doubtful(source.name, verified)
        is_refused = arguments.strict and (report.kept > 0 or in_doubt)
        before, after = folded.counts
        read = edit.files or folded.files or source.files
        held = sum(path.stat().st_size for path in read) if read else None
        written: Sequence[Path] = ()
        if output is not None and not is_refused:
            folded.deliver()
            written = folded.written
        ending = Ending(
            report,
            before,
            after,
            held,
            tuple((path, path.stat().st_size) for path in written),
            _verdict(verified),
        )
        write_report(arguments, ending, read=read, verified=verified)
    finally:
        folded.close()
    return ending, is_refused, verified


def _folded(
    source: Source, arguments: argparse.Namespace, output: Path | None
) -> tuple[Folded, VerifyResult | str]:
    """The fold that is going to be written, and what comparing it showed."""
    frontend = source.frontend
    with progress(f"folding {source.name}") as step:
        model, inputs = source.open()
        # What is compared is what will be written, so that the fold itself compares nothing.
        request = request_of(
            arguments,
            inputs,
            output=output,
            external_data=arguments.external_data,
            verify=False,
            ahead=arguments.verify,
            step=step,
        )
        frontend.check(model, request)
        folded = frontend.fold(model, request)
    if not arguments.verify:
        return folded, "--no-verify"
    try:
        with progress(f"verifying {source.name}"):
            verified = compare(source, folded)
            if isinstance(verified, VerifyResult) and not verified.equal:
                whole = folded
                folded, verified = whole.proven(verified, partial(compare, source))
                if folded is not whole:
                    whole.close()
    except BaseException:
        folded.close()
        raise
    return folded, verified


def _document(ending: Ending, output: Path | None, verified: VerifyResult | str) -> dict[str, Any]:
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
    if isinstance(verified, VerifyResult):
        result = verified.to_dict()
        document["verify"] = result
        document["difference"] = {
            "absolute": max((o["max_absolute"] for o in result["outputs"]), default=0.0),
            "relative": max((o["max_relative"] for o in result["outputs"]), default=0.0),
        }
    return document


def _verdict(verified: VerifyResult | str) -> str:
    if isinstance(verified, VerifyResult):
        return f"{verified.summary} ({verified.scope})" if verified.scope else verified.summary
    return f"nothing was verified{'' if verified.startswith('--') else ':'} " + (
        f"({verified})" if verified.startswith("--") else verified
    )
