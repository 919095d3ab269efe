"""Example inputs of other sizes: which axes have others, and which lengths are worth trying.

    half      another size for all that follows it; twice, where it is small
    under     one less than a power of 2 divides: odd now, and however often it is halved
    uneven    odd, and about twice as long along the last axis as along the others
    over      one more than that, for layers that round up: ceil(n / 2) stays odd
    oblong    a longer one along one axis, a shorter one along the others
    even      what a power of 2 divides, where the example is not that
    turning   where a question about sizes that the program asked has another answer

Smaller sizes cost less. Batches are one image larger or smaller.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from bnfold.frontends.torch.entries import as_entry, with_inputs
from bnfold.frontends.torch.told_numbers import ANY, OF_INPUT, Rule, Turn

_SMALL = 64
"""Sizes below this are doubled, not halved: networks halve them up to five times."""
_LARGEST = 1 << 24
"""Elements of an input that is made to let an answer turn."""
_NEAR = 512
"""So many more lengths are tried one by one, and longer ones by doubling."""
_FEW = 40
"""So many earlier answers are kept as they were."""
_MOST_HALVED = 64
_IMAGES = 4
"""Axes of images; what has more may be a film, whose second axis is that of frames."""
_INPUTS = 4
"""Of several inputs, so many get sizes of their own."""
_VALUES = 6
"""A number of which there are more, on other sizes, is not made to take each."""


@dataclass(frozen=True, slots=True)
class Change:
    """Other lengths along some axes."""

    axes: list[int]
    rule: Rule
    only: int | None = None
    """Of which of several inputs, if it is one."""


def half(axis: int, size: int) -> int:
    """Another size altogether."""
    if axis == 0:
        return size + 1
    return 2 * size if size < _SMALL or size % 2 else size // 2


def under(axis: int, size: int) -> int:
    """An odd size, that also layers which round down halve to odd ones."""
    if axis == 0:
        return size - 1 if size > 1 else 3
    return max(size // _step(size) * _step(size) - 1, 1) if size > 1 else 2


def over(axis: int, size: int) -> int:
    """An odd size, that also layers which round up halve to odd ones."""
    if axis == 0:
        return size + 2
    return (size - 2) // _step(size) * _step(size) + 1 if size > 2 else size + 1


def uneven(axes: Sequence[int]) -> Rule:
    """Odd sizes, of which the last axis is about twice as long as the one before."""
    last = axes[-1] if axes else -1

    def rule(axis: int, size: int) -> int:
        if axis == 0:
            return under(axis, size)
        longer = 2 * size if size < _SMALL else size
        return under(axis, longer) if axis == last else over(axis, longer // 2)

    return rule


def oblong(axes: Sequence[int]) -> list[Rule]:
    """Sizes of which the last axis is longer than the one before, or shorter."""
    last = axes[-1] if axes else -1

    def long(axis: int, size: int) -> int:
        return under(axis, size) if axis == 0 else 2 * size - 1 if size > 1 else 2

    def wide(axis: int, size: int) -> int:
        return long(axis, size) if axis == last else over(axis, size)

    def high(axis: int, size: int) -> int:
        return over(axis, size) if axis == last else long(axis, size)

    return [wide, high]


def even(axis: int, size: int) -> int:
    """A size that layers halve to even ones."""
    return size if axis == 0 else size // _step(size) * _step(size)


def scaled(length: int, side: int) -> Rule:
    """Sizes so much longer as makes a side one of this length."""
    return lambda _, size: max(size * length // side, 1)


def named(lengths: Sequence[int], first: int) -> Rule:
    """These lengths, from an axis on."""
    return lambda axis, _: lengths[axis - first]


def turning(
    turn: Turn, seen: Collection[Any], before: Sequence[Turn], runs: Sequence[Any]
) -> list[Change]:
    """Sizes on which an answer is none of those `seen`, those nearest to the given ones first.

    One axis grows or shrinks, or all but that of the batch together, which costs more. If it can
    be had, what was asked `before` is answered as it was, so that the question is asked at all.

    A length inside of a network may be rounded, and of a part of what is known: what turns is tried
    with a margin, as often halved as the given size, and twice as far.
    """
    found: dict[bool, list[list[Change]]] = {True: [], False: []}
    for only in (None, *range(min(count(runs), _INPUTS))):
        for group in _groups(runs, only):
            sides = [shape[a] for shape in _shapes(runs, only) for a in group if a < len(shape)]
            size = max(sides, default=1)
            for power in (1, 2) if len(group) > 1 else (1,):
                axes = _Axes(group, only, size, power)
                is_asked, changes = _turning(turn, seen, before[-_FEW:], axes)
                found[is_asked].append(changes)
    rounds = zip_longest(*found[True] or found[False])  # the nearest of each, then the next
    return [change for changes in rounds for change in changes if change is not None]


def _groups(runs: Sequence[Any], only: int | None) -> list[list[int]]:
    """The axes to change, by one or together."""
    shapes = _shapes(runs, only)
    axes = _open_axes(shapes)
    images = [axis for axis in axes if axis]
    frames = [1] if max(map(len, shapes), default=0) > _IMAGES else []
    alone = [[axis] for axis in (*axes, *frames)]
    return [*alone[1:], images, *alone[:1]] if len(images) > 1 else alone


@dataclass(frozen=True, slots=True)
class _Axes:
    """Axes that get another length together."""

    axes: list[int]
    only: int | None
    """Of which of several inputs, if it is one."""
    size: int
    """Their length, or that of the longest."""
    power: int
    """What an axis of the network's own grows with, a side of the image or its area."""

    def to(self, length: int) -> Rule:
        """The rule that makes this of their length."""

        def rule(axis: int, now: int) -> int:
            return max(now * length // self.size, 1) if axis in self.axes else now

        return rule

    def followed(self, length: int) -> Rule:
        """The same for lengths of any tensor, as far as it is known what they hang on."""
        times, of = length**self.power, self.size**self.power

        def rule(axis: int, now: int) -> int:
            place, own = divmod(axis, OF_INPUT) if axis != ANY else (0, axis)
            if self.only is not None and place != self.only + 1:
                return now
            if own in self.axes:
                return max(now * length // self.size, 1)
            return max(now * times // of, 1) if axis == ANY and 0 not in self.axes else now

        return rule


def _turning(
    turn: Turn, seen: Collection[Any], before: Sequence[Turn], axes: _Axes
) -> tuple[bool, list[Change]]:
    """Lengths of these axes, and whether the question is asked there, for all that is known."""
    size = axes.size

    def turns(length: int) -> bool:
        answer = _answer(turn, axes.followed(length))
        return answer is not None and answer not in seen

    def is_asked(length: int) -> bool:
        return turns(length) and all(
            _answer(earlier, axes.followed(length)) in (earlier.given, None) for earlier in before
        )

    hinted = [round(size * turn.hint ** (1 / axes.power)) + more for more in (-1, 0, 1)]
    far = (size << doubled for doubled in range(1, 8))
    above = sorted(n for n in {*range(size + _NEAR), *hinted, *far} if n > size)
    if not isinstance(turn.given, bool) and _has_many(turn, map(axes.followed, above)):
        return False, []
    below = range(size - 1, 0, -1)
    asked = [n for n in (next(filter(is_asked, part), None) for part in (below, above)) if n]
    found = asked or [n for n in (next(filter(turns, part), None) for part in (below, above)) if n]
    step = min(size & -size, _MOST_HALVED)
    changes: list[Change] = []
    for length in sorted(found, key=lambda n: max(n / size, size / n)):
        grows = length > size
        margin = math.ceil(length * 1.02) + 1 if grows else max(int(length * 0.98), 1)
        whole = max(length // step + grows, 1) * step
        twice = 2 * -(-length // step) * step if grows else max(length // 2 // step, 1) * step
        lengths = [length, *filter(turns, (whole, margin, twice))]
        changes += [Change(axes.axes, axes.to(n), axes.only) for n in dict.fromkeys(lengths)]
    return bool(asked), changes


def _has_many(turn: Turn, rules: Iterable[Rule]) -> bool:
    """Whether it may be so many numbers that a path for each is not likely."""
    met: set[Any] = set()
    for rule in rules:
        met.add(_answer(turn, rule))
        if len(met) > _VALUES:
            return True
    return False


def _answer(turn: Turn, rule: Rule) -> Any:
    """What the answer would be on other sizes, or None if there was none."""
    try:
        return turn.formula(rule)
    except (ArithmeticError, ValueError, TypeError):
        return None


def _step(size: int) -> int:
    """The power of 2 by which a size of this order is divided."""
    return max(1 << min(5, (size // 4).bit_length() - 1), 1) if size >= 4 else 1


def open_axes(runs: Sequence[Any]) -> list[int]:
    """The axes whose length may be another one: not the channels of images."""
    return _open_axes(_shapes(runs, None))


def _open_axes(shapes: Sequence[Sequence[int]]) -> list[int]:
    most = max(map(len, shapes), default=0)
    return [axis for axis in range(most) if not (axis == 1 and most > 3)]


def _shapes(runs: Sequence[Any], only: int | None) -> list[tuple[int, ...]]:
    """Of the inputs that may have other sizes; of one of them in each run, if it is one."""
    part = slice(None) if only is None else slice(only, only + 1)
    return [tuple(leaf.shape) for run in runs for leaf in _resizable(run)[part]]


def places(run: Any) -> dict[int, int]:
    """Which of the inputs that could have a size of their own a tensor is, by its id()."""
    leaves = _resizable(run)
    return {id(leaf): place for place, leaf in enumerate(leaves)} if len(leaves) > 1 else {}


def shapes(runs: Sequence[Any]) -> list[tuple[int, ...]]:
    """What tells inputs of other sizes apart."""
    given = [as_entry(run).inputs for run in runs]
    return [tuple(leaf.shape) for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor)]


def elements(runs: Sequence[Any]) -> int:
    """How many numbers inputs are."""
    return sum(map(math.prod, shapes(runs)))


def form(runs: Sequence[Any]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]], list[str]]:
    """The sizes and the memory layouts of inputs, and the modes of runs."""
    return shapes(runs), _strides(runs), [as_entry(run).mode for run in runs]


def count(runs: Sequence[Any]) -> int:
    """How many inputs there are that could have a size of their own; 0 if it is one."""
    most = max((len(_resizable(run)) for run in runs), default=0)
    return most if most > 1 else 0


def resized(
    runs: Sequence[Any], axes: Sequence[int], rule: Rule, *, only: int | None = None
) -> list[Any] | None:
    """The same inputs with other lengths along these axes; None for inputs that are too large.

    `only`: which of the inputs of each run is changed, if it is one.
    """
    before = sum(math.prod(shape) for shape in shapes(runs))
    sizes = [
        math.prod(rule(axis, n) if axis in axes else n for axis, n in enumerate(shape))
        for shape in shapes(runs)
    ]
    if sum(sizes) > max(_LARGEST, 2 ** len(axes) * before):
        return None
    return [_resized(run, axes, rule, only) for run in runs]


def _resized(run: Any, axes: Sequence[int], rule: Rule, only: int | None) -> Any:
    leaves, tree = pytree.tree_flatten(as_entry(run).inputs)
    places = [place for place, leaf in enumerate(leaves) if _is_resizable(leaf)]
    for place in places if only is None else places[only : only + 1]:
        for axis in axes:
            leaf = leaves[place]
            if axis < leaf.ndim:
                leaves[place] = _of_length(leaf, axis, rule(axis, leaf.shape[axis]))
    return with_inputs(run, pytree.tree_unflatten(leaves, tree))


def laid_out(runs: Sequence[Any]) -> list[list[Any]]:
    """The same inputs contiguous, and in channels_last, without what they are already."""
    layouts = [[_laid_out(run, plain=plain) for run in runs] for plain in (True, False)]
    return [layout for layout in layouts if _strides(layout) != _strides(runs)]


def _laid_out(run: Any, *, plain: bool) -> Any:
    def lay_out(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim < 2 or leaf.layout is not torch.strided:
            return leaf
        channels = 0 if leaf.ndim == 2 else 1
        if plain:
            return leaf.contiguous()
        return leaf.movedim(channels, -1).contiguous().movedim(-1, channels)

    return with_inputs(run, pytree.tree_map(lay_out, as_entry(run).inputs))


def _strides(runs: Sequence[Any]) -> list[tuple[int, ...]]:
    given = [as_entry(run).inputs for run in runs]
    return [
        leaf.stride()
        for leaf in pytree.tree_leaves(given)
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided
    ]


def _is_resizable(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.numel() > 0


def _resizable(run: Any) -> list[Tensor]:
    return list(filter(_is_resizable, pytree.tree_leaves(as_entry(run).inputs)))


def _of_length(tensor: Tensor, axis: int, length: int) -> Tensor:
    """The tensor, cut, or over and over."""
    size = tensor.shape[axis]
    if length <= size:
        return tensor.narrow(axis, 0, length).clone()  # inputs of one reading share no memory
    times, rest = divmod(length, size)
    parts = [tensor] * times + ([tensor.narrow(axis, 0, rest)] if rest else [])
    return torch.cat(parts, dim=axis)
