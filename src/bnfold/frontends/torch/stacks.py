"""Sums that are written as one over a new axis: `torch.stack([a, b]).sum(0)` is a + b.

    stack([a, b], d)
    cat([unsqueeze(a, d), unsqueeze(b, d)], d)
    view(cat([a, b], d), (*a.shape[:d], 2, *a.shape[d:]))     as a program's `stack` is decomposed

The stacked tensor is a detour: the sum reads what is stacked, and each operand has its own shift.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, fx

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.frontends.torch.lifter import AffineSite, Lifted, Lifter, Stack, is_floating
from bnfold.frontends.torch.ops import Arguments, functional, node_of, op_name
from bnfold.frontends.torch.recording import Event, Recording, Value

_JOINS = ("cat", "concat", "concatenate")
_VIEWS = ("view", "_unsafe_view", "reshape", "unflatten")


def stack_of(lifter: Lifter, event: Event) -> Stack | None:
    """What stacks what a reduction adds up again, along the one axis and in the one dtype."""
    source, made = event.args[0], event.outputs[0]
    if not isinstance(source, Value) or made is None or made.dtype != source.dtype:
        return None
    stack = _stacked(lifter.makers, source)
    if stack is None or any(not lifter.open.get(e.number, set()) <= {"size"} for e in stack.events):
        return None
    a, rank = Arguments(event), len(source.shape)
    axes = [] if a.get("dim") is None else a.wholes("dim")
    return (
        stack if [axis % rank for axis in axes] == [stack.axis] and not a.get("keepdim") else None
    )


def emit_sum(lifter: Lifter, event: Event, stack: Stack, factor: float) -> None:
    """Add a sum of what is stacked, each times a factor."""
    tensors = [lifter.tensor(operand) for operand in stack.operands]
    lifter.emit(event, g.Sum((factor,) * len(tensors)), tensors, outputs=event.outputs[:1])
    lifter.stacks[len(lifter.graph.ops) - 1] = stack


def leave_out(lifter: Lifter) -> None:
    """The ops of stacks that nobody but sums reads, which read their operands instead."""
    graph = lifter.graph
    makers = {output: number for number, op in enumerate(graph.ops) for output in op.outputs}
    read = Counter(tensor for op in graph.ops for tensor in op.inputs)
    read.update(tensor for tensor, _, _ in graph.outputs)
    for event in (event for stack in lifter.stacks.values() for event in stack.events):
        (made,) = event.outputs
        tensor = None if made is None else lifter.tensors.get(made.number)
        while tensor is not None and not read[tensor] and tensor in makers:
            number = makers.pop(tensor)
            op = graph.ops[number]
            graph.ops[number] = g.Op(op.name, g.Opaque(), (), ())
            read.subtract(op.inputs)
            tensor = op.inputs[0] if isinstance(op.role, g.Alike) else None


def are_bared(recording: Recording, lifted: Lifted, plan: Plan) -> bool:
    """Whether a step goes from behind a stack: over what is stacked then, there may be a sum."""
    makers = {made.number: event for event in recording.events for made in event.outputs if made}
    sites = [lifted.sites.get(number) for number in plan.removed]
    sources = [site.source for site in sites if isinstance(site, AffineSite)]
    return any(source is not None and _stacked(makers, source) for source in sources)


def _stacked(makers: Mapping[int, Event], value: Value) -> Stack | None:
    """The operands of which a tensor is made along an axis of its own."""
    event = makers.get(value.number)
    name = "" if event is None else functional(op_name(event.target))
    if event is None or name not in ("stack", *_JOINS, *_VIEWS):
        return None
    if name in _VIEWS:
        return _parted(makers, event)
    listed, axis = _listed(event), Arguments(event).whole("dim") % len(value.shape)
    if not all(map(_is_operand, listed)):
        return None
    if name == "stack":
        return Stack(tuple(listed), (event,), axis)
    parts = [makers.get(operand.number) for operand in listed]
    found = [part for part in parts if part is not None and _adds_axis(part, axis)]
    operands = [part.args[0] for part in found]
    if len(found) < len(parts) or not all(map(_is_operand, operands)):
        return None
    return Stack(tuple(operands), (event, *found), axis)


def _parted(makers: Mapping[int, Event], view: Event) -> Stack | None:
    """The operands of a concat, if a node parts them again, along an axis in front of theirs."""
    source = view.args[0]
    join = makers.get(source.number) if isinstance(source, Value) else None
    if join is None or functional(op_name(join.target)) not in _JOINS:
        return None
    operands, node, parted = _listed(join), node_of(join), _sizes(node_of(view))
    if not isinstance(source, Value) or not all(map(_is_operand, operands)) or node is None:
        return None
    sizes = {_sizes(part) for part in node.all_input_nodes}
    axis, one = Arguments(join).whole("dim") % len(source.shape), next(iter(sizes))
    is_stack = parted == (*one[:axis], str(len(operands)), *one[axis:])
    return Stack(tuple(operands), (view, join), axis) if is_stack and len(sizes) == 1 else None


def _sizes(node: fx.Node | None) -> tuple[str, ...]:
    """What a program says of the shape of a node's tensor, sizes that are open by their names."""
    told = None if node is None else node.meta.get("val")
    return tuple(map(str, told.shape)) if isinstance(told, Tensor) else ()


def _adds_axis(event: Event, axis: int) -> bool:
    (made,) = event.outputs
    is_unsqueeze = functional(op_name(event.target)) == "unsqueeze" and made is not None
    return is_unsqueeze and Arguments(event).whole("dim") % len(made.shape) == axis  # type: ignore[union-attr]


def _listed(join: Event) -> list[Any]:
    return list(Arguments(join)["tensors"])


def _is_operand(part: Any) -> bool:
    return isinstance(part, Value) and is_floating(part)
