"""How example inputs may be given."""

from __future__ import annotations

import random
from collections import OrderedDict, UserDict, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run, run_on


class Net(nn.Module):
    """Takes a tensor, and two more by position or by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x, shift=None, *, deep=None):
        y = self.bn(self.conv(x))
        y = y if shift is None else y + shift
        return y if deep is None else self.other(self.conv(y[:, :3])) * deep


X = torch.randn(2, 3, 5, 5)
SHIFT = torch.randn(2, 4, 5, 5)


@pytest.mark.parametrize(
    "inputs",
    [
        X,
        (X,),
        [X, SHIFT],
        {"x": X, "shift": SHIFT},
        ((X,), {"shift": SHIFT}),
        ((X, SHIFT), {}),
        ((), {"x": X}),
        ((X,), {"deep": torch.rand(1)}),
    ],
)
def test_every_form(inputs):
    net = Net().eval()
    folded, report = bnfold.fold(net, inputs)
    assert report.total == 2
    assert torch.allclose(folded(X, SHIFT), net(X, SHIFT), atol=1e-5)


@pytest.mark.parametrize("also", [X * 2, {"x": X}, [X * 2], (X * 2, X * 3), [((X,), {})]])
def test_further_inputs(also):
    _, report = bnfold.fold(Net().eval(), X, also=also)
    assert report.removed == 1


def test_the_wrong_inputs_are_named():
    with pytest.raises(bnfold.BnfoldError, match="raised TypeError on the example inputs"):
        bnfold.fold(Net().eval(), ((X,), {"absent": X}))


def inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.randn(2, 3, 5, 5)


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: torch.randn(1, 3, 5, 5).expand(2, -1, -1, -1), inference, lambda: X[:1].expand_as(X)],
)
def test_inputs_that_take_no_writes(make, verify):
    _, report = bnfold.fold(Net().eval(), make(), verify=verify)
    assert report.removed == 1


@pytest.mark.parametrize("verify", [False, True])
def test_autograd_does_not_count_a_write_to_the_inputs(verify):
    weight = torch.randn_like(X).requires_grad_()
    loss = (weight * X).sum()
    bnfold.fold(Net().eval(), X, verify=verify)
    loss.backward()
    assert torch.equal(weight.grad, X)


def test_inputs_that_the_program_writes_to_are_put_back():
    class Writes(Net):
        def forward(self, x):
            return super().forward(x.mul_(2))

    x, before = X.clone(), X.clone()
    bnfold.fold(Writes().eval(), x)
    assert torch.equal(x, before)


class Collects(Net):
    """Its hook fills the list of the model that it was made for, which a copy has not got."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.bn.register_forward_hook(lambda module, args, output: self.seen.append(output))

    def forward(self, x):
        self.seen.clear()
        return super().forward(x) + self.seen[-1]


class Swaps(Net):
    """Tensors that are watched cannot be swapped."""

    def forward(self, x):
        y = super().forward(x)
        torch.utils.swap_tensors(y, torch.ones_like(y))
        return y


class Nested(Net):
    """Nested tensors do not say what shape they have."""

    def forward(self, x):
        y = torch.nested.nested_tensor(list(super().forward(x)))
        return y.to_padded_tensor(0.0)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize(
    ("kind", "why"),
    [(Collects, "a copy of Collects"), (Swaps, "be recorded"), (Nested, "be recorded")],
)
def test_what_raises_in_the_analysis_alone_is_not_blamed_on_the_inputs(kind, why, inplace):
    model = kind().eval()
    before = dict(model.bn.__dict__)
    with pytest.raises(bnfold.errors.UnsupportedModelError, match=why):
        bnfold.fold(model, X, inplace=inplace)
    assert model.bn.__dict__ == before
    assert not getattr(model, "seen", None)
    model(X)


def test_inputs_that_the_model_does_not_take():
    with pytest.raises(bnfold.errors.ExampleInputError, match="on the example inputs"):
        bnfold.fold(Collects().eval(), torch.randn(2, 4, 5, 5))


def test_an_expanded_input_that_is_written_to_is_as_it_was():
    """Each of its places in memory is several elements, which PyTorch does not write to."""

    class Writes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

        def forward(self, x):
            y = self.bn(self.conv(x))
            x.detach().numpy()[0] += 1
            return y

    x = image(1, 3, 4, 4).expand(2, 3, 4, 4)
    before = x.clone()
    bnfold.fold(build(Writes()), x)
    assert torch.equal(x, before)


# ------------------------------------------------------------- what is handed in to be changed


class Fills(nn.Module):
    """Another path where what it is given is as new; a value is looked at."""

    def __init__(self, size, step, looks):
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)
        self.size, self.step, self.looks = size, step, looks

    def forward(self, x, given):
        y = self.bn(x)
        if not self.size(given):
            y = torch.sigmoid(y)
        self.step(given)
        if self.looks and torch.isnan(x).any():
            raise ValueError("not a number")
        return self.conv(y)


def put(given):
    given[len(given)] = 1


def count(given):
    given.n += 1


GIVEN = [
    (list, len, lambda given: given.append(1)),
    (dict, len, put),
    (OrderedDict, len, put),
    (lambda: defaultdict(int), len, put),
    (UserDict, len, put),
    (lambda: deque(maxlen=2), len, lambda given: given.append(1)),
    (set, len, lambda given: given.add(len(given))),
    (lambda: {"past": []}, lambda given: len(given["past"]), lambda given: given["past"].append(1)),
    (lambda: ([],), lambda given: len(given[0]), lambda given: given[0].append(1)),
    (lambda: SimpleNamespace(n=0), lambda given: given.n, count),
    (lambda: [SimpleNamespace(n=0)], lambda given: given[0].n, lambda given: count(given[0])),
    (lambda: np.zeros(30), lambda given: given[3], lambda given: given.__iadd__(1)),
    (lambda: bytearray(), len, lambda given: given.append(1)),
    (lambda: torch.zeros(2), lambda given: given[0] > 0, lambda given: given.add_(1)),
    (lambda: iter(range(9)), lambda given: given.__reduce__()[2], next),
]


@pytest.mark.parametrize("looks", [False, True])
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(("make", "size", "step"), GIVEN)
def test_what_is_handed_in_is_as_it_was(make, size, step, verify, looks):
    """And each run gets it as new: a fold is right for those that come with another."""
    x, given = image(2, 3, 5, 5), make()
    net = build(Fills(size, step, looks))
    expected = [run(net, (x, make())) for _ in range(2)]
    folded, report = bnfold.fold(net, (x, given), verify=verify)
    assert not size(given)
    assert report.removed == 0
    for wanted in expected:
        assert_same(run(folded, (x, make())), wanted, 1e-9)


class TakesApart(nn.Module):
    """A batch goes through, and comes out as another."""

    def __init__(self, opened):
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1)
        self.opened = opened

    def forward(self, batch):
        table = self.opened(batch)
        table["x"] = torch.relu(self.bn(self.conv(table["x"])))
        table["predicted"] = self.head(table.pop("x"))
        return batch


@pytest.mark.parametrize("options", [{}, {"verify": False}, {"inplace": True}])
@pytest.mark.parametrize(
    ("make", "opened"),
    [
        (lambda x: {"x": x}, lambda batch: batch),
        (lambda x: [{"x": x}], lambda batch: batch[0]),
        (lambda x: {"scene": OrderedDict(x=x)}, lambda batch: batch["scene"]),
    ],
)
def test_a_batch_that_is_taken_apart(make, opened, options):
    x = image(2, 3, 9, 9)
    net, batch = build(TakesApart(opened)), make(x)
    expected = run(net, (make(x),))
    folded, report = bnfold.fold(net, (batch,), **options)
    assert report.removed == 1
    assert [*opened(batch)] == ["x"] and opened(batch)["x"] is x
    assert_same(run(folded, (make(x),)), expected, 1e-9)


def test_tensors_in_a_list_that_is_handed_in_are_outputs():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.head = nn.Conv2d(4, 2, 1)

        def forward(self, x, cache):
            cache.append(self.bn(self.conv(x)))
            return self.head(cache[-1])

    net, x = build(Keeps()), image(2, 3, 5, 5)
    folded, report = bnfold.fold(net, (x, []))
    assert report.removed == 1
    expected, cached = [], []
    run_on(net, (x, expected)), run_on(folded, (x, cached))
    assert_same(cached, expected, 1e-9)


GENERATORS = [
    (
        lambda: torch.Generator().manual_seed(3),
        lambda g: torch.rand((), generator=g),
        lambda g: g.get_state().tolist(),
    ),
    (lambda: np.random.default_rng(3), lambda g: g.normal(), lambda g: g.bit_generator.state),
    (lambda: np.random.RandomState(3), lambda g: g.normal(), lambda g: str(g.get_state())),
    (lambda: random.Random(3), lambda g: g.random(), lambda g: g.getstate()),
]


@pytest.mark.parametrize(("make", "draw", "state"), GENERATORS)
def test_a_generator_of_random_numbers_that_is_handed_in(make, draw, state):
    class Draws(Net):
        def forward(self, x, generator=None):
            return super().forward(x) + draw(generator)

    net, x, generator = build(Draws()), image(2, 3, 5, 5), make()
    folded, report = bnfold.fold(net, (x, generator))
    assert report.removed == 1
    assert state(generator) == state(make())
    assert_same(run(folded, (x, make())), run(net, (x, make())), 1e-9)


def test_what_yields_once_is_named():
    numbers = (number for number in (1, 2))
    with pytest.raises(bnfold.errors.ExampleInputError, match="is a Python generator"):
        bnfold.fold(Net().eval(), (X, numbers))
    assert [*numbers] == [1, 2]
