"""Hazard 2: one module, weight or activation with several uses."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
import torch.nn.utils.prune
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_folds, assert_same, build, image, run


class Net(nn.Module):
    def __init__(self, forward, **children) -> None:
        super().__init__()
        for name, child in children.items():
            setattr(self, name, child)
        self.program = forward

    def forward(self, *args, **kwargs):
        return self.program(self, *args, **kwargs)


def conv(ins=4, outs=4, kernel=1, **options):
    return nn.Conv2d(ins, outs, kernel, **options)


def test_conv_with_two_batch_norms_keeps_its_weight():
    model = Net(
        lambda m, x: m.a(m.conv(x)) * m.b(m.conv(x + 1)),
        conv=conv(3),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 3, 5, 5))


def test_conv_output_with_two_batch_norms():
    model = Net(
        lambda m, x: (lambda y: m.a(y) - m.b(y).abs())(m.conv(x)),
        conv=conv(3),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 3, 5, 5))


def test_block_called_twice():
    block = nn.Sequential(conv(3, 3), nn.BatchNorm2d(3), nn.ReLU())
    assert_folds(build(Net(lambda m, x: m.block(m.block(x)), block=block)), image(2, 3, 5, 5))


def test_block_called_on_two_inputs():
    block = nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    model = Net(lambda m, a, b: torch.cat([m.block(a), m.block(b)], 1), block=block)
    assert_folds(build(model), (image(2, 3, 5, 5), image(2, 3, 5, 5, seed=1)), removed=1)


def head() -> nn.Sequential:
    """A head with a channel that is the constant beta, in front of an op that lets none pass."""
    block = nn.Sequential(conv(3, 4, bias=False), nn.BatchNorm2d(4), nn.Sigmoid(), conv(4, 2))
    build(block)[1].weight.data[0] = 0.0
    return block


def test_gamma_zero_in_a_head_on_two_levels():
    model = Net(lambda m, a, b: torch.cat([m.head(a), m.head(b)], 1), head=head()).eval()
    x = (image(2, 3, 5, 5), image(2, 3, 5, 5, seed=1))
    assert_folds(model, x, removed=1)
    _, report = bnfold.fold(torch.export.export(model, x))
    assert (report.removed, report.total) == (2, 2)


def test_gamma_zero_in_a_head_with_one_reader_more():
    def forward(m, a, b):
        return m.head(a), m.head(b), m.head[0](b)

    x = (image(2, 3, 5, 5), image(2, 3, 5, 5, seed=1))
    assert_folds(Net(forward, head=head()).eval(), x, removed=0)


def test_gamma_zero_in_a_model_on_two_sizes():
    assert_folds(head(), image(2, 3, 5, 5), also=[image(1, 3, 9, 4)], removed=1)


def test_gamma_zero_in_front_of_a_shared_block():
    """Its convolution takes the constant of both calls."""
    model = Net(
        lambda m, x: (lambda y: m.block(y) + m.block(m.pool(y)))(torch.sigmoid(x)),
        block=nn.Sequential(nn.BatchNorm2d(3), conv(3, 2)),
        pool=nn.MaxPool2d(3, 1, 1),
    )
    build(model).block[0].weight.data[::2] = 0.0
    assert_folds(model, image(2, 3, 5, 5), removed=1)


def rectified(relu: nn.Module) -> nn.Sequential:
    """A BatchNorm that goes only if the activation in front of it gets bounds per channel."""
    return nn.Sequential(conv(3, 4), relu, nn.BatchNorm2d(4), nn.MaxPool2d(2, 1), conv(4, 2))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("size", [(5, 5), (9, 4)])
def test_bounds_of_a_relu_on_two_sizes(size, inplace):
    model = build(rectified(nn.ReLU(inplace=inplace)))
    report = assert_folds(model, image(2, 3, 5, 5), also=[image(1, 3, *size)], removed=1)
    assert report.clips == ("1",)


def test_bounds_of_a_relu_in_front_of_a_recurrent_layer():
    model = Net(
        lambda m, x: m.gru(m.part(x).flatten(2).transpose(1, 2))[0],
        part=rectified(nn.ReLU()),
        gru=nn.GRU(2, 3, batch_first=True),
    )
    assert_folds(build(model), image(2, 3, 5, 5), removed=1)


def test_bounds_of_a_relu_in_a_head_on_two_levels():
    model = Net(lambda m, x: m.head(x) + m.head(x.flip(3)), head=rectified(nn.ReLU()))
    assert_folds(build(model), image(2, 3, 5, 5), removed=1)


def test_no_bounds_of_a_relu_that_has_another_place_on_another_size():
    def forward(m, x):
        return m.part(x) if x.shape[-1] > 4 else m.last(m.part[1](m.wide(x)))

    model = Net(forward, part=rectified(nn.ReLU()), wide=conv(3, 6), last=conv(6, 2))
    assert_folds(build(model), image(2, 3, 5, 5), also=[image(2, 3, 4, 4)], removed=0)


@pytest.mark.parametrize("bias", [(True, True), (True, False), (False, False)])
def test_weight_under_two_names(bias):
    first, second = conv(4, 4, bias=bias[0]), conv(4, 4, bias=bias[1])
    second.weight = first.weight
    model = Net(
        lambda m, x: m.bn2(m.second(torch.tanh(m.bn1(m.first(x))))),
        first=first,
        second=second,
        bn1=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 4, 5, 5))
    assert_folds(build(model), image(2, 4, 5, 5), clip="always")


def test_weight_under_two_names_and_equal_batch_norms_stays_shared():
    first, second = conv(4, 4), conv(4, 4)
    second.weight, second.bias = first.weight, first.bias
    model = build(
        Net(
            lambda m, x: m.bn2(m.second(torch.tanh(m.bn1(m.first(x))))),
            first=first,
            second=second,
            bn1=nn.BatchNorm2d(4),
            bn2=nn.BatchNorm2d(4),
        )
    )
    model.bn2.load_state_dict(model.bn1.state_dict())
    assert_folds(model, image(2, 4, 5, 5), removed=2)
    folded, _ = bnfold.fold(model, image(2, 4, 5, 5))
    assert folded.first.weight is folded.second.weight


def test_weight_used_as_conv_and_by_a_function():
    model = Net(
        lambda m, x: m.bn(m.conv(x)) + functional.conv2d(x, m.conv.weight.abs()),
        conv=conv(3),
        bn=nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 3, 5, 5))


@pytest.mark.parametrize("how", ["data", "detach", "view", "index", "clone", "parameter of data"])
def test_weight_read_in_a_roundabout_way(how):
    def program(m, x):
        w = m.conv.weight
        if how == "data":
            w = w.data
        elif how == "detach":
            w = w.detach()
        elif how == "view":
            w = w.view(4, 3, 1, 1)
        elif how == "index":
            w = w[[0, 1, 2, 3]]
        elif how == "clone":
            w = w.clone()
        else:
            w = nn.Parameter(w.data)
        return m.bn(m.conv(x)) + functional.conv2d(x, w)

    assert_folds(build(Net(program, conv=conv(3), bn=nn.BatchNorm2d(4))), image(2, 3, 5, 5))


def test_bias_that_is_read_elsewhere():
    model = Net(
        lambda m, x: m.bn(m.conv(x)) + m.conv.bias.sum(), conv=conv(3), bn=nn.BatchNorm2d(4)
    )
    assert_folds(build(model), image(2, 3, 5, 5))


def test_bias_under_two_names():
    first, second = conv(4, 4), conv(4, 4)
    second.bias = first.bias
    model = Net(
        lambda m, x: m.bn2(m.second(torch.tanh(m.bn1(m.first(x))))),
        first=first,
        second=second,
        bn1=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 4, 5, 5))


def test_weight_is_the_bias_of_another_layer():
    first, second = nn.Linear(4, 4), nn.Linear(4, 16)
    first.weight = nn.Parameter(torch.randn(4, 4))

    def program(m, x):
        return m.bn2(functional.linear(m.bn1(m.first(x)), m.second.weight, m.first.weight.view(-1)))

    model = Net(program, first=first, second=second, bn1=nn.BatchNorm1d(4), bn2=nn.BatchNorm1d(16))
    assert_folds(build(model), image(3, 4))


def test_batch_norm_called_twice_on_different_convs():
    model = Net(
        lambda m, x: m.bn(m.a(x)) * m.bn(m.b(x)), a=conv(3), b=conv(3), bn=nn.BatchNorm2d(4)
    )
    assert_folds(build(model), image(2, 3, 5, 5), removed=1)


def test_batch_norm_called_twice_once_where_it_cannot_go():
    model = Net(lambda m, x: m.bn(m.a(torch.sigmoid(m.bn(x)))), a=conv(3, 3), bn=nn.BatchNorm2d(3))
    assert_folds(build(model), image(2, 3, 5, 5), removed=0, kept=1)


def test_batch_norm_called_twice_in_a_row():
    model = Net(lambda m, x: m.bn(m.bn(m.a(x))), a=conv(3), bn=nn.BatchNorm2d(4))
    assert_folds(build(model), image(2, 3, 5, 5))


def test_two_batch_norms_share_their_parameters():
    one, two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
    two.weight, two.bias = one.weight, one.bias
    model = Net(lambda m, x: m.two(torch.sigmoid(m.one(x))), one=one, two=two)
    assert_folds(build(model), image(2, 4, 5, 5))
    model = Net(
        lambda m, x: m.b(m.two(torch.sigmoid(m.one(x)))), one=one, two=two, b=nn.BatchNorm2d(4)
    )
    assert_folds(build(model), image(2, 4, 5, 5))


@pytest.mark.parametrize("inplace", [True, False])
@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_one_relu_at_several_places(inplace, clip):
    model = Net(
        lambda m, x: m.c2(m.relu(m.bn2(m.relu(m.bn1(m.relu(m.c1(x))))))),
        c1=conv(3),
        c2=conv(4, 4, 3, padding=1),
        bn1=nn.BatchNorm2d(4),
        bn2=nn.BatchNorm2d(4),
        relu=nn.ReLU(inplace=inplace),
    )
    assert_folds(build(model), image(2, 3, 5, 5), clip=clip)


_GLOBAL_RELU = nn.ReLU()
_GLOBAL_RELU_IN_PLACE = nn.ReLU(inplace=True)
_GLOBAL_NORM = build(nn.BatchNorm2d(4), seed=5)
_GLOBAL_CONV = build(nn.Conv2d(3, 4, 1), seed=6)


@pytest.mark.parametrize("clip", ["auto", "always"])
@pytest.mark.parametrize("relu", [_GLOBAL_RELU, _GLOBAL_RELU_IN_PLACE], ids=["plain", "inplace"])
def test_activation_outside_the_model_is_left_alone(clip, relu):
    model = Net(
        lambda m, x: (lambda s: s + m.c2(relu(m.bn(s))))(m.c1(x)),
        c1=conv(3),
        c2=conv(),
        bn=nn.BatchNorm2d(4),
    )
    assert_folds(build(model), image(2, 3, 5, 5), clip=clip)
    assert type(relu) is nn.ReLU
    assert relu.inplace is (relu is _GLOBAL_RELU_IN_PLACE)


def test_batch_norm_outside_the_model_is_left_alone():
    model = Net(lambda m, x: _GLOBAL_NORM(m.c1(x)), c1=conv(3))
    assert_folds(build(model), image(2, 3, 5, 5))
    assert type(_GLOBAL_NORM) is nn.BatchNorm2d


def test_conv_outside_the_model_is_left_alone():
    before = copy.deepcopy(_GLOBAL_CONV.state_dict())
    model = Net(lambda m, x: m.bn(_GLOBAL_CONV(x)), bn=nn.BatchNorm2d(4))
    assert_folds(build(model), image(2, 3, 5, 5))
    model = Net(lambda m, x: m.bn(_GLOBAL_CONV(x)), bn=nn.BatchNorm2d(4))
    bnfold.fold(build(model), image(2, 3, 5, 5), inplace=True)
    assert all(torch.equal(value, before[key]) for key, value in _GLOBAL_CONV.state_dict().items())


_OUTSIDE = {
    "norm": build(nn.BatchNorm2d(4), seed=5),
    "norm of nothing": build(nn.BatchNorm2d(4, affine=False), seed=5),
    "convolution": build(nn.Conv2d(4, 4, 1, bias=False), seed=6),
    "linear": build(nn.Linear(5, 5, bias=False), seed=6),
    "transposed": build(nn.ConvTranspose2d(4, 4, 1, bias=False), seed=6),
    "group": build(nn.Conv2d(4, 4, 1, groups=2, bias=False), seed=6),
}


class Holding(nn.Module):
    """Its class has a module that is no part of it."""

    held: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = conv(3), conv()
        self.one, self.two = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.two(type(self).held(self.one(torch.sigmoid(self.first(x))))))


@pytest.mark.parametrize("shifts_alone", [False, True])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("name", _OUTSIDE)
def test_what_is_outside_takes_in_nothing(name, inplace, shifts_alone):
    class Model(Holding):
        held = _OUTSIDE[name]

    model = build(Model())
    if shifts_alone:  # no weight has to change, and a bias could be born
        for norm in (model.one, model.two):
            norm.weight.data.copy_(torch.sqrt(norm.running_var + norm.eps))
    before = copy.deepcopy(Model.held.state_dict()), dict(Model.held.__dict__["_parameters"])
    expected = run(model, image(2, 3, 5, 5))
    folded, _ = bnfold.fold(model, image(2, 3, 5, 5), inplace=inplace, verify=False)
    assert_same(expected, run(folded, image(2, 3, 5, 5)), 1e-9)
    after = Model.held.state_dict()
    assert after.keys() == before[0].keys()
    assert all(torch.equal(value, before[0][key]) for key, value in after.items())
    assert Model.held.__dict__["_parameters"] == before[1]


def test_module_in_a_plain_list_is_part_of_the_copy():
    model = Net(lambda m, x: m.hidden[1](m.hidden[0](x)))
    model.hidden = [build(conv(3)), build(nn.BatchNorm2d(4))]
    assert_folds(build(model), image(2, 3, 5, 5))


def test_bound_method_and_closure_keep_pointing_to_the_copy():
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = conv(3), nn.BatchNorm2d(4)
            self.steps = [self.conv.forward, self.bn]
            self.alias = self.bn

        def forward(self, x: Tensor) -> Tensor:
            return self.alias(self.conv(x))

    assert_folds(build(Holder()), image(2, 3, 5, 5), removed=1)


def test_tied_embedding_and_classifier():
    embedding, head = nn.Embedding(7, 5), nn.Linear(5, 7)
    head.weight = embedding.weight
    model = Net(
        lambda m, i: m.out(
            m.head(m.bn(m.mix(m.emb(i).transpose(1, 2))).transpose(1, 2)).transpose(1, 2)
        ),
        emb=embedding,
        head=head,
        mix=nn.Conv1d(5, 5, 1),
        bn=nn.BatchNorm1d(5),
        out=nn.BatchNorm1d(7),
    )
    assert_folds(build(model), torch.randint(0, 7, (2, 6)))


@pytest.mark.parametrize("options", [{}, {"padding_idx": 0}, {"scale_grad_by_freq": True}])
def test_embedding_before_batch_norm(options):
    model = Net(
        lambda m, i: m.bn(m.emb(i).transpose(1, 2)),
        emb=nn.Embedding(7, 5, **options),
        bn=nn.BatchNorm1d(5),
    )
    assert_folds(build(model), torch.randint(0, 7, (2, 6)))


def test_weights_that_are_views_of_one_flat_tensor():
    flat = torch.randn(40)
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    first.weight = nn.Parameter(flat[:16].view(4, 4))
    second.weight = nn.Parameter(flat[8:24].view(4, 4))  # they overlap
    model = Net(
        lambda m, x: m.b2(m.second(torch.tanh(m.b1(m.first(x))))),
        first=first,
        second=second,
        b1=nn.BatchNorm1d(4),
        b2=nn.BatchNorm1d(4),
    )
    model = build(model)
    x = image(3, 4)
    reference = copy.deepcopy(model)
    folded, _ = bnfold.fold(model, x)
    assert_same(run(reference, x), run(folded, x), 1e-9)
    folded, _ = bnfold.fold(model, x, inplace=True)
    assert_same(run(reference, x), run(folded, x), 1e-9)


def test_two_parameters_over_one_memory():
    first, second = conv(4, 4), conv(4, 4)
    model = Net(
        lambda m, x: m.b2(m.second(torch.tanh(m.b1(m.first(x))))),
        first=first,
        second=second,
        b1=nn.BatchNorm2d(4),
        b2=nn.BatchNorm2d(4),
    )
    model = build(model)
    second.weight = nn.Parameter(first.weight.data)
    second.bias = nn.Parameter(first.bias.data)
    x = image(2, 4, 3, 3)
    reference = copy.deepcopy(model)
    for inplace in (False, True):
        folded, report = bnfold.fold(model, x, inplace=inplace)
        assert report.removed == 2
        assert_same(run(reference, x), run(folded, x), 1e-9)


def test_moving_average_copy_of_the_model():
    from torch.optim.swa_utils import AveragedModel

    model = build(AveragedModel(build(nn.Sequential(conv(3), nn.BatchNorm2d(4)))))
    assert_folds(model, image(2, 3, 5, 5), removed=1)


def test_parameter_attributes_survive():
    model = build(nn.Sequential(conv(3), nn.BatchNorm2d(4)))
    model[0].weight.no_weight_decay = True
    folded, _ = bnfold.fold(model, image(2, 3, 5, 5))
    assert folded[0].weight.no_weight_decay


def test_embedding_that_rewrites_its_own_weight():
    model = build(
        Net(
            lambda m, i: m.bn(m.emb(i).transpose(1, 2)),
            emb=nn.Embedding(7, 5, max_norm=0.5),
            bn=nn.BatchNorm1d(5),
        )
    )
    indices, weight = torch.randint(0, 7, (2, 6)), model.emb.weight.detach().clone()
    folded, _ = bnfold.fold(model, indices)
    assert torch.equal(model.emb.weight, weight)
    assert_same(run(model, indices), run(folded, indices), 1e-9)


class ReadsGamma(nn.Module):
    """A BatchNorm whose gamma the code reads, and a factor per channel behind it."""

    def __init__(self, read) -> None:
        super().__init__()
        self.bn, self.last, self.read = nn.BatchNorm2d(4), nn.BatchNorm2d(4), read

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.read(self.bn, torch.sigmoid(self.bn(x)))).sigmoid()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "read",
    [
        lambda bn, y: bn(y)[:, bn.weight.abs().argsort()],
        lambda bn, y: bn(y) * (bn.weight.abs() > 0.9)[:, None, None],
        lambda bn, y: bn(y) + float(bn.bias.sum()),
        lambda bn, y: bn(y) + torch.tensor(bn.weight.tolist()).mean(),
        lambda bn, y: bn(y) * bn.running_var.mean(),
        lambda bn, y: bn(y) + bn.running_mean[:, None, None].clamp(0.0, 0.1),
    ],
)
def test_a_gamma_that_is_read_is_not_replaced(read, verify):
    """Not even by a parameter of another name: the code asks the module for it."""
    assert_folds(build(ReadsGamma(read)), image(2, 4, 5, 5), verify=verify)


class Left(nn.Module):
    """A run with gradients left something in it that cannot be copied by itself."""

    def __init__(self, leave) -> None:
        super().__init__()
        self.conv, self.bn, self.leave = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), leave
        self.past: object = None

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        self.leave(self, y)
        return y


def _as_a_buffer(m: Left, y: Tensor) -> None:
    m.register_buffer("seen", y.mean((0, 2, 3)))


@pytest.mark.parametrize(
    "leave",
    [
        lambda m, y: setattr(m, "past", y),
        lambda m, y: setattr(m, "past", [y, y.sum()]),
        lambda m, y: setattr(m, "past", {"y": y}),
        lambda m, y: setattr(m, "past", deque([y], maxlen=2)),
        lambda m, y: setattr(m, "past", (y[:, :1], y)),
        _as_a_buffer,
    ],
)
def test_what_a_run_with_gradients_left_is_copied(leave):
    model = build(Left(leave))
    model(image(2, 3, 5, 5))
    folded, report = bnfold.fold(model, image(2, 3, 5, 5))
    assert report.removed == 1
    with torch.no_grad():
        assert_same([model(image(1, 3, 6, 6))], [folded(image(1, 3, 6, 6))], 1e-12)


@pytest.mark.parametrize(
    "normed",
    [
        lambda m: nn.utils.weight_norm(m.conv),
        lambda m: nn.utils.prune.l1_unstructured(m.conv, "weight", 0.3),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_weights_made_by_a_hook_are_copied(normed):
    model = build(Left(lambda m, y: None))
    normed(model)
    folded, report = bnfold.fold(model, image(2, 3, 5, 5))
    assert report.removed == 0
    with torch.no_grad():
        assert_same([model(image(1, 3, 6, 6))], [folded(image(1, 3, 6, 6))], 1e-12)


class Itself(nn.Sequential):
    """Shared on purpose, wherever it is copied to."""

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("verify", [True, False])
def test_a_model_whose_copy_is_itself_is_folded_in_place_alone(verify, merge):
    model = build(Itself(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = image(2, 3, 5, 5)
    expected = model(x)
    with pytest.raises(bnfold.UnsupportedModelError, match=r"returns the module itself.*inplace"):
        bnfold.fold(model, x, verify=verify, merge=merge)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    folded, report = bnfold.fold(model, x, inplace=True)
    assert folded is model
    assert report.removed == 1
    torch.testing.assert_close(folded(x), expected, rtol=1e-9, atol=1e-9)


class SharedConv(nn.Conv2d):
    def __deepcopy__(self, memo):
        return self


class SharedWeight(nn.Parameter):
    def __deepcopy__(self, memo):
        return self


class InTraining(nn.Sequential):
    def __deepcopy__(self, memo):
        return nn.Sequential(*copy.deepcopy([*self], memo))


def shared_conv() -> nn.Module:
    return nn.Sequential(SharedConv(3, 4, 3), nn.BatchNorm2d(4))


def shared_weight() -> nn.Module:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[0].weight = SharedWeight(model[0].weight.data)
    return model


def in_training() -> nn.Module:
    return InTraining(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


class Nothing(nn.Sequential):
    def __deepcopy__(self, memo):
        return None


def nothing() -> nn.Module:
    return Nothing(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize("merge", ["auto", "never"])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("make", [shared_conv, shared_weight, in_training, nothing])
def test_a_copy_that_is_none_is_not_changed(make, verify, merge):
    model, x = build(make()), image(2, 3, 5, 5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(bnfold.UnsupportedModelError, match="cannot be copied"):
        bnfold.fold(model, x, verify=verify, merge=merge)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_is_shared_and_not_touched_may_be_shared():
    """A frozen encoder in front of what is folded."""
    model = build(nn.Sequential(Itself(nn.Conv2d(3, 3, 1), nn.Sigmoid()), *shared_conv()))
    model[1] = nn.Conv2d(3, 4, 3).double()
    x = image(2, 3, 5, 5)
    folded, report = bnfold.fold(model, x)
    assert report.removed == 1
    assert folded[0] is model[0]
    assert_same([model(x)], [folded(x)], 1e-9)
