"""Sums that a file writes as one over a new axis, as exporters do of `torch.stack([a, b]).sum(0)`.

    ReduceSum(Concat(Unsqueeze(a), Unsqueeze(b)))  is  a + b,     ReduceMean  is  (a + b) / 2

if the three speak of one axis, which is gone again, and nobody else reads what lies between. The
sum is lifted as that of a and b; the other nodes go where it goes.
"""

from __future__ import annotations

from bnfold.core import graph as g
from bnfold.core.plan import Plan
from bnfold.frontends.onnx.lifter import Lifter
from bnfold.frontends.onnx.nodes import Node
from bnfold.frontends.onnx.sites import AffineSite, Lifted, Stack


def survey(lifter: Lifter) -> dict[int, Stack]:
    """Per index of the node that reduces it."""
    found = {}
    for node in lifter.network.nodes:
        if node.op in ("ReduceSum", "ReduceMean") and (stack := _stack(lifter, node)) is not None:
            found[node.index] = stack
    return found


def skipped(stacks: dict[int, Stack]) -> set[int]:
    """Indices of the nodes that are part of one."""
    return {node.index for stack in stacks.values() for node in (stack.concat, *stack.parts)}


def emit(lifter: Lifter, node: Node, stack: Stack) -> None:
    """Add the sum."""
    tensors = [lifter.tensor(part.inputs[0]) for part in stack.parts]
    factor = 1.0 / len(tensors) if node.op == "ReduceMean" else 1.0
    axes = frozenset[int]().union(*map(lifter.axes_of, tensors))
    number = lifter.emit(node, g.Sum((factor,) * len(tensors)), tensors, axes)
    if number is None:
        lifter.emit(node, g.Opaque(), tensors, frozenset())
    else:
        lifter.lifted.stacks[number] = stack


def are_bared(lifted: Lifted, plan: Plan) -> bool:
    """Whether a step goes from behind a stack: over what is stacked then, there may be a sum."""
    makers = lifted.network.makers
    sites = [lifted.sites.get(number) for number in plan.removed]
    concats = [makers.get(site.source) for site in sites if isinstance(site, AffineSite)]
    return any(
        concat.op == "Concat" and {makers[name].op for name in concat.inputs} == {"Unsqueeze"}
        for concat in concats
        if concat is not None and makers.keys() >= {*concat.inputs}
    )


def _stack(lifter: Lifter, node: Node) -> Stack | None:
    axis = _axis(lifter, node)
    concat = _alone(lifter, node.inputs[0], "Concat")
    if axis is None or concat is None or node.integer("keepdims", 1):
        return None
    if concat.integer("axis") % len(lifter.shape(node.inputs[0]) or (1,)) != axis:
        return None
    parts = [_alone(lifter, name, "Unsqueeze") for name in concat.inputs]
    found = [part for part in parts if part is not None and _axis(lifter, part) == axis]
    if len(found) != len(parts) or len({id(part) for part in found}) != len(parts):
        return None
    if not all(lifter.is_activation(part.inputs[0]) for part in found):
        return None
    if any(each.index in lifter.shapes.blind for each in (node, concat, *found)):
        return None
    return Stack(concat, tuple(found))


def _alone(lifter: Lifter, name: str, kind: str) -> Node | None:
    """What makes a value that is read once, and by nobody outside."""
    maker = lifter.network.makers.get(name)
    is_alone = len(lifter.network.readers.get(name, ())) == 1 and not lifter.network.is_pinned(name)
    return maker if maker is not None and maker.op == kind and is_alone else None


def _axis(lifter: Lifter, node: Node) -> int | None:
    """The one axis that a node adds, or takes away, counted where it is there."""
    if name := node.input(1):
        array = lifter.constants.array(name)
        axes = None if array is None else [int(axis) for axis in array.reshape(-1)]
    else:
        axes = [*node.integers("axes")]
    there = node.outputs[0] if node.op == "Unsqueeze" else node.inputs[0]
    shape = lifter.shape(there)
    return axes[0] % len(shape) if axes and len(axes) == 1 and shape else None
