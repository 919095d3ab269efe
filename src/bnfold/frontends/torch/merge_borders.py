"""Borders that an exported program writes: several nodes that are one op, for merging.

    z = pad(y);  z[:, :, :p] = b;  z[:, :, -p:] = b;  z[..., :p] = b;  z[..., -p:] = b

is y with b around it, as `core.expression.Border` has it, if the strips are as wide as what was
padded: then they cover that and nothing else, whatever the size. Who wrote it had an affine step or
a convolution in front, and b is what that makes of zeros.

A strip is written through a slice (`slice`, `copy_`), or in a functional program by
`slice_scatter`. What is written is a constant, spread over the strip by `expand`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import fx

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.expression import Border, Part
from bnfold.frontends.torch.lifter import Lifted, is_readable, to_numpy
from bnfold.frontends.torch.ops import Arguments, aten_name, functional, op_name
from bnfold.frontends.torch.recording import OVERLAY, Const, Event, Recording, Value, values

_ROUNDING = {
    dtype: 8 * torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)
}  # of sums, products and a root; fewer bits would tell too little
_END = 1 << 62

Strip = tuple[int, int, int]
"""The axis, and from where to where."""


@dataclass(frozen=True, slots=True, eq=False)
class Bordered:
    """What is written around a tensor."""

    pad: Event
    """What made room for it."""
    events: tuple[Event, ...]
    """All of it, the padding first."""
    inner: frozenset[int]
    """Numbers of the values that nothing but these events may read."""
    made: Value
    strips: frozenset[Strip] = frozenset()
    values: FloatArray | None = None
    """(channels,)"""

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes that all this is, the padding's first."""
        nodes = (event.call.node for event in self.events if event.target != OVERLAY)
        return list(dict.fromkeys(node for node in nodes if node is not None))


def borders(recording: Recording, lifted: Lifted) -> Iterator[tuple[Bordered, Part]]:
    """What is written around tensors, and the linear ops that this may be."""
    closed = {event.number: lifted.graph.ops[n].role for n, event in lifted.events.items()}
    known: dict[int, Bordered] = {}
    slices: dict[int, tuple[Strip | None, list[Event]]] = {}
    """None where it is all that is there, as sizes without a bound leave it in a program."""
    writes: dict[int, tuple[Strip, FloatArray, list[Event]]] = {}
    for event in recording.events:
        made = event.outputs[0] if event.outputs else None
        name = event.target if event.target == OVERLAY else functional(op_name(event.target))
        source = event.args[0] if event.args else None
        if made is None or not isinstance(source, Value):
            continue
        if isinstance(role := closed.get(event.number), g.Pad) and _pads(role):
            known[made.number] = Bordered(event, (event,), frozenset(), made)
        elif name == "slice" and source.number in known | slices and event.number in closed:
            old_strip, cuts = slices.get(source.number, (None, []))
            strip = _strip(event)
            is_whole = strip is not None and strip[1:] == (0, _END)
            if is_whole or (strip is not None and old_strip is None):
                slices[made.number] = old_strip if is_whole else strip, [*cuts, event]
        elif name == "copy" and source.number in slices:
            written = _written(event, recording)
            strip, cuts = slices[source.number]
            if written is not None and strip is not None:
                writes[made.number] = strip, written, [*cuts, event]
        elif name in (OVERLAY, "slice_scatter") and (old := known.get(source.number)):
            part = event.args[1]
            write = writes.get(part.number) if isinstance(part, Value) else None
            is_told = name == OVERLAY or (event.number in closed and write is not None)
            if write is None or not is_told or (name != OVERLAY and _strip(event) != write[0]):
                continue
            if old.values is None or np.array_equal(old.values, write[1]):
                known[made.number] = _with(old, event, made, write)
    for found in known.values():
        part = _part(found, closed)
        if part is not None and _is_alone(found, recording, lifted):
            yield found, part


def _pads(role: g.Pad) -> bool:
    amounts = (*role.before, *role.after)
    return len(role.before) > 2 and min(amounts) >= 0 and not any(amounts[:2])


def _with(
    old: Bordered, event: Event, made: Value, write: tuple[Strip, FloatArray, list[Event]]
) -> Bordered:
    strip, written, events = write
    cut = {value.number for each in events for value in each.outputs if value}
    return replace(
        old,
        events=(*old.events, *events, event),
        inner=old.inner | cut | {old.made.number},
        made=made,
        strips=old.strips | {strip},
        values=written,
    )


def _strip(event: Event) -> Strip | None:
    """What a slice takes, or a `slice_scatter` writes; from the end, numbers are negative."""
    a = Arguments(event)
    if a["step"] != 1:
        return None
    rank = len(event.args[0].shape)
    start, end = a.get("start") or 0, a.get("end")
    return a.whole("dim") % rank, start, _END if end is None else min(end, _END)


def _written(event: Event, recording: Recording) -> FloatArray | None:
    """(channels,) What is written everywhere, if that is the same in every run."""
    constant, node = event.args[1], event.call.node
    if not isinstance(constant, Const) or node is None or not isinstance(node.args[1], fx.Node):
        return None
    given = node.args[1]  # its sizes may be open, what it holds may not
    while aten_name(given.target) == "expand" and isinstance(given.args[0], fx.Node):
        given = given.args[0]
    told, tensor = given.meta.get("val"), constant.tensor
    is_lasting = given not in recording.open_nodes and not recording.changed
    if not isinstance(told, torch.Tensor) or not is_lasting or not is_readable(tensor):
        return None
    place = event.args[0]
    if tensor.ndim != len(place.shape) or tensor.ndim < 3 or tensor.dtype != place.dtype:
        return None  # its channels would lie elsewhere, or it would be rounded
    first = tensor[(slice(1), slice(None), *[slice(1)] * (tensor.ndim - 2))]
    is_spread = bool((tensor == first).all())
    is_per_channel = all(type(n) is int for n in told.shape) and told.numel() == first.numel()
    return to_numpy(first).reshape(-1) if is_spread and is_per_channel else None


def _part(found: Bordered, closed: dict[int, g.Role]) -> Part | None:
    """As a linear op, if the strips cover what was padded."""
    role, rounding = closed[found.pad.number], _ROUNDING.get(found.made.dtype)
    assert isinstance(role, g.Pad)
    amounts = [*enumerate(zip(role.before, role.after, strict=True))]
    padded = {(axis, 0, before) for axis, (before, _) in amounts if before}
    padded |= {(axis, -after, _END) for axis, (_, after) in amounts if after}
    if found.strips != padded or found.values is None or rounding is None:
        return None
    zeros = replace(role, value=0.0)
    (source,) = values(found.pad.args, found.pad.kwargs)
    part = Part.padding(zeros, source.shape, str(source.dtype))
    return part and replace(part, border=Border(found.values, rounding))


def _is_alone(found: Bordered, recording: Recording, lifted: Lifted) -> bool:
    """Whether nobody else reads what lies between."""
    own = {event.number for event in found.events}
    outputs = {tensor for tensor, _, _ in lifted.graph.outputs}
    if any(lifted.tensors.get(number) in outputs for number in found.inner):
        return False
    return not any(
        value.number in found.inner
        for event in recording.events
        if event.number not in own
        for value in values(event.args, event.kwargs)
    )
