"""Hazards 3 and 4: every linear op with every option, on the axis that is meant."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from benchmarks.zoo import load_vision
from tests.frontends.torch.support import assert_folds, build, image, reasons
from tests.pairwise import pairwise

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
SIZE = {1: (9,), 2: (7, 8), 3: (5, 6, 5)}


# ---------------------------------------------------------------- must stay


@pytest.mark.parametrize("length", [5, 4])
def test_batch_norm_over_the_length_of_a_linear_stays(length):
    """(N, L, C): BatchNorm1d normalises L. With L == C only the labels tell."""
    model = build(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(length)))
    assert_folds(model, image(2, length, 3), removed=0, kept=1)


@pytest.mark.parametrize("length", [5, 4])
def test_batch_norm_over_the_length_before_a_linear_stays(length):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.b = nn.Linear(3, 4), nn.BatchNorm1d(length), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.b(self.bn(torch.tanh(self.a(x))))

    assert_folds(build(Net()), image(2, length, 3), removed=0, kept=1)


class Pre(nn.Module):
    """An op between a BatchNorm that is fed by a sigmoid and the end."""

    def __init__(self, norm: nn.Module, op: nn.Module) -> None:
        super().__init__()
        self.norm, self.op = norm, op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self.norm(torch.sigmoid(x)))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "goes"),
    [
        ({"padding": 1}, False),
        ({"padding": "same"}, False),
        ({"padding": "same", "kernel_size": 1}, True),
        ({"padding": 1, "kernel_size": 1}, False),
        ({}, True),
        ({"padding": "valid"}, True),
        ({"padding": 1, "padding_mode": "reflect"}, True),
        ({"padding": 1, "padding_mode": "circular"}, True),
        ({"padding": 1, "padding_mode": "replicate"}, True),
        ({"padding": "same", "padding_mode": "circular"}, True),
        ({"stride": 2, "dilation": 2, "groups": 2}, True),
        ({"groups": 4, "bias": False}, True),
    ],
    ids=str,
)
def test_batch_norm_before_a_convolution(rank, options, goes):
    arguments = {"kernel_size": 3, **options}
    model = build(Pre(NORM[rank](4), CONV[rank](4, 8, **arguments)))
    assert_folds(model, image(2, 4, *SIZE[rank]), removed=int(goes), kept=int(not goes))


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("options", "goes"),
    [
        ({"kernel_size": 1}, True),
        ({"kernel_size": 2, "stride": 2}, None),
        ({"kernel_size": 3}, False),
        ({"kernel_size": 1, "stride": 2}, False),
        ({"kernel_size": 2, "stride": 2, "output_padding": 1}, False),
        ({"kernel_size": 3, "padding": 1, "groups": 2}, False),
        ({"kernel_size": 1, "padding": 1}, None),
    ],
    ids=str,
)
def test_batch_norm_before_a_transposed_convolution(rank, options, goes):
    model = build(Pre(NORM[rank](4), TRANSPOSED[rank](4, 6, **options)))
    removed = None if goes is None else int(goes)
    assert_folds(model, image(2, 4, *SIZE[rank]), removed=removed)


# ---------------------------------------------------------------- goes


CONVOLUTIONS = [
    {},
    {"groups": 2},
    {"groups": 4},
    {"stride": 2, "padding": 1, "dilation": 2},
    {"padding": "same", "padding_mode": "reflect"},
    {"padding": 2, "padding_mode": "circular"},
]
TRANSPOSED_CONVOLUTIONS = [
    {},
    {"groups": 2},
    {"groups": 4},
    {"stride": 2, "output_padding": 1},
    {"stride": 3, "groups": 2, "dilation": 2, "padding": 1, "output_padding": 2},
]


def in_every_rank(forms, others):
    """Each form in each rank; of the others, each meets each form and each rank."""
    cases = list(product((1, 2, 3), map(str, forms)))
    by_name = {str(form): form for form in forms}
    drawn = pairwise(cases, others, lambda case: case)
    return [(rank, by_name[name], other) for (rank, name), other in drawn]


@pytest.mark.parametrize(
    ("rank", "options", "bias"), in_every_rank(CONVOLUTIONS, (True, False)), ids=str
)
def test_batch_norm_behind_a_convolution(rank, bias, options):
    model = build(nn.Sequential(CONV[rank](4, 8, 3, bias=bias, **options), NORM[rank](8)))
    assert_folds(model, image(2, 4, *SIZE[rank]), removed=1)


@pytest.mark.parametrize(
    ("rank", "options", "rest"),
    in_every_rank(TRANSPOSED_CONVOLUTIONS, [*product((True, False), (4, 8))]),
    ids=str,
)
def test_batch_norm_behind_a_transposed_convolution(rank, options, rest):
    bias, outs = rest
    op = TRANSPOSED[rank](4, outs, 3, bias=bias, **options)
    assert_folds(build(nn.Sequential(op, NORM[rank](outs))), image(2, 4, *SIZE[rank]), removed=1)


def test_scales_on_both_sides_of_a_grouped_transposed_convolution():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.LeakyReLU(),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
        nn.BatchNorm2d(6),
        nn.Conv2d(6, 6, 3, groups=3),
        nn.BatchNorm2d(6),
    )
    assert_folds(build(model), image(2, 3, 5, 5))


class OutputSize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.bn = nn.ConvTranspose2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.up(x, output_size=(12, 12)))


def test_transposed_convolution_with_output_size():
    assert_folds(build(OutputSize()), image(2, 3, 5, 5))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_then_batch_norm(bias):
    assert_folds(
        build(nn.Sequential(nn.Linear(3, 4, bias=bias), nn.BatchNorm1d(4))), image(5, 3), removed=1
    )


class Levit(nn.Module):
    """Linear -> flatten -> BatchNorm1d -> reshape."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


@pytest.mark.parametrize("length", [4, 6])
def test_linear_flatten_batch_norm(length):
    assert_folds(build(Levit()), image(2, length, 4), removed=1)


class Transposed(Levit):
    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(x).transpose(1, 2)).transpose(1, 2)


@pytest.mark.parametrize("length", [4, 6])
def test_linear_transpose_batch_norm(length):
    assert_folds(build(Transposed()), image(2, length, 4), removed=1)


class Flattening(nn.Module):
    """A Linear behind a flattened image sees each channel many times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.head, self.bn1 = nn.Linear(100, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn(torch.tanh(self.conv(x)))
        return self.bn1(self.head(x.view(x.size(0), -1)))


def test_batch_norm_flatten_linear():
    assert_folds(build(Flattening()), image(2, 3, 5, 5), removed=2)


# ---------------------------------------------------------------- called as functions


class Functions(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(4, 3))
        self.m = nn.Parameter(torch.randn(3, 4))
        self.b = nn.Parameter(torch.randn(4))
        self.k = nn.Parameter(torch.randn(4, 3, 3))
        self.bn, self.how = nn.BatchNorm1d(4), how

    def forward(self, x: Tensor) -> Tensor:  # (N, 3)
        how = self.how
        if how == "linear":
            y = functional.linear(x, self.w, self.b)
        elif how == "linear without bias":
            y = functional.linear(x, self.w)
        elif how == "matmul":
            y = x @ self.m
        elif how == "matmul transposed":
            y = x @ self.w.t()
        elif how == "matmul plus":
            y = x @ self.m + self.b
        elif how == "left matmul":
            y = (self.w @ x.t()).t()
        elif how == "addmm":
            y = torch.addmm(self.b, x, self.m)
        elif how == "addmm scaled":
            y = torch.addmm(self.b, x, self.m, beta=0.5, alpha=2)
        elif how == "einsum":
            y = torch.einsum("ni,oi->no", x, self.w)
        elif how == "bmm":
            y = torch.bmm(x[None], self.m[None])[0]
        elif how == "baddbmm":
            y = torch.baddbmm(self.b.view(1, 1, 4), x[None], self.m[None])[0]
        elif how == "conv":
            y = functional.conv1d(x[:, :, None], self.k, self.b, padding=1)[..., 0]
        elif how == "tensordot":
            y = torch.tensordot(x, self.w, ([1], [1]))
        elif how == "mv":
            y = torch.stack([functional.linear(x, row) for row in self.w], 1)
        else:
            y = (x[:, None] * self.w).sum(-1)
        return self.bn(y)


@pytest.mark.parametrize(
    "how",
    [
        "linear",
        "linear without bias",
        "matmul",
        "matmul transposed",
        "matmul plus",
        "left matmul",
        "addmm",
        "addmm scaled",
        "einsum",
        "bmm",
        "baddbmm",
        "conv",
        "tensordot",
        "mv",
        "sum",
    ],
)
def test_linear_algebra_called_as_functions(how):
    assert_folds(build(Functions(how)), image(5, 3))


# ---------------------------------------------------------------- subclasses


class IgnoresBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return functional.conv2d(x, self.weight, None, self.stride, self.padding)


class HalvesBias(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias / 2
        return functional.conv2d(x, self.weight, bias)


class OwnConvForward(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight * 2, bias)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class BiasProperty(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight) + (0 if self.bias is None else self.bias)


class CallsTwice(nn.Conv2d):
    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x) * 2


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "kind", [IgnoresBias, HalvesBias, OwnConvForward, Standardised, CallsTwice]
)
def test_convolution_subclass(kind, bias):
    model = build(nn.Sequential(kind(3, 4, 3, bias=bias), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)))
    assert_folds(model, image(2, 3, 6, 6))


@pytest.mark.parametrize("bias", [True, False])
def test_linear_subclass_that_adds_its_bias_itself(bias):
    assert_folds(
        build(nn.Sequential(BiasProperty(3, 4, bias=bias), nn.BatchNorm1d(4))), image(5, 3)
    )


@pytest.mark.parametrize(
    "kind",
    ["Conv2dSame", "StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "MixedConv2d", "CondConv2d"],
)
@pytest.mark.parametrize("size", [6, 7])
def test_timm_convolutions(kind, size):
    layers = load_vision().timm.layers
    options = {"kernel_size": 3, "stride": 2}
    if kind == "MixedConv2d":
        options = {"kernel_size": [3, 5], "stride": 2}
    if kind == "CondConv2d":
        pytest.skip("takes its routing as a second input")
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        getattr(layers, kind)(4, 4, **options),
        nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 3, size, size))


# ---------------------------------------------------------------- hazard 13: computed weights


def _halved(weight: nn.Module) -> nn.Module:
    return weight


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / 2


@pytest.mark.parametrize(
    "wrap",
    [
        weight_norm,
        spectral_norm,
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
        parametrizations.orthogonal,
        lambda m: parametrize.register_parametrization(m, "weight", Half()) or m,
        lambda m: parametrize.register_parametrization(m, "bias", Half()) or m,
        lambda m: prune.l1_unstructured(m, "weight", 0.5),
        lambda m: prune.random_unstructured(m, "bias", 0.5),
    ],
    ids=[
        "weight_norm",
        "spectral_norm",
        "new weight_norm",
        "new spectral_norm",
        "orthogonal",
        "parametrized weight",
        "parametrized bias",
        "pruned weight",
        "pruned bias",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_computed_weights_and_biases(wrap):
    def make() -> nn.Module:
        torch.manual_seed(0)
        model = build(
            nn.Sequential(
                nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            )
        )
        model[0] = wrap(model[0])
        return model.eval()

    assert_folds(make(), image(2, 3, 6, 6), make=make)


def test_bias_that_is_no_parameter():
    conv = nn.Conv2d(3, 4, 1, bias=False)
    conv.bias = None
    del conv._parameters["bias"]
    conv.bias = torch.linspace(0, 1, 4, dtype=torch.float64)
    assert_folds(build(nn.Sequential(conv, nn.BatchNorm2d(4))), image(2, 3, 5, 5))


def test_fixed_weight_says_so():
    model = build(nn.Sequential(Standardised(3, 4, 3), nn.BatchNorm2d(4)))
    report = assert_folds(model, image(2, 3, 6, 6), removed=0)
    assert set(reasons(report).values()) <= {"fixed-weight", "graph-output"}
