"""BatchNorm as events state it: a module call, or one of ATen's spellings."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from bnfold.frontends.torch.leaves import BATCH_NORMS
from bnfold.frontends.torch.recording import Event, Value

_BATCH_NORM_OPS = {
    "batch_norm",
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "_batch_norm_with_update",
    "_batch_norm_no_update",
    "cudnn_batch_norm",
    "miopen_batch_norm",
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
    eps: float


def is_batch_norm(name: str) -> bool:
    """Whether an op of this name is a BatchNorm."""
    return name in _BATCH_NORM_OPS


def batch_norm_spec(event: Event) -> BatchNormSpec | None:
    """A BatchNorm event, whatever its spelling."""
    if isinstance(event.target, nn.Module):
        return _leaf_spec(event) if isinstance(event.target, BATCH_NORMS) else None
    if getattr(event.target, "_opname", "") not in _BATCH_NORM_OPS:
        return None
    named = dict(zip((a.name for a in event.target._schema.arguments), event.args, strict=False))
    named |= event.kwargs
    source = named["input"]
    rest = {key: named.get(key) for key in ("weight", "bias", "running_mean", "running_var")}
    if not isinstance(source, Value) or any(isinstance(part, Value) for part in rest.values()):
        return None
    tensors = {key: None if part is None else part.tensor for key, part in rest.items()}
    training = bool(named.get("training", named.get("train", False)))
    if event.target._opname == "_batch_norm_with_update":
        training = True
    return BatchNormSpec(
        source,
        tensors["weight"],
        tensors["bias"],
        tensors["running_mean"],
        tensors["running_var"],
        training or tensors["running_mean"] is None,
        float(named["eps"] if "eps" in named else named["epsilon"]),
    )


def _leaf_spec(event: Event) -> BatchNormSpec | None:
    module = event.target
    found = {}
    for name in ("weight", "bias", "running_mean", "running_var"):
        constant = event.kwargs.get(name)
        if isinstance(constant, Value):
            return None
        found[name] = None if constant is None else constant.tensor
    missing = found["running_mean"] is None or found["running_var"] is None
    return BatchNormSpec(
        event.args[0],
        found["weight"],
        found["bias"],
        found["running_mean"],
        found["running_var"],
        bool(module.training or missing),
        module.eps,
    )
