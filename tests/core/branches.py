"""Networks of linear ops that meet: what merging them makes, held against what they computed.

`Branches` is a `Network` that knows the window of each of its linear ops. `assert_merges` looks for
merges and checks that every merged op computes what it stands for: all of a tensor, or so much of a
sum that the sum without the operands that went is what it was.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from bnfold.core import graph as g
from bnfold.core.expression import Border, Freedom, Part
from bnfold.core.kernel import Kernel
from bnfold.core.merge import find_merges
from bnfold.core.merged import Merge
from bnfold.core.window import Window
from tests.core.interpreter import TOLERANCE, Network, run_all

Array = NDArray[np.float64]


def compute(kernel: Kernel, x: Array, axis: int = 1) -> Array:
    """A kernel, tap by tap: x is (batch, channels, *space), or has its channels along `axis`."""
    window, rank = kernel.window, len(kernel.window.kernel)
    x = np.moveaxis(x, axis, 1)
    dense = kernel.in_groups(1)
    if window.is_transposed:
        result = _scattered(window, dense, x)
    else:
        pads = [(0, 0), (0, 0), *zip(window.before, window.after, strict=True)]
        padded = np.pad(x, pads[: 2 + rank] + [(0, 0)] * (x.ndim - 2 - rank))
        sizes = [
            (n + m - 1) // s + 1
            for n, m, s in zip(x.shape[2:], window.margin, window.stride, strict=False)
        ]
        result = np.zeros((x.shape[0], len(dense), *sizes, *x.shape[2 + rank :]))
        for taps in itertools.product(*map(range, window.kernel)):
            cut = tuple(
                slice(d * p, d * p + s * (n - 1) + 1, s)
                for p, d, s, n in zip(taps, window.dilation, window.stride, sizes, strict=True)
            )
            result += np.einsum("oi,bi...->bo...", dense[(..., *taps)], padded[(..., *cut)])
    result += g.channel_array(kernel.bias, 1, result.ndim)
    return np.moveaxis(result, 1, axis)


def _scattered(window: Window, dense: Array, x: Array) -> Array:
    sizes = [
        (n - 1) * s + d * (k - 1) + 1
        for n, s, d, k in zip(
            x.shape[2:], window.stride, window.dilation, window.kernel, strict=True
        )
    ]
    after = [max(0, -pad) for pad in window.after]
    whole = np.zeros(
        (x.shape[0], len(dense), *(n + more for n, more in zip(sizes, after, strict=True)))
    )
    for taps in itertools.product(*map(range, window.kernel)):
        place = tuple(
            slice(d * p, d * p + s * (n - 1) + 1, s)
            for p, d, s, n in zip(taps, window.dilation, window.stride, x.shape[2:], strict=True)
        )
        whole[(..., *place)] += np.einsum("oi,bi...->bo...", dense[(..., *taps)], x)
    cut = tuple(
        slice(b, n - max(0, a) if a > 0 else n + max(0, -a))
        for b, a, n in zip(window.before, window.after, sizes, strict=True)
    )
    return whole[(..., *cut)]


@dataclass(repr=False)
class Branches(Network):
    """A network whose linear ops can be merged."""

    parts: dict[int, Part] = field(default_factory=dict)
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(5))

    def op(
        self,
        x: int,
        kernel: Kernel,
        *,
        name: str,
        axis: int = 1,
        is_rankless: bool = False,
        dtype: str = "float32",
        has_bias: bool = True,
        carries: bool = True,
        **role: Any,
    ) -> int:
        """A linear op with this kernel."""
        outs, ins = len(kernel.bias), kernel.weight.shape[1] * kernel.groups
        shape = compute(kernel, np.zeros(self.shape(x)), axis).shape
        law = g.Linear(ins, outs, axis, axis, kernel.groups, kernel.window.pads, **role)
        self.parts[len(self.graph.ops)] = Part.of(
            law,
            None if is_rankless else kernel.window,
            lambda: kernel.weight,
            (lambda: kernel.bias) if has_bias else None,
            dtype,
            carries=carries,
        )
        return self.add(
            law, [x], [shape], name=name, function=lambda xs: [compute(kernel, xs[0], axis)]
        )[0]

    def conv(  # type: ignore[override]
        self,
        x: int,
        outs: int = 4,
        kernel: Sequence[int] = (3, 3),
        *,
        padding: Sequence[int] | None = None,
        after: Sequence[int] | None = None,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
        transposed: bool = False,
        name: str = "conv",
        **more: Any,
    ) -> int:
        """A convolution with random numbers, of the size of its input if nothing else is said."""
        rank = len(kernel)
        before = tuple(dilation * (k - 1) // 2 for k in kernel) if padding is None else padding
        window = Window(
            tuple(kernel),
            (stride,) * rank,
            (dilation,) * rank,
            tuple(before),
            tuple(before if after is None else after),
            transposed,
        )
        weight = self.draw.standard_normal((outs, self.shape(x)[1] // groups, *kernel))
        shift = self.draw.standard_normal(outs) * bias
        made = Kernel(window, groups, weight, shift)
        return self.op(x, made, name=name, has_bias=bias, **more)

    def linear_over(
        self,
        x: int,
        outs: int,
        *,
        name: str = "linear",
        bias: bool = True,
        axis: int = -1,
        **more: Any,
    ) -> int:
        """A matrix over an axis."""
        axis %= len(self.shape(x))
        weight = self.draw.standard_normal((outs, self.shape(x)[axis]))
        kernel = Kernel(Window.pointwise(0), 1, weight, self.draw.standard_normal(outs) * bias)
        return self.op(x, kernel, name=name, axis=axis, is_rankless=True, has_bias=bias, **more)

    def mean(self, x: int, taps: int = 3, *, padding: int = 1, name: str = "pool") -> int:
        """The mean of so many taps along each axis, padded zeros counted."""
        rank = len(self.shape(x)) - 2
        ones = (1,) * rank
        window = Window((taps,) * rank, ones, ones, (padding,) * rank, (padding,) * rank)
        channels = self.shape(x)[1]
        kernel = Kernel.mean(window, channels)
        self.parts[len(self.graph.ops)] = Part.pooling(window, channels, 1, "float32")
        role = g.Mean(tuple(range(2, rank + 2)), counts_zeros=padding > 0)

        def function(values: Sequence[Array]) -> list[Array]:
            return [compute(kernel, values[0])]

        shape = function([np.zeros(self.shape(x))])[0].shape
        return self.add(role, [x], [shape], name=name, function=function)[0]

    def padded(
        self,
        x: int,
        before: Sequence[int],
        after: Sequence[int] | None = None,
        value: float = 0.0,
        *,
        name: str = "pad",
    ) -> int:
        """Constants around it; negative where a border is cut off. A part, where it can be one."""
        number = len(self.graph.ops)
        made = self.pad(x, before, before if after is None else after, value, name=name)
        role = self.graph.ops[number].role
        assert isinstance(role, g.Pad)
        if (part := Part.padding(role, self.shape(x), "float32")) is not None:
            self.parts[number] = part
        return made

    def bordered(self, x: int, values: Array, *, name: str = "border") -> int:
        """One place around it that holds a number per channel."""
        zeros = g.Pad((0, 0, 1, 1), (0, 0, 1, 1))
        part = Part.padding(zeros, self.shape(x), "float32")
        assert part is not None
        self.parts[len(self.graph.ops)] = replace(part, border=Border(values, 1e-12))
        border = g.channel_array(values, 1, 4)

        def function(xs: Sequence[Array]) -> list[Array]:
            width = [(0, 0), (0, 0), (1, 1), (1, 1)]
            inside = np.pad(np.ones(xs[0].shape), width)
            return [np.where(inside, np.pad(xs[0], width), border)]

        shape = function([np.zeros(self.shape(x))])[0].shape
        return self.add(g.Opaque(), [x], [shape], name=name, function=function)[0]

    def bn(self, x: int, name: str = "bn", *, axis: int = 1, **role: Any) -> int:
        """A BatchNorm with both signs of gamma."""
        count = self.shape(x)[axis]
        scale, shift = self.draw.standard_normal((2, count)) + 0.1
        return self.affine(x, scale, shift, axis=axis, name=name, **role)

    def copy(self, x: int, name: str = "copy", *, is_copy: bool = True) -> int:
        """The same values, or a view that only happens to move nothing."""
        view = g.View(list, None, is_copy)
        return self.add(view, [x], [self.shape(x)], name=name, function=list)[0]

    def minus(self, x: int, y: int, name: str = "minus") -> int:
        """x - y"""
        return self.add(g.Sum((1.0, -1.0)), [x, y], [self.shape(x)], name=name)[0]


def merges_of(net: Branches, freedom: Freedom | None = None) -> list[Merge]:
    """The merges of a network, each checked."""
    merges = find_merges(net.graph, MappingProxyType(net.parts), freedom)
    rng = np.random.default_rng(3)
    values = run_all(net, [rng.standard_normal(net.shape(t)) for t, _ in net.graph.inputs])
    made: dict[tuple[int, int], Array] = {}
    for merge in merges:
        role = net.graph.ops[merge.carrier].role
        axis = role.in_axis if isinstance(role, g.Linear) else 1
        kernel = merge.kernel()
        rank = len(net.shape(merge.source)) - 2
        if merge.window is None and merge.is_affine and rank > 0:
            kernel = Kernel.affine(kernel.weight.reshape(-1), kernel.bias, 0)
        result = compute(kernel, values[merge.source], axis)
        if merge.enters is None:
            _assert_close(result, values[merge.output])
        else:
            made[merge.enters] = result
    for merge in merges:
        if merge.enters is not None:
            root = _root(net, merge.enters[0])
            (output,) = net.graph.ops[root].outputs
            gone = merge.gone
            _assert_close(_summed(net, merge.sums, root, made, values, gone), values[output])
    numbers = [n for merge in merges for n in {merge.carrier, *merge.gone}]
    sums = [n for merge in merges for n in merge.gone if isinstance(net.graph.ops[n].role, g.Sum)]
    assert len(set(numbers)) == len(numbers) - (len(sums) - len(set(sums))), "in two merges"
    return merges


def _root(net: Branches, number: int) -> int:
    """The sum that a sum is a part of in the end."""
    (output,) = net.graph.ops[number].outputs
    readers = [n for n, op in enumerate(net.graph.ops) if output in op.inputs]
    if len(readers) == 1 and isinstance(net.graph.ops[readers[0]].role, g.Sum):
        return _root(net, readers[0])
    return number


def _summed(
    net: Branches,
    sums: Mapping[int, Sequence[int]],
    number: int,
    made: Mapping[tuple[int, int], Array],
    values: Mapping[int, Array],
    gone: Collection[int],
) -> Array:
    """A sum of which only some operands are left."""
    op = net.graph.ops[number]
    assert isinstance(op.role, g.Sum)
    makers = {op.outputs[0]: at for at, op in enumerate(net.graph.ops) if op.outputs}
    kept = sums.get(number, range(len(op.inputs)))
    total: Any = 0.0
    for position in kept:
        maker = makers.get(op.inputs[position], -1)
        if (number, position) in made:
            value = made[number, position]
        elif maker >= 0 and isinstance(net.graph.ops[maker].role, g.Sum):
            assert maker not in gone
            value = _summed(net, sums, maker, made, values, gone)
        else:
            value = values[op.inputs[position]]
        is_alone = len(kept) == 1 < len(op.inputs)
        total = total + (1.0 if is_alone else op.role.coefficients[position]) * value
    return np.asarray(total)


def _assert_close(one: ArrayLike, other: ArrayLike) -> None:
    one, other = np.asarray(one), np.asarray(other)
    assert one.shape == other.shape
    assert np.abs(one - other).max() <= 10 * TOLERANCE * max(1.0, float(np.abs(other).max()))


def names(net: Branches, merges: Sequence[Merge]) -> list[tuple[str, tuple[str, ...]]]:
    """The carrier of each merge, and what is gone for it."""
    ops = net.graph.ops
    return [
        (ops[merge.carrier].name, tuple(ops[n].name for n in sorted(merge.gone)))
        for merge in sorted(merges, key=lambda merge: merge.carrier)
    ]
