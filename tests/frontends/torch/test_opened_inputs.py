"""Inputs in objects that PyTorch's trees do not know: their tensors are inputs as others are."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import ExampleInputError
from tests.frontends.torch.support import build, image

X = image(7, 5)
OTHER = image(7, 5, seed=1)


class Store:
    def __init__(self, **tensors: Tensor) -> None:
        self.mapping = tensors


class Graph:
    """As of libraries for graphs: attributes in a table in a store, which knows whose it is."""

    def __init__(self, x: Tensor) -> None:
        self.__dict__["store"] = Store(x=x)
        self.__dict__["store"].parent = self

    def __getattr__(self, name: str) -> Any:
        try:
            return self.__dict__["store"].mapping[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclasses.dataclass
class Batch:
    x: Tensor
    label: str = "a"


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: Tensor


class Encoding(collections.UserDict[str, Tensor]):
    x = property(lambda self: self.data["x"])


class Items(dict[str, Tensor]):
    x = property(lambda self: self["x"])


class Pair(tuple[Tensor, ...]):
    x = property(lambda self: self[0])


class Listed(list[Tensor]):
    x = property(lambda self: self[0])


OBJECTS: dict[str, Callable[[Tensor], Any]] = {
    "a graph": Graph,
    "a dataclass": Batch,
    "a frozen dataclass with slots": Frozen,
    "a namespace": lambda x: SimpleNamespace(x=x),
    "an encoding": lambda x: Encoding(x=x),
    "a class of dicts": lambda x: Items(x=x),
    "a class of tuples": lambda x: Pair((x, x)),
    "a class of lists": lambda x: Listed([x]),
    "one in another": lambda x: SimpleNamespace(x=x, inner=Batch(x)),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.bn, self.head = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 2)

    def run(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.first(x)).relu())

    def forward(self, given: Any) -> Tensor:
        return self.run(given.x)


class Half(Net):
    """What goes through the BatchNorm depends on the values."""

    def forward(self, given: Any) -> Tensor:
        return self.run(given.x if given.x.sum() > 0 else given.x.abs())


class Cuts(Net):
    """It asks for a size."""

    def forward(self, given: Any) -> Tensor:
        return self.run(given.x[:4] if given.x.shape[0] > 8 else given.x)


@pytest.mark.parametrize("kind", [Net, Half, Cuts])
@pytest.mark.parametrize("make", OBJECTS.values(), ids=OBJECTS)
def test_the_tensors_of_an_object_are_inputs(make: Callable[[Tensor], Any], kind: Any) -> None:
    model = build(kind())
    given = make(X.clone())
    result = bnfold.fold(model, (given,))
    assert [item.sentence for item in result.report.items] == ["folded into first"]
    assert torch.equal(given.x, X)
    for x in (X, OTHER, image(12, 5)):
        torch.testing.assert_close(result.model(make(x)), model(make(x)))


def test_an_iterator_is_not_moved() -> None:
    class Steps(Net):
        def forward(self, given: Iterator[Tensor]) -> Tensor:
            return self.run(next(given))

    model, given = build(Steps()), iter([X, OTHER])
    result = bnfold.fold(model, (given,))
    assert result.report.removed == 1
    assert next(given) is X


def test_alone_as_a_keyword_and_in_a_list() -> None:
    for inputs in (Batch(X), {"given": Batch(X)}, [Batch(X)], ((), {"given": Batch(X)})):
        assert bnfold.inspect(build(Net()), inputs).removed == 1
    result = bnfold.fold(build(Net()), Batch(X), also=[(Batch(OTHER),)])
    assert result.report.removed == 1


def test_what_the_code_puts_in_is_there_in_a_call_alone() -> None:
    class Puts(Net):
        def forward(self, given: Any) -> Tensor:
            given.hidden = self.bn(self.first(given.x))
            return self.head(given.hidden.sigmoid())

    model, given = build(Puts()), Batch(X)
    folded = bnfold.fold(model, (given,)).model
    assert vars(given).keys() == {"x", "label"}
    for net in (model, folded):
        net(given)
        hidden = model.bn(model.first(X))
        torch.testing.assert_close(given.hidden, hidden)


def test_an_object_as_input_and_output() -> None:
    class Passes(Net):
        def forward(self, given: Any) -> Any:
            given.x = self.run(given.x)
            return given

    model = build(Passes())
    result = bnfold.fold(model, (Batch(X),))
    assert result.report.removed == 1
    torch.testing.assert_close(result.model(Batch(X)).x, model(Batch(X)).x)


def test_verified_and_measured_on_them() -> None:
    model = build(Net())
    folded = bnfold.fold(model, (Batch(X),)).model
    assert bnfold.verify(model, folded, (Batch(X),)).equal
    with torch.no_grad():
        folded.first.bias += 1
    assert not bnfold.verify(model, folded, (Batch(X),)).equal


class Uncopied(Batch):
    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("not to be copied")


class NewEachTime(Batch):
    def __deepcopy__(self, memo: Any) -> NewEachTime:
        return NewEachTime(self.x.clone())


@pytest.mark.parametrize("kind", [Uncopied, NewEachTime])
def test_one_that_cannot_be_opened(kind: type[Batch]) -> None:
    (item,) = bnfold.fold(build(Net()), (kind(X),)).report.items
    assert item.reason is bnfold.Reason.NOT_REACHED
    assert f"tensors in {kind.__name__} among the inputs are not followed" in item.sentence


def test_a_packed_sequence() -> None:
    class Packed(Net):
        def forward(self, given: Any) -> Tensor:
            return self.run(given.data)

    pack = nn.utils.rnn.pack_sequence
    model, given = build(Packed()), pack([X, OTHER[:3]])
    result = bnfold.fold(model, (given,))
    assert result.report.removed == 1
    torch.testing.assert_close(result.model(pack([OTHER])), model(pack([OTHER])))


def test_a_generator_is_no_input() -> None:
    class Steps(Net):
        def forward(self, given: Iterator[Tensor]) -> Tensor:
            return self.run(next(given, X))

    with pytest.raises(ExampleInputError, match="Python generator"):
        bnfold.inspect(build(Steps()), ((x for x in (X, OTHER)),))
