"""What a removed op did besides computing: it made a tensor of its own.

With it gone, its input and output are one tensor. An in-place op that wrote to one of them then
writes to both, and whoever still reads the other sees the write. Where that can happen, the op
stops working in place if it can, or the removed op leaves a copy behind.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from bnfold.frontends.torch.leaves import is_leaf
from bnfold.frontends.torch.lift import AffineSite, Lifted
from bnfold.frontends.torch.lift_modules import old_name_is_read
from bnfold.frontends.torch.ops import node_of
from bnfold.frontends.torch.recording import Event, Recording


@dataclass(slots=True)
class Precautions:
    """What to do besides removing."""

    copies: set[int] = field(default_factory=set)
    """Removed ops (numbers) that leave a copy behind."""
    out_of_place: list[Event] = field(default_factory=list)
    """Events (of modules, or of a program's nodes) that must not work in place any more."""


@dataclass(frozen=True, slots=True)
class _Link:
    op: int
    event: int
    source: int
    output: int


def precautions(
    recording: Recording, lifted: Lifted, removed: Collection[int], rewritten: Collection[int]
) -> Precautions:
    """`removed` are op numbers, `rewritten` the numbers of events that no longer write."""
    found = Precautions()
    links = []
    for op in removed:
        site = lifted.sites[op]
        assert isinstance(site, AffineSite) and site.source is not None and site.output is not None
        if site.source.storage != site.output.storage:
            links.append(_Link(op, site.event, site.source.storage, site.output.storage))
        if _layout_changes(site):
            found.copies.add(op)
    last_read = _last_reads(recording)
    for event in recording.events:
        if event.written is None or event.number in rewritten:
            continue
        joined = _joined(links, event, event.written.storage)
        others = {side for link in joined for side in (link.source, link.output)}
        others.discard(event.written.storage)
        if not any(last_read.get(other, -1) > event.number for other in others):
            continue
        if _can_stop(recording, event):
            found.out_of_place.append(event)
        else:
            found.copies.update(link.op for link in joined)
    return found


def _layout_changes(site: AffineSite) -> bool:
    """Whether a later view of the output could fail on the input's memory layout."""
    assert site.source is not None and site.output is not None
    # Axes of length 1 count too: they may be longer in other runs.
    return site.source.strides != site.output.strides


def _last_reads(recording: Recording) -> dict[int, float]:
    last: dict[int, float] = {storage: reads[-1][0] for storage, reads in recording.reads.items()}
    last.update(dict.fromkeys(recording.persistent, float("inf")))
    return last


def _joined(links: list[_Link], event: Event, storage: int) -> list[_Link]:
    """The removed ops, run before the event, that tie other memory to this one."""
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
    return chosen


def _can_stop(recording: Recording, event: Event) -> bool:
    if event.call.node is not None and node_of(event) is None:
        return False  # one of several ops that a node is made of
    if event.call.node is not None:
        free = not old_name_is_read(recording, event)
        return free and functional_twin(event.target) is not None
    module = event.target
    calls = [other for other in recording.events if other.target is module]
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
