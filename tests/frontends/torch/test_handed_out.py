"""What a program hands out: parameters' memory, and what may run a part of the model later.

Who gets hold of a parameter's memory writes to it unseen: never to the original's. Who gets a
layer, or anything that leads to one, runs it later: it has to compute what it did.
"""

from __future__ import annotations

import contextlib
import copy
import ctypes
import functools
import io
import operator
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils import dlpack

import bnfold
from tests.frontends.torch.support import build, image


@torch.library.custom_op("bnfold_tests::scale_unsaid", mutates_args=())
def scale_unsaid(x: Tensor, weight: Tensor) -> Tensor:
    weight.detach().numpy()[...] *= 2.0
    return x * 1.0


@scale_unsaid.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return torch.empty_like(x)


def _by_numpy(weight: Tensor) -> None:
    weight.detach().numpy()[...] *= 2.0


def _by_array(weight: Tensor) -> None:
    np.asarray(weight.data)[...] *= 2.0


def _by_dlpack(weight: Tensor) -> None:
    torch.from_dlpack(weight.detach()).mul_(2.0)


def _by_capsule(weight: Tensor) -> None:
    dlpack.from_dlpack(dlpack.to_dlpack(weight.detach())).mul_(2.0)


def _by_address(weight: Tensor) -> None:
    numbers = (ctypes.c_double * weight.numel()).from_address(weight.data_ptr())
    numbers[0] = numbers[0] * 2.0


def _by_storage(weight: Tensor) -> None:
    weight.untyped_storage()[7] = 66


def _by_typed_storage(weight: Tensor) -> None:
    weight.detach().storage()[0] = 3.0


def _by_alias(weight: Tensor) -> None:
    torch.empty(0, dtype=weight.dtype).set_(weight.untyped_storage()).mul_(2.0)


def _swallowed(weight: Tensor) -> None:
    for _ in range(2):
        with contextlib.suppress(BaseException):
            _by_numpy(weight)


def _behind_an_error(weight: Tensor) -> None:
    with contextlib.suppress(RuntimeError):
        try:
            _by_numpy(weight)
        except BaseException as error:
            raise RuntimeError from error


def _by_op(weight: Tensor) -> None:
    scale_unsaid(weight.new_ones(1), weight)


WRITES: list[Callable[[Tensor], None]] = [
    _by_numpy,
    _by_array,
    _by_dlpack,
    _by_capsule,
    _by_address,
    _by_storage,
    _by_typed_storage,
    _by_alias,
    _swallowed,
    _behind_an_error,
    _by_op,
]


class Own(nn.Module):
    def __init__(self, write: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x))
        self.write(self.conv2.weight)
        return self.bn2(self.conv2(y))


@pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_the_original_is_not_written_to(write, verify):
    model = build(Own(write))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with contextlib.suppress(bnfold.BnfoldError):
        bnfold.fold(model, image(2, 3, 5, 5), verify=verify)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_what_is_handed_out_and_read_stays_and_its_neighbours_go():
    model = build(Own(lambda weight: weight.detach().numpy().sum()))
    folded, report = bnfold.fold(model, image(2, 3, 5, 5))
    assert report.removed == 1
    assert torch.equal(folded.conv2.weight, model.conv2.weight)


def _pickled(y: Tensor) -> Tensor:
    return pickle.loads(pickle.dumps(y))


def _saved(y: Tensor) -> Tensor:
    file = io.BytesIO()
    torch.save({"y": y}, file)
    file.seek(0)
    return torch.load(file)["y"]


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("through", [_pickled, _saved, copy.copy, copy.deepcopy])
def test_values_that_are_copied_or_saved(through: Callable[[Tensor], Tensor], verify: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = (
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 2, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(through(self.bn(self.conv(x))).sigmoid())

    net, x = build(Net()), image(2, 3, 4, 4)
    folded, _ = bnfold.fold(net, x, verify=verify)
    for inputs in (x, image(3, 3, 5, 5, seed=1)):
        with torch.no_grad():
            torch.testing.assert_close(folded(inputs), net(inputs))


# ------------------------------------------------------ what may run a part of the model later


class Later(nn.Module):
    """A stem that nobody gets, and what is handed out besides the output."""

    def __init__(self, hand_out: Callable[[Later, Tensor], Any]) -> None:
        super().__init__()
        self.stem, self.bn0, self.act = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.Sigmoid()
        self.bn, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.hand_out = hand_out

    def forward(self, x: Tensor) -> Any:
        y = self.act(self.bn0(self.stem(x)))
        return self.hand_out(self, self.head(self.bn(y)))


class Slots:
    __slots__ = ("__weakref__", "layer")

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer


def _local_class(net: Later, y: Tensor) -> Any:
    head = net.head

    class Decoder:
        def decode(self, z: Tensor) -> Tensor:
            return head(z)

    return y, Decoder()


def _on_the_tensor(net: Later, y: Tensor) -> Tensor:
    y.decode = net.head
    return y


def _generator(net: Later, y: Tensor) -> Any:
    head = net.head
    return y, (head(z) for z in [Z])


def _by_default(net: Later, y: Tensor) -> Any:
    def decode(z: Tensor, layer: nn.Module = net.head) -> Tensor:
        return layer(z)

    return y, decode


Z = image(2, 3, 4, 4, seed=7)
ONE_LAYER: dict[str, tuple[Callable[[Later, Tensor], Any], Callable[[Any], Tensor]]] = {
    "layer": (lambda net, y: (y, net.head), lambda out: out[1](Z)),
    "in a dict": (lambda net, y: {"y": y, "head": [net.head]}, lambda out: out["head"][0](Z)),
    "bound method": (lambda net, y: (y, net.head.forward), lambda out: out[1](Z)),
    "partial": (lambda net, y: (y, functools.partial(net.head)), lambda out: out[1](Z)),
    "map": (lambda net, y: (y, map(net.head, [Z])), lambda out: next(out[1])),
    "map alone": (lambda net, y: (map(net.head, [Z]), y)[:1], lambda out: next(out[0])),
    "zip": (lambda net, y: (y, zip([net.head], [1], strict=True)), lambda out: next(out[1])[0](Z)),
    "generator": (_generator, lambda out: next(out[1])),
    "default": (_by_default, lambda out: out[1](Z)),
    "slots": (lambda net, y: (y, Slots(net.head)), lambda out: out[1].layer(Z)),
    "weak": (lambda net, y: (y, weakref.ref(net.head)), lambda out: out[1]()(Z)),
    "local class": (_local_class, lambda out: out[1].decode(Z)),
    "attribute of a tensor": (_on_the_tensor, lambda out: out.decode(Z)),
    "cache": (lambda net, y: (y, functools.lru_cache(net.head.forward)), lambda out: out[1](Z)),
    "view of a table": (
        lambda net, y: (y, net.head._forward_hooks.values(), {"a": net.head}.values()),
        lambda out: next(iter(out[2]))(Z),
    ),
    "caller": (
        lambda net, y: (y, operator.methodcaller("forward", Z), net.head),
        lambda out: out[1](out[2]),
    ),
    "sequence": (lambda net, y: (y, nn.Sequential(net.head, nn.ReLU())), lambda out: out[1](Z)),
}
THE_MODEL: dict[str, tuple[Callable[[Later, Tensor], Any], Callable[[Any], Tensor]]] = {
    "lambda": (lambda net, y: (y, lambda z: net.head(z)), lambda out: out[1](Z)),
    "itself": (lambda net, y: (y, net), lambda out: out[1].head(Z)),
    "bound method": (lambda net, y: (y, net.get_submodule), lambda out: out[1]("head")(Z)),
    "modules": (lambda net, y: (y, net.named_children()), lambda out: dict(out[1])["head"](Z)),
    "iterator": (lambda net, y: (y, iter([net])), lambda out: next(out[1]).head(Z)),
    "object": (lambda net, y: (y, Slots(net)), lambda out: out[1].layer.head(Z)),
}


def _later(kind, *, inplace: bool, verify: bool) -> tuple[Tensor, Tensor, bnfold.FoldReport]:
    hand_out, use = kind
    net, x = build(Later(hand_out)), image(2, 3, 4, 4)
    with torch.no_grad():
        expected = use(net(x))
        folded, report = bnfold.fold(net, x, inplace=inplace, verify=verify)
        return expected, use(folded(x)), report


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("kind", ONE_LAYER.values(), ids=ONE_LAYER)
def test_a_layer_that_is_handed_out_stays_and_its_neighbours_go(kind, verify, inplace):
    expected, actual, report = _later(kind, inplace=inplace, verify=verify)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    outcomes = {item.name: item for item in report.items}
    assert report.removed == 1
    assert "it would change head (handed out by the model)" in outcomes["bn"].sentence


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("kind", THE_MODEL.values(), ids=THE_MODEL)
def test_what_leads_to_the_model_leaves_all_of_it(kind, inplace):
    expected, actual, report = _later(kind, inplace=inplace, verify=True)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)
    assert report.removed == 0
    assert any("Later (handed out by the model)" in item.sentence for item in report.items)


def test_what_leads_nowhere_costs_nothing():
    net = build(Later(lambda net, y: (y, abs, torch.relu, [1, "a"], Slots(nn.ReLU()), nn.ReLU())))
    assert bnfold.fold(net, image(2, 3, 4, 4)).report.removed == 2


def test_a_layer_that_did_not_run_keeps_weights_that_others_use_too():
    class Tied(Later):
        def __init__(self) -> None:
            super().__init__(lambda net, y: (y, net.tied))
            self.tied = nn.Conv2d(3, 4, 1)
            self.tied.weight, self.tied.bias = self.head.weight, self.head.bias

    net, x = build(Tied()), image(2, 3, 4, 4)
    folded, report = bnfold.fold(net, x)
    assert report.removed == 1
    with torch.no_grad():
        assert torch.equal(folded(x)[1](Z), net(x)[1](Z))


def test_what_is_handed_out_for_other_sizes_alone():
    net = build(Later(lambda net, y: (y, net.head) if y.shape[-1] > 8 else (y, None)))
    assert bnfold.fold(net, image(2, 3, 4, 4)).report.removed == 1


def test_what_is_handed_out_in_a_later_call_alone():
    def hand_out(net: Later, y: Tensor) -> Any:
        net.calls = getattr(net, "calls", 0) + 1
        return y, net.head if net.calls % 2 == 0 else None

    net = build(Later(hand_out))
    assert bnfold.fold(net, image(2, 3, 4, 4)).report.removed == 1


def test_branches_that_are_handed_out_are_not_merged():
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Any:
            return self.a(x) + self.b(x), self.b

    net, x = build(Branches()), image(2, 3, 4, 4)
    folded = bnfold.fold(net, x).model
    with torch.no_grad():
        assert torch.equal(folded(x)[1](Z), net(x)[1](Z))
