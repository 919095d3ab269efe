"""One run of a module's network, as merging looks at it: which ops are modules that can go.

`AllRuns` knows which modules nobody asks for, hooks or shares; a `Run` is the graph of one of them,
in which the modules that other runs call, too, are not tied to them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor, nn

from bnfold.core import graph as g
from bnfold.core.expression import Freedom, Part
from bnfold.core.merge_within import Fence
from bnfold.frontends.torch.leaf_modules import has_hooks, overrides_call, pads_as_told
from bnfold.frontends.torch.lifter import AffineSite, Lifted, LinearSite
from bnfold.frontends.torch.merge_parts import parts_of
from bnfold.frontends.torch.ops import Arguments, functional, op_name
from bnfold.frontends.torch.recording import Call, Event, Recording, Value, constants, values

_SUMS = {"add", "sub", "subtract", "rsub"}


class AllRuns:
    """What was read in all runs, by what a merge asks of it."""

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
            for value in (*values(event.args, event.kwargs), *(v for v in event.outputs if v)):
                if (tensor := lifted.tensors.get(value.number)) is not None:
                    self.values.setdefault(tensor, value)
        for number, event in lifted.events.items():
            outputs = lifted.graph.ops[number].outputs
            made = {lifted.tensors.get(value.number) for value in event.outputs if value}
            if len(outputs) == 1 and outputs[0] in made:
                self.events[number] = event
        self.holders = Counter(
            id(tensor)
            for module in model.modules()
            for tensor in module._parameters.values()
            if tensor is not None
        )

    def run_of(self, event: Event) -> int:
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
        role = self.lifted.graph.ops[number].role
        is_cut = event is not None and op_name(event.target) == "slice"
        if event and (is_cut or isinstance(role, g.Mean | g.Pad)):
            call = event.call
            module = call.module if call.single and call.items == [event] else None
            if isinstance(role, g.Pad) and not pads_as_told(module):
                module = None
        return module if isinstance(module, nn.Module) and self.is_free(module) else None

    def is_free(self, module: nn.Module) -> bool:
        """Whether something else can stand in its place."""
        lost = any(module is member for member in self.recording.lost)
        ours = id(module) in self.recording.members and id(module) not in self.fixed
        return ours and not lost and not has_hooks(module) and not overrides_call(type(module))

    def own_events(self, number: int) -> Iterator[int]:
        """The events that are gone with an op."""
        event = self.events[number]
        yield event.number
        site = self.lifted.sites.get(number)
        if isinstance(site, AffineSite) and site.module is event.call.module:
            yield from (item.number for item in event.call.items if isinstance(item, Event))


class Run:
    """One run of the network."""

    def __init__(self, all_runs: AllRuns, index: int) -> None:
        self.all_runs = all_runs
        recording, graph = all_runs.recording, all_runs.lifted.graph
        self.calls = {
            key: [call for call in calls if _root(call) is recording.roots[index]]
            for key, calls in recording.calls.items()
        }
        self.called = {key for key, calls in self.calls.items() if calls}
        own_ops = {n for n, event in all_runs.events.items() if all_runs.run_of(event) == index}
        self.graph = g.Graph(graph.shapes, [], graph.inputs, graph.outputs)
        for number, op in enumerate(graph.ops):
            role = self._role(number, op.role)
            self.graph.ops.append(replace(op, role=role) if number in own_ops else _blank(op))
        self.makers = {op.outputs[0]: n for n, op in enumerate(graph.ops) if n in own_ops}
        self.readers: dict[int, list[int]] = {}
        for number, op in enumerate(self.graph.ops):
            for tensor in op.inputs:
                self.readers.setdefault(tensor, []).append(number)
        self.parts = self._parts(own_ops)
        self.fence = Fence()
        self.held = {id(tensor) for n in own_ops for tensor in self._held_by(self.module(n))}
        """The ids of what modules hold that can be replaced."""
        self.movable = {n for n in own_ops if n in self.parts or self._is_movable_step(n)}

    @property
    def freedom(self) -> Freedom:
        """What modules leave."""
        freedom = Freedom(
            self.movable.__contains__, carries_affine=lambda number: False, shortens_concats=False
        )
        return self.fence.around(freedom)

    def _role(self, number: int, role: g.Role) -> g.Role:
        """Without what ties the run to others; a sum that does not stay one is unknown."""
        if isinstance(role, g.Linear | g.AffineStep):
            return replace(role, tie=None)
        if isinstance(role, g.Sum) and not self._is_plain_sum(number):
            return g.Opaque()
        return role

    def _is_plain_sum(self, number: int) -> bool:
        """Whether Python adds up two tensors of one dtype."""
        event = self.all_runs.events.get(number)
        if event is None or functional(op_name(event.target)) not in _SUMS:
            return False
        arguments, output = Arguments(event), event.outputs[0]
        operands = [arguments["self"], arguments["other"]]
        if output is None or not all(isinstance(operand, Value) for operand in operands):
            return False
        return all(operand.dtype == output.dtype for operand in operands)

    def _parts(self, own_ops: set[int]) -> dict[int, Part]:
        """The linear ops that are modules, each called once and sharing nothing."""
        lifted = self.all_runs.lifted
        events = {n: self.all_runs.events[n] for n in own_ops}
        parts = parts_of(replace(lifted, graph=self.graph, events=events))
        return {number: part for number, part in parts.items() if self._is_own(number)}

    def _is_own(self, number: int) -> bool:
        module = self.all_runs.module(number)
        return module is not None and self.can_be_replaced(module) and self._is_alone(module)

    def is_seat(self, number: int) -> bool:
        """Whether a linear module can stand in the place of an op, which is an affine step."""
        is_step = isinstance(self.graph.ops[number].role, g.AffineStep)
        return is_step and self._is_own(number) and self.all_runs.events[number].written is None

    def _is_once(self, module: nn.Module) -> bool:
        return len(self.calls.get(id(module), ())) == 1

    def is_written_later(self, value: Value) -> bool:
        """Whether what holds a value holds another one later."""
        writes = self.all_runs.recording.storages[value.storage].writes
        return any(write.value.number > value.number for write in writes)

    def can_be_replaced(self, module: nn.Module | None) -> bool:
        """Whether its one call is all that it is for."""
        return module is not None and self._is_once(module) and self.all_runs.is_free(module)

    def _is_alone(self, module: nn.Module) -> bool:
        """Whether nobody else holds or reads what the module holds."""
        recording = self.all_runs.recording
        for tensor in module._parameters.values():
            if tensor is None:
                continue
            uses = recording.parameter_uses.get(id(tensor), ())
            if self.all_runs.holders[id(tensor)] > 1 or id(tensor) in recording.changed:
                return False
            own = (e and module in (e.target, e.call.module) for e in (use.event for use in uses))
            if not all(own):
                return False
        return True

    def _is_movable_step(self, number: int) -> bool:
        role, site = self.graph.ops[number].role, self.all_runs.lifted.sites.get(number)
        if not isinstance(role, g.AffineStep) or not isinstance(site, AffineSite):
            return False
        if not role.is_known:
            return False
        if site.source is None or site.output is None or site.source.dtype != site.output.dtype:
            return False
        if site.module is None:  # what Python does with a number, or a parameter
            event = self.all_runs.events[number]
            if functional(op_name(event.target)) in _SUMS:
                return is_neutral(role)
            # Of another tensor, the product would be heard in a proof, and that with nothing not.
            return not role.shift.any() and all(
                constant.is_itself and id(constant.origin) not in self.held
                for constant in constants(event.args)
            )
        module = self.all_runs.module(number)
        return module is not None and role.is_wanted and self._is_once(module)

    @staticmethod
    def _held_by(module: nn.Module | None) -> Iterator[Tensor | None]:
        if module is not None:
            yield from (*module._parameters.values(), *module._buffers.values())

    def module(self, number: int) -> nn.Module | None:
        """The module that is the op, if it can be replaced."""
        return self.all_runs.module(number)


def is_neutral(role: g.AffineStep) -> bool:
    """Whether it does nothing, as the first addition of `out = 0; out += ...`."""
    return bool((role.scale == 1.0).all()) and not role.shift.any()


def _root(call: Call) -> Call:
    while call.parent is not None:
        call = call.parent
    return call


def _blank(op: g.Op) -> g.Op:
    """An op of another run, or one that no event of its own made: nothing is known of it."""
    return replace(op, role=g.Opaque())
