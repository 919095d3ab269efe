"""Which of many changes may be made together, where all of them may not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

Suspect = TypeVar("Suspect")


def cleared_by_halves(
    suspects: Sequence[Suspect],
    is_right: Callable[[list[Suspect]], bool],
    cleared: Sequence[Suspect] = (),
) -> list[Suspect]:
    """Those cleared before, and more of the suspects, as many as are right together.

    All of the suspects are not, so at least one is to blame: halves are tried until it is alone.
    """
    together = list(cleared)
    if len(suspects) > 1:
        middle = len(suspects) // 2
        for half in (suspects[:middle], suspects[middle:]):
            more = [*together, *half]
            together = more if is_right(more) else cleared_by_halves(half, is_right, together)
    return together
