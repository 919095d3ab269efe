"""Very deep and very wide modules: no recursion, no time that grows with the square."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

import bnfold
from tests.frontends import deep
from tests.frontends.torch.support import assert_same, image, run, run_counted


def norm_of(part: deep.Norm) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(len(part.gamma), eps=part.eps, dtype=torch.float64)
    norm.weight.data = torch.from_numpy(part.gamma)
    norm.bias.data = torch.from_numpy(part.beta)
    norm.running_mean, norm.running_var = torch.from_numpy(part.mean), torch.from_numpy(part.var)
    return norm.eval()


def conv_of(kernel, groups: int = 1) -> nn.Conv2d:
    outs, ins = kernel.shape[:2]
    conv = nn.Conv2d(ins * groups, outs, 1, groups=groups, bias=False, dtype=torch.float64)
    conv.weight.data = torch.from_numpy(kernel)
    return conv


def chain(count: int = deep.CHAIN_BLOCKS) -> nn.Module:
    layers: list[nn.Module] = []
    for block in deep.chain(count):
        layers += [conv_of(block.kernel, len(block.kernel)), norm_of(block.norm), nn.ReLU()]
    return nn.Sequential(*layers).eval()


class Branches(nn.Module):
    """A residual stream."""

    def __init__(self, count: int = deep.BRANCH_BLOCKS) -> None:
        super().__init__()
        blocks = deep.branches(count)
        self.stem = conv_of(blocks[0].kernel)
        self.blocks = nn.ModuleList(
            nn.Sequential(norm_of(block.norm), nn.ReLU(), conv_of(block.kernel)) for block in blocks
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return x


def assert_folds(model: nn.Module, x: Tensor) -> bnfold.FoldReport:
    folded, report = bnfold.fold(model, x)
    other = x.roll(1, 1) * 1.3 + 0.1
    made, batch_norms = run_counted(folded, other)
    assert not batch_norms
    assert_same(run(model, other), made, deep.TOLERANCE)
    return report


def positive(*shape: int) -> Tensor:
    return image(*shape).abs() + 0.5


def test_a_chain_of_two_thousand_modules():
    report = assert_folds(chain(), positive(1, 2, 1, 1))
    assert report.removed == deep.CHAIN_BLOCKS
    assert len(json.loads(report.to_json())["items"]) == deep.CHAIN_BLOCKS


def test_a_residual_stream_through_two_thousand_nodes():
    report = assert_folds(Branches().eval(), image(1, 2, 1, 1))
    assert report.removed == deep.BRANCH_BLOCKS


def test_a_hundred_thousand_channels():
    first, second, last = deep.wide()
    layers = [conv_of(first.kernel), norm_of(first.norm), nn.ReLU()]
    layers += [conv_of(second.kernel, deep.WIDE), norm_of(second.norm), nn.ReLU()]
    assert_folds(nn.Sequential(*layers, conv_of(last)).eval(), image(1, 2, 1, 1))


@contextmanager
def recursion_limited(frames: int) -> Iterator[None]:
    """So many calls inside of each other, and no more: PyTorch itself takes most of them."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + frames)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def test_an_exported_program_deeper_than_python_recurses():
    """PyTorch's exporting grows with the square, so Python's limit comes down to the program."""
    model, x = chain(120), positive(1, 2, 1, 1)
    program = torch.export.export(model, (x,))
    with recursion_limited(250):
        folded, report = bnfold.fold(program)
    assert report.removed == 120
    assert_same(run(model, x * 2), run(folded.module(), x * 2), deep.TOLERANCE)
