"""The affine step of a BatchNorm: its constants, what of it may be edited, and why it must stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from bnfold.core import graph as g
from bnfold.core.affine import Affine, deviation_of
from bnfold.core.reasons import Reason
from bnfold.frontends.torch import affine_chain
from bnfold.frontends.torch.affine_chain import Chain
from bnfold.frontends.torch.batch_norms import BatchNormSpec
from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, has_hooks
from bnfold.frontends.torch.lifter import AffineSite, Lifter, to_numpy
from bnfold.frontends.torch.limits import growth_limit, range_limit
from bnfold.frontends.torch.ops import node_of
from bnfold.frontends.torch.recording import Call, Event


def batch_norm_chain(
    lifter: Lifter,
    event: Event,
    spec: BatchNormSpec,
    call: Call | None,
    successors: tuple[nn.Module, ...] | None,
) -> Chain | None:
    """The step of a BatchNorm op; of a module's `call`, with what else it ran, if that is known."""
    if not event.outputs or event.outputs[0] is None:
        return None
    module = call.module if call else None
    is_open = event.number in lifter.open
    is_ours = isinstance(module, _BatchNorm) or spec.changing or is_open
    by_sample = spec.training and isinstance(event.call.module, _InstanceNorm)
    if spec.mean is None and (by_sample or not is_ours):
        return None  # instance norm and weight standardisation are spelled this way: opaque
    tie = affine_chain.tie_of(lifter, module)
    site = affine_chain.site_of(module, successors or (), spec.source, event)
    affine = _affine_of(spec)
    refusal = _refusal(lifter, event, spec, affine, module, successors)
    role: g.Step
    if refusal is not None and refusal.reason in _UNKNOWN:
        role = g.RefusedStep(refusal, _kind(module), _channels(spec), tie)
    else:
        assert affine is not None
        site = _with_parameters(site, lifter, event, spec)
        role = _step(lifter, event, spec, affine, site, refusal, tie)
    name = call.name if call else event.name
    return Chain((event,), spec.source, event.outputs[0], role, site, name)


def _with_parameters(
    site: AffineSite, lifter: Lifter, event: Event, spec: BatchNormSpec
) -> AffineSite:
    """The site, with what it computes of and what of that are parameters of its own."""
    assert spec.mean is not None and spec.var is not None
    return replace(
        site,
        gamma=_own(lifter, event, spec.gamma, site.module),
        beta=_own(lifter, event, spec.beta, site.module),
        statistics=spec.mean,
        running_mean=_own(lifter, event, spec.mean, site.module),
        mean=to_numpy(spec.mean),
        deviation=deviation_of(to_numpy(spec.var), spec.eps),
    )


def _step(
    lifter: Lifter,
    event: Event,
    spec: BatchNormSpec,
    affine: Affine,
    site: AffineSite,
    refusal: g.Refusal | None,
    tie: int | None,
) -> g.AffineStep:
    assert site.mean is not None and site.deviation is not None
    spread, center = affine.as_batchnorm(site.mean, site.deviation)
    module, rank = site.module, len(spec.source.shape)
    gains = node_of(event) is not None or (can_gain(module) and _may_change(lifter, module))
    gives_way = site.beta is not None or gains
    return g.AffineStep(
        g.channel_array(affine.scale, 1, rank),
        g.channel_array(affine.shift, 1, rank),
        _kind(module),
        _channels(spec),
        removal=refusal or g.Removal.WANTED,
        # Another gamma makes another summand of the mean, for which beta has to make up.
        factors=g.Parameter.editable_if(gives_way and (site.gamma is not None or gains)),
        summands=g.Parameter.editable_if(gives_way),
        spread=g.channel_array(np.abs(spread), 1, rank),
        center=g.channel_array(center, 1, rank),
        range_limit=range_limit(spec.source.dtype),
        growth_limit=growth_limit(spec.source.dtype),
        tie=tie,
    )


def _kind(module: nn.Module | None) -> str:
    return type(module).__name__ if module else "batch_norm"


def _channels(spec: BatchNormSpec) -> int:
    return spec.source.shape[1] if len(spec.source.shape) > 1 else 0


def _refusal(
    lifter: Lifter,
    event: Event,
    spec: BatchNormSpec,
    affine: Affine | None,
    module: nn.Module | None,
    successors: tuple[nn.Module, ...] | None,
) -> g.Refusal | None:
    """Why it must stay, as far as it can be said before solving."""
    if affine is None:
        if spec.varies:
            return g.Refusal(Reason.VARIES)
        if module is None and event.number in lifter.open and not spec.training:
            return g.Refusal(Reason.NOT_CONSTANT)  # gamma.repeat(n), or a tracked InstanceNorm
        return g.Refusal(Reason.BATCH_STATISTICS, _why_not_constant(spec))
    if not affine.is_finite:
        return g.Refusal(Reason.BAD_STATISTICS)
    if node_of(event) is not None:
        if _has_other_readers(lifter, event):
            return g.Refusal(Reason.MODULE_DOES_MORE, "its other results are read")
    elif module is None:
        if lifter.is_program:
            return g.Refusal(Reason.MODULE_DOES_MORE, f"it is a part of {event.call.name}")
        return g.Refusal(Reason.FUNCTIONAL)
    elif has_hooks(module):
        return g.Refusal(Reason.HOOK)
    elif successors is None:
        return g.Refusal(Reason.MODULE_DOES_MORE, type(module).__name__)
    return None if module is None else _refusal_of_module(lifter, module)


def _refusal_of_module(lifter: Lifter, module: nn.Module) -> g.Refusal | None:
    """Why a module that could go must stay."""
    if any(module is other for other in lifter.recording.parted):
        return g.Refusal(Reason.VARIES)
    if not affine_chain.can_be_replaced(lifter, module):
        return g.Refusal(Reason.MODULE_DOES_MORE, "it is not a plain part of the model")
    if affine_chain.is_read_elsewhere(lifter, module):
        return g.Refusal(Reason.SHARED, "its parameters or statistics are read elsewhere")
    return None


_UNKNOWN = (
    Reason.BATCH_STATISTICS,
    Reason.NOT_CONSTANT,
    Reason.VARIES,
    Reason.BAD_STATISTICS,
)
"""Reasons why nothing is known of what a step computes."""


def _why_not_constant(spec: BatchNormSpec) -> str:
    if spec.training:
        return "in training mode"
    if spec.changing:
        return "the run writes to its statistics, or computes them"
    return "it has no running statistics"


def _has_other_readers(lifter: Lifter, event: Event) -> bool:
    """Whether somebody reads what a BatchNorm op returns besides the normalised values."""
    return any(value and lifter.readers.get(value.number) for value in event.outputs[1:])


def _affine_of(spec: BatchNormSpec) -> Affine | None:
    """What it computes; None if that is not constant."""
    if spec.training or spec.mean is None or spec.var is None:
        return None
    return Affine.from_batchnorm(
        to_numpy(spec.mean), to_numpy(spec.var), spec.eps, _numpy(spec.gamma), _numpy(spec.beta)
    )


def _numpy(tensor: Tensor | None) -> Any:
    return None if tensor is None else to_numpy(tensor)


def can_gain(module: nn.Module | None) -> bool:
    """Whether the module uses a gamma and beta that it is given."""
    return isinstance(module, BATCH_NORMS) and type(module).forward in {
        kind.forward for kind in BATCH_NORMS
    }


def _may_change(lifter: Lifter, module: nn.Module | None) -> bool:
    """Whether nobody would see that the module has other parameters."""
    assert module is not None
    is_ours = id(module) in lifter.recording.members
    return is_ours and not affine_chain.is_read_elsewhere(lifter, module)


def _own(
    lifter: Lifter, event: Event, tensor: Tensor | None, module: nn.Module | None
) -> Tensor | None:
    """The tensor, if it is one of the model's that nothing but this step uses."""
    if tensor is None or id(tensor) not in lifter.owned:
        return None
    return None if affine_chain.is_shared(lifter, tensor, event, module) else tensor
