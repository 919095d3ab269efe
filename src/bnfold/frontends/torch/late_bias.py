"""A bias that is added behind its product: x @ W + b, and F.linear of what is not contiguous.

    y = mm(x, W)        y' = view(y), any number of times        z = y' + b

is one linear op with the bias b, as long as nobody else reads y or y'. Its output is said to be y,
and the sum does nothing: a linear op's law for shifts needs to know where the bias is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

from bnfold.frontends.torch.lifter import Lifter
from bnfold.frontends.torch.linear_ops import LinearSpec
from bnfold.frontends.torch.ops import Arguments, UnfitError, functional, op_name
from bnfold.frontends.torch.recording import Const, Event, Value, values

Spec = tuple[Event, LinearSpec]


def late_biases(lifter: Lifter, specs: Collection[Spec]) -> dict[int, tuple[LinearSpec, Event]]:
    """Per event number of a product: the op with its bias, and the event that adds it."""
    wanted = [spec for spec in specs if _may_have(*spec)]
    if not wanted:
        return {}
    reader = _only_readers(lifter)
    found = {}
    for event, spec in wanted:
        added = _added_behind(lifter, event, spec.role.out_channels, reader)
        if added is not None:
            found[event.number] = (replace(spec, bias=added[1]), added[0])
    return found


def _may_have(event: Event, spec: LinearSpec) -> bool:
    """Whether it is a product of matrices, which has no place for a bias of its own."""
    return spec.bias is None and op_name(event.target) in ("mm", "bmm", "matmul")


def _only_readers(lifter: Lifter) -> Callable[[Value], Event | None]:
    """Who reads a value, if one event does and nobody else."""
    readers: dict[int, Event] = {}
    for event in lifter.recording.events:
        for value in values(event.args, event.kwargs):
            readers[value.number] = event

    def only(value: Value) -> Event | None:
        return readers.get(value.number) if lifter.single_use(value) else None

    return only


_RESHAPES = ("view", "_unsafe_view", "reshape", "_reshape_alias")


def _added_behind(
    lifter: Lifter, event: Event, outs: int, reader: Callable[[Value], Event | None]
) -> tuple[Event, Const] | None:
    call, value = event.call, event.outputs[0]
    while value is not None and value.shape[-1:] == (outs,):
        behind = reader(value)
        if behind is None or behind.call.module is not call.module:
            return None
        if op_name(behind.target) not in _RESHAPES:
            return _as_bias(lifter, behind, value, outs)
        value = behind.outputs[0] if behind.outputs else None
    return None


def _as_bias(lifter: Lifter, event: Event, value: Value, outs: int) -> tuple[Event, Const] | None:
    """The event and what it adds to the value, if that is one parameter per output."""
    if event.number in lifter.open or functional(op_name(event.target)) != "add":
        return None
    try:
        arguments = Arguments(event)
        pair, alpha = [arguments["self"], arguments["other"]], arguments.number("alpha")
    except UnfitError:
        return None
    bias = next((part for part in pair if isinstance(part, Const)), None)
    output = event.outputs[0] if event.outputs else None
    if bias is None or alpha != 1.0 or output is None or output.shape != value.shape:
        return None
    if output.dtype != value.dtype or tuple(bias.tensor.shape) != (outs,):
        return None
    return (event, bias) if id(bias.origin) in lifter.owned else None
