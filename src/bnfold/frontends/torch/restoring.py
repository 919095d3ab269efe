"""What is put back after a run of a module: what the run changed, and biases lent for its time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from bnfold.frontends.torch.leaf_modules import is_leaf
from bnfold.frontends.torch.recording import Recording


def own_tensors(modules: Sequence[nn.Module]) -> dict[int, Tensor]:
    """Parameters and buffers by id(), without those that live in TorchScript."""
    scripted = [module for module in modules if isinstance(module, torch.jit.ScriptModule)]
    tensors = {
        id(tensor): tensor
        for module in modules
        if not isinstance(module, torch.jit.ScriptModule)
        for tensor in (*module._parameters.values(), *module._buffers.values())
        if tensor is not None
    }
    for module in scripted:
        for tensor in (*module.parameters(), *module.buffers()):
            tensors.pop(id(tensor), None)
    return tensors


@contextmanager
def state_restored(members: Sequence[nn.Module]) -> Iterator[None]:
    """Whatever the run changes in the modules is put back: attributes, buffers, statistics."""
    modules = [m for m in members if not isinstance(m, torch.jit.ScriptModule)]
    # The attributes first: they hold the tables.
    before = [
        (now, dict(now))
        for module in modules
        for own in (module.__dict__,)
        for now in (own, *(own[name] for name in _TABLES))
    ]
    # A submodule left in training mode updates its statistics when it runs.
    statistics = [
        (buffer, buffer.detach().clone())
        for module in modules
        if module.training and isinstance(module, _NormBase)
        for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for now, content in before:
            _restore(now, content)
        for buffer, values in statistics:
            buffer.copy_(values)


def contents_of(modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers, with what they hold."""
    return [(tensor, tensor.detach().clone()) for tensor in own_tensors(modules).values()]


_TABLES = ("_parameters", "_buffers", "_modules")


def _restore(now: dict[str, Any], before: dict[str, Any]) -> None:
    same = len(now) == len(before) and all(map(is_, now.values(), before.values()))
    if not same or list(now) != list(before):
        now.clear()
        now.update(before)


@contextmanager
def biases_lent(modules: Sequence[nn.Module], recording: Recording) -> Iterator[None]:
    """A subclass with a forward of its own may or may not pass on a bias: lend it one and look.

    The bias is 0 for the time of the run, so nothing is computed differently.
    """
    lent = []
    for module in modules:
        if not isinstance(module, _ConvNd | nn.Linear) or is_leaf(module):
            continue
        weight = module._parameters.get("weight")
        if weight is None or module._parameters.get("bias", weight) is not None:
            continue
        channels = weight.shape[0]
        if isinstance(module, _ConvTransposeNd):
            channels = weight.shape[1] * module.groups
        bias = nn.Parameter(weight.new_zeros(channels), requires_grad=False)
        module._parameters["bias"] = bias
        recording.lent_biases[id(bias)] = module
        lent.append((module, bias))  # the reference keeps the id in use
    try:
        yield
    finally:
        for module, _ in lent:
            module._parameters["bias"] = None
