"""Merging asks what removing asks: other sizes, layouts and runs, with a BatchNorm or without."""

from __future__ import annotations

import copy
import random
from collections import deque
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import build, image

Forward = Callable[["Branches", Tensor], Tensor]
X = image(2, 3, 9, 9).abs()


class Branches(nn.Module):
    """Two convolutions of one tensor, and what a forward does with them."""

    def __init__(self, how: Forward) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.more = nn.ModuleList([nn.Conv2d(3, 3, 1)])
        self.how, self.count, self.last = how, 0, torch.zeros(())
        self.seen: list[int] = []
        self.queue: deque[Tensor] = deque(maxlen=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.how(self, x)


def given() -> list[Tensor]:
    """Other batches, sizes, values, layouts, and the same over again."""
    return [
        *(X, image(3, 3, 9, 9), image(5, 3, 9, 9), image(2, 3, 20, 9), image(2, 3, 9, 40)),
        *(-X, X * 0, X * 30, X.to(memory_format=torch.channels_last), X, X, X),
    ]


def assert_right(model: nn.Module, folded: nn.Module) -> None:
    model, folded = copy.deepcopy(model), copy.deepcopy(folded)
    with torch.no_grad():
        for x in given():
            results = []
            for net in (model, folded):
                random.seed(1)
                torch.manual_seed(1)
                results.append(net(x))
            torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-9)


def _batch(m: Branches, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return a + b if x.shape[0] != 3 else a


def _length(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if len(x) < 3 else m.a(x)


def _height(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if x.size(2) < 14 else m.a(x) - m.b(x)


def _numel(m: Branches, x: Tensor) -> Tensor:
    return m.b(m.a(x)) if x.numel() < 1000 else m.a(x)


def _chain_by_width(m: Branches, x: Tensor) -> Tensor:
    y = m.a(x)
    y = m.more[0](y) if x.shape[-1] > 20 else m.b(y)
    return y.tanh()


def _loop(m: Branches, x: Tensor) -> Tensor:
    y = m.a(x)
    for _ in range(x.shape[-1] // 8):
        y = y + m.b(x)
    return y


def _layout(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if x.is_contiguous() else m.a(x)


def _kind(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if isinstance(m.b, nn.Conv2d) else m.a(x) * 2


def _kinds_of_a_list(m: Branches, x: Tensor) -> Tensor:
    y = m.a(x)
    return y + sum(part(x) for part in m.more if hasattr(part, "weight")) / len(m.more)


def _channels(m: Branches, x: Tensor) -> Tensor:
    return (m.a(x) + m.b(x)) * sum(part.kernel_size[0] for part in (m.a, m.b))


def _counter(m: Branches, x: Tensor) -> Tensor:
    m.count += 1
    return m.a(x) + m.b(x) if m.count % 2 else m.a(x)


def _slow_counter(m: Branches, x: Tensor) -> Tensor:
    m.count += 1
    return m.a(x) + m.b(x) if m.count % 5 else m.a(x)


def _warm_up(m: Branches, x: Tensor) -> Tensor:
    m.count = m.count + 1
    return m.a(x) + m.b(x) if m.count < 4 else m.b(x)


def _list_that_grows(m: Branches, x: Tensor) -> Tensor:
    m.seen.append(x.shape[0])
    return m.a(x) + m.b(x) if len(m.seen) % 4 else m.a(x)


def _queue_of_tensors(m: Branches, x: Tensor) -> Tensor:
    y = m.a(x) + m.b(x) if len(m.queue) < 3 else m.b(x)
    m.queue.append(y)
    return y


def _chance(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if random.random() < 0.9 else m.a(x)


def _drawn(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if torch.rand(()) < 0.9 else m.a(x)


def _value(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if x.sum() > 0 else m.a(x)


def _item(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if x.abs().max().item() < 10 else m.a(x)


def _list_of_values(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if x.flatten().tolist()[0] > 0 else m.b(x)


def _mask(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x) if x[x > 0].shape[0] else m.a(x)


def _equal(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) if torch.equal(x, x.abs().neg()) else m.a(x) + m.b(x)


FORMS = [
    *(_batch, _length, _height, _numel, _chain_by_width, _loop, _layout, _kind),
    *(
        _kinds_of_a_list,
        _channels,
        _counter,
        _slow_counter,
        _warm_up,
        _list_that_grows,
        _queue_of_tensors,
        _chance,
        _drawn,
    ),
    *(_value, _item, _list_of_values, _mask, _equal),
]


@pytest.mark.parametrize("how", FORMS, ids=lambda how: how.__name__)
@pytest.mark.parametrize("verify", [True, False])
def test_a_module_without_a_batch_norm(how: Forward, verify: bool) -> None:
    model = build(Branches(how))
    folded = bnfold.fold(model, X, verify=verify).model
    assert_right(model, folded)
    assert_right(model, bnfold.fold(folded, X, verify=verify).model)


class Normalised(Branches):
    """Each branch with its BatchNorm."""

    def __init__(self, how: Forward) -> None:
        super().__init__(how)
        self.a, self.b = (nn.Sequential(part, nn.BatchNorm2d(3)) for part in (self.a, self.b))


@pytest.mark.parametrize("how", [_batch, _length, _height, _loop], ids=lambda how: how.__name__)
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_a_fold_of_a_fold(how: Forward, clip: str) -> None:
    model = build(Normalised(how))
    once = bnfold.fold(model, X, clip=clip).model
    twice = bnfold.fold(once, X, clip=clip).model
    assert_right(model, once)
    assert_right(model, twice)


def _plain(m: Branches, x: Tensor) -> Tensor:
    return m.a(x) + m.b(x)


def _padded(m: Branches, x: Tensor) -> Tensor:
    if x.shape[-1] % 2:
        x = nn.functional.pad(x, (0, 1))
    return m.a(x) + m.b(x)


def _measured(m: Branches, x: Tensor) -> Tensor:
    return (m.a(x) + m.b(x)).reshape(x.shape[0], -1, x.shape[2], x.shape[3])


def _kept(m: Branches, x: Tensor) -> Tensor:
    m.last = m.a(x) + m.b(x)
    return m.last


@pytest.mark.parametrize("how", [_plain, _padded, _measured, _kept], ids=lambda how: how.__name__)
def test_branches_that_meet_on_every_path(how: Forward) -> None:
    model = build(Branches(how))
    folded, report = bnfold.fold(model, X)
    assert [(one.into, one.parts[0]) for one in report.merged] == [("a", "b")]
    assert_right(model, folded)


def _by_dtype(m: Branches, x: Tensor) -> Tensor:
    if x.dtype != torch.float64:
        return m.a(x.double())
    return m.a(x) + m.b(x)


def _whole_numbers(m: Branches, x: Tensor) -> Tensor:
    if not x.is_floating_point():
        x = x.double() / 255
        return m.a(x) - m.b(x)
    x = x.double()
    return m.a(x) + m.b(x)


def _cropped(m: Branches, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return a + (b[..., : x.shape[2], : x.shape[3]] if x.shape[3] % 2 == 0 else b)


def _of_its_dtype(m: Branches, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return a + (b.to(x.dtype) if x.shape[2] != x.shape[3] else b)


def _listed(m: Branches, x: Tensor) -> Tensor:
    parts = [m.a(x), m.b(x)]
    if x.shape[0] != 2:
        parts = [part.float() if part.dtype == torch.half else part for part in parts]
    return parts[0] + parts[1]


def _converted_in_channels_last(m: Branches, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return a + (b.double() if x.is_contiguous(memory_format=torch.channels_last) else b)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("how", [_cropped, _of_its_dtype, _listed, _converted_in_channels_last])
def test_what_does_nothing_to_a_tensor_asks_for_one(how: Forward, verify: bool) -> None:
    """It leaves no trace in a reading; of a branch that was merged away it has nothing to ask."""
    model = build(Branches(how))
    folded, report = bnfold.fold(model, X, verify=verify)
    assert not report.merged
    assert_right(model, folded)


def _contiguous(m: Branches, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return a + (b.contiguous() if x.shape[3] % 2 == 0 else b)


def _detached(m: Branches, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    return a + (b.detach().clone() if torch.is_grad_enabled() else b)


@pytest.mark.parametrize("how", [_contiguous, _detached])
def test_nothing_stays_nothing(how: Forward) -> None:
    model = build(Branches(how))
    folded, report = bnfold.fold(model, X)
    assert len(report.merged) == 1
    assert_right(model, folded)
    torch.testing.assert_close(folded(X), model(X), rtol=1e-9, atol=1e-9)


def test_a_part_of_nothing_says_what_to_do() -> None:
    from bnfold.frontends.torch.nothing import NOTHING

    with pytest.raises(TypeError, match="merge='never'"):
        NOTHING[0]
    with pytest.raises(TypeError, match="merge='never'"):
        list(NOTHING)


def _normalised(m: Branches, x: Tensor) -> Tensor:
    x = x.double() / 255 if x.dtype == torch.uint8 else x.double()
    return m.a(x) + m.b(x)


@pytest.mark.parametrize(("how", "merged"), [(_by_dtype, 0), (_whole_numbers, 0), (_normalised, 1)])
@pytest.mark.parametrize("verify", [True, False])
def test_inputs_of_another_dtype(how: Forward, merged: int, verify: bool) -> None:
    model = build(Branches(how))
    folded, report = bnfold.fold(model, X, verify=verify)
    assert len(report.merged) == merged
    with torch.no_grad():
        for x in (X, X.float(), (X * 50).to(torch.uint8)):
            torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


def test_paths_by_value_that_were_shown() -> None:
    """Both take the branches, so they are merged."""

    def scaled(m: Branches, x: Tensor) -> Tensor:
        y = m.a(x) + m.b(x)
        return y if x.sum() > 0 else y * 2

    model = build(Branches(scaled))
    assert bnfold.fold(model, X).report.merged == ()
    folded, report = bnfold.fold(model, X, also=[-X])
    assert len(report.merged) == 1
    assert_right(model, folded)


def _slower_counter(m: Branches, x: Tensor) -> Tensor:
    m.count += 1
    return m.a(x) + m.b(x) if m.count % 50 else m.a(x)


@pytest.mark.parametrize("how", [_batch, _slower_counter, _value], ids=lambda how: how.__name__)
def test_the_report_says_that_paths_part(how: Forward) -> None:
    model = build(Branches(how))
    for report in (bnfold.fold(model, X).report, bnfold.inspect(model, X)):
        assert [str(one.reason) for one in report.unmerged] == ["code"]
