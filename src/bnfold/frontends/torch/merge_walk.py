"""What becomes of the tensors of a merge, once a certain one of its modules carries it.

    a * carrier(x) + b * x, or nothing

is what each of them is then. Where that does not give what was merged, or where a write in place
would reach memory that it did not reach before, the module cannot carry it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from bnfold.core import graph as g
from bnfold.core.kernel import Kernel, added
from bnfold.core.limits import keeps_digits
from bnfold.core.merged import Merge
from bnfold.core.window import Window, joint
from bnfold.frontends.torch.leaf_modules import CONVOLUTIONS
from bnfold.frontends.torch.lifter import AffineSite
from bnfold.frontends.torch.merge_run import Run
from bnfold.frontends.torch.new_tensors import is_finite, tensor_like
from bnfold.frontends.torch.recording import Call, lie_alike
from bnfold.frontends.torch.run_values import dtype_name


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A merge, as modules take part in it."""

    merge: Merge
    carrier: nn.Module
    seat: tuple[nn.Module, tuple[nn.Module, ...]]
    """The module in whose place the carrier stands, itself or a step, and what else that ran."""
    stands_at: int
    """The op that this module is."""
    call: int
    """Number of the event that is the carrier's call from now on."""
    kernel: Kernel
    """What the carrier computes."""
    away: dict[int, tuple[nn.Module, tuple[nn.Module, ...]]]
    """By id(), modules that return nothing, and what else they ran behind."""
    identities: dict[int, tuple[nn.Module, tuple[nn.Module, ...]]]
    """By id(), modules that pass on what they are given, and what else they ran behind."""
    events: frozenset[int]
    """Numbers of the events that are not there any more."""
    part: frozenset[int]
    """Numbers of all events that take part: on their own they compute something else now."""

    @property
    def modules(self) -> Iterator[nn.Module]:
        """All that are replaced."""
        yield self.seat[0]
        yield from (module for module, _ in (*self.away.values(), *self.identities.values()))

    def is_like(self, other: Change) -> bool:
        """Whether it makes the same of the modules."""
        if (self.carrier, self.seat) != (other.carrier, other.seat):
            return False
        kernel, other_kernel = self.kernel, other.kernel
        return (
            (self.away.keys(), self.identities.keys())
            == (other.away.keys(), other.identities.keys())
            and (kernel.window, kernel.groups) == (other_kernel.window, other_kernel.groups)
            and np.array_equal(kernel.weight, other_kernel.weight)
            and np.array_equal(kernel.bias, other_kernel.bias)
        )


@dataclass(slots=True)
class State:
    """What a tensor is once a merge is carried out: a * carrier(x) + b * x + what is not merged."""

    a: float = 0.0
    b: float = 0.0
    is_nothing: bool = False
    is_foreign: bool = False
    """Whether it may be in memory that is not its own."""


class UnservedError(Exception):
    """A module's Python does not do what the merge takes."""


class Walk:
    """What becomes of the tensors of a merge with a certain carrier in a certain place."""

    def __init__(self, run: Run, merge: Merge, carrier: int, seat: int) -> None:
        self.run = run
        self.graph = run.graph
        self.merge = merge
        self.carrier = carrier
        self.seat = seat
        """The op in whose place the carrier stands: itself, or an affine step."""
        self.ops = {*merge.gone, merge.carrier}
        self.away: list[int] = []
        self.identities: list[int] = []
        self.vanished: set[int] = set()
        """Sums and numbers that nothing is left of."""
        self.passes = 0
        """How many sums are left."""
        self.known: dict[int, State] = {}
        if not can_carry(run.module(carrier), merge.window):
            raise UnservedError
        self.path = self._path()
        root, self.factor = self._root()
        self.final = self._state(root)
        if self.final.a == 0.0 or self.final.is_nothing or not self._lies_as(root):
            raise UnservedError

    def _lies_as(self, root: int) -> bool:
        """Whether what the carrier makes lies in memory as the sum did: a view may count on it."""
        known = self.run.all_runs.values
        (made,) = self.graph.ops[self.carrier].outputs
        return lie_alike(known[made], known[root])

    def _path(self) -> set[int]:
        """The ops before and behind the carrier."""
        path = {self.seat}
        pending = list(self.graph.ops[self.seat].inputs)
        while pending:
            maker = self.run.makers.get(pending.pop())
            if maker in self.ops:
                path.add(maker)
                pending += self.graph.ops[maker].inputs
        if len(path) > 1:  # what is not copied any more is read where it lies
            source = self.run.all_runs.values.get(self.merge.source)
            if source is None or self.run.is_written_later(source):
                raise UnservedError
        tensor = self.graph.ops[self.seat].outputs[0]
        while tensor != self.merge.output and len(readers := self.run.readers.get(tensor, [])) == 1:
            if readers[0] not in self.ops:
                break
            path.add(readers[0])
            tensor = self.graph.ops[readers[0]].outputs[0]
        return path

    def _root(self) -> tuple[int, float]:
        """The tensor that has all of the merge, and what of it the merged op makes."""
        if self.merge.enters is None:
            return self.merge.output, 1.0
        factor, (number, position) = 1.0, self.merge.enters
        while True:
            role = self.graph.ops[number].role
            assert isinstance(role, g.Sum)
            kept = self.merge.sums.get(number, range(len(role.coefficients)))
            factor *= role.coefficients[position] if len(kept) > 1 else 1.0
            (output,) = self.graph.ops[number].outputs
            readers = self.run.readers.get(output, [])
            if len(readers) != 1 or not self._is_inner(output, readers[0]):
                return output, factor
            number, position = readers[0], self.graph.ops[readers[0]].inputs.index(output)

    def _is_inner(self, tensor: int, reader: int) -> bool:
        """Whether a sum is part of another one."""
        op = self.graph.ops[reader]
        if not isinstance(op.role, g.Sum) or any(t == tensor for t, _, _ in self.graph.outputs):
            return False
        shape = self.graph.shapes[tensor]
        return all(self.graph.shapes[t] == shape for t in (*op.inputs, *op.outputs))

    # ---------------------------------------------------------------- what tensors become

    def _state(self, tensor: int) -> State:
        if tensor not in self.known:
            self.known[tensor] = self._made(tensor)
        return self.known[tensor]

    def _made(self, tensor: int) -> State:
        if tensor == self.merge.source:
            return State(b=1.0, is_foreign=True)
        number = self.run.makers.get(tensor)
        op = None if number is None else self.graph.ops[number]
        if number is None or op is None:
            return State(is_foreign=True)
        if isinstance(op.role, g.Sum) and (number in self.ops or self.merge.enters is not None):
            return self._sum(number, op, op.role)
        if number not in self.ops:
            return State(is_foreign=True)
        inner = self._state(op.inputs[0])
        if number == self.seat:
            if (inner.a, inner.b, inner.is_nothing) != (0.0, 1.0, False):
                raise UnservedError
            return State(a=1.0)
        if self.run.module(number) is None:
            return self._number(number, inner)
        if number in self.path or inner.is_nothing:
            self.identities.append(number)
            return inner
        self.away.append(number)
        return State(is_nothing=True)

    def _number(self, number: int, inner: State) -> State:
        """Plus 0, or times a number or a parameter, which leaves nothing of nothing."""
        if inner.is_nothing:
            self.vanished.add(number)
            return inner
        factor = _one_factor(self.graph.ops[number].role)
        if factor is None:
            raise UnservedError
        self.passes += 1
        in_place = self.run.all_runs.events[number].written is not None
        is_foreign = inner.is_foreign and in_place
        return State(factor * inner.a, factor * inner.b, is_foreign=is_foreign)

    def _sum(self, number: int, op: g.Op, role: g.Sum) -> State:
        states = [self._operand(number, place) for place in range(len(op.inputs))]
        left = [
            pair for pair in zip(states, role.coefficients, strict=True) if not pair[0].is_nothing
        ]
        event = self.run.all_runs.events[number]
        if len(left) < len(states):
            self.vanished.add(number)
        if not left:
            return State(is_nothing=True)
        # A write in place must not reach memory that it did not reach before.
        if event.written is not None and any(
            state.is_foreign and tensor != self.merge.source and self._was_fresh(tensor)
            for state, tensor in zip(states, op.inputs, strict=True)
        ):
            raise UnservedError
        if len(left) == 1 and left[0][1] != 1.0:
            raise UnservedError  # what is left would have to be negated
        self.passes += len(left) > 1
        a, b = (sum(c * getattr(state, name) for state, c in left) for name in ("a", "b"))
        return State(a, b, is_foreign=len(left) == 1 and left[0][0].is_foreign)

    def _was_fresh(self, tensor: int) -> bool:
        """Whether the tensor is made in the merge."""
        number = self.run.makers.get(tensor)
        return number in self.ops or number in self.vanished

    def _operand(self, number: int, place: int) -> State:
        """An operand of a sum; the source is merged where the merge says so."""
        tensor = self.graph.ops[number].inputs[place]
        if tensor == self.merge.source:
            kept = self.merge.sums.get(number, range(len(self.graph.ops[number].inputs)))
            is_enters = self.merge.enters in (None, (number, place))
            is_merged = is_enters or number in self.ops or place not in kept
            return self._state(tensor) if is_merged else State(is_foreign=True)
        maker = self.run.makers.get(tensor)
        is_inner = maker is not None and isinstance(self.graph.ops[maker].role, g.Sum)
        if is_inner and maker not in self.ops and not self._is_inner(tensor, number):
            return State(is_foreign=True)
        if is_inner and len(self.run.readers.get(tensor, ())) != 1:
            return State(is_foreign=True)
        return self._state(tensor)

    # ---------------------------------------------------------------- what modules become

    def change(self) -> Change | None:
        """What to do; None if the numbers do not fit."""
        kernel = self.merge.kernel()
        parts, factors = [kernel], [self.factor / self.final.a]
        if self.final.b:
            channels = len(kernel.bias)
            identity = Kernel.affine(
                np.ones(channels), np.zeros(channels), len(kernel.window.kernel)
            )
            if joint([kernel.window, identity.window]) is None:
                return None
            gains = abs(self.factor) * kernel.gains
            if not keeps_digits(gains, self.final.b, self.run.parts[self.carrier].dtype):
                return None
            parts.append(identity)
            factors.append(-self.final.b / self.final.a)
        kernel = added(parts, factors)
        merge = replace(self.merge, carrier=self.carrier, gone=frozenset(self.ops - {self.carrier}))
        module, (_, seat) = self.run.module(self.carrier), self._replaced(self.seat)
        assert module is not None
        if kernel.window.before != kernel.window.after or not fits(module, kernel):
            return None
        all_runs = self.run.all_runs
        first = all_runs.events[self.seat].number
        events = {*all_runs.own_events(self.seat)} - {first}
        events |= {e for n in (*self.away, *self.identities) for e in all_runs.own_events(n)}
        events |= {all_runs.events[number].number for number in self.vanished}
        away = dict(self._replaced(number) for number in self.away)
        identities = dict(self._replaced(number) for number in self.identities)
        for number in self.away if self.run.all_runs.wide else ():
            whole = self._whole_branch(number, events)
            if whole is not None:
                inside = {id(part) for part in whole.modules()}
                away = {key: entry for key, entry in away.items() if key not in inside}
                identities = {key: entry for key, entry in identities.items() if key not in inside}
                away[id(whole)] = (whole, ())
        gone = frozenset(events)
        part = gone | {all_runs.events[n].number for n in self.ops if n in all_runs.events}
        return Change(
            merge, module, seat, self.seat, first, kernel, away, identities, events=gone, part=part
        )

    def _whole_branch(self, number: int, gone: set[int]) -> nn.Module | None:
        """The largest module around one that returns nothing, of which nothing else is left."""
        inner, whole = self.run.module(number), None
        around = self.run.calls[id(inner)][0].parent
        while (call := around) is not None and call.parent is not None:
            if not call.single or not set(_events(call)) <= gone:
                break
            tensor = self.run.all_runs.lifted.tensors.get(call.outputs[0].number)
            state = None if tensor is None else self.known.get(tensor)
            if state is None or not state.is_nothing or not self.run.can_be_replaced(call.module):
                break
            whole, around = call.module, call.parent
        return whole

    def _replaced(self, number: int) -> tuple[int, tuple[nn.Module, tuple[nn.Module, ...]]]:
        module, site = self.run.module(number), self.run.all_runs.lifted.sites.get(number)
        assert module is not None
        rest = site.successors if isinstance(site, AffineSite) else ()
        return id(module), (module, rest)


def _one_factor(role: g.Role) -> float | None:
    """The number that an op multiplies all channels by; None if it does something else."""
    if not isinstance(role, g.AffineStep) or not role.is_known or role.shift.any():
        return None
    factor = float(role.scale.flat[0])
    is_one = bool((role.scale == factor).all()) and factor != 0.0 and math.isfinite(factor)
    return factor if is_one else None


def _events(call: Call) -> Iterator[int]:
    for item in call.items:
        if isinstance(item, Call):
            yield from _events(item)
        else:
            yield item.number


def can_carry(module: nn.Module | None, window: Window | None) -> bool:
    """Whether a module of this kind can compute with such a window.

    None is transposed here: the module would lay its weight out another way.
    """
    if window is None:
        return isinstance(module, nn.Linear)
    if window.is_transposed:
        return False
    rank = len(window.kernel)
    return isinstance(module, CONVOLUTIONS) and len(module.kernel_size) == rank


def fits(module: Any, kernel: Kernel) -> bool:
    """Whether the numbers are finite in the module's dtype, and keep their digits."""
    if not kernel.keeps_digits_in(dtype_name(module.weight)):
        return False
    return all(is_finite(tensor_like(part, module.weight)) for part in (kernel.weight, kernel.bias))
