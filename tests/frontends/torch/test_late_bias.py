"""Products of matrices whose bias is added behind them, and recurrent layers, on any layout."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import bnfold
from tests.frontends.torch.support import assert_folds, assert_same, build, image, run
from tests.tolerances import RELATIVE


class Net(nn.Module):
    """A function of a BatchNorm over five channels, a matrix, and a summand per column."""

    def __init__(self, function: Callable[[Net, Tensor], Tensor], columns: int = 3) -> None:
        super().__init__()
        self.function = function
        self.norm = nn.BatchNorm1d(5)
        generator = torch.Generator().manual_seed(3)
        self.matrix = nn.Parameter(torch.randn(5, columns, generator=generator))
        self.summand = nn.Parameter(torch.randn(columns, generator=generator))
        self.linear = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)

    def steps(self, x: Tensor) -> Tensor:
        """(N, 5, T) normalised, as (N, T, 5), which is not contiguous."""
        return self.norm(x).transpose(1, 2)


X = image(2, 5, 7)


def intermediate(s: Net, x: Tensor) -> Tensor:
    product = s.steps(x) @ s.matrix
    return functional.gelu(product + s.summand) + product.sum()


def written(s: Net, x: Tensor) -> Tensor:
    product = s.steps(x) @ s.matrix
    first = product[:, :1]
    product += s.summand
    return functional.gelu(product) + first


# ---------------------------------------------------------------- no bias of the product


@pytest.mark.parametrize(
    "function",
    [
        intermediate,
        written,
        lambda s, x: functional.gelu(s.steps(x) @ s.matrix + s.summand) * s.summand,
        lambda s, x: functional.gelu(torch.add(s.steps(x) @ s.matrix, s.summand, alpha=2)),
        lambda s, x: functional.gelu(s.steps(x) @ s.matrix + s.summand.exp()),
        lambda s, x: functional.gelu(s.steps(x) @ s.matrix + s.summand[:1]),
        lambda s, x: functional.gelu(s.steps(x) @ s.matrix + s.matrix[0]),
        lambda s, x: functional.gelu((s.steps(x) @ s.matrix).relu() + s.summand),
        lambda s, x: functional.gelu(s.steps(x) @ s.matrix + torch.full((3,), x.shape[2] * 1.0)),
    ],
)
def test_what_is_added_otherwise_is_no_bias(function):
    assert_folds(build(Net(function)), X, removed=0)


def test_a_summand_along_another_axis_is_no_bias():
    """As many steps as columns: the shape alone would not tell."""
    model = build(
        Net(lambda s, x: functional.gelu((s.steps(x) @ s.matrix).mT + s.summand), columns=7)
    )
    assert_folds(model, X, removed=0)


# ---------------------------------------------------------------- the bias of the product


@pytest.mark.parametrize(
    "function",
    [
        lambda s, x: functional.gelu(s.steps(x) @ s.matrix + s.summand),
        lambda s, x: functional.gelu(s.summand + torch.matmul(s.steps(x), s.matrix)),
        lambda s, x: functional.gelu(s.steps(x).contiguous() @ s.matrix + s.summand),
        lambda s, x: functional.gelu((s.steps(x) @ s.matrix).add_(s.summand)),
        lambda s, x: functional.gelu((s.steps(x) @ s.matrix).reshape(-1, 3) + s.summand),
        lambda s, x: functional.gelu(s.norm(x).mean(2) @ s.matrix + s.summand),
        lambda s, x: functional.linear(s.steps(x), s.linear.weight, s.linear.bias).relu(),
    ],
)
@pytest.mark.parametrize("program", [False, True])
def test_a_batch_norm_goes_into_the_product(function, program):
    model = build(Net(function))
    if not program:
        assert_folds(model, X, removed=1, kept=0)
        return
    folded, report = bnfold.fold(torch.export.export(model, (X,)))
    assert (report.removed, report.kept) == (1, 0)
    assert_same(run(model, X), run(folded.module(), X), RELATIVE["float64"])


def test_a_batch_norm_behind_goes_into_both():
    model = build(Net(lambda s, x: s.norm((x.mT @ s.matrix + s.summand).mT), columns=5))
    assert_folds(model, X, removed=1, kept=0)


# ---------------------------------------------------------------- recurrent layers


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, *, first: bool, contiguous: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.layer = layer
        self.order = (0, 2, 1) if first else (2, 0, 1)
        self.contiguous = contiguous

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).permute(self.order)
        return self.layer(x.contiguous() if self.contiguous else x)[0]


LAYERS = [
    lambda first: nn.LSTM(5, 3, batch_first=first),
    lambda first: nn.LSTM(5, 3, num_layers=2, bidirectional=True, batch_first=first),
    lambda first: nn.LSTM(5, 3, proj_size=2, batch_first=first),
    lambda first: nn.GRU(5, 3, bidirectional=True, batch_first=first),
    lambda first: nn.RNN(5, 3, nonlinearity="relu", batch_first=first),
]
WAYS = [
    (True, False, torch.float32),
    (False, True, torch.float32),
    (True, True, torch.float64),
    (False, False, torch.float64),
]
"""Whether the batch comes first, the input is contiguous, and the dtype: PyTorch runs another op
for each; in float64 one per step, so that each layer comes in one of those two ways."""


@pytest.mark.parametrize("way", range(3))
@pytest.mark.parametrize("number", range(len(LAYERS)))
def test_a_batch_norm_in_front_of_a_recurrent_layer_goes(number, way):
    first, contiguous, dtype = WAYS[way if way < 2 else 2 + number % 2]
    model = build(Recurrent(LAYERS[number](first), first=first, contiguous=contiguous), dtype=dtype)
    assert_folds(model, X[..., :4].to(dtype), removed=1, kept=0, dtype=dtype)


def test_a_layer_without_biases_has_no_place_for_the_shift():
    layer = nn.LSTM(5, 3, bias=False)
    model = build(Recurrent(layer, first=False, contiguous=True), dtype=torch.float32)
    assert_folds(model, X.float(), removed=0, dtype=torch.float32)


def test_a_state_made_of_the_input_keeps_it():
    class Stateful(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x).permute(self.order)
            state = x.mean(0, keepdim=True)[:, :, :3].contiguous()
            return self.layer(x, (state, state))[0]

    model = build(Stateful(nn.LSTM(5, 3), first=False, contiguous=True), dtype=torch.float32)
    assert_folds(model, X.float(), removed=0, dtype=torch.float32)


def test_a_layer_that_runs_twice_takes_one_edit():
    class Twice(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(x).permute(self.order)
            return self.layer(x)[0] + self.layer(x.relu())[0]

    model = build(Twice(nn.LSTM(5, 3), first=False, contiguous=True), dtype=torch.float32)
    assert_folds(model, X.float(), removed=0, dtype=torch.float32)


@pytest.mark.parametrize("cell", [nn.LSTMCell, nn.GRUCell])
def test_cells(cell):
    class Steps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.cell = nn.BatchNorm1d(5), cell(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            x, state = self.norm(x), None
            for step in x.unbind(2):
                state = self.cell(step, state)
            return state if isinstance(state, Tensor) else state[0]

    assert_folds(build(Steps()), X, removed=1, kept=0)
