"""Weights that a file stores in fewer bits than the network computes in, and what a fold does.

    stored       what changes is rounded to the dtype that it was stored in, once more
    float32      what changes is stored in float32; what does not change stays byte for byte

A weight that is read in 16 bits and computed with in 16 bits is rounded by the network itself, and
nothing is said of it.
"""

from __future__ import annotations

from typing import Literal

from bnfold.errors import UsageError

Weights = Literal["stored", "float32"]
"""How weights that change are stored."""

_NEXT_STEP = '--weights float32 (in Python weights="float32") stores what changes in float32'

_NO_STORAGE = "PyTorch computes with a parameter in the dtype that it is stored in"


def refuse_for_torch(option: str) -> UsageError:
    """What is said to somebody who asks for the storage of a module's or program's weights."""
    return UsageError(
        f"{option} means nothing here: {_NO_STORAGE}",
        "leave it out; or fold model.float(), and cast what comes out",
    )


def rounding_note(count: int, dtype: str) -> str:
    """What a report says of changed weights that were rounded to the dtype of their storage."""
    what, are = (
        ("1 array that changes", "is") if count == 1 else (f"{count} arrays that change", "are")
    )
    return (
        f"{what} {are} stored in {dtype}, which is coarser than what the network computes in, and"
        f" {are} rounded to it once more; {_NEXT_STEP}."
    )


def rounding_seen(dtype: str, output: str, error: float, *, is_only_stored: bool) -> str:
    """What a verification says of them: how far an output moved, relative to its size."""
    step = f"; {_NEXT_STEP}" if is_only_stored else ""
    return (
        f"Weights are stored in {dtype}, and what the fold changed was rounded to that once more:"
        f" {output} is off by {error:.1e} of its size{step}."
    )
