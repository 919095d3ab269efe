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
from dataclasses import replace
from functools import partial

import numpy as np
from torch import nn

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part, varying_axes
from bnfold.core.kernel import Kernel, behind
from bnfold.core.merge import Merge, find_merges
from bnfold.frontends.merged import Merging
from bnfold.frontends.torch.leaves import is_hooked, overrides_call
from bnfold.frontends.torch.lifter import AffineSite, Lifted, LinearSite
from bnfold.frontends.torch.merge_walk import Change, UnservedError, Walk
from bnfold.frontends.torch.ops import Arguments, functional, op_name
from bnfold.frontends.torch.parts import parts_of
from bnfold.frontends.torch.recording import Call, Event, Recording, Value, values

_SUMS = {"add", "sub", "subtract", "rsub"}
_MOST_ROUNDS = 8
"""How often merges are looked for again without the ops that stood in the way of one."""


def changes(
    model: nn.Module,
    recording: Recording,
    lifted: Lifted,
    fixed: frozenset[int],
    *,
    wide: bool = True,
) -> tuple[list[Change], Merging]:
    """What to merge, and what is known of the merges of the first run, none of them carried out.

    Args:
        model: The module.
        recording: Its runs.
        lifted: The same as a graph.
        fixed: The ids of modules that have to stay as they are.
        wide: Whether what nothing is left of goes with all the modules that are around it.
    """
    network = Network(model, recording, lifted, fixed, wide=wide)
    runs = [Run(network, place) for place in range(len(recording.roots))]
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
    if not runs:
        return [], Merging()
    graph = lifted.graph if len(runs) == 1 else runs[0].graph
    freedom = Freedom(can_go=(runs[0].movable - runs[0].banned).__contains__)
    return list(common.values()), Merging(graph, runs[0].parts, freedom)


class Network:
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
        for event in recording.events:
            for one in (*values(event.args, event.kwargs), *(v for v in event.outputs if v)):
                if (tensor := lifted.tensors.get(one.number)) is not None:
                    self.values.setdefault(tensor, one)
        for number, event in lifted.events.items():
            outputs = lifted.graph.ops[number].outputs
            made = {lifted.tensors.get(value.number) for value in event.outputs if value}
            if len(outputs) == 1 and outputs[0] in made:
                self.events[number] = event
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
        """The module that is the op, if it can be replaced."""
        site, event = self.lifted.sites.get(number), self.events.get(number)
        module = event.target if isinstance(site, LinearSite) and event else None
        if isinstance(site, AffineSite):
            module = site.module
        if event and isinstance(self.lifted.graph.ops[number].role, g.Mean):
            call = event.call
            module = call.module if call.single and call.items == [event] else None
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


class Run:
    """One run of the network."""

    def __init__(self, network: Network, place: int) -> None:
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
        self.parts = self._parts(here)
        self.banned: set[int] = set()
        """Ops that stood in the way of a merge."""
        self.movable = {n for n in here if n in self.parts or self._is_movable_step(n)}

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

    def _parts(self, here: set[int]) -> dict[int, Part]:
        """The linear ops that are modules, each called once and sharing nothing."""
        lifted = self.network.lifted
        events = {n: self.network.events[n] for n in here}
        found = parts_of(replace(lifted, graph=self.graph, events=events))
        return {number: part for number, part in found.items() if self._is_own(number)}

    def _is_own(self, number: int) -> bool:
        module = self.network.module(number)
        return module is not None and self.can_be_replaced(module) and self._is_alone(module)

    def _is_once(self, module: nn.Module) -> bool:
        return len(self.calls.get(id(module), ())) == 1

    def is_written_later(self, value: Value) -> bool:
        """Whether what holds a value holds another one later."""
        writes = self.network.recording.storages[value.storage].writes
        return any(write.value.number > value.number for write in writes)

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
        role, site = self.graph.ops[number].role, self.network.lifted.sites.get(number)
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
        found: list[Change] = []
        for _ in range(_MOST_ROUNDS):
            free = frozenset(self.movable - self.banned)
            freedom = Freedom(can_go=free.__contains__, carries_affine=lambda number: False)
            merges = find_merges(self.graph, self.parts, freedom)
            found, obstacles = [], set()
            for merge in merges:
                served = self._served(merge)
                if served is not None:
                    found.append(served)
                else:
                    obstacles |= self._obstacles(merge)
            if not obstacles - self.banned:
                break
            self.banned |= obstacles
        return [change for change in found if change.away or change.identities]

    def _obstacles(self, merge: Merge) -> set[int]:
        """What to leave out of the next round: what Python does, or else the last linear op."""
        ops = {*merge.gone, merge.carrier}
        functions = {n for n in ops & self.movable if self.module(n) is None}
        return functions or {max(n for n in ops if n in self.parts)}

    def module(self, number: int) -> nn.Module | None:
        """The module that is the op, if it can be replaced."""
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
                walk = Walk(self, merge, number)
                # Nothing plus a tensor is Python; a tensor plus nothing goes through PyTorch.
                options.append(((walk.passes, self._misfit(merge, number), -number), walk))
            except UnservedError:
                continue
        for _, walk in sorted(options, key=lambda option: option[0]):
            change = walk.change()
            if change is not None:
                return change
        return None

    def _misfit(self, merge: Merge, number: int) -> bool:
        part = self.parts[number]
        return (part.window, part.groups) != (merge.window, merge.groups)


def _root(call: Call) -> Call:
    while call.parent is not None:
        call = call.parent
    return call


def _blank(op: g.Op, here: set[int]) -> g.Op:
    """An op of another run, or one that no event of its own made: nothing is known of it."""
    return replace(op, role=g.Opaque())


def _is_finite(role: g.AffineStep) -> bool:
    return bool(np.isfinite(role.scale).all() and np.isfinite(role.shift).all())


def _with_step(kernel: Callable[[], Kernel], role: g.AffineStep) -> Kernel:
    """A kernel, and an affine step behind it."""
    inner = kernel()
    shape = np.broadcast_shapes(role.scale.reshape(-1).shape, inner.bias.shape)
    scale, shift = (np.broadcast_to(c.reshape(-1), shape) for c in (role.scale, role.shift))
    outer = Kernel.affine(scale, shift, len(inner.window.kernel))
    return behind(inner, outer, inner.window)
