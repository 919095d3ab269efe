"""A folded program lists the calls of modules that the given one lists, and unflattens by it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, unflatten

import bnfold
from tests.frontends.torch.support import assert_same, build, image, in_core_aten, run

X = image(2, 3, 8, 8)

Calls = dict[str, tuple[list[str], list[str]]]


def calls(program: ExportedProgram) -> Calls:
    """Per preserved call the names of what it takes and returns."""
    return {
        entry.fqn: (
            [argument.name for argument in entry.signature.inputs],
            [argument.name for argument in entry.signature.outputs],
        )
        for entry in program.module_call_graph
        if entry.fqn and entry.signature is not None
    }


def saved(program: ExportedProgram) -> ExportedProgram:
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    return torch.export.load(buffer)


def exported(model: nn.Module, names: tuple[str, ...], *, way: str = "") -> ExportedProgram:
    program = torch.export.export(
        model, (X,), preserve_module_call_signature=names, strict=way == "strict"
    )
    return in_core_aten(program) if way == "core" else program


def folded(model: nn.Module, *names: str, removed: int, way: str = "", **options: Any) -> Calls:
    """What is listed after a fold; the folded program computes the same, whole and unflattened."""
    model = build(model)
    expected = run(model, X)
    program = exported(model, names, way=way)
    before = calls(program)
    made, report = bnfold.fold(program, **options)
    assert report.removed == removed, str(report)
    assert calls(program) == before
    for one in (made, saved(made)):
        assert_same(expected, run(one.module(), X), 1e-9)
        assert_same(expected, run(unflatten(one), X), 1e-9)
    return calls(made)


class Behind(nn.Module):
    """A BatchNorm that goes into the convolution before it."""

    def __init__(self) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.sub(x).relu()


class Between(nn.Module):
    """A BatchNorm whose clip gets bounds, as what it normalises is read elsewhere, too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.sub = nn.Sequential(nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.head(self.sub(x))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sub = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.sub(self.sub(x).relu())


class OneOfTwoCalls(nn.Module):
    """One call of the BatchNorm goes and one stays."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.bn, self.conv, self.order = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), order

    def forward(self, x: Tensor) -> Tensor:
        if self.order == "goes first":
            return self.bn(self.bn(self.conv(x)).sigmoid()).sigmoid()
        return self.bn(self.conv(self.bn(x).sigmoid()))


class Product(nn.Module):
    def __init__(self, *, clips: bool) -> None:
        super().__init__()
        self.clips = clips

    def forward(self, x: Tensor, factor: Tensor) -> Tensor:
        return (x * factor).relu() if self.clips else x * factor


class GivenAFactor(nn.Module):
    """A module that is given a constant; `view` and the constant are read for it alone."""

    def __init__(self, *, clips: bool, viewed: bool) -> None:
        super().__init__()
        self.conv, self.sub = nn.Conv2d(3, 4, 1), Product(clips=clips)
        self.gain = nn.Parameter(torch.rand(4) if viewed else torch.rand(4, 1, 1))
        self.viewed = viewed

    def forward(self, x: Tensor) -> Tensor:
        return self.sub(self.conv(x), self.gain.view(-1, 1, 1) if self.viewed else self.gain)


class Copying(nn.Module):
    """What is left of its BatchNorm is a copy, as its result is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.other = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.bn(y)
        z.view(-1).add_(1.0)
        return z.sigmoid() + self.other(y)


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.point = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        return (self.wide(x) + self.point(x)).relu()


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.bn(x), self.conv(x)


class ReturnsItsInput(nn.Module):
    """Without its BatchNorm, `sub` returns what it is given, and something else."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.sub, self.head = nn.Conv2d(3, 4, 1), Pair(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.sub(self.stem(x))
        return self.head(first) + second


# ------------------------------------------------------------------- nothing to list any more


@pytest.mark.parametrize("names", [("sub.1",), ("sub.0", "sub.1")])
def test_a_module_without_a_node_has_no_call(names: tuple[str, ...]) -> None:
    assert folded(Behind(), *names, removed=1).keys() == {*names} - {"sub.1"}


@pytest.mark.parametrize("order", ["goes first", "stays first"])
def test_a_module_that_lost_one_of_its_calls_has_none(order: str) -> None:
    assert folded(OneOfTwoCalls(order), "bn", removed=1) == {}


def test_a_module_that_lost_all_of_its_calls_has_none() -> None:
    assert folded(Twice(), "sub.1", removed=2) == {}


@pytest.mark.parametrize("viewed", [False, True])
def test_what_a_module_was_given_goes_with_it(viewed: bool) -> None:
    model = GivenAFactor(clips=False, viewed=viewed)
    assert folded(model, "sub", removed=1) == {}


# ------------------------------------------------------------------- calls that stay


def test_what_is_read_instead_is_named() -> None:
    assert folded(Behind(), "sub", removed=1) == {"sub": (["x"], ["conv2d"])}


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], int]] = {
    "behind": (Behind, ("sub",), 1),
    "behind, both": (Behind, ("sub", "sub.0"), 1),
    "bounds": (Between, ("sub",), 1),
    "bounds, inside": (Between, ("sub.1", "head"), 1),
    "twice": (Twice, ("sub",), 2),
    "a copy": (Copying, ("bn",), 1),
    "branches": (Branches, ("wide",), 2),
    "both branches": (Branches, ("wide", "point"), 2),
    "inside of branches": (Branches, ("wide.0", "point.0"), 2),
    "its input": (ReturnsItsInput, ("sub",), 1),
}


@pytest.mark.parametrize("clip", ["auto", "always"])
@pytest.mark.parametrize("case", CASES)
def test_calls_stay_listed(case: str, clip: str) -> None:
    make, names, removed = CASES[case]
    made = folded(make(), *names, removed=removed, clip=clip)
    assert {name.partition("@")[0] for name in made} == {*names}


@pytest.mark.parametrize("way", ["core", "strict"])
@pytest.mark.parametrize("case", CASES)
def test_calls_stay_listed_in_other_forms(case: str, way: str) -> None:
    """Decomposed, a BatchNorm has several results, and a call returns one of them."""
    make, names, removed = CASES[case]
    made = folded(make(), *names, removed=removed, way=way)
    copies = case == "a copy" and way == "core"  # what was written to is made anew there
    assert {name.partition("@")[0] for name in made} == (set() if copies else {*names})


def test_both_calls_of_a_module_are_listed() -> None:
    assert folded(Twice(), "sub", removed=2) == {
        "sub": (["x"], ["conv2d"]),
        "sub@1": (["relu"], ["conv2d_1"]),
    }


@pytest.mark.parametrize("viewed", [False, True])
def test_what_a_module_is_given_stays(viewed: bool) -> None:
    model = GivenAFactor(clips=True, viewed=viewed)
    given, made = folded(model, "sub", removed=1)["sub"]
    assert given == ["conv2d", "view" if viewed else "p_gain"]
    assert len(made) == 1


def test_a_whole_block_is_merged() -> None:
    program = torch.export.export(
        build(nn.Sequential(Branches(), nn.Conv2d(4, 2, 1))),
        (X,),
        preserve_module_call_signature=("0",),
    )
    made, report = bnfold.fold(program)
    assert len(report.merged) == 1
    assert calls(made).keys() == {"0"}
    assert_same(run(program.module(), X), run(unflatten(made), X), 1e-9)


# ------------------------------------------------------------------- unflattened before


def test_a_program_that_was_unflattened_is_folded() -> None:
    """PyTorch leaves in it what it made, which cannot be copied."""
    model, x = build(Behind()).float(), X.float()
    program = torch.export.export(model, (x,), preserve_module_call_signature=("sub.0",))
    unflatten(program)
    made, report = bnfold.fold(program)
    assert report.removed == 1
    assert bnfold.verify(program, made).equal
    assert_same(run(model, x), run(unflatten(made), x), 1e-5)
