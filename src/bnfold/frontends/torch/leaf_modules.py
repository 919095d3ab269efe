"""Modules that are understood as a whole: their call is one op, and they can be replaced.

A module counts only while it computes what its class says: its forward is PyTorch's own, nothing
hooks into it, and its parameters are plain parameters.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules import module as module_hooks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
CLIPS = (nn.ReLU, nn.ReLU6, nn.Hardtanh)
_PADS = {
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(getattr(nn, name) for name in ("ZeroPad1d", "ZeroPad2d", "ZeroPad3d") if hasattr(nn, name)),
}
_LEAVES = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear, nn.Embedding, *BATCH_NORMS, *CLIPS)

_FORWARDS = {leaf.forward for leaf in _LEAVES}
_INNER = {
    getattr(leaf, name)
    for leaf in (*CONVOLUTIONS, *TRANSPOSED)
    for name in ("_conv_forward", "_output_padding")
    if hasattr(leaf, name)
}
_verdicts: dict[type, bool] = {}


def is_leaf(module: nn.Module) -> bool:
    """Whether a call of this module can be taken as one op."""
    kind = type(module)
    verdict = _verdicts.get(kind)
    if verdict is None:
        verdict = _verdicts[kind] = _computes_as_declared(kind)
    if not verdict or "forward" in module.__dict__ or is_hooked(module):
        return False
    return _holds_its_own(module)


def has_settings(module: nn.Module) -> bool:
    """Whether it is of a kind that may be taken as one op."""
    return isinstance(module, _LEAVES)


def pads_as_told(module: nn.Module | None) -> bool:
    """Whether it pads by its settings alone, whatever the size."""
    return type(module) in _PADS and "forward" not in module.__dict__


def _holds_its_own(module: nn.Module) -> bool:
    """A parametrized, pruned or overwritten weight is not a parameter of the module."""
    for name in ("weight", "bias"):
        if hasattr(module, name) and name not in module._parameters:
            return False
    if isinstance(module, BATCH_NORMS):
        return {"running_mean", "running_var"} <= module._buffers.keys()
    if isinstance(module, CLIPS):
        return True
    return module._parameters["weight"] is not None and not _rescales_rows(module)


def overrides_call(kind: type[Any]) -> bool:
    """Whether calling the module does more than running its hooks and its forward."""
    return any("__call__" in base.__dict__ for base in kind.__mro__ if base not in _CALLERS)


_CALLERS = (nn.Module, object)


def _computes_as_declared(kind: type[Any]) -> bool:
    if not issubclass(kind, _LEAVES) or kind.forward not in _FORWARDS or overrides_call(kind):
        return False
    inner = ("_conv_forward", "_output_padding", "_check_input_dim")
    return all(
        not hasattr(kind, name) or getattr(kind, name).__module__.startswith("torch.nn.")
        for name in inner
    )


def _rescales_rows(module: nn.Module) -> bool:
    """Embedding(max_norm=...) rewrites its own weight while it runs."""
    return isinstance(module, nn.Embedding) and module.max_norm is not None


def is_hooked(module: nn.Module) -> bool:
    """Whether something reads or changes what goes in or comes out."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module_hooks._global_forward_hooks
        or module_hooks._global_forward_pre_hooks
    )


def has_hooks(module: nn.Module) -> bool:
    """Whether something hangs on its calls, gradients included, that would be lost with it."""
    return is_hooked(module) or changes_gradients(module)


def changes_gradients(module: nn.Module) -> bool:
    """Whether a hook may: of what the module makes, or of what it is made of."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def is_observed(module: nn.Module) -> bool:
    """Whether a hook of the user's may read or change the module's input or output."""
    before = [
        hook
        for hook in module._forward_pre_hooks.values()
        if type(hook).__name__ not in _WEIGHT_HOOKS
    ]
    return bool(module._forward_hooks or before)


_WEIGHT_HOOKS = {"WeightNorm", "SpectralNorm"}
"""PyTorch's own hooks that compute a weight before each call and look at nothing else."""
