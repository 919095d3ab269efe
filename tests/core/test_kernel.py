"""The numbers of merged ops, held against what the ops compute one by one."""

from __future__ import annotations

import numpy as np
import pytest

from bnfold.core.kernel import Kernel, added, behind, stacked
from bnfold.core.window import Window, chained, joint
from tests.core.branches import compute

CHANNELS = 12
GROUPS = (1, 2, 3, 4, 6, 12)
TOLERANCE = 1e-11


def drawn(rng: np.random.Generator, rank: int, *, outs: int = CHANNELS, transposed=False) -> Kernel:
    """A kernel of any kind."""
    kernel = tuple(int(k) for k in rng.choice([1, 1, 2, 3], rank))
    window = Window(
        kernel,
        tuple(int(s) for s in rng.choice([1, 1, 2], rank)),
        tuple(int(rng.choice([1, 2])) if k > 1 else 1 for k in kernel),
        tuple(int(p) for p in rng.choice([0, 0, 1, 2], rank)),
        tuple(int(p) for p in rng.choice([0, 0, 1, 2], rank)),
        transposed,
    )
    if rng.random() < 0.3:
        window, kernel = Window.pointwise(rank), (1,) * rank
    groups = int(rng.choice(GROUPS))
    weight = rng.standard_normal((outs, CHANNELS // groups, *kernel))
    return Kernel(window, groups, weight, rng.standard_normal(outs) * (rng.random() < 0.5))


def image(rng: np.random.Generator, rank: int) -> np.ndarray:
    return rng.standard_normal((2, CHANNELS, *rng.integers(5, 9, rank)))


def close(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and bool(
        np.abs(one - other).max() <= TOLERANCE * max(1.0, np.abs(other).max())
    )


class TestBehind:
    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_one_op_computes_what_two_did(self, rank) -> None:
        rng = np.random.default_rng(rank)
        done = 0
        while done < 60:
            transposed = bool(rng.random() < 0.2)
            inner = drawn(rng, rank, transposed=transposed and bool(rng.random() < 0.5))
            outer = drawn(rng, rank, outs=int(rng.choice([12, 24])), transposed=transposed)
            window = chained(inner.window, outer.window, inner_shifts=bool(inner.bias.any()))
            if window is None:
                continue
            x = image(rng, rank)
            between = compute(inner, x)
            if min((np.add(between.shape[2:], outer.window.margin)).tolist()) < 1:
                continue
            both = behind(inner, outer, window)
            assert close(compute(both, x), compute(outer, between)), (inner.window, outer.window)
            done += 1

    def test_taps_that_lie_apart_on_a_finer_grid(self) -> None:
        rng = np.random.default_rng(5)
        inner = Window((3,), (1,), (2,), (0,), (0,))
        outer = Window((2,), (1,), (1,), (0,), (0,))
        window = chained(inner, outer, inner_shifts=True)
        assert window is not None and window.dilation == (1,)
        weights = (rng.standard_normal((12, 12, taps)) for taps in (3, 2))
        first, second = (
            Kernel(w, 1, weight, rng.standard_normal(12))
            for w, weight in zip((inner, outer), weights, strict=True)
        )
        x = rng.standard_normal((2, 12, 9))
        both = behind(first, second, window)
        assert close(compute(both, x), compute(second, compute(first, x)))

    def test_an_affine_step_leaves_the_groups(self) -> None:
        rng = np.random.default_rng(7)
        conv = Kernel(
            Window((3,), (1,), (1,), (1,), (1,)), 4, rng.standard_normal((12, 3, 3)), np.ones(12)
        )
        step = Kernel.affine(rng.standard_normal(12), rng.standard_normal(12), 1)
        x = rng.standard_normal((1, 12, 6))
        after = behind(conv, step, conv.window)
        assert after.groups == 4
        assert close(compute(after, x), compute(step, compute(conv, x)))
        plain = Kernel(Window((3,), (1,), (1,), (0,), (0,)), 4, conv.weight, conv.bias)
        before = behind(step, plain, plain.window)
        assert before.groups == 4
        assert close(compute(before, x), compute(plain, compute(step, x)))


class TestAdded:
    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_one_op_computes_what_a_sum_did(self, rank) -> None:
        rng = np.random.default_rng(10 + rank)
        done = 0
        while done < 60:
            transposed = bool(rng.random() < 0.3)
            kernels = [drawn(rng, rank, transposed=transposed) for _ in range(3)]
            first = kernels[0].window
            if rng.random() < 0.8:  # of one size
                kernels = [_like(kernel, first) for kernel in kernels]
            if first.is_pointwise:
                scale, shift = rng.standard_normal((2, CHANNELS))
                kernels.append(Kernel.affine(scale, shift, rank))
            window = joint([kernel.window for kernel in kernels])
            if window is None or any(min(kernel.window.after) < 0 for kernel in kernels):
                continue
            factors = [float(f) for f in rng.choice([1.0, -1.0, 0.5], len(kernels))]
            x = image(rng, rank)
            total = sum(f * compute(k, x) for f, k in zip(factors, kernels, strict=True))
            assert close(compute(added(kernels, factors), x), np.asarray(total))
            done += 1

    def test_groups_are_the_common_divisor(self) -> None:
        rng = np.random.default_rng(0)
        ops = [
            Kernel(Window.pointwise(1), g, rng.standard_normal((12, 12 // g, 1)), np.zeros(12))
            for g in (4, 6)
        ]
        whole = added([*ops, Kernel.affine(np.ones(12), np.zeros(12), 1)], [1.0, 1.0, 1.0])
        assert whole.groups == 2
        assert whole.weight.shape == (12, 6, 1)

    def test_a_depth_multiplier_is_no_affine_step(self) -> None:
        wide = Kernel(Window.pointwise(1), 6, np.arange(12.0).reshape(6, 2, 1) + 1, np.zeros(6))
        assert not wide.is_affine
        deep = Kernel(Window.pointwise(1), 6, np.arange(12.0).reshape(12, 1, 1) + 1, np.zeros(12))
        assert not deep.is_affine
        assert Kernel.affine(np.ones(3), np.ones(3), 2).is_affine
        x = np.random.default_rng(0).standard_normal((1, 6, 4))
        double = added([deep, deep], [1.0, 0.5])
        assert close(compute(double, x), 1.5 * compute(deep, x))

    def test_one_alone_and_what_does_not_count(self) -> None:
        rng = np.random.default_rng(3)
        kernel, other = (drawn(rng, 1) for _ in range(2))
        x = image(rng, 1)
        assert close(compute(added([kernel], [-2.0]), x), -2.0 * compute(kernel, x))
        other = _like(kernel, kernel.window)
        assert close(compute(added([kernel, other], [1.0, 0.0]), x), compute(kernel, x))
        plain = Kernel(kernel.window, 1, kernel.in_groups(1), kernel.bias)
        assert close(compute(stacked([plain]), x), compute(kernel, x))


def _like(kernel: Kernel, window: Window) -> Kernel:
    """With the stride and the margin of another."""
    own = kernel.window
    after = tuple(
        margin + dilation * (taps - 1) - before
        for margin, dilation, taps, before in zip(
            window.margin, own.dilation, own.kernel, own.before, strict=True
        )
    )
    made = Window(own.kernel, window.stride, own.dilation, own.before, after, own.is_transposed)
    return Kernel(made, kernel.groups, kernel.weight, kernel.bias)


def test_a_mean_counts_the_zeros_that_are_padded() -> None:
    x = np.arange(6.0).reshape(1, 2, 3)
    mean = Kernel.mean(Window((3,), (1,), (1,), (1,), (1,)), 2)
    expected = [[[1 / 3, 1.0, 1.0], [7 / 3, 4.0, 3.0]]]
    assert close(compute(mean, x), np.array(expected))
