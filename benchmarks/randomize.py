"""Statistics and weights that hide no mistake, for networks that were never trained.

A freshly made network is a bad test: its BatchNorms are the identity, zero-initialised gammas
switch whole branches off, LayerScales of 1e-6 do the same, biases are 0. So every BatchNorm gets

    gamma         log-uniform in 0.5 .. 2, 5% of the channels negative
    beta          0.3 * normal
    running_mean  the channel's mean in a real forward + 0.3 * its deviation * normal
    running_var   the channel's variance in a real forward, widened * log-uniform in 0.5 .. 2

each channel its own. The real forward runs in eval mode and sets each BatchNorm just before it is
reached, so that activations stay near one through any depth: a network that explodes or goes
constant hides errors as well. Other parameters that are constant get spread, see
`spread_constants`.

Every draw depends on the seed and on the module's name only, and is made in float64: a network is
the same in every dtype.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.hooks import RemovableHandle

_SMALL = 0.1
"""Constants below it (LayerScale, mostly 1e-6 to 1e-2) switch a branch off."""


def batchnorm_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules with running statistics, by name: every kind of BatchNorm, frozen ones too."""
    for name, module in model.named_modules():
        statistics = (getattr(module, "running_mean", None), getattr(module, "running_var", None))
        if isinstance(module, _InstanceNorm):
            continue
        if all(isinstance(value, Tensor) for value in statistics):
            yield name, module


def randomize_statistics(
    model: nn.Module, seed: int = 0, negative: float = 0.05, *, inputs: Any = None
) -> None:
    """Give every BatchNorm of `model` random parameters and statistics, in place.

    Args:
        model: in eval mode where `inputs` are given.
        seed: the same seed and module names give the same numbers.
        negative: the part of the gammas that is negative.
        inputs: the input of one forward to take the statistics from (a tuple is unpacked);
            without it means are near 0 and variances near 1.

    Raises:
        ValueError: `model` is in training mode and `inputs` are given.
    """
    if inputs is not None and model.training:
        raise ValueError("statistics are taken in eval mode: call model.eval() first")
    hooks: list[RemovableHandle] = []
    for name, module in batchnorm_modules(model):
        generator = _generator(seed, name)
        _draw_affine(module, generator, negative)
        _draw_statistics(module, generator, mean=torch.zeros(1), var=torch.ones(1))
        if inputs is not None:
            hooks.append(_measure_on_first_call(module, _generator(seed + 1, name)))
    if inputs is None:
        return
    try:
        with torch.no_grad():
            model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def spread_constants(model: nn.Module, seed: int = 0) -> None:
    """Make every constant parameter outside the BatchNorms differ per element, in place.

    Ones (norms, PReLU slopes, temperatures) become value * uniform(0.5, 1.5); small constants
    (LayerScale) uniform(0.2, 1); zero biases normal at the size of their own weight; zero tables
    and heads normal / sqrt(fan in).
    """
    normalised = {id(module) for _, module in batchnorm_modules(model)}
    for prefix, module in model.named_modules():
        if id(module) in normalised:
            continue
        for name, parameter in module.named_parameters(prefix, recurse=False):
            if not parameter.is_floating_point() or parameter.numel() == 0:
                continue
            if parameter.min() != parameter.max():
                continue
            spread = _spread(parameter, _bias_size(module), _generator(seed, name))
            parameter.copy_(spread)


def _spread(parameter: Tensor, bias_size: float, generator: torch.Generator) -> Tensor:
    value = float(parameter.flatten()[0])
    shape = tuple(parameter.shape)
    if abs(value) >= _SMALL:
        return value * (0.5 + _uniform(shape, generator))
    if value != 0:
        return 0.2 + 0.8 * _uniform(shape, generator)
    fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
    size = bias_size if parameter.ndim <= 1 else fan_in**-0.5
    return size * _normal(shape, generator)


def _bias_size(module: nn.Module) -> float:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim < 2 or weight.numel() < 2:
        return 0.1
    return float(weight.std())


@torch.no_grad()
def _draw_affine(module: nn.Module, generator: torch.Generator, negative: float) -> None:
    channels = tuple(_tensor(module, "running_mean").shape)
    sign = torch.where(_uniform(channels, generator) < negative, -1.0, 1.0).double()
    gamma = sign * _log_uniform(channels, generator)
    beta = 0.3 * _normal(channels, generator)
    if isinstance(getattr(module, "weight", None), Tensor):
        _tensor(module, "weight").copy_(gamma)
    if isinstance(getattr(module, "bias", None), Tensor):
        _tensor(module, "bias").copy_(beta)


@torch.no_grad()
def _draw_statistics(
    module: nn.Module, generator: torch.Generator, mean: Tensor, var: Tensor
) -> None:
    running_mean, running_var = _tensor(module, "running_mean"), _tensor(module, "running_var")
    channels = tuple(running_mean.shape)
    mean, var = mean.double(), var.double()
    running_mean.copy_(mean + 0.3 * var.sqrt() * _normal(channels, generator))
    running_var.copy_(var * _log_uniform(channels, generator))


def _measure_on_first_call(module: nn.Module, generator: torch.Generator) -> RemovableHandle:
    seen = False

    def measure(module: nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if seen:
            return
        seen = True
        # BatchNorm input: (N, C, ...)
        values = args[0].detach().double().transpose(0, 1).flatten(1)
        mean = values.mean(1)
        var = values.var(1, correction=0)
        # Twice the variance, since a few images show too little of it: on other images activations
        # would grow from layer to layer (levit_256d then magnifies rounding by 1e7). The mean over
        # channels is in it for dead ones.
        spread = var + var.mean() + 0.02 * mean.square().mean() + 1e-12
        _draw_statistics(module, generator, mean, spread)

    return module.register_forward_pre_hook(measure)


def _tensor(module: nn.Module, name: str) -> Tensor:
    value = getattr(module, name)
    assert isinstance(value, Tensor)
    return value


def _generator(seed: int, name: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(f"{seed}:{name}".encode()))


def _uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _log_uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """0.5 .. 2, as often below 1 as above."""
    return torch.exp2(2 * _uniform(shape, generator) - 1)
