"""A program that gets hold of a parameter's memory writes to it unseen: never to the original's."""

from __future__ import annotations

import contextlib
import copy
import ctypes
import io
import pickle
from collections.abc import Callable

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
