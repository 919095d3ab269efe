"""Affine steps of arithmetic with constants: a module that scales and shifts, or a single op."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from bnfold.core import graph as g
from bnfold.core.affine import Affine
from bnfold.frontends.torch.affine_chain import (
    Chain,
    can_be_replaced,
    is_read_elsewhere,
    is_shared,
    site_of,
    tie_of,
)
from bnfold.frontends.torch.arithmetic import arithmetic, only_adds, weighs
from bnfold.frontends.torch.leaf_modules import has_hooks
from bnfold.frontends.torch.lifter import AffineSite, Lifter, shape_of
from bnfold.frontends.torch.limits import growth_limit, range_limit
from bnfold.frontends.torch.ops import functional, node_of, op_name
from bnfold.frontends.torch.recording import Call, Derivation, Event, Value, constants
from bnfold.frontends.torch.symbolic import EVERY
from bnfold.frontends.torch.told_numbers import Length, Ratio


def constants_chain(
    lifter: Lifter, call: Call, events: list[Event], successors: tuple[nn.Module, ...]
) -> Chain | None:
    """A module that scales and shifts by constants of its own."""
    module, source = call.module, call.inputs[0]
    assert module is not None
    if not _holds_all_itself(module) or has_hooks(module):
        return None
    if not can_be_replaced(lifter, module) or is_read_elsewhere(lifter, module):
        return None
    if tie_of(lifter, module) is not None and successors:
        return None
    made = _in_a_row(lifter, source, events)
    if made is None or made[0].shape != source.shape:
        return None
    value, total = made
    flat = _per_channel(total, source)
    if flat is None or not flat.is_finite:
        return None
    gamma = _only_constant(lifter, events, _PRODUCTS, module)
    beta = _only_constant(lifter, events, _SUMS, module)
    role = g.AffineStep(
        flat.scale,
        flat.shift,
        kind=type(module).__name__,
        channels=flat.scale.size,
        factors=g.Parameter.editable_if(gamma is not None),
        summands=g.Parameter.editable_if(beta is not None),
        range_limit=range_limit(source.dtype),
        growth_limit=growth_limit(source.dtype),
        tie=tie_of(lifter, module),
    )
    site = site_of(module, successors, source, events[-1])
    site = _with_constant(site, gamma, beta)
    return Chain(tuple(events), source, value, role, site, call.name, is_batch_norm=False)


def _holds_all_itself(module: nn.Module) -> bool:
    """Whether it holds tensors, and no module in it does."""
    tensors = (*module._parameters.values(), *module._buffers.values())
    if any(any(True for _ in child.parameters()) for child in module.children()):
        return False
    return any(tensor is not None for tensor in tensors)


def _in_a_row(lifter: Lifter, source: Value, events: list[Event]) -> tuple[Value, Affine] | None:
    """What arithmetic with constants makes of a value, each step of the one before; None else."""
    value, total = source, None
    for event in events:
        step = arithmetic(event)
        output = event.outputs[0] if event.outputs else None
        if step is None or step[0].number != value.number or output is None:
            return None
        if event is not events[-1] and not lifter.single_use(output):
            return None
        value, total = output, step[1] if total is None else _compose(total, step[1])
    return None if total is None else (value, total)


def _with_constant(site: AffineSite, gamma: Tensor | None, beta: Tensor | None) -> AffineSite:
    """The same site, with the parameter that is its factors or its summands."""
    constant = gamma if gamma is not None else beta
    if constant is None:
        return site
    ones = np.ones(constant.numel())
    return replace(
        site, gamma=gamma, beta=beta, statistics=constant, mean=0.0 * ones, deviation=ones
    )


def _known(constant: Tensor | None, *, is_known: bool) -> g.Parameter:
    if constant is not None:
        return g.Parameter.EDITABLE
    return g.Parameter.FIXED if is_known else g.Parameter.UNKNOWN


_PRODUCTS = ("mul", "multiply")


_SUMS = ("add",)


def _only_constant(
    lifter: Lifter, events: list[Event], ops: tuple[str, ...], module: nn.Module | None
) -> Tensor | None:
    """The parameter of a step that is one of these ops alone, if nothing else uses it."""
    operands = [constant for event in events for constant in constants(event.args)]
    if len(events) != 1 or len(operands) != 1:
        return None
    if operands[0].how not in (Derivation.ITSELF, Derivation.RESHAPED):
        return None
    if functional(op_name(events[0].target)) not in ops:
        return None
    if len(events[0].args) > 2 or events[0].kwargs.get("alpha", 1) != 1:
        return None  # an operand is multiplied first
    origin = operands[0].origin
    if is_shared(lifter, origin, events[0], module) or not origin.dtype.is_floating_point:
        return None
    return origin


def _compose(first: Affine, second: Affine) -> Affine:
    scale, shift = np.broadcast_arrays(
        second.scale * first.scale, second.scale * first.shift + second.shift
    )
    return Affine(scale.copy(), shift.copy())


def _per_channel(affine: Affine, source: Value) -> Affine | None:
    """The constants at the input's rank, if they vary along one axis at most."""
    scale = shape_of(affine.scale, len(source.shape))
    shift = shape_of(affine.shift, len(source.shape))
    if sum(length > 1 for length in scale.shape) > 1:
        return None
    return Affine(scale, shift)


def arithmetic_chain(lifter: Lifter, event: Event) -> Chain | None:
    """Arithmetic with constants that no module of its own does.

    In a module it is seen through, not removed. In an exported program a step with constants that
    belong to the model, one or one per channel, is a node like any other, and can go; so can one
    that does nothing, as the first addition of `out = 0; out += ...`.
    """
    step = arithmetic(event)
    if step is None or not event.outputs or event.outputs[0] is None:
        return None
    source, affine = step
    output = event.outputs[0]
    if output.shape != source.shape or not affine.is_finite:
        return None
    flat = _per_channel(affine, source)
    is_open = event.number in lifter.open
    has_open_factor = bool(lifter.open.get(event.number, frozenset()) & {"alpha", EVERY})
    own = _by_parameters(lifter, event) and not is_open
    is_node = lifter.is_program and not is_open
    is_neutral = bool((affine.scale == 1).all() and (affine.shift == 0).all())
    is_removable = (own and flat is not None) or is_neutral
    is_wanted = node_of(event) is not None and is_node and is_removable
    # A number in a module's code may depend on values, or on how often it was run, and so may a
    # tensor that is not the model's own: nothing is built on what it is in this run.
    is_for_good = (
        own
        or is_node
        or (not is_open and lifter.knows_numbers and has_plain_numbers(lifter, event))
    )
    has_own_factors = is_for_good or (only_adds(event) and not has_open_factor)
    has_own_summands = is_node or (
        not is_open
        and all(id(c.origin) in lifter.owned for c in constants(event.args))
        and (is_for_good or not affine.shift.any())
    )
    if weighs(event) and not own:
        has_own_summands = is_node
    gamma, beta = _own_constant(lifter, event) if own and flat is not None else (None, None)
    role = g.AffineStep(
        affine.scale,
        affine.shift,
        kind=str(getattr(event.target, "_opname", "")),
        channels=affine.scale.size,
        removal=g.Removal.WANTED if is_wanted else g.Removal.UNASKED,
        factors=_known(gamma, is_known=has_own_factors),
        summands=_known(beta, is_known=has_own_summands),
        range_limit=range_limit(source.dtype),
        growth_limit=growth_limit(source.dtype),
    )
    site = _with_constant(site_of(None, (), source, event), gamma, beta)
    return Chain((event,), source, output, role, site, event.name, is_batch_norm=False)


def has_plain_numbers(lifter: Lifter, event: Event) -> bool:
    """Whether all that it computes with is the model's own, or numbers that know of no size."""
    given = (*event.args, *event.kwargs.values())
    told = any(isinstance(argument, Length | Ratio) for argument in given)
    return not told and all(id(c.origin) in lifter.owned for c in constants(event.args))


def _own_constant(lifter: Lifter, event: Event) -> tuple[Tensor | None, Tensor | None]:
    """The parameter that is an event's factors, or its summands, if this event alone uses it."""
    factors = _only_constant(lifter, [event], _PRODUCTS, None)
    return factors, _only_constant(lifter, [event], _SUMS, None)


def _by_parameters(lifter: Lifter, event: Event) -> bool:
    """Whether all constants of the event come from parameters and buffers."""
    operands = list(constants(event.args))
    given = [*event.args, event.kwargs.get("value"), event.kwargs.get("alpha")]
    numbers = any(isinstance(argument, int | float) for argument in given)
    return (
        bool(operands)
        and (lifter.is_program or not numbers)
        and all(id(c.origin) in lifter.owned for c in operands)
    )
