"""Tensors that are no plain ones: a model that keeps state holds them, or they are its inputs.

They are sparse, nested, quantised or of a class of their own: they cannot be compared, measured or
handed to NumPy as others can.
"""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

import bnfold
from tests.frontends.torch.support import assert_same, build, image, run

X = image(2, 3, 6, 6)


def matrix() -> Tensor:
    return image(4, 4, seed=1).relu()


UNUSUAL = {
    "sparse": lambda: matrix().to_sparse(),
    "sparse rows": lambda: matrix().to_sparse_csr(),
    "sparse columns": lambda: matrix().to_sparse_csc(),
    "sparse blocks": lambda: matrix().to_sparse_bsr((2, 2)),
    "quantised": lambda: torch.quantize_per_tensor(matrix().float(), 0.1, 0, torch.quint8),
    "nested": lambda: torch.nested.nested_tensor([matrix()[0], matrix()[1, :3]]),
    "jagged": lambda: torch.nested.nested_tensor(
        [matrix()[0], matrix()[1, :3]], layout=torch.jagged
    ),
    "masked": lambda: torch.masked.masked_tensor(matrix(), matrix() > 0),
    "fake": lambda: FakeTensorMode().from_tensor(matrix()),
    "float8": lambda: matrix().to(torch.float8_e4m3fn),
    "conjugate": lambda: torch.complex(matrix(), matrix()).conj(),
    "not a number": lambda: matrix() * torch.nan,
}


class Counting(nn.Module):
    """It counts its runs, so that what it holds is compared between them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.head = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return self.head(self.bn(self.conv(x)).relu())


def hold_as_a_buffer(model, tensor):
    model.register_buffer("held", tensor)


def hold_as_an_attribute(model, tensor):
    model.held = tensor


def hold_as_a_parameter(model, tensor):
    model.held = nn.Parameter(tensor, requires_grad=False)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize(
    "hold", [hold_as_a_buffer, hold_as_an_attribute, hold_as_a_parameter], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("name", UNUSUAL)
def test_a_model_that_holds_one(name, hold, verify):
    plain = build(Counting())
    model = copy.deepcopy(plain)
    hold(model, UNUSUAL[name]())
    try:
        folded, report = bnfold.fold(model, X, verify=verify)
    except bnfold.BnfoldError as error:  # PyTorch has no copy of it
        assert "cannot be copied" in str(error)
        folded, report = bnfold.fold(model, X, verify=verify, inplace=True)
    assert_same(run(plain, X), run(folded, X), 1e-9)
    assert report.total == 1


class Multiplies(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.register_buffer("held", matrix().to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return torch.stack([self.held @ one.flatten(1) for one in y])


class Grows(Multiplies):
    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.held = self.held * 2
        return y


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("kind", [Multiplies, Grows])
def test_a_sparse_matrix_that_the_code_computes_with(kind, verify):
    model = build(kind())
    expected = copy.deepcopy(model)
    folded, report = bnfold.fold(model, X, verify=verify)
    assert report.removed == 1
    for _ in range(3):
        assert_same(run(expected, X), run(folded, X), 1e-9)
    assert torch.equal(model.held.to_dense(), matrix())


class Given(nn.Module):
    """What it is given becomes a plain tensor first."""

    def __init__(self, how) -> None:
        super().__init__()
        self.how = how
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(self.how(x)))


INPUTS = {
    "sparse": (lambda: X.to_sparse(), lambda x: x.to_dense()),
    "quantised": (
        lambda: torch.quantize_per_tensor(X.float(), 0.1, 0, torch.quint8),
        lambda x: x.dequantize().double(),
    ),
    "float8": (lambda: X.to(torch.float8_e5m2), lambda x: x.double()),
    "complex": (lambda: torch.complex(X, X), lambda x: x.imag),
    "conjugate": (lambda: torch.complex(X, X).conj(), lambda x: x.imag),
    "truths": (lambda: X > 0, lambda x: x.double()),
}


@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("name", INPUTS)
def test_inputs(name, verify):
    make, how = INPUTS[name]
    model = build(Given(how))
    folded, report = bnfold.fold(model, make(), verify=verify)
    assert report.removed == 1
    assert_same([model(make()).detach()], [folded(make()).detach()], 1e-9)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "how"),
    [
        (lambda: torch.nested.nested_tensor([*X]), lambda x: x.to_padded_tensor(0.0)),
        (lambda: X.flatten(1).to_sparse_csr(), lambda x: x.to_dense().view(2, 3, 6, 6)),
        (lambda: X[:0], lambda x: x),
    ],
    ids=["nested", "sparse rows", "empty"],
)
def test_inputs_that_cannot_be_followed(make, how):
    with pytest.raises(bnfold.ExampleInputError, match="an example input"):
        bnfold.fold(build(Given(how)), make())


def test_a_module_state_that_is_stacked_for_vmap():
    class Stacks(Counting):
        def forward(self, x: Tensor) -> Tensor:
            parts = torch.func.stack_module_state([self.head, self.twin])

            def one(parameters, buffers, y):
                return torch.func.functional_call(self.head, (parameters, buffers), (y,))

            both = torch.vmap(one, in_dims=(0, 0, None))
            return both(*parts, self.bn(self.conv(x)))

    model = Stacks()
    model.twin = nn.Conv2d(4, 4, 1)
    build(model)
    folded, _ = bnfold.fold(model, X)
    assert_same(run(model, X), run(folded, X), 1e-9)


FAKE = """
import gc
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
import bnfold

with FakeTensorMode() as mode:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    x = torch.randn(1, 3, 8, 8)
for example in (x, torch.randn(1, 3, 8, 8)):
    try:
        bnfold.fold(model, example)
    except bnfold.BnfoldError as error:
        print(error)
        del error
del model, x, example
gc.collect()
"""


def test_a_model_without_content_is_refused_and_nothing_ends_the_process() -> None:
    """PyTorch's own deep copy of it writes where it should not."""
    command = [sys.executable, "-W", "ignore", "-c", FAKE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 2
    assert all("made under a FakeTensorMode" in line and "Next: " in line for line in lines)
