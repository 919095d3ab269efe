"""Which calls of an activation have their inputs stored alike, whatever is removed.

Two variables are alike if the laws say so, as those of one channel in two calls of a linear op do,
or if calls of one affine step make them, with one constant, of variables that are alike:

    s_x = a * s_y, t_y = a * t_x - b   if it goes         s_y, t_y of one edit   if it stays
"""

from __future__ import annotations

import numpy as np

from bnfold.core.binding import Binding, BoundClip
from bnfold.core.forest import IntArray


def may_share_bounds(binding: Binding, one: BoundClip, other: BoundClip) -> bool:
    """Whether two calls of an activation can always have one set of bounds."""
    shape = one.labels.shape
    if other.labels.shape != shape:
        return False
    if any(shape[axis] != 1 for call in (one, other) for axis in call.role.stored_alike):
        return False
    return _are_alike(binding, one.labels.reshape(-1), other.labels.reshape(-1))


def _are_alike(binding: Binding, left: IntArray, right: IntArray) -> bool:
    """Whether variables are alike, one by one: back through calls of affine steps."""
    makers = None
    while True:
        differ = ~binding.system.are_same(left, right)
        left, right = left[differ], right[differ]
        if not len(left):
            return True
        makers = _Makers(binding) if makers is None else makers
        (step, constant, source), (other, others_constant, others_source) = (
            (makers.step[each], makers.constant[each], makers.source[each])
            for each in (left, right)
        )
        if ((step < 0) | (step != other) | (constant != others_constant)).any():
            return False
        left, right = source, others_source


class _Makers:
    """Per variable, the affine step that makes it."""

    def __init__(self, binding: Binding) -> None:
        count = binding.system.count
        self.step = np.full(count, -1, dtype=np.int64)
        """The number of the first call of its module; -1 where it is none."""
        self.constant = np.zeros(count, dtype=np.int64)
        """The index of the constant that it is made with."""
        self.source = np.zeros(count, dtype=np.int64)
        """The variable that it is made of."""
        for number, bound in binding.affine.items():
            self.step[bound.outputs] = binding.groups[number][0]
            self.constant[bound.outputs] = bound.parameter
            self.source[bound.outputs] = bound.inputs
