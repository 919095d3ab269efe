"""What a tensor is as a linear op of earlier ones, where no merge shows it."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.expression import END, Freedom, Part
from bnfold.core.expressions import Expressions
from tests.core.branches import Branches


def test_a_sum_of_one_operand_has_each_source_once_and_the_nearest_first() -> None:
    net = Branches()
    x = net.input(1, 4, 5, 5)
    conv = net.conv(x)
    copy = net.copy(conv)
    bn = net.bn(copy)
    one = net.sum(bn)
    made = Expressions.of(net.graph, net.parts, Freedom()).by_tensor[one]
    assert [expression.source for expression in made] == [bn, copy, conv, x]


def test_a_linear_op_can_carry_where_nothing_else_is_said() -> None:
    assert Part.of(g.Linear(2, 3, 1, 1), None, lambda: np.zeros((3, 2)), None, "float32").carries


@pytest.mark.parametrize(
    ("cuts", "expected"),
    [
        ([(2, 1, -2)], (-1, -2)),
        ([(2, 1, END)], (-1, 0)),
        ([(2, 0, -1)], (0, -1)),
        ([(2, -3, END)], None),  # what is left, not what is cut off
        ([(2, 0, 5)], None),
        ([(1, 1, END)], (-1, 0)),  # of what has its channels last
        ([(1, 1, END), (2, 1, END)], None),  # channels, wherever they are
        ([(0, 0, -1)], None),
    ],
)
def test_what_slices_cut_off(cuts, expected) -> None:
    part = Part.cut(cuts, (2, 4, 9), "float32")
    if expected is None:
        assert part is None
    else:
        assert part is not None and part.window is not None
        assert (part.window.before, part.window.after) == tuple((n,) for n in expected)
