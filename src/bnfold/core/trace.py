"""Which ops took a removed affine step in: the names a user wants to read."""

from __future__ import annotations

from collections.abc import Set

import numpy as np

from bnfold.core.laws import Binding, BoundAffine, BoundLinear


def into(binding: Binding, number: int, edited: Set[int]) -> tuple[str, ...]:
    """The edited ops that now do the step's work, producers first where they suffice.

    A step whose input comes straight from linear ops that nothing else reads went into those;
    any other went into the ops that read its output, directly or, failing that, through the sums
    and steps of its class.
    """
    bound = binding.bound[number]
    assert isinstance(bound, BoundAffine)
    makers, readers = [], []
    for other, twin in binding.bound.items():
        if other not in edited or not isinstance(twin, BoundLinear | BoundAffine):
            continue
        if _overlap(twin.outputs, bound.inputs):
            makers.append(other)
        if _overlap(twin.inputs, bound.outputs):
            readers.append(other)
    if makers and _covers(binding, makers, bound.inputs):
        chosen = makers
    else:
        chosen = readers or makers or _class_mates(binding, bound, edited)
    return tuple(dict.fromkeys(binding.graph.ops[other].name for other in chosen))


def _overlap(left: np.ndarray, right: np.ndarray) -> bool:
    """Whether two sets of variables meet; those of one op are mostly one run of numbers."""
    if not len(left) or not len(right):
        return False
    if left.min() > right.max() or right.min() > left.max():
        return False
    return bool(np.isin(left, right).any())


def _covers(binding: Binding, makers: list[int], variables: np.ndarray) -> bool:
    made = np.concatenate([binding.bound[maker].outputs for maker in makers])  # type: ignore[union-attr]
    return bool(np.isin(variables, made).all()) and len(makers) == 1


def _class_mates(binding: Binding, bound: BoundAffine, edited: Set[int]) -> list[int]:
    roots = np.unique(binding.system.magnitude.roots(bound.outputs))
    roots = roots[roots != 0]
    mates = []
    for other, twin in binding.bound.items():
        if other not in edited or not isinstance(twin, BoundLinear | BoundAffine):
            continue
        if np.isin(binding.system.magnitude.roots(twin.outputs), roots).any():
            mates.append(other)
    return mates
