"""No removable step is left behind: what the solver removes is checked by brute force.

The laws are written down a second time, for each tensor and channel on its own, as three dense
systems: log|s| (linear), the sign of s (linear over {0, 1}) and t (linear). A set of removals is
possible if all three have a solution. What the solver removed must be possible, and no further
step may be. Of sums that the solver takes as a whole only the sum itself and its terms have laws;
how much the sum holds of each term is found by walking back through the ops.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import combinations

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bnfold.core import graph as g
from bnfold.core.plan import make_plan
from bnfold.core.shortcuts import Shortcut
from tests.core.interpreter import Network
from tests.property.strategies import Sketch


class Equations:
    """All laws of a network under a set of removals, as rows over (tensor, channel)."""

    def __init__(
        self, network: Network, removed: Set[int], shortcuts: Sequence[Shortcut] = ()
    ) -> None:
        self.graph = network.graph
        self.makers = {tensor: op for op in self.graph.ops for tensor in op.outputs}
        inside = {
            number for one in shortcuts for number in (one.sums | set(one.steps)) - set(one.bound)
        }
        counts = [shape[1] for shape in self.graph.shapes]
        self.first = np.concatenate([[0], np.cumsum(counts)])
        self.magnitude: list[tuple[dict[int, float], float]] = []
        self.sign: list[tuple[dict[int, float], float]] = []
        self.shift: list[tuple[dict[int, float], float]] = []
        for tensor, _ in self.graph.inputs:
            self.plain(tensor)
        for tensor, _, _ in self.graph.outputs:
            self.plain(tensor)
        for number, op in enumerate(self.graph.ops):
            if number not in inside:
                self.law(op, number in removed)
        for one in shortcuts:
            self.shortcut(one)

    def channels(self, tensor: int) -> range:
        return range(self.first[tensor], self.first[tensor + 1])

    def law(self, op: g.Op, gone: bool) -> None:
        role = op.role
        if isinstance(role, g.Linear):
            if role.crosses_zeros:
                self.no_shift(op.inputs[0])
        elif isinstance(role, g.AffineStep):
            if gone:
                scale, shift = role.scale.reshape(-1), role.shift.reshape(-1)
                x, y = self.channels(op.inputs[0]), self.channels(op.outputs[0])
                for i, o, a, b in zip(x, y, scale, shift, strict=True):
                    self.same_scale(i, o, a)
                    self.shift.append(({o: 1.0, i: -a}, -b))
        elif isinstance(role, g.Clip | g.Homogeneous | g.Max):
            for i, o in zip(*map(self.channels, (*op.inputs, *op.outputs)), strict=True):
                self.same(i, o)
            if isinstance(role, g.Max | g.Homogeneous) or not role.room:
                self.positive(op.inputs[0])
            if isinstance(role, g.Homogeneous) or (isinstance(role, g.Clip) and not role.room):
                self.no_shift(op.inputs[0])
            if isinstance(role, g.Clip) and not role.room and np.isfinite(role.upper):
                self.plain(op.inputs[0])
        elif isinstance(role, g.Sum):
            for channel, o in enumerate(self.channels(op.outputs[0])):
                row = {o: -1.0}
                for tensor, factor in zip(op.inputs, role.coefficients, strict=True):
                    i = self.channels(tensor)[channel]
                    self.same_scale(i, o, 1.0)
                    row[i] = row.get(i, 0.0) + factor
                self.shift.append((row, 0.0))
        else:
            assert isinstance(role, g.View)
            ids = [
                np.broadcast_to(
                    np.array(self.channels(tensor)).reshape(1, -1, 1, 1), self.graph.shapes[tensor]
                )
                for tensor in op.inputs
            ]
            for tensor, moved in zip(op.outputs, role.apply(ids), strict=True):
                for i, o in zip(moved[0, :, 0, 0].tolist(), self.channels(tensor), strict=True):
                    self.same(i, o)

    def shortcut(self, shortcut: Shortcut) -> None:
        """C * s_x = A * s_z, unless a tap makes up for it; t_z = sum of A * t_x, less B."""
        output = self.graph.ops[shortcut.root].outputs[0]
        terms = {term.tensor for term in shortcut.terms}
        free = {term.tensor for term in shortcut.terms if term.tap is not None}
        for channel, z in enumerate(self.channels(output)):
            true, constant = self.holds(output, channel, terms, stored=False)
            stored, _ = self.holds(output, channel, terms, stored=True)
            for tensor in terms - free:
                if true[tensor] or stored[tensor]:
                    x = self.channels(tensor)[channel]
                    self.same_scale(x, z, true[tensor] / stored[tensor])
            row = {self.channels(tensor)[channel]: factor for tensor, factor in true.items()}
            self.shift.append(({**row, z: -1.0}, constant))

    def holds(
        self, tensor: int, channel: int, terms: Set[int], *, stored: bool
    ) -> tuple[Counter[int], float]:
        """How much a tensor holds of each term, and a constant, with or without its steps."""
        if tensor in terms:
            return Counter({tensor: 1.0}), 0.0
        op = self.makers[tensor]
        factors, shift = [1.0] * len(op.inputs), 0.0
        if isinstance(op.role, g.Sum):
            factors = list(op.role.coefficients)
        elif isinstance(op.role, g.AffineStep) and not stored:
            factors = [float(op.role.scale.reshape(-1)[channel])]
            shift = float(op.role.shift.reshape(-1)[channel])
        found: Counter[int] = Counter()
        for source, factor in zip(op.inputs, factors, strict=True):
            parts, constant = self.holds(source, channel, terms, stored=stored)
            found.update({name: factor * amount for name, amount in parts.items()})
            shift += factor * constant
        return found, shift

    def same_scale(self, left: int, right: int, factor: float) -> None:
        """s_left = factor * s_right"""
        if left == right:
            assert factor == 1.0
            return
        self.magnitude.append(({left: 1.0, right: -1.0}, float(np.log(abs(factor)))))
        self.sign.append(({left: 1.0, right: 1.0}, float(factor < 0)))

    def same(self, left: int, right: int) -> None:
        self.same_scale(left, right, 1.0)
        self.shift.append(({left: 1.0, right: -1.0}, 0.0))

    def positive(self, tensor: int) -> None:
        self.sign += [({channel: 1.0}, 0.0) for channel in self.channels(tensor)]

    def no_shift(self, tensor: int) -> None:
        self.shift += [({channel: 1.0}, 0.0) for channel in self.channels(tensor)]

    def plain(self, tensor: int) -> None:
        self.positive(tensor)
        self.no_shift(tensor)
        self.magnitude += [({channel: 1.0}, 0.0) for channel in self.channels(tensor)]

    def solvable(self) -> bool:
        return (
            self.solvable_over_reals(self.magnitude)
            and self.solvable_over_reals(self.shift)
            and self.solvable_over_bits(self.sign)
        )

    def dense(self, rows: list[tuple[dict[int, float], float]]) -> tuple[np.ndarray, np.ndarray]:
        matrix = np.zeros((len(rows), self.first[-1]))
        for number, (row, _) in enumerate(rows):
            for column, value in row.items():
                matrix[number, column] += value
        return matrix, np.array([right for _, right in rows])

    def solvable_over_reals(self, rows: list[tuple[dict[int, float], float]]) -> bool:
        matrix, right = self.dense(rows)
        solution, *_ = np.linalg.lstsq(matrix, right, rcond=None)
        allowed = 1e-8 + 1e-14 * np.abs(solution).max()  # a gamma of 1e-7 makes large unknowns
        return bool(np.abs(matrix @ solution - right).max() < allowed)

    def solvable_over_bits(self, rows: list[tuple[dict[int, float], float]]) -> bool:
        matrix, right = self.dense(rows)
        work = np.concatenate([matrix, right[:, None]], axis=1).astype(np.int64) % 2
        done = 0
        for column in range(work.shape[1] - 1):
            pivots = np.flatnonzero(work[done:, column])
            if not len(pivots):
                continue
            pivot = done + pivots[0]
            work[[done, pivot]] = work[[pivot, done]]
            others = np.flatnonzero(work[:, column])
            work[others[others != done]] ^= work[done]
            done += 1
        return not work[done:, -1].any()


class Small(Sketch):
    """One or two channels, and constants so few that they often fit each other by chance."""

    def norm(self, count):
        gammas = [self.pick(1.0, 1.0, -1.0, 2.0, 0.5) for _ in range(count)]
        return gammas, np.array([self.pick(0.0, 0.0, 0.5, -1.0) for _ in range(count)])

    def batch_norm(self):
        x = self.tensor()
        self.push(self.network.affine(x, *self.norm(self.channels(x))))

    def conv(self):
        x = self.tensor()
        taps, padding = self.pick((1, 0), (3, 1))
        kernel = self.random(self.pick(1, 2), self.channels(x), taps, taps)
        self.push(self.network.conv(x, kernel, padding=padding))

    def clip(self):
        self.push(self.network.clip(self.tensor(), 0.0, self.pick(np.inf, 6.0), room=self.flag()))

    def sum(self):
        x = self.tensor()
        fitting = [t for t in self.pool if self.channels(t) == self.channels(x)]
        others = [self.draw(st.sampled_from(fitting)) for _ in range(self.pick(1, 1, 2))]
        factors = [self.pick(1.0, 1.0, -1.0, 2.0) for _ in range(1 + len(others))]
        self.push(self.network.sum(x, *others, coefficients=factors))

    def addable(self, count):
        return (count,)

    def branch(self, x):
        for _ in range(self.pick(1, 1, 2)):
            if self.flag():
                count = self.channels(x)
                x = self.network.conv(x, self.random(count, count, 1, 1))
            else:
                x = self.network.affine(x, *self.norm(self.channels(x)))
        return x

    def concat(self):
        x, y = self.tensor(), self.tensor()
        if self.channels(x) + self.channels(y) <= 2:
            self.push(self.network.concat(x, y))


SMALL_KINDS = (
    Small.batch_norm,
    Small.batch_norm,
    Small.batch_norm,
    Small.conv,
    Small.conv,
    Small.sum,
    Small.sum,
    Small.shortcut,
    Small.clip,
    Small.leaky,
    Small.max_pool,
    Small.concat,
    Small.split,
)


@st.composite
def small_networks(draw):
    sketch = Small(draw, zero_gamma=False)
    sketch.pool = [sketch.network.conv(sketch.pool[0], np.ones((2, sketch.channels(0), 1, 1)))]
    for kind in draw(st.lists(st.sampled_from(SMALL_KINDS), min_size=3, max_size=12)):
        kind(sketch)
    sketch.network.output(sketch.pool[-1])
    if sketch.flag():
        sketch.network.output(sketch.tensor())
    return sketch.network


def affine_steps(network: Network) -> list[int]:
    return [n for n, op in enumerate(network.graph.ops) if isinstance(op.role, g.AffineStep)]


STEADY = settings(
    derandomize=True,
    max_examples=200,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@STEADY
@given(small_networks())
def test_what_was_removed_is_possible_and_nothing_more_is(network):
    plan = make_plan(network.graph, clip="always")
    removed = set(plan.removed)
    whole = [bound.shortcut for bound in plan.solution.shortcuts]
    assert Equations(network, removed, whole).solvable()
    for number in plan.kept:
        more = Equations(network, removed | {number}, whole)
        assert not more.solvable(), network.graph.ops[number].name


def test_the_brute_force_finds_the_largest_set_of_a_chain():
    """input -> bn -> bn -> bn -> output: any two may go, not all three. It can say both."""
    network = Network()
    x = network.input(1, 2, 1, 1)
    for _ in range(3):
        x = network.affine(x, [2.0, -0.5], [0.3, 1.0])
    network.output(x)
    steps = affine_steps(network)
    assert all(Equations(network, set(pair)).solvable() for pair in combinations(steps, 2))
    assert not Equations(network, set(steps)).solvable()
