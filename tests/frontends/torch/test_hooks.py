"""Hazards 7 and 13: a hook is a reader; what it sees must not change."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnfold
from tests.frontends.torch.support import assert_folds, assert_same, build, image


def network() -> nn.Module:
    return build(
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 3, 1),
        )
    )


class Seen:
    """A hook that survives deepcopy and keeps what it saw, per copy."""

    log: list[torch.Tensor] = []

    def __call__(self, module, *values):
        for value in values:
            for part in value if isinstance(value, tuple) else (value,):
                if isinstance(part, torch.Tensor):
                    Seen.log.append(part.clone())


def seen_by(model, x):
    Seen.log = []
    with torch.no_grad():
        model(x)
    return list(Seen.log)


@pytest.mark.parametrize("kind", ["forward", "pre", "both"])
@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_what_a_hook_sees_stays(at, kind, clip):
    model = network()
    if kind != "pre":
        model[at].register_forward_hook(Seen())
    if kind != "forward":
        model[at].register_forward_pre_hook(Seen())
    x = image(2, 3, 5, 5)
    expected = seen_by(model, x)
    assert len(expected)
    assert_folds(model, x, clip=clip)
    folded, _ = bnfold.fold(model, x, clip=clip)
    assert_same(expected, seen_by(folded, x), 1e-9)


@pytest.mark.parametrize("at", range(6))
def test_hook_that_changes_the_output(at):
    model = network()
    model[at].register_forward_hook(_square)
    assert_folds(model, image(2, 3, 5, 5))


@pytest.mark.parametrize("at", range(6))
def test_hook_that_changes_the_input(at):
    model = network()
    model[at].register_forward_pre_hook(_square_input)
    assert_folds(model, image(2, 3, 5, 5))


def _square(module, args, output):
    return output * output


def _square_input(module, args):
    return (args[0] * args[0],)


def test_hook_on_the_container_sees_what_it_saw():
    model = nn.Sequential(network()[:2], network()[2:]).eval()
    model[0].register_forward_hook(Seen())
    x = image(2, 3, 5, 5)
    expected = seen_by(model, x)
    folded, _ = bnfold.fold(model, x)
    assert_same(expected, seen_by(folded, x), 1e-9)


def test_hook_with_keywords():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            return self.bn(input=self.conv(input=x))

    model = build(Net())
    assert_folds(model, image(2, 3, 5, 5), removed=1)
    model.conv.register_forward_hook(_with_kwargs, with_kwargs=True)
    assert_folds(model, image(2, 3, 5, 5), removed=0)


def _with_kwargs(module, args, kwargs, output):
    return output + kwargs["input"].mean()


def test_global_hook():
    model, x = network(), image(2, 3, 5, 5)
    handle = torch.nn.modules.module.register_module_forward_hook(Seen())
    try:
        expected = seen_by(model, x)
        folded, _ = bnfold.fold(model, x)
        actual = seen_by(folded, x)
    finally:
        handle.remove()
    assert_same(expected, actual, 1e-9)


def test_backward_hook_is_no_reader_of_values():
    model = network()
    model[0].register_full_backward_hook(_nothing)
    assert_folds(model, image(2, 3, 5, 5))


def _nothing(module, grad_input, grad_output):
    return None


def _doubled(module, grad_input, grad_output):
    return (2.0 * grad_input[0],)


def _halved(module, grad_output):
    return (0.5 * grad_output[0],)


def gradients(model, x):
    x = x.clone().requires_grad_()
    model(x).sum().backward()
    return x.grad


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Sequential(nn.Conv2d(3, 3, 1))

    def forward(self, x):
        return self.a(x) + self.b(x)


@pytest.mark.parametrize("hook", [_doubled, _halved])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), "1"),
        (Sum(), "b"),
        (Sum(), "b.0"),
        (Sum(), "a"),
    ],
)
def test_a_backward_hook_stays_where_it_is(model, name, hook):
    """It changes gradients, and would be gone with its module."""
    model, x = build(model), image(2, 3, 5, 5)
    module = model.get_submodule(name)
    if hook is _halved:
        handle = module.register_full_backward_pre_hook(hook)
    else:
        handle = module.register_full_backward_hook(hook)
    folded, report = bnfold.fold(model, x)
    assert_same(gradients(model, x), gradients(folded, x), 1e-9)
    assert not report.merged
    assert all(item.reason is bnfold.Reason.HOOK for item in report.items)
    handle.remove()
