"""Borders that a program writes around what it pads: which are linear ops, and which are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # PyTorch's own name for it
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

import bnfold
from bnfold import FoldReport
from bnfold.core.reasons import MergeReason
from tests.frontends.torch.support import build, image
from tests.frontends.torch.test_merge_program import count, linears

Write = Callable[["Block", Tensor, Tensor], Tensor]
"""Writes a border, given what is padded and what the BatchNorm makes of zeros."""


def strips(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    """As published."""
    padded[:, :, 0:1, :] = value
    padded[:, :, -1:, :] = value
    padded[:, :, :, 0:1] = value
    padded[:, :, :, -1:] = value
    return padded


class Block(nn.Module):
    """1x1, BatchNorm, a border, 3x3; beside a 3x3 that pads."""

    def __init__(self, write: Write = strips, *, bias: bool = False, pad: float = 0.0) -> None:
        super().__init__()
        self.first, self.bn = nn.Conv2d(4, 4, 1, bias=bias), nn.BatchNorm2d(4)
        self.second, self.wide = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3, padding=1)
        self.write, self.pad = write, pad

    def forward(self, x: Tensor) -> Tensor:
        bn, made = self.bn, self.bn(self.first(x))
        value = bn.bias.detach() - bn.running_mean * bn.weight.detach() / torch.sqrt(
            bn.running_var + bn.eps
        )
        padded = self.write(self, F.pad(made, [1] * 4, value=self.pad), value.view(1, -1, 1, 1))
        return self.wide(x) + self.second(padded)


def folded(
    model: nn.Module, *, is_decomposed: bool = False, is_open: bool = True
) -> tuple[ExportedProgram, FoldReport]:
    """Folded, and compared on two sizes."""
    build(model)
    x = image(2, 4, 6, 7)
    shapes = ({2: Dim("h", min=4, max=64), 3: Dim("w", min=4, max=64)},) if is_open else None
    program = torch.export.export(model, (x,), dynamic_shapes=shapes)
    program = program.run_decompositions() if is_decomposed else program
    made, report = bnfold.fold(program)
    for each in (x, image(2, 4, 9, 5)) if is_open else (x,):
        torch.testing.assert_close(made.module()(each), model(each), rtol=1e-9, atol=1e-9)
    return made, report


# -------------------------------------------------------------------- what must not merge


def one_is_missing(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    padded[:, :, 0:1, :] = value
    padded[:, :, -1:, :] = value
    padded[:, :, :, 0:1] = value
    return padded


def one_is_wider(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    padded[:, :, 0:2, :] = value
    return strips(block, padded, value)


def one_is_elsewhere(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    padded[:, :, 2:3, :] = value
    return strips(block, padded, value)


def one_is_something_else(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    padded[:, :, 0:1, :] = value + 1.0
    padded[:, :, -1:, :] = value
    padded[:, :, :, 0:1] = value
    padded[:, :, :, -1:] = value
    return padded


def something_else(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    return strips(block, padded, value * (1.0 + 1e-6))


def by_the_size(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    return strips(block, padded, value * (padded.shape[2] / 8))


def of_one_channel(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    return strips(block, padded, value[:, :1])


def along_the_width(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    padded[:, :, 0:1, :] = torch.linspace(0, 1, 9)
    return padded


def along_the_height(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    """As many rows as channels, if the sizes are these."""
    padded[:, :, 0:1, :] = value
    padded[:, :, -1:, :] = value
    padded[:, :, 1:5, 0:1].copy_(value.reshape(1, 4, 1))
    padded[:, :, :, -1:] = value
    return padded


def read_before(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    before = padded.clone()
    return strips(block, padded, value) + before


def read_in_between(block: Block, padded: Tensor, value: Tensor) -> Tensor:
    padded[:, :, 0:1, :] = value
    before = torch.relu(padded)
    return strips(block, padded, value) + before


@pytest.mark.parametrize(
    ("write", "is_decomposed"),
    [
        *((one_is_missing, True), (one_is_wider, False), (one_is_elsewhere, True)),
        *((one_is_something_else, False), (something_else, True), (by_the_size, False)),
        *((of_one_channel, True), (along_the_height, False), (along_the_height, True)),
        *((read_before, False), (read_in_between, False), (read_in_between, True)),
    ],
)
def test_it_stays(write: Write, is_decomposed: bool) -> None:
    made, report = folded(Block(write), is_decomposed=is_decomposed)
    assert linears(made) == 3 and not report.merged


def test_a_border_of_several_values_stays() -> None:
    made, report = folded(Block(along_the_width), is_open=False)
    assert linears(made) == 3 and not report.merged


def test_a_bias_in_front_of_the_batch_norm_stays() -> None:
    """The border is not what the two make of zeros. The BatchNorm goes to what is behind it."""
    made, report = folded(Block(bias=True))
    assert linears(made) == 3
    assert [left.reason for left in report.unmerged] == [MergeReason.PADDING]


def test_zeros_around_a_bias_stay() -> None:
    made, report = folded(Block(lambda block, padded, value: padded))
    assert linears(made) == 3 and report.removed == 1


# -------------------------------------------------------------------- what must


class Lines(nn.Module):
    """Of as many places as channels, and a border that lies along the places."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, (1, 3))
        self.wide, self.shape = nn.Conv2d(4, 4, (1, 3), padding=(0, 1)), shape

    def forward(self, x: Tensor) -> Tensor:
        padded = F.pad(self.first(x), (1, 1))
        border = self.first.bias.view(self.shape)
        padded[..., :1].copy_(border)
        padded[..., -1:].copy_(border)
        return self.wide(x) + self.second(padded)


@pytest.mark.parametrize(("shape", "left"), [((1, 4, 1), 3), ((4, 1, 1), 3), ((1, 4, 1, 1), 1)])
def test_along_which_axis_a_border_lies(shape: tuple[int, ...], left: int) -> None:
    model = build(Lines(shape))
    x = image(2, 4, 4, 6)
    made, _ = bnfold.fold(torch.export.export(model, (x,)))
    torch.testing.assert_close(made.module()(x), model(x), rtol=1e-9, atol=1e-9)
    assert linears(made) == left


@pytest.mark.parametrize("is_decomposed", [False, True])
@pytest.mark.parametrize("pad", [0.0, 2.0])
def test_what_a_batch_norm_makes_of_zeros(is_decomposed: bool, pad: float) -> None:
    made, report = folded(Block(pad=pad), is_decomposed=is_decomposed)
    assert linears(made) == 1 and count(made, "pad", "slice", "copy", "sqrt") == 0
    assert report.removed == report.total == 1


class EdgeOriented(nn.Module):
    """A branch for super resolution: a bias around a 1x1, fixed taps times a learned factor."""

    def __init__(self, *, is_stored_in_half: bool = False) -> None:
        super().__init__()
        self.wide, self.first = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.scale = nn.Parameter(torch.randn(4, 1, 1, 1))
        self.bias = nn.Parameter(torch.randn(4))
        mask = torch.tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
        self.register_buffer("mask", mask.expand(4, 1, 3, 3).clone())
        self.is_stored_in_half = is_stored_in_half

    def forward(self, x: Tensor) -> Tensor:
        inner = F.conv2d(x, self.first.weight, self.first.bias)
        padded = F.pad(inner, (1, 1, 1, 1), "constant", 0)
        bias = self.first.bias.view(1, -1, 1, 1)
        padded[:, :, 0:1, :] = bias
        padded[:, :, -1:, :] = bias
        padded[:, :, :, 0:1] = bias
        padded[:, :, :, -1:] = bias
        mask = self.mask.half().double() if self.is_stored_in_half else self.mask
        return self.wide(x) + F.conv2d(padded, self.scale * mask, self.bias, groups=4) + x


@pytest.mark.parametrize("is_decomposed", [False, True])
def test_a_bias_around_a_convolution(is_decomposed: bool) -> None:
    made, report = folded(EdgeOriented(), is_decomposed=is_decomposed)
    assert linears(made) == 1 and count(made, "add", "mul", "pad") == 0
    assert report.merged


def test_a_computed_weight_of_fewer_bits_stays() -> None:
    made, _ = folded(EdgeOriented(is_stored_in_half=True))
    assert linears(made) > 1


def test_sizes_without_a_bound() -> None:
    block = build(Block())
    x = image(2, 4, 6, 7)
    sizes = {2: Dim.AUTO, 3: Dim.AUTO}
    program = torch.export.export(block, (x,), dynamic_shapes=(sizes,))
    made, report = bnfold.fold(program)
    assert len(report.merged) == 1
    for each in (x, image(2, 4, 9, 5)):
        torch.testing.assert_close(made.module()(each), block(each), rtol=1e-9, atol=1e-9)
