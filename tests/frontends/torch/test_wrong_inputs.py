"""What is no example input, or not one that the model takes: said at every door, with code to type.

Must not fire: whatever a model does take, a number, a text and a list of tensors included.
"""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import bnfold
from bnfold.errors import ExampleInputError
from tests.frontends.torch.support import build, image


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


X = image(1, 3, 5, 5).float()
MODULE = build(Net()).float()
FOLDED = bnfold.fold(MODULE, X).model
PROGRAM = torch.export.export(MODULE, (X,))

DOORS: dict[str, Callable[[Any], object]] = {
    "fold": lambda inputs: bnfold.fold(MODULE, inputs),
    "fold unverified": lambda inputs: bnfold.fold(MODULE, inputs, verify=False),
    "fold inplace": lambda inputs: bnfold.fold(MODULE, inputs, inplace=True),
    "also": lambda inputs: bnfold.fold(MODULE, X, also=[inputs]),
    "inspect": lambda inputs: bnfold.inspect(MODULE, inputs),
    "verify": lambda inputs: bnfold.verify(MODULE, FOLDED, inputs),
    "verify a program": lambda inputs: bnfold.verify(PROGRAM, PROGRAM, inputs),
    "bench": lambda inputs: bnfold.bench(MODULE, FOLDED, inputs, rounds=1),
    "bench a fold": lambda inputs: bnfold.bench(MODULE, inputs=inputs, rounds=1),
    "bench a program": lambda inputs: bnfold.bench(PROGRAM, PROGRAM, inputs, rounds=1),
}
UNREAD: dict[str, Callable[[Any], object]] = {
    "fold": lambda inputs: bnfold.fold(PROGRAM, inputs),
    "inspect": lambda inputs: bnfold.inspect(PROGRAM, inputs),
}
LOADER = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X))

WITHOUT_TENSORS = [
    ((1, 3, 5, 5), "a shape, (1, 3, 5, 5)", "inputs=torch.randn(1, 3, 5, 5)"),
    ([1, 3, 5, 5], "a shape, (1, 3, 5, 5)", "inputs=torch.randn(1, 3, 5, 5)"),
    (X.shape, "a shape, (1, 3, 5, 5)", "inputs=torch.randn(1, 3, 5, 5)"),
    (((1, 3, 5, 5), (1, 4)), "(a shape, (1, 3, 5, 5), a", "(torch.randn(1, 3, 5, 5), torch.randn("),
    ({"x": (1, 3, 5, 5)}, "{'x': a shape", "inputs={'x': torch.randn(1, 3, 5, 5)}"),
    ("1x3x5x5", "a text, '1x3x5x5'", "inputs=torch.randn(1, 3, 5, 5)"),
    ("image.png", "a text, 'image.png'", "such as inputs=torch.randn("),
    (np.zeros((1, 3, 5, 5)), "a float64 NumPy array of 1x3x5x5", "torch.from_numpy(array).float()"),
    (np.zeros((3, 5), np.float32), "a float32 NumPy array of 3x5", "=torch.from_numpy(array)."),
    ({"x": np.zeros((1, 3, 5, 5))}, "{'x': a float64 NumPy", "{'x': torch.from_numpy(array)"),
    ([[0.5, -1.0], [2.0, 0.0]], "numbers, ", "inputs=torch.tensor(numbers)"),
    (224, "the number 224", "such as inputs=torch.randn("),
    ((None,), "None", "such as inputs=torch.randn("),
    (LOADER, "an object of DataLoader", "inputs=next(iter(loader))"),
    (Tensor, "the class Tensor", "such as inputs=torch.randn("),
]


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(("inputs", "given", "step"), WITHOUT_TENSORS)
def test_what_holds_no_tensor(door: str, inputs: Any, given: str, step: str) -> None:
    with pytest.raises(ExampleInputError) as caught:
        DOORS[door](inputs)
    assert "takes example tensors, and was given " in caught.value.problem
    if given != "numbers, ":  # a list of lists is the arguments of the call
        assert given in caught.value.problem
    assert step in f"{caught.value.next_step}."
    assert "invalid combination" not in str(caught.value)


@pytest.mark.parametrize("door", UNREAD)
@pytest.mark.parametrize(("inputs", "given", "step"), WITHOUT_TENSORS)
def test_a_program_brings_its_own(door: str, inputs: Any, given: str, step: str) -> None:
    with pytest.raises(ExampleInputError, match="the program takes example tensors") as caught:
        UNREAD[door](inputs)
    assert given in caught.value.problem
    assert "leave inputs out" in caught.value.next_step


WITH_TENSORS = [
    (
        {"pixel_values": X},
        "{'pixel_values': a float32 tensor",
        "forward(x): pass inputs={'x': ...}",
    ),
    ([X, torch.zeros(1)], "a float32 tensor of 1)", "inputs=batch[0]"),
    ((X, None), ", None", "inputs=batch[0]"),
    (UserDict(x=X), "UserDict {'x'", "inputs=dict(batch)"),
    (X[0], "a float32 tensor of 3x5x5", "inputs=x[None]"),
    (X.byte(), "a uint8 tensor of 1x3x5x5", "x.to(next(model.parameters()))"),
    (X.double(), "a float64 tensor of 1x3x5x5", "x.to(next(model.parameters()))"),
    (X[:, :2], "a float32 tensor of 1x2x5x5", "inputs that model(*inputs) accepts"),
]


@pytest.mark.parametrize("door", [door for door in DOORS if "program" not in door])
@pytest.mark.parametrize(("inputs", "given", "step"), WITH_TENSORS)
def test_tensors_that_the_model_does_not_take(
    door: str, inputs: Any, given: str, step: str
) -> None:
    with pytest.raises(ExampleInputError, match=r"raised .* on the example inputs") as caught:
        DOORS[door](inputs)
    said = caught.value.problem.replace("1])", "1)")  # a list as it was given, or the arguments
    assert given in said
    assert step in caught.value.next_step
    assert "expected one of" not in str(caught.value)


@pytest.mark.parametrize("within", [torch.vmap, torch.func.grad])
@pytest.mark.parametrize("door", DOORS)
def test_tensors_of_torch_func(door: str, within: Callable[..., Any]) -> None:
    def called(x: Tensor) -> Tensor:
        DOORS[door](x)
        return x.sum()

    with pytest.raises(ExampleInputError, match=r"within torch\.func") as caught:
        within(called)(X)
    assert "fold the model first" in caught.value.next_step


@pytest.mark.parametrize("door", DOORS)
def test_tensors_without_values(door: str) -> None:
    with pytest.raises(ExampleInputError, match="meta device, without values") as caught:
        DOORS[door](X.to("meta"))
    assert "inputs=torch.randn(1, 3, 5, 5)" in caught.value.next_step


def test_a_shape_where_the_other_model_says_what_goes_in() -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]>'
        " g (float[1, 3, 5, 5] x) => (float[1, 3, 5, 5] y) { y = Relu(x) }"
    )
    for pair in ((MODULE, model), (model, MODULE)):
        with pytest.raises(ExampleInputError, match="a shape, ") as caught:
            bnfold.verify(*pair, (1, 3, 5, 5))
        assert "torch.randn(1, 3, 5, 5)" in caught.value.next_step


class Takes(Net):
    """Takes what is asked of it, and an image is made of that."""

    def __init__(self, make: Callable[..., Tensor]) -> None:
        super().__init__()
        self.make = make

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return super().forward(self.make(*args, **kwargs))


@pytest.mark.usefixtures("tests_are_no_garbage")
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (lambda n, c, h, w: torch.arange(n * c * h * w).view(n, c, h, w) * 1.0, (1, 3, 5, 5)),
        (lambda text: torch.tensor([float(t) for t in text]).view(1, 3, 1, 1), "123"),
        (lambda array: torch.from_numpy(array), np.ones((1, 3, 2, 2), np.float32)),
        (lambda images: torch.stack(images), ([X[0], X[0] * 2],)),
        (lambda xs: torch.cat(list(xs.values()), 1), ({"a": X[:, :1], "b": X[:, :2]},)),
        (lambda xs: xs[0] + xs[1], {"xs": [X, X * 2]}),
        (lambda x, size: x[..., : size[0]], (X, (2, 2))),
    ],
)
def test_what_a_model_takes_is_no_wrong_input(make: Callable[..., Tensor], inputs: Any) -> None:
    model = build(Takes(make)).float()
    folded, _ = bnfold.fold(model, inputs)
    assert bnfold.verify(model, folded, inputs, samples=1).equal
    assert bnfold.bench(model, folded, inputs, rounds=1).rows


def test_what_it_says_itself_of_inputs_without_tensors_is_told() -> None:
    def refuse(n: int) -> Tensor:
        raise ValueError("n is too small")

    with pytest.raises(ExampleInputError, match=r"the number 3 \(ValueError: n is too small\)"):
        bnfold.fold(build(Takes(refuse)), 3)


def test_a_setting_that_the_model_cannot_be_run_in_is_no_wrong_input() -> None:
    class Float(Net):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x + torch.ones(1, dtype=torch.float32))

    model = build(Float()).float()
    with pytest.raises(bnfold.BnfoldError, match=r"cannot be run in eager \(cpu, float16"):
        bnfold.bench(model, model, X, rounds=1, dtype="float16")
