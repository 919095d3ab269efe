"""Which windows are one: must-not first. Offsets are dilation * tap - before."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from bnfold.core.window import Window, chained, joint, same_padding


def window(
    kernel=3, stride=1, dilation=1, before=0, after=None, *, transposed=False, rule=""
) -> Window:
    """Along one axis."""
    after = before if after is None else after
    return Window((kernel,), (stride,), (dilation,), (before,), (after,), transposed, rule)


class TestJoint:
    @pytest.mark.parametrize(
        "others",
        [
            pytest.param([window(3, before=1), window(3, before=0)], id="other sizes"),
            pytest.param([window(3, 2, before=1), window(3, before=1)], id="other strides"),
            pytest.param([window(1, 2), window(1, 1)], id="a stride that one tap has"),
            pytest.param(
                [window(3, 2, before=1), window(2, 2, before=1, after=1)], id="sizes by parity"
            ),
            pytest.param(
                [window(3, before=1), window(3, before=1, transposed=True)], id="transposed"
            ),
            pytest.param(
                [window(3, 2, before=1), window(3, 2, before=1, rule="UPPER")], id="a rule, none"
            ),
            pytest.param(
                [window(3, 2, before=1, rule=name) for name in ("UPPER", "LOWER")], id="two rules"
            ),
            pytest.param(
                [window(k, 2, before=k // 2, rule="UPPER") for k in (3, 5)], id="kernels, one rule"
            ),
        ],
    )
    def test_there_is_none(self, others) -> None:
        assert joint(others) is None

    @pytest.mark.parametrize(
        ("others", "expected"),
        [
            ([window(3, before=1), window(1)], window(3, before=1)),
            ([window(3, 2, before=1), window(1, 2)], window(3, 2, before=1)),
            ([window(3, before=1), window(5, before=2)], window(5, before=2)),
            ([window(3, 1, 2, before=2), window(1)], window(3, 1, 2, before=2)),
            ([window(3, 1, 2, before=2), window(3, before=1)], window(5, before=2)),
            ([window(3, 1, 2, before=2), window(3, 1, 4, before=4)], window(5, 1, 2, before=4)),
            # even kernels: the offsets -1, 0 and 0, 1
            ([window(2, before=1, after=0), window(2, before=0, after=1)], window(3, before=1)),
            ([window(2, before=1, after=0), window(1)], window(2, before=1, after=0)),
            (
                [window(3, 2, before=1, after=0, transposed=True)] * 2,
                window(3, 2, before=1, after=0, transposed=True),
            ),
            (
                [window(3, before=1, transposed=True), window(1)],
                window(3, before=1, transposed=True),
            ),
            ([window(3), window(3)], window(3)),
            ([window(3, 2, before=1, rule="UPPER")] * 2, window(3, 2, before=1, rule="UPPER")),
            ([window(1, before=1, after=0)] * 2, window(1, before=1, after=0)),
            # an output padding that is wider than the padding
            (
                [window(3, 2, after=-1, transposed=True)] * 2,
                window(3, 2, after=-1, transposed=True),
            ),
            # only where both begin is one on the other's grid: -1, 2, 5 and -1; -1, 2 and -1
            (
                [window(3, 1, 3, before=1, after=6), window(1, before=1, after=0)],
                window(3, 1, 3, before=1, after=6),
            ),
            (
                [window(2, 1, 3, before=1, after=3), window(1, before=1, after=0)],
                window(2, 1, 3, before=1, after=3),
            ),
            # offsets -1 and 1 alone: a dilation of 2
            (
                [window(1, before=1, after=-1), window(1, before=-1, after=1)],
                window(2, 1, 2, before=1),
            ),
        ],
    )
    def test_the_smallest_that_holds_all(self, others, expected) -> None:
        assert joint(others) == expected
        assert joint(others[::-1]) == expected

    def test_where_the_taps_lie_in_it(self) -> None:
        whole = window(5, before=2)
        assert window(3, before=1).index_in(whole) == (slice(1, 4, 1),)
        assert window(3, 1, 2, before=2).index_in(whole) == (slice(0, 5, 2),)
        assert window(1).index_in(whole) == (slice(2, 3, 1),)
        assert window(2, 1, 4, before=4).index_in(window(5, 1, 2, before=4)) == (slice(0, 3, 2),)

    def test_each_axis_by_itself(self) -> None:
        tall = Window((3, 1), (1, 1), (1, 1), (1, 0), (1, 0))
        flat = Window((1, 3), (1, 1), (1, 1), (0, 1), (0, 1))
        assert joint([tall, flat]) == Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))


class TestChained:
    @pytest.mark.parametrize(
        ("inner", "outer", "shifts"),
        [
            pytest.param(window(3), window(3, before=1), False, id="zeros between them"),
            pytest.param(window(1), window(3, before=1), True, id="a bias beside zeros"),
            pytest.param(window(1, 2), window(3, before=1), True, id="the same with a stride"),
            pytest.param(window(3, before=1), window(3, before=1), False, id="both pad"),
            pytest.param(window(3, before=2, after=1), window(3, before=1), False, id="behind"),
            pytest.param(window(3, before=1, after=2), window(3, before=1), False, id="in front"),
            pytest.param(window(1), window(1, before=-1, after=1), True, id="a bias, cut in front"),
            pytest.param(window(1), window(1, before=1, after=-1), True, id="a bias, cut behind"),
            pytest.param(window(1, before=-1), window(3, before=1), False, id="zeros for a border"),
            pytest.param(window(3, before=1), window(3, transposed=True), False, id="transposed"),
            pytest.param(window(3, transposed=True), window(3), False, id="transposed in front"),
            pytest.param(window(1), window(3, transposed=True), True, id="missing taps, bias"),
            pytest.param(window(1), window(3, 2, rule="UPPER"), True, id="a bias beside a rule"),
            pytest.param(window(2), window(3, 2, rule="UPPER"), False, id="taps beside a rule"),
            pytest.param(window(3, 2, rule="UPPER"), window(2), False, id="a rule beside taps"),
        ],
    )
    def test_there_is_none(self, inner, outer, shifts) -> None:
        assert chained(inner, outer, inner_shifts=shifts) is None

    @pytest.mark.parametrize(
        ("inner", "outer", "shifts", "expected"),
        [
            (window(3, before=1), window(1), True, window(3, before=1)),
            (window(1), window(3, before=1), False, window(3, before=1)),
            (window(1), window(3), True, window(3)),
            (window(3, before=1), window(3), True, window(5, before=1)),
            (window(3, 2, before=1), window(3), True, window(7, 2, before=1)),
            (window(1, 2), window(3, before=1), False, window(3, 2, 2, before=2, after=2)),
            (window(3, 1, 2), window(2), False, window(6)),
            (window(3, 1, 2), window(3, 1, 2), False, window(5, 1, 2)),
            (window(1), window(3, 2, before=1, rule="UPPER"), False, window(3, 2, before=1)),
            (window(3, 2, before=1, rule="UPPER"), window(1), True, window(3, 2, before=1)),
            # padding by an op of its own, and a border that is cut off
            (window(1, before=1), window(3), True, window(3, before=1)),
            (window(1, before=1), window(3, before=1), False, window(3, before=2)),
            (window(3, before=2), window(1, before=1), False, window(3, before=3)),
            (window(3, before=2), window(1, before=-1), True, window(3, before=1)),
            (window(1, before=-1), window(3), True, window(3, before=-1)),
            (window(3, 2, before=1, after=2), window(1, before=1), False, window(3, 2, 1, 3)),
            (window(1, 2), window(1, 3), True, window(1, 6, after=0)),
            (
                window(1),
                window(3, 2, before=1, transposed=True),
                False,
                window(3, 2, before=1, transposed=True),
            ),
            (
                window(3, 2, before=1, transposed=True),
                window(1),
                True,
                window(3, 2, before=1, transposed=True),
            ),
        ],
    )
    def test_offsets_add(self, inner, outer, shifts, expected) -> None:
        found = chained(inner, outer, inner_shifts=shifts)
        assert found is not None
        assert (found.kernel, found.stride, found.dilation, found.before, found.is_transposed) == (
            expected.kernel,
            expected.stride,
            expected.dilation,
            expected.before,
            expected.is_transposed,
        )

    @pytest.mark.parametrize("size", range(3, 20))
    @pytest.mark.parametrize(
        ("inner", "outer"),
        [(window(3, 2, before=1), window(3, 3)), (window(1, 2), window(3, 2, before=1))],
    )
    def test_as_many_outputs_as_both_give(self, inner, outer, size) -> None:
        both = chained(inner, outer, inner_shifts=False)
        between = outputs(size, inner)
        assert both is not None
        if between + outer.margin[0] > 0:
            assert outputs(size, both) == outputs(between, outer)

    def test_an_axis_that_pads_wants_one_tap_in_front_on_that_axis_alone(self) -> None:
        inner = Window((1, 3), (1, 1), (1, 1), (0, 1), (0, 1))
        outer = Window((3, 1), (1, 1), (1, 1), (1, 0), (1, 0))
        found = chained(inner, outer, inner_shifts=False)
        assert found == Window((3, 3), (1, 1), (1, 1), (1, 1), (1, 1))
        assert chained(inner, outer, inner_shifts=True) is None


def outputs(size: int, of: Window) -> int:
    return (size + of.margin[0] - 1) // of.stride[0] + 1


def test_what_keeps_the_size() -> None:
    """Three taps two apart span 4, four taps 3, of which the odd one goes behind."""
    assert same_padding((3, 4, 1), (2, 1, 5)) == ((2, 1, 0), (2, 2, 0))


def test_what_cuts_a_border_off() -> None:
    assert window(1, before=-1).cuts
    assert window(1, before=1, after=-1).cuts
    assert window(1, before=-1, after=1, transposed=True).cuts
    assert not window(3, 2, after=-1, transposed=True).cuts  # an output padding
    assert not window(1, before=-1).pads
    assert window(1, before=-1, after=1).pads


def test_pointwise() -> None:
    assert Window.pointwise(2).is_pointwise
    assert not window(1, 2).is_pointwise
    assert not window(1, before=1, after=-1).is_pointwise
    assert not window(3, before=1).is_pointwise
    assert Window.pointwise(0).taps == 1


@pytest.mark.parametrize("size", range(4, 12))
@pytest.mark.parametrize("taps", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_what_is_chained_reads_what_both_read(size, taps, stride) -> None:
    """All paddings of the first op, in front of one that pads: offset by offset."""
    outer = window(3, before=1, after=2)
    for before, after in itertools.product(range(-1, 4), repeat=2):
        inner = window(taps, stride, before=before, after=after)
        both = chained(inner, outer, inner_shifts=False)
        if outputs(size, inner) < 1:
            continue
        x = np.arange(1.0, size + 1)
        between = applied(x, inner)
        if both is None:
            continue
        assert np.array_equal(
            applied(x, both, doubled(inner, outer, both)), applied(between, outer)
        )


def doubled(inner: Window, outer: Window, both: Window) -> list[float]:
    """How often each tap of the one op is read."""
    grid = both.offsets(0)
    counts = [0.0] * len(grid)
    for first, second in itertools.product(inner.offsets(0), outer.offsets(0)):
        counts[grid.index(first + inner.stride[0] * second)] += 1
    return counts


def applied(x, of: Window, weight=None) -> np.ndarray:
    """With taps of 1, where none are given."""
    weight = [1.0] * of.kernel[0] if weight is None else weight
    made = np.zeros(outputs(len(x), of))
    for place in range(len(made)):
        for offset, factor in zip(of.offsets(0), weight, strict=True):
            at = of.stride[0] * place + offset
            made[place] += factor * x[at] if 0 <= at < len(x) else 0.0
    return made
