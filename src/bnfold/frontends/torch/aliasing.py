"""What a removed op did besides computing: it made a tensor of its own.

With it gone, its input and output are one tensor. An in-place op that wrote to one of them then
writes to both, and whoever still reads the other sees the write. Where that can happen, the op
stops working in place if it can, or the removed op leaves a copy behind.

Other ops make a tensor of their own or return what they were given, as the memory layout, the
dtype or the size of the input has it: contiguous, reshape, to, a pad that is not always needed. A
run shows one of the two. Where it shows a copy, its source counts as the same memory here: then
what is done is right for both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bnfold.frontends.torch.layouts import copies_for_layout
from bnfold.frontends.torch.leaf_modules import is_leaf
from bnfold.frontends.torch.lift_modules import old_name_is_read
from bnfold.frontends.torch.lifter import AffineSite, Lifted
from bnfold.frontends.torch.ops import aten_name, node_of
from bnfold.frontends.torch.recording import Event, Recording, Value


@dataclass(slots=True)
class Precautions:
    """What to do besides removing."""

    copies: set[int] = field(default_factory=set)
    """Removed ops (numbers) that leave a copy behind."""
    out_of_place: list[Event] = field(default_factory=list)
    """Events (of modules, or of a program's nodes) that must not work in place any more."""


@dataclass(frozen=True, slots=True)
class _Link:
    op: int | None
    """The removed op; None where the program itself decides whether the two are one."""
    event: int
    source: int
    output: int


def precautions(
    recording: Recording, lifted: Lifted, removed: Collection[int], rewritten: Collection[int]
) -> Precautions:
    """`removed` are op numbers, `rewritten` the numbers of events that no longer write."""
    sites = {op: site for op, site in lifted.sites.items() if op in removed}
    affine = {op: site for op, site in sites.items() if isinstance(site, AffineSite)}
    care = Precautions(copies_for_layout(recording, affine))
    links = [link for link in map(_link, affine, affine.values()) if link is not None]
    doubtful = [] if not links else _doubtful(recording, may_return_input)
    care.copies |= _one_memory_outside(recording, links, doubtful, care.copies)
    links = [link for link in links if link.op not in care.copies]
    last_read = _last_reads(recording)

    def is_read(storages: Collection[int], event: Event) -> bool:
        return any(last_read.get(storage, -1) > event.number for storage in storages)

    for event in recording.events:
        if event.written is None or event.number in rewritten:
            continue
        written = event.written.storage
        # What is one memory with it in the program as it was, for some inputs.
        before, _ = _joined(doubtful, event, written)
        after, joined = _joined([*links, *doubtful], event, written)
        if not is_read(after - before, event):
            continue
        if _can_stop(recording, event) and not is_read(before - {written}, event):
            care.out_of_place.append(event)
        else:
            care.copies.update(link.op for link in joined if link.op is not None)
    return care


def written_or_not(recording: Recording) -> set[int]:
    """Numbers of in-place events whose write also reaches other memory, for inputs of some layouts.

    What is read there later depends on the layout, so nothing can be built on the write. In a
    graph that is seen both ways; where a module's code shows no copy, there is no op to see.
    """
    numbers = _reaching_the_source(recording)
    doubtful = _doubtful(recording, _goes_by_layout)
    if not doubtful:
        return numbers
    last_read = _last_reads(recording)
    for event in recording.events:
        if event.written is None:
            continue
        written = event.written.storage
        storages = _joined(doubtful, event, written)[0] - {written}
        if any(last_read.get(storage, -1) > event.number for storage in storages):
            numbers.add(event.number)
    return numbers


def _reaching_the_source(recording: Recording) -> set[int]:
    """Numbers of writes through what `contiguous` or the like returned: here its very input."""
    through: dict[int, set[int]] = {}
    """Per handle of what may be a copy, or a view of it: all such handles of the same copy."""
    numbers = set()
    for event in recording.events:
        source = event.args[0] if event.args else None
        made = event.outputs[0] if event.outputs else None
        if not isinstance(source, Value) or made is None or source.storage != made.storage:
            continue
        if event.written is None:
            same = through.get(source.handle)
            if same is None and _may_copy(event):
                same = set()
            if same is not None:
                same.add(made.handle)
                through[made.handle] = same
        elif event.written.handle in through:
            same = through[event.written.handle]
            reads = recording.reads.get(made.storage, ())
            if any(at > event.number and handle not in same for at, handle in reads):
                numbers.add(event.number)
    return numbers


def _doubtful(recording: Recording, may_be_one: Callable[[Event], bool]) -> list[_Link]:
    links = []
    for event in recording.events:
        source = event.args[0] if event.args else None
        made = event.outputs[0] if event.outputs else None
        if not isinstance(source, Value) or made is None or source.storage == made.storage:
            continue
        if may_be_one(event):
            links.append(_Link(None, event.number, source.storage, made.storage))
    return links


def may_return_input(event: Event) -> bool:
    """Whether a program that ran this op may go without it for other inputs."""
    if _is_node(event):
        return _may_copy(event)
    name = aten_name(event.target)
    return name in _WHERE_NEEDED or name.startswith("upsample_") or _goes_by_layout(event)


def _goes_by_layout(event: Event) -> bool:
    """contiguous, reshape, flatten, to and their like; a plain clone names no memory format."""
    if _is_node(event):
        return _may_copy(event)
    name = aten_name(event.target)
    if name == "_to_copy":
        made = event.outputs[0]
        return made is not None and event.args[0].dtype == made.dtype
    return name == "_reshape_copy" or (
        name == "clone" and event.kwargs.get("memory_format") is not None
    )


def _is_node(event: Event) -> bool:
    """Whether it is as a graph has it: a copy is a copy, and what may copy has names of its own."""
    return event.call.node is not None and node_of(event) is not None


def _may_copy(event: Event) -> bool:
    """Whether it is an op of a graph that returns its input, or a copy, as the layout has it."""
    if not _is_node(event) or aten_name(event.target) not in _MAY_COPY:
        return False
    made = event.outputs[0]
    return made is not None and event.args[0].dtype == made.dtype


_MAY_COPY = frozenset({"contiguous", "reshape", "reshape_as", "flatten", "ravel", "to", "type_as"})


_WHERE_NEEDED = frozenset(
    {"_to_copy", "constant_pad_nd", "index", "index_select", "roll"}
    | {f"{kind}_pad{rank}d" for kind in ("reflection", "replication") for rank in (1, 2, 3)}
)
"""Ops that programs call under a condition: where the size asks for it."""


def _link(op: int, site: AffineSite) -> _Link | None:
    """That a removed step makes its input and output one; None where they are one anyhow."""
    assert site.source is not None and site.output is not None
    if site.source.storage == site.output.storage:
        return None
    return _Link(op, site.event, site.source.storage, site.output.storage)


def _one_memory_outside(
    recording: Recording, links: Sequence[_Link], doubtful: Sequence[_Link], apart: Collection[int]
) -> set[int]:
    """Removed ops without which two tensors that outlive the run would be one.

    The caller may write to one of them, as to an input that is returned, and keep the other.
    """
    groups: dict[int, set[int]] = {}
    copies = set()
    for link in [*doubtful, *links]:  # what may be one without us first
        if link.op in apart:
            continue
        source = groups.get(link.source, {link.source})
        output = groups.get(link.output, {link.output})
        if source is output:
            continue
        outside = [group & recording.persistent for group in (source, output)]
        if link.op is not None and all(outside):
            copies.add(link.op)
            continue
        joined = source | output
        groups |= dict.fromkeys(joined, joined)
    return copies


def _last_reads(recording: Recording) -> dict[int, float]:
    last: dict[int, float] = {storage: reads[-1][0] for storage, reads in recording.reads.items()}
    last.update(dict.fromkeys(recording.persistent, float("inf")))
    return last


def _joined(links: Sequence[_Link], event: Event, storage: int) -> tuple[set[int], list[_Link]]:
    """The memory that is one with this one, and the links, run before the event, that tie it."""
    earlier = [link for link in links if link.event < event.number]
    reached, chosen = {storage}, []
    grown = True
    while grown:
        grown = False
        for link in earlier:
            if link not in chosen and (link.source in reached or link.output in reached):
                chosen.append(link)
                reached |= {link.source, link.output}
                grown = True
    return reached, chosen


def _can_stop(recording: Recording, event: Event) -> bool:
    if event.call.node is not None and node_of(event) is None:
        return False  # one of several ops that a node is made of
    if event.call.node is not None:
        free = not old_name_is_read(recording, event)
        return free and functional_twin(event.target) is not None
    module = event.target
    calls = [call for call in recording.events if call.target is module]
    if any(old_name_is_read(recording, call) for call in calls):
        return False
    return (
        isinstance(module, nn.Module)
        and id(module) in recording.members
        and is_leaf(module)
        and getattr(module, "inplace", None) is True
    )


def functional_twin(op: Any) -> Any:
    """The op that computes the same in memory of its own, or None."""
    name = str(getattr(op, "_opname", ""))
    if not name.endswith("_") or not hasattr(torch.ops.aten, name[:-1]):
        return None
    packet = getattr(torch.ops.aten, name[:-1])
    overload = op._overloadname or "default"
    return getattr(packet, overload, None)
