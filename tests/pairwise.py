"""Fewer cases than a full product, in which still every pair meets.

A mistake shows where two things meet, seldom only where three do: a view and a head, external data
and an op with a graph inside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from typing import TypeVar

Case = TypeVar("Case")
Option = TypeVar("Option", bound=Hashable)


def pairwise(
    cases: Sequence[Case],
    options: Sequence[Option],
    traits: Callable[[Case], Collection[Hashable]],
) -> list[tuple[Case, Option]]:
    """Each case with an option, and as many more as it takes for every trait to meet every one."""
    pairs = {
        (at, option): {(t, option) for t in traits(case)}
        for at, case in enumerate(cases)
        for option in options
    }
    left = set().union(*pairs.values())
    chosen = []
    for at in range(len(cases)):
        turned = [options[(at + n) % len(options)] for n in range(len(options))]
        best = max(turned, key=lambda option: len(left & pairs[at, option]))
        chosen.append((at, best))
        left -= pairs[at, best]
    for key, met in pairs.items():
        if left & met:
            chosen.append(key)
            left -= met
    return [(cases[at], option) for at, option in sorted(chosen, key=lambda pair: pair[0])]
