"""What the command prints and writes: answers to stdout, remarks to stderr, files whole or not.

A file is written beside its final place and moved there in one step (`os.replace`), so that
nobody ever sees half of it, and a failure leaves the folder as it was.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from bnfold._places import check_place, part_beside, put_in_place, sync_file
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.report import FoldReport

_PIPE_WIDTH = 10_000
"""Columns of a table that goes to a file or a pipe: none is cut, each BatchNorm has one line."""


def say(text: str) -> None:
    """One remark for people, on stderr. Nobody may be there to read it, and that is no error."""
    if sys.stderr is not None:
        with suppress(OSError):
            print(f"bnfold: {_printable(text)}", file=sys.stderr, flush=True)


def answer(text: str) -> None:
    """The answer, on stdout. A reader that has gone away (`| head`) is no error.

    Raises UsageError if stdout takes no more: the work is done then, but nobody has the answer.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        # Python flushes stdout once more at exit, and would complain there.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):
            raise UsageError(
                f"the answer could not be printed: {error.strerror or error}",
                "look at the output, if one was asked for, and send the answer elsewhere",
            ) from error


def answer_json(document: dict[str, Any]) -> None:
    """The answer as one JSON document."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    if sys.stdout is not None and not _can_say(text, sys.stdout.encoding or "utf-8"):
        text = json.dumps(document, indent=2, allow_nan=False)
    answer(text)


def _can_say(text: str, encoding: str) -> bool:
    """Whether the text has a form in the encoding: names that are no UTF-8 have none in UTF-8."""
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def answer_table(report: FoldReport) -> None:
    """The answer as a table, in colour and as wide as the terminal, if there is one."""
    if sys.stdout is None or not sys.stdout.isatty():
        answer(report.table(width=_PIPE_WIDTH))
        return
    # https://no-color.org: set and not empty means no colour, whatever the value.
    color = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    answer(report.table(color=color, width=shutil.get_terminal_size().columns))


@contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """Show how far long work has come, on a terminal; it is called with parts of 1."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda part: None
        return
    start = time.monotonic()
    shown = False

    def step(part: float) -> None:
        nonlocal shown
        if time.monotonic() - start < _PATIENCE:
            return
        shown = True
        bar = ("#" * int(part * _BAR)).ljust(_BAR)
        sys.stderr.write(f"\rbnfold: {_printable(what)} [{bar}] {part:4.0%}")
        sys.stderr.flush()

    try:
        yield step
    finally:
        if shown:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()


_PATIENCE = 1.0
"""Seconds before a bar appears."""
_BAR = 30
"""Characters of a full bar."""


def check_output(output: Path, *, suffix: str, force: bool, option: str = "-o") -> None:
    """Raise UsageError if the output cannot go there: asked before any work is done."""
    if output.suffix != suffix:
        raise UsageError(
            f"{output} does not end in {suffix}, the format that is written",
            f"name it something{suffix}",
        )
    check_place(output, force=force, option=option)


def write_whole(output: Path, write: Callable[[IO[bytes]], object], *, option: str = "-o") -> None:
    """Let `write` fill a file that appears at `output` only when it is complete."""
    part = part_beside(output)
    try:
        with part.open("xb") as file:
            write(file)
            sync_file(file, replaces=os.path.lexists(output))
        put_in_place((part, output))
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(
            f"{output} could not be written: {reason}", f"choose another place with {option}"
        ) from error
    finally:
        part.unlink(missing_ok=True)


def _printable(text: str) -> str:
    """Names come from files: no control characters on the terminal."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else "\N{REPLACEMENT CHARACTER}" for c in text
    )
