"""Random networks over all roles, as values that Hypothesis can shrink."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import strategies as st

from bnfold.core import graph as g
from bnfold.core.graph import Mean, Weight
from tests.core.interpreter import Network

GAMMAS = (1.0, -1.3, 0.6, 2.4, -0.4, 1e-3, 0.0)
SIDE = 3
FIXED = {
    "removal": g.Removal.UNASKED,
    "factors": g.Parameter.FIXED,
    "summands": g.Parameter.FIXED,
}


class Sketch:
    """A network that grows by drawn decisions; all tensors are images until the head."""

    def __init__(self, draw: st.DrawFn, *, zero_gamma: bool) -> None:
        self.draw = draw
        self.network = Network()
        self.generator = np.random.default_rng(draw(st.integers(0, 999)))
        self.gammas = GAMMAS if zero_gamma else GAMMAS[:-1]
        self.pool = [self.network.input(2, self.pick(1, 2, 3, 4), SIDE, SIDE)]

    def pick(self, *choices):
        return self.draw(st.sampled_from(choices))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def tensor(self) -> int:
        """An operand: mostly the newest tensor."""
        return self.pool[-1 - self.draw(st.integers(0, min(3, len(self.pool) - 1)))]

    def channels(self, x: int) -> int:
        return self.network.shape(x)[1]

    def random(self, *shape: int) -> np.ndarray:
        return self.generator.standard_normal(shape)

    def push(self, *made: int) -> None:
        self.pool.extend(made)

    # -- one method per kind of op ---------------------------------------------------------------

    def conv(self) -> None:
        x = self.tensor()
        ins = self.channels(x)
        groups = self.pick(*(n for n in (1, 2, 3, 4) if ins % n == 0))
        outs = groups * self.pick(*(n for n in (1, 2, 3, 4) if groups * n <= 4))
        taps, padding = self.pick((1, 0), (3, 1))
        mode = self.pick("zeros", "zeros", "replicate") if padding else "zeros"
        bias = self.random(outs) if self.flag() else None
        kind = self.pick(Weight.FREE, Weight.FREE, Weight.FREE, Weight.SIGNS, Weight.FIXED)
        kernel = self.random(outs, ins // groups, taps, taps)
        if kind is Weight.SIGNS:
            kernel = np.sign(kernel)
        self.push(
            self.network.conv(
                x,
                kernel,
                bias,
                padding=padding,
                groups=groups,
                padding_mode=mode,
                weight=kind,
                bias_editable=kind is Weight.FREE or self.flag(),
            )
        )

    def conv_transposed(self) -> None:
        x = self.tensor()
        ins = self.channels(x)
        groups = self.pick(*(n for n in (1, 2) if ins % n == 0))
        taps, padding = self.pick((1, 0), (3, 1))
        kernel = self.random(ins, self.pick(1, 2), taps, taps)
        self.push(
            self.network.conv_transpose(
                x, kernel, self.random(kernel.shape[1] * groups), padding=padding, groups=groups
            )
        )

    def embedding(self) -> None:
        """Looked-up rows, laid out as an image."""
        table = self.random(5, self.pick(1, 2, 3))
        rows = self.generator.integers(0, 5, (2, SIDE, SIDE))
        found = self.network.embedding(rows, table)
        self.push(self.network.transpose(found, 0, 3, 1, 2))

    def blur(self) -> None:
        x = self.tensor()
        kernel = self.random(self.channels(x), 1, 3, 3)
        if self.flag():  # a high-pass: the taps sum to 0
            kernel -= kernel.mean(axis=(2, 3), keepdims=True)
        self.push(self.network.depthwise_fixed(x, kernel, padding=1))

    def tied_conv(self) -> None:
        """Two calls of one convolution, the second on what the first made or on another tensor."""
        x = self.tensor()
        count = self.channels(x)
        kernel, bias = self.random(count, count, 1, 1), self.random(count)
        tie = f"kernel{len(self.network.graph.ops)}"
        y = self.network.conv(x, kernel, bias, tie=tie)
        others = [t for t in self.pool if self.channels(t) == count]
        between = self.pick("chain", "affine", "other")
        if between == "other":
            again = self.draw(st.sampled_from(others))
        else:
            again = self.network.affine(y, *self.norm(count)) if between == "affine" else y
        self.push(y, self.network.conv(again, kernel, bias, tie=tie))

    def norm(self, count: int) -> tuple[list[float], np.ndarray]:
        return [self.pick(*self.gammas) for _ in range(count)], self.random(count)

    def batch_norm(self) -> None:
        x = self.tensor()
        editable = self.pick((True, True), (True, True), (True, False), (False, True))
        self.push(
            self.network.affine(
                x,
                *self.norm(self.channels(x)),
                factors=g.Parameter.editable_if(editable[0]),
                summands=g.Parameter.editable_if(editable[1]),
            )
        )

    def fixed_affine(self) -> None:
        x = self.tensor()
        scale, shift = self.norm(self.channels(x))
        if self.flag():
            scale = [1.0] * len(scale)
        if self.flag():
            shift = np.where(self.random(len(scale)) > 0, shift, 0.0)
        self.push(self.network.affine(x, scale, shift, **FIXED))

    def tied_norm(self) -> None:
        x = self.tensor()
        count = self.channels(x)
        scale, shift = self.norm(count)
        others = [t for t in self.pool if self.channels(t) == count]
        y = self.draw(st.sampled_from(others))
        tie = f"norm{len(self.network.graph.ops)}"
        first = self.network.affine(x, scale, shift, tie=tie)
        middle = self.pick("other", "chain", "conv")
        if middle == "chain":
            y = first
        elif middle == "conv":
            y = self.network.conv(first, self.random(count, count, 1, 1), self.random(count))
        self.push(first, self.network.affine(y, scale, shift, tie=tie))

    def spatial_norm(self) -> None:
        """Constants along the height: labels that vary over two axes."""
        x = self.tensor()
        self.push(self.network.affine(x, *self.norm(SIDE), axis=2))

    def clip(self) -> None:
        lower, upper = self.pick((0.0, np.inf), (0.0, 6.0), (-1.0, 1.5), (-np.inf, 2.0))
        costs = {"one_sided_cost": self.pick(0.0, 1.0), "two_sided_cost": self.pick(0.0, 1.0, 3.0)}
        self.push(self.network.clip(self.tensor(), lower, upper, room=self.flag(), **costs))

    def leaky(self) -> None:
        self.push(self.network.leaky(self.tensor()))

    def max_pool(self) -> None:
        self.push(self.network.max_pool(self.tensor(), 3, padding=1))

    def mean_pool(self) -> None:
        x = self.tensor()
        if self.flag():
            self.push(self.network.mean_pool(x, 3, padding=1))
        else:
            mean = self.network.reduce(x, Mean, (2, 3), keeps_rank=True)
            self.push(*self.network.view(_upsample, mean))

    def sum(self) -> None:
        x = self.tensor()
        fitting = [
            t for t in self.pool if self.channels(t) in (1, self.channels(x))
        ]  # one channel is broadcast
        others = [self.draw(st.sampled_from(fitting)) for _ in range(self.pick(1, 1, 2))]
        factors = [self.pick(1.0, 1.0, -1.0, 0.5, 0.0) for _ in range(1 + len(others))]
        self.push(self.network.sum(x, *others, coefficients=factors))

    def shortcut(self) -> None:
        """A sum that sees one tensor twice, in steps, in a convolution, in a sum inside."""
        x = self.tensor()
        seen = [self.branch(x) for _ in range(self.pick(1, 2, 2))]
        seen.append(x if self.flag() else self.branch(x))
        if self.flag():
            seen.append(self.tensor())
        seen = [t for t in seen if self.channels(t) in self.addable(self.channels(x))]
        inner = seen[: self.pick(0, 0, 2)]
        if len(inner) > 1:
            y = self.weighed(inner)
            if self.flag():
                y = self.network.affine(y, *self.norm(self.channels(x)))
            seen = [y, *seen[2:]]
        if len(seen) > 1:
            seen = self.draw(st.permutations(seen))
            self.push(self.weighed(seen))
        if self.flag():  # someone else reads what is inside
            self.push(seen[0])

    def addable(self, count: int) -> tuple[int, ...]:
        """How many channels may be added to so many; one is broadcast."""
        return (1, count)

    def branch(self, x: int) -> int:
        """Something that keeps the shape of a tensor."""
        count = self.channels(x)
        kind = self.pick("norm", "norm", "norms", "conv", "conv and norm", "copy", "factor")
        if "conv" in kind:
            groups = self.pick(1, count)
            taps = self.pick(1, 3)
            kernel = self.random(count, count // groups, taps, taps)
            bias = self.random(count) if self.flag() else None
            x = self.network.conv(x, kernel, bias, padding=taps // 2, groups=groups)
        if "norm" in kind:
            x = self.network.affine(x, *self.norm(count))
        if kind == "norms":
            removal = g.Removal.WANTED if self.flag() else g.Removal.UNASKED
            x = self.network.affine(x, *self.norm(count), removal=removal)
        if kind == "copy":
            x = self.network.view(list, self.network.affine(x, *self.norm(count)))[0]
        if kind == "factor":
            x = self.network.affine(
                self.network.affine(x, *self.norm(count)), [0.5], [0.0], **FIXED
            )
        return x

    def weighed(self, operands: list[int]) -> int:
        """Their sum, mostly plain."""
        factors = [self.pick(1.0, 1.0, -1.0, 0.5) for _ in operands]
        return self.network.sum(*operands, coefficients=factors)

    def gate(self) -> None:
        x = self.tensor()
        fitting = [t for t in self.pool if self.channels(t) in (1, self.channels(x))]
        y = self.draw(st.sampled_from(fitting))
        if self.flag():
            y = self.network.sigmoid(y)
        self.push(self.network.gate(x, y) if self.flag() else self.network.gate(y, x))

    def concat(self) -> None:
        x, y = self.tensor(), self.tensor()
        if self.channels(x) + self.channels(y) <= 6:
            self.push(self.network.concat(x, y))

    def split(self) -> None:
        x = self.tensor()
        if self.channels(x) >= 2:
            self.push(*self.network.split(x, self.draw(st.integers(1, self.channels(x) - 1))))

    def shuffle(self) -> None:
        x = self.tensor()
        if self.channels(x) == 4:
            self.push(self.network.shuffle(x, 2))

    def flip(self) -> None:
        self.push(self.network.transpose(self.tensor(), 0, 1, 3, 2))

    def pad(self) -> None:
        """Pads one row and crops another, or adds a channel."""
        x = self.tensor()
        value = self.pick(0.0, 0.0, 1.5)
        before, after = self.pick(
            ((0, 0, 1, 0), (0, 0, -1, 0)),
            ((0, 0, 0, -1), (0, 0, 0, 1)),
            ((0, 1, 0, 0), (0, 0, 0, 0)),
        )
        if before[1] and self.channels(x) > 5:
            return
        self.push(self.network.pad(x, before, after, value))

    def sign(self) -> None:
        self.push(self.network.sign(self.tensor(), odd=self.flag()))

    def sigmoid(self) -> None:
        self.push(self.network.sigmoid(self.tensor()))

    def constant(self) -> None:
        x = self.tensor()
        count = self.channels(x)
        value = np.zeros(1) if self.flag() else self.random(1, count, 1, 1)
        self.push(self.network.constant(value, self.network.shape(x)))

    def head(self) -> None:
        """What the network ends in: a matrix product, a convolution or nothing."""
        x = self.pool[-1]
        kind = self.pick("conv", "matrix", "none")
        if kind == "conv":
            x = self.network.conv(x, self.random(2, self.channels(x), 1, 1), self.random(2))
        elif kind == "matrix":
            x = self.network.flatten(x)
            x = self.network.matrix(x, self.random(2, self.channels(x)), self.random(2))
        self.network.output(x)
        if self.flag():
            self.network.output(self.tensor())


def _upsample(values):
    return [np.broadcast_to(values[0], (*values[0].shape[:2], SIDE, SIDE))]


KINDS: tuple[Callable[[Sketch], None], ...] = (
    Sketch.batch_norm,
    Sketch.batch_norm,
    Sketch.batch_norm,
    Sketch.conv,
    Sketch.conv,
    Sketch.clip,
    Sketch.sum,
    Sketch.shortcut,
    Sketch.shortcut,
    Sketch.conv_transposed,
    Sketch.embedding,
    Sketch.blur,
    Sketch.tied_conv,
    Sketch.fixed_affine,
    Sketch.tied_norm,
    Sketch.spatial_norm,
    Sketch.leaky,
    Sketch.max_pool,
    Sketch.mean_pool,
    Sketch.gate,
    Sketch.concat,
    Sketch.split,
    Sketch.shuffle,
    Sketch.flip,
    Sketch.pad,
    Sketch.sign,
    Sketch.sigmoid,
    Sketch.constant,
)


@st.composite
def networks(
    draw: st.DrawFn, *, zero_gamma: bool = True, along_height: bool = True, most: int = 12
) -> Network:
    """A network of 3 to `most` drawn steps and a head."""
    sketch = Sketch(draw, zero_gamma=zero_gamma)
    kinds = [kind for kind in KINDS if along_height or kind is not Sketch.spatial_norm]
    for kind in draw(st.lists(st.sampled_from(kinds), min_size=3, max_size=most)):
        kind(sketch)
    sketch.head()
    return sketch.network
