"""Hazard 1: a removed BatchNorm made a tensor of its own, and in-place ops counted on that."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.frontends.torch.modules import RescaledClip
from tests.frontends.torch.support import assert_folds, build, image


class PreActivation(nn.Module):
    """x + conv2(relu(bn(x))), the stream also read after the activation."""

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.leaky = nn.LeakyReLU(0.1, inplace=True)
        self.conv1 = nn.Conv2d(4, 4, 1)
        self.conv2 = nn.Conv2d(4, 5, 1)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        y = self.bn(stream)
        if self.activation == "module":
            y = self.relu(y)
        elif self.activation == "module, result ignored":
            self.relu(y)
        elif self.activation == "leaky":
            y = self.leaky(y)
        elif self.activation == "function":
            y = functional.relu(y, inplace=True)
        elif self.activation == "method":
            y.relu_()
        elif self.activation == "add":
            y += 1.0
        elif self.activation == "add tensor":
            y += self.conv1(stream)
        elif self.activation == "slice":
            y[:, :2] = 0.0
        elif self.activation == "slice relu":
            y[:, 1:3].relu_()
        elif self.activation == "view":
            y.view(y.shape[0], -1).mul_(2.0)
        elif self.activation == "chunk":
            first, second = y.chunk(2, 1)
            first.relu_()
            second.add_(first)
        elif self.activation == "masked":
            y[y < 0] = 0.0
        elif self.activation == "masked_fill":
            y.masked_fill_(y < 0, 0.5)
        elif self.activation == "clamp":
            y.clamp_(-0.3, 0.3)
        elif self.activation == "zero":
            y.zero_()
        elif self.activation == "copy":
            y.copy_(self.conv1(stream))
        elif self.activation == "out":
            torch.add(y, 1.0, out=y)
        elif self.activation == "foreach":
            torch._foreach_mul_([y], 2.0)
        elif self.activation == "foreach second":
            torch._foreach_add_([y.new_zeros(2), y], 2.0)
        return self.conv2(stream) + functional.interpolate(self.conv2(y), scale_factor=1)


WRITES = [
    "module",
    "module, result ignored",
    "leaky",
    "function",
    "method",
    "add",
    "add tensor",
    "slice",
    "slice relu",
    "view",
    "chunk",
    "masked",
    "masked_fill",
    "clamp",
    "zero",
    "copy",
    "out",
    "foreach",
    "foreach second",
]


@pytest.mark.parametrize("activation", WRITES)
@pytest.mark.parametrize("clip", ["auto", "always", "never"])
def test_write_behind_a_removed_batch_norm_does_not_reach_the_stream(activation, clip):
    assert_folds(build(PreActivation(activation)), image(2, 3, 6, 6), clip=clip)


class Stream(nn.Module):
    """Write to what went into the BatchNorm after the BatchNorm ran."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 5, 1)
        self.relu = nn.ReLU(inplace=True)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        y = self.bn(stream)
        if self.how == "relu":
            stream = self.relu(stream)
        elif self.how == "relu, only for its effect":
            self.relu(stream)
        elif self.how == "add":
            stream += 1.0
        elif self.how == "fill":
            stream.fill_(2.0)
        elif self.how == "slice":
            stream[:, ::2] = 3.0
        return self.head(y) if self.how == "fill" else self.head(y) + self.head(stream)


@pytest.mark.parametrize("how", ["relu", "relu, only for its effect", "add", "fill", "slice"])
@pytest.mark.parametrize("clip", ["auto", "always"])
def test_write_to_the_input_of_a_removed_batch_norm_does_not_reach_its_output(how, clip):
    assert_folds(build(Stream(how)), image(2, 3, 6, 6), clip=clip)


class TwoUses(nn.Module):
    """One ReLU(inplace=True): harmful at its first place, counted upon at its second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4, affine=True)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 4, 1)
        self.side = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        y = self.relu(self.bn(stream))
        z = self.head(y)
        self.relu(z)  # only for its effect
        return z + self.side(stream)


def test_module_that_must_stop_writing_at_one_place_still_writes_where_the_program_counts_on_it():
    model = build(TwoUses())
    model.bn.weight.data.abs_()  # so that the BatchNorm can go: relu keeps its place
    model.bn.bias.data.copy_(model.bn.running_mean * 0)
    assert_folds(model, image(2, 3, 5, 5))
    assert_folds(model, image(2, 3, 5, 5), clip="always")


class IdentityTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.bn1(x), self.bn2(x)
        a += 1
        return torch.cat([self.head(a), self.head(b)], 1)


def test_two_batch_norms_on_one_value_are_not_made_one_tensor():
    assert_folds(build(IdentityTwice()), image(2, 3, 5, 5))


class EqualTwice(IdentityTwice):
    """bn1 and bn2 hold the same numbers: both could be removed, and then a is b."""


def test_two_equal_batch_norms_on_one_value_leave_two_tensors():
    model = build(EqualTwice())
    model.bn2.load_state_dict(model.bn1.state_dict())
    assert_folds(model, image(2, 3, 5, 5), removed=2)


class Chain(nn.Module):
    """Two removed steps in a row, and a write that reaches through both."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn1 = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.bn2(self.bn1(x))
        y += y.mean()
        return self.head(y) - self.head(x)


def test_write_through_two_removed_batch_norms_in_a_row():
    assert_folds(build(Chain()), image(2, 3, 5, 5))


class ChannelsLastView(nn.Module):
    """The layout of what a BatchNorm made is relied upon by a view, and it is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)
        self.side = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        y = self.bn(stream)
        y += 1.0
        rows = y.permute(0, 2, 3, 1).view(-1, 4)
        return self.head(rows).sum() + self.side(stream)


def test_copy_left_behind_keeps_channels_last():
    model = build(ChannelsLastView()).to(memory_format=torch.channels_last)
    x = image(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    assert_folds(model, x)


class InPlaceClipOfView(nn.Module):
    """relu(inplace) on a part; the whole is read under its old name."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Conv2d(4, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        self.relu(y[:, :2])
        self.relu(y[:, 2:3])
        return self.head(self.bn(y))


@pytest.mark.parametrize("clip", ["auto", "always"])
def test_in_place_activation_on_slices_is_seen_in_the_whole(clip):
    assert_folds(build(InPlaceClipOfView()), image(2, 3, 5, 5), clip=clip)


class InputWritten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.stem(self.relu(x))) + x.mean()


def test_model_that_writes_to_its_input_leaves_the_example_as_it_was():
    assert_folds(build(InputWritten()), image(2, 3, 5, 5), removed=1)


class Overwritten(nn.Module):
    """A constant of the forward that is overwritten after its use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        factor = torch.full((1, 4, 1, 1), 2.0, dtype=x.dtype)
        y = self.stem(x) * factor
        factor.fill_(-3.0)
        return self.bn(y) * factor


def test_local_constant_that_is_overwritten_after_its_use():
    assert_folds(build(Overwritten()), image(2, 3, 5, 5))


class OverwrittenBuffer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.register_buffer("factor", torch.full((1, 4, 1, 1), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        self.factor.fill_(2.0)
        y = self.stem(x) * self.factor
        self.factor.fill_(-3.0)
        y = self.bn(y) * self.factor
        self.factor.fill_(2.0)
        return y


def test_buffer_that_is_overwritten_after_its_use():
    assert_folds(build(OverwrittenBuffer()), image(2, 3, 5, 5))


class ViewOfStream(nn.Module):
    """The BatchNorm reads a view; the base is written afterwards through another view."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = self.stem(x)
        y = self.bn(both[:, :4])
        both.view(both.shape[0], 8, -1)[:, 2:6].mul_(0.5)
        return self.head(y) + self.head(both[:, :4]) + self.head(both[:, 4:])


def test_write_through_a_view_of_the_base_after_a_removed_batch_norm():
    assert_folds(build(ViewOfStream()), image(2, 3, 5, 5))


class Canvas(nn.Module):
    """Values are copied piece by piece into memory that the run makes, and read from there."""

    def __init__(self, canvas: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 5, 1)
        self.canvas = canvas

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        if self.canvas == "circular padding":
            return self.head(self.bn(functional.pad(stream, (1, 2, 1, 0), mode="circular")))
        canvas = getattr(stream, self.canvas)(stream.shape)
        canvas[:, :, :3] = stream[:, :, 2:]
        canvas[:, :, 3:] = stream[:, :, :2]
        return self.head(self.bn(canvas))


@pytest.mark.parametrize("canvas", ["new_empty", "new_zeros", "circular padding"])
def test_what_is_assembled_in_memory_of_the_run_folds(canvas: str):
    assert_folds(build(Canvas(canvas)), image(2, 3, 5, 5), removed=1)


class Memory(nn.Module):
    """A tensor of the model's own that no one registered keeps what the last run wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 5, 1)
        self.last = torch.zeros(2, 4, 5, 5, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        self.last[:] = stream
        return self.head(torch.relu(self.bn(stream)))


def test_memory_of_the_models_own_keeps_what_it_held():
    model, x = build(Memory()), image(2, 3, 5, 5)
    folded, report = bnfold.fold(model, x)
    assert report.removed == 0
    torch.testing.assert_close(folded(x), model(x))
    torch.testing.assert_close(folded.last, model.last)


def test_activation_with_bounds_does_not_write_to_the_users_input():
    model = build(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Conv2d(4, 5, 3)))
    x = image(2, 4, 6, 6)
    assert_folds(model, x, removed=1, kept=0, clip="always")
    folded = bnfold.fold(model, x, clip="always").model
    before = x.clone()
    folded(x)
    assert torch.equal(x, before)
    assert folded[1].inplace is False


class Residual(nn.Module):
    """conv2(stream) + conv1(relu(bn(stream))): as in a pre-activation ResNet."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.conv1, self.conv2 = nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        stream = self.stem(x)
        branch = self.conv1(self.relu(self.bn(stream)))
        return self.conv2(stream.relu()) + branch


def test_activation_with_bounds_does_not_write_to_a_stream_that_is_read_later():
    model = build(Residual())
    x = image(2, 3, 8, 8)
    assert_folds(model, x, removed=1, kept=0, clip="always")
    relu = bnfold.fold(model, x, clip="always").model.relu
    assert isinstance(relu, RescaledClip)
    assert relu.inplace is False


class Concat(nn.Module):
    """Conv(relu(bn(concat))): as in a DenseNet."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 3, 1)
        self.bn, self.relu = nn.BatchNorm2d(5), nn.ReLU6(inplace)
        self.conv = nn.Conv2d(5, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        joined = self.bn(torch.cat([left, right], 1))
        return self.conv(self.relu(joined)) + left.mean() - right.mean()


@pytest.mark.parametrize("inplace", [False, True])
def test_activation_with_bounds_writes_in_place_where_it_did_and_nobody_else_reads(inplace):
    model = build(Concat(inplace=inplace))
    x = image(2, 3, 6, 6)
    assert_folds(model, x, removed=1, kept=0, clip="always")
    assert bnfold.fold(model, x, clip="always").model.relu.inplace is inplace


@pytest.mark.parametrize("bounds", ["lower", "upper", "both"])
@pytest.mark.parametrize("inplace", [False, True])
def test_module_with_bounds_writes_to_its_input_only_if_told_to(inplace, bounds):
    lower = torch.tensor([-0.5, 0.0, 0.25]).reshape(3, 1, 1)
    module = RescaledClip(
        lower if bounds != "upper" else None,
        lower + 0.5 if bounds != "lower" else None,
        inplace=inplace,
    )
    x = image(2, 3, 4, 4, dtype=torch.float32)
    expected = x.clamp(module.lower, module.upper)
    before = x.clone()
    assert torch.equal(module(x), expected)
    assert torch.equal(x, expected if inplace else before)


def test_activation_with_bounds_leaves_alone_what_a_gradient_needs():
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.relu = nn.BatchNorm2d(4), nn.ReLU(inplace=True)
            self.conv = nn.Conv2d(4, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.relu(self.bn(torch.sigmoid(x))))

    model, x = build(Gated()), image(2, 4, 6, 6)
    assert_folds(model, x, removed=1, kept=0, clip="always")
    folded = bnfold.fold(model, x, clip="always").model
    assert folded.relu.inplace is True
    gradients = []
    for module in (model, folded):
        leaf = x.clone().requires_grad_()
        module(leaf).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("wide", [8, 4096])
def test_a_graph_that_was_made_before_can_still_be_differentiated(wide: int) -> None:
    """Forward writes to a weight, and a fold puts it back without a trace; also a large one."""

    class Renormed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(1000, wide, max_norm=0.5)
            self.norm = nn.BatchNorm1d(wide)
            self.head = nn.Linear(wide, 2)

        def forward(self, words: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.table(words)))

    model = build(Renormed())
    weight = model.table.weight.requires_grad_(True)
    words = torch.arange(6)
    loss = (weight**2).sum()
    before, version = weight.detach().clone(), weight._version
    bnfold.fold(model, words)
    assert weight._version == version
    assert torch.equal(weight, before)
    loss.backward()


# -------------------------------------------------------------------- .data = another tensor


class Exchanges(nn.Module):
    def __init__(self, how) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.head, self.side, self.how = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), how
        self.register_buffer("held", image(1, 4, 5, 5, seed=5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.bn(y)
        return self.how(self, x.repeat(1, 2, 1, 1)[:, :4], y, z)


def another_value(model, x, y, z):
    z.data = x * 2
    return model.head(z)


def another_value_while_its_source_is_read(model, x, y, z):
    z.data = x * 2
    return model.head(z) + model.side(y)


def another_value_that_is_written_to(model, x, y, z):
    w = x * 2
    z.data = w
    z.relu_()
    return model.head(z) + model.side(w)


def the_source_is_exchanged(model, x, y, z):
    y.data = x * 2
    return model.head(z) + model.side(y)


def the_source_in_front(model, x, y, z):
    w = model.side(x)
    w.data = y
    return model.head(w)


def another_order(model, x, y, z):
    z.data = z.data.flip(1)
    return model.head(z)


def another_geometry(model, x, y, z):
    z.data = z.data.transpose(2, 3)
    return model.head(z) + model.side(y)


def a_buffer(model, x, y, z):
    z.data = model.held.expand_as(z).clone()
    return model.head(z) + y


def a_buffer_itself(model, x, y, z):
    z.data = model.held
    return model.head(z) + y


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        *(another_value, another_value_while_its_source_is_read, another_value_that_is_written_to),
        *(the_source_is_exchanged, the_source_in_front, another_order, another_geometry),
        *(a_buffer, a_buffer_itself),
    ],
    ids=lambda how: how.__name__,
)
def test_a_tensor_that_gets_other_memory(how, verify):
    assert_folds(build(Exchanges(how)), image(2, 3, 5, 5), verify=verify)
