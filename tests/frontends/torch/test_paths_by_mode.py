"""Code that asks PyTorch what it is doing: recording gradients, compiling, tracing, exporting."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.frontends.torch.modes import in_mode, modes_asked
from bnfold.frontends.torch.modules import RescaledClip
from tests.frontends.torch.support import assert_same, build, image, run


def is_compiled() -> bool:
    return torch.compiler.is_compiling()


QUESTIONS: dict[str, tuple[Callable[[nn.Module, Tensor], bool], str]] = {
    "whether gradients are recorded": (lambda net, x: torch.is_grad_enabled(), "gradients"),
    "of a tensor": (lambda net, y: y.requires_grad, "gradients"),
    "whether it came of something": (lambda net, y: y.grad_fn is not None, "gradients"),
    "inference mode": (lambda net, x: torch.is_inference_mode_enabled(), "inference"),
    "compiling": (lambda net, x: torch.compiler.is_compiling(), "compiling"),
    "compiling, in a function": (lambda net, x: is_compiled(), "compiling"),
    "Dynamo": (lambda net, x: torch.compiler.is_dynamo_compiling(), "compiling"),
    "exporting": (lambda net, x: torch.compiler.is_exporting(), "exporting"),
    "tracing": (lambda net, x: torch.jit.is_tracing(), "tracing"),
    "an export to ONNX": (lambda net, x: torch.onnx.is_in_onnx_export(), "exporting to ONNX"),
    "autocast": (lambda net, x: torch.is_autocast_enabled("cpu"), "autocast"),
}


class Net(nn.Module):
    """Something else in between, or not, where the answer is yes."""

    def __init__(self, asks: Callable[[nn.Module, Tensor], bool], *, parts: bool = True) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)
        self.asks, self.parts = asks, parts

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.asks(self, y):
            return self.head(y.relu() if self.parts else self.bn(y))
        return self.head(self.bn(y))


def same_in(mode: str, net: nn.Module, folded: nn.Module) -> None:
    x = image(2, 3, 8, 8)
    with in_mode(mode):
        assert_same(net(x), folded(x), 1e-9)


@pytest.mark.parametrize("name", QUESTIONS)
def test_right_on_both_paths(name: str) -> None:
    """Without the proof, which would take back a wrong fold."""
    asks, mode = QUESTIONS[name]
    net = build(Net(asks))
    folded, report = bnfold.fold(net, image(2, 3, 8, 8), verify=False)
    for each in ("", mode):
        same_in(each, net, folded)
    assert report.kept == 1


@pytest.mark.parametrize("name", QUESTIONS)
def test_folded_where_both_paths_are_alike(name: str) -> None:
    asks, mode = QUESTIONS[name]
    net = build(Net(asks, parts=False))
    folded, report = bnfold.fold(net, image(2, 3, 8, 8))
    for each in ("", mode):
        same_in(each, net, folded)
    assert report.removed == 1


@pytest.mark.parametrize("mode", sorted({mode for _, mode in QUESTIONS.values()}))
def test_all_is_as_it_was(mode: str) -> None:
    """Each question is answered with yes in its mode, and as before afterwards."""
    net, x = build(Net(lambda net, x: False)), image(2, 3, 8, 8)
    asks = [question for question, of in QUESTIONS.values() if of == mode]
    with torch.no_grad():
        before = [question(net, net.conv(x)) for question in asks]
        with in_mode(mode):
            assert all(question(net, net.conv(x)) for question in asks)
        assert [question(net, net.conv(x)) for question in asks] == before
    assert not any(before)


class Base(nn.Module):
    """What its forward calls is another method in each class."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def is_asked(self) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y.relu() if self.is_asked() else self.bn(y).relu()


class Asking(Base):
    def is_asked(self) -> bool:
        return torch.is_grad_enabled()


@pytest.mark.parametrize("kinds", [(Base, Asking), (Asking, Base)])
def test_a_method_of_one_of_several_classes(kinds: tuple[type[Base], type[Base]]) -> None:
    net = build(nn.Sequential(*(kind() for kind in kinds)))
    folded, report = bnfold.fold(net, image(2, 3, 8, 8), verify=False)
    for mode in ("", "gradients"):
        same_in(mode, net, folded)
    assert report.removed == 1


def test_a_mode_that_the_module_does_not_take_says_nothing() -> None:
    def asks(net: nn.Module, x: Tensor) -> bool:
        if torch.compiler.is_compiling():
            raise NotImplementedError("run it eagerly")
        return False

    assert bnfold.fold(build(Net(asks)), image(2, 3, 8, 8)).report.removed == 1


def test_branches_that_are_added_in_one_mode_alone_are_not_merged() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                return self.wide(x)
            return self.wide(x) + self.point(x)

    net, x = build(Branches()), image(2, 3, 8, 8)
    folded, _ = bnfold.fold(net, x)
    for mode in ("", "gradients"):
        with in_mode(mode):
            assert_same(net(x), folded(x), 1e-9)


def test_what_a_fold_left_is_read_alike() -> None:
    """A clip of ours writes to its input where nobody wants gradients, and only there."""

    class Asks(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if any(part.requires_grad for part in (x,)):
                return super().forward(x)
            return super().forward(x)

    net = build(
        Asks(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4), nn.MaxPool2d(2),
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4),
        )
    )  # fmt: skip
    x = image(2, 3, 8, 8)
    folded, report = bnfold.fold(net, x, clip="always")
    assert any(isinstance(part, RescaledClip) and part.inplace for part in folded.modules())
    again, second = bnfold.fold(folded, x, clip="always")
    assert (report.kept, second.removed, second.kept) == (0, 0, 0)
    assert_same(run(net, x), run(again, x), 1e-9)
    y = x.clone().requires_grad_()
    again(y).sum().backward()
    assert y.grad is not None


def test_other_threads_go_on_as_before() -> None:
    """A clip of ours must not write to what their gradients need."""
    clip, x = RescaledClip(torch.zeros(1), None, inplace=True), torch.tensor([-1.0])
    kept: list[Tensor] = []

    def train() -> None:
        y = x.clone().requires_grad_() * 2
        clip(y)
        kept.append(y)

    with in_mode("gradients"):
        thread = threading.Thread(target=train)
        thread.start()
        thread.join()
    assert kept[0].item() == -2


def test_names() -> None:
    assert modes_asked(frozenset()) == []
    assert modes_asked(frozenset({"is_tracing", "forward"})) == ["tracing"]
