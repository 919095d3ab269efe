"""Hazard 6: modules that normalise and do more, or less, or are spelled differently."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from benchmarks.zoo import load_vision
from tests.frontends.torch.support import assert_folds, assert_same, build, image, reasons, run


def behind(norm: nn.Module, channels: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, channels, 1), norm, nn.Conv2d(channels, 3, 3, padding=1))


# ---------------------------------------------------------------- must stay or stay whole


class Doubles(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).square()


class CallDoubles(nn.BatchNorm2d):
    """The extra work is in __call__, the forward is PyTorch's own."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).square()


class Before(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.sigmoid(x))


class Casting(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float()).to(x.dtype)


class TwoOutputs(nn.BatchNorm2d):
    def forward(self, x: Tensor):
        return super().forward(x), x.mean()


class First(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class PlusInput(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x


class Checked(nn.BatchNorm2d):
    def _check_input_dim(self, x: Tensor) -> None:
        assert x.dim() == 4


class OtherGamma(nn.BatchNorm2d):
    """Multiplies by 1 + weight."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight + 1, self.bias, False, 0.1, self.eps
        )


class Twice(nn.BatchNorm2d):
    """Normalises twice with the same statistics."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(super().forward(x))


class Then(nn.BatchNorm2d):
    """Another BatchNorm behind its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.second = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(super().forward(x))


class ThenAct(nn.BatchNorm2d):
    def __init__(self, channels: int, act: nn.Module) -> None:
        super().__init__(channels)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(super().forward(x))


class Parallel(nn.BatchNorm2d):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y * self.act(y)


class Sometimes(nn.BatchNorm2d):
    """The activation runs only on large images."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.act = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return self.act(y) if x.shape[-1] > 6 else y


NORMS = [
    Doubles(4),
    CallDoubles(4),
    Before(4),
    First(TwoOutputs(4)),
    PlusInput(4),
    Checked(4),
    OtherGamma(4),
    Twice(4),
    Then(4),
    ThenAct(4, nn.ReLU()),
    ThenAct(4, nn.ReLU(inplace=True)),
    ThenAct(4, nn.PReLU(4)),
    ThenAct(4, nn.Hardswish()),
    ThenAct(4, nn.BatchNorm2d(4)),
    ThenAct(4, nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4))),
    Parallel(4),
]


@pytest.mark.parametrize("norm", NORMS, ids=lambda norm: type(norm).__name__)
@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_subclass_keeps_what_else_it_does(norm, clip):
    assert_folds(build(behind(norm)), image(2, 3, 6, 6), clip=clip)


def test_casting_subclass_keeps_what_else_it_does():
    assert_folds(
        build(behind(Casting(4)), dtype=torch.float32),
        image(2, 3, 6, 6).float(),
        dtype=torch.float32,
    )


def test_module_that_runs_its_activation_only_sometimes_with_both_paths_shown():
    assert_folds(build(behind(Sometimes(4))), image(2, 3, 5, 5), also=[image(2, 3, 8, 8)])
    assert_folds(build(behind(Sometimes(4))), image(2, 3, 8, 8), also=[image(2, 3, 5, 5)])


class Reads(nn.Module):
    """The forward uses attributes of the BatchNorm itself."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.how = how

    def forward(self, x: Tensor):
        y = self.bn(self.conv(x))
        if self.how == "penalty":
            return y, self.bn.weight.abs().sum()
        if self.how == "gain":
            return y * self.bn.weight.view(1, -1, 1, 1)
        if self.how == "statistics":
            return y - self.bn.running_mean.view(1, -1, 1, 1)
        if self.how == "functional":
            return y + functional.batch_norm(
                x[:, :1].repeat(1, 4, 1, 1), self.bn.running_mean, self.bn.running_var
            )
        return y.view(y.shape[0], self.bn.num_features, -1).to(self.bn.weight.dtype)


@pytest.mark.parametrize("how", ["penalty", "gain", "statistics", "functional"])
def test_batch_norm_whose_parameters_are_read_elsewhere(how):
    assert_folds(build(Reads(how)), image(2, 3, 5, 5))


class MeanStays(nn.Module):
    """A constant module whose parameter somebody else reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.scale = nn.Conv2d(3, 4, 1), Scale(4)

    def forward(self, x: Tensor):
        return self.scale(self.conv(x)), self.scale.gamma.sum()


# ---------------------------------------------------------------- constants of their own


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1, 2, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(1, -1, 1, 1)


class ScaleThenNorm(Scale):
    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.bn = nn.BatchNorm2d(channels, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(super().forward(x))


class InPlaceScale(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x.mul_(self.gamma.view(1, -1, 1, 1)).add_(0.5)


class PositionEmbedding(nn.Module):
    def __init__(self, channels: int, size: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, channels, size, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class SpatialGain(PositionEmbedding):
    def forward(self, x: Tensor) -> Tensor:
        return x * self.table


class ZeroScale(Scale):
    def forward(self, x: Tensor) -> Tensor:
        return x * (self.gamma.view(1, -1, 1, 1) > 0)


def test_parameter_of_a_scale_that_is_read_elsewhere():
    assert_folds(build(MeanStays()), image(2, 3, 5, 5))


@pytest.mark.parametrize(
    "module",
    [
        Scale(4),
        ScaleThenNorm(4),
        InPlaceScale(4),
        PositionEmbedding(4, 6),
        SpatialGain(4, 6),
        ZeroScale(4),
    ],
    ids=lambda module: type(module).__name__,
)
@pytest.mark.parametrize("norm_first", [True, False])
def test_module_with_constants_of_its_own(module, norm_first):
    norm = nn.BatchNorm2d(4)
    parts = (norm, module) if norm_first else (module, norm)
    assert_folds(build(behind(nn.Sequential(*parts))), image(2, 3, 6, 6))
    assert_folds(build(nn.Sequential(nn.Conv2d(3, 4, 1), *parts)), image(2, 3, 6, 6))


class OnLast(Scale):
    """LayerScale of transformers: along the last axis."""

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def test_layer_scale_on_the_last_axis():
    model = nn.Sequential(nn.Linear(5, 4), OnLast(4), nn.Linear(4, 4))
    assert_folds(build(model), image(2, 3, 5), removed=1)


def test_layer_scale_on_the_last_axis_of_square_tokens():
    model = nn.Sequential(nn.Linear(4, 4), OnLast(4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    assert_folds(build(model), image(2, 4, 4))


# ---------------------------------------------------------------- kinds of BatchNorm


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("kind", [nn.BatchNorm2d, nn.SyncBatchNorm])
def test_kinds_that_go(kind, affine):
    report = assert_folds(build(behind(kind(4, affine=affine))), image(2, 3, 6, 6), removed=1)
    assert report.kept == 0


def test_affine_false_that_stays_takes_the_rescaling_of_its_neighbours():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.BatchNorm2d(3, affine=False)
            self.second = nn.BatchNorm2d(3)
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.second(self.first(x)))

    assert_folds(build(Net()), image(2, 3, 6, 6), removed=1, kept=1)


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_batch_norm_without_gamma_or_without_beta(missing):
    model = build(behind(nn.BatchNorm2d(4)))
    setattr(model[1], missing, None)
    assert_folds(model, image(2, 3, 6, 6), removed=1)
    pair = build(nn.Sequential(nn.BatchNorm2d(3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3, padding=1)))
    setattr(pair[0], missing, None)
    assert_folds(pair, image(2, 3, 6, 6), removed=1, kept=1)


@pytest.mark.parametrize("source", ["torchvision", "timm"])
def test_frozen_batch_norm(source):
    vision = load_vision()
    if source == "torchvision":
        norm = vision.torchvision.ops.misc.FrozenBatchNorm2d(4)
    else:
        norm = vision.timm.layers.norm_act.FrozenBatchNormAct2d(4)
    model = build(behind(norm))
    report = assert_folds(model, image(2, 3, 6, 6), removed=1, clip="always")
    assert report.items[0].into


@pytest.mark.parametrize("act", ["relu", "silu", "leaky_relu", "prelu", "hard_swish", None])
@pytest.mark.parametrize("drop", [False, True])
def test_timm_batch_norm_act(act, drop):
    layers = load_vision().timm.layers
    norm = layers.BatchNormAct2d(
        4, act_layer=act, apply_act=act is not None, drop_layer=nn.Dropout if drop else None
    )
    assert_folds(build(behind(norm)), image(2, 3, 6, 6), removed=1)


def test_timm_batch_norm_act_with_its_activation_shared_and_in_place():
    layers = load_vision().timm.layers

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 4, 1)
            self.norm = layers.BatchNormAct2d(4, act_layer=nn.ReLU, inplace=True)
            self.head = nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return x + self.head(self.norm(x))

    for clip in ("auto", "always", "never"):
        assert_folds(build(Net()), image(2, 3, 6, 6), clip=clip)


@pytest.mark.parametrize("tracking", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_instance_norm_is_no_batch_norm(tracking, affine):
    norm = nn.InstanceNorm2d(4, affine=affine, track_running_stats=tracking)
    model = build(behind(nn.Sequential(nn.BatchNorm2d(4), norm)))
    report = assert_folds(model, image(2, 3, 6, 6))
    assert all("InstanceNorm" not in item.name for item in report.items)


@pytest.mark.parametrize("affine", [True, False])
def test_an_instance_norm_behind_a_convolution_is_no_batch_norm(affine):
    parts = nn.Conv2d(3, 6, 1), nn.InstanceNorm2d(6, affine=affine), nn.BatchNorm2d(6)
    _, report = bnfold.fold(build(nn.Sequential(*parts)), image(2, 3, 5, 5))
    assert [item.name for item in report.items] == ["2"]


@pytest.mark.parametrize(
    "norm",
    [nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6]), nn.LocalResponseNorm(3)],
    ids=lambda n: type(n).__name__,
)
def test_other_norms_are_opaque(norm):
    assert_folds(
        build(behind(nn.Sequential(nn.BatchNorm2d(4), norm))), image(2, 3, 6, 6), removed=1
    )


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("mean", torch.linspace(-1, 1, 4))
        self.register_buffer("var", torch.linspace(0.5, 2, 4))
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(functional.relu(functional.batch_norm(self.conv(x), self.mean, self.var)))


def test_functional_batch_norm_stays_with_its_reason():
    report = assert_folds(build(Functional()), image(2, 3, 6, 6))
    assert "functional" in reasons(report).values() or report.kept == 0


def test_unreached_batch_norm_is_reported_and_left_alone():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), Doubles(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    report = assert_folds(build(Net()), image(2, 3, 6, 6), removed=1, kept=1)
    assert reasons(report) == {"other": "not-reached"}


# ---------------------------------------------------------------- bad statistics (hazard 8)


@pytest.mark.parametrize(
    ("where", "value", "stays"),
    [
        ("weight", 0.0, False),
        ("running_var", 0.0, False),
        ("running_var", -0.5, True),
        ("running_var", float("nan"), True),
        ("running_var", float("inf"), False),
        ("running_mean", float("nan"), True),
        ("running_mean", float("inf"), True),
        ("weight", float("nan"), True),
        ("bias", float("-inf"), True),
    ],
)
@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_statistics_that_are_not_usual(where, value, stays, padding, clip):
    model = build(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3, padding=padding)
        )
    )
    with torch.no_grad():
        getattr(model[1], where)[2] = value
    if where == "running_var" and value == 0.0:
        model[1].eps = 1e-3
    report = assert_folds(model, image(2, 3, 6, 6), clip=clip)
    if stays:
        assert reasons(report) == {"1": "bad-statistics"}


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize("relu", [True, False])
def test_pre_activation_channel_with_gamma_zero(padding, relu):
    middle = [nn.ReLU()] if relu else []
    model = build(
        nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), *middle, nn.Conv2d(3, 4, 3, padding=padding))
    )
    model[1].weight.data[1] = 0.0
    assert_folds(model, image(2, 3, 6, 6))


def test_eps_is_read():
    model = build(behind(nn.BatchNorm2d(4, eps=0.5)))
    assert_folds(model, image(2, 3, 6, 6), removed=1)


def test_all_gammas_zero():
    model = build(behind(nn.BatchNorm2d(4)))
    model[1].weight.data.zero_()
    assert_folds(model, image(2, 3, 6, 6))
    x = image(2, 3, 6, 6)
    assert_same(run(model, x), run(bnfold.fold(model, x)[0], x), 1e-9)


class Shift(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.randn(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias


class Doubled(Shift):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.bias, alpha=-2.0)


class ShiftAndConv(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.shift, self.conv = nn.BatchNorm2d(3), Shift(3), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.bn(x)
        return self.shift(x), self.conv(x)


def test_a_module_that_adds_its_parameter_can_take_in_a_shift():
    """So it does not stand in the way of the other reader of the BatchNorm's output."""
    report = assert_folds(build(ShiftAndConv()), image(2, 3, 4, 4), removed=1, kept=1)
    assert reasons(report) == {"bn": "graph-output"}


def test_one_that_multiplies_it_first_does_not():
    model = nn.Sequential(nn.Sigmoid(), Doubled(3), nn.BatchNorm2d(3), nn.Sigmoid())
    assert_folds(build(model), image(2, 3, 4, 4), removed=1, kept=1)


class PreActivation(nn.Module):
    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.relu = nn.BatchNorm2d(4), nn.ReLU()
        self.head = nn.Conv2d(4, 2, 1)
        nn.init.constant_(self.bn.weight, gamma)
        nn.init.constant_(self.bn.bias, 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.conv(self.relu(self.bn(x))))


@pytest.mark.parametrize(
    "gamma, dtype, kept",
    [
        (1e-8, torch.float32, 1),
        (1e-5, torch.float32, 1),
        (1e-5, torch.float64, 0),  # what counts is the dtype that its readers compute in
        (1e-8, torch.float64, 1),
        (1e-2, torch.float16, 1),
        (1e-2, torch.float32, 0),
        (0.3, torch.float16, 0),
    ],
)
def test_a_tiny_gamma_may_not_drown_a_residual_stream(gamma, dtype, kept):
    torch.manual_seed(0)
    model = PreActivation(gamma).eval().to(dtype)
    assert_folds(model, image(2, 3, 6, 6, dtype=dtype), kept=kept, dtype=dtype)


class ScaledAndNormalised(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scale, self.conv = nn.Conv2d(3, 3, 1), Scale(3), nn.Conv2d(3, 2, 1)
        self.bn = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return self.conv(self.scale(x)), torch.sigmoid(self.bn(x))


def test_a_batch_norm_that_stays_follows_an_input_that_is_stored_much_smaller():
    """Its mean has to move along: subtracted as it was, it would leave no digits of the input."""
    model = build(ScaledAndNormalised())
    with torch.no_grad():
        model.scale.gamma.fill_(1e-9)
        model.bn.weight[0] = 0.0  # so it stays
    report = assert_folds(model, image(2, 3, 4, 4), removed=1, kept=1)
    assert reasons(report) == {"bn": "zero-gamma"}


# -------------------------------------------------------------------- one op that scales and shifts


class OneOp(nn.Module):
    def __init__(self, op) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(2)
        draws = torch.randn(2, 4, 1, 1, generator=generator)
        self.a, self.b = map(nn.Parameter, draws)
        self.c = nn.Parameter(torch.rand(4, 1, 1, generator=generator) + 0.5)
        self.op = op

    def forward(self, x: Tensor) -> Tensor:
        return self.op(self, x)


ONE_OP = {
    "lerp from": lambda s, x: torch.lerp(x, s.a, s.b),
    "lerp to": lambda s, x: torch.lerp(s.a, x, s.b),
    "lerp from, a number": lambda s, x: torch.lerp(x, s.a, 0.3),
    "lerp to, a number": lambda s, x: torch.lerp(s.a, x, 0.3),
    "addcmul": lambda s, x: torch.addcmul(s.a, x, s.b),
    "addcmul, second": lambda s, x: torch.addcmul(s.a, s.b, x, value=0.4),
    "addcmul to": lambda s, x: torch.addcmul(x, s.a, s.b),
    "addcmul to, value": lambda s, x: torch.addcmul(x, s.a, s.b, value=0.4),
    "addcdiv": lambda s, x: torch.addcdiv(s.a, x, s.c),
    "addcdiv, value": lambda s, x: torch.addcdiv(s.a, x, s.c, value=-0.4),
    "addcdiv to": lambda s, x: torch.addcdiv(x, s.a, s.c),
    "in place": lambda s, x: x.clone().addcdiv_(s.a, s.c, value=0.5),
}
NOT_ONE = {
    "lerp by x": lambda s, x: torch.lerp(s.a, s.b, x),
    "lerp of two": lambda s, x: torch.lerp(x, x.flip(1), s.b),
    "lerp of one twice": lambda s, x: torch.lerp(x, x, s.b),
    "addcmul of two": lambda s, x: torch.addcmul(s.a, x, x),
    "addcmul to one": lambda s, x: torch.addcmul(x, s.a, x),
    "addcdiv by x": lambda s, x: torch.addcdiv(s.a, s.b, x.abs() + 1.0),
    "addcdiv to one": lambda s, x: torch.addcdiv(x, x, s.c),
    "lerp in place": lambda s, x: s.a.expand_as(x).clone().lerp_(x, 0.25),
}


def beside_one_op(op):
    return build(nn.Sequential(nn.BatchNorm2d(4), OneOp(op), nn.Conv2d(4, 3, 1)))


@pytest.mark.parametrize("name", ONE_OP)
def test_a_step_of_one_op_goes(name):
    model, x = beside_one_op(ONE_OP[name]), image(2, 4, 5, 5)
    assert_folds(model, x, removed=2 if name != "in place" else None, verify=False)
    folded, report = bnfold.fold(torch.export.export(model, (x,)), verify=False)
    assert report.removed
    torch.testing.assert_close(folded.module()(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NOT_ONE)
def test_a_step_of_two_activations_is_none(name):
    model, x = beside_one_op(NOT_ONE[name]), image(2, 4, 5, 5)
    assert_folds(model, x, verify=False)
    folded, _ = bnfold.fold(torch.export.export(model, (x,)), verify=False)
    torch.testing.assert_close(folded.module()(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "op",
    [
        lambda s, x, k: torch.lerp(x, s.a, k),
        lambda s, x, k: torch.addcmul(x, s.a, s.b, value=k),
        lambda s, x, k: torch.addcdiv(x, s.a, s.c, value=k),
        lambda s, x, k: torch.addcmul(s.a, s.b, x, value=k),
    ],
)
@pytest.mark.parametrize("number", [0.0, 0.3, 1.0])
def test_a_number_that_the_caller_gives_is_no_constant(op, number):
    class Weighed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.step, self.head = nn.BatchNorm2d(4), OneOp(None), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor, number: float) -> Tensor:
            return self.head(op(self.step, self.norm(x), number))

    x = image(2, 4, 5, 5)
    assert_folds(build(Weighed()), (x, number), more=((x, number + 0.4),), verify=False)
