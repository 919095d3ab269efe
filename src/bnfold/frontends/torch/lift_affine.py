"""Affine steps: BatchNorm calls, and arithmetic with constants.

A BatchNorm is removable where its module can be replaced by what else the module did: nothing
(nn.BatchNorm2d), or some child modules in a row (timm's BatchNormAct2d: dropout and activation). A
module that scales and shifts by constants of its own (FrozenBatchNorm2d, LayerScale) is one affine
step too. Arithmetic that a larger module does in passing can be seen through but not removed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.core import graph as g
from bnfold.core.affine import Affine, deviation_of
from bnfold.core.reasons import Reason
from bnfold.frontends.torch.arithmetic import arithmetic, only_adds
from bnfold.frontends.torch.batch_norms import BatchNormSpec, batch_norm_spec
from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, is_hooked, overrides_call
from bnfold.frontends.torch.lifter import AffineSite, Lifter, shape_of, to_numpy
from bnfold.frontends.torch.limits import growth_limit, range_limit
from bnfold.frontends.torch.ops import functional, node_of, op_name
from bnfold.frontends.torch.recording import Call, Derivation, Event, Value, constants, values
from bnfold.frontends.torch.symbolic import EVERY


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """Consecutive events that make one affine step."""

    events: tuple[Event, ...]
    source: Value
    output: Value
    role: g.Step
    site: AffineSite
    name: str
    is_batch_norm: bool = True
    """False for a step made of arithmetic."""


@dataclass(slots=True)
class Steps:
    """All affine steps of a recording."""

    chains: dict[int, Chain] = field(default_factory=dict)
    """Per number of the first event."""
    skipped: set[int] = field(default_factory=set)
    """Numbers of the other events of the chains."""


def survey(lifter: Lifter) -> Steps:
    """Find all affine steps: whole modules first, then single events."""
    steps = Steps()
    for calls in lifter.recording.calls.values():
        chains = [_module_chain(lifter, call) for call in calls]
        left = {chain.site.successors for chain in chains if chain is not None}
        if any(chains) and (None in chains or len(left) > 1):
            # One of its calls did something else: what replaces the module would be wrong there.
            chains = [_refused(chain) for chain in chains]
        for chain in chains:
            _register(steps, chain)
    for event in lifter.recording.events:
        if event.number in steps.chains or event.number in steps.skipped:
            continue
        spec = _spec_of(lifter, event)
        if spec is not None:
            _register(steps, _batch_norm_chain(lifter, event, spec, None, ()))
            continue
        _register(steps, _arithmetic_chain(lifter, event))
    return steps


def _refused(chain: Chain | None) -> Chain | None:
    """The same step, as one that must stay; a step of constants is left to its single events."""
    if chain is None or isinstance(chain.role, g.RefusedStep) or chain.role.refusal is not None:
        return chain
    if not chain.is_batch_norm:
        return None
    refusal = g.Refusal(Reason.MODULE_DOES_MORE, "another call of it did something else")
    return replace(chain, role=replace(chain.role, removal=refusal))


def emit(lifter: Lifter, chain: Chain) -> None:
    """Add the op."""
    last = chain.events[-1]
    inputs = [lifter.tensor(chain.source)]
    if isinstance(
        chain.role, g.RefusedStep
    ):  # it may read more that depends on the input: its statistics
        inputs = [lifter.tensor(value) for value in values(last.args, last.kwargs)]
    number = lifter.emit(last, chain.role, inputs, outputs=[chain.output], name=chain.name)
    lifter.sites[number] = chain.site


def _register(steps: Steps, chain: Chain | None) -> None:
    if chain is None or any(
        event.number in steps.chains or event.number in steps.skipped for event in chain.events
    ):
        return
    first, *rest = chain.events
    steps.chains[first.number] = chain
    steps.skipped.update(event.number for event in rest)


# -------------------------------------------------------------------- modules


def _module_chain(lifter: Lifter, call: Call) -> Chain | None:
    """The affine step that a module consists of, with what else it did."""
    module = call.module
    if module is None:
        return None
    leading = _leading_events(call)
    if not leading:
        return None
    successors = _successors(call, leading[-1])
    spec = _spec_of(lifter, leading[0])
    if spec is not None and len(leading) == 1:
        owner = _owns(module, spec.mean) or (spec.mean is None and isinstance(module, _BatchNorm))
        return _batch_norm_chain(lifter, leading[0], spec, call, successors) if owner else None
    if spec is not None or successors is None or not call.single:
        return None
    if any(event.number in lifter.open for event in leading):
        return None
    return _constants_chain(lifter, call, leading, successors)


def _spec_of(lifter: Lifter, event: Event) -> BatchNormSpec | None:
    """A BatchNorm, one that is not the same in every run included."""
    spec = batch_norm_spec(event)
    if spec is None or event.number not in lifter.open:
        return spec
    return replace(spec, mean=None, var=None, changing=True)


def _leading_events(call: Call) -> list[Event]:
    """The events directly inside a call, if they come before all calls of children."""
    events: list[Event] = []
    for index, item in enumerate(call.items):
        if isinstance(item, Event):
            if index != len(events):
                return []
            events.append(item)
    return events


def _successors(call: Call, last: Event) -> tuple[nn.Module, ...] | None:
    """The child modules that ran one after the other behind the affine step; None if otherwise."""
    value = last.outputs[0] if last.outputs else None
    if value is None or not call.single or not call.outputs:
        return None
    successors: list[nn.Module] = []
    for item in call.items:
        if not isinstance(item, Call):
            continue
        if not item.single or item.inputs[0].number != value.number or item.module is None:
            return None
        if not item.outputs:
            return None
        value = item.outputs[0]
        if item.items:
            successors.append(item.module)
    return tuple(successors) if value.number == call.outputs[0].number else None


def _owns(module: nn.Module, tensor: Tensor | None) -> bool:
    own = (*module._parameters.values(), *module._buffers.values())
    return tensor is not None and any(tensor is candidate for candidate in own)


def _batch_norm_chain(
    lifter: Lifter,
    event: Event,
    spec: BatchNormSpec,
    call: Call | None,
    successors: tuple[nn.Module, ...] | None,
) -> Chain | None:
    if not event.outputs or event.outputs[0] is None:
        return None
    module = call.module if call else None
    if spec.mean is None and not (isinstance(module, _BatchNorm) or spec.changing):
        return None  # instance norm and weight standardisation are spelled this way: opaque
    channels = _channels(spec)
    kind = type(module).__name__ if module else "batch_norm"
    tie = _tie(lifter, module)
    name = call.name if call else event.name
    site = _site(module, successors or (), spec.source, event)
    is_node = node_of(event) is not None
    affine = _affine_of(spec)
    is_open = event.number in lifter.open
    refusal = _refusal(spec, affine, module, successors, is_node=is_node, is_open=is_open)
    if refusal is None and is_node and _has_other_readers(lifter, event):
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, "its other results are read")
    if refusal is not None and refusal.reason is Reason.FUNCTIONAL and lifter.is_program:
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, f"it is a part of {event.call.name}")
    if refusal is None and module is not None and not _can_be_replaced(lifter, module):
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, "it is not a plain part of the model")
    if refusal is None and module is not None and _is_read_elsewhere(lifter, module):
        refusal = g.Refusal(Reason.SHARED, "its parameters or statistics are read elsewhere")
    if refusal is not None and refusal.reason in _UNKNOWN:
        refused = g.RefusedStep(refusal, kind, channels, tie)
        return Chain((event,), spec.source, event.outputs[0], refused, site, name)
    assert affine is not None and spec.mean is not None and spec.var is not None
    mean, deviation = to_numpy(spec.mean), deviation_of(to_numpy(spec.var), spec.eps)
    spread, center = affine.as_batchnorm(mean, deviation)
    rank = len(spec.source.shape)
    gamma, beta = _editable(lifter, event, spec)
    gains = is_node or (can_gain(module) and id(module) in lifter.recording.members)
    role = g.AffineStep(
        g.channel_array(affine.scale, 1, rank),
        g.channel_array(affine.shift, 1, rank),
        kind,
        channels,
        removal=refusal or g.Removal.WANTED,
        factors=g.Parameter.editable_if(gamma is not None or gains),
        summands=g.Parameter.editable_if(beta is not None or gains),
        spread=g.channel_array(np.abs(spread), 1, rank),
        center=g.channel_array(center, 1, rank),
        range_limit=range_limit(spec.source.dtype),
        growth_limit=growth_limit(spec.source.dtype),
        tie=tie,
    )
    site = replace(
        site,
        gamma=gamma,
        beta=beta,
        statistics=spec.mean,
        running_mean=_own(lifter, event, spec.mean),
        mean=mean,
        deviation=deviation,
    )
    return Chain((event,), spec.source, event.outputs[0], role, site, name)


def _site(
    module: nn.Module | None, successors: tuple[nn.Module, ...], source: Value, last: Event
) -> AffineSite:
    output = last.outputs[0]
    node = node_of(last)
    return AffineSite(
        module,
        successors,
        source=source,
        output=output,
        event=last.number,
        nodes=() if node is None else (node,),
    )


def _numpy(tensor: Tensor | None) -> Any:
    return None if tensor is None else to_numpy(tensor)


def _channels(spec: BatchNormSpec) -> int:
    return spec.source.shape[1] if len(spec.source.shape) > 1 else 0


def _tie(lifter: Lifter, module: nn.Module | None) -> int | None:
    if module is None or len(lifter.recording.calls.get(id(module), ())) < 2:
        return None
    return id(module)


def _refusal(
    spec: BatchNormSpec,
    affine: Affine | None,
    module: nn.Module | None,
    successors: tuple[nn.Module, ...] | None,
    *,
    is_node: bool,
    is_open: bool,
) -> g.Refusal | None:
    """Why it must stay, as far as it can be said before solving."""
    if affine is None:
        if is_open and module is None:  # gamma.repeat(n), and what a tracked InstanceNorm does
            return g.Refusal(Reason.NOT_CONSTANT)
        return g.Refusal(Reason.BATCH_STATISTICS, _why_not_constant(spec))
    if not affine.is_finite:
        return g.Refusal(Reason.BAD_STATISTICS)
    if is_node:
        return None
    if module is None:
        return g.Refusal(Reason.FUNCTIONAL)
    if is_hooked(module):
        return g.Refusal(Reason.HOOK)
    if successors is None:
        return g.Refusal(Reason.MODULE_DOES_MORE, type(module).__name__)
    return None


_UNKNOWN = (Reason.BATCH_STATISTICS, Reason.NOT_CONSTANT, Reason.BAD_STATISTICS)
"""Reasons why nothing is known of what a step computes."""


def _why_not_constant(spec: BatchNormSpec) -> str:
    if spec.changing:
        return "the run writes to its statistics"
    return "in training mode" if spec.training else "it has no running statistics"


def _has_other_readers(lifter: Lifter, event: Event) -> bool:
    """Whether somebody reads what a BatchNorm op returns besides the normalised values."""
    return any(value and lifter.readers.get(value.number) for value in event.outputs[1:])


def _can_be_replaced(lifter: Lifter, module: nn.Module) -> bool:
    if id(module) not in lifter.recording.members:
        return False
    return not overrides_call(type(module)) and not isinstance(module, torch.jit.ScriptModule)


def _affine_of(spec: BatchNormSpec) -> Affine | None:
    """What it computes; None if that is not constant."""
    if spec.training or spec.mean is None or spec.var is None:
        return None
    return Affine.from_batchnorm(
        to_numpy(spec.mean), to_numpy(spec.var), spec.eps, _numpy(spec.gamma), _numpy(spec.beta)
    )


def can_gain(module: nn.Module | None) -> bool:
    """Whether the module uses a gamma and beta that it is given."""
    return isinstance(module, BATCH_NORMS) and type(module).forward in {
        kind.forward for kind in BATCH_NORMS
    }


def _editable(
    lifter: Lifter, event: Event, spec: BatchNormSpec
) -> tuple[Tensor | None, Tensor | None]:
    """gamma and beta where they are parameters that nothing but this module's calls uses."""
    if spec.gamma is not None and spec.gamma is spec.beta:
        return None, None
    return _own(lifter, event, spec.gamma), _own(lifter, event, spec.beta)


def _own(lifter: Lifter, event: Event, tensor: Tensor | None) -> Tensor | None:
    """The tensor, if it is one of the model's that nothing but this module's calls uses."""
    if tensor is None or id(tensor) not in lifter.owned or _shared(lifter, tensor, event):
        return None
    return tensor


def _shared(lifter: Lifter, tensor: Tensor, event: Event) -> bool:
    own = event.call.module
    uses = lifter.recording.parameter_uses.get(id(tensor), [])
    foreign = any(
        use.event is None or use.call.module is not own or use.event.target != event.target
        for use in uses
    )
    return foreign or (own is None and len(uses) > 1)


def _is_read_elsewhere(lifter: Lifter, module: nn.Module) -> bool:
    """Whether somebody else reads the parameters or statistics of a module that would vanish.

    A module with a name of its own for the tensor still has it then: two BatchNorms with one gamma.
    """
    return any(
        use.call.module is not module and not _has_its_own_name(use.call.module, tensor, module)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        for use in lifter.recording.parameter_uses.get(id(tensor), ())
    )


def _has_its_own_name(reader: nn.Module | None, tensor: Tensor | None, module: nn.Module) -> bool:
    if reader is None or not _owns(reader, tensor):
        return False
    return all(part is not module for part in reader.modules())  # it reads its own, not ours


# -------------------------------------------------------------------- arithmetic


def _constants_chain(
    lifter: Lifter, call: Call, events: list[Event], successors: tuple[nn.Module, ...]
) -> Chain | None:
    """A module that scales and shifts by constants of its own."""
    module = call.module
    assert module is not None
    own = any(
        tensor is not None for tensor in (*module._parameters.values(), *module._buffers.values())
    )
    if not own or any(any(True for _ in child.parameters()) for child in module.children()):
        return None
    if not _can_be_replaced(lifter, module) or _is_read_elsewhere(lifter, module):
        return None
    if is_hooked(module) or (_tie(lifter, module) is not None and successors):
        return None
    source, total = call.inputs[0], None
    value = source
    for event in events:
        step = arithmetic(event)
        if (
            step is None
            or step[0].number != value.number
            or not event.outputs
            or event.outputs[0] is None
        ):
            return None
        total = step[1] if total is None else _compose(total, step[1])
        if event is not events[-1] and not lifter.single_use(event.outputs[0]):
            return None
        value = event.outputs[0]
    if total is None or value.shape != source.shape:
        return None
    flat = _per_channel(total, source)
    if flat is None or not flat.is_finite:
        return None
    gamma = _only_constant(lifter, events, _PRODUCTS)
    beta = _only_constant(lifter, events, _SUMS)
    role = g.AffineStep(
        flat.scale,
        flat.shift,
        kind=type(module).__name__,
        channels=flat.scale.size,
        factors=g.Parameter.editable_if(gamma is not None),
        summands=g.Parameter.editable_if(beta is not None),
        range_limit=range_limit(source.dtype),
        growth_limit=growth_limit(source.dtype),
        tie=_tie(lifter, module),
    )
    site = _site(module, successors, source, events[-1])
    constant = gamma if gamma is not None else beta
    if constant is not None:
        ones = np.ones(constant.numel())
        site = replace(
            site, gamma=gamma, beta=beta, statistics=constant, mean=0.0 * ones, deviation=ones
        )
    return Chain(tuple(events), source, value, role, site, call.name, is_batch_norm=False)


_PRODUCTS = ("mul", "multiply")
_SUMS = ("add",)


def _only_constant(lifter: Lifter, events: list[Event], ops: tuple[str, ...]) -> Tensor | None:
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
    if _shared(lifter, origin, events[0]) or not origin.dtype.is_floating_point:
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


def _by_parameters(lifter: Lifter, event: Event) -> bool:
    """Whether all constants of the event come from parameters and buffers."""
    operands = list(constants(event.args))
    numbers = any(isinstance(argument, int | float) for argument in event.args[:2])
    return bool(operands) and not numbers and all(id(c.origin) in lifter.owned for c in operands)


def _arithmetic_chain(lifter: Lifter, event: Event) -> Chain | None:
    """Arithmetic with constants that no module of its own does.

    In a module it is seen through, not removed. In an exported program a step with constants per
    channel that belong to the model is a node like any other, and can go; so can one that does
    nothing, as the first addition of `out = 0; out += ...`.
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
    per_channel = flat is not None and flat.scale.size > 1
    is_neutral = bool((affine.scale == 1).all() and (affine.shift == 0).all())
    is_removable = (own and per_channel) or is_neutral
    is_wanted = node_of(event) is not None and is_node and is_removable
    # A number in a module's code may depend on the shape or on values, and so may a tensor
    # that is not the model's own: nothing is built on what it is in this run.
    has_own_factors = own or is_node or (only_adds(event) and not has_open_factor)
    has_own_summands = not is_open and (
        is_node or all(id(c.origin) in lifter.owned for c in constants(event.args))
    )
    role = g.AffineStep(
        affine.scale,
        affine.shift,
        kind=str(getattr(event.target, "_opname", "")),
        channels=affine.scale.size,
        removal=g.Removal.WANTED if is_wanted else g.Removal.UNASKED,
        factors=g.Parameter.FIXED if has_own_factors else g.Parameter.UNKNOWN,
        summands=g.Parameter.FIXED if has_own_summands else g.Parameter.UNKNOWN,
        range_limit=range_limit(source.dtype),
        growth_limit=growth_limit(source.dtype),
    )
    site = _site(None, (), source, event)
    return Chain((event,), source, output, role, site, event.name, is_batch_norm=False)
