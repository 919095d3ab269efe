"""Random nets of sums: chains of linear layers side by side, in place, read twice, with a ReLU."""

from __future__ import annotations

import numpy as np

from tests.frontends.caffe.support import Builder

_BLOCKS = 3


def branchy_net(seed: int) -> Builder:
    """Some sums behind each other."""
    rng = np.random.default_rng(seed)
    channels = int(rng.choice([2, 4, 6]))
    builder = Builder((2, channels, 9, 8), seed=seed)
    x = "data"
    for _ in range(int(rng.integers(1, _BLOCKS + 1))):
        x = _sum(builder, rng, x, int(rng.integers(2, 5)), depth=int(rng.integers(1, 3)))
        if rng.random() < 0.6:
            x = builder.relu(bottom=x)
        if rng.random() < 0.2:
            x = builder.scale(bottom=x)
    if rng.random() < 0.4:
        builder.inner_product(5, builder.channels[x] * 72, bottom=x, bias=True)
        if rng.random() < 0.6:
            builder.inner_product(3, 5, bias=bool(rng.random() < 0.5))
    return builder


def _sum(builder: Builder, rng: np.random.Generator, x: str, count: int, *, depth: int) -> str:
    """Chains of one source, or of two, that keep its shape, and their sum."""
    ends: list[str] = []
    for _ in range(count):
        if depth > 1 and rng.random() < 0.3:
            end = _sum(builder, rng, x, 2, depth=depth - 1)
        else:
            end = _chain(builder, rng, x)
        if end in ends or (end == x and rng.random() < 0.3):
            end = builder.layer("Power", "power_param { scale: 1.5 }", bottom=end)
        ends.append(end)
    if rng.random() < 0.1:
        builder.layer("Sigmoid", bottom=str(rng.choice(ends)))  # an output that reads a branch
    coefficients = rng.choice([1.0, 1.0, -1.0, 0.5, 2.0, 0.0], size=count)
    options = "eltwise_param { operation: SUM"
    if rng.random() < 0.4:
        if rng.random() < 0.5:
            options += "".join(f" coeff: {one}" for one in coefficients)
        else:
            options += f" coeff: [{', '.join(map(str, coefficients))}]"
    return builder.layer("Eltwise", options + " }", bottom=ends)


def _chain(builder: Builder, rng: np.random.Generator, x: str) -> str:
    start = x
    for _ in range(int(rng.choice([0, 1, 1, 2, 2, 3]))):
        x = _link(builder, rng, x, is_own=x != start)
    return x


def _link(builder: Builder, rng: np.random.Generator, x: str, *, is_own: bool) -> str:
    """One layer that keeps the shape; `is_own` says that nobody else reads its bottom."""
    channels = builder.channels[x]
    top = "same" if is_own and rng.random() < 0.5 else None
    kind = rng.choice(_LINKS)
    if kind == "conv":
        return _convolution(builder, rng, x)
    if kind == "bn":
        x = builder.batch_norm(bottom=x, top=top)
        return builder.scale(bottom=x, top="same") if rng.random() < 0.8 else x
    if kind == "scale":
        return builder.scale(bottom=x, top=top, bias=bool(rng.random() < 0.6))
    if kind == "bias":
        return builder.layer("Bias", bottom=x, top=top, blobs=[rng.normal(size=channels)])
    if kind == "power":
        return builder.layer("Power", "power_param { scale: -0.7 shift: 0.3 }", bottom=x, top=top)
    if kind == "pool":
        options = str(rng.choice(["kernel_size: 3 pad: 1 stride: 1", "kernel_size: 1"]))
        return builder.layer("Pooling", f"pooling_param {{ pool: AVE {options} }}", bottom=x)
    return builder.relu(bottom=x, top=top)


_LINKS = ["conv", "conv", "conv", "bn", "bn", "scale", "bias", "power", "pool", "relu"]
_WINDOWS = [
    (1, ""),
    (1, ""),
    (3, "pad: 1"),
    (3, "pad_h: 1 pad_w: 1"),
    (5, "pad: 2"),
    (3, "pad: 2 dilation: 2"),
    (3, "dilation: 3 pad: 3"),
]


def _convolution(builder: Builder, rng: np.random.Generator, x: str) -> str:
    channels = builder.channels[x]
    kernel, options = _WINDOWS[int(rng.integers(len(_WINDOWS)))]
    group = int(rng.choice([g for g in (1, 1, 2, channels) if channels % g == 0]))
    kind = "Deconvolution" if rng.random() < 0.15 else "Convolution"
    if group == channels and kind == "Convolution" and rng.random() < 0.3:
        kind = "DepthwiseConvolution"
    bias = bool(rng.random() < 0.4)
    return builder.conv(channels, kernel, options, bias=bias, group=group, kind=kind, bottom=x)
