"""Merge linear ops of an exported program before it is folded; see `bnfold.core.merge`.

Only nodes that are one op each take part, and several that are one (see `merge_borders` and
`merge_matrices`). Memory matters beside values: what a merged op reads must
still hold it there, and a sum that is left with one operand shares that one's memory.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import numpy as np
from torch import fx
from torch.export import ExportedProgram

from bnfold.core import graph as g
from bnfold.core.expression import Freedom
from bnfold.core.merge import choices
from bnfold.core.merge_again import can_merge_again
from bnfold.core.merge_within import merges_within, without
from bnfold.core.merged import Merge
from bnfold.frontends.merge_report import Merging
from bnfold.frontends.torch.aliasing import functional_twin
from bnfold.frontends.torch.batch_norms import is_batch_norm
from bnfold.frontends.torch.decide import Decided
from bnfold.frontends.torch.editor import Editor, argument_with
from bnfold.frontends.torch.lift_modules import old_name_is_read
from bnfold.frontends.torch.lifter import AffineSite, Lifted, LinearSite
from bnfold.frontends.torch.merge_borders import borders
from bnfold.frontends.torch.merge_matrices import Viewed, viewed
from bnfold.frontends.torch.merge_nodes import Content, Writer, content_of, is_first_part, stated
from bnfold.frontends.torch.merge_parts import keeps_dtype, parts_of
from bnfold.frontends.torch.ops import node_of, op_name
from bnfold.frontends.torch.preserved_calls import promised
from bnfold.frontends.torch.recording import (
    Event,
    Recording,
    Value,
    is_contiguous,
    lie_alike,
    values,
)


def merges_of(
    program: ExportedProgram, recording: Recording, lifted: Lifted
) -> Iterator[tuple[ExportedProgram, Merging]]:
    """The program with what can be one merged, then with less of that: itself at last."""
    merger = _Merger(program, recording, lifted)
    parts, freedom = merger.parts, merger.freedom
    possible = merges_within(merger.graph, parts, freedom, merger.can_write)
    possible.sort(key=lambda merge: merge.carrier)
    for chosen in choices(merger.graph, parts, possible):
        ready = merger.ready(chosen)
        merges = [merge for merge, _ in ready]
        if merges or not chosen:
            merging = Merging(merger.graph, parts, freedom, merges)
            yield merger.write(ready) if merges else program, merging


def are_left(program: ExportedProgram, decided: Decided, *, is_merged: bool) -> bool:
    """Whether there are more to find in what a fold makes."""
    merger = _Merger(program, decided.recording, decided.lifted)
    graph, parts, freedom = merger.graph, merger.parts, merger.freedom
    return can_merge_again(graph, decided.plan, parts, freedom, is_merged=is_merged)


def _of_nodes(lifted: Lifted) -> g.Graph:
    """The graph without what says of sizes of any length that all is stored alike along them."""
    graph = lifted.graph
    ops = list(graph.ops)
    makers = {op.outputs: number for number, op in enumerate(ops)}
    for number, op in enumerate(ops):
        maker = makers.get(op.inputs)
        if (
            isinstance(op.role, g.Alike)
            and maker is not None
            and isinstance(ops[maker].role, g.View | g.Clip)
        ):
            ops[maker] = replace(ops[maker], outputs=op.outputs)
            ops[number] = g.Op(op.name, g.Opaque(), (), ())
    return g.Graph(graph.shapes, ops, graph.inputs, graph.outputs)


class _Merger:
    def __init__(self, program: ExportedProgram, recording: Recording, lifted: Lifted) -> None:
        self.program = program
        self.recording = recording
        self.lifted = lifted
        self.graph = _of_nodes(lifted)
        counts = Counter(event.number for event in lifted.events.values())
        self.nodes = {
            number: node
            for number, event in lifted.events.items()
            if counts[event.number] == 1 and (node := _whole_node(event)) is not None
        }
        """Per op that is one node, and all of it."""
        self.events = dict(lifted.events)
        self.values = {
            lifted.tensors[value.number]: value
            for event in recording.events
            for value in (*event.outputs, *values(event.args, event.kwargs))
            if value is not None and value.number in lifted.tensors
        }
        """A value per tensor."""
        self.makers = {
            output: number for number, op in enumerate(self.graph.ops) for output in op.outputs
        }
        self.parts = parts_of(lifted, lasting=not recording.changed)
        self.behind: dict[int, list[fx.Node]] = {}
        """Further nodes of an op, behind the first."""
        self.sites = dict(lifted.sites)
        self.viewed: dict[int, Viewed] = {}
        """The matrices between views, which are one op."""
        self._take_borders()
        self._take_matrices()
        self._take_stacks()
        self.promised = promised(program.module_call_graph)
        self.out_of_place: set[int] = set()
        """Numbers of events that must not work in place any more."""

    def _take_borders(self) -> None:
        """Let what writes a border be one op."""
        for found, part in borders(self.recording, self.lifted):
            (source,) = values(found.pad.args, found.pad.kwargs)
            first, last = (
                self.makers[self.lifted.tensors[value.number]]
                for value in (found.pad.outputs[0], found.made)
                if value is not None
            )
            ops = self.graph.ops
            tensors = (self.lifted.tensors[source.number],)
            ops[last] = replace(
                ops[first], role=g.Opaque(), inputs=tensors, outputs=ops[last].outputs
            )
            ops[first] = replace(ops[first], role=g.Opaque(), inputs=())
            self.parts.pop(first, None)
            self.parts[last], self.events[last] = part, found.pad
            self.nodes[last], *self.behind[last] = found.nodes

    def _take_matrices(self) -> None:
        """Let a matrix and the views around it be one op, along the last axis."""
        ops, matrices = self.graph.ops, {self.nodes[n]: n for n in self.parts if n in self.nodes}
        events = {node_of(event): event for event in self.recording.events}
        for found in viewed(matrices.keys()):
            number, (flat, back) = matrices[found.matrix], (events[n] for n in found.views)
            (source,), (made,) = values(flat.args, flat.kwargs), back.outputs
            first = self.lifted.tensors.get(source.number)
            end = None if made is None else self.lifted.tensors.get(made.number)
            behind = self._views(end, ops[number].outputs[0])
            in_front = self._views(ops[number].inputs[0], first)
            if first is None or end is None or not behind or not in_front:
                continue
            last, axis = behind[0], len(self.graph.shapes[first]) - 1
            whole = replace(ops[number], inputs=(first,), outputs=(end,))
            for between in (*behind, number, *in_front):
                ops[between] = replace(ops[between], role=g.Opaque(), inputs=())
            ops[last] = whole
            self.parts[last] = replace(self.parts.pop(number), axis=axis)
            self.events[last], self.sites[last] = self.events[number], self.sites[number]
            self.nodes[last], self.behind[last] = found.matrix, [*found.views]
            self.viewed[last] = found

    def _views(self, tensor: int | None, source: int | None) -> list[int]:
        """The numbers of the ops that make a tensor of another one alone, the last one first."""
        numbers: list[int] = []
        while tensor is not None and tensor != source:
            number = self.makers.get(tensor)
            if number is None or len(self.graph.ops[number].inputs) != 1:
                return []
            numbers.append(number)
            (tensor,) = self.graph.ops[number].inputs
        return numbers

    def _take_stacks(self) -> None:
        """Let a stack and the sum over it be one op, where nobody else reads what is stacked."""
        self.listed = dict(self.nodes)
        """Per sum, the node that has its operands, if one has them as they are."""
        for number, stack in self.lifted.stacks.items():
            nodes = [node for event in stack.events if (node := node_of(event)) is not None]
            self.listed.pop(number, None)
            is_alone = len(nodes) == len(stack.events) and all(len(n.users) == 1 for n in nodes)
            if not is_alone or number not in self.nodes:
                self.nodes.pop(number, None)
                continue
            self.behind[number] = nodes
            if len(nodes) == 1:
                self.listed[number] = nodes[0]

    # ---------------------------------------------------------------- which can be carried out

    @property
    def freedom(self) -> Freedom:
        """What can be taken out, and given other constants."""
        return Freedom(self.can_go, carries_affine=self.is_batch_norm)

    def can_go(self, number: int) -> bool:
        """Whether an op is one node that rounds to the dtype that it reads."""
        if number not in self.nodes or any(
            not self.promised.isdisjoint(_names(node)) for node in self._all_nodes(number)
        ):
            return False
        event = self.events[number]
        return keeps_dtype(event) and not old_name_is_read(self.recording, event)

    def _all_nodes(self, number: int) -> list[fx.Node]:
        return [self.nodes[number], *self.behind.get(number, ())]

    def _last_node(self, number: int) -> fx.Node:
        """The node that makes what an op makes."""
        return self.viewed[number].back if number in self.viewed else self.nodes[number]

    def is_batch_norm(self, number: int) -> bool:
        """Whether an affine step has factors and summands of its own."""
        site, node = self.lifted.sites.get(number), self.nodes.get(number)
        has_both = isinstance(site, AffineSite) and site.mean is not None
        return has_both and node is not None and is_batch_norm(op_name(node.target))

    def ready(self, merges: list[Merge]) -> list[tuple[Merge, Content]]:
        """Those whose numbers fit their dtype, with the numbers."""
        made = [(merge, self._content(merge)) for merge in merges]
        left = without(merges, [merge for merge, content in made if not content.is_finite])
        return [(merge, content) for merge, content in made if merge in left]

    def _content(self, merge: Merge) -> Content:
        site = self.sites[merge.carrier]
        assert isinstance(site, LinearSite | AffineSite)
        with np.errstate(over="ignore", invalid="ignore"):
            return content_of(merge.kernel(), site)

    def can_write(self, merge: Merge) -> bool:
        """Whether the program lets it through."""
        involved = [merge.carrier, *merge.tail, *merge.gone, *merge.sums]
        if not all(self.can_go(number) for number in involved):
            return False
        if stated(self.nodes[merge.carrier], merge.window, merge.groups) is None:
            return False
        if self._source(merge) is None or self._is_overwritten(merge):
            return False
        # The views of siblings would say how many channels there are, and one might not fit.
        is_fit = merge.concat is None and is_contiguous(self.values[merge.source])
        if merge.carrier in self.viewed and not is_fit:
            return False
        if any(len(kept) > 1 and self._is_mean(number) for number, kept in merge.sums.items()):
            return False  # of fewer, each would weigh more
        sums = [*merge.sums, *([merge.enters[0]] if merge.enters else [])]
        if any(number not in self.listed for number in sums):
            return False
        carried = self._made(merge.carrier)
        siblings = [self._made(number) for number in self._siblings(merge)]
        if not all(lie_alike(carried, value) for value in (self.values[merge.output], *siblings)):
            return False  # a view that fits the sum might not fit what the carrier makes
        return self._are_alone(merge) and all(
            self._can_collapse(number, kept[0])
            for number, kept in merge.sums.items()
            if len(kept) == 1 and (number, kept[0]) != merge.enters
        )

    def _is_mean(self, number: int) -> bool:
        return number in self.lifted.stacks and op_name(self.nodes[number].target) == "mean"

    def _made(self, number: int) -> Value:
        return self.values[self.graph.ops[number].outputs[0]]

    def _siblings(self, merge: Merge) -> list[int]:
        """The linear ops of one that puts their outputs together."""
        if merge.concat is None:
            return []
        ops = self.graph.ops
        return [n for n in (merge.carrier, *merge.gone) if isinstance(ops[n].role, g.Linear)]

    def _source(self, merge: Merge) -> fx.Node | None:
        """The node that the carrier is to read: what the first one reads that reads the source."""
        involved = sorted((merge.carrier, *merge.gone))
        first = next(n for n in involved if merge.source in self.graph.ops[n].inputs)
        event, node = self.events[first], self.nodes[first]
        if first in self.viewed:
            node = self.viewed[first].flat
            event = next(event for event in self.recording.events if node_of(event) is node)
        return argument_with(event, node, lambda held: self._tensor(held) == merge.source)

    def _tensor(self, value: Value) -> int | None:
        return self.lifted.tensors.get(value.number)

    def _is_overwritten(self, merge: Merge) -> bool:
        """Whether somebody writes to the source's memory before the carrier reads it."""
        source = self.values[merge.source]
        made = self.events[merge.carrier].outputs[0]
        assert made is not None
        writes = self.recording.storages[source.storage].writes
        return any(source.number < write.value.number < made.number for write in writes)

    def _are_alone(self, merge: Merge) -> bool:
        """Whether nobody reads what goes, in any way."""
        numbers = (merge.carrier, *merge.tail, *merge.gone)
        inner = {node for number in numbers for node in self._all_nodes(number)}
        sums = {node for number in merge.sums for node in self._all_nodes(number)}
        ends = set()
        if merge.enters is None:
            ends.add(self._last_node(self.makers[merge.output]))
        else:
            sums.update(self._all_nodes(merge.enters[0]))
        return all(user in inner | sums for node in inner - ends for user in _readers(node))

    def _can_collapse(self, number: int, position: int) -> bool:
        """Whether the one operand that a sum is left with can stand in its place.

        The two are one memory then: nothing may write to it while the other is read.
        """
        op = self.graph.ops[number]
        made, left = self.values[op.outputs[0]], self.values[op.inputs[position]]
        if made.strides != left.strides:
            return False
        stack = self.lifted.stacks.get(number)
        reading = self.events[number] if stack is None else stack.events[-1]
        writing = [
            event
            for event in self.recording.events[reading.number :]
            if event.written is not None and event.written.storage in (made.storage, left.storage)
        ]
        for event in writing:
            if node_of(event) is None or functional_twin(event.target) is None:
                return False
            if old_name_is_read(self.recording, event):
                return False
        self.out_of_place |= {event.number for event in writing}
        return True

    # ---------------------------------------------------------------- writing

    def write(self, ready: Sequence[tuple[Merge, Content]]) -> ExportedProgram:
        """The program with all of these carried out."""
        editor = Editor(self.program, self.recording.written)
        writer = Writer(editor)
        for event in self._out_of_place():
            assert event.call.node is not None
            editor.find(event.call.node).target = functional_twin(event.target)
        for merge, content in ready:
            site, source = self.sites[merge.carrier], self._source(merge)
            assert isinstance(site, LinearSite | AffineSite) and source is not None
            found = self.viewed.get(merge.carrier)
            if found is not None:
                writer.view(found.flat, source, self._channels(merge.source))
                source = found.flat
            writer.carry(self.nodes[merge.carrier], source, merge, content, site)
            if found is not None:
                writer.widen_matrix(found.matrix, self._channels(merge.output))
                writer.view(found.back, found.matrix, self._channels(merge.output))
        for merge, _ in ready:
            made = [self._last_node(number) for number in (merge.carrier, *merge.tail)]
            if (siblings := self._siblings(merge)) and (axis := self._axis(merge)) is not None:
                writer.widen(made, [self.nodes[number] for number in siblings], axis)
            if merge.enters is None:
                writer.replace(self._last_node(self.makers[merge.output]), made[-1])
            elif not siblings:  # those keep their places in the concat
                number, position = merge.enters
                writer.enter(self.listed[number], position, made[-1])
        for number, kept in {n: k for merge, _ in ready for n, k in merge.sums.items()}.items():
            if isinstance(self.graph.ops[number].role, g.View):
                writer.shorten(self.nodes[number], kept)
            elif len(kept) == 1:
                writer.collapse(self.nodes[number], self.listed[number], kept[0])
            elif number in self.lifted.stacks:
                writer.shorten(self.listed[number], kept)
        gone: Iterable[int] = (number for merge, _ in ready for number in merge.gone)
        writer.erase(node for number in gone for node in self._all_nodes(number))
        return editor.finish()

    def _channels(self, tensor: int) -> int:
        """How many lie along the last axis."""
        return self.graph.shapes[tensor][-1]

    def _axis(self, merge: Merge) -> int | None:
        """Along which siblings lie one behind the other."""
        role = None if merge.concat is None else self.graph.ops[merge.concat].role
        return role.concat if isinstance(role, g.View) else None

    def _out_of_place(self) -> Iterator[Event]:
        return (event for event in self.recording.events if event.number in self.out_of_place)


def _whole_node(event: Event) -> fx.Node | None:
    """The node that an event is, or that was taken apart to it alone, as `pad` is."""
    node = event.call.node
    if node is None or event.call.items != [event] or len(node.all_input_nodes) != 1:
        return node_of(event)
    return node


def _names(node: fx.Node) -> set[str]:
    """Of the node, and of its results where it has several."""
    parts = {user.name for user in node.users if user.target is operator.getitem}
    return {node.name, *parts}


def _readers(node: fx.Node) -> Iterator[fx.Node]:
    """Of the tensor that it makes; of others, they themselves."""
    for user in node.users:
        yield from user.users if is_first_part(user) else (user,)
