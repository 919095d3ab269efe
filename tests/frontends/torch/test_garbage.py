"""What only a reference cycle holds does not outlive a run; collecting costs what is new alone."""

from __future__ import annotations

import gc
import queue

import pytest
from torch import Tensor, nn

import bnfold
from tests.frontends.torch.support import assert_folds, batch_norm_calls, build, image


class Cell:
    """Holds a tensor, and itself: only the collector frees it."""

    def __init__(self, tensor: Tensor | None = None) -> None:
        self.me, self.tensor = self, tensor


class Layers(nn.Module):
    """A convolution and its BatchNorm; what is between them is shown to `hold`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.cell = Cell()

    def forward(self, x: Tensor) -> Tensor:
        between = self.conv(x)
        self.hold(between)
        return self.norm(between)

    def hold(self, between: Tensor) -> None:
        raise NotImplementedError


class Holds(Layers):
    """In a cell that can be reached after the run."""

    def hold(self, between: Tensor) -> None:
        self.cell.tensor = between


class HoldsAnew(Layers):
    """In a new cell each time."""

    def hold(self, between: Tensor) -> None:
        self.cell = Cell(between)


class Drops(Layers):
    """In a cell that nobody reaches after the run."""

    def hold(self, between: Tensor) -> None:
        Cell(between)


@pytest.mark.parametrize("module", [Holds, HoldsAnew])
def test_what_can_be_reached_is_read(module: type[Layers]) -> None:
    model, x = build(module()), image(2, 3, 6, 6)
    folded, report = bnfold.fold(model, x)
    assert (report.removed, report.kept) == (0, 1)
    assert batch_norm_calls(folded, x) == 1


def test_what_only_a_cycle_holds_is_not() -> None:
    assert_folds(build(Drops()), image(2, 3, 6, 6), removed=1, kept=0)


KEPT: queue.SimpleQueue[int] = queue.SimpleQueue()
"""What C code hides is not put back."""


class Counts(Layers):
    """Counts what a collection would look through; raises at last, if it is asked to."""

    breaks = False

    def hold(self, between: Tensor) -> None:
        KEPT.put(len(gc.get_objects()))
        if self.breaks:
            raise ValueError("no")


@pytest.mark.parametrize("breaks", [False, True])
def test_old_objects_are_set_aside_while_it_runs_alone(breaks: bool) -> None:
    model = build(Counts())
    model.breaks = breaks
    gc.unfreeze()
    everything = len(gc.get_objects())
    try:
        bnfold.inspect(model, image(2, 3, 6, 6))
    except bnfold.BnfoldError:
        assert breaks
    seen = [KEPT.get() for _ in range(KEPT.qsize())]
    assert min(seen) < everything / 10
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_froze_stays_frozen() -> None:
    model = build(Drops())
    gc.unfreeze()
    gc.freeze()
    count = gc.get_freeze_count()
    try:
        assert_folds(model, image(2, 3, 6, 6))
        assert gc.get_freeze_count() >= count / 2  # some of them are freed meanwhile
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("verify", [False, True])
def test_a_fold_leaves_no_tensors_behind(verify: bool) -> None:
    """Whoever folds one model after the other has the memory of one."""
    model, x = build(Drops()), image(2, 3, 6, 6)
    gc.unfreeze()

    def tensors() -> int:
        return sum(isinstance(thing, Tensor) for thing in gc.get_objects())

    gc.collect()
    gc.disable()  # as if nothing else had set off a collection
    try:
        before = tensors()
        for _ in range(3):
            bnfold.fold(model, x, verify=verify)
        after = tensors()
    finally:
        gc.enable()
    assert after <= before + 3
