"""`python -m bnfold` is the command `bnfold`."""

from __future__ import annotations

import sys

from bnfold.cli import main

if __name__ == "__main__":
    sys.exit(main())
