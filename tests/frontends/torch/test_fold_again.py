"""A fold of a module leaves nothing that another one would find."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import build, image


class Net(nn.Module):
    """What the forms below are made of."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.BatchNorm2d(3) for _ in range(3))
        self.left, self.right = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.padded, self.act = nn.Conv2d(3, 3, 3, padding=1), nn.LeakyReLU(0.1)
        self.run = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def beside_itself(n: Net, x: Tensor) -> Tensor:
    y = n.first(x)
    return n.second(n.left(y) + y)


def two_beside_itself(n: Net, x: Tensor) -> Tensor:
    y = n.first(x)
    return n.third(n.second(n.left(y) + y) + n.right(x))


def behind_an_activation(n: Net, x: Tensor) -> Tensor:
    return n.right(n.second(n.act(n.first(n.left(x)))))


def padded(n: Net, x: Tensor) -> Tensor:
    return n.second(n.padded(n.first(n.left(x)) + n.right(x)))


def in_a_row(n: Net, x: Tensor) -> Tensor:
    return n.third(n.second(n.first(x)))


def before_a_sum(n: Net, x: Tensor) -> Tensor:
    return n.third(n.first(n.left(x)) + n.second(n.right(x)) + x)


FORMS = (
    beside_itself,
    two_beside_itself,
    behind_an_activation,
    padded,
    in_a_row,
    before_a_sum,
)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("zeros", [0, 1, 3])
@pytest.mark.parametrize("form", FORMS)
def test_a_second_fold_changes_nothing(
    form: Callable[[Net, Tensor], Tensor], zeros: int, inplace: bool
) -> None:
    model = build(Net(form))
    for norm in (model.first, model.second):
        norm.weight.data[:zeros] = 0.0
    x = image(2, 3, 5, 5)
    expected, planned = model(x), bnfold.inspect(model, x)
    folded, report = bnfold.fold(model, x, inplace=inplace)
    torch.testing.assert_close(folded(x), expected, rtol=1e-12, atol=1e-12)
    assert report.verdict is not None
    assert report.verdict.equal
    assert [item.is_removed for item in planned.items] == [i.is_removed for i in report.items]
    assert planned.merged == report.merged
    again = bnfold.inspect(folded, x)
    assert not again.removed, f"{report}\n{again}"


def test_a_step_behind_merged_ones_is_merged_with_them() -> None:
    report = bnfold.fold(build(Net(beside_itself)), image(2, 3, 5, 5)).report
    assert report.removed == 2
    (merged,) = report.merged
    assert merged.parts[-1] == "second"
