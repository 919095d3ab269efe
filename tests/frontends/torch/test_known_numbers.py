"""Sizes that decide where no comparison is heard: by numbers that the code holds."""

from __future__ import annotations

import bisect
import math
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.frontends.torch.known_numbers import Known, held_in_buffers, known_to
from tests.frontends.torch.support import assert_same, build, image, run

TILES = {24: True, 40: True}


class Net(nn.Module):
    """Without its BatchNorm where the condition holds."""

    def __init__(self, asks: Callable[[Any, Tensor], Any], **held: Any) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)
        self.asks = asks
        for name, value in held.items():
            setattr(self, name, value)

    def holds(self, x: Tensor) -> bool:
        return bool(self.asks(self, x))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.head(y.relu() if self.holds(x) else self.bn(y).relu())


class Tiled(Net):
    """The number is a buffer."""

    def __init__(self, asks: Callable[[Any, Tensor], Any]) -> None:
        super().__init__(asks)
        self.register_buffer("tile", torch.tensor(20))


def by_name(net: Any, x: Tensor) -> Any:
    return getattr(net, f"rows_{x.shape[2]}", False)


def beyond_a_list(net: Any, x: Tensor) -> bool:
    try:
        return bool(net.flags[x.shape[2]])
    except IndexError:
        return True


def in_a_table_of_blocks(net: Any, x: Tensor) -> Any:
    return f"{x.shape[2]}x{x.shape[3]}" in net.blocks


BLOCKS = nn.ModuleDict({"24x32": nn.Identity(), "16x16": nn.Identity()})
CASES: dict[str, tuple[Net, list[tuple[int, int, int]]]] = {
    "tiles": (Net(lambda net, x: len(range(0, x.shape[2], net.tile)) > 2, tile=20), [(2, 64, 8)]),
    "a buffer": (Tiled(lambda net, x: x.shape[2] > net.tile), [(2, 24, 8)]),
    "a buffer's number": (Tiled(lambda net, x: x.shape[2] > net.tile.item()), [(2, 24, 8)]),
    "a setting": (
        Net(
            lambda net, x: len(range(0, x.shape[3], net.settings.tile)) > 1,
            settings=SimpleNamespace(tile=30),
        ),
        [(2, 40, 40)],
    ),
    "a table": (Net(lambda net, x: net.tiles.get(x.shape[2]), tiles=TILES), [(2, 24, 8)]),
    "a global table": (Net(lambda net, x: TILES.get(x.shape[3])), [(2, 8, 40)]),
    "a table in the code": (Net(lambda net, x: {8: 0, 24: 1}.get(x.shape[2])), [(2, 24, 8)]),
    "a set": (Net(lambda net, x: x.shape[2] in net.lengths, lengths={24, 48}), [(2, 48, 8)]),
    "sizes": (
        Net(lambda net, x: tuple(x.shape[2:]) in net.sizes, sizes={(24, 32), (10, 12)}),
        [(2, 24, 32), (2, 10, 12)],
    ),
    "a name": (Net(by_name, rows_24=True), [(2, 24, 8)]),
    "names of blocks": (Net(in_a_table_of_blocks, blocks=BLOCKS), [(2, 24, 32), (2, 16, 16)]),
    "a text": (Net(lambda net, x: str(x.shape[2]) == "24"), [(2, 24, 8)]),
    "another tensor": (
        Net(lambda net, x: x.is_same_size(net.seen), seen=torch.zeros(2, 3, 20, 30)),
        [(2, 20, 30)],
    ),
    "and the other way round": (
        Net(lambda net, x: net.seen.is_same_size(x), seen=torch.zeros(2, 3, 20, 30)),
        [(2, 20, 30)],
    ),
    "a list's end": (Net(beyond_a_list, flags=[False] * 20), [(2, 24, 8)]),
    "a logarithm": (Net(lambda net, x: math.log2(x.shape[2]) > 5), [(2, 64, 64)]),
    "a power of two": (Net(lambda net, x: math.log2(x.shape[2]) == 5), [(2, 32, 32)]),
    "a tensor of it": (Net(lambda net, x: torch.tensor(x.shape[2]) > 20), [(2, 24, 24)]),
    "the last of a range": (
        Net(lambda net, x: torch.arange(x.shape[2])[-1].item() > 20),
        [(2, 30, 30)],
    ),
    "an area for NumPy": (Net(lambda net, x: np.prod(x.shape[2:]) > 500), [(2, 30, 30)]),
    "a place in a list": (
        Net(lambda net, x: bisect.bisect(net.limits, x.shape[2]), limits=[16, 32]),
        [(2, 20, 8), (2, 40, 8)],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_right_where_it_decides(name: str) -> None:
    """Without the proof, which would take back a wrong fold."""
    made, sizes = CASES[name]
    net = build(made)
    folded, report = bnfold.fold(net, image(2, 3, 8, 8), verify=False)
    assert not net.holds(image(2, 3, 8, 8))
    for n, h, w in [(2, 8, 8), (3, 9, 8), *sizes]:
        other = image(n, 3, h, w)
        assert_same(run(net, other), run(folded, other), 1e-9)
    assert net.holds(other)
    assert report.kept == 1


def test_a_table_that_grows_is_no_reason_to_keep_anything() -> None:
    """What it has made for a size it finds again: the keys are sizes that it met."""

    class Grids(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
            self.grids: dict[tuple[int, int], Tensor] = {}

        def forward(self, x: Tensor) -> Tensor:
            h, w = x.shape[2:]
            if (h, w) not in self.grids:
                self.grids[h, w] = torch.linspace(0, 1, h)[:, None] * torch.linspace(0, 1, w)
            return self.bn(self.conv(x)) + self.grids[h, w]

    net = build(Grids())
    folded, report = bnfold.fold(net, image(2, 3, 8, 8))
    for h, w in [(8, 8), (24, 9)]:
        other = image(1, 3, h, w)
        assert_same(run(net, other), run(folded, other), 1e-9)
    assert (report.removed, net.grids.keys() - {(8, 8), (24, 9)}) == (1, set())


def test_what_a_value_holds() -> None:
    known = Known()
    for value in (20, True, 2.5, -3, 1 << 30, "rows_7", None):
        known.add(value)
    assert (known.numbers, known.keys, known.shapes) == ({20}, set(), set())
    for value in ([9, [10, [11, [12]]]], {"24x32": 6}, (1, 2.5), range(3, 5), {(4, 5, 6): 0}):
        known.add(value)
    assert known.keys == {9, 10, 11, 24, 32, 1, 3, 4, 5, 6}
    assert known.shapes == {(24, 32), (4, 5, 6)}
    assert 12 not in known.numbers


def test_what_code_knows() -> None:
    class Holder(nn.Module):
        limit = 77

        def __init__(self) -> None:
            super().__init__()
            self.tile, self.other = 20, 21
            self.blocks = nn.ModuleDict({"55": nn.Identity()})

        def look(self, step: int = 30) -> Known:
            local = 40
            len((self.tile, self.limit, 50, self.blocks, local, TILES, "60", "for 61 people"))
            return known_to(sys._getframe())

    known = Holder().look()
    assert known.numbers >= {20, 77, 30, 40, 50}
    assert known.keys >= {55, 24, 40, 60}
    assert {21, 61}.isdisjoint(known.numbers | known.keys)


def test_numbers_in_buffers() -> None:
    module = nn.Module()
    buffers = {
        "tile": torch.tensor([20, 0]),
        "ratio": torch.tensor(2.0),
        "table": torch.arange(100),
        "unnamed": torch.tensor(30),
    }
    for name, buffer in buffers.items():
        module.register_buffer(name, buffer)
    assert held_in_buffers([module], frozenset(("tile", "ratio", "table"))) == {20}
