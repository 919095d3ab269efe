"""A network as if its transposes were none: what cannot be said so comes first."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core import graph as g
from bnfold.core.expression import Part
from bnfold.core.unmoved import unmoved
from bnfold.core.window import Window

LAST, FIRST = (0, 2, 3, 1), (0, 3, 1, 2)


def moved(graph, moves, tensor, perm):
    """Add a transpose."""
    shape = [graph.shapes[tensor][axis] for axis in perm]
    moves[len(graph.ops)] = perm
    role = g.View(lambda labels: [labels[0].transpose(perm)])
    return graph.add("t", role, (tensor,), [shape])[0]


def drawn(perm=FIRST):
    """An image of 5 x 6 x 4, transposed."""
    graph, moves = g.Graph(), {}
    x = graph.input((2, 5, 6, 4), "x")
    return graph, moves, x, moved(graph, moves, x, perm)


def convolution(graph, parts, tensor):
    shape = (2, 7, *graph.shapes[tensor][2:])
    role = g.Linear(graph.shapes[tensor][1], 7, 1, 1)
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
    ones = np.ones((7, role.in_channels, 3, 3))
    parts[len(graph.ops)] = Part.of(role, window, lambda: ones, None, "float32")
    return graph.add("conv", role, (tensor,), [shape])[0]


def reads(made, graph):
    """Whether an op reads what it read."""
    return made.graph.ops[-1].inputs == graph.ops[-1].inputs


def test_who_knows_it_as_it_lies_reads_another_tensor_and_the_one_is_read_outside():
    graph, moves, _, t = drawn()
    graph.add("a", g.Opaque(), (t,), [(2, 120)])
    graph.add("b", g.Opaque(), (t,), [(2, 120)])
    made = unmoved(graph, {}, moves)
    plain = made.plain[t, (0, 1, 2, 3)]
    assert [op.inputs for op in made.graph.ops[1:]] == [(plain,), (plain,)]
    assert made.graph.shapes[plain] == graph.shapes[t]
    assert made.graph.shapes[t] == (2, 5, 6, 4)
    assert [tensor for tensor, _, _ in made.graph.outputs] == [t]
    assert (graph.outputs, len(graph.shapes)) == ([], 4)


@pytest.mark.parametrize("perm", [(0, 3, 2, 1), (1, 3, 0, 2), (3, 0, 1, 2)])
def test_a_convolution_over_axes_in_another_turn(perm):
    graph, moves, _, t = drawn(perm)
    parts = {}
    convolution(graph, parts, t)
    made = unmoved(graph, parts, moves)
    assert not reads(made, graph)
    assert made.parts == parts


def test_a_sum_of_what_lies_differently():
    graph, moves = g.Graph(), {}
    x = graph.input((2, 4, 4, 4), "x")
    t = moved(graph, moves, x, (0, 1, 3, 2))
    graph.add("sum", g.Sum((1.0, 1.0)), (x, t), [(2, 4, 4, 4)])
    made = unmoved(graph, {}, moves)
    assert made.graph.ops[-1].inputs == (x, made.plain[t, (0, 1, 2, 3)])


def test_slopes_and_ranks():
    graph, moves, _, t = drawn()
    slopes = np.arange(4.0).reshape(4, 1, 1)
    graph.add("slopes", g.Homogeneous(slopes), (t,), [graph.shapes[t]])
    graph.add("flat", g.Sum((1.0,)), (t,), [(1, *graph.shapes[t])])
    made = unmoved(graph, {}, moves)
    assert [op.inputs for op in made.graph.ops[1:]] == [(made.plain[t, (0, 1, 2, 3)],)] * 2


def test_nothing_moves():
    graph = g.Graph()
    x = graph.input((2, 4, 5, 6), "x")
    parts = {}
    convolution(graph, parts, x)
    made = unmoved(graph, parts, {})
    assert (made.graph, made.parts, made.orders) == (graph, parts, {})


# -------------------------------------------------------------------- what follows


def test_a_convolution_between_transposes_has_its_channels_last():
    graph, moves, x, t = drawn()
    parts = {}
    y = moved(graph, moves, convolution(graph, parts, t), LAST)
    made = unmoved(graph, parts, moves)
    assert made.graph.shapes[y] == graph.shapes[y] == (2, 5, 6, 7)
    assert made.graph.shapes[1] == (2, 5, 6, 4)
    assert (made.parts[1].axis, parts[1].axis) == (3, 1)
    assert [op.role.is_copy for number, op in enumerate(made.graph.ops) if number in moves] == [
        True,
        True,
    ]
    assert (made.order(y), made.order(t)) == ((0, 1, 2, 3), FIRST)
    assert (made.moved(x, t), made.moved(t, y), made.moved(x, y)) == (FIRST, LAST, None)


def test_constants_and_concats_follow():
    graph, moves, _, t = drawn()
    scale = np.arange(1.0, 5.0).reshape(4, 1, 1)
    (a,) = graph.add("step", g.AffineStep(scale, scale + 1), (t,), [graph.shapes[t]])
    both = (2, 8, 5, 6)
    graph.add("cat", g.View(lambda labels: labels, concat=1), (a, t), [both])
    made = unmoved(graph, {}, moves)
    step, cat = (op.role for op in made.graph.ops[1:])
    assert isinstance(step, g.AffineStep) and isinstance(cat, g.View)
    assert (step.scale.shape, cat.concat) == ((1, 1, 1, 4), 3)
    assert np.array_equal(step.shift.reshape(-1), [2, 3, 4, 5])
    assert made.graph.shapes[-1] == (2, 5, 6, 8)
