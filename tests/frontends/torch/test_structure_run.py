"""Placeholders in a run for structure alone: of the right shape and layout, or none at all."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.frontends.torch.read import read_module
from bnfold.frontends.torch.structure_run import Placeholders, module_placeholder, op_placeholders
from tests.frontends.torch.support import assert_folds, build, image

aten = torch.ops.aten


@pytest.fixture(autouse=True)
def no_gradients():
    """As in a run."""
    with torch.no_grad():
        yield


X = image(2, 3, 4, 5)
LAST = X.contiguous(memory_format=torch.channels_last)
SPECIAL = [
    (aten.add.Tensor, (X, X[:, :1])),  # broadcasts
    (aten.add.Tensor, (X, 1.0)),
    (aten.add.Tensor, (X, X.float())),  # changes the dtype
    (aten.add.Tensor, (LAST, LAST)),
    (aten.add.Tensor, (X.int(), X.int())),  # may be indices
    (aten.add.Tensor, (X.to("meta"), X.to("meta"))),
    (aten.relu.default, (X[:, ::2],)),
    (aten.silu.default, (X[:, ::2],)),
    (aten.cos.default, (X,)),
    (aten.cat.default, ([X, X[:1]], 1)),  # raises
    (aten.cat.default, ([X, X.float()], 1)),
    (aten.cat.default, ([LAST, LAST], 1)),
    (aten.cat.default, ([X[..., :1], X[..., :1]], 1)),  # the layout cannot be told
    (aten.cat.default, ([X, X.new_zeros(0)], 1)),
    (aten.cat.default, ([X.int(), X.int()], 1)),
]
VECTOR = image(3)
NORM = (VECTOR, VECTOR, VECTOR, VECTOR.abs(), False, 0.1, 1e-5)
UNLIKE_NORMS = [
    (LAST, *NORM),
    (X.float(), *NORM),  # raises
    (X[:, :2].contiguous(), *NORM),  # raises
    (X[0, 0, 0], *NORM),  # raises
    (X, VECTOR[:2], *NORM[1:]),  # raises
    (X, *NORM[:2], None, None, True, *NORM[5:]),  # statistics of the input
    (X, *NORM[:4], True, *NORM[5:]),
]
SPECIAL += [(aten.native_batch_norm.default, args) for args in UNLIKE_NORMS]
PLAIN = [
    (aten.add.Tensor, (X, X + 1)),
    (aten.sub.Tensor, (X, X + 1)),
    (aten.mul.Tensor, (X, X)),
    (aten.relu.default, (X,)),
    (aten.silu.default, (X,)),
    (aten.sigmoid.default, (X,)),
    (aten.hardswish.default, (X,)),
    (aten.hardsigmoid.default, (X,)),
    (aten.mish.default, (X,)),
    (aten.cat.default, ([X, X[:, :2].contiguous()], 1)),
    (aten.cat.default, ([X, X],)),
    (aten.cat.default, ([X, X], -1)),
    (aten.cat.default, ([X[0], X[0]], 1)),
    (aten.cat.default, ([X[0, 0], X[0, 0]], 1)),
]


@pytest.mark.parametrize(("op", "args"), SPECIAL, ids=str)
def test_what_is_not_certain_runs(op, args):
    assert op_placeholders(op, args, {}, Placeholders()) is None


def test_what_has_options_runs():
    assert op_placeholders(aten.add.Tensor, (X, X), {"alpha": 2}, Placeholders()) is None


@pytest.mark.parametrize(("op", "args"), PLAIN, ids=str)
def test_placeholder_is_like_the_result(op, args):
    structural, real = op_placeholders(op, args, {}, Placeholders()), op(*args)
    assert (structural.shape, structural.stride(), structural.dtype) == (
        real.shape,
        real.stride(),
        real.dtype,
    )


@pytest.mark.parametrize("x", [X, X[:, :, 0, 0].contiguous(), X[..., None]], ids=str)
@pytest.mark.parametrize("parts", [NORM, (None, None, *NORM[2:]), (VECTOR, None, *NORM[2:])])
def test_a_batch_norm_that_is_called_as_a_function(x, parts):
    args = (x, *parts)
    structural = op_placeholders(aten.native_batch_norm.default, args, {}, Placeholders())
    for one, other in zip(structural, aten.native_batch_norm.default(*args), strict=True):
        assert (one.shape, one.stride(), one.dtype) == (other.shape, other.stride(), other.dtype)


def test_a_convolution_that_asks_for_its_bias_is_read_without_values():
    """The bias that it is lent comes from nowhere that the run knows, but not from values."""

    class Padded(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            padded = nn.functional.pad(x, (1, 1, 1, 1))
            return nn.functional.conv2d(padded, self.weight, self.bias)

    model = build(nn.Sequential(Padded(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    assert read_module(model, [X]).is_structural
    assert_folds(model, X, removed=1)


def test_in_place_op_returns_what_it_would_write_to():
    x = X.clone()
    assert op_placeholders(aten.add_.Tensor, (x, X), {}, Placeholders()) is x
    assert op_placeholders(aten.relu_.default, (x,), {}, Placeholders()) is x


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(3, 4, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(3, 4, (1, 3), padding=(0, 2), groups=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.Linear(8, 2),
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_placeholder_is_like_a_modules_output(module, dtype):
    module = module.to(dtype).eval()
    x = image(2, 3, 9, 8, dtype=dtype)
    structural, real = module_placeholder(module, x, Placeholders()), module(x)
    assert structural is not None
    assert (structural.shape, structural.stride(), structural.dtype) == (
        real.shape,
        real.stride(),
        real.dtype,
    )


GRAY = image(2, 4, 5, 1).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.Conv2d(1, 4, 1).double(), GRAY),
        (nn.Conv2d(3, 4, 1).double().to(memory_format=torch.channels_last), X),
        (nn.BatchNorm2d(1).double().eval(), GRAY),
    ],
    ids=str,
)
def test_one_channel_in_the_last_place_is_channels_last(module, x):
    """Contiguous as well, so that what comes out is not what contiguous tensors give."""
    assert x.is_contiguous()
    assert module_placeholder(module, x, Placeholders()) is None


@pytest.mark.parametrize("shape", [(2, 3), (64, 3, 56, 56)])
def test_placeholders_are_told_apart_by_storage_and_by_address(shape):
    make = Placeholders()
    first, second = make.make(shape, torch.float32), make.make(shape, torch.float64)
    assert first.data_ptr() != second.data_ptr()
    assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
    assert not first.any()
    second.add_(1.0)
    assert second.all()


def test_placeholders_begin_as_zeros_and_may_be_empty():
    make = Placeholders()
    assert not make.make((2, 3), torch.bfloat16).any()
    assert make.make((0, 3), torch.float32).shape == (0, 3)


class Sums(nn.Module):
    """Sums, products and concats of values that live at the same time, in and out of place."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1, bias=False) for _ in range(4))
        self.bns = nn.ModuleList(nn.BatchNorm2d(3) for _ in range(4))
        self.last = nn.Conv2d(9, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = (bn(conv(x)) for conv, bn in zip(self.convs, self.bns, strict=True))
        total = a + b
        total += c
        return self.last(torch.cat([total.relu(), d.relu_(), total - d], 1))


def test_network_of_sums_and_concats_folds():
    assert_folds(build(Sums()), image(2, 3, 6, 6), removed=4, kept=0)


def test_value_of_a_sum_that_is_looked_at_is_real():
    seen = []

    class Looks(Sums):
        def forward(self, x: Tensor) -> Tensor:
            total = self.bns[0](self.convs[0](x)) + x
            seen.append(float(total.sum()))
            return super().forward(total)

    model, x = build(Looks()), image(2, 3, 6, 6)
    with torch.no_grad():
        model(x)
    bnfold.inspect(model, x)
    assert seen[-1] == seen[0]


class Looks(nn.Module):
    """Takes another path if a tensor is not what it is in a real run."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.other, self.last = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def is_real(self, a: Tensor, b: Tensor) -> bool:
        if self.how == "address":
            return a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()
        if self.how == "gradient":
            return not a.requires_grad
        try:
            b.detach().resize_(b.shape[0] + 1, *b.shape[1:])
        except RuntimeError:
            return False
        return True

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.how == "gradient"):
            a = self.bn(self.conv(x))
            b = self.other(x)
        return self.last(a + b) if self.is_real(a, b) else self.last(a)


@pytest.mark.parametrize("how", ["address", "gradient", "resize"])
def test_what_a_program_can_tell_of_its_tensors_is_as_in_a_real_run(how):
    assert_folds(build(Looks(how)), image(2, 3, 32, 32), batches=False)
