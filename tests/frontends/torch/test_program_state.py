"""Exported programs that keep something: what a run writes to, draws or returns is no constant."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import bnfold
from bnfold import FoldReport, Reason
from tests.frontends.torch.support import assert_same, build, image, in_core_aten


class Net(nn.Module):
    """Convolution, BatchNorm, head, and what a case does with them and its buffer."""

    def __init__(self, body) -> None:
        super().__init__()
        self.conv, self.bn, self.head = (
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 1),
        )
        self.register_buffer("state", torch.ones(1, 4, 1, 1))
        self.register_buffer("hidden", torch.zeros(1, 4, 1, 1), persistent=False)
        self.body = body

    def forward(self, x: Tensor):
        return self.body(self, x)


@torch.no_grad()
def runs(program: ExportedProgram, count: int = 3) -> list[list[Tensor]]:
    """The results of several runs in a row."""
    module = program.module()
    found = []
    for number in range(count):
        result = module(image(2, 3, 6, 6, seed=number))
        found.append(list(result) if isinstance(result, tuple) else [result])
    return [[tensor.clone() for tensor in one] for one in found]


def exported(model: nn.Module, *, decomposed: bool = False, **options) -> ExportedProgram:
    program = torch.export.export(copy.deepcopy(model), (image(2, 3, 6, 6),), **options)
    return in_core_aten(program) if decomposed else program


def fold_alike(model: nn.Module, *, decomposed: bool = False) -> FoldReport:
    """Fold the program; original and folded, run in turn, do what a fresh one does."""
    return fold_program_alike(exported(model, decomposed=decomposed))


def fold_program_alike(program: ExportedProgram) -> FoldReport:
    expected = runs(copy.deepcopy(program))
    folded, report = bnfold.fold(program)
    for candidate, relative in ((folded, 1e-9), (program, 0.0)):
        for one, other in zip(expected, runs(candidate), strict=True):
            assert_same(one, other, relative)
    return report


# -------------------------------------------------------------------- state


def factor(net, x):
    y = net.bn(net.conv(x) * net.state)
    net.state.add_(0.5)
    return net.head(y)


def summand(net, x):
    y = net.bn(net.conv(x) + net.hidden)
    net.hidden.add_(0.25)
    return net.head(y)


def average(net, x):
    y = net.bn(net.conv(x) + net.hidden)
    net.hidden.copy_(torch.tanh(y.mean((0, 2, 3), keepdim=True)))
    return net.head(y)


def through_a_view(net, x):
    y = net.bn(net.conv(x) * net.state)
    net.state.view(-1)[1:3].mul_(1.5)
    return net.head(y)


def written_first(net, x):
    net.state.mul_(1.25)
    return net.head(net.bn(net.conv(x) * net.state))


def kept_value(net, x):
    """What is written is stored as it is, though nobody returns it."""
    y = net.bn(net.conv(x))
    before = net.hidden.clone()
    net.hidden.copy_(y.amax((0, 2, 3), keepdim=True))
    return net.head(y) + before


def returned(net, x):
    y = net.head(net.bn(net.conv(x) * net.state))
    net.state.add_(0.5)
    return y, net.state


def bias_that_moves(net, x):
    bias = net.state.view(-1)
    y = torch.nn.functional.conv2d(x, net.conv.weight, bias, padding=1)
    net.state.add_(0.5)
    return net.head(net.bn(y))


def weight_that_moves(net, x):
    y = net.head(net.bn(net.conv(x)))
    with torch.no_grad():
        net.head.weight.mul_(1.5)
    return y


def only_state(net, x):
    """A BatchNorm of what the program keeps."""
    y = net.bn(net.state.expand(2, 4, 6, 6))
    net.state.add_(0.5)
    return net.head(y) + net.conv(x)


STATE = {
    case.__name__: case
    for case in (
        *(factor, summand, average, through_a_view, written_first, kept_value, returned),
        *(bias_that_moves, weight_that_moves, only_state),
    )
}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", STATE)
def test_what_a_run_writes_to_is_no_constant(name, decomposed):
    fold_alike(build(Net(STATE[name])), decomposed=decomposed)


def test_a_factor_that_moves_is_not_removed_but_the_batch_norm_is():
    report = fold_alike(build(Net(factor)))
    assert [(item.kind, item.is_removed) for item in report.items] == [("batch_norm", True)]


def test_memory_that_is_written_to_is_not_shared():
    program = exported(build(Net(factor)))
    folded, _ = bnfold.fold(program)
    before = program.state_dict["state"].clone()
    runs(folded)
    assert torch.equal(program.state_dict["state"], before)
    # What nobody writes to needs no second copy.
    assert folded.state_dict["head.weight"] is program.state_dict["head.weight"]


@pytest.mark.parametrize("decomposed", [False, True])
def test_statistics_that_the_program_writes_to(decomposed):
    def body(net, x):
        y = net.head(net.bn(net.conv(x)))
        net.bn.running_mean.mul_(0.5)
        return y

    report = fold_alike(build(Net(body)), decomposed=decomposed)
    assert [item.outcome.reason for item in report.items] == [Reason.BATCH_STATISTICS]
    assert "writes to its statistics" in (report.items[0].outcome.detail or "")


# -------------------------------------------------------------------- returned


RETURNED = {
    "weight": lambda net: net.conv.weight,
    "detached": lambda net: net.conv.weight.detach(),
    "shape": lambda net: net.conv.weight.view(4, -1),
    "part": lambda net: net.conv.weight[1],
    "sign": lambda net: net.conv.weight.sign(),
    "transposed": lambda net: net.head.weight.transpose(0, 1),
    "gamma": lambda net: net.bn.weight,
    "mean": lambda net: net.bn.running_mean,
    "bias": lambda net: net.head.bias,
    "norm": lambda net: net.conv.weight.square().sum(),
}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", RETURNED)
def test_a_weight_that_is_returned_stays_what_it_is(name, decomposed):
    pick = RETURNED[name]
    model = build(Net(lambda net, x: (net.head(net.bn(net.conv(x))), pick(net))))
    report = fold_alike(model, decomposed=decomposed)
    assert report.removed == 1  # the other convolution takes it, or this one if it may change


# -------------------------------------------------------------------- chance


CHANCE = {
    "order": lambda net, y: y[:, torch.randperm(4)],
    "factor": lambda net, y: y * torch.rand(1, 4, 1, 1, dtype=y.dtype),
    "like": lambda net, y: y + torch.randn_like(y[:1, :, :1, :1]),
    "mask": lambda net, y: y * torch.bernoulli(torch.full((1, 4, 1, 1), 0.5, dtype=y.dtype)),
    "kernel": lambda net, y: nn.functional.conv2d(
        y, torch.rand(4, 1, 1, 1, dtype=y.dtype), groups=4
    ),
    "dropped weight": lambda net, y: y * nn.functional.dropout(net.state, 0.5, training=True),
    "dropout": lambda net, y: nn.functional.dropout(y, 0.5, training=True),
    "channels": lambda net, y: nn.functional.dropout2d(y, 0.5, training=True),
    "row": lambda net, y: y[:, torch.randint(0, 4, (4,))],
    "normal": lambda net, y: y + torch.normal(0.0, 1.0, (1, 4, 1, 1)).to(y.dtype),
}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", CHANCE)
def test_what_is_drawn_at_random_is_no_constant(name, decomposed):
    body = CHANCE[name]
    model = build(Net(lambda net, x: net.head(body(net, net.bn(torch.sigmoid(net.conv(x)))))))
    program = exported(model, decomposed=decomposed)
    folded, _ = bnfold.fold(program)
    modules = (program.module(), folded.module())
    for seed in range(3):
        results = []
        for candidate in modules:
            torch.manual_seed(seed)
            results.append([candidate(image(2, 3, 6, 6, seed=9))])
        assert_same(*results, 1e-9)


# -------------------------------------------------------------------- branches and other parts


def branches(net, y):
    return torch.cond(y.sum() > 0, lambda t: t.sin(), lambda t: t * 2, (y,))


def switched(net, y):
    with torch.enable_grad():
        return torch.relu(y)


def cast(net, y):
    with torch.autocast("cpu", torch.bfloat16, enabled=False):
        return torch.relu(y)


def number(net, y):
    return y * y.abs().max().item()


def looped(net, y):
    def more(i, t):
        return i < 3

    def step(i, t):
        return i + 1, t * 0.5 + 1

    return torch.ops.higher_order.while_loop(more, step, (torch.tensor(0), y), ())[1]


PARTS = {case.__name__: case for case in (branches, switched, cast, number, looped)}


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_parts_that_nothing_is_known_of(name, strict):
    body = PARTS[name]
    model = build(Net(lambda net, x: net.head(body(net, net.bn(net.conv(x))))))
    try:
        program = exported(model, strict=strict)
    except Exception as error:  # the exporter's own limits are none of ours
        pytest.fail(f"torch.export refuses: {error}")
    report = fold_program_alike(program)
    assert report.removed == 1  # the convolution before it takes it in


def test_a_part_that_writes_to_what_it_is_given():
    def body(net, x):
        y = net.bn(net.conv(x))
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            y.relu_()
        return net.head(y)

    assert fold_alike(build(Net(body))).removed == 1


def test_a_buffer_that_a_run_has_written_to():
    """With gradients on, it hangs on a graph then, and PyTorch copies no such tensor."""
    model = build(Net(average))
    program, other = exported(model), exported(model)
    with torch.enable_grad():
        program.module()(image(2, 3, 6, 6))
    runs(other, 1)
    assert any(not tensor.is_leaf for tensor in program.buffers())
    folded, _ = bnfold.fold(program)
    for wanted, made in zip(runs(other), runs(folded), strict=True):
        assert_same(wanted, made, 1e-9)
