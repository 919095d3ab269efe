"""The options that the commands share."""

from __future__ import annotations

import argparse
from typing import get_args

from bnfold._storage import Weights
from bnfold.core.modes import ClipMode


def add_sources(parser: argparse.ArgumentParser) -> None:
    """What to work on; see `_sources`."""
    parser.add_argument(
        "sources",
        metavar="SOURCE",
        nargs="+",
        help="a .onnx file; a .pt2 file written by torch.export.save, or package.module:factory;"
        " a .prototxt file, and its .caffemodel (default: the one beside it with the same stem);"
        " a folder of such files; several of these; - for stdin",
    )
    parser.set_defaults(place=None)


def add_input_options(parser: argparse.ArgumentParser) -> None:
    """What a SOURCE is run on."""
    parser.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="[NAME:]SHAPE[:DTYPE]",
        dest="inputs",
        help="example input of a factory's model, like 1x3x224x224 or 4x16:int64, once per input;"
        " for ONNX, the shape of an input that the model leaves open, like image:1x3x224x224",
    )
    parser.add_argument(
        "--eval", action="store_true", dest="eval_mode", help="put a factory's model in eval mode"
    )


def add_clip_option(parser: argparse.ArgumentParser, what: str) -> None:
    """Bounds per channel; `what` says when, and what is done unless said."""
    parser.add_argument("--clip", choices=get_args(ClipMode), default="auto", help=what)


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """How a command answers."""
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """The options of fold and inspect."""
    add_input_options(parser)
    add_clip_option(
        parser, "whether an activation may get bounds per channel (default: where it pays)"
    )
    parser.add_argument(
        "--no-merge",
        action="store_false",
        dest="merge",
        help="leave branches and chains of linear ops as they are, though they could be one op",
    )
    parser.add_argument(
        "--phase",
        choices=["test"],
        help="of a .prototxt with layers for training, fold what the TEST phase computes",
    )
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="stored",
        dest="storage",
        help="how weights that change are stored where a file holds them in fewer bits than the"
        " network computes in (default: as they were, rounded once more)",
    )
    parser.add_argument("--strict", action="store_true", help="exit with 1 if anything is kept")
    add_answer_options(parser)
