"""What the command prints: answers to stdout, remarks to stderr."""

from __future__ import annotations

import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bnfold._output_files import check_place
from bnfold._text import printable, shortened
from bnfold.errors import UsageError

if TYPE_CHECKING:
    from bnfold.cli._summary import Ending

_BREAKS = "\n\t"
_PIPE_WIDTH = 10_000
"""Columns of a table that goes to a file or a pipe: none is cut, each BatchNorm has one line."""
_PIPE_TABLE = 120
"""Columns of a table of figures there."""


def say(text: str) -> None:
    """One remark for people, on stderr. Nobody may be there to read it, and that is no error."""
    if sys.stderr is not None:
        with suppress(OSError):
            text = f"bnfold: {printable(text, keep=_BREAKS)}"
            print(_fitted(text) if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _fitted(text: str) -> str:
    """Broken between words where the terminal would break it anywhere; paths stay in one piece."""
    from textwrap import wrap  # a remark is rare

    width = max(shutil.get_terminal_size().columns, 40)
    return "\n".join(
        part
        for line in text.split("\n")
        for part in wrap(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        or [""]
    )


def answer(text: str) -> None:
    """The answer, on stdout. A reader that has gone away (`| head`) is no error.

    Raises UsageError if stdout takes no more: the work is done then, but nobody has the answer.
    """
    if sys.stdout is None:
        return
    for line in _lines:
        line.clear()
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        _shut_stdout()
        if not isinstance(error, BrokenPipeError):
            raise UsageError(
                f"the answer could not be printed: {error.strerror or error}",
                "look at the output, if one was asked for, and send the answer elsewhere",
            ) from error


def send(path: Path) -> None:
    """The content of a file, on stdout. Raises UsageError if stdout does not take all of it."""
    try:
        with path.open("rb") as file:
            shutil.copyfileobj(file, sys.stdout.buffer)
        sys.stdout.buffer.flush()
    except OSError as error:
        _shut_stdout()
        raise UsageError(
            f"stdout did not take the whole model: {error.strerror or error}", "use -o FILE"
        ) from error


def _shut_stdout() -> None:
    """Python flushes stdout once more at exit, and would complain there."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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


def answer_summary(ending: Ending, *, table: bool) -> None:
    """The answer as one screen, in colour and as wide as the terminal, if there is one."""
    from bnfold.cli._summary import summary

    answer(summary(ending, width=columns(), color=is_coloured(), table=table))


class Result(Protocol):
    """What a command has found out, as a document and as a table."""

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""

    def table(self, *, color: bool = ..., width: int = ...) -> str:
        """Text of that many columns."""


def answer_result(result: Result, *, as_json: bool) -> None:
    """The answer as one JSON document or as a table, in colour and as wide as the terminal."""
    if as_json:
        answer_json(result.to_dict())
    else:
        answer(result.table(color=is_coloured(), width=columns(pipe=_PIPE_TABLE)))


def columns(pipe: int = _PIPE_WIDTH) -> int:
    """Of the terminal; `pipe` where there is none, which by default cuts no line."""
    if not _is_terminal():
        return pipe
    return max(shutil.get_terminal_size().columns, 40)


def is_coloured() -> bool:
    """Whether stdout is a terminal that shows colours and may."""
    if not _is_terminal():
        return False
    # https://no-color.org: set and not empty means no colour, whatever the value.
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


class _Line:
    """One line on stderr that says what goes on; a thread writes it anew a few times a second."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.part: float | None = None
        self._start = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        if self._ended.wait(_PATIENCE):
            return
        while not self._ended.wait(_REFRESH):
            self._write(f"\r\x1b[Kbnfold: {self._text()}")
        self._write("\r\x1b[K")

    def _text(self) -> str:
        done = f"{time.monotonic() - self._start:.0f} s"
        if self.part is not None:
            done = f"[{('#' * int(self.part * _BAR)).ljust(_BAR)}] {self.part:4.0%}"
        room = shutil.get_terminal_size().columns - len(done) - len("bnfold:  ") - 1
        return f"{shortened(self.what, room)} {done}"

    def clear(self) -> None:
        """Make room for something else; it comes back below that."""
        self._write("\r\x1b[K")

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def end(self) -> None:
        """Nothing is left of it on the screen."""
        self._ended.set()
        self._thread.join()


_lines: list[_Line] = []
"""The line that is shown, if there is one: what begins inside of something shows there."""


@contextmanager
def progress(what: str) -> Iterator[Callable[[float], None]]:
    """Show on a terminal what goes on, after half a second.

    The seconds are shown, or how far it has come, if that is told with parts of 1.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda part: None
        return
    line, before = (_lines[-1], _lines[-1].what) if _lines else (_Line(what), None)
    if before is None:
        _lines.append(line)
    line.what = what

    def step(part: float) -> None:
        line.part = part

    try:
        yield step
    finally:
        line.part = None
        if before is None:
            _lines.remove(line)
            line.end()
        else:
            line.what = before


_PATIENCE = 0.5
"""Seconds before a line appears."""
_REFRESH = 0.2
"""Seconds until it is written again."""
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
