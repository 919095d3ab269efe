"""What holds for one size of the input holds for all: exported programs with dynamic shapes.

A module is recorded, and its numbers are those of the inputs that it is given.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_same, build, in_core_aten, randomize, run
from tests.pairwise import pairwise

SIZES = (6, 7, 12, 15)
"""The first is that of the example: even, a multiple of 3."""


class Net(nn.Module):
    """A BatchNorm, whatever `middle` does, and a convolution that could take the BatchNorm in."""

    def __init__(self, middle):
        super().__init__()
        self.bn = nn.BatchNorm2d(3)
        self.conv = nn.Conv2d(3, 4, 1)
        self.other = nn.Conv2d(3, 3, 1)
        self.gain = nn.Parameter(torch.rand(3, 1, 1) + 0.5)
        self.middle = middle

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.middle(self, self.bn(x), x.shape[2]))


def number_of_a_tensor(net, x, n):
    return x * torch.full((1,), n * 0.5, dtype=x.dtype)


def alpha(net, x, n):
    return torch.add(x, net.other(x), alpha=n)


def made_from_a_parameter(net, x, n):
    return x * (net.gain * n)


def weight_times_a_number(net, x, n):
    return functional.conv2d(x, net.other.weight * n)


def two_heights(net, x, n):
    return torch.cat([x, net.other(x)], dim=2)[:, :, 2 : n + 1]


def written_to(net, x, n):
    factor = torch.ones(3, 1, 1, dtype=x.dtype)
    factor.mul_(n)
    return x * factor


HARMFUL = {
    "written": written_to,
    "mul": lambda net, x, n: x * n,
    "rsub": lambda net, x, n: n - x,
    "add": lambda net, x, n: x + n,
    "div": lambda net, x, n: x / (n * n),
    "power": lambda net, x, n: x * n**-0.5,
    "full": number_of_a_tensor,
    "new_full": lambda net, x, n: x + x.new_full((1,), n),
    "arange": lambda net, x, n: x + torch.arange(n, dtype=x.dtype)[-1:],
    "alpha": alpha,
    "parameter": made_from_a_parameter,
    "weight": weight_times_a_number,
    "clamp": lambda net, x, n: x.clamp(max=n - 6.0),
    "clamp_min": lambda net, x, n: x.clamp(min=n - 6),
    "hardtanh": lambda net, x, n: functional.hardtanh(x, -1.0, n / 6),
    "pad": lambda net, x, n: functional.pad(x, [0, 0, 0, n % 2]),
    "pad in front": lambda net, x, n: functional.pad(x, [0, 0, n % 3, 1]),
    "channel": lambda net, x, n: x + x[:, n % 3].unsqueeze(1),
    "channels": lambda net, x, n: x.index_select(1, (torch.arange(3) + n) % 3),
    "rolled": lambda net, x, n: torch.roll(x, n, dims=1),
    "two heights": two_heights,
    "compared": lambda net, x, n: x * (x >= n - 6),
    "strided": lambda net, x, n: functional.conv2d(x, net.other.weight, padding=n % 2),
    "added up": lambda net, x, n: x.sum(2, keepdim=True),
}
HARMLESS = {
    "nothing": lambda net, x, n: x,
    "reshaped": lambda net, x, n: x.flatten(2).unsqueeze(3),
    "resized": lambda net, x, n: functional.interpolate(x, size=(2 * n, n)),
    "bilinear": lambda net, x, n: functional.interpolate(x, size=(n + 3, n), mode="bilinear"),
    "cut": lambda net, x, n: x[:, :, : n - 2],
    "adaptive": lambda net, x, n: functional.adaptive_avg_pool2d(x, (n // 2, 2)),
    "expanded": lambda net, x, n: x.mean(2, keepdim=True).expand(-1, -1, n, -1),
    "reflected": lambda net, x, n: functional.pad(x, [0, 0, n % 2, 1], mode="reflect"),
    "added up along the width": lambda net, x, n: x.sum(3, keepdim=True),
    "added to itself": lambda net, x, n: torch.stack([x, net.other(x)]).sum(0),
}
IN_A_MODULE = {
    "pad value": lambda net, x, n: functional.pad(x, [0, 0, 0, 1], value=n * 0.5 - 3),
    "pooled padding": lambda net, x, n: functional.avg_pool2d(x, 3, 1, padding=(n % 2, 0)),
    "pooled": lambda net, x, n: functional.avg_pool2d(x, (n, 1)),
}
"""torch.export makes the size a constant here."""


@cache
def exported(middle, decomposed, width=5):
    """The network and its program; a fold changes neither, so one serves them all."""
    if decomposed:
        model, program = exported(middle, False, width)
        return model, in_core_aten(program)
    model = Net(middle).double().eval()
    randomize(model)
    example = torch.randn(2, 3, SIZES[0], width, dtype=torch.float64)
    height = torch.export.Dim("height", min=4, max=64)
    program = torch.export.export(model, (example,), dynamic_shapes=({2: height},))
    return model, program


def assert_same_for_all_sizes(model, folded, width=5) -> None:
    runnable = folded if isinstance(folded, nn.Module) else folded.module()
    for size in SIZES:
        image = torch.randn(2, 3, size, width, dtype=torch.float64)
        with torch.no_grad():
            wanted, made = model(image), runnable(image)
        torch.testing.assert_close(made, wanted, rtol=1e-9, atol=1e-9)


# Each in every mode, as exported or decomposed; both forms in every mode.
FORMS = pairwise(
    [(name, decomposed) for name in HARMFUL for decomposed in (False, True)],
    ("auto", "always", "never"),
    lambda case: case,
)


@pytest.mark.parametrize(("case", "clip"), FORMS)
def test_nothing_is_built_on_a_number_that_may_be_another(case, clip):
    name, decomposed = case
    model, program = exported(HARMFUL[name], decomposed)
    folded, _ = bnfold.fold(program, clip=clip, verify=False)  # the proof would take it back
    assert_same_for_all_sizes(model, folded)


DECOMPOSED = [(name, True) for name in HARMLESS if name != "reflected"]  # that is an index then


@pytest.mark.parametrize(("name", "decomposed"), [*((n, False) for n in HARMLESS), *DECOMPOSED])
def test_sizes_that_arrange_values_do_no_harm(name, decomposed):
    model, program = exported(HARMLESS[name], decomposed)
    folded, report = bnfold.fold(program)
    assert_same_for_all_sizes(model, folded)
    assert report.kept == 0, report


@pytest.mark.parametrize("name", [*HARMFUL, *HARMLESS, *IN_A_MODULE])
def test_a_module_is_right_for_the_sizes_that_it_was_shown(name):
    model = Net({**HARMFUL, **HARMLESS, **IN_A_MODULE}[name]).double().eval()
    randomize(model)
    image, *others = (torch.randn(2, 3, size, 5, dtype=torch.float64) for size in SIZES)
    folded, _ = bnfold.fold(model, image, also=others, clip="always")
    assert_same_for_all_sizes(model, folded)


def test_a_module_that_pads_by_nothing_may_pad_other_inputs():
    model = Net(HARMFUL["pad"]).double().eval()
    randomize(model)
    folded, report = bnfold.fold(model, torch.randn(2, 3, SIZES[0], 5, dtype=torch.float64))
    assert report.kept == 1
    assert_same_for_all_sizes(model, folded)


MIXED = {
    "slice of rows": lambda net, x, n: x.reshape(x.shape[0], -1, 4, 1)[:, :3],
    "flat slice": lambda net, x, n: x.flatten(1)[:, :3, None, None],
    "rows first": lambda net, x, n: x.transpose(1, 2).flatten(1, 2)[:, :3, None],
    "strided": lambda net, x, n: x.flatten(1, 2)[:, 1:6:2, None],
    "last rows": lambda net, x, n: x.flatten(1, 2)[:, -3:, None],
    "two heights": lambda net, x, n: torch.cat([torch.zeros_like(x), torch.relu(x)], 2)[:, :, 3:],
}


@pytest.mark.parametrize("clip", ["auto", "always"])
@pytest.mark.parametrize("name", MIXED)
def test_channels_that_are_mixed_with_the_size(name, clip):
    """Which channel an element belongs to depends on the height."""
    net, program = exported(MIXED[name], False, width=4)
    folded, _ = bnfold.fold(program, clip=clip)
    assert_same_for_all_sizes(net, folded, width=4)


# ------------------------------------------------------------------ writes into a part


class Written(nn.Module):
    def __init__(self, write) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.act, self.head = nn.ReLU(), nn.Conv2d(4, 4, 1)
        self.write = write

    def forward(self, x):
        y = self.conv(x).relu()
        self.write(y)
        return self.head(self.act(self.bn(y)))


WRITES = {
    "a row": lambda y: y[:, :, 0].fill_(1),
    "every other row": lambda y: y[:, :, ::2].mul_(2),
    "one row of one channel": lambda y: y[:, 1, -1].zero_(),
    "a diagonal": lambda y: y.diagonal(0, 2, 3).fill_(1),
    "through a permutation": lambda y: y.permute(0, 2, 3, 1)[..., 0].fill_(2),
    "channels from others": lambda y: y[:, :2, 1:].copy_(y[:, 2:, :-1].clone()),
}


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_a_part_that_is_written_has_the_open_axes_of_the_whole(write, whole):
    """An array of bounds would be made for the height of the example."""
    model = build(Written(WRITES[write]))
    height = torch.export.Dim("half", min=3, max=64)
    height = height if whole else 2 * height
    program = torch.export.export(
        model, (torch.randn(2, 3, 8, 8, dtype=torch.float64),), dynamic_shapes=({2: height},)
    )
    folded, report = bnfold.fold(program, verify=False)
    assert report.removed == 1
    for size in (8, 12, 6):
        image = torch.randn(2, 3, size, 8, dtype=torch.float64)
        assert_same(run(program.module(), image), run(folded.module(), image), 1e-9)
