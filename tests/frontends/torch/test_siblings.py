"""Linear nodes of an exported program whose outputs are concatenated: one node with all filters."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import bnfold
from bnfold.core.reasons import MergeReason
from tests.frontends.torch.support import build, image
from tests.frontends.torch.test_merge_program import (
    assert_no_rest,
    conv_bn,
    count,
    fold_equal,
    fold_model,
    linears,
)
from tests.pairwise import pairwise


class Joined(nn.Module):
    """Branches of one tensor, concatenated, with an activation behind."""

    def __init__(self, *branches: nn.Module, dim: int = 1) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], self.dim).sigmoid()


def conv(outs: int, kernel: int = 3, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(4, outs, kernel, **{"padding": kernel // 2} | options)


# -------------------------------------------------------------------- what must not


class ReadElsewhere(Joined):
    def forward(self, x: Tensor) -> Any:
        made = [branch(x) for branch in self.branches]
        return torch.cat(made, 1), made[0].tanh()


class Twice(Joined):
    def forward(self, x: Tensor) -> Any:
        first, second = (branch(x) for branch in self.branches)
        return torch.cat([first, second, first], 1)


class WrittenInBetween(Joined):
    def forward(self, x: Tensor) -> Any:
        x = x.clone()
        first = self.branches[0](x)
        x.add_(1.0)
        return torch.cat([first, self.branches[1](x)], 1)


class WrittenBehind(Joined):
    """What the concat reads of the first is another tensor than it made."""

    def forward(self, x: Tensor) -> Any:
        first, second = (branch(x) for branch in self.branches)
        first.sigmoid_()
        return torch.cat([first, second], 1)


class Tied(Joined):
    def __init__(self) -> None:
        super().__init__(conv(3), conv(3))
        self.branches[1].weight = self.branches[0].weight


class OtherInput(Joined):
    def forward(self, x: Tensor) -> Any:
        return torch.cat([self.branches[0](x), self.branches[1](x.tanh())], 1)


@pytest.mark.parametrize(
    "model",
    [
        ReadElsewhere(conv(3), conv(2)),
        Twice(conv(3), conv(2)),
        WrittenInBetween(conv(3), conv(2)),
        WrittenBehind(conv(3), conv(2)),
        Tied(),
        OtherInput(conv(3), conv(2)),
        Joined(conv(3), conv(2, 1)),
        Joined(conv(3), nn.Sigmoid(), conv(2)),
        Joined(conv(3), conv(2, dilation=2, padding=2)),
        Joined(conv(3), conv(2, padding_mode="circular")),
        Joined(conv(4, groups=2), conv(4, groups=2)),
        Joined(conv(3), conv(3), dim=2),
        Joined(nn.Sequential(conv(3), nn.ReLU()), conv(2)),
        Joined(nn.Sequential(conv(3), nn.ReLU()), nn.Sequential(conv(2), nn.ReLU6())),
    ],
    ids=lambda model: type(model).__name__,
)
def test_stays(model: nn.Module) -> None:
    folded, report = fold_model(model, image(2, 4, 6, 6))
    assert not report.merged
    assert count(folded, "conv2d") == 2


# -------------------------------------------------------------------- what must


def act(outs: int, activation: nn.Module, **options: Any) -> nn.Sequential:
    return nn.Sequential(conv_bn(4, outs, **options), activation)


MERGED = [
    Joined(conv(3), conv(2, bias=False)),
    Joined(conv(3, bias=False), conv(2, bias=False), conv(1, bias=False)),
    Joined(conv_bn(4, 3), conv_bn(4, 2)),
    Joined(conv_bn(4, 3, stride=2), conv_bn(4, 2, stride=2), dim=-3),
    Joined(conv(3, padding="same"), conv(2)),
    Joined(act(3, nn.ReLU()), act(2, nn.ReLU())),
    Joined(act(3, nn.ReLU(inplace=True)), act(2, nn.ReLU(inplace=True))),
    Joined(act(3, nn.ReLU6()), act(2, nn.ReLU6()), act(4, nn.ReLU6())),
    nn.Sequential(Joined(conv(3), conv(2)), nn.BatchNorm2d(5)),
]

# Each with open sizes and without, in both layouts: open sizes meet both.
FORMS = pairwise(
    [(at, is_open) for at in range(len(MERGED)) for is_open in (False, True)],
    (torch.contiguous_format, torch.channels_last),
    lambda case: (("model", case[0]), ("open", case[1])),
)


@pytest.mark.parametrize(("case", "layout"), FORMS)
def test_one_is_left(case: tuple[int, bool], layout: torch.memory_format) -> None:
    at, is_open = case
    x = image(2, 4, 6, 6).contiguous(memory_format=layout)
    model = build(copy.deepcopy(MERGED[at])).to(memory_format=layout)
    sizes = ({0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO},) if is_open else None
    program = torch.export.export(model, (x,), dynamic_shapes=sizes)
    folded, report = fold_equal(program, x)
    assert (linears(folded), count(folded, "cat")) == (1, 0)
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        assert_no_rest(folded)  # of those that a fold takes out, buffers stay
    for node in folded.graph.nodes:
        if node.op == "call_function" and "conv" in str(node.target):
            assert node.meta["val"].shape[1] == sum(
                tensor.shape[0] for tensor in folded.parameters() if tensor.ndim == 4
            )
    _, twice = bnfold.fold(folded)
    assert (twice.removed, twice.merged) == (0, ())
    if is_open:
        wide = image(3, 4, 7, 9).contiguous(memory_format=layout)
        torch.testing.assert_close(folded.module()(wide), model(wide), rtol=1e-9, atol=1e-9)
    assert report.merged


def test_the_concat_keeps_others() -> None:
    model = Joined(nn.Tanh(), conv(3), conv(2), conv(1, 1), conv(2, 1), nn.Sigmoid())
    folded, report = fold_model(model, image(2, 4, 6, 6))
    assert (linears(folded), count(folded, "cat")) == (2, 1)
    assert len(report.merged) == 2
    assert_no_rest(folded)
    shapes = [tuple(n.meta["val"].shape) for n in folded.graph.nodes if "conv" in str(n.target)]
    assert shapes == [(2, 5, 6, 6), (2, 3, 6, 6)]


@pytest.mark.parametrize("inplace", [False, True])
def test_activations_in_a_concat_that_keeps_others(inplace: bool) -> None:
    model = Joined(act(3, nn.ReLU(inplace=inplace)), act(2, nn.ReLU(inplace=inplace)), nn.Tanh())
    folded, _ = fold_model(model, image(2, 4, 6, 6))
    assert (linears(folded), count(folded, "cat"), count(folded, "relu")) == (1, 1, 1)


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4)])
def test_matrices(shape: tuple[int, ...]) -> None:
    model = Joined(nn.Linear(4, 3), nn.Linear(4, 2, bias=False), dim=-1)
    folded, _ = fold_model(model, image(*shape))
    assert (linears(folded), count(folded, "cat")) == (1, 0)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(nn.Conv1d, (2, 4, 6)), (nn.Conv3d, (1, 4, 4, 4, 4)), (nn.Conv2d, (4, 5, 5))],
)
def test_other_ranks(kind: Any, shape: tuple[int, ...]) -> None:
    axis = 0 if kind is nn.Conv2d else 1  # an image without a batch
    model = Joined(kind(4, 3, 3, padding=1), kind(4, 2, 3, padding=1), dim=axis)
    folded, _ = fold_model(model, image(*shape))
    assert linears(folded) == 1


def test_that_it_can_be_turned_off() -> None:
    program = torch.export.export(build(Joined(conv(3), conv(2))), (image(2, 4, 6, 6),))
    folded, report = bnfold.fold(program, merge="never")
    assert (linears(folded), report.merged) == (2, ())


def test_a_module_says_that_its_program_merges() -> None:
    model = build(Joined(conv(3), conv(2)))
    report = bnfold.inspect(model, image(2, 4, 6, 6))
    (left,) = report.unmerged
    assert left.reason is MergeReason.CODE
    assert "exported program" in left.sentence
