"""Where an output may go, and how it gets there: whole, or not at all.

    before any work     check_place: is the name free, and can a file of that name be there
    while writing       part_beside: a name beside it that is short and nobody else's
    at the end          sync_file, put_in_place

A program can be stopped between any two steps, and a machine can lose its power: so the content is
on the disk before its name is, and of several files that belong together, the one that makes them a
model goes first and comes last. Old ones are moved aside, never deleted, until all new ones are
there; a run that is killed between two of these moves (less than a millisecond, and only with
--force) leaves the old files under the names of `part_beside`, and no model under their own.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import IO

from bnfold.errors import UsageError

_SYNCED = 1 << 28
"""Bytes up to which a new file is waited for. A disk takes seconds for a larger one, and the input
is still there to fold again; what replaces a file is waited for, whatever its size."""


def check_place(output: Path, *, force: bool, option: str = "-o") -> None:
    """Raise UsageError if the output cannot go there, or something is there already.

    `option` is what names the place on the command line.
    """
    if not output.name:
        raise UsageError(f"{output} names no file", "name a file")
    try:
        output.lstat()
    except FileNotFoundError:
        _check_folder(output.parent, option)
        return
    except NotADirectoryError:
        raise _no_folder(output.parent, option) from None
    except (OSError, ValueError) as error:  # too long, a null character, no permission
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{shortened(output)} is no name that a file can have here: {reason}", "choose another"
        ) from error
    if output.is_dir():
        raise UsageError(f"{output} is a folder", f"name a file with {option}")
    if not force:
        raise UsageError(
            f"{output} exists and is not overwritten",
            f"choose another with {option}, or add --force",
        )
    _check_folder(output.parent, option)


def _check_folder(folder: Path, option: str) -> None:
    if not folder.is_dir():
        raise _no_folder(folder, option)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(f"the folder {folder} is not writable", f"choose another with {option}")


def _no_folder(folder: Path, option: str) -> UsageError:
    return UsageError(f"there is no folder {folder}", f"create it, or choose another {option}")


def make_folder(folder: Path) -> None:
    """Make the folder of --output-dir, and those around it. Raises UsageError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a file, too long, no permission
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(
            f"{shortened(folder)} can be no folder: {reason}", "choose another --output-dir"
        ) from error


def is_same_file(first: Path, second: Path) -> bool:
    """Whether two paths lead to one file, by whatever links, or to one name where there is none."""
    try:
        return first.samefile(second)
    except (OSError, ValueError):
        return first.absolute() == second.absolute()


def part_beside(output: Path) -> Path:
    """A name in the same folder; a run that is killed may leave it behind, and disturbs nobody."""
    return output.with_name(f".bnfold-{os.urandom(8).hex()}.part")


def sync_file(file: IO[bytes], *, replaces: bool) -> None:
    """Wait until the content is on the disk, unless it is large and replaces nothing."""
    file.flush()
    if replaces or file.tell() <= _SYNCED:
        os.fsync(file.fileno())


class Syncing:
    """`sync_file` in a thread: whoever wrote the file closes it, and does something else meanwhile.

    The file gets its name after `wait`.
    """

    def __init__(self, file: IO[bytes], *, replaces: bool) -> None:
        self._errors: list[BaseException] = []
        file.flush()  # a full disk shows here
        self._file = os.fdopen(os.dup(file.fileno()), "rb")
        self._replaces = replaces
        # Nobody waits for it where the file is not wanted any more.
        self._thread = Thread(target=self._run, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:  # no more threads are to be had
            self._run()

    def _run(self) -> None:
        try:
            with self._file as file:
                sync_file(file, replaces=self._replaces)
        except BaseException as error:  # raised below, in the thread that asked
            self._errors.append(error)

    def wait(self) -> None:
        """Until the content is on the disk. Raises OSError."""
        if self._thread.ident is not None:  # it was started
            self._thread.join()
        if self._errors:
            raise self._errors[0]


def put_in_place(*moves: tuple[Path, Path]) -> None:
    """Move complete files (from, to) to their names: all of them, or none. Raises OSError.

    The last is the model, those before it belong to it. What they replace comes back on failure.
    """
    aside: list[tuple[Path, Path]] = []
    try:
        if len(moves) > 1:  # old and new files must never meet; a single one is replaced at once
            _set_aside([target for _, target in reversed(moves)], aside)
        for part, target in moves:
            part.replace(target)
    except BaseException:
        _take_back(moves, aside)
        raise
    try:
        _remove([backup for _, backup in aside])
    except BaseException:  # an interrupt: it may have come in front of a removal
        _remove([backup for _, backup in aside])
        raise
    _sync_folder(moves[-1][1].parent)


def _set_aside(targets: Sequence[Path], aside: list[tuple[Path, Path]]) -> None:
    for target in targets:
        if os.path.lexists(target):
            backup = part_beside(target)
            aside.append((target, backup))  # before the move: an interrupt may come behind it
            target.replace(backup)


def _remove(paths: Sequence[Path]) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _take_back(moves: Sequence[tuple[Path, Path]], aside: Sequence[tuple[Path, Path]]) -> None:
    """Undo as much as can be; what cannot come back stays where it is, and is not deleted."""
    for part, target in reversed(moves):
        if not os.path.lexists(part):  # it has been moved
            with suppress(OSError):
                target.unlink(missing_ok=True)
    for target, backup in reversed(aside):
        if os.path.lexists(backup):
            with suppress(OSError):
                backup.rename(target)


def _sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can do that."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:  # not every file system can
        pass
    finally:
        os.close(descriptor)


def shortened(path: Path) -> str:
    """A path for a message: the middle of a very long one is left out."""
    text = str(path)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 4 :]}"


_SHOWN = 120


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
