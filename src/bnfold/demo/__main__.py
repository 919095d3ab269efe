"""The command `python -m bnfold.demo [-o DIR]`."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from pathlib import Path

EXIT_MISSING_EXTRA = 4


def main() -> int:
    """Read the command line, run the demo, return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bnfold.demo",
        description="Fold a small trained network and show that it computes the same.",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="DIR",
        type=Path,
        default=Path("out"),
        help="where the folded network and the report go (default: ./out)",
    )
    arguments = parser.parse_args()
    if arguments.output.exists() and not arguments.output.is_dir():
        parser.error(f"{arguments.output} is a file; -o takes a folder")
    if importlib.util.find_spec("torch") is None:
        print('The demo needs PyTorch: pip install "bnfold[torch]"', file=sys.stderr)
        return EXIT_MISSING_EXTRA

    from bnfold.demo import run  # not before --help is answered: it imports torch

    return run.main(arguments.output)


if __name__ == "__main__":
    sys.exit(main())
