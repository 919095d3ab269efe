"""Linear ops: convolutions, transposed convolutions, matrix products, embeddings.

A weight or bias may be edited if it is a parameter (or buffer) of the model itself and every use of
it in the run is as the weight (or bias) of such an op, always in the same way. Several uses are
tied: the solver finds one edit for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from bnfold.core import graph as g
from bnfold.core.affine import FloatArray
from bnfold.core.weights import Layout
from bnfold.frontends.torch.late_bias import late_biases
from bnfold.frontends.torch.lifter import Lifter, LinearSite, is_floating, to_numpy
from bnfold.frontends.torch.limits import narrowing
from bnfold.frontends.torch.linear_ops import LinearSpec, linear_spec
from bnfold.frontends.torch.ops import op_name
from bnfold.frontends.torch.recording import Derivation, Event, Value, values


@dataclass(slots=True)
class Linears:
    """All linear ops of a recording."""

    specs: dict[int, LinearSpec] = field(default_factory=dict)
    """Per event number."""
    by_weight: dict[int, list[Event]] = field(default_factory=dict)
    """Events per id(parameter) used as weight."""
    adders: dict[int, int] = field(default_factory=dict)
    """Per number of an event that adds a bias behind a product, the number of that product."""
    binary_network: bool = False
    """Whether signs of activations are taken anywhere."""


def survey(lifter: Lifter) -> Linears:
    """Find all linear ops before any is lifted: what may be edited depends on all uses."""
    linears = Linears()
    for event in lifter.recording.events:
        if event.number in lifter.open:
            continue
        spec = linear_spec(event)
        if spec is not None and (is_floating(spec.source) or not spec.role.in_channels):
            linears.specs[event.number] = spec
            linears.by_weight.setdefault(id(spec.weight.origin), []).append(event)
        linears.binary_network |= op_name(event.target) in _SIGNS
    products = [(event, linears.specs[event.number]) for event in _events(linears)]
    for number, (spec, adder) in late_biases(lifter, products).items():
        linears.specs[number] = spec
        linears.adders[adder.number] = number
    return linears


def _events(linears: Linears) -> list[Event]:
    return [event for events in linears.by_weight.values() for event in events]


_SIGNS = {"sign", "sign_", "sgn", "ge", "gt", "le", "lt"}


def emit(lifter: Lifter, event: Event, linears: Linears) -> None:
    """Add the op and say where its parameters are."""
    spec = linears.specs[event.number]
    weight = _weight_freedom(lifter, spec, linears)
    bias_editable, bias = _bias_freedom(lifter, spec, linears)
    uses = linears.by_weight[id(spec.weight.origin)]
    editable = weight is not g.Weight.FIXED
    # Even a fixed weight ties the bias of its uses.
    tie = id(spec.weight.origin) if len(uses) > 1 and (editable or bias_editable) else None
    role = replace(
        spec.role,
        weight=weight,
        bias_editable=bias_editable,
        bias=None if spec.bias is None or bias_editable else _fixed_bias(lifter, spec),
        depthwise_sum=None if editable else _depthwise_sum(lifter, spec),
        tie=tie,
        **_narrowing(event, spec.source),
    )
    inputs = [lifter.tensor(spec.source)]
    number = _emit_gates(lifter, event, role, inputs) if spec.is_gated else None
    number = lifter.emit(event, role, inputs) if number is None else number
    is_whole = spec.weight.is_itself or spec.weight.is_transposed
    content = spec.weight.origin if is_whole else spec.weight.tensor
    lifter.sites[number] = LinearSite(
        content,
        spec.weight.origin if editable else None,
        bias,
        spec.layout,
        spec.role.groups,
        _bias_taker(lifter, spec) if bias_editable else None,
        spec.node if bias_editable else None,
    )


def _emit_gates(lifter: Lifter, event: Event, role: g.Linear, inputs: list[int]) -> int:
    """A recurrent layer: a linear op of its input, and what is not linear behind that."""
    source, *others = values(event.args, event.kwargs)
    shape = (*source.shape[:-1], role.out_channels)
    gates = lifter.graph.add(event.name, role, inputs, [shape])
    number = len(lifter.graph.ops) - 1
    lifter.emit(event, g.Opaque(), [*gates, *map(lifter.tensor, others)])
    return number


def emit_adder(lifter: Lifter, event: Event) -> None:
    """The sum of a product and its bias, which the product has already."""
    (value,) = values(event.args, event.kwargs)
    lifter.emit(event, g.View(list), [lifter.tensor(value)])


_AS_A_MATRIX = (Derivation.ITSELF, Derivation.TRANSPOSED, Derivation.SIGNS)
_EDITABLE = {Layout.OUT_IN: _AS_A_MATRIX, Layout.IN_OUT: _AS_A_MATRIX}
"""What may have been made of a weight that is edited."""


def _weight_freedom(lifter: Lifter, spec: LinearSpec, linears: Linears) -> g.Weight:
    weight = spec.weight
    allowed = _EDITABLE.get(spec.layout, (Derivation.ITSELF,))
    if id(weight.origin) not in lifter.owned or weight.how not in allowed:
        return g.Weight.FIXED
    if not weight.origin.dtype.is_floating_point:
        return g.Weight.FIXED
    uses = lifter.recording.parameter_uses[id(weight.origin)]
    known = {id(event) for event in linears.by_weight[id(weight.origin)]}
    events = [use.event for use in uses if use.event is not None]
    if len(events) < len(uses) or any(id(event) not in known for event in events):
        return g.Weight.FIXED
    specs = [linears.specs[event.number] for event in events]
    if any(other.use != spec.use for other in specs):
        return g.Weight.FIXED
    if any(other.bias is not None and other.bias.origin is weight.origin for other in specs):
        return g.Weight.FIXED
    if weight.how is Derivation.SIGNS or (linears.binary_network and _is_binary(weight.origin)):
        return g.Weight.SIGNS
    return g.Weight.FREE


def _bias_taker(lifter: Lifter, spec: LinearSpec) -> nn.Module | None:
    """The module that can be given a bias it does not have."""
    if spec.bias is not None:
        return lifter.recording.lent_biases.get(id(spec.bias.origin))
    return spec.module


def _is_binary(weight: Tensor) -> bool:
    """+c and -c, and nothing else."""
    magnitude = weight.detach().abs()
    first = magnitude.reshape(-1)[:1]
    return bool((magnitude == first).all()) and bool((first > 0).all())


def _bias_freedom(lifter: Lifter, spec: LinearSpec, linears: Linears) -> tuple[bool, Tensor | None]:
    """Whether the bias may be edited or born, and the parameter if there is one."""
    if spec.layout is Layout.ROWS_OUT:  # the rows themselves take the shift
        return _weight_freedom(lifter, spec, linears) is g.Weight.FREE, None
    owner_uses = linears.by_weight[id(spec.weight.origin)]
    if any(linears.specs[event.number].use != spec.use for event in owner_uses):
        return False, None
    if spec.bias is None:
        return spec.node is not None or id(spec.module) in lifter.recording.members, None
    origin = spec.bias.origin
    lent_to = lifter.recording.lent_biases.get(id(origin))
    if lent_to is not None:
        return id(lent_to) in lifter.recording.members, None
    if (
        id(origin) not in lifter.owned
        or not spec.bias.is_itself
        or not origin.dtype.is_floating_point
    ):
        return False, None
    same = {event.number for event in owner_uses}
    for use in lifter.recording.parameter_uses[id(origin)]:
        number = -1 if use.event is None else use.event.number
        if linears.adders.get(number, number) not in same:
            return False, None
    return True, origin


def _fixed_bias(lifter: Lifter, spec: LinearSpec) -> FloatArray:
    """Which outputs a bias that stays keeps in scale: those where it is not 0 in every run."""
    assert spec.bias is not None
    known = lifter.is_known(spec.bias)
    return to_numpy(spec.bias.tensor) if known else np.ones(spec.role.out_channels)


def _depthwise_sum(lifter: Lifter, spec: LinearSpec) -> FloatArray | None:
    role = spec.role
    if role.groups == 1 or role.groups != role.in_channels or role.crosses_zeros:
        return None
    if spec.layout is not Layout.OUT_IN or not lifter.is_known(spec.weight):
        return None
    taps = to_numpy(spec.weight.tensor)
    total: FloatArray = taps.reshape(taps.shape[0], -1).sum(axis=1)
    return total


def _narrowing(event: Event, source: Value) -> dict[str, Any]:
    """The limits of the dtype it computes in, where autocast has it compute in another one."""
    made = event.outputs[0]
    return {} if made is None else narrowing(source.dtype, made.dtype)
