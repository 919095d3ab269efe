"""Objects of the user's that raise when asked, or take long: the analysis walks past them.

A model holds them, or its code names them; what it computes does not depend on them. None of their
code is run but what the model and a copy of it run.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import build, image, run

X = image(2, 3, 6, 6)


class Items(dict[str, int]):
    """As many config files have it: KeyError for what is not there."""

    __getattr__ = dict.__getitem__


class BareItems(dict[str, int]):
    __slots__ = ()
    __getattr__ = dict.__getitem__


class Client:
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("not connected")


class Proxy:
    """Of what is only there in a request."""

    __slots__ = ()
    __class__ = property(lambda self: self.nothing)  # type: ignore[assignment]

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("outside of a request")


class Liar:
    __class__ = property(lambda self: nn.Linear)  # type: ignore[assignment]


class Strict(type):
    def __getattr__(cls, name: str) -> Any:
        raise KeyError(name)


class OfStrict(metaclass=Strict):
    numbers = (1, 2)


class OnDisk(Mapping[str, int]):
    """It has no file."""

    def __getitem__(self, key: str) -> int:
        raise OSError("no such file")

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


class Endless(Sequence[int]):
    def __getitem__(self, key: Any) -> Any:
        return key

    def __len__(self) -> int:
        raise TypeError("no length")


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class OwnList(list[int]):
    def __iter__(self) -> Iterator[int]:
        raise RuntimeError("not to be walked")

    __len__ = __iter__  # type: ignore[assignment]


class OwnTuple(tuple[int, ...]):
    def __iter__(self) -> Iterator[int]:
        raise RuntimeError("not to be walked")


class OwnDict(dict[str, int]):
    def values(self) -> Any:
        raise RuntimeError("not to be walked")

    items = keys = __iter__ = values


class OwnText(str):
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("not to be compared")

    __ne__ = __eq__
    __hash__ = str.__hash__


class OwnFloat(float):
    def __repr__(self) -> str:
        raise RuntimeError("no text")


class Slotted:
    __slots__ = ("part",)


class OverSlots(Slotted):
    @property
    def part(self) -> Any:  # type: ignore[override]
        raise RuntimeError("closed")


def in_itself() -> list[Any]:
    parts: list[Any] = []
    parts.append(parts)
    return parts


def deep(kind: type) -> Any:
    parts = kind()
    for _ in range(900):
        parts = kind([parts])
    return parts


OBJECTS = {
    "items as attributes": lambda: Items(a=1),
    "items, no attributes": lambda: BareItems(a=1),
    "raises on attributes": Client,
    "a proxy of nothing": Proxy,
    "says it is a module": Liar,
    "a mock of a module": lambda: mock.MagicMock(spec=nn.Linear),
    "a class of a strict metaclass": lambda: OfStrict,
    "a mapping without a file": OnDisk,
    "a sequence without a length": Endless,
    "a key without a text": lambda: {Mute(): 1},
    "a list of its own": lambda: OwnList([1]),
    "a tuple of its own": lambda: OwnTuple([1]),
    "a dict of its own": lambda: OwnDict(a=1),
    "a text of its own": lambda: OwnText("24x32"),
    "a number of its own": lambda: OwnFloat(1.5),
    "a property over a slot": OverSlots,
    "a list in itself": in_itself,
    "deep lists": lambda: deep(list),
    "deep tuples": lambda: deep(tuple),
    "a parameter to be": nn.UninitializedParameter,
    "a buffer to be": nn.UninitializedBuffer,
}

SHARED: Any = None


class Net(nn.Module):
    """Its code asks for a size, so that numbers are looked for in what it knows."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def run(self, x: Tensor) -> Tensor:
        for _ in range(0, x.shape[2], 3):
            pass
        try:
            return self.head(self.bn(self.conv(x)).relu())
        except RuntimeError:
            return x

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)


class NamesIt(Net):
    def forward(self, x: Tensor) -> Tensor:
        SHARED  # noqa: B018  # named is enough
        return self.run(x)


def a_global(thing: Any, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    monkeypatch.setitem(globals(), "SHARED", thing)
    return NamesIt()


def a_closure(thing: Any, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    class Closes(Net):
        def forward(self, x: Tensor) -> Tensor:
            thing  # noqa: B018
            return self.run(x)

    return Closes()


def a_default(thing: Any, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    class Defaults(Net):
        def forward(self, x: Tensor, other: Any = thing) -> Tensor:
            return self.run(x)

    return Defaults()


def of_the_class(thing: Any, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    return type("Held", (Net,), {"held": thing})()


def in_a_list(thing: Any, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    model = Net()
    model.__dict__["held"] = [thing]  # by no way that looks at it
    return model


@pytest.mark.parametrize("place", [a_global, a_closure, a_default, of_the_class, in_a_list])
@pytest.mark.parametrize("name", OBJECTS)
def test_what_raises_when_asked(name: str, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(place(OBJECTS[name](), monkeypatch))
    expected = run(model, X)
    result = bnfold.fold(model, X, inplace=True)
    assert result.report.removed == 1
    torch.testing.assert_close(run(result.model, X), expected)


def test_a_table_that_reads_its_items_is_not_read() -> None:
    class Counts(OnDisk):
        read = 0

        def __getitem__(self, key: str) -> int:
            Counts.read += 1
            return 1

    model = build(Net())
    model.held = Counts()
    assert bnfold.fold(model, X).report.removed == 1
    assert not Counts.read


@pytest.mark.parametrize(
    "held", [list(range(300_000)), dict.fromkeys(range(300_000), 1.5)], ids=["list", "dict"]
)
def test_a_long_table_takes_no_long_time(held: Any) -> None:
    model = build(Net())
    started = time.process_time()
    bnfold.fold(model, X)
    alone = time.process_time() - started
    model.held = held
    started = time.process_time()
    assert bnfold.fold(model, X).report.removed == 1
    assert time.process_time() - started < alone + 3


@pytest.mark.parametrize("kind", [list, collections.deque, collections.UserList])
def test_a_number_in_a_long_table_counts(kind: Any) -> None:
    class Thirds(Net):
        def __init__(self) -> None:
            super().__init__()
            self.steps = kind([0] * 3000)

        def forward(self, x: Tensor) -> Tensor:
            self.steps[2000] += 1
            y = self.bn(self.conv(x))
            return self.head(y.sigmoid() if self.steps[2000] % 3 == 0 else y)

    model = build(Thirds())
    folded = bnfold.fold(model, X).model
    for _ in range(4):
        torch.testing.assert_close(run(folded, X), run(model, X))
