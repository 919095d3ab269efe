"""Modes that a forward opens: they see what modules ask of PyTorch, and may answer otherwise."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold
from bnfold.errors import BnfoldError
from tests.frontends.torch.support import assert_same, build, image, run


class Dispatching(TorchDispatchMode):
    """Changes what an op returns, by a word in its name."""

    def __init__(self, word, change):
        super().__init__()
        self.word, self.change = word, change

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        return changed(self.change, result) if self.word in str(function) else result


class Overriding(TorchFunctionMode):
    """The same of a function of PyTorch's."""

    def __init__(self, word, change):
        super().__init__()
        self.word, self.change = word, change

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        is_meant = self.word in getattr(function, "__name__", "")
        return changed(self.change, result) if is_meant else result


def changed(change, result):
    """All floating tensors of a result."""
    if isinstance(result, tuple | list):
        return type(result)(changed(change, part) for part in result)
    is_value = isinstance(result, Tensor) and result.is_floating_point() and result.numel()
    return change(result) if is_value else result


class Net(nn.Module):
    """conv, bn, relu, conv, within a mode; then what hides a small difference from outputs."""

    def __init__(self, mode=None):
        super().__init__()
        self.mode = mode
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.relu, self.head = nn.ReLU(), nn.Conv2d(4, 4, 1)

    def body(self, x):
        return self.head(self.relu(self.bn(self.conv(x))))

    def forward(self, x):
        if self.mode is None:
            return self.body(x)
        with self.mode():
            return self.body(x)


class Hooked(Net):
    """A hook opens the mode, and another one closes it."""

    def __init__(self, mode):
        super().__init__()
        self.open = []
        self.bn.register_forward_pre_hook(lambda *_: self.open.append(mode().__enter__()))
        self.relu.register_forward_hook(lambda *_: self.open.pop().__exit__(None, None, None))


def doubled(y):
    return y * 2 + 1


WORDS = ["relu", "batch_norm", "conv", "add", "detach"]


@pytest.mark.parametrize("clip", ["auto", "always"])
@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", [Dispatching, Overriding])
@pytest.mark.parametrize("make", [Net, Hooked])
def test_what_a_mode_changes(make, kind, word, clip):
    """No proof is asked for: what is read is to be right."""
    model = build(make(lambda: kind(word, doubled)))
    x, other = image(2, 3, 4, 4), image(2, 3, 4, 4, seed=3)
    expected = [run(model, each) for each in (x, other)]
    folded, _ = bnfold.fold(model, x, clip=clip, verify=False)
    for each, values in zip((x, other), expected, strict=True):
        assert_same(values, run(folded, each), 1e-9)


def test_a_mode_around_the_fold_hides_nothing():
    model, x = build(Net()), image(2, 3, 4, 4)
    with Dispatching("nothing", doubled), Overriding("nothing", doubled):
        _, report = bnfold.fold(model, x)
    assert report.removed == 1


@pytest.mark.parametrize("device", ["cpu", torch.device("cpu")])
def test_where_new_tensors_go_changes_nothing(device):
    model, x = build(Net(lambda: torch.device(device))), image(2, 3, 4, 4)
    _, report = bnfold.fold(model, x)
    assert report.removed == 1


@pytest.mark.parametrize("inplace", [False, True])
def test_what_is_made_in_inference_mode_can_be_trained_and_loaded(inplace):
    model = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    with torch.inference_mode():
        x = image(2, 3, 4, 4) * 1
        folded, report = bnfold.fold(model, x, inplace=inplace)
    assert report.removed == 1
    assert not any(tensor.is_inference() for tensor in folded.state_dict().values())
    folded.load_state_dict(folded.state_dict())
    folded(image(2, 3, 4, 4)).sum().backward()


def test_an_input_of_inference_mode_may_be_written_to():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            x += 1
            return self.bn(self.conv(x))

    with torch.inference_mode():
        model, x = build(Net()), image(2, 3, 4, 4) * 1
        before = x.clone()
        folded, report = bnfold.fold(model, x)
        assert torch.equal(x, before)
        assert_same(run(model, x), run(folded, x), 1e-9)
    assert report.removed == 1


def test_nothing_is_computed_on_the_meta_device():
    model, x = build(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))), image(2, 3, 4, 4)
    with torch.device("meta"), pytest.raises(BnfoldError, match="the default device is 'meta'"):
        bnfold.fold(model, x)
