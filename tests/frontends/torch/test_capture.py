"""What the recording must see, and what it must not take for a constant."""

from __future__ import annotations

import copy
import dataclasses
from collections import OrderedDict, namedtuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from bnfold.errors import BnfoldError
from tests.frontends.torch.support import (
    assert_folds,
    assert_same,
    assert_state,
    build,
    image,
    run,
    snapshot,
)


class ConvBN(nn.Module):
    def __init__(self, ins: int = 3, outs: int = 4, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(ins, outs, kernel)
        self.bn = nn.BatchNorm2d(outs)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


# ---------------------------------------------------------------- values that leave the recording


class Leaves(nn.Module):
    """The BatchNorm's output is read by something that is no ATen op."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = ConvBN()
        self.second = ConvBN(4, 3)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.how == "numpy":
            z = torch.from_numpy(np.tanh(y.numpy()))
        elif self.how == "detach numpy":
            z = torch.from_numpy(np.tanh(y.detach().cpu().numpy()))
        elif self.how == "asarray":
            z = torch.from_numpy(np.array(y) * 2)
        elif self.how == "tolist":
            z = torch.tensor(y.tolist(), dtype=y.dtype)
        elif self.how == "dlpack":
            z = torch.from_dlpack(y).tanh()
        elif self.how == "data":
            z = y.data.tanh()
        elif self.how == "new object":
            z = torch.Tensor.as_subclass(y, torch.Tensor).tanh()
        elif self.how == "copied":
            import copy

            z = copy.deepcopy(y).tanh()
        return self.second(z)


@pytest.mark.parametrize(
    "how",
    ["numpy", "detach numpy", "asarray", "tolist", "dlpack", "data", "new object", "copied"],
)
def test_value_that_leaves_pytorch_is_not_rescaled(how):
    assert_folds(build(Leaves(how)), image(2, 3, 4, 4))


class AlsoLeaves(nn.Module):
    """As above, but the value has an ordinary reader too."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "numpy":
            gain = float(y.numpy().max())
        elif self.how == "tolist":
            gain = max(y.flatten().tolist())
        elif self.how == "item":
            gain = y.max().item()
        else:
            gain = float(y.max())
        return self.head(self.bn(y)) * gain


@pytest.mark.parametrize("how", ["numpy", "tolist", "item", "float"])
def test_value_read_by_python_is_not_rescaled(how):
    assert_folds(build(AlsoLeaves(how)), image(2, 3, 4, 4))


class NumberFromInput(nn.Module):
    """A Python number that was computed from the input scales an activation."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "item":
            y = y * x.abs().max().item()
        elif self.how == "float":
            y = y / float(x.abs().mean())
        elif self.how == "tensor of item":
            y = y * torch.tensor(x.abs().max().item(), dtype=x.dtype)
        elif self.how == "full":
            y = y * torch.full((1, 4, 1, 1), x.abs().max().item(), dtype=x.dtype)
        elif self.how == "tolist":
            y = y * max(x.flatten().tolist())
        elif self.how == "add":
            y = y + x.abs().max().item()
        return self.bn(y)


@pytest.mark.parametrize("how", ["item", "float", "tensor of item", "full", "tolist", "add"])
def test_number_computed_from_the_input_is_no_constant(how):
    assert_folds(build(NumberFromInput(how)), image(2, 3, 4, 4))


class Noise(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.how == "rand":
            y = y * torch.rand(1, dtype=x.dtype)
        elif self.how == "per channel":
            y = y * torch.rand(1, 4, 1, 1, dtype=x.dtype)
        elif self.how == "rand_like":
            y = y * torch.rand_like(y[:, :, :1, :1])
        elif self.how == "bernoulli_":
            y = y * y.new_empty(1, 4, 1, 1).bernoulli_(0.5)
        elif self.how == "dropout":
            y = functional.dropout(y, 0.3, training=True)
        elif self.how == "dropout2d":
            y = functional.dropout2d(y, 0.3, training=True)
        elif self.how == "buffer":
            y = y * torch.empty(1, 4, 1, 1, dtype=x.dtype).uniform_(0.5, 2)
        elif self.how == "normal":
            y = y * torch.normal(0.0, 1.0, (1,)).to(x.dtype)
        return self.bn(y)


@pytest.mark.parametrize(
    "how",
    ["rand", "per channel", "rand_like", "bernoulli_", "dropout", "dropout2d", "buffer", "normal"],
)
def test_random_numbers_are_no_constants(how):
    model = build(Noise(how))
    x = image(2, 3, 4, 4)
    folded, _ = bnfold.fold(model, x)
    for seed in range(3):
        results = []
        for candidate in (model, folded):
            torch.manual_seed(seed)
            with torch.no_grad():
                results.append([candidate(x)])
        assert_same(*results, 1e-9)


class DynamicChannel(nn.Module):
    """Which channel is read depends on the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ConvBN()

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        return y[:, int(x[0, 0, 0, 0] > 0) + 1]


def test_channel_picked_by_the_input():
    model, positive = build(DynamicChannel()), image(1, 3, 4, 4)
    positive[0, 0, 0, 0] = 1.0
    negative = positive.clone()
    negative[0, 0, 0, 0] = -1.0
    assert_folds(model, positive, more=(negative,))


class UnreadChannels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ConvBN()
        self.count = 2

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x)[:, : self.count]


def test_channels_that_the_example_run_does_not_read_are_normalised_all_the_same():
    model = build(UnreadChannels())
    x = image(1, 3, 4, 4)
    folded, _ = bnfold.fold(model, x)
    model.count = folded.count = 4
    assert_same(run(model, x), run(folded, x), 1e-9)


# ---------------------------------------------------------------- outputs


@dataclasses.dataclass
class Result:
    features: Tensor
    logits: Tensor


class Bag(dict):
    """A dict subclass that pytree does not know."""


class Holder:
    def __init__(self, features: Tensor, logits: Tensor) -> None:
        self.features = features
        self.logits = logits


Pair = namedtuple("Pair", "features logits")


class Outputs(nn.Module):
    """The features are normalised again: were they not an output, bn would go into bn2."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        self.kind = kind

    def forward(self, x: Tensor):
        features = self.conv(x)
        logits = self.head(self.bn(features))
        if self.kind == "tuple":
            return features, logits
        if self.kind == "nested":
            return {"a": [features, None, "text"], "b": ({"c": logits},)}
        if self.kind == "ordered":
            return OrderedDict(features=features, logits=logits)
        if self.kind == "namedtuple":
            return Pair(features, logits)
        if self.kind == "dataclass":
            return Result(features, logits)
        if self.kind == "dict subclass":
            return Bag(features=features, logits=logits)
        if self.kind == "dataclass in list":
            return [Result(features, logits)]
        if self.kind == "generator":
            return iter([features, logits])
        if self.kind == "set":
            return frozenset([features, logits])
        if self.kind == "closure":
            return lambda: (features, logits)
        return Holder(features, logits)


def _parts(result):
    if callable(result):
        result = result()
    if dataclasses.is_dataclass(result) or isinstance(result, Holder):
        return [result.features, result.logits]
    if isinstance(result, dict):
        if "a" in result:
            return [result["a"][0], result["b"][0]["c"]]
        return list(result.values())
    parts = list(result)
    if isinstance(parts[0], Result):
        return _parts(parts[0])
    return sorted(parts, key=lambda part: -part.shape[1])


@pytest.mark.parametrize(
    "kind",
    [
        "tuple",
        "nested",
        "ordered",
        "namedtuple",
        "dataclass",
        "dataclass in list",
        "dict subclass",
        "object",
        "set",
        "generator",
        "closure",
    ],
)
def test_whatever_the_container_an_output_is_not_rescaled(kind):
    model, x = build(Outputs(kind)), image(2, 3, 4, 4)
    with torch.no_grad():
        expected = _parts(model(x))
        try:
            folded, _ = bnfold.fold(model, x)
        except BnfoldError:
            return  # refusing a container that cannot be looked into is right, too
        assert_same(expected, _parts(folded(x)), 1e-9)


class SideChannel(nn.Module):
    """Values that the user reads from the module after the run."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)
        self.head = nn.Conv2d(4, 3, 1)
        self.how = how
        self.saved: object = None
        self.kept: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        features = self.conv(x)
        if self.how == "attribute":
            self.saved = features
        elif self.how == "list":
            self.kept[:] = [features]
        else:
            self.saved = {"features": features}
        return self.head(self.bn(features))

    def features(self) -> Tensor:
        if self.how == "attribute":
            return self.saved
        return self.kept[0] if self.how == "list" else self.saved["features"]


@pytest.mark.parametrize("how", ["attribute", "list", "dict"])
def test_value_kept_in_the_module_is_not_rescaled(how):
    model, x = build(SideChannel(how)), image(2, 3, 4, 4)
    folded, _ = bnfold.fold(model, x)
    with torch.no_grad():
        model(x)
        folded(x)
    assert_same([model.features()], [folded.features()], 1e-9)


def test_recorder_leaves_no_mark_on_tensors_that_outlive_the_run():
    model, x = build(SideChannel("attribute")), image(2, 3, 4, 4)
    bnfold.fold(model, x)
    assert not isinstance(model.saved, Tensor) or not vars(model.saved)


# ---------------------------------------------------------------- what a returned view is one of


class ReturnsView(nn.Module):
    """Half of the features is returned as a view; the other half is normalised again."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(4)
        self.bn2 = nn.BatchNorm2d(2)
        self.how = how

    def forward(self, x: Tensor):
        features = self.bn(x)
        left, right = features.split(2, 1)
        if self.how == "attribute of the module":
            self.saved = features
        elif self.how == "attribute of the output":
            left.whole = features
        elif self.how == "object":
            return left, self.bn2(right), Holder(features, features)
        elif self.how == "attribute of an output that is kept":
            left.whole, self.saved = features, left
        return left, self.bn2(right)

    def features(self, result: tuple) -> Tensor:
        if self.how == "attribute of the module":
            return self.saved
        return result[2].features if self.how == "object" else result[0].whole


@pytest.mark.parametrize(
    "how",
    [
        "attribute of the module",
        "attribute of the output",
        "attribute of an output that is kept",
        "object",
    ],
)
def test_whole_of_a_returned_view_that_is_seen_otherwise_is_not_rescaled(how):
    model, x = build(ReturnsView(how)), image(2, 4, 3, 3)
    folded, report = bnfold.fold(model, x)
    assert not report.removed
    with torch.no_grad():
        expected, made = model(x), folded(x)
        assert_same([model.features(expected)], [folded.features(made)], 1e-9)


def test_whole_of_a_returned_view_is_not_seen_by_anyone():
    assert_folds(build(ReturnsView("")), image(2, 4, 3, 3), removed=1, kept=1)


def test_recorder_leaves_no_mark_on_returned_views_that_are_kept():
    model, x = build(ReturnsView("attribute of an output that is kept")), image(2, 4, 3, 3)
    bnfold.fold(model, x)
    saved = getattr(model, "saved", None)
    assert saved is None or set(vars(saved)) <= {"whole"}


# ---------------------------------------------------------------- inputs


class Keywords(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ConvBN()

    def forward(self, image: Tensor, *, scale: Tensor | None = None, flag: bool = False):
        y = self.first(image)
        if scale is not None:
            y = self.first.bn(y * scale)
        return {"y": y, "flag": flag}


def test_keyword_inputs():
    inputs = {"image": image(2, 3, 4, 4), "scale": image(2, 4, 1, 1, seed=4), "flag": True}
    assert_folds(build(Keywords()), inputs, batches=True)


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = ConvBN()
        self.second = ConvBN(4, 4)

    def forward(self, batch, extra):
        y = self.first(batch["images"][0])
        return self.second(y * batch["gains"]) + extra[0]


def test_nested_inputs_are_inputs_and_no_constants():
    batch = {"images": [image(2, 3, 4, 4)], "gains": image(2, 4, 1, 1, seed=3)}
    assert_folds(build(Nested()), (batch, (image(2, 4, 4, 4, seed=5),)))


class FromObject(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x: Tensor, holder) -> Tensor:
        return self.bn(self.conv(x) * holder.features)


@pytest.mark.parametrize("kind", [Result, Holder])
def test_tensors_inside_an_unknown_input_object_are_no_constants(kind):
    model, x = build(FromObject()), image(2, 3, 4, 4)
    holder = kind(image(1, 4, 1, 1, seed=3), x)
    other = kind(image(1, 4, 1, 1, seed=8), x)
    try:
        folded, _ = bnfold.fold(model, (x, holder))
    except BnfoldError:
        return
    with torch.no_grad():
        assert_same([model(x, other)], [folded(x, other)], 1e-9)


def test_same_tensor_passed_twice():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = ConvBN(), ConvBN()

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.first(a) + self.second(b)

    x = image(2, 3, 4, 4)
    model = build(Two())
    folded, _ = bnfold.fold(model, (x, x))
    other = (image(2, 3, 4, 4, seed=1), image(2, 3, 4, 4, seed=2))
    assert_same(run(model, other), run(folded, other), 1e-9)


def test_two_inputs_that_are_views_of_one_tensor():
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            y = self.bn(self.conv(a))
            return y + b.sum()

    both = image(4, 3, 4, 4)
    assert_folds(build(Two()), (both[:2], both[2:]), removed=1, batches=False)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)])
def test_empty_example_teaches_nothing_wrong(shape):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            self.bn = nn.BatchNorm2d(4)
            self.third = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bn(torch.sigmoid(self.first(x)))
            return self.third(x.flip(1).reshape(x.shape[0], 4, x.shape[2], x.shape[3]))

    model, real = build(Net()), image(2, 3, 4, 4)
    try:
        folded, _ = bnfold.fold(model, torch.empty(shape, dtype=torch.float64))
    except BnfoldError:
        return
    assert_same(run(model, real), run(folded, real), 1e-9)


# ---------------------------------------------------------------- state


class Counting(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = ConvBN()
        self.how = how
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("average", torch.zeros(4))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.how == "in place":
            self.count += 1
            self.average.mul_(0.9).add_(y.mean((0, 2, 3)), alpha=0.1)
        elif self.how == "replaced":
            self.count = self.count + 1
            self.average = 0.9 * self.average + 0.1 * y.mean((0, 2, 3))
        elif self.how == "python":
            self.calls += 1
        elif self.how == "copy_":
            self.average[:2].copy_(y.mean((0, 2, 3))[:2])
        elif self.how == "data":
            self.average.data = y.mean((0, 2, 3))
        return y + self.average.view(1, 4, 1, 1).sum()


@pytest.mark.parametrize("how", ["in place", "replaced", "python", "copy_", "data"])
def test_state_that_the_run_changes_is_put_back(how):
    model, x = build(Counting(how)), image(2, 3, 4, 4)
    state, calls = snapshot(model), model.calls
    average = model.average
    import copy

    reference = copy.deepcopy(model)
    folded, _ = bnfold.fold(model, x)
    assert_state(model, state)
    assert model.calls == calls
    assert model.average is average
    for seed in range(3):
        other = image(2, 3, 4, 4, seed=seed)
        with torch.no_grad():
            assert_same([reference(other)], [folded(other)], 1e-9)
    assert_same([reference.average], [folded.average], 1e-9)


class OwnStatistics(nn.Module):
    """Batch statistics taken by a function, into buffers of a module that is no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))

    def forward(self, x: Tensor) -> Tensor:
        return functional.batch_norm(self.conv(x), self.mean, self.var, training=True)


def test_statistics_that_a_function_updates_are_put_back():
    model, x = build(OwnStatistics()), image(2, 3, 4, 4)
    state = snapshot(model)
    bnfold.fold(model, x)
    assert_state(model, state)


def test_state_is_put_back_when_the_model_raises():
    class Raises(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = ConvBN()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            raise RuntimeError("no")

    model = build(Raises())
    calls = nn.Module.__call__, nn.Module._call_impl
    with pytest.raises(BnfoldError):
        bnfold.fold(model, image(2, 3, 4, 4))
    assert (nn.Module.__call__, nn.Module._call_impl) == calls
    assert model.count == 0


# ---------------------------------------------------------------- other machinery


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvBN(), ConvBN(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint

        x = checkpoint(self.first, x, use_reentrant=False)
        return checkpoint(self.second, torch.relu(x), use_reentrant=True)


def test_checkpointed_blocks():
    assert_folds(build(Checkpointed()), image(2, 3, 4, 4), removed=2)


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, grad):
        return grad * 2


def test_custom_autograd_function():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return Double.apply(self.bn(self.conv(x)))

    assert_folds(build(Net()), image(2, 3, 4, 4), removed=1)


@pytest.mark.parametrize("inplace", [True, False])
def test_parameters_made_in_inference_mode(inplace):
    with torch.inference_mode():
        net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
        net = build(net)
        expected = net(x := image(2, 3, 6, 6))
    with torch.no_grad():
        folded, report = bnfold.fold(net, x, inplace=inplace)
        torch.testing.assert_close(folded(x), expected)
    assert report.removed == 1


def test_inference_mode_around_the_fold():
    model, x = build(ConvBN()), image(2, 3, 4, 4)
    with torch.inference_mode():
        folded, report = bnfold.fold(model, x)
    assert report.removed == 1
    assert_same(run(model, x), run(folded, x), 1e-9)


def test_functional_call_inside():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ConvBN()

        def forward(self, x: Tensor) -> Tensor:
            doubled = {"conv.weight": self.inner.conv.weight * 2}
            return self.inner(x) + torch.func.functional_call(self.inner, doubled, (x,))

    assert_folds(build(Net()), image(2, 3, 4, 4))


def test_vmap_inside():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ConvBN()

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.inner)(x[None])[0]

    assert_folds(build(Net()), image(2, 3, 4, 4))


@pytest.mark.parametrize("which", ["conv", "bn", "both"])
def test_scripted_submodule(which):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x))

    model, x = build(Net()), image(2, 3, 4, 4)
    if which in ("conv", "both"):
        model.conv = torch.jit.script(model.conv)
    if which in ("bn", "both"):
        model.bn = torch.jit.script(model.bn)
    assert_folds(model, x)


def test_scripted_function():
    @torch.jit.script
    def scaled(x: Tensor) -> Tensor:
        return torch.relu(x) * 2.0

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn, self.head = (
                nn.Conv2d(3, 4, 1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 4, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bn(scaled(self.conv(x))))

    assert_folds(build(Net()), image(2, 3, 4, 4), removed=1)


def test_compiled_submodule():
    model, x = build(nn.Sequential(ConvBN(), ConvBN(4, 4))), image(2, 3, 4, 4)
    model[0] = torch.compile(model[0], backend="eager")
    assert_folds(model, x)


class TwoCalls(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = ConvBN(), ConvBN(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).relu())


class ThereIsOneAlone(TwoCalls):
    def __deepcopy__(self, memo: dict[int, object]) -> TwoCalls:
        raise TypeError("there is one alone")


@pytest.mark.parametrize("make", [TwoCalls, ThereIsOneAlone])
def test_submodules_compiled_in_place(make):
    model, x = build(make()), image(2, 3, 4, 4)
    model.first.compile(backend="eager")
    model.second.bn.compile(backend="eager")
    compiled, expected = model.first._compiled_call_impl, model(x)
    report = bnfold.fold(model, x, inplace=True).report
    assert (report.removed, report.kept) == (2, 0)
    assert torch.allclose(model(x), expected)
    assert model.first._compiled_call_impl is compiled


def test_traced_graph_module_inside():
    model, x = build(nn.Sequential(ConvBN(), ConvBN(4, 4))), image(2, 3, 4, 4)
    model[0] = torch.fx.symbolic_trace(model[0])
    assert_folds(model, x, removed=2)


class OfItsOwn(torch.fx.GraphModule):
    """A class that somebody derived from fx's."""


TRACED = {
    "traced": torch.fx.symbolic_trace,
    "copied": lambda m: copy.deepcopy(torch.fx.symbolic_trace(m)),
    "of a class of its own": lambda m: OfItsOwn(m, torch.fx.symbolic_trace(m).graph),
}


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("way", TRACED)
def test_a_graph_module_of_fx_is_copied_and_folded(way, inplace):
    model, x = TRACED[way](build(ConvBN())), image(2, 3, 4, 4)
    state, expected = snapshot(model), run(model, x)
    folded, report = bnfold.fold(model, x, inplace=inplace)
    assert (report.removed, report.kept) == (1, 0)
    assert type(folded).__mro__[1:] == type(model).__mro__[1:]
    assert_same(expected, run(folded, x), 1e-9)
    if not inplace:
        assert_state(model, state)


class TwoBranches(nn.Module):
    def __init__(self):
        super().__init__()
        self.wide, self.point = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.bn = nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn(self.wide(x) + self.point(x))


def test_branches_in_a_graph_module_of_fx_are_merged():
    model, x = torch.fx.symbolic_trace(build(TwoBranches())), image(2, 3, 4, 4)
    folded, report = bnfold.fold(model, x)
    assert (report.removed, len(report.merged)) == (1, 1)
    assert_same(run(model, x), run(folded, x), 1e-9)


SCRIPTS = {
    "traced": lambda module, x: torch.jit.trace(module, x),
    "scripted": lambda module, x: torch.jit.script(module),
}


@pytest.mark.parametrize("inside", [nn.ReLU, lambda: nn.Conv2d(4, 4, 1).double()])
@pytest.mark.parametrize("way", SCRIPTS)
def test_a_script_inside_is_left_as_it_is(way, inside):
    script = SCRIPTS[way](inside().eval(), image(1, 4, 1, 1))
    model, x = build(nn.Sequential(TwoBranches(), script)), image(2, 3, 4, 4)
    assert bnfold.inspect(model, x).removed == 1
    report = assert_folds(model, x, removed=1)
    assert len(report.merged) == 1


def test_data_parallel_wrapper():
    model = build(nn.Sequential(ConvBN(), ConvBN(4, 4)))
    assert_folds(nn.DataParallel(model).eval(), image(2, 3, 4, 4), removed=2)


def test_model_on_the_meta_device_is_refused_with_a_reason():
    with torch.device("meta"):
        model = ConvBN().eval()
    with pytest.raises(BnfoldError):
        bnfold.fold(model, torch.empty(2, 3, 4, 4, device="meta"))


def test_lazy_modules_are_refused_until_they_are_initialised():
    model = nn.Sequential(nn.LazyConv2d(4, 1), nn.LazyBatchNorm2d()).eval()
    x = image(2, 3, 4, 4, dtype=torch.float32)
    with pytest.raises(BnfoldError, match="not initialised"):
        bnfold.fold(model, x)
    model(x)
    folded, report = bnfold.fold(model, x)
    assert report.removed == 1
    assert_same(run(model, x), run(folded, x), 1e-5)


def test_dynamically_quantized_linear_inside():
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.bn1 = nn.Linear(5, 6), nn.BatchNorm1d(6)
            self.second, self.bn2 = nn.Linear(6, 7), nn.BatchNorm1d(7)

        def forward(self, x: Tensor) -> Tensor:
            return self.bn2(self.second(torch.relu(self.bn1(self.first(x)))))

    model = build(Net(), dtype=torch.float32)
    model.second = torch.ao.quantization.quantize_dynamic(nn.Sequential(model.second))[0]
    x = image(4, 5, dtype=torch.float32)
    folded, _ = bnfold.fold(model, x)
    assert_same(run(model, x), run(folded, x), 1e-5)
