"""Linear ops side by side and behind each other, as re-parameterisation has them, and nearly so.

Branches read one value and meet in sums: convolutions of several kernels, chains of them, means,
BatchNorms, scalings, the value itself, and now and then something that is not linear.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.property.networks.strategy import Sketch

Branch = Callable[[], str]


def branches(sketch: Sketch) -> str | None:
    """Of an image, with one stride and one size."""
    x = sketch.image(3)
    if x is None:
        return None
    n, c, *space = sketch.shapes[x]
    stride = sketch.pick(1, 1, 1, 2)
    is_padded = min(space) < 3 or sketch.pick(True, True, False)
    out = sketch.pick(c, c, c, 2, 4)
    shape = (n, out, *((s - 1 - (0 if is_padded else 2)) // stride + 1 for s in space))
    kinds: list[Branch] = [
        lambda: _conv(sketch, x, out, [3] * len(space), stride, is_padded),
        lambda: _serial(sketch, x, out, stride, is_padded),
    ]
    if is_padded:
        kinds += [
            lambda: _conv(sketch, x, out, [1] * len(space), stride, True),
            lambda: _conv(sketch, x, out, [sketch.pick(1, 3) for _ in space], stride, True),
            lambda: _conv(sketch, x, out, [sketch.pick(3, 5)] * len(space), stride, True, 2),
        ]
    elif sketch.beyond_caffe and stride == 1:
        kinds += [lambda: _cropped(sketch, x, out)]
        kinds += [lambda: _framed(sketch, x, [-1] * len(space))] if c == out else []
    if c == out and is_padded and stride == 1:
        kinds += [lambda: x, lambda: str(sketch.bn(x)), lambda: _scaled(sketch, x)]
    if c == out and len(space) == 2:
        kinds.append(lambda: _mean(sketch, x, stride, is_padded))
    return _summed(sketch, kinds, shape)


def transposed(sketch: Sketch) -> str | None:
    """Transposed convolutions of an image."""
    x = sketch.image(3)
    if x is None:
        return None
    n, c, *space = sketch.shapes[x]
    stride, out = sketch.pick(1, 2), sketch.pick(c, 2, 3)
    size = [(s - 1) * stride + 1 for s in space]
    if n * out * math.prod(size) > 500:
        return None

    def branch(kernel: int) -> str:
        groups = sketch.pick(*(g for g in (1, 1, c) if out % g == 0))
        every = {"kernel": kernel, "stride": stride, "dilation": 1, "padding": kernel // 2}
        return sketch.add(
            "deconv",
            [x],
            (n, out, *size),
            out=out,
            groups=groups,
            bias=sketch.pick(True, False),
            output_padding=(0,) * len(space),
            **{name: (number,) * len(space) for name, number in every.items()},
        )

    kinds: list[Branch] = [lambda: branch(3), lambda: branch(1)]
    if c == out and stride == 1:
        kinds += [lambda: x, lambda: str(sketch.bn(x))]
    return _summed(sketch, kinds, (n, out, *size))


def matrices(sketch: Sketch) -> str | None:
    """On the last axis."""
    x = sketch.value(lambda shape: len(shape) < 4)
    if x is None:
        return None
    shape = sketch.shapes[x]
    width, out = shape[-1], sketch.pick(shape[-1], shape[-1], 3)

    def matrix(source: str, outs: int) -> str:
        made = (*shape[:-1], outs)
        return sketch.add("linear", [source], made, out=outs, bias=sketch.pick(True, False))

    kinds: list[Branch] = [
        lambda: matrix(x, out),
        lambda: matrix(matrix(x, sketch.pick(1, 2, 6)), out),
    ]
    if width == out:
        kinds.append(lambda: x)
        if len(shape) == 2:
            kinds += [lambda: str(sketch.bn(x)), lambda: _scaled(sketch, x)]
    return _summed(sketch, kinds, (*shape[:-1], out))


def siblings(sketch: Sketch) -> str | None:
    """Convolutions of one tensor side by side, mostly of one geometry, and what is between them."""
    x = sketch.image(3)
    if x is None:
        return None
    n, _, *space = sketch.shapes[x]
    stride, kernel = sketch.pick(1, 1, 2), sketch.pick(3, 1)
    is_padded = min(space) < 3 or sketch.pick(True, True, False)
    kernels = [kernel] * len(space)
    activation = sketch.pick("", "", "relu", "relu6", "leaky")
    how = sketch.pick("module", "in place", "function")
    parts: list[str] = []
    for _ in range(sketch.pick(2, 3, 2, 4)):
        part = _conv(sketch, x, sketch.pick(2, 1, 3), kernels, stride, is_padded)
        if sketch.chance(3):
            part = str(sketch.bn(part))
        if activation and not sketch.chance(6):
            part = sketch.add(activation, [part], sketch.shapes[part], how=how)
        elif sketch.chance(8):
            part = str(sketch.activation(part))
        parts.append(part)
    if sketch.chance(4):
        size = sketch.shapes[parts[0]][2:]
        other = sketch.value(lambda shape: (shape[0], shape[2:]) == (n, size))
        parts.insert(sketch.pick(*range(len(parts))), str(other))
    if sketch.chance(8):
        parts.append(parts[0])
    if len(parts) > 2 and sketch.chance(4):
        parts = [_joined(sketch, parts[:2]), *parts[2:]]
    made = _joined(sketch, parts)
    return str(sketch.bn(made)) if sketch.chance(2) else made


def _joined(sketch: Sketch, parts: list[str]) -> str:
    n, _, *space = sketch.shapes[parts[0]]
    channels = sum(sketch.shapes[part][1] for part in parts)
    return sketch.add("concat", parts, (n, channels, *space), axis=1)


def serial(sketch: Sketch) -> str | None:
    """Convolutions behind each other."""
    x = sketch.image(3)
    if x is None:
        return None
    space = sketch.shapes[x][2:]
    is_padded = min(space) < 3 or sketch.pick(True, False)
    return _serial(sketch, x, sketch.pick(1, 2, 3), sketch.pick(1, 1, 2), is_padded)


def _summed(sketch: Sketch, kinds: list[Branch], shape: tuple[int, ...]) -> str:
    parts = [sketch.pick(*kinds)() for _ in range(sketch.pick(2, 3, 2, 4))]
    for at, part in enumerate(parts):
        if sketch.chance(4):
            parts[at] = str(sketch.bn(part))
        elif sketch.chance(10):
            parts[at] = str(sketch.activation(part))
    if sketch.chance(4):
        other = sketch.value(lambda s: s == shape)
        parts.append(str(sketch.activation(other) if sketch.pick(True, False) else other))
    stacks = ["stacked"] if sketch.beyond_caffe else []
    while len(parts) > 1:
        first = parts.pop(sketch.pick(*range(len(parts))))
        second = parts.pop(sketch.pick(*range(len(parts))))
        made = sketch.add(sketch.pick("add", "add", "add", "sub", *stacks), [first, second], shape)
        if sketch.chance(6):
            made = _scaled(sketch, made) if shape[1] > 1 and sketch.chance(2) else sketch.bn(made)
        parts.append(str(made))
    if sketch.chance(3):
        return str(sketch.activation(parts[0]))
    return parts[0]


def _conv(
    sketch: Sketch,
    x: str,
    out: int,
    kernels: list[int],
    stride: int,
    is_padded: bool,
    dilation: int = 1,
) -> str:
    n, c, *space = sketch.shapes[x]
    pads = [dilation * (kernel // 2) if is_padded else 0 for kernel in kernels]
    size = [
        (s + 2 * p - dilation * (k - 1) - 1) // stride + 1
        for s, p, k in zip(space, pads, kernels, strict=True)
    ]
    options: dict[str, Any] = {
        "kernel": tuple(kernels),
        "stride": (stride,) * len(space),
        "dilation": (dilation,) * len(space),
        "padding": tuple(pads),
        "groups": sketch.pick(*(g for g in (1, 1, 2, c) if c % g == 0 and out % g == 0)),
        "bias": sketch.pick(True, False),
    }
    if sketch.beyond_caffe and any(pads) and sketch.chance(5):
        options["padding"] = (0,) * len(space)
        x = _framed(sketch, x, pads)
    return sketch.add("conv", [x], (n, out, *size), out=out, mode="zeros", **options)


def _framed(sketch: Sketch, x: str, amounts: list[int]) -> str:
    """With a border of zeros by an op of its own; with one cut off, where amounts are negative."""
    n, c, *space = sketch.shapes[x]
    before = after = tuple(amounts)
    size = [s + 2 * a for s, a in zip(space, amounts, strict=True)]
    options = {"before": before, "after": after, "mode": "constant", "value": 0.0}
    return sketch.add("pad", [x], (n, c, *size), **options)


def _cropped(sketch: Sketch, x: str, out: int) -> str:
    """As large as behind a kernel of three without padding; cut before or after."""
    rank = len(sketch.shapes[x]) - 2
    if sketch.pick(True, False):
        x = _framed(sketch, x, [-1] * rank)
        return _conv(sketch, x, out, [1] * rank, 1, False)
    return _framed(sketch, _conv(sketch, x, out, [1] * rank, 1, False), [-1] * rank)


def _serial(sketch: Sketch, x: str, out: int, stride: int, is_padded: bool) -> str:
    """One that sees its own place alone, and one that does not, in either order."""
    rank = len(sketch.shapes[x]) - 2
    inner = sketch.pick(*(o for o in (out, 1, 2, 4, 6) if o))
    kernels = [[1] * rank, [3] * rank]
    if sketch.pick(False, True):
        kernels.reverse()
    first, second = sketch.pick((1, stride), (stride, 1))
    if not is_padded and max(kernels[0]) == 1:  # another size, the other way round
        first, second = 1, stride
    x = _conv(sketch, x, inner, kernels[0], first, is_padded)
    if sketch.chance(3):
        x = str(sketch.bn(x))
    if not is_padded and min(sketch.shapes[x][2:]) < max(kernels[1]):
        return _conv(sketch, x, out, [1] * rank, second, is_padded)
    return _conv(sketch, x, out, kernels[1], second, is_padded)


def _scaled(sketch: Sketch, x: str) -> str:
    shape = sketch.shapes[x]
    if shape[1] == 1:
        return x
    return sketch.add("scale", [x], shape, gamma=sketch.gamma(shape[1]))


def _mean(sketch: Sketch, x: str, stride: int, is_padded: bool) -> str:
    n, c, *space = sketch.shapes[x]
    padding = int(is_padded)
    size = [(s + 2 * padding - 3) // stride + 1 for s in space]
    options = {"kernel": 3, "stride": stride, "padding": padding, "ceil": False, "counted": True}
    if not sketch.beyond_caffe and any((s + 2 * padding - 3) % stride for s in space):
        return _conv(sketch, x, c, [3] * len(space), stride, is_padded)
    return sketch.add("avg", [x], (n, c, *size), **options)
