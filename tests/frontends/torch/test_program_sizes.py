"""On which other sizes an exported program is run: what it declares, a symbol or made of one."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import bnfold
from bnfold.frontends.torch.program_sizes import other_sizes
from bnfold.frontends.torch.runner import program_runner
from tests.frontends.torch.support import assert_same, build, image, run

SIZES: dict[str, tuple[tuple[int, ...], Any, tuple[int, ...]]] = {
    # the example's shape, what is open, the first other shape
    "a symbol": ((2, 3, 8, 8), {2: Dim("h", min=3)}, (2, 3, 9, 8)),
    "derived alone": ((2, 3, 8, 8), {2: 2 * Dim("h", min=2, max=64)}, (2, 3, 10, 8)),
    "beside": ((2, 3, 8, 8), {0: Dim("n"), 2: 2 * Dim("h", min=2, max=64)}, (3, 3, 10, 8)),
    "with a summand": ((2, 3, 10, 8), {2: 2 * Dim("h", min=1, max=9) + 2}, (2, 3, 12, 8)),
    "at the end": ((2, 3, 8, 8), {2: 2 * Dim("h", min=2, max=4)}, (2, 3, 6, 8)),
    "two of one": (
        (2, 3, 10, 8),
        {2: 2 * Dim("h", min=2, max=9) + 2, 3: 2 * Dim("h", min=2, max=9)},
        (2, 3, 12, 10),
    ),
    "on both sides": (
        (2, 3, 8, 8),
        {2: Dim("h", min=8, max=9), 3: Dim("w", min=7, max=8)},
        (2, 3, 9, 7),
    ),
}


def net() -> nn.Module:
    return build(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)))


def exported(case: str) -> tuple[ExportedProgram, Tensor]:
    shape, opened, _ = SIZES[case]
    x = image(*shape)
    return torch.export.export(net(), (x,), dynamic_shapes=(opened,)), x


def test_nothing_is_open() -> None:
    program = torch.export.export(net(), (image(2, 3, 8, 8),))
    assert list(other_sizes(program, [image(2, 3, 8, 8)])) == []


def test_the_range_has_one_length() -> None:
    program = torch.export.export(
        net(), (image(2, 3, 8, 8),), dynamic_shapes=({2: Dim("h", min=8, max=9)},)
    )
    shapes = {choice[0] for choice in other_sizes(program, [image(2, 3, 8, 8)])}
    assert shapes == {(2, 3, 9, 8)}


@pytest.mark.parametrize("case", SIZES)
def test_the_nearest_other_size(case: str) -> None:
    program, x = exported(case)
    choices = [choice[0] for choice in other_sizes(program, [x])]
    assert choices[0] == SIZES[case][2]
    for shape in choices:
        program.module()(torch.zeros(shape, dtype=torch.float64))  # all are ones that it takes


@pytest.mark.parametrize("saved", [False, True])
@pytest.mark.parametrize("case", SIZES)
def test_the_fold_is_proven_on_two_sizes(case: str, saved: bool) -> None:
    program, _ = exported(case)
    if saved:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        buffer.seek(0)
        program = torch.export.load(buffer)
    folded, report = bnfold.fold(program)
    assert report.removed == 1
    assert report.verdict is not None
    outputs = [o.shape for o in report.verdict.outputs if "input" not in o.name]
    assert len(outputs) == len(set(outputs)) == 2
    for shape in (SIZES[case][0], SIZES[case][2]):
        y = image(*shape, seed=5)
        assert_same(run(program.module(), y), run(folded.module(), y), 1e-9)


@pytest.mark.parametrize("case", SIZES)
def test_open_sizes_stay_open_without_example_inputs(case: str) -> None:
    program, _ = exported(case)
    program._example_inputs = None
    folded, report = bnfold.fold(program)
    assert report.verdict is not None
    assert len({o.shape for o in report.verdict.outputs if "input" not in o.name}) == 2
    other = image(*SIZES[case][2])
    assert_same(run(program.module(), other), run(folded.module(), other), 1e-9)


@pytest.mark.parametrize("case", ["derived alone", "beside", "with a summand", "two of one"])
def test_a_verification_runs_on_other_sizes(case: str) -> None:
    program, x = exported(case)
    others = program_runner(program, None, "the program").other_shapes
    assert others
    for (shape,) in others:
        assert shape != x.shape
        program.module()(torch.zeros(shape, dtype=torch.float64))


def test_two_inputs_and_one_that_is_no_tensor() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor, factor: int, y: Tensor) -> Tensor:
            return self.bn(self.conv(torch.cat([x, y], 2))) * factor

    height = Dim("h", min=2, max=64)
    shapes = ({2: 2 * height}, None, {2: 2 * height + 2})
    x, y = image(2, 3, 8, 5), image(2, 3, 10, 5)
    program = torch.export.export(build(Sum()), (x, 3, y), dynamic_shapes=shapes)
    first = next(other_sizes(program, [x, 3, y]))
    assert first == {0: (2, 3, 10, 5), 1: (2, 3, 12, 5)}
    assert bnfold.fold(program).report.removed == 1
