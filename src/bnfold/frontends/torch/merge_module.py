"""Which linear modules to merge before a fold, so that the class and its forward stay.

One convolution, the carrier, gets the merged kernel; a branch that is merged away begins with a
module that returns nothing (see `nothing`), and what else was merged becomes an identity. Sums stay
Python. What they make then is

    output = a * carrier(x) + b * x

with the b of operands `+ x` that no module makes and that stay. So with W the merged op, all
identities included, the carrier computes (W - b * I) / a, whatever stood behind the sums.

Where a network was read in several runs, a merge has to be the same one in each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part, varying_axes
from bnfold.core.kernel import Kernel, added, behind
from bnfold.core.merge import Merge, find_merges
from bnfold.core.window import Window
from bnfold.frontends.torch.apply import is_finite, tensor_like
from bnfold.frontends.torch.leaves import CONVOLUTIONS, is_hooked, overrides_call
from bnfold.frontends.torch.lifter import AffineSite, Lifted, LinearSite, to_numpy
from bnfold.frontends.torch.ops import Arguments, functional, op_name
from bnfold.frontends.torch.recording import Call, Event, Recording, Value, values

_SUMS = {"add", "sub", "subtract", "rsub"}
_MOST_ROUNDS = 8
"""How often merges are looked for again without the ops that stood in the way of one."""


@dataclass(frozen=True, slots=True, eq=False)
class Change:
    """A merge, as modules take part in it."""

    merge: Merge
    carrier: nn.Module
    kernel: Kernel
    """What the carrier computes."""
    away: dict[int, tuple[nn.Module, tuple[nn.Module, ...]]]
    """By id(), modules that return nothing, and what else they ran behind."""
    identities: dict[int, tuple[nn.Module, tuple[nn.Module, ...]]]
    """By id(), modules that pass on what they are given, and what else they ran behind."""
    events: frozenset[int]
    """Numbers of the events that are not there any more."""

    @property
    def modules(self) -> Iterator[nn.Module]:
        """All that are replaced."""
        yield self.carrier
        yield from (module for module, _ in (*self.away.values(), *self.identities.values()))

    def is_like(self, other: Change) -> bool:
        """Whether it makes the same of the modules."""
        if self.carrier is not other.carrier or self.away.keys() != other.away.keys():
            return False
        one, two = self.kernel, other.kernel
        return (
            self.identities.keys() == other.identities.keys()
            and (one.window, one.groups) == (two.window, two.groups)
            and np.array_equal(one.weight, two.weight)
            and np.array_equal(one.bias, two.bias)
        )


def changes(
    model: nn.Module,
    recording: Recording,
    lifted: Lifted,
    fixed: frozenset[int],
    *,
    wide: bool = True,
) -> list[Change]:
    """What to merge.

    Args:
        model: The module.
        recording: Its runs.
        lifted: The same as a graph.
        fixed: The ids of modules that have to stay as they are.
        wide: Whether what nothing is left of goes with all the modules that are around it.
    """
    network = _Network(model, recording, lifted, fixed, wide=wide)
    runs = [_Run(network, place) for place in range(len(recording.roots))]
    found = [run.changes() for run in runs]
    common: dict[int, Change] = {}
    for change in (change for changes in found for change in changes):
        ids = {id(module) for module in change.modules}
        if ids & {key for known in common.values() for key in map(id, known.modules)}:
            continue
        alike = [[other for other in changes if change.is_like(other)] for changes in found]
        if all(one or not ids & run.called for run, one in zip(runs, alike, strict=True)):
            events = frozenset().union(*(other.events for one in alike for other in one))
            common[id(change.carrier)] = replace(change, events=events)
    return list(common.values())


class _Network:
    """What was read, by what a merge asks of it."""

    def __init__(
        self,
        model: nn.Module,
        recording: Recording,
        lifted: Lifted,
        fixed: frozenset[int],
        *,
        wide: bool,
    ) -> None:
        self.wide = wide
        self.recording = recording
        self.lifted = lifted
        self.fixed = fixed
        self.values: dict[int, Value] = {}
        """Per graph tensor."""
        self.events: dict[int, Event] = {}
        """Per op number, the event that makes its output."""
        makers = {v.number: event for event in recording.events for v in event.outputs if v}
        made: dict[int, Event] = {}
        for value, event in makers.items():
            if (tensor := lifted.tensors.get(value)) is not None:
                made.setdefault(tensor, event)
        for event in recording.events:
            for one in (*values(event.args, event.kwargs), *(v for v in event.outputs if v)):
                if (tensor := lifted.tensors.get(one.number)) is not None:
                    self.values.setdefault(tensor, one)
        for number, op in enumerate(lifted.graph.ops):
            if len(op.outputs) == 1 and op.outputs[0] in made:
                self.events[number] = made[op.outputs[0]]
        self.holders = Counter(
            id(tensor)
            for module in model.modules()
            for tensor in (*module.__dict__["_parameters"].values(),)
            if tensor is not None
        )

    def place(self, event: Event) -> int:
        """In which run it happened."""
        call = event.call
        while call.parent is not None:
            call = call.parent
        return next(n for n, root in enumerate(self.recording.roots) if root is call)

    def module(self, number: int) -> nn.Module | None:
        """The module that is the op, if it can be replaced."""
        site, event = self.lifted.sites.get(number), self.events.get(number)
        module = event.target if isinstance(site, LinearSite) and event else None
        if isinstance(site, AffineSite):
            module = site.module
        return module if isinstance(module, nn.Module) and self.is_free(module) else None

    def is_free(self, module: nn.Module) -> bool:
        """Whether something else can stand in its place."""
        lost = any(module is one for one in self.recording.lost)
        ours = id(module) in self.recording.members and id(module) not in self.fixed
        return ours and not lost and not is_hooked(module) and not overrides_call(type(module))

    def own_events(self, number: int) -> Iterator[int]:
        """The events that are gone with an op."""
        event = self.events[number]
        yield event.number
        site = self.lifted.sites.get(number)
        if isinstance(site, AffineSite) and site.module is event.call.module:
            yield from (item.number for item in event.call.items if isinstance(item, Event))


@dataclass(slots=True)
class _State:
    """What a tensor is once a merge is carried out: a * carrier(x) + b * x + what is not merged."""

    a: float = 0.0
    b: float = 0.0
    is_nothing: bool = False
    is_foreign: bool = False
    """Whether it may be in memory that is not its own."""


class _Unserved(Exception):  # noqa: N818  # not an error: the next carrier is tried
    """A module's Python does not do what the merge takes."""


class _Run:
    """One run of the network."""

    def __init__(self, network: _Network, place: int) -> None:
        self.network = network
        recording, graph = network.recording, network.lifted.graph
        self.calls = {
            key: [call for call in calls if _root(call) is recording.roots[place]]
            for key, calls in recording.calls.items()
        }
        self.called = {key for key, calls in self.calls.items() if calls}
        here = {n for n, event in network.events.items() if network.place(event) == place}
        self.graph = g.Graph(graph.shapes, [], graph.inputs, graph.outputs)
        for number, op in enumerate(graph.ops):
            role = self._role(number, op.role)
            self.graph.ops.append(replace(op, role=role) if number in here else _blank(op, here))
        self.makers = {op.outputs[0]: n for n, op in enumerate(graph.ops) if n in here}
        self.readers: dict[int, list[int]] = {}
        for number, op in enumerate(self.graph.ops):
            for tensor in op.inputs:
                self.readers.setdefault(tensor, []).append(number)
        self.parts = {n: part for n in here if (part := self._part(n)) is not None}
        self.movable = {n for n in here if n in self.parts or self._is_movable_step(n)}
        self.written = {e.written.storage for e in recording.events if e.written is not None}

    def _role(self, number: int, role: g.Role) -> g.Role:
        """Without what ties the run to others; a sum that does not stay one is unknown."""
        if isinstance(role, g.Linear | g.AffineStep):
            return replace(role, tie=None)
        if isinstance(role, g.Sum) and not self._is_plain_sum(number):
            return g.Opaque()
        return role

    def _is_plain_sum(self, number: int) -> bool:
        """Whether Python adds up two tensors of one dtype."""
        event = self.network.events.get(number)
        if event is None or functional(op_name(event.target)) not in _SUMS:
            return False
        arguments, output = Arguments(event), event.outputs[0]
        operands = [arguments["self"], arguments["other"]]
        if output is None or not all(isinstance(operand, Value) for operand in operands):
            return False
        return all(operand.dtype == output.dtype for operand in operands)

    def _part(self, number: int) -> Part | None:
        role, site = (
            self.network.lifted.graph.ops[number].role,
            self.network.lifted.sites.get(number),
        )
        if not isinstance(role, g.Linear) or not isinstance(site, LinearSite):
            return None
        module, event = self.network.module(number), self.network.events[number]
        if module is None or role.weight is not g.Weight.FREE or not self._is_once(module):
            return None
        part = part_of(module, role)
        if part is None or not self._is_alone(module):
            return None
        dtypes = {event.args[0].dtype, *(v.dtype for v in event.outputs if v), site.weight.dtype}
        return part if len(dtypes) == 1 else None

    def _is_once(self, module: nn.Module) -> bool:
        return len(self.calls.get(id(module), ())) == 1

    def can_be_replaced(self, module: nn.Module | None) -> bool:
        """Whether its one call is all that it is for."""
        return module is not None and self._is_once(module) and self.network.is_free(module)

    def _is_alone(self, module: nn.Module) -> bool:
        """Whether nobody else holds or reads what the module holds."""
        recording = self.network.recording
        for tensor in module._parameters.values():
            if tensor is None:
                continue
            uses = recording.parameter_uses.get(id(tensor), ())
            if self.network.holders[id(tensor)] > 1 or id(tensor) in recording.changed:
                return False
            if any(use.event is None or use.event.target is not module for use in uses):
                return False
        return True

    def _is_movable_step(self, number: int) -> bool:
        role, site = (
            self.network.lifted.graph.ops[number].role,
            self.network.lifted.sites.get(number),
        )
        if not isinstance(role, g.AffineStep) or not isinstance(site, AffineSite):
            return False
        if site.source is None or site.output is None or site.source.dtype != site.output.dtype:
            return False
        if site.module is None:  # what Python does with a number
            event = self.network.events[number]
            plain = functional(op_name(event.target)) in _SUMS
            return plain and not role.shift.any() and bool((role.scale == 1.0).all())
        module = self.network.module(number)
        return module is not None and role.is_wanted and self._is_once(module)

    # ---------------------------------------------------------------- merges

    def changes(self) -> list[Change]:
        """The merges that modules can be given."""
        banned: set[int] = set()
        found: list[Change] = []
        for _ in range(_MOST_ROUNDS):
            free = frozenset(self.movable - banned)
            freedom = Freedom(can_go=free.__contains__, carries_affine=lambda number: False)
            merges = find_merges(self.graph, self.parts, freedom)
            found, obstacles = [], set()
            for merge in merges:
                served = self._served(merge)
                if served is not None:
                    found.append(served)
                else:
                    obstacles |= self._obstacles(merge)
            if not obstacles - banned:
                break
            banned |= obstacles
        return [change for change in found if change.away or change.identities]

    def _obstacles(self, merge: Merge) -> set[int]:
        """What to leave out of the next round: what Python does, or else the last linear op."""
        ops = {*merge.gone, merge.carrier}
        functions = {n for n in ops & self.movable if self._module(n) is None}
        return functions or {max(n for n in ops if n in self.parts)}

    def _module(self, number: int) -> nn.Module | None:
        return self.network.module(number)

    def _extended(self, merge: Merge) -> Merge:
        """With the steps behind a sum that keeps the source itself: the carrier can make up for it.

        Without, they would be folded into the carrier alone, and the source could not follow.
        """
        ops = {*merge.gone, merge.carrier}
        if merge.enters is not None or not any(
            isinstance(self.graph.ops[n].role, g.Sum) and merge.source in self.graph.ops[n].inputs
            for n in ops
        ):
            return merge
        while (number := self._step_behind(merge)) is not None:
            role = self.graph.ops[number].role
            assert isinstance(role, g.AffineStep)
            merge = replace(
                merge,
                output=self.graph.ops[number].outputs[0],
                gone=merge.gone | {number},
                kernel=partial(_with_step, merge.kernel, role),
            )
        return merge

    def _step_behind(self, merge: Merge) -> int | None:
        """The affine module that alone reads what a merge makes."""
        readers = self.readers.get(merge.output, [])
        if len(readers) != 1 or any(tensor == merge.output for tensor, _, _ in self.graph.outputs):
            return None
        role = self.graph.ops[readers[0]].role
        if not isinstance(role, g.AffineStep) or self.network.module(readers[0]) is None:
            return None
        shape = self.graph.shapes[merge.output]
        axis = self.parts[merge.carrier].axis
        fits = set(varying_axes(role, len(shape))) <= {axis} and readers[0] in self.movable
        return readers[0] if fits and role.is_known and _is_finite(role) else None

    def _served(self, merge: Merge) -> Change | None:
        """The merge with the carrier that costs least; None if none can carry it."""
        merge = self._extended(merge)
        options = []
        for number in sorted({*merge.gone, merge.carrier} & self.parts.keys()):
            try:
                walk = _Walk(self, merge, number)
                # Nothing plus a tensor is Python; a tensor plus nothing goes through PyTorch.
                options.append(((walk.passes, self._misfit(merge, number), -number), walk))
            except _Unserved:
                continue
        for _, walk in sorted(options, key=lambda option: option[0]):
            change = walk.change()
            if change is not None:
                return change
        return None

    def _misfit(self, merge: Merge, number: int) -> bool:
        part = self.parts[number]
        return (part.window, part.groups) != (merge.window, merge.groups)


class _Walk:
    """What becomes of the tensors of a merge with a certain carrier."""

    def __init__(self, run: _Run, merge: Merge, carrier: int) -> None:
        self.run = run
        self.graph = run.graph
        self.merge = merge
        self.carrier = carrier
        self.ops = {*merge.gone, merge.carrier}
        self.away: list[int] = []
        self.identities: list[int] = []
        self.vanished: set[int] = set()
        """Sums and numbers that nothing is left of."""
        self.passes = 0
        """How many sums are left."""
        self.known: dict[int, _State] = {}
        if not can_carry(run._module(carrier), merge.window):
            raise _Unserved
        self.path = self._path()
        root, self.factor = self._root()
        self.final = self._state(root)
        if self.final.a == 0.0 or self.final.is_nothing:
            raise _Unserved

    def _path(self) -> set[int]:
        """The ops before and behind the carrier."""
        path = {self.carrier}
        waiting = list(self.graph.ops[self.carrier].inputs)
        while waiting:
            maker = self.run.makers.get(waiting.pop())
            if maker in self.ops:
                path.add(maker)
                waiting += self.graph.ops[maker].inputs
        if len(path) > 1:  # what is not copied any more is read where it lies
            source = self.run.network.values.get(self.merge.source)
            if source is None or source.storage in self.run.written:
                raise _Unserved
        at = self.graph.ops[self.carrier].outputs[0]
        while at != self.merge.output and len(readers := self.run.readers.get(at, ())) == 1:
            if readers[0] not in self.ops:
                break
            path.add(readers[0])
            at = self.graph.ops[readers[0]].outputs[0]
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
        return all(self.graph.shapes[one] == shape for one in (*op.inputs, *op.outputs))

    # ---------------------------------------------------------------- what tensors become

    def _state(self, tensor: int) -> _State:
        if tensor not in self.known:
            self.known[tensor] = self._made(tensor)
        return self.known[tensor]

    def _made(self, tensor: int) -> _State:
        if tensor == self.merge.source:
            return _State(b=1.0, is_foreign=True)
        number = self.run.makers.get(tensor)
        op = None if number is None else self.graph.ops[number]
        if number is None or op is None:
            return _State(is_foreign=True)
        if isinstance(op.role, g.Sum) and (number in self.ops or self.merge.enters is not None):
            return self._sum(number, op, op.role)
        if number not in self.ops:
            return _State(is_foreign=True)
        inner = self._state(op.inputs[0])
        if number == self.carrier:
            if (inner.a, inner.b, inner.is_nothing) != (0.0, 1.0, False):
                raise _Unserved
            return _State(a=1.0)
        if self.run._module(number) is None:
            return self._number(number, inner)
        if number in self.path or inner.is_nothing:
            self.identities.append(number)
            return inner
        self.away.append(number)
        return _State(is_nothing=True)

    def _number(self, number: int, inner: _State) -> _State:
        """Plus 0."""
        if inner.is_nothing:
            self.vanished.add(number)
            return inner
        self.passes += 1
        in_place = self.run.network.events[number].written is not None
        return replace(inner, is_foreign=inner.is_foreign and in_place)

    def _sum(self, number: int, op: g.Op, role: g.Sum) -> _State:
        states = [self._operand(number, place) for place in range(len(op.inputs))]
        left = [
            pair for pair in zip(states, role.coefficients, strict=True) if not pair[0].is_nothing
        ]
        event = self.run.network.events[number]
        if len(left) < len(states):
            self.vanished.add(number)
        if not left:
            return _State(is_nothing=True)
        # A write in place must not reach memory that it did not reach before.
        if event.written is not None and any(
            state.is_foreign and tensor != self.merge.source and self._was_fresh(tensor)
            for state, tensor in zip(states, op.inputs, strict=True)
        ):
            raise _Unserved
        if len(left) == 1 and left[0][1] != 1.0:
            raise _Unserved  # what is left would have to be negated
        self.passes += len(left) > 1
        a, b = (sum(c * getattr(state, name) for state, c in left) for name in ("a", "b"))
        return _State(a, b, is_foreign=len(left) == 1 and left[0][0].is_foreign)

    def _was_fresh(self, tensor: int) -> bool:
        """Whether the tensor is made in the merge."""
        number = self.run.makers.get(tensor)
        return number in self.ops or number in self.vanished

    def _operand(self, number: int, place: int) -> _State:
        """An operand of a sum; the source is merged where the merge says so."""
        tensor = self.graph.ops[number].inputs[place]
        if tensor == self.merge.source:
            kept = self.merge.sums.get(number, range(len(self.graph.ops[number].inputs)))
            is_enters = self.merge.enters in (None, (number, place))
            is_merged = is_enters or number in self.ops or place not in kept
            return self._state(tensor) if is_merged else _State(is_foreign=True)
        maker = self.run.makers.get(tensor)
        is_inner = maker is not None and isinstance(self.graph.ops[maker].role, g.Sum)
        if is_inner and maker not in self.ops and not self._is_inner(tensor, number):
            return _State(is_foreign=True)
        if is_inner and len(self.run.readers.get(tensor, ())) != 1:
            return _State(is_foreign=True)
        return self._state(tensor)

    # ---------------------------------------------------------------- what modules become

    def change(self) -> Change | None:
        """What to do; None if the numbers do not fit."""
        kernel = self.merge.kernel()
        parts, factors = [kernel], [self.factor / self.final.a]
        if self.final.b:
            channels = len(kernel.bias)
            one = Kernel.affine(np.ones(channels), np.zeros(channels), len(kernel.window.kernel))
            parts.append(one)
            factors.append(-self.final.b / self.final.a)
        kernel = added(parts, factors)
        gone = self.ops - {self.carrier}
        merge = replace(self.merge, carrier=self.carrier, gone=frozenset(gone))
        module = self.run._module(self.carrier)
        assert module is not None
        if kernel.window.before != kernel.window.after or not fits(module, kernel):
            return None
        network = self.run.network
        events = {e for n in (*self.away, *self.identities) for e in network.own_events(n)}
        events |= {network.events[number].number for number in self.vanished}
        away = dict(self._replaced(number) for number in self.away)
        identities = dict(self._replaced(number) for number in self.identities)
        for number in self.away if self.run.network.wide else ():
            whole = self._whole_branch(number, events)
            if whole is not None:
                inside = {id(part) for part in whole.modules()}
                away = {key: one for key, one in away.items() if key not in inside}
                identities = {key: one for key, one in identities.items() if key not in inside}
                away[id(whole)] = (whole, ())
        return Change(merge, module, kernel, away, identities, frozenset(events))

    def _whole_branch(self, number: int, gone: set[int]) -> nn.Module | None:
        """The largest module around one that returns nothing, of which nothing else is left."""
        inner = self.run._module(number)
        call, whole = self.run.calls[id(inner)][0], None
        while (call := call.parent) is not None and call.parent is not None:
            if not call.single or not set(_events(call)) <= gone:
                break
            tensor = self.run.network.lifted.tensors.get(call.outputs[0].number)
            state = None if tensor is None else self.known.get(tensor)
            if state is None or not state.is_nothing or not self.run.can_be_replaced(call.module):
                break
            whole = call.module
        return whole

    def _replaced(self, number: int) -> tuple[int, tuple[nn.Module, tuple[nn.Module, ...]]]:
        module, site = self.run._module(number), self.run.network.lifted.sites[number]
        assert module is not None
        rest = site.successors if isinstance(site, AffineSite) else ()
        return id(module), (module, rest)


def _is_finite(role: g.AffineStep) -> bool:
    return bool(np.isfinite(role.scale).all() and np.isfinite(role.shift).all())


def _with_step(kernel: Callable[[], Kernel], role: g.AffineStep) -> Kernel:
    """A kernel, and an affine step behind it."""
    inner = kernel()
    shape = np.broadcast_shapes(role.scale.reshape(-1).shape, inner.bias.shape)
    scale, shift = (np.broadcast_to(c.reshape(-1), shape) for c in (role.scale, role.shift))
    outer = Kernel.affine(scale, shift, len(inner.window.kernel))
    return behind(inner, outer, inner.window)


def _root(call: Call) -> Call:
    while call.parent is not None:
        call = call.parent
    return call


def _events(call: Call) -> Iterator[int]:
    for item in call.items:
        if isinstance(item, Call):
            yield from _events(item)
        else:
            yield item.number


def _blank(op: g.Op, here: set[int]) -> g.Op:
    """An op of another run, or one that no event of its own made: nothing is known of it."""
    return replace(op, role=g.Opaque())


# -------------------------------------------------------------------- modules


def part_of(module: nn.Module, role: g.Linear) -> Part | None:
    """A convolution or Linear as a linear op; None for others."""
    if not isinstance(module, (*CONVOLUTIONS, nn.Linear)):
        return None
    window = None
    if not isinstance(module, nn.Linear):
        window = window_of(module)
        if window is None:
            return None
    weight, bias = module.weight, module.bias
    return Part(
        window,
        role.groups,
        role.in_axis,
        role.in_channels,
        role.out_channels,
        lambda: to_numpy(weight),
        None if bias is None else lambda: to_numpy(bias),
        f"{weight.dtype} {weight.device}",
    )


def window_of(module: Any) -> Window | None:
    """Of a convolution; None where it pads with something else than zeros."""
    kernel, stride, dilation = module.kernel_size, module.stride, module.dilation
    padding = module.padding
    if padding == "valid":
        padding = (0,) * len(kernel)
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        before = tuple(one // 2 for one in total)
        after = tuple(one - half for one, half in zip(total, before, strict=True))
    else:
        before = after = tuple(padding)
    if module.padding_mode != "zeros" and any((*before, *after)):
        return None
    return Window(tuple(kernel), tuple(stride), tuple(dilation), before, after)


def can_carry(module: nn.Module | None, window: Window | None) -> bool:
    """Whether a module of this kind can compute with such a window."""
    if window is None:
        return isinstance(module, nn.Linear)
    rank = len(window.kernel)
    return isinstance(module, CONVOLUTIONS) and len(module.kernel_size) == rank


def fits(module: Any, kernel: Kernel) -> bool:
    """Whether the numbers are finite in the module's dtype."""
    return all(is_finite(tensor_like(part, module.weight)) for part in (kernel.weight, kernel.bias))
