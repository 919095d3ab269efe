"""The affine step of a BatchNorm: its constants, what of it may be edited, and why it must stay."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from bnfold.core import graph as g
from bnfold.core.affine import Affine, deviation_of
from bnfold.core.reasons import Reason
from bnfold.frontends.torch import affine_chain
from bnfold.frontends.torch.affine_chain import Chain
from bnfold.frontends.torch.batch_norms import BatchNormSpec
from bnfold.frontends.torch.leaf_modules import BATCH_NORMS, is_hooked
from bnfold.frontends.torch.lifter import Lifter, to_numpy
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
    if spec.mean is None and not (isinstance(module, _BatchNorm) or spec.changing or is_open):
        return None  # instance norm and weight standardisation are spelled this way: opaque
    channels = _channels(spec)
    kind = type(module).__name__ if module else "batch_norm"
    tie = affine_chain.tie_of(lifter, module)
    name = call.name if call else event.name
    site = affine_chain.site_of(module, successors or (), spec.source, event)
    is_node = node_of(event) is not None
    affine = _affine_of(spec)
    refusal = _refusal(spec, affine, module, successors, is_node=is_node, is_open=is_open)
    if refusal is None and is_node and _has_other_readers(lifter, event):
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, "its other results are read")
    if refusal is not None and refusal.reason is Reason.FUNCTIONAL and lifter.is_program:
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, f"it is a part of {event.call.name}")
    if refusal is None and module is not None and not affine_chain.can_be_replaced(lifter, module):
        refusal = g.Refusal(Reason.MODULE_DOES_MORE, "it is not a plain part of the model")
    if refusal is None and module is not None and affine_chain.is_read_elsewhere(lifter, module):
        refusal = g.Refusal(Reason.SHARED, "its parameters or statistics are read elsewhere")
    if refusal is not None and refusal.reason in _UNKNOWN:
        refused = g.RefusedStep(refusal, kind, channels, tie)
        return Chain((event,), spec.source, event.outputs[0], refused, site, name)
    assert affine is not None and spec.mean is not None and spec.var is not None
    mean, deviation = to_numpy(spec.mean), deviation_of(to_numpy(spec.var), spec.eps)
    spread, center = affine.as_batchnorm(mean, deviation)
    rank = len(spec.source.shape)
    gamma, beta = _editable(lifter, event, spec, module)
    gains = is_node or (can_gain(module) and _may_change(lifter, module))
    gives_way = beta is not None or gains
    role = g.AffineStep(
        g.channel_array(affine.scale, 1, rank),
        g.channel_array(affine.shift, 1, rank),
        kind,
        channels,
        removal=refusal or g.Removal.WANTED,
        # Another gamma makes another summand of the mean, for which beta has to make up.
        factors=g.Parameter.editable_if(gives_way and (gamma is not None or gains)),
        summands=g.Parameter.editable_if(gives_way),
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
        running_mean=_own(lifter, event, spec.mean, module),
        mean=mean,
        deviation=deviation,
    )
    return Chain((event,), spec.source, event.outputs[0], role, site, name)


def _channels(spec: BatchNormSpec) -> int:
    return spec.source.shape[1] if len(spec.source.shape) > 1 else 0


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
        if spec.varies:
            return g.Refusal(Reason.VARIES)
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
    return "the run writes to its statistics" if spec.changing else "it has no running statistics"


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


def _editable(
    lifter: Lifter, event: Event, spec: BatchNormSpec, module: nn.Module | None
) -> tuple[Tensor | None, Tensor | None]:
    """gamma and beta where they are parameters that nothing but this step uses."""
    return _own(lifter, event, spec.gamma, module), _own(lifter, event, spec.beta, module)


def _own(
    lifter: Lifter, event: Event, tensor: Tensor | None, module: nn.Module | None
) -> Tensor | None:
    """The tensor, if it is one of the model's that nothing but this step uses."""
    if tensor is None or id(tensor) not in lifter.owned:
        return None
    return None if affine_chain.is_shared(lifter, tensor, event, module) else tensor
