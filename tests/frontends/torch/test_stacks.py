"""Sums over a stack: which are sums of what is stacked, and what becomes of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import bnfold
from bnfold import FoldReport
from tests.frontends.torch.support import build, image, in_core_aten
from tests.frontends.torch.test_merge_program import count, linears


def channels(xs: Sequence[Tensor], *sizes: int) -> Tensor:
    """Side by side along the channels, which are parted again."""
    joined = torch.cat(list(xs), 1)
    return joined.view(joined.shape[0], *sizes, *joined.shape[2:])


class Stacked(nn.Module):
    """3x3, 1x1 and a BatchNorm of one tensor, and what may be told of each."""

    def __init__(
        self,
        add: Callable[[Sequence[Tensor]], Tensor],
        last: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.point, self.last = nn.Conv2d(4, 4, 1), last or nn.BatchNorm2d(4)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.add([self.wide(x), self.point(x), self.last(x)]))


def fold_program(
    model: nn.Module, *, is_decomposed: bool = False
) -> tuple[ExportedProgram, FoldReport]:
    build(model)
    x = image(2, 4, 6, 7)
    shapes = ({2: Dim("h", min=3, max=64)},)
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    made, report = bnfold.fold(in_core_aten(program) if is_decomposed else program)
    for each in (x, image(2, 4, 9, 7)):
        torch.testing.assert_close(made.module()(each), model(each), rtol=1e-9, atol=1e-9)
    return made, report


ELSEWHERE = [
    pytest.param(lambda xs: torch.stack(xs, 1).sum(2), id="another axis"),
    pytest.param(lambda xs: torch.stack(xs).sum(0, keepdim=True), id="an axis that stays"),
    pytest.param(lambda xs: torch.stack(xs).sum((0, 1)), id="two axes"),
    pytest.param(lambda xs: torch.stack(xs).sum(), id="all axes"),
    pytest.param(lambda xs: torch.stack(xs).sum(0, dtype=torch.float32), id="another dtype"),
    pytest.param(lambda xs: (s := torch.stack(xs)).sum(0) + s.amax(0), id="read elsewhere"),
    pytest.param(lambda xs: torch.cat(list(xs)).sum(0), id="an axis that they have"),
    pytest.param(lambda xs: torch.cat([x[None] for x in xs], 1).sum(1), id="an axis behind"),
    pytest.param(lambda xs: torch.cat([x[:, None] for x in xs], 0).sum(0), id="an axis in front"),
    pytest.param(lambda xs: channels(xs, 3, 4).sum(2), id="parts of channels"),
    pytest.param(lambda xs: channels(xs, 4, 3).sum(1), id="every third channel"),
    pytest.param(lambda xs: channels(xs, 6, 2).sum(1), id="halves of channels"),
]


@pytest.mark.parametrize("add", ELSEWHERE)
def test_it_is_no_sum_of_them(add) -> None:
    made, report = fold_program(Stacked(add))
    assert linears(made) == 2 and not report.merged


@pytest.mark.parametrize("add", ELSEWHERE)
def test_a_module_of_which_it_is_no_sum(add) -> None:
    model = build(Stacked(add))
    x = image(2, 4, 6, 7)
    assert torch.allclose(bnfold.fold(model, x).model(x), model(x))


SUMS = [
    lambda xs: torch.stack(xs).sum(0),
    lambda xs: torch.sum(torch.stack(xs, dim=2), dim=2),
    lambda xs: torch.stack(xs, -1).sum(-1),
    lambda xs: torch.stack(xs, dim=1).mean(dim=1),
]


WRITTEN_OUT = [
    lambda xs: torch.cat([x.unsqueeze(1) for x in xs], 1).sum(1),
    lambda xs: torch.cat([x.unsqueeze(-1) for x in xs], -1).mean(-1),
    lambda xs: channels(xs, 3, 4).sum(1),
    lambda xs: torch.cat(list(xs), 2).view(2, 4, 3, -1, 7).sum(2),
    lambda xs: torch.cat(list(xs), 1).unflatten(1, (3, 4)).sum(1),
    lambda xs: torch.cat(list(xs), 1).reshape(2, 3, 4, -1, 7).sum(1),
    lambda xs: torch.cat([xs[0]]) + torch.stack([xs[1]]).sum(0) + torch.cat([xs[2]], 1),
    lambda xs: torch.stack([xs[0], torch.stack(list(xs[1:])).sum(0)], 1).sum(1),
]


@pytest.mark.parametrize(
    ("add", "is_decomposed"),
    [
        *((add, number % 2 == 0) for number, add in enumerate(SUMS)),
        *((add, number % 2 == 1) for number, add in enumerate(WRITTEN_OUT)),
        *((WRITTEN_OUT[0], True), (WRITTEN_OUT[6], True)),
    ],
)
def test_branches_are_one(add, is_decomposed: bool) -> None:
    made, report = fold_program(Stacked(add), is_decomposed=is_decomposed)
    assert linears(made) == 1 and count(made, "stack", "sum", "mean", "cat", "view") == 0
    assert report.removed == report.total == 2


class Weighted(Stacked):
    """What is stacked is weighted before it is added up."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(lambda xs: (torch.stack(list(xs)) * self.weight).sum(0))
        self.weight = nn.Parameter(weight, requires_grad=False)


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_a_weighted_stack_at_once(is_decomposed: bool) -> None:
    weighted = Weighted(torch.tensor([0.1, 0.9, 0.4]).reshape(3, 1, 1, 1, 1))
    made, report = fold_program(weighted, is_decomposed=is_decomposed)
    assert report.removed == report.total and linears(made) == 1
    _, again = bnfold.fold(made)
    assert not again.merged and count(made, "stack", "cat", "mul") == 0


def test_what_is_something_else_in_a_decomposed_stack_stays() -> None:
    """No node lists what is stacked as it is: all of it goes, or nothing."""
    made, report = fold_program(Stacked(SUMS[0], nn.Sigmoid()), is_decomposed=True)
    assert linears(made) == 2 and not report.merged


@pytest.mark.parametrize("add", SUMS + WRITTEN_OUT[:2])
def test_a_module_keeps_its_sum_without_batch_norms(add) -> None:
    model = build(Stacked(add))
    x = image(2, 4, 6, 7)
    folded, report = bnfold.fold(model, x)
    assert report.removed == report.total == 2
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("add", SUMS[:3])
def test_what_is_something_else_stays(add) -> None:
    """A stack of two is left, or, where all but one merge, that one alone."""
    made, _ = fold_program(Stacked(add, nn.Sigmoid()))
    assert linears(made) == 1 and count(made, "stack") == 1
    stack = next(node for node in made.graph.nodes if "stack" in str(node.target))
    assert len(stack.args[0]) == 2 and 2 in stack.meta["val"].shape


def test_a_mean_of_fewer_stays() -> None:
    made, report = fold_program(Stacked(SUMS[3], nn.Sigmoid()))
    assert linears(made) == 2 and not report.merged


class WrittenInBetween(Stacked):
    """What is stacked is a copy: the operand holds something else by the time of the sum."""

    def __init__(self) -> None:
        super().__init__(SUMS[0])

    def forward(self, x: Tensor) -> Tensor:
        other = torch.sigmoid(x)
        stacked = torch.stack([self.wide(x), self.point(x), other])
        other.mul_(2.0)
        return stacked.sum(0) - other.amax()


class LeftAlone(WrittenInBetween):
    """Of the stack one operand is left, which holds something else by then."""

    def forward(self, x: Tensor) -> Tensor:
        other = torch.sigmoid(x)
        stacked = torch.stack([self.wide(x), other])
        other.mul_(2.0)
        return stacked.sum(0) + self.point(x)


class WrittenBehindItsAxis(WrittenInBetween):
    """What gets an axis of its own is written to before it is joined with others."""

    def forward(self, x: Tensor) -> Tensor:
        wide, point = self.wide(x), self.point(x)
        parts = [wide[None], point[None]]
        wide.mul_(2.0)
        return torch.cat(parts).sum(0)


class SourceWritten(WrittenInBetween):
    """What the branches read is written to before they are added up."""

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([self.wide(x), self.point(x)])
        x.mul_(2.0)
        return stacked.sum(0)


KINDS = [WrittenInBetween, LeftAlone, SourceWritten]


@pytest.mark.parametrize("kind", [*KINDS, WrittenBehindItsAxis])
def test_what_is_written_to_behind_the_stack(kind: type[nn.Module]) -> None:
    model = build(kind())
    x = image(2, 4, 6, 7)
    program = torch.export.export(model, (x.clone(),))
    expected = program.module()(x.clone())
    made, _ = bnfold.fold(program)
    assert linears(made) == (1 if kind in KINDS else 2)
    torch.testing.assert_close(made.module()(x.clone()), expected, rtol=1e-9, atol=1e-9)
