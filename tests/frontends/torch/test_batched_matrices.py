"""Products of many samples with one matrix: bmm of a parameter that is repeated per sample.

PyTorch makes one of `nn.Linear` on a tensor that is not contiguous, of matmul, einsum, attention
and recurrent layers, most of all where a program is decomposed into core ATen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_folds, build, image, in_core_aten
from tests.pairwise import pairwise

Form = Callable[["Net", Tensor], Tensor]
X = image(2, 4, 5, 6)


class Net(nn.Module):
    """Two BatchNorms around a function that works on the last axis of (N, H, W, C)."""

    def __init__(self, form: Form) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)

        def draw(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.randn(*shape, generator=generator))

        self.before, self.after, self.form = nn.BatchNorm2d(4), nn.BatchNorm2d(4), form
        self.linear = nn.Linear(4, 4)
        self.square, self.bias = draw(4, 4), draw(4)
        self.flat, self.wide, self.two, self.samples = (
            draw(16),
            draw(2, 8),
            draw(8, 4),
            draw(2, 4, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.form(self, self.before(x).permute(0, 2, 3, 1))
        return self.after(y.permute(0, 3, 1, 2)).sigmoid()


def rows(x: Tensor) -> Tensor:
    return x.flatten(1, 2)


def bmm(s: Net, x: Tensor, matrix: Tensor) -> Tensor:
    return (torch.bmm(rows(x), matrix.expand(x.shape[0], 4, 4)) + s.bias).view_as(x)


def one_sample(s: Net, x: Tensor, matrix: Tensor) -> Tensor:
    return (torch.bmm(x.reshape(1, -1, 4), matrix.unsqueeze(0)) + s.bias).view(x.shape)


def matmul(s: Net, x: Tensor, matrix: Tensor) -> Tensor:
    return x @ matrix.expand(x.shape[0], x.shape[1], 4, 4) + s.bias


GONE: dict[str, Form] = {
    "linear": lambda s, x: s.linear(x),
    "linear of rows": lambda s, x: s.linear(rows(x)).view_as(x),
    "linear of columns": lambda s, x: s.linear(x.transpose(1, 2)).transpose(1, 2),
    "linear, and of the mean": lambda s, x: s.linear(x) + s.linear(x.mean((1, 2), keepdim=True)),
    "bmm": lambda s, x: bmm(s, x, s.square),
    "bmm of t": lambda s, x: bmm(s, x, s.square.t()),
    "bmm of t of t": lambda s, x: bmm(s, x, s.square.t().transpose(0, 1)),
    "matmul": lambda s, x: matmul(s, x, s.square),
    "matmul of t": lambda s, x: matmul(s, x, s.square.t()),
    "one sample": lambda s, x: one_sample(s, x, s.square),
    "one sample, t": lambda s, x: one_sample(s, x, s.square.t()),
}
RIGHT: dict[str, Form] = {  # whatever stays
    "linear twice": lambda s, x: s.linear(s.linear(x)),
    "both ways": lambda s, x: bmm(s, bmm(s, x, s.square), s.square.t()),
    "twice": lambda s, x: bmm(s, bmm(s, x, s.square), s.square),
    "on the left": lambda s, x: (
        torch.bmm(s.square.expand(len(x), 4, 4), rows(x)[:, :4]).sum(1)[:, None, None] + x
    ),
    "repeated": lambda s, x: (torch.bmm(rows(x), s.square.repeat(len(x), 1, 1))).view_as(x),
    "a slice": lambda s, x: bmm(s, x, s.two[:4]),
    "another slice": lambda s, x: bmm(s, x, s.two[4:]),
    "every other row": lambda s, x: bmm(s, x, s.two[::2]),
    "a flat one": lambda s, x: bmm(s, x, s.flat.view(4, 4)),
    "two rows": lambda s, x: bmm(s, x, s.wide.view(4, 4)),
    "one per sample": lambda s, x: (torch.bmm(rows(x), s.samples) + s.bias).view_as(x),
    "flipped": lambda s, x: bmm(s, x, s.square.flip(0)),
    "doubled": lambda s, x: bmm(s, x, s.square * 2),
    "read besides": lambda s, x: bmm(s, x, s.square) + s.square.sum(),
    "read in another shape": lambda s, x: bmm(s, x, s.square) + s.square.expand(3, 4, 4)[2, 1],
    "einsum": lambda s, x: torch.einsum("nhwc,dc->nhwd", x, s.square) + s.bias,
    "einsum the other way": lambda s, x: torch.einsum("nhwc,cd->nhwd", x, s.square) + s.bias,
}


@functools.cache
def programs(form: str) -> list[tuple[nn.Module, torch.export.ExportedProgram]]:
    """As exported, and in core ATen; to be read only."""
    model = build(Net({**GONE, **RIGHT}[form]))
    program = torch.export.export(model, (X,))
    return [(model, program), (model, in_core_aten(program))]


@pytest.mark.parametrize("form", GONE)
def test_a_program_loses_both_batch_norms(form: str) -> None:
    model, program = programs(form)[1]
    folded, report = bnfold.fold(program, verify=False)
    other = X * 0.5 + 0.25
    torch.testing.assert_close(folded.module()(other), model(other), rtol=1e-12, atol=1e-12)
    assert report.removed == report.total == 2, str(report)


@pytest.mark.parametrize("form", [*GONE, *RIGHT])
def test_every_form_is_right(form: str) -> None:
    other = X * 0.5 + 0.25
    for model, program in programs(form):
        folded, _ = bnfold.fold(program, verify=False)
        torch.testing.assert_close(folded.module()(other), model(other), rtol=1e-12, atol=1e-12)
    assert_folds(build(Net({**GONE, **RIGHT}[form])), X, batches=form != "one per sample")


@pytest.mark.parametrize("layer", ["attention", "lstm"])
def test_layers_in_core_aten(layer: str) -> None:
    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4)
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.lstm = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x).transpose(1, 2)
            return (self.attention(y, y, y) if layer == "attention" else self.lstm(y))[0]

    model, x = build(Layer()), image(2, 4, 6)
    program = in_core_aten(torch.export.export(model, (x,)))
    folded, report = bnfold.fold(program, verify=False)
    assert report.kept == 0
    torch.testing.assert_close(folded.module()(x), model(x), rtol=1e-12, atol=1e-12)


SEVERAL = [name for name in GONE if not name.startswith("one sample")]


@pytest.mark.parametrize(
    ("form", "axes"), pairwise(SEVERAL, [(0,), (0, 2, 3)], lambda form: {form.split()[0]}), ids=str
)
def test_how_often_a_matrix_is_repeated_may_be_open(form: str, axes: tuple[int, ...]) -> None:
    model = build(Net(GONE[form]))
    sizes = dict.fromkeys(axes, torch.export.Dim.AUTO)
    program = torch.export.export(model, (X,), dynamic_shapes=(sizes,))
    folded, report = bnfold.fold(in_core_aten(program), verify=False)
    assert report.removed == report.total == 2, str(report)
    for shape in (X.shape, (5, 4, 5, 6), (3, 4, 7, 8) if len(axes) > 1 else (1, 4, 5, 6)):
        other = image(*shape, seed=4)
        torch.testing.assert_close(folded.module()(other), model(other), rtol=1e-12, atol=1e-12)


# -------------------------------------------------------------------- views of what nn.Linear makes

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "permute": lambda y: y.permute(0, 3, 1, 2),
    "movedim": lambda y: y.movedim(-1, 1),
    "transposes": lambda y: y.transpose(2, 3).transpose(1, 2),
    "view and transpose": lambda y: y.view(2, 30, 4).transpose(1, 2).unflatten(2, (5, 6)),
    "a copy": lambda y: y.permute(0, 3, 1, 2).contiguous(),
    "stacked": lambda y: torch.stack(y.unbind(-1), 1),
    "chunks": lambda y: torch.cat([part.permute(0, 3, 1, 2) for part in y.chunk(2, -1)], 1),
}


@pytest.mark.parametrize("is_linear_first", [False, True])
@pytest.mark.parametrize("view", VIEWS)
def test_a_view_of_what_a_linear_layer_makes(view: str, is_linear_first: bool) -> None:
    """On what is not contiguous it adds its bias in place: a write that was seen."""

    class Views(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm, self.head = (
                nn.Linear(4, 4),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 3, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            x = x.sigmoid()
            if is_linear_first:
                return self.norm(VIEWS[view](self.linear(x.permute(0, 2, 3, 1)))).sigmoid()
            return VIEWS[view](self.linear(self.norm(x).permute(0, 2, 3, 1)))

    assert_folds(build(Views()), X, removed=1, kept=0, batches=view != "view and transpose")
