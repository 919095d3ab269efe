"""What a program's code asks is compared, also where its outputs do not show the answer."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold import Reason
from bnfold.frontends.torch.proof_calls import ModelCalls
from bnfold.verify import sight
from tests.frontends.torch.support import assert_same, build, image, run

X = image(2, 3, 7, 7)
FAR = 1e7 * image(2, 3, 7, 7, seed=1)
"""Values at which the answers show."""


class Net(nn.Module):
    """conv, bn, head, with what `between` does to the normalised value."""

    def __init__(self, between: Callable[[Net, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.between = between
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(self, self.bn(self.conv(x))))


def named(*functions: Any) -> list[Any]:
    return [pytest.param(function, id=function.__name__) for function in functions]


@pytest.fixture
def deaf(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens."""
    heard = ModelCalls.run
    monkeypatch.setattr(ModelCalls, "run", lambda self, *, listens=False, **how: heard(self, **how))


# ------------------------------------------------------------------- must not be kept


def value_in_a_factor(net: Net, y: Tensor) -> Tensor:
    return y * 2 - float(y.abs().mean()) * 0.0


def count_of_values(net: Net, y: Tensor) -> Tensor:
    return y[: 1 + int((y > 0.1).sum()) % 2 + 1]


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x


def value_of_nobody_knows_what(net: Net, y: Tensor) -> Tensor:
    return torch.relu(Doubled.apply(y.mean((2, 3), keepdim=True))) + 1


def made_by_nobody_knows_what(net: Net, y: Tensor) -> Tensor:
    return net.last(Doubled.apply(y[:1, :, :2, :2]))


def index_by_a_tensor(net: Net, y: Tensor) -> Tensor:
    return y[:, :, : torch.tensor(3), torch.arange(2)]


def vectorised(net: Net, y: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * torch.from_numpy(np.ones(4))[:, None, None])(y)


@functools.cache
def _grid(height: int) -> Tensor:
    return torch.linspace(0, 1, height, dtype=torch.float64).mul(2.0).sub(0.5)


def cached_grid(net: Net, y: Tensor) -> Tensor:
    return y + _grid(y.shape[-1])


COUNTER = [0]


def counts_calls(net: Net, y: Tensor) -> Tensor:
    COUNTER[0] += 1
    return y.clamp(max=1e9 + COUNTER[0])


def asks_what_stays(net: Net, y: Tensor) -> Tensor:
    return y.clamp(max=1e9 * net.head.in_channels)


def compiled(net: Net, y: Tensor) -> Tensor:
    return _compiled(y)


@torch.compile(backend="eager")
def _compiled(y: Tensor) -> Tensor:
    return y * 2 + 0.5


HARMLESS = named(
    value_in_a_factor,
    count_of_values,
    value_of_nobody_knows_what,
    made_by_nobody_knows_what,
    index_by_a_tensor,
    vectorised,
    cached_grid,
    counts_calls,
    asks_what_stays,
    compiled,
)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("between", HARMLESS)
def test_numbers_that_are_no_answers_keep_nothing(between: Any, inplace: bool) -> None:
    model = build(Net(between, last=nn.Identity()))
    if between is made_by_nobody_knows_what:
        model.last, model.bn = model.bn, model.last
    report = bnfold.fold(model, X, inplace=inplace).report
    assert report.removed == 1 and report.verdict is not None and report.verdict.equal


class Frozen(nn.Module):
    """A BatchNorm of its own making."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(4, dtype=torch.float64) + 0.5)
        self.register_buffer("shift", torch.rand(4, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.reshape(1, -1, 1, 1) + self.shift.reshape(1, -1, 1, 1)


class Activated(nn.BatchNorm2d):
    """As timm's: the activation is its own."""

    def __init__(self) -> None:
        super().__init__(4)
        self.act = nn.Hardswish()

    def forward(self, x: Tensor) -> Tensor:
        y = functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps
        )
        return self.act(y)


@pytest.mark.parametrize(
    "parts",
    [
        [nn.Conv2d(3, 4, 1), Frozen(), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(3, 4, 1), Activated(), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(3, 4, 1), nn.Hardtanh(-0.5, 2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, bias=False)],
        [nn.Conv2d(3, 4, 1), nn.SiLU(inplace=True), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3)],
        [nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.BatchNorm2d(4), nn.Sigmoid()],
    ],
)
def test_what_replaced_modules_call_themselves_is_left_out(parts: list[nn.Module]) -> None:
    report = bnfold.fold(build(nn.Sequential(*parts)), X, clip="always").report
    assert report.removed == 1 and not report.kept


def test_a_method_of_a_module_is_left_out_as_well() -> None:
    class Direct(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.sigmoid(self.bn.forward(self.conv.forward(x)))

    model = build(Direct())
    assert bnfold.fold(model, X).report.removed == bnfold.inspect(model, X).removed


# ------------------------------------------------------------------- must be kept


def text_as_a_bound(net: Net, y: Tensor) -> Tensor:
    return y.clamp(max=1e3 * len(repr(net)))


def modules_counted(net: Net, y: Tensor) -> Tensor:
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in net.modules())
    return torch.minimum(y, torch.full_like(y, 1e4 * (1 + norms)))


def another_path(net: Net, y: Tensor) -> Tensor:
    return functional.hardtanh(y, -1e4, 1e4) if type(net.bn) is nn.BatchNorm2d else y


def another_function_at_the_end_of_a_loop(net: Net, y: Tensor) -> Tensor:
    for _ in range(len(list(net.buffers()))):
        y = functional.relu6(y / 1e6) * 1e6 - functional.relu6(-y / 1e6) * 1e6
    return y


def another_module(net: Net, y: Tensor) -> Tensor:
    chosen = net.narrow if isinstance(net.bn, nn.BatchNorm2d) else net.wide
    return y + chosen(y / 1e5)


def keyword(net: Net, y: Tensor) -> Tensor:
    return y.clip(max=len(net.state_dict()) * 1e4)


def tensor_of_the_answer(net: Net, y: Tensor) -> Tensor:
    bound = torch.tensor([1e4 + sum(p.numel() for p in net.parameters())], dtype=y.dtype)
    return torch.minimum(y, bound)


def answer_in_numpy(net: Net, y: Tensor) -> Tensor:
    bound = torch.from_numpy(np.full((1, 4, 1, 1), 1e3 * len(list(net.parameters()))))
    return torch.minimum(y, bound)


def tensor_made_by_its_class(net: Net, y: Tensor) -> Tensor:
    return torch.minimum(y, torch.Tensor([1e3 * len(repr(net))]).to(y.dtype))


def tensor_among_others(net: Net, y: Tensor) -> Tensor:
    return torch.minimum(y, BOUNDS[isinstance(net.bn, nn.BatchNorm2d)])


BOUNDS = [torch.tensor([limit], dtype=torch.float64) for limit in (1e4, 2e4)]


def buffer_among_others(net: Net, y: Tensor) -> Tensor:
    return torch.minimum(y, net.get_buffer("low" if "Norm" in str(net.bn) else "high"))


def answer_of_numpy(net: Net, y: Tensor) -> Tensor:
    return y.clamp(max=np.float64(1e3 * len(net.bn.__class__.__name__)))


def answer_that_is_kept(net: Net, y: Tensor) -> Tensor:
    net.asked = getattr(net, "asked", None) or 1e3 * len(repr(net))
    return y.clamp(max=net.asked)


def text_that_is_handed_on(net: Net, y: Tensor) -> Tensor:
    kind = "reflect" if isinstance(net.bn, nn.BatchNorm2d) else "replicate"
    return functional.pad(y, (1, 1, 1, 1), mode=kind)[..., 1:-1, 1:-1]


def flag(net: Net, y: Tensor) -> Tensor:
    return y + functional.dropout(y, 0.5, training="BatchNorm" not in str(net)) * 0.0


def answer_and_value(net: Net, y: Tensor) -> Tensor:
    """What comes out of the values beside it does not count."""
    return y.clamp(-1e9 - float(y.mean()), 1e3 * len(list(net.children())) + len(repr(net.bn)))


class Saturated(nn.Module):
    """What it computes is 1, whatever its weights are, until it gets very large values."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(4, 4, 1)

    def forward(self, y: Tensor) -> Tensor:
        return functional.hardsigmoid(self.inner(y) * 1e-3 + 100.0)


HIDDEN = named(
    text_as_a_bound,
    modules_counted,
    another_path,
    another_function_at_the_end_of_a_loop,
    another_module,
    keyword,
    tensor_of_the_answer,
    answer_in_numpy,
    tensor_made_by_its_class,
    tensor_among_others,
    buffer_among_others,
    answer_of_numpy,
    answer_that_is_kept,
    text_that_is_handed_on,
    flag,
    answer_and_value,
)


def asking(between: Any) -> nn.Module:
    net = Net(between, narrow=Saturated(), wide=Saturated())
    net.register_buffer("low", torch.full((1, 4, 1, 1), 1e4))
    net.register_buffer("high", torch.full((1, 4, 1, 1), 2e4))
    return build(net)


@pytest.mark.parametrize("between", HIDDEN)
def test_the_outputs_alone_do_not_show_it(between: Any, deaf: None) -> None:
    assert bnfold.fold(asking(between), X).report.removed == 1


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("between", HIDDEN)
def test_an_answer_that_nothing_shows_is_the_same(between: Any, inplace: bool) -> None:
    model = asking(between)
    near, far = (run(copy.deepcopy(model), values) for values in (X, FAR))
    folded, report = bnfold.fold(model, X, inplace=inplace)
    assert [item.reason for item in report.items] == [Reason.NOT_PROVEN]
    assert any("with the steps gone" in note for note in report.notes)
    assert_same(near, run(folded, X), 1e-9)
    assert_same(far, run(folded, FAR), 1e-9)


def test_it_is_heard_where_rounding_had_to_be_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sight, "accept", lambda *args, **kwargs: None)
    report = bnfold.fold(asking(text_as_a_bound), X).report
    assert [item.reason for item in report.items] == [Reason.NOT_PROVEN]
    assert bnfold.fold(build(Net(value_in_a_factor)), X).report.removed == 1


def test_only_the_module_that_was_asked_stays() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid())
            self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid())
            self.third = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Sigmoid())

        def forward(self, x: Tensor) -> Tensor:
            y = self.second(self.first(x))
            return self.third(y).clamp(max=100.0 + len(repr(self.second)))

    report = bnfold.fold(build(Two()), X).report
    assert [item.name for item in report.items if not item.is_removed] == ["second.1"]


def test_a_hook_that_asks_is_heard() -> None:
    model = build(Net(lambda net, y: y))
    model.head.register_forward_hook(
        lambda module, inputs, output: output.clamp(max=1e4 * len(repr(model)))
    )
    assert bnfold.fold(model, X, inplace=True).report.removed == 0


def test_nobody_listens_afterwards() -> None:
    bnfold.fold(asking(text_as_a_bound), X)
    assert torch._C._len_torch_function_stack() == 0
