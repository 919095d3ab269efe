"""A folded module goes through torch.jit.script and torch.fx as the original does."""

from __future__ import annotations

import copy
import io
import warnings

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.frontends.torch.modules import FreshCopy, RescaledClip
from tests.frontends.torch.support import assert_same, build, image, run


class PreActivation(nn.Module):
    """The two BatchNorms ask for two scales of one sum: an activation gets bounds per channel."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 2, 1)
        self.bn1, self.act1 = nn.BatchNorm2d(4), act
        self.bn2, self.act2 = nn.BatchNorm2d(4), copy.deepcopy(act)
        self.conv1 = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.conv1(self.act1(self.bn1(x)))
        return self.head(x + self.conv2(self.act2(self.bn2(x))))


class Copied(nn.Module):
    """What is left of its BatchNorm is a copy: its input is read after its output is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn(x)
        y += 1.0
        return self.left(x) + self.right(y)


class Branching(nn.Module):
    """Control flow that only a script keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU6()) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.body:
            x = block(x)
        if x.size(2) > 4:
            return x
        return -x


class NormAct(nn.BatchNorm2d):
    """A BatchNorm with an activation of its own, as timm writes it."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.ReLU()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        input = nn.functional.batch_norm(  # noqa: A001
            input, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return self.act(input)


NETWORKS = {
    "relu": lambda: PreActivation(nn.ReLU()),
    "relu in place": lambda: PreActivation(nn.ReLU(inplace=True)),
    "relu6": lambda: PreActivation(nn.ReLU6()),
    "hardtanh in place": lambda: PreActivation(nn.Hardtanh(-0.5, 0.7, inplace=True)),
    "copy": Copied,
    "branching": Branching,
    "with its activation": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), NormAct(4), nn.Conv2d(4, 2, 1)
    ),
    "vector": lambda: nn.Sequential(
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4)
    ),
    "before": lambda: nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1, bias=False)),
}
X = image(2, 3, 5, 5)


@pytest.fixture(params=NETWORKS)
def folded(request: pytest.FixtureRequest) -> nn.Module:
    model = build(NETWORKS[request.param]())
    torch.jit.script(model)  # the original can be scripted
    result, report = bnfold.fold(model, X, clip="always")
    assert report.removed == report.total > 0
    return result


def test_script(folded: nn.Module) -> None:
    scripted = torch.jit.script(folded)
    for x in (X, image(1, 3, 4, 4), X.to(memory_format=torch.channels_last)):
        assert_same(run(folded, x), run(scripted, x), 1e-12)


def test_script_with_gradients(folded: nn.Module) -> None:
    grads = []
    for model in (folded, torch.jit.script(folded)):
        x = X.clone().requires_grad_()
        model(x).square().sum().backward()
        grads.append(x.grad)
    assert_same(grads[:1], grads[1:], 1e-12)


def test_a_script_is_saved_and_frozen(folded: nn.Module) -> None:
    scripted = torch.jit.script(folded)
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    buffer.seek(0)
    assert_same(run(folded, X), run(torch.jit.load(buffer), X), 1e-12)
    assert_same(run(folded, X), run(torch.jit.freeze(scripted.eval()), X), 1e-12)


def test_trace(folded: nn.Module) -> None:
    assert_same(run(folded, X), run(torch.jit.trace(folded, X), X), 1e-12)


def test_what_remains_in_place_of_a_batch_norm_is_covered() -> None:
    kinds = set()
    for make in NETWORKS.values():
        result, _ = bnfold.fold(build(make()), X, clip="always")
        kinds |= {type(module) for module in result.modules()}
    assert {RescaledClip, FreshCopy, nn.Identity} <= kinds


LOW = image(3, 1, 1)
BOUNDS = [(LOW, None), (None, LOW), (LOW, LOW + 1), (None, None)]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("lower", "upper"), BOUNDS)
@pytest.mark.parametrize("wants_grad", [False, True])
def test_a_scripted_clip_writes_where_the_clip_writes(
    lower: Tensor | None, upper: Tensor | None, inplace: bool, wants_grad: bool
) -> None:
    clip = RescaledClip(lower, upper, inplace=inplace)
    results = []
    for module in (clip, torch.jit.script(clip)):
        x = X.clone().requires_grad_(wants_grad)
        y = module(x * 1 if wants_grad else x)
        results.append((y, x.detach(), y.data_ptr() == x.data_ptr()))
    (expected, before, shared), (actual, after, also_shared) = results
    assert shared is also_shared
    assert_same([expected.detach(), before], [actual.detach(), after], 0.0)


@pytest.mark.parametrize(
    "x",
    [
        image(2, 3, 4, 5),
        image(2, 3, 4, 5).to(memory_format=torch.channels_last),
        image(2, 3, 4, 5, 2).to(memory_format=torch.channels_last_3d),
        image(2, 3, 4, 5).transpose(2, 3),
        image(3, 4).t(),
        image(2, 3, 4).transpose(1, 2),
    ],
)
def test_a_copy_is_laid_out_alike_in_script_and_fx(x: Tensor) -> None:
    copied = FreshCopy()(x)
    for module in (torch.jit.script(FreshCopy()), torch.fx.symbolic_trace(FreshCopy())):
        again = module(x)
        assert again.stride() == copied.stride()
        assert torch.equal(again, x)
        assert again.data_ptr() != x.data_ptr()


def test_symbolic_trace_of_clips_in_place() -> None:
    with torch.enable_grad():
        traced = torch.fx.symbolic_trace(nn.Sequential(RescaledClip(LOW, LOW + 1, inplace=True)))
    expected = RescaledClip(LOW, LOW + 1)(X)
    assert_same([expected], [traced(X.clone())], 0.0)


@pytest.mark.parametrize("grads", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_trace_is_the_same_with_gradients_and_without(inplace: bool, grads: bool) -> None:
    """`torch.jit.trace` checks what it traced by another trace, without gradients."""
    layers = (nn.Conv2d(3, 3, 1), nn.Sigmoid(), nn.BatchNorm2d(3), nn.ReLU(inplace))
    model = build(nn.Sequential(*layers, nn.Conv2d(3, 2, 1)))
    folded = bnfold.fold(model, X).model
    assert any(isinstance(part, RescaledClip) for part in folded)
    with torch.set_grad_enabled(grads), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        traced = torch.jit.trace(folded, X)
    with torch.enable_grad():  # a trace may run in the other mode
        traced(X).sum().backward()
    assert_same(run(model, X), run(traced, X), 1e-9)
