"""`bnfold --print-completion SHELL`: what a shell has to know to complete the command.

shtab writes it from the parser, so that nothing has to be kept in step by hand.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

from bnfold.cli._output import answer
from bnfold.errors import MissingExtraError, UsageError

_FILES = ("sources", "source", "folded", "original", "data", "weights")
"""Arguments that are files without saying so by their type."""


def print_completion(parser: argparse.ArgumentParser, shell: str) -> None:
    """Print the script; `parser` knows the options of all subcommands."""
    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError("completion", "shtab") from error
    if shell not in shtab.SUPPORTED_SHELLS:
        known = ", ".join(shtab.SUPPORTED_SHELLS)
        raise UsageError(f"no completion is known for {shell!r}", f"choose one of {known}")
    _tell_files(parser, shtab.FILE)
    answer(shtab.complete(parser, shell=shell))


def _tell_files(parser: argparse.ArgumentParser, file: Mapping[str, object]) -> None:
    for action in parser._actions:  # argparse has no public way through its options
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _tell_files(command, file)
        elif action.type is Path or action.dest in _FILES:
            action.complete = file  # type: ignore[attr-defined]  # what shtab looks for
