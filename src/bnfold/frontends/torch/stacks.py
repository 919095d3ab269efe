"""Sums that are written as one over a new axis: `torch.stack([a, b]).sum(0)` is a + b.

The stacked tensor is a detour: the sum reads what is stacked, and each operand has its own shift.
"""

from __future__ import annotations

from typing import Any

from bnfold.core import graph as g
from bnfold.frontends.torch.lifter import Lifter, is_floating
from bnfold.frontends.torch.ops import Arguments, functional, op_name
from bnfold.frontends.torch.recording import Event, Value


def stack_of(lifter: Lifter, event: Event) -> Event | None:
    """What stacks what a reduction adds up again, along the one axis and in the one dtype."""
    source, made = event.args[0], event.outputs[0]
    if not isinstance(source, Value) or made is None or made.dtype != source.dtype:
        return None
    stack = lifter.makers.get(source.number)
    if stack is None or stack.number in lifter.open:
        return None
    if functional(op_name(stack.target)) != "stack" or not all(map(_is_operand, _listed(stack))):
        return None
    a, rank = Arguments(event), len(source.shape)
    axes = [] if a.get("dim") is None else a.wholes("dim")
    along = Arguments(stack).whole("dim") % rank
    return stack if [axis % rank for axis in axes] == [along] and not a.get("keepdim") else None


def emit_sum(lifter: Lifter, event: Event, stack: Event, factor: float) -> None:
    """Add a sum of what is stacked, each times a factor."""
    tensors = [lifter.tensor(operand) for operand in _listed(stack)]
    lifter.emit(event, g.Sum((factor,) * len(tensors)), tensors, outputs=event.outputs[:1])
    lifter.stacks[len(lifter.graph.ops) - 1] = stack


def leave_out(lifter: Lifter) -> None:
    """The ops of stacks that nobody but sums reads, which read their operands instead."""
    graph = lifter.graph
    makers: dict[int | None, int] = {}
    read = {tensor for op in graph.ops for tensor in op.inputs}
    read |= {tensor for tensor, _, _ in graph.outputs}
    for number, op in enumerate(graph.ops):
        makers |= dict.fromkeys(op.outputs, number)
    for stack in lifter.stacks.values():
        (made,) = stack.outputs
        tensor = None if made is None else lifter.tensors.get(made.number)
        if tensor in read:
            continue
        while (maker := makers.get(tensor)) is not None:
            op = graph.ops[maker]
            graph.ops[maker] = g.Op(op.name, g.Opaque(), (), ())
            tensor = op.inputs[0] if isinstance(op.role, g.Alike) else None


def _listed(stack: Event) -> list[Any]:
    return list(Arguments(stack)["tensors"])


def _is_operand(part: Any) -> bool:
    return isinstance(part, Value) and is_floating(part)
