"""BatchNorm as events state it: a module call, or one of ATen's spellings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bnfold.frontends.torch.leaf_modules import BATCH_NORMS
from bnfold.frontends.torch.ops import Arguments, UnfitError, op_name
from bnfold.frontends.torch.recording import Const, Event, Value

_BATCH_NORM_OPS = {
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
    "instance_norm",
}


@dataclass(frozen=True, slots=True, eq=False)
class BatchNormSpec:
    """A BatchNorm as the event states it."""

    source: Value
    gamma: Tensor | None
    beta: Tensor | None
    mean: Tensor | None
    var: Tensor | None
    training: bool
    changing: bool
    """Whether a run writes to the running statistics, or computes them."""
    eps: float
    varies: bool = False
    """Whether the op is not the same in every run, or not there, and that is not why."""


def is_batch_norm(name: str) -> bool:
    """Whether an op of this name is a BatchNorm."""
    return name in _BATCH_NORM_OPS


def is_batch_norm_event(event: Event) -> bool:
    """Whether an event is a BatchNorm, and not arithmetic that does the same."""
    if isinstance(event.target, nn.Module):
        return isinstance(event.target, BATCH_NORMS)
    return is_batch_norm(op_name(event.target))


def batch_norm_spec(event: Event) -> BatchNormSpec | None:
    """A BatchNorm event, whatever its spelling."""
    if isinstance(event.target, nn.Module):
        return _leaf_spec(event) if isinstance(event.target, BATCH_NORMS) else None
    name = op_name(event.target)
    if name not in _BATCH_NORM_OPS:
        return None
    try:
        return _op_spec(name, Arguments(event), event.call.module)
    except UnfitError:
        return None


def _op_spec(name: str, a: Arguments, caller: nn.Module | None) -> BatchNormSpec | None:
    source, eps = a["input"], a.get("eps", "epsilon")
    parts = {key: a.get(key) for key in _TENSORS}
    if not isinstance(source, Value) or not isinstance(eps, int | float):
        return None
    if a.get("use_input_stats"):  # an instance norm; with running statistics it is a BatchNorm
        return None
    training = bool(a.get("training")) or name == "_batch_norm_with_update"
    if _is_computed(parts) and not isinstance(caller, BATCH_NORMS):
        return None  # gamma or beta are computed from the input: that is no BatchNorm
    return _spec(source, parts, training=training, eps=float(eps))


def _is_computed(parts: Mapping[str, Any]) -> bool:
    return isinstance(parts["weight"], Value) or isinstance(parts["bias"], Value)


_TENSORS = ("weight", "bias", "running_mean", "running_var")
"""What the tensors of a BatchNorm are called in schemas and modules."""


def _spec(source: Value, parts: Mapping[str, Any], *, training: bool, eps: float) -> BatchNormSpec:
    gamma, beta, mean, var = (
        part.tensor if isinstance(part, Const) else None for part in map(parts.get, _TENSORS)
    )
    changing = any(isinstance(parts[name], Value) for name in _TENSORS)
    if changing or mean is None or var is None:
        return BatchNormSpec(source, gamma, beta, None, None, training, changing, eps)
    return BatchNormSpec(source, gamma, beta, mean, var, training, changing, eps)


def _leaf_spec(event: Event) -> BatchNormSpec:
    module = event.target
    parts = {name: event.kwargs.get(name) for name in _TENSORS}
    return _spec(event.args[0], parts, training=bool(module.training), eps=module.eps)
