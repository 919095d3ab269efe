"""What a module has of its own when it is run, and biases lent for the time of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
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


def contents_of(modules: Sequence[nn.Module]) -> list[tuple[Tensor, Tensor]]:
    """Parameters and buffers, with what they hold."""
    return [(tensor, tensor.detach().clone()) for tensor in own_tensors(modules).values()]


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
