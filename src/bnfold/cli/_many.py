"""Fold many models: one line for each as it is done, one exit status, one JSON document.

A model that fails does not stop the others. With --jobs N, N processes work at once; each takes
one model after the other.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed, wait
from contextlib import contextmanager
from dataclasses import dataclass
from textwrap import fill
from typing import Any

from bnfold._kinds import renamed
from bnfold._output_files import make_folder
from bnfold._text import printable, shortened, size
from bnfold._threads import limit, processors
from bnfold.cli._fold import fold_one
from bnfold.cli._output import answer, answer_json, columns, progress
from bnfold.cli._signals import signals_raise
from bnfold.cli._source import source_of
from bnfold.cli._sources import Model
from bnfold.errors import BnfoldError, FoldFailedError

SCHEMA = "bnfold.batch/1"
"""Name and version of the JSON document."""


@dataclass(frozen=True, slots=True)
class Line:
    """What became of one model."""

    source: str
    exit_code: int
    text: str
    """Why it failed; empty if it did not."""
    document: dict[str, Any]
    """What `bnfold fold --json` prints of it; empty if it failed."""
    parts: tuple[str, ...] = ()
    """What became of it, what matters most first."""


def fold_many(arguments: argparse.Namespace, named: Sequence[Model]) -> int:
    """Fold all of them, print, and return the gravest exit status."""
    tasks = [_options(arguments, model) for model in named]
    lines: list[Line] = []
    with progress(f"folding {len(tasks)} models") as step:
        for line in _fold(tasks, arguments.jobs):
            lines.append(line)
            step(len(lines) / len(tasks))
            if not arguments.json and not (arguments.quiet and line.exit_code == 0):
                answer(_row(line, max(len(printable(model.source)) for model in named)))
    order = {model.source: place for place, model in enumerate(named)}
    lines.sort(key=lambda line: order[line.source])
    failed = sum(line.exit_code != 0 for line in lines)
    if arguments.json:
        answer_json(_document(lines))
    elif not arguments.quiet:
        answer(f"{len(lines)} models: {len(lines) - failed} folded, {failed} not")
    return max(line.exit_code for line in lines)


def _options(arguments: argparse.Namespace, model: Model) -> argparse.Namespace:
    """Those of one model; its output lies in the folder as the model lies in the one given."""
    output = None
    if arguments.output_dir is not None:
        try:
            suffix = source_of(model.source).kind.suffix
        except BnfoldError:  # said again, and caught, where it is folded
            suffix = model.place.suffix
        output = renamed(arguments.output_dir / model.place, suffix)
    own = {"source": model.source, "weights": model.weights, "output": output}
    return argparse.Namespace(**{**vars(arguments), **own, "run": None})


def _fold(tasks: Sequence[argparse.Namespace], jobs: int) -> Iterator[Line]:
    if jobs == 1:
        yield from map(_line, tasks)
        return
    spawn = multiprocessing.get_context("spawn")  # runtimes keep threads, which a fork would lose
    is_over = spawn.RawValue("b", 0)  # without a lock, which nobody can leave locked
    share = max(1, processors() // jobs)  # more threads than processors wait for each other
    with ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=spawn, initializer=_begin, initargs=(is_over, share)
    ) as pool:
        with _unheard() as is_heard:
            futures = [pool.submit(_work, arguments, is_heard) for arguments in tasks]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            is_over.value = 1
            _end(futures)
            raise


_PATIENCE = 4.0
"""Seconds until processes are told again: more than those in which two signals count as one."""


def _end(futures: Sequence[Future[Line]]) -> None:
    """A signal may be for us alone, and an exception that it raises may get lost in a callback."""
    running = [future for future in futures if not future.cancel()]
    while running:
        for process in multiprocessing.active_children():
            if process.pid is not None and os.name == "posix":
                os.kill(process.pid, signal.SIGINT)
        running = list(wait(running, _PATIENCE).not_done)


_is_over: Any = None
"""In a process that works for another: whether that one has ended."""


def _begin(is_over: Any, threads: int) -> None:
    global _is_over
    _is_over = is_over
    limit(threads)


@contextmanager
def _unheard() -> Iterator[bool]:
    """Processes that start here ignore Ctrl-C; whether they have to listen while they work."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield False
        return
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield before != signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def _work(arguments: argparse.Namespace, is_heard: bool) -> Line:
    """Fold one in a process of its own: Ctrl-C cleans up, and nothing is said of it there."""
    if not is_heard:
        return _line(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with signals_raise():
            if _is_over.value:  # before there was anybody to listen
                raise KeyboardInterrupt
            return _line(arguments)
    except KeyboardInterrupt:
        return _failed(arguments.source, 130, "interrupted")
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _line(arguments: argparse.Namespace) -> Line:
    """Fold one; whatever it raises is its line."""
    try:
        if arguments.output is not None:
            make_folder(arguments.output.parent)
        done = fold_one(arguments)
    except BnfoldError as error:
        return _failed(arguments.source, error.exit_code, str(error))
    except Exception as error:  # what we did not foresee must not stop the others
        text = f"this is a bug in bnfold: {type(error).__name__}: {error}"
        return _failed(arguments.source, FoldFailedError.exit_code, text)
    ending, report = done.ending, done.ending.report
    parts = [f"{report.removed} of {report.total} removed"]
    if done.is_refused:
        parts.append("nothing written (--strict)")
    parts.append(ending.verdict.split(":")[0])
    parts.append(f"{ending.seconds or 0.0:.1f} s")
    if ending.files and ending.read is not None:
        parts.append(f"{size(ending.read)} -> {size(ending.written)}")
    if ending.files:
        parts.append(str(ending.files[0][0]))
    return Line(arguments.source, int(done.is_refused), "", done.document, tuple(parts))


def _failed(source: str, exit_code: int, text: str) -> Line:
    return Line(source, exit_code, f"failed: {' '.join(text.split())}", {})


def _row(line: Line, longest: int) -> str:
    width = columns()
    room = min(longest, width * 2 // 5)
    name = shortened(line.source, room).ljust(room)
    if not line.text:
        return f"{name}  {printable(_fitted(line.parts, width - room - 2))}"
    text = printable(line.text.replace(f"failed: {line.source}: ", "failed: ", 1))
    return fill(
        f"{name}  {text}",
        width,
        subsequent_indent="    ",
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )


def _fitted(parts: Sequence[str], room: int) -> str:
    """As many of them as there is room for."""
    text = parts[0]
    for part in parts[1:]:
        if len(text) + 2 + len(part) > room:
            break
        text += f", {part}"
    return text


def _document(lines: Sequence[Line]) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "models": [
            {
                "source": line.source,
                "exit_status": line.exit_code,
                "error": line.text.removeprefix("failed: ") if not line.document else None,
                "fold": line.document or None,
            }
            for line in lines
        ],
        "exit_status": max(line.exit_code for line in lines),
    }
