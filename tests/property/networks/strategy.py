"""Random networks over every role, as values that Hypothesis draws and shrinks.

A sketch grows by drawn steps; a step that finds no value to work on adds nothing. Sizes are tiny,
so that a network takes milliseconds. `within="caffe"` leaves out what Caffe has no layer for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from hypothesis import strategies as st

from tests.property.networks.branches import branches, matrices, serial, siblings, transposed
from tests.property.networks.description import Network, Node, Shape

GAMMAS = (1.0, 0.6, -1.3, 2.4, -0.4, 1e-3, 0.0, -250.0, 1e-7)
PLAIN_GAMMAS = (1.0, -1.0, 2.0, 0.5, 0.0)
EPSILONS = (1e-5, 1e-3, 1e-12, 0.5)
MOST_ELEMENTS = 500
Within = Literal["all", "caffe"]


class Sketch:
    """A network that grows by drawn decisions."""

    def __init__(self, draw: st.DrawFn, within: Within, *, most_channels: int = 6) -> None:
        self.draw = draw
        self.within = within
        self.most_channels = most_channels
        self.nodes: list[Node] = []
        self.shapes: dict[str, Shape] = {}
        self.inputs: dict[str, Shape] = {}
        self.plain = self.chance(8)
        """Whether constants are so few that they often fit each other by chance."""
        self.gammas = PLAIN_GAMMAS if self.plain else GAMMAS
        rank = self.pick(4, 4, 4, 4, 3, 5, 2)
        space = [self.pick(4, 3, 5) for _ in range(rank - 2)]
        if rank == 5:
            space = [min(3, size) for size in space]
        self.input((2, self.pick(2, 1, 3, 4), *space))
        if self.chance(6):
            self.input(self.inputs["x0"])

    def pick(self, *choices: Any) -> Any:
        return self.draw(st.sampled_from(choices))

    def chance(self, one_in: int) -> bool:
        """Mostly false, and false is simpler."""
        return bool(self.draw(st.integers(0, one_in - 1)) == one_in - 1)

    @property
    def beyond_caffe(self) -> bool:
        return self.within == "all"

    def input(self, shape: Shape) -> None:
        name = f"x{len(self.inputs)}"
        self.inputs[name] = self.shapes[name] = shape

    def value(self, fits: Callable[[Shape], bool] = lambda shape: True) -> str | None:
        """An operand, mostly the newest value."""
        names = [name for name, shape in reversed(self.shapes.items()) if fits(shape)]
        if not names:
            return None
        return str(names[self.draw(st.sampled_from((0, 0, 0, 0, 1, 2, 3))) % len(names)])

    def image(self, rank: int = 3) -> str | None:
        return self.value(lambda shape: len(shape) >= rank)

    def add(
        self, kind: str, inputs: Sequence[str], *shapes: Shape, same_as: str = "", **options: Any
    ) -> str:
        name = f"n{len(self.nodes)}"
        names = [name] if len(shapes) == 1 else [f"{name}_{part}" for part in range(len(shapes))]
        outputs = dict(zip(names, shapes, strict=True))
        self.nodes.append(Node(name, kind, tuple(inputs), outputs, options, same_as))
        self.shapes.update(outputs)
        return names[0]

    # ---------------------------------------------------------------- linear ops

    def conv(self, x: str | None = None, out: int = 0, kernel: int = 0) -> str | None:
        """Any groups, stride, dilation, padding; `out` and `kernel` ask for one that keeps size."""
        x = x or self.image()
        if x is None:
            return None
        n, c, *space = self.shapes[x]
        axes = range(len(space))
        groups = self.pick(*(g for g in (1, 1, 1, 2, c) if c % g == 0 and (out or g) % g == 0))
        outs = out or groups * self.pick(1, *(k for k in (2, 3, 4) if groups * k <= 6))
        mode = "zeros"
        if kernel:
            kernels, strides, dilations = [kernel] * len(space), [1] * len(space), [1] * len(space)
            pads = [kernel // 2] * len(space)
        else:
            kernels = [self.pick(3, 1, 2) for _ in axes] if self.chance(5) else [0] * len(space)
            square = self.pick(3, 1, 1, 2)
            kernels = [k or square for k in kernels]
            strides = [self.pick(1, 1, 1, 2)] * len(space)
            dilations = [self.pick(1, 1, 1, 2)] * len(space)
            pads = [self.pick(0, 1, 1)] * len(space) if max(kernels) > 1 else [0] * len(space)
            if any(pads) and self.beyond_caffe:
                mode = self.pick("zeros", "zeros", "zeros", "reflect", "replicate", "circular")
            if mode != "zeros" and min(space) < 2:
                mode = "zeros"
        size = [
            (s + 2 * p - d * (k - 1) - 1) // t + 1
            for s, p, d, k, t in zip(space, pads, dilations, kernels, strides, strict=True)
        ]
        if min(size) < 1:
            return None
        return self.add(
            "conv",
            [x],
            (n, outs, *size),
            out=outs,
            kernel=tuple(kernels),
            stride=tuple(strides),
            dilation=tuple(dilations),
            padding=tuple(pads),
            groups=groups,
            mode=mode,
            bias=self.pick(True, False),
            binary=self.beyond_caffe and self.chance(8),
        )

    def deconv(self) -> str | None:
        x = self.image()
        if x is None:
            return None
        n, c, *space = self.shapes[x]
        groups = self.pick(*(g for g in (1, 1, 2, c) if c % g == 0))
        outs = groups * self.pick(1, *(k for k in (2, 3) if groups * k <= 6))
        kernel, stride = self.pick(2, 1, 3), self.pick(1, 2)
        padding = self.pick(0, 1) if kernel > 1 else 0
        dilation = self.pick(1, 1, 2)
        extra = self.pick(0, 1) if self.beyond_caffe and max(stride, dilation) > 1 else 0
        size = [(s - 1) * stride - 2 * padding + dilation * (kernel - 1) + extra + 1 for s in space]
        if min(size) < 1 or n * outs * math.prod(size) > MOST_ELEMENTS:
            return None
        spread = {"kernel": kernel, "stride": stride, "dilation": dilation, "padding": padding}
        return self.add(
            "deconv",
            [x],
            (n, outs, *size),
            out=outs,
            groups=groups,
            bias=self.pick(True, False),
            output_padding=(extra,) * len(space),
            **{name: (number,) * len(space) for name, number in spread.items()},
        )

    def linear(self) -> str | None:
        """On the last axis, whatever the rank."""
        x = self.value()
        if x is None:
            return None
        shape = self.shapes[x]
        if len(shape) > 3 and not self.chance(3):
            return None
        out = self.pick(2, 3, 4, 1)
        return self.add("linear", [x], (*shape[:-1], out), out=out, bias=self.pick(True, False))

    def again(self) -> str | None:
        """A module that the network has already, called once more."""
        kinds = ("conv", "linear") if self.within == "caffe" else ("conv", "linear", "bn", "conv")
        owners = [n for n in self.nodes if n.kind in kinds and not n.same_as]
        if not owners:
            return None
        owner: Node = self.draw(st.sampled_from(owners))
        source = self.shapes[owner.inputs[0]]
        axis = -1 if owner.kind == "linear" else 1
        x = self.value(lambda s: len(s) == len(source) and s[axis] == source[axis])
        if x is None:
            return None
        n, _, *space = shape = self.shapes[x]
        if owner.kind == "linear":
            made: Shape = (*shape[:-1], owner.get("out"))
        elif owner.kind == "bn":
            made = shape
        else:
            size = [
                (s + 2 * p - d * (k - 1) - 1) // t + 1
                for s, p, d, k, t in zip(
                    space, *(owner.get(o) for o in ("padding", "dilation", "kernel", "stride")),
                    strict=True,
                )
            ]  # fmt: skip
            if min(size) < 1 or (owner.get("mode") != "zeros" and min(space) < 2):
                return None
            made = (n, owner.get("out"), *size)
        return self.add(owner.kind, [x], made, same_as=owner.name, **owner.options)

    # ---------------------------------------------------------------- affine steps

    def gamma(self, channels: int) -> tuple[float, ...]:
        return tuple(self.pick(*self.gammas) for _ in range(channels))

    def bn(self, x: str | None = None) -> str | None:
        x = x or self.value()
        if x is None:
            return None
        shape = self.shapes[x]
        gamma = None if self.chance(8) else self.gamma(shape[1])
        eps = EPSILONS[0] if self.plain else self.pick(*EPSILONS)
        return self.add("bn", [x], shape, gamma=gamma, eps=eps, plain=self.plain)

    def scale(self) -> str | None:
        """Of several channels: a single number is no step that anybody would ask about."""
        x = self.value(lambda shape: shape[1] > 1)
        if x is None:
            return None
        shape = self.shapes[x]
        return self.add("scale", [x], shape, gamma=self.gamma(shape[1]))

    def shift(self) -> str | None:
        x = self.value(lambda shape: shape[1] > 1)
        return None if x is None else self.add("shift", [x], self.shapes[x], plain=self.plain)

    # ---------------------------------------------------------------- elementwise

    def activation(self, x: str | None = None) -> str | None:
        x = x or self.value()
        if x is None:
            return None
        kind = self.pick(
            "relu", "relu", "relu", "relu", "relu6", "clip", "leaky", "prelu", "abs", "sigmoid"
        )
        how = self.pick("module", "module", "in place", "function", "shared")
        return self.add(kind, [x], self.shapes[x], how=how)

    def opaque(self) -> str | None:
        x = self.value()
        kind = self.pick("sigmoid", "tanh", "softmax")
        return None if x is None else self.add(kind, [x], self.shapes[x])

    def sign(self) -> str | None:
        """In front of it, mostly, what keeps exact zeros away: they are where rounding shows."""
        x = self.value()
        return None if x is None else self.add("sign", [x], self.shapes[x])

    def identity(self) -> str | None:
        x = self.value()
        kind = self.pick("dropout", "identity")
        return None if x is None else self.add(kind, [x], self.shapes[x])

    # ---------------------------------------------------------------- pooling

    def pool(self) -> str | None:
        x = self.image(3 if self.beyond_caffe else 4)
        if x is None or (not self.beyond_caffe and len(self.shapes[x]) != 4):
            return None
        n, c, *space = self.shapes[x]
        kind, kernel, stride = self.pick("max", "avg"), self.pick(2, 3), self.pick(2, 1)
        padding, ceil = self.pick(0, 1), self.pick(False, True)
        size = []
        for length in space:
            left = length + 2 * padding - kernel
            if left < 0 or length < kernel - padding or (len(space) > 2 and length < kernel):
                return None
            count = (-(-left // stride) if ceil else left // stride) + 1
            if (count - 1) * stride >= length + padding:
                return None  # a window that lies behind the image: tools disagree
            if not self.beyond_caffe and left % stride:
                ceil, count = True, -(-left // stride) + 1
                if (count - 1) * stride >= length + padding:
                    return None
            size.append(count)
        if not self.beyond_caffe:  # it rounds up on all axes
            size = [-(-(length + 2 * padding - kernel) // stride) + 1 for length in space]
            if any((k - 1) * stride >= s + padding for k, s in zip(size, space, strict=True)):
                return None
        counted = not self.beyond_caffe or not padding or self.pick(True, False)
        options = {"kernel": kernel, "stride": stride, "padding": padding, "ceil": ceil}
        if kind == "avg":
            options["counted"] = counted
        return self.add(kind, [x], (n, c, *size), **options)

    def global_pool(self, x: str | None = None) -> str | None:
        x = x or self.image(3 if self.beyond_caffe else 4)
        if x is None or (not self.beyond_caffe and len(self.shapes[x]) != 4):
            return None
        n, c, *space = self.shapes[x]
        return self.add(self.pick("gavg", "gmax"), [x], (n, c, *[1] * len(space)))

    # ---------------------------------------------------------------- several operands

    def join(self) -> str | None:
        x = self.value()
        if x is None:
            return None
        shape = self.shapes[x]
        kind = self.pick("add", "add", "concat", "sub", "mul")
        if kind == "concat":
            axis = 1 if len(shape) < 3 or not self.chance(5) else 2
            if self.chance(5):  # of one tensor, as a dense block begins: a copy
                return self.add("concat", [x], shape, axis=axis)
            y = self.value(
                lambda s: (
                    len(s) == len(shape)
                    and all(
                        a == b for i, (a, b) in enumerate(zip(s, shape, strict=True)) if i != axis
                    )
                )
            )
            made = list(shape)
            made[axis] += self.shapes[str(y)][axis]
            if made[1] > 2 * self.most_channels or math.prod(made) > MOST_ELEMENTS:
                return None
            return self.add("concat", [x, str(y)], tuple(made), axis=axis)
        y = self.value(lambda s: s == shape)
        return self.add(kind, [x, str(y)], shape)

    def residual(self) -> str | None:
        """Convolution, BatchNorm, activation, ... and the sum with what went in."""
        x = self.image()
        if x is None:
            return None
        channels = self.shapes[x][1]
        y: str | None = x
        if self.chance(3):  # pre-activation
            y = self.activation(self.bn(y))
        y = self.conv(y, channels, 3)
        y = self.bn(y)
        if self.pick(False, True):
            y = self.bn(self.conv(self.activation(y), channels, self.pick(1, 3)))
        return self.add("add", [str(y), x], self.shapes[x])

    def squeeze_excite(self) -> str | None:
        x = self.image(3 if self.beyond_caffe else 4)
        if x is None or (not self.beyond_caffe and len(self.shapes[x]) != 4):
            return None
        small = self.global_pool(x)
        if self.pick(False, True):
            small = self.conv(small, self.shapes[x][1], 1)
        if self.pick(False, True):
            small = self.bn(small)
        small = self.add(self.pick("sigmoid", "relu"), [str(small)], self.shapes[str(small)])
        return self.add("mul", [x, small], self.shapes[x])

    # ---------------------------------------------------------------- views

    def view(self) -> str | None:
        kinds = [self.split, self.flatten, self.shuffle, self.swap, self.reshape, self.crop]
        if self.beyond_caffe:
            kinds += [self.pixel_shuffle, self.upsample, self.pad]
        made: str | None = self.draw(st.sampled_from(kinds))()
        return made

    def split(self) -> str | None:
        x = self.value(lambda shape: shape[1] > 1)
        if x is None:
            return None
        n, c, *space = self.shapes[x]
        at = self.draw(st.integers(1, c - 1))
        return self.add("split", [x], (n, at, *space), (n, c - at, *space), at=at)

    def flatten(self) -> str | None:
        x = self.value(lambda shape: len(shape) > 2 and math.prod(shape[1:]) <= 48)
        if x is None:
            return None
        return self.add("flatten", [x], (self.shapes[x][0], math.prod(self.shapes[x][1:])))

    def shuffle(self) -> str | None:
        x = self.value(lambda s: s[1] in (4, 6) and (len(s) == 4 if self.within == "caffe" else 1))
        return None if x is None else self.add("shuffle", [x], self.shapes[x], groups=2)

    def swap(self) -> str | None:
        """The last two axes."""
        x = self.image()
        if x is None:
            return None
        shape = self.shapes[x]
        return self.add("swap", [x], (*shape[:-2], shape[-1], shape[-2]))

    def reshape(self) -> str | None:
        """Channels into space, space into one axis, or (N, C) into an image."""
        x = self.value()
        if x is None:
            return None
        n, c, *space = self.shapes[x]
        if space:
            made: Shape = (n, c, math.prod(space), 1) if self.pick(True, False) else (
                n, c * space[0], *space[1:])  # fmt: skip
        elif c % 2 == 0:
            made = (n, c // 2, 2, 1)
        else:
            made = (n, c, 1, 1)
        if made[1] > 24 or len(made) < 2:
            return None
        return self.add("reshape", [x], made)

    def crop(self) -> str | None:
        x = self.value(lambda shape: len(shape) > 2 and shape[2] > 2)
        if x is None:
            return None
        n, c, first, *rest = self.shapes[x]
        return self.add("crop", [x], (n, c, first - 1, *rest))

    def pixel_shuffle(self) -> str | None:
        x = self.value(lambda shape: len(shape) == 4 and shape[1] % 4 == 0)
        if x is None:
            return None
        n, c, h, w = self.shapes[x]
        return self.add("pixel_shuffle", [x], (n, c // 4, 2 * h, 2 * w))

    def upsample(self) -> str | None:
        x = self.value(lambda s: len(s) == 4 and 4 * math.prod(s) <= MOST_ELEMENTS)
        if x is None:
            return None
        n, c, h, w = self.shapes[x]
        return self.add("upsample", [x], (n, c, 2 * h, 2 * w), mode=self.pick("nearest", "linear"))

    def pad(self) -> str | None:
        """Space only; negative amounts crop."""
        x = self.value(lambda shape: len(shape) == 4 and min(shape[2:]) > 1)
        if x is None:
            return None
        n, c, *space = self.shapes[x]
        mode = self.pick("constant", "constant", "reflect", "replicate")
        amounts = (1, 0, -1) if mode == "constant" else (1, 0)
        before = tuple(self.pick(*amounts) for _ in space)
        after = tuple(self.pick(*amounts) for _ in space)
        size = [s + b + a for s, b, a in zip(space, before, after, strict=True)]
        if min(size) < 1 or not any(before + after):  # modules take the latter for computed
            return None
        value = self.pick(0.0, 0.0, 1.5) if mode == "constant" else 0.0
        return self.add(
            "pad", [x], (n, c, *size), before=before, after=after, mode=mode, value=value
        )


STEPS: tuple[tuple[Callable[[Sketch], Any], int], ...] = (
    (Sketch.bn, 5),
    (Sketch.conv, 5),
    (Sketch.activation, 4),
    (Sketch.residual, 2),
    (Sketch.join, 3),
    (Sketch.view, 3),
    (Sketch.pool, 2),
    (Sketch.deconv, 1),
    (Sketch.linear, 1),
    (Sketch.again, 1),
    (Sketch.scale, 1),
    (Sketch.shift, 1),
    (Sketch.global_pool, 1),
    (Sketch.squeeze_excite, 1),
    (Sketch.opaque, 1),
    (Sketch.identity, 1),
    (branches, 5),
    (serial, 2),
    (siblings, 2),
    (matrices, 2),
    (transposed, 1),
)
_DRAWN = [step for step, weight in STEPS for _ in range(weight)]


@st.composite
def networks(draw: st.DrawFn, *, within: Within = "all", most: int = 9) -> Network:
    """A network of up to `most` drawn steps."""
    sketch = Sketch(draw, within)
    drawn = _DRAWN if within == "caffe" else [*_DRAWN, Sketch.sign]
    for step in draw(st.lists(st.sampled_from(drawn), min_size=2, max_size=most)):
        step(sketch)
    if not sketch.nodes:
        sketch.bn()
    network = Network(sketch.inputs, tuple(sketch.nodes), (), draw(st.integers(0, 9999)))
    read = [n for node in network.nodes for n in node.outputs if n not in network.results]
    more = (draw(st.sampled_from(read)),) if read and sketch.chance(5) else ()
    return Network(network.inputs, network.nodes, more, network.seed)
