"""Random Python around random networks; what is checked is told in programs/check.py.

`make fuzz-programs` runs as many as you like.
"""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import bnfold
from tests.property.programs import check as checks
from tests.property.programs.block import HABITS
from tests.property.programs.check import Outcome, check, check_seed
from tests.property.programs.description import Options, Piece, Program
from tests.property.programs.draw import KINDS, draw
from tests.property.programs.shrink import shrink

pytestmark = pytest.mark.filterwarnings("ignore")  # the programs do what one is warned of
SEEDS = 20
PLAIN = Program((Piece("conv", 1), Piece("bn", 2), Piece("relu", 3), Piece("head_conv", 4)))


def around(habit: str) -> Program:
    """The habit between layers that could be folded through it."""
    return Program((Piece("conv", 1), Piece("bn", 2), Piece(habit, 3), *PLAIN.pieces[2:]))


# ------------------------------------------------------------- what would be noticed


def test_a_plain_program_is_folded():
    assert check(PLAIN).kind == "folded"


def broken(change):
    """`bnfold.fold`, with a change to the module that was given or to the one it returns."""
    fold = bnfold.fold

    def other(model, *inputs, **options):
        result = fold(model, *inputs, **options)
        change(model, result.model)
        return result

    return other


def last(model: nn.Module) -> torch.Tensor:
    return list(model.parameters())[-1].data


PLANTED = {
    "a weight that is off": (lambda given, made: last(made).add_(1e-6), "wrong"),
    "a weight of the original": (lambda given, made: last(given).add_(1e-12), "changed"),
    "an attribute": (lambda given, made: setattr(given, "seen", 1), "changed"),
    "a flag": (lambda given, made: given.pieces[0].train(), "changed"),
    "a hook": (lambda given, made: given.register_forward_hook(lambda *_: None), "changed"),
    "a gradient": (lambda given, made: given.requires_grad_(False), "changed"),
    "random state": (lambda given, made: torch.rand(1), "changed"),
    "a patch": (lambda given, made: setattr(nn.BatchNorm2d, "patched", 1), "changed"),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_found(name, monkeypatch):
    change, kind = PLANTED[name]
    assert not check(PLAIN).failed
    monkeypatch.setattr(bnfold, "fold", broken(change))
    try:
        assert check(PLAIN).kind == kind
    finally:
        if hasattr(nn.BatchNorm2d, "patched"):
            del nn.BatchNorm2d.patched


def test_an_error_that_is_not_ours_is_a_crash(monkeypatch):
    def fold(*_, **__):
        raise KeyError("weight")

    monkeypatch.setattr(bnfold, "fold", fold)
    assert check(PLAIN).kind == "crash"


def test_a_refusal_is_none(monkeypatch):
    def fold(*_, **__):
        raise bnfold.UnsupportedModelError("not this one", "take another")

    monkeypatch.setattr(bnfold, "fold", fold)
    assert check(PLAIN).kind == "refused"


def test_a_failure_shrinks_to_what_it_takes():
    def fails(program: Program) -> Outcome:
        blamed = {"state.counter", "sizes.windows"}
        return Outcome("wrong" if blamed <= set(program.habits) else "folded", program)

    inner = (Piece("conv"), Piece("hooks.only_looks", 2, (Piece("sizes.windows", 3),)), Piece("bn"))
    pieces = (Piece("conv"), Piece("state.counter", 1, inner), Piece("pool"))
    big = Program(pieces, Options(inplace=True, clip="always", layout="channels_last"))
    small = shrink(fails(big), fails)
    assert str(small.program) in (
        "state.counter > sizes.windows",
        "state.counter[sizes.windows]",
    )


# ------------------------------------------------------------------- the programs


def test_a_seed_is_a_program():
    assert draw(7) == draw(7)
    assert len({str(draw(seed)) for seed in range(50)}) == 50


def test_there_are_many_habits_of_each_kind():
    count = Counter(name.split(".")[0] for name in HABITS)
    assert set(count) == set(KINDS)
    assert min(count.values()) >= 15


@pytest.mark.parametrize("habit", sorted(HABITS))
def test_each_habit_can_be_judged(habit):
    inputs, wanted = checks.judge(around(habit))
    assert len(inputs) == len(wanted) >= 3


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_program_is_folded_right_or_not_at_all(seed):
    outcome = check_seed(seed)
    assert not outcome.failed, f"{outcome.kind}: {outcome.message}\n{outcome.program}"
