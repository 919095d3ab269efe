"""The command `bnfold`: one file per subcommand, one place where errors become exit codes.

    0 done    1 the answer is no    2 usage    3 model unreadable    4 missing extra
    70 a bug in bnfold    130 interrupted    143 terminated

Nothing here imports a framework or NumPy, and a subcommand's module is imported when it is called:
`bnfold --help` is quick, `bnfold fold` loads what it needs.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from bnfold._version import __version__
from bnfold.cli._output import say
from bnfold.cli._signals import Stopped, signals_raise
from bnfold.errors import BnfoldError, FoldFailedError

COMMANDS = {
    "fold": "remove every BatchNorm that can go exactly, check the result, and write it",
    "inspect": "say what folding would remove and keep, and why; nothing is changed or written",
    "bench": "measure how long a model takes before and after folding",
    "verify": "run two models on the same inputs and say whether they compute the same",
}
"""The module of this package that each is in, and what it does."""

INTERRUPTED = 130
"""Exit status after Ctrl-C: 128 + SIGINT, as shells have it."""

_COMPLETION = "--print-completion"

_EPILOG = """\
exit status: 0 done, 1 the answer is no (not equal, slower, something kept under --strict),
2 usage, 3 model unreadable, 4 missing extra, 70 a bug in bnfold, 130 interrupted, 143 terminated"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status; nothing is raised."""
    try:
        words = sys.argv[1:] if argv is None else argv
        arguments = _parsed(words)
    except SystemExit as stop:  # argparse leaves this way after --help and after a usage error
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:  # a subcommand was being imported
        return INTERRUPTED
    try:
        with signals_raise():
            return int(arguments.run(arguments))
    except KeyboardInterrupt as stop:
        say("interrupted")
        return stop.exit_code if isinstance(stop, Stopped) else INTERRUPTED
    except BnfoldError as error:
        if arguments.debug:
            traceback.print_exc(file=sys.stderr)
        say(f"error: {error}")
        return error.exit_code
    except Exception as error:  # whatever reaches this line, we did not foresee
        if arguments.debug:
            traceback.print_exc(file=sys.stderr)
        again = "" if arguments.debug else " (run again with --debug for the traceback)"
        text = " ".join(str(error).split())
        say(f"this is a bug in bnfold, please report it: {type(error).__name__}: {text}{again}")
        return FoldFailedError.exit_code


def _parsed(words: Sequence[str]) -> argparse.Namespace:
    """What the words say; argparse leaves with what is wrong with them."""
    parser = _parser(words)
    if not words:
        parser.print_help(sys.stderr)
        parser.exit(2)
    first = words[0]
    if first not in COMMANDS and not first.startswith("-") and os.path.lexists(first):
        parser.error(f"say what to do with it: bnfold fold {first}, or inspect, bench, verify")
    arguments, rest = parser.parse_known_args(words)
    if rest:
        own = [
            _OTHERS[word] for word in (part.partition("=")[0] for part in rest) if word in _OTHERS
        ]
        hint = f" (here it is {', '.join(own)}; see bnfold {first} --help)" if own else ""
        parser.error(f"unrecognized arguments: {' '.join(rest)}{hint}")
    return arguments


_OTHERS = {
    "--overwrite-input-shape": "--fix-input",
    "--input-shape": "--fix-input",
    "--input-shapes": "--fix-input",
    "--test-input-shape": "--input",
    "--inputs": "--from",
    "--outputs": "--to",
    "--unused-output": "--to, for each that stays",
    "--target-opset": "--opset",
    "--save-as-external-data": "--external-data",
    "--inspect": "bnfold inspect",
    "--model-check": "what is done unless --no-verify is given",
}
"""What onnxsim and onnxslim call things."""


def _complete(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    from bnfold.cli._completion import print_completion

    print_completion(parser, arguments.print_completion)
    return 0


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """Of the subcommands, those that the words name have their options, too."""
    parser = argparse.ArgumentParser(
        prog="bnfold",
        description="Remove BatchNorm from trained networks, exactly, for inference.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"bnfold {__version__}")
    parser.add_argument(
        _COMPLETION,
        metavar="SHELL",
        help="print what bash, zsh or fish need to complete this command",
    )
    if _COMPLETION in words[:1]:
        parser.set_defaults(run=partial(_complete, parser), debug=False)
    commands = parser.add_subparsers(metavar="COMMAND", required=_COMPLETION not in words[:1])
    for name, text in COMMANDS.items():
        command = commands.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        if name in words or _COMPLETION in words[:1]:
            import_module(f"bnfold.cli.{name}").add_arguments(command)
    return parser
