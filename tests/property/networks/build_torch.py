"""A described network as a PyTorch module: its nodes as modules of their names.

What a node may be is its option `how`: a module of its own, one that works in place, a function,
or a module that several nodes share. In place is only where nobody could notice; else it is a
module of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from tests.property.networks.description import (
    CLIPS,
    Array,
    Network,
    Node,
    eps_of,
    may_write,
    weights_of,
)

_SPACE = {"conv": 2, "deconv": 2}
_CONV = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}
_DECONV = {3: nn.ConvTranspose1d, 4: nn.ConvTranspose2d, 5: nn.ConvTranspose3d}
_NORM = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_MAX = {3: nn.MaxPool1d, 4: nn.MaxPool2d, 5: nn.MaxPool3d}
_MEAN = {3: nn.AvgPool1d, 4: nn.AvgPool2d, 5: nn.AvgPool3d}
_GLOBAL = {
    "gavg": {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d},
    "gmax": {3: nn.AdaptiveMaxPool1d, 4: nn.AdaptiveMaxPool2d, 5: nn.AdaptiveMaxPool3d},
}


class Scale(nn.Module):
    """x * weight per channel."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, *[1] * (rank - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Shift(nn.Module):
    """x + bias per channel."""

    def __init__(self, channels: int, rank: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, *[1] * (rank - 2)))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Model(nn.Module):
    """Runs the nodes one after the other."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        weights = weights_of(network)
        shapes = network.shapes
        steps: list[tuple[Node, str | None, Callable[..., Any] | None]] = []
        for node in network.nodes:
            name: str | None = network.owner(node)
            if node.get("how") == "shared" and node.kind in _SHARED:
                name = f"shared_{node.kind}"
            if name not in self._modules:
                module = _module(network, node, shapes[node.inputs[0]])
                if module is None:
                    name = None
                else:
                    _fill(module, weights.get(node.name, {}))
                    self.add_module(str(name), module)
            steps.append((node, name, _FUNCTIONS.get(node.kind)))
        # A fold copies and walks what a module holds: into a builtin it does not look.
        self.described = {"steps": steps, "results": network.results}.get
        self.eval()

    def forward(self, x0: Tensor, x1: Tensor | None = None) -> dict[str, Tensor]:
        values: dict[str, Any] = {"x0": x0, "x1": x1}
        for node, name, function in self.described("steps"):
            given = [values[source] for source in node.inputs]
            made = self.get_submodule(name)(*given) if name else function(node, *given)
            parts = made if isinstance(made, tuple) else (made,)
            values.update(zip(node.outputs, parts, strict=True))
        return {name: values[name] for name in self.described("results")}


def _fill(module: nn.Module, arrays: Mapping[str, Array]) -> None:
    """In float64."""
    names = {
        "mean": "running_mean",
        "variance": "running_var",
        "gamma": "weight",
        "beta": "bias" if "mean" in arrays else "beta",
    }
    module.double()
    for name, array in arrays.items():
        target = getattr(module, names.get(name, name))
        target.data.copy_(torch.from_numpy(array).reshape(target.shape))


_SHARED = ("relu", "relu6", "clip")


def _module(network: Network, node: Node, source: tuple[int, ...]) -> nn.Module | None:
    rank, kind = len(source), node.kind
    if kind in ("conv", "deconv", "linear"):
        return _linear(node, source)
    if kind == "bn":
        return _NORM[rank](source[1], eps_of(node), affine=node.get("gamma") is not None)
    if kind in ("scale", "shift"):
        return {"scale": Scale, "shift": Shift}[kind](source[1], rank)
    if kind in ("max", "avg"):
        window = (node.get("kernel"), node.get("stride"), node.get("padding"))
        if kind == "max":
            return _MAX[rank](*window, ceil_mode=node.get("ceil"))
        return _MEAN[rank](*window, node.get("ceil"), node.get("counted"))
    if kind in _GLOBAL:
        return _GLOBAL[kind][rank](1)
    if kind == "prelu":
        return nn.PReLU(source[1])
    if node.get("how") == "function" and kind in _FUNCTIONS:
        return None
    inplace = node.get("how") == "in place" and may_write(network, node)
    return _plain_module(node, inplace=inplace)


def _plain_module(node: Node, *, inplace: bool) -> nn.Module | None:
    makers: dict[str, Callable[[], nn.Module]] = {
        "relu": lambda: nn.ReLU(inplace),
        "relu6": lambda: nn.ReLU6(inplace),
        "clip": lambda: nn.Hardtanh(*CLIPS["clip"], inplace),
        "leaky": lambda: nn.LeakyReLU(0.125, inplace),
        "sigmoid": nn.Sigmoid,
        "tanh": nn.Tanh,
        "softmax": lambda: nn.Softmax(1),
        "identity": nn.Identity,
        "dropout": nn.Dropout,
        "pixel_shuffle": lambda: nn.PixelShuffle(2),
    }
    return makers[node.kind]() if node.kind in makers else None


def _linear(node: Node, source: tuple[int, ...]) -> nn.Module:
    out, bias = node.get("out"), node.get("bias")
    if node.kind == "linear":
        return nn.Linear(source[-1], out, bias)
    options: dict[str, Any] = {
        name: node.get(name) for name in ("stride", "padding", "dilation", "groups")
    }
    if node.kind == "conv":
        options["padding_mode"] = node.get("mode")
        return _CONV[len(source)](source[1], out, node.get("kernel"), bias=bias, **options)
    options["output_padding"] = node.get("output_padding")
    return _DECONV[len(source)](source[1], out, node.get("kernel"), bias=bias, **options)


# ------------------------------------------------------------------- functions


def _pad(node: Node, x: Tensor) -> Tensor:
    pairs = zip(reversed(node.get("before")), reversed(node.get("after")), strict=True)
    amounts = [amount for pair in pairs for amount in pair]
    if node.get("mode") == "constant":
        return functional.pad(x, amounts, value=node.get("value"))
    return functional.pad(x, amounts, node.get("mode"))


def _upsample(node: Node, x: Tensor) -> Tensor:
    mode = {"nearest": "nearest", "linear": "bilinear"}[node.get("mode")]
    return functional.interpolate(x, scale_factor=2, mode=mode)


def _shuffle(node: Node, x: Tensor) -> Tensor:
    _, c, *space = x.shape
    cut = x.reshape(-1, node.get("groups"), c // node.get("groups"), *space)
    return cut.transpose(1, 2).reshape(-1, c, *space)


def _split(node: Node, x: Tensor) -> tuple[Tensor, ...]:
    parts = x.split([shape[1] for shape in node.outputs.values()], 1)
    return tuple(parts[at] for at in range(len(node.outputs)))  # a tracer cannot tell how many


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "relu": lambda node, x: functional.relu(x),
    "relu6": lambda node, x: functional.relu6(x),
    "clip": lambda node, x: x.clamp(*CLIPS["clip"]),
    "leaky": lambda node, x: functional.leaky_relu(x, 0.125),
    "abs": lambda node, x: torch.abs(x),
    "sign": lambda node, x: torch.sign(x),
    "add": lambda node, x, y: x + y,
    "stacked": lambda node, x, y: torch.stack([x, y]).sum(0),
    "sub": lambda node, x, y: x - y,
    "mul": lambda node, x, y: x * y,
    "concat": lambda node, *parts: torch.cat(parts, node.get("axis")),
    "split": _split,
    "flatten": lambda node, x: x.flatten(1),
    "reshape": lambda node, x: x.reshape(-1, *node.shape[1:]),
    "swap": lambda node, x: x.transpose(-1, -2),
    "crop": lambda node, x: x[:, :, 1:],
    "shuffle": _shuffle,
    "upsample": _upsample,
    "pad": _pad,
}


def torch_inputs(network: Network, dtype: torch.dtype, number: int = 0) -> tuple[Tensor, ...]:
    """Random inputs, in order."""
    return tuple(torch.from_numpy(x).to(dtype) for x in network.feed(number).values())


def run_torch(
    model: nn.Module, network: Network, number: int = 0, dtype: torch.dtype = torch.float64
) -> dict[str, Tensor]:
    """What a module computes on random inputs."""
    with torch.no_grad():
        made: dict[str, Tensor] = model(*torch_inputs(network, dtype, number))
    return made
