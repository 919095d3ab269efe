"""How example inputs may be given."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bnfold
from tests.frontends.torch.support import build, image


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
