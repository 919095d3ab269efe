"""Merging in modules: one branch's convolution carries all, and the forward stays Python."""

from __future__ import annotations

import copy
import functools
import io
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812  # as everybody calls it
from torch.utils._python_dispatch import TorchDispatchMode

import bnfold
from bnfold.frontends.torch import fold as fold_module
from bnfold.frontends.torch.nothing import NOTHING, MergedAway
from tests.frontends.torch.support import assert_same, build, image, run
from tests.pairwise import pairwise
from tests.shallow import shallow

X = image(2, 8, 7, 7)


def convolution(kernel=3, *, groups=1, stride=1, bias=False, channels=8):
    return nn.Conv2d(channels, channels, kernel, stride, kernel // 2, groups=groups, bias=bias)


class Branches(nn.Module):
    """RepVGG's block, as most people write it."""

    def __init__(self):
        super().__init__()
        self.bn = nn.BatchNorm2d(8)
        self.wide = nn.Sequential(convolution(3), nn.BatchNorm2d(8))
        self.point = nn.Sequential(convolution(1), nn.BatchNorm2d(8))

    def forward(self, x):
        return F.relu(self.bn(x) + self.wide(x) + self.point(x))


def fold(model, x=X, **options):
    """Fold, and compare on other inputs too."""
    build(model)
    others = (x, image(*x.shape, seed=3))
    expected = [run(model, other) for other in others]
    folded, report = bnfold.fold(model, x, **options)
    for other, values in zip(others, expected, strict=True):
        assert_same(values, run(folded, other), 1e-9)
    return folded, report


def convolutions(model, x=X):
    """How many run."""
    calls = []
    hooks = [
        module.register_forward_hook(lambda *_: calls.append(1))
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(x)
    for hook in hooks:
        hook.remove()
    return len(calls)


# -------------------------------------------------------------------- what must not merge


def stays(model, x=X, **options):
    folded, report = fold(model, x, **options)
    assert report.merged == ()
    assert not any(isinstance(module, MergedAway) for module in folded.modules())


def test_never_is_never():
    stays(Branches(), merge="never")


class Two(nn.Module):
    """Two branches, and whatever a forward does with them."""

    def __init__(self, how, first=None, second=None):
        super().__init__()
        self.first = first or convolution(3)
        self.second = second or convolution(1)
        self.how = how

    def forward(self, x):
        return self.how(self, x)


def plain_sum(m, x):
    return m.first(x) + m.second(x)


def test_a_hooked_branch():
    model = Two(plain_sum)
    model.second.register_forward_hook(lambda module, inputs, output: None)
    stays(model)


def test_a_branch_inside_of_a_hooked_module():
    model = Two(plain_sum, second=nn.Sequential(convolution(1)))
    model.second.register_forward_hook(lambda module, inputs, output: None)
    stays(model)


def output_too(m, x):
    y = m.second(x)
    return m.first(x) + y, y


def pooled_too(m, x):
    y = m.second(x)
    return m.first(x) + y * y.mean()


def concatenated(m, x):
    return torch.cat([m.first(x), m.second(x)], 1)


def viewed(m, x):
    return m.first(x) + m.second(x).view(x.shape)


def of_a_size(m, x):
    y = m.second(x)
    return m.first(x) + y if y.shape[-1] > 2 else y


def activated(m, x):
    return m.first(x) + F.relu(m.second(x))


def of_another_tensor(m, x):
    return m.first(x) + m.second(F.relu(x))


def weighed(m, x):
    return m.first(x) + m.second(x) * m.second.weight.mean()


def of_a_window(m, x):
    return (m.first(x) + m.second(x)) * m.second.kernel_size[0]


def of_a_weight(m, x):
    return (m.first(x) + m.second(x)) * m.first.weight.abs().max()


def called_twice(m, x):
    return m.first(x) + m.second(x) + m.second(x.flip(-1))


def stacked(m, x):
    return torch.stack([m.first(x), m.second(x)]).sum(0)


def kept_by_another_name(m, x):
    y = m.second(x)
    z = y
    y += m.first(x)
    return y + z


def in_its_source(m, x):
    x = F.relu(x)
    y = x + m.second(x).mul(1.0)
    y += m.first(x)
    return torch.cat([x, y], 1)


def test_a_sum_is_not_written_over_its_source():
    """Without `second`, y would be x."""
    model = Two(in_its_source)
    folded, report = fold(model, X)
    assert [merged.into for merged in report.merged] == ["second"]
    assert_same(run(build(model), X), run(folded, X), 1e-9)


@pytest.mark.parametrize(
    "how",
    [
        *(output_too, pooled_too, concatenated, viewed, of_a_size, activated, of_another_tensor),
        *(weighed, of_a_window, of_a_weight, called_twice, stacked, kept_by_another_name),
    ],
    ids=lambda how: how.__name__,
)
def test_what_python_does_with_a_branch(how):
    stays(Two(how))


def test_a_module_that_is_two_branches():
    shared = convolution(3)
    stays(Two(plain_sum, shared, shared))


def test_tied_weights():
    model = Two(plain_sum, convolution(3), convolution(3))
    model.second.weight = model.first.weight
    stays(model)


def test_a_weight_that_somebody_holds():
    model = Two(plain_sum)
    model.other = nn.Linear(1, 1)
    model.other.weight = model.first.weight
    stays(model)


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_with_something_else(mode):
    first = nn.Conv2d(8, 8, 3, padding=1, padding_mode=mode)
    stays(Two(plain_sum, first))


def test_windows_without_a_common_grid():
    stays(Two(plain_sum, nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 8, 2, 2, 0)), image(2, 8, 8, 8))


class Residual(nn.Module):
    def __init__(self, *branch):
        super().__init__()
        self.branch = nn.Sequential(*branch)

    def forward(self, x):
        return x + self.branch(x)


@pytest.mark.parametrize(
    "last",
    [
        nn.Conv2d(32, 8, 3),
        nn.Conv2d(32, 4, 3, stride=2, padding=1),
        nn.Conv2d(32, 8, 2, stride=2, bias=False),
        nn.ConvTranspose2d(32, 8, 2, stride=2),
    ],
)
def test_a_residual_in_front_of_what_changes_the_size(last):
    """All is linear, but x + keeps x, which no convolution of another size can take back."""
    fold(nn.Sequential(Residual(convolution(3)), nn.Conv2d(8, 32, 1), last))


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    ("kernel", "options"),
    [
        (2, {"stride": 2}),
        (1, {"stride": 2}),
        (2, {"stride": 1}),
        (2, {"dilation": 2}),
        (3, {"padding": 1}),
        (3, {"stride": 2, "padding": 1, "output_padding": 1}),
        (2, {"stride": 2, "groups": 4}),
    ],
)
def test_a_convolution_behind_a_transposed_one(kernel, options, verify):
    """No Conv2d does the work of both, though it has as many taps."""
    transposed = nn.ConvTranspose2d(8, 8, kernel, **options)
    stays(nn.Sequential(transposed, nn.Conv2d(8, 4, 1)), verify=verify)


@pytest.mark.parametrize("verify", [False, True])
def test_convolutions_and_a_transposed_one_of_one_tap(verify):
    """It is a convolution that lays its weight out another way."""
    transposed = nn.ConvTranspose2d(4, 8, 1)
    model = nn.Sequential(nn.Conv2d(8, 4, 1), transposed, nn.Conv2d(8, 4, 3, padding=1))
    folded, report = fold(model, verify=verify)
    assert [merged.parts for merged in report.merged] == [("1",)]
    assert not any(isinstance(module, nn.ConvTranspose2d) for module in folded.modules())


def test_a_bias_before_padded_zeros():
    stays(nn.Sequential(convolution(1, bias=True), convolution(3)))


def test_a_dense_branch_beside_a_depthwise_one():
    stays(Two(plain_sum, convolution(3, groups=8), convolution(1)))


def test_an_activation_in_between():
    stays(nn.Sequential(convolution(1), nn.ReLU(), convolution(1)))


@pytest.mark.parametrize("name", ["point", "point.0", "wide.1"])
def test_a_branch_that_is_kept(name):
    model = Branches()
    folded, report = fold(model, keep=[name])
    assert all(not one.into.startswith(name) for one in report.merged)
    kept, own = folded.get_submodule(name), model.get_submodule(name)
    assert type(kept) is type(own)
    assert_same(run(own, X), run(kept, X), 1e-12)


def test_a_branch_in_training():
    model = build(Branches())
    model.point[1].train()
    _, report = bnfold.fold(model, X)
    assert all("point.1" not in one.parts for one in report.merged)


def test_a_branch_with_a_parametrization():
    model = Two(plain_sum)
    nn.utils.parametrizations.weight_norm(model.second)
    stays(model)


def test_a_branch_of_another_dtype():
    class Halved(Two):
        def forward(self, x):
            return self.first(x) + self.second(x.float()).to(x.dtype)

    model = build(Halved(None))
    model.second.float()
    _, report = bnfold.fold(model, X)
    assert report.merged == ()


def test_a_sum_that_does_not_fit_the_dtype():
    model = Two(plain_sum).half().eval()
    with torch.no_grad():
        model.first.weight.fill_(0)
        model.first.weight[:, :, 1, 1] = 6e4
        model.second.weight.fill_(6e4)
    _, report = bnfold.fold(model, torch.zeros(1, 8, 4, 4).half())
    assert report.merged == ()


def test_a_run_that_goes_another_way():
    def by_value(m, x):
        return m.first(x) if x.shape[0] == 1 else m.first(x) + m.second(x)

    model = build(Two(by_value))
    one = image(1, 8, 7, 7)
    for verify in (True, False):
        folded, report = bnfold.fold(model, X, also=[one], verify=verify)
        assert report.merged == ()
        assert_same(run(model, one), run(folded, one), 1e-9)


def test_a_method_that_is_run_too():
    class Entered(Two):
        def one(self, x):
            return self.second(x)

    model = build(Entered(plain_sum))
    folded, report = bnfold.fold(model, X, entry=["one"])
    assert report.merged == ()
    assert_same([model.one(X)], [folded.one(X)], 1e-9)


@pytest.mark.parametrize("how", [of_a_size, of_a_window, kept_by_another_name])
def test_the_report_says_that_it_is_the_code(how):
    model = build(Two(how))
    for report in (bnfold.fold(model, X)[1], bnfold.inspect(model, X)):
        assert [str(one.reason) for one in report.unmerged] == ["code"]


def test_no_merge_makes_a_step_stay():
    model = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(8), convolution(1), convolution(3))
    _, report = fold(model)
    assert report.kept == 0, str(report)


def test_never_says_nothing_of_merges():
    _, report = fold(Two(of_a_window), merge="never")
    assert (report.merged, report.unmerged) == ((), ())


# -------------------------------------------------------------------- what must


def merges(model, x=X, left=1, **options):
    folded, report = fold(model, x, **options)
    assert report.merged
    assert report.kept == 0, str(report)
    assert convolutions(folded, x) == left
    assert type(folded) is type(model)
    return folded


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"inplace": True}], ids=str)
def test_branches_are_one(options):
    model = Branches()
    folded = merges(model, **options)
    assert (folded is model) == ("inplace" in options)


def in_place(m, x):
    y = m.second(x)
    y += m.first(x)
    return y


def of_a_list(m, x):
    return sum([m.first(x), m.second(x)])


def by_functions(m, x):
    return torch.add(m.first(x), torch.mul(m.second(x), 1.0) if False else m.second(x))


def a_difference(m, x):
    return m.first(x) - m.second(x)


def the_other_way_round(m, x):
    return m.second(x) - m.first(x)


def by_a_multiple(m, x):
    return torch.add(m.first(x), m.second(x), alpha=2)


def with_itself(m, x):
    return x + m.first(x) + m.second(x)


def with_itself_last(m, x):
    return F.relu(m.first(x) + (m.second(x) + x))


def from_zero(m, x):
    out = 0
    for part in (m.first, m.second):
        out += part(x)
    return out


def beside_another(m, x):
    return m.first(x) + F.relu(x) + m.second(x)


def with_what_is_subtracted(m, x):
    return F.relu(x) - (m.first(x) - m.second(x))


def dropped_out(m, x):
    return m.first(x) + F.dropout(m.second(x), 0.5, m.training)


SUMS = [
    *(plain_sum, in_place, of_a_list, by_functions, a_difference, the_other_way_round),
    *(by_a_multiple, with_itself, with_itself_last, from_zero, beside_another),
    *(with_what_is_subtracted,),
]


@pytest.mark.parametrize("how", SUMS, ids=lambda how: how.__name__)
def test_sums_of_two_branches(how):
    merges(Two(how))


@pytest.mark.parametrize("how", SUMS, ids=lambda how: how.__name__)
def test_sums_of_longer_branches(how):
    first = nn.Sequential(convolution(1), nn.Identity(), nn.BatchNorm2d(8))
    second = nn.Sequential(nn.BatchNorm2d(8), convolution(1, bias=True), nn.BatchNorm2d(8))
    merges(Two(how, first, second))


def zero_behind(m, x):
    out = m.first(x) + m.second(x)
    out += 0
    return F.relu_(out)


def zeros_on_both_sides(m, x):
    out = 0
    for part in (m.first, m.second):
        out = out + part(x)
    return out + 0


def zeros_in_between(m, x):
    return (m.first(x) + 0 + m.second(x) + 0.0) * 2


def zeros_by_functions(m, x):
    return torch.sub(torch.add(m.first(x) + m.second(x), 0), 0).add_(0).mean((2, 3))


def zero_taken_away(m, x):
    out = m.first(x) - m.second(x)
    out -= 0
    return out[:, 1:]


def zero_before_a_shortcut(m, x):
    out = m.first(x) + m.second(x)
    out += 0
    out += F.relu(x)
    return out + 0


def zero_that_is_read_twice(m, x):
    out = m.first(x) + m.second(x)
    return torch.cat([out + 0, F.relu(out)], 1)


def zero_in_a_dropout(m, x):
    return F.dropout(m.first(x) + m.second(x), 0.5, m.training) + 0


ZEROS = [
    *(zero_behind, zeros_on_both_sides, zeros_in_between, zeros_by_functions, zero_taken_away),
    *(zero_before_a_shortcut, zero_that_is_read_twice, zero_in_a_dropout),
]


def normed(kernel):
    return nn.Sequential(convolution(kernel), nn.BatchNorm2d(8))


@pytest.mark.parametrize("how", ZEROS, ids=lambda how: how.__name__)
def test_zeros_that_code_adds(how):
    folded = merges(Two(how, normed(3), normed(1)))
    again, report = bnfold.fold(folded, X)
    assert (report.merged, report.items) == ((), ())
    assert_same(run(folded, X), run(again, X), 0.0)


class LayerScale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1.0, 1.0, 8).view(8, 1, 1))

    def forward(self, x):
        return x * self.gamma


class Acting(nn.BatchNorm2d):
    """A BatchNorm that runs modules of its own behind it, as timm's does."""

    def __init__(self):
        super().__init__(8)
        self.drop, self.act = nn.Identity(), nn.Identity()

    def forward(self, x):
        made = F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)
        return self.act(self.drop(made))


def zero_before_a_step(m, x):
    short = 0 if m.second is None else m.second(x)
    out = 0
    out += m.first(x)
    out += short
    return F.relu(out)


def zeros_before_a_step(m, x):
    return F.gelu(0.0 + m.first(x) + 0 + m.second(x))


class Additions(TorchDispatchMode):
    """Counts them."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith("aten.add")
        return func(*args, **(kwargs or {}))


def additions(model):
    with torch.no_grad(), Additions() as counted:
        model(X)
    return counted.count


SEATED = [
    (how, step)
    for how in (zero_before_a_step, zeros_before_a_step)
    for step in (lambda: nn.BatchNorm2d(8), Acting, LayerScale)
]


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(("how", "step"), SEATED, ids=lambda part: part.__name__)
def test_the_convolution_stands_where_no_sum_is_left(how, step, inplace):
    model = Two(how, normed(3), step())
    folded, report = fold(model, inplace=inplace)
    assert (convolutions(folded), additions(folded)) == (1, 0)
    assert [merged.into for merged in report.merged] == ["second"]
    assert "first.0" in report.merged[0].parts
    assert not report.kept
    assert isinstance(folded.first, MergedAway)
    _, report = bnfold.fold(folded, X)
    assert (report.merged, report.items) == ((), ())
    for way in () if inplace or how is zeros_before_a_step else WAYS.values():
        with torch.no_grad():
            assert_same(run(folded, X), run(way(folded, X), X), 1e-9)


def read(m, x):
    return zero_before_a_step(m, x) * m.second.weight.sum()


def asked(m, x):
    return zero_before_a_step(m, x) * (2 if isinstance(m.second, nn.BatchNorm2d) else 1)


def hooked(m, x):
    if not m.second._forward_hooks:
        m.second.register_forward_hook(lambda module, given, made: made + 1)
    return zero_before_a_step(m, x)


@pytest.mark.parametrize("how", [read, asked, hooked], ids=lambda how: how.__name__)
def test_no_convolution_stands_where_somebody_looks(how):
    folded, _ = fold(Two(how, normed(3), nn.BatchNorm2d(8)))
    assert not isinstance(folded.second, nn.Conv2d)


def test_no_convolution_stands_where_a_step_is_kept():
    folded, _ = fold(Two(zero_before_a_step, normed(3), nn.BatchNorm2d(8)), keep=["second"])
    assert isinstance(folded.second, nn.BatchNorm2d)


def test_a_branch_that_returns_nothing_has_hooks():
    """They are called, too, though it does not go through PyTorch's own call without them."""
    folded, seen = merges(Branches()), []
    away = next(module for module in folded.modules() if isinstance(module, MergedAway))
    expected = run(folded, X)
    before = away.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape))
    behind = away.register_forward_hook(lambda module, given, made: seen.append(made))
    assert_same(expected, run(folded, X), 0.0)
    assert seen == [X.shape, NOTHING]
    before.remove()
    behind.remove()
    assert_same(expected, run(folded, X), 0.0)
    assert len(seen) == 2
    assert away(input=X) is NOTHING


class Weighed(Two):
    """A branch times a parameter: QARepVGG, PP-YOLOE."""

    def __init__(self, how, *branches):
        super().__init__(how, *branches)
        self.alpha = nn.Parameter(torch.tensor([0.7]))
        self.register_buffer("beta", torch.tensor(-0.3))
        self.gamma = nn.Parameter(torch.linspace(-1.0, 1.0, 8).reshape(8, 1, 1))


def times_a_parameter(m, x):
    return m.first(x) + m.alpha * m.second(x)


def times_a_parameter_behind(m, x):
    return m.first(x) + m.second(x) * m.alpha


def times_a_buffer(m, x):
    return m.second(x) * m.beta + m.first(x)


def times_one_per_channel(m, x):
    return F.relu(m.first(x) + m.gamma * m.second(x))


def by_a_parameter(m, x):
    return m.first(x) - m.second(x) / m.alpha


def negated(m, x):
    return m.first(x) + -m.second(x)


def times_two(m, x):
    return m.first(x) + m.alpha * (m.beta * m.second(x))


def weighed_in_place(m, x):
    y = m.second(x)
    y *= m.alpha
    return m.first(x) + y


def weighed_by_functions(m, x):
    return torch.add(m.first(x), torch.mul(m.alpha, m.second(x)))


def weighed_and_itself(m, x):
    return F.relu(m.first(x) + m.alpha * m.second(x) + x)


WEIGHED = [
    *(times_a_parameter, times_a_parameter_behind, times_a_buffer, times_one_per_channel),
    *(by_a_parameter, negated, times_two, weighed_in_place, weighed_by_functions),
    *(weighed_and_itself,),
]


@pytest.mark.parametrize("how", WEIGHED, ids=lambda how: how.__name__)
def test_branches_times_parameters(how):
    folded = merges(Weighed(how))
    assert {"alpha", "beta", "gamma"} <= folded.state_dict().keys()


@pytest.mark.parametrize("how", WEIGHED, ids=lambda how: how.__name__)
def test_a_second_fold_of_branches_times_parameters(how):
    folded = merges(Weighed(how))
    again, report = bnfold.fold(copy.deepcopy(folded), X)
    assert not report.merged and report.removed == 0
    assert_same(run(folded, X), run(again, X), 0.0)


def times_its_own_bias(m, x):
    return m.first(x) + m.second(x) * m.second.bias.reshape(8, 1, 1) + m.third(x)


def times_the_bias_of_another(m, x):
    return m.first(x) + m.second(x) * m.first.bias.reshape(8, 1, 1) + m.third(x)


@pytest.mark.parametrize("how", [times_its_own_bias, times_the_bias_of_another])
def test_a_factor_that_a_merged_module_holds(how):
    """What is read of a module stays; the branches without such a factor are one."""
    model = Two(how, convolution(3, bias=True), convolution(1, bias=True))
    model.third = convolution(1, bias=True)
    folded, _ = fold(model)
    assert convolutions(folded) >= 2


def times_what_is_made_of_it(m, x):
    return m.first(x) + m.second(x) * m.gamma.reshape(1, 8, 1, 1)


def times_one_of_several(m, x):
    return m.first(x) + m.second(x) * m.gamma[3]


@pytest.mark.parametrize("how", [times_what_is_made_of_it, times_one_of_several])
def test_a_factor_that_is_made_of_a_parameter_lets_other_branches_merge(how):
    first = nn.Sequential(Branches(), convolution(3))
    folded, report = fold(Weighed(how, first))
    assert report.merged and convolutions(folded) == 3


class RepMixer(nn.Module):
    """FastViT's: what is merged is scaled, and added to what went in."""

    def __init__(self):
        super().__init__()
        self.mixer, self.norm = Two(plain_sum), nn.BatchNorm2d(8)
        self.mixer.first = convolution(3, groups=8)
        self.mixer.second = convolution(1, groups=8)
        self.scale = LayerScale()

    def forward(self, x):
        return x + self.scale(self.mixer(x) - self.norm(x))


class Normalised(nn.Module):
    """RepViT's: a BatchNorm behind the sum."""

    def __init__(self):
        super().__init__()
        self.first, self.second = convolution(3, groups=8), convolution(1, groups=8, bias=True)
        self.bn = nn.BatchNorm2d(8)

    def forward(self, x):
        return F.gelu(self.bn(self.first(x) + self.second(x) + x))


class Asymmetric(nn.Module):
    """ACNet's."""

    def __init__(self):
        super().__init__()
        self.square = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.row = nn.Conv2d(8, 8, (1, 3), padding=(0, 1), bias=False)
        self.column = nn.Conv2d(8, 8, (3, 1), padding=(1, 0))
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))

    def forward(self, x):
        parts = (self.square, self.row, self.column)
        return sum(norm(part(x)) for norm, part in zip(self.norms, parts, strict=True))


class Cross(Asymmetric):
    """Neither part has the window of both."""

    def forward(self, x):
        return self.norms[0](self.row(x)) + self.norms[1](self.column(x))


@pytest.mark.parametrize("kind", [RepMixer, Normalised, Asymmetric], ids=lambda k: k.__name__)
def test_blocks_of_people(kind):
    merges(kind())


def test_a_pointwise_chain():
    merges(nn.Sequential(convolution(1, bias=True), nn.BatchNorm2d(8), convolution(1)))


def test_chains_of_other_channels():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1))
    merges(model)
    merges(nn.Sequential(nn.Linear(7, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)), image(4, 7))


def test_what_cannot_be_merged_is_read_once_more(monkeypatch):
    calls = []
    counted = fold_module.Folding._with
    monkeypatch.setattr(
        fold_module.Folding, "_with", lambda *a, **k: calls.append(1) or counted(*a, **k)
    )
    stays(Two(of_a_window))
    assert len(calls) == 1


def test_linears():
    model = Two(plain_sum, nn.Linear(6, 5), nn.Linear(6, 5, bias=False))
    merges(model, image(3, 4, 6))


@pytest.mark.parametrize("rank", [1, 3])
def test_other_ranks(rank):
    kind = {1: nn.Conv1d, 3: nn.Conv3d}[rank]
    model = Two(plain_sum, kind(4, 4, 3, padding=1), kind(4, 4, 1))
    _, report = fold(model, image(2, 4, *(5,) * rank))
    assert len(report.merged) == 1


def test_several_runs():
    model = Branches()
    merges(model, also=[image(1, 8, 9, 5)])


def test_the_report_tells():
    _, report = fold(Branches())
    assert [item.name for item in report.items] == ["bn", "wide.1", "point.1"]
    assert all(item.is_removed and item.into == ("wide.0",) for item in report.items)
    (one,) = report.merged
    assert (one.into, one.kind) == ("wide.0", "Conv2d")
    assert {"bn", "wide.1", "point.0", "point.1"} <= {*one.parts}


def test_a_look_tells_the_same():
    model = build(Branches())
    look, (_, report) = bnfold.inspect(model, X), bnfold.fold(model, X)
    assert (look.merged, look.items, look.unmerged) == (report.merged, report.items, ())


class Diverse(nn.Module):
    """A diverse branch block."""

    def __init__(self):
        super().__init__()
        self.point = nn.Sequential(convolution(1), nn.BatchNorm2d(8))
        self.wide = nn.Sequential(convolution(3), nn.BatchNorm2d(8))
        self.mean = nn.Sequential(
            convolution(1), nn.BatchNorm2d(8, affine=False), nn.AvgPool2d(3, 1, 0)
        )
        self.wide[0].padding = self.mean[2].padding = (0, 0)

    def forward(self, x):
        return self.point(x[..., 1:-1, 1:-1]) + self.wide(x) + self.mean(x)


def test_mean_pooling():
    merges(Diverse(), left=2)


class Padded(Branches):
    """A serial branch with zeros from a module of their own, and a BatchNorm behind them."""

    def __init__(self, pad):
        super().__init__()
        self.serial = nn.Sequential(
            convolution(1), pad, nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, bias=False)
        )

    def forward(self, x):
        return self.bn(x) + self.wide(x) + self.point(x) + self.serial(x)


class ByTheSize(nn.ZeroPad2d):
    """What is padded is no setting."""

    def forward(self, x):
        return F.pad(x, (x.shape[2] // 7, 1, 1, 1))


@pytest.mark.parametrize(
    ("pad", "left"),
    [
        (nn.ZeroPad2d(1), 1),
        (nn.ConstantPad2d(1, 0.0), 1),
        (nn.ConstantPad2d(1, 0.5), 3),
        (ByTheSize(1), 3),
    ],
)
def test_padding_by_a_module_of_its_own(pad, left):
    folded, _ = fold(Padded(pad))
    assert convolutions(folded) == left


class Crop(nn.Module):
    def __init__(self, by_the_size):
        super().__init__()
        self.by_the_size = by_the_size

    def forward(self, x):
        rows = x.shape[2] // 7 if self.by_the_size else 1
        return x[:, :, rows:-rows, :]


class Unpadded(nn.Module):
    """An asymmetric block that crops what its flat branch reads."""

    def __init__(self, by_the_size):
        super().__init__()
        self.square, self.flat = nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, (1, 3))
        self.crop, self.bn = Crop(by_the_size), nn.BatchNorm2d(8)

    def forward(self, x):
        return self.square(x) + self.bn(self.flat(self.crop(x)))


@pytest.mark.parametrize(("by_the_size", "left"), [(False, 1), (True, 2)])
def test_a_border_that_a_module_cuts_off(by_the_size, left):
    folded, _ = fold(Unpadded(by_the_size))
    assert convolutions(folded) == left


def test_no_parameter_of_what_is_gone_is_left():
    folded = merges(Branches())
    assert sorted(folded.state_dict()) == ["wide.0.bias", "wide.0.weight"]


def test_the_given_module_is_not_touched():
    model = build(Branches())
    before, text = copy.deepcopy(model.state_dict()), repr(model)
    folded, _ = bnfold.fold(model, X)
    assert repr(model) == text
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    own = {id(parameter) for parameter in model.parameters()}
    assert all(id(parameter) not in own for parameter in folded.parameters())
    folded.wide[0].register_forward_hook(lambda *_: None)
    assert not model.wide[0]._forward_hooks


def test_a_second_fold_changes_nothing():
    folded = merges(Branches())
    again, report = bnfold.fold(folded, X)
    assert report.merged == ()
    assert not report.items
    assert_same(run(folded, X), run(again, X), 0.0)


def compiled(model, x):
    torch._dynamo.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


def exported(model, x):
    return torch.export.export(model, (x,), strict=False).module()


def exported_strictly(model, x):
    return torch.export.export(model, (x,), strict=True).module()


def saved(model, x):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def loaded(model, x):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(model.state_dict())
    return other


WAYS = {
    "deepcopy": lambda model, x: copy.deepcopy(model),
    "pickle": lambda model, x: pickle.loads(pickle.dumps(model)),
    "save": saved,
    "state_dict": loaded,
    "trace": torch.jit.trace,
    "compile": compiled,
    "export": exported,
    "strict export": exported_strictly,
}


@functools.cache
def merged(how):
    """Nothing that people do with it changes it."""
    return merges(Weighed(how) if how in WEIGHED else Two(how))


USED = pairwise([*SUMS, *WEIGHED], list(WAYS), lambda how: {how in WEIGHED})


@pytest.mark.parametrize(("how", "way"), USED, ids=lambda part: getattr(part, "__name__", None))
def test_what_people_do_with_a_module(how, way):
    model = merged(how)
    with torch.no_grad():
        assert_same(run(model, X), run(WAYS[way](model, X), X), 1e-9)


@pytest.mark.parametrize("way", [torch.jit.script, lambda m: torch.fx.symbolic_trace(m)])
def test_scripts_and_traces_of_fx(way):
    model = merges(Branches())
    with torch.no_grad():
        assert_same(run(model, X), run(way(model), X), 1e-9)


# -------------------------------------------------------------------- nothing


def test_nothing_is_the_zero_of_sums():
    x = torch.ones(2)
    assert x + NOTHING is x
    assert NOTHING + x is x
    assert torch.add(x, NOTHING, alpha=3) is x
    assert torch.equal(torch.add(NOTHING, x, alpha=3), 3 * x)
    assert x - NOTHING is x
    assert torch.equal(NOTHING - x, -x)
    assert torch.equal(torch.sub(NOTHING, x, alpha=3), -3 * x)
    assert sum([NOTHING, x, NOTHING]) is x
    y = x
    y += NOTHING
    assert y is x
    for nothing in (
        NOTHING + NOTHING,
        0 + NOTHING,
        NOTHING - 0,
        2 * NOTHING,
        NOTHING * x,
        x * NOTHING,
    ):
        assert nothing is NOTHING
    for nothing in (NOTHING / 2, -NOTHING, F.dropout(NOTHING), nn.Identity()(NOTHING)):
        assert nothing is NOTHING
    assert pickle.loads(pickle.dumps(NOTHING)) is NOTHING
    assert copy.deepcopy(NOTHING) is NOTHING


@pytest.mark.parametrize(
    "use",
    [
        lambda: NOTHING + 1,
        lambda: 2 - NOTHING,
        lambda: F.relu(NOTHING),
        lambda: torch.cat([NOTHING, torch.ones(1)]),
        lambda: NOTHING.shape,
        lambda: NOTHING.mean(),
        lambda: F.conv2d(NOTHING, torch.ones(1, 1, 1, 1)),
    ],
)
def test_anything_else_says_what_is_wrong(use):
    with pytest.raises((TypeError, AttributeError), match="merge='never'"):
        use()


# -------------------------------------------------------------------- networks


@pytest.mark.parametrize(
    ("name", "size", "left", "verify"),
    [
        ("repvgg_a0", 96, 9, True),
        ("mobileone_s0", 96, 10, False),
        ("repvit_m0_9", 96, 47, True),
        ("fastvit_t8", 96, 29, True),
        ("ghostnetv3_100", 96, 19, False),
    ],
)
def test_networks(name, size, left, verify):
    from benchmarks.randomize import randomize_statistics, spread_constants
    from benchmarks.vision import load_vision

    model = load_vision().timm.create_model(name, **shallow(name)).eval().double()
    if name == "ghostnetv3_100":  # a third of its stages
        model = nn.Sequential(model.conv_stem, model.bn1, model.act1, *model.blocks[:3]).eval()
    x, other = image(2, 3, size, size), image(2, 3, size, size, seed=1)
    randomize_statistics(model, inputs=x)
    spread_constants(model)
    expected = run(model, other)
    folded, report = bnfold.fold(model, x, verify=verify)
    assert type(folded) is type(model)
    assert report.kept == 0, str(report)
    assert convolutions(folded, x) == left
    assert_same(expected, run(folded, other), 1e-9)
    twin = pickle.loads(pickle.dumps(copy.deepcopy(folded)))
    assert_same(expected, run(twin, other), 1e-9)
    again, second = bnfold.fold(folded, x, verify=False)
    assert (second.merged, second.removed) == ((), 0)
    assert_same(expected, run(again, other), 1e-9)


class Closed(nn.Conv2d):
    """A class that does not want to be changed."""

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("closed") and name != "training":
            raise AttributeError(name)
        super().__setattr__(name, value)


@pytest.mark.parametrize("inplace", [False, True])
def test_a_layer_that_refuses_to_be_changed_is_no_carrier(*, inplace: bool) -> None:
    model = build(nn.Sequential(Closed(3, 4, 3), nn.Conv2d(4, 2, 1), nn.ReLU()))
    model[0].__dict__["closed"] = True
    example = image(2, 3, 6, 6)
    expected = model(example)
    folded, report = bnfold.fold(model, example, inplace=inplace)
    assert not report.merged
    torch.testing.assert_close(folded(example), expected, rtol=1e-9, atol=1e-9)


def test_a_pooling_with_a_stride_in_front():
    class Reduction(nn.Module):
        """As in NASNet."""

        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Sequential(nn.AvgPool2d(1, stride=2), nn.Conv2d(4, 3, 1, bias=False))
            self.second = nn.Sequential(nn.AvgPool2d(1, stride=2), nn.Conv2d(4, 3, 1, bias=False))
            self.bn = nn.BatchNorm2d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = F.relu(x)
            second = self.second(F.pad(x, (-1, 1, -1, 1)))
            return self.bn(torch.cat([self.first(x), second], 1))

    model = build(Reduction())
    x = image(2, 4, 8, 8)
    folded, report = bnfold.fold(model, x)
    assert len(report.merged) == 2 and report.kept == 0
    assert report.verdict is not None and report.verdict.equal
    assert_same(run(model, x), run(folded, x), 1e-9)
