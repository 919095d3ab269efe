"""A fold is of the model, and not of a copy that is another one.

How an object is copied it may say itself. What comes of that is either the model, made anew, and
folds like any; or another one, and then nothing is folded in it.
"""

from __future__ import annotations

import copy
import io
import random
import threading
import weakref
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import build, image

X = image(2, 3, 6, 6)


class Net(nn.Module):
    """What is added behind the sigmoid, and what it is multiplied by, a kind decides."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.other(self.bn(self.conv(x)).sigmoid()))

    def other(self, y: Tensor) -> Tensor:
        return y


def _rebuilt(net: Net) -> Net:
    return _of_state(type(net), net.state_dict(), net.training)


def _of_state(kind: type[Net], state: Any, training: bool) -> Net:
    new = kind()
    new.to(torch.float64).load_state_dict(state)
    return new.train(training)


# ---------------------------------------------------------------- ways that make the model anew


class ByDeepcopy(Net):
    def __deepcopy__(self, memo: Any) -> Net:
        return _rebuilt(self)


class ByReduce(Net):
    def __reduce__(self) -> Any:
        return _of_state, (type(self), self.state_dict(), self.training)


class ByReduceEx(Net):
    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self), (), self.__dict__


class ByState(Net):
    def __getstate__(self) -> Any:
        return dict(self.__dict__)

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state)


class WithoutALock(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock: Any = threading.Lock()

    def __getstate__(self) -> Any:
        return {**self.__dict__, "lock": None}


class WithAList(Net):
    """Layers that a copy finds in a list that its own __init__ made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = [self.conv, self.bn, nn.Sigmoid()]

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.head(x)

    def __deepcopy__(self, memo: Any) -> Net:
        return _rebuilt(self)


class InParts(Net):
    def __deepcopy__(self, memo: Any) -> Net:
        new = type(self).__new__(type(self))
        nn.Module.__init__(new)
        for name, part in self.named_children():
            setattr(new, name, copy.deepcopy(part))
        return new.train(self.training)


class Tied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.twin = nn.Conv2d(3, 4, 3)
        self.twin.weight, self.twin.bias = self.conv.weight, self.conv.bias

    def __deepcopy__(self, memo: Any) -> Net:
        return _rebuilt(self)


THE_MODEL = [ByDeepcopy, ByReduce, ByReduceEx, ByState, WithoutALock, WithAList, InParts, Tied]


def _inside(kind: type[Net]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sigmoid(), kind())


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("make", [lambda kind: kind(), _inside], ids=["alone", "inside"])
@pytest.mark.parametrize("kind", THE_MODEL)
def test_what_is_made_anew_folds_like_any(kind, make, verify, merge):
    model = build(make(kind))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    inspected = bnfold.inspect(model, X, merge=merge)
    folded, report = bnfold.fold(model, X, verify=verify, merge=merge)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    assert [len(each.items) for each in (inspected, report)] == [1, 1]
    assert inspected.removed == report.removed == 1
    assert type(folded) is type(model)
    with torch.no_grad():
        torch.testing.assert_close(folded(X), model(X), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


# ---------------------------------------------------------------- ways that make another one


class NoTensor(Net):
    offset: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.full((1, 4, 1, 1), 0.7, dtype=torch.float64)

    def other(self, y: Tensor) -> Tensor:
        return y if self.offset is None else y + self.offset

    def __getstate__(self) -> Any:
        return {**self.__dict__, "offset": None}


class NoNumber(Net):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 3.0

    def other(self, y: Tensor) -> Tensor:
        return y * self.scale

    def __getstate__(self) -> Any:
        return {**self.__dict__, "scale": 1.0}


class NoTable(Net):
    def __init__(self) -> None:
        super().__init__()
        self.table = {"scales": [2.0, 3.0]}

    def other(self, y: Tensor) -> Tensor:
        return y * self.table.get("scales", [1.0])[-1]

    def __getstate__(self) -> Any:
        return {**self.__dict__, "table": {}}


class NoArray(Net):
    def __init__(self) -> None:
        super().__init__()
        self.array = np.arange(1.0, 5.0)

    def other(self, y: Tensor) -> Tensor:
        return y * torch.from_numpy(self.array.copy()).view(1, -1, 1, 1)

    def __getstate__(self) -> Any:
        return {**self.__dict__, "array": np.ones(4)}


class FreshWeights(Net):
    def __reduce__(self) -> Any:
        return _fresh, (type(self),)


class FreshHead(Net):
    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        new.head = nn.Conv2d(4, 2, 1).double()
        return new


def _fresh(kind: type[Net]) -> nn.Module:
    return kind().double().eval()


class NoBuffer(Net):
    """One that is not part of the state, so that load_state_dict does not carry it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, 4, 1, 1), persistent=False)

    def other(self, y: Tensor) -> Tensor:
        return y + self.shift

    def __deepcopy__(self, memo: Any) -> Net:
        return _rebuilt(self)


class OneMore(Net):
    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        new.more = nn.ReLU()
        return new


class OneLess(Net):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.last(y) if hasattr(self, "last") else y

    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        del new.last
        return new


class OtherKind(Net):
    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        new.bn.__class__ = nn.SyncBatchNorm
        return new


class Untied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.tie()

    def tie(self) -> None:
        self.head2 = nn.Conv2d(4, 2, 1)
        self.head2.weight = self.head.weight

    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        new.head2.weight = nn.Parameter(self.head.weight.detach().clone())
        return new


class Unshared(Net):
    """One activation in two places, of which a copy makes two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.Sigmoid()

    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        new.second = nn.Sigmoid()
        return new


class Trained(Net):
    """A copy that would have its head frozen, or not."""

    def __deepcopy__(self, memo: Any) -> Net:
        new = _rebuilt(self)
        new.head.weight.requires_grad_(False)
        return new


ANOTHER = [
    NoTensor,
    NoNumber,
    NoTable,
    NoArray,
    FreshWeights,
    FreshHead,
    NoBuffer,
    OneMore,
    OneLess,
    OtherKind,
    Untied,
    Unshared,
    Trained,
]


def _filled(kind: type[Net]) -> nn.Module:
    net = build(kind())
    if isinstance(net, NoBuffer):
        net.shift.fill_(0.7)
    return net


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ANOTHER)
def test_a_copy_that_is_another_model_is_not_folded(kind, verify, merge):
    _is_refused_and_folds_in_place(_filled(kind), "cannot be copied as it is", verify, merge)


def _is_refused_and_folds_in_place(
    model: nn.Module, why: str, verify: bool, merge: str = "auto"
) -> bnfold.FoldReport:
    expected = model(X).detach()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(bnfold.UnsupportedModelError, match=rf"{why}.*inplace=True"):
        bnfold.fold(model, X, verify=verify, merge=merge)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    folded, report = bnfold.fold(model, X, inplace=True, verify=verify, merge=merge)
    assert folded is model
    torch.testing.assert_close(folded(X).detach(), expected, rtol=1e-9, atol=1e-9)
    return report


@pytest.mark.parametrize("kind", ANOTHER)
def test_in_place_it_folds_like_any(kind):
    report = bnfold.fold(_filled(kind), X, inplace=True).report
    assert [(item.name, item.is_removed) for item in report.items] == [("bn", True)]


# ---------------------------------------------------------------- what only a run tells


class Scale:
    """An object that a copy leaves without its number."""

    def __init__(self, number: float = 1.0) -> None:
        self.number = number

    def __deepcopy__(self, memo: Any) -> Scale:
        return Scale()


class Emptied(Scale):
    __deepcopy__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        return Scale, ()


class Told(nn.Module):
    """It multiplies what the BatchNorm makes by a number that a copy does not find."""

    def __init__(self, tell: Callable[[Told], float]) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.tell = tell

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bn(self.conv(x)) * self.tell(self))


BY_ID: dict[int, float] = {}
BY_MODULE: weakref.WeakKeyDictionary[nn.Module, float] = weakref.WeakKeyDictionary()


def _own_table() -> Told:
    net = Told(lambda net: net.scales.get(id(net.bn), 1.0))
    net.scales = {id(net.bn): 2.0}
    return net


def _own_set() -> Told:
    net = Told(lambda net: 2.0 if id(net.head) in net.doubled else 1.0)
    net.doubled = {id(net.head)}
    return net


def _own_number() -> Told:
    net = Told(lambda net: 1.0 + (net.me == id(net)))
    net.me = id(net)
    return net


def _weak_table() -> Told:
    net = Told(lambda net: net.scales.get(net.bn, 1.0))
    net.scales = weakref.WeakKeyDictionary({net.bn: 2.0})
    return net


def _global_table() -> Told:
    net = Told(lambda net: BY_ID.get(id(net.bn), 1.0))
    BY_ID[id(net.bn)] = 2.0
    return net


def _global_weak_table() -> Told:
    net = Told(lambda net: BY_MODULE.get(net.conv, 1.0))
    BY_MODULE[net.conv] = 2.0
    return net


def _closure() -> Told:
    known: list[nn.Module] = []
    net = Told(lambda net: 1.0 + any(net is each for each in known))
    known.append(net)
    return net


def _weight() -> Told:
    net = Told(lambda net: net.scales.get(id(net.conv.weight), 1.0))
    net.scales = {id(net.conv.weight): 2.0}
    return net


def _object() -> Told:
    net = Told(lambda net: net.scale.number)
    net.scale = Scale(2.0)
    return net


def _object_in_a_table() -> Told:
    net = Told(lambda net: net.scales["a"][0].number)
    net.scales = {"a": [Emptied(2.0)]}
    return net


TOLD = [
    _own_table,
    _own_set,
    _own_number,
    _weak_table,
    _global_table,
    _global_weak_table,
    _closure,
    _weight,
    _object,
    _object_in_a_table,
]


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("make", TOLD)
def test_a_copy_that_computes_something_else_is_not_folded(make, merge):
    model = build(make())
    why = r"cannot be copied as it is: its copy \(copy.deepcopy\) computes something else"
    _is_refused_and_folds_in_place(model, why, verify=True, merge=merge)


# ---------------------------------------------------------------- the model itself is run


class Holds(nn.Module):
    """What is changed in each run, and does not change what is computed."""

    def __init__(self, held: Any, change: Callable[[Any, Tensor], object]) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.held, self.change = held, change

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x)).sigmoid()
        self.change(self.held, y)
        return self.head(y)


class Object:
    def __init__(self, value: Any) -> None:
        self.value = value


def _add(held: Any, y: Tensor) -> None:
    held += 1


def _add_inside(held: Any, y: Tensor) -> None:
    held.value += 1


def _replace_inside(held: Any, y: Tensor) -> None:
    held.value = y


CHANGED: dict[str, tuple[Callable[[], Any], Callable[[Any, Tensor], object]]] = {
    "array": (lambda: np.zeros(100), _add),
    "tensor": (lambda: torch.zeros(100), _add),
    "tensor in a list": (lambda: [torch.zeros(100)], lambda held, y: held[0].add_(1)),
    "another tensor": (lambda: {"y": torch.zeros(2)}, lambda held, y: held.update(y=y)),
    "tensor in tables": (lambda: {"a": [torch.zeros(2)]}, lambda held, y: held["a"].insert(0, y)),
    "number of an object": (lambda: Object(0), _add_inside),
    "array of an object": (lambda: Object(np.zeros(100)), _add_inside),
    "tensor of an object": (lambda: Object(torch.zeros(100)), _add_inside),
    "another of an object": (lambda: Object(torch.zeros(2, 4, 4, 4)), _replace_inside),
    "file": (io.BytesIO, lambda held, y: held.write(b"x")),
    "iterator": (lambda: iter([1] * 100), lambda held, y: next(held)),
    "counter": (lambda: Counter(n=1), lambda held, y: held.update(n=1)),
    "bytes": (bytearray, lambda held, y: held.append(1)),
}


@pytest.mark.parametrize("name", CHANGED)
def test_what_a_run_changes_is_as_it_was(name):
    make, change = CHANGED[name]
    model = build(Holds(make(), change))
    report = bnfold.fold(model, X).report
    assert report.removed == 1
    assert _content(model.held) == _content(make())


def _content(held: Any) -> Any:
    if isinstance(held, Object):
        return _content(held.value)
    if isinstance(held, io.BytesIO):
        return held.getvalue()
    if isinstance(held, dict):
        return {key: _content(part) for key, part in held.items()}
    if isinstance(held, list) or hasattr(held, "__next__"):
        return [*map(_content, held)]
    return held.tolist() if isinstance(held, Tensor | np.ndarray) else held
