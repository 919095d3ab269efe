"""A removed step made a tensor of its own, in a layout of its own, whatever it was given.

Its readers may see both: a view that some layouts refuse, code that asks, whoever holds what was
returned. Which layout the example has says nothing about the next call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram, export, unflatten

import bnfold
from bnfold.frontends.torch import read_other_sizes
from bnfold.frontends.torch.modules import FreshCopy, GaplessCopy, copy_as_batch_norm
from tests.frontends.torch.support import build, image

BATCH_NORMS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.clone(),
    "transposed": lambda x: x.mT.contiguous().mT,
    "batch last": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "cropped": lambda x: torch.cat([x, x], -1)[..., : x.shape[-1]],
    "some channels": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "cropped, channels last": lambda x: (
        torch.cat([x, x], -1).movedim(1, -1).contiguous().movedim(-1, 1)[..., : x.shape[-1]]
    ),
    "expanded": lambda x: x[..., :1].expand(x.shape),
    "one image": lambda x: x[:1],
    "wide": lambda x: torch.cat([x] * 4, -1),
}


class Net(nn.Module):
    """Convolution, BatchNorm, head: `run` says how they are called."""

    def __init__(self, run: Callable[[Net, Tensor], Any], rank: int = 4) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)
        self.rows, self.linear = nn.Conv1d(3, 4, 1), nn.Linear(3, 3)
        self.bn, self.bn2 = BATCH_NORMS[rank](3), BATCH_NORMS[rank](3)
        self.left, self.right = nn.Conv2d(3, 1, 1), nn.Conv2d(3, 2, 1)
        self.relu, self.dropout = nn.ReLU(), nn.Dropout()
        self.scale = nn.Parameter(torch.tensor([-1.5, 0.5, 2.0]).reshape(3, 1, 1))
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def _rows(x: Tensor) -> Tensor:
    return x.view(x.shape[0], 3, -1)


def _folds(net: nn.Module, x: Tensor) -> Iterator[tuple[Callable[..., Any], Any]]:
    """What computes it, and its fold: the module, and its exported program."""
    yield net, bnfold.fold(net, x)
    open_axes = {0: Dim.AUTO, x.ndim - 1: Dim.AUTO}
    program = export(net, (x,), dynamic_shapes={"x": open_axes})
    result = bnfold.fold(program)
    yield program.module(), result


def _call(model: Any) -> Callable[..., Any]:
    return model.module() if isinstance(model, ExportedProgram) else model  # type: ignore[no-any-return]


def _copies(model: Any) -> int:
    if isinstance(model, ExportedProgram):
        return sum(
            node.name.startswith(("clone_default", "cat_default")) for node in model.graph.nodes
        )
    return sum(isinstance(module, FreshCopy | GaplessCopy) for module in model.modules())


def _assert_same_in_all_layouts(net: nn.Module, x: Tensor) -> None:
    for original, result in _folds(net, x):
        folded = _call(result.model)
        for name, lay_out in LAYOUTS.items():
            given = lay_out(image(*x.shape, seed=7))
            try:
                expected = original(given)
            except (RuntimeError, AssertionError):  # it does not take it
                continue
            actual = folded(given)
            torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9, msg=name)


# ------------------------------------------------------------------ where no copy is to be left

DENSE: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "behind a convolution": lambda net, x: net.rows(_rows(net.bn(net.stem(x)))),
    "at the input": lambda net, x: net.head(net.relu(net.bn(x))),
    "at the input, in a sum": lambda net, x: net.head(net.bn(x) + net.stem(x)).flatten(1),
    "a convolution, dropped out": lambda net, x: net.rows(_rows(net.bn(net.dropout(net.stem(x))))),
    "behind a concat": lambda net, x: net.rows(
        _rows(net.bn(torch.cat([net.left(x), net.right(x)], 1)))
    ),
}


@pytest.mark.parametrize("run", DENSE.values(), ids=DENSE.keys())
def test_no_copy_where_the_layout_is_the_batch_norms_anyhow_or_nobody_asks(run):
    for _, result in _folds(build(Net(run)), image(2, 3, 6, 6)):
        assert _copies(result.model) == 0


def _of_rows(net: Net, x: Tensor) -> Tensor:
    """A linear op of many rows: in memory they lie one behind the other."""
    y = net.linear(x)
    return net.bn(y.flatten(0, 1)).view(y.shape)


def test_no_copy_behind_a_linear_op_of_many_rows():
    for _, result in _folds(build(Net(_of_rows, rank=3)), image(2, 5, 3)):
        assert result.report.removed == 1
        assert _copies(result.model) == 0


# ------------------------------------------------------------------ what is seen of the layout

SEEN: dict[str, Callable[[Net, Tensor], Any]] = {
    "view": lambda net, x: net.rows(_rows(net.bn(x))),
    "flatten": lambda net, x: net.rows(net.bn(x).flatten(2)),
    "dropout": lambda net, x: net.rows(_rows(net.dropout(net.bn(x)))),
    "activation": lambda net, x: net.rows(_rows(net.relu(net.bn(x)))),
    "function": lambda net, x: net.rows(_rows(net.bn(x).relu())),
    "product": lambda net, x: net.rows(_rows(net.bn(x) * 2)),
    "sum": lambda net, x: net.rows(_rows(net.bn(x) + x)),
    "two": lambda net, x: net.rows(_rows(net.bn2(net.bn(x)))),
    "scale": lambda net, x: net.rows(_rows(x * net.scale)),
    "scale, cropped": lambda net, x: _rows(net.stem(x)[..., :20] * net.scale),
    "crop": lambda net, x: _rows(net.bn(net.stem(x)[..., :20])),
    "crop behind a function": lambda net, x: _rows(net.bn(net.stem(x).relu()[..., :20])),
    "stride": lambda net, x: net.head(net.bn(x)) * net.bn(x).stride(3),
    "is contiguous": lambda net, x: net.head(net.bn(x)) * (2 if net.bn(x).is_contiguous() else 1),
    "rows of channels": lambda net, x: net.linear(net.bn(x).permute(0, 2, 3, 1).reshape(-1, 3)),
}


@pytest.mark.parametrize("run", SEEN.values(), ids=SEEN.keys())
def test_what_is_seen_of_the_layout_is_as_it_was(run):
    _assert_same_in_all_layouts(build(Net(run)), image(2, 3, 6, 6))


def test_rows_that_come_transposed():
    run = lambda net, x: net.linear(net.bn(x).view(-1, 3))  # noqa: E731
    _assert_same_in_all_layouts(build(Net(run, rank=3)), image(2, 3, 6))


@pytest.mark.parametrize("example", ["contiguous", "channels last"])
def test_what_is_returned_lies_as_it_did(example):
    net = build(Net(lambda net, x: net.bn(net.stem(x)[..., :20])))
    x = LAYOUTS[example](image(2, 3, 6, 6))
    for original, result in _folds(net, x):
        assert result.report.removed == 1
        folded = _call(result.model)
        for name, lay_out in LAYOUTS.items():
            given = lay_out(x)
            if name != "wide" or original is net:  # the program has a guard against it
                assert folded(given).stride() == original(given).stride()


@pytest.mark.parametrize("rank", BATCH_NORMS)
def test_copy_lies_as_what_a_batch_norm_makes(rank):
    for channels, side in ((3, 4), (1, 4), (3, 1)):
        batch_norm = BATCH_NORMS[rank](channels).double().eval()
        for name, lay_out in LAYOUTS.items():
            if name == "wide" or (rank == 2 and name == "cropped, channels last"):
                continue
            x = lay_out(image(2, channels, *(side,) * (rank - 2)))
            copy = copy_as_batch_norm(x)
            assert copy.stride() == batch_norm(x).stride(), (channels, side, name)
            assert torch.equal(copy, x)
            assert copy.data_ptr() != x.data_ptr()


# ------------------------------------------------------------------ writes through what may copy

WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda y: y.flatten(),
    "reshape": lambda y: y.reshape(-1),
    "reshape of a view": lambda y: y.permute(0, 2, 3, 1).reshape(-1, 3),
    "contiguous": lambda y: y.contiguous(),
    "channels last": lambda y: y.contiguous(memory_format=torch.channels_last),
    "to": lambda y: y.to(memory_format=torch.contiguous_format),
    "contiguous view": lambda y: y.permute(0, 2, 3, 1).contiguous(),
    "part": lambda y: y.flatten(2)[:, 1:],
}


@pytest.mark.parametrize("example", ["contiguous", "channels last"])
@pytest.mark.parametrize("copy", WRITES.values(), ids=WRITES.keys())
def test_write_through_what_some_layouts_copy(copy, example):
    def run(net: Net, x: Tensor) -> Tensor:
        y = net.bn(x)
        copy(y).neg_()
        return net.head(y)

    _assert_same_in_all_layouts(build(Net(run)), LAYOUTS[example](image(2, 3, 6, 6)))


@pytest.mark.parametrize("copy", [lambda y: y.flatten(2), lambda y: y.contiguous().flatten(2)])
def test_write_to_what_is_not_read_under_its_old_name_costs_nothing(copy):
    net = build(Net(lambda net, x: net.rows(copy(net.bn(net.stem(x))).neg_())))
    for _, result in _folds(net, image(2, 3, 6, 6)):
        assert result.report.removed == 1


def test_module_is_read_once_where_nothing_writes_to_what_was_contiguous(monkeypatch):
    calls = []
    monkeypatch.setattr(read_other_sizes, "Readings", lambda *args: calls.append(args))
    net = build(Net(lambda net, x: net.head(net.bn(net.stem(x.contiguous())).contiguous())))
    assert bnfold.fold(net, image(2, 3, 6, 6)).report.removed == 1
    assert not calls


# ------------------------------------------------------------------ programs in their modules


class Doubled(nn.Module):
    """The copy that is left belongs to a module, as the BatchNorm did."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.head = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        y[:, 0].mul_(2)
        return self.head(y)


@pytest.mark.parametrize("depth", [0, 1])
def test_folded_program_can_be_unflattened(depth):
    net = build(Doubled())
    for _ in range(depth):
        net = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1)).double(), net).eval()
    x = image(2, 3, 6, 6)
    folded, report = bnfold.fold(export(net, (x,)))
    assert report.removed == 1
    torch.testing.assert_close(unflatten(folded)(x), net(x), rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------ memory of one's own


def _neutral(net: Net) -> Net:
    for batch_norm in (net.bn, net.bn2):
        batch_norm.reset_parameters()
        batch_norm.eps = 0.0
    return net


RETURNED: dict[str, Callable[[Net, Tensor], Any]] = {
    "a product with one": lambda net, x: x * 1,
    "beside its source": lambda net, x: (y := net.stem(x), y * 1),
    "a BatchNorm of the input": lambda net, x: net.bn(x),
    "a part of it": lambda net, x: net.bn(x)[:, 1:],
    "behind what may copy": lambda net, x: net.bn(x.contiguous()),
    "two in a row": lambda net, x: net.bn2(net.bn(x)),
    "a BatchNorm beside its source": lambda net, x: (y := net.stem(x), net.bn(y)),
    "two of one": lambda net, x: (net.bn(y := net.stem(x)), net.bn2(y)),
}


def _shared(given: Tensor, returned: Any) -> list[bool]:
    tensors = [given, *(returned if isinstance(returned, tuple) else (returned,))]
    memories = [tensor.untyped_storage().data_ptr() for tensor in tensors]
    return [one == other for one in memories for other in memories]


@pytest.mark.parametrize("run", RETURNED.values(), ids=RETURNED.keys())
def test_what_outlives_the_run_is_no_more_one_tensor_than_it_was(run):
    net, x = _neutral(build(Net(run))), image(2, 3, 6, 6)
    for original, result in _folds(net, x):
        assert _shared(x, _call(result.model)(x)) == _shared(x, original(x))


def test_a_neutral_step_at_the_end_leaves_nothing():
    net = _neutral(build(Net(lambda net, x: net.bn2(net.bn(net.stem(x))) * 1)))
    for _, result in _folds(net, image(2, 3, 6, 6)):
        assert result.report.removed >= 2
        assert _copies(result.model) == 0
