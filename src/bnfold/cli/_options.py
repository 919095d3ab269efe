"""The options that the commands share."""

from __future__ import annotations

import argparse
from typing import get_args

from bnfold.api import ClipMode


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """SOURCE and the options of every command."""
    parser.add_argument(
        "source",
        metavar="SOURCE",
        help="a .pt2 file written by torch.export.save, or package.module:factory",
    )
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="SHAPE[:DTYPE]",
        dest="inputs",
        help="example input of a factory's model, like 1x3x224x224 or 4x16:int64; once per input",
    )
    parser.add_argument(
        "--eval", action="store_true", dest="eval_mode", help="put a factory's model in eval mode"
    )
    parser.add_argument(
        "--clip",
        choices=get_args(ClipMode),
        default="auto",
        help="whether an activation may get bounds per channel (default: where it pays)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if anything is kept")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
