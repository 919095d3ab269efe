"""`python -m bnfold` is the command `bnfold`: where its process begins."""

from __future__ import annotations

import gc
import sys

_INTERRUPTED = 130
_GARBAGE = 50_000
"""Objects between two searches for garbage. With Python's 700 a command that ends in seconds spends
a twentieth of them searching, and finds next to nothing."""


def run() -> int:
    """The exit status. Ctrl-C ends it quietly while modules are still being imported, too."""
    gc.set_threshold(_GARBAGE)
    try:
        from bnfold.cli import main

        return main()
    except KeyboardInterrupt:
        return _INTERRUPTED


if __name__ == "__main__":
    sys.exit(run())
